using System.Text.Json;
using Microsoft.AspNetCore.Http;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>What became of an id.</summary>
sealed partial class TransferEndpoints
{
    /// <summary>A story tells of so many reversals, the last ones, and names so many homes.</summary>
    const int ReversalsMax = 100;
    const int HomesMax = 100;

    /// <summary>What the state knows of an id in one home.</summary>
    /// <param name="Head">Of a commit across partitions that is under way, and nothing else is known; 0 for none.</param>
    sealed record Found(ulong Sequence, Hold? Hold, List<Reversal> Reversals, ulong Head = 0);

    async Task GetAsync(HttpContext http)
    {
        Query.AllowParameters(http, "account");
        TimeSpan timeout = Query.Timeout(http);
        UInt128 id = Query.TransactionId((string)http.Request.RouteValues["id"]!);
        string? homeText = Query.Parameter(http, "account");
        AccountName? home = homeText is null ? null : Query.Account("account", homeText);

        List<(Found Found, EventReaders Readers)> all = [];
        long started = Environment.TickCount64;
        foreach (Partition partition in home is AccountName { IsSystem: false } account ? [router.Of(account)] : router.All)
        {
            ReadRequest<List<Found>> read = new((State state) => Find(state, id, home));
            RequestStatus status = await partition.SubmitAsync(read, Query.Left(timeout, started));
            // Not found is said only when all have answered.
            if (status != RequestStatus.Answered) throw Problem.From(status, timeout);
            EventReaders readers = Readers(partition);
            all.AddRange(read.Result.Select(one => (one, readers)));
        }

        if (all.Count == 0)
            throw new Problem("transfer_not_found", $"No transfer with id {Answer.ToGuid(id)}{(home is null ? "" : $" belongs to '{homeText}'")} was ever asked for.");
        if (all.Count > 1)
        {
            throw new Problem("transfer_ambiguous", $"{(all.Count < HomesMax ? all.Count : "Many")} accounts used the id {Answer.ToGuid(id)}. Name one with ?account=.")
                .With("accounts", all.Take(HomesMax).Select(one => HomeOf(one.Readers.ReadDecision(one.Found.Sequence + one.Found.Head), one.Readers.State)).ToList());
        }

        if (all[0].Found.Head != 0)
        {
            await Answer.WriteInDoubtAsync(http, id);
            return;
        }

        await Answer.WriteAsync(http, 200, json => WriteStory(json, all[0].Found, all[0].Readers));
    }

    static List<Found> Find(State state, UInt128 id, AccountName? home)
    {
        if (home is not AccountName name) return [.. state.Ids.FindAll(id, HomesMax).Select(one => Found(one.Sequence)), .. state.Attempts.FindAll(id).Take(HomesMax).Select(UnderWay)];
        // Between two system accounts the id belongs to neither.
        uint number = name.IsSystem ? 0 : state.Names.Find(name);
        if (number == 0 && !name.IsSystem) return [];
        if (state.Ids.Find(number, id) is not 0 and ulong decided) return [Found(decided)];
        return state.Attempts.Find(number, id) is Attempt attempt ? [UnderWay(attempt)] : [];

        // One that an operator ended is final, whatever the others have still to say.
        Found UnderWay(Attempt attempt) => attempt is { Status: AttemptStatus.Aborted, Vote.Outcome: Outcome.Aborted } ? Found(attempt.DecisionSequence) : new Found(0, null, [], attempt.Sequence);

        Found Found(ulong sequence)
        {
            Hold? hold = state.Holds.Find(sequence) is >= 0 and int index ? state.Holds[index] : null;
            // Of a hold, what takes back its capture.
            return new Found(sequence, hold, state.Reversals.Of(hold?.EndSequence ?? sequence, ReversalsMax));
        }
    }

    /// <summary>What to give as <c>?account=</c>: between two system accounts either of them does.</summary>
    static string HomeOf(RecordedEvent first, State state)
    {
        uint home = StateMachine.HomeOf(state, first.Event, first.Attachment);
        return NameOf(home == 0 ? first.Event.Account : home, state);
    }

    void WriteStory(Utf8JsonWriter json, Found found, EventReaders readers)
    {
        RecordedEvent first = readers.ReadDecision(found.Sequence);
        RecordedEvent? end = found.Hold is { EndSequence: > 0 } hold ? readers.ReadDecision(hold.EndSequence) : null;
        List<RecordedEvent> reversals = [.. found.Reversals.Select(reversal => readers.ReadDecision(reversal.Sequence))];
        bool isRejected = first.Event.Kind == EventKind.TransferRejected;
        WriteTransfer(json, first, Status(found, isRejected), readers);
        if (first.Attachment.Erased(AttachmentTag.Description) is byte[] description) json.WriteString("description", description);
        if (first.Attachment.Erased(AttachmentTag.Metadata) is byte[] metadata) EventJson.WriteRaw(json, "metadata", metadata);
        if (isRejected)
        {
            Problem refusal = Refusal(first, readers);
            json.WriteString("code", refusal.Code);
            json.WriteNumber("http_status", refusal.Status);
            json.WriteString("detail", refusal.Message);
            if (first.Event.Count > 0) json.WriteNumber("posting", first.Event.Index);
        }

        if (first.Attachment.Integer(AttachmentTag.RequestedAmount) is Int128 requested && (first.Event.Flags & EventFlags.UpTo) != 0)
            json.WriteString("requested_amount", Amount.Format(requested, readers.State.Decimals(first.Event.Currency)));
        if (end?.Event.Kind == EventKind.Captured) json.WriteString("captured_amount", Amount.Format(end.Event.Amount, readers.State.Decimals(end.Event.Currency)));
        if (end is not null && end.Event.Kind != EventKind.Expired) json.WriteString("ended_by", Answer.ToGuid(end.Event.TransactionId));
        if (reversals.Count > 0)
        {
            if (first.Event.Count == 0)
            {
                Int128 moved = end?.Event.Amount ?? first.Event.Amount;
                json.WriteString("reversed_amount", Amount.Format(moved - found.Reversals[^1].Left, readers.State.Decimals(first.Event.Currency)));
            }

            json.WriteStartArray("reversed_by");
            foreach (RecordedEvent one in reversals) json.WriteStringValue(Answer.ToGuid(one.Event.TransactionId));
            json.WriteEndArray();
        }

        json.WriteStartArray("events");
        WriteWithParts(json, first, readers);
        if (end is not null) WriteWithParts(json, end, readers);
        foreach (RecordedEvent one in reversals) WriteWithParts(json, one, readers);
        json.WriteEndArray();
    }

    static string Status(Found found, bool isRejected)
    {
        if (found.Hold is Hold hold) return EventJson.HoldStatusName(hold.Status);
        if (isRejected) return "rejected";
        return found.Reversals.Count > 0 && found.Reversals[^1].Left == 0 ? "reversed" : "completed";
    }

    /// <summary>An event with those that were written with it, here and in other partitions: what a capture released before, the credits and further debits after.</summary>
    void WriteWithParts(Utf8JsonWriter json, RecordedEvent e, EventReaders readers)
    {
        if (e.Parts.Length > 0)
        {
            foreach (Part part in e.Parts) WritePart(json, part, e.Event.TransactionId, Readers(router.All[part.Partition]));
            return;
        }

        if (e.Event.Kind == EventKind.Captured && readers.Read(e.Sequence - 1) is var before && before.Event.Kind == EventKind.Released && before.Event.Link == e.Event.Link)
            EventJson.Write(json, readers.Partition, before, readers.State);
        EventJson.Write(json, readers.Partition, e, readers.State);
        for (ulong sequence = e.Sequence + 1; sequence <= LastOf(e); sequence++) EventJson.Write(json, readers.Partition, readers.Read(sequence), readers.State);
    }

    /// <summary>What a commit left in one partition: its events stand together, before the one that the part names.</summary>
    static void WritePart(Utf8JsonWriter json, Part part, UInt128 transactionId, EventReaders readers)
    {
        List<RecordedEvent> events = [];
        for (ulong sequence = part.Sequence; sequence > 0 && events.Count < 3 * StateMachine.PostingsMax; sequence--)
        {
            RecordedEvent one = readers.Read(sequence);
            if ((one.Event.Flags & EventFlags.CrossPartition) == 0 || one.Event.TransactionId != transactionId || (events.Count > 0 && one.Event.Link != events[^1].Event.Link)) break;
            events.Add(one);
        }

        foreach (RecordedEvent one in events.AsEnumerable().Reverse()) EventJson.Write(json, readers.Partition, readers.WithHead(one), readers.State);
    }
}
