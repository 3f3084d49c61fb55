namespace Purse.Journal;

/// <summary>
/// Where the blocks are, one entry for every 64 KiB or so of journal: enough to find any sequence with a few header reads. Grows
/// while others search it.
/// </summary>
public sealed class BlockIndex
{
    const int GapBytes = 64 * 1024;

    readonly record struct Entry(ulong FirstSequence, BlockLocation Location);

    readonly Lock _lock = new();
    readonly List<Entry> _entries = [];

    public void Add(ulong firstSequence, BlockLocation location)
    {
        lock (_lock)
        {
            if (_entries.Count > 0)
            {
                BlockLocation last = _entries[^1].Location;
                if (last.Segment == location.Segment && location.Offset - last.Offset < GapBytes) return;
            }

            _entries.Add(new Entry(firstSequence, location));
        }
    }

    /// <summary>A block at or before the one that has this sequence.</summary>
    public BlockLocation? Before(ulong sequence)
    {
        lock (_lock)
        {
            int low = 0, high = _entries.Count;
            while (low < high)
            {
                int middle = (low + high) / 2;
                if (_entries[middle].FirstSequence <= sequence) low = middle + 1;
                else high = middle;
            }

            return low == 0 ? null : _entries[low - 1].Location;
        }
    }
}
