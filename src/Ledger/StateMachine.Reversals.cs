namespace Purse.Ledger;

public sealed partial class StateMachine
{
    /// <summary>
    /// The opposite of a transfer, a capture or a whole transaction, never more than what was moved. Checks: idempotency, amount, what is
    /// left of the original, then everything of the payer (the original's payee) and of the payee.
    /// </summary>
    Decision DecideReversal(in Command command, EventBatch batch)
    {
        if (!TryFindOriginal(command, out ulong sequence, out uint home, out Decision instead)) return instead;
        if (State.Attempts.About(sequence) is Attempt other) return Blocked(other);
        Original original = command.Details!.Original!;
        Check.That(original.Sequence == sequence, "a reversal was given what it takes back");
        Check.That(original.IsTransaction || original.Movements.Length == 1, "only a transaction has several postings");
        Check.That(!original.IsTransaction || command.AmountDigits == 0, "a transaction is reversed in full");

        // Undone last to first, so that whoever passed money on gets it back before it has to give it back.
        int count = original.Movements.Length;
        for (int i = 0; i < count; i++)
        {
            (uint payer, uint payee, uint currency, Int128 moved) = original.Movements[count - 1 - i];
            _steps[i] = NewStep(new Movement(payee, payer, currency, moved));
        }

        Span<Step> steps = _steps.AsSpan(0, count);
        EventFlags flags = EventFlags.Reversal | (original.IsTransaction ? EventFlags.Posting : EventFlags.None);
        Int128? leftBefore = Injected.Is(LedgerDefect.ReversedTwice) ? null : State.Reversals.LeftOf(sequence);
        Int128 left = original.HasMoved ? leftBefore ?? steps[0].Movement.Amount : 0;
        Int128 amount = left == 0 ? steps[0].Movement.Amount : left;
        if (command.AmountDigits != 0)
        {
            Outcome outcome = ToOutcome(Amount.ToMinor(command.AmountDigits, command.AmountScale, State.Decimals(steps[0].Movement.Currency), out amount));
            if (outcome != Outcome.Done) return new Decision { Outcome = outcome, Currency = steps[0].Movement.Currency };
        }

        Int128? requested = command.AmountDigits != 0 ? amount : null;
        if (!original.IsTransaction) steps[0].Movement = steps[0].Movement with { Amount = amount };
        if (left == 0 || (!original.IsTransaction && amount > left))
        {
            return Refuse(command, batch, new Refusal
            {
                Outcome = left == 0 && leftBefore is not null ? Outcome.AlreadyReversed : Outcome.ExceedsReversibleAmount,
                Flags = flags,
                Movement = steps[0].Movement,
                Bound = left,
                Link = sequence,
                Steps = original.IsTransaction ? steps : default,
                Home = home,
                Requested = requested,
            });
        }

        bool isRefused = !TryJudge(steps, out Refusal refusal);
        if (MustAsk(steps, refusal))
        {
            if (!MayPrepare(command, steps, out instead)) return instead;
            batch.BeginAttachment();
            AttachTexts(command, batch);
            if (requested is Int128 given) batch.Attach(AttachmentTag.RequestedAmount, given);
            batch.Attach(AttachmentTag.Left, left);
            batch.Attach(AttachmentTag.Home, (Int128)home);
            return Prepare(command.TransactionId, flags, sequence, steps, ToVote(refusal), batch);
        }

        if (isRefused)
        {
            refusal.Flags = flags;
            refusal.Link = sequence;
            refusal.Home = home;
            refusal.Requested = requested;
            if (!original.IsTransaction) refusal.Steps = default;
            return Refuse(command, batch, refusal);
        }

        // Nothing below can fail.
        batch.BeginAttachment();
        AttachTexts(command, batch);
        if (requested is Int128 asked) batch.Attach(AttachmentTag.RequestedAmount, asked);
        if (!original.IsTransaction) batch.Attach(AttachmentTag.Bound, left);
        batch.Attach(AttachmentTag.Home, (Int128)home);
        return Move(command, steps, flags, sequence, batch.EndAttachment(), batch);
    }

    /// <summary>Of accounts that are known by number; between two system accounts it is here.</summary>
    Step NewStep(in Movement movement)
    {
        ref readonly Account payer = ref State.Account(movement.Payer);
        ref readonly Account payee = ref State.Account(movement.Payee);
        return new Step(movement, payer.IsUnlimited, payee.IsUnlimited) { PayerPeer = payer.IsUnlimited ? payee.Peer : payer.Peer, PayeePeer = payee.IsUnlimited ? payer.Peer : payee.Peer };
    }
}
