using System.Globalization;
using System.Text.Json;
using Purse.Cli;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Tests.Server;

public sealed class AccountEndpointTests
{
    [Fact]
    public async Task Opening_again_is_the_same_or_a_conflict()
    {
        await using TestServer server = await TestServer.StartAsync();
        const string body = """{"account":"alice","metadata":{"tier":"gold"},"limits":{"USD":{"min_balance":"-100.00","max_balance":"1000.00"}}}""";
        Response opened = await server.PostAsync("/v1/wallet/accounts", body);
        Assert.Equal((201, "open"), (opened.Status, opened.Text("status")));
        Assert.Equal("-100.00", opened.Body.GetProperty("limits").GetProperty("USD").GetProperty("min_balance").GetString());
        Assert.Equal("gold", opened.Body.GetProperty("metadata").GetProperty("tier").GetString());
        Assert.Equal(200, (await server.PostAsync("/v1/wallet/accounts", body)).Status);
        Assert.Equal(200, (await server.PostAsync("/v1/wallet/accounts", body.Replace("-100.00", "-100", StringComparison.Ordinal))).Status);
        (await server.PostAsync("/v1/wallet/accounts", """{"account":"alice"}""")).IsProblem(409, "account_exists");
        // What could never have been opened is no repetition.
        (await server.PostAsync("/v1/wallet/accounts", body.Replace("USD", "ZZZ", StringComparison.Ordinal))).IsProblem(400, "currency_unknown");
        (await server.PostAsync("/v1/wallet/accounts", body.Replace("1000.00", "0.001", StringComparison.Ordinal))).IsProblem(400, "amount_too_precise");
        (await server.PostAsync("/v1/wallet/accounts", body.Replace("1000.00", "99999999999999999999999999999", StringComparison.Ordinal))).IsProblem(400, "amount_too_large");
        (await server.PostAsync("/v1/wallet/accounts", body.Replace("gold", "lead", StringComparison.Ordinal))).IsProblem(409, "account_exists");
        // The opening counts, not what became of the account since.
        await server.SendAsync(HttpMethod.Put, "/v1/wallet/accounts/alice/limits", """{"limits":{}}""");
        Assert.Equal(200, (await server.PostAsync("/v1/wallet/accounts", body)).Status);
    }

    [Theory]
    [InlineData("""{"account":"@bank"}""", "account_malformed")]
    [InlineData("""{"account":"a","limits":{"USD":{}}}""", "malformed_request")]
    [InlineData("""{"account":"a","limits":{"USD":{"min_balance":"2","max_balance":"1.99"}}}""", "malformed_request")]
    [InlineData("""{"account":"a","limits":{"USD":{"min_balance":"x"}}}""", "amount_malformed")]
    [InlineData("""{"account":"a","limits":{"USD":{"min_balance":"0.001"}}}""", "amount_too_precise")]
    [InlineData("""{"account":"a","limits":{"NOPE":{"min_balance":"0"}}}""", "currency_unknown")]
    [InlineData("""{"account":"a","limits":{"USD":{"min_balance":"1"},"USD":{"min_balance":"2"}}}""", "malformed_request")]
    [InlineData("""{"account":"a","limits":{"USD":null}}""", "malformed_request")]
    public async Task An_opening_of_the_wrong_shape_is_refused(string body, string code)
    {
        await using TestServer server = await TestServer.StartAsync();
        (await server.PostAsync("/v1/wallet/accounts", body)).IsProblem(400, code);
        (await server.GetAsync("/v1/wallet/accounts/a")).IsProblem(404, "account_not_found");
    }

    [Fact]
    public async Task Changes_are_events_with_who_and_why()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("bank/alice");
        const string path = "/v1/wallet/accounts/bank%2Falice";
        Response frozen = await server.PostAsync($"{path}/freeze", """{"direction":"debit","reason":"court order"}""");
        Assert.Equal((200, "frozen"), (frozen.Status, frozen.Text("status")));
        JsonElement how = frozen.Body.GetProperty("frozen");
        Assert.Equal(("debit", "court order", "local"), (how.GetProperty("direction").GetString(), how.GetProperty("reason").GetString(), how.GetProperty("by").GetString()));
        Assert.Equal("second order", (await server.PostAsync($"{path}/freeze", """{"direction":"debit","reason":"second order"}""")).Body.GetProperty("frozen").GetProperty("reason").GetString());
        Assert.Equal("both", (await server.PostAsync($"{path}/freeze", """{"direction":"credit"}""")).Body.GetProperty("frozen").GetProperty("direction").GetString());
        Assert.Equal("open", (await server.SendAsync(HttpMethod.Post, $"{path}/unfreeze")).Text("status"));
        Assert.Equal("b", (await server.SendAsync(HttpMethod.Put, $"{path}/metadata", """{"metadata":{"a":"b"}}""")).Body.GetProperty("metadata").GetProperty("a").GetString());
        Response limited = await server.SendAsync(HttpMethod.Put, $"{path}/limits", """{"limits":{"USD":{"max_balance":"10"}}}""");
        Assert.Equal("10.00", limited.Body.GetProperty("limits").GetProperty("USD").GetProperty("max_balance").GetString());
        Response open = await server.SendAsync(HttpMethod.Post, $"{path}/close");
        open.IsProblem(422, "balance_not_zero");
        Assert.Equal(("USD", "100.00"), (open.Text("currency"), open.Text("posted")));
        await server.TransferAsync("bank/alice", "@world", "100");
        Assert.Equal("closed", (await server.SendAsync(HttpMethod.Post, $"{path}/close", """{"reason":"moved away"}""")).Text("status"));
        Assert.Equal("closed", (await server.SendAsync(HttpMethod.Post, $"{path}/close")).Text("status"));

        List<JsonElement> events = await EventsAsync(server);
        Assert.Equal(
            ["account_opened", "account_opened", "debited", "credited", "frozen", "frozen", "frozen", "unfrozen", "metadata_changed", "limits_changed", "debited", "credited", "closed"],
            events.Select(e => e.GetProperty("kind").GetString()));
        Assert.Equal("moved away", events[^1].GetProperty("reason").GetString());
        Assert.Equal("local", events[^1].GetProperty("by").GetString());
        Assert.Equal(Enumerable.Range(1, events.Count).Select(n => $"0:{n}"), events.Select(e => e.GetProperty("position").GetString()));
        (await server.PostAsync("/v1/wallet/accounts/@world/freeze", """{"direction":"debit"}""")).IsProblem(400, "account_malformed");
        (await server.PostAsync($"{path}/freeze", """{"direction":"sideways"}""")).IsProblem(400, "malformed_request");
        (await server.PostAsync("/v1/wallet/accounts/ghost/freeze", """{"direction":"debit"}""")).IsProblem(404, "account_not_found");
    }

    static async Task<List<JsonElement>> EventsAsync(TestServer server, string query = "live=false")
    {
        using HttpResponseMessage response = await server.Client.GetAsync($"/v1/events?{query}");
        Assert.Equal("application/x-ndjson", response.Content.Headers.ContentType!.MediaType);
        return [.. (await response.Content.ReadAsStringAsync()).Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => JsonDocument.Parse(line).RootElement)];
    }

    [Fact]
    public async Task An_account_shows_all_its_balances_at_one_position()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.TransferAsync("@world", "alice", "7", "JPY");
        Response account = await server.GetAsync("/v1/wallet/accounts/alice");
        JsonElement balances = account.Body.GetProperty("balances");
        Assert.Equal(("100.00", "0.00", "100.00"), (balances.GetProperty("USD").GetProperty("posted").GetString(), balances.GetProperty("USD").GetProperty("held").GetString(), balances.GetProperty("USD").GetProperty("available").GetString()));
        Assert.Equal("7", balances.GetProperty("JPY").GetProperty("posted").GetString());
        Assert.Equal("-7", (await server.GetAsync("/v1/wallet/accounts/@world")).Body.GetProperty("balances").GetProperty("JPY").GetProperty("posted").GetString());
        Assert.Equal("0.00", await server.BalanceAsync("alice", "EUR"));
        Assert.Equal("0.00", await server.BalanceAsync("@never-used"));
        (await server.GetAsync("/v1/wallet/accounts/ghost/balance?currency=USD")).IsProblem(404, "account_not_found");
        (await server.GetAsync("/v1/wallet/accounts/alice/balance")).IsProblem(400, "malformed_request");
        (await server.GetAsync("/v1/wallet/accounts/alice/balance?currency=NOPE")).IsProblem(400, "currency_unknown");
        (await server.GetAsync("/v1/wallet/accounts/alice/balance?curency=USD")).IsProblem(400, "malformed_request");
        string position = account.Text("position");
        // The same from the view, once it shows as much, with its age beside it.
        Response viewed = await server.GetAsync($"/v1/wallet/accounts/alice?source=view&min_position={position}");
        Assert.Equal(("view", position), (viewed.Text("source"), viewed.Text("position")));
        Assert.Equal(balances.GetRawText(), viewed.Body.GetProperty("balances").GetRawText());
        Assert.Equal(200, (await server.GetAsync($"/v1/wallet/accounts/alice/balance?currency=USD&min_position={position}")).Status);
        (await server.SendAsync(HttpMethod.Get, "/v1/wallet/accounts/alice/balance?currency=USD&min_position=0:99", null, ("X-Request-Timeout-Ms", "50"))).IsProblem(504, "deadline_exceeded");
    }

    [Fact]
    public async Task History_pages_are_whole_ordered_and_the_same_after_a_restart()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice", "0");
        List<(string Position, string Time)> all = [];
        for (int i = 1; i <= 45; i++)
        {
            Response moved = await server.TransferAsync("@world", "alice", $"{i}.00");
            all.Add((moved.Text("position"), moved.Text("completed_at")));
        }

        List<string?> before = await PagesAsync("");
        Assert.Equal(all.Select(a => a.Position).Reverse(), before);
        Assert.Equal(all.Select(a => a.Position), await PagesAsync("&order=asc"));
        Assert.Equal(all[10..21].Select(a => a.Position), await PagesAsync($"&order=asc&from={all[10].Time}&to={all[20].Time}"));
        Assert.Equal(all[10..21].Select(a => a.Position).Reverse(), await PagesAsync($"&from={all[10].Time}&to={all[20].Time}"));
        Assert.Empty(await PagesAsync($"&to={all[0].Time.Replace("2026", "2020", StringComparison.Ordinal)}"));

        // A cursor goes on where it was, whatever came since.
        Response page = await server.GetAsync("/v1/wallet/accounts/alice/history?currency=USD&limit=7");
        await server.TransferAsync("@world", "alice", "1.00");
        await server.RestartAsync();
        Response next = await server.GetAsync($"/v1/wallet/accounts/alice/history?currency=USD&limit=7&cursor={page.Text("next_cursor")}");
        Assert.Equal(before[7..14], next.Body.GetProperty("events").EnumerateArray().Select(e => e.GetProperty("position").GetString()));
        (await server.GetAsync("/v1/wallet/accounts/alice/history?currency=USD&limit=0")).IsProblem(400, "malformed_request");
        (await server.GetAsync("/v1/wallet/accounts/alice/history?currency=USD&cursor=%00")).IsProblem(400, "malformed_request");
        (await server.GetAsync("/v1/wallet/accounts/alice/history?currency=USD&order=up")).IsProblem(400, "malformed_request");

        async Task<List<string?>> PagesAsync(string query)
        {
            List<string?> positions = [];
            for (string? cursor = ""; cursor is not null;)
            {
                Response one = await server.GetAsync($"/v1/wallet/accounts/alice/history?currency=USD&limit=7{query}{cursor}");
                Assert.Equal(200, one.Status);
                List<JsonElement> events = [.. one.Body.GetProperty("events").EnumerateArray()];
                Assert.InRange(events.Count, 0, 7);
                positions.AddRange(events.Select(e => e.GetProperty("position").GetString()));
                cursor = one.Body.GetProperty("next_cursor").GetString() is string more ? $"&cursor={more}" : null;
            }

            return positions;
        }
    }

    /// <summary>The issue's own words: as_of a past instant equals purse replay --at that instant, for random accounts and instants.</summary>
    [Fact]
    public async Task As_of_and_at_equal_a_replay_up_to_there()
    {
        await using TestServer server = await TestServer.StartAsync();
        string[] accounts = ["a", "b", "c", "d"];
        foreach (string account in accounts) await server.OpenAsync(account);
        Random random = new(4);
        List<(string Time, string Position)> moments = [];
        for (int i = 0; i < 300; i++)
        {
            string from = accounts[random.Next(4)], to = accounts[random.Next(4)];
            if (from == to) continue;
            Response moved = await server.TransferAsync(from, to, $"{random.Next(1, 30)}.{random.Next(100):00}");
            if (moved.Status == 200) moments.Add((moved.Text("completed_at"), moved.Text("position")));
            if (random.Next(10) == 0) await Task.Delay(random.Next(4));
        }

        using DataFolder folder = DataFolder.OpenForReading(server.Data);
        for (int n = 0; n < 80; n++)
        {
            (string time, string position) = moments[random.Next(moments.Count)];
            // The instant of a transfer, just before it, or somewhere between two.
            long micros = Purse.Server.Query.TimeMicros("time", time) + random.Next(-2, 300);
            string asOf = Purse.Server.Answer.Time(micros), account = accounts[random.Next(4)];
            State byTime = JournalCommands.ReplayPartition(folder.Store(0), folder.PartitionsCount, false, ulong.MaxValue, micros, static _ => { }).State;
            State byPosition = JournalCommands.ReplayPartition(folder.Store(0), folder.PartitionsCount, false, ulong.Parse(position[2..], CultureInfo.InvariantCulture), long.MaxValue, static _ => { }).State;
            Response then = await server.GetAsync($"/v1/wallet/accounts/{account}/balance?currency=USD&as_of={asOf}");
            Assert.Equal(Posted(byTime, account), then.Text("posted"));
            Assert.True(!then.Body.TryGetProperty("event", out JsonElement made) || made.GetProperty("posted").GetString() == then.Text("posted"));
            Assert.Equal(Posted(byPosition, account), (await server.GetAsync($"/v1/wallet/accounts/{account}/balance?currency=USD&at={position}")).Text("posted"));
        }

        (await server.GetAsync("/v1/wallet/accounts/a/balance?currency=USD&as_of=2999-01-01T00:00:00Z")).IsProblem(400, "time_in_future");
        (await server.GetAsync("/v1/wallet/accounts/a/balance?currency=USD&at=0:999999")).IsProblem(400, "time_in_future");
        (await server.GetAsync("/v1/wallet/accounts/a/balance?currency=USD&as_of=yesterday")).IsProblem(400, "malformed_request");
        Assert.Equal("0.00", (await server.GetAsync("/v1/wallet/accounts/a/balance?currency=USD&as_of=2020-01-01T00:00:00Z")).Text("posted"));
    }

    static string Posted(State state, string account)
    {
        Assert.True(state.TryCurrency(CurrencyCode.Parse("USD"), out uint usd, out int decimals));
        return Amount.Format(state.Balance(state.Names.Find(AccountName.Parse(account)), usd).Posted, decimals);
    }

    [Fact]
    public async Task The_event_stream_resumes_anywhere_and_goes_on_live()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        for (int i = 0; i < 20; i++) await server.TransferAsync("@world", "alice", "1.00");
        List<JsonElement> all = await EventsAsync(server);
        for (int after = 0; after <= all.Count; after += 5)
            Assert.Equal(all.Skip(after).Select(e => e.GetRawText()), (await EventsAsync(server, $"live=false&after=0:{after}")).Select(e => e.GetRawText()));

        using Stream stream = await server.Client.GetStreamAsync($"/v1/events?after=0:{all.Count}");
        using StreamReader live = new(stream);
        Task<string?> next = live.ReadLineAsync();
        await server.TransferAsync("alice", "@world", "3.00");
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
        Assert.Contains("\"debited\"", await next.WaitAsync(limit.Token), StringComparison.Ordinal);
        Assert.Contains("\"credited\"", await live.ReadLineAsync(limit.Token), StringComparison.Ordinal);

        foreach (string query in new[] { "after=0:999", "after=0:18446744073709551615", "after=x", "partition=1", "live=maybe" })
            Assert.Equal(400, (await server.GetAsync($"/v1/events?{query}")).Status);
        // A stopping server ends live streams.
        Task<string> rest = live.ReadToEndAsync();
        await server.StopAsync();
        await rest.WaitAsync(limit.Token);
    }

    [Fact]
    public async Task Health_and_readiness()
    {
        await using TestServer server = await TestServer.StartAsync();
        Assert.Equal("alive", (await server.GetAsync("/healthz")).Text("status"));
        Assert.Equal("ready", (await server.GetAsync("/readyz")).Text("status"));
    }
}
