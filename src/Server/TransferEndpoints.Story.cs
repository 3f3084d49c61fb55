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

        int? partition = PartitionDirectory.NumberHere(http) is int sentTo ? sentTo : home is AccountName { IsSystem: false } account ? _directory.Router.Of(account) : _directory.Count == 1 ? 0 : null;
        long started = Environment.TickCount64;
        if (partition is null)
        {
            List<int> candidates = [];
            for (int number = 0; number < _directory.Count; number++)
            {
                // Not found is said only when all have answered.
                IdPart part = await _directory.AskAsync(_id, number, new IdAsked(id, homeText, HasNames: false), Query.Left(timeout, started));
                candidates.AddRange(Enumerable.Repeat(number, part.Count));
            }

            if (candidates.Count == 0) throw NotFound();
            if (candidates.Count > 1)
            {
                List<string> homes = [];
                foreach (int number in candidates.Distinct()) homes.AddRange((await _directory.AskAsync(_id, number, new IdAsked(id, homeText, HasNames: true), Query.Left(timeout, started))).Homes);
                throw Ambiguous(homes);
            }

            partition = candidates[0];
        }

        if (await _directory.HereAsync(http, partition.Value) is not Partition here) return;
        List<Found> all = await LookAsync(here, core => Find(core.State, id, home), Query.Left(timeout, started), ById(id, home));
        EventReaders readers = Readers(here);
        if (all.Count == 0) throw NotFound();
        if (all.Count > 1) throw Ambiguous([.. all.Select(one => HomeOf(one, readers))]);
        if (all[0].Head != 0)
        {
            await Answer.WriteInDoubtAsync(http, id);
            return;
        }

        Story story = Read(all[0], readers);
        Dictionary<Part, string[]> elsewhere = [];
        foreach (RecordedEvent one in story.All)
        {
            foreach (Part part in one.Parts)
            {
                CommitAsked asked = new(part.Sequence, one.Event.TransactionId);
                elsewhere[part] = await _directory.AskAsync(_commit, part.Partition, asked, Query.Left(timeout, started));
            }
        }

        await Answer.WriteAsync(http, 200, json => WriteStory(json, story, elsewhere, readers));

        Problem NotFound() => new("transfer_not_found", $"No transfer with id {Answer.ToGuid(id)}{(home is null ? "" : $" belongs to '{homeText}'")} was ever asked for.");

        Problem Ambiguous(List<string> homes) =>
            new Problem("transfer_ambiguous", $"{(homes.Count < HomesMax ? homes.Count : "Many")} accounts used the id {Answer.ToGuid(id)}. Name one with ?account=.").With("accounts", homes.Take(HomesMax).ToList());
    }

    static async Task<IdPart> FindAsync(Partition partition, IdAsked asked, TimeSpan timeout, CancellationToken cancellation)
    {
        AccountName? home = asked.Account is null ? null : AccountName.Parse(asked.Account);
        List<Found> all = await LookAsync(partition, core => Find(core.State, asked.Id, home), timeout, ById(asked.Id, home));
        return new IdPart(all.Count, asked.HasNames ? [.. all.Select(one => HomeOf(one, Readers(partition)))] : []);
    }

    /// <summary>Whose ids are asked for: any command about this one, in that home or in all.</summary>
    static Command ById(UInt128 id, AccountName? home) => new() { Kind = CommandKind.Void, OriginalId = id, TransactionId = id, Account = home ?? default };

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
    static string HomeOf(Found found, EventReaders readers)
    {
        RecordedEvent first = readers.ReadDecision(found.Sequence + found.Head);
        uint home = StateMachine.HomeOf(readers.State, first.Event, first.Attachment);
        return NameOf(home == 0 ? first.Event.Account : home, readers.State);
    }

    sealed record Story(Found Found, RecordedEvent First, RecordedEvent? End, List<RecordedEvent> Reversals)
    {
        public IEnumerable<RecordedEvent> All => [First, .. End is null ? [] : new[] { End }, .. Reversals];
    }

    static Story Read(Found found, EventReaders readers) => new(
        found, readers.ReadDecision(found.Sequence), found.Hold is { EndSequence: > 0 } hold ? readers.ReadDecision(hold.EndSequence) : null,
        [.. found.Reversals.Select(reversal => readers.ReadDecision(reversal.Sequence))]);

    /// <param name="elsewhere">What commits across partitions left in each of them.</param>
    static void WriteStory(Utf8JsonWriter json, Story story, Dictionary<Part, string[]> elsewhere, EventReaders readers)
    {
        (Found found, RecordedEvent first, RecordedEvent? end, List<RecordedEvent> reversals) = story;
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
        foreach (RecordedEvent one in story.All) WriteWithParts(json, one, elsewhere, readers);
        json.WriteEndArray();
    }

    static string Status(Found found, bool isRejected)
    {
        if (found.Hold is Hold hold) return EventJson.HoldStatusName(hold.Status);
        if (isRejected) return "rejected";
        return found.Reversals.Count > 0 && found.Reversals[^1].Left == 0 ? "reversed" : "completed";
    }

    /// <summary>An event with those that were written with it, here and in other partitions: what a capture released before, the credits and further debits after.</summary>
    static void WriteWithParts(Utf8JsonWriter json, RecordedEvent e, Dictionary<Part, string[]> elsewhere, EventReaders readers)
    {
        if (e.Parts.Length > 0)
        {
            foreach (string one in e.Parts.SelectMany(part => elsewhere[part])) json.WriteRawValue(one);
            return;
        }

        if (e.Event.Kind == EventKind.Captured && readers.Read(e.Sequence - 1) is var before && before.Event.Kind == EventKind.Released && before.Event.Link == e.Event.Link)
            EventJson.Write(json, readers.Partition, before, readers.State);
        EventJson.Write(json, readers.Partition, e, readers.State);
        for (ulong sequence = e.Sequence + 1; sequence <= LastOf(e); sequence++) EventJson.Write(json, readers.Partition, readers.Read(sequence), readers.State);
    }

    /// <summary>What a commit left in one partition: its events stand together, before the one that the part names.</summary>
    static Task<string[]> ReadCommitAsync(Partition partition, CommitAsked asked, TimeSpan timeout, CancellationToken cancellation)
    {
        EventReaders readers = Readers(partition);
        List<RecordedEvent> events = [];
        for (ulong sequence = asked.Sequence; sequence > 0 && events.Count < 3 * StateMachine.PostingsMax; sequence--)
        {
            RecordedEvent one = readers.Read(sequence);
            if ((one.Event.Flags & EventFlags.CrossPartition) == 0 || one.Event.TransactionId != asked.TransactionId || (events.Count > 0 && one.Event.Link != events[^1].Event.Link)) break;
            events.Add(one);
        }

        return Task.FromResult<string[]>([.. events.AsEnumerable().Reverse().Select(one => EventJson.ToText(readers.Partition, readers.WithHead(one), readers.State))]);
    }
}
