using System.Collections.Concurrent;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;
using Purse.Simulation;
using Purse.Tests.Ledger;

namespace Purse.Tests.Partitions;

/// <summary>Ids that left memory long ago count as those of a moment ago.</summary>
public sealed class OldIdsTests
{
    static readonly TimeSpan Patience = TimeSpan.FromSeconds(20);

    static readonly PartitionOptions Options = new() { RecoveryDelay = TimeSpan.FromMilliseconds(20), EventsPerBlockMax = 256, EventsPerGeneration = 50, EventsPerSnapshot = 300 };

    static readonly JournalOptions Journal = new() { SegmentSizeBytes = 4 * 1024 * 1024, ReserveBytes = 1024 * 1024 };

    readonly ConcurrentQueue<string> _log = new();

    Partition Start(FaultyDisk disk) => Partition.Start(new FileStore(disk, 0, Journal), 1, Options, TimeProvider.System, _log.Enqueue);

    static async Task<Decision[]> ExecuteAsync(Partition partition, params Command[] commands)
    {
        CommandRequest request = new(commands.Length) { Count = commands.Length };
        using CancellationTokenSource limit = new(Patience);
        while (true)
        {
            commands.CopyTo(request.Commands, 0);
            RequestStatus status = await partition.SubmitAsync(request, Patience);
            if (status == RequestStatus.Answered) return [.. request.Decisions];
            // It recovers.
            Assert.Contains(status, (RequestStatus[])[RequestStatus.Unavailable, RequestStatus.UnavailableUnknown]);
            await Task.Delay(5, limit.Token);
        }
    }

    static async Task<Decision[]> DoneAsync(Partition partition, params Command[] commands)
    {
        Decision[] decisions = await ExecuteAsync(partition, commands);
        Assert.All(decisions, decision => Assert.Equal(Outcome.Done, decision.Outcome));
        return decisions;
    }

    /// <summary>Two accounts, and so many transfers, by their ids from 1 on.</summary>
    static async Task<Decision[]> FillAsync(Partition partition, int count)
    {
        await DoneAsync(partition, TestLedger.Change(CommandKind.OpenAccount, "alice"), TestLedger.Change(CommandKind.OpenAccount, "bob"));
        List<Decision> all = [];
        for (int from = 1; from <= count; from += 20) all.AddRange(await DoneAsync(partition, [.. Enumerable.Range(from, 20).Select(Transfer)]));
        return [.. all];
    }

    static Command Transfer(int id) => TestLedger.Transfer((UInt128)id, "@world", "alice", "1.00");

    /// <summary>How many ids are in runs, once all that can be is.</summary>
    static async Task<ulong> ForgottenAsync(Partition partition, ulong atLeast)
    {
        using CancellationTokenSource limit = new(Patience);
        ReadRequest<ulong> read;
        do
        {
            await Task.Delay(5, limit.Token);
            Assert.Equal(RequestStatus.Answered, await partition.SubmitAsync(read = new ReadRequest<ulong>((State state) => state.Generations.Forgotten), Patience));
        }
        while (read.Result < atLeast);
        return read.Result;
    }

    /// <summary>Forty runs become few, beside the writer: fewer than <see cref="RunSet.FanOut"/> on each of three levels.</summary>
    static async Task MergedAsync(FaultyDisk disk, string folder)
    {
        using CancellationTokenSource limit = new(Patience);
        while (disk.List(folder).Count is not (>= 1 and <= 3 * (RunSet.FanOut - 1))) await Task.Delay(5, limit.Token);
    }

    static async Task AssertDuplicatesAsync(Partition partition, Decision[] firsts)
    {
        for (int from = 0; from < firsts.Length; from += 100)
        {
            Command[] again = [.. Enumerable.Range(from + 1, Math.Min(100, firsts.Length - from)).Select(Transfer)];
            Decision[] decisions = await ExecuteAsync(partition, again);
            Assert.Equal(firsts.Skip(from).Take(again.Length).Select(first => (Outcome.Duplicate, first.Sequence)), decisions.Select(one => (one.Outcome, one.Sequence)));
        }
    }

    [Fact]
    public async Task An_id_is_a_duplicate_for_ever_also_after_a_restart_and_without_its_files()
    {
        FaultyDisk disk = new();
        Decision[] firsts;
        await using (Partition partition = Start(disk))
        {
            firsts = await FillAsync(partition, 1000);
            Assert.True(await ForgottenAsync(partition, 1900) >= 1900);
            await AssertDuplicatesAsync(partition, firsts);
            await DoneAsync(partition, Transfer(1001));
            await MergedAsync(disk, OldIds.Folder);
        }

        FaultyDisk without = disk.Copy(), neither = disk.Copy();
        foreach (string name in without.List(OldIds.Folder)) without.Delete(name);
        foreach (string name in neither.List(OldIds.Folder).Concat(neither.List("snapshots"))) neither.Delete(name);
        foreach (FaultyDisk each in new[] { disk, without, neither })
        {
            await using Partition again = Start(each);
            await ForgottenAsync(again, 1900);
            await AssertDuplicatesAsync(again, firsts);
            await DoneAsync(again, Transfer(1002));
        }
    }

    /// <summary>Excludes: a page of a run that is not what was written is believed, and an id with it forgotten.</summary>
    [Fact]
    public async Task A_damaged_run_is_made_again_before_anything_is_answered_from_it()
    {
        FaultyDisk disk = new();
        await using Partition partition = Start(disk);
        Decision[] firsts = await FillAsync(partition, 400);
        await ForgottenAsync(partition, 700);
        for (int round = 0; round < 3; round++)
        {
            disk.Flip(disk.List(OldIds.Folder)[0], 8 * round);
            await AssertDuplicatesAsync(partition, firsts);
            await ForgottenAsync(partition, 700);
        }

        Assert.Contains(_log, line => line.Contains("is not what was written", StringComparison.Ordinal));
    }

    [Fact]
    public async Task Old_originals_are_captured_voided_and_reversed_by_their_ids()
    {
        FaultyDisk disk = new();
        await using Partition partition = Start(disk);
        await FillAsync(partition, 20);
        Command[] holds = [.. Enumerable.Range(501, 3).Select(id => TestLedger.Transfer((UInt128)id, "alice", "bob", "1.00") with { Pending = true })];
        Decision[] held = await DoneAsync(partition, holds);
        await DoneAsync(partition, [.. Enumerable.Range(1001, 300).Select(Transfer)]);
        await ForgottenAsync(partition, 600);

        Command capture = new() { Kind = CommandKind.Capture, TransactionId = 601, OriginalId = 501 };
        Command here = new() { Kind = CommandKind.Void, TransactionId = 602, OriginalId = 502, Account = AccountName.Parse("alice") };
        Command elsewhere = new() { Kind = CommandKind.Void, TransactionId = 603, OriginalId = 503, Account = AccountName.Parse("bob") };
        await DoneAsync(partition, capture, here);
        Assert.Equal(Outcome.TransferNotFound, (await ExecuteAsync(partition, elsewhere))[0].Outcome);
        Decision[] reversed = await DoneAsync(partition, await ReversalAsync(partition, 604, 1));
        await DoneAsync(partition, [.. Enumerable.Range(2001, 300).Select(Transfer)]);
        await ForgottenAsync(partition, 1200);
        Assert.All(await ExecuteAsync(partition, capture, here, await ReversalAsync(partition, 604, 1)), decision => Assert.Equal(Outcome.Duplicate, decision.Outcome));
        Assert.NotEqual(held[0].Sequence, reversed[0].Sequence);
    }

    /// <summary>As the server does: the original is looked up first, and read from the journal.</summary>
    static async Task<Command> ReversalAsync(Partition partition, UInt128 id, UInt128 original)
    {
        Command command = new() { Kind = CommandKind.Reverse, TransactionId = id, OriginalId = original };
        ReadRequest<ulong> find = new((State state) => StateMachine.FindOriginalOf(state, command, out ulong sequence, out _, out _) == Outcome.Done ? sequence : 0) { About = command };
        Assert.Equal(RequestStatus.Answered, await partition.SubmitAsync(find, Patience));
        return command with { Details = new CommandDetails { Original = partition.Readers!.ReadOriginal(find.Result) } };
    }

    [Fact]
    public async Task An_old_id_that_many_homes_used_is_found_in_each()
    {
        const int Homes = 150;
        FaultyDisk disk = new();
        await using Partition partition = Start(disk);
        Command[] deposits = [.. Enumerable.Range(0, Homes).Select(home => TestLedger.Transfer(7, "@world", $"a{home}", "1.00"))];
        await DoneAsync(partition, [.. Enumerable.Range(0, Homes).Select(home => TestLedger.Change(CommandKind.OpenAccount, $"a{home}"))]);
        Decision[] firsts = await DoneAsync(partition, deposits);
        await FillAsync(partition, 100);
        await ForgottenAsync(partition, 500);
        Assert.Equal(firsts.Select(first => (Outcome.Duplicate, first.Sequence)), (await ExecuteAsync(partition, deposits)).Select(one => (one.Outcome, one.Sequence)));
        await DoneAsync(partition, TestLedger.Transfer(7, "@world", "alice", "1.00") with { TransactionId = 8000 }, TestLedger.Transfer(7, "@world", "bob", "1.00"));
        Decision[] ambiguous = await ExecuteAsync(partition, new Command { Kind = CommandKind.Void, TransactionId = 9000, OriginalId = 7 }, new Command { Kind = CommandKind.Void, TransactionId = 7, OriginalId = 1 });
        Assert.All(ambiguous, decision => Assert.Equal(Outcome.TransferAmbiguous, decision.Outcome));
    }

    /// <summary>Excludes: a history that is walked from its end after a restart.</summary>
    [Fact]
    public async Task Any_event_of_a_long_life_is_near_a_mark_also_after_a_restart()
    {
        FaultyDisk disk = new();
        Decision[] firsts;
        await using (Partition partition = Start(disk))
        {
            firsts = await FillAsync(partition, 1000);
            await ForgottenAsync(partition, 1900);
            await AssertHistoryAsync(partition, firsts);
        }

        await using Partition again = Start(disk);
        await AssertHistoryAsync(again, firsts);
        await MergedAsync(disk, History.Folder);
    }

    static async Task AssertHistoryAsync(Partition partition, Decision[] firsts)
    {
        ReadRequest<Balance> read = new((State state) => state.Balance(state.Names.Find(AccountName.Parse("alice")), state.TryCurrency(CurrencyCode.Parse("USD"), out uint usd, out _) ? usd : 0));
        Assert.Equal(RequestStatus.Answered, await partition.SubmitAsync(read, Patience));
        Assert.Equal((ulong)firsts.Length, read.Result.EventsCount);
        EventReaders readers = partition.Readers!;
        for (int i = 0; i < firsts.Length; i++)
        {
            // The credit beside its debit; a block has one time.
            ulong sequence = firsts[i].LastSequence, lastOfBlock = (ulong)Array.FindLastIndex(firsts, one => one.TimeMicros == firsts[i].TimeMicros) + 1;
            Assert.Equal(sequence, readers.History.Find(readers, read.Result, (ulong)i + 1, default));
            Assert.Equal(lastOfBlock, readers.History.LastAtOrBefore(readers, read.Result, firsts[i].TimeMicros, default).Number);
            Assert.Equal(((ulong)i + 1, sequence), readers.History.LastAtOrBeforeSequence(readers, read.Result, sequence, default));
        }

        Assert.Equal((0ul, 0ul), readers.History.LastAtOrBefore(readers, read.Result, firsts[0].TimeMicros - 1, default));
        Assert.Equal((0ul, 0ul), readers.History.LastAtOrBeforeSequence(readers, read.Result, firsts[0].Sequence - 1, default));
    }

    [Fact]
    public async Task A_snapshot_has_the_ids_of_its_last_generation_only()
    {
        FaultyDisk disk = new();
        await using (Partition partition = Start(disk)) await FillAsync(partition, 1000);
        StateMachine replayed = new(new State(1, eventsPerGeneration: Options.EventsPerGeneration));
        using JournalReader reader = new FileJournalReader(disk, 0, checkMerkleRoots: true);
        while (reader.TryReadNext(out Block block)) Partition.Apply(block, replayed);
        byte[] whole = TestLedger.Bytes(replayed.State);
        Assert.True(whole.Length < 6000, $"{whole.Length} bytes");
        replayed.State.Generations.Forget(replayed.State.LastSequence);
        Assert.Equal(whole, TestLedger.Bytes(replayed.State));
        Assert.Equal(1000ul, replayed.State.Ids.Count);
    }

    /// <summary>What <c>purse verify</c> finds of the runs.</summary>
    /// <param name="meanwhile">Done once all was replayed.</param>
    static List<string> Verify(FaultyDisk disk, Action? meanwhile = null)
    {
        List<string> failures = [];
        FileStore store = new(disk, 0, Journal);
        StateMachine machine = new(new State(tableSeed: 5, eventsPerGeneration: Options.EventsPerGeneration));
        using RunCheck check = new(store, failures);
        using JournalReader reader = store.Read(checkMerkleRoots: false);
        while (reader.TryReadNext(out Block block))
        {
            Partition.Apply(block, machine);
            check.See(machine.State.Generations);
            machine.State.Generations.Forget(machine.State.LastSequence);
        }

        meanwhile?.Invoke();
        Assert.Null(check.Finish(machine.State));
        return failures;
    }

    static string OnlyFailure(FaultyDisk disk) => Assert.Single(Verify(disk));

    /// <summary>All its runs become one, whose entries may be others.</summary>
    static void Rewrite(FaultyDisk disk, string folder, int entryWords, Func<List<ulong[]>, IEnumerable<ulong[]>> change)
    {
        List<Run> runs = RunSet.Best([.. disk.List(folder).Select(name => Run.TryOpen(disk, name, 0, entryWords)!)]);
        List<ulong[]> entries = [];
        RunSet.Visit(runs, entryWords, entry => entries.Add(entry.ToArray()), static () => { });
        foreach (string name in disk.List(folder)) disk.Delete(name);
        using RunSet rewritten = new(disk, 0, folder, entryWords, hasFilters: runs[0].Filter is not null, life: 99, runs[0].Header.Seed);
        rewritten.Add(runs[^1].Header.To, change(entries).SelectMany(entry => entry).ToArray());
    }

    /// <summary>Excludes: verified, and yet a run is not what the journal makes.</summary>
    [Fact]
    public async Task Whoever_verifies_finds_every_run_that_is_not_what_the_journal_makes()
    {
        FaultyDisk whole = new();
        await using (Partition partition = Start(whole))
        {
            await FillAsync(partition, 1000);
            await ForgottenAsync(partition, 1900);
        }

        Assert.Empty(Verify(whole));
        FaultyDisk without = whole.Copy();
        foreach (string name in (string[])[.. without.List(OldIds.Folder), .. without.List(History.Folder)]) without.Delete(name);
        Assert.Empty(Verify(without));

        foreach ((string folder, int words) in ((string, int)[])[(OldIds.Folder, 2), (History.Folder, 4)])
        {
            // All are merged into one while somebody verifies.
            FaultyDisk merged = whole.Copy();
            Assert.Empty(Verify(merged, () => Rewrite(merged, folder, words, entries => entries)));
            FaultyDisk rewritten = whole.Copy();
            Rewrite(rewritten, folder, words, entries => entries);
            Assert.Empty(Verify(rewritten));
            FaultyDisk less = whole.Copy();
            Rewrite(less, folder, words, entries => entries.Skip(1));
            Assert.Contains("differs from the replay", OnlyFailure(less));
            FaultyDisk other = whole.Copy();
            Rewrite(other, folder, words, entries => [.. entries[..^1], [.. entries[^1][..^1], entries[^1][^1] ^ 1]]);
            Assert.Contains("differs from the replay", OnlyFailure(other));
            FaultyDisk unsorted = whole.Copy();
            Rewrite(unsorted, folder, words, entries => entries.AsEnumerable().Reverse());
            Assert.Contains("is not sorted", OnlyFailure(unsorted));
            FaultyDisk flipped = whole.Copy();
            flipped.Flip(flipped.List(folder)[0], 100);
            Assert.Contains("is not what was written", OnlyFailure(flipped));
            FaultyDisk cut = whole.Copy();
            cut.Flip(cut.List(folder)[0], cut.Open(cut.List(folder)[0], writable: false).Length - 8);
            Assert.Contains("is damaged", OnlyFailure(cut));
        }
    }

    /// <summary>Excludes: verified, and yet an id was decided again long after it had left memory.</summary>
    [Fact]
    public async Task Whoever_verifies_finds_an_id_that_was_decided_twice_however_far_apart()
    {
        FaultyDisk disk = new();
        Decision[] firsts;
        await using (Partition partition = Start(disk))
        {
            firsts = await FillAsync(partition, 1000);
            await ForgottenAsync(partition, 1900);
        }

        Rewrite(disk, OldIds.Folder, 2, entries => entries.Where(entry => (entry[1] & ((1ul << 48) - 1)) != firsts[41].Sequence));
        Decision again;
        await using (Partition partition = Start(disk)) again = (await DoneAsync(partition, Transfer(42)))[0];
        Assert.Contains("differs from the replay", OnlyFailure(disk));
        Assert.True(again.Sequence > firsts[^1].Sequence);
        foreach (string name in disk.List(OldIds.Folder)) disk.Delete(name);
        Assert.Equal($"The id 42 was decided twice: it is in event {firsts[41].Sequence} and in event {again.Sequence}.", OnlyFailure(disk));
    }
}
