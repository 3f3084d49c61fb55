using System.Collections.Concurrent;
using System.Net;
using System.Net.Http.Json;
using System.Text.Json;
using Purse.Cli;

namespace Purse.Integration;

/// <summary>
/// Kills the server process with SIGKILL under load, at random moments, again and again. Clients write down what was acknowledged; then:
/// nothing acknowledged is lost, nothing is applied twice, sums are zero, <c>verify</c> passes, and a replay equals the served state.
/// </summary>
public sealed class CrashTests
{
    const int Kills = 20;
    const int Clients = 16;
    const int Accounts = 12;

    /// <summary>What a client was told about an id: the answer's status and body.</summary>
    readonly ConcurrentDictionary<Guid, (int Status, string Body, string Path, string Request)> _acknowledged = new();
    readonly ConcurrentDictionary<Guid, string> _unanswered = new();

    [Fact]
    public async Task Nothing_acknowledged_is_lost_and_nothing_is_applied_twice()
    {
        int seed = Environment.TickCount;
        Random random = new(seed);
        using TemporaryFolder folder = new();
        ServerProcess server = await ServerProcess.StartAsync(folder.Path);
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
            for (int kill = 0; kill < Kills; kill++)
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
            await CheckAsync(server, folder.Path, seed);
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

    static string Body(Guid id, string from, string to, string amount) =>
        $$"""{"from_account":"{{from}}","to_account":"{{to}}","amount":"{{amount}}","currency":"USD","transaction_id":"{{id}}"}""";

    async Task LoadAsync(int seed, Func<Uri> address, CancellationToken end)
    {
        Random random = new(seed);
        using HttpClient http = new() { Timeout = TimeSpan.FromSeconds(20) };
        while (!end.IsCancellationRequested)
        {
            try
            {
                if (random.Next(50) == 0) await ChangeAsync(http, address(), random);
                int from = random.Next(Accounts), to = (from + 1 + random.Next(Accounts - 1)) % Accounts;
                Guid id = Guid.NewGuid();
                // Amounts are large enough for some to be refused: refusals are acknowledged for ever as well.
                string body = Body(id, $"a{from}", $"a{to}", $"{random.Next(0, 80)}.{random.Next(1, 100):00}");
                bool pending = random.Next(4) == 0;
                // Every hold ends: by capture, by void, or when it is due.
                if (pending) body = body[..^1] + ",\"pending\":true,\"expires_in\":1}";
                _unanswered[id] = body;
                await SendAsync(http, address(), id, body);
                if (!pending || random.Next(3) == 0) continue;
                Guid endId = Guid.NewGuid();
                bool capture = random.Next(2) == 0;
                string endBody = capture && random.Next(2) == 0 ? $$"""{"transaction_id":"{{endId}}","amount":"0.01"}""" : $$"""{"transaction_id":"{{endId}}"}""";
                _unanswered[endId] = endBody;
                await SendAsync(http, address(), endId, endBody, $"/v1/wallet/transfers/{id}/{(capture ? "capture" : "void")}");
            }
            catch (Exception e) when (e is HttpRequestException or TaskCanceledException)
            {
                await Task.Delay(5, CancellationToken.None);
            }
        }
    }

    async Task SendAsync(HttpClient http, Uri address, Guid id, string body, string path = "/v1/wallet/balance_transfer")
    {
        using StringContent content = new(body, System.Text.Encoding.UTF8, "application/json");
        using HttpResponseMessage response = await http.PostAsync(new Uri(address, path), content);
        string text = await response.Content.ReadAsStringAsync();
        Assert.True(
            response.StatusCode is HttpStatusCode.OK or HttpStatusCode.UnprocessableEntity or HttpStatusCode.Conflict or HttpStatusCode.NotFound or HttpStatusCode.ServiceUnavailable,
            $"{(int)response.StatusCode}: {text}");
        // Not found: the hold itself was lost with its answer never given; nothing is remembered of that.
        if (response.StatusCode is HttpStatusCode.ServiceUnavailable or HttpStatusCode.NotFound) return;
        _acknowledged[id] = ((int)response.StatusCode, text, path, body);
        _unanswered.TryRemove(id, out _);
    }

    static async Task ChangeAsync(HttpClient http, Uri address, Random random)
    {
        string account = $"/v1/wallet/accounts/a{random.Next(Accounts)}";
        (HttpMethod method, string path, string body) = random.Next(4) switch
        {
            0 => (HttpMethod.Post, "/freeze", """{"direction":"debit","reason":"test"}"""),
            1 => (HttpMethod.Put, "/limits", """{"limits":{"USD":{"max_balance":"500.00"}}}"""),
            2 => (HttpMethod.Put, "/metadata", """{"metadata":{"n":1}}"""),
            _ => (HttpMethod.Post, "/unfreeze", "{}"),
        };
        using HttpRequestMessage request = new(method, new Uri(address, account + path)) { Content = new StringContent(body, System.Text.Encoding.UTF8, "application/json") };
        (await http.SendAsync(request)).Dispose();
    }

    async Task CheckAsync(ServerProcess server, string data, int seed)
    {
        using HttpClient http = new() { BaseAddress = server.Address };
        // Every acknowledged answer is given again, word for word.
        Guid[] sample = [.. _acknowledged.Keys];
        await Parallel.ForEachAsync(sample, new ParallelOptions { MaxDegreeOfParallelism = 16 }, async (id, _) =>
        {
            (int status, string body, string path, string request) = _acknowledged[id];
            using StringContent content = new(request, System.Text.Encoding.UTF8, "application/json");
            using HttpResponseMessage again = await http.PostAsync(path, content, CancellationToken.None);
            Assert.True(again.Headers.Contains("Idempotent-Replayed"), $"{id} was acknowledged and is not remembered (seed {seed})");
            Assert.Equal((status, body), ((int)again.StatusCode, await again.Content.ReadAsStringAsync(CancellationToken.None)));
        });

        // Those without an answer happened once or not at all, and the server knows which.
        int happened = 0;
        foreach (Guid id in _unanswered.Keys)
        {
            using HttpResponseMessage story = await http.GetAsync($"/v1/wallet/transfers/{id}");
            Assert.True(story.StatusCode is HttpStatusCode.OK or HttpStatusCode.NotFound);
            if (story.StatusCode == HttpStatusCode.OK) happened++;
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

        // Each id once in the journal: one debit and one credit, or one refusal.
        (int exit, string export, _) = await PurseProcess.RunAsync("export", "--data", data, "--format", "jsonl");
        Assert.Equal(0, exit);
        Dictionary<string, int> kinds = [];
        foreach (string line in export.Split('\n', StringSplitOptions.RemoveEmptyEntries))
        {
            using JsonDocument e = JsonDocument.Parse(line);
            if (!e.RootElement.TryGetProperty("transaction_id", out JsonElement id)) continue;
            string key = $"{id.GetString()} {e.RootElement.GetProperty("kind").GetString()}";
            kinds[key] = kinds.GetValueOrDefault(key) + 1;
        }

        Assert.All(kinds, kind => Assert.Equal(1, kind.Value));
        int remembered = kinds.Keys.Select(k => k.Split(' ')[0]).Distinct().Count();
        Assert.Equal(_acknowledged.Count + happened, remembered);
        TestContext.Current.SendDiagnosticMessage($"{_acknowledged.Count} acknowledged, {_unanswered.Count} unanswered of which {happened} happened, {Kills} kills, seed {seed}");
    }
}
