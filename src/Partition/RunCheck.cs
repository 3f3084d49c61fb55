using System.IO.Hashing;
using System.Runtime.InteropServices;
using Purse.Journal;
using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>
/// Holds the runs in a journal's store against a replay, for whoever verifies: every page, every entry, and that no id was decided twice, however far apart. It
/// changes no file, and works beside the writer: a run that was merged into another meanwhile is passed over.
/// </summary>
public sealed class RunCheck : IDisposable
{
    // Of 16 bytes each; whoever starts the server once has runs again.
    const int RestMax = 32_000_000;
    const int TriesMax = 5;

    readonly IJournalStore _store;
    readonly List<string> _failures;
    readonly Sums _sumsOfIds;
    readonly Sums _sumsOfMarks;
    List<Run> _ids = [];
    List<Run> _marks = [];

    // Of the ids, those that find each other: with hashes of one seed, from the first event on.
    readonly ulong _covered;
    readonly long _seed;

    // What no run has.
    readonly List<RunEntry> _rest = [];
    bool _isRestTooLong;
    bool _areIdsDamaged;
    ulong _seen;

    /// <param name="failures">Gets a line for everything that is not as it must be.</param>
    public RunCheck(IJournalStore store, List<string> failures)
    {
        (_store, _failures) = (store, failures);
        Open();
        if (RunSet.Best(_ids) is [.., Run last]) (_covered, _seed) = (last.Header.To, last.Header.Seed);
        (_sumsOfIds, _sumsOfMarks) = (new Sums(_ids), new Sums(_marks));
    }

    void Open()
    {
        Leave();
        _ids = Open(OldIds.Folder, OldIds.EntryWords);
        _marks = Open(History.Folder, History.EntryWords);
    }

    List<Run> Open(string folder, int entryWords)
    {
        List<Run> runs = [];
        foreach (string name in _store.Files.List(folder))
        {
            if (!RunSet.IsRun(name)) continue;
            try
            {
                if (Run.TryOpen(_store.Files, name, _store.Partition, entryWords) is Run run) runs.Add(run);
                else if (IsThere(name)) Fail(name, "is damaged");
            }
            catch (IOException) when (!IsThere(name))
            {
                // Merged, and so deleted.
            }
        }

        return runs;
    }

    bool IsThere(string name) => _store.Files.List(name[..name.IndexOf('/')]).Contains(name);

    void Fail(string name, string what)
    {
        string failure = $"{name} {what}. It is made again from the journal: delete it.";
        if (!_failures.Contains(failure)) _failures.Add(failure);
        _areIdsDamaged |= name.StartsWith(OldIds.Folder, StringComparison.Ordinal);
    }

    /// <summary>Called before a replay forgets what is full.</summary>
    public void See(Generations generations)
    {
        foreach (Generation generation in generations.Full(out _))
        {
            if (generation.To <= _seen) continue;
            See(generation);
            _seen = generation.To;
        }
    }

    void See(Generation generation)
    {
        for (int i = 0; i < generation.Count; i++)
        {
            RunEntry entry = OldIds.EntryOf(generation[i], _seed);
            _sumsOfIds.Add(generation[i].Sequence, MemoryMarshal.Cast<RunEntry, ulong>(new ReadOnlySpan<RunEntry>(in entry)));
            if (generation[i].Sequence > _covered && !_isRestTooLong) _rest.Add(entry);
        }

        if (_rest.Count > RestMax)
        {
            _isRestTooLong = true;
            _rest.Clear();
        }

        Span<ulong> mark = stackalloc ulong[History.EntryWords];
        for (int i = 0; i < generation.MarksCount; i++)
        {
            History.Write(generation.Mark(i), mark);
            _sumsOfMarks.Add(generation.Mark(i).Sequence, mark);
        }
    }

    /// <summary>After the last event.</summary>
    /// <returns>What could not be looked at, and why; null where all was.</returns>
    /// <exception cref="JournalDamagedException">The journal cannot be read any more.</exception>
    public string? Finish(State state)
    {
        See(state.Generations);
        See(state.Generations.All[^1]);
        for (int tries = 1; !TryCompareAll(state.LastSequence); tries++)
        {
            if (tries == TriesMax) return $"the runs of partition {_store.Partition} were merged while they were read, {TriesMax} times. Verify again when the server has less to do.";
            Open();
        }

        return _isRestTooLong ? $"partition {_store.Partition} has more than {RestMax} ids that are in no run: whether one was decided twice was only looked at within {State.EventsPerGeneration} events. A server that is started makes the runs again." : null;
    }

    /// <summary>False where one was merged and deleted meanwhile: what it became is to be looked at.</summary>
    bool TryCompareAll(ulong lastSequence)
    {
        try
        {
            foreach (Run run in _ids) Compare(run, isId: true, lastSequence);
            foreach (Run run in _marks) Compare(run, isId: false, lastSequence);
            if (!_areIdsDamaged && !_isRestTooLong) CheckOnce();
            return true;
        }
        catch (IOException) when (_ids.Concat(_marks).Any(run => !IsThere(run.Name)))
        {
            return false;
        }
    }

    void Compare(Run run, bool isId, ulong lastSequence)
    {
        Sums sums = isId ? _sumsOfIds : _sumsOfMarks;
        // Of another seed, which a take-over deletes; or written since.
        if ((isId && run.Header.Seed != _seed) || !sums.Knows(run)) return;
        if (run.Header.To > lastSequence)
        {
            _failures.Add($"journal_lost_tail: {run.Name} was made after event {run.Header.To}, but the journal ends at event {lastSequence}. Restore the journal from a copy.");
            return;
        }

        (long count, ulong sum) = (0, 0);
        bool isSorted = true, isInFilter = true;
        RunEntry before = default;
        try
        {
            RunSet.Visit([run], (int)run.Header.EntryWords, entry =>
            {
                count++;
                sum += Sums.Of(entry);
                RunEntry one = new(entry[0], entry[1]);
                isSorted &= before.CompareTo(one) <= 0;
                before = one;
                if (isId) isInFilter &= run.Filter?.MayHave(OldIds.HashIn(one)) == true;
            }, static () => { });
        }
        catch (RunDamagedException e) when (IsThere(run.Name))
        {
            Fail(run.Name, $"is damaged ({e.Message})");
            return;
        }

        if ((count, sum) != sums.Between(run)) Fail(run.Name, $"differs from the replay of the events after {run.Header.From}, up to {run.Header.To}");
        else if (!isSorted) Fail(run.Name, "is not sorted");
        else if (!isInFilter) Fail(run.Name, "has a filter that leaves out an entry");
    }

    /// <summary>Ids lie in the order of their hash in all runs, and so those that are alike come one after the other.</summary>
    void CheckOnce()
    {
        List<RunEntry> alike = [];
        List<(ulong First, ulong Second)> pairs = [];
        RunEntry[] rest = RunEntry.Sorted(CollectionsMarshal.AsSpan(_rest));
        int at = 0;
        RunSet.Visit(RunSet.Best(_ids), OldIds.EntryWords, entry =>
        {
            RunEntry one = new(entry[0], entry[1]);
            while (at < rest.Length && rest[at].CompareTo(one) < 0) Take(rest[at++]);
            Take(one);
        }, static () => { });
        while (at < rest.Length) Take(rest[at++]);
        if (pairs.Count == 0) return;

        // The same hash is not yet the same id.
        Dictionary<ulong, UInt128> ids = pairs.SelectMany(pair => (ulong[])[pair.First, pair.Second]).Distinct().ToDictionary(sequence => sequence, _ => default(UInt128));
        using JournalReader reader = _store.Read(checkMerkleRoots: false);
        while (reader.TryReadNext(out Block block))
        {
            ReadOnlySpan<Event> events = block.RecordsAs<Event>();
            for (int i = 0; i < events.Length; i++)
            {
                if (ids.ContainsKey(block.Header.FirstSequence + (ulong)i)) ids[block.Header.FirstSequence + (ulong)i] = events[i].TransactionId;
            }
        }

        foreach ((ulong first, ulong second) in pairs)
        {
            if (ids[first] == ids[second]) _failures.Add($"The id {ids[first]} was decided twice: it is in event {first} and in event {second}.");
        }

        void Take(in RunEntry one)
        {
            if (alike.Count > 0 && alike[0].First != one.First) alike.Clear();
            foreach (RunEntry other in alike)
            {
                (ulong a, ulong b) = (OldIds.SequenceIn(other), OldIds.SequenceIn(one));
                // The same event where a run was written since.
                if (a != b && OldIds.AreAlike(other, one)) pairs.Add((Math.Min(a, b), Math.Max(a, b)));
            }

            alike.Add(one);
        }
    }

    void Leave()
    {
        foreach (Run run in _ids.Concat(_marks)) run.Leave();
    }

    public void Dispose() => Leave();

    /// <summary>How many entries there are up to each event at which a run begins or ends, and a sum of all of them in which their order does not count.</summary>
    sealed class Sums(IEnumerable<Run> runs)
    {
        readonly ulong[] _ends = [.. runs.SelectMany(run => (ulong[])[run.Header.From, run.Header.To]).Distinct().Order()];
        readonly List<(long Count, ulong Sum)> _upTo = [];
        (long Count, ulong Sum) _all;

        public static ulong Of(ReadOnlySpan<ulong> entry) => XxHash3.HashToUInt64(MemoryMarshal.AsBytes(entry));

        /// <summary>In the order of the events.</summary>
        public void Add(ulong sequence, ReadOnlySpan<ulong> entry)
        {
            while (_upTo.Count < _ends.Length && _ends[_upTo.Count] < sequence) _upTo.Add(_all);
            _all = (_all.Count + 1, _all.Sum + Of(entry));
        }

        /// <summary>Whether it begins and ends where one does.</summary>
        public bool Knows(Run run) => Array.BinarySearch(_ends, run.Header.From) >= 0 && Array.BinarySearch(_ends, run.Header.To) >= 0;

        public (long Count, ulong Sum) Between(Run run)
        {
            (long Count, ulong Sum) first = UpTo(run.Header.From), last = UpTo(run.Header.To);
            return (last.Count - first.Count, last.Sum - first.Sum);
        }

        (long Count, ulong Sum) UpTo(ulong end) => Array.BinarySearch(_ends, end) is int index && index < _upTo.Count ? _upTo[index] : _all;
    }
}
