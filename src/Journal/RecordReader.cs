namespace Purse.Journal;

/// <summary>
/// Finds single records of flushed blocks beside the writer, never on its thread. Checks each header; bodies were checked when the
/// journal was opened. One thread at a time.
/// </summary>
public sealed class RecordReader(IDisk disk, int partition, BlockIndex index) : IDisposable
{
    readonly BlockReader _reader = new(disk, partition, readAheadBytes: FileJournal.AlignmentBytes);
    BlockHeader _header;
    BlockLocation _location;

    /// <summary>The block of the record last read.</summary>
    public BlockHeader Header => _header;

    /// <summary>Reads one record; its sequence must have been flushed.</summary>
    public void Read(ulong sequence, Span<byte> record)
    {
        Find(sequence);
        _reader.ReadExactly(_location, BlockHeader.SizeBytes + (int)(sequence - _header.FirstSequence) * record.Length, record);
    }

    /// <summary>Part of the attachments of the block of the record last read.</summary>
    public void ReadAttachments(int offset, Span<byte> target) => _reader.ReadExactly(_location, BlockHeader.SizeBytes + _header.RecordsBytes + offset, target);

    /// <summary>Part of the erasable texts of the block of the record last read.</summary>
    public void ReadErasable(int offset, Span<byte> target) =>
        _reader.ReadExactly(_location, BlockHeader.SizeBytes + _header.RecordsBytes + (int)_header.AttachmentsSizeBytes + offset, target);

    /// <summary>Reads the whole block that has this sequence; the block stays valid until the next call.</summary>
    public Block ReadBlock(ulong sequence)
    {
        Find(sequence);
        if (!_reader.TryRead(_location, out Block block)) throw Damaged(sequence, _location);
        return block;
    }

    void Find(ulong sequence)
    {
        if (_header.RecordsCount > 0 && sequence >= _header.FirstSequence && sequence <= _header.LastSequence) return;
        BlockLocation at = index.Before(sequence) ?? throw Damaged(sequence, new BlockLocation(1, 0));
        // Never the bytes of an earlier search: the writer may have been writing them.
        _reader.Forget();
        while (true)
        {
            if (!_reader.TryReadHeader(at, out BlockHeader header))
            {
                // The block did not fit behind the one before it.
                BlockLocation next = new(at.Segment + 1, 0);
                if (at.Offset == 0 || !_reader.TryReadHeader(next, out header)) throw Damaged(sequence, at);
                at = next;
            }

            if (header.FirstSequence > sequence) throw Damaged(sequence, at);
            if (header.RecordsCount > 0 && sequence <= header.LastSequence)
            {
                (_header, _location) = (header, at);
                return;
            }

            at = at with { Offset = at.Offset + header.SizeOnDiskBytes };
        }
    }

    static JournalDamagedException Damaged(ulong sequence, BlockLocation at) =>
        new($"Event {sequence} is not where the journal should have it ({at}). Stop the server and run `purse verify`.", 0, at);

    public void Dispose() => _reader.Dispose();
}
