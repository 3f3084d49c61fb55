using System.Collections.Concurrent;

namespace Purse.Ledger;

/// <summary>A currency code, 3 to 8 characters of <c>A-Z0-9</c>, packed into eight bytes (first character lowest, zero padded).</summary>
public readonly record struct CurrencyCode(ulong Packed)
{
    public static bool TryParse(ReadOnlySpan<char> text, out CurrencyCode code)
    {
        code = default;
        if (text.Length is < 3 or > 8) return false;
        ulong packed = 0;
        for (int i = 0; i < text.Length; i++)
        {
            if (text[i] is not ((>= 'A' and <= 'Z') or (>= '0' and <= '9'))) return false;
            packed |= (ulong)text[i] << (8 * i);
        }

        code = new CurrencyCode(packed);
        return true;
    }

    public static CurrencyCode Parse(string text) =>
        TryParse(text, out CurrencyCode code) ? code : throw new FormatException($"'{text}' is not a currency's code.");

    public override string ToString()
    {
        Span<char> text = stackalloc char[8];
        int length = 0;
        for (ulong packed = Packed; length < 8 && packed != 0; packed >>= 8) text[length++] = (char)(packed & 0xff);
        return new string(text[..length]);
    }
}

/// <summary>
/// The currencies a ledger knows, by the number that events carry. A built-in ISO 4217 code has the number 1 + its three letters
/// read as a base-26 number, so that no table can ever renumber it; registered currencies follow from <see cref="RegisteredFirst"/> on.
/// </summary>
public static class Iso4217
{
    public const int RegisteredFirst = 20_000;
    const byte Unknown = 255;
    const int Letters = 26 * 26 * 26;

    // ISO 4217 list one of 2024-06-25 and amendment 176 (XCG). Codes without minor units (XAU, XDR, XXX, …) are not built in: an
    // amount of them has no number of decimals to be written with.
    const string Decimals0 = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF";
    const string Decimals2 =
        "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW CNY " +
        "COP COU CRC CUC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR " +
        "IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN " +
        "NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB " +
        "TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG";
    const string Decimals3 = "BHD IQD JOD KWD LYD OMR TND";
    const string Decimals4 = "CLF UYW";

    static readonly byte[] DecimalsByNumber = Table();

    public static IEnumerable<(string Code, int Decimals)> All =>
        from number in Enumerable.Range(1, Letters)
        where DecimalsByNumber[number] != Unknown
        select (Code((uint)number).ToString(), (int)DecimalsByNumber[number]);

    /// <summary>The number and decimals of a built-in code; false for any other.</summary>
    public static bool TryGet(CurrencyCode code, out uint number, out int decimals)
    {
        ulong packed = code.Packed;
        uint a = (uint)(packed & 0xff) - 'A', b = (uint)((packed >> 8) & 0xff) - 'A', c = (uint)((packed >> 16) & 0xff) - 'A';
        number = 0;
        decimals = 0;
        if (packed >> 24 != 0 || a > 25 || b > 25 || c > 25) return false;
        number = 1 + ((a * 26) + b) * 26 + c;
        decimals = DecimalsByNumber[number];
        return decimals != Unknown;
    }

    public static int Decimals(uint number) => DecimalsByNumber[number];

    /// <summary>The code as text, made once.</summary>
    public static string Text(uint number) => Texts[number] ??= Code(number).ToString();

    static readonly string?[] Texts = new string?[Letters + 1];

    public static CurrencyCode Code(uint number)
    {
        uint letters = number - 1;
        return new CurrencyCode(('A' + letters / 676) | (ulong)('A' + letters / 26 % 26) << 8 | (ulong)('A' + letters % 26) << 16);
    }

    static byte[] Table()
    {
        byte[] table = new byte[Letters + 1];
        Array.Fill(table, Unknown);
        string[] groups = [Decimals0, "", Decimals2, Decimals3, Decimals4];
        for (int decimals = 0; decimals < groups.Length; decimals++)
        {
            foreach (string code in groups[decimals].Split(' ', StringSplitOptions.RemoveEmptyEntries))
                table[1 + ((code[0] - 'A') * 26 + (code[1] - 'A')) * 26 + (code[2] - 'A')] = (byte)decimals;
        }

        return table;
    }
}

/// <summary>A currency that a caller registered.</summary>
public struct RegisteredCurrency
{
    public CurrencyCode Code;
    public ulong Decimals;
}

/// <summary>
/// The registered currencies, in the order of their events, numbered from <see cref="Iso4217.RegisteredFirst"/> on. They never change. Any
/// thread may look one up.
/// </summary>
public sealed class Currencies
{
    readonly Chunked<RegisteredCurrency> _registered = new();
    readonly ConcurrentDictionary<ulong, uint> _numbers = new();

    public int Count => _registered.Count;

    /// <summary>By number; one that was published to the caller.</summary>
    public RegisteredCurrency this[uint number] => _registered[(int)number - Iso4217.RegisteredFirst];

    public bool TryGet(CurrencyCode code, out uint number, out int decimals)
    {
        decimals = 0;
        if (!_numbers.TryGetValue(code.Packed, out number)) return false;
        decimals = (int)this[number].Decimals;
        return true;
    }

    internal uint Add(CurrencyCode code, int decimals)
    {
        _registered.Add() = new RegisteredCurrency { Code = code, Decimals = (ulong)decimals };
        uint number = (uint)(Iso4217.RegisteredFirst + _registered.Count - 1);
        Check.That(_numbers.TryAdd(code.Packed, number), "a currency is registered once");
        return number;
    }

    internal Chunked<RegisteredCurrency>.Image BeginImage(bool whileItChanges) => _registered.BeginImage(whileItChanges);

    internal void Read(BinaryReader reader)
    {
        _registered.Read(reader.BaseStream, reader.ReadInt32());
        for (int i = 0; i < _registered.Count; i++) _numbers[_registered[i].Code.Packed] = (uint)(Iso4217.RegisteredFirst + i);
    }
}
