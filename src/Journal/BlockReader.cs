using System.IO.Hashing;
using System.Runtime.InteropServices;

namespace Purse.Journal;

/// <summary>A valid block, in its reader's buffer until the next one is read.</summary>
public readonly ref struct Block(BlockHeader header, ReadOnlySpan<byte> bytes, BlockLocation location)
{
    readonly ReadOnlySpan<byte> _bytes = bytes;

    public BlockHeader Header { get; } = header;

    public BlockLocation Location { get; } = location;

    public ReadOnlySpan<byte> HeaderBytes => _bytes[..BlockHeader.SizeBytes];

    public ReadOnlySpan<byte> Records => _bytes.Slice(BlockHeader.SizeBytes, Header.RecordsBytes);

    public ReadOnlySpan<byte> Attachments => _bytes.Slice(BlockHeader.SizeBytes + Header.RecordsBytes, (int)Header.AttachmentsSizeBytes);

    public ReadOnlySpan<byte> Erasable =>
        _bytes.Slice(BlockHeader.SizeBytes + Header.RecordsBytes + (int)Header.AttachmentsSizeBytes, (int)Header.ErasableSizeBytes);

    /// <summary>What the Merkle root covers.</summary>
    public ReadOnlySpan<byte> Payload => _bytes.Slice(BlockHeader.SizeBytes, Header.RecordsBytes + (int)Header.AttachmentsSizeBytes);

    /// <summary>The records as a type of their size.</summary>
    public ReadOnlySpan<T> RecordsAs<T>()
        where T : unmanaged => MemoryMarshal.Cast<byte, T>(Records);
}

/// <summary>Reads blocks at given places of a partition's segments. One thread at a time.</summary>
/// <param name="readAheadBytes">How much to read at once: much for reading on, one page for looking up.</param>
/// <param name="readsAll">Whole segments: a disk may begin with all of one.</param>
public sealed class BlockReader(IDisk disk, int partition, int readAheadBytes, bool readsAll = false) : IDisposable
{
    bool _readsAll = readsAll;
    int _aheadSegment;
    IDiskFile? _file;
    int _segment;
    byte[] _buffer = new byte[readAheadBytes];
    long _bufferOffset;
    int _bufferLength;

    public int Partition => partition;

    public IDisk Disk => disk;

    /// <summary>Numbers of the segments there are, in order.</summary>
    public List<int> Segments() => FileJournal.Segments(disk);

    /// <summary>It has come to the end: what follows is read as it is written.</summary>
    public void ReadOnAsWritten() => _readsAll = false;

    /// <summary>Forgets what it has read: the next read sees what a writer wrote since.</summary>
    public void Forget() => _bufferLength = 0;

    public long SegmentLength(int segment) => Open(segment) ? _file!.Length : 0;

    /// <summary>A whole header, which may still have a broken body behind it.</summary>
    public bool TryReadHeader(BlockLocation at, out BlockHeader header) =>
        BlockHeader.TryRead(Bytes(at, BlockHeader.SizeBytes), partition, out header);

    /// <summary>A block whose header and body checksums hold.</summary>
    public bool TryRead(BlockLocation at, out Block block)
    {
        block = default;
        if (!TryReadHeader(at, out BlockHeader header)) return false;
        ReadOnlySpan<byte> bytes = Bytes(at, header.SizeOnDiskBytes);
        if (bytes.Length < header.SizeOnDiskBytes || XxHash3.HashToUInt64(bytes[BlockHeader.SizeBytes..]) != header.BodyChecksum) return false;
        block = new Block(header, bytes, at);
        return true;
    }

    /// <summary>Reads part of a block that was found by its header, without checking the rest.</summary>
    public void ReadExactly(BlockLocation at, int offset, Span<byte> target)
    {
        if (!Open(at.Segment) || _file!.Read(target, at.Offset + offset) < target.Length)
            throw new JournalDamagedException($"{at} ends early.", 0, at);
    }

    /// <summary>Up to <paramref name="length"/> bytes; fewer where the segment ends.</summary>
    internal ReadOnlySpan<byte> Bytes(BlockLocation at, int length)
    {
        if (!Open(at.Segment)) return [];
        if (at.Offset < _bufferOffset || at.Offset + length > _bufferOffset + _bufferLength)
        {
            if (_buffer.Length < length) _buffer = new byte[length];
            _bufferLength = _file!.Read(_buffer.AsSpan(0, Math.Max(length, readAheadBytes)), at.Offset);
            _bufferOffset = at.Offset;
        }

        int start = (int)(at.Offset - _bufferOffset);
        return _buffer.AsSpan(start, Math.Min(length, _bufferLength - start));
    }

    /// <summary>Makes durable what may have been read from the system's cache only.</summary>
    public void Flush(int segment)
    {
        if (Open(segment)) _file!.Flush();
    }

    bool Open(int segment)
    {
        if (_file is not null && _segment == segment) return true;
        _file?.Dispose();
        _file = null;
        _bufferLength = 0;
        try
        {
            _file = disk.Open(FileJournal.SegmentName(segment), writable: false);
            _segment = segment;
            if (_readsAll && segment > _aheadSegment)
            {
                _aheadSegment = segment;
                _file.ReadAhead();
            }

            return true;
        }
        catch (FileNotFoundException)
        {
            return false;
        }
        catch (DirectoryNotFoundException)
        {
            return false;
        }
    }

    public void Dispose() => _file?.Dispose();
}
