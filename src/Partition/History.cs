using System.Runtime.InteropServices;
using Purse.Journal;
using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>
/// Finds events in a balance's chain by their number (1 is its first), time or sequence. The chain is walked backwards from the first mark that is not
/// before the goal: there is one at every sixteenth event, the latest in the state's memory, all others in runs in the journal's store.
/// </summary>
public sealed class History : IDisposable
{
    public const string Folder = "history";

    // Of an entry, which is in the order of the first two.
    internal const int EntryWords = 4;
    const int NumberWord = 1;
    const int SequenceWord = 2;
    const int TimeWord = 3;

    readonly RunSet _runs;
    State? _state;

    /// <param name="life">Unlike that of any other writer.</param>
    public History(IJournalStore store, long life, Action<string> log)
    {
        _runs = new RunSet(store.Files, store.Partition, Folder, EntryWords, hasFilters: false, life, seed: 0);
        _runs.Open(log);
    }

    /// <summary>Marks of events up to this one are in runs.</summary>
    public ulong Covered => _runs.Covered;

    public RunSet Runs => _runs;

    /// <summary>From now on it is asked about this state's balances.</summary>
    public void Serve(State state) => _state = state;

    /// <summary>Puts the marks of a full generation in a run.</summary>
    public void Write(Generation generation)
    {
        List<BalanceMark> marks = [];
        for (int i = 0; i < generation.MarksCount; i++)
        {
            if (generation.Mark(i).Sequence > _runs.Covered) marks.Add(generation.Mark(i));
        }

        if (marks.Count > 0 && Injected.Is(PartitionDefect.MarkWithWrongNumber)) marks[^1] = marks[^1] with { Number = marks[^1].Number + 1 };
        // Each balance's marks are in order already.
        ulong[] entries = new ulong[marks.Count * EntryWords];
        int at = 0;
        foreach (BalanceMark mark in marks.OrderBy(static mark => FirstWord(mark.Account, mark.Currency)))
        {
            Write(mark, entries.AsSpan(at));
            at += EntryWords;
        }

        _runs.Add(generation.To, entries);
    }

    /// <summary>A mark as an entry.</summary>
    internal static void Write(in BalanceMark mark, Span<ulong> entry)
    {
        entry[0] = FirstWord(mark.Account, mark.Currency);
        (entry[NumberWord], entry[SequenceWord], entry[TimeWord]) = (mark.Number, mark.Sequence, (ulong)mark.TimeMicros);
    }

    static ulong FirstWord(uint account, uint currency) => ((ulong)account << 32) | currency;

    /// <summary>The sequence of a balance's n-th event.</summary>
    /// <param name="balance">As it is now, or later than the event.</param>
    public ulong Find(EventReaders readers, in Balance balance, ulong number, CancellationToken cancellation)
    {
        Check.That(number >= 1 && number <= balance.EventsCount, "a balance has events 1 to their count");
        ulong found = 0;
        Walk(readers, balance, NumberWord, number, (at, sequence, _) =>
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
        Walk(readers, balance, TimeWord, timeMicros < 0 ? 0 : (ulong)timeMicros + 1, (number, sequence, time) =>
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
        Walk(readers, balance, SequenceWord, limit == ulong.MaxValue ? limit : limit + 1, (number, sequence, _) =>
        {
            if (sequence > limit) return true;
            found = (number, sequence);
            return false;
        }, cancellation);
        return found;
    }

    /// <param name="word">What of a mark is compared with the goal.</param>
    void Walk(EventReaders readers, in Balance balance, int word, ulong goal, Func<ulong, ulong, long, bool> visit, CancellationToken cancellation)
    {
        if (balance.EventsCount == 0) return;
        (ulong number, ulong sequence) = (balance.EventsCount, balance.LastSequence);
        // A mark that came after the balance was looked at is of no use.
        if (FirstMark(FirstWord(balance.Account, balance.Currency), word, goal) is BalanceMark mark && mark.Number < number) (number, sequence) = (mark.Number, mark.Sequence);
        readers.Walk(sequence, (at, time, _) => visit(number--, at, time), cancellation);
    }

    /// <summary>The first mark of a balance that is not before the goal; null where there is none yet.</summary>
    BalanceMark? FirstMark(ulong key, int word, ulong goal)
    {
        while (true)
        {
            // In this order: what leaves memory meanwhile is in runs already.
            ReadOnlySpan<Generation> generations = _state!.Generations.All;
            if (!TryFindInRuns(key, word, goal, out BalanceMark? mark)) continue;
            return mark ?? FindInMemory(generations, key, word, goal);
        }
    }

    static BalanceMark? FindInMemory(ReadOnlySpan<Generation> generations, ulong key, int word, ulong goal)
    {
        foreach (Generation generation in generations)
        {
            int count = generation.MarksCount;
            for (int i = 0; i < count; i++)
            {
                ref readonly BalanceMark mark = ref generation.Mark(i);
                if (FirstWord(mark.Account, mark.Currency) != key) continue;
                ulong value = word switch { NumberWord => mark.Number, SequenceWord => mark.Sequence, _ => (ulong)mark.TimeMicros };
                if (value >= goal) return mark;
            }
        }

        return null;
    }

    /// <summary>False where a run was merged meanwhile: the others have to be looked at.</summary>
    bool TryFindInRuns(ulong key, int word, ulong goal, out BalanceMark? mark)
    {
        mark = null;
        foreach (Run run in _runs.Runs)
        {
            if (word == SequenceWord && run.Header.To < goal) continue;
            if (run.PagesCount == 0) continue;
            if (!run.TryEnter()) return false;
            try
            {
                mark = Find(run, key, word, goal);
            }
            finally
            {
                run.Leave();
            }

            if (mark is not null) break;
        }

        return true;
    }

    /// <summary>A balance's marks rise in every respect, so that its pages are halved until one is left.</summary>
    static BalanceMark? Find(Run run, ulong key, int word, ulong goal)
    {
        Span<ulong> page = stackalloc ulong[Run.PageWords];
        int low = run.FirstPage(key), high = run.LastPage(key);
        while (low < high)
        {
            int middle = (low + high) / 2;
            run.Read(middle, page);
            int last = run.EntriesCount(middle) - 1;
            while (last >= 0 && page[last * EntryWords] > key) last--;
            if (last >= 0 && page[last * EntryWords] == key && page[last * EntryWords + word] >= goal) high = middle;
            else low = middle + 1;
        }

        if (low > high) return null;
        run.Read(low, page);
        for (int at = 0; at < run.EntriesCount(low) * EntryWords; at += EntryWords)
        {
            if (page[at] != key || page[at + word] < goal) continue;
            return new BalanceMark { Account = (uint)(key >> 32), Currency = (uint)key, Number = page[at + NumberWord], Sequence = page[at + SequenceWord], TimeMicros = (long)page[at + TimeWord] };
        }

        return null;
    }

    public void Dispose() => _runs.Dispose();
}
