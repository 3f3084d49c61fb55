using System.Text.Json;
using Orleans;
using Orleans.Messaging;
using Purse.Cluster.Nodes;
using Purse.Cluster.ZooKeeper;
using Purse.Journal;

namespace Purse.Cluster;

/// <summary>Where journals are kept: one PostgreSQL database.</summary>
/// <param name="Connection">As Npgsql takes it, without a password; several hosts where a standby may be promoted.</param>
/// <param name="Replicated">It has a synchronous standby, and takes no writes without one.</param>
public sealed record StoreSettings(string Connection, bool Replicated = false);

/// <summary>What all processes of a cluster go by: one node of ZooKeeper, changed as a whole.</summary>
public sealed record ClusterSettings
{
    public const int CurrentFormat = 0;

    public int Format { get; init; } = CurrentFormat;

    /// <summary>Tells this cluster's data from another's, wherever they are found.</summary>
    public required string Id { get; init; }

    public SortedDictionary<string, StoreSettings> Stores { get; init; } = [];

    /// <summary>By partition, the store that it is in. A hint: who finds a journal sealed follows the seal. Its length never changes.</summary>
    public required string?[] Partitions { get; init; }

    /// <summary>Redis nodes with balances, as <c>host:port</c>: an account's is hash(account) % nodes.</summary>
    public string[] Redis { get; init; } = [];

    /// <summary>The database of the view that is searched, as Npgsql takes it, without a password.</summary>
    public string? View { get; init; }
}

/// <summary>The last event that is known to be durable in a partition, told every second by whoever writes it, with what operators look at.</summary>
public sealed record FloorNode(ulong Number, ulong Sequence, string Hash, ulong Epoch, string Store, int InDoubt);

/// <summary>What a wallet process tells of itself every second, in a node that ends with its session.</summary>
public sealed record WalletNode(string Address, int ProcessId, string Role, SortedDictionary<string, double?> ViewLagSeconds);

/// <summary>The map is there, and says what this program cannot go by.</summary>
public sealed class MapException(string message, Exception? inner = null) : IOException(message, inner);

/// <summary>The cluster as ZooKeeper has it (docs/cluster.md draws the tree). What changes there is told to <see cref="Changed"/>.</summary>
public sealed class ClusterMap : IAsyncDisposable
{
    const string MapPath = "/map", FloorsPath = "/floors", WalletsPath = "/wallets";
    static readonly JsonSerializerOptions Json = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping };
    static readonly TimeSpan SessionTimeout = TimeSpan.FromSeconds(10), Patience = TimeSpan.FromSeconds(10);

    /// <summary>As long as a take-over waits for ZooKeeper: writes do not depend on it.</summary>
    static readonly TimeSpan FloorPatience = TimeSpan.FromSeconds(2);

    readonly ZooKeeperClient _zooKeeper;
    readonly Action<string> _log;
    readonly FloorNode?[] _floors;
    readonly CancellationTokenSource _stop = new();
    string? _walletPath;
    Task _watching = Task.CompletedTask;

    ClusterMap(ZooKeeperClient zooKeeper, ClusterSettings settings, string address, Action<string> log)
    {
        _zooKeeper = zooKeeper;
        _log = log;
        Settings = settings;
        Address = address;
        _floors = new FloorNode?[settings.Partitions.Length];
        // Before it is shown: what a session that is over had made is made again at the next telling.
        zooKeeper.SessionLost += (_, _) => Volatile.Write(ref _walletPath, null);
    }

    public string Address { get; }

    public ClusterSettings Settings { get; private set; }

    public int PartitionsCount => _floors.Length;

    const string NodesPath = "/nodes";

    /// <summary>Which nodes live, for Orleans.</summary>
    public IMembershipTable Membership() => new ZooKeeperMembershipTable(_zooKeeper, NodesPath);

    /// <summary>The nodes that take clients, for Orleans.</summary>
    public IGatewayListProvider Gateways(TimeSpan maxStaleness) => new ZooKeeperGatewayList(new ZooKeeperMembershipTable(_zooKeeper, NodesPath), maxStaleness);

    public bool IsConnected => _zooKeeper.IsConnected;

    /// <summary>The settings are others now. Told in order, never twice at once.</summary>
    public event EventHandler? Changed;

    /// <summary>Makes a new cluster in an empty place of ZooKeeper.</summary>
    public static async Task InitAsync(string address, int partitionsCount, Action<string> log)
    {
        (string servers, string path, ZooKeeperCredentials? credentials) = Parse(address);
        await using ZooKeeperClient client = new(servers, SessionTimeout, log, credentials);
        string parent = "";
        foreach (string name in path.Split('/', StringSplitOptions.RemoveEmptyEntries))
        {
            parent += $"/{name}";
            await EnsureAsync(client, parent);
        }

        foreach (string child in new[] { FloorsPath, WalletsPath }) await EnsureAsync(client, path + child);
        ClusterSettings settings = new() { Id = Guid.NewGuid().ToString("N"), Partitions = new string?[partitionsCount] };
        try
        {
            await Within(client.CreateAsync(path + MapPath, JsonSerializer.SerializeToUtf8Bytes(settings, Json)), address);
        }
        catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NodeExists)
        {
            throw new IOException($"There is a cluster at {address} already. Name another path, or look at it with `purse cluster status`.", e);
        }

        async Task EnsureAsync(ZooKeeperClient zooKeeper, string node)
        {
            try
            {
                await Within(zooKeeper.CreateAsync(node, ReadOnlyMemory<byte>.Empty), address);
            }
            catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NodeExists)
            {
                // Made before.
            }
        }
    }

    /// <param name="address"><c>zk://host:port,host:port/path</c>, with <c>user@</c> before the first where ZooKeeper asks for one.</param>
    public static async Task<ClusterMap> OpenAsync(string address, Action<string> log)
    {
        (string servers, string path, ZooKeeperCredentials? credentials) = Parse(address);
        ZooKeeperClient client = new(servers + path, SessionTimeout, log, credentials);
        try
        {
            (byte[] data, _) = await Within(client.GetAsync(MapPath), address);
            ClusterMap map = new(client, Read(data, address), address, log);
            await Within(map.FollowAsync(), address);
            return map;
        }
        catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NoNode)
        {
            await client.DisposeAsync();
            throw new IOException($"There is no cluster at {address}. Make one with `purse cluster init --cluster {address} --partitions N`, or mend the address.", e);
        }
        catch
        {
            await client.DisposeAsync();
            throw;
        }
    }

    static (string Servers, string Path, ZooKeeperCredentials? Credentials) Parse(string address)
    {
        const string scheme = "zk://";
        int slash = address.StartsWith(scheme, StringComparison.Ordinal) ? address.IndexOf('/', scheme.Length) : -1;
        if (slash < 0 || slash == address.Length - 1 || address.EndsWith('/')) throw new IOException($"'{address}' is no address of a cluster. They look like zk://zk1:2181,zk2:2181,zk3:2181/purse.");
        string servers = address[scheme.Length..slash];
        int at = servers.IndexOf('@', StringComparison.Ordinal);
        if (at < 0) return (servers, address[slash..], null);
        string password = Environment.GetEnvironmentVariable("PURSE_ZOOKEEPER_PASSWORD") ?? throw new IOException($"'{address}' names a user: put its password into the environment's PURSE_ZOOKEEPER_PASSWORD.");
        return (servers[(at + 1)..], address[slash..], new ZooKeeperCredentials(servers[..at], password));
    }

    static async Task<T> Within<T>(Task<T> task, string address)
    {
        try
        {
            return await task.WaitAsync(Patience);
        }
        catch (TimeoutException e)
        {
            throw new IOException($"No ZooKeeper server of {address} answers within {Patience.TotalSeconds} s. Are they running, and is the address right?", e);
        }
    }

    static ClusterSettings Read(byte[] data, string address)
    {
        try
        {
            ClusterSettings settings = JsonSerializer.Deserialize<ClusterSettings>(data, Json) ?? throw new JsonException("it is null");
            if (settings.Format != ClusterSettings.CurrentFormat) throw new MapException($"The cluster at {address} has format {settings.Format}; this version reads {ClusterSettings.CurrentFormat}. Use the version that made it.");
            return settings;
        }
        catch (JsonException e)
        {
            throw new MapException($"What {address} says of the cluster is not readable: {e.Message}", e);
        }
    }

    /// <summary>Reads the settings, and again whenever they change.</summary>
    async Task<int> FollowAsync()
    {
        (byte[] data, ZooKeeperStat stat) = await _zooKeeper.GetAsync(MapPath, _ => _watching = Task.Run(FollowAgainAsync), _stop.Token);
        // From here on its next change is told, whatever this one is.
        ClusterSettings settings = Read(data, Address);
        if (settings.Partitions.Length != PartitionsCount) throw new MapException($"The map of {Address} has {settings.Partitions.Length} partitions now, and had {PartitionsCount}: their number never changes. Put the old map back.");
        Settings = settings;
        return stat.Version;
    }

    async Task FollowAgainAsync()
    {
        while (!_stop.IsCancellationRequested)
        {
            try
            {
                await FollowAsync();
                Changed?.Invoke(this, EventArgs.Empty);
                return;
            }
            catch (MapException e)
            {
                _log($"The cluster's map cannot be followed: {e.Message}");
                return;
            }
            catch (Exception e) when (e is IOException or TimeoutException)
            {
                _log($"The cluster's map cannot be followed: {e.Message}");
                await Task.Delay(1000, _stop.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            }
            catch (OperationCanceledException)
            {
                return;
            }
        }
    }

    /// <summary>Changes the settings as they are now, whoever else changes them meanwhile.</summary>
    public async Task ChangeAsync(Func<ClusterSettings, ClusterSettings> change)
    {
        while (true)
        {
            (byte[] data, ZooKeeperStat stat) = await Within(_zooKeeper.GetAsync(MapPath), Address);
            ClusterSettings before = Read(data, Address), after = change(before);
            try
            {
                await Within(_zooKeeper.SetAsync(MapPath, JsonSerializer.SerializeToUtf8Bytes(after, Json), stat.Version), Address);
                Settings = after;
                return;
            }
            catch (ZooKeeperException e) when (e.Code is ZooKeeperCode.BadVersion or ZooKeeperCode.ConnectionLoss)
            {
                // Somebody else was first, or it may have been done: with what is there now, once more.
            }
        }
    }

    /// <summary>What must be in the journal of whoever takes the partition over. Where ZooKeeper cannot be asked, what this process knows.</summary>
    public JournalFloor? Floor(int partition)
    {
        try
        {
            FloorNode? told = ReadFloorAsync(partition).WaitAsync(FloorPatience).GetAwaiter().GetResult();
            _floors[partition] = told;
        }
        catch (Exception e) when (e is IOException or TimeoutException)
        {
            _log($"Partition {partition} is taken over without asking ZooKeeper what it must have: {(e is TimeoutException ? "no answer in time" : e.Message)}");
        }

        return _floors[partition] is { } floor ? ToFloor(partition, floor) : null;
    }

    /// <exception cref="InvalidDataException">Its hash is none.</exception>
    public JournalFloor ToFloor(int partition, FloorNode floor)
    {
        try
        {
            return new JournalFloor(floor.Number, floor.Sequence, Hash256.Parse(floor.Hash), $"{FloorsPath}/{partition} of {Address}");
        }
        catch (Exception e) when (e is FormatException or ArgumentException)
        {
            throw Unreadable(partition, e);
        }
    }

    InvalidDataException Unreadable(int partition, Exception e) => new($"{FloorsPath}/{partition} of {Address} is not what this program writes: {e.Message} Mend it, or accept that it is unknown with `delete` in ZooKeeper's own client.", e);

    /// <exception cref="InvalidDataException">Somebody else has written it: what must be in the journal is not known.</exception>
    FloorNode? ReadFloor(int partition, byte[] data)
    {
        try
        {
            return JsonSerializer.Deserialize<FloorNode>(data, Json);
        }
        catch (JsonException e)
        {
            throw Unreadable(partition, e);
        }
    }

    public async Task<FloorNode?> ReadFloorAsync(int partition)
    {
        try
        {
            await _zooKeeper.SyncAsync(MapPath);
            (byte[] data, _) = await _zooKeeper.GetAsync($"{FloorsPath}/{partition}");
            return ReadFloor(partition, data);
        }
        catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NoNode)
        {
            return null;
        }
    }

    /// <summary>At a take-over, which waits for ZooKeeper for a moment only.</summary>
    public void RaiseFloor(int partition, FloorNode floor)
    {
        try
        {
            RaiseFloorAsync(partition, floor).WaitAsync(FloorPatience).GetAwaiter().GetResult();
        }
        catch (Exception e) when (e is IOException or TimeoutException)
        {
            // It is told again within a second.
        }
    }

    /// <summary>Tells what is durable; never less than somebody else has told.</summary>
    public async Task RaiseFloorAsync(int partition, FloorNode floor)
    {
        if (_floors[partition] == floor) return;
        string path = $"{FloorsPath}/{partition}";
        byte[] data = JsonSerializer.SerializeToUtf8Bytes(floor, Json);
        while (true)
        {
            try
            {
                (byte[] before, ZooKeeperStat stat) = await _zooKeeper.GetAsync(path, null, _stop.Token);
                FloorNode? there = ReadFloor(partition, before);
                if (there is not null && (there.Number > floor.Number || there.Epoch > floor.Epoch)) return;
                await _zooKeeper.SetAsync(path, data, stat.Version, _stop.Token);
                break;
            }
            catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NoNode)
            {
                if (await TryCreateAsync(path, data)) break;
            }
            catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.BadVersion)
            {
                // Somebody else tells of the same partition.
            }
        }

        _floors[partition] = floor;
    }

    /// <summary>An operator says that what is known beyond this does not count any more.</summary>
    public async Task LowerFloorAsync(int partition, FloorNode floor) =>
        await Within(_zooKeeper.SetAsync($"{FloorsPath}/{partition}", JsonSerializer.SerializeToUtf8Bytes(floor, Json)), Address);

    async Task<bool> TryCreateAsync(string path, byte[] data)
    {
        try
        {
            await _zooKeeper.CreateAsync(path, data, NodeKind.Persistent, _stop.Token);
            return true;
        }
        catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NodeExists)
        {
            return false;
        }
    }

    /// <summary>Shows this process to the others, for as long as its session lives.</summary>
    public async Task TellWalletAsync(WalletNode wallet)
    {
        byte[] data = JsonSerializer.SerializeToUtf8Bytes(wallet, Json);
        try
        {
            if (Volatile.Read(ref _walletPath) is string path) await _zooKeeper.SetAsync(path, data, -1, _stop.Token);
            else Volatile.Write(ref _walletPath, await _zooKeeper.CreateAsync($"{WalletsPath}/wallet-", data, NodeKind.Ephemeral | NodeKind.Sequential, _stop.Token));
        }
        catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NoNode)
        {
            Volatile.Write(ref _walletPath, null);
        }
    }

    public async Task<List<WalletNode>> WalletsAsync()
    {
        List<WalletNode> wallets = [];
        foreach (string name in (await Within(_zooKeeper.ChildrenAsync(WalletsPath), Address)).Names.Order(StringComparer.Ordinal))
        {
            try
            {
                (byte[] data, _) = await _zooKeeper.GetAsync($"{WalletsPath}/{name}");
                if (JsonSerializer.Deserialize<WalletNode>(data, Json) is { } wallet) wallets.Add(wallet);
            }
            catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NoNode)
            {
                // It has just ended.
            }
        }

        return wallets;
    }

    public async ValueTask DisposeAsync()
    {
        await _stop.CancelAsync();
        await _zooKeeper.DisposeAsync();
        await _watching;
        _stop.Dispose();
    }
}
