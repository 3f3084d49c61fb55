namespace Purse.Ledger;

/// <summary>
/// The double-entry rules. <see cref="Decide"/> judges a command and writes what follows from it as events; <see cref="Apply"/> is the
/// only thing that changes the state, the same for live traffic, recovery and replay. Both are deterministic: the time and all else
/// from outside comes in as arguments.
/// </summary>
public sealed partial class StateMachine(State state)
{
    public State State { get; } = state;

    /// <summary>Decides, and applies what was decided.</summary>
    public Decision Execute(in Command command, EventBatch batch)
    {
        int first = batch.Count;
        Decision decision = Decide(command, batch);
        for (int i = first; i < batch.Count; i++) Apply(batch.FirstSequence + (ulong)i, batch.TimeMicros, batch.Events[i], batch.Attachments);
        CheckBalanced();
        return decision;
    }

    readonly record struct Movement(uint Payer, uint Payee, uint Currency, Int128 Amount);

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
            _ => throw new ArgumentOutOfRangeException(nameof(command), command.Kind, "unknown kind of command"),
        };
    }

    /// <summary>Checks in the documented order: shape, idempotency, currency, payer (exists, status, limits, funds), payee (exists, status, limits).</summary>
    Decision DecideTransfer(in Command command, EventBatch batch)
    {
        if (command.Account == command.Counterparty) return new Decision { Outcome = Outcome.SameAccount };
        if (command.AmountDigits <= 0) return new Decision { Outcome = Outcome.AmountNotPositive };

        uint payer = State.Names.Find(command.Account);
        uint payee = State.Names.Find(command.Counterparty);

        if (FindOriginal(command, payer, payee) is not 0 and ulong original) return Duplicate(original);

        if (!State.TryCurrency(command.Currency, out uint currency, out int decimals)) return new Decision { Outcome = Outcome.CurrencyUnknown };
        Amount.ParseResult precision = Amount.ToMinor(command.AmountDigits, command.AmountScale, decimals, out Int128 amount);
        if (precision == Amount.ParseResult.TooPrecise) return new Decision { Outcome = Outcome.AmountTooPrecise, Currency = currency };
        if (precision == Amount.ParseResult.TooLarge) return new Decision { Outcome = Outcome.AmountTooLarge, Currency = currency };

        Movement movement = new(payer, payee, currency, amount);

        Balance from = State.Balance(payer, currency);
        Limits fromLimits = State.LimitsOf(from);
        if (!command.Account.IsSystem)
        {
            if (payer == 0 || !State.Account(payer).IsOpened) return Refuse(Outcome.FromAccountNotFound, command, movement, default, 0, batch);
            if (State.Account(payer).IsClosed) return Refuse(Outcome.FromAccountClosed, command, movement, from, 0, batch);
            if ((State.Account(payer).Frozen & Direction.Debit) != 0) return Refuse(Outcome.FromAccountFrozen, command, movement, from, 0, batch);
            Int128 left = from.Posted - from.Held - amount;
            if (fromLimits.Min is Int128 min && left < min) return Refuse(Outcome.BelowMinBalance, command, movement, from, min, batch);
            if (fromLimits.Min is null && left < 0) return Refuse(Outcome.InsufficientFunds, command, movement, from, 0, batch);
        }

        if (from.Posted - from.Held - amount < -Amount.BalanceLimit) return Refuse(Outcome.BalanceOverflow, command, movement, from, -Amount.BalanceLimit, batch);

        Balance to = State.Balance(payee, currency);
        if (!command.Counterparty.IsSystem)
        {
            if (payee == 0 || !State.Account(payee).IsOpened) return Refuse(Outcome.ToAccountNotFound, command, movement, default, 0, batch);
            if (State.Account(payee).IsClosed) return Refuse(Outcome.ToAccountClosed, command, movement, to, 0, batch);
            if ((State.Account(payee).Frozen & Direction.Credit) != 0) return Refuse(Outcome.ToAccountFrozen, command, movement, to, 0, batch);
            if (State.LimitsOf(to).Max is Int128 max && to.Posted + to.Incoming + amount > max) return Refuse(Outcome.ExceedsMaxBalance, command, movement, to, max, batch);
        }

        if (to.Posted + to.Incoming + amount > Amount.BalanceLimit) return Refuse(Outcome.BalanceOverflow, command, movement, to, Amount.BalanceLimit, batch);

        if (LacksRoomForNames(payer, payee)) return new Decision { Outcome = Outcome.StorageFull };

        // Nothing below can fail.
        NameAccounts(command, ref payer, ref payee, batch);
        ulong sequence = batch.NextSequence;
        long expiresAt = command.ExpiresInSeconds == 0 ? 0 : batch.TimeMicros + command.ExpiresInSeconds * 1_000_000L;
        uint attachment = AttachTexts(command.Details, expiresAt, batch);
        if (command.Pending)
        {
            // Only the payer's money is set aside; the payee is judged again when it is captured.
            ref Event held = ref batch.Add(EventKind.Held);
            held.Account = payer;
            held.Counterparty = payee;
            held.Currency = currency;
            held.TransactionId = command.TransactionId;
            held.Amount = amount;
            held.Posted = from.Posted;
            held.Held = from.Held + amount;
            held.Previous = from.LastSequence;
            held.Attachment = attachment;
            return new Decision { Sequence = sequence, LastSequence = sequence, TimeMicros = batch.TimeMicros, Amount = amount, Currency = currency };
        }

        ref Event debited = ref batch.Add(EventKind.Debited);
        debited.Account = payer;
        debited.Counterparty = payee;
        debited.Currency = currency;
        debited.TransactionId = command.TransactionId;
        debited.Amount = amount;
        debited.Posted = from.Posted - amount;
        debited.Held = from.Held;
        debited.Previous = from.LastSequence;
        debited.Attachment = attachment;

        ref Event credited = ref batch.Add(EventKind.Credited);
        credited.Account = payee;
        credited.Counterparty = payer;
        credited.Currency = currency;
        credited.TransactionId = command.TransactionId;
        credited.Amount = amount;
        credited.Posted = to.Posted + amount;
        credited.Held = to.Held;
        credited.Previous = to.LastSequence;
        credited.Link = sequence;
        credited.Attachment = attachment;

        return new Decision
        {
            Outcome = Outcome.Done,
            Sequence = sequence,
            LastSequence = sequence + 1,
            TimeMicros = batch.TimeMicros,
            Amount = amount,
            Currency = currency,
        };
    }

    /// <summary>One event that remembers the refusal, with its figures, for ever under its id.</summary>
    Decision Refuse(Outcome outcome, in Command command, Movement movement, in Balance about, Int128 bound, EventBatch batch)
    {
        (uint payer, uint payee, uint currency, Int128 amount) = movement;
        if (LacksRoomForNames(payer, payee)) return new Decision { Outcome = Outcome.StorageFull };
        NameAccounts(command, ref payer, ref payee, batch);
        batch.BeginAttachment();
        batch.Attach(AttachmentTag.Description, command.Details?.Description);
        batch.Attach(AttachmentTag.Metadata, command.Details?.Metadata);
        if (command.ExpiresInSeconds != 0) batch.Attach(AttachmentTag.ExpiresAt, (Int128)(batch.TimeMicros + command.ExpiresInSeconds * 1_000_000L));
        if (bound != 0) batch.Attach(AttachmentTag.Bound, bound);
        if (about.Incoming != 0) batch.Attach(AttachmentTag.Incoming, about.Incoming);
        uint attachment = batch.EndAttachment();

        ulong sequence = batch.NextSequence;
        ref Event rejected = ref batch.Add(EventKind.TransferRejected);
        rejected.Code = (ushort)outcome;
        rejected.Account = payer;
        rejected.Counterparty = payee;
        rejected.Currency = currency;
        rejected.TransactionId = command.TransactionId;
        rejected.Amount = amount;
        rejected.Posted = about.Posted;
        rejected.Held = about.Held;
        if (command.Pending) rejected.Flags = EventFlags.Pending;
        rejected.Attachment = attachment;
        return Refused(outcome, sequence, currency, amount, about, bound, batch);
    }

    static Decision Refused(Outcome outcome, ulong sequence, uint currency, Int128 amount, in Balance about, Int128 bound, EventBatch batch) => new()
    {
        Outcome = outcome,
        Sequence = sequence,
        LastSequence = sequence,
        TimeMicros = batch.TimeMicros,
        Amount = amount,
        Currency = currency,
        Posted = about.Posted,
        Held = about.Held,
        Incoming = about.Incoming,
        Bound = bound,
    };

    Decision DecideOpenAccount(in Command command, EventBatch batch)
    {
        uint account = State.Names.Find(command.Account);
        if (account != 0 && State.Account(account).IsOpened)
            return new Decision { Outcome = Outcome.AccountExists, Sequence = State.Account(account).OpenedSequence, LastSequence = State.Account(account).OpenedSequence };
        Outcome outcome = ToMinor(command.Details?.Limits, out Limits[] limits);
        if (outcome != Outcome.Done) return new Decision { Outcome = outcome };

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

        batch.BeginAttachment();
        batch.Attach(AttachmentTag.By, command.Details?.By);
        batch.Attach(limits);
        return WriteAccountEvent(EventKind.LimitsChanged, account, Direction.None, batch);
    }

    Decision DecideSetMetadata(in Command command, EventBatch batch)
    {
        uint account = State.Names.Find(command.Account);
        if (account == 0 || !State.Account(account).IsOpened) return new Decision { Outcome = Outcome.AccountNotFound };

        batch.BeginAttachment();
        batch.Attach(AttachmentTag.By, command.Details?.By);
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
        if (after == now) return Unchanged();

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
                Posted = balance.Posted,
                Held = balance.Held,
                Incoming = balance.Incoming,
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
        ulong original = 0;
        if (command.Kind == CommandKind.Transfer) original = FindOriginal(command, State.Names.Find(command.Account), State.Names.Find(command.Counterparty));
        else if (command.Kind is CommandKind.Capture or CommandKind.Void && FindOriginalOf(command, out _, out _, out ulong before) == Outcome.Done) original = before;
        return original == 0 ? new Decision { Outcome = Outcome.StorageFull } : Duplicate(original);
    }

    /// <summary>The first event of what was decided under this id in its home, 0 where nothing was.</summary>
    ulong FindOriginal(in Command command, uint payer, uint payee)
    {
        uint home = Home(command.Account.IsSystem, payer, command.Counterparty.IsSystem, payee, out bool homeIsNew);
        return homeIsNew ? 0 : State.Ids.Find(home, command.TransactionId);
    }

    static Decision Duplicate(ulong original) => new() { Outcome = Outcome.Duplicate, Sequence = original, LastSequence = original };

    bool LacksRoomForNames(uint payer, uint payee) => (payer == 0 || payee == 0) && State.Names.IsFull;

    static Decision Unchanged() => new() { Outcome = Outcome.Unchanged };

    static uint AttachTexts(CommandDetails? details, long expiresAtMicros, EventBatch batch)
    {
        if (details is null && expiresAtMicros == 0) return 0;
        batch.BeginAttachment();
        if (expiresAtMicros != 0) batch.Attach(AttachmentTag.ExpiresAt, (Int128)expiresAtMicros);
        batch.Attach(AttachmentTag.Description, details?.Description);
        batch.Attach(AttachmentTag.Metadata, details?.Metadata);
        return batch.EndAttachment();
    }

    /// <summary>Gives numbers to names not spoken of before. A system account is opened by its first use.</summary>
    void NameAccounts(in Command command, ref uint payer, ref uint payee, EventBatch batch)
    {
        uint next = (uint)State.Names.Count + 1;
        if (payer == 0) NameAccount(command.Account, payer = next++, batch);
        if (payee == 0) NameAccount(command.Counterparty, payee = next, batch);
    }

    static void NameAccount(in AccountName name, uint number, EventBatch batch)
    {
        batch.BeginAttachment();
        batch.Attach(AttachmentTag.Name, name.Utf8);
        uint attachment = batch.EndAttachment();
        ref Event named = ref batch.Add(name.IsSystem || name.IsClearing ? EventKind.AccountOpened : EventKind.AccountNamed);
        named.Account = number;
        named.Attachment = attachment;
    }

    /// <summary>
    /// The account an id belongs to: the payer, or the payee where only the payer is a system account; 0 between two system accounts.
    /// </summary>
    static uint Home(bool payerIsSystem, uint payer, bool payeeIsSystem, uint payee, out bool isNew)
    {
        uint home = payerIsSystem ? (payeeIsSystem ? 0 : payee) : payer;
        isNew = home == 0 && !(payerIsSystem && payeeIsSystem);
        return home;
    }

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
            if (result == Amount.ParseResult.TooPrecise) return Outcome.AmountTooPrecise;
            if (result == Amount.ParseResult.TooLarge) return Outcome.AmountTooLarge;
            if (one.MinDigits < 0) min = -min;
            if (one.MaxDigits < 0) max = -max;
            limits[i] = new Limits(currency, one.HasMin ? min : null, one.HasMax ? max : null);
        }

        Array.Sort(limits, static (a, b) => a.Currency.CompareTo(b.Currency));
        return Outcome.Done;
    }
}
