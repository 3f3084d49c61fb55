using System.Collections.Concurrent;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Moving money, and asking what became of an id.</summary>
sealed class TransferEndpoints(Partition partition)
{
    readonly ConcurrentBag<CommandRequest> _requests = [];

    public void Map(IEndpointRouteBuilder routes)
    {
        routes.MapPost("/v1/wallet/balance_transfer", (RequestDelegate)TransferAsync);
        routes.MapGet("/v1/wallet/transfers/{id}", (RequestDelegate)GetAsync);
        routes.MapPost("/v1/wallet/transfers/{id}/capture", (RequestDelegate)CaptureAsync);
        routes.MapPost("/v1/wallet/transfers/{id}/void", (RequestDelegate)VoidAsync);
    }

    async Task TransferAsync(HttpContext http)
    {
        TimeSpan timeout = Query.Timeout(http);
        BalanceTransferBody body = await Body.ReadAsync(http, BodyJson.Default.BalanceTransferBody);
        ToCommand(body, out Command command);
        Decision decision = await ExecuteAsync(command, timeout);
        EventReaders readers = Readers();
        switch (decision.Outcome)
        {
            case Outcome.Done:
                await Answer.WriteAsync(http, 200, json =>
                {
                    Answer.WriteTransfer(
                        json, command.Pending ? "pending" : "completed", body.TransactionId, body.FromAccount, body.ToAccount,
                        Amount.Format(decision.Amount, readers.State.Decimals(decision.Currency)), body.Currency,
                        decision.TimeMicros, partition.Number, decision.LastSequence);
                    if (command.ExpiresInSeconds != 0) json.WriteString("expires_at", Answer.Time(decision.TimeMicros + command.ExpiresInSeconds * 1_000_000L));
                });
                return;
            case Outcome.Duplicate:
                await ReplayAsync(http, readers, command, body.Metadata, readers.Read(decision.Sequence));
                return;
            case Outcome.CurrencyUnknown or Outcome.AmountTooPrecise or Outcome.AmountTooLarge or Outcome.StorageFull:
                throw Problem.From(decision.Outcome, body.Currency);
            default:
                // A refusal is an everyday answer: written, not thrown.
                await Answer.WriteAsync(http, Refusal(decision, body.FromAccount, body.ToAccount, body.TransactionId, readers.State));
                return;
        }
    }

    static void ToCommand(BalanceTransferBody body, out Command command)
    {
        command = new Command
        {
            Kind = CommandKind.Transfer,
            Account = Query.Account("from_account", body.FromAccount),
            Counterparty = Query.Account("to_account", body.ToAccount),
        };
        (command.AmountDigits, int scale) = Query.PositiveAmount(body.Amount);
        command.AmountScale = (byte)scale;
        command.Currency = Query.Currency(body.Currency);
        command.TransactionId = Query.TransactionId(body.TransactionId);
        if (command.Account == command.Counterparty) throw new Problem("same_account", $"from_account and to_account are both '{body.FromAccount}'.");
        Erasable? description = Query.Description(body.Description), metadata = Query.Metadata(body.Metadata);
        if (description is not null || metadata is not null) command.Details = new CommandDetails { Description = description, Metadata = metadata };
        command.Pending = body.Pending == true;
        if (body.ExpiresIn is not int seconds) return;
        if (!command.Pending) throw new Problem("malformed_request", "expires_in is for holds: it needs \"pending\": true.");
        if (seconds is < 1 or > 31_536_000) throw new Problem("malformed_request", $"expires_in is {seconds}; it must be 1 to 31536000 seconds.");
        command.ExpiresInSeconds = seconds;
    }

    async Task CaptureAsync(HttpContext http)
    {
        CaptureBody body = await Body.ReadAsync(http, BodyJson.Default.CaptureBody);
        Command command = AboutOriginal(http, CommandKind.Capture, body.TransactionId);
        if (body.Amount is not null)
        {
            (command.AmountDigits, int scale) = Query.PositiveAmount(body.Amount);
            command.AmountScale = (byte)scale;
        }

        await EndHoldAsync(http, command);
    }

    async Task VoidAsync(HttpContext http)
    {
        VoidBody body = await Body.ReadAsync(http, BodyJson.Default.VoidBody);
        await EndHoldAsync(http, AboutOriginal(http, CommandKind.Void, body.TransactionId));
    }

    /// <summary>A command about the transfer that the path names, and the home that <c>?account=</c> may name.</summary>
    static Command AboutOriginal(HttpContext http, CommandKind kind, string transactionId)
    {
        Query.AllowParameters(http, "account");
        return new Command
        {
            Kind = kind,
            OriginalId = Query.TransactionId((string)http.Request.RouteValues["id"]!),
            TransactionId = Query.TransactionId(transactionId),
            Account = Query.Parameter(http, "account") is string home ? Query.Account("account", home) : default,
        };
    }

    async Task EndHoldAsync(HttpContext http, Command command)
    {
        Decision decision = await ExecuteAsync(command, Query.Timeout(http));
        EventReaders readers = Readers();
        switch (decision.Outcome)
        {
            case Outcome.Done:
                RecordedEvent ended = readers.Read(decision.Sequence);
                await Answer.WriteAsync(http, 200, json => WriteTransfer(json, ended, "completed", readers));
                return;
            case Outcome.Duplicate:
                await ReplayAsync(http, readers, command, null, readers.Read(decision.Sequence));
                return;
            case Outcome.TransferNotFound or Outcome.TransferAmbiguous or Outcome.StorageFull or Outcome.AmountTooPrecise or Outcome.AmountTooLarge:
                throw Problem.From(decision.Outcome, decision.Currency == 0 ? "" : readers.State.CurrencyCode(decision.Currency));
            default:
                RecordedEvent rejected = readers.Read(decision.Sequence);
                await Answer.WriteAsync(http, Refusal(rejected, readers));
                return;
        }
    }

    async ValueTask<Decision> ExecuteAsync(Command command, TimeSpan timeout)
    {
        CommandRequest request = _requests.TryTake(out CommandRequest? idle) ? idle : new CommandRequest(1);
        request.Commands[0] = command;
        RequestStatus status = await partition.SubmitAsync(request, timeout);
        // One that its caller gave up on may still be in the partition's hands: it is not used again.
        Decision decision = request.Decisions[0];
        if (request.IsReusable) _requests.Add(request);
        return status == RequestStatus.Answered ? decision : throw Problem.From(status, timeout);
    }

    /// <summary>The same meaning gets the original outcome, refusals included; another meaning is told what differs.</summary>
    async Task ReplayAsync(HttpContext http, EventReaders readers, Command command, JsonElement? metadata, RecordedEvent original)
    {
        List<string> differing = Differing(command, metadata, original, readers);
        string id = Answer.ToGuid(command.TransactionId).ToString();
        if (differing.Count > 0)
        {
            throw new Problem("transaction_id_reused", $"Transaction {id} was used before with another {string.Join(", ", differing)}. A new intent needs a new id.")
                .With("differing", differing).With("transaction_id", id);
        }

        http.Response.Headers["Idempotent-Replayed"] = "true";
        if (original.Event.Kind == EventKind.TransferRejected) await Answer.WriteAsync(http, Refusal(original, readers));
        else await Answer.WriteAsync(http, 200, json => WriteTransfer(json, original, original.Event.Kind == EventKind.Held ? "pending" : "completed", readers));
    }

    static List<string> Differing(in Command command, JsonElement? givenMetadata, RecordedEvent original, EventReaders readers)
    {
        ref readonly Event e = ref original.Event;
        State state = readers.State;
        CommandKind recorded = (e.Kind, e.Flags) switch
        {
            (EventKind.Captured, _) or (EventKind.TransferRejected, EventFlags.Capture) => CommandKind.Capture,
            (EventKind.Released, _) or (EventKind.TransferRejected, EventFlags.Void) => CommandKind.Void,
            _ => CommandKind.Transfer,
        };
        if (recorded != command.Kind) return ["operation"];
        List<string> differing = [];
        Attachment attachment = original.Attachment;
        bool sameAmount = Amount.ToMinor(command.AmountDigits, command.AmountScale, e.Currency == 0 ? 0 : state.Decimals(e.Currency), out Int128 minor) == Amount.ParseResult.Ok && minor == e.Amount;
        if (command.Kind != CommandKind.Transfer)
        {
            RecordedEvent about = readers.Read(e.Link);
            if (about.Event.TransactionId != command.OriginalId) differing.Add("original_id");
            // Without an amount, all that was held was meant.
            bool allMeant = command.AmountDigits == 0 && (about.Event.Kind != EventKind.Held || about.Event.Amount == e.Amount);
            if (command.Kind == CommandKind.Capture && !allMeant && !sameAmount && e.Currency != 0) differing.Add("amount");
            return differing;
        }

        if (!command.Account.Utf8.SequenceEqual(state.Names.Utf8(e.Account))) differing.Add("from_account");
        if (!command.Counterparty.Utf8.SequenceEqual(state.Names.Utf8(e.Counterparty))) differing.Add("to_account");
        if (!sameAmount) differing.Add("amount");
        if (command.Currency.ToString() != state.CurrencyCode(e.Currency)) differing.Add("currency");
        if (command.Pending != (e.Kind == EventKind.Held || (e.Kind == EventKind.TransferRejected && e.Flags == EventFlags.Pending))) differing.Add("pending");
        Int128 expiresIn = attachment.Integer(AttachmentTag.ExpiresAt) is Int128 at ? (at - original.TimeMicros) / 1_000_000 : 0;
        if (command.ExpiresInSeconds != expiresIn) differing.Add("expires_in");
        // A text that was erased cannot be compared any more: the rest decides.
        if (!IsErased(attachment, AttachmentTag.Description)
            && !(command.Details?.Description?.Utf8 ?? []).AsSpan().SequenceEqual(attachment.Erased(AttachmentTag.Description) ?? [])) differing.Add("description");
        if (!IsErased(attachment, AttachmentTag.Metadata) && !SameJson(givenMetadata, attachment.Erased(AttachmentTag.Metadata))) differing.Add("metadata");
        return differing;
    }

    static bool IsErased(Attachment attachment, AttachmentTag tag) => attachment.TryGet(tag, out _) && attachment.Erased(tag) is null;

    internal static bool SameJson(JsonElement? given, byte[]? recorded)
    {
        if (given is not JsonElement element || recorded is null) return given is null && recorded is null;
        using JsonDocument document = JsonDocument.Parse(recorded);
        return JsonElement.DeepEquals(element, document.RootElement);
    }

    Problem Refusal(in Decision decision, string from, string to, string transactionId, State state)
    {
        Balance about = new() { Posted = decision.Posted, Held = decision.Held, Incoming = decision.Incoming };
        return Problem.From(decision.Outcome, from, to, decision.Currency, decision.Amount, about, decision.Bound, state)
            .With("transaction_id", transactionId).With("position", Answer.Position(partition.Number, decision.LastSequence));
    }

    /// <summary>A refusal as it was recorded; the same as it was answered first.</summary>
    Problem Refusal(RecordedEvent rejected, EventReaders readers)
    {
        ref readonly Event e = ref rejected.Event;
        Decision decision = new()
        {
            Outcome = (Outcome)e.Code,
            LastSequence = rejected.Sequence,
            Amount = e.Amount,
            Currency = e.Currency,
            Posted = e.Posted,
            Held = e.Held,
            Incoming = rejected.Attachment.Integer(AttachmentTag.Incoming) ?? 0,
            Bound = rejected.Attachment.Integer(AttachmentTag.Bound) ?? 0,
        };
        Problem problem = Refusal(decision, NameOf(e.Account, readers.State), NameOf(e.Counterparty, readers.State), Answer.ToGuid(e.TransactionId).ToString(), readers.State);
        return e.Link == 0 ? problem : problem.With("original_id", Answer.ToGuid(readers.Read(e.Link).Event.TransactionId).ToString());
    }

    static string NameOf(uint account, State state) => account == 0 ? "" : state.Names[account].ToString();

    /// <param name="first">The event that the transaction id is remembered by.</param>
    void WriteTransfer(Utf8JsonWriter json, RecordedEvent first, string status, EventReaders readers)
    {
        ref readonly Event e = ref first.Event;
        // The refusal to capture what is no hold says only that: the parties are those of what it was about.
        RecordedEvent about = first;
        while (about.Event.Counterparty == 0) about = readers.Read(about.Event.Link);
        Answer.WriteTransfer(
            json, status, Answer.ToGuid(e.TransactionId).ToString(), NameOf(about.Event.Account, readers.State), NameOf(about.Event.Counterparty, readers.State),
            Amount.Format(about.Event.Amount, readers.State.Decimals(about.Event.Currency)), readers.State.CurrencyCode(about.Event.Currency),
            first.TimeMicros, partition.Number, LastOf(first));
        if (first.Attachment.Integer(AttachmentTag.ExpiresAt) is Int128 at && e.Kind == EventKind.Held) json.WriteString("expires_at", Answer.Time((long)at));
        if (e.Kind is EventKind.Captured or EventKind.Released || (e.Kind == EventKind.TransferRejected && e.Link != 0)) json.WriteString("original_id", Answer.ToGuid(readers.Read(e.Link).Event.TransactionId));
    }

    /// <summary>A debit and a capture have their credit right after them.</summary>
    static ulong LastOf(RecordedEvent first) => first.Event.Kind is EventKind.Debited or EventKind.Captured ? first.Sequence + 1 : first.Sequence;

    async Task GetAsync(HttpContext http)
    {
        Query.AllowParameters(http, "account");
        TimeSpan timeout = Query.Timeout(http);
        UInt128 id = Query.TransactionId((string)http.Request.RouteValues["id"]!);
        string? homeText = Query.Parameter(http, "account");
        AccountName? home = homeText is null ? null : Query.Account("account", homeText);

        ReadRequest<List<(ulong Sequence, Hold? Hold)>> read = new(state =>
            [.. Find(state, id, home).Select(sequence => (sequence, state.Holds.Find(sequence) is >= 0 and int index ? state.Holds[index] : (Hold?)null))]);
        RequestStatus status = await partition.SubmitAsync(read, timeout);
        if (status != RequestStatus.Answered) throw Problem.From(status, timeout);
        if (read.Result.Count == 0)
            throw new Problem("transfer_not_found", $"No transfer with id {Answer.ToGuid(id)}{(home is null ? "" : $" belongs to '{homeText}'")} was ever asked for.");
        EventReaders readers = Readers();
        if (read.Result.Count > 1)
        {
            throw new Problem("transfer_ambiguous", $"{read.Result.Count} accounts used the id {Answer.ToGuid(id)}. Name one with ?account=.")
                .With("accounts", read.Result.Select(one => HomeOf(readers.Read(one.Sequence), readers.State)).ToList());
        }

        RecordedEvent first = readers.Read(read.Result[0].Sequence);
        Hold? hold = read.Result[0].Hold;
        await Answer.WriteAsync(http, 200, json => WriteStory(json, first, hold, readers));
    }

    void WriteStory(Utf8JsonWriter json, RecordedEvent first, Hold? hold, EventReaders readers)
    {
        bool isRejected = first.Event.Kind == EventKind.TransferRejected;
        WriteTransfer(json, first, hold is Hold h ? EventJson.HoldStatusName(h.Status) : isRejected ? "rejected" : "completed", readers);
        if (first.Attachment.Erased(AttachmentTag.Description) is byte[] description) json.WriteString("description", description);
        if (first.Attachment.Erased(AttachmentTag.Metadata) is byte[] metadata) EventJson.WriteRaw(json, "metadata", metadata);
        if (isRejected)
        {
            Problem refusal = Refusal(first, readers);
            json.WriteString("code", refusal.Code);
            json.WriteNumber("http_status", refusal.Status);
            json.WriteString("detail", refusal.Message);
        }

        List<RecordedEvent> events = [];
        AddWithParts(events, first, readers);
        if (hold is { EndSequence: > 0 } ended) AddWithParts(events, readers.Read(ended.EndSequence), readers);
        if (events.Find(e => e.Event.Kind == EventKind.Captured) is { } capture && hold is not null) json.WriteString("captured_amount", Amount.Format(capture.Event.Amount, readers.State.Decimals(capture.Event.Currency)));
        json.WriteStartArray("events");
        foreach (RecordedEvent e in events) EventJson.Write(json, partition.Number, e, readers.State);
        json.WriteEndArray();
    }

    /// <summary>An event with those that were written with it: what a capture released before, the credit after.</summary>
    static void AddWithParts(List<RecordedEvent> events, RecordedEvent e, EventReaders readers)
    {
        if (e.Event.Kind == EventKind.Captured && readers.Read(e.Sequence - 1) is var before && before.Event.Kind == EventKind.Released && before.Event.Link == e.Event.Link) events.Add(before);
        events.Add(e);
        if (LastOf(e) != e.Sequence) events.Add(readers.Read(LastOf(e)));
    }

    static List<ulong> Find(State state, UInt128 id, AccountName? home)
    {
        if (home is not AccountName name) return [.. state.Ids.FindAll(id).Select(found => found.Sequence)];
        // Between two system accounts the id belongs to neither.
        uint number = name.IsSystem ? 0 : state.Names.Find(name);
        ulong sequence = number == 0 && !name.IsSystem ? 0 : state.Ids.Find(number, id);
        return sequence == 0 ? [] : [sequence];
    }

    static string HomeOf(RecordedEvent first, State state)
    {
        if (first.Event.Account == 0) return "";
        AccountName payer = state.Names[first.Event.Account];
        return (payer.IsSystem && first.Event.Counterparty != 0 ? state.Names[first.Event.Counterparty] : payer).ToString();
    }

    EventReaders Readers() => partition.Readers ?? throw Problem.From(RequestStatus.Unavailable, default);
}
