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

    readonly Stack<Round> _spareRounds = new();

    // Of each participant, the attempts that it must not forget; as they began, the lowest head first.
    readonly Dictionary<int, Queue<Begun>> _openOf = [];
    // Finished, but that is not durable yet; in order.
    readonly Queue<Round> _finished = new();
    readonly Queue<Message> _inbox = new();
    readonly Queue<(Begun Begun, ulong Sequence)> _toSpeak = new();
    readonly Queue<(Message Message, ulong Sequence)> _replies = new();
    // Those that were not said again yet, in order; and the others.
    readonly Queue<(Begun Begun, long DueMicros)> _firstResends = new();
    readonly PriorityQueue<Begun, long> _resends = new();
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

    /// <summary>A list's way to an attempt, which may have finished since: its round is used again then, for another head.</summary>
    readonly record struct Begun(Round Round, ulong Head)
    {
        /// <summary>It is not finished, or that is not durable yet.</summary>
        public bool IsKept => Round.Head == Head;

        public bool IsUnderWay => IsKept && Round.FinishedSequence == 0;
    }

    /// <summary>An attempt that this partition coordinates, as <see cref="Attempt.Companion"/> of it.</summary>
    sealed class Round
    {
        public ulong Head;

        /// <summary>Until it is finished.</summary>
        public Attempt Attempt = null!;

        /// <summary>Where it was finished, 0 before.</summary>
        public ulong FinishedSequence;
        public OneOrMore<Side> Sides;
        public OneOrMore<(CommandRequest Request, int Index, bool IsOwner)> Waiters;

        /// <summary>The refusal that comes first of those heard so far.</summary>
        public Vote Lowest;
        public long ResendMicros;

        /// <summary>So many waiters are looked through for those that have given up.</summary>
        public int WaitersLook = WaitersLookMin;

        /// <summary>Found by a recovery.</summary>
        public bool IsTakenUp;

        public int IndexOf(int partition)
        {
            int index = Sides.Count - 1;
            while (index >= 0 && Sides.Span[index].Partition != partition) index--;
            return index;
        }

        public bool AllVoted
        {
            get
            {
                foreach (ref readonly Side side in Sides.Span)
                {
                    if (!side.HasVoted) return false;
                }

                return true;
            }
        }

        public bool AllDone
        {
            get
            {
                foreach (ref readonly Side side in Sides.Span)
                {
                    if (!side.IsDone) return false;
                }

                return true;
            }
        }
    }

    /// <summary>An attempt that is under way, for those who look after them.</summary>
    /// <param name="WaitsFor">The partitions that have not voted, or not said that they are done.</param>
    public sealed record InDoubt(ulong Head, UInt128 TransactionId, uint Home, long PreparedMicros, AttemptStatus Status, int Coordinator, ulong CoordinatorSequence, int[] WaitsFor, Movement[] Movements);

    /// <summary>Commits that this partition coordinates and has not ended, as of the last block; any thread may look.</summary>
    public int UndecidedCount => Volatile.Read(ref _undecidedCount);

    /// <summary>When the oldest of them began, 0 for none; any thread may look.</summary>
    public long OldestUndecidedMicros => Volatile.Read(ref _oldestUndecidedMicros);

    int _roundsCount;
    int _undecidedCount;
    long _oldestUndecidedMicros;

    // In order; those that have ended leave when they come first, or when they are too many.
    Queue<Begun> _begun = new();

    void TellUndecided()
    {
        Volatile.Write(ref _undecidedCount, _roundsCount);
        while (_begun.TryPeek(out Begun first) && !first.IsUnderWay) _begun.Dequeue();
        if (_begun.Count > 2 * _roundsCount + 1024) _begun = new Queue<Begun>(_begun.Where(static one => one.IsUnderWay));
        Volatile.Write(ref _oldestUndecidedMicros, _begun.TryPeek(out Begun oldest) ? oldest.Round.Attempt.PreparedMicros : 0);
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
                ? [.. ((Round)attempt.Companion!).Sides.Span.ToArray().Where(side => attempt.IsDecided ? !side.IsDone : !side.HasVoted).Select(side => side.Partition)]
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
        Begun begun = new(round, attempt.Sequence);
        foreach (int partition in attempt.Participants)
        {
            round.Sides.Add(new Side { Partition = partition });
            if (!_openOf.TryGetValue(partition, out Queue<Begun>? open)) _openOf[partition] = open = new();
            open.Enqueue(begun);
        }

        (round.Head, round.Attempt, round.FinishedSequence, round.Lowest) = (attempt.Sequence, attempt, 0, attempt.Vote);
        (round.ResendMicros, round.WaitersLook, round.IsTakenUp) = (ResendMicros, WaitersLookMin, false);
        attempt.Companion = round;
        _roundsCount++;
        _begun.Enqueue(begun);
        Say(begun, State.LastSequence);
        _firstResends.Enqueue((begun, nowMicros + ResendMicros));
        return round;
    }

    /// <summary>The command waits until an attempt ends: its own, whose outcome is its answer, or one that it has to be decided after.</summary>
    void Await(in Decision decision, CommandRequest request, int index)
    {
        bool isOwner = decision.Outcome == Outcome.Prepared;
        Round round = isOwner ? Begin(State.Attempts.Find(decision.Sequence)!, _lastNowMicros) : RoundOf(decision.Sequence)!;
        round.Waiters.Add((request, index, isOwner));
        request.UndecidedCount++;
        if (round.Waiters.Count < round.WaitersLook) return;
        // While a partition is down its callers give up and ask again, for as long as it takes.
        round.Waiters.RemoveAll(static one => one.Request.IsEnded);
        round.WaitersLook = Math.Max(WaitersLookMin, round.Waiters.Count * 2);
    }

    const int WaitersLookMin = 64;

    /// <summary>How many still stand in an attempt's list.</summary>
    internal int WaitersCountOf(ulong head) => RoundOf(head)!.Waiters.Count;

    /// <summary>Null for what is finished, or was never begun here.</summary>
    Round? RoundOf(ulong head) => State.Attempts.Find(head)?.Companion as Round;

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
        for (int count = _resends.Count; count > 0 && _resends.TryPeek(out Begun begun, out long dueMicros) && dueMicros <= nowMicros; count--)
        {
            _resends.Dequeue();
            SayAgain(begun, nowMicros);
        }

        while (_firstResends.TryPeek(out (Begun Begun, long DueMicros) first) && first.DueMicros <= nowMicros)
        {
            _firstResends.Dequeue();
            SayAgain(first.Begun, nowMicros);
        }

        return true;
    }

    void SayAgain(Begun begun, long nowMicros)
    {
        if (!begun.IsUnderWay || Injected.Is(PartitionDefect.NothingSaidAgain)) return;
        Say(begun, State.LastSequence);
        begun.Round.ResendMicros = Math.Min(begun.Round.ResendMicros * 2, ResendMicrosMax);
        _resends.Enqueue(begun, nowMicros + begun.Round.ResendMicros);
    }

    /// <summary>
    /// Whoever has refused must not forget it before that is decided, and with it nothing that comes after. Where that becomes too much, because
    /// others do not vote for so long, the refusals that were heard are enough.
    /// </summary>
    bool TryEndRefused()
    {
        foreach (Queue<Begun> open in _openOf.Values)
        {
            if (open.Count <= _rememberedMax || !open.TryPeek(out Begun first) || !first.IsUnderWay || !first.Round.Lowest.IsRefusal || first.Round.Attempt.IsDecided) continue;
            if (!_batch!.HasRoom) return false;
            Conclude(first.Round, first.Round.Lowest, null);
        }

        return true;
    }

    /// <summary>A clock that was set back keeps nobody waiting until it is where it was.</summary>
    void SetBack(long nowMicros)
    {
        Begun[] all = [.. _resends.UnorderedItems.Select(static one => one.Element)];
        _resends.Clear();
        foreach (Begun one in all) _resends.Enqueue(one, nowMicros);
        while (_firstResends.TryDequeue(out (Begun Begun, long) first)) _resends.Enqueue(first.Begun, nowMicros);
    }

    bool IsAnyResendDue(long nowMicros) =>
        (_resends.TryPeek(out _, out long dueMicros) && (dueMicros <= nowMicros || nowMicros < _lastNowMicros))
        || (_firstResends.TryPeek(out (Begun, long DueMicros) first) && (first.DueMicros <= nowMicros || nowMicros < _lastNowMicros));

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
        if (RoundOf(message.Attempt) is not Round round) return;
        int index = round.IndexOf(message.From);
        if (index >= 0 && round.Sides.Span[index].HasVoted && Injected.Is(PartitionDefect.VoteCountedTwice)) index = Array.FindIndex(round.Sides.Span.ToArray(), static side => !side.HasVoted);
        if (index < 0 || round.Attempt.IsDecided) return;
        ref Side side = ref round.Sides.Span[index];
        if (side.HasVoted) return;
        Vote vote = message.Vote;
        (side.HasVoted, side.HasRefused) = (true, vote.IsRefusal);
        if (vote.IsRefusal && (!round.Lowest.IsRefusal || (vote.Precedes(round.Lowest) && !Injected.Is(PartitionDefect.FirstRefusalHeardWins)))) round.Lowest = vote;
        if (round.AllVoted) Conclude(round, round.Lowest, null);
    }

    void Conclude(Round round, in Vote vote, string? by)
    {
        Begun begun = new(round, round.Head);
        _machine.Conclude(round.Attempt, vote, by, _batch!);
        Tally.Add(vote.Outcome);
        foreach (ref Side side in round.Sides.Span) side.IsDone |= side.HasRefused;

        if (round.AllDone) Finish(round);
        else Say(begun, State.LastSequence);
        if (Injected.Is(PartitionDefect.AnsweredAtDecision) && begun.IsUnderWay) Answer(round, StateMachine.DecisionOf(round.Attempt, null));
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
        if (RoundOf(message.Attempt) is not Round round) return;
        int index = round.IndexOf(message.From);
        // Before the decision, a participant can only repeat what became of another attempt.
        if (index < 0 || !round.Attempt.IsDecided) return;
        // Said again by a side that has forgotten since, it does not undo where that was.
        ref Side side = ref round.Sides.Span[index];
        if (side.IsDone && (side.HasRefused || side.Sequence != 0 || message.Sequence == 0)) return;
        (side.IsDone, side.Sequence) = (true, message.Sequence);
        if (round.AllDone) Finish(round);
    }

    /// <summary>Every side shows it: whoever waits is answered.</summary>
    void Finish(Round round)
    {
        Attempt attempt = round.Attempt;
        _parts.Clear();
        if (attempt.Status == AttemptStatus.Committed) _parts.Add(new Part(State.Partition, attempt.LastSequence));
        foreach (ref readonly Side side in round.Sides.Span)
        {
            if (attempt.Status == AttemptStatus.Committed && side.Sequence != 0) _parts.Add(new Part(side.Partition, side.Sequence));
        }

        Decision decision = StateMachine.DecisionOf(attempt, _parts.Count > 0 ? [.. _parts] : null);
        _machine.Finish(attempt, System.Runtime.InteropServices.CollectionsMarshal.AsSpan(_parts), _batch!);
        Answer(round, decision);
        (round.Attempt, round.FinishedSequence) = (null!, State.LastSequence);
        _finished.Enqueue(round);
        _roundsCount--;
    }

    void Answer(Round round, in Decision decision)
    {
        foreach ((CommandRequest request, int index, bool isOwner) in round.Waiters.Span)
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

        if (RoundOf(request.Attempt) is Round round)
        {
            request.IsAborted = !round.Attempt.IsDecided;
            if (!round.Attempt.IsDecided)
            {
                Conclude(round, new Vote { Outcome = Outcome.Aborted }, request.By);
                if (round.FinishedSequence == 0) Answer(round, StateMachine.DecisionOf(round.Attempt, null));
            }
        }

        Wait(request);
    }

    /// <summary>Says what is to be said of an attempt once all up to a sequence is durable.</summary>
    void Say(Begun begun, ulong sequence) => _toSpeak.Enqueue((begun, Injected.Is(PartitionDefect.PrepareBeforeDurable) || Injected.Is(PartitionDefect.DecisionBeforeDurable) ? 0 : sequence));

    void Speak(ulong flushed)
    {
        while (_replies.TryPeek(out (Message Message, ulong Sequence) reply) && (reply.Sequence <= flushed || Injected.Is(PartitionDefect.VoteBeforeDurable))) Outgoing.Add(_replies.Dequeue().Message);
        while (_toSpeak.TryPeek(out (Begun Begun, ulong Sequence) one) && one.Sequence <= flushed)
        {
            _toSpeak.Dequeue();
            if (one.Begun.IsUnderWay) Speak(one.Begun.Round, flushed);
        }
    }

    void Speak(Round round, ulong flushed)
    {
        Attempt attempt = round.Attempt;
        // What was decided meanwhile is said when that is durable.
        if (attempt.LastSequence > flushed && !Injected.Is(PartitionDefect.DecisionBeforeDurable)) return;
        if (attempt.Sequence > flushed && !Injected.Is(PartitionDefect.PrepareBeforeDurable)) return;
        foreach (ref readonly Side side in round.Sides.Span)
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
        while (_finished.TryPeek(out Round? finished) && finished.FinishedSequence <= flushed)
        {
            _finished.Dequeue();
            finished.Head = 0;
            finished.Sides.Clear();
            _spareRounds.Push(finished);
        }

        Queue<Begun> open = _openOf[participant];
        for (; open.TryPeek(out Begun first); open.Dequeue())
        {
            if (IsOpen(first, participant, flushed)) return first.Head;
        }

        return spokenOf;
    }

    bool IsOpen(Begun begun, int participant, ulong flushed)
    {
        if (!begun.IsUnderWay) return begun.IsKept && begun.Round.FinishedSequence > flushed;
        Attempt attempt = begun.Round.Attempt;
        Side side = begun.Round.Sides.Span[begun.Round.IndexOf(participant)];
        // Asked again after a restart, it must find what it refused, and who was not heard what comes next; where it ended is of less use.
        bool isNeeded = attempt.IsDecided ? !side.IsDone || attempt.LastSequence > flushed : !side.HasVoted || side.HasRefused;
        return isNeeded || (attempt.Status != AttemptStatus.Aborted && _openOf[participant].Count <= _rememberedMax);
    }

    void AbandonAttempts()
    {
        foreach (Begun begun in _begun)
        {
            if (!begun.IsUnderWay) continue;
            foreach ((CommandRequest request, _, _) in begun.Round.Waiters.Span) request.Complete(RequestStatus.UnavailableUnknown);
        }

        foreach ((CommandRequest request, _) in _retries) request.Complete(RequestStatus.UnavailableUnknown);
        foreach (CommandRequest request in _ended) request.Complete(RequestStatus.UnavailableUnknown);
    }
}
