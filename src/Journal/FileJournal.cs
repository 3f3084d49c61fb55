// Failure policy. After a failed write or flush this instance is dead: it keeps the fault, throws it again on every later call, and never
// retries the flush, since the system may have dropped the pages that it could not write. The owner stops answering, and recovers from
// what is on disk. A full disk is not a failure: segments are allocated ahead, and HasRoom says in time that there will be no next one.
using System.Buffers.Binary;
using System.IO.Hashing;
using System.Runtime.InteropServices;

namespace Purse.Journal;

/// <summary>This writer lost its partition to one with a higher epoch.</summary>
public sealed class FencedException(string message) : IOException(message);

/// <summary>A block that is known to have been durable, from somewhere else than the journal: it must still be there.</summary>
/// <param name="KnownFrom">Where it is known from, for the operator.</param>
public readonly record struct JournalFloor(ulong Number, ulong Sequence, Hash256 Hash, string KnownFrom);

public sealed record JournalOptions
{
    /// <summary>A segment is allocated, zeroed and flushed as a whole before it is written.</summary>
    public long SegmentSizeBytes { get; init; } = 64 * 1024 * 1024;

    /// <summary>Kept for what must still be written when the disk is full.</summary>
    public long ReserveBytes { get; init; } = 16 * 1024 * 1024;
}

/// <summary>
/// One partition's blocks in preallocated segments. <see cref="Append"/> writes a block, <see cref="Flush"/> makes durable all that were
/// written; several blocks may be in flight between the two. One thread at a time, but for <see cref="AllocateNext"/>.
/// </summary>
public sealed class FileJournal : IDisposable
{
    /// <summary>Blocks begin at multiples of this, so that no write of one can tear a durable other.</summary>
    public const int AlignmentBytes = 4096;

    public const int BodyBytesMax = 32 * 1024 * 1024;

    public const string Folder = "journal";
    const string EpochFile = "epoch";
    const int EpochSlotBytes = 16;
    const string Allocating = "allocating-";

    readonly IDisk _disk;
    readonly int _partition;
    readonly JournalOptions _options;
    readonly BlockIndex _index;
    readonly MerkleTree _merkle = new();
    byte[] _buffer = new byte[1024 * 1024];
    IDiskFile _file;
    IDiskFile _epochFile;
    IDiskFile? _nextFile;
    IDiskFile? _unflushedFile;
    Exception? _fault;
    int _segment;
    long _offset;
    long _segmentLength;
    readonly Lock _allocating = new();
    volatile bool _isFull;
    ulong _number;
    Hash256 _hash;
    ulong _flushedNumber;
    ulong _markedNumber;
    ulong _flushedMark;
    ulong _lastRecordsNumber;
    Hash256 _lastRecordsHash;
    long _timeMicros;
    ulong _appendedSequence;
    ulong _flushedSequence;

    FileJournal(IDisk disk, int partition, JournalOptions options, BlockIndex index, JournalReader recovered, IDiskFile epochFile, ulong epoch, IDiskFile file)
    {
        _disk = disk;
        _partition = partition;
        _options = options;
        _index = index;
        _epochFile = epochFile;
        _file = file;
        _segment = recovered.Next.Segment;
        _offset = recovered.Next.Offset;
        _segmentLength = file.Length;
        _number = recovered.LastNumber;
        _hash = recovered.LastHash;
        _timeMicros = recovered.LastTimeMicros;
        _appendedSequence = recovered.LastSequence;
        _flushedSequence = recovered.LastSequence;
        _flushedNumber = _number;
        _lastRecordsNumber = recovered.LastRecordsNumber;
        _lastRecordsHash = recovered.LastRecordsHash;
        Epoch = epoch;
        TornTail = recovered.TornTail;
    }

    public ulong Epoch { get; }

    /// <summary>What recovery cut off.</summary>
    public TornTail? TornTail { get; }

    public BlockIndex Index => _index;

    public ulong AppendedSequence => Volatile.Read(ref _appendedSequence);

    public ulong FlushedSequence => Volatile.Read(ref _flushedSequence);

    public long LastTimeMicros => _timeMicros;

    public ulong LastNumber => _number;

    public Hash256 LastHash => _hash;

    /// <summary>The last block that is not empty.</summary>
    public ulong LastRecordsNumber => _lastRecordsNumber;

    public Hash256 LastRecordsHash => _lastRecordsHash;

    /// <summary>The highest block that another one, itself durable, says was durable.</summary>
    public ulong MarkedNumber => Volatile.Read(ref _flushedMark);

    /// <summary>False when the disk is full, down to the reserve: nothing new may be accepted.</summary>
    public bool HasRoom => !_isFull || _segmentLength - Volatile.Read(ref _offset) > _options.ReserveBytes;

    /// <summary>Whether even a full disk leaves room for what must still be written, such as expiries.</summary>
    public bool HasReserve => !_isFull || _segmentLength - Volatile.Read(ref _offset) > _options.ReserveBytes / 2;

    /// <summary>Why the last allocation failed.</summary>
    public string? AllocationFailure { get; private set; }

    /// <summary>Whether the next segment should be allocated now.</summary>
    public bool WantsNext => _fault is null && Volatile.Read(ref _nextFile) is null;

    /// <summary>Whether records were flushed that no later block says were durable.</summary>
    public bool WantsMark => _markedNumber < _lastRecordsNumber && _flushedNumber >= _lastRecordsNumber;

    public static string SegmentName(int segment) => $"{Folder}/{segment:D8}.segment";

    public static List<int> Segments(IDisk disk) =>
        [.. disk.List(Folder).Select(name => int.TryParse(Path.GetFileNameWithoutExtension(name), out int n) && name == SegmentName(n) ? n : 0).Where(n => n > 0).Order()];

    /// <summary>
    /// Takes over a partition's journal for writing: fences any writer before, reads every block from the first (giving each to
    /// <paramref name="onBlock"/>), cuts a torn tail, and marks all that was found as durable.
    /// </summary>
    /// <param name="floors">What must be there; a journal without it has lost what was durable.</param>
    /// <exception cref="JournalDamagedException">A durable block is missing or not what it was; no block was changed.</exception>
    public static FileJournal Open(IDisk disk, int partition, JournalOptions options, IReadOnlyCollection<JournalFloor> floors, OnBlock onBlock)
    {
        // The epoch first: a writer that still lives is fenced before we look, so what we find is all there will be.
        IDiskFile epochFile = disk.Open(EpochFile, writable: true, create: true);
        IDiskFile? file = null;
        using JournalReader reader = new(disk, partition, checkMerkleRoots: false);
        try
        {
            // Both slots get their place on the disk now: a full one must not keep anybody from taking over later.
            if (epochFile.Length == 0) epochFile.Write(new byte[EpochSlotBytes], 0);
            if (epochFile.Length < AlignmentBytes + EpochSlotBytes) epochFile.Write(new byte[EpochSlotBytes], AlignmentBytes);
            ulong epoch = ReadEpoch(epochFile) + 1;
            WriteEpoch(epochFile, epoch);
            disk.FlushNames("");

            BlockIndex index = new();
            while (reader.TryReadNext(out Block block))
            {
                foreach (JournalFloor floor in floors)
                {
                    if (floor.Number == reader.LastNumber && floor.Hash != reader.LastHash) throw LostTail(floor, partition, "has another block there");
                }

                index.Add(block.Header.FirstSequence, block.Location);
                onBlock(block);
            }

            foreach (JournalFloor floor in floors)
            {
                if (floor.Number > reader.LastNumber) throw LostTail(floor, partition, $"ends at event {reader.LastSequence} (block {reader.LastNumber})");
            }

            if (reader.LastEpoch >= epoch) WriteEpoch(epochFile, epoch = reader.LastEpoch + 1);
            foreach (string left in disk.List("").Where(name => name.StartsWith(Allocating, StringComparison.Ordinal))) disk.Delete(left);
            file = PrepareTail(disk, reader, options, epoch);
            FileJournal journal = new(disk, partition, options, index, reader, epochFile, epoch, file);
            if (Segments(disk).Contains(reader.Next.Segment + 1)) journal._nextFile = disk.Open(SegmentName(reader.Next.Segment + 1), writable: true);
            // Near the end of its segment the journal must know whether there will be another before it takes anything new.
            if (journal._segmentLength - journal._offset <= 2 * options.ReserveBytes) journal.AllocateNext();
            journal.AppendMark(reader.LastTimeMicros);
            journal.Flush();
            return journal;
        }
        catch
        {
            file?.Dispose();
            epochFile.Dispose();
            throw;
        }
    }

    public delegate void OnBlock(in Block block);

    static JournalDamagedException LostTail(JournalFloor floor, int partition, string but) => new(
        $"journal_lost_tail: {floor.KnownFrom} knows event {floor.Sequence} (block {floor.Number}), which was durable, but the journal of partition {partition} {but}. " +
        $"Restore the journal from a copy; no block was changed. To accept the loss, delete {floor.KnownFrom}.", floor.Number, default);

    /// <summary>Zeroes what lies after the last valid block and makes all before it durable, then the tail is writable.</summary>
    static IDiskFile PrepareTail(IDisk disk, JournalReader reader, JournalOptions options, ulong epoch)
    {
        BlockLocation next = reader.Next;
        List<int> segments = Segments(disk);
        Rewrite(disk, reader);
        foreach (int segment in segments.Where(s => s >= next.Segment - 1))
        {
            using IDiskFile file = disk.Open(SegmentName(segment), writable: true);
            if (segment < next.Segment)
            {
                file.Flush();
                continue;
            }

            // Never more than one segment's worth beyond the end, and mostly zeros already: write only where something is.
            byte[] page = new byte[1024 * 1024];
            byte[] zeros = new byte[page.Length];
            long length = Math.Max(file.Length, options.SegmentSizeBytes);
            for (long offset = segment == next.Segment ? next.Offset : 0; offset < length; offset += page.Length)
            {
                int wanted = (int)Math.Min(page.Length, length - offset);
                int read = file.Read(page.AsSpan(0, wanted), offset);
                if (read < wanted || page.AsSpan(0, read).ContainsAnyExcept((byte)0)) file.Write(zeros.AsSpan(0, wanted), offset);
            }

            file.Flush();
        }

        if (!segments.Contains(next.Segment)) return Allocate(disk, next.Segment, options, epoch, static () => { });
        return disk.Open(SegmentName(next.Segment), writable: true);
    }

    /// <summary>
    /// Writes the last blocks over themselves. After a flush that failed the system may hold them in its cache as if they were on disk:
    /// only pages that are written again are flushed again.
    /// </summary>
    static void Rewrite(IDisk disk, JournalReader reader)
    {
        if (Injected.Is(JournalDefect.CacheBelieved)) return;
        foreach ((_, BlockLocation location, int size) in reader.Unmarked)
        {
            using IDiskFile file = disk.Open(SegmentName(location.Segment), writable: true);
            byte[] block = new byte[size];
            if (file.Read(block, location.Offset) < size) throw new IOException($"The block in {location} was there a moment ago, and is not any more.");
            file.Write(block, location.Offset);
        }
    }

    /// <summary>Writes one block. It is durable once <see cref="Flush"/> has returned.</summary>
    /// <param name="epoch">The caller's; a lower one than the partition's is fenced.</param>
    /// <param name="firstSequence">Must follow the last record appended.</param>
    public void Append(
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
            int size = BlockHeader.AlignedSize(records.Length + attachments.Length + erasable.Length);
            if (_offset + size > _segmentLength) NextSegment(size);
            Span<byte> block = Encode(size, firstSequence, timeMicros, recordsCount, recordSizeBytes, records, attachments, erasable, out BlockHeader header);
            _file.Write(block, _offset);

            _index.Add(firstSequence, new BlockLocation(_segment, _offset));
            Volatile.Write(ref _offset, _offset + size);
            _number = header.Number;
            _hash = BlockHeader.ComputeHash(block);
            _timeMicros = timeMicros;
            _markedNumber = Math.Max(_markedNumber, header.DurableNumber);
            if (recordsCount > 0) (_lastRecordsNumber, _lastRecordsHash) = (_number, _hash);
            Volatile.Write(ref _appendedSequence, firstSequence + (ulong)recordsCount - 1);
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
        ulong number = _number, sequence = _appendedSequence, mark = _markedNumber;
        if (number == _flushedNumber) return;
        try
        {
            _unflushedFile?.Flush();
            _unflushedFile?.Dispose();
            _unflushedFile = null;
            _file.Flush();
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

        _flushedNumber = number;
        Volatile.Write(ref _flushedMark, mark);
        Volatile.Write(ref _flushedSequence, sequence);
    }

    /// <summary>
    /// Allocates the segment after the one that is written. May run beside <see cref="Append"/> on another thread, one at a time.
    /// False where the disk has no room for it; asked again later, it tries again.
    /// </summary>
    public bool AllocateNext()
    {
        lock (_allocating)
        {
            if (Volatile.Read(ref _nextFile) is not null) return true;
            try
            {
                // A deposed writer must not put zeros in the place of its successor's segment: it confirms that it is none, at the last moment.
                Volatile.Write(ref _nextFile, Allocate(_disk, Volatile.Read(ref _segment) + 1, _options, Epoch, () => CheckEpoch(Epoch)));
                _isFull = false;
            }
            catch (IOException e)
            {
                // Whatever the reason, there will be no next segment for now; what was accepted still fits.
                AllocationFailure = e.Message;
                _isFull = true;
            }

            return !_isFull;
        }
    }

    static IDiskFile Allocate(IDisk disk, int segment, JournalOptions options, ulong epoch, Action confirm)
    {
        // Written under another name first, this writer's own: a segment that exists is whole.
        string name = SegmentName(segment), temporary = $"{Allocating}{segment:D8}-{epoch}";
        // Allocated in a life before this one, and cleared when this one began.
        if (disk.List(Folder).Contains(name)) return disk.Open(name, writable: true);
        IDiskFile? file = null;
        try
        {
            file = disk.Open(temporary, writable: true, create: true);
            byte[] zeros = new byte[4 * 1024 * 1024];
            for (long offset = 0; offset < options.SegmentSizeBytes; offset += zeros.Length)
            {
                // Zeros for real, and flushed bit by bit: overwriting allocated blocks later needs no commit of the file system's
                // journal, and a flush of the segment in use never waits for a whole segment of zeros.
                file.Write(zeros.AsSpan(0, (int)Math.Min(zeros.Length, options.SegmentSizeBytes - offset)), offset);
                file.Flush();
            }

            file.Dispose();
            confirm();
            if (disk.List(Folder).Contains(name)) throw new IOException($"{name} is there already: another writer made it.");
            disk.Rename(temporary, name);
            disk.FlushNames(Folder);
            disk.FlushNames("");
            return disk.Open(name, writable: true);
        }
        catch (IOException)
        {
            file?.Dispose();
            try
            {
                disk.Delete(temporary);
            }
            catch (IOException)
            {
                // The next attempt writes over it.
            }

            throw;
        }
    }

    void NextSegment(int blockSizeBytes)
    {
        if (blockSizeBytes > _options.SegmentSizeBytes) throw new ArgumentException($"A block of {blockSizeBytes} bytes does not fit in a segment of {_options.SegmentSizeBytes}.", nameof(blockSizeBytes));
        // Where the allocation is late, this waits for it.
        if (!AllocateNext()) throw new DiskFullException($"There is no room for another journal segment: {AllocationFailure}");
        // At most one segment may hold blocks not yet flushed besides the one in use.
        if (_unflushedFile is not null)
        {
            _unflushedFile.Flush();
            _unflushedFile.Dispose();
        }

        _unflushedFile = _file;
        _file = _nextFile!;
        _segmentLength = _file.Length;
        _offset = 0;
        Volatile.Write(ref _segment, _segment + 1);
        Volatile.Write(ref _nextFile, null);
    }

    Span<byte> Encode(
        int size, ulong firstSequence, long timeMicros, int recordsCount, int recordSizeBytes,
        ReadOnlySpan<byte> records, ReadOnlySpan<byte> attachments, ReadOnlySpan<byte> erasable, out BlockHeader header)
    {
        if (_buffer.Length < size) _buffer = new byte[size * 2];
        Span<byte> block = _buffer.AsSpan(0, size);
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
            Partition = (uint)_partition,
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

    /// <summary>
    /// Throws where another writer has taken the partition over. May be called from any thread. What was true before this call was true of
    /// the partition: an answer given after it is not a deposed writer's.
    /// </summary>
    public void ConfirmEpoch()
    {
        if (!Injected.Is(JournalDefect.ReadByDeposedWriter)) CheckEpoch(Epoch);
    }

    /// <summary>The lock on the data folder is the first fence; this one holds where a lock is not kept (a network file system).</summary>
    void CheckEpoch(ulong epoch)
    {
        ulong current = ReadEpoch(_epochFile);
        // Any other epoch, also none that can be read: whoever is not sure to own the partition does not.
        if (epoch != Epoch || (current != Epoch && !Injected.Is(JournalDefect.FencingOff) && (current > Epoch || !Injected.Is(JournalDefect.EpochLostByTornWrite))))
            throw new FencedException($"Epoch {epoch} of partition {_partition} is over: epoch {Math.Max(current, Epoch)} owns it now.");
    }

    /// <summary>The higher of two slots that are written in turn: a write that is cut short leaves the epoch before it.</summary>
    static ulong ReadEpoch(IDiskFile file) => Math.Max(ReadEpoch(file, 0), ReadEpoch(file, 1));

    static ulong ReadEpoch(IDiskFile file, ulong slot)
    {
        Span<byte> bytes = stackalloc byte[16];
        if (file.Read(bytes, (long)slot * AlignmentBytes) < bytes.Length) return 0;
        ulong epoch = BinaryPrimitives.ReadUInt64LittleEndian(bytes);
        return XxHash3.HashToUInt64(bytes[..8]) == BinaryPrimitives.ReadUInt64LittleEndian(bytes[8..]) ? epoch : 0;
    }

    static void WriteEpoch(IDiskFile file, ulong epoch)
    {
        Span<byte> bytes = stackalloc byte[16];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, epoch);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes[8..], XxHash3.HashToUInt64(bytes[..8]));
        file.Write(bytes, ReadEpoch(file, 0) < ReadEpoch(file, 1) || Injected.Is(JournalDefect.EpochLostByTornWrite) ? 0 : AlignmentBytes);
        file.Flush();
    }

    void ThrowIfDead()
    {
        if (_fault is not null) throw new IOException($"The journal of partition {_partition} stopped: {_fault.Message}", _fault);
    }

    public void Dispose()
    {
        _file.Dispose();
        _unflushedFile?.Dispose();
        _nextFile?.Dispose();
        _epochFile.Dispose();
    }
}
