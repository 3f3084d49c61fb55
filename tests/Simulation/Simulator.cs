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
public sealed partial class Simulator
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
}
