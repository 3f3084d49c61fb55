using System.Collections.Concurrent;
using System.Net;
using System.Net.Http.Json;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Purse.Cli;

namespace Purse.Integration;

/// <summary>
/// Kills the server process with SIGKILL under a load of every kind of command, at random moments, again and again. Clients write down what
/// was acknowledged; then: nothing acknowledged is lost, nothing is applied twice, no hold leaked, sums are zero, <c>verify</c> passes, and a
/// replay equals the served state.
/// </summary>
public sealed class CrashTests
{
    const int Clients = 64;
    const int Accounts = 10;

    /// <summary>What a client was told about an id: the answer's status and body. Of one among many, what it would have got alone.</summary>
    readonly ConcurrentDictionary<Guid, (int Status, string Body, string Path, string Request)> _acknowledged = new();
    readonly ConcurrentDictionary<Guid, string> _unanswered = new();

    /// <summary>Ids of dry runs: nothing may be known of them.</summary>
    readonly ConcurrentBag<Guid> _tried = [];

    /// <summary>With several partitions, most of what moves money moves it between them.</summary>
    [Theory]
    [InlineData(1, 20)]
    [InlineData(8, 20)]
    public async Task Nothing_acknowledged_is_lost_and_nothing_is_applied_twice(int partitions, int kills)
    {
        int seed = Environment.TickCount;
        Random random = new(seed);
        using TemporaryFolder folder = new();
        ServerProcess server = await ServerProcess.StartAsync(["serve", "--data", folder.Path, "--listen", "http://127.0.0.1:0", "--partitions", $"{partitions}"]);
        try
        {
            using HttpClient setUp = new();
            for (int i = 0; i < Accounts; i++)
            {
                Assert.True((await setUp.PostAsJsonAsync(new Uri(server.Address, "/v1/wallet/accounts"), new { account = $"a{i}" })).IsSuccessStatusCode);
                await SendAsync(setUp, server.Address, Guid.NewGuid(), Body(Guid.NewGuid(), "@world", $"a{i}", "200.00"));
            }

            using CancellationTokenSource end = new();
            Task[] clients = [.. Enumerable.Range(0, Clients).Select(client => Task.Run(() => LoadAsync(client + seed, () => server.Address, end.Token)))];
            for (int kill = 0; kill < kills; kill++)
            {
                int before = _acknowledged.Count;
                for (int waited = 0; _acknowledged.Count == before; waited++)
                {
                    Assert.True(waited < 2000, $"no load before kill {kill} (seed {seed})");
                    await Task.Delay(10);
                }

                await Task.Delay(random.Next(1, 700));
                server.Kill();
                server.Dispose();
                server = await ServerProcess.StartAsync(folder.Path);
            }

            await Task.Delay(300);
            await end.CancelAsync();
            await Task.WhenAll(clients);
            await CheckAsync(server, folder.Path, $"{partitions} partitions, {kills} kills, seed {seed}");
        }
        finally
        {
            server.Dispose();
        }
    }

    /// <summary>Excludes: a stop that drops what it has accepted. A request without an answer left nothing behind.</summary>
    [Fact]
    public async Task A_server_told_to_stop_answers_all_that_it_has_begun()
    {
        using TemporaryFolder folder = new();
        using ServerProcess server = await ServerProcess.StartAsync(folder.Path);
        using HttpClient setUp = new();
        for (int i = 0; i < Accounts; i++)
        {
            Assert.True((await setUp.PostAsJsonAsync(new Uri(server.Address, "/v1/wallet/accounts"), new { account = $"a{i}" })).IsSuccessStatusCode);
            Guid id = Guid.NewGuid();
            await SendAsync(setUp, server.Address, id, Body(id, "@world", $"a{i}", "200.00"));
        }

        using CancellationTokenSource end = new();
        Task[] clients = [.. Enumerable.Range(0, Clients).Select(client => Task.Run(() => LoadAsync(client, () => server.Address, end.Token)))];
        int before = _acknowledged.Count;
        while (_acknowledged.Count < before + 200) await Task.Delay(5);
        Assert.Equal(0, await server.StopAsync());
        await end.CancelAsync();
        await Task.WhenAll(clients);

        using ServerProcess again = await ServerProcess.StartAsync(folder.Path);
        using HttpClient http = new() { BaseAddress = again.Address };
        foreach (Guid id in _unanswered.Keys)
        {
            using HttpResponseMessage story = await http.GetAsync($"/v1/wallet/transfers/{id}");
            Assert.Equal(HttpStatusCode.NotFound, story.StatusCode);
        }

        Assert.NotEmpty(Directory.GetFiles(Path.Combine(folder.Path, "partitions/0/snapshots")));
    }

    /// <summary>Excludes: a stop that is cut short by a limit of the command line's library (2 s), with a request half received.</summary>
    [Fact]
    public async Task A_server_told_to_stop_waits_for_a_slow_request()
    {
        using TemporaryFolder folder = new();
        using ServerProcess server = await ServerProcess.StartAsync(folder.Path);
        using HttpClient http = new() { BaseAddress = server.Address };
        Assert.True((await http.PostAsJsonAsync("/v1/wallet/accounts", new { account = "slow" })).IsSuccessStatusCode);
        string body = Body(Guid.NewGuid(), "@world", "slow", "1.00");

        using TcpClient client = new(server.Address.Host, server.Address.Port);
        await using NetworkStream stream = client.GetStream();
        await stream.WriteAsync(Encoding.UTF8.GetBytes(
            $"POST /v1/wallet/balance_transfer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {body.Length}\r\n\r\n{body[..40]}"));
        // Together shorter than a body may pause (5 s).
        await Task.Delay(TimeSpan.FromSeconds(0.5));
        Task<int> stopped = server.StopAsync();
        await Task.Delay(TimeSpan.FromSeconds(3));
        await stream.WriteAsync(Encoding.UTF8.GetBytes(body[40..]));

        using StreamReader reader = new(stream);
        Assert.Equal("HTTP/1.1 200 OK", await reader.ReadLineAsync());
        Assert.Equal(0, await stopped);
    }

    static string Body(Guid id, string from, string to, string amount) =>
        $$"""{"from_account":"{{from}}","to_account":"{{to}}","amount":"{{amount}}","currency":"USD","transaction_id":"{{id}}"}""";

    async Task LoadAsync(int seed, Func<Uri> address, CancellationToken end)
    {
        Random random = new(seed);
        using HttpClient http = new() { Timeout = TimeSpan.FromSeconds(20) };
        // What this client moved, to be taken back now and then.
        List<(Guid Id, bool IsTransaction)> moved = [];
        while (!end.IsCancellationRequested)
        {
            try
            {
                switch (random.Next(40))
                {
                    case 0:
                        await ChangeAsync(http, address(), random);
                        break;
                    case < 6:
                        await TransactAsync(http, address(), random, moved);
                        break;
                    case < 12 when moved.Count > 0:
                        await ReverseAsync(http, address(), random, moved);
                        break;
                    case < 15:
                        await SendManyAsync(http, address(), random);
                        break;
                    case 15:
                        Guid tried = Guid.NewGuid();
                        _tried.Add(tried);
                        (await http.PostAsync(new Uri(address(), "/v1/wallet/balance_transfer"), Json(Transfer(tried, random, ",\"dry_run\":true")))).Dispose();
                        break;
                    default:
                        await TransferAsync(http, address(), random, moved);
                        break;
                }
            }
            catch (Exception e) when (e is HttpRequestException or TaskCanceledException)
            {
                await Task.Delay(20, CancellationToken.None);
            }
        }
    }

    /// <summary>Amounts are large enough for some to be refused: refusals are acknowledged for ever as well.</summary>
    static string Transfer(Guid id, Random random, string more = "")
    {
        int from = random.Next(Accounts), to = (from + 1 + random.Next(Accounts - 1)) % Accounts;
        return Body(id, $"a{from}", $"a{to}", $"{random.Next(0, 80)}.{random.Next(1, 100):00}")[..^1] + more + "}";
    }

    static StringContent Json(string body) => new(body, Encoding.UTF8, "application/json");

    async Task TransferAsync(HttpClient http, Uri address, Random random, List<(Guid Id, bool IsTransaction)> moved)
    {
        Guid id = Guid.NewGuid();
        bool pending = random.Next(4) == 0;
        // Every hold ends: by capture, by void, or when it is due.
        string body = Transfer(id, random, (pending ? ",\"pending\":true,\"expires_in\":1" : "") + (random.Next(8) == 0 ? ",\"up_to\":true" : ""));
        int status = await SendAsync(http, address, id, body);
        if (!pending && status == 200) moved.Add((id, false));
        if (!pending || random.Next(3) == 0) return;
        Guid endId = Guid.NewGuid();
        bool capture = random.Next(2) == 0;
        string endBody = capture && random.Next(2) == 0 ? $$"""{"transaction_id":"{{endId}}","amount":"0.01"}""" : $$"""{"transaction_id":"{{endId}}"}""";
        if (await SendAsync(http, address, endId, endBody, $"/v1/wallet/transfers/{id}/{(capture ? "capture" : "void")}") == 200 && capture) moved.Add((endId, false));
    }

    /// <summary>Through a third: the second posting spends what the first one brings.</summary>
    async Task TransactAsync(HttpClient http, Uri address, Random random, List<(Guid Id, bool IsTransaction)> moved)
    {
        Guid id = Guid.NewGuid();
        int from = random.Next(Accounts);
        string amount = $"{random.Next(0, 60)}.{random.Next(1, 100):00}";
        IEnumerable<string> postings = Enumerable.Range(0, 1 + random.Next(4)).Select(i => Body(id, $"a{(from + i) % Accounts}", $"a{(from + i + 1) % Accounts}", amount).Replace($",\"transaction_id\":\"{id}\"", "", StringComparison.Ordinal));
        if (await SendAsync(http, address, id, $$"""{"transaction_id":"{{id}}","postings":[{{string.Join(',', postings)}}]}""", "/v1/wallet/transactions") == 200) moved.Add((id, true));
    }

    /// <summary>In full or in part; a transaction in full. What took something back can be taken back itself.</summary>
    async Task ReverseAsync(HttpClient http, Uri address, Random random, List<(Guid Id, bool IsTransaction)> moved)
    {
        (Guid original, bool isTransaction) = moved[random.Next(moved.Count)];
        Guid id = Guid.NewGuid();
        string amount = isTransaction || random.Next(2) == 0 ? "" : ",\"amount\":\"0.01\"";
        if (await SendAsync(http, address, id, $$"""{"transaction_id":"{{id}}"{{amount}}}""", $"/v1/wallet/transfers/{original}/reverse") == 200) moved.Add((id, isTransaction));
    }

    async Task SendManyAsync(HttpClient http, Uri address, Random random)
    {
        (Guid Id, string Body)[] items = [.. Enumerable.Range(0, 1 + random.Next(20)).Select(_ => Guid.NewGuid()).Select(id => (id, Transfer(id, random)))];
        foreach ((Guid id, string body) in items) _unanswered[id] = body;
        using HttpResponseMessage response = await http.PostAsync(new Uri(address, "/v1/wallet/transfers"), Json($$"""{"transfers":[{{string.Join(',', items.Select(one => one.Body))}}]}"""));
        string text = await response.Content.ReadAsStringAsync();
        Assert.True(response.StatusCode is HttpStatusCode.OK or HttpStatusCode.ServiceUnavailable, text);
        if (response.StatusCode != HttpStatusCode.OK) return;
        using JsonDocument answers = JsonDocument.Parse(text);
        foreach (((Guid id, string body), JsonElement answer) in items.Zip(answers.RootElement.GetProperty("transfers").EnumerateArray()))
        {
            int status = answer.TryGetProperty("http_status", out JsonElement refused) ? refused.GetInt32() : 200;
            if (status == 503 || answer.GetProperty("status").GetString() == "in_doubt") continue;
            _acknowledged[id] = (status, status == 200 ? answer.GetRawText() : "", "/v1/wallet/balance_transfer", body);
            _unanswered.TryRemove(id, out _);
        }
    }

    /// <returns>The status; 0 where there is no final answer.</returns>
    async Task<int> SendAsync(HttpClient http, Uri address, Guid id, string body, string path = "/v1/wallet/balance_transfer")
    {
        _unanswered[id] = body;
        using StringContent content = Json(body);
        using HttpResponseMessage response = await http.PostAsync(new Uri(address, path), content);
        string text = await response.Content.ReadAsStringAsync();
        Assert.True(
            response.StatusCode is HttpStatusCode.OK or HttpStatusCode.UnprocessableEntity or HttpStatusCode.Conflict or HttpStatusCode.NotFound or HttpStatusCode.ServiceUnavailable
                or HttpStatusCode.Accepted or HttpStatusCode.GatewayTimeout,
            $"{(int)response.StatusCode}: {text}");
        // Not found: the hold itself was lost with its answer never given; nothing is remembered of that.
        if (response.StatusCode is HttpStatusCode.ServiceUnavailable or HttpStatusCode.NotFound or HttpStatusCode.Accepted or HttpStatusCode.GatewayTimeout) return 0;
        _acknowledged[id] = ((int)response.StatusCode, text, path, body);
        _unanswered.TryRemove(id, out _);
        return (int)response.StatusCode;
    }

    static async Task ChangeAsync(HttpClient http, Uri address, Random random)
    {
        const string accounts = "/v1/wallet/accounts";
        string account = $"{accounts}/a{random.Next(Accounts)}", other = $"b{random.Next(50)}";
        (HttpMethod method, string path, string body) = random.Next(7) switch
        {
            0 => (HttpMethod.Post, $"{account}/freeze", """{"direction":"debit","reason":"test"}"""),
            1 => (HttpMethod.Put, $"{account}/limits", """{"limits":{"USD":{"max_balance":"500.00"}}}"""),
            2 => (HttpMethod.Put, $"{account}/metadata", """{"metadata":{"n":1}}"""),
            3 => (HttpMethod.Post, accounts, $$"""{"account":"{{other}}"}"""),
            4 => (HttpMethod.Post, $"{accounts}/{other}/close", "{}"),
            5 => (HttpMethod.Post, "/v1/wallet/currencies", $$"""{"currency":"GEM{{random.Next(10)}}","decimals":3}"""),
            _ => (HttpMethod.Post, $"{account}/unfreeze", "{}"),
        };
        using HttpRequestMessage request = new(method, new Uri(address, path)) { Content = Json(body) };
        (await http.SendAsync(request)).Dispose();
    }

    async Task CheckAsync(ServerProcess server, string data, string run)
    {
        using HttpClient http = new() { BaseAddress = server.Address };
        // What was under way between partitions ends without anybody asking.
        using (CancellationTokenSource inDoubt = new(TimeSpan.FromSeconds(5)))
        {
            while ((await http.GetFromJsonAsync<JsonElement>("/v1/audit/in_doubt")) is var list && list.GetProperty("in_doubt").GetArrayLength() + list.GetProperty("unreachable").GetArrayLength() > 0)
            {
                Assert.False(inDoubt.IsCancellationRequested, $"still in doubt after 5 s: {list} ({run})");
                await Task.Delay(20);
            }
        }

        // Every acknowledged answer is given again, word for word.
        Guid[] sample = [.. _acknowledged.Keys];
        await Parallel.ForEachAsync(sample, new ParallelOptions { MaxDegreeOfParallelism = 16 }, async (id, _) =>
        {
            (int status, string body, string path, string request) = _acknowledged[id];
            using StringContent content = new(request, Encoding.UTF8, "application/json");
            using HttpResponseMessage again = await http.PostAsync(path, content, CancellationToken.None);
            Assert.True(again.Headers.Contains("Idempotent-Replayed"), $"{id} was acknowledged and is not remembered ({run})");
            string text = await again.Content.ReadAsStringAsync(CancellationToken.None);
            Assert.Equal((status, body), ((int)again.StatusCode, body.Length == 0 ? "" : text));
        });

        // Those without an answer happened once or not at all, and the server knows which.
        int happened = 0;
        foreach (Guid id in _unanswered.Keys)
        {
            using HttpResponseMessage story = await http.GetAsync($"/v1/wallet/transfers/{id}");
            Assert.True(story.StatusCode is HttpStatusCode.OK or HttpStatusCode.NotFound);
            if (story.StatusCode == HttpStatusCode.OK) happened++;
        }

        foreach (Guid id in _tried)
        {
            using HttpResponseMessage story = await http.GetAsync($"/v1/wallet/transfers/{id}");
            Assert.Equal(HttpStatusCode.NotFound, story.StatusCode);
        }

        // No hold leaks: all are due within a second.
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(10));
        Dictionary<string, string> served = [];
        for (int i = 0; i < Accounts; i++)
        {
            while ((await http.GetFromJsonAsync<JsonElement>($"/v1/wallet/accounts/a{i}/balance?currency=USD")).GetProperty("held").GetString() != "0.00")
                await Task.Delay(20, limit.Token);
        }

        for (int i = 0; i < Accounts; i++)
            served[$"a{i}"] = (await http.GetFromJsonAsync<JsonElement>($"/v1/wallet/accounts/a{i}/balance?currency=USD")).GetProperty("posted").GetString()!;

        JsonElement verified = await PurseProcess.JsonAsync("verify", "--data", data);
        Assert.True(verified.GetProperty("ok").GetBoolean());
        JsonElement replayed = await PurseProcess.JsonAsync("replay", "--data", data);
        Assert.Equal("0.00", replayed.GetProperty("sums").GetProperty("USD").GetString());
        Dictionary<string, string> fromReplay = replayed.GetProperty("balances").EnumerateArray()
            .Where(b => b.GetProperty("account").GetString()![0] == 'a')
            .ToDictionary(b => b.GetProperty("account").GetString()!, b => b.GetProperty("posted").GetString()!);
        Assert.Equal(served, fromReplay);

        // Each id once in the journal: one debit and one credit (of each posting), or one refusal.
        (int exit, string export, _) = await PurseProcess.RunAsync("export", "--data", data, "--format", "jsonl");
        Assert.Equal(0, exit);
        Dictionary<string, int> kinds = [];
        foreach (string line in export.Split('\n', StringSplitOptions.RemoveEmptyEntries))
        {
            using JsonDocument e = JsonDocument.Parse(line);
            if (!e.RootElement.TryGetProperty("transaction_id", out JsonElement id)) continue;
            // The steps between partitions are one a partition.
            if (e.RootElement.GetProperty("kind").GetString() is "prepared" or "refused" or "committed" or "aborted" or "finished") continue;
            string posting = e.RootElement.TryGetProperty("posting", out JsonElement index) ? $" {index.GetInt32()}" : "";
            string key = $"{id.GetString()} {e.RootElement.GetProperty("kind").GetString()}{posting}";
            kinds[key] = kinds.GetValueOrDefault(key) + 1;
        }

        Assert.All(kinds, kind => Assert.Equal(1, kind.Value));
        int remembered = kinds.Keys.Select(k => k.Split(' ')[0]).Distinct().Count();
        Assert.Equal(_acknowledged.Count + happened, remembered);
        TestContext.Current.SendDiagnosticMessage($"{_acknowledged.Count} acknowledged, {_unanswered.Count} unanswered of which {happened} happened, {run}");
    }
}
