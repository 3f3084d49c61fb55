using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using System.Net.Http.Headers;
using System.Text;
using System.Text.Json;
using Npgsql;
using Purse.Cli;
using Purse.Cluster.Local;
using Purse.Ledger;
using StackExchange.Redis;

namespace Purse.Integration;

/// <summary>
/// A whole cluster of real processes, as <c>purse cluster up --local</c> starts it, whose parts are killed, moved, wiped and filled up under a load of
/// transfers within and between partitions. After each: nothing acknowledged is lost, nothing is there twice, sums are zero over all databases, nothing
/// stays in doubt, a replay from the first event equals the served state, and the views equal the replay.
/// </summary>
public sealed class ClusterFaultTests : IAsyncLifetime
{
    const int Partitions = 6, AccountsEach = 3, CrossClients = 2;

    /// <summary>While looking into one: only faults whose description has this in it.</summary>
    static readonly string? Only = Environment.GetEnvironmentVariable("PURSE_FAULTS");

    static bool IsAsked(string what) => Only is null || what.Contains(Only, StringComparison.Ordinal) || Only.Contains(what, StringComparison.Ordinal);

    readonly TemporaryFolder _folder = new();
    readonly ConcurrentDictionary<Guid, string> _acknowledged = new();
    readonly string[][] _accounts = [.. Enumerable.Range(0, Partitions).Select(partition =>
        Enumerable.Range(0, 1000).Select(i => $"a{i}").Where(name => AccountName.Parse(name).PartitionOf(Partitions) == partition).Take(AccountsEach).ToArray())];
    readonly long[] _lastTicks = new long[Partitions + CrossClients], _longestTicks = new long[Partitions + CrossClients], _counts = new long[Partitions + CrossClients];
    readonly HttpClient _http = new() { Timeout = TimeSpan.FromSeconds(60) };
    readonly List<(string What, TimeSpan Concerned, TimeSpan Others)> _pauses = [];
    LocalCluster _cluster = null!;

    string Folder => Path.Combine(_folder.Path, "cluster");

    public async ValueTask InitializeAsync()
    {
        Assert.SkipUnless(
            LocalZooKeeper.IsInstalled && LocalPostgreSql.ProgramsFolder is not null && LocalRedis.IsInstalled, "ZooKeeper, PostgreSQL or Redis is not installed: ./test installs them when run as root.");
        JsonElement up = await PurseProcess.JsonAsync("cluster", "up", "--local", "--folder", Folder, "--partitions", $"{Partitions}");
        Environment.SetEnvironmentVariable("PGPASSFILE", LocalCluster.PasswordsOf(Folder).Value);
        _cluster = LocalCluster.Open(Folder);
        _nodes = [.. _cluster.Processes.Where(process => process.Role is "wallet" or "front").Select(process => process.Address)];
        Assert.Equal(Folder, up.GetProperty("folder").GetString());
        Assert.Equal(
            ["zookeeper", "zookeeper", "zookeeper", "postgres", "standby", "postgres", "postgres", "redis", "redis", "wallet", "wallet", "wallet", "front"],
            up.GetProperty("processes").EnumerateArray().Select(process => process.GetProperty("role").GetString()));
        foreach (JsonElement process in up.GetProperty("processes").EnumerateArray())
        {
            Assert.True(Directory.Exists($"/proc/{process.GetProperty("pid").GetInt32()}"));
            Assert.NotEmpty(process.GetProperty("address").GetString()!);
        }
    }

    public async ValueTask DisposeAsync()
    {
        _http.Dispose();
        if (_cluster is not null) await LocalCluster.DownAsync(Folder, static _ => { });
        _folder.Dispose();
    }

    volatile string[] _nodes = [];

    /// <summary>Any node takes any request.</summary>
    Uri Node(string path)
    {
        string[] nodes = [.. _nodes.Where(node => !_away.ContainsKey(node))];
        return new Uri(nodes[Random.Shared.Next(nodes.Length)] + path);
    }

    string Logs() => string.Join('\n', _cluster.Processes.ToArray().Where(process => process.Role is "wallet" or "front").Select(process => $"{process.Name}:\n{LocalProcess.LogOf(Path.Combine(Folder, process.Name))}"));

    [Fact]
    public async Task Whatever_fails_nothing_is_lost_nothing_is_there_twice_and_writes_go_on()
    {
        foreach (string name in _accounts.SelectMany(one => one))
        {
            await SendAsync("/v1/wallet/accounts", $$"""{"account":"{{name}}"}""");
            await TransferAsync("@world", name, 1_000_000);
        }

        await CheckRightsAsync();
        using ServerProcess query = await StartQueryNodeAsync();
        // Partition n is in store s(n mod 3 + 1).
        await UnderLoadAsync("nothing", [], () => Task.Delay(1000));
        await UnderLoadAsync("a PostgreSQL primary is killed, its standby promoted and followed by a new one", [0, 3], KillPrimaryAsync);
        await UnderLoadAsync("a PostgreSQL server is restarted", [1, 4], async () =>
        {
            await LocalProcess.SignalAsync(_cluster.Of("postgres-2").Pid, "INT");
            await StartAgainAsync("postgres-2");
        });
        await UnderLoadAsync("a ZooKeeper server is killed", [], () => KillZooKeeperAsync("follower"));
        await UnderLoadAsync("ZooKeeper's leader is killed", [], () => KillZooKeeperAsync("leader"));
        await UnderLoadAsync("all of ZooKeeper is killed, and away for five seconds", [], async () =>
        {
            string[] servers = [.. _cluster.Processes.Where(process => process.Role == "zookeeper").Select(process => process.Name)];
            foreach (string server in servers) await LocalProcess.SignalAsync(_cluster.Of(server).Pid, "KILL");
            long[] before = [.. _counts];
            await Task.Delay(5000);
            Assert.All(Enumerable.Range(0, Partitions), partition => Assert.True(_counts[partition] > before[partition] + 20));
            foreach (string server in servers) _cluster.StartAgain(server);
            foreach (string server in servers) await _cluster.WaitAsync(server);
        });
        await UnderLoadAsync("a Redis node is killed, and comes back empty", [], () => KillAsync("redis-1"));
        await using (LocalRedis third = await LocalRedis.StartAsync(Path.Combine(_folder.Path, "redis-3")))
        {
            string[] two = [.. RedisNodes()];
            await UnderLoadAsync("a Redis node is added", [], () => PurseAsync(["cluster", "redis", "set", "--cluster", _cluster.Cluster, .. two, third.Address]), [.. two, third.Address]);
            await UnderLoadAsync("a Redis node is taken away", [], () => PurseAsync(["cluster", "redis", "set", "--cluster", _cluster.Cluster, .. two]));
        }

        await UnderLoadAsync("a partition is moved to another store", [1], () => MoveAsync(1, "s3"));
        await UnderLoadAsync("a partition is moved from the replicated store, and back", [0], async () =>
        {
            await MoveAsync(0, "s2");
            await MoveAsync(0, "s1");
        });
        await UnderLoadAsync("a wallet node is killed", All, () => KillAsync("wallet-1"));
        await UnderLoadAsync("a wallet node is killed and stays away", All, async () =>
        {
            await LocalProcess.SignalAsync(_cluster.Of("wallet-2").Pid, "KILL");
            await GoesOnAsync("without wallet-2");
        });
        if (!_cluster.IsRunning(_cluster.Of("wallet-2"))) await StartAgainAsync("wallet-2");
        await UnderLoadAsync("a wallet node hangs until the others have its partitions, and goes on", All, () => HangAsync("wallet-3"));
        await UnderLoadAsync("a front is killed", [], () => KillAsync("front-1"));
        await UnderLoadAsync("two wallet nodes are killed at once", All, () => Task.WhenAll(KillAsync("wallet-1"), KillAsync("wallet-2")));
        await UnderLoadAsync("a PostgreSQL server is killed while a wallet node hangs", All, () => Task.WhenAll(KillAsync("postgres-2"), HangAsync("wallet-3")));
        await UnderLoadAsync("all wallet nodes are restarted one by one", All, RestartAllAsync);
        await UnderLoadAsync("all wallet nodes are killed", All, async () =>
        {
            foreach (string name in Wallets) await LocalProcess.SignalAsync(_cluster.Of(name).Pid, "KILL");
            await CheckWithoutWalletAsync(query);
            foreach (string name in Wallets) await StartAgainAsync(name);
        });
        await FillDiskAsync();
        await using NetworkPaths? paths = IsAsked("cut") || IsAsked("at random") ? await OpenPathsAsync() : null;
        if (paths is not null)
        {
            await UnderLoadAsync("the path between two wallet nodes is cut until one of them ends", All, () => CutNodesAsync(paths, "wallet-1", "wallet-2"));
            await UnderLoadAsync("a wallet node is cut off from the other two", All, () => CutNodesAsync(paths, "wallet-3", "wallet-1", "wallet-2"));
            await UnderLoadAsync("the path between a wallet node and one of its databases is cut until another has its partition", [4], () => CutStoreAsync(paths, partition: 4, "postgres-2"));
        }

        if (IsAsked("at random")) await RandomFaultsAsync(paths, MinutesOf("PURSE_RANDOM_MINUTES", 0.5));
        await UnderLoadAsync("the views are rebuilt", [], () => PurseAsync("views", "rebuild", "--cluster", _cluster.Cluster));
        foreach (string name in _accounts.SelectMany(one => one))
        {
            JsonElement exact = await GetAsync($"/v1/wallet/accounts/{name}");
            JsonElement shown = (await GetAsync(query, $"/v1/wallet/accounts/{name}?min_position={exact.GetProperty("position").GetString()}")).Body;
            Assert.Equal(exact.GetProperty("balances").ToString(), shown.GetProperty("balances").ToString());
        }

        await FullLoadAsync(MinutesOf("PURSE_FULL_LOAD_MINUTES", 0.25));

        foreach ((string what, TimeSpan concerned, TimeSpan others) in _pauses)
            TestContext.Current.SendDiagnosticMessage($"| {what} | {(concerned == default ? "" : $"{concerned.TotalSeconds:0.00} s")} | {others.TotalSeconds:0.00} s |");
    }

    /// <summary>Whoever shows balances cannot touch a journal, and whoever writes journals is not the view's user; strangers reach neither.</summary>
    async Task CheckRightsAsync()
    {
        int port = _cluster.Of("postgres-3").Port;
        Dictionary<string, string> passwords = (await File.ReadAllLinesAsync(LocalCluster.PasswordsOf(Folder).Value)).Select(line => line.Split(':')).Where(parts => parts[1] == $"{port}").ToDictionary(parts => parts[3], parts => parts[4]);
        Assert.Equal(["purse_journal", "purse_view"], passwords.Keys.Order());
        foreach ((string user, string database, bool isAllowed) in new[] { ("purse_view", "purse", false), ("purse_journal", "purse_view", false), ("purse_view", "purse_view", true), ("purse_journal", "purse", true) })
        {
            await using NpgsqlConnection connection = new($"Host=127.0.0.1;Port={port};Database={database};Username={user};Password={passwords[user]};Pooling=false");
            if (isAllowed) await connection.OpenAsync();
            else Assert.Equal(PostgresErrorCodes.InsufficientPrivilege, (await Assert.ThrowsAsync<PostgresException>(() => connection.OpenAsync())).SqlState);
        }
    }

    /// <summary>A node that is told the password of the view's user, and no other.</summary>
    async Task<ServerProcess> StartQueryNodeAsync()
    {
        string passwords = Path.Combine(_folder.Path, "view-passwords");
        await File.WriteAllLinesAsync(passwords, (await File.ReadAllLinesAsync(LocalCluster.PasswordsOf(Folder).Value)).Where(line => line.Contains(":purse_view:", StringComparison.Ordinal)));
        if (!OperatingSystem.IsWindows()) File.SetUnixFileMode(passwords, UnixFileMode.UserRead | UnixFileMode.UserWrite);
        return await ServerProcess.StartAsync(["serve", "--cluster", _cluster.Cluster, "--role", "query", "--listen", "http://127.0.0.1:0"], (LocalCluster.PasswordsOf(Folder).Key, passwords));
    }

    async Task<(int Status, JsonElement Body)> GetAsync(ServerProcess node, string path)
    {
        using HttpResponseMessage answer = await _http.GetAsync(new Uri(node.Address, path));
        return ((int)answer.StatusCode, JsonElement.Parse(await answer.Content.ReadAsStringAsync()));
    }

    /// <summary>No node that writes can be reached: what there was is still shown, and how old that is.</summary>
    async Task CheckWithoutWalletAsync(ServerProcess query)
    {
        string account = _accounts[0][0], balance = $"/v1/wallet/accounts/{account}/balance?currency=USD";
        long before;
        Stopwatch watch = Stopwatch.StartNew();
        do
        {
            // What a node had sent to the view before it was killed may still be committed.
            Assert.True(watch.Elapsed < TimeSpan.FromSeconds(10), "the view gets no older though nobody feeds it");
            before = await AgeAsync(balance);
            await Task.Delay(1500);
        }
        while (await AgeAsync(balance) < before + 1400);

        foreach (string path in (string[])[$"/v1/wallet/accounts/{account}/balance?currency=USD", $"/v1/wallet/accounts/{account}", $"/v1/wallet/accounts?prefix={account}", $"/v1/wallet/transfers?account={account}"])
            Assert.InRange(await AgeAsync(path), before + 1400, 60_000);
        Assert.Equal(200, (await GetAsync(query, "/readyz")).Status);
        foreach (string path in (string[])[$"/v1/wallet/accounts/{account}?source=partition", $"/v1/wallet/accounts/{account}/history?currency=USD", "/v1/events", $"/v1/wallet/transfers/{Guid.NewGuid()}"])
            CheckRefused(await GetAsync(query, path));
        using HttpResponseMessage written = await _http.PostAsync(new Uri(query.Address, "/v1/wallet/accounts"), new StringContent("""{"account":"late"}""", Encoding.UTF8, "application/json"));
        CheckRefused(((int)written.StatusCode, JsonElement.Parse(await written.Content.ReadAsStringAsync())));

        async Task<long> AgeAsync(string path)
        {
            (int status, JsonElement body) = await GetAsync(query, path);
            Assert.True(status == 200, $"{path}: {body}");
            Assert.Equal("view", body.GetProperty("source").GetString());
            return body.GetProperty("lag_ms").GetInt64();
        }

        static void CheckRefused((int Status, JsonElement Body) answer) =>
            Assert.Equal((503, "partition_unavailable", "unknown"), (answer.Status, answer.Body.GetProperty("code").GetString(), answer.Body.GetProperty("outcome").GetString()));
    }

    static async Task PurseAsync(params string[] arguments)
    {
        (int exit, string output, string error) = await PurseProcess.RunAsync(arguments);
        Assert.True(exit == 0, $"purse {string.Join(' ', arguments)} ended with {exit}: {output}{error}");
    }

    Task MoveAsync(int partition, string store) => PurseAsync("cluster", "move", $"{partition}", store, "--cluster", _cluster.Cluster);

    IEnumerable<string> RedisNodes() => _cluster.Processes.Where(process => process.Role == "redis").Select(process => process.Address);

    async Task StartAgainAsync(string name)
    {
        while (_cluster.IsRunning(_cluster.Of(name))) await Task.Delay(10);
        for (int attempt = 1; ; attempt++)
        {
            _cluster.StartAgain(name);
            try
            {
                await _cluster.WaitAsync(name);
                return;
            }
            catch (IOException) when (name.StartsWith("postgres", StringComparison.Ordinal) && attempt < 10)
            {
                // The one that was killed still counts as long as nobody has taken notice of its end, and while its sessions end.
                await Task.Delay(500);
            }
        }
    }

    static readonly int[] All = [.. Enumerable.Range(0, Partitions)];
    static readonly string[] Wallets = ["wallet-1", "wallet-2", "wallet-3"];

    /// <summary>Others take its partitions while it can neither know nor say so; when it goes on it hears of it, and ends.</summary>
    async Task HangAsync(string name)
    {
        LocalClusterProcess node = _cluster.Of(name);
        await LocalProcess.SignalAsync(node.Pid, "STOP");
        await WithoutAsync(node, async () =>
        {
            await GoesOnAsync($"while {name} hangs");
            await LocalProcess.SignalAsync(node.Pid, "CONT");
            // What it had in hand is refused by the journals, whoever notices first.
            for (Stopwatch watch = Stopwatch.StartNew(); _cluster.IsRunning(node); await Task.Delay(50)) Assert.True(watch.Elapsed < TimeSpan.FromSeconds(60), $"{name} was evicted, and goes on: {LocalProcess.LogOf(Path.Combine(Folder, name))}");
            await StartAgainAsync(name);
        });
    }

    /// <summary>Nobody asks that node meanwhile: a load balancer looks after its nodes.</summary>
    async Task WithoutAsync(LocalClusterProcess node, Func<Task> action)
    {
        _away[node.Address] = true;
        await action();
        _away.TryRemove(node.Address, out _);
    }

    readonly ConcurrentDictionary<string, bool> _away = new();

    /// <summary>Wallets in groups of their own, which the packet filter tells apart.</summary>
    async Task<NetworkPaths?> OpenPathsAsync()
    {
        if (await NetworkPaths.TryOpenAsync(Wallets.Length) is not NetworkPaths paths)
        {
            TestContext.Current.SendDiagnosticMessage("Packets can only be filtered by root, with nft: cut paths were not tried.");
            return null;
        }

        try
        {
            for (int i = 0; i < Wallets.Length; i++)
            {
                int index = _cluster.Processes.FindIndex(process => process.Name == Wallets[i]);
                LocalClusterProcess wallet = _cluster.Processes[index];
                await LocalProcess.SignalAsync(wallet.Pid, "TERM");
                _cluster.Processes[index] = wallet with { Command = NetworkPaths.InGroup(i, [.. wallet.Command, "--node", $"127.0.0.1:{NodePort(i)}"]) };
                await StartAgainAsync(wallet.Name);
            }

            return paths;
        }
        catch
        {
            await paths.DisposeAsync();
            throw;
        }
    }

    readonly int _nodePort = LocalProcess.FreePort();

    /// <summary>Where a wallet is reached by the others; by clients at the next.</summary>
    int NodePort(int wallet) => _nodePort + 2 * wallet;

    /// <summary>What they see of each other ends one of two, whose partitions the others take; it comes back when it reaches them.</summary>
    async Task CutNodesAsync(NetworkPaths paths, string name, params string[] others)
    {
        int here = Array.IndexOf(Wallets, name);
        foreach (string other in others)
        {
            int there = Array.IndexOf(Wallets, other);
            await paths.CutAsync(here, NodePort(there));
            await paths.CutAsync(there, NodePort(here));
        }

        LocalClusterProcess[] concerned = [_cluster.Of(name), .. others.Select(_cluster.Of)];
        for (Stopwatch watch = Stopwatch.StartNew(); concerned.All(_cluster.IsRunning); await Task.Delay(20)) Assert.True(watch.Elapsed < TimeSpan.FromSeconds(60), $"{name} cannot reach {string.Join(" and ", others)}, and nobody ends\n{Logs()}");
        await GoesOnAsync($"while {name} cannot reach {string.Join(" and ", others)}");
        // Who was declared dead hears of it, and ends, a few seconds later.
        await Task.Delay(6000);
        LocalClusterProcess[] ended = [.. concerned.Where(process => !_cluster.IsRunning(process))];
        TestContext.Current.SendDiagnosticMessage($"ended: {string.Join(' ', ended.Select(process => process.Name))}");
        foreach (LocalClusterProcess process in ended) _away[process.Address] = true;
        foreach (LocalClusterProcess process in ended) _cluster.StartAgain(process.Name);
        // It does not come in again before it reaches all.
        await GoesOnAsync($"while {string.Join(" and ", ended.Select(process => process.Name))} tries to come back");
        await NetworkPaths.HealAsync();
        foreach (LocalClusterProcess process in concerned)
        {
            if (!_cluster.IsRunning(_cluster.Of(process.Name))) await StartAgainAsync(process.Name);
            else await _cluster.WaitAsync(process.Name);
            _away.TryRemove(process.Address, out _);
        }
    }

    /// <summary>It serves what it reaches, and leaves the rest to who reaches that.</summary>
    async Task CutStoreAsync(NetworkPaths paths, int partition, string store)
    {
        string node = await WhoHasAsync(partition);
        LocalClusterProcess before = _cluster.Of(node);
        await paths.CutAsync(Array.IndexOf(Wallets, node), _cluster.Of(store).Port);
        await GoesOnAsync($"while {node} cannot reach {store}");
        Assert.NotEqual(node, await WhoHasAsync(partition));
        Assert.Equal(before.Pid, _cluster.Of(node).Pid);
        Assert.True(_cluster.IsRunning(before), $"{node} ended because it could not reach {store}");
        await NetworkPaths.HealAsync();
    }

    async Task<string> WhoHasAsync(int partition)
    {
        for (Stopwatch watch = Stopwatch.StartNew(); ; await Task.Delay(50))
        {
            foreach (LocalClusterProcess wallet in _cluster.Processes.Where(process => process.Role == "wallet"))
            {
                if ((await _http.GetStringAsync(new Uri($"{wallet.Address}/metrics"))).Split('\n').Any(line => line.StartsWith("purse_ready", StringComparison.Ordinal) && line.Contains($"partition=\"{partition}\"", StringComparison.Ordinal) && line.Contains("} 1", StringComparison.Ordinal))) return wallet.Name;
            }

            Assert.True(watch.Elapsed < TimeSpan.FromSeconds(60), $"nobody has partition {partition}");
        }
    }

    /// <summary>Two faults at a time, any of those that leave each other alone, again and again.</summary>
    async Task RandomFaultsAsync(NetworkPaths? paths, double minutes)
    {
        int seed = int.TryParse(Environment.GetEnvironmentVariable("PURSE_SEED"), CultureInfo.InvariantCulture, out int given) ? given : Random.Shared.Next();
        Random random = new(seed);
        string Wallet() => Wallets[random.Next(Wallets.Length)];
        for (Stopwatch watch = Stopwatch.StartNew(); watch.Elapsed < TimeSpan.FromMinutes(minutes);)
        {
            string one = Wallet(), other = Wallets.Where(name => name != one).ElementAt(random.Next(2));
            List<(string What, string[] Touches, Func<Task> Do)> faults =
            [
                ($"{one} is killed", [one], () => KillAsync(one)),
                ($"{one} hangs", [one], () => HangAsync(one)),
                ($"{one} is told to stop", [one], async () =>
                {
                    await LocalProcess.SignalAsync(_cluster.Of(one).Pid, "TERM");
                    await StartAgainAsync(one);
                }),
                ("a front is killed", ["front-1"], () => KillAsync("front-1")),
                ("ZooKeeper's leader is killed", ["zookeeper"], () => KillZooKeeperAsync("leader")),
                ("a Redis node is killed", ["redis-2"], () => KillAsync("redis-2")),
                ("postgres-2 is killed", ["postgres-2"], () => KillAsync("postgres-2")),
                ("postgres-3 is killed", ["postgres-3"], () => KillAsync("postgres-3")),
                ("partition 4 is moved, and back", ["postgres-2", "postgres-3"], async () =>
                {
                    await MoveAsync(4, "s3");
                    await MoveAsync(4, "s2");
                }),
            ];
            if (paths is not null)
            {
                faults.Add(($"the path between {one} and {other} is cut", [one, other, "paths"], () => CutNodesAsync(paths, one, other)));
                faults.Add(("the path between a wallet node and postgres-2 is cut", [.. Wallets, "postgres-2", "paths"], () => CutStoreAsync(paths, 4, "postgres-2")));
            }

            (string What, string[] Touches, Func<Task> Do) first = faults[random.Next(faults.Count)];
            (string What, string[] Touches, Func<Task> Do)[] possible = [.. faults.Where(fault => !fault.Touches.Intersect(first.Touches).Any())];
            (string What, string[] Touches, Func<Task> Do) second = possible[random.Next(possible.Length)];
            TimeSpan between = TimeSpan.FromSeconds(random.NextDouble() * 5);
            await UnderLoadAsync($"at random (seed {seed}): {first.What}, and {between.TotalSeconds:0.0} s later {second.What}", All, () => Task.WhenAll(first.Do(), Later()));

            async Task Later()
            {
                await Task.Delay(between);
                await second.Do();
            }
        }
    }

    /// <summary>As an upgrade does it: nobody's request fails.</summary>
    async Task RestartAllAsync()
    {
        _timeoutMilliseconds = 30_000;
        // Until nothing is under way that was asked with less time.
        await GoesOnAsync("with more time");
        _failed.Clear();
        foreach (string name in Wallets)
        {
            LocalClusterProcess node = _cluster.Of(name);
            await LocalProcess.SignalAsync(node.Pid, "TERM");
            // A load balancer looks after it, and sends nobody there from then on.
            while (await IsReadyAsync(node)) await Task.Delay(50);
            await WithoutAsync(node, () => StartAgainAsync(name));
        }

        await GoesOnAsync("after the restarts");
        Assert.Empty(_failed);
        _timeoutMilliseconds = 2000;
    }

    async Task<bool> IsReadyAsync(LocalClusterProcess node)
    {
        try
        {
            using HttpResponseMessage ready = await _http.GetAsync(new Uri($"{node.Address}/readyz"));
            return ready.IsSuccessStatusCode;
        }
        catch (HttpRequestException)
        {
            // It was quicker than this look, on a machine that stood still.
            return false;
        }
    }

    /// <summary>Of a caller who would rather ask again; where nothing may fail, of one who has time: how long it took is measured.</summary>
    volatile int _timeoutMilliseconds = 2000;

    async Task KillAsync(string name)
    {
        await LocalProcess.SignalAsync(_cluster.Of(name).Pid, "KILL");
        await StartAgainAsync(name);
    }

    async Task KillZooKeeperAsync(string mode)
    {
        foreach (LocalClusterProcess server in _cluster.Processes.Where(process => process.Role == "zookeeper"))
        {
            if (await LocalZooKeeper.ModeAsync(server.Port) != mode) continue;
            await KillAsync(server.Name);
            return;
        }

        Assert.Fail($"ZooKeeper has no {mode}.");
    }

    async Task KillPrimaryAsync()
    {
        LocalClusterProcess standby = _cluster.Of("postgres-1-standby");
        await LocalProcess.SignalAsync(_cluster.Of("postgres-1").Pid, "KILL");
        LocalPostgreSql promoted = LocalPostgreSql.Open(Path.Combine(Folder, standby.Name), standby.Port, standby.Pid);
        await promoted.PromoteAsync();
        // What its clients were told is on two disks: it takes no more before there are two again.
        LocalPostgreSql second = await promoted.MakeStandbyAsync(Path.Combine(Folder, "postgres-1-third"), "third", isSynchronous: true);
        _second = second;
        long started = Stopwatch.GetTimestamp();
        await GoesOnAsync("after a promoted server has its standby");
        TestContext.Current.SendDiagnosticMessage($"writes went on {Stopwatch.GetElapsedTime(started).TotalSeconds:0.00} s after the promoted server had its standby");
        string passwords = LocalCluster.PasswordsOf(Folder).Value;
        string line = (await File.ReadAllLinesAsync(passwords)).First(one => one.Contains($":{standby.Port}:", StringComparison.Ordinal));
        await File.AppendAllLinesAsync(passwords, [line.Replace($":{standby.Port}:", $":{second.Port}:", StringComparison.Ordinal)]);
        await PurseAsync(
            "cluster", "stores", "set", "s1", "--replicated", "--cluster", _cluster.Cluster, "--connection", $"Host=127.0.0.1:{standby.Port},127.0.0.1:{second.Port};Database=purse;Username=purse_journal");
        // Its own user forgets it, as whoever repairs the machine would make it a standby.
        _cluster.Processes.RemoveAll(process => process.Name == "postgres-1");
    }

    LocalPostgreSql? _second;

    /// <summary>A store of its own on a small file system.</summary>
    async Task FillDiskAsync()
    {
        string small = Path.Combine(_folder.Path, "small");
        Directory.CreateDirectory(small);
        if (Environment.UserName != "root" || !await RunAsync("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", small))
        {
            TestContext.Current.SendDiagnosticMessage("A small file system can only be mounted by root: a full disk was not tried.");
            return;
        }

        try
        {
            await RunAsync("chown", "postgres:postgres", small);
            // Its write-ahead log is elsewhere: without room for that, PostgreSQL ends, and is a server that was killed.
            await using LocalPostgreSql server = await LocalPostgreSql.MakeAsync(Path.Combine(_folder.Path, "postgres-4"));
            await server.ExecuteAsync($"create tablespace small location '{small}'");
            await server.ExecuteAsync("create role purse_journal login password 'small'");
            await server.ExecuteAsync("create database purse owner purse_journal tablespace small");
            await File.AppendAllLinesAsync(LocalCluster.PasswordsOf(Folder).Value, [$"127.0.0.1:{server.Port}:*:purse_journal:small"]);
            await PurseAsync("cluster", "stores", "add", "s4", "--cluster", _cluster.Cluster, "--connection", $"Host=127.0.0.1:{server.Port};Database=purse;Username=purse_journal");
            await MoveAsync(5, "s4");
            await UnderLoadAsync("a store's disk is full, until room is made", [5], async () =>
            {
                string ballast = Path.Combine(small, "ballast");
                await using (FileStream file = File.Create(ballast))
                {
                    byte[] some = new byte[64 * 1024];
                    try
                    {
                        while (true) await file.WriteAsync(some);
                    }
                    catch (IOException)
                    {
                        // Full.
                    }
                }

                for (Stopwatch watch = Stopwatch.StartNew(); await AreReadyAsync(); await Task.Delay(20)) Assert.True(watch.Elapsed < TimeSpan.FromSeconds(60), "the disk is full, and nobody says so");
                // What is there is answered, as soon as its writer has begun anew; the other partitions take writes.
                for (Stopwatch watch = Stopwatch.StartNew(); await StatusAsync($"/v1/wallet/accounts/{_accounts[5][0]}") != 200; await Task.Delay(20)) Assert.True(watch.Elapsed < TimeSpan.FromSeconds(30), "the disk is full, and reads are not answered");
                Assert.False(await AreReadyAsync());
                _ = await GetAsync($"/v1/wallet/accounts/{_accounts[2][0]}");
                long[] before = [.. _counts];
                await Task.Delay(1000);
                Assert.All(Enumerable.Range(0, Partitions - 1), partition => Assert.True(_counts[partition] > before[partition]));
                Assert.Equal(before[5], _counts[5]);
                File.Delete(ballast);
            });
            await MoveAsync(5, "s3");
            await CheckAsync("a partition left a small disk");
        }
        finally
        {
            await RunAsync("umount", small);
        }
    }

    static double MinutesOf(string variable, double otherwise) => Environment.GetEnvironmentVariable(variable) is string minutes ? double.Parse(minutes, CultureInfo.InvariantCulture) : otherwise;

    /// <summary>With every core busy, probes are answered late: no node that lives is taken for dead, which would end it.</summary>
    async Task FullLoadAsync(double minutes)
    {
        const int Clients = 16, TransfersPerRequest = 250;
        string what = $"full load for {minutes:0.##} minutes";
        if (!IsAsked(what)) return;
        int[] pids = [.. Wallets.Select(name => _cluster.Of(name).Pid)];
        TimeSpan[] cpuBefore = [.. pids.Select(CpuOf)];
        long transfers = 0, again = 0, longestTicks = 0;
        Stopwatch watch = Stopwatch.StartNew();
        await Task.WhenAll(Enumerable.Range(0, Clients).Select(client => Task.Run(async () =>
        {
            Random random = new(client);
            StringBuilder body = new();
            while (watch.Elapsed < TimeSpan.FromMinutes(minutes))
            {
                body.Clear().Append("{\"transfers\":[");
                for (int i = 0; i < TransfersPerRequest; i++)
                {
                    // Half of them stay in their partition.
                    int partition = random.Next(Partitions), other = i % 2 == 0 ? partition : random.Next(Partitions);
                    int from = random.Next(AccountsEach), to = (from + 1 + random.Next(AccountsEach - 1)) % AccountsEach;
                    if (i > 0) body.Append(',');
                    body.Append(CultureInfo.InvariantCulture, $$"""{"from_account":"{{_accounts[partition][from]}}","to_account":"{{_accounts[other][to]}}","amount":"0.01","currency":"USD","transaction_id":"{{Guid.NewGuid()}}"}""");
                }

                body.Append("]}");
                long started = Stopwatch.GetTimestamp();
                for (int attempt = 0; ; attempt++)
                {
                    JsonElement answer = await SendAsync("/v1/wallet/transfers", body.ToString(), timeoutMilliseconds: 30_000);
                    if (answer.GetProperty("transfers").EnumerateArray().All(one => one.GetProperty("status").GetString() == "completed")) break;
                    Assert.True(attempt < 5, $"{answer}");
                    Interlocked.Increment(ref again);
                }

                long took = Stopwatch.GetTimestamp() - started;
                for (long longest = Interlocked.Read(ref longestTicks); took > longest && Interlocked.CompareExchange(ref longestTicks, took, longest) != longest; longest = Interlocked.Read(ref longestTicks)) { }
                Interlocked.Add(ref transfers, TransfersPerRequest);
            }
        })));
        TimeSpan elapsed = watch.Elapsed;
        Assert.Equal(pids, Wallets.Select(name => _cluster.Of(name).Pid));
        Assert.All(Wallets, name => Assert.True(_cluster.IsRunning(_cluster.Of(name)), $"under {what}, {name} was taken for dead\n{Logs()}"));
        double cores = pids.Select(CpuOf).Zip(cpuBefore, (after, before) => after - before).Sum(one => one.TotalSeconds) / elapsed.TotalSeconds;
        TestContext.Current.SendDiagnosticMessage($"{what}: {transfers} transfers, {transfers / elapsed.TotalSeconds:0} a second, {again} of {transfers / TransfersPerRequest} requests asked again, the longest took {Stopwatch.GetElapsedTime(0, longestTicks).TotalSeconds:0.00} s, the wallets took {cores:0.00} of {Environment.ProcessorCount} cores; none was taken for dead");
        await CheckAsync(what, events: minutes < 1);
    }

    static TimeSpan CpuOf(int pid)
    {
        using Process process = Process.GetProcessById(pid);
        return process.TotalProcessorTime;
    }

    async Task<int> StatusAsync(string path)
    {
        using HttpResponseMessage answer = await _http.GetAsync(Node(path));
        return (int)answer.StatusCode;
    }

    /// <summary>Whether every node with partitions takes writes.</summary>
    async Task<bool> AreReadyAsync()
    {
        foreach (string node in _nodes)
        {
            using HttpResponseMessage answer = await _http.GetAsync(new Uri($"{node}/readyz"));
            if (!answer.IsSuccessStatusCode) return false;
        }

        return true;
    }

    static async Task<bool> RunAsync(string program, params string[] arguments)
    {
        using Process process = Process.Start(program, arguments);
        await process.WaitForExitAsync();
        return process.ExitCode == 0;
    }

    /// <param name="concerned">Partitions that the fault stops; the others should hardly notice.</param>
    async Task UnderLoadAsync(string what, int[] concerned, Func<Task> fault, string[]? redis = null)
    {
        if (!IsAsked(what)) return;
        Stopwatch took = Stopwatch.StartNew();
        using CancellationTokenSource end = new();
        Array.Clear(_lastTicks);
        Task[] clients = [.. Enumerable.Range(0, _counts.Length).Select(client => Task.Run(() => LoadAsync(client, end.Token)))];
        Task load = Task.WhenAll(clients);
        try
        {
            await GoesOnAsync("before " + what);
            Array.Clear(_longestTicks);
            await fault();
            await GoesOnAsync("after " + what);
        }
        catch
        {
            // What went wrong first is what is told, not what its load came to.
            await end.CancelAsync();
            _ = load.ContinueWith(static ended => ended.Exception, TaskScheduler.Default);
            throw;
        }

        await end.CancelAsync();
        await load;
        long started = Stopwatch.GetTimestamp();
        await CheckAsync(what, redis);
        TimeSpan longest(IEnumerable<int> some) => Stopwatch.GetElapsedTime(0, some.Select(client => _longestTicks[client]).DefaultIfEmpty().Max());
        _pauses.Add((what, longest(concerned), longest(Enumerable.Range(0, Partitions).Except(concerned))));
        TestContext.Current.SendDiagnosticMessage($"{what}: longest pause {_pauses[^1].Concerned.TotalSeconds:0.00} s of those concerned, {_pauses[^1].Others.TotalSeconds:0.00} s of the others; {_acknowledged.Count} acknowledged in all; took {took.Elapsed.TotalSeconds:0} s, of which checks {Stopwatch.GetElapsedTime(started).TotalSeconds:0} s");
    }

    /// <summary>Every client gets answers.</summary>
    async Task GoesOnAsync(string when)
    {
        long[] before = [.. _counts];
        for (Stopwatch watch = Stopwatch.StartNew(); _counts.Zip(before).Any(pair => pair.First < pair.Second + 20); await Task.Delay(10))
            Assert.True(watch.Elapsed < TimeSpan.FromSeconds(60), $"{when}, writes do not go on: {string.Join(' ', _counts.Zip(before, (now, then) => now - then))}\n{Logs()}");
    }

    async Task LoadAsync(int client, CancellationToken end)
    {
        Random random = new(client);
        while (!end.IsCancellationRequested)
        {
            int partition = client < Partitions ? client : random.Next(Partitions), other = client < Partitions ? client : (partition + 1 + random.Next(Partitions - 1)) % Partitions;
            int from = random.Next(AccountsEach), to = (from + 1 + random.Next(AccountsEach - 1)) % AccountsEach;
            string position = await TransferAsync(_accounts[partition][from], _accounts[other][to], 1 + random.Next(3));
            // From any node, what was acknowledged is there: reads never go back in time.
            if (random.Next(20) == 0) await CheckReadAsync(_accounts[partition][from], partition, position);
            long now = Stopwatch.GetTimestamp(), before = _lastTicks[client];
            if (before != 0) _longestTicks[client] = Math.Max(_longestTicks[client], now - before);
            _lastTicks[client] = now;
            Interlocked.Increment(ref _counts[client]);
            await Task.Delay(2, CancellationToken.None);
        }
    }

    async Task CheckReadAsync(string account, int partition, string written)
    {
        string read = (await GetAsync($"/v1/wallet/accounts/{account}/balance?currency=USD")).GetProperty("position").GetString()!;
        ulong Of(string position) => ulong.Parse(position.Split(',').First(part => part.StartsWith($"{partition}:", StringComparison.Ordinal)).Split(':')[1], CultureInfo.InvariantCulture);
        Assert.True(Of(read) >= Of(written), $"{account} was written at {written}, and is read as of {read}");
    }

    async Task<string> TransferAsync(string from, string to, int amount)
    {
        Guid id = Guid.NewGuid();
        JsonElement answer = await SendAsync("/v1/wallet/balance_transfer", $$"""{"from_account":"{{from}}","to_account":"{{to}}","amount":"{{amount}}.00","currency":"USD","transaction_id":"{{id}}"}""");
        return _acknowledged[id] = answer.GetProperty("position").GetString()!;
    }

    /// <summary>The same again until it is answered for good, as a careful caller does.</summary>
    async Task<JsonElement> SendAsync(string path, string body, int? timeoutMilliseconds = null)
    {
        string last = "";
        for (Stopwatch watch = Stopwatch.StartNew(); ; await Task.Delay(10))
        {
            Assert.True(watch.Elapsed < TimeSpan.FromMinutes(2), $"no answer for two minutes, in the end: {last}\n{Logs()}");
            try
            {
                using HttpRequestMessage request = new(HttpMethod.Post, Node(path)) { Content = new StringContent(body, Encoding.UTF8, new MediaTypeHeaderValue("application/json")) };
                int timeout = timeoutMilliseconds ?? _timeoutMilliseconds;
                request.Headers.Add("X-Request-Timeout-Ms", $"{timeout}");
                // A node that hangs does not even say that it does.
                using CancellationTokenSource patience = new(TimeSpan.FromMilliseconds(timeout + 1000));
                using HttpResponseMessage answer = await _http.SendAsync(request, patience.Token);
                last = await answer.Content.ReadAsStringAsync();
                if ((int)answer.StatusCode is 202 or >= 500)
                {
                    _failed.Enqueue($"{(int)answer.StatusCode} {last}");
                    continue;
                }

                Assert.True(answer.IsSuccessStatusCode, $"{body}\n{last}");
                return JsonDocument.Parse(last).RootElement;
            }
            catch (Exception e) when (e is HttpRequestException or TaskCanceledException)
            {
                last = e.Message;
                // One that is not there: any other takes it.
                if (e is not HttpRequestException { HttpRequestError: HttpRequestError.ConnectionError }) _failed.Enqueue(e.ToString());
            }
        }
    }

    /// <summary>Requests that were begun, and were not answered with what came of them.</summary>
    readonly ConcurrentQueue<string> _failed = new();

    /// <summary>Also a read is sent again where its partition is just taken over.</summary>
    async Task<JsonElement> GetAsync(string path)
    {
        for (Stopwatch watch = Stopwatch.StartNew(); ; await Task.Delay(20))
        {
            string text;
            try
            {
                using HttpRequestMessage request = new(HttpMethod.Get, Node(path));
                request.Headers.Add("X-Request-Timeout-Ms", $"{_timeoutMilliseconds}");
                using CancellationTokenSource patience = new(TimeSpan.FromMilliseconds(_timeoutMilliseconds + 1000));
                using HttpResponseMessage answer = await _http.SendAsync(request, patience.Token);
                text = await answer.Content.ReadAsStringAsync();
                if (answer.IsSuccessStatusCode) return JsonDocument.Parse(text).RootElement;
                Assert.InRange((int)answer.StatusCode, 503, 504);
            }
            catch (Exception e) when (e is HttpRequestException or TaskCanceledException)
            {
                text = e.Message;
            }

            // As patient as writes are: all nodes may be away for a while.
            Assert.True(watch.Elapsed < TimeSpan.FromMinutes(2), $"{path}: {text}\n{Logs()}");
        }
    }

    /// <param name="events">Whether each of them is looked at, which is as long as the load was.</param>
    async Task CheckAsync(string what, string[]? redis = null, bool events = true)
    {
        for (Stopwatch watch = Stopwatch.StartNew(); ; await Task.Delay(50))
        {
            JsonElement inDoubt = await GetAsync("/v1/audit/in_doubt");
            if (inDoubt.GetProperty("in_doubt").GetArrayLength() == 0 && inDoubt.GetProperty("unreachable").GetArrayLength() == 0) break;
            Assert.True(watch.Elapsed < TimeSpan.FromSeconds(30), $"after {what}, something stays in doubt: {inDoubt}");
        }

        // All that is read from the journals at once: most of it is programs that start.
        Task<JsonElement> replaying = PurseProcess.JsonAsync("replay", "--cluster", _cluster.Cluster), asking = PurseProcess.JsonAsync("cluster", "status", "--cluster", _cluster.Cluster);
        Task<(int Exit, string Out, string Err)>? exporting = events ? PurseProcess.RunAsync("export", "--cluster", _cluster.Cluster) : null;
        JsonElement replay = await replaying, status = await asking;
        Assert.All(replay.GetProperty("sums").EnumerateObject(), sum => Assert.Equal(0m, decimal.Parse(sum.Value.GetString()!, CultureInfo.InvariantCulture)));
        Dictionary<string, string> replayed = replay.GetProperty("balances").EnumerateArray().ToDictionary(one => one.GetProperty("account").GetString()!, one => one.GetProperty("posted").GetString()!);
        string position = replay.GetProperty("position").GetString()!;
        Assert.Equal(_accounts.Sum(one => one.Length) + 1, replayed.Count);

        // The served state, the views, and a plain Redis client.
        redis ??= [.. RedisNodes()];
        List<ConnectionMultiplexer> nodes = [];
        try
        {
            foreach (string node in redis) nodes.Add(await ConnectionMultiplexer.ConnectAsync(node));
            foreach ((string account, string posted) in replayed)
            {
                string balance = $"/v1/wallet/accounts/{account}/balance?currency=USD", from = $"after {what}, {account}";
                Assert.Equal((from, posted), (from, (await GetAsync(balance)).GetProperty("posted").GetString()));
                Assert.Equal((from, posted), (from, (await GetAsync($"{balance}&source=view&min_position={position}")).GetProperty("posted").GetString()));
                Assert.Equal((from, posted), (from, (await GetAsync($"/v1/wallet/accounts/{account}?source=view&min_position={position}")).GetProperty("balances").GetProperty("USD").GetProperty("posted").GetString()));
                if (account[0] != '@') Assert.Equal((from, posted), (from, (string?)await nodes[AccountName.Parse(account).PartitionOf(nodes.Count)].GetDatabase().HashGetAsync($"balance:{account}", "USD")));
            }
        }
        finally
        {
            foreach (ConnectionMultiplexer node in nodes) await node.DisposeAsync();
        }

        if (exporting is null) return;
        // Every event: each acknowledged transfer is there, once on each side.
        (int exit, string export, string error) = await exporting;
        Assert.True(exit == 0, error);
        Dictionary<Guid, (int Debits, int Credits)> seen = [];
        foreach (string line in export.Split('\n', StringSplitOptions.RemoveEmptyEntries))
        {
            using JsonDocument e = JsonDocument.Parse(line);
            if (e.RootElement.GetProperty("kind").GetString() is not ("debited" or "credited") || !e.RootElement.TryGetProperty("transaction_id", out JsonElement id)) continue;
            (int debits, int credits) = seen.GetValueOrDefault(id.GetGuid());
            seen[id.GetGuid()] = e.RootElement.GetProperty("kind").GetString() == "debited" ? (debits + 1, credits) : (debits, credits + 1);
        }

        Assert.All(seen, one => Assert.Equal((1, 1), one.Value));
        Assert.Empty(_acknowledged.Keys.Except(seen.Keys));

        // The rows of the view say the same, by SQL.
        await using NpgsqlConnection view = new(status.GetProperty("view").GetString() + ";Pooling=false");
        await view.OpenAsync();
        await using NpgsqlCommand rows = new("select (select count(*) from transfers), (select count(distinct transaction_id) from transfers where status = 'completed'), (select count(*) from entries where kind in ('debited', 'credited'))", view);
        await using NpgsqlDataReader row = await rows.ExecuteReaderAsync();
        await row.ReadAsync();
        Assert.Equal(((long)seen.Count, (long)seen.Count, 2L * seen.Count), (row.GetInt64(0), row.GetInt64(1), row.GetInt64(2)));
        // Nothing acknowledged was taken back: its position is one that is there.
        Dictionary<string, ulong> heads = position.Split(',').ToDictionary(one => one.Split(':')[0], one => ulong.Parse(one.Split(':')[1], CultureInfo.InvariantCulture));
        Assert.All(_acknowledged.Values.SelectMany(one => one.Split(',')), one => Assert.True(ulong.Parse(one.Split(':')[1], CultureInfo.InvariantCulture) <= heads[one.Split(':')[0]]));
    }
}
