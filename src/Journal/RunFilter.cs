using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace Purse.Journal;

/// <summary>
/// A blocked Bloom filter over 48-bit hashes: 15.5 bits and 8 probes a hash, all in one block of 1024 bits, so that an answer costs two neighbouring
/// cache lines at most. At most 0.1 % of what was never added seems to be there. Blocks follow the order of the hashes: added in that
/// order, the filter is filled from its beginning to its end.
/// </summary>
public sealed unsafe class RunFilter
{
    const int WordsPerBlock = 16;
    const int AlignmentBytes = WordsPerBlock * sizeof(ulong);

    readonly ulong[] _words;
    readonly ulong* _blocks;
    readonly ulong _blocksCount;

    public RunFilter(long hashesCount)
    {
        _blocksCount = BlocksOf(hashesCount);
        // Pinned, so that its place can be known to the processor ahead of the look at it.
        _words = GC.AllocateArray<ulong>((int)((_blocksCount + 1) * WordsPerBlock), pinned: true);
        nuint start = (nuint)Unsafe.AsPointer(ref _words[0]);
        _blocks = (ulong*)((start + AlignmentBytes - 1) & ~(nuint)(AlignmentBytes - 1));
    }

    static ulong BlocksOf(long hashesCount) => Math.Max(1, ((ulong)hashesCount * 31 + 2047) / 2048);

    public static long SizeBytesOf(long hashesCount) => (long)BlocksOf(hashesCount) * AlignmentBytes;

    public long SizeBytes => (long)_blocksCount * AlignmentBytes;

    /// <summary>What is written to disk, and read from there, in pieces.</summary>
    public Span<byte> Bytes(long offset, int length) => new((byte*)_blocks + offset, length);

    public void Add(ulong hash)
    {
        ulong* block = Block(hash);
        (ulong first, ulong second) = Mix(hash);
        for (int i = 0; i < 4; i++)
        {
            Set(block, first >> (54 - 10 * i));
            Set(block, second >> (54 - 10 * i));
        }
    }

    /// <summary>False where the hash was never added.</summary>
    public bool MayHave(ulong hash)
    {
        ulong* block = Block(hash);
        (ulong first, ulong second) = Mix(hash);
        for (int i = 0; i < 4; i++)
        {
            if (!IsSet(block, first >> (54 - 10 * i)) || !IsSet(block, second >> (54 - 10 * i))) return false;
        }

        return true;
    }

    /// <summary>Has the hash's block brought near, so that a later look does not wait for it.</summary>
    public void Prefetch(ulong hash)
    {
        if (!Sse.IsSupported) return;
        ulong* block = Block(hash);
        Sse.Prefetch0(block);
        Sse.Prefetch0(block + WordsPerBlock / 2);
    }

    ulong* Block(ulong hash) => _blocks + Math.BigMul(hash << 16, _blocksCount, out _) * WordsPerBlock;

    /// <summary>The upper 40 bits of each are four places.</summary>
    static (ulong First, ulong Second) Mix(ulong hash) => (hash * 0x9e3779b97f4a7c15, (hash ^ (hash >> 23)) * 0xc2b2ae3d27d4eb4f);

    static void Set(ulong* block, ulong place) => block[(place >> 6) & (WordsPerBlock - 1)] |= 1ul << (int)(place & 63);

    static bool IsSet(ulong* block, ulong place) => (block[(place >> 6) & (WordsPerBlock - 1)] & (1ul << (int)(place & 63))) != 0;
}
