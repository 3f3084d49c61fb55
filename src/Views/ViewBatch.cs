using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Views;

/// <summary>One change of one balance.</summary>
struct EntryRow
{
    public ulong Position;
    public long TimeMicros;
    public UInt128 TransactionId;
    public Int128 Amount, Posted, Held;
    public uint Account, Counterparty, Currency;
    public EventKind Kind;
}

/// <summary>One movement of money, done, held or refused; of a transaction one for each posting.</summary>
struct TransferRow
{
    public ulong Position;
    public long TimeMicros;
    public UInt128 TransactionId, OriginalId;
    public Int128 Amount;
    public uint From, To, Currency;

    /// <summary>What all movements of one id have in common, and no other id has: the first event of it, or the head of the commit that it was part of.</summary>
    public Origin Origin;
    public ushort Posting;
    public TransferStatus Status;
    public Outcome Refusal;
    public byte[]? Description, Metadata;
}

readonly record struct Origin(int Partition, ulong Position);

/// <summary>What one partition knows about all movements of one id: what became of them, and what their own events elsewhere do not say.</summary>
readonly record struct IdRow(Origin Of, TransferStatus? Status = null, UInt128 OriginalId = default, byte[]? Description = null, byte[]? Metadata = null);

/// <summary>As the HTTP contract names it, in small letters.</summary>
public enum TransferStatus : byte
{
    Completed,
    Pending,
    Captured,
    Voided,
    Expired,
    Rejected,
    Reversed,
}

/// <summary>What became of an account: opened first, then changed in this order.</summary>
readonly record struct AccountRow(ulong Position, long TimeMicros, uint Account, EventKind Kind, byte[]? Metadata, Limits[]? Limits, bool IsFrozen);

readonly record struct BalanceRow(Int128 Posted, Int128 Held, ulong Position);

/// <summary>What some blocks of one partition mean to those who look at accounts and transfers.</summary>
public sealed class ViewBatch
{
    internal List<EntryRow> Entries { get; } = [];

    internal List<TransferRow> Transfers { get; } = [];

    /// <summary>About movements that were there before, or are in this batch, or come later from another partition.</summary>
    internal List<IdRow> Ids { get; } = [];

    internal List<AccountRow> Accounts { get; } = [];

    /// <summary>Those that were registered; each partition says it once.</summary>
    internal List<(string Code, int Decimals)> Currencies { get; } = [];

    /// <summary>The last one of each.</summary>
    internal Dictionary<(uint Account, uint Currency), BalanceRow> Balances { get; } = [];

    EventReaders _readers = null!;

    public int Partition => _readers.Partition;

    /// <summary>Names and currencies.</summary>
    internal State State => _readers.State;

    /// <summary>The events in it are those after <see cref="After"/> up to <see cref="Last"/>.</summary>
    public ulong After { get; private set; }

    public ulong Last { get; private set; }

    public int EventsCount => (int)(Last - After);

    public void Begin(EventReaders readers, ulong after)
    {
        _readers = readers;
        (After, Last) = (after, after);
        Entries.Clear();
        Transfers.Clear();
        Ids.Clear();
        Accounts.Clear();
        Currencies.Clear();
        Balances.Clear();
    }

    public void Add(in Block block)
    {
        ReadOnlySpan<Event> events = block.RecordsAs<Event>();
        byte[]? attachments = null, erasable = null;
        for (int i = 0; i < events.Length; i++)
        {
            ref readonly Event e = ref events[i];
            ulong sequence = block.Header.FirstSequence + (ulong)i;
            if (e.TouchesBalance) AddEntry(sequence, block.Header.TimeMicros, e);
            if (e.Kind is EventKind.Credited && (e.Flags & (EventFlags.Reversal | EventFlags.CrossPartition)) != (EventFlags.Reversal | EventFlags.CrossPartition)) continue;
            bool isPlain = e.Attachment == 0 && e.Code == 0 && (e.Flags & EventFlags.Reversal) == 0 && (e.Flags & (EventFlags.Posting | EventFlags.CrossPartition)) != (EventFlags.Posting | EventFlags.CrossPartition);
            if (e.Kind is EventKind.Debited or EventKind.Held && isPlain)
            {
                AddMovement(sequence, block.Header.TimeMicros, e, e.Account, e.Counterparty, StatusOf(e.Kind));
                continue;
            }

            if (e.Kind is < EventKind.Debited or EventKind.Prepared or EventKind.Refused or EventKind.Aborted or EventKind.Finished) continue;
            // Once a block, for all of its events that say more than their fixed part.
            attachments ??= block.Attachments.ToArray();
            erasable ??= block.Erasable.ToArray();
            AddRich(new RecordedEvent(sequence, block.Header.TimeMicros, e, attachments, erasable));
        }

        if (events.Length > 0) Last = block.Header.LastSequence;
    }

    void AddEntry(ulong sequence, long timeMicros, in Event e)
    {
        Balances[(e.Account, e.Currency)] = new BalanceRow(e.Posted, e.Held, sequence);
        Entries.Add(new EntryRow
        {
            Position = sequence,
            TimeMicros = timeMicros,
            Kind = e.Kind,
            Account = e.Account,
            Counterparty = e.Counterparty,
            Currency = e.Currency,
            Amount = e.Amount,
            Posted = e.Posted,
            Held = e.Held,
            TransactionId = e.TransactionId,
        });
    }

    static TransferStatus StatusOf(EventKind kind) => kind switch
    {
        EventKind.Held => TransferStatus.Pending,
        EventKind.TransferRejected => TransferStatus.Rejected,
        _ => TransferStatus.Completed,
    };

    ref TransferRow AddMovement(ulong sequence, long timeMicros, in Event e, uint from, uint to, TransferStatus status)
    {
        Transfers.Add(new TransferRow
        {
            Position = sequence,
            TimeMicros = timeMicros,
            TransactionId = e.TransactionId,
            Amount = e.Amount,
            From = from,
            To = to,
            Currency = e.Currency,
            // The postings of a local transaction stand in pairs, in order.
            Origin = new Origin(Partition, (e.Flags & EventFlags.CrossPartition) != 0 ? e.Link : sequence - (status == TransferStatus.Rejected ? 0 : 2ul * e.Index)),
            Posting = e.Index,
            Status = status,
            Refusal = status == TransferStatus.Rejected ? (Outcome)e.Code : default,
        });
        Span<TransferRow> rows = System.Runtime.InteropServices.CollectionsMarshal.AsSpan(Transfers);
        if (e.Index > 0 && rows.Length > 1 && rows[^2].Origin == rows[^1].Origin)
        {
            // Only the first posting says what all of them are for.
            (rows[^1].OriginalId, rows[^1].Description, rows[^1].Metadata) = (rows[^2].OriginalId, rows[^2].Description, rows[^2].Metadata);
        }

        return ref rows[^1];
    }

    /// <summary>Events with attachments, with a head of their own, or about another one: those are read.</summary>
    void AddRich(RecordedEvent recorded)
    {
        ulong sequence = recorded.Sequence;
        EventKind kind = recorded.Event.Kind;
        bool isAcross = (recorded.Event.Flags & EventFlags.CrossPartition) != 0;
        ulong head = recorded.Event.Link;
        if (isAcross) recorded = _readers.WithHead(recorded);
        ref readonly Event e = ref recorded.Event;
        Attachment attachment = recorded.Attachment;
        bool isReversal = (e.Flags & EventFlags.Reversal) != 0;
        Origin origin = !isAcross ? new Origin(Partition, sequence - (kind == EventKind.TransferRejected ? 0 : 2ul * e.Index))
            : attachment.Attempt() is var (coordinator, attempt, _) ? new Origin(coordinator, attempt) : new Origin(Partition, head);
        switch (kind)
        {
            case EventKind.Debited or EventKind.Held or EventKind.Captured:
            {
                // Elsewhere than where it is coordinated, a side does not know what it is about.
                RecordedEvent? about = e.Link != 0 && origin.Partition == Partition && (isReversal || kind == EventKind.Captured) ? _readers.ReadDecision(e.Link) : null;
                ref TransferRow row = ref AddMovement(sequence, recorded.TimeMicros, e, e.Account, e.Counterparty, StatusOf(kind));
                row.Origin = origin;
                row.Description = attachment.Erased(AttachmentTag.Description) ?? row.Description;
                row.Metadata = attachment.Erased(AttachmentTag.Metadata) ?? row.Metadata;
                // For the postings elsewhere.
                if (isAcross && origin.Partition == Partition && (e.Flags & EventFlags.Posting) != 0) Ids.Add(new IdRow(origin, null, about?.Event.TransactionId ?? 0, row.Description, row.Metadata));
                if (about is null) break;
                row.OriginalId = about.Event.TransactionId;
                if (kind == EventKind.Captured) Ids.Add(new IdRow(OriginOf(about), TransferStatus.Captured));
                else AddReversal(about, e, attachment);
                break;
            }

            case EventKind.Credited or EventKind.Committed:
                if (isReversal && isAcross && origin.Partition == Partition && e.Link != 0)
                {
                    RecordedEvent about = _readers.ReadDecision(e.Link);
                    AddReversal(about, e, attachment);
                    Ids.Add(new IdRow(origin, null, about.Event.TransactionId, attachment.Erased(AttachmentTag.Description), attachment.Erased(AttachmentTag.Metadata)));
                }

                break;

            case EventKind.Released when (e.Flags & EventFlags.Capture) == 0:
                Ids.Add(new IdRow(OriginOf(_readers.ReadDecision(e.Link)), TransferStatus.Voided));
                break;

            case EventKind.Expired:
                Ids.Add(new IdRow(OriginOf(_readers.ReadDecision(e.Link)), TransferStatus.Expired));
                break;

            case EventKind.TransferRejected:
            {
                Movement[] movements = e.Counterparty == 0 && e.Link == 0 ? [] : _readers.MovementsOf(recorded);
                UInt128 originalId = e.Link == 0 ? 0 : _readers.ReadDecision(e.Link).Event.TransactionId;
                for (int i = 0; i < movements.Length; i++)
                {
                    ref TransferRow row = ref AddMovement(sequence, recorded.TimeMicros, e, movements[i].Payer, movements[i].Payee, TransferStatus.Rejected);
                    (row.Origin, row.OriginalId, row.Posting, row.Amount, row.Currency) = (origin, originalId, (ushort)i, movements[i].Amount, movements[i].Currency);
                    (row.Description, row.Metadata) = (attachment.Erased(AttachmentTag.Description), attachment.Erased(AttachmentTag.Metadata));
                }

                break;
            }

            case EventKind.CurrencyRegistered:
                Currencies.Add((State.CurrencyCode(e.Currency), State.Decimals(e.Currency)));
                break;

            // A system account begins in each partition where it is first used, and nobody opened it.
            case EventKind.AccountOpened when State.Names[e.Account].IsSystem:
                break;

            case EventKind.AccountOpened or EventKind.MetadataChanged or EventKind.LimitsChanged:
                Accounts.Add(new AccountRow(sequence, recorded.TimeMicros, e.Account, kind, attachment.Erased(AttachmentTag.Metadata), attachment.Limits(), false));
                break;

            case EventKind.Frozen or EventKind.Unfrozen or EventKind.Closed:
                Accounts.Add(new AccountRow(sequence, recorded.TimeMicros, e.Account, kind, null, null, kind == EventKind.Frozen && e.Code != 0));
                break;
        }
    }

    /// <summary>What was taken back in full is over.</summary>
    void AddReversal(RecordedEvent about, in Event e, in Attachment attachment)
    {
        Int128 left = attachment.Integer(AttachmentTag.Left) ?? attachment.Integer(AttachmentTag.Bound) ?? e.Amount;
        if (e.Count > 0 || left == e.Amount) Ids.Add(new IdRow(OriginOf(about), TransferStatus.Reversed));
    }

    /// <param name="decision">What its id came to, with what its head says.</param>
    Origin OriginOf(RecordedEvent decision) => new(Partition, decision.Head != 0 ? decision.Head : decision.Sequence);
}
