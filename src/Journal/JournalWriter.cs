// Failure policy. After a failed write or flush this instance is dead: it keeps the fault, throws it again on every later call, and never
// retries the flush, since the system may have dropped the pages that it could not write, and a server may have committed what it said it
// did not. The owner stops answering, takes over, and recovers from what is there. A full disk is not a failure where it can be known
// in time: HasRoom says so.
using System.IO.Hashing;
using System.Runtime.InteropServices;

namespace Purse.Journal;

/// <summary>This writer lost its partition to one with a higher epoch.</summary>
public sealed class FencedException(string message) : IOException(message);

/// <summary>The journal goes on in another store; this one takes nothing any more.</summary>
public sealed class JournalSealedException(string message, string store) : IOException(message)
{
    /// <summary>Where it goes on.</summary>
    public string Store { get; } = store;
}

/// <summary>A block that is known to have been durable, from somewhere else than the journal: it must still be there.</summary>
/// <param name="KnownFrom">Where it is known from, for the operator.</param>
public readonly record struct JournalFloor(ulong Number, ulong Sequence, Hash256 Hash, string KnownFrom);

/// <summary>
/// The one writer of a partition's blocks. <see cref="Append"/> takes a block, <see cref="Flush"/> makes durable all that were taken; several
/// may be in flight between the two. One thread at a time, but for what says otherwise.
/// </summary>
public abstract class JournalWriter : IDisposable
{
    public const int BodyBytesMax = 32 * 1024 * 1024;

    readonly MerkleTree _merkle = new();
    Memory<byte> _buffer = AlignedBuffer(1024 * 1024);
    ulong _number;
    Hash256 _hash;
    ulong _flushedNumber;
    ulong _markedNumber;
    ulong _flushedMark;
    ulong _markedSequence;
    ulong _flushedMarkSequence;
    ulong _lastRecordsNumber;
    Hash256 _lastRecordsHash;
    Hash256 _flushedHash;
    readonly Lock _floorLock = new();
    long _timeMicros;
    ulong _appendedSequence;
    ulong _flushedSequence;
    Exception? _fault;

    /// <param name="recovered">Has read every block there is.</param>
    private protected JournalWriter(int partition, ulong epoch, JournalReader recovered)
    {
        Partition = partition;
        Epoch = epoch;
        _number = _flushedNumber = recovered.LastNumber;
        _hash = _flushedHash = recovered.LastHash;
        _timeMicros = recovered.LastTimeMicros;
        _appendedSequence = _flushedSequence = recovered.LastSequence;
        _lastRecordsNumber = recovered.LastRecordsNumber;
        _lastRecordsHash = recovered.LastRecordsHash;
        TornTail = recovered.TornTail;
    }

    public delegate void OnBlock(in Block block);

    public int Partition { get; }

    public ulong Epoch { get; }

    /// <summary>What recovery cut off.</summary>
    public TornTail? TornTail { get; }

    public ulong AppendedSequence => Volatile.Read(ref _appendedSequence);

    public ulong FlushedSequence => Volatile.Read(ref _flushedSequence);

    public long LastTimeMicros => _timeMicros;

    public ulong LastNumber => _number;

    public Hash256 LastHash => _hash;

    /// <summary>The last block that is not empty.</summary>
    public ulong LastRecordsNumber => _lastRecordsNumber;

    public Hash256 LastRecordsHash => _lastRecordsHash;

    /// <summary>The highest block of which the journal itself can prove that it was durable.</summary>
    public virtual ulong MarkedNumber => Volatile.Read(ref _flushedMark);

    /// <summary>Its last event.</summary>
    public virtual ulong MarkedSequence => Volatile.Read(ref _flushedMarkSequence);

    /// <summary>Whether records were flushed, and an empty block after them is still needed to prove it.</summary>
    public virtual bool WantsMark => _markedNumber < _lastRecordsNumber && _flushedNumber >= _lastRecordsNumber;

    /// <summary>False when the disk is full, down to the reserve: nothing new may be accepted.</summary>
    public virtual bool HasRoom => true;

    /// <summary>Whether even a full disk leaves room for what must still be written, such as expiries.</summary>
    public virtual bool HasReserve => true;

    /// <summary>Whether room should be allocated ahead now.</summary>
    public virtual bool WantsNext => false;

    /// <summary>Why the last allocation failed.</summary>
    public virtual string? AllocationFailure => null;

    /// <summary>Allocates room ahead, beside <see cref="Append"/> on another thread. False where there is none.</summary>
    public virtual bool AllocateNext() => true;

    /// <summary>Whether a flush that succeeded says, by itself, that no other writer had taken over when it began.</summary>
    public virtual bool IsFlushFenced => false;

    protected bool IsDead => _fault is not null;

    protected ulong FlushedNumber => _flushedNumber;

    /// <summary>Takes one block. It is durable once <see cref="Flush"/> has returned.</summary>
    /// <param name="epoch">The caller's; another than this writer's is fenced.</param>
    /// <param name="firstSequence">Must follow the last record appended.</param>
    /// <returns>How many bytes it has.</returns>
    public int Append(
        ulong epoch, ulong firstSequence, long timeMicros, int recordsCount, int recordSizeBytes,
        ReadOnlySpan<byte> records, ReadOnlySpan<byte> attachments, ReadOnlySpan<byte> erasable)
    {
        ThrowIfDead();
        if (firstSequence != _appendedSequence + 1) throw new ArgumentException($"Sequence {firstSequence} does not follow {_appendedSequence}.", nameof(firstSequence));
        if (records.Length + attachments.Length + erasable.Length > BodyBytesMax)
            throw new ArgumentException($"A block holds up to {BodyBytesMax} bytes.", nameof(records));
        if (timeMicros < _timeMicros) throw new ArgumentException($"Time {timeMicros} is before the last block's {_timeMicros}.", nameof(timeMicros));
        try
        {
            CheckEpoch(epoch);
            Span<byte> block = Encode(firstSequence, timeMicros, recordsCount, recordSizeBytes, records, attachments, erasable, out BlockHeader header);
            Write(block, header);
            _number = header.Number;
            _hash = BlockHeader.ComputeHash(block);
            _timeMicros = timeMicros;
            (_markedNumber, _markedSequence) = (Math.Max(_markedNumber, header.DurableNumber), Math.Max(_markedSequence, header.DurableSequence));
            if (recordsCount > 0) (_lastRecordsNumber, _lastRecordsHash) = (_number, _hash);
            Volatile.Write(ref _appendedSequence, firstSequence + (ulong)recordsCount - 1);
            return block.Length;
        }
        catch (Exception e)
        {
            _fault = e;
            throw;
        }
    }

    /// <summary>An empty block, which carries the durable mark of all before it.</summary>
    /// <param name="timeMicros">No later block gets an earlier time.</param>
    public void AppendMark(long timeMicros = 0) => Append(Epoch, _appendedSequence + 1, Math.Max(timeMicros, _timeMicros), 0, 0, [], [], []);

    /// <summary>Makes durable all blocks appended.</summary>
    public void Flush()
    {
        ThrowIfDead();
        ulong number = _number, sequence = _appendedSequence, mark = _markedNumber, markSequence = _markedSequence;
        Hash256 hash = _hash;
        if (number == _flushedNumber) return;
        try
        {
            MakeDurable();
        }
        catch (IOException) when (Injected.Is(JournalDefect.FailedFlushBelieved))
        {
            // On with it.
        }
        catch (Exception e)
        {
            _fault = e;
            throw;
        }

        Volatile.Write(ref _flushedMark, mark);
        Volatile.Write(ref _flushedMarkSequence, markSequence);
        lock (_floorLock)
        {
            (_flushedNumber, _flushedHash) = (number, hash);
            Volatile.Write(ref _flushedSequence, sequence);
        }
    }

    /// <summary>The last block that is durable. May be asked for from any thread.</summary>
    public JournalFloor FlushedFloor(string knownFrom)
    {
        lock (_floorLock) return new JournalFloor(_flushedNumber, _flushedSequence, _flushedHash, knownFrom);
    }

    /// <summary>
    /// Throws where another writer has taken the partition over. May be called from any thread. What was true before this call was true of
    /// the partition: an answer given after it is not a deposed writer's.
    /// </summary>
    public abstract void ConfirmEpoch();

    /// <summary>Finds single records of flushed blocks, on the threads of those who ask.</summary>
    public abstract RecordReader OpenRecords();

    /// <summary>Reads on after the block that has this record.</summary>
    public abstract JournalReader ReadAfter(ulong sequence);

    protected abstract void CheckEpoch(ulong epoch);

    /// <param name="block">With its padding; not to be kept.</param>
    protected abstract void Write(ReadOnlySpan<byte> block, in BlockHeader header);

    protected abstract void MakeDurable();

    /// <summary>Whoever takes over looks for what is known to have been durable.</summary>
    private protected static void CheckFloors(IReadOnlyCollection<JournalFloor> floors, JournalReader reader, bool isAtEnd)
    {
        foreach (JournalFloor floor in floors)
        {
            if (floor.Number == reader.LastNumber && floor.Hash != reader.LastHash) throw LostTail(floor, reader.Partition, "has another block there");
            if (isAtEnd && floor.Number > reader.LastNumber) throw LostTail(floor, reader.Partition, $"ends at event {reader.LastSequence} (block {reader.LastNumber})");
        }
    }

    static JournalDamagedException LostTail(JournalFloor floor, int partition, string but) => new(
        $"journal_lost_tail: {floor.KnownFrom} knows event {floor.Sequence} (block {floor.Number}), which was durable, but the journal of partition {partition} {but}. " +
        $"Restore the journal from a copy; no block was changed. To accept the loss: in a cluster `purse cluster accept-loss {partition}`, in a data folder delete the snapshot that knows it; then start again.", floor.Number, default);

    Span<byte> Encode(
        ulong firstSequence, long timeMicros, int recordsCount, int recordSizeBytes,
        ReadOnlySpan<byte> records, ReadOnlySpan<byte> attachments, ReadOnlySpan<byte> erasable, out BlockHeader header)
    {
        int size = BlockHeader.AlignedSize(records.Length + attachments.Length + erasable.Length);
        if (_buffer.Length < size) _buffer = AlignedBuffer(size * 2);
        Span<byte> block = _buffer.Span[..size];
        Span<byte> body = block[BlockHeader.SizeBytes..];
        records.CopyTo(body);
        attachments.CopyTo(body[records.Length..]);
        erasable.CopyTo(body[(records.Length + attachments.Length)..]);
        body[(records.Length + attachments.Length + erasable.Length)..].Clear();

        header = new BlockHeader
        {
            Magic = BlockHeader.MagicNumber,
            BodyChecksum = XxHash3.HashToUInt64(body),
            FormatVersion = BlockHeader.CurrentFormatVersion,
            Partition = (uint)Partition,
            Number = _number + 1,
            Epoch = Epoch,
            FirstSequence = firstSequence,
            RecordsCount = (uint)recordsCount,
            RecordSizeBytes = (uint)recordSizeBytes,
            AttachmentsSizeBytes = (uint)attachments.Length,
            ErasableSizeBytes = (uint)erasable.Length,
            TimeMicros = timeMicros,
            DurableNumber = Injected.Is(JournalDefect.MarkBeyondDurable) ? _number : _flushedNumber,
            DurableSequence = _flushedSequence,
            PreviousHash = _hash,
            MerkleRoot = _merkle.Root(body[..(records.Length + attachments.Length)]),
        };
        MemoryMarshal.Write(block, header);
        header.HeaderChecksum = BlockHeader.ComputeHeaderChecksum(block);
        MemoryMarshal.Write(block, header);
        return block;
    }

    /// <summary>Where a disk can take it from without a copy.</summary>
    static Memory<byte> AlignedBuffer(int bytes)
    {
        byte[] buffer = GC.AllocateUninitializedArray<byte>(bytes + FileJournal.AlignmentBytes, pinned: true);
        int before = (int)(FileJournal.AlignmentBytes - (Marshal.UnsafeAddrOfPinnedArrayElement(buffer, 0) & (FileJournal.AlignmentBytes - 1)));
        return buffer.AsMemory(before, bytes);
    }

    void ThrowIfDead()
    {
        if (_fault is not null) throw new IOException($"The journal of partition {Partition} stopped: {_fault.Message}", _fault);
    }

    public abstract void Dispose();
}
