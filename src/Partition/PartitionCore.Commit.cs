using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>
/// Two-phase commit between partitions: when which step is taken. What a step does is the state machine's (StateMachine.Attempts.cs) and durable;
/// who has voted and acknowledged is in memory only, and is asked again after a restart.
/// </summary>
public sealed partial class PartitionCore
{
    /// <summary>What is not answered is said again after this long, then after twice as long, up to <see cref="ResendMicrosMax"/>.</summary>
    const long ResendMicros = 100_000;
    const long ResendMicrosMax = 1_000_000;

    /// <summary>
    /// While one side of a commit is down, the others remember their part in it, and with it whatever they did for later ones of the same
    /// coordinator; so many at the most. Beyond, a side that has to be asked twice says that it was done, but no more where.
    /// </summary>
    public const int RememberedMax = 16_384;

    readonly int _rememberedMax;

    /// <summary>An attempt that this partition coordinates, by its head.</summary>
    readonly Dictionary<ulong, Round> _rounds = [];
    readonly Stack<Round> _spareRounds = new();

    // Of each participant, the attempts that it must not forget; the lowest head first.
    readonly Dictionary<int, PriorityQueue<ulong, ulong>> _openOf = [];
    // Finished, but that is not durable yet: by head, where.
    readonly Dictionary<ulong, ulong> _finished = [];
    readonly Queue<ulong> _finishedInOrder = new();
    readonly Queue<Message> _inbox = new();
    readonly Queue<(ulong Head, ulong Sequence)> _toSpeak = new();
    readonly Queue<(Message Message, ulong Sequence)> _replies = new();
    readonly PriorityQueue<ulong, long> _resends = new();
    readonly Queue<(CommandRequest Request, int Index)> _retries = new();
    readonly List<CommandRequest> _ended = [];
    readonly List<Part> _parts = [];
    long _lastNowMicros;

    /// <summary>What may be sent now; the host takes it, in any order, as often as it likes.</summary>
    public List<Message> Outgoing { get; } = [];

    /// <summary>One side of an attempt, as its coordinator knows it.</summary>
    struct Side
    {
        public int Partition;
        public bool HasVoted;

        /// <summary>Refused: it has nothing to let go of, and needs not be told.</summary>
        public bool HasRefused;
        public bool IsDone;

        /// <summary>Where it ended there.</summary>
        public ulong Sequence;
    }

    sealed class Round
    {
        public readonly List<Side> Sides = [];
        public readonly List<(CommandRequest Request, int Index, bool IsOwner)> Waiters = [];

        /// <summary>The refusal that comes first of those heard so far.</summary>
        public Vote Lowest;
        public long ResendMicros;

        /// <summary>So many waiters are looked through for those that have given up.</summary>
        public int WaitersLook = WaitersLookMin;

        /// <summary>Found by a recovery.</summary>
        public bool IsTakenUp;

        public int IndexOf(int partition) => Sides.FindIndex(side => side.Partition == partition);

        public bool AllVoted => !Sides.Exists(static side => !side.HasVoted);

        public bool AllDone => !Sides.Exists(static side => !side.IsDone);
    }

    /// <summary>An attempt that is under way, for those who look after them.</summary>
    /// <param name="WaitsFor">The partitions that have not voted, or not said that they are done.</param>
    public sealed record InDoubt(ulong Head, UInt128 TransactionId, uint Home, long PreparedMicros, AttemptStatus Status, int Coordinator, ulong CoordinatorSequence, int[] WaitsFor, Movement[] Movements);

    /// <summary>Commits that this partition coordinates and has not ended, as of the last block; any thread may look.</summary>
    public int UndecidedCount => Volatile.Read(ref _undecidedCount);

    /// <summary>When the oldest of them began, 0 for none; any thread may look.</summary>
    public long OldestUndecidedMicros => Volatile.Read(ref _oldestUndecidedMicros);

    int _undecidedCount;
    long _oldestUndecidedMicros;

    // Heads in order; those that have ended leave when they come first, or when they are too many.
    Queue<ulong> _begun = new();

    void TellUndecided()
    {
        Volatile.Write(ref _undecidedCount, _rounds.Count);
        while (_begun.TryPeek(out ulong head) && !_rounds.ContainsKey(head)) _begun.Dequeue();
        if (_begun.Count > 2 * _rounds.Count + 1024) _begun = new Queue<ulong>(_begun.Where(_rounds.ContainsKey));
        Volatile.Write(ref _oldestUndecidedMicros, _begun.TryPeek(out ulong oldest) ? State.Attempts.Find(oldest)!.PreparedMicros : 0);
    }

    /// <summary>What this partition coordinates and has not finished, and what it prepared for others that have not decided; oldest first.</summary>
    public List<InDoubt> ListInDoubt(int max)
    {
        List<InDoubt> found = [];
        foreach (Attempt attempt in State.Attempts.All)
        {
            if (found.Count == max) break;
            if (!attempt.IsOwn && attempt.Status != AttemptStatus.Prepared) continue;
            int[] waitsFor = attempt.IsOwn
                ? [.. _rounds[attempt.Sequence].Sides.Where(side => attempt.IsDecided ? !side.IsDone : !side.HasVoted).Select(side => side.Partition)]
                : [attempt.Coordinator];
            found.Add(new InDoubt(
                attempt.Sequence, attempt.TransactionId, attempt.Home, attempt.PreparedMicros, attempt.Status, attempt.Coordinator, attempt.CoordinatorSequence, waitsFor, attempt.Movements.ToArray()));
        }

        return found;
    }

    /// <summary>What this side would say to a participant's part now; nothing is left behind.</summary>
    public Vote Judge(Preparation asked) => _machine.Judge(asked);

    /// <summary>Takes a message; it is looked at in the next block.</summary>
    public void Receive(in Message message)
    {
        Check.That(message.To == State.Partition, "messages go where they are meant to");
        _inbox.Enqueue(message);
    }

    /// <summary>After a recovery: whatever is not finished is taken up again, without anybody asking.</summary>
    void TakeUpAttempts()
    {
        foreach (Attempt attempt in State.Attempts.All)
        {
            if (!attempt.IsOwn || Injected.Is(PartitionDefect.AttemptsNotTakenUp)) continue;
            Begin(attempt, 0).IsTakenUp = true;
        }
    }

    Round Begin(Attempt attempt, long nowMicros)
    {
        if (!_spareRounds.TryPop(out Round? round)) round = new Round();
        foreach (int partition in attempt.Participants)
        {
            round.Sides.Add(new Side { Partition = partition });
            if (!_openOf.TryGetValue(partition, out PriorityQueue<ulong, ulong>? open)) _openOf[partition] = open = new();
            open.Enqueue(attempt.Sequence, attempt.Sequence);
        }

        (round.Lowest, round.ResendMicros, round.IsTakenUp) = (attempt.Vote, ResendMicros, false);
        _rounds.Add(attempt.Sequence, round);
        _begun.Enqueue(attempt.Sequence);
        Say(attempt.Sequence, State.LastSequence);
        _resends.Enqueue(attempt.Sequence, nowMicros + ResendMicros);
        return round;
    }

    /// <summary>The command waits until an attempt ends: its own, whose outcome is its answer, or one that it has to be decided after.</summary>
    void Await(in Decision decision, CommandRequest request, int index)
    {
        bool isOwner = decision.Outcome == Outcome.Prepared;
        Round round = isOwner ? Begin(State.Attempts.Find(decision.Sequence)!, _lastNowMicros) : _rounds[decision.Sequence];
        round.Waiters.Add((request, index, isOwner));
        request.UndecidedCount++;
        if (round.Waiters.Count < round.WaitersLook) return;
        // While a partition is down its callers give up and ask again, for as long as it takes.
        round.Waiters.RemoveAll(static one => one.Request.IsEnded);
        round.WaitersLook = Math.Max(WaitersLookMin, round.Waiters.Count * 2);
    }

    const int WaitersLookMin = 64;

    /// <summary>How many still stand in an attempt's list.</summary>
    internal int WaitersCountOf(ulong head) => _rounds[head].Waiters.Count;

    /// <summary>What is due of commits across partitions; false where the block is full first.</summary>
    bool TryCommit(long nowMicros, bool hasRoom, bool hasReserve)
    {
        if (nowMicros < _lastNowMicros) SetBack(nowMicros);
        _lastNowMicros = nowMicros;
        while (_inbox.TryPeek(out Message message))
        {
            if (!_batch!.HasRoom) return false;
            _inbox.Dequeue();
            Handle(message, hasRoom, hasReserve);
        }

        for (int count = _retries.Count; count > 0; count--)
        {
            if (!_batch!.HasRoom) return false;
            // It stays where it is found until it stands somewhere else: its ids may have to be looked for again, and that may fail.
            (CommandRequest request, int index) = _retries.Peek();
            if (request.TryResume())
            {
                Execute(request, index, hasRoom, hasReserve);
                request.UndecidedCount--;
                End(request, State.LastSequence);
            }

            _retries.Dequeue();
        }

        if (hasReserve && !TryEndRefused()) return false;

        // Each once; what it is said again it is due for later.
        for (int count = _resends.Count; count > 0 && _resends.TryPeek(out ulong head, out long dueMicros) && dueMicros <= nowMicros; count--)
        {
            _resends.Dequeue();
            if (!_rounds.TryGetValue(head, out Round? round) || Injected.Is(PartitionDefect.NothingSaidAgain)) continue;
            Say(head, State.LastSequence);
            round.ResendMicros = Math.Min(round.ResendMicros * 2, ResendMicrosMax);
            _resends.Enqueue(head, nowMicros + round.ResendMicros);
        }

        return true;
    }

    /// <summary>
    /// Whoever has refused must not forget it before that is decided, and with it nothing that comes after. Where that becomes too much, because
    /// others do not vote for so long, the refusals that were heard are enough.
    /// </summary>
    bool TryEndRefused()
    {
        foreach (PriorityQueue<ulong, ulong> open in _openOf.Values)
        {
            if (open.Count <= _rememberedMax || !open.TryPeek(out ulong head, out _) || !_rounds.TryGetValue(head, out Round? round) || !round.Lowest.IsRefusal) continue;
            Attempt attempt = State.Attempts.Find(head)!;
            if (attempt.IsDecided) continue;
            if (!_batch!.HasRoom) return false;
            Conclude(attempt, round, round.Lowest, null);
        }

        return true;
    }

    /// <summary>A clock that was set back keeps nobody waiting until it is where it was.</summary>
    void SetBack(long nowMicros)
    {
        ulong[] heads = [.. _resends.UnorderedItems.Select(static one => one.Element)];
        _resends.Clear();
        foreach (ulong head in heads) _resends.Enqueue(head, nowMicros);
    }

    bool IsAnyResendDue(long nowMicros) => _resends.TryPeek(out _, out long dueMicros) && (dueMicros <= nowMicros || nowMicros < _lastNowMicros);

    /// <summary>One of its commands was decided after all; it is answered when none is left and all is durable.</summary>
    void End(CommandRequest request, ulong sequence)
    {
        request.DecidedSequence = Math.Max(request.DecidedSequence, sequence);
        if (request.Next != 0 || request.IsWaiting) return;
        request.IsWaiting = true;
        _ended.Add(request);
    }

    void Handle(in Message message, bool hasRoom, bool hasReserve)
    {
        switch (message.Kind)
        {
            case MessageKind.Prepare:
                // Who has no room says nothing: only what the rules refuse is refused.
                if (hasRoom || State.Attempts.Find(message.From, message.Attempt) is not null) HandlePrepare(message);
                break;
            case MessageKind.Vote:
                if (hasReserve) HandleVote(message);
                break;
            case MessageKind.Decision:
                if (hasReserve) HandleDecision(message);
                break;
            case MessageKind.Acknowledgement:
                if (hasReserve) HandleAcknowledgement(message);
                break;
        }
    }

    void HandlePrepare(in Message message)
    {
        if (_machine.Prepare(message.Preparation!, message.LowWater, _batch!) is not Attempt attempt) return;
        if (attempt.IsDecided) Acknowledge(message, attempt.LastSequence);
        else _replies.Enqueue((new Message { Kind = MessageKind.Vote, From = message.To, To = message.From, Attempt = message.Attempt, Vote = attempt.Vote }, State.LastSequence));
    }

    void HandleVote(in Message message)
    {
        if (!_rounds.TryGetValue(message.Attempt, out Round? round)) return;
        Attempt attempt = State.Attempts.Find(message.Attempt)!;
        int index = round.IndexOf(message.From);
        if (index >= 0 && round.Sides[index].HasVoted && Injected.Is(PartitionDefect.VoteCountedTwice)) index = round.Sides.FindIndex(static side => !side.HasVoted);
        if (index < 0 || round.Sides[index].HasVoted || attempt.IsDecided) return;
        round.Sides[index] = round.Sides[index] with { HasVoted = true, HasRefused = message.Vote.IsRefusal };
        if (message.Vote.IsRefusal && (!round.Lowest.IsRefusal || (message.Vote.Precedes(round.Lowest) && !Injected.Is(PartitionDefect.FirstRefusalHeardWins)))) round.Lowest = message.Vote;
        if (round.AllVoted) Conclude(attempt, round, round.Lowest, null);
    }

    void Conclude(Attempt attempt, Round round, in Vote vote, string? by)
    {
        ulong head = attempt.Sequence;
        _machine.Conclude(attempt, vote, by, _batch!);
        Tally.Add(vote.Outcome);
        for (int i = 0; i < round.Sides.Count; i++)
        {
            if (round.Sides[i].HasRefused) round.Sides[i] = round.Sides[i] with { IsDone = true };
        }

        if (round.AllDone) Finish(attempt, round);
        else Say(head, State.LastSequence);
        if (Injected.Is(PartitionDefect.AnsweredAtDecision) && _rounds.ContainsKey(head)) Answer(round, StateMachine.DecisionOf(attempt, null));
    }

    void HandleDecision(in Message message)
    {
        Attempt? attempt = State.Attempts.Find(message.From, message.Attempt);
        if (attempt is null && message.Attempt < State.Attempts.LowWaterOf(message.From))
        {
            Acknowledge(message, 0);
            return;
        }

        if (attempt is null)
        {
            // It must have been prepared here before anybody could commit it: something durable is gone.
            if (message.IsCommit) Check.Fail($"partition {message.From} commits attempt {message.Attempt}, which partition {message.To} prepared");
            if (Injected.Is(PartitionDefect.EarlyAbortForgotten))
            {
                Acknowledge(message, 0);
                return;
            }

            attempt = _machine.AbortUnheardOf(message.From, message.Attempt, message.LowWater, _batch!);
        }

        _machine.Carry(attempt, message.IsCommit, _batch!);
        Acknowledge(message, attempt.LastSequence);
    }

    void Acknowledge(in Message message, ulong sequence) =>
        _replies.Enqueue((new Message { Kind = MessageKind.Acknowledgement, From = message.To, To = message.From, Attempt = message.Attempt, Sequence = sequence }, State.LastSequence));

    void HandleAcknowledgement(in Message message)
    {
        if (!_rounds.TryGetValue(message.Attempt, out Round? round)) return;
        Attempt attempt = State.Attempts.Find(message.Attempt)!;
        int index = round.IndexOf(message.From);
        // Before the decision, a participant can only repeat what became of another attempt.
        if (index < 0 || !attempt.IsDecided) return;
        // Said again by a side that has forgotten since, it does not undo where that was.
        if (round.Sides[index] is { IsDone: true } side && (side.HasRefused || side.Sequence != 0 || message.Sequence == 0)) return;
        round.Sides[index] = round.Sides[index] with { IsDone = true, Sequence = message.Sequence };
        if (round.AllDone) Finish(attempt, round);
    }

    /// <summary>Every side shows it: whoever waits is answered.</summary>
    void Finish(Attempt attempt, Round round)
    {
        _parts.Clear();
        if (attempt.Status == AttemptStatus.Committed) _parts.Add(new Part(State.Partition, attempt.LastSequence));
        foreach (Side side in round.Sides)
        {
            if (attempt.Status == AttemptStatus.Committed && side.Sequence != 0) _parts.Add(new Part(side.Partition, side.Sequence));
        }

        Decision decision = StateMachine.DecisionOf(attempt, _parts.Count > 0 ? [.. _parts] : null);
        ulong head = attempt.Sequence;
        _machine.Finish(attempt, System.Runtime.InteropServices.CollectionsMarshal.AsSpan(_parts), _batch!);
        Answer(round, decision);
        _finished[head] = State.LastSequence;
        _finishedInOrder.Enqueue(head);
        _rounds.Remove(head);
        round.Sides.Clear();
        _spareRounds.Push(round);
    }

    void Answer(Round round, in Decision decision)
    {
        foreach ((CommandRequest request, int index, bool isOwner) in round.Waiters)
        {
            if (!isOwner)
            {
                _retries.Enqueue((request, index));
                continue;
            }

            if (!request.TryResume()) continue;
            request.Decisions[index] = decision;
            request.UndecidedCount--;
            End(request, decision.LastSequence);
        }

        round.Waiters.Clear();
    }

    /// <summary>Before the decision only; the money is free again at once, whatever the others do.</summary>
    void Abort(AbortRequest request, bool hasReserve)
    {
        if (!request.TryStart()) return;
        if (!hasReserve)
        {
            request.Complete(RequestStatus.Overloaded);
            return;
        }

        if (_rounds.TryGetValue(request.Attempt, out Round? round))
        {
            Attempt attempt = State.Attempts.Find(request.Attempt)!;
            request.IsAborted = !attempt.IsDecided;
            if (!attempt.IsDecided)
            {
                Conclude(attempt, round, new Vote { Outcome = Outcome.Aborted }, request.By);
                if (_rounds.ContainsKey(request.Attempt)) Answer(round, StateMachine.DecisionOf(attempt, null));
            }
        }

        Wait(request);
    }

    /// <summary>Says what is to be said of an attempt once all up to a sequence is durable.</summary>
    void Say(ulong head, ulong sequence) => _toSpeak.Enqueue((head, Injected.Is(PartitionDefect.PrepareBeforeDurable) || Injected.Is(PartitionDefect.DecisionBeforeDurable) ? 0 : sequence));

    void Speak(ulong flushed)
    {
        while (_replies.TryPeek(out (Message Message, ulong Sequence) reply) && (reply.Sequence <= flushed || Injected.Is(PartitionDefect.VoteBeforeDurable))) Outgoing.Add(_replies.Dequeue().Message);
        while (_toSpeak.TryPeek(out (ulong Head, ulong Sequence) one) && one.Sequence <= flushed)
        {
            _toSpeak.Dequeue();
            if (_rounds.TryGetValue(one.Head, out Round? round)) Speak(State.Attempts.Find(one.Head)!, round, flushed);
        }
    }

    void Speak(Attempt attempt, Round round, ulong flushed)
    {
        // What was decided meanwhile is said when that is durable.
        if (attempt.LastSequence > flushed && !Injected.Is(PartitionDefect.DecisionBeforeDurable)) return;
        if (attempt.Sequence > flushed && !Injected.Is(PartitionDefect.PrepareBeforeDurable)) return;
        foreach (Side side in round.Sides)
        {
            if (attempt.IsDecided ? side.IsDone : side.HasVoted) continue;
            Outgoing.Add(new Message
            {
                Kind = attempt.IsDecided ? MessageKind.Decision : MessageKind.Prepare,
                From = State.Partition,
                To = side.Partition,
                Attempt = attempt.Sequence,
                LowWater = LowWaterFor(side.Partition, attempt.Sequence, flushed),
                Preparation = attempt.IsDecided ? null : _machine.PreparationFor(attempt, side.Partition),
                IsCommit = attempt.Status == AttemptStatus.Committed && !(round.IsTakenUp && Injected.Is(PartitionDefect.AbortAfterCommit)),
            });
        }
    }

    /// <summary>
    /// The lowest attempt that this participant must not forget. Only what is durable counts: a vote whose decision a crash takes back is asked for
    /// again. What it has prepared it does not forget before the decision in any case.
    /// </summary>
    /// <param name="spokenOf">The one that it is spoken to about now.</param>
    ulong LowWaterFor(int participant, ulong spokenOf, ulong flushed)
    {
        while (_finishedInOrder.TryPeek(out ulong finished) && _finished[finished] <= flushed) _finished.Remove(_finishedInOrder.Dequeue());
        PriorityQueue<ulong, ulong> open = _openOf[participant];
        for (; open.TryPeek(out ulong head, out _); open.Dequeue())
        {
            if (IsOpen(head, participant, flushed)) return head;
        }

        return spokenOf;
    }

    bool IsOpen(ulong head, int participant, ulong flushed)
    {
        if (!_rounds.TryGetValue(head, out Round? round)) return _finished.GetValueOrDefault(head) > flushed;
        Attempt attempt = State.Attempts.Find(head)!;
        Side side = round.Sides[round.IndexOf(participant)];
        // Asked again after a restart, it must find what it refused, and who was not heard what comes next; where it ended is of less use.
        bool isNeeded = attempt.IsDecided ? !side.IsDone || attempt.LastSequence > flushed : !side.HasVoted || side.HasRefused;
        return isNeeded || (attempt.Status != AttemptStatus.Aborted && _openOf[participant].Count <= _rememberedMax);
    }

    void AbandonAttempts()
    {
        foreach (Round round in _rounds.Values)
        {
            foreach ((CommandRequest request, _, _) in round.Waiters) request.Complete(RequestStatus.UnavailableUnknown);
        }

        foreach ((CommandRequest request, _) in _retries) request.Complete(RequestStatus.UnavailableUnknown);
        foreach (CommandRequest request in _ended) request.Complete(RequestStatus.UnavailableUnknown);
    }
}
