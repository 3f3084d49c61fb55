using System.Collections.Concurrent;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using System.Text;
using Purse.Cluster.Local;
using Purse.Cluster.ZooKeeper;

namespace Purse.Integration;

/// <summary>The client against a real ensemble of three, whose servers are killed and paused.</summary>
public sealed class ZooKeeperTests : IAsyncLifetime
{
    static readonly TimeSpan Session = TimeSpan.FromSeconds(4);
    readonly TemporaryFolder _folder = new();
    readonly ConcurrentQueue<string> _log = new();
    readonly List<ZooKeeperClient> _clients = [];
    List<LocalZooKeeper> _servers = [];

    public async ValueTask InitializeAsync()
    {
        Assert.SkipUnless(LocalZooKeeper.IsInstalled, "ZooKeeper is not installed: ./test installs it when run as root.");
        _servers = await LocalZooKeeper.MakeEnsembleAsync(_folder.Path, 3);
    }

    string Servers => string.Join(',', _servers.Select(server => server.Address));

    ZooKeeperClient Connect(string chroot = "", string? servers = null)
    {
        ZooKeeperClient client = new((servers ?? Servers) + chroot, Session, _log.Enqueue);
        _clients.Add(client);
        return client;
    }

    static byte[] Bytes(string text) => Encoding.UTF8.GetBytes(text);

    static async Task<ZooKeeperCode> CodeOf(Task task) => (await Assert.ThrowsAsync<ZooKeeperException>(() => task)).Code;

    static async Task<T> SoonAsync<T>(Task<T> task) => await task.WaitAsync(TimeSpan.FromSeconds(30));

    static (Action<WatchEvent> Watch, Task<WatchEvent> Told) Watch()
    {
        TaskCompletionSource<WatchEvent> told = new(TaskCreationOptions.RunContinuationsAsynchronously);
        return (what => told.TrySetResult(what), told.Task);
    }

    [Fact]
    public async Task Nodes_versions_watches_several_steps_and_ephemeral_ones_are_as_documented()
    {
        await using (ZooKeeperClient root = new(Servers, Session, _log.Enqueue)) Assert.Equal("/purse", await root.CreateAsync("/purse", Bytes("")));
        ZooKeeperClient one = Connect("/purse"), other = Connect("/purse");

        Assert.Equal("/a", await one.CreateAsync("/a", Bytes("1")));
        Assert.Equal(ZooKeeperCode.NodeExists, await CodeOf(one.CreateAsync("/a", Bytes("2"))));
        Assert.Equal(ZooKeeperCode.NoNode, await CodeOf(one.GetAsync("/b")));
        (byte[] data, ZooKeeperStat stat) = await one.GetAsync("/a");
        Assert.Equal(("1", 0, 1), (Encoding.UTF8.GetString(data), stat.Version, stat.DataLength));
        Assert.Equal(1, (await one.SetAsync("/a", Bytes("2"), version: 0)).Version);
        Assert.Equal(ZooKeeperCode.BadVersion, await CodeOf(one.SetAsync("/a", Bytes("3"), version: 0)));
        Assert.Equal(ZooKeeperCode.BadVersion, await CodeOf(one.DeleteAsync("/a", version: 0)));

        // Sequential ones are in order, whoever makes them.
        string first = await one.CreateAsync("/a/n-", Bytes(""), NodeKind.Sequential), second = await other.CreateAsync("/a/n-", Bytes(""), NodeKind.Sequential);
        Assert.Equal(("/a/n-0000000000", "/a/n-0000000001"), (first, second));
        Assert.Equal(ZooKeeperCode.NotEmpty, await CodeOf(one.DeleteAsync("/a")));
        await one.SyncAsync("/a");
        Assert.Equal(["n-0000000000", "n-0000000001"], (await one.ChildrenAsync("/a")).Names.Order(StringComparer.Ordinal));

        // Watches are told once, of what another client does.
        (Action<WatchEvent> changed, Task<WatchEvent> wasChanged) = Watch();
        (Action<WatchEvent> grown, Task<WatchEvent> hasGrown) = Watch();
        (Action<WatchEvent> made, Task<WatchEvent> wasMade) = Watch();
        await other.GetAsync("/a", changed);
        await other.ChildrenAsync("/a", grown);
        Assert.Null(await other.ExistsAsync("/late", made));
        await one.SetAsync("/a", Bytes("4"));
        await one.CreateAsync("/a/x", Bytes(""));
        await one.CreateAsync("/late", Bytes(""));
        Assert.Equal((WatchEvent.DataChanged, WatchEvent.ChildrenChanged, WatchEvent.Created), (await SoonAsync(wasChanged), await SoonAsync(hasGrown), await SoonAsync(wasMade)));

        // All or none.
        Assert.Equal(ZooKeeperCode.BadVersion, await CodeOf(one.MultiAsync([new ZooKeeperStep.Create("/m", Bytes("")), new ZooKeeperStep.Check("/a", 99), new ZooKeeperStep.Delete("/late")])));
        Assert.Null(await one.ExistsAsync("/m"));
        await one.MultiAsync([new ZooKeeperStep.Create("/m", Bytes("5")), new ZooKeeperStep.Set("/a", Bytes("6"), 2), new ZooKeeperStep.Delete("/late")]);
        Assert.Equal("5", Encoding.UTF8.GetString((await one.GetAsync("/m")).Data));

        // Ephemeral ones go with their session.
        (Action<WatchEvent> gone, Task<WatchEvent> isGone) = Watch();
        ZooKeeperClient brief = new(Servers + "/purse", Session, _log.Enqueue);
        await brief.CreateAsync("/here", Bytes(""), NodeKind.Ephemeral);
        await one.SyncAsync("/here");
        Assert.Equal(brief.SessionId, (await one.ExistsAsync("/here", gone))!.EphemeralOwner);
        Assert.Equal(ZooKeeperCode.NoChildrenForEphemerals, await CodeOf(brief.CreateAsync("/here/x", Bytes(""))));
        await brief.DisposeAsync();
        Assert.Equal(WatchEvent.Deleted, await SoonAsync(isGone));
    }

    /// <summary>Excludes: a session, a watch or an ephemeral node lost with the server that a client happened to speak to.</summary>
    [Fact]
    public async Task A_session_lives_on_when_its_servers_are_killed_and_paused_one_by_one()
    {
        ZooKeeperClient one = Connect(), other = Connect();
        await one.CreateAsync("/here", Bytes(""), NodeKind.Ephemeral);
        await one.CreateAsync("/n", Bytes("0"));
        long session = one.SessionId;
        int changes = 0, number = 0;
        bool isLost = false;
        one.SessionLost += (_, _) => isLost = true;
        void Look() => _ = one.GetAsync("/n", what =>
        {
            Interlocked.Increment(ref changes);
            if (what != WatchEvent.SessionLost) Look();
        });
        Look();
        for (int server = 0; server < 3; server++)
        {
            bool isPaused = server == 1;
            if (isPaused) await _servers[server].PauseAsync();
            else await _servers[server].KillAsync();
            for (int i = 0; i < 3; i++) await SetUntilDoneAsync(other, $"{++number}");
            Assert.Equal($"{number}", Encoding.UTF8.GetString((await SoonAsync(one.SyncAsync("/n").ContinueWith(_ => one.GetAsync("/n"), TaskScheduler.Default).Unwrap())).Data));
            if (isPaused) await _servers[server].ContinueAsync();
            else _servers[server].Restart();
            await _servers[server].WaitAsync();
        }

        Assert.NotNull(await SoonAsync(other.ExistsAsync("/here")));
        Assert.Equal((session, false), (one.SessionId, isLost));
        Assert.InRange(changes, 1, 3 * number);
        // The watch is there still.
        int before = changes;
        await SetUntilDoneAsync(other, "last");
        for (Stopwatch watch = Stopwatch.StartNew(); Volatile.Read(ref changes) == before; await Task.Delay(20)) Assert.True(watch.Elapsed < TimeSpan.FromSeconds(20), "a watch was lost");
    }

    /// <summary>As a careful caller: where nobody knows, it looks.</summary>
    static async Task SetUntilDoneAsync(ZooKeeperClient client, string value)
    {
        while (true)
        {
            try
            {
                await client.SetAsync("/n", Bytes(value)).WaitAsync(TimeSpan.FromSeconds(30));
                return;
            }
            catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.ConnectionLoss)
            {
                await Task.Delay(20);
            }
        }
    }

    /// <summary>Excludes: a client that believes in a session that the servers have ended.</summary>
    [Fact]
    public async Task A_session_that_ends_is_followed_by_a_new_one_and_everybody_is_told()
    {
        await using Forwarder path = new(_servers[0].Port);
        ZooKeeperClient client = Connect(servers: $"127.0.0.1:{path.Port}"), other = Connect();
        TaskCompletionSource lost = new(TaskCreationOptions.RunContinuationsAsynchronously);
        client.SessionLost += (_, _) => lost.TrySetResult();
        await client.CreateAsync("/here", Bytes(""), NodeKind.Ephemeral);
        await client.CreateAsync("/n", Bytes(""));
        (Action<WatchEvent> watch, Task<WatchEvent> told) = Watch();
        (Action<WatchEvent> gone, Task<WatchEvent> isGone) = Watch();
        await client.GetAsync("/n", watch);
        await other.SyncAsync("/here");
        Assert.NotNull(await other.ExistsAsync("/here", gone));
        long session = client.SessionId;
        path.Cut();
        // What only reads waits; what would change something is not known to have been done.
        Task<ZooKeeperStat?> asked = client.ExistsAsync("/n");
        Assert.Equal(WatchEvent.Deleted, await SoonAsync(isGone));
        Assert.False(asked.IsCompleted || lost.Task.IsCompleted);
        path.Mend();
        Assert.NotNull(await SoonAsync(asked));
        await lost.Task.WaitAsync(TimeSpan.FromSeconds(30));
        Assert.Equal(WatchEvent.SessionLost, await SoonAsync(told));
        Assert.NotEqual(session, client.SessionId);
        await client.CreateAsync("/here", Bytes(""), NodeKind.Ephemeral);
    }

    /// <summary>Excludes: nodes that anybody who reaches the ensemble may change.</summary>
    [Fact]
    public async Task An_ensemble_that_asks_who_it_is_is_told()
    {
        ZooKeeperCredentials credentials = new("purse", "s e\"cr,e\\t");
        await Task.WhenAll(_servers.Select(server => server.DisposeAsync().AsTask()));
        _servers = await LocalZooKeeper.MakeEnsembleAsync(Path.Combine(_folder.Path, "closed"), 1, credentials with { Password = credentials.Password.Replace("\\", "\\\\", StringComparison.Ordinal).Replace("\"", "\\\"", StringComparison.Ordinal) });
        ZooKeeperClient client = new(Servers, Session, _log.Enqueue, credentials);
        _clients.Add(client);
        await SoonAsync(client.CreateAsync("/mine", Bytes("1")));
        Assert.Equal("1", Encoding.UTF8.GetString((await client.GetAsync("/mine")).Data));

        // Neither without nor with another password is anything to be had.
        ZooKeeperClient nobody = Connect(), other = new(Servers, Session, _log.Enqueue, credentials with { Password = "guessed" });
        _clients.Add(other);
        Assert.IsNotType<TimeoutException>(await Record.ExceptionAsync(() => nobody.SetAsync("/mine", Bytes("2")).WaitAsync(TimeSpan.FromSeconds(20))));
        await Assert.ThrowsAsync<TimeoutException>(() => other.GetAsync("/mine").WaitAsync(TimeSpan.FromSeconds(3)));
        Assert.Contains(_log, line => line.Contains("sign in as purse", StringComparison.Ordinal) || line.Contains("AuthFailed", StringComparison.Ordinal));
        Assert.Equal("1", Encoding.UTF8.GetString((await client.GetAsync("/mine")).Data));
    }

    /// <summary>A network path that can be cut: what is on it stays where it is, and nobody is told.</summary>
    sealed class Forwarder : IAsyncDisposable
    {
        readonly TcpListener _listener = new(IPAddress.Loopback, 0);
        readonly int _target;
        readonly ConcurrentBag<TcpClient> _ends = [];
        volatile bool _isCut;

        public Forwarder(int target)
        {
            _target = target;
            _listener.Start();
            _ = AcceptAsync();
        }

        public int Port => ((IPEndPoint)_listener.LocalEndpoint).Port;

        public void Cut() => _isCut = true;

        public void Mend()
        {
            _isCut = false;
            foreach (TcpClient end in _ends) end.Dispose();
        }

        async Task AcceptAsync()
        {
            try
            {
                while (true)
                {
                    TcpClient near = await _listener.AcceptTcpClientAsync(), far = new();
                    _ends.Add(near);
                    _ends.Add(far);
                    await far.ConnectAsync(IPAddress.Loopback, _target);
                    _ = CopyAsync(near, far);
                    _ = CopyAsync(far, near);
                }
            }
            catch (Exception e) when (e is SocketException or ObjectDisposedException)
            {
                // The test is over.
            }
        }

        async Task CopyAsync(TcpClient from, TcpClient to)
        {
            byte[] buffer = new byte[16 * 1024];
            try
            {
                while (await from.GetStream().ReadAsync(buffer) is > 0 and int read)
                {
                    while (_isCut) await Task.Delay(20);
                    await to.GetStream().WriteAsync(buffer.AsMemory(0, read));
                }
            }
            catch (Exception e) when (e is IOException or ObjectDisposedException or InvalidOperationException)
            {
                // One end is closed: so is the other.
            }

            from.Dispose();
            to.Dispose();
        }

        public ValueTask DisposeAsync()
        {
            _listener.Dispose();
            foreach (TcpClient end in _ends) end.Dispose();
            return ValueTask.CompletedTask;
        }
    }

    public async ValueTask DisposeAsync()
    {
        foreach (ZooKeeperClient client in _clients) await client.DisposeAsync();
        foreach (LocalZooKeeper server in _servers) await server.DisposeAsync();
        _folder.Dispose();
    }
}
