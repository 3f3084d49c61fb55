namespace Purse.Views;

/// <summary>A read model somewhere else: it can be dropped, and is filled again from the first event on.</summary>
public interface IView : IDisposable
{
    /// <summary>Such as <c>redis 127.0.0.1:6379</c>, for operators.</summary>
    string Name { get; }

    /// <summary>Connects, makes what is missing, and says up to where each partition is in it: 0 for what it does not have.</summary>
    ulong[] Open();

    /// <summary>How far each partition is in it now, whoever has changed that. Writes nothing.</summary>
    Checkpoint[] Look();

    /// <summary>Takes the batch and moves the partition's checkpoint with it, or neither.</summary>
    /// <returns>False where the checkpoint is not where the batch begins: somebody else feeds the view, or wiped it.</returns>
    bool Write(ViewBatch batch);

    /// <summary>These partitions had no more than this at that time; where the view is somewhere else by now, it says nothing of it.</summary>
    void Mark(IReadOnlyList<(int Partition, ulong Position)> current, long timeMicros);

    /// <summary>It shows all that there is, for the first time since it was opened: what makes reading fast, and filling slow, is made now.</summary>
    void Complete();

    /// <summary>Forgets all of it.</summary>
    void Clear();
}

/// <summary>How far a partition is in a view.</summary>
/// <param name="Position">Its last event there; 0 for none.</param>
/// <param name="CurrentMicros">When there was no more than that, or than an earlier one, by the clock of who feeds it: microseconds since 1970, or 0 for never.</param>
public readonly record struct Checkpoint(ulong Position, long CurrentMicros)
{
    /// <summary>By this machine's clock, how long ago that was; null for never.</summary>
    public TimeSpan? Lag
    {
        get
        {
            if (CurrentMicros == 0) return null;
            TimeSpan lag = DateTimeOffset.UtcNow - DateTimeOffset.UnixEpoch.AddMicroseconds(CurrentMicros);
            return lag > TimeSpan.Zero ? lag : TimeSpan.Zero;
        }
    }

    public static ulong[] PositionsOf(Checkpoint[] checkpoints) => [.. checkpoints.Select(checkpoint => checkpoint.Position)];
}

/// <summary>A view, and how old it is: known to who feeds it (<see cref="ViewFeeder"/>), and to who looks at it (<see cref="ViewWatcher"/>).</summary>
public abstract class ViewSource(IView view, int partitionsCount) : IAsyncDisposable
{
    public IView View { get; } = view;

    /// <summary>Why it is not followed now; null while it is.</summary>
    public abstract string? Fault { get; }

    /// <summary>The last event of the partition that the view shows.</summary>
    public abstract ulong Position(int partition);

    /// <summary>For how long there has been something that the view may not show; null where it has never shown all there was.</summary>
    public abstract TimeSpan? LagOf(int partition);

    /// <summary>Of the partition that is furthest behind.</summary>
    public TimeSpan? Lag => Enumerable.Range(0, partitionsCount).Select(LagOf).Aggregate((one, other) => one is null || other is null ? null : one > other ? one : other);

    public abstract ValueTask DisposeAsync();
}

/// <summary>
/// Follows a view that another process feeds, by looking: with no journal, no partition and no right to change anything. How old it is comes from the
/// time that its feeder leaves there, so both clocks have to agree (a cluster's do, to half a second).
/// </summary>
public sealed class ViewWatcher : ViewSource
{
    static readonly TimeSpan Interval = TimeSpan.FromMilliseconds(50), AfterFailure = TimeSpan.FromMilliseconds(500);

    readonly CancellationTokenSource _stop = new();
    readonly Task _looking;
    volatile Checkpoint[] _checkpoints;
    volatile string? _fault;

    public ViewWatcher(IView view, int partitionsCount, Action<string> log)
        : base(view, partitionsCount)
    {
        _checkpoints = new Checkpoint[partitionsCount];
        _looking = Task.Factory.StartNew(() => Run(log), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);
    }

    public override string? Fault => _fault;

    public override ulong Position(int partition) => _checkpoints[partition].Position;

    public override TimeSpan? LagOf(int partition) => _checkpoints[partition].Lag;

    void Run(Action<string> log)
    {
        while (!_stop.IsCancellationRequested)
        {
            try
            {
                _checkpoints = View.Look();
                if (_fault is not null) log($"View {View.Name} answers again.");
                _fault = null;
            }
            catch (Exception e)
            {
                // Whatever it was: it is looked at again.
                if (_fault != e.Message) log($"View {View.Name} does not answer: {e.Message}");
                _fault = e.Message;
            }

            _stop.Token.WaitHandle.WaitOne(_fault is null ? Interval : AfterFailure);
        }

        View.Dispose();
    }

    public override async ValueTask DisposeAsync()
    {
        await _stop.CancelAsync();
        await _looking;
        _stop.Dispose();
    }
}
