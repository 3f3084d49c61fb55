using System.Diagnostics;
using Purse.Journal;
using Purse.Ledger;

namespace Purse.Partitions;

public sealed partial class Partition
{
    /// <summary>
    /// A snapshot never stops the writer: a task of its own writes down what the state has now, while that goes on changing. Whether it is what the
    /// journal makes is asked later, at leisure (<see cref="AuditSlowly"/>).
    /// </summary>
    void TendSnapshots(Serving serving)
    {
        if (serving.SnapshotSequence > serving.AuditedSequence && serving.AuditingSequence < serving.SnapshotSequence && serving.Auditing is not { IsCompleted: false }) BeginAudit(serving);
        if (serving.Core.FlushedSequence - serving.SnapshotSequence < Math.Max(_options.EventsPerSnapshot, EventsPerBalance * (ulong)serving.Core.State.BalancesCount)) return;
        if (serving.Snapshotting is { IsCompleted: false } || Environment.TickCount64 < serving.NextSnapshotTicks) return;
        // It could not leave out yet what has to be in runs first.
        if (serving.Core.State.Generations.BoundaryAt(serving.Core.AppendedSequence) > serving.Derived.Covered) return;
        BeginSnapshot(serving);
    }

    /// <summary>
    /// A snapshot has every balance: where these are many it is made seldom, so that what it writes stays in proportion to what the journal does, and what a
    /// recovery replays to what it reads.
    /// </summary>
    const ulong EventsPerBalance = 4;

    void BeginSnapshot(Serving serving)
    {
        StateImage image = serving.Core.State.BeginImage();
        serving.Snapshotting = Beside(serving, () => Snapshot(serving, image), e =>
        {
            _log($"Partition {Number}: no snapshot was made: {e.Message}");
            serving.NextSnapshotTicks = Environment.TickCount64 + FullRetryMilliseconds;
        });
    }

    /// <summary>A full disk is not filled up again and again by half a file, nor the log by why.</summary>
    const int FullRetryMilliseconds = 60_000;

    void Snapshot(Serving serving, StateImage image)
    {
        using (image)
        {
            while (!TrySnapshot(_store, serving.Journal, image, serving.AuditedSequence, serving.AuditingSequence, serving.Ending.Token))
            {
                // Under load another block says so at once, and otherwise an empty one soon. Who stops makes a snapshot of all.
                if (serving.Ending.Token.WaitHandle.WaitOne(MarkLookMilliseconds)) return;
            }
        }

        serving.SnapshotSequence = image.LastSequence;
        _queue.Wake();
    }

    const int MarkLookMilliseconds = 5;

    /// <summary>Writes down the image, if the journal can prove already that all of it was durable: a snapshot never speaks of more.</summary>
    public static bool TrySnapshot(IJournalStore store, JournalWriter journal, StateImage image, ulong audited, ulong auditing, CancellationToken cancellation = default)
    {
        ulong marked = Injected.Is(PartitionDefect.SnapshotTooFar) ? journal.AppendedSequence : journal.MarkedSequence;
        if (marked < image.LastSequence) return false;
        using JournalReader end = journal.ReadAfter(image.LastSequence);
        Check.That(end.LastSequence == image.LastSequence, "a snapshot is made between two blocks");
        new Snapshots(store.Files, store.Partition, cancellation).Write(image.LastSequence, end.LastNumber, end.LastHash, image.Write, audited, auditing);
        return true;
    }

    void BeginAudit(Serving serving)
    {
        serving.AuditingSequence = serving.SnapshotSequence;
        serving.Auditing = Beside(serving, () => AuditSlowly(serving), e => _log($"Partition {Number}: its journal could not be replayed for an audit: {e.Message}"));
    }

    /// <summary>How much of one thread's time an audit takes while the writer is at work, at most.</summary>
    const int AuditPercent = 10;

    void AuditSlowly(Serving serving)
    {
        long started = Stopwatch.GetTimestamp();
        ulong to = serving.AuditingSequence;
        Audit(_store, PartitionsCount, serving.Journal, serving.AuditedSequence, to, Random.Shared.NextInt64(), _log, _options.EventsPerGeneration, () =>
        {
            serving.Ending.Token.ThrowIfCancellationRequested();
            TimeSpan worked = Stopwatch.GetElapsedTime(started);
            if (worked < TimeSpan.FromMilliseconds(1)) return;
            bool isBusy = !_queue.IsEmpty || IsFlushing(serving);
            if (isBusy) serving.Ending.Token.WaitHandle.WaitOne(worked * ((100 - AuditPercent) / AuditPercent));
            started = Stopwatch.GetTimestamp();
        }, serving.Ending.Token);
        serving.AuditedSequence = to;
        _queue.Wake();
        CollectLarge();
    }

    /// <summary>
    /// Replays the journal from one snapshot to the next, every event's own figures compared on the way, and compares what comes out with what was
    /// written. Where they differ, whatever was answered from the state may have been wrong.
    /// </summary>
    /// <param name="from">Where the snapshot before ends; 0 for the beginning, and so it is where that one is not there.</param>
    /// <param name="pause">Called after every block.</param>
    public static void Audit(
        IJournalStore store, int partitionsCount, JournalWriter journal, ulong from, ulong to, long tableSeed, Action<string> log, ulong eventsPerGeneration, Action pause, CancellationToken cancellation = default)
    {
        Snapshots snapshots = new(store.Files, store.Partition, cancellation);
        string name = Snapshots.NameOf(to);
        if (!snapshots.TryReadHeader(name, out SnapshotHeader header)) throw new IOException($"{name} is not whole.");
        ulong hash = snapshots.HashOf(hashed => snapshots.Read(name, header, written => written.CopyTo(hashed)));
        pause();
        StateMachine machine = snapshots.List().Contains(Snapshots.NameOf(from)) && TryReadSnapshot(snapshots, Snapshots.NameOf(from), partitionsCount, tableSeed, log, out _, eventsPerGeneration) is StateMachine read
            ? read
            : new StateMachine(new State(tableSeed, store.Partition, partitionsCount, eventsPerGeneration));
        using JournalReader reader = machine.State.LastSequence == 0 ? store.Read(checkMerkleRoots: false) : journal.ReadAfter(machine.State.LastSequence);
        while (machine.State.LastSequence < to && reader.TryReadNext(out Block block))
        {
            Apply(block, machine);
            machine.State.Generations.Forget(machine.State.LastSequence);
            pause();
        }

        Check.That(machine.State.LastSequence == to && snapshots.HashOf(machine.State.Write) == hash, $"the state at event {to} is what the journal makes from event {from} on");
    }

    /// <summary>Everything is durable and answered: marks it so, and leaves a snapshot for a quick start.</summary>
    void Stop(Serving serving)
    {
        EndBeside(serving);
        // Found meanwhile: what the state has is not to be written down.
        if (serving.JournalFault is InvariantBrokenException broken) throw new IOException(broken.Message, broken);
        lock (_journalLock)
        {
            // The journal's thread begins no other one while it waits for the lock.
            Await(serving.Allocating);
            try
            {
                End(_store, serving.Journal, serving.Core, serving.SnapshotSequence, serving.AuditedSequence, serving.Derived);
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
    public static void End(IJournalStore store, JournalWriter journal, PartitionCore core, ulong snapshotSequence, ulong auditedSequence, Derived derived)
    {
        // Its time binds the next life: no block gets one that an answer about the past has spoken of.
        journal.AppendMark(Injected.Is(PartitionDefect.PastForgottenAtStop) ? 0 : core.AnsweredTimeMicros);
        journal.Flush();
        State state = core.State;
        Check.That(state.LastSequence == journal.FlushedSequence, "a snapshot speaks only of what is durable");
        derived.WriteDue(state.Generations, journal.MarkedSequence);
        if (state.LastSequence > snapshotSequence) new Snapshots(store.Files, state.Partition).Write(state.LastSequence, journal.LastRecordsNumber, journal.LastRecordsHash, state.Write, auditedSequence);
    }
}
