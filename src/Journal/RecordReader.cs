namespace Purse.Journal;

/// <summary>
/// Finds single records of flushed blocks beside the writer, never on its thread. Checks each header; bodies were checked when the
/// journal was opened. One thread at a time.
/// </summary>
public abstract class RecordReader : IDisposable
{
    /// <summary>The block of the record last read.</summary>
    public BlockHeader Header { get; private protected set; }

    /// <summary>Reads one record; its sequence must have been flushed.</summary>
    public void Read(ulong sequence, Span<byte> record)
    {
        Find(sequence);
        ReadExactly((int)(sequence - Header.FirstSequence) * record.Length, record);
    }

    /// <summary>Part of the attachments of the block of the record last read.</summary>
    public void ReadAttachments(int offset, Span<byte> target) => ReadExactly(Header.RecordsBytes + offset, target);

    /// <summary>Part of the erasable texts of the block of the record last read.</summary>
    public void ReadErasable(int offset, Span<byte> target) => ReadExactly(Header.RecordsBytes + (int)Header.AttachmentsSizeBytes + offset, target);

    /// <summary>Reads the whole block that has this sequence; the block stays valid until the next call.</summary>
    public abstract Block ReadBlock(ulong sequence);

    /// <summary>Leaves the header of the block that has this sequence.</summary>
    private protected abstract void Find(ulong sequence);

    private protected bool IsHere(ulong sequence) => Header.RecordsCount > 0 && sequence >= Header.FirstSequence && sequence <= Header.LastSequence;

    /// <summary>Of the body of the block found last.</summary>
    private protected abstract void ReadExactly(int offset, Span<byte> target);

    public abstract void Dispose();
}

/// <summary>Of the segments of a folder.</summary>
public sealed class FileRecordReader(IDisk disk, int partition, BlockIndex index) : RecordReader
{
    readonly BlockReader _reader = new(disk, partition, readAheadBytes: FileJournal.AlignmentBytes);
    BlockLocation _location;

    private protected override void ReadExactly(int offset, Span<byte> target) => _reader.ReadExactly(_location, BlockHeader.SizeBytes + offset, target);

    public override Block ReadBlock(ulong sequence)
    {
        Find(sequence);
        if (!_reader.TryRead(_location, out Block block)) throw Damaged(sequence, _location);
        return block;
    }

    private protected override void Find(ulong sequence)
    {
        if (IsHere(sequence)) return;
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
                (Header, _location) = (header, at);
                return;
            }

            at = at with { Offset = at.Offset + header.SizeOnDiskBytes };
        }
    }

    static JournalDamagedException Damaged(ulong sequence, BlockLocation at) =>
        new($"Event {sequence} is not where the journal should have it ({at}). Stop the server and run `purse verify`.", 0, at);

    public override void Dispose() => _reader.Dispose();
}
