using System.IO.Hashing;
using System.Runtime.InteropServices;
using Purse.Journal;
using Purse.Simulation;

namespace Purse.Tests.Journal;

public sealed class RunTests
{
    const string Folder = "ids";
    const int EntriesPerRun = 600;
    const int FewRuns = 3;

    static ulong Hash(ulong n) => XxHash3.HashToUInt64(BitConverter.GetBytes(n)) >> 16;

    static RunEntry Entry(ulong n) => new((Hash(n) << 16) | (n & 0xff), n);

    static RunSet Open(IDisk disk, long life, List<string>? log = null)
    {
        RunSet runs = new(disk, 3, Folder, entryWords: 2, hasFilters: true, life, seed: 17);
        runs.Open((log ?? []).Add);
        return runs;
    }

    /// <summary>Entries n for the events n, in runs of so many.</summary>
    static void Fill(RunSet runs, ulong to, bool merge = true)
    {
        while (runs.Covered < to)
        {
            ulong from = runs.Covered;
            RunEntry[] entries = RunEntry.Sorted([.. Enumerable.Range((int)from + 1, EntriesPerRun).Select(n => Entry((ulong)n))]);
            runs.Add(from + EntriesPerRun, MemoryMarshal.Cast<RunEntry, ulong>(entries));
            while (merge && runs.TryMerge(static () => { }, CancellationToken.None))
            {
                // Until there is none.
            }
        }
    }

    static bool Has(RunSet runs, ulong n)
    {
        RunEntry wanted = Entry(n);
        Span<ulong> page = stackalloc ulong[Run.PageWords];
        foreach (Run run in runs.Runs)
        {
            if (!run.Filter!.MayHave(Hash(n))) continue;
            for (int number = run.FirstPage(wanted.First); run.MayHaveUpTo(number, wanted.First); number++)
            {
                run.Read(number, page);
                for (int i = 0; i < run.EntriesCount(number); i++)
                {
                    if (page[2 * i] == wanted.First && page[2 * i + 1] == wanted.Second) return true;
                }
            }
        }

        return false;
    }

    static void AssertWhole(RunSet runs, ulong to)
    {
        Assert.Equal((to, (long)to), (runs.Covered, runs.EntriesCount));
        for (ulong n = 1; n <= to; n += 7) Assert.True(Has(runs, n), $"{n} is not found");
        Assert.False(Has(runs, to + 1));
    }

    [Fact]
    public void A_filter_forgets_nothing_and_is_wrong_once_in_a_thousand_at_most_in_less_than_two_bytes()
    {
        const int Count = 2_000_000;
        ulong[] hashes = [.. Enumerable.Range(0, Count).Select(n => Hash((ulong)n)).Order()];
        RunFilter filter = new(Count);
        foreach (ulong hash in hashes) filter.Add(hash);
        Assert.DoesNotContain(hashes, hash => !filter.MayHave(hash));
        int wrong = Enumerable.Range(Count, Count).Count(n => filter.MayHave(Hash((ulong)n)));
        Assert.True(wrong <= Count / 1000, $"{wrong} of {Count} seemed to be there");
        // With the first words of the pages.
        double bytes = (double)filter.SizeBytes / Count + 8.0 / Run.EntriesPerPageOf(2);
        Assert.True(bytes < 2, $"{bytes} bytes an id");
    }

    [Fact]
    public void Entries_are_sorted_also_where_all_begin_alike()
    {
        Random random = new(1);
        foreach (int count in (int[])[0, 1, 2, 100, 5000])
        {
            RunEntry[] entries = [.. Enumerable.Range(0, count).Select(i => i % 3 == 0 ? new RunEntry(7ul << 48, (ulong)random.Next(100)) : new RunEntry((ulong)random.NextInt64() << 1, 1))];
            Assert.Equal(entries.Order(), RunEntry.Sorted(entries));
        }
    }

    [Fact]
    public void Merged_runs_have_every_entry_and_are_few()
    {
        FaultyDisk disk = new();
        RunSet runs = Open(disk, life: 1);
        Fill(runs, 100 * EntriesPerRun);
        AssertWhole(runs, 100 * EntriesPerRun);
        Assert.Equal((long[])[64 * EntriesPerRun, 16 * EntriesPerRun, 16 * EntriesPerRun, 4 * EntriesPerRun], runs.Runs.Select(run => run.Header.EntriesCount));
        Assert.Equal(runs.Runs.Select(run => run.Name), disk.List(Folder));

        using RunSet opened = Open(disk, life: 2);
        AssertWhole(opened, 100 * EntriesPerRun);
        Assert.Equal(17, opened.Seed);
    }

    /// <summary>Excludes: runs that came while others were merged are left alone between those, and there are ever more.</summary>
    [Fact]
    public void However_late_runs_are_merged_they_become_few()
    {
        Random random = new(1);
        using RunSet runs = Open(new FaultyDisk(), life: 1);
        for (int round = 0; round < 20; round++)
        {
            // Some at once; and some more while those are merged.
            ulong more = (ulong)random.Next(FewRuns) * EntriesPerRun;
            Fill(runs, runs.Covered + (ulong)random.Next(1, 2 * RunSet.FanOut) * EntriesPerRun, merge: false);
            while (runs.TryMerge(() => Fill(runs, runs.Covered + more, merge: false), CancellationToken.None)) more = 0;
            Assert.All(runs.Runs.CountBy(run => run.Header.Level), each => Assert.True(each.Value < RunSet.FanOut, $"{each.Value} runs were merged {each.Key} times: {string.Join(' ', runs.Runs.Select(run => run.Header.Level))}"));
            Assert.InRange(runs.Runs.Max(run => run.Header.Level), 0u, (uint)Math.Log(runs.Covered / EntriesPerRun, RunSet.FanOut));
        }

        AssertWhole(runs, runs.Covered);
    }

    /// <summary>Excludes: a file that a crash left half written is believed, or takes another one with it.</summary>
    [Fact]
    public void A_power_cut_leaves_whole_runs_from_the_first_event_on()
    {
        for (int seed = 0; seed < 40; seed++)
        {
            FaultyDisk disk = new() { FailWriteIn = 1 + seed, FailingWriteIsTorn = seed % 2 == 0 };
            RunSet runs = Open(disk, life: 1);
            try
            {
                Fill(runs, 30 * EntriesPerRun);
            }
            catch (IOException)
            {
                // The crash.
            }

            RunSet opened = Open(disk.AfterPowerCut(seed), life: 2);
            AssertWhole(opened, opened.Covered);
            Assert.True(opened.Covered >= runs.Covered, $"seed {seed}: {runs.Covered} was covered, and {opened.Covered} after the power cut");
            Fill(opened, 40 * EntriesPerRun);
            AssertWhole(opened, 40 * EntriesPerRun);
        }
    }

    [Fact]
    public void What_is_damaged_is_not_believed()
    {
        FaultyDisk disk = new();
        Fill(Open(disk, life: 1), 3 * EntriesPerRun, merge: false);
        string second = disk.List(Folder)[1];
        long length = disk.Bytes(second).Length;

        // Pages are looked at when they are read, all else when the file is opened.
        foreach (long offset in (long[])[3 * Run.PageBytes, length - RunHeader.SizeBytes - 1, length - RunHeader.SizeBytes, length - 1])
        {
            FaultyDisk damaged = disk.Copy();
            damaged.Flip(second, offset);
            AssertEndsBefore(damaged);
        }

        foreach (long left in (long[])[0, 100, length - 1])
        {
            FaultyDisk damaged = disk.Copy();
            damaged.Cut(second, left);
            AssertEndsBefore(damaged);
        }

        FaultyDisk lost = disk.Copy();
        lost.Delete(second);
        AssertEndsBefore(lost);

        FaultyDisk page = disk.Copy();
        page.Flip(second, 100);
        using RunSet opened = Open(page, life: 2);
        Run run = opened.Runs[1];
        RunDamagedException damage = Assert.Throws<RunDamagedException>(() => run.Read(0, new ulong[Run.PageWords]));
        Assert.Equal(second, damage.Name);

        static void AssertEndsBefore(FaultyDisk damaged)
        {
            List<string> log = [];
            using RunSet opened = Open(damaged, life: 2, log);
            AssertWhole(opened, EntriesPerRun);
            // What is of no use is gone, and made again.
            Assert.Single(damaged.List(Folder));
            Fill(opened, 3 * EntriesPerRun);
            AssertWhole(opened, 3 * EntriesPerRun);
        }
    }

    [Fact]
    public void Whoever_reads_a_run_reads_on_while_it_is_merged()
    {
        FaultyDisk disk = new();
        RunSet runs = Open(disk, life: 1);
        Fill(runs, 4 * EntriesPerRun, merge: false);
        Run first = runs.Runs[0];
        Assert.True(first.TryEnter());
        Assert.True(runs.TryMerge(static () => { }, CancellationToken.None));
        first.Read(0, new ulong[Run.PageWords]);
        Assert.True(disk.Exists(first.Name));
        first.Leave();
        Assert.False(first.TryEnter());
        Assert.False(disk.Exists(first.Name));
        AssertWhole(runs, 4 * EntriesPerRun);
    }

    /// <summary>Excludes: a writer that was deposed, and does not know, takes its successor's files away or puts others in their place.</summary>
    [Fact]
    public void A_deposed_writer_harms_no_run_of_its_successor()
    {
        FaultyDisk disk = new();
        RunSet deposed = Open(disk, life: 1);
        Fill(deposed, 4 * EntriesPerRun, merge: false);
        using RunSet successor = Open(disk, life: 2);
        Assert.Throws<FencedException>(() => deposed.TryMerge(static () => throw new FencedException("deposed"), CancellationToken.None));
        Fill(deposed, 6 * EntriesPerRun, merge: false);
        Fill(successor, 6 * EntriesPerRun);
        AssertWhole(successor, 6 * EntriesPerRun);
        using RunSet next = Open(disk, life: 3);
        AssertWhole(next, 6 * EntriesPerRun);
    }
}
