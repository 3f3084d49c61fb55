namespace Purse.Ledger;

/// <summary>
/// The double-entry rules. <see cref="Decide"/> judges a command and writes what follows from it as events; <see cref="Apply"/> is the
/// only thing that changes the state, the same for live traffic, recovery and replay. Both are deterministic: the time and all else
/// from outside comes in as arguments.
/// </summary>
public sealed partial class StateMachine(State state)
{
    public State State { get; } = state;

    /// <summary>Decides, and applies what was decided. A dry run leaves neither.</summary>
    public Decision Execute(in Command command, EventBatch batch)
    {
        (int Count, int, int) before = batch.Here;
        Decision decision = Decide(command, batch);
        if (command.DryRun && !Injected.Is(LedgerDefect.DryRunRecorded))
        {
            batch.Rewind(before);
            if (decision.Outcome is Outcome.Duplicate or Outcome.Undecided or Outcome.Blocked) return decision;
            decision.Sequence = 0;
            decision.LastSequence = State.LastSequence;
            decision.TimeMicros = batch.TimeMicros;
            return decision;
        }

        ApplyFrom(before.Count, batch);
        return decision;
    }

    void ApplyFrom(int index, EventBatch batch)
    {
        for (int i = index; i < batch.Count; i++) Apply(batch.FirstSequence + (ulong)i, batch.TimeMicros, batch.Events[i], batch.Attachments, batch.Erasable);
        CheckBalanced();
    }

    /// <summary>Writes the events of a command to the batch; the state stays as it is.</summary>
    public Decision Decide(in Command command, EventBatch batch)
    {
        Check.That(batch.NextSequence == State.LastSequence + 1, "a batch continues the state it is decided on");
        Check.That(batch.TimeMicros >= State.LastTimeMicros, "time does not go back");
        return command.Kind switch
        {
            CommandKind.Transfer => DecideTransfer(command, batch),
            CommandKind.OpenAccount => DecideOpenAccount(command, batch),
            CommandKind.SetLimits => DecideSetLimits(command, batch),
            CommandKind.SetMetadata => DecideSetMetadata(command, batch),
            CommandKind.Freeze or CommandKind.Unfreeze => DecideFreeze(command, batch),
            CommandKind.Close => DecideClose(command, batch),
            CommandKind.Capture => DecideCapture(command, batch),
            CommandKind.Void => DecideVoid(command, batch),
            CommandKind.Transaction => DecideTransaction(command, batch),
            CommandKind.Reverse => DecideReversal(command, batch),
            CommandKind.RegisterCurrency => DecideRegisterCurrency(command, batch),
            _ => throw new ArgumentOutOfRangeException(nameof(command), command.Kind, "unknown kind of command"),
        };
    }

    /// <summary>
    /// Checks in the documented order: shape, idempotency, currency, everything of the payer, everything of the payee; a payee who lives in another
    /// partition is judged there.
    /// </summary>
    Decision DecideTransfer(in Command command, EventBatch batch)
    {
        if (command.KnownAccount == 0 ? command.Account == command.Counterparty : command.KnownAccount == command.KnownCounterparty) return Decision.Of(Outcome.SameAccount);
        if (command.AmountDigits <= 0) return Decision.Of(Outcome.AmountNotPositive);

        uint next = NextAccount;
        uint payer = command.KnownAccount != 0 ? command.KnownAccount : NumberOf(command.Account, ref next);
        uint payee = command.KnownCounterparty != 0 ? command.KnownCounterparty : NumberOf(command.Counterparty, ref next);
        bool isFromSystem = IsSystem(payer, command.Account), isToSystem = IsSystem(payee, command.Counterparty);
        if (TryAnswerBefore(Home(isFromSystem, payer, isToSystem, payee), command.TransactionId, out Decision before)) return before;

        Outcome outcome = ToMinor(command.AmountDigits, command.AmountScale, command.Currency, out uint currency, out Int128 asked);
        if (outcome != Outcome.Done) return Decision.Of(outcome, currency);

        Balance from = State.Balance(payer, currency), to = State.Balance(payee, currency);
        Int128 amount = asked;
        ushort payeePeer = isFromSystem ? (ushort)0 : PeerOf(command.Counterparty, payee);
        outcome = JudgePayer(isFromSystem, from, command.UpTo, ref amount, out Int128 bound);
        bool isAboutPayee = outcome == Outcome.Done;
        if (isAboutPayee && payeePeer == 0) outcome = JudgePayee(isToSystem, to, amount, out bound);
        if (LacksRoomForNames(next)) return Decision.Of(Outcome.StorageFull);
        Movement movement = new(payer, payee, currency, amount);
        EventFlags flags = (command.UpTo ? EventFlags.UpTo : EventFlags.None) | (command.Pending ? EventFlags.Pending : EventFlags.None);
        if (outcome == Outcome.Done && payeePeer != 0)
            return PrepareTransfer(command, new Step(movement, isFromSystem, isToSystem) { PayeePeer = payeePeer }, flags, next, asked, batch);

        // Nothing below can fail.
        if (next != NextAccount) NameAccounts(command.Account, payer, command.Counterparty, payee, batch);
        if (outcome != Outcome.Done) return RefuseTransfer(command, outcome, movement, flags, isAboutPayee ? to : from, bound, asked, batch);

        ulong sequence = batch.NextSequence;
        uint attachment = command.Details is null && command.ExpiresInSeconds == 0 && amount == asked ? 0 : AttachTransfer(command, amount, asked, batch);
        if (command.Pending)
        {
            // Only the payer's money is set aside; the payee is judged again when it is captured.
            from.Held += amount;
            AddMoney(EventKind.Held, command.TransactionId, payee, amount, ref from, flags & ~EventFlags.Pending, batch).Attachment = attachment;
        }
        else
        {
            AddMovement(command.TransactionId, movement, ref from, ref to, flags, sequence, attachment, batch);
        }

        return Done(sequence, batch, currency, amount);
    }

    // These are apart so that what is rare costs the rest nothing: a large frame is cleared at every call.

    Decision PrepareTransfer(in Command command, in Step step, EventFlags flags, uint next, Int128 asked, EventBatch batch)
    {
        if (!MayPrepare(command, [step], out Decision instead)) return instead;
        if (next != NextAccount) NameAccounts(command.Account, step.Movement.Payer, command.Counterparty, step.Movement.Payee, batch);
        batch.BeginAttachment();
        AttachTexts(command, batch);
        if (step.Movement.Amount != asked) batch.Attach(AttachmentTag.RequestedAmount, asked);
        return Prepare(command.TransactionId, flags, 0, [step], default, batch);
    }

    static Decision RefuseTransfer(in Command command, Outcome outcome, in Movement movement, EventFlags flags, in Balance about, Int128 bound, Int128 asked, EventBatch batch) =>
        Refuse(command, batch, new Refusal
        {
            Outcome = outcome,
            Flags = flags,
            Movement = movement,
            About = about,
            Bound = bound,
            Requested = movement.Amount == asked ? null : asked,
        });

    static uint AttachTransfer(in Command command, Int128 amount, Int128 asked, EventBatch batch)
    {
        batch.BeginAttachment();
        AttachTexts(command, batch);
        if (amount != asked) batch.Attach(AttachmentTag.RequestedAmount, asked);
        return batch.EndAttachment();
    }

    /// <summary>Everything of the payer: exists, status, limits, funds.</summary>
    /// <param name="isUnlimited">A system account: it has no limits, and needs no opening.</param>
    /// <param name="upTo">Lowers the amount to what is available.</param>
    /// <param name="bound">The limit that it would pass.</param>
    Outcome JudgePayer(bool isUnlimited, in Balance from, bool upTo, ref Int128 amount, out Int128 bound)
    {
        bound = 0;
        if (!isUnlimited)
        {
            if (!State.IsOpened(from.Account)) return Outcome.FromAccountNotFound;
            ref readonly Account payer = ref State.Account(from.Account);
            if (payer.IsClosed) return Outcome.FromAccountClosed;
            if ((payer.Frozen & Direction.Debit) != 0) return Outcome.FromAccountFrozen;
            Int128? min = State.MinOf(from);
            bound = min ?? 0;
            Int128 spendable = from.Posted - from.Held - bound;
            if (upTo && spendable > 0 && amount > spendable) amount = spendable;
            if (amount > spendable) return min is null ? Outcome.InsufficientFunds : Outcome.BelowMinBalance;
        }

        bound = -Amount.BalanceLimit;
        return from.Posted - from.Held - amount < bound ? Outcome.BalanceOverflow : Outcome.Done;
    }

    /// <summary>Everything of the payee: exists, status, limits.</summary>
    Outcome JudgePayee(bool isUnlimited, in Balance to, Int128 amount, out Int128 bound)
    {
        bound = 0;
        if (!isUnlimited)
        {
            if (!State.IsOpened(to.Account)) return Outcome.ToAccountNotFound;
            ref readonly Account payee = ref State.Account(to.Account);
            if (payee.IsClosed) return Outcome.ToAccountClosed;
            if ((payee.Frozen & Direction.Credit) != 0) return Outcome.ToAccountFrozen;
            if (State.MaxOf(to) is Int128 max && to.Posted + to.Incoming + amount > max)
            {
                bound = max;
                return Outcome.ExceedsMaxBalance;
            }
        }

        bound = Amount.BalanceLimit;
        return to.Posted + to.Incoming + amount > bound ? Outcome.BalanceOverflow : Outcome.Done;
    }

    /// <summary>The debit and the credit of one movement; the balances are moved on with them.</summary>
    /// <param name="link">What the credit refers to: its debit, or both to what they take back.</param>
    static void AddMovement(UInt128 transactionId, in Movement movement, ref Balance from, ref Balance to, EventFlags flags, ulong link, uint attachment, EventBatch batch)
    {
        ref Event debited = ref AddDebit(transactionId, movement, ref from, flags, batch);
        if ((flags & EventFlags.Reversal) != 0) debited.Link = link;
        debited.Attachment = attachment;
        ref Event credited = ref AddCredit(transactionId, movement, ref to, flags, batch);
        credited.Link = link;
        credited.Attachment = attachment;
    }

    static ref Event AddDebit(UInt128 transactionId, in Movement movement, ref Balance from, EventFlags flags, EventBatch batch)
    {
        from.Posted -= movement.Amount;
        return ref AddMoney(EventKind.Debited, transactionId, movement.Payee, movement.Amount, ref from, flags, batch);
    }

    static ref Event AddCredit(UInt128 transactionId, in Movement movement, ref Balance to, EventFlags flags, EventBatch batch)
    {
        to.Posted += movement.Amount;
        return ref AddMoney(EventKind.Credited, transactionId, movement.Payer, movement.Amount, ref to, flags, batch);
    }

    /// <summary>What happened to a balance, which is as this event leaves it.</summary>
    static ref Event AddMoney(EventKind kind, UInt128 transactionId, uint counterparty, Int128 amount, ref Balance balance, EventFlags flags, EventBatch batch)
    {
        ulong sequence = batch.NextSequence;
        ref Event e = ref batch.Add(kind);
        e.Flags = flags;
        e.Account = balance.Account;
        e.Counterparty = counterparty;
        e.Currency = balance.Currency;
        e.TransactionId = transactionId;
        e.Amount = amount;
        e.Posted = balance.Posted;
        e.Held = balance.Held;
        e.Previous = balance.LastSequence;
        balance.LastSequence = sequence;
        return ref e;
    }

    static Decision Done(ulong sequence, EventBatch batch, uint currency, Int128 amount) =>
        new() { Sequence = sequence, LastSequence = batch.NextSequence - 1, TimeMicros = batch.TimeMicros, Amount = amount, Currency = currency };

    /// <summary>What a refusal says for ever under its id.</summary>
    ref struct Refusal
    {
        public Outcome Outcome;
        public bool IsAboutPayee;
        public EventFlags Flags;

        /// <summary>What was refused; of what never had a payee, only the home is known, as its payer.</summary>
        public Movement Movement;
        public Balance About;
        public Int128 Bound;

        /// <summary>The original, where it is about one.</summary>
        public ulong Link;

        /// <summary>Of a transaction: all of its postings, and which of them was refused.</summary>
        public ReadOnlySpan<Step> Steps;
        public int Posting;

        /// <summary>Where the id belongs, if its parties do not tell.</summary>
        public uint? Home;

        /// <summary>The amount as it was asked for, if another was judged or the asking itself counts.</summary>
        public Int128? Requested;
    }

    /// <summary>One event that remembers the refusal, with its figures, for ever under its id.</summary>
    static Decision Refuse(in Command command, EventBatch batch, in Refusal refusal)
    {
        batch.BeginAttachment();
        AttachTexts(command, batch);
        if (refusal.Bound != 0) batch.Attach(AttachmentTag.Bound, refusal.Bound);
        if (refusal.About.Incoming != 0) batch.Attach(AttachmentTag.Incoming, refusal.About.Incoming);
        if (refusal.Requested is Int128 requested) batch.Attach(AttachmentTag.RequestedAmount, requested);
        if (refusal.Movement.Currency == 0 && command.AmountDigits != 0)
        {
            // Of what is no hold not even the currency is known: the amount as it was written.
            batch.Attach(AttachmentTag.RequestedAmount, command.AmountDigits);
            batch.Attach(AttachmentTag.Decimals, (Int128)command.AmountScale);
        }

        if (refusal.Steps.Length > 0) batch.Attach(refusal.Steps);
        if (refusal.Home is uint home) batch.Attach(AttachmentTag.Home, (Int128)home);
        uint attachment = batch.EndAttachment();

        ulong sequence = batch.NextSequence;
        ref Event rejected = ref batch.Add(EventKind.TransferRejected);
        rejected.Flags = refusal.Flags;
        rejected.Code = (ushort)refusal.Outcome;
        rejected.Account = refusal.Movement.Payer;
        rejected.Counterparty = refusal.Movement.Payee;
        rejected.Currency = refusal.Movement.Currency;
        rejected.TransactionId = command.TransactionId;
        rejected.Amount = refusal.Movement.Amount;
        rejected.Posted = refusal.About.Posted;
        rejected.Held = refusal.About.Held;
        rejected.Link = refusal.Link;
        rejected.Attachment = attachment;
        rejected.Index = (ushort)refusal.Posting;
        rejected.Count = (ushort)refusal.Steps.Length;
        return new Decision
        {
            Outcome = refusal.Outcome,
            Sequence = sequence,
            LastSequence = sequence,
            TimeMicros = batch.TimeMicros,
            Amount = refusal.Movement.Amount,
            Currency = refusal.Movement.Currency,
            Posting = refusal.Posting,
            Details = new DecisionDetails { Posted = refusal.About.Posted, Held = refusal.About.Held, Incoming = refusal.About.Incoming, Bound = refusal.Bound },
        };
    }

    Decision DecideRegisterCurrency(in Command command, EventBatch batch)
    {
        if (State.TryCurrency(command.Currency, out uint number, out int decimals))
            return new Decision { Outcome = decimals == command.AmountScale ? Outcome.Unchanged : Outcome.CurrencyExists, Currency = number };
        batch.BeginAttachment();
        batch.Attach(AttachmentTag.CurrencyCode, command.Currency.ToString());
        batch.Attach(AttachmentTag.Decimals, (Int128)command.AmountScale);
        batch.Attach(AttachmentTag.By, command.Details?.By);
        uint attachment = batch.EndAttachment();
        ulong sequence = batch.NextSequence;
        ref Event registered = ref batch.Add(EventKind.CurrencyRegistered);
        registered.Currency = (uint)(Iso4217.RegisteredFirst + State.Currencies.Count);
        registered.Attachment = attachment;
        return new Decision { Sequence = sequence, LastSequence = sequence, TimeMicros = batch.TimeMicros, Currency = registered.Currency };
    }

    Decision DecideOpenAccount(in Command command, EventBatch batch)
    {
        Outcome outcome = ToMinor(command.Details?.Limits, out Limits[] limits);
        if (outcome != Outcome.Done) return new Decision { Outcome = outcome };
        uint account = State.Names.Find(command.Account);
        if (account != 0 && State.Account(account).IsOpened)
            return new Decision { Outcome = Outcome.AccountExists, Sequence = State.Account(account).OpenedSequence, LastSequence = State.Account(account).OpenedSequence };

        bool isNew = account == 0;
        if (isNew && State.Names.IsFull) return new Decision { Outcome = Outcome.StorageFull };
        batch.BeginAttachment();
        if (isNew) batch.Attach(AttachmentTag.Name, command.Account.Utf8);
        batch.Attach(AttachmentTag.By, command.Details?.By);
        batch.Attach(AttachmentTag.Metadata, command.Details?.Metadata);
        if (limits.Length > 0) batch.Attach(limits);
        return WriteAccountEvent(EventKind.AccountOpened, isNew ? (uint)State.Names.Count + 1 : account, Direction.None, batch);
    }

    Decision DecideSetLimits(in Command command, EventBatch batch)
    {
        uint account = State.Names.Find(command.Account);
        if (account == 0 || !State.Account(account).IsOpened) return new Decision { Outcome = Outcome.AccountNotFound };
        Outcome outcome = ToMinor(command.Details?.Limits, out Limits[] limits);
        if (outcome != Outcome.Done) return new Decision { Outcome = outcome };
        if (limits.AsSpan().SequenceEqual(State.LimitsOf(account))) return Unchanged();

        AttachWhoAndWhy(command, batch);
        batch.Attach(limits);
        return WriteAccountEvent(EventKind.LimitsChanged, account, Direction.None, batch);
    }

    Decision DecideSetMetadata(in Command command, EventBatch batch)
    {
        uint account = State.Names.Find(command.Account);
        if (account == 0 || !State.Account(account).IsOpened) return new Decision { Outcome = Outcome.AccountNotFound };

        AttachWhoAndWhy(command, batch);
        batch.Attach(AttachmentTag.Metadata, command.Details?.Metadata);
        return WriteAccountEvent(EventKind.MetadataChanged, account, Direction.None, batch);
    }

    /// <summary>A freeze adds its direction to those that hold already, so that no second freeze loosens a first; unfreezing ends all.</summary>
    Decision DecideFreeze(in Command command, EventBatch batch)
    {
        uint account = State.Names.Find(command.Account);
        if (account == 0 || !State.Account(account).IsOpened) return new Decision { Outcome = Outcome.AccountNotFound };
        bool freezes = command.Kind == CommandKind.Freeze;
        Direction now = State.Account(account).Frozen, after = freezes ? now | command.Direction : Direction.None;
        // Another reason for the same freeze is kept, too.
        if (after == now && !(freezes && command.Details?.Reason is not null)) return Unchanged();

        AttachWhoAndWhy(command, batch);
        return WriteAccountEvent(freezes ? EventKind.Frozen : EventKind.Unfrozen, account, after, batch);
    }

    Decision DecideClose(in Command command, EventBatch batch)
    {
        uint account = State.Names.Find(command.Account);
        if (account == 0 || !State.Account(account).IsOpened) return new Decision { Outcome = Outcome.AccountNotFound };
        if (State.Account(account).IsClosed) return Unchanged();
        foreach (Balance balance in State.Balances(account))
        {
            if (balance.Posted == 0 && balance.Held == 0 && balance.Incoming == 0) continue;
            return new Decision
            {
                Outcome = Outcome.BalanceNotZero,
                Currency = balance.Currency,
                Details = new DecisionDetails { Posted = balance.Posted, Held = balance.Held, Incoming = balance.Incoming },
            };
        }

        AttachWhoAndWhy(command, batch);
        return WriteAccountEvent(EventKind.Closed, account, Direction.None, batch);
    }

    static void AttachWhoAndWhy(in Command command, EventBatch batch)
    {
        batch.BeginAttachment();
        batch.Attach(AttachmentTag.By, command.Details?.By);
        batch.Attach(AttachmentTag.Reason, command.Details?.Reason);
    }

    /// <summary>Ends the attachment begun before.</summary>
    static Decision WriteAccountEvent(EventKind kind, uint account, Direction frozen, EventBatch batch)
    {
        uint attachment = batch.EndAttachment();
        ulong sequence = batch.NextSequence;
        ref Event e = ref batch.Add(kind);
        e.Account = account;
        e.Code = (ushort)frozen;
        e.Attachment = attachment;
        return new Decision { Outcome = Outcome.Done, Sequence = sequence, LastSequence = sequence, TimeMicros = batch.TimeMicros };
    }

    /// <summary>What a full storage leaves: an id that was decided before still answers.</summary>
    public Decision DecideWithoutRoom(in Command command)
    {
        Decision before = default;
        uint next = NextAccount;
        bool isKnown = false;
        switch (command.Kind)
        {
            case CommandKind.Transfer:
                uint payer = NumberOf(command.Account, ref next), payee = NumberOf(command.Counterparty, ref next);
                isKnown = TryAnswerBefore(Home(command.Account.IsSystem, payer, command.Counterparty.IsSystem, payee), command.TransactionId, out before);
                break;
            case CommandKind.Transaction:
                isKnown = TryAnswerBefore(HomeOf(command.Details!.Postings![0], ref next), command.TransactionId, out before);
                break;
            case CommandKind.Capture or CommandKind.Void or CommandKind.Reverse:
                isKnown = !TryFindOriginal(command, out _, out _, out before) && before.Outcome is Outcome.Duplicate or Outcome.Undecided;
                break;
        }

        return isKnown ? before : new Decision { Outcome = Outcome.StorageFull };
    }

    /// <summary>What was decided under this id, or is being decided across partitions.</summary>
    bool TryAnswerBefore(uint home, UInt128 id, out Decision before)
    {
        before = default;
        if (State.Ids.Find(home, id) is not 0 and ulong original) before = Duplicate(original);
        else if (State.Attempts.Find(home, id) is Attempt attempt && !Injected.Is(LedgerDefect.UndecidedNotWaitedFor)) before = Undecided(attempt);
        return before.Outcome != Outcome.Done;
    }

    /// <summary>Somebody has to wait for it, unless it was ended by an operator: that is final whatever the others say.</summary>
    static Decision Undecided(Attempt attempt) => attempt is { Status: AttemptStatus.Aborted, Vote.Outcome: Outcome.Aborted }
        ? Duplicate(attempt.DecisionSequence)
        : new Decision { Outcome = Outcome.Undecided, Sequence = attempt.Sequence };

    static Decision Blocked(Attempt attempt) => new() { Outcome = Outcome.Blocked, Sequence = attempt.Sequence };

    static Decision Duplicate(ulong original) => new() { Outcome = Outcome.Duplicate, Sequence = original, LastSequence = original };

    static Decision Unchanged() => new() { Outcome = Outcome.Unchanged };

    static void AttachTexts(in Command command, EventBatch batch)
    {
        if (command.ExpiresInSeconds != 0) batch.Attach(AttachmentTag.ExpiresAt, (Int128)(batch.TimeMicros + command.ExpiresInSeconds * 1_000_000L));
        batch.Attach(AttachmentTag.Description, command.Details?.Description);
        batch.Attach(AttachmentTag.Metadata, command.Details?.Metadata);
    }

    /// <summary>The number of the next name that is not spoken of yet.</summary>
    uint NextAccount => (uint)State.Names.Count + 1;

    /// <summary>The account's number; a name not spoken of before gets the next one, which its event will make true.</summary>
    uint NumberOf(in AccountName name, ref uint next) => State.Names.Find(name) is not 0 and uint number ? number : next++;

    bool IsSystem(uint number, in AccountName name) => number < NextAccount ? State.Account(number).IsUnlimited : name.IsSystem;

    /// <summary><see cref="Account.Peer"/>, of a name not spoken of before too.</summary>
    ushort PeerOf(in AccountName name, uint number) => State.PartitionsCount == 1 ? (ushort)0 : number < NextAccount ? State.Account(number).Peer : State.PeerOf(name);

    bool LacksRoomForNames(uint next) => next != NextAccount && State.Names.IsFull;

    void NameAccounts(in AccountName payerName, uint payer, in AccountName payeeName, uint payee, EventBatch batch)
    {
        if (payer >= NextAccount) NameAccount(payerName, payer, batch);
        if (payee >= NextAccount) NameAccount(payeeName, payee, batch);
    }

    /// <summary>A system account is opened by its first use; any other name is only remembered.</summary>
    static void NameAccount(in AccountName name, uint number, EventBatch batch)
    {
        batch.BeginAttachment();
        batch.Attach(AttachmentTag.Name, name.Utf8);
        uint attachment = batch.EndAttachment();
        ref Event named = ref batch.Add(name.IsSystem ? EventKind.AccountOpened : EventKind.AccountNamed);
        named.Account = number;
        named.Attachment = attachment;
    }

    /// <summary>
    /// The account an id belongs to: the payer, or the payee where only the payer is a system account; 0 between two system accounts.
    /// </summary>
    static uint Home(bool payerIsSystem, uint payer, bool payeeIsSystem, uint payee) => payerIsSystem ? (payeeIsSystem ? 0 : payee) : payer;

    /// <summary>
    /// What has to be recalled of older ids before a command is decided: those of which home, as far as it is told. May be called from any thread.
    /// </summary>
    /// <param name="home">Null where every home counts.</param>
    /// <returns>False where nothing has to be: there is no id, or its home was never spoken of.</returns>
    public static bool TryHomeToRecall(State state, in Command command, out uint? home)
    {
        home = null;
        switch (command.Kind)
        {
            case CommandKind.Transfer:
                return TryFindHome(state, command.Account, command.Counterparty, out home);
            case CommandKind.Transaction:
                return TryFindHome(state, command.Details!.Postings![0].Account, command.Details.Postings[0].Counterparty, out home);
            case CommandKind.Capture or CommandKind.Void or CommandKind.Reverse:
                return command.Account.IsEmpty || TryFindHome(state, command.Account, command.Account, out home);
            default:
                return false;
        }
    }

    static bool TryFindHome(State state, in AccountName payer, in AccountName payee, out uint? home)
    {
        ref readonly AccountName name = ref payer.IsSystem ? ref payee : ref payer;
        home = name.IsSystem ? 0 : state.Names.Find(name);
        return name.IsSystem || home != 0;
    }

    Outcome ToMinor(Int128 digits, int scale, CurrencyCode code, out uint currency, out Int128 amount)
    {
        amount = 0;
        return State.TryCurrency(code, out currency, out int decimals) ? ToOutcome(Amount.ToMinor(digits, scale, decimals, out amount)) : Outcome.CurrencyUnknown;
    }

    static Outcome ToOutcome(Amount.ParseResult result) => result switch
    {
        Amount.ParseResult.Ok => Outcome.Done,
        Amount.ParseResult.TooPrecise => Outcome.AmountTooPrecise,
        _ => Outcome.AmountTooLarge,
    };

    Outcome ToMinor(LimitsAsWritten[]? written, out Limits[] limits)
    {
        limits = new Limits[written?.Length ?? 0];
        for (int i = 0; i < limits.Length; i++)
        {
            LimitsAsWritten one = written![i];
            if (!State.TryCurrency(one.Currency, out uint currency, out int decimals)) return Outcome.CurrencyUnknown;
            Int128 min = 0, max = 0;
            Amount.ParseResult result = one.HasMin ? Amount.ToMinor(Int128.Abs(one.MinDigits), one.MinScale, decimals, out min) : Amount.ParseResult.Ok;
            if (result == Amount.ParseResult.Ok && one.HasMax) result = Amount.ToMinor(Int128.Abs(one.MaxDigits), one.MaxScale, decimals, out max);
            if (result != Amount.ParseResult.Ok) return ToOutcome(result);
            if (one.MinDigits < 0) min = -min;
            if (one.MaxDigits < 0) max = -max;
            limits[i] = new Limits(currency, one.HasMin ? min : null, one.HasMax ? max : null);
        }

        Array.Sort(limits, static (a, b) => a.Currency.CompareTo(b.Currency));
        return Outcome.Done;
    }
}
