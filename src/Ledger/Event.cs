using System.Runtime.InteropServices;

namespace Purse.Ledger;

/// <summary>
/// What an event says. The numbers are written in journals and never change meaning. A kind that this version does not write yet is
/// laid out so that journals need no other form when it does (docs/journal-format.md).
/// </summary>
public enum EventKind : byte
{
    None = 0,

    // Money. Two accounts of one partition: debited beside credited.
    Debited = 1,
    Credited = 2,

    // Holds: on the payer's balance; Link of the later ones names the held event.
    Held = 3,
    Released = 4,
    Captured = 5,
    Expired = 6,

    /// <summary>A refusal that depends on state: final under its id.</summary>
    TransferRejected = 7,

    // Accounts.
    AccountOpened = 8,

    /// <summary>A name that was spoken of before any account of that name was opened, so that its refusals can be remembered.</summary>
    AccountNamed = 9,
    MetadataChanged = 10,
    LimitsChanged = 11,
    Frozen = 12,
    Unfrozen = 13,
    Closed = 14,
    CurrencyRegistered = 15,

    // The steps of a commit across partitions, for the coordinator and the participants alike (Attempts.cs).

    /// <summary>The first is the attempt's head; what it reserves of one more balance each has an event of its own, which names the head.</summary>
    Prepared = 16,

    /// <summary>A participant's vote against.</summary>
    Refused = 17,

    /// <summary>The decision to commit, where the first event of money would not tell the whole.</summary>
    Committed = 18,

    /// <summary>What was reserved is let go of, balance by balance.</summary>
    Aborted = 19,

    /// <summary>Every side shows it: the event that the coordinator remembers the id by. Link names the decision.</summary>
    Finished = 20,

    /// <summary>The journal moved to another store; nothing follows.</summary>
    Sealed = 21,
}

[Flags]
public enum EventFlags : byte
{
    None = 0,

    /// <summary>One of the postings of a transaction; <see cref="Event.Index"/> says which.</summary>
    Posting = 1,

    /// <summary>Asked for as "up to" an amount; the attachment has that where it was larger than what could be moved.</summary>
    UpTo = 2,

    /// <summary>Link names the transfer that this one takes back.</summary>
    Reversal = 4,

    /// <summary>Link names the hold that this one captures.</summary>
    Capture = 8,

    /// <summary>The refusal of a void.</summary>
    Void = 32,

    /// <summary>The refusal of a hold.</summary>
    Pending = 64,

    /// <summary>
    /// Ends what an attempt across partitions prepared: Link names the attempt's head, whose Link and attachment count as this event's. Where the
    /// counterparty lives in another partition, the other side is the clearing balance of that one.
    /// </summary>
    CrossPartition = 16,
}

[Flags]
public enum Direction : byte
{
    None = 0,
    Debit = 1,
    Credit = 2,
    Both = 3,
}

/// <summary>
/// One fact, 104 bytes, little-endian, written to the journal as it lies in memory (docs/journal-format.md draws it). Its sequence
/// is that of its place in the journal, its time that of its block.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = SizeBytes, Pack = 8)]
public struct Event
{
    public const int SizeBytes = 104;

    [FieldOffset(0)] public EventKind Kind;
    [FieldOffset(1)] public EventFlags Flags;

    /// <summary>
    /// An <see cref="Outcome"/> for refusals, a <see cref="Direction"/> for freezes and for the balances of what was prepared; of money
    /// across partitions, 1 where the head has texts.
    /// </summary>
    [FieldOffset(2)] public ushort Code;

    [FieldOffset(4)] public uint Currency;
    [FieldOffset(8)] public uint Account;
    [FieldOffset(12)] public uint Counterparty;
    [FieldOffset(16)] public UInt128 TransactionId;

    /// <summary>Minor units, never negative.</summary>
    [FieldOffset(32)] public Int128 Amount;

    /// <summary>The balance after this event; of a refusal, the balance that it was about.</summary>
    [FieldOffset(48)] public Int128 Posted;
    [FieldOffset(64)] public Int128 Held;

    /// <summary>Sequence of this balance's previous event, 0 for none.</summary>
    [FieldOffset(80)] public ulong Previous;

    /// <summary>Sequence of the event this one refers to (the hold, the original, the prepared), 0 for none.</summary>
    [FieldOffset(88)] public ulong Link;

    /// <summary>1 + the offset of its attachment in the block's attachments, 0 for none.</summary>
    [FieldOffset(96)] public uint Attachment;

    /// <summary>The posting's number within its transaction, from 0; of a refusal, that of the lowest refused posting.</summary>
    [FieldOffset(100)] public ushort Index;

    /// <summary>How many postings its transaction has; 0 outside of transactions.</summary>
    [FieldOffset(102)] public ushort Count;

    public readonly bool TouchesBalance => Kind is >= EventKind.Debited and <= EventKind.Expired || (Kind is EventKind.Prepared or EventKind.Aborted && IsReservedDebit);

    /// <summary>Of a prepared event: reserves what may leave. What may come is promised beside the balance's chain of events; what a hold holds needs no more.</summary>
    readonly bool IsReservedDebit => Code == (ushort)Direction.Debit && (Flags & EventFlags.Capture) == 0;
}
