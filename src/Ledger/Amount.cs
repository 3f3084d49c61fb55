namespace Purse.Ledger;

/// <summary>Money as 128-bit integers in minor units, and its decimal form.</summary>
public static class Amount
{
    /// <summary>10^30 minor units: every amount is below it.</summary>
    public static readonly Int128 Limit = Int128.Parse("1000000000000000000000000000000");

    /// <summary>
    /// 10^33 minor units: no balance, with all that is held gone or all that is promised come, may leave ±this. Far below 2^127, so
    /// no sum of balances the ledger forms can wrap.
    /// </summary>
    public static readonly Int128 BalanceLimit = Int128.Parse("1000000000000000000000000000000000");

    public const int DecimalsMax = 18;

    static readonly Int128[] PowersOfTen = Enumerable.Range(0, 39)
        .Select(power => Enumerable.Repeat((Int128)10, power).Aggregate(Int128.One, (a, b) => a * b)).ToArray();

    // 128-bit division is the slowest arithmetic there is: done here once, not for every transfer.
    static readonly Int128[] LimitsByPower = [.. PowersOfTen.Select(power => (Limit - 1) / power)];

    public enum ParseResult
    {
        Ok,
        Malformed,
        TooLarge,
        TooPrecise,
    }

    /// <summary>
    /// Reads digits with at most one point, no sign and no exponent, into an integer and the number of decimals it was written with
    /// (trailing zeros after the point do not count: <c>12.30</c> and <c>12.3</c> are the same).
    /// </summary>
    public static ParseResult Parse(ReadOnlySpan<char> text, out Int128 digits, out int scale)
    {
        digits = 0;
        scale = 0;
        int point = text.IndexOf('.');
        if (point == 0 || point == text.Length - 1 || text.IsEmpty || text.Length > 128) return ParseResult.Malformed;
        ReadOnlySpan<char> whole = point < 0 ? text : text[..point];
        ReadOnlySpan<char> fraction = point < 0 ? [] : text[(point + 1)..];
        if (whole.ContainsAnyExceptInRange('0', '9') || fraction.ContainsAnyExceptInRange('0', '9')) return ParseResult.Malformed;
        whole = whole.TrimStart('0');
        fraction = fraction.TrimEnd('0');
        if (fraction.Length > DecimalsMax) return ParseResult.TooPrecise;
        if (whole.Length > 30) return ParseResult.TooLarge;
        // At most 48 digits: those beyond 38 cannot fit, and belong to amounts no currency can hold.
        if (whole.Length + fraction.Length > 38) return ParseResult.TooLarge;
        foreach (char c in whole) digits = digits * 10 + (c - '0');
        foreach (char c in fraction) digits = digits * 10 + (c - '0');
        scale = fraction.Length;
        return ParseResult.Ok;
    }

    /// <summary>Digits as written, in minor units of a currency.</summary>
    public static ParseResult ToMinor(Int128 digits, int scale, int decimals, out Int128 minor)
    {
        minor = 0;
        // Zeros behind the point say nothing: 12.300 and 12.3 are the same.
        for (; scale > decimals && scale <= DecimalsMax && digits % 10 == 0; scale--) digits /= 10;
        if (scale > decimals) return ParseResult.TooPrecise;
        if (digits > LimitsByPower[decimals - scale]) return ParseResult.TooLarge;
        minor = digits * PowersOfTen[decimals - scale];
        return ParseResult.Ok;
    }

    /// <summary>All decimals of the currency, <c>-</c> where negative.</summary>
    public static string Format(Int128 minor, int decimals)
    {
        if (decimals == 0) return minor.ToString();
        Span<char> text = stackalloc char[48];
        UInt128 rest = minor < 0 ? (UInt128)(-minor) : (UInt128)minor;
        int at = text.Length;
        // Nearly every amount fits in 64 bits, where division is one instruction.
        if (rest <= ulong.MaxValue)
        {
            ulong small = (ulong)rest;
            for (int i = 0; i <= decimals || small != 0; i++, small /= 10)
            {
                if (i == decimals) text[--at] = '.';
                text[--at] = (char)('0' + small % 10);
            }
        }
        else
        {
            for (int i = 0; i <= decimals || rest != 0; i++, rest /= 10)
            {
                if (i == decimals) text[--at] = '.';
                text[--at] = (char)('0' + (int)(rest % 10));
            }
        }

        if (minor < 0) text[--at] = '-';
        return new string(text[at..]);
    }
}
