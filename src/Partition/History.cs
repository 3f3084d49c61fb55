using System.Collections.Concurrent;
using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>
/// Finds events in a balance's chain by their number (1 is its first) or time. The chain is walked backwards; every sixteenth event that
/// a walk passes is remembered, so that the next one begins near its goal. Derived, in memory, forgotten when it grows too large.
/// </summary>
public sealed class History
{
    const ulong Stride = 16;
    const int EntriesMax = 4_000_000;

    readonly record struct Entry(ulong Number, ulong Sequence, long TimeMicros);

    readonly ConcurrentDictionary<(uint Account, uint Currency), SortedList<ulong, Entry>> _entries = new();
    int _count;

    /// <summary>The sequence of a balance's n-th event, and all that it says beside it.</summary>
    /// <param name="balance">As it is now, or later than the event.</param>
    public ulong Find(EventReaders readers, in Balance balance, ulong number, CancellationToken cancellation)
    {
        Check.That(number >= 1 && number <= balance.EventsCount, "a balance has events 1 to their count");
        ulong found = 0;
        Walk(readers, balance, entry => entry.Number >= number, (at, sequence, _) =>
        {
            if (at == number) found = sequence;
            return at > number;
        }, cancellation);
        return found;
    }

    /// <summary>The number and sequence of the last event at or before a time; 0, 0 where there is none.</summary>
    public (ulong Number, ulong Sequence) LastAtOrBefore(EventReaders readers, in Balance balance, long timeMicros, CancellationToken cancellation)
    {
        (ulong, ulong) found = (0, 0);
        Walk(readers, balance, entry => entry.TimeMicros > timeMicros, (number, sequence, time) =>
        {
            if (time > timeMicros) return true;
            found = (number, sequence);
            return false;
        }, cancellation);
        return found;
    }

    /// <summary>The number and sequence of the last event at or before a sequence; 0, 0 where there is none.</summary>
    public (ulong Number, ulong Sequence) LastAtOrBeforeSequence(EventReaders readers, in Balance balance, ulong limit, CancellationToken cancellation)
    {
        (ulong, ulong) found = (0, 0);
        Walk(readers, balance, entry => entry.Sequence > limit, (number, sequence, _) =>
        {
            if (sequence > limit) return true;
            found = (number, sequence);
            return false;
        }, cancellation);
        return found;
    }

    /// <summary>Walks backwards from the oldest remembered event that is not before the goal.</summary>
    void Walk(EventReaders readers, in Balance balance, Func<Entry, bool> isNotBeforeGoal, Func<ulong, ulong, long, bool> visit, CancellationToken cancellation)
    {
        if (balance.EventsCount == 0) return;
        SortedList<ulong, Entry> entries = _entries.GetOrAdd((balance.Account, balance.Currency), static _ => []);
        ulong number = balance.EventsCount, sequence = balance.LastSequence;
        lock (entries)
        {
            int low = 0, high = entries.Count;
            while (low < high)
            {
                int middle = (low + high) / 2;
                if (isNotBeforeGoal(entries.GetValueAtIndex(middle))) high = middle;
                else low = middle + 1;
            }

            if (low < entries.Count && entries.GetKeyAtIndex(low) < number) (number, sequence) = (entries.GetValueAtIndex(low).Number, entries.GetValueAtIndex(low).Sequence);
        }

        List<Entry> passed = [];
        try
        {
            readers.Walk(
                sequence,
                (at, time, _) =>
                {
                    if (number % Stride == 0) passed.Add(new Entry(number, at, time));
                    return visit(number--, at, time);
                },
                cancellation);
        }
        finally
        {
            // A walk that its caller gave up on has shortened the next one.
            lock (entries)
            {
                // Ascending, so that the list appends rather than inserts.
                for (int i = passed.Count - 1; i >= 0; i--)
                {
                    if (entries.TryAdd(passed[i].Number, passed[i])) Interlocked.Increment(ref _count);
                }
            }
        }

        if (Volatile.Read(ref _count) <= EntriesMax) return;
        _entries.Clear();
        Interlocked.Exchange(ref _count, 0);
    }
}
