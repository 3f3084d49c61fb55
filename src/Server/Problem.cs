using System.Collections.Frozen;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>
/// An answer that is not the one asked for, as API.md's table of errors has it; thrown where the shape of a request is wrong.
/// </summary>
/// <param name="code">One of <see cref="Codes"/>; it decides the HTTP status.</param>
/// <param name="outcome"><c>none</c>, <c>applied</c> or <c>unknown</c>: what became of the request.</param>
public sealed class Problem(string code, string detail, string outcome = "none") : Exception(detail)
{
    /// <summary>One code has one HTTP status everywhere.</summary>
    public static readonly FrozenDictionary<string, (int Status, string Title)> Codes = new Dictionary<string, (int, string)>
    {
        ["malformed_request"] = (400, "The request is malformed"),
        ["account_malformed"] = (400, "An account's name is malformed"),
        ["amount_malformed"] = (400, "The amount is malformed"),
        ["amount_not_positive"] = (400, "The amount is not positive"),
        ["amount_too_precise"] = (400, "The amount has more decimals than its currency"),
        ["amount_too_large"] = (400, "The amount is too large"),
        ["currency_unknown"] = (400, "The currency is not known"),
        ["transaction_id_malformed"] = (400, "The transaction id is malformed"),
        ["same_account"] = (400, "Payer and payee are the same account"),
        ["too_many_transfers"] = (400, "There are too many transfers in one request"),
        ["too_many_postings"] = (400, "The transaction has too many postings"),
        ["time_in_future"] = (400, "The time is in the future"),
        ["forbidden"] = (403, "The caller may not do this"),
        ["from_account_not_found"] = (404, "The payer's account does not exist"),
        ["to_account_not_found"] = (404, "The payee's account does not exist"),
        ["account_not_found"] = (404, "The account does not exist"),
        ["transfer_not_found"] = (404, "No transfer has this id"),
        ["route_not_found"] = (404, "There is nothing at this path"),
        ["method_not_allowed"] = (405, "This path does not take this method"),
        ["transaction_id_reused"] = (409, "The transaction id was used for something else"),
        ["transfer_ambiguous"] = (409, "Several accounts used this id"),
        ["hold_already_captured"] = (409, "The hold was captured already"),
        ["hold_already_voided"] = (409, "The hold was voided already"),
        ["hold_expired"] = (409, "The hold has expired"),
        ["account_exists"] = (409, "The account exists already"),
        ["currency_exists"] = (409, "The currency exists already with other decimals"),
        ["aborted"] = (409, "An operator ended it before it was decided"),
        ["already_decided"] = (409, "It is decided already"),
        ["already_reversed"] = (409, "All of it was reversed already"),
        ["request_too_large"] = (413, "The request is too large"),
        ["unsupported_media_type"] = (415, "The request is not application/json"),
        ["misdirected_request"] = (421, "The request names another host"),
        ["insufficient_funds"] = (422, "The payer has too little money"),
        ["below_min_balance"] = (422, "The payer's balance would fall below its minimum"),
        ["exceeds_max_balance"] = (422, "The payee's balance would exceed its maximum"),
        ["from_account_frozen"] = (422, "The payer's account is frozen"),
        ["to_account_frozen"] = (422, "The payee's account is frozen"),
        ["from_account_closed"] = (422, "The payer's account is closed"),
        ["to_account_closed"] = (422, "The payee's account is closed"),
        ["not_a_hold"] = (422, "The transfer is not a hold"),
        ["exceeds_held_amount"] = (422, "The amount is more than is held"),
        ["exceeds_reversible_amount"] = (422, "The amount is more than can be reversed"),
        ["balance_not_zero"] = (422, "The account still has money"),
        ["balance_overflow"] = (422, "A balance would exceed what the ledger can hold"),
        ["internal_error"] = (500, "The server failed"),
        ["overloaded"] = (503, "Too much is waiting already"),
        ["partition_unavailable"] = (503, "The partition is not available"),
        ["view_unavailable"] = (503, "The view is not available"),
        ["storage_full"] = (503, "The storage is full"),
        ["shutting_down"] = (503, "The server is shutting down"),
        ["deadline_exceeded"] = (504, "The deadline passed"),
    }.ToFrozenDictionary();

    public string Code { get; } = code;

    public string Outcome { get; } = outcome;

    public string Type => $"urn:purse:problem:{Code}";

    public int Status => Codes[Code].Status;

    /// <summary>Whether the same id may be sent again.</summary>
    public bool Retryable => Status >= 500;

    /// <summary>The figures that explain it, and whatever else its code promises.</summary>
    public List<(string Name, object? Value)> Members { get; } = [];

    public Problem With(string name, object? value)
    {
        Members.Add((name, value));
        return this;
    }

    /// <summary>Whether something of the request may have been recorded.</summary>
    public static bool IsUnknown(RequestStatus status) => status is RequestStatus.UnavailableUnknown or RequestStatus.DeadlineUnknown;

    /// <summary>What a request's status means where it was not answered.</summary>
    public static Problem From(RequestStatus status, TimeSpan timeout) => status switch
    {
        RequestStatus.Overloaded => new Problem("overloaded", "The command queue is full. This request left nothing behind; send the same again in a moment."),
        RequestStatus.ShuttingDown => new Problem("shutting_down", "This request left nothing behind; send the same again once the server is back."),
        RequestStatus.Unavailable => new Problem("partition_unavailable", "The partition is not serving now. This request left nothing behind; send the same again."),
        RequestStatus.UnavailableUnknown => new Problem(
            "partition_unavailable", "The partition stopped with the request under way. Ask by its id what became of it, or send the same again.", "unknown"),
        RequestStatus.DeadlineNotStarted => new Problem(
            "deadline_exceeded", $"The request waited {timeout.TotalMilliseconds:0} ms in the queue and was not begun; it left nothing behind, and will not. Send the same again."),
        _ => new Problem(
            "deadline_exceeded", $"No answer within {timeout.TotalMilliseconds:0} ms, but the request is under way. Ask by its id what became of it, or send the same again.", "unknown"),
    };

    /// <summary>The refusal of a transfer; the same where it is decided and where it is answered again.</summary>
    public static Problem From(Outcome outcome, string from, string to, uint currency, Int128 amount, in Balance about, Int128? bound, State state)
    {
        int decimals = currency == 0 ? 0 : state.Decimals(currency);
        string money = $"{Amount.Format(amount, decimals)} {(currency == 0 ? "" : state.CurrencyCode(currency))}";
        string Format(Int128 minor) => Amount.Format(minor, decimals);
        switch (outcome)
        {
            case Ledger.Outcome.FromAccountNotFound:
                return new Problem("from_account_not_found", $"No account '{from}' was opened.");
            case Ledger.Outcome.FromAccountClosed:
                return new Problem("from_account_closed", $"Account '{from}' is closed.");
            case Ledger.Outcome.FromAccountFrozen:
                return new Problem("from_account_frozen", $"Account '{from}' is frozen for debits.");
            case Ledger.Outcome.ToAccountNotFound:
                return new Problem("to_account_not_found", $"No account '{to}' was opened.");
            case Ledger.Outcome.ToAccountClosed:
                return new Problem("to_account_closed", $"Account '{to}' is closed.");
            case Ledger.Outcome.ToAccountFrozen:
                return new Problem("to_account_frozen", $"Account '{to}' is frozen for credits.");
            case Ledger.Outcome.InsufficientFunds:
                return new Problem("insufficient_funds", $"Account '{from}' has {Format(about.Available)} available; {money} is required.")
                    .With("available", Format(about.Available)).With("required", Format(amount)).With("posted", Format(about.Posted)).With("held", Format(about.Held));
            case Ledger.Outcome.BelowMinBalance:
                return new Problem("below_min_balance", $"Account '{from}' has {Format(about.Available)} available and must keep {Format(bound ?? 0)}; {money} is required.")
                    .With("available", Format(about.Available)).With("required", Format(amount)).With("min_balance", Format(bound ?? 0))
                    .With("posted", Format(about.Posted)).With("held", Format(about.Held));
            case Ledger.Outcome.ExceedsMaxBalance:
                return new Problem("exceeds_max_balance", $"Account '{to}' has {Format(about.Posted + about.Incoming)} and may have {Format(bound ?? 0)}; {money} more is too much.")
                    .With("posted", Format(about.Posted)).With("incoming", Format(about.Incoming)).With("required", Format(amount)).With("max_balance", Format(bound ?? 0));
            case Ledger.Outcome.NotAHold:
                return new Problem("not_a_hold", "The transfer moved its money at once or was refused: there is nothing to capture or void.");
            case Ledger.Outcome.HoldAlreadyCaptured:
                return new Problem("hold_already_captured", "The hold was captured already; a hold is captured once.");
            case Ledger.Outcome.HoldAlreadyVoided:
                return new Problem("hold_already_voided", "The hold was voided already; its money was released.");
            case Ledger.Outcome.HoldExpired:
                return new Problem("hold_expired", "The hold has expired; its money was released.");
            case Ledger.Outcome.ExceedsHeldAmount:
                return new Problem("exceeds_held_amount", $"{Format(bound ?? 0)} is held; {money} is required.").With("held_amount", Format(bound ?? 0)).With("required", Format(amount));
            case Ledger.Outcome.AlreadyReversed:
                return new Problem("already_reversed", "All that was moved was reversed already.");
            case Ledger.Outcome.ExceedsReversibleAmount:
                string reversible = bound == 0 ? "It moved nothing itself: holds, voids and refusals are not reversed, and of a captured hold the capture is, by its own id" : $"{Format(bound ?? 0)} can still be reversed";
                return new Problem("exceeds_reversible_amount", $"{reversible}; {money} is required.").With("reversible_amount", Format(bound ?? 0)).With("required", Format(amount));
            case Ledger.Outcome.Aborted:
                return new Problem("aborted", "An operator ended the transfer between partitions before it was decided: no money moved. A new intent needs a new id.");
            case Ledger.Outcome.BalanceOverflow:
                return new Problem("balance_overflow", $"No balance may pass {Format(bound ?? 0)}; {money} would.")
                    .With("posted", Format(about.Posted)).With("required", Format(amount)).With("bound", Format(bound ?? 0));
            default:
                throw new ArgumentOutOfRangeException(nameof(outcome), outcome, "not a refusal of a transfer");
        }
    }

    /// <summary>Outcomes that nothing records.</summary>
    public static Problem From(Outcome outcome, string currency) => outcome switch
    {
        Ledger.Outcome.CurrencyUnknown => new Problem("currency_unknown", $"'{currency}' is not an ISO 4217 code with minor units, nor registered here."),
        Ledger.Outcome.AmountTooPrecise => new Problem("amount_too_precise", $"The amount has more decimals than {currency} has."),
        Ledger.Outcome.TransferNotFound => new Problem("transfer_not_found", "No transfer with this id was ever asked for. Nothing was recorded."),
        Ledger.Outcome.TransferAmbiguous => new Problem("transfer_ambiguous", "Several accounts used this id. Name one with ?account=. Nothing was recorded."),
        Ledger.Outcome.AmountNotPositive => new Problem("amount_not_positive", "The amount must be greater than 0."),
        Ledger.Outcome.AmountTooLarge => new Problem("amount_too_large", "An amount is less than 10^30 minor units of its currency."),
        Ledger.Outcome.SameAccount => new Problem("same_account", "Payer and payee are the same account."),
        Ledger.Outcome.Overloaded => new Problem("overloaded", "As many transfers between partitions are under way as may be. This request left nothing behind; send the same again in a moment."),
        Ledger.Outcome.StorageFull => new Problem("storage_full", "There is no room on the storage. This request left nothing behind; send the same again once there is."),
        _ => throw new ArgumentOutOfRangeException(nameof(outcome), outcome, "not an outcome that nothing records"),
    };
}
