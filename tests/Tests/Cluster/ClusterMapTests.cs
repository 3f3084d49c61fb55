using System.Collections.Concurrent;
using System.Text;
using Purse.Cluster;
using Purse.Cluster.Local;
using Purse.Cluster.ZooKeeper;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;
using Purse.Views;

namespace Purse.Tests.Cluster;

/// <summary>A real ZooKeeper server, for the tests of one class.</summary>
public sealed class ZooKeeperServer : IAsyncLifetime
{
    readonly TemporaryFolder _folder = new();
    int _clusters;

    LocalZooKeeper? _server;

    public LocalZooKeeper Server
    {
        get
        {
            Assert.SkipWhen(_server is null, "ZooKeeper is not installed: ./test installs it when run as root.");
            return _server;
        }
    }

    public string NewAddress() => $"zk://{Server.Address}/tests/{Interlocked.Increment(ref _clusters)}";

    public async ValueTask InitializeAsync()
    {
        if (LocalZooKeeper.IsInstalled) _server = (await LocalZooKeeper.MakeEnsembleAsync(_folder.Path, 1))[0];
    }

    public async ValueTask DisposeAsync()
    {
        if (_server is not null) await _server.DisposeAsync();
        _folder.Dispose();
    }
}

/// <summary>What ZooKeeper has of a cluster, and journals that are where it says, or elsewhere.</summary>
public sealed class ClusterMapTests(ZooKeeperServer zooKeeper, PostgreSqlServer postgreSql) : IClassFixture<ZooKeeperServer>, IClassFixture<PostgreSqlServer>, IAsyncDisposable
{
    static readonly CurrencyCode Usd = CurrencyCode.Parse("USD");
    readonly ConcurrentQueue<string> _log = new();
    readonly List<IAsyncDisposable> _open = [];

    public async ValueTask DisposeAsync()
    {
        foreach (IAsyncDisposable one in Enumerable.Reverse(_open)) await one.DisposeAsync();
    }

    async Task<ClusterMap> OpenAsync(string address)
    {
        ClusterMap map = await ClusterMap.OpenAsync(address, _log.Enqueue);
        _open.Add(map);
        return map;
    }

    async Task<ClusterStores> StoresAsync(string address)
    {
        ClusterStores stores = new(await ClusterMap.OpenAsync(address, _log.Enqueue), _log.Enqueue);
        _open.Add(stores);
        return stores;
    }

    /// <summary>A cluster of one partition, which is in the first of these stores.</summary>
    async Task<string> MakeAsync(params string[] names)
    {
        string address = zooKeeper.NewAddress();
        await ClusterMap.InitAsync(address, 1, _log.Enqueue);
        SortedDictionary<string, StoreSettings> stores = new(StringComparer.Ordinal);
        foreach (string name in names) stores[name] = new StoreSettings(await postgreSql.NewDatabaseAsync());
        ClusterMap map = await OpenAsync(address);
        await map.ChangeAsync(settings => settings with { Stores = stores, Partitions = [names[0]] });
        return address;
    }

    [Fact]
    public async Task A_cluster_is_made_once_and_what_is_wrong_is_said()
    {
        string address = zooKeeper.NewAddress();
        Assert.Contains($"purse cluster init --cluster {address}", (await Assert.ThrowsAsync<IOException>(() => ClusterMap.OpenAsync(address, _log.Enqueue))).Message, StringComparison.Ordinal);
        await ClusterMap.InitAsync(address, 3, _log.Enqueue);
        ClusterMap map = await OpenAsync(address);
        Assert.Equal((3, 0), (map.PartitionsCount, map.Settings.Stores.Count));
        Assert.Equal([null, null, null], map.Settings.Partitions);
        Assert.Contains("already", (await Assert.ThrowsAsync<IOException>(() => ClusterMap.InitAsync(address, 3, _log.Enqueue))).Message, StringComparison.Ordinal);
        foreach (string wrong in (string[])["zk:/x", "zk://127.0.0.1:1", "zk://127.0.0.1:1/", "http://127.0.0.1:1/purse", ""])
            Assert.Contains("is no address of a cluster", (await Assert.ThrowsAsync<IOException>(() => ClusterMap.OpenAsync(wrong, _log.Enqueue))).Message, StringComparison.Ordinal);
        await using ZooKeeperClient client = new(zooKeeper.Server.Address + new Uri(address).AbsolutePath, TimeSpan.FromSeconds(4), _log.Enqueue);
        foreach ((string text, string said) in new[] { ("{}", "not readable"), ("nonsense", "not readable"), ("""{"format":1,"id":"x","partitions":[]}""", "has format 1; this version reads 0") })
        {
            await client.SetAsync("/map", Encoding.UTF8.GetBytes(text), -1);
            Assert.Contains(said, (await Assert.ThrowsAsync<MapException>(() => ClusterMap.OpenAsync(address, _log.Enqueue))).Message, StringComparison.Ordinal);
        }

        // Whoever is there goes on with what it knows, and says so.
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
        while (!_log.Any(line => line.Contains("The cluster's map cannot be followed", StringComparison.Ordinal))) await Task.Delay(20, limit.Token);
        Assert.Equal(3, map.Settings.Partitions.Length);
        // And hears when it is mended.
        await client.SetAsync("/map", Encoding.UTF8.GetBytes("""{"format":0,"id":"x","partitions":[null,null,null],"redis":["r:1"]}"""), -1);
        while (map.Settings.Redis.Length == 0) await Task.Delay(20, limit.Token);
    }

    /// <summary>Excludes: a change that overwrites another's, and one that is not heard of.</summary>
    [Fact]
    public async Task Changes_from_all_sides_are_all_there_and_everybody_hears_of_them()
    {
        string address = zooKeeper.NewAddress();
        await ClusterMap.InitAsync(address, 1, _log.Enqueue);
        ClusterMap[] maps = [await OpenAsync(address), await OpenAsync(address), await OpenAsync(address)];
        int heard = 0;
        maps[0].Changed += (_, _) => Interlocked.Increment(ref heard);
        await Task.WhenAll(maps.Index().Select(async one =>
        {
            for (int i = 0; i < 20; i++) await one.Item.ChangeAsync(settings => settings with { Redis = [.. settings.Redis, $"r{one.Index}-{i}:1"] });
        }));
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
        while (maps.Any(map => map.Settings.Redis.Distinct().Count() < 60)) await Task.Delay(10, limit.Token);
        Assert.True(heard > 0);
        // Of each in its own order.
        foreach (int n in new[] { 0, 1, 2 }) Assert.Equal(Enumerable.Range(0, 20).Select(i => $"r{n}-{i}:1"), maps[2].Settings.Redis.Where(node => node[1] == '0' + n));
    }

    [Fact]
    public async Task A_floor_only_rises_and_a_wallet_is_shown_while_it_lives()
    {
        string address = zooKeeper.NewAddress();
        await ClusterMap.InitAsync(address, 1, _log.Enqueue);
        ClusterMap one = await OpenAsync(address), other = await OpenAsync(address);
        string hash = new('a', 64);
        await one.RaiseFloorAsync(0, new FloorNode(5, 50, hash, 2, "s1", 0));
        foreach (FloorNode less in (FloorNode[])[new(4, 40, hash, 2, "s1", 0), new(6, 60, hash, 1, "s1", 0)]) await other.RaiseFloorAsync(0, less);
        Assert.Equal((5ul, 50ul, 2ul), (await other.ReadFloorAsync(0) is { } floor) ? (floor.Number, floor.Sequence, floor.Epoch) : default);
        await other.RaiseFloorAsync(0, new FloorNode(6, 60, hash, 3, "s2", 1));
        Assert.Equal((6ul, 60ul), (one.Floor(0)!.Value.Number, one.Floor(0)!.Value.Sequence));

        await one.TellWalletAsync(new WalletNode("http://127.0.0.1:1", 1, "all", []));
        await one.TellWalletAsync(new WalletNode("http://127.0.0.1:1", 1, "all", new() { ["redis"] = 0.5 }));
        Assert.Equal(0.5, Assert.Single(await other.WalletsAsync()).ViewLagSeconds["redis"]);
        _open.Remove(one);
        await one.DisposeAsync();
        Assert.Empty(await other.WalletsAsync());
    }

    static Partition Start(ClusterStores stores, ConcurrentQueue<string> log, bool isPatient = false)
    {
        Partition partition = Partition.Start(stores.Stores[0], 1, new PartitionOptions { RecoveryDelay = TimeSpan.FromMilliseconds(50), IsPatient = isPatient }, TimeProvider.System, log.Enqueue);
        partition.Connect([partition]);
        stores.Tell(() => [partition], null);
        return partition;
    }

    /// <summary>The same again until it is answered for good.</summary>
    static async Task DepositAsync(Partition partition, string account)
    {
        UInt128 id = (UInt128)Random.Shared.NextInt64() << 64 | (UInt128)Random.Shared.NextInt64();
        Command[] commands =
        [
            new() { Kind = CommandKind.OpenAccount, Account = AccountName.Parse(account) },
            new() { Kind = CommandKind.Transfer, TransactionId = id, Account = AccountName.Parse("@world"), Counterparty = AccountName.Parse(account), AmountDigits = 1, Currency = Usd },
        ];
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(30));
        while (true)
        {
            CommandRequest request = new(2) { Count = 2 };
            commands.CopyTo(request.Commands.AsSpan());
            if (await partition.SubmitAsync(request, TimeSpan.FromSeconds(2)) == RequestStatus.Answered && request.Decisions[1].Outcome is Outcome.Done or Outcome.Duplicate) return;
            await Task.Delay(20, limit.Token);
        }
    }

    static async Task<Int128> PostedAsync(Partition partition)
    {
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(30));
        ReadRequest<Int128> read;
        while (await partition.SubmitAsync(read = new ReadRequest<Int128>(Sum), TimeSpan.FromSeconds(2)) != RequestStatus.Answered) await Task.Delay(20, limit.Token);
        return read.Result;

        static Int128 Sum(State state) => Enumerable.Range(0, state.BalancesCount).Select(i => state.BalanceAt(i)).Where(balance => balance.Posted > 0).Sum(balance => (long)balance.Posted);
    }

    [Fact]
    public async Task A_journal_behind_its_floor_has_lost_its_end()
    {
        string address = await MakeAsync("s1");
        await using (Partition partition = Start(await StoresAsync(address), _log)) await DepositAsync(partition, "alice");
        ClusterMap map = await OpenAsync(address);
        await using ClusterStores stores = await StoresAsync(address);
        _open.Remove(stores);
        FloorNode floor = (await map.ReadFloorAsync(0))!;
        await map.RaiseFloorAsync(0, floor with { Number = floor.Number + 100, Sequence = floor.Sequence + 100, Epoch = floor.Epoch + 1 });
        JournalDamagedException lost = Assert.Throws<JournalDamagedException>(() => stores.Stores[0].TakeOver([], static (in Block _) => { }));
        Assert.StartsWith("journal_lost_tail: /floors/0 of zk://", lost.Message, StringComparison.Ordinal);
        Assert.Contains("purse cluster accept-loss 0", lost.Message, StringComparison.Ordinal);
        // Until somebody accepts it; then it goes on from what is there.
        (JournalFloor end, List<JournalFloor> known) = await stores.Stores[0].FindLossAsync();
        Assert.Equal(floor.Sequence + 100, Assert.Single(known).Sequence);
        await stores.Stores[0].AcceptLossAsync(end, known);
        Assert.Empty((await stores.Stores[0].FindLossAsync()).Lost);
        await using Partition again = Start(await StoresAsync(address), _log);
        await DepositAsync(again, "bob");
        Assert.Equal(2, (int)await PostedAsync(again) / 100);
        // One that nobody can read is not taken for none.
        await using ZooKeeperClient client = new(zooKeeper.Server.Address + new Uri(address).AbsolutePath, TimeSpan.FromSeconds(4), _log.Enqueue);
        foreach (string text in (string[])["nonsense", """{"number":1,"sequence":1,"hash":"no","epoch":1,"store":"s1","in_doubt":0}"""])
        {
            await client.SetAsync("/floors/0", Encoding.UTF8.GetBytes(text), -1);
            Assert.Contains("/floors/0 of zk://", Assert.Throws<InvalidDataException>(() => stores.Stores[0].TakeOver([], static (in Block _) => { })).Message, StringComparison.Ordinal);
        }
    }

    /// <summary>Excludes: a move that loses, doubles or strands what it moves, wherever it was cut short and whoever comes next.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public async Task A_move_cut_short_goes_on_wherever_it_was(int stepsDone)
    {
        string address = await MakeAsync("s1", "s2");
        ClusterStores stores = await StoresAsync(address), mover = await StoresAsync(address);
        await using Partition partition = Start(stores, _log);
        await DepositAsync(partition, "alice");
        (PostgreSqlDatabase from, PostgreSqlDatabase to) = (mover.Open("s1"), mover.Open("s2"));
        // As ClusterStore.MoveAsync does it.
        if (stepsDone > 0) PostgreSqlMove.Copy(from, to, 0);
        await DepositAsync(partition, "bob");
        if (stepsDone > 1)
        {
            Seal(from, "s2");
        }

        if (stepsDone > 2) PostgreSqlMove.Finish(from, to, 0);
        // Whoever finds a seal ends the move, and the map follows; else nothing has moved.
        await DepositAsync(partition, "carol");
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
        if (stepsDone > 1)
        {
            while (mover.Map.Settings.Partitions[0] != "s2") await Task.Delay(20, limit.Token);
            Assert.Equal("s2", stores.Stores[0].Name);
        }

        if (stepsDone is 0 or 4)
        {
            // There, back, and there again, as an operator does.
            foreach (string target in (string[])["s2", "s1", "s2", "s2"])
            {
                await mover.Stores[0].MoveAsync(target);
                await DepositAsync(partition, $"to{target}");
            }
        }
        else
        {
            await mover.Stores[0].MoveAsync("s2");
        }

        await DepositAsync(partition, "dave");
        Assert.Equal(("s2", stepsDone is 0 or 4 ? 8 : 4), (stores.Stores[0].Name, (int)await PostedAsync(partition) / 100));
        while (partition.FlushedFloor is not { Number: > 0 }) await Task.Delay(20, limit.Token);
        // From the first event on, with nothing of it missing, in the one store that is open.
        using JournalReader reader = mover.Stores[0].Read(checkMerkleRoots: true);
        StateMachine machine = new(new State(1, 0, 1));
        while (reader.LastSequence < partition.FlushedSequence && reader.TryReadNext(out Block block)) Partition.Apply(block, machine);
        Assert.Equal(partition.FlushedSequence, machine.State.LastSequence);
        Assert.Equal("s2", PostgreSqlMove.SealOf(from, 0));
        Assert.Null(PostgreSqlMove.SealOf(to, 0));
    }

    static void Seal(PostgreSqlDatabase from, string to)
    {
        EventBatch seal = new(1);
        seal.BeginAttachment();
        seal.Attach(AttachmentTag.Store, to);
        uint attachment = seal.EndAttachment();
        seal.Add(EventKind.Sealed).Attachment = attachment;
        PostgreSqlMove.Seal(from, 0, to, Event.SizeBytes, seal.EventBytes, seal.Attachments);
    }

    /// <summary>Excludes: a journal that is sealed while it is read, and is then read once more into what has it already; or its reader taken for deposed.</summary>
    [Fact]
    public async Task A_seal_in_the_middle_of_a_take_over_is_followed_by_a_new_one()
    {
        string address = await MakeAsync("s1", "s2");
        await using (Partition partition = Start(await StoresAsync(address), _log)) await DepositAsync(partition, "alice");
        ClusterStores stores = await StoresAsync(address), mover = await StoresAsync(address);
        int read = 0;
        Assert.Throws<JournalSealedException>(() => stores.Stores[0].TakeOver([], (in Block _) =>
        {
            if (read++ == 0) Seal(mover.Open("s1"), "s2");
        }));
        List<ulong> numbers = [];
        using JournalWriter journal = stores.Stores[0].TakeOver([], (in Block block) => numbers.Add(block.Header.Number));
        Assert.Equal("s2", stores.Stores[0].Name);
        // All that the first one saw, and the seal.
        Assert.Equal(Enumerable.Range(1, read + 1).Select(number => (ulong)number), numbers);
    }

    /// <summary>Excludes: a wallet that was deposed while nothing happened, and takes its successor's view for that of another journal.</summary>
    [Fact]
    public async Task An_idle_writer_that_was_deposed_leaves_the_view_alone()
    {
        string address = await MakeAsync("s1"), view = await postgreSql.NewDatabaseAsync();
        await using Partition first = Start(await StoresAsync(address), _log);
        await DepositAsync(first, "alice");
        await using ViewFeeder one = new(new PostgreSqlView(view, "test", 1), 1, () => [first], _log.Enqueue);
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(30));
        while (one.Position(0) < first.FlushedSequence) await Task.Delay(10, limit.Token);
        await using Partition second = Start(await StoresAsync(address), _log);
        await using ViewFeeder other = new(new PostgreSqlView(view, "test", 1), 1, () => [second], _log.Enqueue);
        await DepositAsync(second, "bob");
        // It finds that the view knows more than it does, asks whether it is still the owner, and hears that it is not.
        while (first.Fault is null || other.Position(0) < second.FlushedSequence) await Task.Delay(10, limit.Token);
        Assert.IsType<FencedException>(first.Fault.InnerException ?? first.Fault);
        Assert.DoesNotContain(_log, line => line.Contains("the view is made again", StringComparison.Ordinal));
        Assert.Equal(["alice", "bob"], (await ((SqlView)other.View).FindAccountsAsync("", "", 10, CancellationToken.None)).Select(account => account.Account));
    }

    /// <summary>Excludes: two journals that go on from one.</summary>
    [Fact]
    public async Task Of_two_movers_one_decides()
    {
        string address = await MakeAsync("s1", "s2", "s3");
        ClusterStores stores = await StoresAsync(address), one = await StoresAsync(address), other = await StoresAsync(address);
        await using Partition partition = Start(stores, _log);
        await DepositAsync(partition, "alice");
        Task[] moves = [Task.Run(() => one.Stores[0].MoveAsync("s2")), Task.Run(() => other.Stores[0].MoveAsync("s3"))];
        await Task.WhenAll(moves).ContinueWith(_ => { }, TaskScheduler.Default);
        Assert.Contains(moves, move => move.IsCompletedSuccessfully);
        await DepositAsync(partition, "bob");
        Assert.Equal(2, (int)await PostedAsync(partition) / 100);
        string[] open = [.. ((string[])["s1", "s2", "s3"]).Where(store =>
        {
            try
            {
                return PostgreSqlMove.SealOf(one.Open(store), 0) is null;
            }
            catch (IOException)
            {
                // It was never there.
                return false;
            }
        })];
        Assert.Equal([stores.Stores[0].Name], open);
    }

    [Fact]
    public async Task A_store_that_is_away_at_the_start_and_one_that_gets_another_address_are_served_when_they_are_there()
    {
        string address = await MakeAsync("s1");
        ClusterStores stores = await StoresAsync(address);
        ClusterMap map = await OpenAsync(address);
        StoreSettings right = map.Settings.Stores["s1"], wrong = new(right.Connection.Replace("Database=", "Database=no", StringComparison.Ordinal));
        await SetAsync(wrong);
        await using Partition partition = Start(stores, _log, isPatient: true);
        Assert.False(partition.IsReady);
        await SetAsync(right);
        await DepositAsync(partition, "alice");
        Assert.Equal(1, (int)await PostedAsync(partition) / 100);

        async Task SetAsync(StoreSettings settings)
        {
            await map.ChangeAsync(before => before with { Stores = new SortedDictionary<string, StoreSettings> { ["s1"] = settings } });
            using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
            while (stores.Map.Settings.Stores["s1"] != settings) await Task.Delay(10, limit.Token);
        }
    }
}
