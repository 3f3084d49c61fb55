using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace Purse.Ledger;

/// <summary>The variable parts of events. The numbers are written in journals and never change meaning.</summary>
public enum AttachmentTag : byte
{
    Name = 1,
    Description = 2,
    Metadata = 3,
    By = 4,
    Reason = 5,
    Limits = 6,
    Bound = 7,
    Incoming = 8,
    ExpiresAt = 9,
    CurrencyCode = 10,
    Decimals = 11,
    RequestedAmount = 12,

    /// <summary>Of what another partition coordinates: that one, its attempt, and the attempt below which all are finished.</summary>
    Attempt = 14,
    Postings = 15,

    /// <summary>Of an attempt's postings, which of the transaction they are, where not all are known here.</summary>
    Indexes = 16,
    Home = 17,

    /// <summary>A vote against, with its figures.</summary>
    Vote = 18,

    /// <summary>What was left to take back of an original.</summary>
    Left = 19,

    /// <summary>The last event in each partition of what was committed across them.</summary>
    Parts = 20,

    /// <summary>Where a sealed journal goes on.</summary>
    Store = 21,
}

/// <summary>The limits of one account in one currency; a limit that is not set binds nothing.</summary>
public readonly record struct Limits(uint Currency, Int128? Min, Int128? Max);

/// <summary>
/// Personal data of an event, that may have to be erased one day: the journal's chain covers <see cref="Digest"/> only, SHA-256 of
/// <see cref="Salt"/> and text, and the text lies in the block's erasable part.
/// </summary>
public sealed class Erasable
{
    public const int SaltSizeBytes = 16;

    public Erasable(byte[] utf8, ReadOnlySpan<byte> salt)
    {
        Utf8 = utf8;
        Salt = salt.ToArray();
        Digest = SHA256.HashData([.. Salt, .. utf8]);
    }

    public byte[] Utf8 { get; }

    public byte[] Salt { get; }

    public byte[] Digest { get; }
}

/// <summary>What a command carries besides its fixed part; becomes the attachment of its event.</summary>
public sealed class CommandDetails
{
    public Erasable? Description { get; init; }

    public Erasable? Metadata { get; init; }

    /// <summary>Who asked for a change of an account.</summary>
    public string? By { get; init; }

    public string? Reason { get; init; }

    public LimitsAsWritten[]? Limits { get; init; }

    /// <summary>Of a transaction, 1 to <see cref="StateMachine.PostingsMax"/>, in order.</summary>
    public Posting[]? Postings { get; init; }

    /// <summary>Of a reversal: what it takes back.</summary>
    public Original? Original { get; init; }
}

/// <summary>One movement of a transaction, as its caller wrote it.</summary>
public struct Posting
{
    public AccountName Account;
    public AccountName Counterparty;
    public Int128 AmountDigits;
    public CurrencyCode Currency;
    public byte AmountScale;

    /// <summary>Its number in its transaction, from 0, where only some of them are asked for (<see cref="Preparation"/>).</summary>
    public ushort Index;
}

/// <summary>
/// What a reversal is about, as the journal has it: the caller reads it before the command is queued, since the state remembers no more
/// of an old transfer than where it is. An event never changes, so neither does this.
/// </summary>
/// <param name="Sequence">The first event of the original.</param>
/// <param name="Movements">What it moved or was to move, in its own order.</param>
/// <param name="HasMoved">False for holds, voids and refusals.</param>
public sealed record Original(ulong Sequence, Movement[] Movements, bool HasMoved, bool IsTransaction);

/// <summary>Money going from one numbered account to another, minor units.</summary>
public readonly record struct Movement(uint Payer, uint Payee, uint Currency, Int128 Amount);

/// <summary>A limit as a caller wrote it: digits and decimals, since the currency's own are known only to the ledger.</summary>
public readonly record struct LimitsAsWritten(CurrencyCode Currency, bool HasMin, Int128 MinDigits, int MinScale, bool HasMax, Int128 MaxDigits, int MaxScale);

/// <summary>
/// Reads an event's attachment: <c>u16 length of all entries, then entries of u8 tag, u16 length, bytes</c>. An entry whose tag is not
/// known is passed over, so that old readers read new journals' events.
/// </summary>
public readonly ref struct Attachment
{
    readonly ReadOnlySpan<byte> _entries;
    readonly ReadOnlySpan<byte> _erasable;

    /// <param name="attachment"><see cref="Event.Attachment"/>.</param>
    /// <param name="attachments">The block's attachments.</param>
    /// <param name="erasable">The block's erasable part.</param>
    public Attachment(uint attachment, ReadOnlySpan<byte> attachments, ReadOnlySpan<byte> erasable)
    {
        if (attachment == 0) return;
        int at = (int)attachment - 1;
        int length = BinaryPrimitives.ReadUInt16LittleEndian(attachments[at..]);
        _entries = attachments.Slice(at + 2, length);
        _erasable = erasable;
    }

    public bool TryGet(AttachmentTag tag, out ReadOnlySpan<byte> bytes)
    {
        for (ReadOnlySpan<byte> rest = _entries; rest.Length > 0;)
        {
            int length = BinaryPrimitives.ReadUInt16LittleEndian(rest[1..]);
            bytes = rest.Slice(3, length);
            if (rest[0] == (byte)tag) return true;
            rest = rest[(3 + length)..];
        }

        bytes = default;
        return false;
    }

    public string? Text(AttachmentTag tag) => TryGet(tag, out ReadOnlySpan<byte> bytes) ? Encoding.UTF8.GetString(bytes) : null;

    /// <summary>The text behind a digest, null where there is none or it was erased.</summary>
    public byte[]? Erased(AttachmentTag tag)
    {
        if (!TryGet(tag, out ReadOnlySpan<byte> bytes)) return null;
        int offset = (int)BinaryPrimitives.ReadUInt32LittleEndian(bytes[32..]);
        int length = BinaryPrimitives.ReadInt32LittleEndian(_erasable[(offset + Erasable.SaltSizeBytes)..]);
        return length < 0 ? null : _erasable.Slice(offset + Erasable.SaltSizeBytes + 4, length).ToArray();
    }

    /// <summary>The text with its salt, so that its digest is the same elsewhere; null where there is none or it was erased.</summary>
    public Erasable? Salted(AttachmentTag tag)
    {
        if (Erased(tag) is not byte[] text) return null;
        TryGet(tag, out ReadOnlySpan<byte> bytes);
        return new Erasable(text, _erasable.Slice((int)BinaryPrimitives.ReadUInt32LittleEndian(bytes[32..]), Erasable.SaltSizeBytes));
    }

    /// <summary>Whether the text still has the digest that the chain covers (an erased one has none to compare).</summary>
    public bool DigestHolds(AttachmentTag tag)
    {
        if (!TryGet(tag, out ReadOnlySpan<byte> bytes) || Erased(tag) is not byte[] text) return true;
        int offset = (int)BinaryPrimitives.ReadUInt32LittleEndian(bytes[32..]);
        return SHA256.HashData([.. _erasable.Slice(offset, Erasable.SaltSizeBytes), .. text]).AsSpan().SequenceEqual(bytes[..32]);
    }

    public Int128? Integer(AttachmentTag tag) =>
        TryGet(tag, out ReadOnlySpan<byte> bytes) ? BinaryPrimitives.ReadInt128LittleEndian(bytes) : null;

    public Limits[] Limits()
    {
        if (!TryGet(AttachmentTag.Limits, out ReadOnlySpan<byte> bytes)) return [];
        Limits[] limits = new Limits[bytes.Length / LimitsSizeBytes];
        for (int i = 0; i < limits.Length; i++)
        {
            ReadOnlySpan<byte> one = bytes[(i * LimitsSizeBytes)..];
            Int128 min = BinaryPrimitives.ReadInt128LittleEndian(one[5..]), max = BinaryPrimitives.ReadInt128LittleEndian(one[21..]);
            limits[i] = new Limits(BinaryPrimitives.ReadUInt32LittleEndian(one), (one[4] & 1) != 0 ? min : null, (one[4] & 2) != 0 ? max : null);
        }

        return limits;
    }

    /// <summary>All postings of a refused transaction or reversal of one; of an attempt, those that are known here.</summary>
    public Movement[] Postings()
    {
        if (!TryGet(AttachmentTag.Postings, out ReadOnlySpan<byte> bytes)) return [];
        Movement[] postings = new Movement[bytes.Length / PostingSizeBytes];
        for (int i = 0; i < postings.Length; i++)
        {
            ReadOnlySpan<byte> one = bytes[(i * PostingSizeBytes)..];
            postings[i] = new Movement(
                BinaryPrimitives.ReadUInt32LittleEndian(one), BinaryPrimitives.ReadUInt32LittleEndian(one[4..]), BinaryPrimitives.ReadUInt32LittleEndian(one[8..]),
                BinaryPrimitives.ReadInt128LittleEndian(one[12..]));
        }

        return postings;
    }

    /// <summary>The transaction's number of each posting.</summary>
    public ushort[] Indexes()
    {
        TryGet(AttachmentTag.Indexes, out ReadOnlySpan<byte> bytes);
        ushort[] indexes = new ushort[bytes.Length / 2];
        for (int i = 0; i < indexes.Length; i++) indexes[i] = BinaryPrimitives.ReadUInt16LittleEndian(bytes[(2 * i)..]);
        return indexes;
    }

    /// <summary>Null for what this partition coordinates itself.</summary>
    public (int Coordinator, ulong Attempt, ulong LowWater)? Attempt() => TryGet(AttachmentTag.Attempt, out ReadOnlySpan<byte> bytes)
        ? (BinaryPrimitives.ReadInt32LittleEndian(bytes), BinaryPrimitives.ReadUInt64LittleEndian(bytes[4..]), BinaryPrimitives.ReadUInt64LittleEndian(bytes[12..]))
        : null;

    /// <summary>For, where there is none.</summary>
    public Vote Vote()
    {
        if (!TryGet(AttachmentTag.Vote, out ReadOnlySpan<byte> bytes)) return default;
        return new Vote
        {
            Outcome = (Outcome)BinaryPrimitives.ReadUInt16LittleEndian(bytes),
            Posting = BinaryPrimitives.ReadUInt16LittleEndian(bytes[2..]),
            IsAboutPayee = bytes[4] != 0,
            Posted = BinaryPrimitives.ReadInt128LittleEndian(bytes[5..]),
            Held = BinaryPrimitives.ReadInt128LittleEndian(bytes[21..]),
            Incoming = BinaryPrimitives.ReadInt128LittleEndian(bytes[37..]),
            Bound = BinaryPrimitives.ReadInt128LittleEndian(bytes[53..]),
        };
    }

    public Part[] Parts()
    {
        TryGet(AttachmentTag.Parts, out ReadOnlySpan<byte> bytes);
        Part[] parts = new Part[bytes.Length / PartSizeBytes];
        for (int i = 0; i < parts.Length; i++)
            parts[i] = new Part(BinaryPrimitives.ReadInt32LittleEndian(bytes[(i * PartSizeBytes)..]), BinaryPrimitives.ReadUInt64LittleEndian(bytes[(i * PartSizeBytes + 4)..]));
        return parts;
    }

    internal const int AttemptSizeBytes = 4 + 8 + 8;

    /// <summary>Outcome, posting, whether it is about the payee, then posted, held, incoming, bound.</summary>
    internal const int VoteSizeBytes = 2 + 2 + 1 + 4 * 16;

    internal const int PartSizeBytes = 4 + 8;

    /// <summary>Payer, payee, currency, amount.</summary>
    internal const int PostingSizeBytes = 4 + 4 + 4 + 16;

    /// <summary>Currency, a byte that says which are set, lowest, highest.</summary>
    internal const int LimitsSizeBytes = 4 + 1 + 16 + 16;
}
