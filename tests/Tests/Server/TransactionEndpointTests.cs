using System.Text;
using System.Text.Json;

namespace Purse.Tests.Server;

/// <summary>Transactions, reversals, many transfers in one request, up_to, dry_run and currencies, over real HTTP.</summary>
public sealed class TransactionEndpointTests
{
    static async Task<TestServer> StartAsync()
    {
        TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("bob", "0");
        await server.OpenAsync("carol", "0");
        return server;
    }

    static Task<Response> TransactAsync(TestServer server, Guid id, string postings, string more = "") => server.PostAsync(
        "/v1/wallet/transactions",
        $$"""{"transaction_id":"{{id}}","postings":[{{string.Join(',', postings.Split(';').Select(Posting))}}]{{more}}}""");

    static string Posting(string words) => words.Trim().Split(' ') is [var from, var to, var amount, var currency]
        ? $$"""{"from_account":"{{from}}","to_account":"{{to}}","amount":"{{amount}}","currency":"{{currency}}"}"""
        : throw new ArgumentException(words, nameof(words));

    static Task<Response> ReverseAsync(TestServer server, Guid original, Guid id, string? amount = null, string query = "", string more = "") => server.PostAsync(
        $"/v1/wallet/transfers/{original}/reverse{query}", $$"""{"transaction_id":"{{id}}"{{(amount is null ? "" : $",\"amount\":\"{amount}\"")}}{{more}}}""");

    static Task<Response> StoryAsync(TestServer server, Guid id, string query = "") => server.GetAsync($"/v1/wallet/transfers/{id}{query}");

    static string Kinds(Response story) => string.Join(' ', story.Body.GetProperty("events").EnumerateArray().Select(e => e.GetProperty("kind").GetString()));

    static string Texts(JsonElement array) => string.Join(' ', array.EnumerateArray().Select(one => one.GetString()));

    [Fact]
    public async Task A_transaction_moves_all_its_postings_or_none()
    {
        await using TestServer server = await StartAsync();
        Guid id = Guid.NewGuid(), refusedId = Guid.NewGuid();
        Response done = await TransactAsync(server, id, "alice bob 12.3 USD; bob carol 12.30 USD; @world bob 500 JPY", ""","description":"rent","metadata":{"a":1}""");
        Assert.Equal(200, done.Status);
        Assert.Equal(["transaction_id", "status", "postings", "completed_at", "position"], done.Body.EnumerateObject().Select(m => m.Name));
        Assert.Equal(("completed", id.ToString()), (done.Text("status"), done.Text("transaction_id")));
        Assert.Equal(
            """[{"from_account":"alice","to_account":"bob","amount":"12.30","currency":"USD"},{"from_account":"bob","to_account":"carol","amount":"12.30","currency":"USD"},{"from_account":"@world","to_account":"bob","amount":"500","currency":"JPY"}]""",
            done.Body.GetProperty("postings").GetRawText());
        Response refused = await TransactAsync(server, refusedId, "alice bob 1.00 USD; alice carol 86.71 USD; carol ghost 1.00 USD");
        refused.IsProblem(422, "insufficient_funds");
        Assert.Equal((1, "86.70", "86.71"), (refused.Body.GetProperty("posting").GetInt32(), refused.Text("available"), refused.Text("required")));
        Assert.Equal(("87.70", "0.00", "12.30", "500"), (await server.BalanceAsync("alice"), await server.BalanceAsync("bob"), await server.BalanceAsync("carol"), await server.BalanceAsync("bob", "JPY")));

        for (int life = 0; life < 2; life++)
        {
            Response again = await TransactAsync(server, id, "alice bob 12.30 USD; bob carol 12.3 USD; @world bob 500 JPY", ""","metadata":{"a":1.0},"description":"rent" """);
            Assert.Equal((done.Body.GetRawText(), "true"), (again.Body.GetRawText(), again.Headers["Idempotent-Replayed"]));
            Response refusedAgain = await TransactAsync(server, refusedId, "alice bob 1.00 USD; alice carol 86.71 USD; carol ghost 1.00 USD");
            Assert.Equal((refused.Body.GetRawText(), "true"), (refusedAgain.Body.GetRawText(), refusedAgain.Headers["Idempotent-Replayed"]));
            foreach ((Guid used, string postings, string more, string differing) in new[]
            {
                (id, "alice bob 12.30 USD; bob carol 12.30 USD", ""","description":"rent","metadata":{"a":1}""", "postings"),
                (id, "alice bob 12.30 USD; bob carol 12.30 USD; @world bob 501 JPY", "", "postings description metadata"),
                (refusedId, "alice bob 1.00 USD; alice carol 86.71 USD; carol ghost 1.01 USD", "", "postings"),
            })
            {
                Response reused = await TransactAsync(server, used, postings, more);
                reused.IsProblem(409, "transaction_id_reused");
                Assert.Equal(differing, Texts(reused.Body.GetProperty("differing")));
            }

            Response other = await server.TransferAsync("alice", "bob", "12.30", id: id);
            other.IsProblem(409, "transaction_id_reused");
            Assert.Equal("operation", Texts(other.Body.GetProperty("differing")));

            Response story = await StoryAsync(server, id);
            Assert.Equal(("completed", "rent", 3), (story.Text("status"), story.Text("description"), story.Body.GetProperty("postings").GetArrayLength()));
            Assert.Equal("debited credited debited credited debited credited", Kinds(story));
            Assert.Equal([0, 0, 1, 1, 2, 2], story.Body.GetProperty("events").EnumerateArray().Select(e => e.GetProperty("posting").GetInt32()));
            Response refusal = await StoryAsync(server, refusedId, "?account=alice");
            Assert.Equal(("rejected", "insufficient_funds", 1, 3), (refusal.Text("status"), refusal.Code, refusal.Body.GetProperty("posting").GetInt32(), refusal.Body.GetProperty("postings").GetArrayLength()));
            await server.RestartAsync();
        }
    }

    [Theory]
    [InlineData("", "malformed_request", null)]
    [InlineData("alice alice 1 USD", "same_account", 0)]
    [InlineData("alice bob 1 USD; bob carol 0 USD", "amount_not_positive", 1)]
    [InlineData("alice bob 1 USD; bob carol x USD", "amount_malformed", 1)]
    [InlineData("alice bob 1 USD; bob ca$rol 1 USD", "account_malformed", 1)]
    [InlineData("alice bob 1 USD; bob carol 1 NOPE", "currency_unknown", 1)]
    [InlineData("alice bob 1 USD; bob carol 1.001 USD", "amount_too_precise", 1)]
    [InlineData("alice bob 1 USD; bob carol 99999999999999999999999999999 USD", "amount_too_large", 1)]
    public async Task A_transaction_of_the_wrong_shape_leaves_nothing(string postings, string code, int? posting)
    {
        await using TestServer server = await StartAsync();
        Guid id = Guid.NewGuid();
        Response response = postings.Length == 0 ? await server.PostAsync("/v1/wallet/transactions", $$"""{"transaction_id":"{{id}}","postings":[]}""") : await TransactAsync(server, id, postings);
        response.IsProblem(400, code);
        Assert.Equal(posting, response.Body.TryGetProperty("posting", out JsonElement at) ? at.GetInt32() : null);
        (await StoryAsync(server, id)).IsProblem(404, "transfer_not_found");
    }

    [Fact]
    public async Task A_transaction_has_up_to_64_postings()
    {
        await using TestServer server = await StartAsync();
        string all = string.Join("; ", Enumerable.Range(0, 64).Select(i => $"@s{i} @t{i} 1.00 USD"));
        Assert.Equal(200, (await TransactAsync(server, Guid.NewGuid(), all)).Status);
        (await TransactAsync(server, Guid.NewGuid(), $"{all}; alice bob 1.00 USD")).IsProblem(400, "too_many_postings");
        Assert.Equal(("-1.00", "1.00"), (await server.BalanceAsync("@s63"), await server.BalanceAsync("@t63")));
    }

    [Fact]
    public async Task A_transfer_is_reversed_in_parts_and_both_sides_say_so()
    {
        await using TestServer server = await StartAsync();
        Guid id = Guid.NewGuid(), first = Guid.NewGuid(), second = Guid.NewGuid(), tooMuch = Guid.NewGuid();
        await server.TransferAsync("alice", "bob", "30.00", id: id);
        Response part = await ReverseAsync(server, id, first, "10", more: ""","description":"one broke","metadata":{"n":1}""");
        Assert.Equal((200, "completed", "bob", "alice", "10.00", id.ToString()), (part.Status, part.Text("status"), part.Text("from_account"), part.Text("to_account"), part.Text("amount"), part.Text("original_id")));
        Response story = await StoryAsync(server, id);
        Assert.Equal(("completed", "10.00", first.ToString()), (story.Text("status"), story.Text("reversed_amount"), Texts(story.Body.GetProperty("reversed_by"))));
        Response refused = await ReverseAsync(server, id, tooMuch, "20.01");
        refused.IsProblem(422, "exceeds_reversible_amount");
        Assert.Equal(("20.00", "20.01", id.ToString()), (refused.Text("reversible_amount"), refused.Text("required"), refused.Text("original_id")));
        Response rest = await ReverseAsync(server, id, second);
        Assert.Equal((200, "20.00"), (rest.Status, rest.Text("amount")));
        Guid late = Guid.NewGuid();
        (await ReverseAsync(server, id, late)).IsProblem(409, "already_reversed");
        Assert.Equal(("100.00", "0.00"), (await server.BalanceAsync("alice"), await server.BalanceAsync("bob")));

        for (int life = 0; life < 2; life++)
        {
            Response again = await ReverseAsync(server, id, first, "10.00", more: ""","description":"one broke","metadata":{"n":1}""");
            Assert.Equal((part.Body.GetRawText(), "true"), (again.Body.GetRawText(), again.Headers["Idempotent-Replayed"]));
            Assert.Equal(rest.Body.GetRawText(), (await ReverseAsync(server, id, second)).Body.GetRawText());
            Assert.Equal(refused.Body.GetRawText(), (await ReverseAsync(server, id, tooMuch, "20.01")).Body.GetRawText());
            foreach ((Guid used, string? amount, string differing) in new[] { (first, "11", "amount description metadata"), (first, null, "amount description metadata"), (second, "20.00", "amount"), (tooMuch, "20.02", "amount") })
            {
                Response reused = await ReverseAsync(server, id, used, amount);
                reused.IsProblem(409, "transaction_id_reused");
                Assert.Equal(differing, Texts(reused.Body.GetProperty("differing")));
            }

            // The id belongs to the original's home: alice, though bob pays.
            (await server.TransferAsync("alice", "bob", "1", id: first)).IsProblem(409, "transaction_id_reused");
            (await StoryAsync(server, first, "?account=bob")).IsProblem(404, "transfer_not_found");
            Response its = await StoryAsync(server, first, "?account=alice");
            Assert.Equal(("completed", id.ToString(), "one broke"), (its.Text("status"), its.Text("original_id"), its.Text("description")));
            story = await StoryAsync(server, id);
            Assert.Equal(("reversed", "30.00", $"{first} {second}"), (story.Text("status"), story.Text("reversed_amount"), Texts(story.Body.GetProperty("reversed_by"))));
            Assert.Equal("debited credited debited credited debited credited", Kinds(story));
            Response original = await server.TransferAsync("alice", "bob", "30", id: id);
            Assert.Equal(("completed", "true"), (original.Text("status"), original.Headers["Idempotent-Replayed"]));
            Response rejected = await StoryAsync(server, late);
            Assert.Equal(("rejected", "already_reversed"), (rejected.Text("status"), rejected.Code));
            await server.RestartAsync();
        }
    }

    [Fact]
    public async Task A_capture_and_a_transaction_are_reversed_a_hold_is_not()
    {
        await using TestServer server = await StartAsync();
        Guid hold = Guid.NewGuid(), capture = Guid.NewGuid(), back = Guid.NewGuid();
        await server.TransferAsync("alice", "bob", "30.00", id: hold, more: ",\"pending\":true");
        (await ReverseAsync(server, hold, Guid.NewGuid())).IsProblem(422, "exceeds_reversible_amount");
        await server.PostAsync($"/v1/wallet/transfers/{hold}/capture", $$"""{"transaction_id":"{{capture}}","amount":"20.00"}""");
        (await ReverseAsync(server, capture, Guid.NewGuid(), "20.01")).IsProblem(422, "exceeds_reversible_amount");
        (await ReverseAsync(server, capture, Guid.NewGuid(), "1.001")).IsProblem(400, "amount_too_precise");
        Assert.Equal((200, "20.00"), ((await ReverseAsync(server, capture, back)) is var r ? (r.Status, r.Text("amount")) : default));
        Response its = await StoryAsync(server, capture), holds = await StoryAsync(server, hold);
        Assert.Equal(("reversed", "20.00", hold.ToString()), (its.Text("status"), its.Text("reversed_amount"), its.Text("original_id")));
        Assert.Equal(("captured", "20.00", capture.ToString(), back.ToString()), (holds.Text("status"), holds.Text("captured_amount"), holds.Text("ended_by"), Texts(holds.Body.GetProperty("reversed_by"))));
        Assert.Equal("held released captured credited debited credited", Kinds(holds));

        Guid transaction = Guid.NewGuid(), undone = Guid.NewGuid();
        await TransactAsync(server, transaction, "alice bob 5.00 USD; bob carol 5.00 USD");
        (await ReverseAsync(server, transaction, Guid.NewGuid(), "1.00")).IsProblem(400, "malformed_request");
        Response all = await ReverseAsync(server, transaction, undone);
        Assert.Equal((200, transaction.ToString()), (all.Status, all.Text("original_id")));
        Assert.Equal("carol bob 5.00, bob alice 5.00", string.Join(", ", all.Body.GetProperty("postings").EnumerateArray().Select(p => $"{p.GetProperty("from_account").GetString()} {p.GetProperty("to_account").GetString()} {p.GetProperty("amount").GetString()}")));
        (await ReverseAsync(server, transaction, Guid.NewGuid())).IsProblem(409, "already_reversed");
        Assert.Equal(("100.00", "0.00", "0.00"), (await server.BalanceAsync("alice"), await server.BalanceAsync("bob"), await server.BalanceAsync("carol")));
        Response story = await StoryAsync(server, transaction);
        Assert.Equal(("reversed", undone.ToString()), (story.Text("status"), Texts(story.Body.GetProperty("reversed_by"))));
        (await ReverseAsync(server, Guid.NewGuid(), Guid.NewGuid())).IsProblem(404, "transfer_not_found");

        Response events = await server.GetAsync("/v1/wallet/accounts/alice/history?currency=USD&limit=1");
        Assert.Equal(StoryPosition(story), events.Body.GetProperty("events")[0].GetProperty("reverses").GetString());

        static string? StoryPosition(Response story) => story.Body.GetProperty("events")[0].GetProperty("position").GetString();
    }

    /// <summary>Excludes: a partition that a strange chain of requests stops. A void of a refused transaction has no parties of its own.</summary>
    [Fact]
    public async Task What_was_refused_about_a_refused_transaction_is_told_and_not_reversed()
    {
        await using TestServer server = await StartAsync();
        Guid refused = Guid.NewGuid(), release = Guid.NewGuid(), back = Guid.NewGuid(), again = Guid.NewGuid();
        (await TransactAsync(server, refused, "alice bob 1.00 USD; bob carol 500.00 USD")).IsProblem(422, "insufficient_funds");
        (await server.PostAsync($"/v1/wallet/transfers/{refused}/void", $$"""{"transaction_id":"{{release}}"}""")).IsProblem(422, "not_a_hold");
        await server.OpenAsync("dave", "0");
        await server.TransferAsync("@world", "dave", "7");
        Assert.Equal("not_a_hold", (await StoryAsync(server, release)).Code);
        (await ReverseAsync(server, release, back, "1.00")).IsProblem(422, "exceeds_reversible_amount");
        Response story = await StoryAsync(server, back);
        Assert.Equal(("bob", "alice", "1.00", release.ToString()), (story.Text("from_account"), story.Text("to_account"), story.Text("amount"), story.Text("original_id")));
        (await ReverseAsync(server, back, again)).IsProblem(422, "exceeds_reversible_amount");
        (await ReverseAsync(server, refused, Guid.NewGuid())).IsProblem(422, "exceeds_reversible_amount");
        Assert.Equal("100.00", await server.BalanceAsync("alice"));
    }

    [Fact]
    public async Task An_id_is_the_same_in_capitals_and_a_refused_capture_remembers_its_amount()
    {
        await using TestServer server = await StartAsync();
        Guid id = Guid.NewGuid(), capture = Guid.NewGuid();
        string Body(string written) => $$"""{"from_account":"alice","to_account":"bob","amount":"1.00","currency":"USD","transaction_id":"{{written}}"}""";
        Response first = await server.PostAsync("/v1/wallet/balance_transfer", Body(id.ToString().ToUpperInvariant()));
        Assert.Equal(id.ToString(), first.Text("transaction_id"));
        Assert.Equal(first.Body.GetRawText(), (await server.PostAsync("/v1/wallet/balance_transfer", Body(id.ToString()))).Body.GetRawText());
        Guid refused = Guid.NewGuid();
        string many = $$"""{"transfers":[{{Body(refused.ToString().ToUpperInvariant()).Replace("1.00", "1000.00", StringComparison.Ordinal)}}]}""";
        Assert.Equal(refused.ToString(), (await server.PostAsync("/v1/wallet/transfers", many)).Body.GetProperty("transfers")[0].GetProperty("transaction_id").GetString());
        (await server.PostAsync("/v1/wallet/balance_transfer", Body($" {id}"))).IsProblem(400, "transaction_id_malformed");
        Task<Response> Capture(string amount) => server.PostAsync($"/v1/wallet/transfers/{id}/capture", $$"""{"transaction_id":"{{capture}}"{{amount}}}""");
        (await Capture(",\"amount\":\"5.00\"")).IsProblem(422, "not_a_hold");
        (await Capture(",\"amount\":\"5\"")).IsProblem(422, "not_a_hold");
        Assert.Equal("5.00", (await StoryAsync(server, capture)).Text("amount"));
        JsonElement recorded = (await StoryAsync(server, capture)).Body.GetProperty("events")[0];
        Assert.Equal(("transfer_rejected", first.Text("position").Split(':')[0]), (recorded.GetProperty("kind").GetString(), recorded.GetProperty("hold").GetString()!.Split(':')[0]));
        (await Capture(",\"amount\":\"6\"")).IsProblem(409, "transaction_id_reused");
        (await Capture("")).IsProblem(409, "transaction_id_reused");
    }

    [Fact]
    public async Task A_transfer_reversed_very_often_still_tells_a_short_story()
    {
        await using TestServer server = await StartAsync();
        Guid id = Guid.NewGuid();
        await server.TransferAsync("alice", "bob", "30.00", id: id);
        for (int i = 0; i < 120; i++) Assert.Equal(200, (await ReverseAsync(server, id, Guid.NewGuid(), "0.10")).Status);
        Response story = await StoryAsync(server, id);
        Assert.Equal(("completed", "12.00", 100, 202), (story.Text("status"), story.Text("reversed_amount"), story.Body.GetProperty("reversed_by").GetArrayLength(), story.Body.GetProperty("events").GetArrayLength()));
    }

    [Fact]
    public async Task The_same_id_in_two_homes_is_told_apart_by_the_account()
    {
        await using TestServer server = await StartAsync();
        Guid id = Guid.NewGuid(), back = Guid.NewGuid();
        await server.TransferAsync("alice", "bob", "10.00", id: id);
        await server.TransferAsync("bob", "carol", "4.00", id: id);
        (await ReverseAsync(server, id, back)).IsProblem(409, "transfer_ambiguous");
        Response done = await ReverseAsync(server, id, back, query: "?account=bob");
        Assert.Equal((200, "4.00"), (done.Status, done.Text("amount")));
        Assert.Equal(done.Body.GetRawText(), (await ReverseAsync(server, id, back)).Body.GetRawText());
    }

    [Fact]
    public async Task Many_transfers_get_an_outcome_each_in_order()
    {
        await using TestServer server = await StartAsync();
        Guid before = Guid.NewGuid(), refusedBefore = Guid.NewGuid(), same = Guid.NewGuid();
        Response first = await server.TransferAsync("alice", "bob", "1.00", id: before);
        await server.TransferAsync("alice", "ghost", "1.00", id: refusedBefore);
        string Item(string from, string to, string amount, Guid? id = null, string more = "") =>
            $$"""{"from_account":"{{from}}","to_account":"{{to}}","amount":"{{amount}}","currency":"USD","transaction_id":"{{id ?? Guid.NewGuid()}}"{{more}}}""";
        string body = $$"""{"transfers":[{{string.Join(',',
            Item("alice", "bob", "2.00", same), Item("alice", "bob", "2.00", same), Item("alice", "bob", "1.00", before), Item("alice", "bob", "9.00", before), Item("alice", "ghost", "1.00", refusedBefore),
            Item("alice", "bob", "1000.00"), Item("alice", "alice", "1.00"), Item("alice", "bob", "1.001"), Item("al ice", "bob", "1"), Item("alice", "bob", "x"),
            Item("alice", "bob", "10.00", more: ",\"pending\":true,\"expires_in\":60"), Item("alice", "bob", "500", more: ",\"up_to\":true"), Item("@world", "alice", "1", more: ",\"dry_run\":true"))}}]}""";
        Response response = await server.PostAsync("/v1/wallet/transfers", body);
        Assert.Equal(200, response.Status);
        JsonElement[] all = [.. response.Body.GetProperty("transfers").EnumerateArray()];
        string Word(JsonElement one) => one.GetProperty("status").GetString() is var status && status == "rejected" ? $"{one.GetProperty("http_status").GetInt32()} {one.GetProperty("code").GetString()}" : $"{status} {one.GetProperty("amount").GetString()}";
        Assert.Equal(
            [
                "completed 2.00", "completed 2.00", "completed 1.00", "409 transaction_id_reused", "404 to_account_not_found",
                "422 insufficient_funds", "400 same_account", "400 amount_too_precise", "400 account_malformed", "400 amount_malformed",
                "pending 10.00", "completed 87.00", "completed 1.00",
            ],
            all.Select(Word));
        Assert.Equal([1, 2, 4], Enumerable.Range(0, all.Length).Where(i => all[i].TryGetProperty("idempotent_replayed", out _)));
        Assert.Equal(first.Body.GetRawText(), all[2].GetRawText().Replace(",\"idempotent_replayed\":true", "", StringComparison.Ordinal));
        Assert.Equal(("97.00", "1000.00"), (all[5].GetProperty("available").GetString(), all[5].GetProperty("required").GetString()));
        Assert.True(all[12].GetProperty("dry_run").GetBoolean());
        Assert.All(all, one => Assert.NotEmpty(one.GetProperty("transaction_id").GetString()!));
        Assert.Equal(("10.00", "90.00"), (await server.BalanceAsync("alice"), await server.BalanceAsync("bob")));
    }

    [Fact]
    public async Task Ten_thousand_transfers_make_one_request_and_one_more_is_too_many()
    {
        await using TestServer server = await StartAsync();
        string Body(int count) => $$"""{"transfers":[{{string.Join(',', Enumerable.Range(0, count).Select(_ =>
            $$"""{"from_account":"@world","to_account":"bob","amount":"0.01","currency":"USD","transaction_id":"{{Guid.NewGuid()}}","description":"{{new string('x', 250)}}"}"""))}}]}""";
        string body = Body(10_000);
        Assert.True(body.Length > 4_000_000);
        Response done = await server.PostAsync("/v1/wallet/transfers", body);
        Assert.Equal(10_000, done.Body.GetProperty("transfers").EnumerateArray().Count(one => one.GetProperty("status").GetString() == "completed"));
        Assert.Equal("100.00", await server.BalanceAsync("bob"));
        Response again = await server.PostAsync("/v1/wallet/transfers", body);
        Assert.Equal(10_000, again.Body.GetProperty("transfers").EnumerateArray().Count(one => one.TryGetProperty("idempotent_replayed", out _)));
        Assert.Equal("100.00", await server.BalanceAsync("bob"));
        (await server.PostAsync("/v1/wallet/transfers", Body(10_001))).IsProblem(400, "too_many_transfers");
        Assert.Equal(0, (await server.PostAsync("/v1/wallet/transfers", """{"transfers":[]}""")).Body.GetProperty("transfers").GetArrayLength());
        (await server.PostAsync("/v1/wallet/transfers", """{"transfers":[null]}""")).IsProblem(400, "malformed_request");
        Response lacks = await server.PostAsync("/v1/wallet/transfers", """{"transfers":[{"from_account":"a"}]}""");
        lacks.IsProblem(400, "malformed_request");
        Assert.Contains("transfers[0]", lacks.Text("detail"), StringComparison.Ordinal);
        using HttpRequestMessage huge = new(HttpMethod.Post, "/v1/wallet/transfers") { Content = new StringContent(new string(' ', 8 * 1024 * 1024 + 1), Encoding.UTF8, "application/json") };
        (await server.SendAsync(huge)).IsProblem(413, "request_too_large");
    }

    [Fact]
    public async Task Up_to_moves_what_is_available_and_says_how_much()
    {
        await using TestServer server = await StartAsync();
        Guid id = Guid.NewGuid(), none = Guid.NewGuid();
        Response moved = await server.TransferAsync("alice", "bob", "250", id: id, more: ",\"up_to\":true");
        Assert.Equal((200, "completed", "100.00"), (moved.Status, moved.Text("status"), moved.Text("amount")));
        Response refused = await server.TransferAsync("alice", "bob", "1.00", id: none, more: ",\"up_to\":true");
        refused.IsProblem(422, "insufficient_funds");
        await server.RestartAsync();
        Assert.Equal(moved.Body.GetRawText(), (await server.TransferAsync("alice", "bob", "250.00", id: id, more: ",\"up_to\":true")).Body.GetRawText());
        Assert.Equal(refused.Body.GetRawText(), (await server.TransferAsync("alice", "bob", "1", id: none, more: ",\"up_to\":true")).Body.GetRawText());
        foreach ((string amount, string more, string differing) in new[] { ("100.00", ",\"up_to\":true", "amount"), ("250", "", "up_to") })
        {
            Response reused = await server.TransferAsync("alice", "bob", amount, id: id, more: more);
            reused.IsProblem(409, "transaction_id_reused");
            Assert.Equal(differing, Texts(reused.Body.GetProperty("differing")));
        }

        Response story = await StoryAsync(server, id);
        Assert.Equal(("100.00", "250.00"), (story.Text("amount"), story.Text("requested_amount")));
    }

    [Fact]
    public async Task A_dry_run_answers_and_records_nothing()
    {
        await using TestServer server = await StartAsync();
        Guid id = Guid.NewGuid();
        string position = (await server.GetAsync("/v1/wallet/accounts/alice")).Text("position");
        Response done = await server.TransferAsync("alice", "bob", "1", id: id, more: ",\"dry_run\":true");
        Assert.Equal((200, "completed", "1.00", true, position), (done.Status, done.Text("status"), done.Text("amount"), done.Body.GetProperty("dry_run").GetBoolean(), done.Text("position")));
        Response refused = await server.TransferAsync("alice", "ghost", "1", id: id, more: ",\"dry_run\":true");
        refused.IsProblem(404, "to_account_not_found");
        Assert.True(refused.Body.GetProperty("dry_run").GetBoolean());
        Response transaction = await TransactAsync(server, id, "alice bob 1 USD; bob @new 1 USD", ",\"dry_run\":true");
        Assert.Equal((200, true), (transaction.Status, transaction.Body.GetProperty("dry_run").GetBoolean()));
        Response refusedTransaction = await TransactAsync(server, id, "alice bob 1 USD; bob @new 2 USD", ",\"dry_run\":true");
        refusedTransaction.IsProblem(422, "insufficient_funds");
        Assert.Equal(1, refusedTransaction.Body.GetProperty("posting").GetInt32());
        (await StoryAsync(server, id)).IsProblem(404, "transfer_not_found");
        Assert.Equal(position, (await server.GetAsync("/v1/wallet/accounts/alice")).Text("position"));
        // The id is still free; once used, a dry run gets what it got.
        Response real = await server.TransferAsync("alice", "bob", "1", id: id);
        Response again = await server.TransferAsync("alice", "bob", "1", id: id, more: ",\"dry_run\":true");
        Assert.Equal((real.Body.GetRawText(), "true"), (again.Body.GetRawText(), again.Headers["Idempotent-Replayed"]));
    }

    [Fact]
    public async Task Currencies_are_registered_once_and_used_like_any_other()
    {
        await using TestServer server = await StartAsync();
        (await server.TransferAsync("@world", "bob", "5", "GEM")).IsProblem(400, "currency_unknown");
        Task<Response> Register(string code, string decimals) => server.PostAsync("/v1/wallet/currencies", $$"""{"currency":"{{code}}","decimals":{{decimals}}}""");
        Response made = await Register("GEM", "3");
        Assert.Equal((201, """{"currency":"GEM","decimals":3}"""), (made.Status, made.Body.GetRawText()));
        for (int life = 0; life < 2; life++)
        {
            Assert.Equal(200, (await Register("GEM", "3")).Status);
            Assert.Equal(200, (await Register("USD", "2")).Status);
            Response other = await Register("GEM", "0");
            other.IsProblem(409, "currency_exists");
            Assert.Equal(3, other.Body.GetProperty("decimals").GetInt32());
            (await Register("USD", "3")).IsProblem(409, "currency_exists");
            Assert.Equal("5.250", (await server.TransferAsync("@world", "bob", "5.25", "GEM")).Text("amount"));
            (await server.TransferAsync("@world", "bob", "5.2501", "GEM")).IsProblem(400, "amount_too_precise");
            JsonElement list = (await server.GetAsync("/v1/wallet/currencies")).Body.GetProperty("currencies");
            Assert.Equal(168, list.GetArrayLength());
            Assert.Contains("""{"currency":"GEM","decimals":3}""", list.EnumerateArray().Select(one => one.GetRawText()));
            await server.RestartAsync();
        }

        Assert.Equal("10.500", await server.BalanceAsync("bob", "GEM"));
        Response limits = await server.SendAsync(HttpMethod.Put, "/v1/wallet/accounts/bob/limits", """{"limits":{"GEM":{"max_balance":"10.5"}}}""");
        Assert.Equal("10.500", limits.Body.GetProperty("limits").GetProperty("GEM").GetProperty("max_balance").GetString());
        (await server.TransferAsync("@world", "bob", "0.001", "GEM")).IsProblem(422, "exceeds_max_balance");
        foreach ((string code, string decimals) in new[] { ("GE", "0"), ("gem", "0"), ("TOOLONG99", "0"), ("GEM2", "19"), ("GEM2", "-1"), ("GEM2", "\"1\"") })
            (await Register(code, decimals)).IsProblem(400, "malformed_request");
    }
}
