using System.Diagnostics;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Views;

/// <summary>
/// Feeds one view from the journals, in order, on a thread that yields to the writers: where there is more to write than to look at, the view is behind, and
/// catches up later. What fails is tried again from where the view says that it is.
/// </summary>
public sealed class ViewFeeder : ViewSource
{
    /// <summary>Of a view that is far behind, a batch is large: many changes of a balance are then one.</summary>
    const int EventsPerBatch = 262_144;

    /// <summary>More commands than this in a partition's queue: its writer is at its limit.</summary>
    const int QueuedCommandsOfBusy = 1_024;

    /// <summary>Beside a writer that is at its limit, for as many times as long as a batch took, nothing is done; where the view is up with one that is at work, for as long.</summary>
    const int YieldFactorOfBusy = 9;

    /// <summary>Beside a busy writer a batch is small: no long one is under way when it gets busy.</summary>
    const int EventsPerBatchOfBusy = 16_384;
    static readonly TimeSpan Idle = TimeSpan.FromMilliseconds(5), AfterFailure = TimeSpan.FromMilliseconds(500), Moment = TimeSpan.FromSeconds(1);

    readonly Func<IReadOnlyList<Partition>> _fed;
    readonly Action<string> _log;
    readonly ulong[] _positions;
    readonly long[] _currentTicks;
    volatile IReadOnlyList<Partition> _partitions = [];
    volatile Checkpoint[] _seen;
    readonly JournalReader?[] _readers;
    readonly ViewBatch _batch = new();
    readonly Thread _thread;
    readonly TaskCompletionSource _ended = new(TaskCreationOptions.RunContinuationsAsynchronously);
    volatile bool _stopping;
    volatile string? _fault;
    volatile bool _isComplete;

    /// <summary>When a writer was last seen at its limit.</summary>
    long _busyTicks = Stopwatch.GetTimestamp() - Stopwatch.Frequency;

    /// <param name="partitionsCount">Of the view.</param>
    /// <param name="fed">Those that are here, as they are when it is asked; other processes feed the others.</param>
    public ViewFeeder(IView view, int partitionsCount, Func<IReadOnlyList<Partition>> fed, Action<string> log)
        : base(view, partitionsCount)
    {
        _fed = fed;
        _log = log;
        _seen = new Checkpoint[partitionsCount];
        _positions = new ulong[partitionsCount];
        _currentTicks = new long[partitionsCount];
        Array.Fill(_currentTicks, Stopwatch.GetTimestamp());
        _readers = new JournalReader?[partitionsCount];
        _thread = new Thread(Run) { Name = $"view {view.Name}", IsBackground = true };
        _thread.Start();
    }

    /// <summary>Why it is not fed now; null while it is.</summary>
    public override string? Fault => _fault;

    /// <summary>It has shown all that there was, and what makes reading fast is made.</summary>
    public bool IsComplete => _isComplete;

    public override ulong Position(int partition) => Volatile.Read(ref _positions[partition]);

    public override TimeSpan? LagOf(int partition)
    {
        if (_partitions.FirstOrDefault(one => one.Number == partition) is not Partition here) return _seen[partition].Lag;
        return _fault is null && Position(partition) >= here.FlushedSequence ? TimeSpan.Zero : Stopwatch.GetElapsedTime(Volatile.Read(ref _currentTicks[partition]));
    }

    void Run()
    {
        Niceness.BeModest();
        while (!_stopping)
        {
            try
            {
                ulong[] positions = View.Open();
                for (int i = 0; i < positions.Length; i++) Volatile.Write(ref _positions[i], positions[i]);
                CloseReaders();
                _seen = View.Look();
                if (_fault is not null) _log($"View {View.Name} is fed again.");
                _fault = null;
                Feed();
            }
            catch (Exception e)
            {
                // Whatever it was: nobody waits for a view, and its journals are not harmed.
                if (_fault != e.Message) _log($"View {View.Name} is not fed: {e.Message}");
                _fault = e.Message;
                for (long until = Environment.TickCount64 + (long)AfterFailure.TotalMilliseconds; Environment.TickCount64 < until && !_stopping;) Thread.Sleep(Idle);
            }
        }

        CloseReaders();
        View.Dispose();
        _ended.SetResult();
    }

    /// <summary>Returns where the view has to be asked again where it is.</summary>
    void Feed()
    {
        long nextLook = 0, nextMark = 0;
        List<(int Partition, ulong Position)> current = [];
        _isComplete = false;
        while (!_stopping)
        {
            bool isBehind = false;
            IReadOnlyList<Partition> fed = _fed();
            if (!fed.SequenceEqual(_partitions))
            {
                // From where the view is by now: another process fed it before.
                bool isFirst = _partitions.Count == 0;
                _partitions = fed;
                if (!isFirst) return;
            }

            long looked = (DateTimeOffset.UtcNow - DateTimeOffset.UnixEpoch).Ticks / TimeSpan.TicksPerMicrosecond;
            current.Clear();
            foreach (Partition partition in _partitions)
            {
                if (_stopping) return;
                (int number, ulong flushed) = (partition.Number, partition.FlushedSequence);
                if (partition.Readers is not { } readers) continue;
                if (flushed <= _positions[number])
                {
                    // More than there is: another journal, or one that lost its end.
                    if (flushed < _positions[number] && partition.Fault is null && partition.FlushedSequence < _positions[number] && IsOwned(partition))
                    {
                        _log($"View {View.Name} has event {number}:{_positions[number]}, and the journal ends at {flushed}: the view is made again.");
                        View.Clear();
                        return;
                    }

                    Volatile.Write(ref _currentTicks[number], Stopwatch.GetTimestamp());
                    if (partition.Fault is null) current.Add((number, flushed));
                    continue;
                }

                long started = Stopwatch.GetTimestamp();
                if (!FeedOne(partition, readers, flushed)) return;
                Yield(started, Stopwatch.GetTimestamp(), isUpWithWork: partition.FlushedSequence > flushed && _positions[number] >= flushed);
                if (_positions[number] < flushed) isBehind = true;
                else current.Add((number, _positions[number]));
            }

            if (!isBehind && !_isComplete && fed.Count > 0)
            {
                View.Complete();
                _isComplete = true;
            }

            // Wiped, dropped, deleted or told to be rebuilt: where nothing is written, nothing else would show it.
            if (Environment.TickCount64 > nextLook)
            {
                _seen = View.Look();
                if (_partitions.Any(partition => _seen[partition.Number].Position != _positions[partition.Number])) return;
                foreach (int other in Enumerable.Range(0, _positions.Length).Except(_partitions.Select(partition => partition.Number))) Volatile.Write(ref _positions[other], _seen[other].Position);
                nextLook = Environment.TickCount64 + LookIntervalMilliseconds;
            }

            // For those who look at it and cannot ask any partition.
            if (current.Count > 0 && Environment.TickCount64 > nextMark)
            {
                View.Mark(current, looked);
                nextMark = Environment.TickCount64 + MarkIntervalMilliseconds;
            }

            // Caught up: what comes in the meantime is one batch, where each block would be one else.
            if (!isBehind) Thread.Sleep(Idle);
        }
    }

    const int LookIntervalMilliseconds = 1000, MarkIntervalMilliseconds = 500;

    /// <summary>One that another process has taken over, and that has not heard of it, knows less than the view does. It hears of it now.</summary>
    static bool IsOwned(Partition partition) =>
        partition.SubmitAsync(new ReadRequest<ulong>((State state) => state.LastSequence), TimeSpan.FromSeconds(5)).AsTask().GetAwaiter().GetResult() == RequestStatus.Answered;

    /// <summary>Was at its limit a moment ago: between two blocks its queue may be empty, and a batch of the view's takes a while, in which nobody looks.</summary>
    bool IsWriterBusy
    {
        get
        {
            if (_partitions.Any(static partition => partition.QueuedCommands > QueuedCommandsOfBusy)) _busyTicks = Stopwatch.GetTimestamp();
            return Stopwatch.GetElapsedTime(_busyTicks) < Moment;
        }
    }

    /// <summary>
    /// Priority does not do it: a view's server, its disk and its memory are the writer's, too, and a thread that hardly gets its turn keeps the collector, and so all others, waiting.
    /// </summary>
    void Yield(long startedTicks, long endedTicks, bool isUpWithWork)
    {
        long took = endedTicks - startedTicks;
        while (!_stopping && Stopwatch.GetTimestamp() < endedTicks + took * (IsWriterBusy ? YieldFactorOfBusy : isUpWithWork ? 1 : 0)) Thread.Sleep(Idle);
    }

    bool FeedOne(Partition partition, EventReaders readers, ulong flushed)
    {
        int number = partition.Number;
        long read = Stopwatch.GetTimestamp();
        int eventsMax = IsWriterBusy ? EventsPerBatchOfBusy : EventsPerBatch;
        _batch.Begin(readers, _positions[number]);
        try
        {
            JournalReader reader = _readers[number] ??= partition.ReadAfter(_positions[number]) ?? throw new IOException($"partition {number} does not serve");
            // Flushed is the end of a block: nothing that is not durable is shown.
            while (reader.LastSequence < flushed && _batch.EventsCount < eventsMax && reader.TryReadNext(out Block block)) _batch.Add(block);
        }
        catch
        {
            _readers[number]?.Dispose();
            _readers[number] = null;
            throw;
        }

        if (_batch.EventsCount == 0)
        {
            // Durable and not to be found: the journal is somewhere else now.
            _readers[number]?.Dispose();
            _readers[number] = null;
            Thread.Sleep(Idle);
            return true;
        }

        if (!View.Write(_batch)) return false;
        Volatile.Write(ref _positions[number], _batch.Last);
        if (_batch.Last >= flushed) Volatile.Write(ref _currentTicks[number], read);
        return true;
    }

    void CloseReaders()
    {
        for (int i = 0; i < _readers.Length; i++)
        {
            _readers[i]?.Dispose();
            _readers[i] = null;
        }
    }

    public override async ValueTask DisposeAsync()
    {
        _stopping = true;
        await _ended.Task;
    }
}
