using System.Buffers;
using System.Collections.Concurrent;
using Orleans.Runtime;
using Purse.Journal;
using Purse.Partitions;

namespace Purse.Cluster.Nodes;

/// <summary>Answers a question where its partition is.</summary>
/// <returns>An answer, or why it has to be asked again.</returns>
public delegate Task<(FrameKind Kind, byte[] Payload)> Answerer(Partition partition, ReadOnlyMemory<byte> question, TimeSpan timeout);

/// <summary>A partition of this node, from its activation to its end.</summary>
/// <param name="release">Is told why, and to which node; null leaves that to the placement.</param>
public sealed class HostedPartition(int number, Action<string, SiloAddress?> release)
{
    /// <summary>What a node said longer ago than this does not count.</summary>
    static readonly TimeSpan WordLasts = TimeSpan.FromSeconds(5);

    readonly ConcurrentDictionary<SiloAddress, (bool CanServe, long Ticks)> _words = new();

    public int Number => number;

    /// <summary>Hands it to another node.</summary>
    public void Release(string why, SiloAddress? to = null) => release(why, to);

    /// <summary>Gives it up to a node that can serve it: what this one has under way with its store, which it does not reach, nobody waits for.</summary>
    public void Abandon(string why, SiloAddress to)
    {
        IsAbandoned = true;
        release(why, to);
    }

    /// <summary>This node reaches its store again, and nobody has taken it.</summary>
    public void Keep() => IsAbandoned = false;

    public bool IsAbandoned { get; private set; }

    internal void Heard(SiloAddress node, bool canServe) => _words[node] = (canServe, Environment.TickCount64);

    /// <summary>Whether the node said a moment ago that it reaches the partition's store.</summary>
    public bool CanServe(SiloAddress node) => _words.TryGetValue(node, out (bool CanServe, long Ticks) word) && word.CanServe && Environment.TickCount64 - word.Ticks < WordLasts.TotalMilliseconds;

    /// <summary>Recovered, or being so; without a journal in reach it is there, and says so.</summary>
    public Task<Partition> Starting { get; internal set; } = null!;

    internal CancellationTokenSource Ending { get; } = new();
}

/// <summary>The partitions that this node has now.</summary>
/// <param name="start">Takes a partition over; may take as long as its journal is.</param>
/// <param name="reaches">Whether a partition's store is in this node's reach; null where that is not known yet.</param>
public sealed class PartitionHost(int partitionsCount, Func<int, Partition> start, Func<int, bool?> reaches, Answerer answer, Action<string> log)
{
    static readonly TimeSpan StartAgain = TimeSpan.FromSeconds(2);

    readonly ConcurrentDictionary<HostedPartition, Partition?> _hosted = new();
    readonly ConcurrentDictionary<(IMailbox Mailbox, long Id), bool> _underWay = new();
    readonly ConcurrentDictionary<IMailbox, Outbox> _outboxes = new();
    MessageSender? _sender;

    public int PartitionsCount => partitionsCount;

    public Func<int, bool?> Reaches => reaches;

    /// <summary>Those that were taken over.</summary>
    public IReadOnlyList<Partition> Partitions => [.. _hosted.Values.OfType<Partition>().OrderBy(partition => partition.Number)];

    /// <summary>All that are here or are coming.</summary>
    public IReadOnlyCollection<HostedPartition> Hosted => [.. _hosted.Keys];

    /// <summary>Tells the partitions how to reach the others.</summary>
    public void Connect(MessageSender sender) => _sender = sender;

    internal HostedPartition Begin(int number, Action<string, SiloAddress?> release)
    {
        if (number < 0 || number >= partitionsCount) throw new ArgumentOutOfRangeException(nameof(number), number, $"The cluster has {partitionsCount} partitions.");
        HostedPartition hosted = new(number, release);
        Task<Partition> starting = new(() => Start(hosted), TaskCreationOptions.LongRunning);
        hosted.Starting = starting;
        _hosted.TryAdd(hosted, null);
        starting.Start(TaskScheduler.Default);
        return hosted;
    }

    Partition Start(HostedPartition hosted)
    {
        while (true)
        {
            try
            {
                hosted.Ending.Token.ThrowIfCancellationRequested();
                Partition partition = start(hosted.Number);
                partition.Connect((to, messages) => _sender?.Invoke(to, messages));
                // Abandoned meanwhile: whoever did so ends it.
                if (!_hosted.TryUpdate(hosted, partition, null)) return partition;
                // Another writer has it: whatever this node believes, it is not here any more.
                _ = partition.Ended.ContinueWith(
                    _ =>
                    {
                        if (partition.IsDeposed) hosted.Release($"partition {hosted.Number} has another writer");
                    },
                    TaskScheduler.Default);
                return partition;
            }
            catch (Exception e) when (e is not OperationCanceledException)
            {
                log($"Partition {hosted.Number} cannot be served: {e.Message}");
                hosted.Ending.Token.WaitHandle.WaitOne(StartAgain);
            }
        }
    }

    internal async Task EndAsync(HostedPartition hosted)
    {
        await hosted.Ending.CancelAsync();
        Task ending = EndPartitionAsync(hosted);
        // What hangs there is fenced by whoever takes it over.
        if (!hosted.IsAbandoned) await ending;
        _hosted.TryRemove(hosted, out _);
    }

    static async Task EndPartitionAsync(HostedPartition hosted)
    {
        try
        {
            await (await hosted.Starting).DisposeAsync();
        }
        catch (OperationCanceledException)
        {
            // It had not begun.
        }
    }

    internal void Accept(HostedPartition hosted, byte[] frames, IMailbox mailbox)
    {
        foreach (Frame frame in Frame.ReadAll(frames))
        {
            if (frame.Kind == FrameKind.Messages)
            {
                // One that is not there yet hears nothing: it is said again.
                if (hosted.Starting is { IsCompletedSuccessfully: true, Result: Partition partition }) partition.Deliver(System.Runtime.InteropServices.CollectionsMarshal.AsSpan(MessageBytes.Read(frame.Payload.Span)));
            }
            // Asked twice, since the first one or its answer may be lost: while it is under way, once is enough.
            else if (_underWay.TryAdd((mailbox, frame.Id), true)) _ = Task.Run(() => AnswerAsync(hosted, frame, mailbox));
        }
    }

    async Task AnswerAsync(HostedPartition hosted, Frame question, IMailbox mailbox)
    {
        Frame answered;
        try
        {
            long started = Environment.TickCount64;
            TimeSpan timeout = TimeSpan.FromMilliseconds(Math.Max(1, question.TimeoutMilliseconds));
            Partition partition = hosted.Starting.IsCompletedSuccessfully ? hosted.Starting.Result : await hosted.Starting.WaitAsync(timeout);
            timeout -= TimeSpan.FromMilliseconds(Environment.TickCount64 - started);
            (FrameKind kind, byte[] payload) = await answer(partition, question.Payload, timeout > TimeSpan.Zero ? timeout : TimeSpan.FromMilliseconds(1));
            answered = new Frame(kind, question.Id, 0, payload);
        }
        catch (Exception e)
        {
            // Not there yet, or not any more. Nothing was begun.
            if (e is not TimeoutException and not OperationCanceledException) log($"A question to partition {hosted.Number} was not answered: {e.Message}");
            answered = new Frame(e is TimeoutException or OperationCanceledException ? FrameKind.AskAgain : FrameKind.AskAgainUnknown, question.Id, 0, default);
        }

        _underWay.TryRemove((mailbox, question.Id), out _);
        _outboxes.GetOrAdd(mailbox, static mailbox => new Outbox(mailbox)).Add(answered);
    }

    /// <summary>Answers to one node: those that come while some are on their way go together.</summary>
    sealed class Outbox(IMailbox mailbox)
    {
        const int BatchBytesMax = 1024 * 1024;

        readonly ConcurrentQueue<Frame> _answers = new();
        int _isSending;

        public void Add(in Frame answer)
        {
            _answers.Enqueue(answer);
            if (Interlocked.Exchange(ref _isSending, 1) == 0) _ = Task.Run(SendAsync);
        }

        async Task SendAsync()
        {
            while (true)
            {
                ArrayBufferWriter<byte> frames = new(4096);
                while (frames.WrittenCount < BatchBytesMax && _answers.TryDequeue(out Frame answer)) answer.Write(frames);
                if (frames.WrittenCount == 0)
                {
                    Volatile.Write(ref _isSending, 0);
                    if (_answers.IsEmpty || Interlocked.Exchange(ref _isSending, 1) != 0) return;
                    continue;
                }

                try
                {
                    await mailbox.DeliverAsync(frames.WrittenSpan.ToArray());
                }
                catch (Exception)
                {
                    // Whoever asked is gone, or asks again.
                }
            }
        }
    }
}
