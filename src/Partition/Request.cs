using System.Threading.Tasks.Sources;
using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>What became of a request, beside the outcomes of its commands.</summary>
public enum RequestStatus
{
    Answered,

    /// <summary>The queue is full: nothing was recorded.</summary>
    Overloaded,

    /// <summary>The server stops: nothing was recorded.</summary>
    ShuttingDown,

    /// <summary>The partition is down, and nothing was recorded.</summary>
    Unavailable,

    /// <summary>The partition went down with the request under way: ask again by id.</summary>
    UnavailableUnknown,

    /// <summary>The caller's deadline passed before the request was looked at: nothing was recorded, and nothing will be.</summary>
    DeadlineNotStarted,

    /// <summary>The caller's deadline passed with the request under way: ask again by id.</summary>
    DeadlineUnknown,

    /// <summary>
    /// The caller's deadline passed with commits across partitions under way, which go on. All else was decided and is durable; the decisions say
    /// <see cref="Outcome.Undecided"/> of these.
    /// </summary>
    InDoubt,
}

/// <summary>
/// Something a caller waits for. Whoever wins its state answers it, once: the partition, or the deadline. A caller that gives up stops
/// waiting; what was begun goes on.
/// </summary>
public abstract class Request : IValueTaskSource<RequestStatus>
{
    const int Idle = 0, Queued = 1, Running = 2, Ended = 3, Parked = 4;

    readonly Timer _timer;
    ManualResetValueTaskSourceCore<RequestStatus> _source = new() { RunContinuationsAsynchronously = true };
    long _deadline;
    int _state = Idle;

    protected Request() => _timer = new Timer(static request => ((Request)request!).OnTimer(), this, Timeout.Infinite, Timeout.Infinite);

    /// <summary>How much of the queue's bound it takes.</summary>
    internal abstract int CommandsCount { get; }

    /// <summary>Whose ids are looked for among the older ones before the request is queued.</summary>
    internal virtual ReadOnlySpan<Command> Asked => default;

    internal IdSearch Search { get; } = new();

    /// <summary>Whether the partition is done with it, so that it may be used again.</summary>
    public bool IsReusable { get; private set; }

    internal ValueTask<RequestStatus> Begin(TimeSpan timeout)
    {
        OnBegin();
        _source.Reset();
        IsReusable = false;
        _deadline = Environment.TickCount64 + (long)timeout.TotalMilliseconds;
        Volatile.Write(ref _state, Queued);
        _timer.Change((long)timeout.TotalMilliseconds, Timeout.Infinite);
        return new ValueTask<RequestStatus>(this, _source.Version);
    }

    /// <summary>Forgets what an earlier use may have left.</summary>
    protected virtual void OnBegin()
    {
    }

    /// <summary>False where its caller has given up: it must not be begun any more.</summary>
    internal bool TryStart() => Interlocked.CompareExchange(ref _state, Running, Queued) is Queued or Running;

    internal void Complete(RequestStatus status)
    {
        if (Interlocked.Exchange(ref _state, Ended) == Ended) return;
        _timer.Change(Timeout.Infinite, Timeout.Infinite);
        // One that the partition gave up may still stand in several of its lists.
        IsReusable = status != RequestStatus.UnavailableUnknown;
        _source.SetResult(status);
    }

    /// <summary>From here on it only waits for commits across partitions: its deadline finds it in doubt.</summary>
    internal void Park() => Interlocked.CompareExchange(ref _state, Parked, Running);

    /// <summary>False where its caller has given up. While it is not parked, its deadline does not look at the decisions.</summary>
    internal bool TryResume() => Interlocked.CompareExchange(ref _state, Running, Parked) is Parked or Running;

    /// <summary>Nobody waits for it any more.</summary>
    internal bool IsEnded => Volatile.Read(ref _state) == Ended;

    /// <summary>Ends all that a fault or a stop finds waiting.</summary>
    internal void Fail(RequestStatus ifNotStarted, RequestStatus ifStarted) => Complete(Volatile.Read(ref _state) is Running or Parked ? ifStarted : ifNotStarted);

    void OnTimer()
    {
        // A timer of an earlier use may fire late: the deadline says whether it is meant.
        if (Environment.TickCount64 < Volatile.Read(ref _deadline)) return;
        // The partition may begin, park and take it up again meanwhile: whichever it is when it ends is what is told.
        for (int state = Volatile.Read(ref _state); state is Queued or Running or Parked; state = Volatile.Read(ref _state))
        {
            if (Interlocked.CompareExchange(ref _state, Ended, state) != state) continue;
            _source.SetResult(state switch { Queued => RequestStatus.DeadlineNotStarted, Parked => RequestStatus.InDoubt, _ => RequestStatus.DeadlineUnknown });
            return;
        }
    }

    RequestStatus IValueTaskSource<RequestStatus>.GetResult(short token) => _source.GetResult(token);

    ValueTaskSourceStatus IValueTaskSource<RequestStatus>.GetStatus(short token) => _source.GetStatus(token);

    void IValueTaskSource<RequestStatus>.OnCompleted(Action<object?> continuation, object? state, short token, ValueTaskSourceOnCompletedFlags flags) =>
        _source.OnCompleted(continuation, state, token, flags);
}

/// <summary>What was found of a request's ids among the older ones, command by command.</summary>
public sealed class IdSearch
{
    object? _life;
    ulong _sequence;
    RememberedId[] _found = [];

    // Of those commands that something was found for, in order.
    readonly List<(int Command, int From, int Count)> _places = [];

    /// <summary>All of it, end to end.</summary>
    internal List<RememberedId> Found { get; } = [];

    internal void Begin(Generations generations, ulong sequence)
    {
        (_life, _sequence) = (generations.Life, sequence);
        Found.Clear();
        _places.Clear();
    }

    /// <summary>All that was found since belongs to one command.</summary>
    internal void FoundOf(int command, int from)
    {
        if (Found.Count > from) _places.Add((command, from, Found.Count - from));
    }

    /// <summary>Whether it tells all that this state does not know any more.</summary>
    internal bool IsFor(Generations generations) => _life == generations.Life && (_sequence >= generations.Forgotten || Injected.Is(PartitionDefect.SearchNotRepeated));

    internal Recalled Of(int index, in Command command)
    {
        if (_places.Count == 0) return new Recalled(_sequence, command.TransactionId, command.OriginalId, default);
        int low = 0, high = _places.Count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (_places[middle].Command < index) low = middle + 1;
            else high = middle;
        }

        if (low == _places.Count || _places[low].Command != index) return new Recalled(_sequence, command.TransactionId, command.OriginalId, default);
        if (_found.Length < Found.Count) _found = new RememberedId[Math.Max(Found.Count, _found.Length * 2)];
        (_, int from, int count) = _places[low];
        Found.CopyTo(from, _found, from, count);
        return new Recalled(_sequence, command.TransactionId, command.OriginalId, new ArraySegment<RememberedId>(_found, from, count));
    }
}

/// <summary>One command or many, decided in order; may be used again and again by one caller at a time.</summary>
public sealed class CommandRequest(int capacity) : Request
{
    public Command[] Commands { get; } = new Command[capacity];

    public Decision[] Decisions { get; } = new Decision[capacity];

    public int Count { get; set; } = 1;

    /// <summary>The next one to decide.</summary>
    internal int Next { get; set; }

    /// <summary>Whether it waits for a block to be durable.</summary>
    internal bool IsWaiting { get; set; }

    /// <summary>How many of them wait for a commit across partitions.</summary>
    internal int UndecidedCount { get; set; }

    /// <summary>Where the last of them was decided: what has to be durable before the answer.</summary>
    internal ulong DecidedSequence { get; set; }

    internal override int CommandsCount => Count;

    internal override ReadOnlySpan<Command> Asked => Commands.AsSpan(0, Count);

    protected override void OnBegin() => (Next, IsWaiting, UndecidedCount, DecidedSequence) = (0, false, 0, 0);
}

/// <summary>An operator ends a commit across partitions that is not decided.</summary>
/// <param name="attempt">Its head.</param>
public sealed class AbortRequest(ulong attempt, string? by) : Request
{
    public ulong Attempt { get; } = attempt;

    public string? By { get; } = by;

    /// <summary>Whether it could be; null where no such one is under way.</summary>
    public bool? IsAborted { get; internal set; }

    internal override int CommandsCount => 1;
}

/// <summary>A read that rides the queue: it sees all that was queued before it, and is answered when that is durable.</summary>
public abstract class ReadRequest : Request
{
    /// <summary>Set for a read of the past: no later block may get this time or an earlier one.</summary>
    public long AsOfMicros { get; init; }

    /// <summary>Set for a read that asks for a command's ids: only these may it ask for.</summary>
    public Command About { get => _about; init => _about = value; }

    Command _about;

    internal override int CommandsCount => 1;

    internal override ReadOnlySpan<Command> Asked => _about.Kind == 0 ? default : new ReadOnlySpan<Command>(ref _about);

    internal abstract void Read(PartitionCore core);
}

public sealed class ReadRequest<T>(Func<PartitionCore, T> read) : ReadRequest
{
    public ReadRequest(Func<State, T> read)
        : this((PartitionCore core) => read(core.State))
    {
    }

    public T Result { get; private set; } = default!;

    /// <summary>The last event that the read saw.</summary>
    public ulong Sequence { get; private set; }

    internal override void Read(PartitionCore core)
    {
        Sequence = core.State.LastSequence;
        Result = read(core);
    }
}
