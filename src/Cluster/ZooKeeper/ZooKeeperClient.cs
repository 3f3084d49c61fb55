using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;

namespace Purse.Cluster.ZooKeeper;

/// <summary>
/// A client of ZooKeeper's own protocol (3.4 and later): one session over one connection at a time, which moves to another server when it breaks.
/// Requests are answered in the order in which they were asked.
/// </summary>
/// <remarks>
/// A request that was on its way when the connection broke fails with <see cref="ZooKeeperCode.ConnectionLoss"/>, since nobody knows whether it was done; one
/// that only reads is asked again. A session that ended on the servers is followed by a new one: its ephemeral nodes are gone, every watch is told so, and
/// <see cref="SessionLost"/> is raised once the new one is there.
/// </remarks>
public sealed class ZooKeeperClient : IAsyncDisposable
{
    const int FrameBytesMax = 16 * 1024 * 1024;
    const int WatchXid = -1, PingXid = -2, SetWatchesXid = -8;

    // ZooDefs.OpCode.
    const int Create = 1, Delete = 2, Exists = 3, GetData = 4, SetData = 5, Sync = 9, Ping = 11, GetChildren = 12, Check = 13, Multi = 14, SetWatches = 101, Sasl = 102, Close = -11;

    readonly (string Host, int Port)[] _servers;
    readonly string _chroot;
    readonly TimeSpan _sessionTimeout;
    readonly Action<string> _log;
    readonly ZooKeeperCredentials? _credentials;
    readonly CancellationTokenSource _stop = new();
    readonly Lock _lock = new();
    readonly Queue<Asked> _waiting = new();
    readonly Dictionary<(string Path, WatchKind Kind), List<Action<WatchEvent>>> _watches = [];
    readonly ConcurrentQueue<(Action<WatchEvent> Watch, WatchEvent Event)> _told = new();
    readonly Task _running;
    TaskCompletionSource<Connection> _connected = new(TaskCreationOptions.RunContinuationsAsynchronously);
    long _sessionId;
    byte[] _password = new byte[16];
    long _lastTransaction;
    int _xid;
    TimeSpan _negotiatedTimeout;

    enum WatchKind
    {
        Data,
        Exists,
        Children,
    }

    delegate T Reading<out T>(ref JuteReader reader);

    /// <summary>A request that waits for its answer.</summary>
    /// <param name="OnAnswer">Called before any later frame is looked at: a watch is there before it can be told.</param>
    sealed record Asked(int Xid, TaskCompletionSource<(ZooKeeperCode Code, byte[] Frame)> Answer, Action<ZooKeeperCode>? OnAnswer);

    sealed class Connection(Socket socket) : IDisposable
    {
        public NetworkStream Stream { get; } = new(socket, ownsSocket: true);

        /// <summary>Never disposed: whoever waits for it when the connection ends would wait for ever.</summary>
        public SemaphoreSlim Writing { get; } = new(1, 1);

        public void Dispose() => Stream.Dispose();
    }

    /// <param name="servers"><c>host:port,host:port/path</c>: everything is below the path, which must be there.</param>
    /// <param name="credentials">Of an ensemble that asks for them; what is created is then this user's only.</param>
    public ZooKeeperClient(string servers, TimeSpan sessionTimeout, Action<string> log, ZooKeeperCredentials? credentials = null)
    {
        _credentials = credentials;
        int slash = servers.IndexOf('/', StringComparison.Ordinal);
        _chroot = slash < 0 ? "" : servers[slash..].TrimEnd('/');
        _servers = [.. (slash < 0 ? servers : servers[..slash]).Split(',').Select(ParseServer)];
        // Not all clients begin with the same one.
        Random.Shared.Shuffle(_servers);
        _sessionTimeout = sessionTimeout;
        _log = log;
        _running = Task.Run(RunAsync);
    }

    static (string Host, int Port) ParseServer(string server)
    {
        int colon = server.LastIndexOf(':');
        return colon > 0 && int.TryParse(server.AsSpan(colon + 1), out int port) && port is > 0 and < 65536
            ? (server[..colon].Trim('[', ']'), port)
            : throw new ArgumentException($"'{server}' is no address of a ZooKeeper server. They look like zk1:2181,zk2:2181,zk3:2181/purse.", nameof(server));
    }

    /// <summary>0 before the first one.</summary>
    public long SessionId => Volatile.Read(ref _sessionId);

    public bool IsConnected => _connected.Task.IsCompletedSuccessfully;

    /// <summary>The servers ended the session, and there is a new one: what was ephemeral has to be made again.</summary>
    public event EventHandler? SessionLost;

    /// <summary>The path as it was made, with its number where it is sequential.</summary>
    public Task<string> CreateAsync(string path, ReadOnlyMemory<byte> data, NodeKind kind = NodeKind.Persistent, CancellationToken cancellation = default)
    {
        JuteWriter request = new();
        WriteCreate(ref request, path, data, kind);
        return AskAsync(Create, request, $"create {path}", Unrooted, isRead: false, cancellation);
    }

    public Task DeleteAsync(string path, int version = -1, CancellationToken cancellation = default)
    {
        JuteWriter request = new();
        request.Write(Rooted(path));
        request.Write(version);
        return AskAsync(Delete, request, $"delete {path}", Nothing, isRead: false, cancellation);
    }

    /// <summary>Null where there is none. The watch is told when it is created, changed or deleted.</summary>
    public async Task<ZooKeeperStat?> ExistsAsync(string path, Action<WatchEvent>? watch = null, CancellationToken cancellation = default)
    {
        try
        {
            return await AskAsync(Exists, PathAndWatch(path, watch), $"exists {path}", Stat, isRead: true, cancellation, Adding(path, WatchKind.Data, watch, isExists: true));
        }
        catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NoNode)
        {
            return null;
        }
    }

    /// <summary>The watch is told when it is changed or deleted.</summary>
    public Task<(byte[] Data, ZooKeeperStat Stat)> GetAsync(string path, Action<WatchEvent>? watch = null, CancellationToken cancellation = default) =>
        AskAsync(GetData, PathAndWatch(path, watch), $"get {path}", static (ref JuteReader reader) => (reader.ReadBuffer(), reader.ReadStat()), isRead: true, cancellation, Adding(path, WatchKind.Data, watch));

    /// <param name="version">Only where it has this one; -1 for any.</param>
    public Task<ZooKeeperStat> SetAsync(string path, ReadOnlyMemory<byte> data, int version = -1, CancellationToken cancellation = default)
    {
        JuteWriter request = new();
        request.Write(Rooted(path));
        request.Write(data.Span);
        request.Write(version);
        return AskAsync(SetData, request, $"set {path}", Stat, isRead: false, cancellation);
    }

    /// <summary>Names without their parent's, in no order. The watch is told when one comes or goes.</summary>
    public Task<(List<string> Names, ZooKeeperStat Stat)> ChildrenAsync(string path, Action<WatchEvent>? watch = null, CancellationToken cancellation = default) =>
        AskAsync(GetChildren, PathAndWatch(path, watch), $"children of {path}", static (ref JuteReader reader) => (reader.ReadStrings(), reader.ReadStat()), isRead: true, cancellation, Adding(path, WatchKind.Children, watch));

    /// <summary>What is read after this is no older than what any client was told before.</summary>
    public Task SyncAsync(string path, CancellationToken cancellation = default)
    {
        JuteWriter request = new();
        request.Write(Rooted(path));
        return AskAsync(Sync, request, $"sync {path}", Nothing, isRead: true, cancellation);
    }

    /// <summary>All or none.</summary>
    /// <exception cref="ZooKeeperException">None was done; the code of the first that could not be.</exception>
    public Task MultiAsync(IReadOnlyList<ZooKeeperStep> steps, CancellationToken cancellation = default)
    {
        JuteWriter request = new();
        foreach (ZooKeeperStep step in steps)
        {
            request.Write(step switch { ZooKeeperStep.Create => Create, ZooKeeperStep.Delete => Delete, ZooKeeperStep.Set => SetData, _ => Check });
            request.Write(false);
            request.Write(-1);
            if (step is ZooKeeperStep.Create create)
            {
                WriteCreate(ref request, create.Path, create.Data, create.Kind);
                continue;
            }

            request.Write(Rooted(step.Path));
            if (step is ZooKeeperStep.Set set) request.Write(set.Data.Span);
            request.Write(step switch { ZooKeeperStep.Delete delete => delete.Version, ZooKeeperStep.Set s => s.Version, ZooKeeperStep.Check check => check.Version, _ => -1 });
        }

        request.Write(-1);
        request.Write(true);
        request.Write(-1);
        return AskAsync(Multi, request, $"{steps.Count} steps, the first of {steps[0].Path}", ReadMulti, isRead: false, cancellation);
    }

    static bool Nothing(ref JuteReader reader) => true;

    static ZooKeeperStat Stat(ref JuteReader reader) => reader.ReadStat();

    string Unrooted(ref JuteReader reader) => Unrooted(reader.ReadString());

    internal static bool ReadMulti(ref JuteReader reader)
    {
        while (true)
        {
            (int type, bool isEnd, int _) = (reader.ReadInt32(), reader.ReadBoolean(), reader.ReadInt32());
            if (isEnd) return true;
            switch (type)
            {
                case -1:
                    // Those before the one that failed say that they are fine, those after it that they were not tried (-2).
                    ZooKeeperCode code = (ZooKeeperCode)reader.ReadInt32();
                    if (code != ZooKeeperCode.Ok && (int)code != -2) throw new ZooKeeperException(code, "of several steps, one");
                    break;
                case Create:
                    _ = reader.ReadString();
                    break;
                case SetData:
                    _ = reader.ReadStat();
                    break;
            }
        }
    }

    void WriteCreate(ref JuteWriter request, string path, ReadOnlyMemory<byte> data, NodeKind kind)
    {
        request.Write(Rooted(path));
        request.Write(data.Span);
        // Without credentials open to all who reach the ensemble, else to those who have the same.
        request.Write(1);
        request.Write(31);
        request.Write(_credentials is null ? "world" : "auth");
        request.Write(_credentials is null ? "anyone" : "");
        request.Write((int)kind);
    }

    JuteWriter PathAndWatch(string path, Action<WatchEvent>? watch)
    {
        JuteWriter request = new();
        request.Write(Rooted(path));
        request.Write(watch is not null);
        return request;
    }

    string Rooted(string path) => path.StartsWith('/') ? path == "/" && _chroot.Length > 0 ? _chroot : _chroot + path : throw new ArgumentException($"'{path}' is no path: they begin with a slash.", nameof(path));

    string Unrooted(string path) => path.Length == _chroot.Length ? "/" : path[_chroot.Length..];

    /// <summary>Where there is no node, only who asked whether there is one is told when there is.</summary>
    Action<ZooKeeperCode>? Adding(string path, WatchKind kind, Action<WatchEvent>? watch, bool isExists = false) => watch is null ? null : code =>
    {
        if (code != ZooKeeperCode.Ok && !(isExists && code == ZooKeeperCode.NoNode)) return;
        lock (_lock)
        {
            (string, WatchKind) key = (path, code == ZooKeeperCode.NoNode ? WatchKind.Exists : kind);
            if (!_watches.TryGetValue(key, out List<Action<WatchEvent>>? all)) _watches[key] = all = [];
            all.Add(watch);
        }
    };

    async Task<T> AskAsync<T>(int type, JuteWriter body, string what, Reading<T> read, bool isRead, CancellationToken cancellation, Action<ZooKeeperCode>? onAnswer = null)
    {
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(cancellation, _stop.Token);
        while (true)
        {
            Connection connection = await _connected.Task.WaitAsync(either.Token);
            Asked? asked = await SendAsync(connection, type, body.Written, onAnswer);
            // Whoever reads the connection has yet to notice that it is over.
            if (asked is null) await Task.Delay(10, either.Token);
            (ZooKeeperCode code, byte[] frame) = asked is null ? (ZooKeeperCode.ConnectionLoss, []) : await asked.Answer.Task.WaitAsync(either.Token);
            if (code == ZooKeeperCode.ConnectionLoss && (isRead || asked is null)) continue;
            if (code != ZooKeeperCode.Ok && !(type == Multi && frame.Length > ReplyHeaderBytes)) throw new ZooKeeperException(code, what);
            return Parse(frame, what, read);
        }
    }

    const int ReplyHeaderBytes = 16;

    static T Parse<T>(byte[] frame, string what, Reading<T> read)
    {
        try
        {
            JuteReader reader = new(frame);
            _ = reader.ReadReply();
            return read(ref reader);
        }
        catch (InvalidDataException)
        {
            throw new ZooKeeperException(ZooKeeperCode.MarshallingError, what);
        }
    }

    /// <summary>Null where nothing was sent.</summary>
    async Task<Asked?> SendAsync(Connection connection, int type, ReadOnlyMemory<byte> body, Action<ZooKeeperCode>? onAnswer = null)
    {
        await connection.Writing.WaitAsync(_stop.Token);
        Asked asked;
        try
        {
            lock (_lock)
            {
                if (!_connected.Task.IsCompletedSuccessfully || _connected.Task.Result != connection) return null;
                asked = new Asked(type switch { Ping => PingXid, SetWatches => SetWatchesXid, _ => _xid = _xid == int.MaxValue ? 1 : _xid + 1 }, new(TaskCreationOptions.RunContinuationsAsynchronously), onAnswer);
                // Answers come in the order of requests; pings and watches beside them.
                if (asked.Xid > 0) _waiting.Enqueue(asked);
            }

            byte[] frame = new byte[12 + body.Length];
            BinaryPrimitives.WriteInt32BigEndian(frame, 8 + body.Length);
            BinaryPrimitives.WriteInt32BigEndian(frame.AsSpan(4), asked.Xid);
            BinaryPrimitives.WriteInt32BigEndian(frame.AsSpan(8), type);
            body.CopyTo(frame.AsMemory(12));
            await connection.Stream.WriteAsync(frame, _stop.Token);
        }
        catch (Exception e) when (e is IOException or ObjectDisposedException or SocketException)
        {
            // Whoever reads the connection sees it too, and fails all that waits.
            connection.Stream.Close();
            return null;
        }
        finally
        {
            connection.Writing.Release();
        }

        return asked;
    }

    async Task RunAsync()
    {
        for (int server = 0; !_stop.IsCancellationRequested; server++)
        {
            (string host, int port) = _servers[server % _servers.Length];
            try
            {
                // Quick enough to try every server before the session ends.
                using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(_stop.Token);
                limit.CancelAfter(_sessionTimeout / Math.Max(3, _servers.Length));
                using Connection connection = await ConnectAsync(host, port, limit.Token);
                bool isNew = await HandshakeAsync(connection, limit.Token);
                if (_credentials is not null) await AuthenticateAsync(connection, _credentials, limit.Token);
                await ServeAsync(connection, isNew);
            }
            catch (Exception e)
            {
                // Whatever it was, another server is tried: nobody else would.
                if (_stop.IsCancellationRequested) return;
                if (server % _servers.Length == 0) _log($"ZooKeeper at {host}:{port}: {(e is OperationCanceledException ? "no answer in time" : e.Message)}");
            }

            if (!_stop.IsCancellationRequested) await Task.Delay(Random.Shared.Next(10, 100));
        }
    }

    static async Task<Connection> ConnectAsync(string host, int port, CancellationToken cancellation)
    {
        Socket socket = new(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        try
        {
            await socket.ConnectAsync(new DnsEndPoint(host, port), cancellation);
            return new Connection(socket);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    /// <returns>Whether the session before is over, and this is another one.</returns>
    async Task<bool> HandshakeAsync(Connection connection, CancellationToken cancellation)
    {
        JuteWriter request = new();
        request.Write(0);
        request.Write(_lastTransaction);
        request.Write((int)_sessionTimeout.TotalMilliseconds);
        request.Write(_sessionId);
        request.Write(_password.AsSpan());
        request.Write(false);
        byte[] length = new byte[4];
        BinaryPrimitives.WriteInt32BigEndian(length, request.Written.Length);
        await connection.Stream.WriteAsync(length, cancellation);
        await connection.Stream.WriteAsync(request.Written, cancellation);
        byte[] frame = await ReadFrameAsync(connection, cancellation);
        (int timeout, long session, byte[] password) = new JuteReader(frame).ReadConnected();
        if (timeout <= 0)
        {
            // Over: asked for a new one at once.
            _log($"ZooKeeper ended session 0x{_sessionId:x}; a new one begins.");
            (_sessionId, _password) = (0, new byte[16]);
            _isLost = true;
            throw new IOException("the session has expired");
        }

        bool isNew = _isLost;
        _isLost = false;
        (_sessionId, _password, _negotiatedTimeout) = (session, password, TimeSpan.FromMilliseconds(timeout));
        return isNew;
    }

    bool _isLost;

    /// <summary>Each side proves that it knows the password. Nothing else is on the connection yet.</summary>
    static async Task AuthenticateAsync(Connection connection, ZooKeeperCredentials credentials, CancellationToken cancellation)
    {
        byte[] challenge = await ExchangeAsync([]);
        (byte[] response, string expected) = DigestMd5.Respond(challenge, credentials, Convert.ToHexStringLower(System.Security.Cryptography.RandomNumberGenerator.GetBytes(16)));
        byte[] proof = await ExchangeAsync(response);
        if (System.Text.Encoding.UTF8.GetString(proof) != expected) throw new InvalidDataException("the server does not know the password");

        async Task<byte[]> ExchangeAsync(byte[] token)
        {
            JuteWriter request = new();
            request.Write(12 + token.Length);
            request.Write(0);
            request.Write(Sasl);
            request.Write(token.AsSpan());
            await connection.Stream.WriteAsync(request.Written, cancellation);
            byte[] frame = await ReadFrameAsync(connection, cancellation);
            JuteReader reader = new(frame);
            ZooKeeperReply reply = reader.ReadReply();
            return reply.Code == ZooKeeperCode.Ok ? reader.ReadBuffer() : throw new ZooKeeperException(reply.Code, $"sign in as {credentials.User}");
        }
    }

    async Task ServeAsync(Connection connection, bool isNewSession)
    {
        using CancellationTokenSource silence = CancellationTokenSource.CreateLinkedTokenSource(_stop.Token);
        TaskCompletionSource<Connection> connected;
        lock (_lock) connected = _connected;
        if (isNewSession) LoseWatches();
        connected.SetResult(connection);
        Task pinging = PingAsync(connection, silence.Token);
        try
        {
            if (isNewSession) TellLater(_ => SessionLost?.Invoke(this, EventArgs.Empty), WatchEvent.SessionLost);
            else await RestoreWatchesAsync(connection);
            while (true)
            {
                // A server that says nothing for two thirds of the session's time, though it is pinged, is not there.
                silence.CancelAfter(_negotiatedTimeout * 2 / 3);
                byte[] frame = await ReadFrameAsync(connection, silence.Token);
                Take(frame);
            }
        }
        finally
        {
            Disconnect();
            await silence.CancelAsync();
            connection.Stream.Close();
            await pinging;
        }
    }

    void Disconnect()
    {
        Asked[] lost;
        lock (_lock)
        {
            _connected = new(TaskCreationOptions.RunContinuationsAsynchronously);
            lost = [.. _waiting];
            _waiting.Clear();
        }

        foreach (Asked one in lost) one.Answer.TrySetResult((ZooKeeperCode.ConnectionLoss, []));
    }

    async Task PingAsync(Connection connection, CancellationToken cancellation)
    {
        try
        {
            while (!cancellation.IsCancellationRequested)
            {
                await Task.Delay(_negotiatedTimeout / 4, cancellation);
                await SendAsync(connection, Ping, ReadOnlyMemory<byte>.Empty);
            }
        }
        catch (OperationCanceledException)
        {
            // The connection is over.
        }
    }

    static async Task<byte[]> ReadFrameAsync(Connection connection, CancellationToken cancellation)
    {
        byte[] length = new byte[4];
        await connection.Stream.ReadExactlyAsync(length, cancellation);
        int size = BinaryPrimitives.ReadInt32BigEndian(length);
        if (size is < 0 or > FrameBytesMax) throw new InvalidDataException($"a frame of {size} bytes: this is no ZooKeeper server");
        byte[] frame = new byte[size];
        await connection.Stream.ReadExactlyAsync(frame, cancellation);
        return frame;
    }

    void Take(byte[] frame)
    {
        JuteReader reader = new(frame);
        ZooKeeperReply reply = reader.ReadReply();
        if (reply.Transaction > 0) _lastTransaction = reply.Transaction;
        if (reply.Xid is PingXid or SetWatchesXid) return;
        if (reply.Xid == WatchXid)
        {
            (WatchEvent what, string path) = reader.ReadWatchEvent();
            if (path.StartsWith(_chroot, StringComparison.Ordinal)) Tell(what, Unrooted(path));
            return;
        }

        Asked asked;
        lock (_lock)
        {
            if (!_waiting.TryDequeue(out asked!) || asked.Xid != reply.Xid) throw new InvalidDataException($"an answer to request {reply.Xid}, which was not the next");
        }

        asked.OnAnswer?.Invoke(reply.Code);
        asked.Answer.TrySetResult((reply.Code, frame));
    }

    void Tell(WatchEvent what, string path)
    {
        WatchKind[] kinds = what switch
        {
            WatchEvent.ChildrenChanged => [WatchKind.Children],
            WatchEvent.Deleted => [WatchKind.Data, WatchKind.Exists, WatchKind.Children],
            _ => [WatchKind.Data, WatchKind.Exists],
        };
        foreach (WatchKind kind in kinds)
        {
            List<Action<WatchEvent>>? watches;
            lock (_lock) _watches.Remove((path, kind), out watches);
            foreach (Action<WatchEvent> watch in watches ?? []) TellLater(watch, what);
        }
    }

    void LoseWatches()
    {
        List<Action<WatchEvent>> all;
        lock (_lock)
        {
            all = [.. _watches.Values.SelectMany(watches => watches)];
            _watches.Clear();
        }

        foreach (Action<WatchEvent> watch in all) TellLater(watch, WatchEvent.SessionLost);
    }

    /// <summary>In order, but never on the thread that reads: whoever is told may ask.</summary>
    void TellLater(Action<WatchEvent> watch, WatchEvent what)
    {
        _told.Enqueue((watch, what));
        ThreadPool.QueueUserWorkItem(static client =>
        {
            lock (client._told)
            {
                if (client._told.TryDequeue(out (Action<WatchEvent> Watch, WatchEvent Event) one)) one.Watch(one.Event);
            }
        }, this, preferLocal: false);
    }

    /// <summary>The server tells at once of what has changed since.</summary>
    async Task RestoreWatchesAsync(Connection connection)
    {
        JuteWriter request = new();
        lock (_lock)
        {
            if (_watches.Count == 0) return;
            request.Write(_lastTransaction);
            foreach (WatchKind kind in (ReadOnlySpan<WatchKind>)[WatchKind.Data, WatchKind.Exists, WatchKind.Children]) request.Write([.. _watches.Keys.Where(key => key.Kind == kind).Select(key => Rooted(key.Path))]);
        }

        await SendAsync(connection, SetWatches, request.Written);
    }

    /// <summary>Ends the session: ephemeral nodes are gone at once.</summary>
    public async ValueTask DisposeAsync()
    {
        TaskCompletionSource<Connection> connected = _connected;
        if (connected.Task.IsCompletedSuccessfully && await SendAsync(connected.Task.Result, Close, ReadOnlyMemory<byte>.Empty) is Asked asked)
            await Task.WhenAny(asked.Answer.Task, Task.Delay(1000));
        await _stop.CancelAsync();
        await _running;
        _stop.Dispose();
    }
}
