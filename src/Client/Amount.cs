using System.Globalization;

namespace Purse.Client;

/// <summary>An amount of money, exact: 1234 with 2 decimals is 12.34. A <see cref="decimal"/> becomes one by itself.</summary>
/// <param name="Digits">Of what is written, without its point.</param>
/// <param name="Decimals">How many of them stand behind the point, 0 to 18.</param>
public readonly record struct Amount(Int128 Digits, byte Decimals)
{
    public static implicit operator Amount(decimal value) => FromDecimal(value);

    public static Amount FromDecimal(decimal value)
    {
        Span<int> bits = stackalloc int[4];
        decimal.GetBits(value, bits);
        Int128 digits = new((uint)bits[2], ((ulong)(uint)bits[1] << 32) | (uint)bits[0]);
        return new Amount(value < 0 ? -digits : digits, (byte)((bits[3] >> 16) & 0xff));
    }

    /// <exception cref="FormatException">It is not digits with at most one point.</exception>
    public static Amount Parse(string text)
    {
        int point = text.IndexOf('.', StringComparison.Ordinal);
        string digits = point < 0 ? text : text.Remove(point, 1);
        return new Amount(Int128.Parse(digits, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture), (byte)(point < 0 ? 0 : text.Length - point - 1));
    }

    /// <summary>As the wire has it: <c>12.34</c>.</summary>
    public override string ToString()
    {
        if (Decimals == 0) return Digits.ToString(CultureInfo.InvariantCulture);
        string text = Int128.Abs(Digits).ToString(CultureInfo.InvariantCulture).PadLeft(Decimals + 1, '0');
        return $"{(Digits < 0 ? "-" : "")}{text[..^Decimals]}.{text[^Decimals..]}";
    }
}
