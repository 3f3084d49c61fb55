using System.Buffers.Binary;
using System.IO.Hashing;

namespace Purse.Journal;

public sealed record JournalOptions
{
    /// <summary>A segment is allocated, zeroed and flushed as a whole before it is written.</summary>
    public long SegmentSizeBytes { get; init; } = 64 * 1024 * 1024;

    /// <summary>Kept for what must still be written when the disk is full.</summary>
    public long ReserveBytes { get; init; } = 16 * 1024 * 1024;
}

/// <summary>One partition's blocks in preallocated segments of a folder.</summary>
public sealed class FileJournal : JournalWriter
{
    /// <summary>Blocks begin at multiples of this, so that no write of one can tear a durable other.</summary>
    public const int AlignmentBytes = 4096;

    public const string Folder = "journal";
    const string EpochFile = "epoch";
    const int EpochSlotBytes = 16;
    const string Allocating = "allocating-";

    readonly IDisk _disk;
    readonly JournalOptions _options;
    readonly BlockIndex _index;
    IDiskFile _file;
    readonly IDiskFile _epochFile;
    IDiskFile? _nextFile;
    IDiskFile? _unflushedFile;
    int _segment;
    long _offset;
    long _segmentLength;
    readonly Lock _allocating = new();
    volatile bool _isFull;
    string? _allocationFailure;

    FileJournal(IDisk disk, int partition, JournalOptions options, BlockIndex index, FileJournalReader recovered, IDiskFile epochFile, ulong epoch, IDiskFile file)
        : base(partition, epoch, recovered)
    {
        _disk = disk;
        _options = options;
        _index = index;
        _epochFile = epochFile;
        _file = file;
        _segment = recovered.Next.Segment;
        _offset = recovered.Next.Offset;
        _segmentLength = file.Length;
    }

    public override bool HasRoom => !_isFull || _segmentLength - Volatile.Read(ref _offset) > _options.ReserveBytes;

    public override bool HasReserve => !_isFull || _segmentLength - Volatile.Read(ref _offset) > _options.ReserveBytes / 2;

    public override string? AllocationFailure => _allocationFailure;

    /// <summary>Whether the next segment should be allocated now.</summary>
    public override bool WantsNext => !IsDead && Volatile.Read(ref _nextFile) is null;

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
        using FileJournalReader reader = new(disk, partition, checkMerkleRoots: false);
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
                CheckFloors(floors, reader, isAtEnd: false);
                index.Add(block.Header.FirstSequence, block.Location);
                onBlock(block);
            }

            CheckFloors(floors, reader, isAtEnd: true);
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

    /// <summary>Zeroes what lies after the last valid block and makes all before it durable, then the tail is writable.</summary>
    static IDiskFile PrepareTail(IDisk disk, FileJournalReader reader, JournalOptions options, ulong epoch)
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
    static void Rewrite(IDisk disk, FileJournalReader reader)
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

    protected override void Write(ReadOnlySpan<byte> block, in BlockHeader header)
    {
        if (_offset + block.Length > _segmentLength) NextSegment(block.Length);
        _file.Write(block, _offset);
        _index.Add(header.FirstSequence, new BlockLocation(_segment, _offset));
        Volatile.Write(ref _offset, _offset + block.Length);
    }

    protected override void MakeDurable()
    {
        _unflushedFile?.Flush();
        _unflushedFile?.Dispose();
        _unflushedFile = null;
        _file.Flush();
    }

    /// <summary>
    /// Allocates the segment after the one that is written. May run beside <see cref="Append"/> on another thread, one at a time.
    /// False where the disk has no room for it; asked again later, it tries again.
    /// </summary>
    public override bool AllocateNext()
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
                _allocationFailure = e.Message;
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
            const int Piece = 4 * 1024 * 1024;
            for (long offset = 0; offset < options.SegmentSizeBytes; offset += Piece)
            {
                // Zeros for real, and flushed bit by bit: overwriting allocated blocks later needs no commit of the file system's
                // journal, and a flush of the segment in use never waits for a whole segment of zeros.
                file.WriteZeros(offset, (int)Math.Min(Piece, options.SegmentSizeBytes - offset));
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

    public override void ConfirmEpoch()
    {
        if (!Injected.Is(JournalDefect.ReadByDeposedWriter)) CheckEpoch(Epoch);
    }

    public override RecordReader OpenRecords() => new FileRecordReader(_disk, Partition, _index);

    public override JournalReader ReadAfter(ulong sequence)
    {
        using FileRecordReader records = new(_disk, Partition, _index);
        return new FileJournalReader(_disk, Partition, checkMerkleRoots: false, after: records.ReadBlock(sequence).Location);
    }

    /// <summary>The lock on the data folder is the first fence; this one holds where a lock is not kept (a network file system).</summary>
    protected override void CheckEpoch(ulong epoch)
    {
        ulong current = ReadEpoch(_epochFile);
        // Any other epoch, also none that can be read: whoever is not sure to own the partition does not.
        if (epoch != Epoch || (current != Epoch && !Injected.Is(JournalDefect.FencingOff) && (current > Epoch || !Injected.Is(JournalDefect.EpochLostByTornWrite))))
            throw new FencedException($"Epoch {epoch} of partition {Partition} is over: epoch {Math.Max(current, Epoch)} owns it now.");
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

    public override void Dispose()
    {
        _file.Dispose();
        _unflushedFile?.Dispose();
        _nextFile?.Dispose();
        _epochFile.Dispose();
    }
}
