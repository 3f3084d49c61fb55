using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Simulation;

/// <summary>What a run came to.</summary>
/// <param name="Moved">Commands that moved money, of which so many across partitions.</param>
/// <param name="Messages">Between partitions, those that were lost included.</param>
public sealed record SimulationResult(int Steps, long SimulatedMicros, int Answered, int Lives, int Faults, ulong Events, int Moved, int MovedAcross, int Messages);

/// <summary>A promise was broken.</summary>
public sealed class SimulationFailedException(SimulationOptions options, int step, string message, Exception? inner = null)
    : Exception($"{message}\nStep {step} of {options}", inner)
{
    public SimulationOptions Options { get; } = options;

    public int Step { get; } = step;
}

/// <summary>
/// The real ledger, partition cores, two-phase commit and journals in one thread, under one seed: disks, network, clocks, clients and the order of
/// everything are simulated, and go wrong. While anything may be down (safety), and after all has healed (liveness), what clients were told is held against
/// the journal, and the journal against a model that knows nothing of events.
/// </summary>
public sealed partial class Simulator
{
    // Small, so that runs cross from segment to segment.
    static readonly JournalOptions Journal = new() { SegmentSizeBytes = 512 * 1024, ReserveBytes = 64 * 1024 };

    readonly SimulationOptions _options;
    readonly Random _random;
    readonly List<Client> _clients = [];
    readonly Shard[] _shards;

    /// <summary>Messages between partitions that are on their way.</summary>
    readonly List<Message> _network = [];

    /// <summary>Ids whose commit an operator wanted to end.</summary>
    readonly HashSet<UInt128> _aborted = [];

    /// <summary>Every command ever sent, by its id; none is sent with another meaning.</summary>
    readonly Dictionary<UInt128, Command> _sent = [];
    readonly List<UInt128> _ids = [];

    readonly Dictionary<UInt128, Fate> _fates = [];

    /// <summary>Accounts and money come first: without them, everything else is refused.</summary>
    readonly Queue<Command> _setUp = new();
    readonly List<Acknowledged> _acknowledged = [];
    readonly List<ReadAnswer> _reads = [];

    long _nowMicros = 1_700_000_000_000_000;
    long _startMicros;
    int _step;
    int _answered;
    int _lives;
    int _faults;
    int _moved;
    int _movedAcross;
    int _messages;
    bool _isHealed;

    sealed record Acknowledged(int Partition, Command Command, Decision Decision, ulong NotBefore, int AnsweredStep);

    sealed record ReadAnswer(int Partition, AccountName Account, uint Currency, Int128 Posted, Int128 Held, ulong Sequence, ulong NotBefore, int AskedStep, long AsOfMicros, ulong Epoch);

    /// <summary>One partition: its disk, and whoever believes to be its writer.</summary>
    sealed class Shard(int number)
    {
        public int Number => number;

        public FaultyDisk Disk { get; set; } = new();

        /// <summary>Writers that were told to stop, and did.</summary>
        public HashSet<ulong> EndedEpochs { get; } = [];

        public FileStore Store => new(Disk, number, Journal);

        public List<Writer> Writers { get; } = [];

        /// <summary>How far its clock is from the others'.</summary>
        public long ClockMicros { get; set; }

        /// <summary>Hashes of blocks that a flush made durable, by number.</summary>
        public Dictionary<ulong, Hash256> Durable { get; } = [];

        /// <summary>What anybody was told of.</summary>
        public ulong AcknowledgedSequence { get; set; }
    }

    /// <summary>One life of a partition's host; several at once where one does not know that it was deposed.</summary>
    sealed class Writer(Shard shard, Recovered recovered, PartitionCore core, EventReaders readers, SimulationOptions options)
    {
        public Shard Shard => shard;

        public Derived Derived { get; } = recovered.Derived;

        public JournalWriter Journal { get; } = recovered.Journal;

        public PartitionCore Core { get; } = core;

        public EventReaders Readers { get; } = readers;

        public RequestQueue Queue { get; } = new(1000);

        public Queue<EventBatch> Sealed { get; } = new();

        public Stack<EventBatch> Free { get; } = new(Enumerable.Range(0, options.BlocksInFlightMax).Select(_ => new EventBatch(options.EventsPerBlockMax)));

        /// <summary>Of a snapshot that is being made.</summary>
        public StateImage? Image { get; set; }

        public ulong AuditedSequence { get; set; } = recovered.AuditedSequence;

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
        public int AskedStep;

        /// <summary>Sent together, and not yet answered for good.</summary>
        public List<Command> Commands { get; } = [];

        /// <summary>Of a read: what it asks for, and of when, 0 for now.</summary>
        public (AccountName Account, uint Currency, long AsOfMicros)? Read;

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
        _shards = [.. Enumerable.Range(0, options.Partitions).Select(number => new Shard(number))];
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
                    AmountDigits = options.Funds,
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
        foreach (Shard shard in _shards) TakeOver(shard);
        for (; _step < _options.Steps; _step++)
        {
            _nowMicros += _random.Next(20_000);
            if (!TryFault()) Act();
            ReadAnswers();
        }

        Heal();
        for (int limit = _step + 40_000; !IsQuiet(); _step++)
        {
            if (_step == limit) throw Broken(_clients.Exists(c => c.Commands.Count > 0 || c.Request is not null) ? "after all has healed, a caller still waits for its answer" : "after all has healed, a commit across partitions does not end");
            _nowMicros += _random.Next(20_000);
            Act();
            ReadAnswers();
        }

        foreach (Shard shard in _shards)
        {
            Crash(shard, powerCut: true);
            TakeOver(shard);
        }

        CheckEverything();
        return new SimulationResult(
            _step, _nowMicros - _startMicros, _answered, _lives, _faults, (ulong)_shards.Sum(shard => (long)shard.Writers[^1].Core.State.LastSequence), _moved, _movedAcross, _messages);
    }

    /// <summary>Everybody was answered, and nothing is under way.</summary>
    bool IsQuiet() => !_clients.Exists(c => c.Commands.Count > 0 || c.Request is not null)
        && Array.TrueForAll(_shards, shard => shard.Writers is [.., { Core: { UndecidedCount: 0 } core }] && core.FlushedSequence == core.AppendedSequence && !core.HasWork(0));

    void Trace(Shard shard, string what) => _trace?.Invoke($"{_step,6} {(_shards.Length == 1 ? "" : $"partition {shard.Number}: ")}{what}");

    SimulationFailedException Broken(string what) => new(_options, _step, what);

    void Check(bool holds, string what)
    {
        if (!holds) throw Broken(what);
    }

    bool Happens(int perMille) => perMille > 0 && _random.Next(1000) < perMille;

    bool TryFault()
    {
        Shard shard = _shards[_random.Next(_shards.Length)];
        FaultyDisk disk = shard.Disk;
        if (Happens(_options.KillRate)) Crash(powerCut: false, shard);
        else if (Happens(_options.PowerCutRate)) Crash(powerCut: true, shard);
        else if (Happens(_options.FailWriteRate))
        {
            (disk.FailWriteIn, disk.FailingWriteIsTorn) = (1 + _random.Next(4), _random.Next(2) == 0);
            Trace(shard, $"the disk will fail write {disk.FailWriteIn} from now{(disk.FailingWriteIsTorn ? ", and tear it" : "")}");
        }
        else if (Happens(_options.FailFlushRate))
        {
            disk.FailFlushIn = 1 + _random.Next(4);
            Trace(shard, $"the disk will fail flush {disk.FailFlushIn} from now");
        }
        else if (Happens(_options.DiskFullRate))
        {
            disk.CapacityBytes = disk.CapacityBytes == long.MaxValue ? disk.UsedBytes + _random.Next(100_000) : long.MaxValue;
            Trace(shard, disk.CapacityBytes == long.MaxValue ? "the disk has room again" : "the disk is full");
        }
        else if (Happens(_options.SecondWriterRate))
        {
            // What a take-over writes first may be what fails.
            if (_options.FailWriteRate > 0 && _random.Next(2) == 0) (disk.FailWriteIn, disk.FailingWriteIsTorn) = (1 + _random.Next(3), _random.Next(3) > 0);
            TakeOver(shard);
        }
        else if (Happens(_options.CleanStopRate)) StopCleanly(shard);
        else if (Happens(_options.ClockJumpRate)) shard.ClockMicros += _random.NextInt64(-3_000_000, 10_000_000);
        else if (Happens(_options.AbortRate)) AbortSome(shard);
        else if (Happens(_options.RunDamageRate)) DamageRun(shard);
        else return false;
        _faults++;
        return true;
    }

    /// <summary>One partition, or now and then the whole machine.</summary>
    void Crash(bool powerCut, Shard shard)
    {
        foreach (Shard one in _random.Next(4) == 0 ? _shards : [shard]) Crash(one, powerCut);
    }

    /// <summary>The partition's process is gone with all that it had in memory, or its machine with what was not on disk.</summary>
    void Crash(Shard shard, bool powerCut)
    {
        Trace(shard, powerCut ? "the power is cut" : "the process is killed");
        foreach (Writer writer in shard.Writers.ToList()) Forget(writer);
        long capacity = shard.Disk.CapacityBytes;
        shard.Disk = powerCut ? shard.Disk.AfterPowerCut(_random.Next()) : shard.Disk.Copy();
        shard.Disk.CapacityBytes = capacity;
    }

    void AbortSome(Shard shard)
    {
        if (shard.Writers is not [.., Writer writer] || writer.Core.ListInDoubt(10).FindAll(one => one.Coordinator == shard.Number) is not { Count: > 0 } found) return;
        PartitionCore.InDoubt one = found[_random.Next(found.Count)];
        Trace(shard, $"an operator ends attempt {one.Head}, transaction {one.TransactionId:x}");
        _aborted.Add(one.TransactionId);
        AbortRequest request = new(one.Head, "simulation");
        _ = request.Begin(Timeout.InfiniteTimeSpan);
        if (writer.Queue.TryAdd(request) is RequestStatus refused) request.Complete(refused);
    }

    /// <summary>A file that is made from the journal is lost, cut short, or not what was written.</summary>
    void DamageRun(Shard shard)
    {
        if (shard.Disk.List(_random.Next(2) == 0 ? OldIds.Folder : History.Folder) is not { Count: > 0 } names) return;
        string name = names[_random.Next(names.Count)];
        int length = shard.Disk.Bytes(name).Length;
        Trace(shard, $"{name} is damaged");
        switch (_random.Next(3))
        {
            case 0:
                shard.Disk.Delete(name);
                break;
            case 1:
                shard.Disk.Cut(name, _random.Next(length + 1));
                break;
            case 2 when length > 0:
                shard.Disk.Flip(name, _random.Next(length));
                break;
        }
    }

    /// <summary>Whoever waits for it hears nothing.</summary>
    void Forget(Writer writer)
    {
        writer.IsStopped = true;
        writer.Shard.Writers.Remove(writer);
        foreach (Client client in _clients.Where(c => c.Asked == writer)) GiveUp(client);
    }

    void GiveUp(Client client)
    {
        if (client.Request is CommandRequest)
        {
            foreach (Command command in client.Commands)
            {
                if (FateOf(command) is not Fate fate) continue;
                fate.AttemptsInFlight--;
                fate.MayBeRecorded = true;
            }
        }

        (client.Request, client.Asked, client.Read, client.IsLookingUp) = (null, null, null, false);
    }

    void Heal()
    {
        _isHealed = true;
        foreach (Shard shard in _shards)
        {
            (shard.Disk.FailWriteIn, shard.Disk.FailFlushIn, shard.Disk.CapacityBytes) = (0, 0, long.MaxValue);
            // Whoever was deposed, and has nothing to say, would never find out; its successor may be gone.
            foreach (Writer deposed in shard.Writers.Where(IsDeposed).ToList())
            {
                Trace(shard, $"epoch {deposed.Journal.Epoch} is told that it was deposed");
                Stop(deposed);
            }
        }
    }

    /// <summary>Recovers from what is on the disk, as the server does. Another writer may still believe that it is the one.</summary>
    void TakeOver(Shard shard)
    {
        Recovered recovered;
        if (!_isHealed && Happens(_options.FailReadRate * 10)) shard.Disk.FailReadIn = 1 + _random.Next(100);
        try
        {
            recovered = Partition.Recover(shard.Store, _options.Partitions, _random.NextInt64(), static _ => { }, eventsPerGeneration: _options.EventsPerGeneration);
        }
        catch (IOException e) when (e is not JournalDamagedException)
        {
            // The disk is still full, or fails: tried again later.
            Trace(shard, $"a take-over failed: {e.Message}");
            return;
        }
        finally
        {
            shard.Disk.FailReadIn = 0;
        }

        Trace(shard, $"epoch {recovered.Journal.Epoch} takes over at event {recovered.Machine.State.LastSequence}, block {recovered.Journal.LastNumber}{(recovered.Journal.TornTail is { } torn ? $", and cuts {torn}" : "")}");

        _lives++;
        StateMachine machine = recovered.Machine;
        try
        {
            CheckRecovered(shard, recovered);
        }
        catch (RunDamagedException damage)
        {
            // Whoever looks there first notices; it is made again by the next take-over.
            Trace(shard, damage.Message);
            recovered.Derived.Delete(damage);
            return;
        }

        // What was found was made durable, and marked so.
        shard.Durable[recovered.Journal.LastNumber] = recovered.Journal.LastHash;
        EventReaders readers = new(recovered.Journal, machine.State, recovered.Derived.History);
        recovered.Derived.Serve(machine.State, readers.TransactionIdOf);
        shard.Writers.Add(new Writer(
            shard, recovered, new PartitionCore(machine, recovered.Journal.LastTimeMicros, rememberedMax: _options.RememberedMax, search: recovered.Derived.Ids.Search), readers, _options));
    }

    long NowMicros(Shard shard) => _nowMicros + shard.ClockMicros;

    void Act()
    {
        if (_network.Count > 0 && _random.Next(3) == 0)
        {
            Deliver();
            return;
        }

        int action = _random.Next(8 + (_isHealed ? 0 : _options.SlowDisk));
        if (action <= 2)
        {
            Ask(_clients[_random.Next(_clients.Count)]);
            return;
        }

        Shard shard = _shards[_random.Next(_shards.Length)];
        if (PickWriter(shard) is not Writer writer)
        {
            TakeOver(shard);
            return;
        }

        try
        {
            switch (action)
            {
                case 3:
                    Append(writer);
                    break;
                case 4:
                    Trace(shard, $"epoch {writer.Journal.Epoch} flushes up to block {writer.Journal.LastNumber}");
                    writer.Journal.Flush();
                    shard.Durable[writer.Journal.LastNumber] = writer.Journal.LastHash;
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
        catch (Exception e) when (MayHappen(e, writer))
        {
            Trace(shard, $"epoch {writer.Journal.Epoch} stops: {e.Message}");
            if (e is RunDamagedException damage) writer.Derived.Delete(damage);
            Stop(writer);
        }
    }

    /// <summary>The disk failed, or it was deposed: what is said to its successor makes no sense to it.</summary>
    static bool MayHappen(Exception e, Writer writer) => (e is IOException and not JournalDamagedException) || (e is InvariantBrokenException && IsDeposed(writer));

    static bool IsDeposed(Writer writer)
    {
        try
        {
            writer.Journal.ConfirmEpoch();
            return false;
        }
        catch (IOException)
        {
            return true;
        }
    }

    /// <summary>Mostly the one that took over last.</summary>
    Writer? PickWriter(Shard shard) => shard.Writers.Count == 0 ? null : shard.Writers[_random.Next(4) == 0 ? _random.Next(shard.Writers.Count) : ^1];

    /// <summary>One message arrives, or is lost, and may arrive again; in any order, but not for ever late.</summary>
    void Deliver()
    {
        int index = _network.Count > _options.DelayedMax ? 0 : _random.Next(_network.Count);
        Message message = _network[index];
        bool isLost = !_isHealed && _random.Next(100) < _options.LossPercent, isDoubled = !_isHealed && _random.Next(100) < _options.DoublePercent;
        if (!isDoubled || isLost) _network.RemoveAt(index);
        if (isLost) return;
        if (PickWriter(_shards[message.To]) is not Writer writer) return;
        Trace(writer.Shard, $"epoch {writer.Journal.Epoch} hears {message.Kind} of attempt {message.Attempt} from {message.From}{(message.Kind == MessageKind.Decision ? message.IsCommit ? ", commit" : ", abort" : "")}{(message.Vote.IsRefusal ? $", {message.Vote.Outcome}" : "")}");
        writer.Core.Receive(message);
    }

    void Fill(Writer writer)
    {
        long now = NowMicros(writer.Shard);
        bool isDue = writer.Core.HasWork(now) && writer.Journal.HasReserve;
        if ((writer.Queue.IsEmpty && !isDue) || !writer.Free.TryPop(out EventBatch? batch)) return;
        writer.Core.Fill(batch, now, writer.Queue, writer.Journal.HasRoom, writer.Journal.HasReserve);
        if (batch.Count == 0) writer.Free.Push(batch);
        else writer.Sealed.Enqueue(batch);
    }

    void Append(Writer writer)
    {
        if (!writer.Sealed.TryDequeue(out EventBatch? batch)) return;
        Trace(writer.Shard, $"epoch {writer.Journal.Epoch} appends block {writer.Journal.LastNumber + 1}, events {batch.FirstSequence} to {batch.NextSequence - 1}");
        writer.Journal.Append(writer.Journal.Epoch, batch.FirstSequence, batch.TimeMicros, batch.Count, Event.SizeBytes, batch.EventBytes, batch.Attachments, batch.Erasable);
        writer.Free.Push(batch);
    }

    void Answer(Writer writer)
    {
        Partition.Answer(writer.Core, writer.Journal, writer.Journal.FlushedSequence);
        _messages += writer.Core.Outgoing.Count;
        _network.AddRange(writer.Core.Outgoing);
        writer.Core.Outgoing.Clear();
    }

    /// <summary>What an idle writer does beside: marks, room ahead, snapshots.</summary>
    void Tend(Writer writer)
    {
        if (writer.Journal.WantsMark && writer.Sealed.Count == 0)
        {
            Trace(writer.Shard, $"epoch {writer.Journal.Epoch} appends block {writer.Journal.LastNumber + 1}, a mark");
            writer.Journal.AppendMark();
        }

        if (writer.Journal.WantsNext) writer.Journal.AllocateNext();
        TendRuns(writer);
        if (!Happens(_options.SnapshotRate * 10)) return;
        State state = writer.Core.State;
        if (writer.Image is null && state.Generations.BoundaryAt(state.LastSequence) <= writer.Derived.Covered && state.LastSequence > writer.AuditedSequence) writer.Image = state.BeginImage();
        // Mostly written later, when much has changed since.
        if (writer.Image is not StateImage image || _random.Next(2) == 0) return;
        try
        {
            if (!Partition.TrySnapshot(writer.Shard.Store, writer.Journal, image, writer.AuditedSequence, 0)) return;
            End(image);
            Partition.Audit(writer.Shard.Store, _options.Partitions, writer.Journal, writer.AuditedSequence, image.LastSequence, _random.NextInt64(), static _ => { }, _options.EventsPerGeneration, static () => { });
            writer.AuditedSequence = image.LastSequence;
        }
        catch (IOException e) when (e is not JournalDamagedException)
        {
            // The next one is tried later.
            Trace(writer.Shard, $"no snapshot was made: {e.Message}");
            End(image);
        }

        void End(StateImage ended)
        {
            ended.Dispose();
            writer.Image = null;
        }
    }

    /// <summary>Each of the three comes after the one before sooner or later: requests that were looked for before may wait all the while.</summary>
    void TendRuns(Writer writer)
    {
        Generations generations = writer.Core.State.Generations;
        try
        {
            if (_random.Next(2) == 0) writer.Derived.WriteDue(generations, writer.Journal.MarkedSequence);
            if (_random.Next(2) == 0) generations.Forget(writer.Derived.Covered);
            if (_random.Next(2) == 0) writer.Derived.TryMerge(writer.Journal.ConfirmEpoch, CancellationToken.None);
        }
        catch (IOException e) when (e is not RunDamagedException)
        {
            Trace(writer.Shard, $"no run was made: {e.Message}");
        }
    }

    /// <summary>As a server that is told to stop: what was asked is answered, nothing new is taken, and the last block binds the next life.</summary>
    void StopCleanly(Shard shard)
    {
        if (shard.Writers is not [.., Writer writer]) return;
        Trace(shard, $"epoch {writer.Journal.Epoch} is told to stop");
        writer.Queue.Close(RequestStatus.ShuttingDown);
        try
        {
            while (!writer.Queue.IsEmpty || writer.Sealed.Count > 0 || writer.Core.WaitingCount > 0 || writer.Core.FlushedSequence != writer.Core.AppendedSequence)
            {
                while (writer.Sealed.Count > 0) Append(writer);
                writer.Journal.Flush();
                shard.Durable[writer.Journal.LastNumber] = writer.Journal.LastHash;
                Answer(writer);
                Fill(writer);
            }

            Partition.End(shard.Store, writer.Journal, writer.Core, snapshotSequence: 0, writer.AuditedSequence, writer.Derived);
            shard.Durable[writer.Journal.LastNumber] = writer.Journal.LastHash;
            shard.EndedEpochs.Add(writer.Journal.Epoch);
            // While it is down its clock is set.
            if (_options.ClockJumpRate > 0 && _random.Next(2) == 0) shard.ClockMicros -= _random.Next(2_000_000);
        }
        catch (Exception e) when (MayHappen(e, writer))
        {
            Trace(shard, $"epoch {writer.Journal.Epoch} stops otherwise: {e.Message}");
        }

        Stop(writer);
    }

    /// <summary>Its journal failed, or is closed: it answers nothing from what it has any more.</summary>
    void Stop(Writer writer)
    {
        writer.IsStopped = true;
        writer.Shard.Writers.Remove(writer);
        writer.Core.Abandon();
        while (writer.Queue.TryPeek(out Request request))
        {
            writer.Queue.Remove(request);
            request.Fail(RequestStatus.Unavailable, request is ReadRequest ? RequestStatus.Unavailable : RequestStatus.UnavailableUnknown);
        }
    }
}
