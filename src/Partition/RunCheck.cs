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
    readonly IJournalStore _store;
    readonly List<string> _failures;
    readonly List<Run> _ids;
    readonly List<Run> _marks;

    // Of the ids, those that find each other: with hashes of one seed, from the first event on.
    readonly List<Run> _chain;
    readonly ulong _covered;
    readonly long _seed;
    readonly Sums _sumsOfIds;
    readonly Sums _sumsOfMarks;

    // What no run has.
    readonly List<RunEntry> _rest = [];
    ulong _seen;

    /// <param name="failures">Gets a line for everything that is not as it must be.</param>
    public RunCheck(IJournalStore store, List<string> failures)
    {
        (_store, _failures) = (store, failures);
        _ids = Open(OldIds.Folder, OldIds.EntryWords);
        _marks = Open(History.Folder, History.EntryWords);
        _chain = RunSet.Best(_ids);
        if (_chain.Count > 0) (_covered, _seed) = (_chain[^1].Header.To, _chain[0].Header.Seed);
        // Of another seed: a take-over deletes them.
        foreach (Run run in _ids.Where(run => run.Header.Seed != _seed).ToArray())
        {
            _ids.Remove(run);
            run.Leave();
        }

        (_sumsOfIds, _sumsOfMarks) = (new Sums(_ids), new Sums(_marks));
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

    void Fail(string name, string what) => _failures.Add($"{name} {what}. It is made again from the journal: delete it.");

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
            if (generation[i].Sequence > _covered) _rest.Add(entry);
        }

        Span<ulong> mark = stackalloc ulong[History.EntryWords];
        for (int i = 0; i < generation.MarksCount; i++)
        {
            History.Write(generation.Mark(i), mark);
            _sumsOfMarks.Add(generation.Mark(i).Sequence, mark);
        }
    }

    /// <summary>After the last event.</summary>
    /// <exception cref="JournalDamagedException">The journal cannot be read any more.</exception>
    public void Finish(State state)
    {
        See(state.Generations);
        See(state.Generations.All[^1]);
        foreach (Run run in _ids) Compare(run, _sumsOfIds, state.LastSequence, isId: true);
        foreach (Run run in _marks) Compare(run, _sumsOfMarks, state.LastSequence, isId: false);
        if (_failures.Count == 0) CheckOnce();
    }

    void Compare(Run run, Sums sums, ulong lastSequence, bool isId)
    {
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
            RunSet.Visit([run], (int)run.Header.EntryWords, (_, entry) =>
            {
                count++;
                sum += Sums.Of(entry);
                RunEntry one = new(entry[0], entry[1]);
                isSorted &= before.CompareTo(one) <= 0;
                before = one;
                if (isId) isInFilter &= run.Filter?.MayHave(OldIds.HashIn(one)) == true;
            }, static () => { });
        }
        catch (IOException e) when (e is RunDamagedException || !IsThere(run.Name))
        {
            if (IsThere(run.Name)) Fail(run.Name, $"is damaged ({e.Message})");
            return;
        }

        if ((count, sum) != sums.Between(run.Header.From, run.Header.To)) Fail(run.Name, $"differs from the replay of the events after {run.Header.From}, up to {run.Header.To}");
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
        RunSet.Visit(_chain, OldIds.EntryWords, (_, entry) =>
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
                if (OldIds.AreAlike(other, one)) pairs.Add((Math.Min(OldIds.SequenceIn(other), OldIds.SequenceIn(one)), Math.Max(OldIds.SequenceIn(other), OldIds.SequenceIn(one))));
            }

            alike.Add(one);
        }
    }

    public void Dispose()
    {
        foreach (Run run in _ids.Concat(_marks)) run.Leave();
    }

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

        public (long Count, ulong Sum) Between(ulong from, ulong to)
        {
            (long Count, ulong Sum) first = UpTo(from), last = UpTo(to);
            return (last.Count - first.Count, last.Sum - first.Sum);
        }

        (long Count, ulong Sum) UpTo(ulong end) => Array.BinarySearch(_ends, end) is >= 0 and int index && index < _upTo.Count ? _upTo[index] : _all;
    }
}
