namespace Purse.Ledger;

public sealed partial class StateMachine
{
    /// <summary>Applies one event; throws <see cref="InvariantBrokenException"/> where it does not follow from the state before it.</summary>
    /// <param name="attachments">Those of the event's block.</param>
    /// <param name="erasable">The block's erasable part: what an attempt has to pass on to other partitions.</param>
    public void Apply(ulong sequence, long timeMicros, in Event e, ReadOnlySpan<byte> attachments, ReadOnlySpan<byte> erasable = default)
    {
        if (sequence != State.LastSequence + 1) Check.Fail($"event {sequence} follows {State.LastSequence}");
        if (timeMicros < State.LastTimeMicros) Check.Fail($"event {sequence} is not older than the one before it");
        Attempt? attempt = (e.Flags & EventFlags.CrossPartition) != 0 ? AttemptOf(sequence, e) : null;
        switch (e.Kind)
        {
            case EventKind.Debited:
            {
                ref Balance balance = ref Touch(sequence, timeMicros, e);
                LetGo(attempt, ref balance);
                balance.Posted -= e.Amount;
                State.AddToSum(e.Currency, -e.Amount);
                CheckAfter(sequence, e, balance);
                if (attempt is not null)
                {
                    // What was promised is kept, whatever limits were set since.
                    Settle(sequence, timeMicros, attempt, e, new Movement(e.Account, e.Counterparty, e.Currency, e.Amount), e.Amount);
                    break;
                }

                CheckLowest(sequence, balance);
                if (e.Index != 0) break;
                bool isReversal = (e.Flags & EventFlags.Reversal) != 0;
                Attachment attachment = isReversal ? new Attachment(e.Attachment, attachments, []) : default;
                State.Ids.Add(HomeOf(e, attachment), e.TransactionId, sequence);
                if (isReversal) AddReversal(sequence, e.Link, e.Amount, attachment.Integer(AttachmentTag.Bound) ?? e.Amount);
                break;
            }

            case EventKind.Credited:
            {
                ref Balance balance = ref Touch(sequence, timeMicros, e);
                LetGo(attempt, ref balance);
                balance.Posted += e.Amount;
                State.AddToSum(e.Currency, e.Amount);
                CheckAfter(sequence, e, balance);
                if (attempt is not null)
                {
                    Settle(sequence, timeMicros, attempt, e, new Movement(e.Counterparty, e.Account, e.Currency, e.Amount), -e.Amount);
                    break;
                }

                if (State.MaxOf(balance) is Int128 max && balance.Posted + balance.Incoming > max)
                    Check.Fail($"event {sequence} brings no balance above its highest limit");
                break;
            }

            case EventKind.Held:
            {
                ref Balance balance = ref Touch(sequence, timeMicros, e);
                LetGo(attempt, ref balance);
                balance.Held += e.Amount;
                CheckAfter(sequence, e, balance);
                if (attempt is null)
                {
                    CheckLowest(sequence, balance);
                    State.Ids.Add(HomeOf(e), e.TransactionId, sequence);
                }
                else
                {
                    Settle(sequence, timeMicros, attempt, e, new Movement(e.Account, e.Counterparty, e.Currency, e.Amount), 0);
                }

                State.Holds.Add(new Hold
                {
                    Amount = e.Amount,
                    Sequence = sequence,
                    ExpiresAtMicros = attempt?.ExpiresAtMicros ?? (long)(new Attachment(e.Attachment, attachments, []).Integer(AttachmentTag.ExpiresAt) ?? 0),
                    Account = e.Account,
                    Counterparty = e.Counterparty,
                    Currency = e.Currency,
                });
                break;
            }

            case EventKind.Released or EventKind.Expired:
            {
                ref Balance balance = ref Touch(sequence, timeMicros, e);
                balance.Held -= e.Amount;
                CheckAfter(sequence, e, balance);
                // What a capture leaves over is released just before it; the capture ends the hold.
                if ((e.Flags & EventFlags.Capture) != 0) PendingHold(sequence, e, attempt?.Original ?? e.Link).Released += e.Amount;
                else EndHold(sequence, e, e.Link, e.Kind == EventKind.Expired ? HoldStatus.Expired : HoldStatus.Voided);
                if (e.Kind == EventKind.Released && (e.Flags & EventFlags.Capture) == 0) State.Ids.Add(HomeOf(e), e.TransactionId, sequence);
                break;
            }

            case EventKind.Captured:
            {
                ref Balance balance = ref Touch(sequence, timeMicros, e);
                balance.Posted -= e.Amount;
                balance.Held -= e.Amount;
                State.AddToSum(e.Currency, -e.Amount);
                CheckAfter(sequence, e, balance);
                EndHold(sequence, e, attempt?.Original ?? e.Link, HoldStatus.Captured);
                if (attempt is null) State.Ids.Add(HomeOf(e), e.TransactionId, sequence);
                else Settle(sequence, timeMicros, attempt, e, new Movement(e.Account, e.Counterparty, e.Currency, e.Amount), e.Amount);
                break;
            }

            case EventKind.TransferRejected when Injected.Is(LedgerDefect.RefusalForgotten):
                break;

            case EventKind.TransferRejected when attempt is not null:
                attempt.Vote = new Attachment(e.Attachment, attachments, []).Vote();
                Abort(sequence, timeMicros, attempt);
                break;

            case EventKind.TransferRejected:
                State.Ids.Add(HomeOf(e, new Attachment(e.Attachment, attachments, [])), e.TransactionId, sequence);
                break;

            case EventKind.CurrencyRegistered:
            {
                Attachment attachment = new(e.Attachment, attachments, []);
                CurrencyCode code = CurrencyCode.Parse(attachment.Text(AttachmentTag.CurrencyCode) ?? "");
                int decimals = (int)(attachment.Integer(AttachmentTag.Decimals) ?? -1);
                if (State.Currencies.TryGet(code, out _, out _) || decimals is < 0 or > Amount.DecimalsMax) Check.Fail($"event {sequence} registers a currency once, with 0 to 18 decimals");
                if (State.Currencies.Add(code, decimals) != e.Currency) Check.Fail($"event {sequence} numbers currencies in the order of their events");
                break;
            }

            case EventKind.AccountNamed:
                AddAccount(e, attachments);
                break;

            case EventKind.AccountOpened:
            {
                Attachment attachment = new(e.Attachment, attachments, []);
                if (e.Account > State.AccountList.Count) AddAccount(e, attachments);
                ref Account account = ref EditAccount(sequence, e);
                Check.That(!account.IsOpened, "an account is opened once");
                account.Flags |= AccountFlags.Opened;
                account.OpenedSequence = sequence;
                if (attachment.TryGet(AttachmentTag.Metadata, out _)) account.MetadataSequence = sequence;
                SetLimits(e.Account, attachment.Limits());
                break;
            }

            case EventKind.MetadataChanged:
                EditAccount(sequence, e).MetadataSequence = sequence;
                break;

            case EventKind.LimitsChanged:
                SetLimits(e.Account, new Attachment(e.Attachment, attachments, []).Limits());
                break;

            case EventKind.Frozen or EventKind.Unfrozen:
            {
                ref Account account = ref EditAccount(sequence, e);
                account.Frozen = (Direction)e.Code;
                account.FrozenSequence = account.Frozen == Direction.None ? 0 : sequence;
                break;
            }

            case EventKind.Closed:
            {
                foreach (Balance balance in State.Balances(e.Account))
                    Check.That(balance.Posted == 0 && balance.Held == 0 && balance.Incoming == 0, "a closed account holds nothing");
                EditAccount(sequence, e).Flags |= AccountFlags.Closed;
                break;
            }

            case EventKind.Sealed:
                // Says only where the journal goes on.
                break;

            case EventKind.Prepared:
                ApplyPrepared(sequence, timeMicros, e, new Attachment(e.Attachment, attachments, erasable));
                break;

            case EventKind.Refused or EventKind.Aborted when attempt is null:
            {
                // Remembered without ever having been prepared.
                Attachment attachment = new(e.Attachment, attachments, []);
                if (attachment.Attempt() is not var (coordinator, number, lowWater)) throw new InvariantBrokenException($"Event {sequence} names an attempt of another partition.");
                Attempt remembered = State.Attempts.New();
                (remembered.Sequence, remembered.Coordinator, remembered.CoordinatorSequence, remembered.TransactionId) = (sequence, coordinator, number, e.TransactionId);
                (remembered.Status, remembered.Vote, remembered.PreparedMicros) = (e.Kind == EventKind.Refused ? AttemptStatus.Refused : AttemptStatus.Aborted, attachment.Vote(), timeMicros);
                (remembered.DecisionSequence, remembered.LastSequence, remembered.DecisionMicros) = (sequence, sequence, timeMicros);
                State.Attempts.Forget(coordinator, lowWater);
                State.Attempts.Add(remembered, State.AccountList);
                break;
            }

            case EventKind.Aborted:
            {
                if (e.TouchesBalance)
                {
                    ref Balance balance = ref Touch(sequence, timeMicros, e);
                    LetGo(attempt, ref balance);
                    CheckAfter(sequence, e, balance);
                }

                // The coordinator's ends with the refusal.
                if (!attempt!.IsOwn && !attempt.HoldsAnything) Abort(sequence, timeMicros, attempt);
                break;
            }

            case EventKind.Committed:
                Decide(sequence, timeMicros, attempt!, AttemptStatus.Committed);
                if (attempt!.IsOwn && (e.Flags & EventFlags.Reversal) != 0) AddReversal(sequence, attempt.Original, e.Count > 0 ? attempt.Left : e.Amount, attempt.Left);
                break;

            case EventKind.Finished:
                ApplyFinished(sequence, e);
                break;

            default:
                throw new InvalidDataException($"Event {sequence} is of kind {(int)e.Kind}, which this version does not know. Run the version that wrote it, or a newer one.");
        }

        State.LastSequence = sequence;
        State.LastTimeMicros = timeMicros;
        State.Generations.Reach(sequence);
    }

    /// <summary>Holds after every command, and after every block.</summary>
    public void CheckBalanced()
    {
        if (!State.IsBalanced) Check.Fail($"after event {State.LastSequence} the balances of every currency add up to 0");
    }

    /// <summary>The balance this event is about, made by its first event, with its chain moved on.</summary>
    ref Balance Touch(ulong sequence, long timeMicros, in Event e)
    {
        if (e.Amount < 0) Check.Fail($"the amount of event {sequence} is not negative");
        CheckNamed(sequence, e);
        int index = State.FindBalance(e.Account, e.Currency);
        if (index < 0) index = AddBalance(e.Account, e.Currency);
        ref Balance balance = ref State.BalanceList.Edit(index);
        if (balance.LastSequence != e.Previous) Check.Fail($"event {sequence} names its balance's previous event {balance.LastSequence}, not {e.Previous}");
        balance.LastSequence = sequence;
        if (++balance.EventsCount % BalanceMark.Stride == 0)
            State.Generations.Last.Add(new BalanceMark { Account = e.Account, Currency = e.Currency, Number = balance.EventsCount, Sequence = sequence, TimeMicros = timeMicros });
        return ref balance;
    }

    void CheckLowest(ulong sequence, in Balance balance)
    {
        if (!State.Account(balance.Account).IsUnlimited && balance.Available < (State.MinOf(balance) ?? 0)) Check.Fail($"event {sequence} leaves no balance below its lowest limit");
    }

    static void CheckAfter(ulong sequence, in Event e, in Balance balance)
    {
        if (balance.Posted != e.Posted || balance.Held != e.Held) Check.Fail($"event {sequence} says the balance that follows from all before it");
        if (balance.Held < 0) Check.Fail($"after event {sequence} nothing less than 0 is held");
        if (balance.Posted > Amount.BalanceLimit || balance.Posted < -Amount.BalanceLimit) Check.Fail($"after event {sequence} the balance is within its bounds");
    }

    /// <param name="link">The hold: its held event, or what its id is remembered by.</param>
    ref Hold PendingHold(ulong sequence, in Event e, ulong link)
    {
        int index = State.Holds.Find(link);
        if (index < 0) Check.Fail($"event {sequence} is about a hold");
        ref Hold hold = ref State.Holds.Edit(index);
        if (hold.Status != HoldStatus.Pending) Check.Fail($"event {sequence} is about a hold that has not ended");
        if (hold.Account != e.Account || hold.Counterparty != e.Counterparty || hold.Currency != e.Currency || e.Amount > hold.Amount - hold.Released)
            Check.Fail($"event {sequence} is about what hold {link} holds");
        return ref hold;
    }

    /// <summary>A hold ends once, with all that it still holds.</summary>
    void EndHold(ulong sequence, in Event e, ulong link, HoldStatus status)
    {
        ref Hold hold = ref PendingHold(sequence, e, link);
        if (hold.Amount - hold.Released != e.Amount) Check.Fail($"event {sequence} ends hold {link} with all that it holds");
        hold.Status = status;
        hold.EndSequence = sequence;
    }

    /// <summary>No more than what was moved is ever taken back.</summary>
    void AddReversal(ulong sequence, ulong original, Int128 amount, Int128 left)
    {
        if (amount > left || (State.Reversals.LeftOf(original) is Int128 known && known != left)) Check.Fail($"event {sequence} takes back what is left of {original}");
        State.Reversals.Add(original, sequence, left - amount);
    }

    uint HomeOf(in Event e) => HomeOf(State, e);

    uint HomeOf(in Event e, Attachment attachment) => HomeOf(State, e, attachment);

    /// <summary>The account that the id of an event belongs to, 0 for ids between two system accounts.</summary>
    public static uint HomeOf(State state, in Event e, Attachment attachment) => attachment.Integer(AttachmentTag.Home) is Int128 home ? (uint)home : HomeOf(state, e);

    /// <summary>An event without a counterparty names its home itself.</summary>
    static uint HomeOf(State state, in Event e) =>
        e.Counterparty == 0 ? e.Account : Home((state.Account(e.Account).Flags & AccountFlags.System) != 0, e.Account, (state.Account(e.Counterparty).Flags & AccountFlags.System) != 0, e.Counterparty);

    void CheckNamed(ulong sequence, in Event e)
    {
        if (e.Account == 0 || e.Account > State.AccountList.Count) Check.Fail($"event {sequence} is about an account that was named before");
    }

    ref Account EditAccount(ulong sequence, in Event e)
    {
        CheckNamed(sequence, e);
        return ref State.AccountList.Edit((int)e.Account - 1);
    }

    void AddAccount(in Event e, ReadOnlySpan<byte> attachments)
    {
        Check.That(new Attachment(e.Attachment, attachments, []).TryGet(AttachmentTag.Name, out ReadOnlySpan<byte> name), "a new account has a name");
        uint number = State.Names.Add(name);
        Check.That(number == e.Account, "accounts are numbered in the order of their events");
        State.AccountList.Add() = new Account
        {
            Flags = name[0] == (byte)'@' ? AccountFlags.System : AccountFlags.None,
            Peer = State.PeerOf(AccountName.FromTrusted(name)),
        };
    }

    int AddBalance(uint number, uint currency)
    {
        ref Account account = ref State.AccountList.Edit((int)number - 1);
        State.BalanceList.Add() = new Balance { Account = number, Currency = currency, Next = account.FirstBalance };
        account.FirstBalance = (uint)State.BalanceList.Count;
        return State.BalanceList.Count - 1;
    }

    /// <summary>These replace all that were set before.</summary>
    void SetLimits(uint account, Limits[] limits)
    {
        foreach (Limits old in State.LimitsOf(account)) SetLimits(account, new Limits(old.Currency, null, null));
        foreach (Limits one in limits) SetLimits(account, one);
    }

    void SetLimits(uint number, Limits limits)
    {
        int index = State.FindBalance(number, limits.Currency);
        if (index < 0) index = AddBalance(number, limits.Currency);
        ref Balance balance = ref State.BalanceList.Edit(index);
        if (balance.Limits == 0)
        {
            State.LimitsList.Add();
            balance.Limits = (uint)State.LimitsList.Count;
        }

        State.LimitsList.Edit((int)balance.Limits - 1) = new LimitsOfBalance
        {
            Min = limits.Min ?? 0,
            Max = limits.Max ?? 0,
            HasMin = limits.Min is null ? 0u : 1u,
            HasMax = limits.Max is null ? 0u : 1u,
        };
    }

    // Of commits across partitions.

    void ApplyPrepared(ulong sequence, long timeMicros, in Event e, Attachment attachment)
    {
        Attempt attempt = e.Index == 0 ? NewAttempt(sequence, timeMicros, e, attachment) : State.Attempts.Find(e.Link) ?? throw new InvariantBrokenException($"Event {sequence} reserves for attempt {e.Link}, which is not under way.");
        if (e.TouchesBalance)
        {
            ref Balance balance = ref Touch(sequence, timeMicros, e);
            balance.Held += e.Amount;
            CheckAfter(sequence, e, balance);
            CheckLowest(sequence, balance);
            attempt.Reserve(e.Account, e.Currency, e.Amount, 0);
            return;
        }

        // A hold's payee is only asked; what this side refuses it does not reserve.
        if (Injected.Is(LedgerDefect.VoteDoesNotBind) && !attempt.IsOwn) return;
        bool isPromised = e.Code == (ushort)Direction.Credit && !attempt.Vote.IsRefusal && (attempt.Flags & EventFlags.Pending) == 0;
        if (!isPromised) return;
        CheckNamed(sequence, e);
        int index = State.FindBalance(e.Account, e.Currency);
        if (index < 0) index = AddBalance(e.Account, e.Currency);
        State.BalanceList.Edit(index).Incoming += e.Amount;
        attempt.Reserve(e.Account, e.Currency, 0, e.Amount);
    }

    Attempt NewAttempt(ulong sequence, long timeMicros, in Event e, Attachment attachment)
    {
        Attempt attempt = State.Attempts.New();
        (attempt.Sequence, attempt.TransactionId, attempt.Flags, attempt.PreparedMicros) = (sequence, e.TransactionId, e.Flags, timeMicros);
        attempt.HasTexts = attachment.TryGet(AttachmentTag.Description, out _) || attachment.TryGet(AttachmentTag.Metadata, out _);
        if (e.Count == 0)
        {
            attempt.Add(e.Code == (ushort)Direction.Debit ? new Movement(e.Account, e.Counterparty, e.Currency, e.Amount) : new Movement(e.Counterparty, e.Account, e.Currency, e.Amount), 0);
        }
        else
        {
            Movement[] movements = attachment.Postings();
            ushort[] indexes = attachment.Indexes();
            for (int i = 0; i < movements.Length; i++) attempt.Add(movements[i], indexes.Length == 0 ? (ushort)i : indexes[i]);
        }

        if (attachment.Attempt() is var (coordinator, number, lowWater))
        {
            (attempt.Coordinator, attempt.CoordinatorSequence) = (coordinator, number);
            State.Attempts.Forget(coordinator, lowWater);
        }
        else
        {
            (attempt.IsOwn, attempt.Coordinator, attempt.CoordinatorSequence, attempt.Original) = (true, State.Partition, sequence, e.Link);
            attempt.Home = HomeOf(e, attachment);
            attempt.Vote = attachment.Vote();
            attempt.ExpiresAtMicros = (long)(attachment.Integer(AttachmentTag.ExpiresAt) ?? 0);
            attempt.Left = attachment.Integer(AttachmentTag.Left) ?? 0;
            attempt.Description = attachment.Salted(AttachmentTag.Description);
            attempt.Metadata = attachment.Salted(AttachmentTag.Metadata);
            if ((e.Flags & EventFlags.Capture) != 0) State.Holds.Edit(State.Holds.Find(e.Link)).IsCapturing = !Injected.Is(LedgerDefect.CaptureDoesNotKeepHold);
        }

        State.Attempts.Add(attempt, State.AccountList);
        return attempt;
    }

    /// <summary>What is set aside of a balance is over with the first event of the decision that touches it.</summary>
    static void LetGo(Attempt? attempt, ref Balance balance)
    {
        if (attempt is null) return;
        Reservation reserved = attempt.Release(balance.Account, balance.Currency);
        balance.Held -= reserved.Held;
        balance.Incoming -= reserved.Incoming;
    }

    /// <summary>Money that moved because of a commit: what belongs to another partition's account is in flight to or from it.</summary>
    /// <param name="toClearing">Positive for what left for the counterparty.</param>
    void Settle(ulong sequence, long timeMicros, Attempt attempt, in Event e, in Movement movement, Int128 toClearing)
    {
        bool isPart = false;
        for (int i = 0; i < attempt.MovementsCount && !isPart; i++) isPart = attempt.Movements[i] == movement && (e.Count == 0 || attempt.Indexes[i] == e.Index);
        if (!isPart) Check.Fail($"event {sequence} is what attempt {attempt.Sequence} prepared");
        ushort peer = State.Account(e.Counterparty).Peer;
        if (peer != 0 && toClearing != 0 && !Injected.Is(LedgerDefect.ClearingForgotten)) State.AddToClearing(peer - 1, e.Currency, toClearing);
        Decide(sequence, timeMicros, attempt, AttemptStatus.Committed);
    }

    /// <summary>By the first event of the decision; those after it belong to it.</summary>
    void Decide(ulong sequence, long timeMicros, Attempt attempt, AttemptStatus status)
    {
        if (attempt.Status == AttemptStatus.Prepared)
        {
            (attempt.Status, attempt.DecisionSequence, attempt.DecisionMicros) = (status, sequence, timeMicros);
            State.Attempts.Decided(attempt);
        }

        if (attempt.Status != status) Check.Fail($"event {sequence} does not contradict what was decided of attempt {attempt.Sequence}");
        attempt.LastSequence = sequence;
    }

    void Abort(ulong sequence, long timeMicros, Attempt attempt)
    {
        foreach (Reservation one in attempt.Reservations)
        {
            if (one.Held != 0) Check.Fail($"event {sequence} ends attempt {attempt.Sequence} with nothing held");
            if (one.Incoming == 0) continue;
            State.BalanceList.Edit(State.FindBalance(one.Account, one.Currency)).Incoming -= one.Incoming;
            attempt.Release(one.Account, one.Currency);
        }

        if (attempt.IsOwn && (attempt.Flags & EventFlags.Capture) != 0) State.Holds.EndCapturing(State.Holds.Find(attempt.Original));
        State.Attempts.Release(attempt);
        Decide(sequence, timeMicros, attempt, AttemptStatus.Aborted);
    }

    void ApplyFinished(ulong sequence, in Event e)
    {
        if (State.Attempts.Find(e.Account, e.TransactionId) is not Attempt attempt || !attempt.IsDecided || attempt.DecisionSequence != e.Link)
            throw new InvariantBrokenException($"Event {sequence} finishes what event {e.Link} decided.");
        foreach (Reservation one in attempt.Reservations) Check.That(one.Held == 0 && one.Incoming == 0, "what is finished holds nothing");
        if (attempt.Status == AttemptStatus.Committed)
        {
            // Whoever asks for the hold or the capture by its id finds it by this event.
            if ((attempt.Flags & EventFlags.Pending) != 0) State.Holds.Finish(State.Holds.Find(attempt.DecisionSequence), sequence);
            if ((attempt.Flags & EventFlags.Capture) != 0)
            {
                ref Hold captured = ref State.Holds.Edit(State.Holds.Find(attempt.Original));
                (captured.EndSequence, captured.IsCapturing) = (sequence, false);
            }

            if ((attempt.Flags & EventFlags.Reversal) != 0) State.Reversals.Finish(attempt.Original, sequence);
        }

        State.Ids.Add(attempt.Home, e.TransactionId, sequence);
        State.Attempts.Remove(attempt);
    }
}
