using System.Globalization;
using System.Net;
using System.Text.Json;
using Orleans.Runtime;
using Purse.Cluster;
using Purse.Cluster.Nodes;
using Purse.Ledger;
using Purse.Partitions;
using Purse.Server;
using Purse.Tests.Server;

namespace Purse.Tests.Cluster;

/// <summary>Several nodes in this process, on a real ZooKeeper and real databases: any of them takes any request.</summary>
public sealed class NodeTests(ZooKeeperServer zooKeeper, PostgreSqlServer postgreSql) : IClassFixture<ZooKeeperServer>, IClassFixture<PostgreSqlServer>, IAsyncDisposable
{
    readonly List<IAsyncDisposable> _open = [];

    public async ValueTask DisposeAsync()
    {
        foreach (IAsyncDisposable one in Enumerable.Reverse(_open)) await one.DisposeAsync();
    }

    async Task<string> MakeAsync(int partitionsCount)
    {
        string address = zooKeeper.NewAddress();
        await ClusterMap.InitAsync(address, partitionsCount, static _ => { });
        SortedDictionary<string, StoreSettings> stores = new(StringComparer.Ordinal) { ["s1"] = new StoreSettings(await postgreSql.NewDatabaseAsync()) };
        string view = await postgreSql.NewDatabaseAsync();
        await using ClusterMap map = await ClusterMap.OpenAsync(address, static _ => { });
        await map.ChangeAsync(settings => settings with { Stores = stores, Partitions = [.. Enumerable.Repeat("s1", partitionsCount)], View = view });
        return address;
    }

    async Task<TestServer> StartAsync(string address, NodeRole role = NodeRole.All)
    {
        TestServer node = await TestServer.StartNodeAsync(address, role);
        _open.Add(node);
        return node;
    }

    /// <summary>Excludes: an answer, or a refusal, that is another one where its partition is elsewhere.</summary>
    [Fact]
    public async Task A_front_answers_every_request_of_the_contract_as_one_process_does()
    {
        string address = await MakeAsync(1);
        await StartAsync(address, NodeRole.Write);
        TestServer front = await StartAsync(address, NodeRole.Front);
        await ContractTests.WalkAsync(front, []);
    }

    [Fact]
    public async Task What_concerns_several_partitions_is_put_together_from_several_nodes()
    {
        const int Partitions = 4;
        string address = await MakeAsync(Partitions);
        TestServer one = await StartAsync(address), other = await StartAsync(address);
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(120));
        // Each has its share, once both know of each other.
        while (one.Server.Partitions.Count != 2 || other.Server.Partitions.Count != 2) await Task.Delay(50, limit.Token);
        TestServer front = await StartAsync(address, NodeRole.Front);
        TestServer[] nodes = [one, other, front];
        string[] accounts = [.. Enumerable.Range(0, Partitions).Select(partition => Enumerable.Range(0, 1000).Select(i => $"a{i}").First(name => AccountName.Parse(name).PartitionOf(Partitions) == partition))];
        foreach ((string account, int i) in accounts.Select((account, i) => (account, i))) await nodes[i % 3].OpenAsync(account);
        foreach (TestServer node in nodes)
        {
            // Of a system account, and of all events.
            Assert.Equal("-400.00", (await node.GetAsync("/v1/wallet/accounts/@world")).Body.GetProperty("balances").GetProperty("USD").GetProperty("posted").GetString());
            Assert.Equal("-400.00", await node.BalanceAsync("@world"));
            Assert.Equal(4, (await node.GetAsync("/v1/wallet/accounts/@world/history?currency=USD")).Body.GetProperty("events").GetArrayLength());
            Assert.Equal(4, (await node.Client.GetStringAsync("/v1/events?live=false")).Split('\n').Count(line => line.Contains("\"credited\"", StringComparison.Ordinal)));
        }

        // A currency is known everywhere once it is registered.
        Assert.Equal(201, (await front.PostAsync("/v1/wallet/currencies", """{"currency":"GEM","decimals":3}""")).Status);
        foreach ((string account, int i) in accounts.Select((account, i) => (account, i))) Assert.Equal("2.500", (await nodes[i % 3].TransferAsync("@world", account, "2.5", "GEM")).Text("amount"));
        Assert.Contains("GEM", await one.Client.GetStringAsync("/v1/wallet/currencies"), StringComparison.Ordinal);

        // Commits across nodes, in every direction; a dry run asks both sides.
        foreach (TestServer node in nodes)
        {
            foreach (string from in accounts)
            {
                foreach (string to in accounts.Where(to => to != from)) Assert.Equal("completed", (await node.TransferAsync(from, to, "1.00")).Text("status"));
            }

            (await node.TransferAsync(accounts[0], accounts[1], "1000.00", more: ",\"dry_run\":true")).IsProblem(422, "insufficient_funds");
            (await node.TransferAsync(accounts[0], "ghost", "1.00", more: ",\"dry_run\":true")).IsProblem(404, "to_account_not_found");
        }

        foreach (string account in accounts) Assert.Equal("100.00", await front.BalanceAsync(account));

        // An id without its home is found, with what it left on both sides.
        Guid id = Guid.NewGuid(), hold = Guid.NewGuid();
        await one.TransferAsync(accounts[0], accounts[3], "3.00", id: id);
        foreach (TestServer node in nodes)
        {
            Response story = await node.GetAsync($"/v1/wallet/transfers/{id}");
            Assert.Equal((200, 2), (story.Status, story.Body.GetProperty("events").EnumerateArray().Count(e => e.GetProperty("kind").GetString() is "debited" or "credited")));
            (await node.GetAsync($"/v1/wallet/transfers/{Guid.NewGuid()}")).IsProblem(404, "transfer_not_found");
        }

        await other.TransferAsync(accounts[2], accounts[1], "4.00", id: hold, more: ",\"pending\":true");
        Assert.Equal("completed", (await front.PostAsync($"/v1/wallet/transfers/{hold}/capture", $$"""{"transaction_id":"{{Guid.NewGuid()}}"}""")).Text("status"));
        Assert.Equal("completed", (await one.PostAsync($"/v1/wallet/transfers/{id}/reverse", $$"""{"transaction_id":"{{Guid.NewGuid()}}"}""")).Text("status"));
        // The same id in two homes.
        Guid twice = Guid.NewGuid();
        await front.TransferAsync(accounts[0], "@world", "1.00", id: twice);
        await front.TransferAsync(accounts[1], "@world", "1.00", id: twice);
        Response ambiguous = await other.GetAsync($"/v1/wallet/transfers/{twice}");
        ambiguous.IsProblem(409, "transfer_ambiguous");
        Assert.Equal(new[] { accounts[0], accounts[1] }.Order(), ambiguous.Body.GetProperty("accounts").EnumerateArray().Select(one => one.GetString()).Order());

        // Many at once: each gets its own outcome, in its place.
        string[] transfers = [.. Enumerable.Range(0, 40).Select(i => $$"""{"from_account":"{{(i % 10 == 9 ? "ghost" : accounts[i % 4])}}","to_account":"{{accounts[(i + 1) % 4]}}","amount":"{{(i % 10 == 8 ? "x" : "0.01")}}","currency":"USD","transaction_id":"{{Guid.NewGuid()}}"}""")];
        Response many = await front.PostAsync("/v1/wallet/transfers", $$"""{"transfers":[{{string.Join(',', transfers)}}]}""");
        Assert.Equal(
            Enumerable.Range(0, 40).Select(i => (i % 10) switch { 8 => "amount_malformed", 9 => "from_account_not_found", _ => "completed" }),
            many.Body.GetProperty("transfers").EnumerateArray().Select(one => one.TryGetProperty("code", out JsonElement code) ? code.GetString() : one.GetProperty("status").GetString()));
        // And a transaction over all of them.
        string postings = string.Join(',', accounts.Select((account, i) => $$"""{"from_account":"{{account}}","to_account":"{{accounts[(i + 1) % 4]}}","amount":"1.00","currency":"USD"}"""));
        Assert.Equal("completed", (await other.PostAsync("/v1/wallet/transactions", $$"""{"transaction_id":"{{Guid.NewGuid()}}","postings":[{{postings}}]}""")).Text("status"));
        while ((await front.GetAsync("/v1/audit/in_doubt")).Body.GetProperty("in_doubt").GetArrayLength() > 0) await Task.Delay(20, limit.Token);

        // What both feed is one view.
        string position = string.Join(',', nodes.SelectMany(node => node.Server.Partitions).Select(partition => $"{partition.Number}:{partition.FlushedSequence}"));
        foreach (TestServer node in nodes)
        {
            foreach (string account in accounts.Append("@world"))
                Assert.Equal(await node.BalanceAsync(account), (await node.GetAsync($"/v1/wallet/accounts/{account}/balance?currency=USD&source=view&min_position={position}")).Text("posted"));
        }

        // A node that has partitions only takes nothing from callers.
        TestServer write = await StartAsync(address, NodeRole.Write);
        (await write.GetAsync($"/v1/wallet/accounts/{accounts[0]}")).IsProblem(503, "partition_unavailable", "unknown");
    }

    /// <summary>Excludes: a request that fails because its partition is just leaving.</summary>
    [Fact]
    public async Task Nodes_come_and_go_and_no_request_fails()
    {
        string address = await MakeAsync(4);
        TestServer one = await StartAsync(address), front = await StartAsync(address, NodeRole.Front);
        string[] accounts = [.. Enumerable.Range(0, 8).Select(i => $"a{i}")];
        foreach (string account in accounts) await front.OpenAsync(account);
        using CancellationTokenSource end = new();
        int done = 0;
        Task[] clients = [.. Enumerable.Range(0, accounts.Length).Select(client => Task.Run(async () =>
        {
            for (int i = 0; !end.IsCancellationRequested; i++)
            {
                string transfer = $$"""{"from_account":"{{accounts[client]}}","to_account":"{{accounts[(client + 1 + i % 7) % 8]}}","amount":"0.01","currency":"USD","transaction_id":"{{Guid.NewGuid()}}"}""";
                Response answer = await front.SendAsync(HttpMethod.Post, "/v1/wallet/balance_transfer", transfer, ("X-Request-Timeout-Ms", "30000"));
                Assert.True(answer.Status == 200, $"{answer.Status}: {answer.Body}");
                Interlocked.Increment(ref done);
            }
        }))];
        TestServer other = await StartAsync(address);
        await HasAsync(other, 2);
        await one.StopAsync();
        await HasAsync(other, 4);
        TestServer third = await StartAsync(address);
        await HasAsync(third, 2);
        int before = Volatile.Read(ref done);
        while (Volatile.Read(ref done) < before + 50 && !clients.Any(client => client.IsFaulted)) await Task.Delay(20);
        await end.CancelAsync();
        await Task.WhenAll(clients);
        decimal sum = 0;
        foreach (string account in accounts) sum += decimal.Parse(await front.BalanceAsync(account), CultureInfo.InvariantCulture);
        Assert.Equal(800.00m, sum);

        async Task HasAsync(TestServer node, int partitions)
        {
            using CancellationTokenSource limit = new(TimeSpan.FromSeconds(120));
            while (node.Server.Partitions.Count(partition => partition.IsReady) != partitions) await Task.Delay(20, limit.Token);
        }
    }

    /// <summary>Excludes: a writer that another has deposed, and that Orleans takes for the owner for ever.</summary>
    [Fact]
    public async Task A_partition_that_was_deposed_is_taken_over_again()
    {
        string address = await MakeAsync(1);
        TestServer node = await StartAsync(address);
        await node.OpenAsync("alice");
        await using (ClusterStores stores = new(await ClusterMap.OpenAsync(address, static _ => { }), static _ => { }))
        {
            // Whoever it is: it writes nothing, and goes.
            using Purse.Journal.JournalWriter thief = stores.Stores[0].TakeOver([], (in Purse.Journal.Block _) => { });
            Assert.Equal(200, (await node.TransferAsync("@world", "alice", "1.00")).Status);
        }

        Assert.Equal("101.00", await node.BalanceAsync("alice"));
        Assert.True(node.Server.Partitions.Single().Epoch >= 3);
    }

    [Fact]
    public void Every_node_gets_its_share_and_few_partitions_move()
    {
        Random random = new(1);
        for (int run = 0; run < 200; run++)
        {
            int count = 1 + random.Next(64);
            string[] nodes = [.. Enumerable.Range(0, 1 + random.Next(9)).Select(i => $"10.0.{run}.{i}:11111@{random.Next()}")];
            int[] assigned = PartitionPlacement.Assign(count, nodes);
            int share = (count + nodes.Length - 1) / nodes.Length;
            Assert.All(assigned, node => Assert.InRange(node, 0, nodes.Length - 1));
            Assert.All(assigned.GroupBy(node => node), group => Assert.True(group.Count() <= share));
            // In any order of the nodes.
            string[] turned = [.. nodes.Reverse()];
            Assert.Equal(assigned.Select(node => nodes[node]), PartitionPlacement.Assign(count, turned).Select(node => turned[node]));
        }

        string[] three = ["a", "b", "c"], four = [.. three, "d"];
        int moved = PartitionPlacement.Assign(64, three).Zip(PartitionPlacement.Assign(64, four)).Count(pair => pair.First != pair.Second);
        Assert.InRange(moved, 16, 40);
    }

    /// <summary>Excludes: a partition that goes where its store cannot be reached, or goes round while nobody reaches it.</summary>
    [Fact]
    public void A_partition_goes_where_its_store_is_in_reach()
    {
        const int Count = 6;
        SiloAddress[] nodes = [.. Enumerable.Range(1, 3).Select(i => SiloAddress.New(IPAddress.Loopback, 11110 + i, i))];
        for (int number = 0; number < Count; number++)
        {
            SiloAddress right = PartitionPlacement.Assign(number, Count, nodes);
            SiloAddress[] others = [.. nodes.Where(node => !node.Equals(right))];
            SiloAddress? Move(SiloAddress here, bool? reaches, params SiloAddress[] able) => PartitionPlacement.Move(number, Count, here, nodes, reaches, able.Contains);
            Assert.Null(Move(right, true, nodes));
            Assert.Equal(right, Move(others[0], true, nodes));
            Assert.Null(Move(others[0], true, others));
            Assert.Equal(others[1], Move(right, false, others[1]));
            Assert.Equal(right, Move(others[0], false, right));
            Assert.Null(Move(right, false));
            Assert.Null(Move(right, false, right));
            Assert.Null(Move(right, null, others));
            Assert.Null(Move(others[0], null, nodes));
        }
    }

    /// <summary>Excludes: a message that says something else on the other node; bytes that are none and are taken for some.</summary>
    [Fact]
    public void Messages_are_the_same_on_the_other_node_and_nothing_else_is_one()
    {
        Random random = new(2);
        Posting posting = new() { Account = AccountName.Parse("alice"), Counterparty = AccountName.Parse("@world"), AmountDigits = Int128.MaxValue / 7, AmountScale = 18, Currency = CurrencyCode.Parse("USD"), Index = 63 };
        Preparation preparation = new()
        {
            Coordinator = 3,
            Attempt = ulong.MaxValue,
            TransactionId = UInt128.MaxValue - 5,
            Flags = EventFlags.Posting | EventFlags.CrossPartition,
            Postings = [posting, posting with { Index = 7, AmountDigits = 1 }],
            Description = new Erasable("lunch é🦊"u8.ToArray(), new byte[Erasable.SaltSizeBytes]),
        };
        Message[] messages =
        [
            new() { Kind = MessageKind.Prepare, From = 1, To = 2, Attempt = 5, LowWater = 4, Preparation = preparation },
            new() { Kind = MessageKind.Vote, From = 2, To = 1, Attempt = 5, Vote = new Vote { Outcome = Outcome.InsufficientFunds, Posting = 63, IsAboutPayee = true, Posted = -1, Held = Int128.MinValue, Incoming = 7, Bound = Int128.MaxValue } },
            new() { Kind = MessageKind.Decision, From = 1, To = 2, Attempt = 5, IsCommit = true, LowWater = 9 },
            new() { Kind = MessageKind.Acknowledgement, From = 2, To = 1, Attempt = 5, Sequence = 77 },
        ];
        byte[] bytes = MessageBytes.Write(messages);
        List<Message> read = MessageBytes.Read(bytes);
        Assert.Equal(messages.Skip(1), read.Skip(1));
        Assert.Equal(messages[0] with { Preparation = null }, read[0] with { Preparation = null });
        Assert.Equal(bytes, MessageBytes.Write([.. read]));
        for (int length = 1; length < bytes.Length; length++) Try(bytes[..length]);
        for (int i = 0; i < 20_000; i++)
        {
            byte[] other = (byte[])bytes.Clone();
            for (int n = random.Next(1, 4); n > 0; n--) other[random.Next(other.Length)] = (byte)random.Next(256);
            Try(other);
        }

        static void Try(byte[] some)
        {
            try
            {
                MessageBytes.Read(some);
                _ = Frame.ReadAll(some).Count();
            }
            catch (InvalidDataException)
            {
                // Said, and nothing else.
            }
        }
    }
}
