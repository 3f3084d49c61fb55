using System.Buffers.Text;
using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using Microsoft.AspNetCore.Http;
using Purse.Ledger;

namespace Purse.Server;

/// <summary>What requests are made of, checked for shape: names, amounts, ids, times, positions, deadlines.</summary>
public static class Query
{
    static readonly TimeSpan TimeoutDefault = TimeSpan.FromSeconds(10);
    public const int TimeoutMillisecondsMax = 600_000;

    /// <param name="milliseconds">0 for the default.</param>
    public static TimeSpan Timeout(uint milliseconds) => milliseconds == 0 ? TimeoutDefault : TimeSpan.FromMilliseconds(milliseconds);

    public static TimeSpan Timeout(HttpContext http)
    {
        string? text = http.Request.Headers["X-Request-Timeout-Ms"];
        if (string.IsNullOrEmpty(text)) return TimeoutDefault;
        if (!int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int milliseconds) || milliseconds is < 1 or > TimeoutMillisecondsMax)
            throw new Problem("malformed_request", $"X-Request-Timeout-Ms is '{text}'; it must be 1 to {TimeoutMillisecondsMax}.");
        return TimeSpan.FromMilliseconds(milliseconds);
    }

    /// <summary>What is left of a deadline; never nothing, so that what is asked of may still answer at once.</summary>
    public static TimeSpan Left(TimeSpan timeout, long startedTicks) =>
        TimeSpan.FromMilliseconds(Math.Max(1, timeout.TotalMilliseconds - (Environment.TickCount64 - startedTicks)));

    public static AccountName Account(string member, string text) => AccountName.TryParse(text, out AccountName name)
        ? name
        : throw new Problem("account_malformed", $"{member} is '{Shorten(text)}'; an account's name is 1 to 64 of A-Z a-z 0-9 . _ : / - and begins with a letter or digit (a system account's with @ before that).");

    /// <summary>The account a path names. The server leaves an encoded slash alone in paths, since it separates segments.</summary>
    public static AccountName AccountOfPath(HttpContext http) =>
        Account("The account", ((string)http.Request.RouteValues["account"]!).Replace("%2F", "/", StringComparison.OrdinalIgnoreCase));

    public static AccountName OrdinaryAccountOfPath(HttpContext http)
    {
        AccountName account = AccountOfPath(http);
        return account.IsSystem ? throw SystemAccount(account) : account;
    }

    public static Problem SystemAccount(AccountName account) =>
        new("account_malformed", $"'{account}' is a system account: it needs no opening, and cannot be limited, frozen or closed.");

    public static UInt128 TransactionId(string text) => text.Length == 36 && Guid.TryParseExact(text, "D", out Guid id)
        ? Answer.FromGuid(id)
        : throw new Problem("transaction_id_malformed", $"The transaction id is '{Shorten(text)}'; it must be a UUID such as 0198c0de-0000-7000-8000-000000000001.");

    public static CurrencyCode Currency(string text) => CurrencyCode.TryParse(text, out CurrencyCode code)
        ? code
        : throw new Problem("currency_unknown", $"'{Shorten(text)}' is not a currency's code: 3 to 8 of A-Z 0-9.");

    public static (Int128 Digits, byte Scale) PositiveAmount(string text)
    {
        if (text.StartsWith('-') && Ledger.Amount.Parse(text.AsSpan(1), out _, out _) != Ledger.Amount.ParseResult.Malformed) throw NotPositive(text);
        (Int128 digits, int scale) = Amount("amount", text);
        return digits == 0 ? throw NotPositive(text) : (digits, (byte)scale);
    }

    static Problem NotPositive(string text) => new("amount_not_positive", $"The amount is {Shorten(text)}; it must be greater than 0.");

    public static (Int128 Digits, int Scale) Amount(string member, ReadOnlySpan<char> text) => Ledger.Amount.Parse(text, out Int128 digits, out int scale) switch
    {
        Ledger.Amount.ParseResult.Malformed => throw new Problem("amount_malformed", $"{member} is '{Shorten(text)}'; it must be digits with at most one point, such as 12.34."),
        Ledger.Amount.ParseResult.TooLarge => throw new Problem("amount_too_large", $"{member} is {Shorten(text)}; an amount is less than 10^30 minor units of its currency."),
        Ledger.Amount.ParseResult.TooPrecise => throw new Problem("amount_too_precise", $"{member} is {Shorten(text)}; no currency has more than {Ledger.Amount.DecimalsMax} decimals."),
        _ => (digits, scale),
    };

    public static Erasable? Description(string? text)
    {
        if (text is null) return null;
        CheckLength("description", text);
        return ToErasable(Encoding.UTF8.GetBytes(text));
    }

    public static Erasable? Metadata(JsonElement? metadata)
    {
        if (metadata is not JsonElement element) return null;
        if (element.ValueKind != JsonValueKind.Object) throw new Problem("malformed_request", "metadata must be a JSON object.");
        int length = Encoding.UTF8.GetByteCount(element.GetRawText());
        if (length > 2048) throw new Problem("malformed_request", $"metadata has {length} bytes; up to 2048 are allowed.");
        try
        {
            // What is recorded must be readable, and comparable with what a retry sends, for ever.
            using MemoryStream compact = new();
            using (Utf8JsonWriter json = new(compact, Answer.JsonOptions)) element.WriteTo(json);
            if (!JsonElement.DeepEquals(element, element)) throw new InvalidOperationException();
            return ToErasable(compact.ToArray());
        }
        catch (Exception e) when (e is InvalidOperationException or ArgumentException or FormatException or OverflowException)
        {
            throw new Problem("malformed_request", "metadata has a text that is not valid Unicode, or a number beyond all bounds.");
        }
    }

    static Erasable ToErasable(byte[] utf8)
    {
        Span<byte> salt = stackalloc byte[Erasable.SaltSizeBytes];
        RandomNumberGenerator.Fill(salt);
        return new Erasable(utf8, salt);
    }

    public static LimitsAsWritten[] Limits(Dictionary<string, LimitsBody>? limits)
    {
        if (limits is null) return [];
        if (limits.Count > 64) throw new Problem("malformed_request", $"limits has {limits.Count} currencies; up to 64 are allowed.");
        return [.. limits.Select(one => Limit(one.Key, one.Value))];
    }

    static LimitsAsWritten Limit(string currency, LimitsBody? body)
    {
        CurrencyCode code = Currency(currency);
        if (body is null || (body.MinBalance is null && body.MaxBalance is null)) throw new Problem("malformed_request", $"limits.{currency} needs min_balance, max_balance or both.");
        (Int128 min, int minScale) = SignedAmount($"limits.{currency}.min_balance", body.MinBalance);
        (Int128 max, int maxScale) = SignedAmount($"limits.{currency}.max_balance", body.MaxBalance);
        if (body.MinBalance is not null && body.MaxBalance is not null && IsGreater(min, minScale, max, maxScale))
            throw new Problem("malformed_request", $"limits.{currency}: min_balance {body.MinBalance} is greater than max_balance {body.MaxBalance}.");
        return new LimitsAsWritten(code, body.MinBalance is not null, min, minScale, body.MaxBalance is not null, max, maxScale);
    }

    static (Int128 Digits, int Scale) SignedAmount(string member, string? text)
    {
        if (text is null) return (0, 0);
        bool isNegative = text.StartsWith('-');
        (Int128 digits, int scale) = Amount(member, text.AsSpan(isNegative ? 1 : 0));
        return (isNegative ? -digits : digits, scale);
    }

    /// <summary>Whole parts first, so that bringing both to the same scale cannot overflow.</summary>
    static bool IsGreater(Int128 a, int aScale, Int128 b, int bScale)
    {
        Int128 aUnit = Pow10(aScale), bUnit = Pow10(bScale);
        Int128 aWhole = a / aUnit, bWhole = b / bUnit;
        if (aWhole != bWhole) return aWhole > bWhole;
        return a % aUnit * Pow10(18 - aScale) > b % bUnit * Pow10(18 - bScale);
    }

    static Int128 Pow10(int power)
    {
        Int128 result = 1;
        for (int i = 0; i < power; i++) result *= 10;
        return result;
    }

    public static string? Reason(string? reason) =>
        reason is null ? null : CheckLength("reason", reason);

    /// <summary>In characters as people count them and the document does, not in UTF-16 units.</summary>
    static string CheckLength(string member, string text)
    {
        int length = text.EnumerateRunes().Count();
        return length <= 256 ? text : throw new Problem("malformed_request", $"{member} has {length} characters; up to 256 are allowed.");
    }

    public static long TimeMicros(string member, string text)
    {
        string[] formats = ["yyyy-MM-dd'T'HH:mm:ssK", "yyyy-MM-dd'T'HH:mm:ss.FFFFFFFK"];
        bool hasZone = text.EndsWith('Z') || (text.Length > 6 && text[^6] is '+' or '-');
        if (!hasZone || !DateTimeOffset.TryParseExact(text, formats, CultureInfo.InvariantCulture, DateTimeStyles.None, out DateTimeOffset time))
            throw new Problem("malformed_request", $"{member} is '{Shorten(text)}'; it must be a time such as 2026-11-23T04:00:00.123456Z.");
        return (time - DateTimeOffset.UnixEpoch).Ticks / TimeSpan.TicksPerMicrosecond;
    }

    /// <summary>This partition's entry of a position, null where it has none.</summary>
    public static ulong? Position(string member, string text, int partition)
    {
        ulong? found = null;
        foreach (string entry in text.Split(','))
        {
            int colon = entry.IndexOf(':');
            if (colon < 0
                || !int.TryParse(entry.AsSpan(0, colon), NumberStyles.None, CultureInfo.InvariantCulture, out int of)
                || !ulong.TryParse(entry.AsSpan(colon + 1), NumberStyles.None, CultureInfo.InvariantCulture, out ulong sequence))
                throw new Problem("malformed_request", $"{member} is '{Shorten(text)}'; it must be a position such as 0:12.");
            if (of == partition) found = sequence;
        }

        return found;
    }

    public static string? Parameter(HttpContext http, string name)
    {
        Microsoft.Extensions.Primitives.StringValues values = http.Request.Query[name];
        return values.Count > 1 ? throw new Problem("malformed_request", $"The parameter {name} is there {values.Count} times.") : values.Count == 0 ? null : values[0];
    }

    /// <summary>Refuses parameters that would silently change nothing.</summary>
    public static void AllowParameters(HttpContext http, params ReadOnlySpan<string> names)
    {
        foreach (string given in http.Request.Query.Keys)
        {
            if (!names.Contains(given)) throw new Problem("malformed_request", $"The parameter '{Shorten(given)}' is not known here.");
        }
    }

    public static string Shorten(ReadOnlySpan<char> text) => text.Length <= 100 ? text.ToString() : $"{text[..100]}…";

    /// <summary>A cursor says where the next page begins and where the last one ends, in each part: it survives restarts and new events.</summary>
    public static string Cursor(bool ascending, IEnumerable<(ulong Next, ulong End)> places) =>
        Base64Url.EncodeToString(Encoding.UTF8.GetBytes($"{(ascending ? 'a' : 'd')}{string.Join(',', places.Select(place => $"{place.Next}-{place.End}"))}"));

    public static (bool Ascending, (ulong Next, ulong End)[] Places) Cursor(string cursor, int parts)
    {
        try
        {
            string text = Encoding.UTF8.GetString(Base64Url.DecodeFromChars(cursor));
            (ulong, ulong)[] places = [.. text[1..].Split(',').Select(place => place.Split('-') is [string next, string end] ? (Number(next), Number(end)) : throw new FormatException())];
            return places.Length == parts ? (text[0] == 'a', places) : throw new FormatException();
        }
        catch (Exception e) when (e is FormatException or ArgumentException or IndexOutOfRangeException or OverflowException)
        {
            throw new Problem("malformed_request", $"The cursor '{Shorten(cursor)}' is not one that this server gave.");
        }

        static ulong Number(string text) => ulong.Parse(text, NumberStyles.None, CultureInfo.InvariantCulture);
    }
}
