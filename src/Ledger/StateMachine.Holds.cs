namespace Purse.Ledger;

public sealed partial class StateMachine
{
    /// <summary>
    /// Frees the money of holds that are due, before anything else is decided in this block: money is freed by the event, not by the
    /// clock. False where the block is full first.
    /// </summary>
    public bool TryExpireDue(EventBatch batch)
    {
        while (State.Holds.FirstDue(DueMicros(batch)) is >= 0 and int index)
        {
            if (!batch.HasRoom) return false;
            Expire(index, batch);
        }

        return true;
    }

    static long DueMicros(EventBatch batch) => Injected.Is(LedgerDefect.HoldLeaked) ? batch.TimeMicros - 1_000_000 : batch.TimeMicros;

    void Expire(int index, EventBatch batch)
    {
        ref readonly Hold hold = ref State.Holds[index];
        Balance from = State.Balance(hold.Account, hold.Currency);
        from.Held -= hold.Amount;
        AddMoney(EventKind.Expired, 0, hold.Counterparty, hold.Amount, ref from, EventFlags.None, batch).Link = hold.Sequence;
        ApplyFrom(batch.Count - 1, batch);
    }

    /// <summary>Checks in the documented order: idempotency, amount, the hold and its state, then everything of the payee.</summary>
    Decision DecideCapture(in Command command, EventBatch batch)
    {
        if (!TryFindOriginal(command, out ulong original, out uint home, out Decision instead)) return instead;
        int index = State.Holds.Find(original);
        if (index < 0) return RefuseHold(Outcome.NotAHold, command, original, home, default, default, 0, batch);
        Hold hold = State.Holds[index];
        if (hold.IsCapturing) return Blocked(State.Attempts.About(original)!);
        Int128 amount = hold.Amount;
        if (command.AmountDigits != 0)
        {
            Outcome found = ToOutcome(Amount.ToMinor(command.AmountDigits, command.AmountScale, State.Decimals(hold.Currency), out amount));
            if (found != Outcome.Done) return new Decision { Outcome = found, Currency = hold.Currency };
        }

        Balance from = State.Balance(hold.Account, hold.Currency), to = State.Balance(hold.Counterparty, hold.Currency);
        if (EndedAs(hold) is Outcome ended) return RefuseHold(ended, command, original, home, hold, from, amount, batch);
        if (amount > hold.Amount) return RefuseHold(Outcome.ExceedsHeldAmount, command, original, home, hold, from, amount, batch, hold.Amount);

        // The payer's money was promised; the payee is judged again, where it lives.
        ref readonly Account payee = ref State.Account(hold.Counterparty);
        if (payee.Peer != 0)
        {
            Step step = new(new Movement(hold.Account, hold.Counterparty, hold.Currency, amount), State.Account(hold.Account).IsUnlimited, false) { PayeePeer = payee.Peer };
            if (!MayPrepare(command, [step], out instead)) return instead;
            batch.BeginAttachment();
            batch.Attach(AttachmentTag.Home, (Int128)home);
            return Prepare(command.TransactionId, EventFlags.Capture, original, [step], default, batch);
        }

        if (!Injected.Is(LedgerDefect.CaptureIntoFrozen) && JudgePayee(payee.IsUnlimited, to, amount, out Int128 bound) is not Outcome.Done and var refused)
            return RefuseHold(refused, command, original, home, hold, to, amount, batch, bound);

        // Nothing below can fail.
        ulong sequence = AddCapture(command.TransactionId, hold, amount, ref from, EventFlags.None, 0, batch);
        AddCredit(command.TransactionId, new Movement(hold.Account, hold.Counterparty, hold.Currency, amount), ref to, EventFlags.Capture, batch).Link = original;
        return Done(sequence, batch, hold.Currency, amount);
    }

    /// <summary>The payer's side: what is left over is released just before the capture ends the hold.</summary>
    /// <param name="head">Of the attempt across partitions that captures, 0 for none.</param>
    /// <returns>The captured event.</returns>
    static ulong AddCapture(UInt128 transactionId, in Hold hold, Int128 amount, ref Balance from, EventFlags flags, ulong head, EventBatch batch)
    {
        if (amount < hold.Amount)
        {
            from.Held -= hold.Amount - amount;
            AddMoney(EventKind.Released, transactionId, hold.Counterparty, hold.Amount - amount, ref from, EventFlags.Capture | flags, batch).Link = head == 0 ? hold.Sequence : head;
        }

        from.Posted -= amount;
        from.Held -= amount;
        ulong sequence = batch.NextSequence;
        AddMoney(EventKind.Captured, transactionId, hold.Counterparty, amount, ref from, flags, batch).Link = head == 0 ? hold.Sequence : head;
        return sequence;
    }

    Decision DecideVoid(in Command command, EventBatch batch)
    {
        if (!TryFindOriginal(command, out ulong original, out uint home, out Decision instead)) return instead;
        int index = State.Holds.Find(original);
        if (index < 0) return RefuseHold(Outcome.NotAHold, command, original, home, default, default, 0, batch);
        Hold hold = State.Holds[index];
        if (hold.IsCapturing) return Blocked(State.Attempts.About(original)!);
        Balance from = State.Balance(hold.Account, hold.Currency);
        if (EndedAs(hold) is Outcome ended) return RefuseHold(ended, command, original, home, hold, from, hold.Amount, batch);

        ulong sequence = batch.NextSequence;
        from.Held -= hold.Amount;
        AddMoney(EventKind.Released, command.TransactionId, hold.Counterparty, hold.Amount, ref from, EventFlags.None, batch).Link = hold.Sequence;
        return Done(sequence, batch, hold.Currency, hold.Amount);
    }

    /// <summary>False where the answer is another: it was decided before, is not known, or somebody has to wait.</summary>
    bool TryFindOriginal(in Command command, out ulong original, out uint home, out Decision instead)
    {
        Outcome found = FindOriginalOf(State, command, out original, out home, out ulong before);
        instead = found == Outcome.Done && before != 0 ? Duplicate(before) : new Decision { Outcome = found, Sequence = found is Outcome.Undecided or Outcome.Blocked ? original : 0 };
        return instead.Outcome == Outcome.Done;
    }

    /// <summary>
    /// The transfer that a capture, void or reversal is about, and what was decided before under the command's own id in that one's home.
    /// </summary>
    /// <returns>
    /// With a commit's head as the original: <see cref="Outcome.Blocked"/> where the original is not decided, <see cref="Outcome.Undecided"/> where the
    /// command itself is not.
    /// </returns>
    public static Outcome FindOriginalOf(State state, in Command command, out ulong original, out uint home, out ulong before)
    {
        original = before = 0;
        // Given a home, only that one counts; 0 stands for transfers between two system accounts.
        home = command.Account.IsEmpty || command.Account.IsSystem ? 0 : state.Names.Find(command.Account);
        if (!command.Account.IsEmpty && !command.Account.IsSystem && home == 0) return Outcome.TransferNotFound;
        if (command.Account.IsEmpty)
        {
            if (state.Ids.IsCrowded(command.TransactionId)) return Outcome.TransferAmbiguous;
            List<uint> homes = [.. state.Ids.FindAll(command.OriginalId, HomesMax + 1).Select(one => one.Home)];
            foreach (Attempt attempt in state.Attempts.FindAll(command.OriginalId))
            {
                if (homes.Count > HomesMax) break;
                homes.Add(attempt.Home);
            }

            if (homes.Count == 0) return Outcome.TransferNotFound;
            if (homes.Count > HomesMax) return Outcome.TransferAmbiguous;
            int decided = 0;
            foreach (uint one in homes)
            {
                // Where another used the original's id since, this one may have been decided before: its own id tells in which home.
                bool isDecided = Look(state, one, command.TransactionId, out _) != Outcome.TransferNotFound;
                if (isDecided) decided++;
                if (isDecided || homes.Count == 1) home = one;
            }

            if (homes.Count > 1 && decided != 1) return Outcome.TransferAmbiguous;
        }

        original = state.Ids.Find(home, command.OriginalId);
        if (original == 0)
        {
            // Until it is over, nothing says by which event it will be remembered.
            if (state.Attempts.Find(home, command.OriginalId) is not Attempt underWay) return Outcome.TransferNotFound;
            original = underWay.Sequence;
            return Outcome.Blocked;
        }

        if (Look(state, home, command.TransactionId, out before) == Outcome.Undecided)
        {
            (original, before) = (before, 0);
            return Outcome.Undecided;
        }

        return Outcome.Done;
    }

    /// <summary>What is known of an id in one home.</summary>
    static Outcome Look(State state, uint home, UInt128 id, out ulong sequence)
    {
        sequence = state.Ids.Find(home, id);
        if (sequence != 0) return Outcome.Done;
        if (state.Attempts.Find(home, id) is not Attempt attempt) return Outcome.TransferNotFound;
        Decision undecided = Undecided(attempt);
        sequence = undecided.Sequence;
        return undecided.Outcome == Outcome.Undecided ? Outcome.Undecided : Outcome.Done;
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
}
