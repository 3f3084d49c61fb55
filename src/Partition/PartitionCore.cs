using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>
/// The partition without I/O, threads or a clock: requests and "durable up to here" go in, blocks and answers come out. The host around it
/// owns thread, journal and clock.
/// </summary>
/// <remarks>Replied &lt;= Flushed &lt;= Appended, always: no answer, reads included, leaves before all that it rests on is durable.</remarks>
/// <param name="answeredTimeMicros">The latest past that was told of before; every block is later.</param>
public sealed class PartitionCore(StateMachine machine, long answeredTimeMicros)
{
    readonly Queue<(Request Request, ulong Sequence)> _waiting = new();
    readonly List<ReadRequest> _reads = [];
    EventBatch? _batch;

    public long AnsweredTimeMicros { get; private set; } = answeredTimeMicros;

    public State State => machine.State;

    public ulong AppendedSequence => State.LastSequence;

    public ulong FlushedSequence { get; private set; } = machine.State.LastSequence;

    public ulong RepliedSequence { get; private set; } = machine.State.LastSequence;

    public int WaitingCount => _waiting.Count;

    /// <summary>Begins a block. Its time is later than the last block's, and than every past that was told of.</summary>
    void Open(EventBatch batch, long nowMicros)
    {
        Check.That(_batch is null, "one block is made at a time");
        batch.Reset(State.LastSequence + 1, Math.Max(nowMicros, Math.Max(State.LastTimeMicros, AnsweredTimeMicros) + 1));
        _batch = batch;
    }

    /// <summary>Makes one block: frees the money of holds that are due, then decides what waits in the queue, as much as fits.</summary>
    /// <param name="hasRoom">False when storage is full: nothing new is accepted.</param>
    /// <param name="hasReserve">Whether there is still room for voids and expiries, which free money.</param>
    public void Fill(EventBatch batch, long nowMicros, RequestQueue queue, bool hasRoom, bool hasReserve)
    {
        Open(batch, nowMicros);
        bool mayDecide = !hasReserve || Injected.Is(PartitionDefect.ExpiryAfterCommands) || machine.TryExpireDue(batch);
        while (mayDecide && queue.TryPeek(out Request request))
        {
            if (request is CommandRequest commands && !TryExecute(commands, hasRoom && hasReserve, hasReserve)) break;
            queue.Remove(request);
            if (request is ReadRequest read) Add(read);
            if (!batch.HasRoom) break;
        }

        if (Injected.Is(PartitionDefect.ExpiryAfterCommands)) machine.TryExpireDue(batch);
        Seal();
    }

    /// <summary>False where the block is full before the request's last command: the rest belongs in the next block.</summary>
    bool TryExecute(CommandRequest request, bool hasRoom, bool hasReserve)
    {
        if (request.Next == 0 && !request.TryStart()) return true;
        while (request.Next < request.Count)
        {
            if (!_batch!.HasRoom) return false;
            int i = request.Next++;
            bool mayWrite = hasRoom || (hasReserve && request.Commands[i].Kind == CommandKind.Void);
            request.Decisions[i] = mayWrite ? machine.Execute(request.Commands[i], _batch) : machine.DecideWithoutRoom(request.Commands[i]);
        }

        request.Next = 0;
        _waiting.Enqueue((request, State.LastSequence));
        return true;
    }

    /// <summary>Takes a read; it sees the state at the end of this block.</summary>
    void Add(ReadRequest request)
    {
        if (request.TryStart()) _reads.Add(request);
    }

    /// <summary>Ends the block, which is empty where only reads came. It may be appended now.</summary>
    void Seal()
    {
        EventBatch batch = _batch!;
        _batch = null;
        machine.CheckBalanced();
        Check.That(batch.Count == 0 || batch.NextSequence == State.LastSequence + 1, "every event of a block is applied");
        foreach (ReadRequest read in _reads)
        {
            AnsweredTimeMicros = Math.Max(AnsweredTimeMicros, read.AsOfMicros);
            read.Read(State);
            _waiting.Enqueue((read, State.LastSequence));
        }

        _reads.Clear();
    }

    /// <summary>All up to this sequence is durable: answers whoever waited for it.</summary>
    public void Flushed(ulong sequence)
    {
        Check.That(sequence >= FlushedSequence && sequence <= AppendedSequence, "what was durable stays so, and only what was appended can be");
        FlushedSequence = sequence;
        ulong answerable = Injected.Is(PartitionDefect.ReplyBeforeFlush) ? AppendedSequence : sequence;
        while (_waiting.TryPeek(out (Request Request, ulong Sequence) first) && first.Sequence <= answerable)
        {
            RepliedSequence = first.Sequence;
            _waiting.Dequeue().Request.Complete(RequestStatus.Answered);
        }
    }

    /// <summary>Answers all that wait with what is true when the partition goes down: some of it may be durable.</summary>
    public void Abandon()
    {
        foreach (ReadRequest read in _reads) read.Complete(RequestStatus.Unavailable);
        _reads.Clear();
        while (_waiting.TryDequeue(out (Request Request, ulong Sequence) one))
            one.Request.Complete(one.Request is ReadRequest || Injected.Is(PartitionDefect.BegunSaidToBeNone) ? RequestStatus.Unavailable : RequestStatus.UnavailableUnknown);
        _batch = null;
    }
}
