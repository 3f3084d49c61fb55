namespace Purse.Ledger;

/// <summary>
/// The rules of a commit across partitions: what each side judges and sets aside, the decision, and what it leaves. Nothing is locked but the
/// money of the attempt itself. When which step is taken is the partition's to know (PartitionCore.Commit.cs).
/// </summary>
public sealed partial class StateMachine
{
    /// <summary>
    /// More commits than this are not begun with one partition before others with it end: one that is down keeps those with the others from nothing.
    /// Those under way at a time are far fewer, whatever the load.
    /// </summary>
    public const int UndecidedMax = 32_768;

    /// <summary>Whether other partitions have to be asked: not where this one refuses something that comes before all of theirs.</summary>
    static bool MustAsk(ReadOnlySpan<Step> steps, in Refusal refusal)
    {
        bool isRefused = refusal.Outcome != Outcome.Done;
        int count = isRefused ? refusal.Posting : steps.Length;
        for (int i = 0; i < count; i++)
        {
            if (steps[i].IsAcross) return true;
        }

        return isRefused && refusal.IsAboutPayee && steps[refusal.Posting].PayerPeer != 0;
    }

    static Vote ToVote(in Refusal refusal) => new()
    {
        Outcome = refusal.Outcome,
        Posting = refusal.Posting,
        IsAboutPayee = refusal.IsAboutPayee,
        Posted = refusal.About.Posted,
        Held = refusal.About.Held,
        Incoming = refusal.About.Incoming,
        Bound = refusal.Bound,
    };

    static Decision ToDecision(in Refusal refusal) => ToDecision(ToVote(refusal), refusal.Movement);

    static Decision ToDecision(in Vote vote, in Movement movement) => new()
    {
        Outcome = vote.Outcome,
        Amount = movement.Amount,
        Currency = movement.Currency,
        Posting = vote.Posting,
        Details = vote.IsRefusal ? new DecisionDetails { Posted = vote.Posted, Held = vote.Held, Incoming = vote.Incoming, Bound = vote.Bound } : null,
    };

    /// <summary>A dry run ends here, with what this side says of it: the others are asked by whoever wants to know.</summary>
    bool MayPrepare(in Command command, ReadOnlySpan<Step> steps, out Decision instead)
    {
        instead = default;
        if (command.DryRun) instead = new Decision { Currency = steps[0].Movement.Currency, Amount = steps[0].Movement.Amount, IsPartOnly = true };
        else if (IsFull(steps)) instead.Outcome = Outcome.Overloaded;
        return !command.DryRun && instead.Outcome == Outcome.Done;
    }

    bool IsFull(ReadOnlySpan<Step> steps)
    {
        // Nobody can have more than all together.
        if (State.Attempts.OwnCount < UndecidedMax) return false;
        foreach (ref readonly Step step in steps)
        {
            if (step.PayerPeer != 0 && State.Attempts.OwnCountWith(step.PayerPeer - 1) >= UndecidedMax) return true;
            if (step.PayeePeer != 0 && State.Attempts.OwnCountWith(step.PayeePeer - 1) >= UndecidedMax) return true;
        }

        return false;
    }

    /// <summary>Writes what begins an attempt. The attachment of its head was begun; <see cref="TryJudge"/> left what it touches.</summary>
    /// <param name="vote">What this side would refuse, in case the others refuse nothing before.</param>
    Decision Prepare(UInt128 transactionId, EventFlags flags, ulong original, ReadOnlySpan<Step> steps, in Vote vote, EventBatch batch)
    {
        if ((flags & EventFlags.Posting) != 0) batch.Attach(steps);
        if (vote.IsRefusal) batch.Attach(vote);
        return new Decision { Outcome = Outcome.Prepared, Sequence = AddPrepared(transactionId, flags, original, steps, vote.IsRefusal, batch) };
    }

    /// <summary>The head, and what the attempt reserves of each balance.</summary>
    ulong AddPrepared(UInt128 transactionId, EventFlags flags, ulong original, ReadOnlySpan<Step> steps, bool isRefused, EventBatch batch)
    {
        uint attachment = batch.EndAttachment();
        ulong sequence = batch.NextSequence;
        bool isTransaction = (flags & EventFlags.Posting) != 0;
        (uint payer, uint payee, uint currency, Int128 amount) = steps[0].Movement;
        bool isDebit = isTransaction || steps[0].PayerPeer == 0;
        ref Event head = ref batch.Add(EventKind.Prepared);
        head.Flags = flags;
        head.Account = isDebit ? payer : payee;
        head.Counterparty = isDebit ? payee : payer;
        head.Currency = currency;
        head.TransactionId = transactionId;
        head.Amount = amount;
        head.Link = original;
        head.Attachment = attachment;
        if (!isTransaction)
        {
            head.Code = (ushort)(isDebit ? Direction.Debit : Direction.Credit);
            if (!head.TouchesBalance) return sequence;
            Balance from = State.Balance(payer, currency);
            head.Posted = from.Posted;
            head.Held = from.Held + amount;
            head.Previous = from.LastSequence;
            return sequence;
        }

        head.Count = (ushort)steps.Length;
        if (isRefused) return sequence;
        ushort number = 0;
        for (int i = 0; i < _touchedCount; i++)
        {
            TouchedBalance touched = _touched[i];
            touched.Balance.Posted = touched.PostedBefore;
            touched.Balance.Held -= touched.Lowest;
            if (touched.Lowest < 0) AddReserved(transactionId, Direction.Debit, -touched.Lowest, ref touched.Balance, sequence, ++number, batch);
            if (touched.Highest > 0) AddReserved(transactionId, Direction.Credit, touched.Highest, ref touched.Balance, sequence, ++number, batch);
        }

        return sequence;
    }

    static void AddReserved(UInt128 transactionId, Direction direction, Int128 amount, ref Balance balance, ulong head, ushort number, EventBatch batch)
    {
        ulong previous = balance.LastSequence;
        ref Event reserved = ref AddMoney(EventKind.Prepared, transactionId, 0, amount, ref balance, EventFlags.Posting, batch);
        reserved.Code = (ushort)direction;
        reserved.Link = head;
        reserved.Index = number;
        if (direction == Direction.Debit) return;
        // Beside the balance's chain: what may come changes neither what is posted nor what is held.
        (reserved.Previous, reserved.Posted, reserved.Held) = (0, 0, 0);
        balance.LastSequence = previous;
    }

    /// <summary>
    /// As a participant: judges what another partition asks to prepare, and remembers the vote. Asked again, it says again what became of it.
    /// </summary>
    /// <param name="lowWater">Below it, this partition is never asked for anything of that coordinator again.</param>
    /// <returns>Null for what is finished, and was forgotten.</returns>
    public Attempt? Prepare(Preparation asked, ulong lowWater, EventBatch batch)
    {
        if (State.Attempts.Find(asked.Coordinator, asked.Attempt) is Attempt known) return known;
        if (asked.Attempt < State.Attempts.LowWaterOf(asked.Coordinator)) return null;

        // What the coordinator knows is registered; here the news may still be on its way.
        int before = batch.Count;
        foreach (ref readonly Posting posting in asked.Postings.AsSpan())
        {
            if (State.TryCurrency(posting.Currency, out _, out int decimals))
            {
                if (decimals != posting.AmountScale) Check.Fail($"partitions {asked.Coordinator} and {State.Partition} give {posting.Currency} the same decimals");
                continue;
            }

            Decide(new Command { Kind = CommandKind.RegisterCurrency, Currency = posting.Currency, AmountScale = posting.AmountScale }, batch);
            ApplyFrom(before, batch);
            before = batch.Count;
        }

        int count = asked.Postings.Length;
        ReadOnlySpan<Step> steps = ToSteps(asked, out uint next);
        ulong head;
        bool isRefused = !TryJudge(steps, out Refusal refusal) && !(Injected.Is(LedgerDefect.CaptureIntoFrozen) && (asked.Flags & EventFlags.Capture) != 0);
        if (isRefused)
        {
            Vote vote = ToVote(refusal);
            vote.Posting = asked.Postings[refusal.Posting].Index;
            batch.BeginAttachment();
            batch.Attach(asked.Coordinator, asked.Attempt, lowWater);
            batch.Attach(vote);
            uint attachment = batch.EndAttachment();
            head = batch.NextSequence;
            ref Event refused = ref batch.Add(EventKind.Refused);
            refused.Flags = asked.Flags & EventFlags.Posting;
            refused.Code = (ushort)refusal.Outcome;
            refused.Index = (ushort)vote.Posting;
            refused.TransactionId = asked.TransactionId;
            refused.Attachment = attachment;
        }
        else
        {
            NameAccounts(asked.Postings, steps, batch);
            batch.BeginAttachment();
            batch.Attach(asked.Coordinator, asked.Attempt, lowWater);
            batch.Attach(AttachmentTag.Description, asked.Description);
            batch.Attach(AttachmentTag.Metadata, asked.Metadata);
            if ((asked.Flags & EventFlags.Posting) != 0)
            {
                Span<ushort> indexes = stackalloc ushort[count];
                for (int i = 0; i < count; i++) indexes[i] = asked.Postings[i].Index;
                batch.Attach(steps);
                batch.Attach(indexes);
            }

            head = AddPrepared(asked.TransactionId, asked.Flags, 0, steps, isRefused: Injected.Is(LedgerDefect.VoteDoesNotBind), batch);
        }

        ApplyFrom(before, batch);
        return State.Attempts.Find(head);
    }

    /// <summary>What a participant would say now, without leaving anything: its part of a dry run.</summary>
    public Vote Judge(Preparation asked)
    {
        foreach (ref readonly Posting posting in asked.Postings.AsSpan())
        {
            // A currency that was not heard of yet was never had either.
            if (!State.TryCurrency(posting.Currency, out _, out _)) return default;
        }

        if (TryJudge(ToSteps(asked, out _), out Refusal refusal)) return default;
        return ToVote(refusal) with { Posting = asked.Postings[refusal.Posting].Index };
    }

    ReadOnlySpan<Step> ToSteps(Preparation asked, out uint next)
    {
        next = NextAccount;
        Check.That(asked.Postings.Length is > 0 and <= PostingsMax, "a transaction has 1 to 64 postings");
        for (int i = 0; i < asked.Postings.Length; i++)
        {
            ref readonly Posting posting = ref asked.Postings[i];
            uint payer = NumberOf(posting.Account, asked.Postings.AsSpan(0, i), ref next), payee = NumberOf(posting.Counterparty, asked.Postings.AsSpan(0, i), ref next);
            State.TryCurrency(posting.Currency, out uint currency, out _);
            _steps[i] = NewStep(new Movement(payer, payee, currency, posting.AmountDigits), posting.Account, posting.Counterparty);
        }

        return _steps.AsSpan(0, asked.Postings.Length);
    }

    /// <summary>The coordinator's decision, after every vote, or by an operator before.</summary>
    /// <param name="vote">The refusal that comes first, if any.</param>
    /// <param name="by">Who ended it before it was decided.</param>
    public void Conclude(Attempt attempt, in Vote vote, string? by, EventBatch batch)
    {
        Check.That(attempt is { IsOwn: true, IsDecided: false }, "the coordinator decides once");
        int before = batch.Count;
        if (vote.IsRefusal)
        {
            AddAborted(attempt, batch);
            AddRejected(attempt, vote, by, batch);
        }
        else
        {
            Carry(attempt, batch);
        }

        ApplyFrom(before, batch);
        // A capture that was refused kept its hold from expiring in time, and a hold may be due by the time it is agreed to.
        if (State.Holds.FirstDue(DueMicros(batch)) is >= 0 and int due) Expire(due, batch);
    }

    /// <summary>What the caller is told of what was decided.</summary>
    /// <param name="parts">Where it ends in each partition; null where it was not committed.</param>
    public static Decision DecisionOf(Attempt attempt, Part[]? parts)
    {
        Movement movement = attempt.Movements[attempt.Vote.IsRefusal ? attempt.Vote.Posting : 0];
        Decision decision = ToDecision(attempt.Vote, movement);
        (decision.Sequence, decision.LastSequence, decision.TimeMicros) = (attempt.DecisionSequence, attempt.LastSequence, attempt.DecisionMicros);
        decision.Details = (decision.Details ?? DecisionDetails.None) with { PreparedMicros = attempt.PreparedMicros, Parts = parts };
        return decision;
    }

    /// <summary>As a participant: does what the coordinator decided. Told again, it changes nothing.</summary>
    public void Carry(Attempt attempt, bool commit, EventBatch batch)
    {
        Check.That(!attempt.IsOwn, "the coordinator does not tell itself");
        if (commit && attempt.Status is not AttemptStatus.Prepared and not AttemptStatus.Committed)
            Check.Fail($"attempt {attempt.CoordinatorSequence} of partition {attempt.Coordinator} is committed only where it was prepared, not {attempt.Status}");
        if (!commit && attempt.Status == AttemptStatus.Committed) Check.Fail($"attempt {attempt.CoordinatorSequence} of partition {attempt.Coordinator} is not aborted after it was committed");
        if (attempt.Status != AttemptStatus.Prepared) return;
        int before = batch.Count;
        if (commit) Carry(attempt, batch);
        else AddAborted(attempt, batch);
        ApplyFrom(before, batch);
    }

    /// <summary>Aborted before this participant heard of it: remembered, so that it does not prepare what comes late.</summary>
    public Attempt AbortUnheardOf(int coordinator, ulong attempt, ulong lowWater, EventBatch batch)
    {
        batch.BeginAttachment();
        batch.Attach(coordinator, attempt, lowWater);
        uint attachment = batch.EndAttachment();
        batch.Add(EventKind.Aborted).Attachment = attachment;
        ApplyFrom(batch.Count - 1, batch);
        return State.Attempts.Find(coordinator, attempt)!;
    }

    /// <summary>Every side shows the decision: from now on the id answers for it.</summary>
    /// <param name="parts">Where it ends in each partition, this one included.</param>
    public void Finish(Attempt attempt, ReadOnlySpan<Part> parts, EventBatch batch)
    {
        Check.That(attempt is { IsOwn: true, IsDecided: true }, "what is finished was decided");
        batch.BeginAttachment();
        if (parts.Length > 0) batch.Attach(parts);
        uint attachment = batch.EndAttachment();
        ref Event finished = ref batch.Add(EventKind.Finished);
        finished.Account = attempt.Home;
        finished.TransactionId = attempt.TransactionId;
        finished.Link = attempt.DecisionSequence;
        finished.Attachment = attachment;
        // What is applied ends the attempt itself.
        ulong head = attempt.Sequence;
        ApplyFrom(batch.Count - 1, batch);
        Check.That(State.Attempts.Find(head) is null, "what is finished is over");
    }

    /// <summary>The events of money of this side.</summary>
    void Carry(Attempt attempt, EventBatch batch)
    {
        _touchedCount = 0;
        EventFlags flags = (attempt.Flags & ~EventFlags.Pending) | EventFlags.CrossPartition;
        ulong first = batch.NextSequence;
        int firstIndex = batch.Count;
        Movement only = attempt.Movements[0];
        if ((attempt.Flags & EventFlags.Pending) != 0 && attempt.IsOwn)
        {
            // What was set aside becomes the hold: the sum stays as it is.
            AddMoney(EventKind.Held, attempt.TransactionId, only.Payee, only.Amount, ref Settled(attempt, only.Payer, only.Currency, only.Amount), flags, batch);
        }
        else if ((attempt.Flags & EventFlags.Capture) != 0 && attempt.IsOwn)
        {
            Hold hold = State.Holds[State.Holds.Find(attempt.Original)];
            AddCapture(attempt.TransactionId, hold, only.Amount, ref Settled(attempt, only.Payer, only.Currency), flags & ~EventFlags.Capture, attempt.Sequence, batch);
        }
        else
        {
            // A transaction and a reversal may begin with a credit, or with a posting that is not the first; what only agreed to a hold moves nothing.
            if (attempt.IsOwn ? (attempt.Flags & (EventFlags.Posting | EventFlags.Reversal)) != 0 : (attempt.Flags & EventFlags.Pending) != 0)
            {
                ref Event committed = ref batch.Add(EventKind.Committed);
                committed.Flags = flags;
                committed.Account = only.Payer;
                committed.Counterparty = only.Payee;
                committed.Currency = only.Currency;
                committed.TransactionId = attempt.TransactionId;
                committed.Amount = only.Amount;
                committed.Count = (ushort)(attempt.IsTransaction ? attempt.MovementsCount : 0);
            }

            for (int i = 0; i < attempt.MovementsCount && (attempt.Flags & EventFlags.Pending) == 0; i++)
            {
                Movement movement = attempt.Movements[i];
                int added = batch.Count;
                if (IsHere(movement.Payer, movement.Payee)) AddDebit(attempt.TransactionId, movement, ref Settled(attempt, movement.Payer, movement.Currency), flags, batch);
                if (IsHere(movement.Payee, movement.Payer)) AddCredit(attempt.TransactionId, movement, ref Settled(attempt, movement.Payee, movement.Currency), flags, batch);
                for (; added < batch.Count && attempt.IsTransaction; added++)
                {
                    ref Event e = ref batch[added];
                    e.Index = attempt.Indexes[i];
                    e.Count = (ushort)attempt.MovementsCount;
                }
            }
        }

        for (int i = firstIndex; i < batch.Count; i++)
        {
            ref Event e = ref batch[i];
            e.Link = attempt.Sequence;
            if (attempt.HasTexts) e.Code = 1;
        }

        Check.That(batch.NextSequence > first, "a commit leaves an event on every side");
    }

    /// <summary>The first event of a balance lets go of all that was set aside of it.</summary>
    /// <param name="held">How much of it is held on.</param>
    ref Balance Settled(Attempt attempt, uint account, uint currency, Int128 held = default)
    {
        int count = _touchedCount;
        ref Balance balance = ref Touched(account, currency).Balance;
        if (_touchedCount == count) return ref balance;
        foreach (Reservation one in attempt.Reservations)
        {
            if (one.Account == account && one.Currency == currency) balance.Held += held - one.Held;
        }

        return ref balance;
    }

    /// <summary>Of a party that is known by number. A system account is where the other one is.</summary>
    bool IsHere(uint account, uint counterparty)
    {
        ref readonly Account party = ref State.Account(account);
        return (party.IsUnlimited ? State.Account(counterparty).Peer : party.Peer) == 0;
    }

    void AddAborted(Attempt attempt, EventBatch batch)
    {
        int before = batch.Count;
        foreach (Reservation one in attempt.Reservations)
        {
            if (one.Held == 0) continue;
            Balance balance = State.Balance(one.Account, one.Currency);
            balance.Held -= one.Held;
            ref Event aborted = ref AddMoney(EventKind.Aborted, attempt.TransactionId, 0, one.Held, ref balance, EventFlags.CrossPartition, batch);
            aborted.Code = (ushort)Direction.Debit;
            aborted.Link = attempt.Sequence;
        }

        // A participant always says that it let go.
        if (batch.Count > before || attempt.IsOwn) return;
        ref Event nothing = ref batch.Add(EventKind.Aborted);
        nothing.Flags = EventFlags.CrossPartition;
        nothing.TransactionId = attempt.TransactionId;
        nothing.Link = attempt.Sequence;
    }

    static void AddRejected(Attempt attempt, in Vote vote, string? by, EventBatch batch)
    {
        batch.BeginAttachment();
        batch.Attach(vote);
        if (vote.Bound != 0) batch.Attach(AttachmentTag.Bound, vote.Bound);
        if (vote.Incoming != 0) batch.Attach(AttachmentTag.Incoming, vote.Incoming);
        batch.Attach(AttachmentTag.By, by);
        uint attachment = batch.EndAttachment();
        Movement movement = attempt.Movements[vote.Posting];
        ref Event rejected = ref batch.Add(EventKind.TransferRejected);
        rejected.Flags = attempt.Flags | EventFlags.CrossPartition;
        rejected.Code = (ushort)vote.Outcome;
        rejected.Account = movement.Payer;
        rejected.Counterparty = movement.Payee;
        rejected.Currency = movement.Currency;
        rejected.TransactionId = attempt.TransactionId;
        rejected.Amount = movement.Amount;
        rejected.Posted = vote.Posted;
        rejected.Held = vote.Held;
        rejected.Link = attempt.Sequence;
        rejected.Attachment = attachment;
        rejected.Index = (ushort)vote.Posting;
        rejected.Count = (ushort)(attempt.IsTransaction ? attempt.MovementsCount : 0);
    }

    /// <summary>What to ask one participant: the postings that touch its accounts.</summary>
    public Preparation PreparationFor(Attempt attempt, int participant)
    {
        int count = 0;
        for (int i = 0; i < attempt.MovementsCount; i++) count += Touches(attempt.Movements[i], participant) ? 1 : 0;
        Posting[] postings = new Posting[count];
        count = 0;
        for (int i = 0; i < attempt.MovementsCount; i++)
        {
            Movement movement = attempt.Movements[i];
            if (!Touches(movement, participant)) continue;
            postings[count++] = new Posting
            {
                Account = State.Names[movement.Payer],
                Counterparty = State.Names[movement.Payee],
                Currency = State.CodeOf(movement.Currency),
                AmountDigits = movement.Amount,
                AmountScale = (byte)State.Decimals(movement.Currency),
                Index = attempt.Indexes[i],
            };
        }

        return new Preparation
        {
            Coordinator = State.Partition,
            Attempt = attempt.Sequence,
            TransactionId = attempt.TransactionId,
            Flags = attempt.Flags,
            Postings = postings,
            Description = attempt.Description,
            Metadata = attempt.Metadata,
        };
    }

    bool Touches(in Movement movement, int partition) => State.Account(movement.Payer).Peer == partition + 1 || State.Account(movement.Payee).Peer == partition + 1;

    Attempt AttemptOf(ulong sequence, in Event e) => State.Attempts.Find(e.Link) is { } attempt && attempt.TransactionId == e.TransactionId
        ? attempt
        : throw new InvariantBrokenException($"Event {sequence} belongs to attempt {e.Link}, which is not under way.");
}
