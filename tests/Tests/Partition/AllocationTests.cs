using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;
using Purse.Tests.Ledger;

namespace Purse.Tests.Partitions;

public sealed class AllocationTests
{
    const int Accounts = 1000, TransfersPerRequest = 1000;

    // With the deposits: up to where the ids of a generation begin a new chunk and double their table at once, and short of where they do next.
    const int WarmUpRequests = 49, Requests = 14;

    /// <summary>Excludes: garbage on the way of a transfer from the queue to its answer; what is remembered of it is in tables that are large enough for a while.</summary>
    [Fact]
    public void A_transfer_from_the_queue_to_its_answer_allocates_nothing()
    {
        using TemporaryFolder folder = new();
        FileStore store = new(new FileDisk(folder.Path), 0, new JournalOptions());
        Recovered recovered = Partition.Recover(store, 1, tableSeed: 42, static _ => { });
        using JournalWriter journal = recovered.Journal;
        using Derived derived = recovered.Derived;
        derived.Serve(recovered.Machine.State, static _ => default);
        PartitionCore core = new(recovered.Machine, journal.LastTimeMicros, search: derived.Ids.Search);
        RequestQueue queue = new(65_536);
        EventBatch batch = new(8192);
        CommandRequest request = new(TransfersPerRequest) { Count = TransfersPerRequest };
        string[] names = [.. Enumerable.Range(0, Accounts).Select(i => $"account-{i}")];
        for (int i = 0; i < Accounts; i++) request.Commands[i] = TestLedger.Change(CommandKind.OpenAccount, names[i]);
        Run();
        for (int i = 0; i < Accounts; i++) request.Commands[i] = TestLedger.Transfer(1, "@world", names[i], "1000.00");
        Run();

        UInt128 id = 1;
        Command[] transfers = [.. Enumerable.Range(0, TransfersPerRequest).Select(i => TestLedger.Transfer(0, names[i], names[(i * 7 + 1) % Accounts], "0.01"))];
        for (int i = 0; i < WarmUpRequests; i++) RunTransfers();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < Requests; i++) RunTransfers();
        long allocatedBytes = GC.GetAllocatedBytesForCurrentThread() - before;
        // A block may leave a little; whatever a transfer left would be at least 24 bytes.
        Assert.True(allocatedBytes < 4 * Requests * TransfersPerRequest, $"{Requests * TransfersPerRequest} transfers allocated {allocatedBytes} bytes");

        void RunTransfers()
        {
            transfers.CopyTo(request.Commands, 0);
            foreach (ref Command command in request.Commands.AsSpan()) command.TransactionId = ++id;
            Run();
            foreach (ref readonly Decision decision in request.Decisions.AsSpan())
            {
                if (decision.Outcome != Outcome.Done) Assert.Equal(Outcome.Done, decision.Outcome);
            }
        }

        void Run()
        {
            ValueTask<RequestStatus> answer = request.Begin(TimeSpan.FromMinutes(1));
            derived.Ids.Search(request);
            Assert.Null(queue.TryAdd(request));
            while (!queue.IsEmpty)
            {
                core.Fill(batch, nowMicros: 1_000_000, queue, hasRoom: true, hasReserve: true);
                journal.Append(journal.Epoch, batch.FirstSequence, batch.TimeMicros, batch.Count, Event.SizeBytes, batch.EventBytes, batch.Attachments, batch.Erasable);
            }

            journal.Flush();
            Partition.Answer(core, journal, journal.FlushedSequence);
            Assert.Equal(RequestStatus.Answered, answer.Result);
        }
    }
}
