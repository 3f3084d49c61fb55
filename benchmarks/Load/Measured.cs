namespace Purse.Load;

/// <summary>What a load came to. Those of the last members that nobody looked at are null.</summary>
/// <param name="LatencyMillisecondsP50">Of one request, batched or not.</param>
public sealed record Measured(
    string Name, long Transfers, int Clients, int Batch, double TransfersPerSecond, double LatencyMillisecondsP50, double LatencyMillisecondsP99, double LatencyMillisecondsP999, double LatencyMillisecondsMax, long Refused)
{
    public int? Accounts { get; init; }

    /// <summary>Nothing was answered before it was flushed to a disk; as the server says itself.</summary>
    public bool? IsDurable { get; init; }

    public double? JournalBytesPerTransfer { get; init; }

    public long? Flushes { get; init; }

    /// <summary>Of the processes that answered.</summary>
    public long? ServerRssBytes { get; init; }

    public double? ServerCpuSeconds { get; init; }

    public double? ClientCpuSeconds { get; init; }

    /// <summary>Whether every balance is afterwards what the answers said.</summary>
    public bool? IsBalanced { get; init; }

    /// <param name="latencyTicks">Stopwatch ticks, one for each request, in any order; sorted in place.</param>
    public static Measured From(string name, long transfers, int clients, int batch, TimeSpan took, long[] latencyTicks, long refused)
    {
        Array.Sort(latencyTicks);
        double At(double share) => latencyTicks.Length == 0
            ? 0
            : latencyTicks[Math.Min(latencyTicks.Length - 1, (int)(latencyTicks.Length * share))] * 1000.0 / System.Diagnostics.Stopwatch.Frequency;
        return new Measured(name, transfers, clients, batch, transfers / took.TotalSeconds, At(0.5), At(0.99), At(0.999), At(1), refused);
    }
}
