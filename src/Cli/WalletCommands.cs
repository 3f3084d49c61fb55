using System.CommandLine;
using System.Net.Http.Json;
using System.Text.Json;
using System.Text.Json.Nodes;
using Spectre.Console;

namespace Purse.Cli;

/// <summary>Commands that speak to a running server, as any client does.</summary>
static class WalletCommands
{
    static Option<string> ServerOption() => new("--server") { Description = "The server's address.", DefaultValueFactory = _ => ServeCommand.ListenDefault };

    public static Command Account()
    {
        Command command = new("account", "Open, show and change accounts.");
        Option<string[]> limit = new("--limit") { Description = "CURRENCY:MIN:MAX, such as USD:-100:1000; either side may be empty." };
        Option<string?> metadata = new("--metadata") { Description = "A JSON object." };
        Option<string?> reason = new("--reason") { Description = "Why; kept with the event." };
        Option<string> direction = new("--direction") { Description = "debit, credit or both.", DefaultValueFactory = _ => "both" };
        direction.AcceptOnlyFromAmong("debit", "credit", "both");

        command.Add(Sub("open", "Open an account.", [limit, metadata], (parsed, name) =>
        {
            JsonObject body = new() { ["account"] = name };
            if (parsed.GetValue(metadata) is string text) body["metadata"] = ParseMetadata(text);
            if (parsed.GetValue(limit) is { Length: > 0 } limits) body["limits"] = ParseLimits(limits);
            return (HttpMethod.Post, "", body);
        }));
        command.Add(Sub("show", "Show an account.", [], (_, name) => (HttpMethod.Get, Escape(name), null)));
        command.Add(Sub("limits", "Set an account's limits; those not named end.", [limit], (parsed, name) =>
            (HttpMethod.Put, $"{Escape(name)}/limits", new JsonObject { ["limits"] = ParseLimits(parsed.GetValue(limit) ?? []) })));
        command.Add(Sub("metadata", "Replace an account's metadata.", [metadata], (parsed, name) =>
            (HttpMethod.Put, $"{Escape(name)}/metadata", new JsonObject { ["metadata"] = ParseMetadata(parsed.GetValue(metadata) ?? "{}") })));
        command.Add(Sub("freeze", "Stop debits, credits or both.", [direction, reason], (parsed, name) =>
            (HttpMethod.Post, $"{Escape(name)}/freeze", WithReason(new JsonObject { ["direction"] = parsed.GetValue(direction) }, parsed.GetValue(reason)))));
        command.Add(Sub("unfreeze", "End all freezes.", [reason], (parsed, name) => (HttpMethod.Post, $"{Escape(name)}/unfreeze", WithReason([], parsed.GetValue(reason)))));
        command.Add(Sub("close", "Close an empty account for good.", [reason], (parsed, name) => (HttpMethod.Post, $"{Escape(name)}/close", WithReason([], parsed.GetValue(reason)))));
        return command;
    }

    static Command Sub(string name, string description, Option[] options, Func<ParseResult, string, (HttpMethod Method, string Path, JsonObject? Body)> toRequest)
    {
        Argument<string> account = new("account") { Description = "The account's name." };
        Option<string> server = ServerOption();
        Option<bool> json = Terminal.JsonOption();
        Command command = new(name, description) { account, server, json };
        foreach (Option option in options) command.Add(option);
        command.SetAction((parsed, _) => CallAsync(parsed, server, json, PrintAccount, () =>
        {
            (HttpMethod method, string path, JsonObject? body) = toRequest(parsed, parsed.GetValue(account)!);
            return new HttpRequestMessage(method, $"/v1/wallet/accounts/{path}".TrimEnd('/')) { Content = body is null ? null : JsonContent.Create(body) };
        }));
        return command;
    }

    public static Command Transfer()
    {
        Argument<string> from = new("from") { Description = "The payer; @world for a deposit." }, to = new("to") { Description = "The payee; @world for a withdrawal." };
        Argument<string> amount = new("amount") { Description = "Such as 12.34." }, currency = new("currency") { Description = "Such as USD." };
        Option<string?> id = new("--id") { Description = "The transaction id, one for each intent; a new one by default." };
        Option<string?> description = new("--description") { Description = "Up to 256 characters." };
        Option<bool> pending = new("--pending") { Description = "Hold the money; capture or void ends it." };
        Option<bool> upTo = new("--up-to") { Description = "Move what is available, up to the amount." };
        Option<bool> dryRun = new("--dry-run") { Description = "Show the answer it would get; record nothing." };
        Option<int?> expiresIn = new("--expires-in") { Description = "Seconds until a hold is given back by itself." };
        Option<string> server = ServerOption();
        Option<bool> json = Terminal.JsonOption();
        Command command = new("transfer", "Move money from one account to another.") { from, to, amount, currency, id, description, pending, expiresIn, upTo, dryRun, server, json };
        command.SetAction((parsed, _) =>
        {
            string transactionId = parsed.GetValue(id) ?? Guid.CreateVersion7().ToString();
            return CallAsync(parsed, server, json, PrintTransfer, () =>
            {
                JsonObject body = new()
                {
                    ["from_account"] = parsed.GetValue(from),
                    ["to_account"] = parsed.GetValue(to),
                    ["amount"] = parsed.GetValue(amount),
                    ["currency"] = parsed.GetValue(currency),
                    ["transaction_id"] = transactionId,
                };
                if (parsed.GetValue(description) is string text) body["description"] = text;
                if (parsed.GetValue(pending)) body["pending"] = true;
                if (parsed.GetValue(expiresIn) is int seconds) body["expires_in"] = seconds;
                if (parsed.GetValue(upTo)) body["up_to"] = true;
                if (parsed.GetValue(dryRun)) body["dry_run"] = true;
                return new HttpRequestMessage(HttpMethod.Post, "/v1/wallet/balance_transfer") { Content = JsonContent.Create(body) };
            }, ifUnknown: $"It may have been done. Run the same again with --id {transactionId}: it will not be done twice.");
        });
        return command;
    }

    public static Command Transaction()
    {
        Option<string[]> posting = new("--posting")
        {
            Description = "FROM TO AMOUNT CURRENCY; given 1 to 64 times, in order.",
            Arity = new ArgumentArity(4, 4 * 64),
            AllowMultipleArgumentsPerToken = true,
            Required = true,
        };
        Option<string?> id = new("--id") { Description = "The transaction id, one for each intent; a new one by default." };
        Option<string?> description = new("--description") { Description = "Up to 256 characters." };
        Option<bool> dryRun = new("--dry-run") { Description = "Show the answer it would get; record nothing." };
        Option<string> server = ServerOption();
        Option<bool> json = Terminal.JsonOption();
        Command command = new("transaction", "Move money along several postings, all or nothing.") { posting, id, description, dryRun, server, json };
        command.Validators.Add(result =>
        {
            if (result.GetResult(posting) is { Tokens.Count: int count } && count % 4 != 0) result.AddError("--posting takes four words: FROM TO AMOUNT CURRENCY.");
        });
        command.SetAction((parsed, _) =>
        {
            string transactionId = parsed.GetValue(id) ?? Guid.CreateVersion7().ToString();
            return CallAsync(parsed, server, json, PrintTransfer, () =>
            {
                JsonArray postings = [];
                foreach (string[] words in parsed.GetValue(posting)!.Chunk(4))
                    postings.Add(new JsonObject { ["from_account"] = words[0], ["to_account"] = words[1], ["amount"] = words[2], ["currency"] = words[3] });
                JsonObject body = new() { ["transaction_id"] = transactionId, ["postings"] = postings };
                if (parsed.GetValue(description) is string text) body["description"] = text;
                if (parsed.GetValue(dryRun)) body["dry_run"] = true;
                return new HttpRequestMessage(HttpMethod.Post, "/v1/wallet/transactions") { Content = JsonContent.Create(body) };
            }, ifUnknown: $"It may have been done. Run the same again with --id {transactionId}: it will not be done twice.");
        });
        return command;
    }

    public static Command Capture()
    {
        Option<string?> amount = new("--amount") { Description = "Less than all; the rest is released." };
        return AboutOriginal("capture", "Move the money of a hold.", "The hold's", [amount], (parsed, body) =>
        {
            if (parsed.GetValue(amount) is string text) body["amount"] = text;
        });
    }

    public static Command Void() => AboutOriginal("void", "Give back the money of a hold.", "The hold's", [], static (_, _) => { });

    public static Command Reverse()
    {
        Option<string?> amount = new("--amount") { Description = "Less than all; a transaction is reversed in full." };
        Option<string?> description = new("--description") { Description = "Up to 256 characters." };
        return AboutOriginal("reverse", "Take back a transfer, a capture or a transaction.", "The original's", [amount, description], (parsed, body) =>
        {
            if (parsed.GetValue(amount) is string text) body["amount"] = text;
            if (parsed.GetValue(description) is string why) body["description"] = why;
        });
    }

    static Command AboutOriginal(string name, string description, string whose, Option[] options, Action<ParseResult, JsonObject> fill)
    {
        Argument<string> hold = new("original") { Description = $"{whose} transaction id." };
        Option<string?> id = new("--id") { Description = "The transaction id of this; a new one by default." };
        Option<string?> account = new("--account") { Description = $"{whose} home account, where several used its id." };
        Option<string> server = ServerOption();
        Option<bool> json = Terminal.JsonOption();
        Command command = new(name, description) { hold, id, account, server, json };
        foreach (Option option in options) command.Add(option);
        command.SetAction((parsed, _) =>
        {
            string transactionId = parsed.GetValue(id) ?? Guid.CreateVersion7().ToString();
            return CallAsync(parsed, server, json, PrintTransfer, () =>
            {
                JsonObject body = new() { ["transaction_id"] = transactionId };
                fill(parsed, body);
                string path = $"/v1/wallet/transfers/{Escape(parsed.GetValue(hold)!)}/{name}";
                return new HttpRequestMessage(HttpMethod.Post, parsed.GetValue(account) is string home ? Parameters(path, ("account", home)) : path) { Content = JsonContent.Create(body) };
            }, ifUnknown: $"It may have been done. Run the same again with --id {transactionId}: it will not be done twice.");
        });
        return command;
    }

    public static Command Currency()
    {
        Command command = new("currency", "Register and list currencies.");
        Argument<string> code = new("code") { Description = "3 to 8 of A-Z 0-9, such as GEM." };
        Option<int> decimals = new("--decimals") { Description = "0 to 18; it never changes.", Required = true };
        Option<string> server = ServerOption();
        Option<bool> json = Terminal.JsonOption();
        Command add = new("add", "Register a currency beside those of ISO 4217.") { code, decimals, server, json };
        add.SetAction((parsed, _) => CallAsync(
            parsed, server, json, currency => Console.WriteLine($"{Text(currency, "currency")} has {currency.GetProperty("decimals").GetInt32()} decimals"),
            () => new HttpRequestMessage(HttpMethod.Post, "/v1/wallet/currencies")
            {
                Content = JsonContent.Create(new JsonObject { ["currency"] = parsed.GetValue(code), ["decimals"] = parsed.GetValue(decimals) }),
            }));
        Command list = new("list", "List all currencies.") { server, json };
        list.SetAction((parsed, _) => CallAsync(parsed, server, json, PrintCurrencies, () => new HttpRequestMessage(HttpMethod.Get, "/v1/wallet/currencies")));
        command.Add(add);
        command.Add(list);
        return command;
    }

    static void PrintCurrencies(JsonElement all)
    {
        Table table = new Table().Border(TableBorder.Rounded).AddColumn("currency").AddColumn("decimals", c => c.RightAligned());
        foreach (JsonElement one in all.GetProperty("currencies").EnumerateArray()) table.AddRow(Text(one, "currency"), $"{one.GetProperty("decimals").GetInt32()}");
        Terminal.Out.Write(table);
    }

    public static Command InDoubt()
    {
        Command command = new("indoubt", "Transfers between partitions that are under way, and what they wait for.");
        Argument<string> position = new("position") { Description = "As the list says under prepared at, such as 0:12." };
        Option<string> server = ServerOption();
        Option<bool> json = Terminal.JsonOption();
        Command list = new("list", "List them, oldest first.") { server, json };
        list.SetAction((parsed, _) => CallAsync(parsed, server, json, PrintInDoubt, () => new HttpRequestMessage(HttpMethod.Get, "/v1/audit/in_doubt")));
        Command abort = new("abort", "End one before it is decided: its money is free again, and its id is refused for ever.") { position, server, json };
        abort.SetAction((parsed, _) => CallAsync(
            parsed, server, json, ended => Console.WriteLine($"{Text(ended, "prepared_at")} is aborted"),
            () => new HttpRequestMessage(HttpMethod.Post, $"/v1/audit/in_doubt/{Escape(parsed.GetValue(position)!)}/abort")));
        command.Add(list);
        command.Add(abort);
        return command;
    }

    static void PrintInDoubt(JsonElement all)
    {
        Table table = new Table().Border(TableBorder.Rounded)
            .AddColumn("prepared at").AddColumn("age", c => c.RightAligned()).AddColumn("state").AddColumn("role").AddColumn("waits for").AddColumn("amount", c => c.RightAligned()).AddColumn("from").AddColumn("to").AddColumn("transaction");
        foreach (JsonElement one in all.GetProperty("in_doubt").EnumerateArray())
        {
            int more = one.GetProperty("postings_count").GetInt32() - 1;
            table.AddRow(
                Text(one, "prepared_at"), $"{one.GetProperty("age_ms").GetInt64() / 1000.0:0.0} s", Text(one, "state"), Text(one, "role"),
                string.Join(", ", one.GetProperty("waits_for").EnumerateArray().Select(number => $"partition {number}")),
                $"{Text(one, "amount")} {Text(one, "currency")}{(more > 0 ? $" and {more} more" : "")}", Text(one, "from_account"), Text(one, "to_account"), Text(one, "transaction_id"));
        }

        if (table.Rows.Count > 0) Terminal.Out.Write(table);
        else Console.WriteLine("nothing is in doubt");
        foreach (JsonElement number in all.GetProperty("unreachable").EnumerateArray()) Terminal.Note($"Partition {number} did not answer: what it has is not listed.");
    }

    public static Command Balance()
    {
        Argument<string> account = new("account") { Description = "The account's name." };
        Option<string?> currency = new("--currency") { Description = "Such as USD; all by default." };
        Option<string?> asOf = new("--as-of") { Description = "At this time, such as 2026-11-23T04:00:00Z." }, at = new("--at") { Description = "At this position, such as 0:12." };
        Option<string> server = ServerOption();
        Option<bool> json = Terminal.JsonOption();
        Command command = new("balance", "Show an account's balances, now or in the past.") { account, currency, asOf, at, server, json };
        command.Validators.Add(result =>
        {
            if (result.GetResult(currency) is null && (result.GetResult(asOf) ?? result.GetResult(at)) is not null) result.AddError("--as-of and --at need --currency.");
        });
        command.SetAction((parsed, _) => CallAsync(parsed, server, json, parsed.GetValue(currency) is null ? PrintAccount : PrintBalance, () =>
        {
            string path = $"/v1/wallet/accounts/{Escape(parsed.GetValue(account)!)}";
            return new HttpRequestMessage(HttpMethod.Get, parsed.GetValue(currency) is string code
                ? path + Parameters("/balance", ("currency", code), ("as_of", parsed.GetValue(asOf)), ("at", parsed.GetValue(at)))
                : path);
        }));
        return command;
    }

    public static Command History()
    {
        Argument<string> account = new("account") { Description = "The account's name." };
        Option<string> currency = new("--currency") { Description = "Such as USD.", Required = true };
        Option<int> limit = new("--limit") { Description = "How many events.", DefaultValueFactory = _ => 50 };
        Option<string?> cursor = new("--cursor") { Description = "Where the page before ended." };
        Option<string?> order = new("--order") { Description = "asc or desc; newest first by default." };
        Option<string> server = ServerOption();
        Option<bool> json = Terminal.JsonOption();
        Command command = new("history", "Show the events that touched a balance.") { account, currency, limit, cursor, order, server, json };
        command.SetAction((parsed, _) => CallAsync(parsed, server, json, PrintHistory, () => new HttpRequestMessage(
            HttpMethod.Get,
            $"/v1/wallet/accounts/{Escape(parsed.GetValue(account)!)}" + Parameters(
                "/history", ("currency", parsed.GetValue(currency)), ("limit", $"{parsed.GetValue(limit)}"), ("cursor", parsed.GetValue(cursor)), ("order", parsed.GetValue(order))))));
        return command;
    }

    static async Task<int> CallAsync(
        ParseResult parsed, Option<string> server, Option<bool> json, Action<JsonElement> print, Func<HttpRequestMessage> toRequest, string? ifUnknown = null)
    {
        string address = parsed.GetValue(server)!;
        try
        {
            using HttpRequestMessage request = toRequest();
            using HttpClient client = new() { BaseAddress = new Uri(address) };
            using HttpResponseMessage response = await client.SendAsync(request);
            using JsonDocument body = JsonDocument.Parse(await response.Content.ReadAsStringAsync());
            if (parsed.GetValue(json)) Console.WriteLine(JsonSerializer.Serialize(body.RootElement, Terminal.Indented));
            else if (response.IsSuccessStatusCode) print(body.RootElement);
            if (response.IsSuccessStatusCode) return Exit.Done;
            Terminal.Error($"{body.RootElement.GetProperty("code").GetString()}: {body.RootElement.GetProperty("detail").GetString()}");
            if (ifUnknown is not null && body.RootElement.GetProperty("outcome").GetString() == "unknown") Terminal.Error(ifUnknown);
            return Exit.Failed;
        }
        catch (HttpRequestException e)
        {
            Terminal.Error($"No answer from {address}: {e.Message}. Is the server running (`purse serve`)? Name another with --server.");
            if (ifUnknown is not null && e.HttpRequestError != HttpRequestError.ConnectionError) Terminal.Error(ifUnknown);
            return Exit.Usage;
        }
        catch (Exception e) when (e is UriFormatException or FormatException or JsonException)
        {
            Terminal.Error(e is UriFormatException ? $"--server is '{address}'; it must be an address such as {ServeCommand.ListenDefault}." : e.Message);
            return Exit.Usage;
        }
    }

    static void PrintAccount(JsonElement account)
    {
        Console.WriteLine($"{account.GetProperty("account").GetString()} is {account.GetProperty("status").GetString()}");
        if (account.TryGetProperty("frozen", out JsonElement frozen)) Console.WriteLine($"frozen: {frozen.GetRawText()}");
        if (account.TryGetProperty("metadata", out JsonElement metadata)) Console.WriteLine($"metadata: {metadata.GetRawText()}");
        JsonElement limits = account.GetProperty("limits");
        if (limits.EnumerateObject().Any()) Console.WriteLine($"limits: {limits.GetRawText()}");
        Table table = new Table().Border(TableBorder.Rounded).AddColumn("currency").AddColumn("posted", c => c.RightAligned()).AddColumn("held", c => c.RightAligned()).AddColumn("available", c => c.RightAligned());
        foreach (JsonProperty balance in account.GetProperty("balances").EnumerateObject())
            table.AddRow(balance.Name, Text(balance.Value, "posted"), Text(balance.Value, "held"), Text(balance.Value, "available"));
        if (table.Rows.Count > 0) Terminal.Out.Write(table);
        else Console.WriteLine("no money yet");
    }

    static void PrintTransfer(JsonElement transfer)
    {
        if (Text(transfer, "status") == "in_doubt")
        {
            Console.WriteLine($"in_doubt: {Text(transfer, "transaction_id")} is under way between partitions; the same again with --id asks what became of it");
            return;
        }

        string status = transfer.TryGetProperty("dry_run", out _) ? $"would be {Text(transfer, "status")}" : Text(transfer, "status");
        JsonElement[] postings = transfer.TryGetProperty("postings", out JsonElement all) ? [.. all.EnumerateArray()] : [transfer];
        foreach (JsonElement posting in postings)
            Console.WriteLine($"{status}: {Text(posting, "amount")} {Text(posting, "currency")} from {Text(posting, "from_account")} to {Text(posting, "to_account")} ({Text(transfer, "transaction_id")}, {Text(transfer, "position")})");
    }

    static void PrintBalance(JsonElement balance) => Console.WriteLine(
        $"{Text(balance, "account")} has {Text(balance, "available")} {Text(balance, "currency")} available (posted {Text(balance, "posted")}, held {Text(balance, "held")}, at {Text(balance, "position")})");

    static void PrintHistory(JsonElement history)
    {
        Table table = new Table().Border(TableBorder.Rounded)
            .AddColumn("position").AddColumn("time").AddColumn("kind").AddColumn("amount", c => c.RightAligned()).AddColumn("counterparty").AddColumn("posted", c => c.RightAligned());
        foreach (JsonElement e in history.GetProperty("events").EnumerateArray())
            table.AddRow(Text(e, "position"), Text(e, "time"), Text(e, "kind"), Text(e, "amount"), Text(e, "counterparty"), Text(e, "posted"));
        Terminal.Out.Write(table);
        if (history.GetProperty("next_cursor").GetString() is string cursor) Console.WriteLine($"more: --cursor {cursor}");
    }

    static string Text(JsonElement element, string member) => element.TryGetProperty(member, out JsonElement value) ? value.GetString() ?? "" : "";

    static string Escape(string account) => Uri.EscapeDataString(account);

    static string Parameters(string path, params ReadOnlySpan<(string Name, string? Value)> parameters)
    {
        List<string> given = [];
        foreach ((string name, string? value) in parameters)
        {
            if (value is not null) given.Add($"{name}={Uri.EscapeDataString(value)}");
        }

        return $"{path}?{string.Join('&', given)}";
    }

    static JsonObject WithReason(JsonObject body, string? reason)
    {
        if (reason is not null) body["reason"] = reason;
        return body;
    }

    static JsonNode? ParseMetadata(string text)
    {
        try
        {
            return JsonNode.Parse(text);
        }
        catch (JsonException e)
        {
            throw new FormatException($"--metadata is '{text}'; it must be a JSON object.", e);
        }
    }

    static JsonObject ParseLimits(string[] limits)
    {
        JsonObject all = [];
        foreach (string limit in limits)
        {
            string[] parts = limit.Split(':');
            if (parts.Length != 3) throw new FormatException($"--limit is '{limit}'; it must be CURRENCY:MIN:MAX, such as USD:-100:1000 or USD::1000.");
            JsonObject one = [];
            if (parts[1].Length > 0) one["min_balance"] = parts[1];
            if (parts[2].Length > 0) one["max_balance"] = parts[2];
            all[parts[0]] = one;
        }

        return all;
    }
}
