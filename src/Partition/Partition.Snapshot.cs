using Purse.Journal;
using Purse.Ledger;

namespace Purse.Partitions;

public sealed partial class Partition
{
    /// <summary>
    /// A snapshot never stops the writer and never copies its state: a task of its own takes the snapshot before, applies the events
    /// since, and writes what comes out. So each one is also a replay that was compared with every event's own figures.
    /// </summary>
    void MaybeSnapshot(Serving serving)
    {
        if (serving.Core.FlushedSequence - serving.SnapshotSequence < _options.EventsPerSnapshot) return;
        if (serving.Snapshotting is { IsCompleted: false }) return;
        // It could not leave out yet what has to be in runs first.
        if (serving.Core.State.Generations.BoundaryAt(serving.Core.FlushedSequence) > serving.Derived.Covered) return;
        serving.Snapshotting = Task.Factory.StartNew(
            () =>
            {
                try
                {
                    serving.SnapshotSequence = SnapshotBeside(_store, PartitionsCount, serving.Journal, Random.Shared.NextInt64(), _log, serving.Derived, _options.EventsPerGeneration);
                }
                catch (Exception e) when (e is InvariantBrokenException or JournalDamagedException or InvalidDataException)
                {
                    // The journal does not follow from itself: nothing may be answered from it.
                    serving.JournalFault = e;
                    _queue.Wake();
                }
                catch (IOException e)
                {
                    _log($"Partition {Number}: no snapshot was made: {e.Message}");
                    serving.SnapshotSequence = serving.Core.FlushedSequence;
                }
            },
            CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);
    }

    /// <returns>Where the newest snapshot ends now.</returns>
    public static ulong SnapshotBeside(
        IJournalStore store, int partitionsCount, JournalWriter journal, long tableSeed, Action<string> log, Derived derived, ulong eventsPerGeneration = State.EventsPerGeneration)
    {
        Snapshots snapshots = new(store.Files, store.Partition);
        SnapshotHeader before = default;
        StateMachine machine = new(new State(tableSeed, store.Partition, partitionsCount, eventsPerGeneration));
        if (snapshots.List().LastOrDefault() is string name && TryReadSnapshot(snapshots, name, partitionsCount, tableSeed, log, out before, eventsPerGeneration) is StateMachine read) machine = read;

        // Only up to what a later durable block vouches for: a snapshot never speaks of more than the journal can prove.
        ulong marked = Injected.Is(PartitionDefect.SnapshotTooFar) ? journal.LastNumber : journal.MarkedNumber;
        using JournalReader reader = before.Sequence == 0 ? store.Read(checkMerkleRoots: false) : journal.ReadAfter(before.Sequence);
        ulong number = 0;
        Hash256 hash = default;
        while (reader.LastNumber < marked && reader.TryReadNext(out Block block))
        {
            Apply(block, machine);
            machine.State.Generations.Forget(machine.State.LastSequence);
            if (block.Header.RecordsCount > 0) (number, hash) = (reader.LastNumber, reader.LastHash);
        }

        // What it leaves out must be in runs, or it is of no use.
        if (number == 0 || machine.State.Generations.Forgotten > derived.Covered) return before.Sequence;
        snapshots.Write(machine.State.LastSequence, number, hash, machine.State.Write);
        return machine.State.LastSequence;
    }

    /// <summary>Everything is durable and answered: marks it so, and leaves a snapshot for a quick start.</summary>
    void Stop(Serving serving)
    {
        Await(serving.Snapshotting);
        EndRuns(serving);
        lock (_journalLock)
        {
            // The journal's thread begins no other one while it waits for the lock.
            Await(serving.Allocating);
            try
            {
                End(_store, serving.Journal, serving.Core, serving.SnapshotSequence, serving.Derived);
            }
            catch (IOException e)
            {
                // Nothing is lost: the next start replays more.
                _log($"Partition {Number}: stopped without a snapshot: {e.Message}");
            }

            // What waits for a commit under way is answered by whoever serves the partition next.
            serving.Core.Abandon();
            serving.JournalFault = new IOException("The partition was stopped.");
            serving.Journal.Dispose();
            serving.Readers.Dispose();
            serving.Derived.Dispose();
        }
    }

    /// <summary>The last block of a life, and a snapshot where there is news since the last one.</summary>
    public static void End(IJournalStore store, JournalWriter journal, PartitionCore core, ulong snapshotSequence, Derived derived)
    {
        // Its time binds the next life: no block gets one that an answer about the past has spoken of.
        journal.AppendMark(Injected.Is(PartitionDefect.PastForgottenAtStop) ? 0 : core.AnsweredTimeMicros);
        journal.Flush();
        State state = core.State;
        Check.That(state.LastSequence == journal.FlushedSequence, "a snapshot speaks only of what is durable");
        derived.WriteDue(state.Generations, journal.MarkedSequence);
        if (state.LastSequence > snapshotSequence) new Snapshots(store.Files, state.Partition).Write(state.LastSequence, journal.LastRecordsNumber, journal.LastRecordsHash, state.Write);
    }
}
