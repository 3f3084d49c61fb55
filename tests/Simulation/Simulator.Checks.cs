using System.Numerics;
using System.Text.Json;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Simulation;

/// <summary>What must be so, however it went: at every recovery, and at the end.</summary>
public sealed partial class Simulator
{
    /// <summary>The state of a snapshot and what came after it is that of a replay from the first event; nothing that was durable is gone or another.</summary>
    void CheckRecovered(Shard shard, Recovered recovered)
    {
        State state = recovered.Machine.State;
        StateMachine replayed = new(new State(_random.NextInt64(), shard.Number, _options.Partitions, _options.EventsPerGeneration));
        using JournalReader reader = shard.Store.Read(checkMerkleRoots: true);
        while (reader.TryReadNext(out Block block))
        {
            Partition.Apply(block, replayed);
            Check(!shard.Durable.TryGetValue(reader.LastNumber, out Hash256 hash) || hash == reader.LastHash, $"block {reader.LastNumber} was durable, and is another one now");
        }

        Check(shard.Durable.Count == 0 || shard.Durable.Keys.Max() <= reader.LastNumber, "a block that was durable is gone");
        Check(Bytes(state).AsSpan().SequenceEqual(Bytes(replayed.State)), "the recovered state is not that of a replay from the first event");
        CheckRuns(recovered, replayed.State);
        foreach (uint currency in state.CurrenciesInUse()) Check(state.CountSum(currency) == 0, $"the balances of {state.CurrencyCode(currency)} do not add up to 0");
    }

    /// <summary>Runs have every id of the events that they cover, and no other; and every mark on the way through a balance's events.</summary>
    void CheckRuns(Recovered recovered, State replayed)
    {
        Derived derived = recovered.Derived;
        using EventReaders readers = new(recovered.Journal, recovered.Machine.State, derived.History);
        derived.Serve(recovered.Machine.State, readers.TransactionIdOf);
        long ids = 0, marks = 0;
        foreach (Generation generation in replayed.Generations.Full(out _))
        {
            for (int i = 0; i < generation.Count && generation[i].Sequence <= derived.Ids.Covered; i++, ids++)
            {
                RememberedId one = generation[i];
                Check(derived.Ids.Find(one.TransactionId, one.Home) is [var found] && found.Sequence == one.Sequence, $"event {one.Sequence} remembers transaction {one.TransactionId:x}, and the runs up to {derived.Ids.Covered} do not find it");
            }

            for (int i = 0; i < generation.MarksCount && generation.Mark(i).Sequence <= derived.History.Covered; i++) marks++;
        }

        Check(derived.Ids.Runs.EntriesCount == ids, $"the runs up to event {derived.Ids.Covered} have {derived.Ids.Runs.EntriesCount} ids; {ids} are remembered by these events");
        Check(derived.History.Runs.EntriesCount == marks, $"the runs up to event {derived.History.Covered} have {derived.History.Runs.EntriesCount} marks; {marks} are on these events");
        CheckHistory(readers, recovered.Machine.State);
    }

    /// <summary>Any event of a balance is found by its number, its time and its sequence.</summary>
    void CheckHistory(EventReaders readers, State state)
    {
        for (int tries = 0; tries < 5 && state.BalancesCount > 0; tries++)
        {
            Balance balance = state.BalanceAt(_random.Next(state.BalancesCount));
            if (balance.EventsCount == 0) continue;
            List<RecordedEvent> all = [.. readers.Backwards(balance.LastSequence)];
            all.Reverse();
            int number = _random.Next(all.Count);
            RecordedEvent e = all[number];
            ulong last = (ulong)all.FindLastIndex(one => one.TimeMicros <= e.TimeMicros) + 1;
            Check(readers.History.Find(readers, balance, (ulong)number + 1, default) == e.Sequence, $"event {number + 1} of a balance is {e.Sequence}, and history finds another");
            Check(readers.History.LastAtOrBefore(readers, balance, e.TimeMicros, default).Number == last, $"event {last} of a balance is the last at {e.TimeMicros}, and history finds another");
            Check(readers.History.LastAtOrBeforeSequence(readers, balance, e.Sequence, default) == ((ulong)number + 1, e.Sequence), $"event {number + 1} of a balance is {e.Sequence}, and history finds another");
        }
    }

    static byte[] Bytes(State state)
    {
        using MemoryStream stream = new();
        state.Write(stream);
        return stream.ToArray();
    }

    readonly record struct Recorded(Event Event, long TimeMicros, ulong Epoch, byte[] Attachments)
    {
        public Attachment Attachment => new(Event.Attachment, Attachments, []);
    }

    /// <summary>What clients were told against the journals, and the journals against the model, from the first event on.</summary>
    void CheckEverything()
    {
        Check(Array.TrueForAll(_shards, shard => shard.Writers.Count > 0), "after all has healed, a partition does not recover");
        List<Recorded>[] all = [.. _shards.Select(Read)];
        State[] states = [.. _shards.Select(shard => shard.Writers[^1].Core.State)];
        LedgerModel model = new(_options.Partitions);
        Dictionary<(int Coordinator, ulong Head), List<Part>> carriedOut = CheckAgainstModel(model, all, states);

        Dictionary<(string, string), (BigInteger Posted, BigInteger Held)> balances = [];
        foreach (State state in states)
        {
            for (int i = 0; i < state.BalancesCount; i++)
            {
                Balance balance = state.BalanceAt(i);
                Check(balance.Incoming == 0, $"{state.Names[balance.Account]} was promised {balance.Incoming}, and nothing is under way");
                (string, string) key = (state.Names[balance.Account].ToString(), state.CurrencyCode(balance.Currency));
                (BigInteger posted, BigInteger held) = balances.GetValueOrDefault(key);
                // A system account is what its parts add up to.
                balances[key] = (posted + (BigInteger)balance.Posted, held + (BigInteger)balance.Held);
            }

            Check(state.Attempts.OwnCount == 0 && state.Attempts.PreparedForOthersCount == 0, $"after all has healed, partition {state.Partition} counts {state.Attempts.OwnCount} commits of its own and {state.Attempts.PreparedForOthersCount} of others");
            foreach (Shard shard in _shards) Check(state.Attempts.OwnCountWith(shard.Number) == 0, $"after all has healed, partition {state.Partition} counts commits with {shard.Number}");
            foreach (Attempt attempt in state.Attempts.All)
                Check(!attempt.IsOwn && attempt.Status != AttemptStatus.Prepared, $"after all has healed, attempt {attempt.Sequence} of partition {attempt.Coordinator} is not finished in partition {state.Partition}");
            foreach ((int peer, uint currency, Int128 posted) in state.Clearing)
            {
                CurrencyCode code = CurrencyCode.Parse(state.CurrencyCode(currency));
                Int128 there = states[peer].TryCurrency(code, out uint number, out _) ? states[peer].Clearing.Where(c => c.Peer == state.Partition && c.Currency == number).Select(c => c.Posted).FirstOrDefault() : 0;
                Check(posted + there == 0, $"nothing is in flight, and partitions {state.Partition} and {peer} differ by {posted + there} {code}");
            }
        }

        foreach (((string account, string currency), (BigInteger posted, BigInteger held)) in balances)
        {
            (BigInteger Posted, BigInteger Held) expected = (model.Balances.GetValueOrDefault((account, currency)), model.HeldOf(account, currency));
            Check((posted, held) == expected, $"{account} has {posted} {currency} and {held} held; the model says {expected.Posted} and {expected.Held}");
        }

        foreach (Acknowledged one in _acknowledged)
        {
            CheckAcknowledged(one, all[one.Partition]);
            // What an operator ends is answered at once: nothing moved that could be seen.
            if (one.Decision.Outcome is not Outcome.Duplicate and not Outcome.Aborted) CheckVisible(one, all[one.Partition][(int)one.Decision.Sequence - 1].Event, carriedOut);
        }

        foreach (ReadAnswer read in _reads) CheckRead(read, all[read.Partition], states[read.Partition]);
        foreach (Recorded one in all.SelectMany(events => events))
            Check(!_fates.TryGetValue(one.Event.TransactionId, out Fate? fate) || fate.MayBeRecorded, $"transaction {one.Event.TransactionId:x} was said to have left nothing behind, and is in the journal");
    }

    static List<Recorded> Read(Shard shard)
    {
        List<Recorded> events = [];
        using JournalReader reader = shard.Store.Read(checkMerkleRoots: true);
        while (reader.TryReadNext(out Block block))
        {
            byte[] attachments = block.Attachments.ToArray();
            foreach (ref readonly Event e in block.RecordsAs<Event>()) events.Add(new Recorded(e, block.Header.TimeMicros, block.Header.Epoch, attachments));
        }

        return events;
    }

    void CheckAcknowledged(Acknowledged one, List<Recorded> events)
    {
        (_, Command command, Decision decision, ulong notBefore, _) = one;
        Check(decision.LastSequence <= (ulong)events.Count, $"event {decision.LastSequence} was acknowledged, and is lost");
        Event e = events[(int)decision.Sequence - 1].Event;
        bool isRefusal = (ushort)decision.Outcome >= (ushort)Outcome.FromAccountNotFound;
        if (decision.Outcome == Outcome.Duplicate)
        {
            Check(e.TransactionId == command.TransactionId, $"event {decision.Sequence} is not about the id that it was told for");
            return;
        }

        if (decision.Outcome == Outcome.AccountExists) return;
        Check(decision.Sequence > notBefore, $"event {decision.Sequence} was decided after {notBefore} was acknowledged, and comes before it");
        Check(command.TransactionId == 0 || e.TransactionId == command.TransactionId || e.Kind is EventKind.AccountNamed or EventKind.AccountOpened, $"event {decision.Sequence} is not the one that was acknowledged");
        Check(isRefusal == (e.Kind == EventKind.TransferRejected) && (!isRefusal || e.Code == (ushort)decision.Outcome), $"event {decision.Sequence} is not what was acknowledged: {decision.Outcome}");
    }

    /// <summary>Once it is answered, a commit across partitions is seen by whoever asks any of them.</summary>
    void CheckVisible(Acknowledged one, in Event e, Dictionary<(int Coordinator, ulong Head), List<Part>> carriedOut)
    {
        if ((e.Flags & EventFlags.CrossPartition) == 0 || !carriedOut.TryGetValue((one.Partition, e.Link), out List<Part>? parts)) return;
        foreach (Part part in parts)
        {
            foreach (ReadAnswer read in _reads)
            {
                if (read.Partition != part.Partition || read.AskedStep <= one.AnsweredStep) continue;
                Check(read.Sequence >= part.Sequence, $"transaction {e.TransactionId:x} was answered, and a read of partition {part.Partition} at event {read.Sequence} did not see its event {part.Sequence}");
            }
        }
    }

    /// <summary>A read shows the balance at one position, no older than what anybody was told before it was asked.</summary>
    void CheckRead(ReadAnswer read, List<Recorded> events, State state)
    {
        Check(read.Sequence >= read.NotBefore, $"a read showed event {read.Sequence} after {read.NotBefore} was acknowledged");
        Check(read.Sequence <= (ulong)events.Count, $"a read showed event {read.Sequence}, which is lost");
        // A past that was told of stays as it was. A clock that is set back while a process that was killed is down is beyond what one life can promise another.
        if (read.AsOfMicros != 0 && read.Sequence < (ulong)events.Count && events[(int)read.Sequence] is var next && (next.Epoch == read.Epoch || _shards[read.Partition].EndedEpochs.Contains(read.Epoch)))
            Check(next.TimeMicros > read.AsOfMicros, $"event {read.Sequence + 1} is of {next.TimeMicros}, and a past up to {read.AsOfMicros} was told of without it");
        uint account = state.Names.Find(read.Account);
        for (int i = (int)read.Sequence - 1; i >= 0; i--)
        {
            Event e = events[i].Event;
            if (!e.TouchesBalance || e.Account != account || e.Currency != read.Currency) continue;
            Check((e.Posted, e.Held) == (read.Posted, read.Held), $"a read at event {read.Sequence} showed {read.Posted} and {read.Held} held; it was {e.Posted} and {e.Held}");
            return;
        }

        Check(read.Posted == 0 && read.Held == 0, $"a read at event {read.Sequence} showed money where there was none");
    }

    /// <summary>Every event is what the model says must come of its command, in the order of the journal.</summary>
    void CheckAgainst(LedgerModel model, in Event e, Attachment attachment, State state)
    {
        Check(!model.IsAnyDue(state.Partition), $"{e.Kind} was decided while a hold was due");
        string name = e.Account == 0 ? "" : state.Names[e.Account].ToString();
        switch (e.Kind)
        {
            case EventKind.AccountOpened when name[0] != '@':
                Expect("done", model.Open(name), e);
                return;
            case EventKind.LimitsChanged:
                Limits limits = attachment.Limits() is [var one] ? one : throw Broken("limits of one currency were set");
                Expect("done", model.SetLimits(name, state.CurrencyCode(limits.Currency), (BigInteger?)limits.Min, (BigInteger?)limits.Max), e);
                return;
            case EventKind.Frozen:
                Expect("done", model.Freeze(name, (Direction)e.Code), e);
                return;
            case EventKind.Unfrozen:
                Expect("done", model.Freeze(name, Direction.None), e);
                return;
            case EventKind.Closed:
                Expect("done", model.Close(name), e);
                return;
        }

        bool isFirst = (e.Flags & EventFlags.CrossPartition) == 0 && (e.Kind is EventKind.Held or EventKind.Captured or EventKind.TransferRejected || (e.Kind == EventKind.Debited && e.Index == 0)
            || (e.Kind == EventKind.Released && e.Flags == EventFlags.None));
        if (!isFirst) return;
        if (e.Kind is EventKind.Debited or EventKind.Captured) _moved++;
        Check(_sent.TryGetValue(e.TransactionId, out Command command), $"nobody sent transaction {e.TransactionId:x}");
        Check(!command.DryRun, $"transaction {e.TransactionId:x} was a dry run, and is in the journal");
        string outcome = e.Kind == EventKind.TransferRejected ? JsonNamingPolicy.SnakeCaseLower.ConvertName(((Outcome)e.Code).ToString()) : "done";
        Expect(outcome, Predict(model, command), e);
    }

    static string Predict(LedgerModel model, Command command)
    {
        // Amounts are written in whole units.
        BigInteger InMinorUnits() => (BigInteger)command.AmountDigits * BigInteger.Pow(10, model.DecimalsOf(command.OriginalId));
        switch (command.Kind)
        {
            case CommandKind.Capture or CommandKind.Void:
                return model.End(command.TransactionId, command.OriginalId, command.Kind == CommandKind.Void ? -1 : InMinorUnits());
            case CommandKind.Reverse:
                return model.Reverse(command.TransactionId, command.OriginalId, InMinorUnits());
            case CommandKind.Transaction:
                return model.Transaction([.. command.Details!.Postings!.Select(p => ToMovement(p.Account, p.Counterparty, p.Currency, p.AmountDigits))], command.TransactionId);
            default:
                return model.Transfer(ToMovement(command.Account, command.Counterparty, command.Currency, command.AmountDigits), command.TransactionId, command.Pending, command.ExpiresInSeconds, command.UpTo);
        }
    }

    static LedgerModel.Movement ToMovement(in AccountName from, in AccountName to, CurrencyCode currency, Int128 units) =>
        new(from.ToString(), to.ToString(), currency.ToString(), (BigInteger)units * BigInteger.Pow(10, LedgerModel.Decimals[Array.IndexOf(LedgerModel.Currencies, currency.ToString())]));

    void Expect(string happened, string predicted, in Event e)
    {
        if (happened != predicted) throw Broken($"{e.Kind} of {e.TransactionId:x} came out as {happened}; the model says {predicted}");
    }
}
