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
/// Where the next block is not valid, any whole block header after it whose durable mark covers it makes this damage; without one it is a
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
        for (int attempt = 0; ; attempt++)
        {
            if (TryReadAt(_next, out block)) return Accept(block);
            // The rest of a segment that the next block did not fit in stays unused.
            if (TryReadAt(new BlockLocation(_next.Segment + 1, 0), out block)) return Accept(block);

            // Beside a writer, the block may have been on its way while a later one, already whole, was found: look once more.
            _reader.Forget();
            TornTail? torn = FindTornTail(out string? damage);
            _reader.Forget();
            if (attempt == 0 && (torn is not null || damage is not null)) continue;
            if (damage is not null) throw new JournalDamagedException(damage, _number + 1, _next);
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
        if (block.Header.RecordsCount > 0) (LastRecordsNumber, LastRecordsHash) = (_number, _hash);
        return true;
    }

    /// <summary>Looks through all that follows for a header that speaks for the missing block, and for bytes that are not zero.</summary>
    TornTail? FindTornTail(out string? damage)
    {
        damage = null;
        long tornBytes = 0;
        BlockLocation start = _next;
        List<int> segments = _reader.Segments();
        if (segments.Exists(s => s > _next.Segment) && !segments.Contains(_next.Segment))
        {
            damage = $"Block {_number + 1} is missing: {FileJournal.SegmentName(_next.Segment)} is gone, later segments are there.";
            return null;
        }

        foreach (int segment in segments.Where(s => s >= _next.Segment))
        {
            long length = _reader.SegmentLength(segment);
            for (long offset = segment == start.Segment ? start.Offset : 0; offset < length; offset += FileJournal.AlignmentBytes)
            {
                ReadOnlySpan<byte> page = _reader.Bytes(new BlockLocation(segment, offset), FileJournal.AlignmentBytes);
                if (!page.ContainsAnyExcept((byte)0)) continue;
                tornBytes += page.Length;
                if (!BlockHeader.TryRead(page, _reader.Partition, out BlockHeader header) || header.DurableNumber <= _number) continue;
                damage =
                    $"Block {_number + 1} ({start}, from event {_nextSequence}) is damaged: block {header.Number} ({FileJournal.SegmentName(segment)} at byte {offset}) " +
                    $"says that all up to block {header.DurableNumber} was durable, and this one is not valid any more. Restore the journal from a copy; nothing was changed.";
                return null;
            }
        }

        return tornBytes == 0 ? null : new TornTail(_number + 1, start, tornBytes);
    }

    public void Dispose() => _reader.Dispose();
}
