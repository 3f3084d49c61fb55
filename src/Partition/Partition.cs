using System.Collections.Concurrent;
using System.Diagnostics;
using System.Runtime.InteropServices;
using Purse.Journal;
using Purse.Ledger;

namespace Purse.Partitions;

public sealed record PartitionOptions
{
    /// <summary>The queue's bound, in commands.</summary>
    public int QueuedCommandsMax { get; init; } = 65_536;

    /// <summary>A block ends after this many; a command's events never straddle two.</summary>
    public int EventsPerBlockMax { get; init; } = 8_192;

    public int BlocksInFlightMax { get; init; } = 8;

    /// <summary>A snapshot is made after this many events, or more where there are many balances, beside the writer.</summary>
    public ulong EventsPerSnapshot { get; init; } = 8_000_000;

    /// <summary>Ids of older events than those of the last so many leave memory.</summary>
    public ulong EventsPerGeneration { get; init; } = State.EventsPerGeneration;

    /// <summary>How long the writer is idle before an empty block carries the durable mark of the last one.</summary>
    public TimeSpan MarkDelay { get; init; } = TimeSpan.FromMilliseconds(20);

    /// <summary>Between two attempts to recover from a failure of the journal, at most; the first follow sooner.</summary>
    public TimeSpan RecoveryDelay { get; init; } = TimeSpan.FromSeconds(1);

    /// <summary>Begins also where its journal cannot be reached yet, and serves when it can.</summary>
    public bool IsPatient { get; init; }
}

/// <summary>Says something to another partition, wherever it is. What does not arrive is said again by whoever needs an answer.</summary>
public delegate void MessageSender(int to, ReadOnlySpan<Message> messages);

/// <summary>
/// The single writer of one shard. One thread decides (<see cref="PartitionCore"/>), one appends and flushes what is more than a few commands; those that come
/// while a flush runs form the next block. When the journal fails the partition answers nothing any more, and recovers from what is on disk.
/// </summary>
public sealed partial class Partition : IAsyncDisposable
{
    readonly IJournalStore _store;
    readonly PartitionOptions _options;
    readonly TimeProvider _clock;
    readonly Action<string> _log;
    readonly RequestQueue _queue;
    readonly Func<bool> _hasWork;
    readonly Lock _inboxLock = new();
    List<Message> _inbox = [];
    List<Message> _taken = [];

    /// <summary>How many wait there; any thread may look.</summary>
    volatile int _inboxCount;

    MessageSender? _sender;
    readonly BlockingCollection<EventBatch> _appends = [];
    readonly ConcurrentBag<EventBatch> _freeBatches = [];
    readonly Thread _thread;
    readonly TaskCompletionSource _stopped = new(TaskCreationOptions.RunContinuationsAsynchronously);
    Serving? _serving;
    volatile Exception? _fault;
    volatile bool _stopping;
    readonly Lock _journalLock = new();
    int _batchesInFlight;
    bool _seenStopping;

    /// <summary>The latest past that was told of, in this life or one before.</summary>
    long _answeredTimeMicros;

    /// <summary>One life between two recoveries.</summary>
    sealed class Serving(JournalWriter journal, PartitionCore core, EventReaders readers, Derived derived)
    {
        public JournalWriter Journal { get; } = journal;

        public PartitionCore Core { get; } = core;

        public EventReaders Readers { get; } = readers;

        public Derived Derived { get; } = derived;

        public ulong SnapshotSequence { get; set; }

        /// <summary>The end of the last snapshot that is known to be what the journal makes, or was begun with; and of that which is being looked at.</summary>
        public ulong AuditedSequence { get; set; }

        public ulong AuditingSequence { get; set; }

        public volatile Exception? JournalFault;
        public ulong SeenFlushedSequence = core.FlushedSequence;
        public Task? Snapshotting;
        public long NextSnapshotTicks;
        public Task? Auditing;
        public Task? Allocating;
        public long NextAllocationTicks;
        public Task? WritingRun;
        public Task? MergingRuns;
        public Run[]? MergedRuns;
        public long NextRunTicks;
        public readonly CancellationTokenSource Ending = new();
    }

    Partition(IJournalStore store, int partitionsCount, PartitionOptions options, TimeProvider clock, Action<string> log)
    {
        Number = store.Partition;
        PartitionsCount = partitionsCount;
        _store = store;
        _options = options;
        _clock = clock;
        _log = log;
        _queue = new RequestQueue(options.QueuedCommandsMax);
        _hasWork = HasWork;
        for (int i = 0; i < options.BlocksInFlightMax; i++) _freeBatches.Add(new EventBatch(options.EventsPerBlockMax));
        _thread = new Thread(Run) { Name = $"partition {Number}", IsBackground = true };
    }

    public int Number { get; }

    public int PartitionsCount { get; }

    /// <summary>Recovers, and begins to serve. Throws where the journal is damaged.</summary>
    public static Partition Start(IJournalStore store, int partitionsCount, PartitionOptions options, TimeProvider clock, Action<string> log)
    {
        Partition partition = new(store, partitionsCount, options, clock, log);
        try
        {
            partition._serving = partition.Recover();
        }
        catch (IOException e) when (options.IsPatient && e is not JournalDamagedException)
        {
            log($"Partition {partition.Number} cannot be served yet: {e.Message}");
            partition._fault = e;
            partition._queue.Close(RequestStatus.Unavailable);
        }

        partition._thread.Start();
        return partition;
    }

    /// <summary>Null while the partition serves; else what stopped it.</summary>
    public Exception? Fault => _fault;

    /// <summary>Another writer has its journal: this one is over.</summary>
    public bool IsDeposed { get; private set; }

    /// <summary>It was stopped, or failed for good: it answers nothing any more.</summary>
    public Task Ended => _stopped.Task;

    /// <summary>Takes writes: it serves, it is not stopping, and its storage has room.</summary>
    public bool IsReady => _fault is null && !_stopping && Volatile.Read(ref _serving) is { } serving && serving.Journal.HasRoom;

    public int QueuedCommands => _queue.CommandsCount;

    /// <summary>Readers of flushed events, and the positions they may read up to.</summary>
    public EventReaders? Readers => Volatile.Read(ref _serving)?.Readers;

    /// <summary>Blocks in order, those after the one that has this event; null while there is no journal to read.</summary>
    public JournalReader? ReadAfter(ulong sequence) => sequence == 0 ? _store.Read(checkMerkleRoots: false) : Volatile.Read(ref _serving)?.Journal.ReadAfter(sequence);

    /// <summary>Waits until the request is answered or its time is over; the request says what it got.</summary>
    public ValueTask<RequestStatus> SubmitAsync(Request request, TimeSpan timeout)
    {
        ValueTask<RequestStatus> answer = request.Begin(timeout);
        if (!TrySearch(request)) request.Complete(RequestStatus.Unavailable);
        else if (_queue.TryAdd(request) is RequestStatus refused) request.Complete(refused);
        return answer;
    }

    void Run()
    {
        Thread journalThread = new(AppendLoop) { Name = $"journal {Number}", IsBackground = true };
        journalThread.Start();
        while (true)
        {
            try
            {
                if (_fault is { } unreachable && !RecoverAfter(unreachable)) break;
                Serve(_serving!);
                break;
            }
            catch (Exception e)
            {
                if (!RecoverFrom(e)) break;
            }
        }

        _appends.CompleteAdding();
        journalThread.Join();
        _queue.Close(_stopping ? RequestStatus.ShuttingDown : RequestStatus.Unavailable);
        DrainQueue(_stopping ? RequestStatus.ShuttingDown : RequestStatus.Unavailable);
        _stopped.TrySetResult();
    }

    bool HasWork() => _stopping != _seenStopping || (!_queue.IsEmpty || _inboxCount > 0) && MayFill(_serving!) || HasNews(_serving!);

    /// <summary>
    /// While a flush runs, so few wait for its end, and are the next block together: a block for each of them would cost more than it gains. More than these are
    /// decided meanwhile.
    /// </summary>
    const int CommandsWorthABlock = 256;

    /// <summary>
    /// A block that is no larger, with nothing before it on its way, is flushed by the deciding thread itself: it would only wait for that, and to wake the
    /// journal's thread and be woken by it takes as long as a flush. Not in a database: its commit may hang, and who decides must hear of faults meanwhile.
    /// </summary>
    const int EventsFlushedHereMax = 2 * CommandsWorthABlock;

    bool MayFill(Serving serving) =>
        Volatile.Read(ref _batchesInFlight) < _options.BlocksInFlightMax && (!IsFlushing(serving) || _queue.CommandsCount >= CommandsWorthABlock || _inboxCount >= CommandsWorthABlock);

    static bool IsFlushing(Serving serving) => serving.Journal.FlushedSequence < serving.Core.AppendedSequence;

    static bool HasNews(Serving serving) => serving.JournalFault is not null || serving.Journal.FlushedSequence != serving.SeenFlushedSequence;

    void Serve(Serving serving)
    {
        PartitionCore core = serving.Core;
        while (true)
        {
            if (serving.JournalFault is { } fault) throw new IOException(fault.Message, fault);
            serving.SeenFlushedSequence = serving.Journal.FlushedSequence;
            Answer(core, serving.Journal, serving.SeenFlushedSequence);
            Send(core);
            TendSnapshots(serving);
            TendRuns(serving);

            // In this order: what was queued before the stop is seen before the partition takes itself to be idle.
            _seenStopping = _stopping;
            bool idle = _queue.IsEmpty;
            if ((!idle || _inboxCount > 0 || (serving.Journal.HasReserve && core.HasWork(NowMicros()))) && MayFill(serving) && _freeBatches.TryTake(out EventBatch? batch))
            {
                bool isAlone = !IsFlushing(serving);
                Receive(core);
                core.Fill(batch, NowMicros(), _queue, serving.Journal.HasRoom, serving.Journal.HasReserve);
                if (batch.Count == 0)
                {
                    // Only reads, or refusals that leave no event: they wait for what is in flight, or for nothing.
                    _freeBatches.Add(batch);
                    Answer(core, serving.Journal, serving.SeenFlushedSequence);
                    Send(core);
                }
                else
                {
                    Interlocked.Increment(ref _batchesInFlight);
                    if (isAlone && !serving.Journal.IsFlushFenced && batch.Count <= EventsFlushedHereMax) AppendAndFlush(batch);
                    else _appends.Add(batch);
                }

                continue;
            }

            // Expiries have nobody who waits for them: durable is what counts.
            if (_seenStopping && idle && core.WaitingCount == 0 && core.FlushedSequence == core.AppendedSequence)
            {
                Stop(serving);
                return;
            }

            _queue.Sleep(_hasWork, IdleLookMilliseconds, IsFlushing(serving) ? CommandsWorthABlock : 1);
        }
    }

    /// <summary>Holds expire, and what was not answered is said again, without traffic too: how often an idle partition looks.</summary>
    const int IdleLookMilliseconds = 100;

    /// <summary>Says from now on to the others what has to be said to them.</summary>
    /// <param name="peers">All partitions, by number.</param>
    public void Connect(IReadOnlyList<Partition> peers) => Connect((to, messages) => peers[to].Deliver(messages));

    public void Connect(MessageSender sender)
    {
        Volatile.Write(ref _sender, sender);
        _queue.Wake();
    }

    /// <summary>Takes what another partition says. One that is down hears nothing: it is said again.</summary>
    public void Deliver(ReadOnlySpan<Message> messages)
    {
        if (_fault is not null) return;
        lock (_inboxLock)
        {
            if (_inbox.Count > MessagesMax) return;
            _inbox.AddRange(messages);
            _inboxCount = _inbox.Count;
        }

        _queue.Wake();
    }

    /// <summary>One that is stalled hears no more than this: what is lost is said again.</summary>
    const int MessagesMax = 1_000_000;

    /// <summary>Room for more than these was for once, and is not kept.</summary>
    const int MessagesKeptMax = 65_536;

    /// <summary>One delivery to each other partition, however much there is to say.</summary>
    void Send(PartitionCore core)
    {
        if (core.Outgoing.Count == 0 || Volatile.Read(ref _sender) is not { } sender) return;
        foreach (ref readonly Message message in CollectionsMarshal.AsSpan(core.Outgoing))
        {
            while (_outgoing.Count <= message.To) _outgoing.Add([]);
            _outgoing[message.To].Add(message);
        }

        core.Outgoing.Clear();
        for (int to = 0; to < _outgoing.Count; to++)
        {
            if (_outgoing[to].Count == 0) continue;
            sender(to, CollectionsMarshal.AsSpan(_outgoing[to]));
            _outgoing[to].Clear();
        }
    }

    /// <summary>By partition, on their way out.</summary>
    readonly List<List<Message>> _outgoing = [];

    /// <summary>Recovers at once, as after a failure: its journal may be somewhere else now.</summary>
    public void Reopen(string why)
    {
        if (Volatile.Read(ref _serving) is { } serving && _fault is null) serving.JournalFault ??= new IOException(why);
        _queue.Wake();
    }

    void Receive(PartitionCore core)
    {
        if (_inboxCount == 0) return;
        lock (_inboxLock)
        {
            (_inbox, _taken, _inboxCount) = (_taken, _inbox, 0);
        }

        foreach (ref readonly Message message in CollectionsMarshal.AsSpan(_taken)) core.Receive(message);
        if (_taken.Capacity > MessagesKeptMax) _taken = [];
        else _taken.Clear();
    }

    /// <summary>
    /// Answers all that rests on what is durable. Only while this writer still owns the journal: one that lost it must not even say what it
    /// has, or does not have.
    /// </summary>
    public static void Answer(PartitionCore core, JournalWriter journal, ulong flushedSequence)
    {
        if (journal.IsFlushFenced ? core.HasBareAnswers : core.HasToSpeak) journal.ConfirmEpoch();
        core.Flushed(flushedSequence);
    }

    long NowMicros() => (_clock.GetUtcNow() - DateTimeOffset.UnixEpoch).Ticks / TimeSpan.TicksPerMicrosecond;

    /// <summary>The journal's thread: appends what is sealed, and makes all of it durable with one flush. It also marks the last block of a writer that is idle.</summary>
    void AppendLoop()
    {
        while (true)
        {
            bool any = _appends.TryTake(out EventBatch? batch, _options.MarkDelay);
            if (!any && _appends.IsCompleted) return;
            // The deciding thread may have flushed something meanwhile.
            if (!any && Environment.TickCount64 - Volatile.Read(ref _flushedTicks) < (long)_options.MarkDelay.TotalMilliseconds) continue;
            AppendAndFlush(batch);
            _queue.Wake();
        }
    }

    long _flushedTicks;

    /// <param name="batch">The first that waits; null where none does, and the last block may want its mark.</param>
    void AppendAndFlush(EventBatch? batch)
    {
        lock (_journalLock)
        {
            // Not yet, where its journal could not be reached.
            if (_serving is not { } serving) return;
            try
            {
                long started = Stopwatch.GetTimestamp();
                bool isMeasured = batch is not null;
                if (batch is null && serving.JournalFault is null && serving.Journal.WantsMark) serving.Journal.AppendMark();
                // A bounded number to a flush: a stream of blocks that never ends must not keep the first one waiting.
                for (int appended = 1; batch is not null; appended++)
                {
                    if (serving.JournalFault is null) Interlocked.Add(ref _journalBytes, Append(serving, batch));
                    Release(batch);
                    batch = null;
                    if (appended < _options.BlocksInFlightMax) _appends.TryTake(out batch);
                }

                ulong before = serving.Journal.FlushedSequence;
                if (serving.JournalFault is null) serving.Journal.Flush();
                if (serving.Journal.FlushedSequence != before) Interlocked.Increment(ref _flushesCount);
                if (isMeasured) Volatile.Write(ref _flushedTicks, Environment.TickCount64);
                if (isMeasured) FlushSeconds.Record(Stopwatch.GetElapsedTime(started).TotalSeconds, new KeyValuePair<string, object?>("partition", Number));
                if (serving.JournalFault is null && serving.Journal.WantsNext) AllocateAhead(serving);
            }
            catch (Exception e)
            {
                serving.JournalFault = e;
                if (batch is not null) Release(batch);
            }
        }
    }

    void Release(EventBatch batch)
    {
        _freeBatches.Add(batch);
        Interlocked.Decrement(ref _batchesInFlight);
    }

    /// <summary>Zeroing a segment takes longer than a flush may: on a thread of its own. A full disk is asked again every second.</summary>
    void AllocateAhead(Serving serving)
    {
        if (serving.Allocating is { IsCompleted: false } || Environment.TickCount64 < serving.NextAllocationTicks) return;
        serving.NextAllocationTicks = 0;
        serving.Allocating = Task.Run(() =>
        {
            try
            {
                if (serving.Journal.AllocateNext()) return;
                _log($"Partition {Number}: no journal segment can be allocated: {serving.Journal.AllocationFailure} {(serving.Journal.HasRoom ? "Writing goes on in the one that is there." : "New commands are refused.")}");
            }
            catch (ObjectDisposedException)
            {
                // The journal ended first.
            }

            serving.NextAllocationTicks = Environment.TickCount64 + 1000;
        });
    }

    /// <returns>How many bytes the block has.</returns>
    static int Append(Serving serving, EventBatch batch) => serving.Journal.Append(
        serving.Journal.Epoch, batch.FirstSequence, batch.TimeMicros, batch.Count, Event.SizeBytes, batch.EventBytes, batch.Attachments, batch.Erasable);

    public async ValueTask DisposeAsync()
    {
        // In this order: a recovery that opens the queue looks for the other afterwards.
        _stopping = true;
        _queue.Close(RequestStatus.ShuttingDown);
        await _stopped.Task;
    }
}
