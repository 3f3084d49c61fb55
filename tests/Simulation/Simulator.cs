using System.Text.Json;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Simulation;

/// <summary>What a run came to.</summary>
public sealed record SimulationResult(int Steps, long SimulatedMicros, int Answered, int Lives, int Faults, ulong Events, int Moved);

/// <summary>A promise was broken.</summary>
public sealed class SimulationFailedException(SimulationOptions options, int step, string message, Exception? inner = null)
    : Exception($"{message}\nStep {step} of {options}", inner)
{
    public SimulationOptions Options { get; } = options;

    public int Step { get; } = step;
}

/// <summary>
/// The real ledger, partition core and journal in one thread, under one seed: disk, clock, clients and the order of everything are
/// simulated, and go wrong. While anything may be down (safety), and after all has healed (liveness), what clients were told is held against
/// the journal, and the journal against a model that knows nothing of events.
/// </summary>
public sealed class Simulator
{
    const int Partition = 0;

    // Small, so that runs cross from segment to segment.
    static readonly JournalOptions Journal = new() { SegmentSizeBytes = 512 * 1024, ReserveBytes = 64 * 1024 };

    readonly SimulationOptions _options;
    readonly Random _random;
    readonly List<Client> _clients = [];
    readonly List<Writer> _writers = [];

    /// <summary>Every command ever sent, by its id; none is sent with another meaning.</summary>
    readonly Dictionary<UInt128, Command> _sent = [];
    readonly List<UInt128> _ids = [];

    readonly Dictionary<UInt128, Fate> _fates = [];

    /// <summary>Accounts and money come first: without them, everything else is refused.</summary>
    readonly Queue<Command> _setUp = new();
    readonly List<Acknowledged> _acknowledged = [];
    readonly List<ReadAnswer> _reads = [];

    /// <summary>Hashes of blocks that a flush made durable, by number.</summary>
    readonly Dictionary<ulong, Hash256> _durable = [];
    FaultyDisk _disk = new();
    long _nowMicros = 1_700_000_000_000_000;
    long _startMicros;
    int _step;
    int _answered;
    int _lives;
    int _faults;
    int _moved;
    bool _isHealed;
    ulong _acknowledgedSequence;

    sealed record Acknowledged(Command Command, Decision Decision, ulong NotBefore);

    sealed record ReadAnswer(AccountName Account, uint Currency, Int128 Posted, Int128 Held, ulong Sequence, ulong NotBefore);

    /// <summary>One life of the partition's host; several at once where one does not know that it was deposed.</summary>
    sealed class Writer(Recovered recovered, PartitionCore core, EventReaders readers, SimulationOptions options)
    {
        public FileJournal Journal { get; } = recovered.Journal;

        public PartitionCore Core { get; } = core;

        public EventReaders Readers { get; } = readers;

        public RequestQueue Queue { get; } = new(1000);

        public Queue<EventBatch> Sealed { get; } = new();

        public Stack<EventBatch> Free { get; } = new(Enumerable.Range(0, options.BlocksInFlightMax).Select(_ => new EventBatch(options.EventsPerBlockMax)));

        public bool IsStopped { get; set; }
    }

    /// <summary>What is known of an id from outside.</summary>
    sealed class Fate
    {
        public int AttemptsInFlight;

        /// <summary>False while every attempt that ended was answered with "left nothing behind".</summary>
        public bool MayBeRecorded;
    }

    sealed class Client
    {
        public Request? Request;
        public ValueTask<RequestStatus> Answer;
        public Writer? Asked;
        public ulong NotBefore;

        /// <summary>Sent and not yet answered for good.</summary>
        public Command? Command;

        /// <summary>Of a read: what it asks for.</summary>
        public (AccountName Account, uint Currency)? Read;

        /// <summary>Of a reversal that still has to be told what it takes back.</summary>
        public bool IsLookingUp;
    }

    readonly Action<string>? _trace;

    Simulator(SimulationOptions options, Action<string>? trace)
    {
        _options = options;
        _trace = trace;
        _random = new Random(options.Seed);
        _startMicros = _nowMicros;
        for (int i = 0; i < options.Clients; i++) _clients.Add(new Client());
        for (int i = 0; i < options.Accounts; i++)
        {
            // Now and then one is not there.
            if (_random.Next(10) > 0) _setUp.Enqueue(new Command { Kind = CommandKind.OpenAccount, Account = Account(i), Details = new CommandDetails { By = "simulation" } });
            for (int currency = 0; currency < 2; currency++)
            {
                _setUp.Enqueue(new Command
                {
                    Kind = CommandKind.Transfer,
                    Account = Account(-1),
                    Counterparty = Account(i),
                    AmountDigits = 500,
                    Currency = CurrencyCode.Parse(LedgerModel.Currencies[currency]),
                });
            }
        }
    }

    /// <param name="trace">Is told what happens, step by step.</param>
    public static SimulationResult Run(SimulationOptions options, Action<string>? trace = null)
    {
        Simulator simulation = new(options, trace);
        try
        {
            return simulation.Run();
        }
        catch (Exception e) when (e is not SimulationFailedException)
        {
            throw new SimulationFailedException(options, simulation._step, e.Message, e);
        }
    }

    /// <summary>The smallest run found that still fails, whatever it fails with.</summary>
    public static SimulationFailedException Shrink(SimulationFailedException failure)
    {
        for (int tries = 0; tries < 200;)
        {
            SimulationFailedException? smaller = null;
            foreach (SimulationOptions options in failure.Options.Smaller(failure.Step))
            {
                if (tries++ == 200) break;
                try
                {
                    Run(options);
                }
                catch (SimulationFailedException again)
                {
                    smaller = again;
                    break;
                }
            }

            if (smaller is null) break;
            failure = smaller;
        }

        return failure;
    }

    SimulationResult Run()
    {
        TakeOver();
        for (; _step < _options.Steps; _step++)
        {
            _nowMicros += _random.Next(20_000);
            if (!TryFault()) Act();
            ReadAnswers();
        }

        Heal();
        for (int limit = _step + 20_000; _clients.Exists(c => c.Command is not null || c.Request is not null); _step++)
        {
            if (_step == limit) throw Broken("after all has healed, a caller still waits for its answer");
            _nowMicros += _random.Next(20_000);
            Act();
            ReadAnswers();
        }

        Crash(powerCut: true);
        TakeOver();
        CheckEverything();
        return new SimulationResult(_step, _nowMicros - _startMicros, _answered, _lives, _faults, _writers[^1].Core.State.LastSequence, _moved);
    }

    void Trace(string what) => _trace?.Invoke($"{_step,6} {what}");

    SimulationFailedException Broken(string what) => new(_options, _step, what);

    void Check(bool holds, string what)
    {
        if (!holds) throw Broken(what);
    }

    bool Happens(int perMille) => perMille > 0 && _random.Next(1000) < perMille;

    bool TryFault()
    {
        if (Happens(_options.KillRate)) Crash(powerCut: false);
        else if (Happens(_options.PowerCutRate)) Crash(powerCut: true);
        else if (Happens(_options.FailWriteRate))
        {
            (_disk.FailWriteIn, _disk.FailingWriteIsTorn) = (1 + _random.Next(4), _random.Next(2) == 0);
            Trace($"the disk will fail write {_disk.FailWriteIn} from now{(_disk.FailingWriteIsTorn ? ", and tear it" : "")}");
        }
        else if (Happens(_options.FailFlushRate))
        {
            _disk.FailFlushIn = 1 + _random.Next(4);
            Trace($"the disk will fail flush {_disk.FailFlushIn} from now");
        }
        else if (Happens(_options.DiskFullRate))
        {
            _disk.CapacityBytes = _disk.CapacityBytes == long.MaxValue ? _disk.UsedBytes + _random.Next(100_000) : long.MaxValue;
            Trace(_disk.CapacityBytes == long.MaxValue ? "the disk has room again" : "the disk is full");
        }
        else if (Happens(_options.SecondWriterRate))
        {
            // What a take-over writes first may be what fails.
            if (_options.FailWriteRate > 0 && _random.Next(2) == 0) (_disk.FailWriteIn, _disk.FailingWriteIsTorn) = (1 + _random.Next(3), _random.Next(3) > 0);
            TakeOver();
        }
        else if (Happens(_options.ClockJumpRate)) _nowMicros += _random.NextInt64(-3_000_000, 10_000_000);
        else return false;
        _faults++;
        return true;
    }

    /// <summary>The machine or the process is gone, with all that it had in memory.</summary>
    void Crash(bool powerCut)
    {
        Trace(powerCut ? "the power is cut" : "the process is killed");
        foreach (Writer writer in _writers.ToList()) Forget(writer);
        long capacity = _disk.CapacityBytes;
        _disk = powerCut ? _disk.AfterPowerCut(_random.Next()) : _disk.Copy();
        _disk.CapacityBytes = capacity;
    }

    /// <summary>Whoever waits for it hears nothing.</summary>
    void Forget(Writer writer)
    {
        writer.IsStopped = true;
        _writers.Remove(writer);
        foreach (Client client in _clients.Where(c => c.Asked == writer)) GiveUp(client);
    }

    void GiveUp(Client client)
    {
        if (client is { Request: CommandRequest, Command: Command command } && _fates.TryGetValue(command.TransactionId, out Fate? fate))
        {
            fate.AttemptsInFlight--;
            fate.MayBeRecorded = true;
        }

        (client.Request, client.Asked, client.Read, client.IsLookingUp) = (null, null, null, false);
    }

    void Heal()
    {
        _isHealed = true;
        (_disk.FailWriteIn, _disk.FailFlushIn, _disk.CapacityBytes) = (0, 0, long.MaxValue);
    }

    /// <summary>Recovers from what is on the disk, as the server does. Another writer may still believe that it is the one.</summary>
    void TakeOver()
    {
        Recovered recovered;
        try
        {
            recovered = Partitions.Partition.Recover(_disk, Partition, Journal, _random.NextInt64(), static _ => { });
        }
        catch (IOException e) when (e is not JournalDamagedException)
        {
            // The disk is still full, or fails: tried again later.
            Trace($"a take-over failed: {e.Message}");
            return;
        }

        Trace($"epoch {recovered.Journal.Epoch} takes over at event {recovered.Machine.State.LastSequence}, block {recovered.Journal.LastNumber}{(recovered.Journal.TornTail is { } torn ? $", and cuts {torn}" : "")}");

        _lives++;
        StateMachine machine = recovered.Machine;
        CheckRecovered(machine.State);
        // What was found was made durable, and marked so.
        _durable[recovered.Journal.LastNumber] = recovered.Journal.LastHash;
        _writers.Add(new Writer(recovered, new PartitionCore(machine, recovered.Journal.LastTimeMicros), new EventReaders(_disk, Partition, recovered.Journal, machine.State), _options));
    }

    /// <summary>The state of a snapshot and what came after it is that of a replay from the first event; nothing that was durable is gone or another.</summary>
    void CheckRecovered(State state)
    {
        StateMachine replayed = new(new State(_random.NextInt64()));
        using JournalReader reader = new(_disk, Partition, checkMerkleRoots: true);
        while (reader.TryReadNext(out Block block))
        {
            Partitions.Partition.Apply(block, replayed);
            Check(!_durable.TryGetValue(reader.LastNumber, out Hash256 hash) || hash == reader.LastHash, $"block {reader.LastNumber} was durable, and is another one now");
        }

        Check(_durable.Count == 0 || _durable.Keys.Max() <= reader.LastNumber, "a block that was durable is gone");
        Check(Bytes(state).AsSpan().SequenceEqual(Bytes(replayed.State)), "the recovered state is not that of a replay from the first event");
        foreach (uint currency in state.CurrenciesInUse()) Check(state.CountSum(currency) == 0, $"the balances of {state.CurrencyCode(currency)} do not add up to 0");
    }

    static byte[] Bytes(State state)
    {
        using MemoryStream stream = new();
        state.Write(stream);
        return stream.ToArray();
    }

    void Act()
    {
        if (_writers.Count == 0)
        {
            TakeOver();
            return;
        }

        Writer writer = _writers[_random.Next(4) == 0 ? _random.Next(_writers.Count) : ^1];
        try
        {
            switch (_random.Next(8 + (_isHealed ? 0 : _options.SlowDisk)))
            {
                case 0 or 1 or 2:
                    Ask(_clients[_random.Next(_clients.Count)], writer);
                    break;
                case 3:
                    Append(writer);
                    break;
                case 4:
                    Trace($"epoch {writer.Journal.Epoch} flushes up to block {writer.Journal.LastNumber}");
                    writer.Journal.Flush();
                    _durable[writer.Journal.LastNumber] = writer.Journal.LastHash;
                    break;
                case 5:
                    Answer(writer);
                    break;
                case 6:
                    Tend(writer);
                    break;
                default:
                    Fill(writer);
                    break;
            }
        }
        catch (IOException e) when (e is not JournalDamagedException)
        {
            Trace($"epoch {writer.Journal.Epoch} stops: {e.Message}");
            Stop(writer);
        }
    }

    void Fill(Writer writer)
    {
        bool isDue = writer.Core.State.Holds.FirstDue(_nowMicros) >= 0 && writer.Journal.HasReserve;
        if ((writer.Queue.IsEmpty && !isDue) || !writer.Free.TryPop(out EventBatch? batch)) return;
        writer.Core.Fill(batch, _nowMicros, writer.Queue, writer.Journal.HasRoom, writer.Journal.HasReserve);
        if (batch.Count == 0) writer.Free.Push(batch);
        else writer.Sealed.Enqueue(batch);
    }

    void Append(Writer writer)
    {
        if (!writer.Sealed.TryDequeue(out EventBatch? batch)) return;
        Trace($"epoch {writer.Journal.Epoch} appends block {writer.Journal.LastNumber + 1}, events {batch.FirstSequence} to {batch.NextSequence - 1}");
        writer.Journal.Append(writer.Journal.Epoch, batch.FirstSequence, batch.TimeMicros, batch.Count, Event.SizeBytes, batch.EventBytes, batch.Attachments, batch.Erasable);
        writer.Free.Push(batch);
    }

    static void Answer(Writer writer) => Partitions.Partition.Answer(writer.Core, writer.Journal, writer.Journal.FlushedSequence);

    /// <summary>What an idle writer does beside: marks, room ahead, snapshots.</summary>
    void Tend(Writer writer)
    {
        if (writer.Journal.WantsMark && writer.Sealed.Count == 0)
        {
            Trace($"epoch {writer.Journal.Epoch} appends block {writer.Journal.LastNumber + 1}, a mark");
            writer.Journal.AppendMark();
        }

        if (writer.Journal.WantsNext) writer.Journal.AllocateNext();
        if (!Happens(_options.SnapshotRate * 10)) return;
        try
        {
            Partitions.Partition.SnapshotBeside(_disk, Partition, writer.Journal, writer.Readers, _random.NextInt64(), static _ => { });
        }
        catch (IOException e) when (e is not JournalDamagedException)
        {
            // The next one is tried later.
            Trace($"no snapshot was made: {e.Message}");
        }
    }

    /// <summary>Its journal failed: it answers nothing from what it has any more.</summary>
    void Stop(Writer writer)
    {
        writer.IsStopped = true;
        _writers.Remove(writer);
        writer.Core.Abandon();
        while (writer.Queue.TryPeek(out Request request))
        {
            writer.Queue.Remove(request);
            request.Fail(RequestStatus.Unavailable, request is ReadRequest ? RequestStatus.Unavailable : RequestStatus.UnavailableUnknown);
        }
    }

    void Ask(Client client, Writer writer)
    {
        if (client.Request is not null)
        {
            // Now and then a caller gives up; what it asked for goes on.
            if (_random.Next(200) == 0 && !_isHealed) GiveUp(client);
            return;
        }

        client.Asked = writer;
        client.NotBefore = _acknowledgedSequence;
        if (client.Command is null && _random.Next(100) < _options.ReadPercent)
        {
            if (_isHealed) return;
            AccountName account = Account(_random.Next(_options.Accounts + 1) is > 0 and int n ? n - 1 : -1);
            writer.Core.State.TryCurrency(CurrencyCode.Parse(LedgerModel.Currencies[_random.Next(2)]), out uint currency, out _);
            client.Read = (account, currency);
            Submit(client, new ReadRequest<Balance>(state => state.Balance(state.Names.Find(account), currency)));
            return;
        }

        if (client.Command is null)
        {
            if (_isHealed) return;
            client.Command = _ids.Count > 0 && _random.Next(100) < _options.RepeatPercent ? _sent[_ids[_random.Next(_ids.Count)]] : NewCommand();
        }

        Command command = client.Command.Value;
        if (command.Kind == CommandKind.Reverse && command.Details is null)
        {
            client.IsLookingUp = true;
            Submit(client, new ReadRequest<(Outcome Outcome, ulong Original, ulong Before)>(state =>
                (StateMachine.FindOriginalOf(state, command, out ulong original, out _, out ulong before), original, before)));
            return;
        }

        CommandRequest request = new(1);
        request.Commands[0] = command;
        if (_fates.TryGetValue(command.TransactionId, out Fate? fate)) fate.AttemptsInFlight++;
        Submit(client, request);
    }

    void Submit(Client client, Request request)
    {
        client.Request = request;
        client.Answer = request.Begin(Timeout.InfiniteTimeSpan);
        if (client.Asked!.Queue.TryAdd(request) is RequestStatus refused) request.Complete(refused);
    }

    static AccountName Account(int number) => AccountName.Parse(number < 0 ? "@world" : $"a{number}");

    UInt128 NewId()
    {
        Span<byte> bytes = stackalloc byte[16];
        _random.NextBytes(bytes);
        return System.Buffers.Binary.BinaryPrimitives.ReadUInt128BigEndian(bytes);
    }

    Command NewCommand()
    {
        Command command = _setUp.TryDequeue(out Command first) ? first : RandomCommand();
        if (command.Kind is not (CommandKind.Transfer or CommandKind.Transaction or CommandKind.Capture or CommandKind.Void or CommandKind.Reverse)) return command;
        command.TransactionId = NewId();
        _sent[command.TransactionId] = command;
        _fates[command.TransactionId] = new Fate();
        if (!command.DryRun) _ids.Add(command.TransactionId);
        return command;
    }

    Command RandomCommand()
    {
        int from = _random.Next(_options.Accounts), to = (from + 1 + _random.Next(_options.Accounts - 1)) % _options.Accounts;
        Command command = _random.Next(100) switch
        {
            int n when n < _options.AccountChangePercent => NewChange(from),
            int n when n < _options.AccountChangePercent + 20 && _ids.Count > 0 && _options.HoldPercent > 0 => new Command
            {
                Kind = _random.Next(3) == 0 ? CommandKind.Void : CommandKind.Capture,
                OriginalId = _random.Next(5) == 0 ? SomeId() : SomeHold(),
                AmountDigits = _random.Next(2) * _random.Next(50),
            },
            _ when _ids.Count > 0 && _random.Next(100) < _options.ReversalPercent / 2 => new Command { Kind = CommandKind.Reverse, OriginalId = SomeId(), AmountDigits = _random.Next(2) * _random.Next(20) },
            _ when _random.Next(100) < _options.TransactionPercent => new Command
            {
                Kind = CommandKind.Transaction,
                Details = new CommandDetails
                {
                    Postings = [.. Enumerable.Range(0, 1 + _random.Next(_random.Next(10) == 0 ? 64 : 5)).Select(i => new Posting
                    {
                        Account = Account((from + i) % _options.Accounts), Counterparty = Account(_random.Next(20) == 0 ? -1 : (from + i + 1) % _options.Accounts),
                        AmountDigits = 1 + _random.Next(50), AmountScale = 0, Currency = CurrencyCode.Parse(LedgerModel.Currencies[_random.Next(2)]),
                    })],
                },
            },
            _ => new Command
            {
                Kind = CommandKind.Transfer,
                Account = Account(_random.Next(3) == 0 ? -1 : from),
                Counterparty = Account(_random.Next(8) == 0 && from != 0 ? 0 : to),
                AmountDigits = 1 + _random.Next(100),
                AmountScale = 0,
                Currency = CurrencyCode.Parse(LedgerModel.Currencies[_random.Next(2)]),
                Pending = _random.Next(100) < _options.HoldPercent,
                UpTo = _random.Next(10) == 0,
                DryRun = _random.Next(30) == 0,
            },
        };
        if (command.Account == command.Counterparty && command.Kind == CommandKind.Transfer) command.Counterparty = Account(-1);
        if (command.Account == command.Counterparty && command.Kind == CommandKind.Transfer) command.Account = Account(from);
        if (command.Pending && _random.Next(3) > 0) command.ExpiresInSeconds = 1 + _random.Next(20);
        return command;
    }

    /// <summary>One of the last holds, if there is any.</summary>
    UInt128 SomeHold() => _ids.AsEnumerable().Reverse().Where(id => _sent[id].Pending).Take(1 + _random.Next(4)).LastOrDefault(SomeId());

    UInt128 SomeId() => _ids[Math.Max(0, _ids.Count - 1 - _random.Next(20))];

    Command NewChange(int account)
    {
        Command command = new() { Account = Account(account), Details = new CommandDetails { By = "simulation" } };
        switch (_random.Next(12))
        {
            case 0 or 5 or 6:
                (command.Kind, command.Direction) = (CommandKind.Freeze, (Direction)(1 + _random.Next(3)));
                break;
            case 1 or 2:
                command.Kind = CommandKind.Unfreeze;
                break;
            case 3:
                CurrencyCode currency = CurrencyCode.Parse(LedgerModel.Currencies[_random.Next(2)]);
                bool hasMin = _random.Next(2) == 0;
                (command.Kind, command.Details) = (CommandKind.SetLimits, new CommandDetails
                {
                    Limits = [new LimitsAsWritten(currency, hasMin, -_random.Next(50), 0, !hasMin || _random.Next(2) == 0, 1000 + _random.Next(5000), 0)],
                });
                break;
            case 4:
                command.Kind = CommandKind.Close;
                break;
            default:
                command.Kind = CommandKind.OpenAccount;
                break;
        }

        return command;
    }

    void ReadAnswers()
    {
        foreach (Client client in _clients)
        {
            if (client.Request is null || !client.Answer.IsCompleted) continue;
            RequestStatus status = client.Answer.Result;
            (Request request, Writer asked) = (client.Request, client.Asked!);
            client.Request = null;
            if (status == RequestStatus.Answered) _answered++;
            if (client.Read is var (account, currency))
            {
                client.Read = null;
                if (status == RequestStatus.Answered && request is ReadRequest<Balance> read)
                {
                    _reads.Add(new ReadAnswer(account, currency, read.Result.Posted, read.Result.Held, read.Sequence, client.NotBefore));
                    // Whoever asks after this answer sees no less.
                    _acknowledgedSequence = Math.Max(_acknowledgedSequence, read.Sequence);
                }
            }
            else if (client.IsLookingUp)
            {
                client.IsLookingUp = false;
                if (status == RequestStatus.Answered) OnLookedUp(client, ((ReadRequest<(Outcome, ulong, ulong)>)request).Result, asked);
            }
            else
            {
                OnDecided(client, (CommandRequest)request, status);
            }
        }
    }

    static void OnLookedUp(Client client, (Outcome Outcome, ulong Original, ulong Before) found, Writer asked)
    {
        Command command = client.Command!.Value;
        if (found.Outcome == Outcome.Done && found.Before == 0)
        {
            Original original = asked.Readers.ReadOriginal(found.Original);
            // As the server does: a transaction is reversed in full, and an amount is refused before anything is decided.
            if (original.IsTransaction && command.AmountDigits != 0)
            {
                client.Command = null;
                return;
            }

            command.Details = new CommandDetails { Original = original };
            client.Command = command;
        }
        else
        {
            client.Command = null;
        }
    }

    void OnDecided(Client client, CommandRequest request, RequestStatus status)
    {
        Command command = client.Command!.Value;
        Fate? fate = _fates.GetValueOrDefault(command.TransactionId);
        if (fate is not null) fate.AttemptsInFlight--;
        if (status != RequestStatus.Answered)
        {
            // "Left nothing behind", or nobody knows: the same again, later.
            if (fate is not null) fate.MayBeRecorded |= status is RequestStatus.UnavailableUnknown or RequestStatus.DeadlineUnknown;
            return;
        }

        Decision decision = request.Decisions[0];
        if (decision.Outcome == Outcome.Duplicate)
            Check(fate is { MayBeRecorded: true } or { AttemptsInFlight: > 0 }, $"transaction {command.TransactionId:x} was said to have left nothing behind, and is a duplicate now");
        if (decision.Outcome == Outcome.StorageFull) return;
        client.Command = null;
        // What was read from a journal is told to that command only: another attempt looks again.
        if (command.Kind == CommandKind.Reverse) command.Details = null;
        if (decision.Sequence == 0) return;
        if (fate is not null) fate.MayBeRecorded = true;
        _acknowledged.Add(new Acknowledged(command, decision, client.NotBefore));
        _acknowledgedSequence = Math.Max(_acknowledgedSequence, decision.LastSequence);
    }

    /// <summary>What clients were told against the journal, and the journal against the model, from the first event on.</summary>
    void CheckEverything()
    {
        Check(_writers.Count > 0, "after all has healed, the partition does not recover");
        List<(Event Event, long TimeMicros, byte[] Attachments)> events = [];
        using JournalReader reader = new(_disk, Partition, checkMerkleRoots: true);
        LedgerModel model = new();
        State state = _writers[^1].Core.State;
        while (reader.TryReadNext(out Block block))
        {
            byte[] attachments = block.Attachments.ToArray();
            model.SetTime(block.Header.TimeMicros);
            foreach (ref readonly Event e in block.RecordsAs<Event>())
            {
                events.Add((e, block.Header.TimeMicros, attachments));
                if (e.Kind == EventKind.Expired) Check(model.TryExpire(events[(int)e.Link - 1].Event.TransactionId), $"event {events.Count} ends a hold that is not due");
                else CheckAgainst(model, e, new Attachment(e.Attachment, attachments, []), state);
            }
        }

        for (int i = 0; i < state.BalancesCount; i++)
        {
            Balance balance = state.BalanceAt(i);
            string account = state.Names[balance.Account].ToString(), currency = state.CurrencyCode(balance.Currency);
            System.Numerics.BigInteger posted = model.Balances.GetValueOrDefault((account, currency)), held = model.HeldOf(account, currency);
            Check(posted == (System.Numerics.BigInteger)balance.Posted && held == (System.Numerics.BigInteger)balance.Held, $"{account} has {balance.Posted} {currency} and {balance.Held} held; the model says {posted} and {held}");
        }

        foreach (Acknowledged one in _acknowledged) CheckAcknowledged(one, events);
        foreach (ReadAnswer read in _reads) CheckRead(read, events, state);
        foreach ((Event e, _, _) in events) Check(!_fates.TryGetValue(e.TransactionId, out Fate? fate) || fate.MayBeRecorded, $"transaction {e.TransactionId:x} was said to have left nothing behind, and is in the journal");
    }

    void CheckAcknowledged(Acknowledged one, List<(Event Event, long TimeMicros, byte[] Attachments)> events)
    {
        (Command command, Decision decision, ulong notBefore) = one;
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

    /// <summary>A read shows the balance at one position, no older than what anybody was told before it was asked.</summary>
    void CheckRead(ReadAnswer read, List<(Event Event, long TimeMicros, byte[] Attachments)> events, State state)
    {
        Check(read.Sequence >= read.NotBefore, $"a read showed event {read.Sequence} after {read.NotBefore} was acknowledged");
        Check(read.Sequence <= (ulong)events.Count, $"a read showed event {read.Sequence}, which is lost");
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
        Check(!model.IsAnyDue, $"{e.Kind} was decided while a hold was due");
        string name = e.Account == 0 ? "" : state.Names[e.Account].ToString();
        switch (e.Kind)
        {
            case EventKind.AccountOpened when name[0] != '@':
                Expect("done", model.Open(name), e);
                return;
            case EventKind.LimitsChanged:
                Limits limits = attachment.Limits() is [var one] ? one : throw Broken("limits of one currency were set");
                Expect("done", model.SetLimits(name, state.CurrencyCode(limits.Currency), (System.Numerics.BigInteger?)limits.Min, (System.Numerics.BigInteger?)limits.Max), e);
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

        bool isFirst = e.Kind is EventKind.Held or EventKind.Captured or EventKind.TransferRejected || (e.Kind == EventKind.Debited && e.Index == 0)
            || (e.Kind == EventKind.Released && e.Flags == EventFlags.None);
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
        System.Numerics.BigInteger InMinorUnits() => (System.Numerics.BigInteger)command.AmountDigits * System.Numerics.BigInteger.Pow(10, model.DecimalsOf(command.OriginalId));
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
        new(from.ToString(), to.ToString(), currency.ToString(), (System.Numerics.BigInteger)units * System.Numerics.BigInteger.Pow(10, LedgerModel.Decimals[Array.IndexOf(LedgerModel.Currencies, currency.ToString())]));

    void Expect(string happened, string predicted, in Event e)
    {
        if (happened != predicted) throw Broken($"{e.Kind} of {e.TransactionId:x} came out as {happened}; the model says {predicted}");
    }
}
