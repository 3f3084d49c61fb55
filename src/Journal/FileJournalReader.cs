namespace Purse.Journal;

/// <summary>Reads the segments of a folder.</summary>
/// <remarks>
/// Where the next block is not valid, any whole block after it whose durable mark covers it makes this damage; without one it is a
/// torn tail, and the journal ends before it.
/// </remarks>
public sealed class FileJournalReader : JournalReader
{
    readonly BlockReader _reader;
    readonly int _segmentsCount;
    BlockLocation _next;

    /// <summary>Reads all there is.</summary>
    public FileJournalReader(IDisk disk, int partition, bool checkMerkleRoots)
        : this(disk, partition, checkMerkleRoots, readsAll: true)
    {
    }

    FileJournalReader(IDisk disk, int partition, bool checkMerkleRoots, bool readsAll)
        : base(partition, checkMerkleRoots)
    {
        _reader = new BlockReader(disk, partition, readAheadBytes: 1024 * 1024, readsAll);
        List<int> segments = _reader.Segments();
        _segmentsCount = segments.Count;
        _next = new BlockLocation(Math.Max(1, segments.FirstOrDefault()), 0);
    }

    /// <summary>Continues after a block that was read and checked before.</summary>
    public FileJournalReader(IDisk disk, int partition, bool checkMerkleRoots, BlockLocation after)
        : this(disk, partition, checkMerkleRoots, readsAll: false)
    {
        if (!_reader.TryRead(after, out Block block)) throw new JournalDamagedException($"The block in {after} is not valid any more.", 0, after);
        Accept(block);
    }

    /// <summary>The last blocks, of which no block read so far says that they were durable.</summary>
    public List<(ulong Number, BlockLocation Location, int SizeBytes)> Unmarked { get; } = [];

    /// <summary>Where the next block is, or would be written.</summary>
    public BlockLocation Next => _next;

    public override double Done => _segmentsCount == 0 ? 1 : (double)(_next.Segment - 1) / _segmentsCount;

    /// <summary>The segments that hold the last blocks read.</summary>
    public override void Flush()
    {
        foreach (int segment in _reader.Segments().Where(s => s <= _next.Segment).TakeLast(2)) _reader.Flush(segment);
    }

    public override bool TryReadNext(out Block block)
    {
        for (bool wasDamage = false, wasTorn = false; ;)
        {
            // The rest of a segment that the next block did not fit in stays unused.
            if (TryReadAt(_next, out block) || TryReadAt(new BlockLocation(_next.Segment + 1, 0), out block))
            {
                Accept(block);
                return true;
            }

            _reader.ReadOnAsWritten();
            // Beside a writer, the block may have been on its way while a later one, already whole, was found: look once more.
            _reader.Forget();
            TornTail? torn = FindTornTail(out string? damage);
            _reader.Forget();
            if (damage is not null && wasDamage) throw new JournalDamagedException(damage, LastNumber + 1, _next);
            wasDamage = damage is not null;
            if (wasDamage || (torn is not null && !wasTorn))
            {
                wasTorn = true;
                continue;
            }

            TornTail = torn;
            return false;
        }
    }

    bool TryReadAt(BlockLocation at, out Block block) => _reader.TryRead(at, out block) && Follows(block);

    private protected override void Accept(in Block block)
    {
        base.Accept(block);
        _next = new BlockLocation(block.Location.Segment, block.Location.Offset + block.Header.SizeOnDiskBytes);
        ulong durable = block.Header.DurableNumber;
        Unmarked.RemoveAll(one => one.Number <= durable);
        Unmarked.Add((LastNumber, block.Location, block.Header.SizeOnDiskBytes));
    }

    /// <summary>Looks through all that follows for a block that speaks for the missing block, and for bytes that are not zero.</summary>
    TornTail? FindTornTail(out string? damage)
    {
        damage = null;
        long tornBytes = 0;
        BlockLocation start = _next;
        List<int> segments = _reader.Segments();
        List<int> rest = segments.FindAll(s => s >= _next.Segment);
        int missing = _next.Segment + rest.TakeWhile((s, i) => s == _next.Segment + i).Count();
        if (rest.Exists(s => s > missing))
        {
            damage = $"Block {LastNumber + 1} or one after it is missing: {FileJournal.SegmentName(missing)} is gone, later segments are there. Restore the journal from a copy; no block was changed.";
            return null;
        }

        foreach (int segment in rest)
        {
            long length = _reader.SegmentLength(segment);
            for (long offset = segment == start.Segment ? start.Offset : 0; offset < length; offset += FileJournal.AlignmentBytes)
            {
                ReadOnlySpan<byte> page = _reader.Bytes(new BlockLocation(segment, offset), FileJournal.AlignmentBytes);
                if (!page.ContainsAnyExcept((byte)0)) continue;
                tornBytes += page.Length;
                // A whole block, not only a header: what a caller wrote into a description must not speak for the journal.
                if (!_reader.TryRead(new BlockLocation(segment, offset), out Block later)) continue;
                BlockHeader header = later.Header;
                if (header.Number <= LastNumber || header.DurableNumber >= header.Number || header.DurableNumber <= LastNumber) continue;
                damage =
                    $"Block {LastNumber + 1} ({start}, from event {LastSequence + 1}) is damaged: block {header.Number} ({FileJournal.SegmentName(segment)} at byte {offset}) " +
                    $"says that all up to block {header.DurableNumber} was durable, and this one is not valid any more. Restore the journal from a copy; no block was changed.";
                return null;
            }
        }

        return tornBytes == 0 ? null : new TornTail(LastNumber + 1, start, tornBytes);
    }

    public override void Dispose() => _reader.Dispose();
}
