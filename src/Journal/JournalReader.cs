namespace Purse.Journal;

/// <summary>A block that was once durable is not what it was. Nothing may be served from such a journal.</summary>
public sealed class JournalDamagedException(string message, ulong block, BlockLocation location) : IOException(message)
{
    public ulong BlockNumber { get; } = block;

    public BlockLocation Location { get; } = location;
}

/// <summary>Bytes after the last valid block that no durable mark speaks for: a write that a crash cut short.</summary>
public sealed record TornTail(ulong BlockNumber, BlockLocation Location, long SizeBytes)
{
    public override string ToString() =>
        $"block {BlockNumber} ({Location}) was not written whole, and nothing says that it ever was durable: a torn tail of {SizeBytes} bytes";
}

/// <summary>
/// Reads a journal block by block, in order, checking checksums and the chain, and where asked the Merkle roots. Works beside a writer.
/// </summary>
/// <remarks>
/// Where the next block is not valid, any whole block after it whose durable mark covers it makes this damage; without one it is a
/// torn tail, and the journal ends before it.
/// </remarks>
public sealed class JournalReader : IDisposable
{
    readonly BlockReader _reader;
    readonly MerkleTree? _merkle;
    BlockLocation _next;
    Hash256 _hash;
    ulong _number;
    ulong _nextSequence = 1;
    ulong _epoch;
    long _timeMicros;

    public JournalReader(IDisk disk, int partition, bool checkMerkleRoots)
    {
        _reader = new BlockReader(disk, partition, readAheadBytes: 1024 * 1024);
        _merkle = checkMerkleRoots ? new MerkleTree() : null;
        _next = new BlockLocation(Math.Max(1, _reader.Segments().FirstOrDefault()), 0);
    }

    /// <summary>Continues after a block that was read and checked before.</summary>
    public JournalReader(IDisk disk, int partition, bool checkMerkleRoots, BlockLocation after)
        : this(disk, partition, checkMerkleRoots)
    {
        if (!_reader.TryRead(after, out Block block)) throw new JournalDamagedException($"The block in {after} is not valid any more.", 0, after);
        Accept(block);
    }

    /// <summary>Set once <see cref="TryReadNext"/> has returned false, where there is one.</summary>
    public TornTail? TornTail { get; private set; }

    public ulong LastNumber => _number;

    public Hash256 LastHash => _hash;

    /// <summary>The last block that is not empty.</summary>
    public ulong LastRecordsNumber { get; private set; }

    public Hash256 LastRecordsHash { get; private set; }

    public ulong LastSequence => _nextSequence - 1;

    public ulong LastEpoch => _epoch;

    public long LastTimeMicros => _timeMicros;

    /// <summary>The last blocks, of which no block read so far says that they were durable.</summary>
    public List<(ulong Number, BlockLocation Location, int SizeBytes)> Unmarked { get; } = [];

    /// <summary>Where the next block is, or would be written.</summary>
    public BlockLocation Next => _next;

    /// <summary>Makes durable the segments that hold the last blocks read, so that no power cut takes back what was shown.</summary>
    public void Flush()
    {
        foreach (int segment in _reader.Segments().Where(s => s <= _next.Segment).TakeLast(2)) _reader.Flush(segment);
    }

    /// <summary>False at the end; true again once a writer has appended more.</summary>
    /// <exception cref="JournalDamagedException">A durable block is missing or not what was written.</exception>
    public bool TryReadNext(out Block block)
    {
        for (bool wasDamage = false, wasTorn = false; ;)
        {
            if (TryReadAt(_next, out block)) return Accept(block);
            // The rest of a segment that the next block did not fit in stays unused.
            if (TryReadAt(new BlockLocation(_next.Segment + 1, 0), out block)) return Accept(block);

            // Beside a writer, the block may have been on its way while a later one, already whole, was found: look once more.
            _reader.Forget();
            TornTail? torn = FindTornTail(out string? damage);
            _reader.Forget();
            if (damage is not null && wasDamage) throw new JournalDamagedException(damage, _number + 1, _next);
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

    bool TryReadAt(BlockLocation at, out Block block)
    {
        if (!_reader.TryRead(at, out block)) return false;
        BlockHeader header = block.Header;
        if (header.FormatVersion != BlockHeader.CurrentFormatVersion)
        {
            throw new IOException(
                $"Block {header.Number} ({at}) has format version {header.FormatVersion}; this version reads {BlockHeader.CurrentFormatVersion}. Use the version that wrote it.");
        }

        return header.Number == _number + 1
            && header.PreviousHash == _hash
            && header.FirstSequence == _nextSequence
            && header.Epoch >= _epoch
            && header.TimeMicros >= _timeMicros
            && (_merkle is null || _merkle.Root(block.Payload) == header.MerkleRoot);
    }

    bool Accept(in Block block)
    {
        _next = new BlockLocation(block.Location.Segment, block.Location.Offset + block.Header.SizeOnDiskBytes);
        _hash = BlockHeader.ComputeHash(block.HeaderBytes);
        _number = block.Header.Number;
        _nextSequence = block.Header.FirstSequence + block.Header.RecordsCount;
        _epoch = block.Header.Epoch;
        _timeMicros = block.Header.TimeMicros;
        ulong durable = block.Header.DurableNumber;
        Unmarked.RemoveAll(one => one.Number <= durable);
        Unmarked.Add((_number, block.Location, block.Header.SizeOnDiskBytes));
        if (block.Header.RecordsCount > 0) (LastRecordsNumber, LastRecordsHash) = (_number, _hash);
        return true;
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
            damage = $"Block {_number + 1} or one after it is missing: {FileJournal.SegmentName(missing)} is gone, later segments are there. Restore the journal from a copy; no block was changed.";
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
                if (header.Number <= _number || header.DurableNumber >= header.Number || header.DurableNumber <= _number) continue;
                damage =
                    $"Block {_number + 1} ({start}, from event {_nextSequence}) is damaged: block {header.Number} ({FileJournal.SegmentName(segment)} at byte {offset}) " +
                    $"says that all up to block {header.DurableNumber} was durable, and this one is not valid any more. Restore the journal from a copy; no block was changed.";
                return null;
            }
        }

        return tornBytes == 0 ? null : new TornTail(_number + 1, start, tornBytes);
    }

    public void Dispose() => _reader.Dispose();
}
