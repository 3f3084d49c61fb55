namespace Purse.Ledger;

/// <summary>One posting in the making, and which of its parties are system accounts.</summary>
public record struct Step(Movement Movement, bool FromIsUnlimited, bool ToIsUnlimited)
{
    /// <summary>1 + the partition where a party is judged and booked, 0 for here. A system account is where the other party is.</summary>
    public ushort PayerPeer;
    public ushort PayeePeer;

    public readonly bool IsAcross => (PayerPeer | PayeePeer) != 0;
}

/// <summary>A balance as the postings so far leave it, and how far they took it down and up.</summary>
struct TouchedBalance
{
    public Balance Balance;
    public Int128 PostedBefore;
    public Int128 Lowest;
    public Int128 Highest;
}

public sealed partial class StateMachine
{
    public const int PostingsMax = 64;

    // Scratch of the command being decided; nothing in them outlives it.
    readonly Step[] _steps = new Step[PostingsMax];
    readonly TouchedBalance[] _touched = new TouchedBalance[2 * PostingsMax];
    int _touchedCount;

    /// <summary>
    /// All postings or none, in order: what an earlier one brings, a later one may spend. Checks: idempotency, every posting's currency, then
    /// one posting after the other.
    /// </summary>
    Decision DecideTransaction(in Command command, EventBatch batch)
    {
        ReadOnlySpan<Posting> postings = command.Details!.Postings;
        Check.That(postings.Length is > 0 and <= PostingsMax, "a transaction has 1 to 64 postings");
        for (int i = 0; i < postings.Length; i++)
        {
            if (postings[i].Account == postings[i].Counterparty) return new Decision { Outcome = Outcome.SameAccount, Posting = i };
            if (postings[i].AmountDigits <= 0) return new Decision { Outcome = Outcome.AmountNotPositive, Posting = i };
        }

        uint next = NextAccount;
        if (TryAnswerBefore(HomeOf(postings[0], ref next), command.TransactionId, out Decision before)) return before;

        next = NextAccount;
        for (int i = 0; i < postings.Length; i++)
        {
            ref readonly Posting posting = ref postings[i];
            Outcome outcome = ToMinor(posting.AmountDigits, posting.AmountScale, posting.Currency, out uint currency, out Int128 amount);
            if (outcome != Outcome.Done) return new Decision { Outcome = outcome, Currency = currency, Posting = i };
            uint payer = NumberOf(posting.Account, postings[..i], ref next), payee = NumberOf(posting.Counterparty, postings[..i], ref next);
            _steps[i] = NewStep(new Movement(payer, payee, currency, amount), posting.Account, posting.Counterparty);
        }

        ReadOnlySpan<Step> steps = _steps.AsSpan(0, postings.Length);
        bool isRefused = !TryJudge(steps, out Refusal refusal);
        if (LacksRoomForNames(next)) return new Decision { Outcome = Outcome.StorageFull };
        bool mustAsk = MustAsk(steps, refusal);
        if (mustAsk && !MayPrepare(command, steps, out Decision instead)) return isRefused && command.DryRun ? ToDecision(refusal) with { IsPartOnly = true } : instead;

        // Nothing below can fail.
        NameAccounts(postings, steps, batch);
        if (mustAsk)
        {
            batch.BeginAttachment();
            AttachTexts(command, batch);
            batch.Attach(AttachmentTag.Home, (Int128)Home(steps[0].FromIsUnlimited, steps[0].Movement.Payer, steps[0].ToIsUnlimited, steps[0].Movement.Payee));
            return Prepare(command.TransactionId, EventFlags.Posting, 0, steps, ToVote(refusal), batch);
        }

        if (isRefused)
        {
            refusal.Flags = EventFlags.Posting;
            if (refusal.Posting > 0) refusal.Home = Home(steps[0].FromIsUnlimited, steps[0].Movement.Payer, steps[0].ToIsUnlimited, steps[0].Movement.Payee);
            return Refuse(command, batch, refusal);
        }

        batch.BeginAttachment();
        AttachTexts(command, batch);
        return Move(command, steps, EventFlags.Posting, 0, batch.EndAttachment(), batch);
    }

    uint HomeOf(in Posting posting, ref uint next) =>
        Home(posting.Account.IsSystem, NumberOf(posting.Account, ref next), posting.Counterparty.IsSystem, NumberOf(posting.Counterparty, ref next));

    /// <summary>As for a single transfer, but a name may be new here and known from an earlier posting.</summary>
    uint NumberOf(in AccountName name, ReadOnlySpan<Posting> before, ref uint next)
    {
        uint number = State.Names.Find(name);
        for (int i = 0; number == 0 && i < before.Length; i++)
            number = before[i].Account == name ? _steps[i].Movement.Payer : before[i].Counterparty == name ? _steps[i].Movement.Payee : 0;
        return number == 0 ? next++ : number;
    }

    /// <summary>In the order of their numbers, each once.</summary>
    void NameAccounts(ReadOnlySpan<Posting> postings, ReadOnlySpan<Step> steps, EventBatch batch)
    {
        uint next = NextAccount;
        for (int i = 0; i < steps.Length; i++)
        {
            if (steps[i].Movement.Payer == next) NameAccount(postings[i].Account, next++, batch);
            if (steps[i].Movement.Payee == next) NameAccount(postings[i].Counterparty, next++, batch);
        }
    }

    Step NewStep(in Movement movement, in AccountName payer, in AccountName payee)
    {
        ushort payerPeer = PeerOf(payer, movement.Payer), payeePeer = PeerOf(payee, movement.Payee);
        return new Step(movement, payer.IsSystem, payee.IsSystem) { PayerPeer = payer.IsSystem ? payeePeer : payerPeer, PayeePeer = payee.IsSystem ? payerPeer : payeePeer };
    }

    /// <summary>
    /// Judges one posting after the other, each on the balances that those before it leave, and of each only what is here; ends at the first that
    /// is refused.
    /// </summary>
    bool TryJudge(ReadOnlySpan<Step> steps, out Refusal refusal)
    {
        _touchedCount = 0;
        for (int i = 0; i < steps.Length; i++)
        {
            ref readonly Step step = ref steps[i];
            Int128 amount = step.Movement.Amount;
            Outcome outcome = Outcome.Done;
            Int128 bound = 0;
            ref TouchedBalance from = ref step.PayerPeer == 0 ? ref Touched(step.Movement.Payer, step.Movement.Currency) : ref Elsewhere;
            ref TouchedBalance to = ref step.PayeePeer == 0 ? ref Touched(step.Movement.Payee, step.Movement.Currency) : ref Elsewhere;
            if (step.PayerPeer == 0) outcome = JudgePayer(step.FromIsUnlimited, from.Balance, upTo: false, ref amount, out bound);
            bool isAboutPayee = outcome == Outcome.Done;
            if (isAboutPayee && step.PayeePeer == 0) outcome = JudgePayee(step.ToIsUnlimited, to.Balance, amount, out bound);
            if (outcome != Outcome.Done)
            {
                refusal = new Refusal { Outcome = outcome, IsAboutPayee = isAboutPayee, Movement = step.Movement, About = isAboutPayee ? to.Balance : from.Balance, Bound = bound, Steps = steps, Posting = i };
                return false;
            }

            if (Injected.Is(LedgerDefect.PostingsBlindToEachOther)) continue;
            from.Balance.Posted -= amount;
            from.Lowest = Int128.Min(from.Lowest, from.Balance.Posted - from.PostedBefore);
            to.Balance.Posted += amount;
            to.Highest = Int128.Max(to.Highest, to.Balance.Posted - to.PostedBefore);
        }

        refusal = default;
        return true;
    }

    /// <summary>What is added up here is never looked at.</summary>
    ref TouchedBalance Elsewhere
    {
        get
        {
            _elsewhere = default;
            return ref _elsewhere;
        }
    }

    TouchedBalance _elsewhere;

    /// <summary>Writes what <see cref="TryJudge"/> passed.</summary>
    /// <param name="original">Of a reversal, the first event of what it takes back.</param>
    /// <param name="attachment">Of the first posting.</param>
    Decision Move(in Command command, ReadOnlySpan<Step> steps, EventFlags flags, ulong original, uint attachment, EventBatch batch)
    {
        _touchedCount = 0;
        ulong first = batch.NextSequence;
        for (int i = 0; i < steps.Length; i++)
        {
            Movement movement = steps[i].Movement;
            ref Balance from = ref Touched(movement.Payer, movement.Currency).Balance, to = ref Touched(movement.Payee, movement.Currency).Balance;
            int debited = batch.Count;
            AddMovement(command.TransactionId, movement, ref from, ref to, flags, original == 0 ? batch.NextSequence : original, i == 0 ? attachment : 0, batch);
            if ((flags & EventFlags.Posting) == 0) continue;
            for (int at = debited; at < batch.Count; at++)
            {
                ref Event e = ref batch[at];
                e.Index = (ushort)i;
                e.Count = (ushort)steps.Length;
            }
        }

        return Done(first, batch, steps[0].Movement.Currency, steps[0].Movement.Amount);
    }

    /// <summary>The balance as the postings before leave it. The reference holds until the next command.</summary>
    ref TouchedBalance Touched(uint account, uint currency)
    {
        for (int i = 0; i < _touchedCount; i++)
        {
            if (_touched[i].Balance.Account == account && _touched[i].Balance.Currency == currency) return ref _touched[i];
        }

        Balance balance = State.Balance(account, currency);
        _touched[_touchedCount] = new TouchedBalance { Balance = balance, PostedBefore = balance.Posted };
        return ref _touched[_touchedCount++];
    }
}
