using System.Text.Json;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>What a command came to: answers of the moment, and the same answers given again from the journal.</summary>
sealed partial class TransferEndpoints
{
    /// <summary>A refusal, or what the journal recorded.</summary>
    readonly record struct Result(Problem? Problem, RecordedEvent? Recorded, bool IsReplayed);

    /// <summary>Of a transfer that was not done just now.</summary>
    static Result ToResult(BalanceTransferBody body, in Command command, in Decision decision, EventReaders readers)
    {
        switch (decision.Outcome)
        {
            case Outcome.Duplicate:
                return Replay(command, body.Metadata, readers.ReadDecision(decision.Sequence), readers);
            case < Outcome.FromAccountNotFound or >= Outcome.StorageFull:
                return new Result(Problem.From(decision.Outcome, body.Currency), null, false);
            default:
                Problem refusal = Refusal(decision, body.FromAccount, body.ToAccount, command.TransactionId, readers);
                return new Result(command.DryRun ? refusal.With("dry_run", true) : refusal, null, false);
        }
    }

    static Result ToResult(RecordedEvent recorded, bool isReplayed, EventReaders readers) =>
        recorded.Event.Kind == EventKind.TransferRejected ? new Result(Refusal(recorded, readers), null, isReplayed) : new Result(null, recorded, isReplayed);

    /// <summary>The same meaning gets the original outcome, refusals included; another meaning is told what differs.</summary>
    static Result Replay(in Command command, JsonElement? metadata, RecordedEvent original, EventReaders readers)
    {
        List<string> differing = Differing(command, metadata, original, readers);
        if (differing.Count == 0) return ToResult(original, isReplayed: true, readers);
        string id = Answer.ToGuid(command.TransactionId).ToString();
        Problem problem = new("transaction_id_reused", $"Transaction {id} was used before with another {string.Join(", ", differing)}. A new intent needs a new id.");
        return new Result(problem.With("differing", differing).With("transaction_id", id), null, false);
    }

    static List<string> Differing(in Command command, JsonElement? givenMetadata, RecordedEvent original, EventReaders readers)
    {
        ref readonly Event e = ref original.Event;
        State state = readers.State;
        if (KindOf(e) != command.Kind) return ["operation"];
        List<string> differing = [];
        Attachment attachment = original.Attachment;
        bool sameAmount = Amount.ToMinor(command.AmountDigits, command.AmountScale, e.Currency == 0 ? 0 : state.Decimals(e.Currency), out Int128 minor) == Amount.ParseResult.Ok
            && minor == (attachment.Integer(AttachmentTag.RequestedAmount) ?? e.Amount);
        switch (command.Kind)
        {
            case CommandKind.Transfer:
                if (!command.Account.Utf8.SequenceEqual(state.Names.Utf8(e.Account))) differing.Add("from_account");
                if (!command.Counterparty.Utf8.SequenceEqual(state.Names.Utf8(e.Counterparty))) differing.Add("to_account");
                if (!sameAmount) differing.Add("amount");
                if (command.Currency.ToString() != state.CurrencyCode(e.Currency)) differing.Add("currency");
                if (command.Pending != (e.Kind == EventKind.Held || (e.Flags & EventFlags.Pending) != 0)) differing.Add("pending");
                if (command.UpTo != ((e.Flags & EventFlags.UpTo) != 0)) differing.Add("up_to");
                Int128 expiresIn = attachment.Integer(AttachmentTag.ExpiresAt) is Int128 at ? (at - original.AskedMicros) / 1_000_000 : 0;
                if (command.ExpiresInSeconds != expiresIn) differing.Add("expires_in");
                break;
            case CommandKind.Transaction:
                if (!IsSame(command.Details!.Postings!, readers.MovementsOf(original), state)) differing.Add("postings");
                break;
            default:
                RecordedEvent about = readers.ReadDecision(e.Link);
                if (about.Event.TransactionId != command.OriginalId) differing.Add("original_id");
                // Without an amount, all that was held was meant.
                bool allMeant = command.AmountDigits == 0 && (about.Event.Kind != EventKind.Held || about.Event.Amount == e.Amount);
                bool sameAsWritten = command.AmountDigits == (attachment.Integer(AttachmentTag.RequestedAmount) ?? 0) && command.AmountScale == (attachment.Integer(AttachmentTag.Decimals) ?? 0);
                if (command.Kind == CommandKind.Capture && (e.Currency == 0 ? !sameAsWritten : !allMeant && !sameAmount)) differing.Add("amount");
                // Without an amount, all that was left was meant, which another reversal may have changed since.
                bool wasGiven = attachment.TryGet(AttachmentTag.RequestedAmount, out _);
                if (command.Kind == CommandKind.Reverse && (wasGiven != (command.AmountDigits != 0) || (wasGiven && !sameAmount))) differing.Add("amount");
                break;
        }

        // A text that was erased cannot be compared any more: the rest decides.
        if (!IsErased(attachment, AttachmentTag.Description)
            && !(command.Details?.Description?.Utf8 ?? []).AsSpan().SequenceEqual(attachment.Erased(AttachmentTag.Description) ?? [])) differing.Add("description");
        if (!IsErased(attachment, AttachmentTag.Metadata) && !SameJson(givenMetadata, attachment.Erased(AttachmentTag.Metadata))) differing.Add("metadata");
        return differing;
    }

    /// <summary>What was asked for, by the event that its id is remembered by.</summary>
    static CommandKind KindOf(in Event e)
    {
        if ((e.Flags & EventFlags.Reversal) != 0) return CommandKind.Reverse;
        if ((e.Flags & EventFlags.Posting) != 0) return CommandKind.Transaction;
        if (e.Kind == EventKind.Captured || (e.Flags & EventFlags.Capture) != 0) return CommandKind.Capture;
        return e.Kind == EventKind.Released || (e.Flags & EventFlags.Void) != 0 ? CommandKind.Void : CommandKind.Transfer;
    }

    static bool IsSame(Posting[] given, Movement[] recorded, State state)
    {
        if (given.Length != recorded.Length) return false;
        for (int i = 0; i < given.Length; i++)
        {
            (uint payer, uint payee, uint currency, Int128 amount) = recorded[i];
            bool isSame = given[i].Account.Utf8.SequenceEqual(state.Names.Utf8(payer)) && given[i].Counterparty.Utf8.SequenceEqual(state.Names.Utf8(payee))
                && given[i].Currency.ToString() == state.CurrencyCode(currency)
                && Amount.ToMinor(given[i].AmountDigits, given[i].AmountScale, state.Decimals(currency), out Int128 minor) == Amount.ParseResult.Ok && minor == amount;
            if (!isSame) return false;
        }

        return true;
    }

    static bool IsErased(Attachment attachment, AttachmentTag tag) => attachment.TryGet(tag, out _) && attachment.Erased(tag) is null;

    internal static bool SameJson(JsonElement? given, byte[]? recorded)
    {
        if (given is not JsonElement element || recorded is null) return given is null && recorded is null;
        using JsonDocument document = JsonDocument.Parse(recorded);
        return JsonElement.DeepEquals(element, document.RootElement);
    }

    static Problem Refusal(in Decision decision, string from, string to, UInt128 transactionId, EventReaders readers)
    {
        DecisionDetails why = decision.Details ?? DecisionDetails.None;
        Balance about = new() { Posted = why.Posted, Held = why.Held, Incoming = why.Incoming };
        return Problem.From(decision.Outcome, from, to, decision.Currency, decision.Amount, about, why.Bound, readers.State)
            .With("transaction_id", Answer.ToGuid(transactionId).ToString()).With("position", Answer.Position(readers.Partition, decision.LastSequence));
    }

    /// <summary>A refusal as it was recorded; the same as it was answered first.</summary>
    static Problem Refusal(RecordedEvent rejected, EventReaders readers)
    {
        ref readonly Event e = ref rejected.Event;
        Decision decision = new()
        {
            Outcome = (Outcome)e.Code,
            LastSequence = rejected.Sequence,
            Amount = e.Amount,
            Currency = e.Currency,
            Details = new DecisionDetails
            {
                Posted = e.Posted,
                Held = e.Held,
                Incoming = rejected.Attachment.Integer(AttachmentTag.Incoming) ?? 0,
                Bound = rejected.Attachment.Integer(AttachmentTag.Bound) ?? 0,
            },
        };
        Problem problem = Refusal(decision, NameOf(e.Account, readers.State), NameOf(e.Counterparty, readers.State), e.TransactionId, readers);
        if (e.Count > 0) problem.With("posting", (int)e.Index);
        return e.Link == 0 ? problem : problem.With("original_id", Answer.ToGuid(readers.ReadDecision(e.Link).Event.TransactionId).ToString());
    }

    static string NameOf(uint account, State state) => account == 0 ? "" : state.Names[account].ToString();

    /// <summary>A transfer that was done just now, or would be.</summary>
    static void WriteTransfer(Utf8JsonWriter json, BalanceTransferBody body, in Command command, in Decision decision, EventReaders readers)
    {
        Answer.WriteTransfer(
            json, command.Pending ? "pending" : "completed", Answer.ToGuid(command.TransactionId), body.FromAccount, body.ToAccount,
            Amount.Format(decision.Amount, readers.State.Decimals(decision.Currency)), body.Currency,
            decision.TimeMicros, PositionOf(decision, readers));
        if (command.ExpiresInSeconds != 0) json.WriteString("expires_at", Answer.Time((decision.Details is { PreparedMicros: not 0 and long preparedMicros } ? preparedMicros : decision.TimeMicros) + command.ExpiresInSeconds * 1_000_000L));
        if (command.DryRun) json.WriteBoolean("dry_run", true);
    }

    static void WriteTransaction(Utf8JsonWriter json, TransactionBody body, in Command command, in Decision decision, EventReaders readers)
    {
        json.WriteString("transaction_id", Answer.ToGuid(command.TransactionId));
        json.WriteString("status", "completed");
        json.WriteStartArray("postings");
        for (int i = 0; i < body.Postings.Length; i++)
        {
            Posting posting = command.Details!.Postings![i];
            readers.State.TryCurrency(posting.Currency, out _, out int decimals);
            Amount.ToMinor(posting.AmountDigits, posting.AmountScale, decimals, out Int128 amount);
            Answer.WritePosting(json, body.Postings[i].FromAccount, body.Postings[i].ToAccount, Amount.Format(amount, decimals), body.Postings[i].Currency);
        }

        json.WriteEndArray();
        json.WriteString("completed_at", Answer.Time(decision.TimeMicros));
        json.WriteString("position", PositionOf(decision, readers));
        if (command.DryRun) json.WriteBoolean("dry_run", true);
    }

    /// <summary>A transfer as the journal has it, as it was answered first.</summary>
    static void WriteTransfer(Utf8JsonWriter json, RecordedEvent first, EventReaders readers) => WriteTransfer(json, first, first.Event.Kind == EventKind.Held ? "pending" : "completed", readers);

    /// <param name="first">The event that the transaction id is remembered by.</param>
    static void WriteTransfer(Utf8JsonWriter json, RecordedEvent first, string status, EventReaders readers)
    {
        ref readonly Event e = ref first.Event;
        State state = readers.State;
        Movement[] movements = readers.MovementsOf(first);
        if (e.Count == 0)
        {
            (uint payer, uint payee, uint currency, Int128 amount) = movements[0];
            Answer.WriteTransfer(
                json, status, Answer.ToGuid(e.TransactionId), NameOf(payer, state), NameOf(payee, state),
                Amount.Format(amount, state.Decimals(currency)), state.CurrencyCode(currency), first.TimeMicros, PositionOf(first, readers));
        }
        else
        {
            json.WriteString("transaction_id", Answer.ToGuid(e.TransactionId));
            json.WriteString("status", status);
            EventJson.WritePostings(json, movements, state);
            json.WriteString("completed_at", Answer.Time(first.TimeMicros));
            json.WriteString("position", PositionOf(first, readers));
        }

        if (first.Attachment.Integer(AttachmentTag.ExpiresAt) is Int128 at && e.Kind == EventKind.Held) json.WriteString("expires_at", Answer.Time((long)at));
        if (e.Link != 0) json.WriteString("original_id", Answer.ToGuid(readers.ReadDecision(e.Link).Event.TransactionId));
    }

    static string PositionOf(in Decision decision, EventReaders readers) => decision.Details?.Parts is { } parts ? Answer.Position(parts) : Answer.Position(readers.Partition, decision.LastSequence);

    static string PositionOf(RecordedEvent first, EventReaders readers) => first.Parts.Length > 0 ? Answer.Position(first.Parts) : Answer.Position(readers.Partition, LastOf(first));

    /// <summary>Debits have their credits right after them, and so has a capture.</summary>
    static ulong LastOf(RecordedEvent first) => first.Event.Kind is EventKind.Debited or EventKind.Captured
        ? first.Sequence + 2 * (ulong)Math.Max((int)first.Event.Count, 1) - 1
        : first.Sequence;
}
