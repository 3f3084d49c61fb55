namespace Purse.Ledger;

public sealed partial class StateMachine
{
    /// <summary>
    /// Frees the money of holds that are due, before anything else is decided in this block: money is freed by the event, not by the
    /// clock. False where the block is full first.
    /// </summary>
    public bool TryExpireDue(EventBatch batch)
    {
        long due = Injected.Is(LedgerDefect.HoldLeaked) ? batch.TimeMicros - 1_000_000 : batch.TimeMicros;
        while (State.Holds.FirstDue(due) is >= 0 and int index)
        {
            if (!batch.HasRoom) return false;
            ref readonly Hold hold = ref State.Holds[index];
            Balance from = State.Balance(hold.Account, hold.Currency);
            ulong sequence = batch.NextSequence;
            ref Event expired = ref AddHoldEvent(EventKind.Expired, hold, from, hold.Amount, batch);
            expired.Held = from.Held - hold.Amount;
            Apply(sequence, batch.TimeMicros, expired, batch.Attachments);
        }

        return true;
    }

    /// <summary>Checks in the documented order: idempotency, amount, the hold and its state, then everything of the payee.</summary>
    Decision DecideCapture(in Command command, EventBatch batch)
    {
        Outcome found = FindOriginalOf(State, command, out ulong original, out uint home, out ulong before);
        if (found != Outcome.Done) return new Decision { Outcome = found };
        if (before != 0) return Duplicate(before);

        int index = State.Holds.Find(original);
        if (index < 0) return RefuseHold(Outcome.NotAHold, command, original, home, default, default, 0, batch);
        Hold hold = State.Holds[index];
        Int128 amount = hold.Amount;
        if (command.AmountDigits != 0)
        {
            found = ToOutcome(Amount.ToMinor(command.AmountDigits, command.AmountScale, State.Decimals(hold.Currency), out amount));
            if (found != Outcome.Done) return new Decision { Outcome = found, Currency = hold.Currency };
        }

        Balance from = State.Balance(hold.Account, hold.Currency), to = State.Balance(hold.Counterparty, hold.Currency);
        if (EndedAs(hold) is Outcome ended) return RefuseHold(ended, command, original, home, hold, from, amount, batch);
        if (amount > hold.Amount) return RefuseHold(Outcome.ExceedsHeldAmount, command, original, home, hold, from, amount, batch, hold.Amount);

        // The payer's money was promised; the payee is judged again.
        ref readonly Account payee = ref State.Account(hold.Counterparty);
        if (!payee.IsUnlimited && !Injected.Is(LedgerDefect.CaptureIntoFrozen))
        {
            if (payee.IsClosed) return RefuseHold(Outcome.ToAccountClosed, command, original, home, hold, to, amount, batch);
            if ((payee.Frozen & Direction.Credit) != 0) return RefuseHold(Outcome.ToAccountFrozen, command, original, home, hold, to, amount, batch);
            if (State.LimitsOf(to).Max is Int128 max && to.Posted + to.Incoming + amount > max)
                return RefuseHold(Outcome.ExceedsMaxBalance, command, original, home, hold, to, amount, batch, max);
        }

        if (to.Posted + to.Incoming + amount > Amount.BalanceLimit) return RefuseHold(Outcome.BalanceOverflow, command, original, home, hold, to, amount, batch, Amount.BalanceLimit);

        // Nothing below can fail.
        if (amount < hold.Amount)
        {
            ulong releasing = batch.NextSequence;
            ref Event released = ref AddHoldEvent(EventKind.Released, hold, from, hold.Amount - amount, batch);
            released.Flags = EventFlags.Capture;
            released.TransactionId = command.TransactionId;
            released.Held = from.Held - released.Amount;
            from.Held = released.Held;
            from.LastSequence = releasing;
        }

        ulong sequence = batch.NextSequence;
        ref Event captured = ref AddHoldEvent(EventKind.Captured, hold, from, amount, batch);
        captured.TransactionId = command.TransactionId;
        captured.Posted = from.Posted - amount;
        captured.Held = from.Held - amount;

        ref Event credited = ref batch.Add(EventKind.Credited);
        credited.Flags = EventFlags.Capture;
        credited.Account = hold.Counterparty;
        credited.Counterparty = hold.Account;
        credited.Currency = hold.Currency;
        credited.TransactionId = command.TransactionId;
        credited.Amount = amount;
        credited.Posted = to.Posted + amount;
        credited.Held = to.Held;
        credited.Previous = to.LastSequence;
        credited.Link = original;
        return Done(sequence, batch, hold.Currency, amount);
    }

    Decision DecideVoid(in Command command, EventBatch batch)
    {
        Outcome found = FindOriginalOf(State, command, out ulong original, out uint home, out ulong before);
        if (found != Outcome.Done) return new Decision { Outcome = found };
        if (before != 0) return Duplicate(before);

        int index = State.Holds.Find(original);
        if (index < 0) return RefuseHold(Outcome.NotAHold, command, original, home, default, default, 0, batch);
        Hold hold = State.Holds[index];
        Balance from = State.Balance(hold.Account, hold.Currency);
        if (EndedAs(hold) is Outcome ended) return RefuseHold(ended, command, original, home, hold, from, hold.Amount, batch);

        ulong sequence = batch.NextSequence;
        ref Event released = ref AddHoldEvent(EventKind.Released, hold, from, hold.Amount, batch);
        released.TransactionId = command.TransactionId;
        released.Held = from.Held - hold.Amount;
        return Done(sequence, batch, hold.Currency, hold.Amount);
    }

    /// <summary>
    /// The transfer that a capture, void or reversal is about, and what was decided before under the command's own id in that one's home.
    /// </summary>
    public static Outcome FindOriginalOf(State state, in Command command, out ulong original, out uint home, out ulong before)
    {
        original = before = 0;
        // Given a home, only that one counts; 0 stands for transfers between two system accounts.
        home = command.Account.IsEmpty || command.Account.IsSystem ? 0 : state.Names.Find(command.Account);
        if (!command.Account.IsEmpty && !command.Account.IsSystem && home == 0) return Outcome.TransferNotFound;
        if (!command.Account.IsEmpty)
        {
            original = state.Ids.Find(home, command.OriginalId);
            before = original == 0 ? 0 : state.Ids.Find(home, command.TransactionId);
            return original == 0 ? Outcome.TransferNotFound : Outcome.Done;
        }

        List<RememberedId> candidates = state.Ids.FindAll(command.OriginalId, HomesMax + 1);
        if (candidates.Count == 0) return Outcome.TransferNotFound;
        if (candidates.Count > HomesMax) return Outcome.TransferAmbiguous;
        int decided = 0;
        foreach (RememberedId one in candidates)
        {
            // Where another used the original's id since, this one may have been decided before: its own id tells in which home.
            ulong own = state.Ids.Find(one.Home, command.TransactionId);
            if (own != 0) decided++;
            if (own != 0 || candidates.Count == 1) (original, home, before) = (one.Sequence, one.Home, own);
        }

        return candidates.Count == 1 || decided == 1 ? Outcome.Done : Outcome.TransferAmbiguous;
    }

    /// <summary>An id that more homes used than this is ambiguous without being looked at in each.</summary>
    const int HomesMax = 64;

    static Outcome? EndedAs(in Hold hold) => hold.Status switch
    {
        HoldStatus.Captured => Outcome.HoldAlreadyCaptured,
        HoldStatus.Voided => Outcome.HoldAlreadyVoided,
        HoldStatus.Expired => Outcome.HoldExpired,
        _ => null,
    };

    /// <summary>Refuses under the command's own id, in the home of the transfer that it is about; a hold stays what it is.</summary>
    static Decision RefuseHold(Outcome outcome, in Command command, ulong original, uint home, in Hold hold, in Balance about, Int128 amount, EventBatch batch, Int128 bound = default) =>
        Refuse(command, batch, new Refusal
        {
            Outcome = outcome,
            Flags = command.Kind == CommandKind.Capture ? EventFlags.Capture : EventFlags.Void,
            // Of a transfer that is no hold, only the home is known here; that is where the refusal is remembered.
            Movement = new Movement(hold.Sequence == 0 ? home : hold.Account, hold.Counterparty, hold.Currency, amount),
            About = about,
            Bound = bound,
            Link = original,
        });

    static ref Event AddHoldEvent(EventKind kind, in Hold hold, in Balance from, Int128 amount, EventBatch batch)
    {
        ref Event e = ref batch.Add(kind);
        e.Account = hold.Account;
        e.Counterparty = hold.Counterparty;
        e.Currency = hold.Currency;
        e.Amount = amount;
        e.Posted = from.Posted;
        e.Held = from.Held;
        e.Previous = from.LastSequence;
        e.Link = hold.Sequence;
        return ref e;
    }
}
