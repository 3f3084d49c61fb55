using System.Buffers;
using System.Collections.Concurrent;
using Orleans.Runtime;
using Purse.Partitions;

namespace Purse.Cluster.Nodes;

/// <summary>
/// What this node asks of partitions, wherever they are: gathered into batches, one on its way to each partition at a time. What is not answered is asked
/// again until its time is over, since a node may die with the question or with the answer; whoever answers knows a transfer by its id.
/// </summary>
public sealed class PartitionLinks : IMailbox, IAsyncDisposable
{
    const int BatchBytesMax = 1024 * 1024;

    /// <summary>A node that has a question under way does not begin it twice: to ask again costs little.</summary>
    static readonly TimeSpan AskAgainAfter = TimeSpan.FromSeconds(1), LookInterval = TimeSpan.FromMilliseconds(100), AfterFailure = TimeSpan.FromMilliseconds(50), AfterRefusal = TimeSpan.FromMilliseconds(20);

    readonly Lazy<(IGrainFactory Grains, IMailbox Mailbox)> _orleans;
    readonly Link[] _links;
    readonly ConcurrentDictionary<long, Ask> _asks = new();
    readonly CancellationTokenSource _stop = new();
    readonly Task _looking;
    long _lastId;

    /// <param name="grains">Asked for when it is needed first: Orleans has started by then.</param>
    public PartitionLinks(Func<IGrainFactory> grains, int partitionsCount)
    {
        _orleans = new(() =>
        {
            IGrainFactory factory = grains();
            return (factory, factory.CreateObjectReference<IMailbox>(this));
        });
        _links = [.. Enumerable.Range(0, partitionsCount).Select(number => new Link(number))];
        _looking = Task.Run(LookAsync);
    }

    sealed class Ask(long id, int partition, ReadOnlyMemory<byte> question, long deadlineTicks)
    {
        public long Id => id;

        public int Partition => partition;

        public ReadOnlyMemory<byte> Question => question;

        public long DeadlineTicks => deadlineTicks;

        /// <summary>When it was asked last; <see cref="long.MaxValue"/> while it is on its way or waits to be.</summary>
        public long AskedTicks = long.MaxValue;

        /// <summary>Something of it may have been recorded.</summary>
        public volatile bool IsUnknown;

        public TaskCompletionSource<byte[]?> Answered { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);
    }

    sealed class Link(int partition)
    {
        public int Partition => partition;

        public ConcurrentQueue<Ask> Asks { get; } = new();

        public ConcurrentQueue<byte[]> Messages { get; } = new();

        public int IsSending;
    }

    /// <summary>What came of a question.</summary>
    /// <param name="Payload">Null where its time was over first.</param>
    /// <param name="IsUnknown">It may have been begun somewhere.</param>
    public readonly record struct Answer(byte[]? Payload, bool IsUnknown);

    public async Task<Answer> AskAsync(int partition, ReadOnlyMemory<byte> question, TimeSpan timeout)
    {
        Ask ask = new(Interlocked.Increment(ref _lastId), partition, question, Environment.TickCount64 + (long)timeout.TotalMilliseconds);
        _asks[ask.Id] = ask;
        Enqueue(ask);
        try
        {
            return new Answer(await ask.Answered.Task.WaitAsync(timeout), ask.IsUnknown);
        }
        catch (TimeoutException)
        {
            return new Answer(null, true);
        }
        finally
        {
            _asks.TryRemove(ask.Id, out _);
        }
    }

    /// <summary>Says something to a partition; nobody waits for it.</summary>
    public void Send(int to, ReadOnlySpan<Message> messages)
    {
        _links[to].Messages.Enqueue(MessageBytes.Write(messages));
        Send(_links[to]);
    }

    void Enqueue(Ask ask)
    {
        _links[ask.Partition].Asks.Enqueue(ask);
        Send(_links[ask.Partition]);
    }

    void Send(Link link)
    {
        if (Interlocked.Exchange(ref link.IsSending, 1) == 0) _ = Task.Run(() => SendAsync(link));
    }

    async Task SendAsync(Link link)
    {
        while (true)
        {
            ArrayBufferWriter<byte> frames = new(4096);
            List<Ask> asked = [];
            while (frames.WrittenCount < BatchBytesMax && link.Messages.TryDequeue(out byte[]? messages)) new Frame(FrameKind.Messages, 0, 0, messages).Write(frames);
            while (frames.WrittenCount < BatchBytesMax && link.Asks.TryDequeue(out Ask? ask))
            {
                long left = ask.DeadlineTicks - Environment.TickCount64;
                if (left <= 0 || ask.Answered.Task.IsCompleted) continue;
                // The answer has its way to go, too.
                new Frame(FrameKind.Question, ask.Id, (int)Math.Max(1, left - Math.Min(100, left / 10)), ask.Question).Write(frames);
                asked.Add(ask);
            }

            if (frames.WrittenCount == 0)
            {
                Volatile.Write(ref link.IsSending, 0);
                if ((link.Asks.IsEmpty && link.Messages.IsEmpty) || Interlocked.Exchange(ref link.IsSending, 1) != 0) return;
                continue;
            }

            try
            {
                (IGrainFactory grains, IMailbox mailbox) = _orleans.Value;
                // It is taken at once, or its node is gone; Orleans would wait for it until a call's time is over.
                await grains.GetGrain<IPartitionGrain>(link.Partition).AcceptAsync(frames.WrittenSpan.ToArray(), mailbox).AsTask().WaitAsync(AskAgainAfter);
                long now = Environment.TickCount64;
                foreach (Ask ask in asked) Volatile.Write(ref ask.AskedTicks, now);
            }
            catch (Exception)
            {
                // Its node is gone, or not sure of itself; Orleans knows of another one soon. It may have taken what was sent.
                foreach (Ask ask in asked) ask.IsUnknown = true;
                await Task.Delay(AfterFailure);
                foreach (Ask ask in asked) link.Asks.Enqueue(ask);
            }
        }
    }

    Task IMailbox.DeliverAsync(byte[] frames)
    {
        foreach (Frame frame in Frame.ReadAll(frames))
        {
            if (!_asks.TryGetValue(frame.Id, out Ask? ask)) continue;
            if (frame.Kind == FrameKind.Answer) ask.Answered.TrySetResult(frame.Payload.ToArray());
            else _ = AgainAsync(ask, frame);
        }

        return Task.CompletedTask;
    }

    async Task AgainAsync(Ask ask, Frame refusal)
    {
        if (refusal.Kind == FrameKind.AskAgainUnknown) ask.IsUnknown = true;
        if (ask.DeadlineTicks - Environment.TickCount64 <= 2 * AfterRefusal.TotalMilliseconds)
        {
            ask.Answered.TrySetResult(refusal.Payload.IsEmpty ? null : refusal.Payload.ToArray());
            return;
        }

        Volatile.Write(ref ask.AskedTicks, long.MaxValue);
        await Task.Delay(AfterRefusal);
        Enqueue(ask);
    }

    /// <summary>Asks again what has not been answered for a while.</summary>
    async Task LookAsync()
    {
        while (!_stop.IsCancellationRequested)
        {
            await Task.Delay(LookInterval, _stop.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            long before = Environment.TickCount64 - (long)AskAgainAfter.TotalMilliseconds;
            foreach (Ask ask in _asks.Values)
            {
                if (Volatile.Read(ref ask.AskedTicks) > before) continue;
                Volatile.Write(ref ask.AskedTicks, long.MaxValue);
                ask.IsUnknown = true;
                Enqueue(ask);
            }
        }
    }

    public async ValueTask DisposeAsync()
    {
        await _stop.CancelAsync();
        await _looking;
        _stop.Dispose();
    }
}
