using Purse.Journal;
using Purse.Ledger;

namespace Purse.Partitions;

public sealed partial class Partition
{
    /// <summary>Takes over the journal, and rebuilds the state from the newest usable snapshot and all events after it.</summary>
    Serving Recover()
    {
        long started = Environment.TickCount64;
        foreach (string name in new Snapshots(_disk, Number).List().Reverse().Append(null!))
        {
            StateMachine machine = new(NewState());
            SnapshotHeader snapshot = default;
            if (name is not null && !TryReadSnapshot(name, machine.State, out snapshot)) continue;

            FileJournal journal;
            try
            {
                journal = FileJournal.Open(_disk, Number, _options.Journal, (in Block block) => Replay(block, machine, snapshot));
            }
            catch (SnapshotMismatchException e)
            {
                _log($"Partition {Number}: {name} is passed over: {e.Message}");
                continue;
            }

            if (journal.LastNumber < snapshot.BlockNumber)
            {
                journal.Dispose();
                throw new JournalDamagedException(
                    $"journal_lost_tail: {name} was made after event {snapshot.Sequence}, which was durable, but the journal of partition {Number} ends at event {journal.AppendedSequence}. " +
                    "Restore the journal from a copy. To accept the loss, delete the snapshots.", journal.LastNumber + 1, default);
            }

            if (journal.TornTail is not null) _log($"Partition {Number}: warning: {journal.TornTail}; it was cut off.");
            _log($"Partition {Number}: recovered {machine.State.LastSequence} events ({machine.State.LastSequence - snapshot.Sequence} replayed) in {Environment.TickCount64 - started} ms, epoch {journal.Epoch}.");
            return new Serving(journal, machine, new EventReaders(_disk, Number, journal, machine.State)) { SnapshotSequence = snapshot.Sequence };
        }

        throw new InvalidOperationException("The last attempt uses no snapshot.");
    }

    sealed class SnapshotMismatchException(string message) : Exception(message);

    static State NewState() => new(Random.Shared.NextInt64());

    bool TryReadSnapshot(string name, State state, out SnapshotHeader header)
    {
        Snapshots snapshots = new(_disk, Number);
        header = default;
        try
        {
            if (snapshots.TryReadHeader(name, out header))
            {
                snapshots.Read(name, header, state.Read);
                if (state.LastSequence == header.Sequence) return true;
            }
        }
        catch (Exception e) when (e is IOException or InvalidDataException or InvariantBrokenException)
        {
            _log($"Partition {Number}: {name} is passed over: {e.Message}");
            return false;
        }

        _log($"Partition {Number}: {name} is passed over: it is not whole.");
        return false;
    }

    static void Replay(in Block block, StateMachine machine, in SnapshotHeader snapshot)
    {
        if (block.Header.Number == snapshot.BlockNumber && BlockHeader.ComputeHash(block.HeaderBytes) != snapshot.BlockHash)
            throw new SnapshotMismatchException($"the journal has another block {snapshot.BlockNumber} than the one it was made after.");
        if (block.Header.Number > snapshot.BlockNumber) Apply(block, machine);
    }

    /// <summary>Applies a block's events; the same for recovery, replay and verification.</summary>
    public static void Apply(in Block block, StateMachine machine)
    {
        if (block.Header.RecordsCount == 0) return;
        if (block.Header.RecordSizeBytes != Event.SizeBytes)
            throw new InvalidDataException($"Block {block.Header.Number} has records of {block.Header.RecordSizeBytes} bytes; events have {Event.SizeBytes}.");
        ReadOnlySpan<Event> events = block.RecordsAs<Event>();
        for (int i = 0; i < events.Length; i++)
            machine.Apply(block.Header.FirstSequence + (ulong)i, block.Header.TimeMicros, events[i], block.Attachments);
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
        FailAllWaiting(failed);
        lock (_journalLock) failed.Journal.Dispose();
        failed.Readers.Dispose();

        while (!_stopping)
        {
            if (cause is not IOException || cause is FencedException or JournalDamagedException)
            {
                _log($"Partition {Number} stays down until the server is restarted.");
                return false;
            }

            Thread.Sleep(_options.RecoveryDelay);
            try
            {
                Serving recovered = Recover();
                lock (_journalLock) Volatile.Write(ref _serving, recovered);
                _fault = null;
                _queue.Close(null);
                return true;
            }
            catch (Exception e) when (e is IOException or InvalidDataException or InvariantBrokenException)
            {
                cause = e;
                _fault = e;
                _log($"Partition {Number} cannot recover yet: {e.Message}");
            }
        }

        return false;
    }

    void FailAllWaiting(Serving failed)
    {
        failed.Core.Abandon();
        while (_queue.TryPeek(out Request request))
        {
            _queue.Remove(request);
            // One that was begun has events in blocks that may be durable.
            request.Fail(ifNotStarted: RequestStatus.Unavailable, ifStarted: request is ReadRequest ? RequestStatus.Unavailable : RequestStatus.UnavailableUnknown);
        }

        // The journal's thread passes over what is still on its way.
        SpinWait.SpinUntil(() => Volatile.Read(ref _batchesInFlight) == 0);
        while (_freeBatches.Count < _options.BlocksInFlightMax) _freeBatches.Add(new EventBatch(_options.EventsPerBlockMax));
    }
}
