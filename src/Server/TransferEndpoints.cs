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
    }

    async Task TransferAsync(HttpContext http)
    {
        TimeSpan timeout = Query.Timeout(http);
        BalanceTransferBody body = await Body.ReadAsync(http, BodyJson.Default.BalanceTransferBody);
        CommandRequest request = _requests.TryTake(out CommandRequest? idle) ? idle : new CommandRequest(1);
        ToCommand(body, out request.Commands[0]);

        RequestStatus status = await partition.SubmitAsync(request, timeout);
        // One that its caller gave up on may still be in the partition's hands: it is not used again.
        Decision decision = request.Decisions[0];
        Command command = request.Commands[0];
        if (request.IsReusable) _requests.Add(request);
        if (status != RequestStatus.Answered) throw Problem.From(status, timeout);

        EventReaders readers = Readers();
        switch (decision.Outcome)
        {
            case Outcome.Done:
                await Answer.WriteAsync(http, 200, json => Answer.WriteTransfer(
                    json, "completed", body.TransactionId, body.FromAccount, body.ToAccount,
                    Amount.Format(decision.Amount, readers.State.Decimals(decision.Currency)), body.Currency,
                    decision.TimeMicros, partition.Number, decision.LastSequence));
                return;
            case Outcome.Duplicate:
                await ReplayAsync(http, readers, command, body, readers.Read(decision.Sequence));
                return;
            case Outcome.CurrencyUnknown or Outcome.AmountTooPrecise or Outcome.AmountTooLarge or Outcome.StorageFull:
                throw Problem.From(decision.Outcome, body.Currency);
            default:
                Balance about = new() { Posted = decision.Posted, Held = decision.Held, Incoming = decision.Incoming };
                // A refusal is an everyday answer: written, not thrown.
                await Answer.WriteAsync(http, Problem
                    .From(decision.Outcome, body.FromAccount, body.ToAccount, decision.Currency, decision.Amount, about, decision.Bound, readers.State)
                    .With("transaction_id", body.TransactionId).With("position", Answer.Position(partition.Number, decision.LastSequence)));
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
    }

    /// <summary>The same meaning gets the original outcome, refusals included; another meaning is told what differs.</summary>
    async Task ReplayAsync(HttpContext http, EventReaders readers, Command command, BalanceTransferBody body, RecordedEvent original)
    {
        List<string> differing = Differing(command, body, original, readers.State);
        if (differing.Count > 0)
        {
            throw new Problem("transaction_id_reused", $"Transaction {body.TransactionId} was used before with another {string.Join(", ", differing)}. A new intent needs a new id.")
                .With("differing", differing).With("transaction_id", body.TransactionId);
        }

        http.Response.Headers["Idempotent-Replayed"] = "true";
        if (original.Event.Kind == EventKind.TransferRejected) await Answer.WriteAsync(http, Refusal(original, readers.State));
        else await Answer.WriteAsync(http, 200, json => WriteTransfer(json, original, readers.State));
    }

    static List<string> Differing(in Command command, BalanceTransferBody body, RecordedEvent original, State state)
    {
        ref readonly Event e = ref original.Event;
        List<string> differing = [];
        if (!command.Account.Utf8.SequenceEqual(state.Names.Utf8(e.Account))) differing.Add("from_account");
        if (!command.Counterparty.Utf8.SequenceEqual(state.Names.Utf8(e.Counterparty))) differing.Add("to_account");
        if (Amount.ToMinor(command.AmountDigits, command.AmountScale, state.Decimals(e.Currency), out Int128 minor) != Amount.ParseResult.Ok || minor != e.Amount) differing.Add("amount");
        if (command.Currency.ToString() != state.CurrencyCode(e.Currency)) differing.Add("currency");
        Attachment attachment = original.Attachment;
        // A text that was erased cannot be compared any more: the rest decides.
        if (!IsErased(attachment, AttachmentTag.Description)
            && !(command.Details?.Description?.Utf8 ?? []).AsSpan().SequenceEqual(attachment.Erased(AttachmentTag.Description) ?? [])) differing.Add("description");
        if (!IsErased(attachment, AttachmentTag.Metadata) && !SameJson(body.Metadata, attachment.Erased(AttachmentTag.Metadata))) differing.Add("metadata");
        return differing;
    }

    static bool IsErased(Attachment attachment, AttachmentTag tag) => attachment.TryGet(tag, out _) && attachment.Erased(tag) is null;

    internal static bool SameJson(JsonElement? given, byte[]? recorded)
    {
        if (given is not JsonElement element || recorded is null) return given is null && recorded is null;
        using JsonDocument document = JsonDocument.Parse(recorded);
        return JsonElement.DeepEquals(element, document.RootElement);
    }

    Problem Refusal(RecordedEvent rejected, State state)
    {
        ref readonly Event e = ref rejected.Event;
        Balance about = new() { Posted = e.Posted, Held = e.Held, Incoming = rejected.Attachment.Integer(AttachmentTag.Incoming) ?? 0 };
        return Problem.From(
                (Outcome)e.Code, state.Names[e.Account].ToString(), state.Names[e.Counterparty].ToString(), e.Currency, e.Amount, about,
                rejected.Attachment.Integer(AttachmentTag.Bound), state)
            .With("transaction_id", Answer.ToGuid(e.TransactionId).ToString()).With("position", Answer.Position(partition.Number, rejected.Sequence));
    }

    /// <param name="first">The debited event of a completed transfer; its credited event comes right after it.</param>
    void WriteTransfer(Utf8JsonWriter json, RecordedEvent first, State state)
    {
        ref readonly Event e = ref first.Event;
        bool isRejected = e.Kind == EventKind.TransferRejected;
        Answer.WriteTransfer(
            json, isRejected ? "rejected" : "completed", Answer.ToGuid(e.TransactionId).ToString(), state.Names[e.Account].ToString(), state.Names[e.Counterparty].ToString(),
            Amount.Format(e.Amount, state.Decimals(e.Currency)), state.CurrencyCode(e.Currency), first.TimeMicros, partition.Number, isRejected ? first.Sequence : first.Sequence + 1);
    }

    async Task GetAsync(HttpContext http)
    {
        Query.AllowParameters(http, "account");
        TimeSpan timeout = Query.Timeout(http);
        UInt128 id = Query.TransactionId((string)http.Request.RouteValues["id"]!);
        string? homeText = Query.Parameter(http, "account");
        AccountName? home = homeText is null ? null : Query.Account("account", homeText);

        ReadRequest<List<ulong>> read = new(state => Find(state, id, home));
        RequestStatus status = await partition.SubmitAsync(read, timeout);
        if (status != RequestStatus.Answered) throw Problem.From(status, timeout);
        if (read.Result.Count == 0)
            throw new Problem("transfer_not_found", $"No transfer with id {Answer.ToGuid(id)}{(home is null ? "" : $" belongs to '{homeText}'")} was ever asked for.");
        EventReaders readers = Readers();
        if (read.Result.Count > 1)
        {
            throw new Problem("transfer_ambiguous", $"{read.Result.Count} accounts used the id {Answer.ToGuid(id)}. Name one with ?account=.")
                .With("accounts", read.Result.Select(sequence => HomeOf(readers.Read(sequence), readers.State)).ToList());
        }

        RecordedEvent first = readers.Read(read.Result[0]);
        await Answer.WriteAsync(http, 200, json =>
        {
            WriteTransfer(json, first, readers.State);
            if (first.Attachment.Erased(AttachmentTag.Description) is byte[] description) json.WriteString("description", description);
            if (first.Attachment.Erased(AttachmentTag.Metadata) is byte[] metadata) EventJson.WriteRaw(json, "metadata", metadata);
            if (first.Event.Kind == EventKind.TransferRejected)
            {
                Problem refusal = Refusal(first, readers.State);
                json.WriteString("code", refusal.Code);
                json.WriteNumber("http_status", refusal.Status);
                json.WriteString("detail", refusal.Message);
            }

            json.WriteStartArray("events");
            EventJson.Write(json, partition.Number, first, readers.State);
            if (first.Event.Kind == EventKind.Debited) EventJson.Write(json, partition.Number, readers.Read(first.Sequence + 1), readers.State);
            json.WriteEndArray();
        });
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
        AccountName payer = state.Names[first.Event.Account];
        return (payer.IsSystem ? state.Names[first.Event.Counterparty] : payer).ToString();
    }

    EventReaders Readers() => partition.Readers ?? throw Problem.From(RequestStatus.Unavailable, default);
}
