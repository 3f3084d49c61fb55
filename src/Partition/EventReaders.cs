using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Purse.Journal;
using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>One event as the journal has it, with its sequence, its time and its attachment.</summary>
public sealed class RecordedEvent(ulong sequence, long timeMicros, in Event e, byte[] attachments, byte[] erasable)
{
    public readonly Event Event = e;

    public ulong Sequence { get; } = sequence;

    public long TimeMicros { get; } = timeMicros;

    public Attachment Attachment => new(Event.Attachment, _attachments, _erasable);

    /// <summary>Of what was committed across partitions and is finished: where it ends in each of them, this one included.</summary>
    public Part[] Parts { get; private init; } = [];

    /// <summary>The head of the attempt that it ended, once it was read with it; its link and attachment are then that one's, too.</summary>
    public ulong Head { get; private init; }

    /// <summary>When it was asked for: what an attempt began with, its decision comes later.</summary>
    public long AskedMicros { get; private init; } = timeMicros;

    /// <summary>As it was answered first, by the decision itself.</summary>
    public RecordedEvent EndingAt(Part[] parts) => new(Sequence, TimeMicros, Event, _attachments, _erasable) { Parts = parts, Head = Head, AskedMicros = AskedMicros };

    /// <summary>With what its head says, which an event of money does not repeat.</summary>
    public RecordedEvent With(RecordedEvent head, Part[] parts)
    {
        ReadOnlySpan<byte> own = EntriesOf(this), headOwn = EntriesOf(head);
        byte[] both = new byte[2 + own.Length + headOwn.Length];
        BinaryPrimitives.WriteUInt16LittleEndian(both, checked((ushort)(own.Length + headOwn.Length)));
        own.CopyTo(both.AsSpan(2));
        headOwn.CopyTo(both.AsSpan(2 + own.Length));
        Event merged = Event;
        (merged.Link, merged.Attachment) = (head.Event.Link, both.Length == 2 ? 0u : 1u);
        return new RecordedEvent(Sequence, TimeMicros, merged, both, head._erasable) { Parts = parts, Head = head.Sequence, AskedMicros = head.TimeMicros };

        static ReadOnlySpan<byte> EntriesOf(RecordedEvent one) => one.Event.Attachment == 0
            ? default
            : one._attachments.AsSpan((int)one.Event.Attachment + 1, BinaryPrimitives.ReadUInt16LittleEndian(one._attachments.AsSpan((int)one.Event.Attachment - 1)));
    }

    readonly byte[] _attachments = attachments;
    readonly byte[] _erasable = erasable;
}

/// <summary>
/// Reads flushed events beside the writer, on the threads of those who ask. Never past <see cref="FlushedSequence"/>.
/// </summary>
public sealed class EventReaders(JournalWriter journal, State state, History history) : IDisposable
{
    readonly ConcurrentBag<RecordReader> _idle = [];
    volatile bool _disposed;

    public ulong FlushedSequence => journal.FlushedSequence;

    public int Partition => journal.Partition;

    /// <summary>Names and currencies only: what was published to the reader by a flushed event.</summary>
    public State State => state;

    public History History => history;

    public RecordedEvent Read(ulong sequence) => With(reader => Read(reader, sequence));

    /// <summary>What an entry about an event is compared with.</summary>
    public UInt128 TransactionIdOf(ulong sequence)
    {
        RecordReader reader = Rent();
        try
        {
            Event e = default;
            reader.Read(sequence, MemoryMarshal.AsBytes(new Span<Event>(ref e)));
            return e.TransactionId;
        }
        finally
        {
            Return(reader);
        }
    }

    /// <summary>What an id came to, by the event that it is remembered by: for a commit across partitions the decision, with what its head says.</summary>
    public RecordedEvent ReadDecision(ulong sequence)
    {
        RecordedEvent e = Read(sequence);
        Part[] parts = e.Event.Kind == EventKind.Finished ? e.Attachment.Parts() : [];
        if (e.Event.Kind == EventKind.Finished) e = Read(e.Event.Link);
        return WithHead(e, parts);
    }

    /// <summary>An event that ends what was prepared across partitions, with what its head says; any other as it is.</summary>
    public RecordedEvent WithHead(RecordedEvent e) => WithHead(e, []);

    RecordedEvent WithHead(RecordedEvent e, Part[] parts) =>
        e.Head == 0 && (e.Event.Flags & EventFlags.CrossPartition) != 0 && e.Event.Link != 0 ? e.With(Read(e.Event.Link), parts) : e;

    /// <summary>What an id moved, or was to move; all postings of a transaction.</summary>
    /// <param name="first">The event that the id is remembered by.</param>
    public Movement[] MovementsOf(RecordedEvent first)
    {
        // The refusal to capture what is no hold says only that: the parties are those of what it was about.
        if (first.Event.Counterparty == 0)
        {
            Attachment asked = first.Attachment;
            RecordedEvent about = first;
            while (about.Event.Counterparty == 0) about = ReadDecision(about.Event.Link);
            Movement movement = MovementsOf(about)[0];
            // An amount may have been asked for when its currency was not known; it is now.
            if (asked.Integer(AttachmentTag.RequestedAmount) is not Int128 digits) return [movement];
            int scale = (int)(asked.Integer(AttachmentTag.Decimals) ?? 0);
            return [Amount.ToMinor(digits, scale, state.Decimals(movement.Currency), out Int128 minor) == Amount.ParseResult.Ok ? movement with { Amount = minor } : movement];
        }

        if (first.Attachment.TryGet(AttachmentTag.Postings, out _)) return first.Attachment.Postings();
        int count = Math.Max((int)first.Event.Count, 1);
        Movement[] movements = new Movement[count];
        for (int i = 0; i < count; i++)
        {
            RecordedEvent one = i == 0 ? first : Read(first.Sequence + 2 * (ulong)i);
            movements[i] = new Movement(one.Event.Account, one.Event.Counterparty, one.Event.Currency, one.Event.Amount);
        }

        return movements;
    }

    /// <summary>What a reversal must be told of the transfer that it takes back.</summary>
    public Original ReadOriginal(ulong sequence)
    {
        RecordedEvent first = ReadDecision(sequence);
        return new Original(sequence, MovementsOf(first), first.Event.Kind is EventKind.Debited or EventKind.Captured or EventKind.Committed, first.Event.Count > 0);
    }

    /// <summary>The chain of one balance, newest first, from an event that touches it.</summary>
    public IEnumerable<RecordedEvent> Backwards(ulong sequence)
    {
        RecordReader reader = Rent();
        try
        {
            while (sequence != 0)
            {
                RecordedEvent e = Read(reader, sequence);
                yield return e;
                sequence = e.Event.Previous;
            }
        }
        finally
        {
            Return(reader);
        }
    }

    /// <summary>Sequence, time and predecessor of one event, without its attachment.</summary>
    /// <exception cref="OperationCanceledException">Whoever asked does not wait any more.</exception>
    public void Walk(ulong sequence, Func<ulong, long, Event, bool> visit, CancellationToken cancellation) => With(reader =>
    {
        Event e = default;
        while (sequence != 0)
        {
            cancellation.ThrowIfCancellationRequested();
            reader.Read(sequence, MemoryMarshal.AsBytes(new Span<Event>(ref e)));
            if (!visit(sequence, reader.Header.TimeMicros, e)) break;
            sequence = e.Previous;
        }

        return 0;
    });

    /// <summary>Events in order from a sequence on, those of one block at most.</summary>
    public List<RecordedEvent> ReadOn(ulong from, int max) => With(reader =>
    {
        List<RecordedEvent> events = [];
        Block block = reader.ReadBlock(from);
        byte[] attachments = block.Attachments.ToArray(), erasable = block.Erasable.ToArray();
        ReadOnlySpan<Event> all = block.RecordsAs<Event>();
        for (int i = (int)(from - block.Header.FirstSequence); i < all.Length && events.Count < max; i++)
            events.Add(new RecordedEvent(block.Header.FirstSequence + (ulong)i, block.Header.TimeMicros, all[i], attachments, erasable));
        return events;
    });

    static RecordedEvent Read(RecordReader reader, ulong sequence)
    {
        Event e = default;
        reader.Read(sequence, MemoryMarshal.AsBytes(new Span<Event>(ref e)));
        if (e.Attachment == 0) return new RecordedEvent(sequence, reader.Header.TimeMicros, e, [], []);

        // Its own attachment and texts only: those of a whole block may be a thousand times as much.
        byte[] length = new byte[2];
        reader.ReadAttachments((int)e.Attachment - 1, length);
        byte[] attachment = new byte[2 + BinaryPrimitives.ReadUInt16LittleEndian(length)];
        reader.ReadAttachments((int)e.Attachment - 1, attachment);
        e.Attachment = 1;
        List<byte> erasable = [];
        foreach (AttachmentTag tag in (ReadOnlySpan<AttachmentTag>)[AttachmentTag.Description, AttachmentTag.Metadata])
        {
            if (!new Attachment(1, attachment, []).TryGet(tag, out ReadOnlySpan<byte> digestAndOffset)) continue;
            Span<byte> entry = attachment.AsSpan((int)Unsafe.ByteOffset(ref attachment[0], ref MemoryMarshal.GetReference(digestAndOffset)), digestAndOffset.Length);
            int offset = (int)BinaryPrimitives.ReadUInt32LittleEndian(entry[32..]);
            byte[] head = new byte[Erasable.SaltSizeBytes + 4];
            reader.ReadErasable(offset, head);
            byte[] text = new byte[Math.Max(0, BinaryPrimitives.ReadInt32LittleEndian(head.AsSpan(Erasable.SaltSizeBytes)))];
            reader.ReadErasable(offset + head.Length, text);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[32..], (uint)erasable.Count);
            erasable.AddRange(head);
            erasable.AddRange(text);
        }

        return new RecordedEvent(sequence, reader.Header.TimeMicros, e, attachment, [.. erasable]);
    }

    T With<T>(Func<RecordReader, T> use)
    {
        RecordReader reader = Rent();
        try
        {
            return use(reader);
        }
        finally
        {
            Return(reader);
        }
    }

    RecordReader Rent() => _idle.TryTake(out RecordReader? reader) ? reader : journal.OpenRecords();

    void Return(RecordReader reader)
    {
        if (_disposed || _idle.Count > 64) reader.Dispose();
        else _idle.Add(reader);
    }

    public void Dispose()
    {
        _disposed = true;
        while (_idle.TryTake(out RecordReader? reader)) reader.Dispose();
    }
}
