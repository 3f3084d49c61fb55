using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.Json.Schema;
using System.Text.Json.Serialization.Metadata;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Scalar.AspNetCore;

namespace Purse.Server;

/// <summary>
/// The OpenAPI 3.1 document of all that this server serves. What requests may hold comes from the types that read them, which codes there
/// are from <see cref="Problem.Codes"/>; answers are written by hand, so their schemas are too, and tests hold every answer against them.
/// </summary>
public static partial class OpenApi
{
    public const string Version = "0.1.0";

    const string Json = "application/json";
    const string ProblemJson = "application/problem+json";

    /// <summary>One operation: what it takes, what it answers, and the codes of its own that it can refuse with.</summary>
    sealed record Operation(string Method, string Path, string Id, string Tag, string Summary)
    {
        public string Description { get; init; } = "";

        public JsonTypeInfo? Body { get; init; }

        public string BodyExample { get; init; } = "";

        public bool BodyMayBeEmpty { get; init; }

        /// <summary>Names of <see cref="Parameters"/>.</summary>
        public string[] Query { get; init; } = [];

        /// <summary>Statuses with what they mean; all answer the same schema.</summary>
        public (int Status, string Meaning)[] Done { get; init; } = [(200, "Done.")];

        /// <summary>A component, or several that it may be one of.</summary>
        public string[] Answer { get; init; } = [];

        public string AnswerExample { get; init; } = "";

        /// <summary>Besides <see cref="CodesOfAll"/> and <see cref="CodesOfBodies"/>.</summary>
        public string[] Codes { get; init; } = [];

        public bool IsIdempotent { get; init; }

        /// <summary>Of an operation for operators: goes through a partition's queue.</summary>
        public bool MayBeUnanswered { get; init; }

        /// <summary>May be under way between partitions when the caller's time is over.</summary>
        public bool MayBeInDoubt { get; init; }
    }

    static readonly string[] CodesOfAll =
        ["malformed_request", "forbidden", "misdirected_request", "internal_error", "overloaded", "partition_unavailable", "shutting_down", "deadline_exceeded"];

    static readonly string[] CodesOfBodies = ["request_too_large", "unsupported_media_type", "storage_full"];

    static readonly string[] CodesOfAmounts = ["amount_malformed", "amount_not_positive", "amount_too_precise", "amount_too_large"];
    static readonly string[] CodesOfAmountRanges = ["amount_malformed", "amount_too_precise", "amount_too_large"];
    static readonly string[] CodesOfPayees = ["exceeds_max_balance", "to_account_frozen", "to_account_closed", "balance_overflow"];
    static readonly string[] CodesOfPayers = ["insufficient_funds", "below_min_balance", "from_account_frozen", "from_account_closed"];
    static readonly string[] CodesOfOriginals = ["account_malformed", "transaction_id_malformed", "transfer_not_found", "transfer_ambiguous"];
    static readonly string[] CodesOfTransfers =
        [.. CodesOfAmounts, "account_malformed", "transaction_id_malformed", "same_account", "currency_unknown", "transaction_id_reused", "from_account_not_found", "to_account_not_found", .. CodesOfPayers, .. CodesOfPayees, "aborted"];

    static readonly string[] CodesOfAccounts = ["account_malformed", "account_not_found"];
    static readonly string[] CodesOfLimits = ["amount_malformed", "amount_too_precise", "amount_too_large", "currency_unknown"];

    static readonly Dictionary<string, string> Tags = new()
    {
        ["Moving money"] = "Transfers, holds, transactions, reversals.",
        ["Accounts"] = "Accounts, their balances and history, and currencies.",
        ["Events"] = "Everything that ever happened, in order.",
        ["Operation"] = "For whoever runs the server.",
    };

    /// <summary>In the order in which a newcomer meets them.</summary>
    static readonly Operation[] Operations =
    [
        new("post", "/v1/wallet/balance_transfer", "createTransfer", "Moving money", "Move money from one account to another, or hold it")
        {
            Description = "Answered when it is durable. The same transaction_id with the same meaning gets the original outcome, refusals included.",
            Body = BodyJson.Default.BalanceTransferBody, BodyExample = TransferRequestExample, Answer = ["Transfer"], AnswerExample = TransferExample, Codes = CodesOfTransfers, IsIdempotent = true, MayBeInDoubt = true,
        },
        new("post", "/v1/wallet/transfers", "createTransfers", "Moving money", "Up to 10 000 independent transfers, with an outcome each")
        {
            Description = "Decided in order; each gets the outcome it would get alone. A body of the wrong form refuses all of them.",
            Body = BodyJson.Default.TransfersBody, BodyExample = $$"""{"transfers": [{{TransferRequestExample}}]}""", Answer = ["Transfers"],
            AnswerExample = $$"""{"transfers": [{{TransferExample}}, {{RejectedExample}}]}""", Codes = ["too_many_transfers"],
        },
        new("post", "/v1/wallet/transactions", "createTransaction", "Moving money", "1 to 64 postings, all or nothing")
        {
            Description = "In order: what an earlier posting brings, a later one may spend. A refusal names the lowest refused posting.",
            Body = BodyJson.Default.TransactionBody, BodyExample = TransactionRequestExample, Answer = ["Transaction"], AnswerExample = TransactionExample,
            Codes = [.. CodesOfTransfers, "too_many_postings"], IsIdempotent = true, MayBeInDoubt = true,
        },
        new("post", "/v1/wallet/transfers/{id}/capture", "captureHold", "Moving money", "Move the money of a hold, all or part of it; the rest is released")
        {
            Body = BodyJson.Default.AmountBody, BodyExample = """{"transaction_id": "0198c0de-0000-7000-8000-000000000003", "amount": "10.00"}""", Query = ["account"],
            Answer = ["Transfer"], AnswerExample = CaptureExample, IsIdempotent = true, MayBeInDoubt = true,
            Codes = [.. CodesOfAmounts, .. CodesOfOriginals, "transaction_id_reused", "hold_already_captured", "hold_already_voided", "hold_expired", "not_a_hold", "exceeds_held_amount", "aborted", .. CodesOfPayees],
        },
        new("post", "/v1/wallet/transfers/{id}/void", "voidHold", "Moving money", "Give back the money of a hold")
        {
            Body = BodyJson.Default.VoidBody, BodyExample = """{"transaction_id": "0198c0de-0000-7000-8000-000000000003"}""", Query = ["account"],
            Answer = ["Transfer"], AnswerExample = CaptureExample, IsIdempotent = true, MayBeInDoubt = true,
            Codes = [.. CodesOfOriginals, "transaction_id_reused", "hold_already_captured", "hold_already_voided", "hold_expired", "not_a_hold"],
        },
        new("post", "/v1/wallet/transfers/{id}/reverse", "reverseTransfer", "Moving money", "Take back a transfer or a capture, all or part of it, or a whole transaction")
        {
            Description = "The opposite transfer, linked to the first. Its payer must have the money; nothing is taken back twice.",
            Body = BodyJson.Default.ReverseBody, BodyExample = """{"transaction_id": "0198c0de-0000-7000-8000-000000000004", "amount": "2.34", "description": "one was broken"}""", Query = ["account"],
            Answer = ["Transfer", "Transaction"], AnswerExample = ReversalExample, IsIdempotent = true, MayBeInDoubt = true,
            Codes = [.. CodesOfAmounts, .. CodesOfOriginals, "transaction_id_reused", "already_reversed", "exceeds_reversible_amount", "aborted", .. CodesOfPayers, .. CodesOfPayees],
        },
        new("get", "/v1/wallet/transfers/{id}", "getTransfer", "Moving money", "What became of an id, with its events")
        {
            Query = ["account"], Answer = ["TransferStory"], AnswerExample = StoryExample, MayBeInDoubt = true, Codes = CodesOfOriginals,
        },
        new("post", "/v1/wallet/accounts", "openAccount", "Accounts", "Open an account")
        {
            Body = BodyJson.Default.OpenAccountBody, BodyExample = """{"account": "alice", "metadata": {"tier": "gold"}, "limits": {"USD": {"min_balance": "-100.00", "max_balance": "1000.00"}}}""",
            Done = [(201, "Opened."), (200, "The same opening was done before.")], Answer = ["Account"], AnswerExample = AccountExample,
            Codes = ["account_malformed", "account_exists", .. CodesOfLimits],
        },
        new("get", "/v1/wallet/accounts", "searchAccounts", "Accounts", "Accounts by the beginning of their names")
        {
            Description = "From the view, in the order of their names.",
            Query = ["prefix", "limit", "cursor", "min_position"], Answer = ["FoundAccounts"], AnswerExample = FoundAccountsExample, Codes = ["account_malformed", "view_unavailable"],
        },
        new("get", "/v1/wallet/transfers", "searchTransfers", "Moving money", "Transfers, holds and refusals that match, newest first")
        {
            Description = "From the view. Of a transaction, each posting is one.",
            Query = ["account", "currencyOfSearch", "from", "to", "min_amount", "max_amount", "status", "metadata", "limit", "cursor", "min_position"], Answer = ["FoundTransfers"], AnswerExample = FoundTransfersExample,
            Codes = ["account_malformed", "currency_unknown", .. CodesOfAmountRanges, "view_unavailable"],
        },
        new("get", "/v1/wallet/accounts/{account}", "getAccount", "Accounts", "An account with all its balances, at one position")
        {
            Query = ["min_position", "source"], Answer = ["Account"], AnswerExample = AccountExample, Codes = [.. CodesOfAccounts, "view_unavailable"],
        },
        new("put", "/v1/wallet/accounts/{account}/limits", "setAccountLimits", "Accounts", "Replace an account's limits")
        {
            Description = "Limits bind new commands only. Those not named end.",
            Body = BodyJson.Default.SetLimitsBody, BodyExample = """{"limits": {"USD": {"max_balance": "1000.00"}}}""", Answer = ["Account"], AnswerExample = AccountExample, Codes = [.. CodesOfAccounts, .. CodesOfLimits],
        },
        new("put", "/v1/wallet/accounts/{account}/metadata", "setAccountMetadata", "Accounts", "Replace an account's metadata")
        {
            Body = BodyJson.Default.SetMetadataBody, BodyExample = """{"metadata": {"tier": "gold"}}""", Answer = ["Account"], AnswerExample = AccountExample, Codes = CodesOfAccounts,
        },
        new("post", "/v1/wallet/accounts/{account}/freeze", "freezeAccount", "Accounts", "Stop debits, credits or both")
        {
            Description = "A second freeze adds its direction to the first. What was promised (captures) is never refused for the payer's sake.",
            Body = BodyJson.Default.FreezeBody, BodyExample = """{"direction": "debit", "reason": "court order"}""", Answer = ["Account"], AnswerExample = AccountExample, Codes = CodesOfAccounts,
        },
        new("post", "/v1/wallet/accounts/{account}/unfreeze", "unfreezeAccount", "Accounts", "End all freezes")
        {
            Body = BodyJson.Default.ReasonBody, BodyExample = """{"reason": "settled"}""", BodyMayBeEmpty = true, Answer = ["Account"], AnswerExample = AccountExample, Codes = CodesOfAccounts,
        },
        new("post", "/v1/wallet/accounts/{account}/close", "closeAccount", "Accounts", "Close an empty account for good")
        {
            Description = "It must have nothing posted, held or promised.",
            Body = BodyJson.Default.ReasonBody, BodyExample = """{"reason": "moved away"}""", BodyMayBeEmpty = true, Answer = ["Account"], AnswerExample = AccountExample,
            Codes = [.. CodesOfAccounts, "balance_not_zero"],
        },
        new("get", "/v1/wallet/accounts/{account}/balance", "getBalance", "Accounts", "A balance, now or in the past")
        {
            Query = ["currency", "as_of", "at", "min_position", "source"], Answer = ["Balance"], AnswerExample = BalanceExample, Codes = [.. CodesOfAccounts, "currency_unknown", "time_in_future", "view_unavailable"],
        },
        new("get", "/v1/wallet/accounts/{account}/history", "getHistory", "Accounts", "The events that touched a balance, by cursor")
        {
            Query = ["currency", "limit", "cursor", "order", "from", "to", "min_position", "sourceOfHistory"], Answer = ["History"],
            AnswerExample = $$"""{"events": [{{EventExample}}], "next_cursor": null}""", Codes = [.. CodesOfAccounts, "currency_unknown"],
        },
        new("post", "/v1/wallet/currencies", "registerCurrency", "Accounts", "Register a currency beside those of ISO 4217")
        {
            Description = "Once; it never changes.",
            Body = BodyJson.Default.CurrencyBody, BodyExample = """{"currency": "GEM", "decimals": 0}""", Done = [(201, "Registered."), (200, "The same currency was there before.")],
            Answer = ["Currency"], AnswerExample = """{"currency": "GEM", "decimals": 0}""", Codes = ["currency_exists"],
        },
        new("get", "/v1/wallet/currencies", "listCurrencies", "Accounts", "All currencies, built in and registered")
        {
            Answer = ["Currencies"], AnswerExample = """{"currencies": [{"currency": "GEM", "decimals": 0}, {"currency": "USD", "decimals": 2}]}""",
        },
        new("get", "/v1/events", "streamEvents", "Events", "Every event in order, as NDJSON, live after the last")
        {
            Description = "One event a line. Resumable at any position: nothing is skipped, nothing comes twice.",
            Query = ["after", "partition", "live"], Answer = ["Event"], AnswerExample = EventExample, Codes = ["time_in_future"],
        },
        new("get", "/v1/audit/in_doubt", "listInDoubt", "Operation", "Commits between partitions that are under way, oldest first, and what they wait for")
        {
            Answer = ["InDoubtList"], AnswerExample = $$"""{"in_doubt": [{{InDoubtExample}}], "unreachable": [5]}""", MayBeUnanswered = true,
        },
        new("post", "/v1/audit/in_doubt/{position}/abort", "abortInDoubt", "Operation", "End one before it is decided; its transaction_id is refused for ever")
        {
            Description = "Only where the listed partition is the coordinator. The payer's money is free again at once.",
            Answer = ["Aborted"], AnswerExample = """{"prepared_at": "0:12", "state": "aborted"}""", Codes = ["transfer_not_found", "already_decided"], MayBeUnanswered = true,
        },
        new("get", "/healthz", "getHealth", "Operation", "Whether the process is alive") { Answer = ["Status"], AnswerExample = """{"status": "alive"}""" },
        new("get", "/readyz", "getReadiness", "Operation", "Whether it takes writes") { Answer = ["Status"], AnswerExample = """{"status": "ready"}""", Codes = ["storage_full"] },
    ];

    static readonly Lazy<byte[]> Bytes = new(() => JsonSerializer.SerializeToUtf8Bytes(Document(), new JsonSerializerOptions(JsonSerializerDefaults.General)
    {
        WriteIndented = true,
        NewLine = "\n",
        Encoder = Answer.JsonOptions.Encoder,
        TypeInfoResolver = new DefaultJsonTypeInfoResolver(),
    }));

    /// <summary>The document as it is served.</summary>
    public static ReadOnlyMemory<byte> Utf8 => Bytes.Value;

    public static void Map(IEndpointRouteBuilder routes)
    {
        routes.MapGet("/openapi/v1.json", async http =>
        {
            http.Response.ContentType = Json;
            http.Response.ContentLength = Bytes.Value.Length;
            await http.Response.BodyWriter.WriteAsync(Bytes.Value, http.RequestAborted);
        });
        // The page's script comes with the package: nothing is loaded from elsewhere, and nothing is sent there.
        routes.MapScalarApiReference("/docs", options =>
        {
            options.Title = "Purse";
            options.OpenApiRoutePattern = "/openapi/v1.json";
            options.DefaultFonts = false;
            options.Telemetry = false;
            options.HideClientButton = true;
            options.ShowDeveloperTools = DeveloperToolsVisibility.Never;
            options.Agent = new ScalarAgentOptions { Disabled = true };
            options.Mcp = new ScalarMcpOptions { Disabled = true };
        }).Add(static endpoint =>
        {
            RequestDelegate next = endpoint.RequestDelegate!;
            endpoint.RequestDelegate = http =>
            {
                http.Response.Headers.ContentSecurityPolicy =
                    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'";
                return next(http);
            };
        });
    }

    static JsonObject Document()
    {
        JsonObject paths = [];
        foreach (IGrouping<string, Operation> path in Operations.GroupBy(operation => operation.Path))
        {
            JsonObject item = [];
            foreach (Operation operation in path) item[operation.Method] = ToJson(operation);
            paths[path.Key] = item;
        }

        return new JsonObject
        {
            ["openapi"] = "3.1.1",
            ["info"] = new JsonObject
            {
                ["title"] = "Purse",
                ["version"] = Version,
                ["summary"] = "A digital-wallet ledger: money moves between accounts, every change is an event, nothing is lost.",
                ["description"] = Introduction,
                ["license"] = new JsonObject { ["name"] = "Apache-2.0", ["identifier"] = "Apache-2.0" },
            },
            ["servers"] = new JsonArray(new JsonObject { ["url"] = "/", ["description"] = "The server that this document came from." }),
            // This version serves loopback addresses only, and asks for no credentials.
            ["security"] = new JsonArray(),
            ["tags"] = new JsonArray([.. Operations.Select(operation => operation.Tag).Distinct().Select(tag => new JsonObject { ["name"] = tag, ["description"] = Tags[tag] })]),
            ["paths"] = paths,
            ["components"] = new JsonObject { ["schemas"] = Schemas(), ["parameters"] = Parameters(), ["headers"] = Headers(), ["examples"] = Examples() },
        };
    }

    static JsonObject ToJson(Operation operation)
    {
        JsonObject json = new() { ["operationId"] = operation.Id, ["tags"] = new JsonArray(operation.Tag), ["summary"] = operation.Summary };
        if (operation.Description.Length > 0) json["description"] = operation.Description;
        List<JsonNode> parameters = [];
        if (operation.Path.Contains("{id}", StringComparison.Ordinal)) parameters.Add(Ref("parameters", "id"));
        if (operation.Path.Contains("{position}", StringComparison.Ordinal)) parameters.Add(Ref("parameters", "positionOfPath"));
        if (operation.Path.Contains("{account}", StringComparison.Ordinal)) parameters.Add(Ref("parameters", "accountOfPath"));
        parameters.AddRange(operation.Query.Select(name => Ref("parameters", operation.Id == "searchTransfers" || name != "account" ? name : "home")));
        parameters.Add(Ref("parameters", "timeout"));
        parameters.Add(Ref("parameters", "requestId"));
        json["parameters"] = new JsonArray([.. parameters]);
        if (operation.Body is JsonTypeInfo body)
        {
            json["requestBody"] = new JsonObject
            {
                ["required"] = !operation.BodyMayBeEmpty,
                ["content"] = new JsonObject { [Json] = new JsonObject { ["schema"] = Ref("schemas", NameOf(body.Type)), ["example"] = JsonNode.Parse(operation.BodyExample) } },
            };
        }

        JsonObject responses = [];
        foreach ((int status, string meaning) in operation.Done) responses[$"{status}"] = Success(operation, meaning);
        if (operation.MayBeInDoubt)
        {
            JsonObject inDoubt = Success(operation with { Answer = ["InDoubt"], AnswerExample = """{"transaction_id": "0198c0de-0000-7000-8000-000000000001", "status": "in_doubt"}""", IsIdempotent = false },
                "Under way between partitions when the time was over. The same id answers for it, now and later.");
            inDoubt["headers"]!["Retry-After"] = Ref("headers", "Retry-After");
            responses["202"] = inDoubt;
        }

        IEnumerable<string> codes = operation.Codes.Concat(CodesOfAll.Where(code => operation.Tag != "Operation" || operation.MayBeUnanswered || code is "forbidden" or "misdirected_request" or "internal_error" or "partition_unavailable" or "shutting_down"))
            .Concat(operation.Body is null ? [] : CodesOfBodies);
        foreach (IGrouping<int, string> status in codes.Distinct().GroupBy(code => Problem.Codes[code].Status).OrderBy(group => group.Key)) responses[$"{status.Key}"] = Refusals(status.Key, [.. status], operation.IsIdempotent);
        json["responses"] = responses;
        return json;
    }

    static JsonObject Success(Operation operation, string meaning)
    {
        JsonObject headers = new() { ["X-Request-Id"] = Ref("headers", "X-Request-Id") };
        if (operation.IsIdempotent) headers["Idempotent-Replayed"] = Ref("headers", "Idempotent-Replayed");
        JsonNode schema = operation.Answer is [string one] ? Ref("schemas", one) : new JsonObject { ["oneOf"] = new JsonArray([.. operation.Answer.Select(name => Ref("schemas", name))]) };
        return new JsonObject
        {
            ["description"] = meaning,
            ["headers"] = headers,
            ["content"] = new JsonObject
            {
                [operation.Id == "streamEvents" ? "application/x-ndjson" : Json] = new JsonObject { ["schema"] = schema, ["example"] = JsonNode.Parse(operation.AnswerExample) },
            },
        };
    }

    static JsonObject Refusals(int status, string[] codes, bool isIdempotent)
    {
        JsonObject examples = [], headers = new() { ["X-Request-Id"] = Ref("headers", "X-Request-Id") };
        // Refusals that depend on state are remembered, and given again.
        if (isIdempotent && status is 404 or 409 or 422) headers["Idempotent-Replayed"] = Ref("headers", "Idempotent-Replayed");
        if (status == 503) headers["Retry-After"] = Ref("headers", "Retry-After");
        foreach (string code in codes) examples[code] = Ref("examples", code);
        return new JsonObject
        {
            ["description"] = string.Join(", ", codes.Select(code => $"`{code}`")),
            ["headers"] = headers,
            ["content"] = new JsonObject { [ProblemJson] = new JsonObject { ["schema"] = Ref("schemas", "Problem"), ["examples"] = examples } },
        };
    }

    static JsonObject Examples()
    {
        JsonObject examples = [];
        foreach ((string code, (int status, string title)) in Problem.Codes.OrderBy(one => one.Value.Status).ThenBy(one => one.Key, StringComparer.Ordinal))
        {
            // Of routes that are not in this document.
            if (code is "route_not_found" or "method_not_allowed") continue;
            (string detail, string figures) = ProblemExamples.GetValueOrDefault(code, ($"{title}.", "{}"));
            Problem problem = new(code, detail, status is 500 or 504 ? "unknown" : "none");
            JsonObject value = new()
            {
                ["type"] = problem.Type,
                ["title"] = title,
                ["status"] = status,
                ["detail"] = problem.Message,
                ["code"] = code,
                ["retryable"] = problem.Retryable,
                ["outcome"] = problem.Outcome,
            };
            foreach ((string name, JsonNode? figure) in JsonNode.Parse(figures)!.AsObject()) value[name] = figure?.DeepClone();
            examples[code] = new JsonObject { ["summary"] = $"{title}.", ["value"] = value };
        }

        return examples;
    }

    static JsonObject Ref(string kind, string name) => new() { ["$ref"] = $"#/components/{kind}/{name}" };

    /// <summary>A request's type under the name that clients see.</summary>
    static string NameOf(Type body) => body.Name.Replace("Body", "Request", StringComparison.Ordinal);

    /// <summary>As the type reads it: its members, which of them must be there, and that no other may be.</summary>
    static JsonNode SchemaOf(JsonTypeInfo type) => type.GetJsonSchemaAsNode(new JsonSchemaExporterOptions
    {
        TreatNullObliviousAsNonNullable = true,
        TransformSchemaNode = (context, schema) =>
        {
            Type of = context.TypeInfo.Type;
            // Types of their own are told once, and referred to.
            if (context.Path.Length > 0 && of.Name.EndsWith("Body", StringComparison.Ordinal)) return Ref("schemas", NameOf(of));
            if (context.PropertyInfo is not JsonPropertyInfo property || !Members.TryGetValue(property.Name, out string? member)) return schema;
            JsonObject described = JsonNode.Parse(member)!.AsObject();
            // What is optional may also be null, which means the same as leaving it out.
            if (!property.IsRequired && described["type"] is JsonValue single) described["type"] = new JsonArray(single.DeepClone(), "null");
            if (schema is JsonObject given)
            {
                foreach (string keyword in new[] { "items", "additionalProperties" })
                {
                    if (given[keyword] is JsonNode value && !described.ContainsKey(keyword)) described[keyword] = value.DeepClone();
                }
            }

            return described;
        },
    });
}
