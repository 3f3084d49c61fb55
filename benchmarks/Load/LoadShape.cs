namespace Purse.Load;

/// <summary>Who pays whom, and how.</summary>
public sealed record LoadShape
{
    public int Accounts { get; init; } = 10_000;

    /// <summary>Of a hundred transfers, how many one account pays.</summary>
    public int HotPercent { get; init; }

    /// <summary>Of a hundred transfers, how many set the money aside instead of moving it.</summary>
    public int HoldPercent { get; init; }

    /// <summary>Ids that rise with time, as those are that their makers want to be kind to an index; else random ones.</summary>
    public bool HasOrderedIds { get; init; }

    /// <summary>How often an account pays falls with its number (Zipf's law, exponent 1); else all the same.</summary>
    public bool IsZipf { get; init; }

    /// <summary>Of a hundred transfers, how many have their payee in another partition.</summary>
    public int CrossPercent { get; init; }

    double[]? _zipf;

    /// <summary>An account, by its number.</summary>
    public int Draw(Random random)
    {
        if (HotPercent > 0 && random.Next(100) < HotPercent) return 0;
        if (!IsZipf) return random.Next(Accounts);
        double[] sums = _zipf ??= Zipf(Accounts);
        int at = Array.BinarySearch(sums, random.NextDouble() * sums[^1]);
        return Math.Min(Accounts - 1, at < 0 ? ~at : at);
    }

    static double[] Zipf(int count)
    {
        double[] sums = new double[count];
        double sum = 0;
        for (int i = 0; i < count; i++) sums[i] = sum += 1.0 / (i + 1);
        return sums;
    }
}
