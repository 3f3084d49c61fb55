using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Purse.Ledger;
using Purse.Server;
using Purse.Simulation;
using Purse.Tests.Journal;

namespace Purse.Tests.Server;

/// <summary>
/// docs/API.md, the OpenAPI document and what the server does are one: every row and code of the page is in the document, every operation,
/// member and code of the document is met over real HTTP (walk.txt), and nothing else is.
/// </summary>
public sealed partial class ContractTests
{
    static readonly string Page = File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "API.md"));

    [GeneratedRegex("`(GET|POST|PUT|DELETE) (/[^`]*)`(†?)", RegexOptions.NonBacktracking)]
    private static partial Regex Row();

    [GeneratedRegex("`([a-z_]+)`(†?)", RegexOptions.NonBacktracking)]
    private static partial Regex Code();

    /// <summary>What the page says is served, and what is agreed for later.</summary>
    static (HashSet<string> Now, HashSet<string> Later) PageRows() => Split(Page.Split('\n').Where(line => line.StartsWith("| `", StringComparison.Ordinal))
        .SelectMany(line => Row().Matches(line.Split(" | ")[0])).Select(m => ($"{m.Groups[1].Value} {m.Groups[2].Value}", m.Groups[3].Length > 0)));

    static (HashSet<string> Now, HashSet<string> Later) PageCodes() => Split(Page[Page.IndexOf("| HTTP | codes |", StringComparison.Ordinal)..].Split('\n')
        .TakeWhile(line => line.StartsWith('|')).Skip(2).SelectMany(line => Code().Matches(line.Split('|')[2]))
        .Where(m => m.Groups[1].Value is not ("outcome" or "retryable")).Select(m => (m.Groups[1].Value, m.Groups[2].Length > 0)));

    static (HashSet<string>, HashSet<string>) Split(IEnumerable<(string Text, bool IsLater)> all)
    {
        ILookup<bool, string> split = all.ToLookup(one => one.IsLater, one => one.Text);
        return ([.. split[false]], [.. split[true]]);
    }

    [Fact]
    public void The_page_names_exactly_the_codes_that_the_server_has()
    {
        (HashSet<string> now, HashSet<string> later) = PageCodes();
        Assert.Equal(Problem.Codes.Keys.Order(StringComparer.Ordinal), now.Order(StringComparer.Ordinal));
        Assert.Empty(later.Intersect(now));
        // One code has one HTTP status, the one of its row.
        foreach (string line in Page[Page.IndexOf("| HTTP | codes |", StringComparison.Ordinal)..].Split('\n').TakeWhile(line => line.StartsWith('|')).Skip(2))
        {
            string[] cells = line.Split('|');
            int[] statuses = [.. cells[1].Split(',').Select(one => int.Parse(one, CultureInfo.InvariantCulture))];
            Assert.All(Code().Matches(cells[2]).Select(m => m.Groups[1].Value).Where(Problem.Codes.ContainsKey), code => Assert.Contains(Problem.Codes[code].Status, statuses));
        }
    }

    [Fact]
    public void The_page_names_exactly_the_operations_of_the_document()
    {
        IEnumerable<string> operations = ContractChecker.Document.GetProperty("paths").EnumerateObject()
            .SelectMany(path => path.Value.EnumerateObject().Select(operation => $"{operation.Name.ToUpperInvariant()} {path.Name}"));
        // Those are about the document, or are for a program that knows their form.
        Assert.Equal(PageRows().Now.Except(["GET /docs", "GET /openapi/v1.json", "GET /metrics"]).Order(StringComparer.Ordinal), operations.Order(StringComparer.Ordinal));
    }

    /// <summary>With PURSE_WRITE_BASELINE set to a folder, writes it there anew.</summary>
    [Fact]
    public void The_document_is_the_committed_one()
    {
        string document = Encoding.UTF8.GetString(OpenApi.Utf8.Span) + "\n";
        if (Environment.GetEnvironmentVariable("PURSE_WRITE_BASELINE") is { Length: > 0 } folder) File.WriteAllText(Path.Combine(folder, "openapi.json"), document);
        Assert.Equal(File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "openapi.json")), document);
    }

    [Fact]
    public async Task The_server_serves_the_document_and_a_page_to_try_it()
    {
        await using TestServer server = await TestServer.StartAsync();
        Assert.Equal(OpenApi.Utf8.ToArray(), await server.Client.GetByteArrayAsync("/openapi/v1.json"));
        using HttpResponseMessage answer = await server.Client.GetAsync("/docs");
        string page = await answer.Content.ReadAsStringAsync();
        Assert.Contains("connect-src 'self'", answer.Headers.GetValues("Content-Security-Policy").Single(), StringComparison.Ordinal);
        Assert.Contains("openapi/v1.json", page, StringComparison.Ordinal);
        // All that the page loads comes from this server.
        Assert.DoesNotContain("https://", page, StringComparison.Ordinal);
        string script = Regex.Match(page, "script src=\"([^\"]+)\"", RegexOptions.NonBacktracking).Groups[1].Value;
        Assert.True((await server.Client.GetByteArrayAsync(new Uri(new Uri(server.Address, "/docs/"), script))).Length > 100_000);
    }

    [Fact]
    public void Every_example_fits_its_schema()
    {
        ContractChecker checker = new();
        foreach (JsonProperty path in ContractChecker.Document.GetProperty("paths").EnumerateObject())
        {
            foreach (JsonProperty operation in path.Value.EnumerateObject())
            {
                if (operation.Value.TryGetProperty("requestBody", out JsonElement body)) CheckExample(body.GetProperty("content"), $"{operation.Name} {path.Name} request");
                foreach (JsonProperty response in operation.Value.GetProperty("responses").EnumerateObject()) CheckExample(response.Value.GetProperty("content"), $"{operation.Name} {path.Name} {response.Name}");
            }
        }

        JsonElement problem = ContractChecker.Document.GetProperty("components").GetProperty("schemas").GetProperty("Problem");
        foreach (JsonProperty example in ContractChecker.Document.GetProperty("components").GetProperty("examples").EnumerateObject()) checker.Validate(problem, example.Value.GetProperty("value"), example.Name);

        void CheckExample(JsonElement content, string where)
        {
            foreach (JsonProperty media in content.EnumerateObject())
            {
                if (media.Value.TryGetProperty("example", out JsonElement example)) checker.Validate(media.Value.GetProperty("schema"), example, where);
            }
        }
    }

    [Fact]
    public async Task Every_operation_member_and_code_is_met()
    {
        await using TestServer server = await TestServer.StartAsync();
        HashSet<string> codes = [];
        await WalkAsync(server, codes);

        foreach (JsonElement e in await EventsAsync(server)) server.Contract.Validate(JsonElement.Parse("""{"$ref":"#/components/schemas/Event"}"""), e, "event", sees: true);
        Response early = await server.GetAsync("/v1/events?after=0:999999");
        early.IsProblem(400, "time_in_future");
        await MeetTheRestAsync(server, codes);
        await CommitAcrossAsync(server, codes);

        (HashSet<string> pageCodes, _) = PageCodes();
        // A server's own failure has no cause that a test could name: it would be mended.
        Assert.Equal(pageCodes.Except(["internal_error"]).Order(StringComparer.Ordinal), codes.Order(StringComparer.Ordinal));

        // Codes that any operation may answer are met once; those of its own each operation meets.
        HashSet<string> everywhere = [.. "malformed_request forbidden misdirected_request internal_error overloaded partition_unavailable shutting_down deadline_exceeded request_too_large unsupported_media_type storage_full".Split(' ')];
        List<string> missing = [];
        foreach (JsonProperty path in ContractChecker.Document.GetProperty("paths").EnumerateObject())
        {
            foreach (JsonProperty operation in path.Value.EnumerateObject())
            {
                string name = $"{operation.Name.ToUpperInvariant()} {path.Name}";
                IEnumerable<string> documented = operation.Value.GetProperty("responses").EnumerateObject().SelectMany(response => response.Value.GetProperty("content").EnumerateObject())
                    .Where(media => media.Name == "application/problem+json").SelectMany(media => media.Value.GetProperty("examples").EnumerateObject()).Select(example => example.Name);
                if (name != "GET /v1/events") documented = documented.Append("ok");
                missing.AddRange(documented.Except(everywhere).Where(code => !server.Contract.Codes.Contains((name, code))).Select(code => $"{name}: {code}"));
            }
        }

        foreach (JsonProperty schema in ContractChecker.Document.GetProperty("components").GetProperty("schemas").EnumerateObject())
        {
            foreach (JsonProperty member in schema.Value.GetProperty("properties").EnumerateObject())
            {
                string name = $"{schema.Name}.{member.Name}";
                // A journal moves between stores only, which ClusterTests do.
                if (!server.Contract.Members.Contains(name) && name != "Event.store") missing.Add(name);
            }
        }

        Assert.True(missing.Count == 0, string.Join("\n", missing));
    }

    /// <summary>All of the walk.</summary>
    internal static async Task WalkAsync(TestServer server, HashSet<string> codes)
    {
        string[] lines = File.ReadAllLines(Path.Combine(AppContext.BaseDirectory, "Server", "walk.txt"));
        for (int i = 0; i < lines.Length; i++)
        {
            if (lines[i].Length == 0 || lines[i][0] == '#') continue;
            string actual = await WalkAsync(server, lines[i], codes);
            Assert.True(actual == lines[i].Split(" -> ")[^1], $"walk.txt, line {i + 1}: {lines[i]}\ncame out as: {actual}");
        }
    }

    static async Task<List<JsonElement>> EventsAsync(TestServer server) =>
        [.. (await server.Client.GetStringAsync("/v1/events?live=false")).Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => JsonDocument.Parse(line).RootElement)];

    /// <summary>One line of the walk; what came out is what stands after its arrow.</summary>
    static async Task<string> WalkAsync(TestServer server, string line, HashSet<string> codes)
    {
        string command = Ids().Replace(line.Split(" -> ")[0], m => Id(m.Groups[1].Value));
        int brace = command.IndexOf('{', StringComparison.Ordinal);
        string json = brace < 0 ? "" : command[brace..], more = brace < 0 ? "" : "," + command[(brace + 1)..^1];
        string[] words = (brace < 0 ? command : command[..brace]).Split(' ', StringSplitOptions.RemoveEmptyEntries);
        switch (words[0])
        {
            case "await":
                using (CancellationTokenSource limit = new(TimeSpan.FromSeconds(20)))
                {
                    while ((await server.GetAsync(words[1])).Text("status") != words[2]) await Task.Delay(20, limit.Token);
                }

                return line;
            case "shown":
                // All that is flushed: what the walk asks of the view is there.
                using (CancellationTokenSource limit = new(TimeSpan.FromSeconds(20)))
                {
                    ulong flushed = (ulong)(await EventsAsync(server)).Count;
                    while (await server.MetricAsync("purse_view_position", 0) is not double shown || shown < flushed) await Task.Delay(20, limit.Token);
                }

                return line;
            case "fill":
                // To its bound of 10^33 minor units.
                string transfers = string.Join(',', Enumerable.Range(0, 1000).Select(_ => Transfer(Guid.NewGuid().ToString(), "@press", words[1], new string('9', 30), "JPY", "")).Append(Transfer(Guid.NewGuid().ToString(), "@press", words[1], "1000", "JPY", "")));
                Assert.Equal(200, (await server.PostAsync("/v1/wallet/transfers", $$"""{"transfers":[{{transfers}}]}""")).Status);
                return line;
            case "postings":
                string posting = """{"from_account":"@world","to_account":"alice","amount":"1","currency":"USD"}""";
                return Show(await server.PostAsync("/v1/wallet/transactions", $$"""{"transaction_id":"{{Guid.NewGuid()}}","postings":[{{string.Join(',', Enumerable.Repeat(posting, int.Parse(words[1], CultureInfo.InvariantCulture)))}}]}"""), codes);
            case "transfers":
                string same = Transfer(Guid.NewGuid().ToString(), "@world", "alice", "1", "USD", "");
                return Show(await server.PostAsync("/v1/wallet/transfers", $$"""{"transfers":[{{string.Join(',', Enumerable.Repeat(same, int.Parse(words[1], CultureInfo.InvariantCulture)))}}]}"""), codes);
            case "transfer":
                return Show(await server.PostAsync("/v1/wallet/balance_transfer", Transfer(words[1], words[2], words[3], words[4], words[5], more)), codes);
            case "transaction":
                IEnumerable<string> postings = words[2..].Where(word => word != ",").Chunk(4).Select(one => $$"""{"from_account":"{{one[0]}}","to_account":"{{one[1]}}","amount":"{{one[2]}}","currency":"{{one[3]}}"}""");
                return Show(await server.PostAsync("/v1/wallet/transactions", $$"""{"transaction_id":"{{words[1]}}","postings":[{{string.Join(',', postings)}}]{{more}}}"""), codes);
            case "capture" or "void" or "reverse":
                string query = words.Length > 4 ? words[4] : "";
                return Show(await server.PostAsync($"/v1/wallet/transfers/{words[3]}/{words[0]}{query}", $$"""{"transaction_id":"{{words[1]}}"{{more}}}"""), codes);
            default:
                return Show(await server.SendAsync(new HttpMethod(words[0]), words[1], json.Length == 0 ? null : json), codes);
        }
    }

    static string Transfer(string id, string from, string to, string amount, string currency, string more) =>
        $$"""{"from_account":"{{from}}","to_account":"{{to}}","amount":"{{amount}}","currency":"{{currency}}","transaction_id":"{{id}}"{{more}}}""";

    [GeneratedRegex("\\$(\\d+)", RegexOptions.NonBacktracking)]
    private static partial Regex Ids();

    static string Id(string number) => $"0198c0de-0000-7000-8000-{long.Parse(number, CultureInfo.InvariantCulture):x12}";

    static string Show(Response response, HashSet<string> codes)
    {
        if (response.Headers["Content-Type"] != "application/problem+json") return response.Body.TryGetProperty("status", out JsonElement status) ? $"{response.Status} {status.GetString()}" : $"{response.Status}";
        response.IsProblem(response.Status, response.Code);
        codes.Add(response.Code);
        return $"{response.Status} {response.Code}";
    }

    /// <summary>What no well-behaved request to a healthy server gets.</summary>
    static async Task MeetTheRestAsync(TestServer server, HashSet<string> codes)
    {
        using HttpRequestMessage large = new(HttpMethod.Post, "/v1/wallet/balance_transfer") { Content = new StringContent(new string(' ', 64 * 1024 + 1), Encoding.UTF8, "application/json") };
        Assert.Equal("413 request_too_large", Show(await server.SendAsync(large), codes));
        using HttpRequestMessage form = new(HttpMethod.Post, "/v1/wallet/balance_transfer") { Content = new StringContent("a=1", Encoding.UTF8, "application/x-www-form-urlencoded") };
        Assert.Equal("415 unsupported_media_type", Show(await server.SendAsync(form), codes));
        using HttpRequestMessage host = new(HttpMethod.Get, "/healthz") { Headers = { Host = "wallet.example" } };
        Assert.Equal("421 misdirected_request", Show(await server.SendAsync(host), codes));
        Assert.Equal("403 forbidden", Show(await server.SendAsync(HttpMethod.Get, "/healthz", null, ("Origin", "https://shop.example")), codes));
        Assert.Equal("504 deadline_exceeded", Show(await server.SendAsync(HttpMethod.Get, "/v1/wallet/accounts/alice?min_position=0:999999", null, ("X-Request-Timeout-Ms", "50")), codes));

        // A disk that is full: what is new is refused, and says so; what was answered goes on being answered.
        FaultyDisk full = new();
        await using TestServer fullServer = await TestServer.StartAsync(full);
        await fullServer.OpenAsync("alice");
        full.CapacityBytes = full.UsedBytes;
        Response response;
        using (CancellationTokenSource limit = new(TimeSpan.FromSeconds(60)))
        {
            string many = $$"""{"transfers":[{{string.Join(',', Enumerable.Range(0, 200).Select(_ => $$"""{"from_account":"@world","to_account":"alice","amount":"1.00","currency":"USD","transaction_id":"@ID@","description":"{{new string('x', 250)}}"}"""))}}]}""";
            do
            {
                limit.Token.ThrowIfCancellationRequested();
                string fresh = Regex.Replace(many, "@ID@", _ => Guid.NewGuid().ToString(), RegexOptions.NonBacktracking);
                await fullServer.PostAsync("/v1/wallet/transfers", fresh);
                response = await fullServer.TransferAsync("@world", "alice", "1.00");
            }
            while (response.Status == 200);
        }

        Assert.Equal("503 storage_full", Show(response, codes));
        Assert.Equal("1", response.Headers["Retry-After"]);
        Assert.Equal("503 storage_full", Show(await fullServer.GetAsync("/readyz"), codes));
        Assert.Equal(200, (await fullServer.GetAsync("/v1/wallet/accounts/alice")).Status);

        // A disk that fails: nothing is answered that may not be so.
        FaultyDisk failing = new();
        await using TestServer failed = await TestServer.StartAsync(failing);
        await failed.OpenAsync("alice");
        failing.FailFlushIn = 1;
        Response unknown = await failed.TransferAsync("@world", "alice", "1.00");
        unknown.IsProblem(503, "partition_unavailable", "unknown");
        codes.Add(unknown.Code);
        Assert.Equal("503 partition_unavailable", Show(await failed.GetAsync("/v1/wallet/accounts/alice"), codes));

        // A queue of one place, with a flush that does not end.
        FaultyDisk slow = new();
        await using TestServer busy = await TestServer.StartAsync(slow, queuedCommandsMax: 1);
        await busy.OpenAsync("alice");
        slow.FlushGate.Reset();
        List<Task<Response>> waiting = [.. Enumerable.Range(0, 40).Select(_ => busy.TransferAsync("@world", "alice", "1.00"))];
        using (CancellationTokenSource limit = new(TimeSpan.FromSeconds(20)))
        {
            while (!waiting.Any(one => one.IsCompleted)) await Task.Delay(5, limit.Token);
        }

        slow.FlushGate.Set();
        Response[] answers = await Task.WhenAll(waiting);
        Assert.Equal("503 overloaded", Show(answers.First(one => one.Status != 200), codes));
        Assert.Equal($"{answers.Count(one => one.Status == 200) + 100}.00", await busy.BalanceAsync("alice"));

        await using TestServer plain = await TestServer.StartAsync(hasViews: false);
        foreach (string path in (string[])["/v1/wallet/accounts", "/v1/wallet/transfers", "/v1/wallet/accounts/alice?source=view", "/v1/wallet/accounts/alice/balance?currency=USD&source=view"])
            Assert.Equal("503 view_unavailable", Show(await plain.GetAsync(path), codes));
        server.Contract.Codes.UnionWith(plain.Contract.Codes);

        await busy.Server.Partitions[0].DisposeAsync();
        Assert.Equal("503 shutting_down", Show(await busy.TransferAsync("@world", "alice", "1.00"), codes));
    }

    /// <summary>What there is only between partitions: one of two hears nothing for a while, and everything between them is in doubt.</summary>
    static async Task CommitAcrossAsync(TestServer server, HashSet<string> codes)
    {
        FaultyDisk[] disks = [new(), new()];
        await using TestServer two = await TestServer.StartAsync(diskOf: number => disks[number], partitionsCount: 2);
        string[] names = [.. Enumerable.Range(0, 2).Select(partition => Enumerable.Range(0, 100).Select(i => $"a{i}").First(name => AccountName.Parse(name).PartitionOf(2) == partition))];
        foreach (string name in names) await two.OpenAsync(name);
        Guid hold = Guid.NewGuid(), moved = Guid.NewGuid();
        await two.TransferAsync(names[0], names[1], "10.00", id: hold, more: ",\"pending\":true");
        await two.TransferAsync(names[0], names[1], "10.00", id: moved);
        await two.TransferAsync(names[1], names[0], "10.00", id: moved);

        disks[1].FlushGate.Reset();
        (string Path, string Body)[] asked =
        [
            ("/v1/wallet/balance_transfer", Transfer(Guid.NewGuid().ToString(), names[0], names[1], "1.00", "USD", "")),
            ("/v1/wallet/transactions", $$"""{"transaction_id":"{{Guid.NewGuid()}}","postings":[{"from_account":"{{names[0]}}","to_account":"{{names[1]}}","amount":"1","currency":"USD"}]}"""),
            ($"/v1/wallet/transfers/{hold}/capture?account={names[0]}", $$"""{"transaction_id":"{{Guid.NewGuid()}}"}"""),
            ($"/v1/wallet/transfers/{moved}/reverse?account={names[0]}", $$"""{"transaction_id":"{{Guid.NewGuid()}}"}"""),
        ];
        async Task<Response> AskAsync(string path, string body) => await two.SendAsync(HttpMethod.Post, path, body, ("X-Request-Timeout-Ms", "300"));
        foreach ((string path, string body) in asked) Assert.Equal("202 in_doubt", Show(await AskAsync(path, body), codes));
        // Among many, each says for itself.
        string many = $$"""{"transfers":[{{asked[0].Body}},{{Transfer(Guid.NewGuid().ToString(), "@world", names[0], "1.00", "USD", "")}}]}""";
        Response mixed = await AskAsync("/v1/wallet/transfers", many);
        Assert.Equal(["in_doubt", "completed"], mixed.Body.GetProperty("transfers").EnumerateArray().Select(one => one.GetProperty("status").GetString()));
        // What waits for another's decision leaves nothing itself.
        Assert.Equal("504 deadline_exceeded", Show(await AskAsync($"/v1/wallet/transfers/{hold}/void?account={names[0]}", $$"""{"transaction_id":"{{Guid.NewGuid()}}"}"""), codes));

        Response listed = await two.SendAsync(HttpMethod.Get, "/v1/audit/in_doubt", null, ("X-Request-Timeout-Ms", "1000"));
        JsonElement[] entries = [.. listed.Body.GetProperty("in_doubt").EnumerateArray()];
        Assert.Equal((4, 1), (entries.Length, listed.Body.GetProperty("unreachable")[0].GetInt32()));
        foreach (JsonElement one in entries)
        {
            Assert.Equal(("prepared", 1), (one.GetProperty("state").GetString(), one.GetProperty("waits_for")[0].GetInt32()));
            Assert.Equal(200, (await two.PostAsync($"/v1/audit/in_doubt/{one.GetProperty("prepared_at").GetString()}/abort", "{}")).Status);
            Assert.Equal("409 already_decided", Show(await two.PostAsync($"/v1/audit/in_doubt/{one.GetProperty("prepared_at").GetString()}/abort", "{}"), codes));
        }

        Assert.Equal("404 transfer_not_found", Show(await two.PostAsync("/v1/audit/in_doubt/0:999999/abort", "{}"), codes));
        Assert.Equal("400 malformed_request", Show(await two.PostAsync("/v1/audit/in_doubt/0-1/abort", "{}"), codes));
        // The money is free at once, and the answer final, whatever the other says.
        Assert.Equal("91.00", (await two.GetAsync($"/v1/wallet/accounts/{names[0]}/balance?currency=USD")).Text("available"));
        foreach ((string path, string body) in asked) Assert.Equal("409 aborted", Show(await AskAsync(path, body), codes));

        disks[1].FlushGate.Set();
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
        while ((await two.GetAsync("/v1/audit/in_doubt")).Body.GetProperty("in_doubt").GetArrayLength() > 0) await Task.Delay(20, limit.Token);
        Assert.Equal("200 completed", Show(await two.PostAsync(asked[2].Path, $$"""{"transaction_id":"{{Guid.NewGuid()}}"}"""), codes));
        foreach ((string path, string body) in asked) Assert.Equal("409 aborted", Show(await AskAsync(path, body), codes));
        foreach (JsonElement e in await EventsAsync(two)) two.Contract.Validate(JsonElement.Parse("""{"$ref":"#/components/schemas/Event"}"""), e, "event", sees: true);
        server.Contract.Codes.UnionWith(two.Contract.Codes);
        server.Contract.Members.UnionWith(two.Contract.Members);
    }
}
