using System.Numerics;

namespace Purse.Journal;

/// <summary>An entry of two words, in the order of the first, then of the second.</summary>
public readonly record struct RunEntry(ulong First, ulong Second) : IComparable<RunEntry>
{
    public int CompareTo(RunEntry other) => First != other.First ? First.CompareTo(other.First) : Second.CompareTo(other.Second);

    /// <summary>Of entries that begin with a hash, and so are spread evenly: one pass brings each near its place.</summary>
    public static RunEntry[] Sorted(ReadOnlySpan<RunEntry> entries)
    {
        int bits = Math.Clamp(BitOperations.Log2((uint)entries.Length | 1) - 2, 1, 22), shift = 64 - bits;
        int[] starts = new int[(1 << bits) + 1];
        foreach (ref readonly RunEntry entry in entries) starts[(entry.First >> shift) + 1]++;
        for (int i = 1; i < starts.Length; i++) starts[i] += starts[i - 1];
        RunEntry[] sorted = new RunEntry[entries.Length];
        foreach (ref readonly RunEntry entry in entries) sorted[starts[entry.First >> shift]++] = entry;
        // Each start has come to where the next one was.
        for (int i = 0, from = 0; i < starts.Length - 1; from = starts[i++])
        {
            if (starts[i] - from > 1) sorted.AsSpan(from, starts[i] - from).Sort();
        }

        return sorted;
    }
}
