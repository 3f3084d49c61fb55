using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>
/// The partition without I/O, threads or a clock: requests and "durable up to here" go in, blocks and answers come out. The host around it
/// owns thread, journal and clock.
/// </summary>
/// <remarks>Replied &lt;= Flushed &lt;= Appended, always: no answer, reads included, leaves before all that it rests on is durable.</remarks>
public sealed partial class PartitionCore
{
    readonly StateMachine _machine;
    readonly Queue<(Request Request, ulong Sequence)> _waiting = new();
    readonly List<ReadRequest> _reads = [];
    readonly Action<Request>? _search;
    EventBatch? _batch;

    /// <param name="answeredTimeMicros">The latest past that was told of before; every block is later.</param>
    /// <param name="tally">Goes on with the counts of a life before.</param>
    /// <param name="search">Looks for the ids of a request among the older ones: only where the state has forgotten more since that was done.</param>
    public PartitionCore(StateMachine machine, long answeredTimeMicros, Tally? tally = null, int rememberedMax = RememberedMax, Action<Request>? search = null)
    {
        _rememberedMax = rememberedMax;
        _search = search;
        Tally = tally ?? new Tally();
        _machine = machine;
        AnsweredTimeMicros = answeredTimeMicros;
        FlushedSequence = RepliedSequence = machine.State.LastSequence;
        TakeUpAttempts();
        TellUndecided();
    }

    public long AnsweredTimeMicros { get; private set; }

    public Tally Tally { get; }

    public State State => _machine.State;

    public ulong AppendedSequence => State.LastSequence;

    public ulong FlushedSequence { get; private set; }

    public ulong RepliedSequence { get; private set; }

    /// <summary>Answers that wait for nothing but their events to be durable.</summary>
    public int WaitingCount => _waiting.Count + _ended.Count;

    /// <summary>Whether there is something to say, to callers or to other partitions, as soon as it may be said.</summary>
    public bool HasToSpeak => WaitingCount > 0 || _replies.Count > 0 || _toSpeak.Count > 0;

    /// <summary>Whether some of them rest on nothing that was written after they were asked for, and so do not show that this writer still owns the partition.</summary>
    public bool HasBareAnswers => _dequeued < _bareUpTo || _areEndedBare;

    // How many ever went into and out of _waiting; those before _bareUpTo may have been put in by a block without events.
    long _enqueued;
    long _dequeued;
    long _bareUpTo;
    bool _areEndedBare;

    void Wait(Request request)
    {
        _waiting.Enqueue((request, State.LastSequence));
        _enqueued++;
    }

    /// <summary>Whether there is something to do without anybody asking.</summary>
    public bool HasWork(long nowMicros) => _inbox.Count > 0 || _retries.Count > 0 || State.Holds.FirstDue(nowMicros) >= 0 || IsAnyResendDue(nowMicros);

    /// <summary>Begins a block. Its time is later than the last block's, and than every past that was told of.</summary>
    void Open(EventBatch batch, long nowMicros)
    {
        Check.That(_batch is null, "one block is made at a time");
        batch.Reset(State.LastSequence + 1, Math.Max(nowMicros, Math.Max(State.LastTimeMicros, AnsweredTimeMicros) + 1));
        _batch = batch;
    }

    /// <summary>
    /// Makes one block: frees the money of holds that are due, takes the steps of commits across partitions that are due, then decides what waits
    /// in the queue, as much as fits.
    /// </summary>
    /// <param name="hasRoom">False when storage is full: nothing new is accepted.</param>
    /// <param name="hasReserve">Whether there is still room for voids and expiries, which free money.</param>
    public void Fill(EventBatch batch, long nowMicros, RequestQueue queue, bool hasRoom, bool hasReserve)
    {
        Open(batch, nowMicros);
        bool mayDecide = !hasReserve || Injected.Is(PartitionDefect.ExpiryAfterCommands) || _machine.TryExpireDue(batch);
        mayDecide = mayDecide && TryCommit(nowMicros, hasRoom && hasReserve, hasReserve);
        while (mayDecide && batch.HasRoom && queue.TryPeek(out Request request))
        {
            if (request is CommandRequest commands && !TryExecute(commands, hasRoom && hasReserve, hasReserve)) break;
            if (request is ReadRequest read) Add(read);
            if (request is AbortRequest abort) Abort(abort, hasReserve);
            queue.Remove(request);
        }

        if (Injected.Is(PartitionDefect.ExpiryAfterCommands)) _machine.TryExpireDue(batch);
        Seal();
    }

    /// <summary>False where the block is full before the request's last command: the rest belongs in the next block.</summary>
    bool TryExecute(CommandRequest request, bool hasRoom, bool hasReserve)
    {
        if (request.Next == 0 && !request.TryStart()) return true;
        while (request.Next < request.Count)
        {
            if (!_batch!.HasRoom) return false;
            if (request.Next + CommandsAhead < request.Count) Prefetch(request.Commands, request.Next);
            Execute(request, request.Next++, hasRoom, hasReserve);
        }

        request.Next = 0;
        request.IsWaiting = true;
        request.DecidedSequence = Math.Max(request.DecidedSequence, State.LastSequence);
        Wait(request);
        return true;
    }

    /// <summary>While so many are decided, what the next one needs comes near: of its id and its accounts, and half as far ahead of their balances.</summary>
    const int CommandsAhead = 8;

    void Prefetch(Command[] commands, int now)
    {
        ref readonly Command next = ref commands[now + CommandsAhead];
        State.Ids.Prefetch(next.TransactionId);
        State.PrefetchAccount(next.KnownAccount);
        State.PrefetchAccount(next.KnownCounterparty);
        ref readonly Command sooner = ref commands[now + CommandsAhead / 2];
        State.PrefetchBalance(sooner.KnownAccount);
        State.PrefetchBalance(sooner.KnownCounterparty);
    }

    void Execute(CommandRequest request, int i, bool hasRoom, bool hasReserve)
    {
        ref Command command = ref request.Commands[i];
        Recall(request, i, command);
        bool mayWrite = hasRoom || (hasReserve && command.Kind == CommandKind.Void);
        ref Decision decision = ref request.Decisions[i];
        decision = mayWrite ? _machine.Execute(command, _batch!) : _machine.DecideWithoutRoom(command);
        if (decision.Outcome is Outcome.Prepared or Outcome.Undecided or Outcome.Blocked) Await(decision, request, i);
        else Tally.Add(decision.Outcome);
        if (decision.Outcome == Outcome.Prepared) decision.Outcome = Outcome.Undecided;
    }

    void Recall(Request request, int index, in Command command)
    {
        // Without it nobody has looked numbers up either.
        if (_search is null) return;
        if (!request.Search.IsFor(State.Generations)) _search(request);
        State.Ids.Recall(request.Search.Of(index, command));
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
        _machine.CheckBalanced();
        TellUndecided();
        Check.That(batch.Count == 0 || batch.NextSequence == State.LastSequence + 1, "every event of a block is applied");
        foreach (ReadRequest read in _reads)
        {
            if (!Injected.Is(PartitionDefect.PastToldOfChanges)) AnsweredTimeMicros = Math.Max(AnsweredTimeMicros, read.AsOfMicros);
            if (read.Asked is [var about]) Recall(read, 0, about);
            read.Read(this);
            Wait(read);
        }

        _reads.Clear();
        if (batch.Count > 0) return;
        _bareUpTo = _enqueued;
        _areEndedBare = _ended.Count > 0;
    }

    /// <summary>All up to this sequence is durable: answers whoever waited for it.</summary>
    public void Flushed(ulong sequence)
    {
        Check.That(sequence >= FlushedSequence && sequence <= AppendedSequence, "what was durable stays so, and only what was appended can be");
        FlushedSequence = sequence;
        ulong answerable = Injected.Is(PartitionDefect.ReplyBeforeFlush) ? AppendedSequence : sequence;
        while (_waiting.TryPeek(out (Request Request, ulong Sequence) first) && first.Sequence <= answerable)
        {
            _waiting.Dequeue();
            _dequeued++;
            if (first.Request is not CommandRequest commands)
            {
                Reply(first.Request, first.Sequence);
                continue;
            }

            // Some of it may have been decided since, in a block that is not durable yet.
            if (commands.DecidedSequence > answerable) _ended.Add(commands);
            else Settle(commands);
        }

        int later = 0;
        for (int i = 0; i < _ended.Count; i++)
        {
            if (_ended[i].DecidedSequence > answerable) _ended[later++] = _ended[i];
            else Settle(_ended[i]);
        }

        _ended.RemoveRange(later, _ended.Count - later);
        _areEndedBare &= later > 0;

        Speak(answerable);
    }

    /// <summary>All that was decided of it is durable: it is answered, or only waits for commits across partitions.</summary>
    void Settle(CommandRequest request)
    {
        request.IsWaiting = false;
        if (request.UndecidedCount > 0) request.Park();
        else Reply(request, request.DecidedSequence);
    }

    void Reply(Request request, ulong sequence)
    {
        RepliedSequence = Math.Max(RepliedSequence, sequence);
        request.Complete(RequestStatus.Answered);
    }

    /// <summary>Answers all that wait with what is true when the partition goes down: some of it may be durable.</summary>
    public void Abandon()
    {
        foreach (ReadRequest read in _reads) read.Complete(RequestStatus.Unavailable);
        _reads.Clear();
        while (_waiting.TryDequeue(out (Request Request, ulong Sequence) one))
            one.Request.Complete(one.Request is ReadRequest || Injected.Is(PartitionDefect.BegunSaidToBeNone) ? RequestStatus.Unavailable : RequestStatus.UnavailableUnknown);
        AbandonAttempts();
        _batch = null;
    }
}
