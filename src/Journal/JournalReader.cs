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
public abstract class JournalReader : IDisposable
{
    readonly MerkleTree? _merkle;
    ulong _nextSequence = 1;

    private protected JournalReader(int partition, bool checkMerkleRoots)
    {
        Partition = partition;
        _merkle = checkMerkleRoots ? new MerkleTree() : null;
    }

    public int Partition { get; }

    /// <summary>Set once <see cref="TryReadNext"/> has returned false, where there is one.</summary>
    public TornTail? TornTail { get; private protected set; }

    public ulong LastNumber { get; private set; }

    public Hash256 LastHash { get; private set; }

    /// <summary>The last block that is not empty.</summary>
    public ulong LastRecordsNumber { get; private set; }

    public Hash256 LastRecordsHash { get; private set; }

    public ulong LastSequence => _nextSequence - 1;

    public ulong LastEpoch { get; private set; }

    public long LastTimeMicros { get; private set; }

    /// <summary>How much of all there was at the beginning has been read, 0 to 1; for progress.</summary>
    public abstract double Done { get; }

    /// <summary>False at the end; true again once a writer has appended more.</summary>
    /// <exception cref="JournalDamagedException">A durable block is missing or not what was written.</exception>
    public abstract bool TryReadNext(out Block block);

    /// <summary>Makes durable what was read, so that no power cut takes back what was shown.</summary>
    public virtual void Flush()
    {
    }

    /// <summary>Whether a whole block is the one that comes next.</summary>
    private protected bool Follows(in Block block)
    {
        BlockHeader header = block.Header;
        if (header.FormatVersion != BlockHeader.CurrentFormatVersion)
        {
            throw new IOException(
                $"Block {header.Number} ({block.Location}) has format version {header.FormatVersion}; this version reads {BlockHeader.CurrentFormatVersion}. Use the version that wrote it.");
        }

        return header.Number == LastNumber + 1
            && header.PreviousHash == LastHash
            && header.FirstSequence == _nextSequence
            && header.Epoch >= LastEpoch
            && header.TimeMicros >= LastTimeMicros
            && (_merkle is null || _merkle.Root(block.Payload) == header.MerkleRoot);
    }

    private protected virtual void Accept(in Block block)
    {
        LastHash = BlockHeader.ComputeHash(block.HeaderBytes);
        LastNumber = block.Header.Number;
        _nextSequence = block.Header.FirstSequence + block.Header.RecordsCount;
        LastEpoch = block.Header.Epoch;
        LastTimeMicros = block.Header.TimeMicros;
        if (block.Header.RecordsCount > 0) (LastRecordsNumber, LastRecordsHash) = (LastNumber, LastHash);
    }

    public abstract void Dispose();
}
