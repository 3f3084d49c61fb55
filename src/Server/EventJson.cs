using System.Text.Json;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>An event as clients and exports see it.</summary>
public static class EventJson
{
    public static string KindName(EventKind kind) => kind switch
    {
        EventKind.Debited => "debited",
        EventKind.Credited => "credited",
        EventKind.Held => "held",
        EventKind.Released => "released",
        EventKind.Captured => "captured",
        EventKind.Expired => "expired",
        EventKind.TransferRejected => "transfer_rejected",
        EventKind.AccountOpened => "account_opened",
        EventKind.AccountNamed => "account_named",
        EventKind.MetadataChanged => "metadata_changed",
        EventKind.LimitsChanged => "limits_changed",
        EventKind.Frozen => "frozen",
        EventKind.Unfrozen => "unfrozen",
        EventKind.Closed => "closed",
        EventKind.CurrencyRegistered => "currency_registered",
        EventKind.Prepared => "prepared",
        EventKind.Refused => "refused",
        EventKind.Committed => "committed",
        EventKind.Aborted => "aborted",
        EventKind.Finished => "finished",
        EventKind.Sealed => "sealed",
        _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "no such kind of event"),
    };

    public static string OutcomeCode(Outcome outcome) => JsonNamingPolicy.SnakeCaseLower.ConvertName(outcome.ToString());

    public static string HoldStatusName(HoldStatus status) => status switch
    {
        HoldStatus.Pending => "pending",
        HoldStatus.Captured => "captured",
        HoldStatus.Voided => "voided",
        HoldStatus.Expired => "expired",
        _ => throw new ArgumentOutOfRangeException(nameof(status), status, "no such status"),
    };

    public static string DirectionName(Direction direction) => direction switch
    {
        Direction.Debit => "debit",
        Direction.Credit => "credit",
        Direction.Both => "both",
        _ => throw new ArgumentOutOfRangeException(nameof(direction), direction, "no such direction"),
    };

    /// <summary>As <see cref="Write"/> has it, for another node to pass on.</summary>
    public static string ToText(int partition, RecordedEvent recorded, State state)
    {
        System.Buffers.ArrayBufferWriter<byte> text = new(512);
        using (Utf8JsonWriter json = new(text, Answer.JsonOptions)) Write(json, partition, recorded, state);
        return System.Text.Encoding.UTF8.GetString(text.WrittenSpan);
    }

    /// <param name="state">Knows at least the names and currencies that were known when the event was written.</param>
    public static void Write(Utf8JsonWriter json, int partition, RecordedEvent recorded, State state)
    {
        ref readonly Event e = ref recorded.Event;
        Attachment attachment = recorded.Attachment;
        json.WriteStartObject();
        json.WriteString("position", Answer.Position(partition, recorded.Sequence));
        json.WriteString("time", Answer.Time(recorded.TimeMicros));
        json.WriteString("kind", KindName(e.Kind));
        if (e.Account != 0) json.WriteString("account", state.Names.Utf8(e.Account));
        if (e.Counterparty != 0) json.WriteString("counterparty", state.Names.Utf8(e.Counterparty));
        if (e.Currency != 0)
        {
            int decimals = state.Decimals(e.Currency);
            json.WriteString("currency", state.CurrencyCode(e.Currency));
            if (e.Kind == EventKind.CurrencyRegistered) json.WriteNumber("decimals", decimals);
            else json.WriteString("amount", Amount.Format(e.Amount, decimals));
            if (attachment.Integer(AttachmentTag.RequestedAmount) is Int128 requested) json.WriteString("requested_amount", Amount.Format(requested, decimals));
            if (e.TouchesBalance)
            {
                json.WriteString("posted", Amount.Format(e.Posted, decimals));
                json.WriteString("held", Amount.Format(e.Held, decimals));
            }
        }

        if (e.TransactionId != 0 || (e.TouchesBalance && e.Kind != EventKind.Expired)) json.WriteString("transaction_id", Answer.ToGuid(e.TransactionId));
        bool isOfHold = e.Kind is EventKind.Released or EventKind.Captured or EventKind.Expired || (e.Kind == EventKind.TransferRejected && (e.Flags & (EventFlags.Capture | EventFlags.Void)) != 0);
        if ((e.Flags & EventFlags.Pending) != 0) json.WriteBoolean("pending", true);
        bool isAcross = (e.Flags & EventFlags.CrossPartition) != 0;
        // Unless it was read with its head, an event that ends an attempt does not know what that was about; the payee's side never does.
        ulong about = isAcross && recorded.Head == 0 ? 0 : e.Link;
        if (isOfHold && about != 0) json.WriteString("hold", Answer.Position(partition, about));
        if ((e.Flags & EventFlags.Reversal) != 0 && about != 0) json.WriteString("reverses", Answer.Position(partition, about));
        if ((e.Flags & EventFlags.Posting) != 0) json.WriteNumber("posting", e.Index);
        WriteAttempt(json, partition, recorded);
        if (e.Kind is EventKind.TransferRejected or EventKind.Prepared && attachment.TryGet(AttachmentTag.Postings, out _)) WritePostings(json, attachment.Postings(), state);
        if (attachment.Integer(AttachmentTag.ExpiresAt) is Int128 expiresAt) json.WriteString("expires_at", Answer.Time((long)expiresAt));
        if (e.Previous != 0) json.WriteString("previous", Answer.Position(partition, e.Previous));
        if (e.Kind is EventKind.TransferRejected or EventKind.Refused) json.WriteString("code", OutcomeCode((Outcome)e.Code));
        if (e.Kind == EventKind.Frozen || (e.Kind == EventKind.Prepared && e.Code != 0)) json.WriteString("direction", DirectionName((Direction)e.Code));
        if (attachment.Text(AttachmentTag.By) is string by) json.WriteString("by", by);
        if (attachment.Text(AttachmentTag.Reason) is string reason) json.WriteString("reason", reason);
        if (attachment.Text(AttachmentTag.Store) is string store) json.WriteString("store", store);
        if (attachment.Erased(AttachmentTag.Description) is byte[] description) json.WriteString("description", description);
        if (attachment.Erased(AttachmentTag.Metadata) is byte[] metadata) WriteRaw(json, "metadata", metadata);
        if (attachment.TryGet(AttachmentTag.Limits, out _)) WriteLimits(json, attachment.Limits(), state);
        json.WriteEndObject();
    }

    /// <summary>Which commit across partitions it is a step of: the coordinator's head, and this partition's.</summary>
    static void WriteAttempt(Utf8JsonWriter json, int partition, RecordedEvent recorded)
    {
        ref readonly Event e = ref recorded.Event;
        ulong head = recorded.Head != 0 ? recorded.Head : (e.Flags & EventFlags.CrossPartition) != 0 || (e.Kind == EventKind.Prepared && e.Index > 0) ? e.Link : 0;
        if (head != 0) json.WriteString("prepared_at", Answer.Position(partition, head));
        if (recorded.Attachment.Attempt() is var (coordinator, attempt, _)) json.WriteString("coordinator", Answer.Position(coordinator, attempt));
        if (e.Kind == EventKind.Finished) json.WriteString("decision", Answer.Position(partition, e.Link));
        if (e.Kind == EventKind.Finished && recorded.Attachment.Parts() is { Length: > 0 } parts) json.WriteString("parts", Answer.Position(parts));
    }

    public static void WriteLimits(Utf8JsonWriter json, Limits[] limits, State state)
    {
        json.WriteStartObject("limits");
        foreach (Limits one in limits)
        {
            int decimals = state.Decimals(one.Currency);
            json.WriteStartObject(state.CurrencyCode(one.Currency));
            if (one.Min is Int128 min) json.WriteString("min_balance", Amount.Format(min, decimals));
            if (one.Max is Int128 max) json.WriteString("max_balance", Amount.Format(max, decimals));
            json.WriteEndObject();
        }

        json.WriteEndObject();
    }

    public static void WritePostings(Utf8JsonWriter json, Movement[] postings, State state)
    {
        json.WriteStartArray("postings");
        foreach ((uint payer, uint payee, uint currency, Int128 amount) in postings)
            Answer.WritePosting(json, state.Names[payer].ToString(), state.Names[payee].ToString(), Amount.Format(amount, state.Decimals(currency)), state.CurrencyCode(currency));
        json.WriteEndArray();
    }

    /// <summary>Metadata was checked to be a JSON object when it came in.</summary>
    public static void WriteRaw(Utf8JsonWriter json, string name, byte[] raw)
    {
        json.WritePropertyName(name);
        using JsonDocument document = JsonDocument.Parse(raw);
        document.RootElement.WriteTo(json);
    }
}
