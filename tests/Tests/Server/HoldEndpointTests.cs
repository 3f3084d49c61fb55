using System.Text.Json;

namespace Purse.Tests.Server;

public sealed class HoldEndpointTests
{
    static Task<Response> HoldAsync(TestServer server, string amount, Guid id, string more = "") =>
        server.TransferAsync("alice", "shop", amount, id: id, more: $",\"pending\":true{more}");

    static Task<Response> CaptureAsync(TestServer server, Guid hold, Guid id, string? amount = null, string query = "") => server.PostAsync(
        $"/v1/wallet/transfers/{hold}/capture{query}", amount is null ? $$"""{"transaction_id":"{{id}}"}""" : $$"""{"transaction_id":"{{id}}","amount":"{{amount}}"}""");

    static Task<Response> VoidAsync(TestServer server, Guid hold, Guid id) => server.PostAsync($"/v1/wallet/transfers/{hold}/void", $$"""{"transaction_id":"{{id}}"}""");

    static async Task<(string Posted, string Held, string Available)> BalanceAsync(TestServer server)
    {
        Response balance = await server.GetAsync("/v1/wallet/accounts/alice/balance?currency=USD");
        return (balance.Text("posted"), balance.Text("held"), balance.Text("available"));
    }

    static IEnumerable<string?> Kinds(Response story) => story.Body.GetProperty("events").EnumerateArray().Select(e => e.GetProperty("kind").GetString());

    [Fact]
    public async Task A_hold_is_captured_in_part_and_tells_its_story()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("shop", "0");
        Guid hold = Guid.NewGuid(), capture = Guid.NewGuid();
        Response held = await HoldAsync(server, "60.00", hold, ",\"expires_in\":3600");
        Assert.Equal((200, "pending", "60.00"), (held.Status, held.Text("status"), held.Text("amount")));
        Assert.Equal(TimeSpan.FromSeconds(3600), DateTimeOffset.Parse(held.Text("expires_at")) - DateTimeOffset.Parse(held.Text("completed_at")));
        Assert.Equal(("100.00", "60.00", "40.00"), await BalanceAsync(server));
        Assert.Equal("pending", (await server.GetAsync($"/v1/wallet/transfers/{hold}")).Text("status"));
        Response funds = await server.TransferAsync("alice", "shop", "40.01");
        funds.IsProblem(422, "insufficient_funds");
        Assert.Equal(("40.00", "60.00"), (funds.Text("available"), funds.Text("held")));
        Response tooMuch = await CaptureAsync(server, hold, Guid.NewGuid(), "60.01");
        tooMuch.IsProblem(422, "exceeds_held_amount");
        Assert.Equal("60.00", tooMuch.Text("held_amount"));

        Response captured = await CaptureAsync(server, hold, capture, "50.00");
        Assert.Equal((200, "completed", "50.00", hold.ToString()), (captured.Status, captured.Text("status"), captured.Text("amount"), captured.Text("original_id")));
        Assert.Equal(("50.00", "0.00", "50.00"), await BalanceAsync(server));
        Assert.Equal("50.00", await server.BalanceAsync("shop"));

        for (int life = 0; life < 2; life++)
        {
            Response story = await server.GetAsync($"/v1/wallet/transfers/{hold}");
            Assert.Equal(("captured", "60.00", "50.00"), (story.Text("status"), story.Text("amount"), story.Text("captured_amount")));
            Assert.Equal(["held", "released", "captured", "credited"], Kinds(story));
            Response its = await server.GetAsync($"/v1/wallet/transfers/{capture}");
            Assert.Equal(("completed", hold.ToString()), (its.Text("status"), its.Text("original_id")));
            Assert.Equal(["released", "captured", "credited"], Kinds(its));

            // The original answers, whatever became of the hold since.
            Response heldAgain = await HoldAsync(server, "60", hold, ",\"expires_in\":3600");
            Assert.Equal((held.Body.GetRawText(), "true"), (heldAgain.Body.GetRawText(), heldAgain.Headers["Idempotent-Replayed"]));
            Assert.Equal(captured.Body.GetRawText(), (await CaptureAsync(server, hold, capture, "50")).Body.GetRawText());
            (await CaptureAsync(server, hold, capture)).IsProblem(409, "transaction_id_reused");
            (await VoidAsync(server, hold, capture)).IsProblem(409, "transaction_id_reused");
            (await HoldAsync(server, "60", hold)).IsProblem(409, "transaction_id_reused");
            (await server.TransferAsync("alice", "shop", "60", id: hold)).IsProblem(409, "transaction_id_reused");
            (await CaptureAsync(server, hold, hold)).IsProblem(409, "transaction_id_reused");
            await server.RestartAsync();
        }
    }

    [Fact]
    public async Task Every_refusal_of_a_capture_or_void_is_final_under_its_id()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("shop", "0");
        Guid voided = Guid.NewGuid(), released = Guid.NewGuid(), captured = Guid.NewGuid(), plain = Guid.NewGuid(), expired = Guid.NewGuid();
        await HoldAsync(server, "10", voided);
        Response gone = await VoidAsync(server, voided, released);
        Assert.Equal((200, "completed", "10.00", voided.ToString()), (gone.Status, gone.Text("status"), gone.Text("amount"), gone.Text("original_id")));
        Assert.Equal(gone.Body.GetRawText(), (await VoidAsync(server, voided, released)).Body.GetRawText());
        Assert.Equal(["held", "released"], Kinds(await server.GetAsync($"/v1/wallet/transfers/{voided}")));
        await HoldAsync(server, "10", captured);
        Assert.Equal(200, (await CaptureAsync(server, captured, Guid.NewGuid())).Status);
        await server.TransferAsync("alice", "shop", "1", id: plain);
        await HoldAsync(server, "10", expired, ",\"expires_in\":1");
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
        while ((await server.GetAsync($"/v1/wallet/transfers/{expired}")).Text("status") != "expired") await Task.Delay(20, limit.Token);
        Assert.Equal(["held", "expired"], Kinds(await server.GetAsync($"/v1/wallet/transfers/{expired}")));

        foreach ((Guid original, int status, string code) in new[] { (voided, 409, "hold_already_voided"), (captured, 409, "hold_already_captured"), (expired, 409, "hold_expired"), (plain, 422, "not_a_hold") })
        {
            Guid capture = Guid.NewGuid(), release = Guid.NewGuid();
            Response refused = await CaptureAsync(server, original, capture);
            refused.IsProblem(status, code);
            Assert.Equal(original.ToString(), refused.Text("original_id"));
            Response again = await CaptureAsync(server, original, capture);
            Assert.Equal((refused.Body.GetRawText(), "true"), (again.Body.GetRawText(), again.Headers["Idempotent-Replayed"]));
            (await VoidAsync(server, original, release)).IsProblem(status, code);
            Response story = await server.GetAsync($"/v1/wallet/transfers/{capture}");
            Assert.Equal(("rejected", code), (story.Text("status"), story.Code));
            Assert.Equal(("alice", "shop", "USD", original.ToString()), (story.Text("from_account"), story.Text("to_account"), story.Text("currency"), story.Text("original_id")));
        }

        (await CaptureAsync(server, Guid.NewGuid(), Guid.NewGuid())).IsProblem(404, "transfer_not_found");
        (await CaptureAsync(server, plain, Guid.NewGuid(), query: "?account=shop")).IsProblem(404, "transfer_not_found");
        await server.OpenAsync("bob");
        await server.TransferAsync("bob", "shop", "1", id: plain);
        (await CaptureAsync(server, plain, Guid.NewGuid())).IsProblem(409, "transfer_ambiguous");
        (await CaptureAsync(server, plain, Guid.NewGuid(), query: "?account=bob")).IsProblem(422, "not_a_hold");
    }

    /// <summary>Excludes: an answer that changes because of what happened after it.</summary>
    [Fact]
    public async Task A_retry_gets_the_original_answer_whatever_came_in_between()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("bob");
        await server.OpenAsync("shop", "0");
        Guid hold = Guid.NewGuid(), part = Guid.NewGuid(), late = Guid.NewGuid();
        await HoldAsync(server, "10.00", hold);
        Response captured = await CaptureAsync(server, hold, part, "4.00");
        Response refused = await CaptureAsync(server, hold, late);
        refused.IsProblem(409, "hold_already_captured");
        Assert.Equal(refused.Body.GetRawText(), (await CaptureAsync(server, hold, late)).Body.GetRawText());
        (await CaptureAsync(server, hold, late, "4.00")).IsProblem(409, "transaction_id_reused");
        // Another account uses the hold's id: without a home the capture would be ambiguous now, but it was done.
        await server.TransferAsync("bob", "shop", "1.00", id: hold);
        Assert.Equal(captured.Body.GetRawText(), (await CaptureAsync(server, hold, part, "4.00")).Body.GetRawText());
        (await CaptureAsync(server, hold, Guid.NewGuid())).IsProblem(409, "transfer_ambiguous");
    }

    [Theory]
    [InlineData(",\"expires_in\":5")]
    [InlineData(",\"pending\":true,\"expires_in\":0")]
    [InlineData(",\"pending\":true,\"expires_in\":31536001")]
    [InlineData(",\"pending\":true,\"expires_in\":1.5")]
    [InlineData(",\"pending\":\"yes\"")]
    public async Task A_hold_of_the_wrong_shape_is_refused(string more)
    {
        await using TestServer server = await TestServer.StartAsync();
        (await server.TransferAsync("alice", "shop", "1", more: more)).IsProblem(400, "malformed_request");
    }

    [Fact]
    public async Task The_past_shows_what_was_held()
    {
        await using TestServer server = await TestServer.StartAsync();
        await server.OpenAsync("alice");
        await server.OpenAsync("shop", "0");
        Guid hold = Guid.NewGuid();
        Response held = await HoldAsync(server, "60", hold);
        await VoidAsync(server, hold, Guid.NewGuid());
        Response then = await server.GetAsync($"/v1/wallet/accounts/alice/balance?currency=USD&as_of={held.Text("completed_at")}");
        Assert.Equal(("100.00", "60.00", "40.00", "held"), (then.Text("posted"), then.Text("held"), then.Text("available"), then.Body.GetProperty("event").GetProperty("kind").GetString()));
        Response history = await server.GetAsync("/v1/wallet/accounts/alice/history?currency=USD");
        Assert.Equal(["released", "held", "credited"], history.Body.GetProperty("events").EnumerateArray().Select(e => e.GetProperty("kind").GetString()));
    }
}
