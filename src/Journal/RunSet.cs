using System.Globalization;

namespace Purse.Journal;

/// <summary>
/// Runs that together have all entries of a partition's events up to <see cref="Covered"/>. New ones are added at the end; where
/// <see cref="FanOut"/> neighbours were merged equally often they become one, so that fewer than that are left of each kind, however late it is done. One thread at a time adds, one merges; any
/// number reads beside them.
/// </summary>
/// <remarks>
/// All of it is derived from the journal. Names say what a file covers, and which life wrote it: a writer that was deposed, and does not know yet, writes
/// over nothing that its successor reads.
/// </remarks>
/// <param name="life">Unlike that of any other life of any writer.</param>
public sealed class RunSet(IDisk disk, int partition, string folder, int entryWords, bool hasFilters, long life, long seed) : IDisposable
{
    public const int FanOut = 4;

    const string Extension = ".run";

    // Replaced under the lock, never changed: others read it.
    Run[] _runs = [];
    readonly Lock _lock = new();

    /// <summary>In the order of what they cover. A run that is not there any more has its place in a later answer.</summary>
    public Run[] Runs => Volatile.Read(ref _runs);

    /// <summary>The last event whose entries are in runs.</summary>
    public ulong Covered => Runs is [.., Run last] ? last.Header.To : 0;

    /// <summary>Of the hashes in them. Secret, so that nobody can choose ids that fall together; chosen once, and found again in every file.</summary>
    public long Seed { get; private set; } = seed;

    public long MemoryBytes => Runs.Sum(run => run.MemoryBytes);

    public long EntriesCount => Runs.Sum(run => run.Header.EntriesCount);

    /// <summary>Finds the files that cover most from the first event on. All others are of no use: what was cut short, was merged, or is damaged.</summary>
    public void Open(Action<string> log)
    {
        List<Run> whole = [];
        List<string> names = [.. disk.List(folder)];
        try
        {
            foreach (string name in names)
            {
                if (!IsRun(name)) continue;
                if (Run.TryOpen(disk, name, partition, entryWords) is Run run) whole.Add(run);
                else log($"Partition {partition}: {name} is not whole: it is made again from the journal.");
            }

            List<Run> best = Best(whole);
            foreach (string name in names.Except(best.Select(run => run.Name), StringComparer.Ordinal)) disk.Delete(name);
            foreach (Run useless in whole.Except(best)) useless.Leave();
            if (best.Count > 0) Seed = best[0].Header.Seed;
            Volatile.Write(ref _runs, [.. best]);
        }
        catch
        {
            foreach (Run run in whole) run.Leave();
            throw;
        }
    }

    /// <summary>Those that cover most from the first event on, with hashes of one seed.</summary>
    public static List<Run> Best(IReadOnlyList<Run> runs)
    {
        List<Run> best = [];
        foreach (long written in runs.Select(run => run.Header.Seed).Distinct())
        {
            List<Run> chain = [];
            for (ulong at = 0; runs.Where(run => run.Header.Seed == written && run.Header.From == at && run.Header.To > at).MaxBy(run => run.Header.To) is Run next; at = next.Header.To) chain.Add(next);
            if (chain.Count > 0 && (best.Count == 0 || chain[^1].Header.To > best[^1].Header.To)) best = chain;
        }

        return best;
    }

    public static bool IsRun(string name) => name.EndsWith(Extension, StringComparison.Ordinal);

    string Name(ulong from, ulong to) => string.Create(CultureInfo.InvariantCulture, $"{folder}/{from:D20}-{to:D20}-{life:x16}{Extension}");

    /// <summary>Adds the entries of the events after <see cref="Covered"/>, up to and with another. They come sorted, end to end.</summary>
    public void Add(ulong to, ReadOnlySpan<ulong> entries)
    {
        ulong from = Covered;
        if (to <= from) throw new ArgumentOutOfRangeException(nameof(to), to, "must be later than what is covered");
        using (RunWriter writer = NewWriter("adding", entries.Length / entryWords))
        {
            for (int at = 0; at < entries.Length; at += entryWords) writer.Add(entries.Slice(at, entryWords));
            writer.Finish(Name(from, to), NewHeader(from, to, level: 0));
        }

        Run added = Reopen(Name(from, to));
        lock (_lock) Volatile.Write(ref _runs, [.. _runs, added]);
    }

    public bool HasToMerge => FirstToMerge(Runs, 0, out _) >= 0;

    /// <summary>Merges neighbours where enough of them were merged equally often. False where there are none.</summary>
    /// <param name="mayDelete">Throws where another has taken over: what was merged is not deleted under its eyes.</param>
    public bool TryMerge(Action mayDelete, CancellationToken cancellation) => TryMerge(0, mayDelete, cancellation);

    bool TryMerge(int after, Action mayDelete, CancellationToken cancellation)
    {
        Run[] runs = Runs;
        int first = FirstToMerge(runs, after, out uint level);
        if (first < 0) return false;
        Run[] merged = runs[first..(first + FanOut)];
        (ulong from, ulong to) = (merged[0].Header.From, merged[^1].Header.To);
        // Others that are merged meanwhile begin elsewhere.
        using (RunWriter writer = NewWriter($"merging-{from:D20}", merged.Sum(run => run.Header.EntriesCount)))
        {
            Merge(merged, writer, first + FanOut, mayDelete, cancellation);
            writer.Finish(Name(from, to), NewHeader(from, to, level + 1));
        }

        Run one = Reopen(Name(from, to));
        // Others may have been added behind them since.
        lock (_lock) Volatile.Write(ref _runs, [.. _runs[..first], one, .. _runs[(first + FanOut)..]]);
        mayDelete();
        foreach (Run run in merged)
        {
            run.Closed = closed => disk.Delete(closed.Name);
            run.Leave();
        }

        return true;
    }

    /// <summary>The oldest <see cref="FanOut"/> of those that were merged equally often, and least of all.</summary>
    /// <param name="level">How often each of them was merged. One that was merged less often than one behind it counts as that one does: were it passed over, it would stay for ever.</param>
    static int FirstToMerge(Run[] runs, int after, out uint level)
    {
        level = 0;
        for (int alike = 0, first = runs.Length - 1; first >= after; first--)
        {
            if (runs[first].Header.Level > level)
            {
                if (alike >= FanOut) return first + 1;
                (alike, level) = (0, runs[first].Header.Level);
            }

            alike++;
            if (first == after && alike >= FanOut) return first;
        }

        return -1;
    }

    /// <param name="after">Runs from here on are merged meanwhile: a long merge must not let them pile up.</param>
    void Merge(Run[] runs, RunWriter writer, int after, Action mayDelete, CancellationToken cancellation) => Visit(
        runs,
        entryWords,
        writer.Add,
        () =>
        {
            cancellation.ThrowIfCancellationRequested();
            while (TryMerge(after, mayDelete, cancellation))
            {
                // Until there is none.
            }
        });

    public delegate void OnEntry(ReadOnlySpan<ulong> entry);

    /// <summary>Goes through all entries of runs, in the order of their first two words.</summary>
    /// <param name="onRead">Called now and then.</param>
    /// <exception cref="RunDamagedException">A page is not what was written.</exception>
    public static void Visit(IReadOnlyList<Run> runs, int entryWords, OnEntry onEntry, Action onRead)
    {
        Cursor[] cursors = [.. runs.Select(run => new Cursor(run, entryWords))];
        while (true)
        {
            Cursor? lowest = null;
            foreach (Cursor cursor in cursors)
            {
                if (!cursor.IsAtEnd && (lowest is null || cursor.Precedes(lowest))) lowest = cursor;
            }

            if (lowest is null) return;
            onEntry(lowest.Entry);
            if (lowest.MoveNext()) onRead();
        }
    }

    RunWriter NewWriter(string doing, long entriesCount) => new(disk, string.Create(CultureInfo.InvariantCulture, $"{folder}/{doing}-{life:x16}"), entryWords, entriesCount, hasFilters);

    RunHeader NewHeader(ulong from, ulong to, uint level) => new() { Partition = (uint)partition, From = from, To = to, Seed = Seed, Level = level };

    // What was written is read back, so that what is answered from is what lies there.
    Run Reopen(string name) => Run.TryOpen(disk, name, partition, entryWords) ?? throw new RunDamagedException($"{name} was written, and is not whole.", name);

    /// <summary>What is damaged is found no more by whoever opens the runs next, and made again. This set is over.</summary>
    public void Delete(RunDamagedException damage) => disk.Delete(damage.Name);

    /// <summary>Runs that speak of events which the journal does not have.</summary>
    public void DropAbove(ulong sequence)
    {
        int first = Array.FindIndex(_runs, run => run.Header.To > sequence);
        if (first < 0) return;
        Run[] dropped = _runs[first..];
        Volatile.Write(ref _runs, _runs[..first]);
        foreach (Run run in dropped)
        {
            disk.Delete(run.Name);
            run.Leave();
        }
    }

    public void Dispose()
    {
        Run[] runs = Runs;
        Volatile.Write(ref _runs, []);
        foreach (Run run in runs) run.Leave();
    }

    /// <summary>Goes through a run from its first entry to its last, many pages at a time.</summary>
    sealed class Cursor
    {
        const int PagesAtOnce = 64;

        readonly Run _run;
        readonly int _entryWords;
        readonly ulong[] _pages;
        int _nextPage;
        int _loadedPages;
        int _page;
        int _left;
        int _at;

        public Cursor(Run run, int entryWords)
        {
            (_run, _entryWords) = (run, entryWords);
            _pages = new ulong[Math.Min(PagesAtOnce, run.PagesCount) * Run.PageWords];
            Load();
        }

        public bool IsAtEnd { get; private set; }

        public ReadOnlySpan<ulong> Entry => _pages.AsSpan(_at, _entryWords);

        public bool Precedes(Cursor other)
        {
            (ulong own, ulong others) = (_pages[_at], other._pages[other._at]);
            return own != others ? own < others : _pages[_at + 1] < other._pages[other._at + 1];
        }

        /// <summary>True where it had to read.</summary>
        public bool MoveNext()
        {
            _at += _entryWords;
            if (--_left > 0) return false;
            if (++_page < _loadedPages)
            {
                BeginPage();
                return false;
            }

            Load();
            return true;
        }

        void Load()
        {
            _loadedPages = Math.Min(PagesAtOnce, _run.PagesCount - _nextPage);
            IsAtEnd = _loadedPages == 0;
            if (IsAtEnd) return;
            _run.Read(_nextPage, _loadedPages, _pages);
            _nextPage += _loadedPages;
            _page = 0;
            BeginPage();
        }

        void BeginPage()
        {
            _at = _page * Run.PageWords;
            _left = _run.EntriesCount(_nextPage - _loadedPages + _page);
        }
    }
}
