using System.Buffers;
using System.Diagnostics.CodeAnalysis;
using System.IO.Hashing;
using System.Runtime.CompilerServices;
using System.Text;

namespace Purse.Ledger;

/// <summary>
/// An account's name: 1 to 64 characters of <c>A-Z a-z 0-9 . _ : / -</c>, beginning with a letter or digit; a system account has
/// a leading <c>@</c> before that. Held inline (72 bytes), so that a command carries it without an allocation.
/// </summary>
public struct AccountName : IEquatable<AccountName>
{
    /// <summary>64 characters and the leading <c>@</c> of a system account.</summary>
    public const int LengthMax = 65;

    static readonly SearchValues<byte> Allowed =
        SearchValues.Create("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:/-"u8);

    [InlineArray(71)]
    struct Characters
    {
        byte _first;
    }

    Characters _characters;
    byte _length;

    public readonly int Length => _length;

    public readonly bool IsEmpty => _length == 0;

    /// <summary>Stands for money outside the wallet system; may go below zero.</summary>
    public readonly bool IsSystem => _characters[0] == (byte)'@';

    [UnscopedRef]
    public readonly ReadOnlySpan<byte> Utf8 => ((ReadOnlySpan<byte>)_characters)[.._length];

    public static bool TryParse(ReadOnlySpan<byte> utf8, out AccountName name)
    {
        name = default;
        ReadOnlySpan<byte> rest = utf8.Length > 0 && utf8[0] == (byte)'@' ? utf8[1..] : utf8;
        if (rest.Length is 0 or > 64 || rest.ContainsAnyExcept(Allowed) || !char.IsAsciiLetterOrDigit((char)rest[0])) return false;
        name = FromTrusted(utf8);
        return true;
    }

    public static bool TryParse(ReadOnlySpan<char> text, out AccountName name)
    {
        Span<byte> utf8 = stackalloc byte[LengthMax];
        name = default;
        if (text.Length > LengthMax) return false;
        for (int i = 0; i < text.Length; i++)
        {
            if (!char.IsAscii(text[i])) return false;
            utf8[i] = (byte)text[i];
        }

        return TryParse(utf8[..text.Length], out name);
    }

    public static AccountName Parse(string text) =>
        TryParse(text, out AccountName name) ? name : throw new FormatException($"'{text}' is not an account name.");

    /// <summary>Names that were checked when they entered, read back from events.</summary>
    internal static AccountName FromTrusted(ReadOnlySpan<byte> utf8)
    {
        AccountName name = default;
        utf8.CopyTo(name._characters);
        name._length = (byte)utf8.Length;
        return name;
    }

    /// <summary>The hash that spreads accounts over partitions: XxHash3-64 of the UTF-8 bytes, seed 0.</summary>
    public readonly ulong Hash() => XxHash3.HashToUInt64(Utf8);

    /// <summary>Where an ordinary account lives, for ever.</summary>
    public readonly int PartitionOf(int count) => (int)(Hash() % (ulong)count);

    public readonly bool Equals(AccountName other) => Utf8.SequenceEqual(other.Utf8);

    public override readonly bool Equals(object? obj) => obj is AccountName other && Equals(other);

    public override readonly int GetHashCode() => (int)Hash();

    public override readonly string ToString() => Encoding.UTF8.GetString(Utf8);

    public static bool operator ==(AccountName a, AccountName b) => a.Equals(b);

    public static bool operator !=(AccountName a, AccountName b) => !a.Equals(b);
}
