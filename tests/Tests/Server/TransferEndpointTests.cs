using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Purse.Simulation;

namespace Purse.Tests.Server;

public sealed class TransferEndpointTests
{
    [Fact]
    public async Task A_transfer_is_answered_with_every_member_and_moves_the_money()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("bob", "0");
        Guid id = Guid.NewGuid();
        Response response = await server.TransferAsync("alice", "bob", "12.3", id: id, more: ""","description":"lunch","metadata":{"order":"A-17"}""");
        Assert.Equal(200, response.Status);
        Assert.Equal(
            ["transaction_id", "status", "from_account", "to_account", "amount", "currency", "completed_at", "position"],
            response.Body.EnumerateObject().Select(m => m.Name));
        Assert.Equal((id.ToString(), "completed", "alice", "bob", "12.30", "USD"), (
            response.Text("transaction_id"), response.Text("status"), response.Text("from_account"), response.Text("to_account"), response.Text("amount"), response.Text("currency")));
        Assert.Matches(@"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$", response.Text("completed_at"));
        Assert.Matches(@"^0:\d+$", response.Text("position"));
        Assert.DoesNotContain("Idempotent-Replayed", response.Headers.Keys);
        Assert.Equal(("87.70", "12.30", "-100.00"), (await server.BalanceAsync("alice"), await server.BalanceAsync("bob"), await server.BalanceAsync("@world")));

        Response story = await server.GetAsync($"/v1/wallet/transfers/{id}");
        Assert.Equal(("completed", "12.30", "lunch"), (story.Text("status"), story.Text("amount"), story.Text("description")));
        Assert.Equal("A-17", story.Body.GetProperty("metadata").GetProperty("order").GetString());
        Assert.Equal(["debited", "credited"], story.Body.GetProperty("events").EnumerateArray().Select(e => e.GetProperty("kind").GetString()));
    }

    [Fact]
    public async Task The_same_again_gets_the_original_answer_also_after_a_restart()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("bob", "0");
        Guid done = Guid.NewGuid(), refused = Guid.NewGuid();
        const string more = ""","description":"lunch","metadata":{"a":1,"b":[2]}""";
        Response first = await server.TransferAsync("alice", "bob", "12.30", id: done, more: more);
        Response refusal = await server.TransferAsync("alice", "bob", "1000", id: refused);
        refusal.IsProblem(422, "insufficient_funds");
        // The money has come since; the answer stays what it was.
        await server.TransferAsync("@world", "alice", "5000.00");
        for (int life = 0; life < 2; life++)
        {
            // The same meaning, written otherwise.
            Response again = await server.TransferAsync("alice", "bob", "12.3", id: done, more: ""","metadata":{"b":[2],"a":1.0},"description":"lunch" """);
            Assert.Equal((200, "true"), (again.Status, again.Headers["Idempotent-Replayed"]));
            Assert.Equal(first.Body.GetRawText(), again.Body.GetRawText());
            Response refusedAgain = await server.TransferAsync("alice", "bob", "1000.00", id: refused);
            Assert.Equal("true", refusedAgain.Headers["Idempotent-Replayed"]);
            Assert.Equal(refusal.Body.GetRawText(), refusedAgain.Body.GetRawText());
            await server.RestartAsync();
        }
    }

    [Theory]
    [InlineData("alice", "carol", "1.00", "USD", "", "to_account")]
    [InlineData("alice", "bob", "1.01", "USD", "", "amount")]
    [InlineData("alice", "bob", "1.00", "EUR", "", "currency")]
    [InlineData("alice", "bob", "1.00", "USD", ",\"description\":\"x\"", "description")]
    [InlineData("alice", "bob", "1.00", "USD", ",\"metadata\":{}", "metadata")]
    [InlineData("alice", "carol", "2.00", "JPY", "", "to_account,amount,currency")]
    public async Task An_id_used_for_something_else_names_what_differs(string from, string to, string amount, string currency, string more, string differing)
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("bob", "0");
        Guid id = Guid.NewGuid();
        await server.TransferAsync("alice", "bob", "1.00", id: id);
        Response response = await server.TransferAsync(from, to, amount, currency, id, more);
        response.IsProblem(409, "transaction_id_reused");
        Assert.Equal(differing, string.Join(',', response.Body.GetProperty("differing").EnumerateArray().Select(m => m.GetString())));
    }

    /// <summary>The issue's own words: a thousand times at once from 32 connections is one transfer, and a thousand equal answers.</summary>
    [Fact]
    public async Task One_id_sent_a_thousand_times_at_once_moves_the_money_once()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("bob", "0");
        Guid id = Guid.NewGuid();
        using SocketsHttpHandler handler = new() { MaxConnectionsPerServer = 32 };
        using HttpClient client = new(handler) { BaseAddress = server.Address };
        string body = $$"""{"from_account":"alice","to_account":"bob","amount":"1.00","currency":"USD","transaction_id":"{{id}}"}""";
        string[] answers = await Task.WhenAll(Enumerable.Range(0, 1000).Select(async _ =>
        {
            using HttpResponseMessage response = await client.PostAsync("/v1/wallet/balance_transfer", new StringContent(body, Encoding.UTF8, "application/json"));
            return $"{(int)response.StatusCode} {await response.Content.ReadAsStringAsync()}";
        }));
        Assert.StartsWith("200 ", Assert.Single(answers.Distinct()), StringComparison.Ordinal);
        Assert.Equal(("99.00", "1.00"), (await server.BalanceAsync("alice"), await server.BalanceAsync("bob")));
    }

    /// <summary>The deadline of a write that is under way says so, and the same id gets what became of it.</summary>
    [Fact]
    public async Task A_deadline_tells_the_truth_about_what_was_begun()
    {
        FaultyDisk disk = new();
        await using TestServer server = await TestServer.StartAsync(disk);
        await server.OpenAsync("alice");
        await server.OpenAsync("bob", "0");
        Guid begun = Guid.NewGuid();
        string Body(Guid id) => $$"""{"from_account":"alice","to_account":"bob","amount":"1.00","currency":"USD","transaction_id":"{{id}}"}""";
        disk.FlushGate.Reset();
        Response unknown = await server.SendAsync(HttpMethod.Post, "/v1/wallet/balance_transfer", Body(begun), ("X-Request-Timeout-Ms", "100"));
        unknown.IsProblem(504, "deadline_exceeded", "unknown");
        disk.FlushGate.Set();
        Response again = await server.PostAsync("/v1/wallet/balance_transfer", Body(begun));
        Assert.Equal((200, "completed", "true"), (again.Status, again.Text("status"), again.Headers["Idempotent-Replayed"]));
        Assert.Equal("1.00", await server.BalanceAsync("bob"));
    }

    [Fact]
    public async Task Every_refusal_has_its_code_and_its_figures()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("bob", "0");
        (await server.TransferAsync("ghost", "bob", "1")).IsProblem(404, "from_account_not_found");
        (await server.TransferAsync("alice", "ghost", "1")).IsProblem(404, "to_account_not_found");
        Response funds = await server.TransferAsync("alice", "bob", "100.01");
        funds.IsProblem(422, "insufficient_funds");
        Assert.Equal(("100.00", "100.01"), (funds.Text("available"), funds.Text("required")));
        (await server.TransferAsync("alice", "bob", "1.001")).IsProblem(400, "amount_too_precise");
        (await server.TransferAsync("alice", "bob", "1", "XYZ")).IsProblem(400, "currency_unknown");
        (await server.TransferAsync("alice", "bob", "1", "usd")).IsProblem(400, "currency_unknown");

        await server.SendAsync(HttpMethod.Put, "/v1/wallet/accounts/alice/limits", """{"limits":{"USD":{"min_balance":"90.00"}}}""");
        Response min = await server.TransferAsync("alice", "bob", "10.01");
        min.IsProblem(422, "below_min_balance");
        Assert.Equal("90.00", min.Text("min_balance"));
        await server.SendAsync(HttpMethod.Put, "/v1/wallet/accounts/bob/limits", """{"limits":{"USD":{"max_balance":"5.00"}}}""");
        Response max = await server.TransferAsync("alice", "bob", "5.01");
        max.IsProblem(422, "exceeds_max_balance");
        Assert.Equal(("5.00", "5.01"), (max.Text("max_balance"), max.Text("required")));

        await server.PostAsync("/v1/wallet/accounts/alice/freeze", """{"direction":"debit"}""");
        (await server.TransferAsync("alice", "bob", "1")).IsProblem(422, "from_account_frozen");
        await server.PostAsync("/v1/wallet/accounts/bob/freeze", """{"direction":"credit"}""");
        (await server.TransferAsync("@world", "bob", "1")).IsProblem(422, "to_account_frozen");
        await server.OpenAsync("carol", "0");
        await server.SendAsync(HttpMethod.Post, "/v1/wallet/accounts/carol/close");
        (await server.TransferAsync("carol", "bob", "1")).IsProblem(422, "from_account_closed");
        (await server.TransferAsync("@world", "carol", "1")).IsProblem(422, "to_account_closed");

        Response rejected = await server.TransferAsync("alice", "nobody", "1", id: Guid.Parse("0198c0de-0000-7000-8000-00000000000f"));
        rejected.IsProblem(422, "from_account_frozen");
        Response story = await server.GetAsync("/v1/wallet/transfers/0198c0de-0000-7000-8000-00000000000f?account=alice");
        Assert.Equal(("rejected", "from_account_frozen"), (story.Text("status"), story.Code));
        Assert.Equal("transfer_rejected", Assert.Single(story.Body.GetProperty("events").EnumerateArray()).GetProperty("kind").GetString());
    }

    [Fact]
    public async Task A_balance_at_its_bound_overflows_no_further()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("vault", "0");
        for (int i = 0; i < 1000; i++) Assert.Equal(200, (await server.TransferAsync("@mint", "vault", "999999999999999999999999999999", "JPY")).Status);
        (await server.TransferAsync("@mint", "vault", "1001", "JPY")).IsProblem(422, "balance_overflow");
        Assert.Equal(200, (await server.TransferAsync("@mint", "vault", "1000", "JPY")).Status);
    }

    [Theory]
    [InlineData("""{"from_account":"a b","to_account":"b","amount":"1","currency":"USD","transaction_id":"ID"}""", "account_malformed")]
    [InlineData("""{"from_account":"a","to_account":"","amount":"1","currency":"USD","transaction_id":"ID"}""", "account_malformed")]
    [InlineData("""{"from_account":"a","to_account":"~clearing/1","amount":"1","currency":"USD","transaction_id":"ID"}""", "account_malformed")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"1e3","currency":"USD","transaction_id":"ID"}""", "amount_malformed")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"","currency":"USD","transaction_id":"ID"}""", "amount_malformed")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"0.00","currency":"USD","transaction_id":"ID"}""", "amount_not_positive")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"-1","currency":"USD","transaction_id":"ID"}""", "amount_not_positive")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"10000000000000000000000000000000","currency":"USD","transaction_id":"ID"}""", "amount_too_large")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"9999999999999999999999999999.99","currency":"BHD","transaction_id":"ID"}""", "amount_too_large")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"1","currency":"US","transaction_id":"ID"}""", "currency_unknown")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"1","currency":"USD","transaction_id":"12"}""", "transaction_id_malformed")]
    [InlineData("""{"from_account":"a","to_account":"a","amount":"1","currency":"USD","transaction_id":"ID"}""", "same_account")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":1,"currency":"USD","transaction_id":"ID"}""", "malformed_request", "'amount' must be a string")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"1","currency":"USD"}""", "malformed_request", "lacks 'transaction_id'")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"1","currency":"USD","transaction_id":"ID","amonut":"2"}""", "malformed_request", "'amonut' is not known")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"1","amount":"2","currency":"USD","transaction_id":"ID"}""", "malformed_request", "'amount' is there twice")]
    [InlineData("""{"from_account":null,"to_account":"b","amount":"1","currency":"USD","transaction_id":"ID"}""", "malformed_request")]
    [InlineData("""{"From_Account":"a","to_account":"b","amount":"1","currency":"USD","transaction_id":"ID"}""", "malformed_request")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"1","currency":"USD","transaction_id":"ID","metadata":[1]}""", "malformed_request")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"1","currency":"USD","transaction_id":"ID","metadata":{"a":1,"a":2}}""", "malformed_request")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"1","currency":"USD","transaction_id":"ID","metadata":{"a":"\ud800"}}""", "malformed_request")]
    [InlineData("""{"from_account":"a","to_account":"b","amount":"1","currency":"USD","transaction_id":"ID","metadata":{"a":1e99999999999}}""", "malformed_request")]
    [InlineData("""{"from_account":"a\ud800","to_account":"b","amount":"1","currency":"USD","transaction_id":"ID"}""", "malformed_request")]
    [InlineData("""[]""", "malformed_request")]
    [InlineData("""null""", "malformed_request")]
    [InlineData("""{"from_account":"a",""", "malformed_request")]
    [InlineData("""{} {}""", "malformed_request")]
    [InlineData("", "malformed_request")]
    public async Task A_request_of_the_wrong_shape_is_refused_and_nothing_is_recorded(string body, string code, string detail = "")
    {
        await using TestServer server = await TestServer.StartAsync();
        Response response = await server.PostAsync("/v1/wallet/balance_transfer", body.Replace("ID", Guid.NewGuid().ToString(), StringComparison.Ordinal));
        response.IsProblem(400, code);
        Assert.Contains(detail, response.Text("detail"), StringComparison.Ordinal);
        Assert.DoesNotContain("Purse.", response.Text("detail"), StringComparison.Ordinal);
        using HttpResponseMessage events = await server.Client.GetAsync("/v1/events?live=false");
        Assert.Equal("", await events.Content.ReadAsStringAsync());
    }

    [Fact]
    public async Task Bounds_of_texts_and_bodies_are_exact()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("bob", "0");
        Assert.Equal(200, (await server.TransferAsync("alice", "bob", "1", more: $",\"description\":\"{new string('x', 256)}\"")).Status);
        (await server.TransferAsync("alice", "bob", "1", more: $",\"description\":\"{new string('x', 257)}\"")).IsProblem(400, "malformed_request");
        Assert.Equal(200, (await server.TransferAsync("alice", "bob", "1", more: $",\"metadata\":{{\"k\":\"{new string('x', 2048 - 8)}\"}}")).Status);
        (await server.TransferAsync("alice", "bob", "1", more: $",\"metadata\":{{\"k\":\"{new string('x', 2049 - 8)}\"}}")).IsProblem(400, "malformed_request");
        (await server.PostAsync("/v1/wallet/balance_transfer", new string(' ', 64 * 1024 + 1))).IsProblem(413, "request_too_large");
        using HttpRequestMessage chunked = new(HttpMethod.Post, "/v1/wallet/balance_transfer") { Content = new StreamContent(new MemoryStream(Encoding.UTF8.GetBytes(new string(' ', 70_000)))) };
        chunked.Content.Headers.ContentType = new("application/json");
        chunked.Headers.TransferEncodingChunked = true;
        (await server.SendAsync(chunked)).IsProblem(413, "request_too_large");
        using HttpRequestMessage text = new(HttpMethod.Post, "/v1/wallet/balance_transfer") { Content = new StringContent("{}", Encoding.UTF8, "text/plain") };
        (await server.SendAsync(text)).IsProblem(415, "unsupported_media_type");
    }

    [Fact]
    public async Task Headers_are_honoured_and_hostile_ones_refused()
    {
        await using TestServer server = await TestServer.StartAsync();
        Response named = await server.SendAsync(HttpMethod.Get, "/healthz", null, ("X-Request-Id", "mine-1"));
        Assert.Equal("mine-1", named.Headers["X-Request-Id"]);
        (await server.SendAsync(HttpMethod.Get, "/v1/wallet/accounts/a", null, ("X-Request-Timeout-Ms", "0"))).IsProblem(400, "malformed_request");
        (await server.SendAsync(HttpMethod.Get, "/healthz", null, ("Host", "evil.example"))).IsProblem(421, "misdirected_request");
        // A page elsewhere can make a browser send a post without a body and without asking first.
        (await server.SendAsync(HttpMethod.Post, "/v1/wallet/accounts/a/unfreeze", null, ("Origin", "https://evil.example"))).IsProblem(403, "forbidden");
        (await server.SendAsync(HttpMethod.Post, "/v1/wallet/accounts/a/unfreeze", null, ("Origin", "null"))).IsProblem(403, "forbidden");
        (await server.GetAsync("/nowhere")).IsProblem(404, "route_not_found");
        (await server.SendAsync(HttpMethod.Delete, "/v1/wallet/balance_transfer")).IsProblem(405, "method_not_allowed");
    }

    /// <summary>Excludes: a parser that a stream of bad bytes brings down. The seed is fixed, the bytes are not ours.</summary>
    [Fact]
    public async Task Mutated_requests_never_break_the_server()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("bob", "0");
        Random random = new(20261123);
        byte[] seed = Encoding.UTF8.GetBytes($$$"""{"from_account":"alice","to_account":"bob","amount":"0.01","currency":"USD","transaction_id":"{{{Guid.NewGuid()}}}","metadata":{"a":[1,{"b":"\u00e9"}]},"description":"x"}""");
        for (int i = 0; i < 2000; i++)
        {
            byte[] body = [.. seed];
            for (int n = random.Next(1, 6); n > 0; n--) body[random.Next(body.Length)] = (byte)(random.Next(3) == 0 ? random.Next(256) : "{}[]\",:\\u0123e-.tfn"[random.Next(19)]);
            using ByteArrayContent content = new(body);
            content.Headers.ContentType = new("application/json");
            using HttpResponseMessage response = await server.Client.PostAsync("/v1/wallet/balance_transfer", content);
            Assert.True((int)response.StatusCode < 500, $"{Encoding.UTF8.GetString(body)} was answered {(int)response.StatusCode}");
        }

        // Every event that came of it can still be read.
        using HttpResponseMessage events = await server.Client.GetAsync("/v1/events?live=false");
        Assert.All((await events.Content.ReadAsStringAsync()).Split('\n', StringSplitOptions.RemoveEmptyEntries), line => JsonDocument.Parse(line));
    }

    [Fact]
    public async Task Broken_connections_leave_the_server_well()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        for (int i = 0; i < 50; i++)
        {
            using TcpClient tcp = new();
            await tcp.ConnectAsync(server.Address.Host, server.Address.Port);
            await tcp.GetStream().WriteAsync("POST /v1/wallet/balance_transfer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{\"from_acc"u8.ToArray());
        }

        Assert.Equal("100.00", await server.BalanceAsync("alice"));
    }

    [Fact]
    public async Task Ids_of_different_homes_never_meet()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("bob");
        Guid id = Guid.NewGuid();
        Assert.Equal(200, (await server.TransferAsync("alice", "@world", "1", id: id)).Status);
        Assert.Equal(200, (await server.TransferAsync("bob", "@world", "2", id: id)).Status);
        Response ambiguous = await server.GetAsync($"/v1/wallet/transfers/{id}");
        ambiguous.IsProblem(409, "transfer_ambiguous");
        Assert.Equal("2.00", (await server.GetAsync($"/v1/wallet/transfers/{id}?account=bob")).Text("amount"));
        (await server.GetAsync($"/v1/wallet/transfers/{Guid.NewGuid()}")).IsProblem(404, "transfer_not_found");
        (await server.GetAsync($"/v1/wallet/transfers/{id}?account=carol")).IsProblem(404, "transfer_not_found");
        (await server.GetAsync("/v1/wallet/transfers/12")).IsProblem(400, "transaction_id_malformed");
    }
}
