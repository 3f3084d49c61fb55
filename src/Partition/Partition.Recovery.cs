using System.IO.Hashing;
using Purse.Journal;
using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>A journal taken over, and the state that its events make.</summary>
/// <param name="SnapshotSequence">Where the snapshot ends that spared the events before it, 0 without one.</param>
/// <param name="AuditedSequence">And where the last one before it ends that was compared with a replay of the journal.</param>
/// <param name="Derived">What the state does not have.</param>
public sealed record Recovered(JournalWriter Journal, StateMachine Machine, ulong SnapshotSequence, ulong AuditedSequence, Derived Derived);

public sealed partial class Partition
{
    Serving Recover()
    {
        long started = Environment.TickCount64;
        (JournalWriter journal, StateMachine machine, ulong snapshotSequence, ulong auditedSequence, Derived derived) = Recover(_store, PartitionsCount, Random.Shared.NextInt64(), _log, FlushedFloor, _options.EventsPerGeneration);
        if (journal.TornTail is not null) _log($"Partition {Number}: warning: {journal.TornTail}; it was cut off.");
        _log($"Partition {Number}: recovered {machine.State.LastSequence} events ({machine.State.LastSequence - snapshotSequence} replayed) in {Environment.TickCount64 - started} ms, epoch {journal.Epoch}.");
        _answeredTimeMicros = Math.Max(_answeredTimeMicros, journal.LastTimeMicros);
        EventReaders readers = new(journal, machine.State, derived.History);
        derived.Serve(machine.State, readers.TransactionIdOf);
        return new Serving(journal, new PartitionCore(machine, _answeredTimeMicros, _serving?.Core.Tally, search: derived.Ids.Search), readers, derived) { SnapshotSequence = snapshotSequence, AuditedSequence = auditedSequence };
    }

    /// <summary>Takes over the journal, and rebuilds the state from the newest usable snapshot and all events after it.</summary>
    /// <param name="tableSeed">Of the state; secret where callers choose names and ids.</param>
    /// <param name="known">What this process was told to be durable, in a life before.</param>
    public static Recovered Recover(
        IJournalStore store, int partitionsCount, long tableSeed, Action<string> log, JournalFloor? known = null, ulong eventsPerGeneration = State.EventsPerGeneration)
    {
        Derived derived = new(store, life: (long)XxHash3.HashToUInt64(BitConverter.GetBytes(tableSeed)), tableSeed, log);
        try
        {
            while (true)
            {
                Recovered recovered = Recover(store, partitionsCount, tableSeed, log, known, eventsPerGeneration, derived);
                if (derived.CoveredMost <= recovered.Journal.FlushedSequence) return recovered;
                // The loss of the journal's end was accepted. What the runs say of it is not true any more.
                log($"Partition {store.Partition}: the runs speak of event {derived.CoveredMost}; the journal ends at {recovered.Journal.FlushedSequence}.");
                recovered.Journal.Dispose();
                derived.DropAbove(recovered.Journal.FlushedSequence);
            }
        }
        catch
        {
            derived.Dispose();
            throw;
        }
    }

    static Recovered Recover(IJournalStore store, int partitionsCount, long tableSeed, Action<string> log, JournalFloor? known, ulong eventsPerGeneration, Derived derived)
    {
        StateMachine machine = new(new State(tableSeed, store.Partition, partitionsCount, eventsPerGeneration));
        Snapshots snapshots = new(store.Files, store.Partition);
        SnapshotHeader used = default;
        ulong audited = 0;
        bool isFull = false;
        List<JournalFloor> floors = known is { Number: > 0 } floor ? [floor] : [];
        foreach (string name in snapshots.List().Reverse())
        {
            if (used.Sequence == 0 && TryReadSnapshot(snapshots, name, partitionsCount, tableSeed, log, out SnapshotHeader read, eventsPerGeneration) is StateMachine ready)
            {
                // What it leaves out must be somewhere else.
                if (ready.State.Generations.Forgotten <= derived.Covered || Injected.Is(PartitionDefect.CoverageNotAskedFor)) (machine, used) = (ready, read);
                else log($"Partition {store.Partition}: {name} is passed over: what it leaves out, up to event {ready.State.Generations.Forgotten}, is not all in runs, and made again from the journal.");
            }

            // Every snapshot was made of what was durable: the journal must still have it.
            if (!TryReadHeader(snapshots, name, log, out SnapshotHeader header)) continue;
            floors.Add(new JournalFloor(header.BlockNumber, header.Sequence, header.BlockHash, name));
            audited = Math.Max(audited, header.AuditedSequence);
        }

        ulong snapshotNumber = used.BlockNumber > 0 && Injected.Is(PartitionDefect.SnapshotOneBlockLate) ? used.BlockNumber + 1 : used.BlockNumber;
        JournalWriter journal = store.TakeOver(floors, (in Block block) =>
        {
            if (block.Header.Number <= snapshotNumber) return;
            Apply(block, machine);
            if (isFull) return;
            try
            {
                // A long way is no more memory than a short one.
                derived.WriteDue(machine.State.Generations, block.Header.DurableSequence);
            }
            catch (DiskFullException e)
            {
                log($"Partition {store.Partition}: no run can be written, what it would have stays in memory: {e.Message}");
                isFull = true;
            }

            machine.State.Generations.Forget(derived.Covered);
        }, used.BlockNumber > 0 ? new JournalFloor(used.BlockNumber, used.Sequence, used.BlockHash, "the snapshot in use") : null);
        return new Recovered(journal, machine, used.Sequence, audited >= used.Sequence ? used.Sequence : used.AuditedSequence, derived);
    }

    static bool TryReadHeader(Snapshots snapshots, string name, Action<string> log, out SnapshotHeader header)
    {
        try
        {
            return snapshots.TryReadHeader(name, out header);
        }
        catch (IOException e)
        {
            log($"Partition {snapshots.Partition}: {name} cannot be read: {e.Message}");
            header = default;
            return false;
        }
    }

    /// <summary>Null where it is not whole.</summary>
    static StateMachine? TryReadSnapshot(Snapshots snapshots, string name, int partitionsCount, long tableSeed, Action<string> log, out SnapshotHeader header, ulong eventsPerGeneration)
    {
        header = default;
        try
        {
            State state = new(tableSeed, snapshots.Partition, partitionsCount, eventsPerGeneration);
            if (snapshots.TryReadHeader(name, out header))
            {
                snapshots.Read(name, header, state.Read);
                if (state.LastSequence == header.Sequence) return new StateMachine(state);
            }

            log($"Partition {snapshots.Partition}: {name} is passed over: it is not whole.");
        }
        catch (Exception e) when (e is IOException or InvalidDataException or InvariantBrokenException)
        {
            log($"Partition {snapshots.Partition}: {name} is passed over: {e.Message}");
        }

        header = default;
        return null;
    }

    /// <summary>Applies a block's events; the same for recovery, replay and verification.</summary>
    public static void Apply(in Block block, StateMachine machine)
    {
        if (block.Header.RecordsCount == 0) return;
        if (block.Header.RecordSizeBytes != Event.SizeBytes)
            throw new InvalidDataException($"Block {block.Header.Number} has records of {block.Header.RecordSizeBytes} bytes; events have {Event.SizeBytes}.");
        ReadOnlySpan<Event> events = block.RecordsAs<Event>();
        for (int i = 0; i < events.Length; i++)
            machine.Apply(block.Header.FirstSequence + (ulong)i, block.Header.TimeMicros, events[i], block.Attachments, block.Erasable);
        machine.CheckBalanced();
    }

    /// <summary>
    /// After a fault: nothing is answered from this state any more. Where the journal failed, what is on disk is the truth, and the
    /// partition serves again from it; a broken invariant, damage or another owner stop it for good.
    /// </summary>
    bool RecoverFrom(Exception fault)
    {
        Serving failed = _serving!;
        failed.JournalFault ??= fault;
        _fault = fault;
        _queue.Close(_stopping ? RequestStatus.ShuttingDown : RequestStatus.Unavailable);
        Exception cause = fault.InnerException is { } inner && fault is IOException ? inner : fault;
        _log($"Partition {Number} is down: {cause.Message}");
        if (cause is RunDamagedException damage) failed.Derived.Delete(damage);
        FailAllWaiting(failed);
        // Nothing of the failed life may still write when the next one begins.
        EndBeside(failed);
        _answeredTimeMicros = Math.Max(_answeredTimeMicros, failed.Core.AnsweredTimeMicros);
        lock (_journalLock)
        {
            Await(failed.Allocating);
            try
            {
                // One that was deposed, and failed of something else, must not take the partition back from its successor.
                failed.Journal.ConfirmEpoch();
                // What it had is not to be believed: the next start replays from the last snapshot that was compared with a replay.
                if (cause is InvariantBrokenException) new Snapshots(_store.Files, Number).DeleteAfter(failed.AuditedSequence);
            }
            catch (IOException e)
            {
                if (e is FencedException) cause = e;
            }

            failed.Journal.Dispose();
        }

        failed.Readers.Dispose();
        failed.Derived.Dispose();

        return RecoverAfter(cause);
    }

    bool RecoverAfter(Exception cause)
    {
        // Most failures are over at once: a connection that broke, a standby that was promoted, a journal that moved.
        TimeSpan delay = _options.RecoveryDelay / 32;
        for (; !_stopping; delay = delay < _options.RecoveryDelay / 2 ? delay * 2 : _options.RecoveryDelay)
        {
            if (cause is not IOException || cause is FencedException or JournalDamagedException)
            {
                IsDeposed = cause is FencedException;
                _log($"Partition {Number} stays down until the server is restarted.");
                return false;
            }

            Thread.Sleep(delay);
            try
            {
                Serving recovered = Recover();
                lock (_journalLock) Volatile.Write(ref _serving, recovered);
                _fault = null;
                _queue.Close(null);
                if (_stopping) _queue.Close(RequestStatus.ShuttingDown);
                return true;
            }
            catch (Exception e) when (e is IOException or InvalidDataException or InvariantBrokenException)
            {
                // Said once, however often it is tried.
                if (e.Message != cause.Message) _log($"Partition {Number} cannot recover yet: {e.Message}");
                cause = e;
                _fault = e;
            }
        }

        return false;
    }

    /// <summary>What these tasks failed with they have logged.</summary>
    static void Await(Task? task) => task?.ContinueWith(static _ => { }, TaskScheduler.Default).Wait();

    void FailAllWaiting(Serving failed)
    {
        failed.Core.Abandon();
        DrainQueue(RequestStatus.Unavailable);

        // The journal's thread passes over what is still on its way.
        SpinWait.SpinUntil(() => Volatile.Read(ref _batchesInFlight) == 0);
        while (_freeBatches.Count < _options.BlocksInFlightMax) _freeBatches.Add(new EventBatch(_options.EventsPerBlockMax));
    }

    void DrainQueue(RequestStatus answer)
    {
        while (_queue.TryPeek(out Request request))
        {
            _queue.Remove(request);
            // One that was begun has events in blocks that may be durable.
            request.Fail(ifNotStarted: answer, ifStarted: request is ReadRequest ? answer : RequestStatus.UnavailableUnknown);
        }
    }
}
