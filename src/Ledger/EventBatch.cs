using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text;

namespace Purse.Ledger;

/// <summary>
/// The events of one block in the making: fixed-size events, their attachments, and the erasable texts. Allocated once and reused;
/// the owner asks <see cref="HasRoom"/> before each command, so that a command's events never straddle two blocks.
/// </summary>
public sealed class EventBatch(int eventsMax)
{
    /// <summary>
    /// The largest is to prepare a transaction of 64 postings: a currency and two names each, the head, and what may leave and what may come of
    /// each balance.
    /// </summary>
    public const int EventsPerCommandMax = 64 * 8;

    readonly Event[] _events = new Event[eventsMax + EventsPerCommandMax];
    byte[] _attachments = new byte[4096];
    int _attachmentsLength;
    byte[] _erasable = new byte[4096];
    int _erasableLength;
    int _open = -1;

    public ulong FirstSequence { get; private set; }

    public long TimeMicros { get; private set; }

    public int Count { get; private set; }

    public ulong NextSequence => FirstSequence + (ulong)Count;

    public bool HasRoom => Count < eventsMax && _attachmentsLength < AttachmentsBytesMax && _erasableLength < ErasableBytesMax;

    const int AttachmentsBytesMax = 512 * 1024;
    const int ErasableBytesMax = 512 * 1024;

    public ReadOnlySpan<Event> Events => _events.AsSpan(0, Count);

    public ref Event this[int index] => ref _events.AsSpan(0, Count)[index];

    public ReadOnlySpan<byte> EventBytes => MemoryMarshal.AsBytes(Events);

    public ReadOnlySpan<byte> Attachments => _attachments.AsSpan(0, _attachmentsLength);

    public ReadOnlySpan<byte> Erasable => _erasable.AsSpan(0, _erasableLength);

    public void Reset(ulong firstSequence, long timeMicros)
    {
        FirstSequence = firstSequence;
        TimeMicros = timeMicros;
        Count = 0;
        _attachmentsLength = 0;
        _erasableLength = 0;
        _open = -1;
    }

    /// <summary>Forgets what was added since <see cref="Count"/> and its attachments were these.</summary>
    public void Rewind((int Count, int AttachmentsLength, int ErasableLength) to) => (Count, _attachmentsLength, _erasableLength) = to;

    public (int Count, int AttachmentsLength, int ErasableLength) Here => (Count, _attachmentsLength, _erasableLength);

    /// <summary>Adds an event and returns it, to be filled in place. Fields not set are zero.</summary>
    public ref Event Add(EventKind kind)
    {
        ref Event e = ref _events[Count++];
        e = default;
        e.Kind = kind;
        return ref e;
    }

    /// <summary>Begins an attachment; <see cref="EndAttachment"/> gives what to put in <see cref="Event.Attachment"/>.</summary>
    public void BeginAttachment()
    {
        Check.That(_open < 0, "one attachment at a time");
        _open = _attachmentsLength;
        Grow(ref _attachments, _attachmentsLength + 2);
        _attachmentsLength += 2;
    }

    public uint EndAttachment()
    {
        int length = _attachmentsLength - _open - 2;
        Check.That(length <= ushort.MaxValue, "an attachment fits its length prefix");
        BinaryPrimitives.WriteUInt16LittleEndian(_attachments.AsSpan(_open), (ushort)length);
        uint attachment = (uint)_open + 1;
        if (length == 0)
        {
            _attachmentsLength = _open;
            attachment = 0;
        }

        _open = -1;
        return attachment;
    }

    public void Attach(AttachmentTag tag, ReadOnlySpan<byte> bytes) => bytes.CopyTo(Entry(tag, bytes.Length));

    public void Attach(AttachmentTag tag, Int128 value) => BinaryPrimitives.WriteInt128LittleEndian(Entry(tag, 16), value);

    public void Attach(AttachmentTag tag, string? text)
    {
        if (!string.IsNullOrEmpty(text)) Attach(tag, Encoding.UTF8.GetBytes(text));
    }

    public void Attach(AttachmentTag tag, Erasable? erasable)
    {
        if (erasable is null) return;
        int offset = _erasableLength;
        int length = Ledger.Erasable.SaltSizeBytes + 4 + erasable.Utf8.Length;
        Grow(ref _erasable, offset + length);
        Span<byte> target = _erasable.AsSpan(offset, length);
        erasable.Salt.CopyTo(target);
        BinaryPrimitives.WriteInt32LittleEndian(target[Ledger.Erasable.SaltSizeBytes..], erasable.Utf8.Length);
        erasable.Utf8.CopyTo(target[(Ledger.Erasable.SaltSizeBytes + 4)..]);
        _erasableLength += length;

        Span<byte> entry = Entry(tag, 36);
        erasable.Digest.CopyTo(entry);
        BinaryPrimitives.WriteUInt32LittleEndian(entry[32..], (uint)offset);
    }

    public void Attach(ReadOnlySpan<Limits> limits)
    {
        Span<byte> entry = Entry(AttachmentTag.Limits, limits.Length * Attachment.LimitsSizeBytes);
        foreach (Limits one in limits)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(entry, one.Currency);
            entry[4] = (byte)((one.Min is null ? 0 : 1) | (one.Max is null ? 0 : 2));
            BinaryPrimitives.WriteInt128LittleEndian(entry[5..], one.Min ?? 0);
            BinaryPrimitives.WriteInt128LittleEndian(entry[21..], one.Max ?? 0);
            entry = entry[Attachment.LimitsSizeBytes..];
        }
    }

    public void Attach(ReadOnlySpan<Step> postings)
    {
        Span<byte> entry = Entry(AttachmentTag.Postings, postings.Length * Attachment.PostingSizeBytes);
        foreach (ref readonly Step step in postings)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(entry, step.Movement.Payer);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[4..], step.Movement.Payee);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[8..], step.Movement.Currency);
            BinaryPrimitives.WriteInt128LittleEndian(entry[12..], step.Movement.Amount);
            entry = entry[Attachment.PostingSizeBytes..];
        }
    }

    public void Attach(ReadOnlySpan<ushort> indexes)
    {
        Span<byte> entry = Entry(AttachmentTag.Indexes, indexes.Length * 2);
        for (int i = 0; i < indexes.Length; i++) BinaryPrimitives.WriteUInt16LittleEndian(entry[(2 * i)..], indexes[i]);
    }

    public void Attach(int coordinator, ulong attempt, ulong lowWater)
    {
        Span<byte> entry = Entry(AttachmentTag.Attempt, Attachment.AttemptSizeBytes);
        BinaryPrimitives.WriteInt32LittleEndian(entry, coordinator);
        BinaryPrimitives.WriteUInt64LittleEndian(entry[4..], attempt);
        BinaryPrimitives.WriteUInt64LittleEndian(entry[12..], lowWater);
    }

    public void Attach(in Vote vote)
    {
        Span<byte> entry = Entry(AttachmentTag.Vote, Attachment.VoteSizeBytes);
        BinaryPrimitives.WriteUInt16LittleEndian(entry, (ushort)vote.Outcome);
        BinaryPrimitives.WriteUInt16LittleEndian(entry[2..], (ushort)vote.Posting);
        entry[4] = (byte)(vote.IsAboutPayee ? 1 : 0);
        BinaryPrimitives.WriteInt128LittleEndian(entry[5..], vote.Posted);
        BinaryPrimitives.WriteInt128LittleEndian(entry[21..], vote.Held);
        BinaryPrimitives.WriteInt128LittleEndian(entry[37..], vote.Incoming);
        BinaryPrimitives.WriteInt128LittleEndian(entry[53..], vote.Bound);
    }

    public void Attach(ReadOnlySpan<Part> parts)
    {
        Span<byte> entry = Entry(AttachmentTag.Parts, parts.Length * Attachment.PartSizeBytes);
        foreach (Part part in parts)
        {
            BinaryPrimitives.WriteInt32LittleEndian(entry, part.Partition);
            BinaryPrimitives.WriteUInt64LittleEndian(entry[4..], part.Sequence);
            entry = entry[Attachment.PartSizeBytes..];
        }
    }

    Span<byte> Entry(AttachmentTag tag, int length)
    {
        Grow(ref _attachments, _attachmentsLength + 3 + length);
        Span<byte> entry = _attachments.AsSpan(_attachmentsLength, 3 + length);
        entry[0] = (byte)tag;
        BinaryPrimitives.WriteUInt16LittleEndian(entry[1..], (ushort)length);
        _attachmentsLength += 3 + length;
        return entry[3..];
    }

    static void Grow(ref byte[] bytes, int needed)
    {
        if (needed > bytes.Length) Array.Resize(ref bytes, Math.Max(needed, bytes.Length * 2));
    }
}
