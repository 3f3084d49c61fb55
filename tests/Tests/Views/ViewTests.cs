using System.Data.Common;
using System.Globalization;
using System.Text.Json;
using Microsoft.Data.Sqlite;
using Npgsql;
using Purse.Cluster.Local;
using Purse.Ledger;
using Purse.Partitions;
using Purse.Server;
using Purse.Tests.Server;
using Purse.Views;
using StackExchange.Redis;

namespace Purse.Tests.Views;

/// <summary>
/// The views against what they are made from: after every kind of command over three partitions each row is held against the exact answers and the
/// events of the same server; and the three kinds of views against each other.
/// </summary>
public sealed class ViewTests(PostgreSqlServer postgreSql) : IClassFixture<PostgreSqlServer>
{
    const int Partitions = 3, Commands = 400;

    /// <summary>What became of the ids that the load used, each with the account that it is asked for by.</summary>
    sealed record Load(List<(Guid Id, string Home, bool IsVoid)> Ids, string[] Accounts);

    static Task<TestServer> StartAsync() => TestServer.StartAsync(partitionsCount: Partitions);

    static async Task<Load> RunAsync(TestServer server, int seed, int commands = Commands, bool someExpire = false)
    {
        Random random = new(seed);
        string[] accounts = [.. Enumerable.Range(0, 9).Select(i => $"a{seed}/{i}")];
        List<(Guid Id, string Home, bool IsVoid)> ids = [];
        List<(Guid Id, string Home)> holds = [], moved = [];
        foreach (string account in accounts) await server.OpenAsync(account, "500.00");
        // An id like any other.
        await server.TransferAsync(accounts[0], accounts[1], "0.01", id: Guid.Empty);
        ids.Add((Guid.Empty, accounts[0], false));
        for (int i = 0; i < commands; i++)
        {
            Guid id = Guid.NewGuid();
            string from = random.Next(12) == 0 ? "@world" : accounts[random.Next(accounts.Length)], to = accounts[random.Next(accounts.Length)], amount = $"{random.Next(1, 90)}.{random.Next(100):00}";
            string home = from == "@world" ? to : from, more = Texts(random);
            if (from == to) continue;
            switch (random.Next(20))
            {
                case < 8:
                    await server.TransferAsync(from, to, amount, id: id, more: more + (random.Next(5) == 0 ? ",\"up_to\":true" : ""));
                    moved.Add((id, home));
                    break;
                case < 11:
                    await server.TransferAsync(from, to, amount, id: id, more: more + $",\"pending\":true,\"expires_in\":{(someExpire && random.Next(3) == 0 ? 1 : 3600)}");
                    holds.Add((id, home));
                    break;
                case < 13 when holds.Count > 0:
                    (Guid hold, home) = holds[random.Next(holds.Count)];
                    bool isVoid = random.Next(2) == 0;
                    string part = isVoid || random.Next(2) == 0 ? "" : $",\"amount\":\"{random.Next(1, 20)}\"";
                    await server.PostAsync($"/v1/wallet/transfers/{hold}/{(isVoid ? "void" : "capture")}?account={Uri.EscapeDataString(home)}", $$"""{"transaction_id":"{{id}}"{{part}}}""");
                    ids.Add((id, home, isVoid));
                    continue;
                case < 15 when moved.Count > 0:
                    (Guid original, home) = moved[random.Next(moved.Count)];
                    string back = random.Next(2) == 0 ? "" : $",\"amount\":\"{random.Next(1, 20)}\"";
                    await server.PostAsync($"/v1/wallet/transfers/{original}/reverse?account={Uri.EscapeDataString(home)}", $$"""{"transaction_id":"{{id}}"{{back}}{{more}}}""");
                    break;
                case < 17:
                    string third = accounts[random.Next(accounts.Length)];
                    string second = third == to ? "" : $$""",{"from_account":"{{to}}","to_account":"{{third}}","amount":"{{random.Next(1, 300)}}","currency":"USD"}""";
                    await server.PostAsync("/v1/wallet/transactions", $$"""{"transaction_id":"{{id}}","postings":[{"from_account":"{{from}}","to_account":"{{to}}","amount":"{{amount}}","currency":"USD"}{{second}}]{{more}}}""");
                    if (second.Length > 0) moved.Add((id, home));
                    break;
                case 17:
                    await server.TransferAsync(from, "ghost", amount, id: id, more: more);
                    if (from == "@world") home = "ghost";
                    break;
                case 18:
                    await server.TransferAsync("@world", to, $"{random.Next(1, 9)}", "JPY", id);
                    home = to;
                    break;
                default:
                    string path = $"/v1/wallet/accounts/{Uri.EscapeDataString(to)}";
                    switch (random.Next(4))
                    {
                        case 0:
                            await server.SendAsync(HttpMethod.Put, $"{path}/metadata", $$$"""{"metadata":{"n":{{{i}}},"text":"\u0000<\"é"}}""");
                            break;
                        case 1:
                            await server.SendAsync(HttpMethod.Put, $"{path}/limits", """{"limits":{"USD":{"min_balance":"-5.00"},"JPY":{"max_balance":"1000"}}}""");
                            break;
                        case 2:
                            await server.PostAsync($"{path}/freeze", """{"direction":"debit"}""");
                            break;
                        default:
                            await server.PostAsync($"{path}/unfreeze", "{}");
                            break;
                    }

                    continue;
            }

            ids.Add((id, home, false));
        }

        return new Load(ids, accounts);
    }

    /// <summary>What callers may write: quotes, other scripts, what a spreadsheet or a database takes for something else.</summary>
    static string Texts(Random random) => random.Next(6) switch
    {
        0 => ",\"description\":\"Robert'); drop table transfers;--\"",
        1 => ",\"description\":\"zero \\u0000, line \\n, \\t\\\\ \\\"é漢🦊\"",
        2 => $$$""","metadata":{"order":"A-{{{random.Next(5)}}}","n":[1,{"x":null}],"zero":"\u0000","a\"b":1e2}""",
        3 => ",\"metadata\":{}",
        _ => "",
    };

    static async Task ShownAsync(IReadOnlyList<Partition> partitions, params ViewSource[] feeders)
    {
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(30));
        while (feeders.Any(feeder => feeder.Fault is not null || partitions.Any(partition => feeder.Position(partition.Number) < partition.FlushedSequence)))
        {
            Assert.False(limit.IsCancellationRequested, string.Join("; ", feeders.Select(feeder => $"{feeder.View.Name}: {feeder.Fault} {string.Join(',', partitions.Select(partition => $"{feeder.Position(partition.Number)} of {partition.FlushedSequence}"))}")));
            await Task.Delay(10, CancellationToken.None);
        }
    }

    [Fact]
    public async Task Every_row_of_a_view_is_what_the_partitions_say()
    {
        await using TestServer server = await StartAsync();
        Load load = await RunAsync(server, seed: 1, someExpire: true);
        // What was held for a second is over.
        using (CancellationTokenSource limit = new(TimeSpan.FromSeconds(20)))
        {
            while (!(await server.Client.GetStringAsync("/v1/events?live=false")).Contains("\"kind\":\"expired\"", StringComparison.Ordinal)) await Task.Delay(50, limit.Token);
            await Task.Delay(1200, limit.Token);
        }

        ViewSource feeder = await FeederOf(server);
        await ShownAsync(server.Server.Partitions, feeder);
        SqlView view = (SqlView)feeder.View;
        ILookup<Guid, FoundTransfer> found = (await view.FindTransfersAsync(new TransferSearch { Limit = 100_000 }, CancellationToken.None)).ToLookup(one => one.TransactionId);
        HashSet<string> statuses = [];
        foreach ((Guid id, string home, bool isVoid) in load.Ids)
        {
            Response exact = await server.GetAsync($"/v1/wallet/transfers/{id}?account={Uri.EscapeDataString(home)}");
            if (exact.Status == 404)
            {
                Assert.Empty(found[id]);
                continue;
            }

            Assert.Equal(200, exact.Status);
            if (isVoid && exact.Text("status") == "completed")
            {
                Assert.Empty(found[id]);
                continue;
            }

            JsonElement[] postings = exact.Body.TryGetProperty("postings", out JsonElement several) ? [.. several.EnumerateArray()] : [exact.Body];
            FoundTransfer[] rows = [.. found[id].OrderBy(one => one.Posting)];
            Assert.True(postings.Length == rows.Length, $"{exact.Body}\n{string.Join('\n', (object[])rows)}");
            foreach ((JsonElement posting, FoundTransfer row) in postings.Zip(rows))
            {
                Assert.Equal(
                    (id, exact.Text("status"), Text(posting, "from_account"), Text(posting, "to_account"), Text(posting, "amount"), Text(posting, "currency"), Text(exact.Body, "code"), Text(exact.Body, "description")),
                    (id, row.Status, row.From, row.To, row.Amount, row.Currency, row.Code, row.Description));
                Assert.Equal(exact.Body.TryGetProperty("metadata", out JsonElement metadata) ? metadata.GetRawText() : null, row.Metadata);
                Assert.Equal(Text(exact.Body, "original_id"), row.OriginalId?.ToString());
                statuses.Add(row.Status);
            }
        }

        Assert.Equal(["captured", "completed", "expired", "pending", "rejected", "reversed", "voided"], statuses.Order());
        foreach (string account in load.Accounts.Append("@world"))
        {
            string path = $"/v1/wallet/accounts/{Uri.EscapeDataString(account)}";
            Response exact = await server.GetAsync(path), shown = await server.GetAsync($"{path}?source=view");
            // A currency that was never moved is in a view only once it is.
            Assert.Equal(Balances(exact.Body), Balances(shown.Body));
            foreach (string member in (string[])["status", "limits", "metadata", "position"])
                Assert.Equal((member, Raw(exact.Body, member)), (member, Raw(shown.Body, member)));
        }

        // Every event that touches a balance is an entry.
        List<string> events = [];
        foreach (string line in (await server.Client.GetStringAsync("/v1/events?live=false")).Split('\n', StringSplitOptions.RemoveEmptyEntries))
        {
            JsonElement e = JsonElement.Parse(line);
            if (!e.TryGetProperty("posted", out _)) continue;
            string[] position = Text(e, "position")!.Split(':');
            events.Add(string.Join('|', position[0], position[1], Text(e, "time"), Text(e, "kind"), Text(e, "account"), Text(e, "currency"), Text(e, "amount"), Text(e, "posted"), Text(e, "held"), Text(e, "counterparty"), Text(e, "transaction_id")));
        }

        List<string> entries = await RowsAsync(Sqlite(server), "entries");
        Assert.Equal(events.Order(StringComparer.Ordinal), entries.Order(StringComparer.Ordinal));

        static string? Text(JsonElement json, string member) => json.TryGetProperty(member, out JsonElement value) ? value.GetString() : null;
        static IEnumerable<string> Balances(JsonElement json) => json.GetProperty("balances").EnumerateObject().Select(one => one.ToString()).Where(one => one.Any(c => c is >= '1' and <= '9'));
        static string? Raw(JsonElement json, string member) => json.TryGetProperty(member, out JsonElement value) ? value.GetRawText() : null;
    }

    /// <summary>Excludes: an age that is made up where nobody can be asked; a view of other data that is taken for this one's.</summary>
    [Theory]
    [InlineData("sqlite")]
    [InlineData("postgres")]
    [InlineData("redis")]
    public async Task Who_only_looks_at_a_view_knows_how_old_it_is(string kind)
    {
        Assert.SkipUnless(LocalRedis.IsInstalled, "Redis is not installed: ./test installs it when run as root.");
        using TemporaryFolder folder = new();
        await using LocalRedis? redis = kind == "redis" ? await LocalRedis.StartAsync(Path.Combine(folder.Path, "redis")) : null;
        string database = kind == "postgres" ? await postgreSql.NewDatabaseAsync() : "";
        await using TestServer server = await StartAsync();
        IView Make(string id) => kind switch
        {
            "sqlite" => new SqliteView(Path.Combine(folder.Path, "view.sqlite"), Partitions),
            "redis" => new RedisView(redis!.Address, 0, 1, id, Partitions),
            _ => new PostgreSqlView(database, id, Partitions),
        };

        await using ViewWatcher watcher = new(Make("test"), Partitions, static _ => { });
        Assert.Null(watcher.Lag);
        await using (ViewFeeder feeder = new(Make("test"), Partitions, () => server.Server.Partitions, static _ => { }))
        {
            await RunAsync(server, seed: 11, commands: 20);
            await ShownAsync(server.Server.Partitions, feeder, watcher);
            using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
            // As good as current, again and again.
            for (int i = 0; i < 3; i++)
            {
                while (!(watcher.Lag < TimeSpan.FromSeconds(1))) await Task.Delay(5, limit.Token);
                Assert.All(Enumerable.Range(0, Partitions), partition => Assert.NotNull(watcher.LagOf(partition)));
                await Task.Delay(600, limit.Token);
            }
        }

        // Nobody feeds it any more, and what was said last was seen.
        await Task.Delay(300);
        TimeSpan before = watcher.Lag!.Value;
        await Task.Delay(1500);
        Assert.InRange(watcher.Lag!.Value - before, TimeSpan.FromSeconds(1.3), TimeSpan.FromSeconds(30));
        Assert.Equal(server.Server.Partitions.Select(partition => partition.FlushedSequence), Enumerable.Range(0, Partitions).Select(watcher.Position));

        if (kind == "sqlite") return;
        await using ViewWatcher stranger = new(Make("another"), Partitions, static _ => { });
        await Task.Delay(500);
        Assert.Null(stranger.Lag);
        Assert.Equal(0ul, stranger.Position(0));
    }

    [Fact]
    public async Task A_view_knows_the_currencies_that_were_registered()
    {
        await using TestServer server = await StartAsync();
        Assert.Equal(201, (await server.PostAsync("/v1/wallet/currencies", """{"currency":"GEM","decimals":3}""")).Status);
        Assert.Equal(201, (await server.PostAsync("/v1/wallet/accounts", """{"account":"rich"}""")).Status);
        Response sent = await server.PostAsync("/v1/wallet/balance_transfer", $$"""{"from_account":"@world","to_account":"rich","amount":"1.5","currency":"GEM","transaction_id":"{{Guid.NewGuid()}}"}""");
        Assert.Equal(200, sent.Status);
        string position = string.Join(',', server.Server.Partitions.Select(partition => $"{partition.Number}:{partition.FlushedSequence}"));
        Assert.Equal("0.000", (await server.GetAsync($"/v1/wallet/accounts/@other/balance?currency=GEM&source=view&min_position={position}")).Text("posted"));
        Assert.Equal(1, (await server.GetAsync($"/v1/wallet/transfers?currency=GEM&min_amount=1.499&max_amount=1.5&min_position={position}")).Body.GetProperty("transfers").GetArrayLength());
        Assert.Equal("amount_too_precise", (await server.GetAsync($"/v1/wallet/transfers?currency=GEM&min_amount=1.4999")).Text("code"));
        Assert.Equal("currency_unknown", (await server.GetAsync($"/v1/wallet/transfers?currency=NONE")).Text("code"));
    }

    static async Task<ViewSource> FeederOf(TestServer server)
    {
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
        while (server.Server.Views.Search is null) await Task.Delay(10, limit.Token);
        return server.Server.Views.Search!;
    }

    [Fact]
    public async Task PostgreSql_and_Sqlite_have_the_same_rows_and_have_them_again_after_a_rebuild()
    {
        await using TestServer server = await StartAsync();
        string database = await postgreSql.NewDatabaseAsync();
        await using ViewFeeder fed = new(new PostgreSqlView(database, "test", Partitions), Partitions, () => server.Server.Partitions, static _ => { });
        await RunAsync(server, seed: 2);
        ViewSource sqlite = await FeederOf(server);
        await ShownAsync(server.Server.Partitions, fed, sqlite);
        Dictionary<string, List<string>> first = [];
        foreach (string table in Columns.Keys)
        {
            first[table] = await RowsAsync(Sqlite(server), table);
            Assert.NotEmpty(first[table]);
            // PostgreSQL has no text with a zero in it.
            Assert.Equal(first[table].Select(row => row.Replace('\0', '\ufffd')).Order(StringComparer.Ordinal), (await RowsAsync(new NpgsqlConnection(database), table)).Order(StringComparer.Ordinal));
        }

        fed.View.Clear();
        sqlite.View.Clear();
        await ShownAgainAsync(server, fed, sqlite);
        foreach (string table in Columns.Keys)
        {
            Assert.Equal(first[table], await RowsAsync(Sqlite(server), table));
            Assert.Equal(first[table].Count, (await RowsAsync(new NpgsqlConnection(database), table)).Count);
        }

        // The same searches find the same, whatever they are made for.
        foreach (TransferSearch search in (TransferSearch[])
        [
            new() { Limit = 7 }, new() { Limit = 1000, Account = "a2/1" }, new() { Limit = 1000, Status = "captured" }, new() { Limit = 1000, Currency = "USD", MinAmount = "9.00", MaxAmount = "45.50" },
            new() { Limit = 1000, Metadata = JsonElement.Parse("""{"order":"A-1"}""") }, new() { Limit = 1000, Metadata = JsonElement.Parse("""{"a\"b":1e2,"n":[1, {"x" : null}]}""") },
        ])
        {
            List<FoundTransfer> one = await ((SqlView)sqlite.View).FindTransfersAsync(search, CancellationToken.None), other = await ((SqlView)fed.View).FindTransfersAsync(search, CancellationToken.None);
            Assert.NotEmpty(one);
            Assert.Equal(one.Select(row => (row.Partition, row.Position, row.Posting, row.Amount, row.Status, row.TimeMicros)), other.Select(row => (row.Partition, row.Position, row.Posting, row.Amount, row.Status, row.TimeMicros)));
            Assert.All(one, row => Assert.True(search.MinAmount is null || decimal.Parse(row.Amount, CultureInfo.InvariantCulture) is >= 9m and <= 45.5m));
        }

        // Page by page, nothing is skipped and nothing is there twice.
        List<FoundTransfer> pages = [];
        for (TransferSearch search = new() { Limit = 7, Account = "a2/3" }; ;)
        {
            List<FoundTransfer> page = await ((SqlView)fed.View).FindTransfersAsync(search, CancellationToken.None);
            pages.AddRange(page);
            if (page.Count < 7) break;
            search = search with { After = (page[^1].TimeMicros, page[^1].Partition, page[^1].Position, page[^1].Posting) };
        }

        Assert.Equal(await ((SqlView)fed.View).FindTransfersAsync(new TransferSearch { Limit = 1000, Account = "a2/3" }, CancellationToken.None), pages);
    }

    static async Task ShownAgainAsync(TestServer server, params ViewSource[] feeders)
    {
        // Its feeder finds within a second that it was emptied; until then it says that it shows all.
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(30));
        foreach (ViewSource feeder in feeders)
        {
            while (!Checkpoint.PositionsOf(feeder.View.Look()).SequenceEqual(server.Server.Partitions.Select(partition => partition.FlushedSequence))) await Task.Delay(20, limit.Token);
        }

        await ShownAsync(server.Server.Partitions, feeders);
    }

    /// <summary>With casts that both databases know.</summary>
    static readonly Dictionary<string, string> Columns = new()
    {
        ["entries"] = "partition, position, time, kind, account, currency, cast(amount as text), cast(posted as text), cast(held as text), counterparty, transaction_id",
        ["transfers"] = "partition, position, posting, transaction_id, origin_partition, origin_position, original_id, time, from_account, to_account, currency, cast(amount as text), status, code, description, metadata, members",
        ["balances"] = "account, currency, partition, cast(posted as text), cast(held as text), position",
        ["accounts"] = "account, status, metadata, limits, opened_at, partition, position",
        ["ids"] = "origin_partition, origin_position, status, original_id, description, metadata, members",
    };

    static SqliteConnection Sqlite(TestServer server) => new($"Data Source={Path.Combine(server.Data, "view.db")};Mode=ReadOnly;Pooling=False");

    static async Task<List<string>> RowsAsync(DbConnection connection, string table)
    {
        await using DbConnection own = connection;
        await connection.OpenAsync();
        await using DbCommand command = connection.CreateCommand();
        command.CommandText = $"select {Columns[table]} from {table}";
        await using DbDataReader row = await command.ExecuteReaderAsync();
        List<string> rows = [];
        while (await row.ReadAsync()) rows.Add(string.Join('|', Enumerable.Range(0, row.FieldCount).Select(column => row.IsDBNull(column) ? "" : row.GetValue(column) is DateTime time ? Answer.Time((time - DateTime.UnixEpoch).Ticks / 10) : row.GetValue(column).ToString())));
        return [.. rows.Order(StringComparer.Ordinal)];
    }

    /// <summary>Excludes: two that feed the same view, each from its own idea of where it is.</summary>
    [Fact]
    public async Task Two_feeders_of_one_view_write_nothing_twice()
    {
        await using TestServer server = await StartAsync();
        string database = await postgreSql.NewDatabaseAsync();
        await using ViewFeeder one = new(new PostgreSqlView(database, "test", Partitions), Partitions, () => server.Server.Partitions, static _ => { });
        await using ViewFeeder other = new(new PostgreSqlView(database, "test", Partitions), Partitions, () => server.Server.Partitions, static _ => { });
        await RunAsync(server, seed: 3, commands: 150);
        await ShownAsync(server.Server.Partitions, await FeederOf(server));
        await ShownAgainAsync(server, one, other);
        foreach (string table in Columns.Keys)
            Assert.Equal((await RowsAsync(Sqlite(server), table)).Select(row => row.Replace('\0', '\ufffd')).Order(StringComparer.Ordinal), (await RowsAsync(new NpgsqlConnection(database), table)).Order(StringComparer.Ordinal));
    }

    [Fact]
    public async Task A_view_of_other_data_or_of_more_than_there_is_is_made_again()
    {
        string database = await postgreSql.NewDatabaseAsync();
        await using (TestServer before = await StartAsync())
        {
            await using ViewFeeder feeder = new(new PostgreSqlView(database, "before", Partitions), Partitions, () => before.Server.Partitions, static _ => { });
            await RunAsync(before, seed: 4, commands: 50);
            await ShownAsync(before.Server.Partitions, feeder);
        }

        foreach (string id in (string[])["after", "before"])
        {
            await using TestServer server = await StartAsync();
            await server.OpenAsync("alice");
            await using ViewFeeder feeder = new(new PostgreSqlView(database, id, Partitions), Partitions, () => server.Server.Partitions, static _ => { });
            await ShownAgainAsync(server, feeder);
            Assert.Equal(["alice"], (await ((SqlView)feeder.View).FindAccountsAsync("", "", 10, CancellationToken.None)).Select(account => account.Account));
        }
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task A_file_that_is_deleted_or_damaged_is_made_again(bool isDeleted)
    {
        await using TestServer server = await StartAsync();
        await server.OpenAsync("alice");
        await ShownAsync(server.Server.Partitions, await FeederOf(server));
        string path = Path.Combine(server.Data, "view.db");
        if (!isDeleted)
        {
            await server.StopAsync();
            byte[] noise = new byte[100_000];
            Random.Shared.NextBytes(noise);
            await File.WriteAllBytesAsync(path, noise);
            await server.RestartAsync();
        }
        else
        {
            File.Delete(path);
        }

        await server.TransferAsync("@world", "alice", "1.00");
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
        while (await server.GetAsync("/v1/wallet/accounts?prefix=al") is not { Status: 200 } found || !found.Body.GetRawText().Contains("\"posted\":\"101.00\"", StringComparison.Ordinal)) await Task.Delay(50, limit.Token);
    }

    /// <summary>As https://www.postgresql.org/docs/current/protocol-message-formats.html has it, digit by digit, next to what the database makes of the text.</summary>
    [Fact]
    public async Task Amounts_copied_are_the_amounts_written()
    {
        await using NpgsqlConnection connection = new(await postgreSql.NewDatabaseAsync());
        await connection.OpenAsync();
        await using (NpgsqlCommand make = new("create table amounts (n int, amount numeric)", connection)) await make.ExecuteNonQueryAsync();
        Random random = new(5);
        Int128 max = Int128.Parse("1" + new string('0', 33), CultureInfo.InvariantCulture);
        List<(Int128 Minor, int Decimals)> amounts = [.. Enumerable.Range(0, 19).SelectMany(decimals => (Int128[])[0, 1, -1, 9, 10, 9999, 10_000, 10_001, -100_000_000, max - 1, 1 - max, max]).Select((minor, i) => (minor, i / 12))];
        for (int i = 0; i < 5000; i++)
        {
            Int128 some = (Int128)(random.NextInt64() >> random.Next(64)) * (random.Next(3) == 0 ? 10_000_000_000_000 : 1);
            amounts.Add(((random.Next(2) == 0 ? some : -some) % max, random.Next(19)));
        }

        PostgreSqlCopy copy = new();
        copy.Begin();
        foreach ((int i, (Int128 minor, int decimals)) in amounts.Index())
        {
            copy.Row(2);
            copy.Int(i);
            copy.Numeric(minor, decimals);
        }

        copy.Send(connection, "amounts");
        await using NpgsqlCommand read = new("select amount::text from amounts order by n", connection);
        await using NpgsqlDataReader row = await read.ExecuteReaderAsync();
        for (int i = 0; i < amounts.Count; i++)
        {
            Assert.True(await row.ReadAsync());
            Assert.Equal(Amount.Format(amounts[i].Minor, amounts[i].Decimals), row.GetString(0));
        }
    }

    [Fact]
    public async Task Redis_has_every_balance_once_and_is_filled_again_whatever_becomes_of_it()
    {
        Assert.SkipUnless(LocalRedis.IsInstalled, "Redis is not installed: ./test installs it when run as root.");
        using TemporaryFolder folder = new();
        await using LocalRedis first = await LocalRedis.StartAsync(Path.Combine(folder.Path, "1")), second = await LocalRedis.StartAsync(Path.Combine(folder.Path, "2"));
        LocalRedis[] servers = [first, second];
        await using ConnectionMultiplexer plain = await ConnectionMultiplexer.ConnectAsync($"{first.Address},allowAdmin=true"), plainSecond = await ConnectionMultiplexer.ConnectAsync($"{second.Address},allowAdmin=true");
        ConnectionMultiplexer[] clients = [plain, plainSecond];
        await using TestServer server = await StartAsync();
        Load load = await RunAsync(server, seed: 6, commands: 150);
        await using (ViewHost host = new(Partitions, view => new ViewFeeder(view, Partitions, () => server.Server.Partitions, static _ => { })))
        {
            await host.ServeAsync("test", null, [first.Address]);
            await CheckAsync(host, 1);
            // A node more: every account has its place by the new number.
            await host.ServeAsync("test", null, [first.Address, second.Address]);
            await CheckAsync(host, 2);
            Assert.True(clients.All(client => client.GetServers()[0].Keys(pattern: "balance:*").Any()));
            await RunAsync(server, seed: 7, commands: 50);
            await CheckAsync(host, 2);
            // Emptied by several at once, and by one that died in the middle of it.
            await Task.WhenAll(Enumerable.Range(0, 4).Select(_ => Task.Run(() =>
            {
                using RedisView view = new(first.Address, 0, 2, "test", Partitions);
                view.Clear();
            })));
            await CheckAsync(host, 2);
            await plain.GetDatabase().StringSetAsync("purse:about", "emptied by nobody any more");
            await plain.GetDatabase().KeyDeleteAsync(plain.GetServers()[0].Keys(pattern: "balance:*").First());
            await CheckAsync(host, 2);
            // Wiped while nothing else happens, and while it is fed.
            await plain.GetServers()[0].FlushAllDatabasesAsync();
            await CheckAsync(host, 2);
            Task running = RunAsync(server, seed: 8, commands: 50);
            await plain.GetServers()[0].FlushAllDatabasesAsync();
            await running;
            await CheckAsync(host, 2);
            // And the other way round, and back from the dead.
            await host.ServeAsync("test", null, [second.Address, first.Address]);
            (servers[0], servers[1], clients[0], clients[1]) = (second, first, plainSecond, plain);
            await CheckAsync(host, 2);
        }

        // Of another cluster: nothing of this one is left.
        await using ViewHost stranger = new(Partitions, static view => new ViewFeeder(view, Partitions, static () => [], static _ => { }));
        await stranger.ServeAsync("stranger", null, [first.Address]);
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
        while (plain.GetServers()[0].Keys(pattern: "balance:*").Any()) await Task.Delay(20, limit.Token);

        async Task CheckAsync(ViewHost host, int nodes)
        {
            await ShownAgainAsync(server, [.. host.Sources]);
            int keys = 0;
            foreach (string account in load.Accounts)
            {
                Response exact = await server.GetAsync($"/v1/wallet/accounts/{Uri.EscapeDataString(account)}");
                IDatabase database = clients[AccountName.Parse(account).PartitionOf(nodes)].GetDatabase();
                foreach (JsonProperty currency in exact.Body.GetProperty("balances").EnumerateObject())
                {
                    Assert.Equal(
                        (account, currency.Value.GetProperty("posted").GetString(), currency.Value.GetProperty("held").GetString()),
                        (account, (string?)await database.HashGetAsync($"balance:{account}", currency.Name), (string?)await database.HashGetAsync($"balance:{account}", $"{currency.Name}/held")));
                    keys++;
                }
            }

            Assert.True(keys > 9);
            Assert.Equal(
                (await server.GetAsync("/v1/wallet/accounts/@world/balance?currency=USD")).Text("posted"),
                (await ViewHost.BalancesAsync(host.Of(AccountName.Parse("@world"))!, AccountName.Parse("@world"), [0, 1, 2], CancellationToken.None)).Balances.Where(one => one.Currency == "USD").Sum(one => decimal.Parse(one.Posted, CultureInfo.InvariantCulture)).ToString("0.00", CultureInfo.InvariantCulture));
        }
    }

    /// <summary>Excludes: an update that was on its way for long, and comes after newer ones; one that comes twice; one cut in two.</summary>
    [Fact]
    public async Task A_late_or_doubled_update_of_Redis_changes_nothing()
    {
        Assert.SkipUnless(LocalRedis.IsInstalled, "Redis is not installed: ./test installs it when run as root.");
        using TemporaryFolder folder = new();
        await using LocalRedis redis = await LocalRedis.StartAsync(folder.Path);
        await using TestServer server = await TestServer.StartAsync();
        Partition partition = server.Server.Partitions[0];
        await server.OpenAsync("alice", "1.00");
        ViewBatch early = Batch(0);
        await server.TransferAsync("@world", "alice", "1.00");
        ViewBatch late = Batch(early.Last), all = Batch(0);
        await using ConnectionMultiplexer plain = await ConnectionMultiplexer.ConnectAsync(redis.Address);
        using RedisView view = new(redis.Address, 0, 1, "test", 1);
        Assert.Equal([0ul], view.Open());
        Assert.True(view.Write(early));
        Assert.False(view.Write(early));
        Assert.True(view.Write(late));
        foreach (ViewBatch again in (ViewBatch[])[early, late, all]) Assert.False(view.Write(again));
        Assert.Equal((late.Last, "2.00"), (view.Look()[0].Position, await PostedAsync()));
        // The checkpoint was lost and the balances were not: what is read again is older, and loses.
        await plain.GetDatabase().KeyDeleteAsync("purse:checkpoints");
        Assert.True(view.Write(early));
        Assert.Equal((early.Last, "2.00"), (view.Look()[0].Position, await PostedAsync()));

        async Task<string?> PostedAsync() => await plain.GetDatabase().HashGetAsync("balance:alice", "USD") is { HasValue: true } posted ? (string?)posted : null;

        ViewBatch Batch(ulong after)
        {
            ViewBatch batch = new();
            batch.Begin(partition.Readers!, after);
            using Purse.Journal.JournalReader reader = partition.ReadAfter(after)!;
            while (reader.LastSequence < partition.FlushedSequence && reader.TryReadNext(out Purse.Journal.Block block)) batch.Add(block);
            return batch;
        }
    }
}
