using System.Text.Json;
using Purse.Cluster;
using Purse.Ledger;
using Purse.Server;
using Purse.Simulation;

namespace Purse.Tests.Server;

/// <summary>One server with several partitions: every account in one of them, system accounts in all.</summary>
public sealed class PartitionedTests
{
    const int Partitions = 4;

    /// <summary>The spread never changes: whoever changes it loses every account. The hashes are those that <c>xxhsum -H3</c> prints.</summary>
    [Theory]
    [InlineData("alice", 0x4da10dd61a0116b0, 0, 5)]
    [InlineData("bob", 0x1403c0c40f49b8e5, 1, 4)]
    [InlineData("shop/1", 0xd407beea3700dad0, 0, 2)]
    public void Accounts_are_spread_by_their_hash(string account, ulong hash, int ofFour, int ofSeven)
    {
        AccountName name = AccountName.Parse(account);
        Assert.Equal(hash, name.Hash());
        Assert.Equal((ofFour, ofSeven), (name.PartitionOf(Partitions), name.PartitionOf(7)));
    }

    /// <summary>The n-th account that lives in this partition.</summary>
    static string In(int partition, int n = 0) =>
        Enumerable.Range(0, 10_000).Select(i => $"a{i}").Where(name => AccountName.Parse(name).PartitionOf(Partitions) == partition).ElementAt(n);

    static async Task<TestServer> StartAsync()
    {
        TestServer server = await TestServer.StartAsync(partitionsCount: Partitions);
        for (int partition = 0; partition < Partitions; partition++)
        {
            await server.OpenAsync(In(partition));
            await server.OpenAsync(In(partition, 1), "0");
        }

        return server;
    }

    static Task<Response> EndAsync(TestServer server, Guid original, Guid id, string what, string query = "") =>
        server.PostAsync($"/v1/wallet/transfers/{original}/{what}{query}", $$"""{"transaction_id":"{{id}}"}""");

    [Fact]
    public async Task Every_partition_moves_its_own_money_and_a_system_account_is_their_sum()
    {
        await using TestServer server = await StartAsync();
        for (int life = 0; life < 2; life++)
        {
            for (int partition = 0; partition < Partitions; partition++)
            {
                Response moved = await server.TransferAsync(In(partition), In(partition, 1), "10.00");
                Assert.Equal(200, moved.Status);
                Assert.StartsWith($"{partition}:", moved.Text("position"), StringComparison.Ordinal);
                Assert.Equal((100 - 10 * (life + 1), 10 * (life + 1)), ((int)decimal.Parse(await server.BalanceAsync(In(partition))), (int)decimal.Parse(await server.BalanceAsync(In(partition, 1)))));
            }

            Response world = await server.GetAsync("/v1/wallet/accounts/@world/balance?currency=USD"), account = await server.GetAsync("/v1/wallet/accounts/@world");
            Assert.Equal("-400.00", world.Text("posted"));
            Assert.Equal("-400.00", account.Body.GetProperty("balances").GetProperty("USD").GetProperty("posted").GetString());
            Assert.Equal(["0", "1", "2", "3"], world.Text("position").Split(',').Select(entry => entry.Split(':')[0]));
            // The past of a system account: each part at its own entry.
            Assert.Equal("-400.00", (await server.GetAsync($"/v1/wallet/accounts/@world/balance?currency=USD&at={world.Text("position")}")).Text("posted"));
            Assert.Equal("0.00", (await server.GetAsync("/v1/wallet/accounts/@world/balance?currency=USD&at=0:1,1:1,2:1,3:1")).Text("posted"));
            (await server.GetAsync("/v1/wallet/accounts/@world/balance?currency=USD&at=0:1")).IsProblem(400, "malformed_request");
            Assert.Equal(200, (await server.GetAsync($"/v1/wallet/accounts/{In(3)}/balance?currency=USD&min_position={world.Text("position")}")).Status);
            await server.RestartAsync();
        }
    }

    [Fact]
    public async Task The_history_of_a_system_account_comes_from_all_partitions_by_time()
    {
        await using TestServer server = await StartAsync();
        for (int i = 0; i < 20; i++) await server.TransferAsync("@world", In(i % Partitions), "1.00");
        foreach (string order in new[] { "desc", "asc" })
        {
            List<string> times = [], positions = [];
            for (string? cursor = ""; cursor is not null;)
            {
                Response page = await server.GetAsync($"/v1/wallet/accounts/@world/history?currency=USD&limit=5&order={order}{cursor}");
                foreach (JsonElement e in page.Body.GetProperty("events").EnumerateArray())
                {
                    times.Add(e.GetProperty("time").GetString()!);
                    positions.Add(e.GetProperty("position").GetString()!);
                }

                cursor = page.Body.GetProperty("next_cursor").GetString() is string next ? $"&cursor={next}" : null;
            }

            Assert.Equal((24, 24), (positions.Count, positions.Distinct().Count()));
            Assert.Equal(order == "asc" ? times.Order(StringComparer.Ordinal) : times.OrderDescending(StringComparer.Ordinal), times);
        }
    }

    [Fact]
    public async Task An_id_is_found_wherever_it_lives_and_ambiguous_across_partitions()
    {
        await using TestServer server = await StartAsync();
        Guid hold = Guid.NewGuid(), capture = Guid.NewGuid(), back = Guid.NewGuid(), other = Guid.NewGuid(), between = Guid.NewGuid();
        await server.TransferAsync(In(2), In(2, 1), "10.00", id: hold, more: ",\"pending\":true");
        Assert.Equal("pending", (await server.GetAsync($"/v1/wallet/transfers/{hold}")).Text("status"));
        Response captured = await EndAsync(server, hold, capture, "capture");
        Assert.Equal((200, "10.00"), (captured.Status, captured.Text("amount")));
        Assert.Equal(200, (await EndAsync(server, capture, back, "reverse")).Status);
        Assert.Equal("reversed", (await server.GetAsync($"/v1/wallet/transfers/{capture}")).Text("status"));
        (await server.GetAsync($"/v1/wallet/transfers/{Guid.NewGuid()}")).IsProblem(404, "transfer_not_found");
        (await EndAsync(server, Guid.NewGuid(), other, "void")).IsProblem(404, "transfer_not_found");

        // Another partition's account uses the same id.
        await server.TransferAsync(In(0), In(0, 1), "1.00", id: hold);
        Response ambiguous = await server.GetAsync($"/v1/wallet/transfers/{hold}");
        ambiguous.IsProblem(409, "transfer_ambiguous");
        Assert.Equal([In(0), In(2)], ambiguous.Body.GetProperty("accounts").EnumerateArray().Select(a => a.GetString()));
        (await EndAsync(server, hold, other, "capture")).IsProblem(409, "transfer_ambiguous");
        Assert.Equal(captured.Body.GetRawText(), (await EndAsync(server, hold, capture, "capture")).Body.GetRawText());
        Assert.Equal("captured", (await server.GetAsync($"/v1/wallet/transfers/{hold}?account={In(2)}")).Text("status"));
        (await EndAsync(server, hold, other, "capture", $"?account={In(2)}")).IsProblem(409, "hold_already_captured");

        // Between two system accounts the id itself picks the partition.
        Response moved = await server.TransferAsync("@world", "@bank", "5.00", id: between);
        Assert.Equal($"{Router.PartitionOf(Answer.FromGuid(between), Partitions)}", moved.Text("position").Split(':')[0]);
        Assert.Equal("completed", (await server.GetAsync($"/v1/wallet/transfers/{between}?account=@world")).Text("status"));
    }

    [Fact]
    public async Task Many_transfers_go_to_their_partitions_and_come_back_in_order()
    {
        await using TestServer server = await StartAsync();
        string items = string.Join(',', Enumerable.Range(0, 40).Select(i =>
            $$"""{"from_account":"{{In(i % Partitions)}}","to_account":"{{In(i % Partitions, 1)}}","amount":"{{1 + i}}","currency":"USD","transaction_id":"{{Guid.NewGuid()}}"}"""));
        Response all = await server.PostAsync("/v1/wallet/transfers", $$"""{"transfers":[{{items}}]}""");
        JsonElement[] answers = [.. all.Body.GetProperty("transfers").EnumerateArray()];
        Assert.Equal(40, answers.Length);
        for (int i = 0; i < 40; i++)
        {
            // Each payer has 100.00 and pays 1 + i for every fourth i.
            int before = Enumerable.Range(0, i).Where(n => n % Partitions == i % Partitions).Aggregate(0, (paid, n) => paid + 1 + n <= 100 ? paid + 1 + n : paid);
            Assert.Equal(before + 1 + i <= 100 ? "completed" : "rejected", answers[i].GetProperty("status").GetString());
            Assert.StartsWith($"{i % Partitions}:", answers[i].GetProperty("position").GetString(), StringComparison.Ordinal);
        }
    }

    /// <summary>Excludes: "left nothing behind" said of all, because it is true of some.</summary>
    [Fact]
    public async Task Many_transfers_that_all_partitions_failed_are_unknown_where_any_may_be_recorded()
    {
        FaultyDisk[] disks = [new(), new()];
        await using TestServer server = await TestServer.StartAsync(diskOf: number => disks[number], partitionsCount: 2);
        string[] names = [.. Enumerable.Range(0, 2).Select(partition => Enumerable.Range(0, 100).Select(i => $"a{i}").First(name => AccountName.Parse(name).PartitionOf(2) == partition))];
        foreach (string name in names) await server.OpenAsync(name, "0");
        await server.Server.Partitions[0].DisposeAsync();
        disks[1].FlushGate.Reset();
        Guid[] ids = [Guid.NewGuid(), Guid.NewGuid()];
        string items = string.Join(',', Enumerable.Range(0, 2).Select(i => $$"""{"from_account":"@world","to_account":"{{names[i]}}","amount":"1","currency":"USD","transaction_id":"{{ids[i]}}"}"""));
        Response response = await server.SendAsync(HttpMethod.Post, "/v1/wallet/transfers", $$"""{"transfers":[{{items}}]}""", ("X-Request-Timeout-Ms", "200"));
        response.IsProblem(504, "deadline_exceeded", "unknown");
        disks[1].FlushGate.Set();
        Assert.Equal("completed", (await server.GetAsync($"/v1/wallet/transfers/{ids[1]}?account={names[1]}")).Text("status"));
    }

    [Fact]
    public async Task Events_of_all_partitions_resume_at_a_position_of_each()
    {
        await using TestServer server = await StartAsync();
        async Task<List<string>> EventsAsync(string query) =>
            [.. (await server.Client.GetStringAsync($"/v1/events?live=false{query}")).Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => JsonDocument.Parse(line).RootElement.GetProperty("position").GetString()!)];
        List<string> all = await EventsAsync("");
        List<string> rest = await EventsAsync("&after=0:0,1:2");
        for (int partition = 0; partition < Partitions; partition++)
        {
            string[] own = [.. all.Where(position => position.StartsWith($"{partition}:", StringComparison.Ordinal))];
            Assert.Equal(await EventsAsync($"&partition={partition}"), own);
            Assert.Equal(own[(partition == 1 ? 2 : 0)..], rest.Where(position => position.StartsWith($"{partition}:", StringComparison.Ordinal)));
        }

        Assert.Equal(400, (await server.GetAsync("/v1/events?partition=4")).Status);
    }

    [Fact]
    public async Task A_currency_is_known_everywhere_before_its_registration_is_answered()
    {
        await using TestServer server = await StartAsync();
        Assert.Equal(201, (await server.PostAsync("/v1/wallet/currencies", """{"currency":"GEM","decimals":3}""")).Status);
        for (int partition = 0; partition < Partitions; partition++) Assert.Equal("1.500", (await server.TransferAsync("@world", In(partition), "1.5", "GEM")).Text("amount"));
        Assert.Equal("-6.000", await server.BalanceAsync("@world", "GEM"));
        (await server.PostAsync("/v1/wallet/currencies", """{"currency":"GEM","decimals":2}""")).IsProblem(409, "currency_exists");
    }

    /// <summary>Every way to move money, between accounts that live apart: the same outcomes as on one partition, and the same again after a restart.</summary>
    [Fact]
    public async Task Money_moves_between_partitions()
    {
        await using TestServer server = await StartAsync();
        Guid id = Guid.NewGuid();
        Response moved = await server.TransferAsync(In(0), In(1), "10.00", id: id, more: ",\"description\":\"lunch\",\"metadata\":{\"order\":7}");
        Assert.Equal((200, "completed"), (moved.Status, moved.Text("status")));
        Assert.Equal(["0", "1"], moved.Text("position").Split(',').Select(entry => entry.Split(':')[0]));
        Response again = await server.TransferAsync(In(0), In(1), "10.00", id: id, more: ",\"description\":\"lunch\",\"metadata\":{\"order\":7}");
        Assert.Equal(moved.Body.GetRawText(), again.Body.GetRawText());
        (await server.TransferAsync(In(0), In(1), "11.00", id: id)).IsProblem(409, "transaction_id_reused");
        JsonElement[] events = [.. (await server.GetAsync($"/v1/wallet/transfers/{id}")).Body.GetProperty("events").EnumerateArray()];
        Assert.Equal(["debited", "credited"], events.Select(e => e.GetProperty("kind").GetString()));
        Assert.All(events, e => Assert.Equal("lunch", e.GetProperty("description").GetString()));
        JsonElement credited = (await server.GetAsync($"/v1/wallet/accounts/{In(1)}/history?currency=USD&limit=1")).Body.GetProperty("events")[0];
        Assert.Equal(("credited", In(0), 7), (credited.GetProperty("kind").GetString(), credited.GetProperty("counterparty").GetString(), credited.GetProperty("metadata").GetProperty("order").GetInt32()));

        // Refusals, in the documented order.
        (await server.TransferAsync(In(0), In(1), "1000.00")).IsProblem(422, "insufficient_funds");
        Guid refused = Guid.NewGuid();
        (await server.TransferAsync(In(0), "nobody2", "1.00", id: refused)).IsProblem(404, "to_account_not_found");
        (await server.TransferAsync(In(0), "nobody2", "1.00", id: refused)).IsProblem(404, "to_account_not_found");
        Assert.Equal("rejected", (await server.GetAsync($"/v1/wallet/transfers/{refused}")).Text("status"));
        (await server.TransferAsync("nobody2", In(1), "1.00")).IsProblem(404, "from_account_not_found");
        Assert.Equal("90.00", (await server.TransferAsync(In(0), In(1), "500.00", more: ",\"up_to\":true,\"dry_run\":true")).Text("amount"));
        (await server.TransferAsync(In(0), "nobody2", "1.00", more: ",\"dry_run\":true")).IsProblem(404, "to_account_not_found");
        Assert.Equal(("90.00", "110.00"), (await server.BalanceAsync(In(0)), await server.BalanceAsync(In(1))));

        // Back in part, and the rest.
        Guid part = Guid.NewGuid();
        Response back = await server.PostAsync($"/v1/wallet/transfers/{id}/reverse", $$"""{"transaction_id":"{{part}}","amount":"4"}""");
        Assert.Equal((200, "4.00", In(1)), (back.Status, back.Text("amount"), back.Text("from_account")));
        Assert.Equal(back.Body.GetRawText(), (await server.PostAsync($"/v1/wallet/transfers/{id}/reverse", $$"""{"transaction_id":"{{part}}","amount":"4"}""")).Body.GetRawText());
        (await server.PostAsync($"/v1/wallet/transfers/{id}/reverse", $$"""{"transaction_id":"{{Guid.NewGuid()}}","amount":"7"}""")).IsProblem(422, "exceeds_reversible_amount");
        Assert.Equal("6.00", (await server.PostAsync($"/v1/wallet/transfers/{id}/reverse", $$"""{"transaction_id":"{{Guid.NewGuid()}}"}""")).Text("amount"));
        (await server.PostAsync($"/v1/wallet/transfers/{id}/reverse", $$"""{"transaction_id":"{{Guid.NewGuid()}}"}""")).IsProblem(409, "already_reversed");
        Response story = await server.GetAsync($"/v1/wallet/transfers/{id}");
        Assert.Equal(("reversed", "10.00"), (story.Text("status"), story.Text("reversed_amount")));
        // The transfer, and each reversal: what it left in either partition, in the order of the partitions.
        Assert.Equal(["debited", "credited", "committed", "credited", "debited", "committed", "credited", "debited"], story.Body.GetProperty("events").EnumerateArray().Select(e => e.GetProperty("kind").GetString()));

        // A hold, captured in part.
        Guid hold = Guid.NewGuid(), capture = Guid.NewGuid();
        Response held = await server.TransferAsync(In(2), In(3), "20.00", id: hold, more: ",\"pending\":true,\"expires_in\":3600");
        Assert.Equal("pending", held.Text("status"));
        Assert.Equal(held.Body.GetRawText(), (await server.TransferAsync(In(2), In(3), "20.00", id: hold, more: ",\"pending\":true,\"expires_in\":3600")).Body.GetRawText());
        Assert.Equal("80.00", (await server.GetAsync($"/v1/wallet/accounts/{In(2)}/balance?currency=USD")).Text("available"));
        Response captured = await server.PostAsync($"/v1/wallet/transfers/{hold}/capture", $$"""{"transaction_id":"{{capture}}","amount":"15"}""");
        Assert.Equal((200, "15.00"), (captured.Status, captured.Text("amount")));
        Assert.Equal(captured.Body.GetRawText(), (await server.PostAsync($"/v1/wallet/transfers/{hold}/capture", $$"""{"transaction_id":"{{capture}}","amount":"15"}""")).Body.GetRawText());
        Response ended = await server.GetAsync($"/v1/wallet/transfers/{hold}");
        Assert.Equal(("captured", "15.00"), (ended.Text("status"), ended.Text("captured_amount")));
        Assert.Equal(("85.00", "115.00"), (await server.BalanceAsync(In(2)), await server.BalanceAsync(In(3))));

        // A transaction over all of them: what an earlier posting brings, a later one may spend.
        Guid many = Guid.NewGuid();
        string postings = $$"""[{"from_account":"{{In(0)}}","to_account":"{{In(1, 1)}}","amount":"30","currency":"USD"},{"from_account":"{{In(1, 1)}}","to_account":"{{In(2, 1)}}","amount":"25","currency":"USD"},{"from_account":"@fees","to_account":"{{In(3, 1)}}","amount":"1","currency":"USD"}]""";
        Response all = await server.PostAsync("/v1/wallet/transactions", $$"""{"transaction_id":"{{many}}","postings":{{postings}}}""");
        Assert.Equal((200, "completed"), (all.Status, all.Text("status")));
        Assert.Equal(all.Body.GetRawText(), (await server.PostAsync("/v1/wallet/transactions", $$"""{"transaction_id":"{{many}}","postings":{{postings}}}""")).Body.GetRawText());
        Assert.Equal(("70.00", "5.00", "25.00", "1.00"), (await server.BalanceAsync(In(0)), await server.BalanceAsync(In(1, 1)), await server.BalanceAsync(In(2, 1)), await server.BalanceAsync(In(3, 1))));
        Response tooMuch = await server.PostAsync("/v1/wallet/transactions", $$"""{"transaction_id":"{{Guid.NewGuid()}}","postings":[{"from_account":"{{In(0)}}","to_account":"{{In(1)}}","amount":"1","currency":"USD"},{"from_account":"{{In(2, 1)}}","to_account":"{{In(0)}}","amount":"26","currency":"USD"}]}""");
        tooMuch.IsProblem(422, "insufficient_funds");
        Assert.Equal(1, tooMuch.Body.GetProperty("posting").GetInt32());
        Assert.Equal(200, (await EndAsync(server, many, Guid.NewGuid(), "reverse")).Status);
        Assert.Equal(("100.00", "0.00", "0.00", "0.00"), (await server.BalanceAsync(In(0)), await server.BalanceAsync(In(1, 1)), await server.BalanceAsync(In(2, 1)), await server.BalanceAsync(In(3, 1))));

        await server.RestartAsync();
        Assert.Equal(moved.Body.GetRawText(), (await server.TransferAsync(In(0), In(1), "10.00", id: id, more: ",\"description\":\"lunch\",\"metadata\":{\"order\":7}")).Body.GetRawText());
        Assert.Equal(captured.Body.GetRawText(), (await server.PostAsync($"/v1/wallet/transfers/{hold}/capture", $$"""{"transaction_id":"{{capture}}","amount":"15"}""")).Body.GetRawText());
        Assert.Equal("reversed", (await server.GetAsync($"/v1/wallet/transfers/{many}")).Text("status"));
    }

    /// <summary>A payee's partition that does not answer leaves the transfer in doubt, holds nothing but its money, and ends it when it is back.</summary>
    [Fact]
    public async Task A_transfer_to_a_partition_that_is_down_is_in_doubt_until_it_is_back()
    {
        FaultyDisk[] disks = [.. Enumerable.Range(0, Partitions).Select(_ => new FaultyDisk())];
        await using TestServer server = await TestServer.StartAsync(diskOf: number => disks[number], partitionsCount: Partitions);
        for (int partition = 0; partition < Partitions; partition++) await server.OpenAsync(In(partition));
        disks[1].FlushGate.Reset();
        Guid id = Guid.NewGuid();
        string body = $$"""{"from_account":"{{In(0)}}","to_account":"{{In(1)}}","amount":"10","currency":"USD","transaction_id":"{{id}}"}""";
        Response doubtful = await server.SendAsync(HttpMethod.Post, "/v1/wallet/balance_transfer", body, ("X-Request-Timeout-Ms", "300"));
        Assert.Equal((202, "in_doubt", id.ToString()), (doubtful.Status, doubtful.Text("status"), doubtful.Text("transaction_id")));
        Assert.Equal((202, "in_doubt"), ((await server.SendAsync(HttpMethod.Post, "/v1/wallet/balance_transfer", body, ("X-Request-Timeout-Ms", "300"))).Status, (await server.GetAsync($"/v1/wallet/transfers/{id}?account={In(0)}")).Text("status")));
        Assert.Equal(202, (await server.SendAsync(HttpMethod.Post, "/v1/wallet/balance_transfer", body[..^1] + ",\"dry_run\":true}", ("X-Request-Timeout-Ms", "300"))).Status);
        Assert.Equal((1, 0), (await server.MetricAsync("purse_in_doubt_coordinated", 0), await server.MetricAsync("purse_in_doubt_coordinated", 1)));
        Assert.InRange((await server.MetricAsync("purse_in_doubt_oldest_seconds", 0))!.Value, 0.3, 60);
        // Everybody else goes on, the payer included.
        Assert.Equal("90.00", (await server.GetAsync($"/v1/wallet/accounts/{In(0)}/balance?currency=USD")).Text("available"));
        Assert.Equal(200, (await server.TransferAsync(In(0), In(2), "90.00")).Status);
        disks[1].FlushGate.Set();
        Assert.Equal("completed", (await server.SendAsync(HttpMethod.Post, "/v1/wallet/balance_transfer", body)).Text("status"));
        Assert.Equal(("0.00", "110.00"), (await server.BalanceAsync(In(0)), await server.BalanceAsync(In(1))));
        Assert.Equal((0, 0), (await server.MetricAsync("purse_in_doubt_coordinated", 0), await server.MetricAsync("purse_in_doubt_oldest_seconds", 0)));
    }

    /// <summary>Excludes: an operator who looks at figures that are not what happens.</summary>
    [Fact]
    public async Task Metrics_say_what_each_partition_does()
    {
        await using TestServer server = await StartAsync();
        double? done = await server.MetricAsync("purse_commands_total", 2, "outcome=\"done\"");
        Assert.Equal(422, (await server.TransferAsync(In(2), In(1), "100000")).Status);
        for (int i = 0; i < 3; i++) Assert.Equal(200, (await server.TransferAsync(In(2), i == 0 ? In(1) : "@world", "1")).Status);
        Assert.Equal(3, await server.MetricAsync("purse_commands_total", 2, "outcome=\"done\"") - done);
        Assert.Equal(1, await server.MetricAsync("purse_commands_total", 2, "outcome=\"insufficient_funds\""));
        Assert.Equal((1, 1, 0), (await server.MetricAsync("purse_ready", 3), await server.MetricAsync("purse_epoch", 3), await server.MetricAsync("purse_commands_queued", 3)));
        double? events = await server.MetricAsync("purse_events_total", 2);
        Assert.Equal((double)server.Server.Partitions[2].FlushedSequence, events);
        Assert.InRange((await server.MetricAsync("purse_journal_flush_duration_seconds_count", 2))!.Value, 4, double.MaxValue);
        await server.StopAsync();
        await server.RestartAsync();
        Assert.Equal((2, events), (await server.MetricAsync("purse_epoch", 3), await server.MetricAsync("purse_snapshot_position", 2)));
    }

    /// <summary>A capture's own id belongs where the hold is, not where its hash says.</summary>
    [Fact]
    public async Task What_is_asked_about_a_hold_between_system_accounts_is_found_by_any_of_its_ids()
    {
        await using TestServer server = await StartAsync();
        Guid hold = Guid.NewGuid(), capture = Guid.NewGuid(), back = Guid.NewGuid();
        while (Router.PartitionOf(Answer.FromGuid(capture), Partitions) == Router.PartitionOf(Answer.FromGuid(hold), Partitions)) capture = Guid.NewGuid();
        await server.TransferAsync("@world", "@bank", "5.00", id: hold, more: ",\"pending\":true");
        Assert.Equal(200, (await EndAsync(server, hold, capture, "capture", "?account=@world")).Status);
        Assert.Equal("completed", (await server.GetAsync($"/v1/wallet/transfers/{capture}?account=@world")).Text("status"));
        Assert.Equal(200, (await EndAsync(server, capture, back, "reverse", "?account=@bank")).Status);
        Assert.Equal("0.00", await server.BalanceAsync("@bank"));
    }

    /// <summary>Excludes: a folder that forgets, and serves what is left as if it were all.</summary>
    [Theory]
    [InlineData("purse.json")]
    [InlineData("partitions/3")]
    public async Task A_folder_that_lost_a_part_is_refused(string part)
    {
        await using TestServer server = await StartAsync();
        await server.StopAsync();
        string path = Path.Combine(server.Data, part), away = Path.Combine(server.Data, "away");
        Directory.Move(path, away);
        StartException refused = await Assert.ThrowsAsync<StartException>(server.RestartAsync);
        Assert.Contains("Restore it from a copy", refused.Message, StringComparison.Ordinal);
        Directory.Move(away, path);
        await server.RestartAsync();
        Assert.Equal("100.00", await server.BalanceAsync(In(3)));
    }

    [Fact]
    public async Task The_number_of_partitions_never_changes()
    {
        await using TestServer server = await StartAsync();
        server.PartitionsCount = null;
        await server.RestartAsync();
        Assert.Equal("100.00", await server.BalanceAsync(In(3)));
        server.PartitionsCount = 2;
        StartException refused = await Assert.ThrowsAsync<StartException>(server.RestartAsync);
        Assert.Contains("was made for 4 partitions, not 2", refused.Message, StringComparison.Ordinal);
        server.PartitionsCount = Partitions;
        await server.RestartAsync();
    }
}
