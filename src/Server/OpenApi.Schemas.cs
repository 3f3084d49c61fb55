using System.Text.Json.Nodes;
using System.Text.Json.Serialization.Metadata;

namespace Purse.Server;

/// <summary>What answers hold, the members of requests in words, and the examples.</summary>
public static partial class OpenApi
{
    const string Introduction =
        "Money is a decimal string in the currency's major unit, never a JSON number. Times are RFC 3339 in UTC with microseconds. Unknown and doubled members are refused. " +
        "Every refusal is `application/problem+json` with a `code`; `retryable` says whether the same id may be sent again, `outcome` what became of the request: `none`, `applied` or `unknown`. " +
        "A refusal that depends on state (404, 422, `hold_*`, `already_reversed`) is final under its `transaction_id`. " +
        "Accounts with a leading `@` are system accounts: they stand for money outside, need no opening and may go below zero.";

    const string TransferRequestExample =
        """{"from_account": "alice", "to_account": "bob", "amount": "12.34", "currency": "USD", "transaction_id": "0198c0de-0000-7000-8000-000000000001", "description": "lunch", "metadata": {"order": "A-17"}}""";

    const string TransferExample =
        """{"transaction_id": "0198c0de-0000-7000-8000-000000000001", "status": "completed", "from_account": "alice", "to_account": "bob", "amount": "12.34", "currency": "USD", "completed_at": "2026-11-23T04:00:00.123456Z", "position": "0:1234"}""";

    const string RejectedExample =
        """{"transaction_id": "0198c0de-0000-7000-8000-000000000002", "status": "rejected", "code": "to_account_not_found", "http_status": 404, "detail": "No account 'bob' was opened.", "retryable": false, "outcome": "none", "position": "0:1235"}""";

    const string TransactionRequestExample =
        """{"transaction_id": "0198c0de-0000-7000-8000-000000000001", "postings": [{"from_account": "alice", "to_account": "shop", "amount": "12.34", "currency": "USD"}, {"from_account": "shop", "to_account": "@fees", "amount": "0.34", "currency": "USD"}]}""";

    const string TransactionExample =
        """{"transaction_id": "0198c0de-0000-7000-8000-000000000001", "status": "completed", "postings": [{"from_account": "alice", "to_account": "shop", "amount": "12.34", "currency": "USD"}, {"from_account": "shop", "to_account": "@fees", "amount": "0.34", "currency": "USD"}], "completed_at": "2026-11-23T04:00:00.123456Z", "position": "0:1234"}""";

    const string CaptureExample =
        """{"transaction_id": "0198c0de-0000-7000-8000-000000000003", "status": "completed", "from_account": "alice", "to_account": "shop", "amount": "10.00", "currency": "USD", "completed_at": "2026-11-23T04:00:00.123456Z", "position": "0:1238", "original_id": "0198c0de-0000-7000-8000-000000000001"}""";

    const string ReversalExample =
        """{"transaction_id": "0198c0de-0000-7000-8000-000000000004", "status": "completed", "from_account": "bob", "to_account": "alice", "amount": "2.34", "currency": "USD", "completed_at": "2026-11-23T04:00:00.123456Z", "position": "0:1240", "original_id": "0198c0de-0000-7000-8000-000000000001"}""";

    const string EventExample =
        """{"position": "0:1233", "time": "2026-11-23T04:00:00.123456Z", "kind": "debited", "account": "alice", "counterparty": "bob", "currency": "USD", "amount": "12.34", "posted": "87.66", "held": "0.00", "transaction_id": "0198c0de-0000-7000-8000-000000000001", "previous": "0:1200"}""";

    const string StoryExample =
        $$"""{"transaction_id": "0198c0de-0000-7000-8000-000000000001", "status": "completed", "from_account": "alice", "to_account": "bob", "amount": "12.34", "currency": "USD", "completed_at": "2026-11-23T04:00:00.123456Z", "position": "0:1234", "events": [{{EventExample}}]}""";

    const string AccountExample =
        """{"account": "alice", "status": "open", "limits": {"USD": {"min_balance": "-100.00", "max_balance": "1000.00"}}, "metadata": {"tier": "gold"}, "balances": {"USD": {"posted": "87.66", "held": "0.00", "available": "87.66"}}, "position": "0:1234"}""";

    const string FoundAccountsExample =
        """{"accounts": [{"account": "alice", "status": "open", "limits": {}, "metadata": {"tier": "gold"}, "balances": {"USD": {"posted": "87.66", "held": "0.00", "available": "87.66"}}}], "next_cursor": null, "source": "view", "lag_ms": 0}""";

    const string FoundTransfersExample =
        """{"transfers": [{"transaction_id": "0198c0de-0000-7000-8000-000000000001", "status": "completed", "from_account": "alice", "to_account": "bob", "amount": "12.34", "currency": "USD", "completed_at": "2026-11-23T04:00:00.123456Z", "position": "0:1234", "posting": 0, "metadata": {"order": "A-17"}}], "next_cursor": null, "source": "view", "lag_ms": 0}""";

    const string InDoubtExample =
        """{"prepared_at": "0:12", "transaction_id": "0198c0de-0000-7000-8000-000000000001", "role": "coordinator", "coordinator": "0:12", "state": "prepared", "since": "2026-11-23T04:00:00.123456Z", "age_ms": 5120, "waits_for": [5], "from_account": "alice", "to_account": "bob", "amount": "12.34", "currency": "USD", "postings_count": 1}""";

    const string BalanceExample = """{"account": "alice", "currency": "USD", "posted": "87.66", "held": "0.00", "available": "87.66", "position": "0:1234"}""";

    const string RefusedExample = "\"transaction_id\": \"0198c0de-0000-7000-8000-000000000001\", \"position\": \"0:1235\"";
    const string OriginalExample = "\"original_id\": \"0198c0de-0000-7000-8000-000000000003\"";

    /// <summary>What the codes say in full, with the figures that explain them.</summary>
    static readonly Dictionary<string, (string Detail, string Figures)> ProblemExamples = new(StringComparer.Ordinal)
    {
        ["from_account_not_found"] = ("No account 'alice' was opened.", $$"""{ {{RefusedExample}} }"""),
        ["to_account_not_found"] = ("No account 'bob' was opened.", $$"""{ {{RefusedExample}} }"""),
        ["insufficient_funds"] = ("Account 'alice' has 10.00 available; 12.34 USD is required.", $$"""{"available": "10.00", "required": "12.34", "posted": "30.00", "held": "20.00", {{RefusedExample}} }"""),
        ["below_min_balance"] = ("Account 'alice' has 10.00 available and must keep 5.00; 12.34 USD is required.", $$"""{"available": "10.00", "required": "12.34", "min_balance": "5.00", "posted": "10.00", "held": "0.00", {{RefusedExample}} }"""),
        ["exceeds_max_balance"] = ("Account 'bob' has 995.00 and may have 1000.00; 12.34 USD more is too much.", $$"""{"posted": "995.00", "incoming": "0.00", "required": "12.34", "max_balance": "1000.00", {{RefusedExample}} }"""),
        ["from_account_frozen"] = ("Account 'alice' is frozen for debits.", $$"""{ {{RefusedExample}} }"""),
        ["to_account_frozen"] = ("Account 'bob' is frozen for credits.", $$"""{ {{RefusedExample}} }"""),
        ["aborted"] = ("An operator ended the transfer between partitions before it was decided: no money moved. A new intent needs a new id.", $$"""{ {{RefusedExample}} }"""),
        ["already_decided"] = ("What began at 0:12 was decided; it ends as soon as every partition has heard of it.", "{}"),
        ["hold_already_captured"] = ("The hold was captured already; a hold is captured once.", $$"""{ {{RefusedExample}}, {{OriginalExample}} }"""),
        ["exceeds_held_amount"] = ("10.00 is held; 12.34 USD is required.", $$"""{"held_amount": "10.00", "required": "12.34", {{RefusedExample}}, {{OriginalExample}} }"""),
        ["exceeds_reversible_amount"] = ("2.34 can still be reversed; 12.34 USD is required.", $$"""{"reversible_amount": "2.34", "required": "12.34", {{RefusedExample}}, {{OriginalExample}} }"""),
        ["already_reversed"] = ("All that was moved was reversed already.", $$"""{ {{RefusedExample}}, {{OriginalExample}} }"""),
        ["transaction_id_reused"] = (
            "Transaction 0198c0de-0000-7000-8000-000000000001 was used before with another amount. A new intent needs a new id.",
            """{"differing": ["amount"], "transaction_id": "0198c0de-0000-7000-8000-000000000001"}"""),
        ["transfer_ambiguous"] = ("2 accounts used the id 0198c0de-0000-7000-8000-000000000001. Name one with ?account=.", """{"accounts": ["alice", "bob"]}"""),
        ["balance_not_zero"] = ("Account 'alice' still has 10.00 USD; an account is closed empty.", """{"currency": "USD", "posted": "10.00", "held": "0.00"}"""),
        ["currency_exists"] = ("GEM has 2 decimals already; a currency never changes.", """{"currency": "GEM", "decimals": 2}"""),
        ["account_exists"] = ("Account 'alice' was opened before with other metadata or limits.", """{"account": "alice"}"""),
    };

    /// <summary>The members of requests, by name; a name means the same wherever it comes.</summary>
    static readonly Dictionary<string, string> Members = new(StringComparer.Ordinal)
    {
        ["account"] = """{"type": "string", "description": "1 to 64 of A-Z a-z 0-9 . _ : / -, beginning with a letter or digit.", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$"}""",
        ["from_account"] = $$"""{"type": "string", "description": "The payer; a system account such as @world for a deposit.", "pattern": "{{AccountPattern}}"}""",
        ["to_account"] = $$"""{"type": "string", "description": "The payee; a system account such as @world for a withdrawal.", "pattern": "{{AccountPattern}}"}""",
        ["amount"] = """{"type": "string", "description": "Digits with at most one point, greater than 0, in the currency's major unit; no more decimals than the currency has.", "pattern": "^[0-9]+(\\.[0-9]+)?$"}""",
        ["currency"] = """{"type": "string", "description": "A code of ISO 4217, or one that was registered.", "pattern": "^[A-Z0-9]{3,8}$"}""",
        ["transaction_id"] = """{"type": "string", "format": "uuid", "description": "Chosen by the caller, one for each intent, remembered for ever."}""",
        ["description"] = """{"type": "string", "description": "For people.", "maxLength": 256}""",
        ["metadata"] = """{"type": "object", "description": "Any JSON object, up to 2 KiB as sent.", "additionalProperties": true}""",
        ["pending"] = """{"type": "boolean", "description": "Hold the money instead of moving it."}""",
        ["expires_in"] = """{"type": "integer", "description": "Of a hold: seconds until it is given back by itself.", "minimum": 1, "maximum": 31536000}""",
        ["up_to"] = """{"type": "boolean", "description": "Move what is available, up to the amount; the answer says how much that was."}""",
        ["dry_run"] = """{"type": "boolean", "description": "Give the answer that it would get now, and record nothing."}""",
        ["transfers"] = """{"type": "array", "description": "Decided in order.", "maxItems": 10000}""",
        ["postings"] = """{"type": "array", "description": "In order.", "minItems": 1, "maxItems": 64}""",
        ["limits"] = """{"type": "object", "description": "By currency."}""",
        ["min_balance"] = """{"type": "string", "description": "The lowest that may be available; below 0 it is an overdraft.", "pattern": "^-?[0-9]+(\\.[0-9]+)?$"}""",
        ["max_balance"] = """{"type": "string", "description": "The highest that may be posted.", "pattern": "^-?[0-9]+(\\.[0-9]+)?$"}""",
        ["direction"] = """{"type": "string", "enum": ["debit", "credit", "both"]}""",
        ["reason"] = """{"type": "string", "description": "Kept with the event.", "maxLength": 256}""",
        ["decimals"] = """{"type": "integer", "minimum": 0, "maximum": 18}""",
    };

    const string AccountPattern = "^@?[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$";

    static JsonObject Schemas()
    {
        JsonObject schemas = [];
        foreach (JsonTypeInfo body in Operations.Select(operation => operation.Body).OfType<JsonTypeInfo>().Append(BodyJson.Default.PostingBody).Append(BodyJson.Default.LimitsBody).Distinct())
            schemas[NameOf(body.Type)] = SchemaOf(body);

        (string, JsonNode)[] parties = [("from_account", Account()), ("to_account", Account()), ("amount", Money()), ("currency", Currency())];
        (string, JsonNode)[] partiesAgain() => [.. parties.Select(one => (one.Item1, one.Item2.DeepClone()))];
        (string, JsonNode)[] done(params string[] statuses) =>
            [("transaction_id", Uuid()), ("status", Enum(statuses)), ("completed_at", Time("When it was decided.")), ("position", Position("The last event of it."))];
        JsonNode expiresAt() => Time("Of a hold: when it is given back by itself.");
        JsonNode originalId() => Uuid("Of a capture, void or reversal: what it is about.");
        JsonNode dryRun() => Flag("Nothing was recorded; position is the last event that the answer rests on.");
        JsonNode postings() => Array("Posting");

        schemas["Posting"] = Object(partiesAgain());
        schemas["Transfer"] = Object([.. done("completed", "pending"), .. partiesAgain()], [("expires_at", expiresAt()), ("original_id", originalId()), ("dry_run", dryRun()), ("idempotent_replayed", Flag("Among many transfers: the answer was given before."))]);
        schemas["Transaction"] = Object([.. done("completed"), ("postings", postings())], [("original_id", originalId()), ("dry_run", dryRun())]);
        schemas["Rejected"] = Object(
            [
                ("transaction_id", Text("As it was sent.")), ("status", Enum("rejected")), ("code", Code()), ("http_status", Integer("The status it would have alone.")), ("detail", Text("For people.")),
                ("retryable", Flag("Whether the same id may be sent again.")), ("outcome", Outcome()),
            ],
            [.. FiguresOfTransfers(), ("dry_run", Flag("Nothing was recorded.")), ("idempotent_replayed", Flag("The answer was given before."))]);
        schemas["Transfers"] = Object([("transfers", new JsonObject { ["type"] = "array", ["items"] = new JsonObject { ["oneOf"] = new JsonArray(Ref("schemas", "Transfer"), Ref("schemas", "Rejected"), Ref("schemas", "InDoubt")) } })]);
        schemas["TransferStory"] = Object(
            [.. done("completed", "pending", "captured", "voided", "expired", "rejected", "reversed"), ("events", Array("Event"))],
            [
                .. partiesAgain(), ("postings", postings()), ("expires_at", expiresAt()), ("original_id", originalId()), ("description", Text("As it was given.")), ("metadata", Anything()),
                ("requested_amount", Money("Of up_to: what was asked for, where less was moved.")),
                ("captured_amount", Money("Of a hold: what was captured of it.")), ("ended_by", Uuid("Of a hold: the capture or void that ended it.")),
                ("reversed_amount", Money("What was taken back so far.")), ("reversed_by", new JsonObject { ["type"] = "array", ["items"] = Uuid() }),
                ("code", Code()), ("http_status", Integer("Of a refusal.")), ("detail", Text("Of a refusal.")), ("posting", Integer("Of a refused transaction: the lowest refused posting, from 0.")),
            ]);
        schemas["InDoubt"] = Object([("transaction_id", Uuid()), ("status", Enum("in_doubt"))]);
        schemas["InDoubtEntry"] = Object(
            [
                ("prepared_at", Position("Where it began in this partition.")), ("transaction_id", Uuid()), ("role", Enum("coordinator", "participant")), ("coordinator", Position("Where it began in the partition that decides it.")),
                ("state", Enum("prepared", "committed", "aborted")), ("since", Time()), ("age_ms", Integer("Milliseconds since then.")),
                ("waits_for", new JsonObject { ["type"] = "array", ["items"] = Integer("A partition that has not answered.") }), .. partiesAgain(), ("postings_count", Integer("The parties and the amount are those of the first of them.")),
            ]);
        schemas["InDoubtList"] = Object([("in_doubt", Array("InDoubtEntry")), ("unreachable", new JsonObject { ["type"] = "array", ["items"] = Integer("A partition that did not answer in time: what it has is not listed.") })]);
        schemas["Aborted"] = Object([("prepared_at", Position()), ("state", Enum("aborted"))]);
        schemas["Figures"] = Object([("posted", Money("All that came less all that went.")), ("held", Money("Set aside by holds.")), ("available", Money("posted less held."))]);
        schemas["Limits"] = Object([], [("min_balance", Money()), ("max_balance", Money())]);
        (string, JsonNode)[] age() => [("source", Enum("view")), ("lag_ms", Integer("Milliseconds for which there has been something that the view may not show; 0 where it shows all."))];
        (string, JsonNode)[] accountOfView() => [("account", Account()), ("status", Enum("open", "frozen", "closed")), ("limits", Map("Limits")), ("balances", Map("Figures"))];
        JsonNode nextCursor() => new JsonObject { ["type"] = new JsonArray("string", "null"), ["description"] = "For the next page; null after the last." };
        schemas["FoundAccount"] = Object(accountOfView(), [("metadata", Anything())]);
        schemas["FoundAccounts"] = Object([("accounts", Array("FoundAccount")), ("next_cursor", nextCursor()), .. age()]);
        schemas["FoundTransfer"] = Object(
            [.. done("completed", "pending", "captured", "voided", "expired", "rejected", "reversed"), .. partiesAgain(), ("posting", Integer("Its number within its transaction, from 0."))],
            [("original_id", originalId()), ("code", Code()), ("description", Text("As it was given.")), ("metadata", Anything())]);
        schemas["FoundTransfers"] = Object([("transfers", Array("FoundTransfer")), ("next_cursor", nextCursor()), .. age()]);
        schemas["Account"] = Object(
            [
                ("account", Account()), ("status", Enum("open", "frozen", "closed")), ("limits", Map("Limits")), ("balances", Map("Figures")),
                ("position", Position("All of it is as of this event.")),
            ],
            [
                ("metadata", Anything()), .. age(),
                ("frozen", Object([("direction", Enum("debit", "credit", "both")), ("by", Text("Who.")), ("since", Time())], [("reason", Text("Why."))])),
            ]);
        schemas["Balance"] = Object(
            [("account", Account()), ("currency", Currency()), ("posted", Money()), ("held", Money()), ("available", Money()), ("position", Position("With as_of, the last event when it was asked; else as of this event."))],
            [("as_of", Time("As it was asked for.")), ("event", Ref("schemas", "Event")), .. age()]);
        schemas["History"] = Object([("events", Array("Event")), ("next_cursor", nextCursor())]);
        schemas["Currency"] = Object([("currency", Currency()), ("decimals", Integer("Of its minor unit."))]);
        schemas["Currencies"] = Object([("currencies", Array("Currency"))]);
        schemas["Status"] = Object([("status", Enum("alive", "ready"))]);
        schemas["Event"] = Object(
            [("position", Position()), ("time", Time()), ("kind", Text("What happened: debited, credited, held, released, captured, expired, transfer_rejected, account_opened, account_named, metadata_changed, limits_changed, frozen, unfrozen, closed, currency_registered, and the steps of a commit between partitions: prepared, refused, committed, aborted, finished. New kinds may come; none changes its meaning."))],
            [
                ("account", Account()), ("counterparty", Account()), ("currency", Currency()), ("decimals", Integer("Of a registered currency.")), ("amount", Money()),
                ("requested_amount", Money("Where another amount was asked for.")), ("posted", Money("After it.")), ("held", Money("After it.")),
                ("transaction_id", Uuid()), ("hold", Position("The held event that it is about.")), ("reverses", Position("The first event of what it takes back.")),
                ("pending", Flag("Of a refused transfer: it was to be a hold.")), ("posting", Integer("Its number within its transaction, from 0.")), ("postings", postings()), ("expires_at", Time()), ("previous", Position("This balance's event before.")),
                ("code", Code()), ("direction", Enum("debit", "credit", "both")), ("by", Text("Who.")), ("reason", Text("Why.")), ("description", Text("As it was given.")),
                ("metadata", Anything()), ("limits", Map("Limits")),
                ("prepared_at", Position("Of a step between partitions: where it was prepared here.")), ("coordinator", Position("Of a step for another partition: where it was prepared there.")),
                ("decision", Position("Of what is finished: where it was decided.")), ("parts", Position("Of what is finished: its last event in each partition.")),
                ("store", Text("Of a journal that moved: where it goes on.")),
            ]);
        schemas["Problem"] = Object(
            [
                ("type", new JsonObject { ["type"] = "string", ["format"] = "uri" }), ("title", Text("The code in words.")), ("status", Integer("The HTTP status.")), ("detail", Text("What was wrong, with what value.")), ("code", Code()),
                ("retryable", Flag("Whether the same id may be sent again.")), ("outcome", Outcome()),
            ],
            Figures());
        return schemas;
    }

    /// <summary>What explains the refusal of a transfer, beside its code.</summary>
    static (string, JsonNode)[] FiguresOfTransfers() =>
    [
        ("position", Position("The refusal's event.")),
        ("available", Money()), ("required", Money()), ("posted", Money()), ("held", Money()), ("incoming", Money()), ("min_balance", Money()), ("max_balance", Money()), ("bound", Money()),
        ("differing", new JsonObject { ["type"] = "array", ["items"] = Text("A member that differs from the first use of the id.") }),
    ];

    /// <summary>The same, and what explains all others.</summary>
    static (string, JsonNode)[] Figures() =>
    [
        .. FiguresOfTransfers(), ("transaction_id", Text("The refused id.")), ("original_id", Uuid("What it was about.")), ("posting", Integer("The lowest refused posting, from 0.")),
        ("held_amount", Money()), ("reversible_amount", Money()),
        ("accounts", new JsonObject { ["type"] = "array", ["items"] = Text("An account that used the id, as ?account= takes it.") }), ("account", Account()), ("currency", Currency()),
        ("decimals", Integer("Of the currency that is there.")), ("dry_run", Flag("Nothing was recorded.")),
    ];

    static JsonObject Parameters()
    {
        JsonObject Parameter(string name, string where, string description, JsonObject schema, bool required = false) =>
            new() { ["name"] = name, ["in"] = where, ["description"] = description, ["required"] = required, ["schema"] = schema };
        return new JsonObject
        {
            ["id"] = Parameter("id", "path", "A transaction id.", Uuid(), required: true),
            ["positionOfPath"] = Parameter("position", "path", "As prepared_at lists it.", Position(), required: true),
            ["accountOfPath"] = Parameter("account", "path", "An account, percent-encoded.", Account(), required: true),
            ["home"] = Parameter("account", "query", "The account that the id belongs to, where several used it.", Account()),
            ["currency"] = Parameter("currency", "query", "Such as USD.", Currency(), required: true),
            ["as_of"] = Parameter("as_of", "query", "The balance at this time, inclusive.", Time()),
            ["at"] = Parameter("at", "query", "The balance after this event.", Position()),
            ["min_position"] = Parameter("min_position", "query", "Wait until the answer shows this event.", Position()),
            ["source"] = Parameter("source", "query", "Where the answer comes from: exact from the partition, or from a view, which says how old it is.", Enum("partition", "view")),
            ["sourceOfHistory"] = Parameter("source", "query", "Where the answer comes from.", Enum("partition")),
            ["prefix"] = Parameter("prefix", "query", "What the names begin with.", Text("The beginning of a name.")),
            ["account"] = Parameter("account", "query", "On either side.", Account()),
            ["currencyOfSearch"] = Parameter("currency", "query", "Such as USD.", Currency()),
            ["min_amount"] = Parameter("min_amount", "query", "Needs a currency beside it.", Money()),
            ["max_amount"] = Parameter("max_amount", "query", "Needs a currency beside it.", Money()),
            ["status"] = Parameter("status", "query", "What became of it.", Enum("completed", "pending", "captured", "voided", "expired", "rejected", "reversed")),
            ["metadata"] = Parameter("metadata", "query", "A JSON object, all of whose members the transfer's metadata has, with the same values.", Text("Such as {\"order\":\"A-17\"}.")),
            ["limit"] = Parameter("limit", "query", "How many at most.", new JsonObject { ["type"] = "integer", ["minimum"] = 1, ["maximum"] = 1000, ["default"] = 50 }),
            ["cursor"] = Parameter("cursor", "query", "Where the page before ended.", Text("Opaque.")),
            ["order"] = Parameter("order", "query", "Newest first by default.", Enum("asc", "desc")),
            ["from"] = Parameter("from", "query", "At or after this time.", Time()),
            ["to"] = Parameter("to", "query", "At or before this time.", Time()),
            ["after"] = Parameter("after", "query", "The last event that was seen; 0:0 is the beginning.", Position()),
            ["partition"] = Parameter("partition", "query", "Events of this partition only.", new JsonObject { ["type"] = "integer", ["minimum"] = 0 }),
            ["live"] = Parameter("live", "query", "false ends the answer after the last event.", new JsonObject { ["type"] = "boolean", ["default"] = true }),
            ["timeout"] = Parameter("X-Request-Timeout-Ms", "header", "Bounds the wait.", new JsonObject { ["type"] = "integer", ["minimum"] = 1, ["maximum"] = 600_000, ["default"] = 10_000 }),
            ["requestId"] = Parameter("X-Request-Id", "header", "Comes back with the answer.", new JsonObject { ["type"] = "string", ["maxLength"] = 128 }),
        };
    }

    static JsonObject Headers() => new()
    {
        ["X-Request-Id"] = new JsonObject { ["description"] = "The caller's, or one made here.", ["schema"] = new JsonObject { ["type"] = "string" } },
        ["Idempotent-Replayed"] = new JsonObject { ["description"] = "true where the answer was given before.", ["schema"] = new JsonObject { ["type"] = "string", ["const"] = "true" } },
        ["Retry-After"] = new JsonObject { ["description"] = "Seconds.", ["schema"] = new JsonObject { ["type"] = "integer" } },
    };

    static JsonObject Object((string Name, JsonNode Schema)[] required, (string Name, JsonNode Schema)[]? optional = null)
    {
        JsonObject properties = [];
        foreach ((string name, JsonNode schema) in required.Concat(optional ?? [])) properties[name] = schema;
        JsonObject json = new() { ["type"] = "object", ["properties"] = properties };
        if (required.Length > 0) json["required"] = new JsonArray([.. required.Select(member => member.Name)]);
        return json;
    }

    static JsonObject Described(JsonObject schema, string? description)
    {
        if (description is not null) schema["description"] = description;
        return schema;
    }

    static JsonObject Text(string description) => new() { ["type"] = "string", ["description"] = description };

    static JsonObject Uuid(string? description = null) => Described(new JsonObject { ["type"] = "string", ["format"] = "uuid" }, description);

    static JsonObject Money(string? description = null) => Described(new JsonObject { ["type"] = "string", ["pattern"] = "^-?[0-9]+(\\.[0-9]+)?$" }, description);

    static JsonObject Time(string? description = null) => Described(new JsonObject { ["type"] = "string", ["format"] = "date-time" }, description);

    static JsonObject Position(string? description = null) => Described(new JsonObject { ["type"] = "string", ["pattern"] = "^[0-9]+:[0-9]+(,[0-9]+:[0-9]+)*$" }, description);

    static JsonObject Account() => new() { ["type"] = "string", ["pattern"] = AccountPattern };

    static JsonObject Currency() => new() { ["type"] = "string", ["pattern"] = "^[A-Z0-9]{3,8}$" };

    static JsonObject Integer(string description) => new() { ["type"] = "integer", ["description"] = description };

    static JsonObject Flag(string description) => new() { ["type"] = "boolean", ["description"] = description };

    static JsonObject Anything() => new() { ["type"] = "object", ["additionalProperties"] = true, ["description"] = "As it was given." };

    static JsonObject Enum(params string[] values) => new() { ["type"] = "string", ["enum"] = new JsonArray([.. values.Select(value => JsonValue.Create(value))]) };

    static JsonObject Outcome() => Described(Enum("none", "applied", "unknown"), "What became of the request.");

    static JsonObject Code() => Enum([.. Problem.Codes.Keys.Order(StringComparer.Ordinal)]);

    static JsonObject Array(string schema) => new() { ["type"] = "array", ["items"] = Ref("schemas", schema) };

    static JsonObject Map(string schema) => new() { ["type"] = "object", ["additionalProperties"] = Ref("schemas", schema), ["description"] = "By currency." };
}
