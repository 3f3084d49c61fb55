namespace Purse.Ledger;

public enum CommandKind : byte
{
    Transfer = 1,
    OpenAccount = 2,
    SetLimits = 3,
    SetMetadata = 4,
    Freeze = 5,
    Unfreeze = 6,
    Close = 7,
    Capture = 8,
    Void = 9,

    /// <summary>Postings, all or nothing.</summary>
    Transaction = 10,
    Reverse = 11,
    RegisterCurrency = 12,
}

/// <summary>What a caller asks for, well-formed but not yet judged. Fixed size, so that queues hold it without allocating.</summary>
public struct Command
{
    public CommandKind Kind;

    /// <summary>For a freeze: what it stops.</summary>
    public Direction Direction;

    /// <summary>
    /// How many decimals <see cref="AmountDigits"/> were written with: the currency's own are known only to the ledger. Of a currency to
    /// register, its decimals.
    /// </summary>
    public byte AmountScale;

    public CurrencyCode Currency;
    public UInt128 TransactionId;

    /// <summary>Of a capture, 0 for all that is held; of a reversal, 0 for all that is left.</summary>
    public Int128 AmountDigits;

    /// <summary>Of a capture, void or reversal: the id that it is about.</summary>
    public UInt128 OriginalId;

    /// <summary>Of a transfer: hold the money instead of moving it.</summary>
    public bool Pending;

    /// <summary>Of a transfer: move what is available, up to the amount.</summary>
    public bool UpTo;

    /// <summary>Judge it, and leave nothing behind.</summary>
    public bool DryRun;

    /// <summary>Of a hold: seconds until it is due, 0 for never.</summary>
    public int ExpiresInSeconds;

    /// <summary>The payer, or the account to change; of a capture, void or reversal the home of the original, or empty where that is not told.</summary>
    public AccountName Account;

    /// <summary>The payee.</summary>
    public AccountName Counterparty;

    /// <summary>Of a transfer: their numbers in the state that will judge it, where they were looked up before; 0 where they were not, or nobody had spoken of them.</summary>
    public uint KnownAccount;
    public uint KnownCounterparty;

    /// <summary>Mostly null.</summary>
    public CommandDetails? Details;
}

/// <summary>How a command ended. Numbers are written in journals and never change meaning.</summary>
public enum Outcome : ushort
{
    Done = 0,

    /// <summary>The id was decided before: <see cref="Decision.Sequence"/> says where, and the journal there says what.</summary>
    Duplicate = 1,

    /// <summary>Nothing had to change.</summary>
    Unchanged = 2,

    // Shape that only the ledger can judge; never recorded.
    CurrencyUnknown = 10,
    AmountTooPrecise = 11,
    AmountTooLarge = 12,
    AmountNotPositive = 13,
    SameAccount = 14,

    // Accounts; no id to record under.
    AccountNotFound = 20,
    AccountExists = 21,
    BalanceNotZero = 22,
    TransferAmbiguous = 23,

    /// <summary>Without an original there is no home to remember the refusal in.</summary>
    TransferNotFound = 24,

    CurrencyExists = 25,

    // Refusals that depend on state: recorded, and final under their id.
    FromAccountNotFound = 100,
    FromAccountClosed = 101,
    FromAccountFrozen = 102,
    BelowMinBalance = 103,
    InsufficientFunds = 104,
    ToAccountNotFound = 110,
    ToAccountClosed = 111,
    ToAccountFrozen = 112,
    ExceedsMaxBalance = 113,
    BalanceOverflow = 120,
    HoldAlreadyCaptured = 130,
    HoldAlreadyVoided = 131,
    HoldExpired = 132,
    AlreadyReversed = 133,
    NotAHold = 134,
    ExceedsHeldAmount = 135,
    ExceedsReversibleAmount = 136,

    /// <summary>An operator ended a commit across partitions before it was decided.</summary>
    Aborted = 140,

    // Transient, said by the partition before it decides; never recorded, never written.
    StorageFull = 1000,

    /// <summary>As many commits across partitions are under way as may be.</summary>
    Overloaded = 1001,

    /// <summary>The commit across partitions of this very id is under way: <see cref="Decision.Sequence"/> is its head.</summary>
    Undecided = 1002,

    /// <summary>Its own commit across partitions has begun: <see cref="Decision.Sequence"/> is its head.</summary>
    Prepared = 1003,

    /// <summary>The commit across partitions of another id has to end first, which decides about this one: <see cref="Decision.Sequence"/> is its head.</summary>
    Blocked = 1004,
}

/// <summary>What the state machine answers. There are millions a second of them: what most do not have is beside it.</summary>
public struct Decision
{
    public Outcome Outcome;

    /// <summary>Of a dry run across partitions: what this side says; the others have to be asked.</summary>
    public bool IsPartOnly;

    /// <summary>The currency's number; 0 where it is not known.</summary>
    public uint Currency;

    /// <summary>Of a transaction: the lowest posting that is refused, from 0.</summary>
    public int Posting;

    /// <summary>First event of the command; of a duplicate, first event of the original. 0 where nothing is recorded.</summary>
    public ulong Sequence;

    /// <summary>Last event of the command; of a dry run, the last event that it rests on.</summary>
    public ulong LastSequence;

    public long TimeMicros;

    /// <summary>Minor units.</summary>
    public Int128 Amount;

    /// <summary>Mostly null.</summary>
    public DecisionDetails? Details;

    public static Decision Of(Outcome outcome, uint currency = 0) => new() { Outcome = outcome, Currency = currency };
}

/// <summary>The figures that explain a refusal, and how a commit across partitions went.</summary>
public sealed record DecisionDetails
{
    public static readonly DecisionDetails None = new();

    /// <summary>The balance that the refusal was about, and the limit that it would have passed, minor units.</summary>
    public Int128 Posted { get; init; }

    public Int128 Held { get; init; }

    public Int128 Incoming { get; init; }

    public Int128 Bound { get; init; }

    /// <summary>When a commit across partitions began, 0 elsewhere: from then on a hold's time runs.</summary>
    public long PreparedMicros { get; init; }

    /// <summary>Of what was committed across partitions: where it ends in each of them. Null elsewhere.</summary>
    public Part[]? Parts { get; init; }
}
