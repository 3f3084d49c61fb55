using System.IO.Hashing;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Security.Cryptography;

namespace Purse.Journal;

/// <summary>A SHA-256 digest.</summary>
[InlineArray(SizeBytes)]
public struct Hash256 : IEquatable<Hash256>
{
    public const int SizeBytes = 32;

    byte _first;

    public readonly bool Equals(Hash256 other) => ((ReadOnlySpan<byte>)this).SequenceEqual(other);

    public override readonly bool Equals(object? obj) => obj is Hash256 other && Equals(other);

    public override readonly int GetHashCode() => MemoryMarshal.Read<int>(this);

    public readonly byte[] ToArray() => ((ReadOnlySpan<byte>)this).ToArray();

    public override readonly string ToString() => Convert.ToHexStringLower(this);

    /// <summary>As <see cref="ToString"/> writes it.</summary>
    public static Hash256 Parse(string hex)
    {
        Hash256 hash = default;
        Convert.FromHexString(hex, hash, out _, out int written);
        return written == SizeBytes && hex.Length == 2 * SizeBytes ? hash : throw new FormatException($"'{hex}' is no hash of {SizeBytes} bytes in hexadecimal digits.");
    }

    public static bool operator ==(Hash256 a, Hash256 b) => a.Equals(b);

    public static bool operator !=(Hash256 a, Hash256 b) => !a.Equals(b);
}

/// <summary>
/// The first 256 bytes of a block, little-endian (docs/journal-format.md draws them). <see cref="HeaderChecksum"/> covers all after
/// itself, <see cref="BodyChecksum"/> all after the header, padding included. The block's hash covers the header from
/// <see cref="FormatVersion"/> on: both checksums stay outside, so that a text can be erased from the body without breaking the chain.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = SizeBytes, Pack = 8)]
public struct BlockHeader
{
    public const int SizeBytes = 256;
    public const ulong MagicNumber = 0x4b4c424553525550; // "PURSEBLK"
    public const uint CurrentFormatVersion = 0;

    [FieldOffset(0)] public ulong Magic;
    [FieldOffset(8)] public ulong HeaderChecksum;
    [FieldOffset(16)] public ulong BodyChecksum;
    [FieldOffset(24)] public uint FormatVersion;
    [FieldOffset(28)] public uint Partition;

    /// <summary>1, 2, 3, … through the whole journal, empty blocks included.</summary>
    [FieldOffset(32)] public ulong Number;

    /// <summary>The writer's generation; never falls.</summary>
    [FieldOffset(40)] public ulong Epoch;

    /// <summary>Sequence of the first record; of an empty block, the one that comes next.</summary>
    [FieldOffset(48)] public ulong FirstSequence;
    [FieldOffset(56)] public uint RecordsCount;
    [FieldOffset(60)] public uint RecordSizeBytes;
    [FieldOffset(64)] public uint AttachmentsSizeBytes;
    [FieldOffset(68)] public uint ErasableSizeBytes;
    [FieldOffset(72)] public long TimeMicros;

    /// <summary>The durable mark: the last block, and the last sequence, known to be on stable storage when this block was written.</summary>
    [FieldOffset(80)] public ulong DurableNumber;
    [FieldOffset(88)] public ulong DurableSequence;
    [FieldOffset(96)] public Hash256 PreviousHash;

    /// <summary>Over records and attachments in leaves of 4 KiB (<see cref="MerkleTree"/>).</summary>
    [FieldOffset(128)] public Hash256 MerkleRoot;

    public readonly ulong LastSequence => FirstSequence + RecordsCount - 1;

    public readonly int RecordsBytes => (int)(RecordsCount * RecordSizeBytes);

    public readonly int BodyBytes => RecordsBytes + (int)AttachmentsSizeBytes + (int)ErasableSizeBytes;

    /// <summary>With header and padding.</summary>
    public readonly int SizeOnDiskBytes => AlignedSize(BodyBytes);

    public static int AlignedSize(long bodyBytes) => (int)((SizeBytes + bodyBytes + FileJournal.AlignmentBytes - 1) & -FileJournal.AlignmentBytes);

    public static ulong ComputeHeaderChecksum(ReadOnlySpan<byte> header) => XxHash3.HashToUInt64(header[16..SizeBytes]);

    public static Hash256 ComputeHash(ReadOnlySpan<byte> header)
    {
        Hash256 hash = default;
        SHA256.HashData(header[24..SizeBytes], hash);
        return hash;
    }

    /// <summary>Whether these bytes begin with a header that is whole and belongs to this partition.</summary>
    public static bool TryRead(ReadOnlySpan<byte> bytes, int partition, out BlockHeader header)
    {
        header = default;
        if (bytes.Length < SizeBytes) return false;
        header = MemoryMarshal.Read<BlockHeader>(bytes);
        return header.Magic == MagicNumber
            && header.HeaderChecksum == ComputeHeaderChecksum(bytes)
            && header.Partition == (uint)partition
            && (ulong)header.RecordsCount * header.RecordSizeBytes + header.AttachmentsSizeBytes + header.ErasableSizeBytes <= JournalWriter.BodyBytesMax;
    }
}

/// <summary>Where a block begins.</summary>
public readonly record struct BlockLocation(int Segment, long Offset)
{
    public override string ToString() => $"{FileJournal.SegmentName(Segment)} at byte {Offset}";
}
