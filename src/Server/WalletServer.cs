using System.Net;
using System.Net.Sockets;
using Grpc.AspNetCore.Server.Model;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Connections;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.AspNetCore.Routing;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Logging;
using Orleans;
using Orleans.Dashboard;
using Purse.Cluster;
using Purse.Cluster.Nodes;
using Purse.Journal;
using Purse.Partitions;
using Purse.Views;
using BadHttpRequestException = Microsoft.AspNetCore.Http.BadHttpRequestException;

namespace Purse.Server;

public sealed record WalletServerOptions
{
    /// <summary>Where an embedded server keeps everything; null for one of a cluster.</summary>
    public string? DataFolder { get; init; }

    /// <summary>The cluster it belongs to, as <c>zk://host:port,host:port/path</c>.</summary>
    public string? Cluster { get; init; }

    /// <summary>Of a node of a cluster; an embedded server is all there is.</summary>
    public NodeRole Role { get; init; }

    /// <summary>Such as <c>http://127.0.0.1:7070</c>; port 0 takes a free one.</summary>
    public required string Listen { get; init; }

    /// <summary>For a new data folder; 1 where it is not given.</summary>
    public int? PartitionsCount { get; init; }

    /// <summary>Where the other nodes of a cluster reach this one; port 0 takes free ones.</summary>
    public IPEndPoint NodeAddress { get; init; } = new(IPAddress.Loopback, 0);

    public JournalOptions Journal { get; init; } = new();

    public PartitionOptions Partition { get; init; } = new();

    public Action<string> Log { get; init; } = static _ => { };

    /// <summary>Of a node of a cluster that was taken for dead, and does not come to its end by itself.</summary>
    public Action EndProcess { get; init; } = static () => { };

    /// <summary>For tests, and for who measures without them.</summary>
    internal bool HasViews { get; init; } = true;

    /// <summary>For tests: a disk that fails on command, in place of a partition's own.</summary>
    internal Func<int, IDisk>? Disk { get; init; }

    /// <summary>For tests, which run many servers in one process.</summary>
    internal string MeterName { get; init; } = "Purse.Server";
}

/// <summary>What the operator asked for cannot be done; the message says why and what to do.</summary>
public sealed class StartException(string message, Exception? inner = null) : Exception(message, inner);

/// <summary>The one deployable: data folder, partition and HTTP.</summary>
public sealed class WalletServer : IAsyncDisposable
{
    readonly WebApplication _app;
    readonly DataFolder? _folder;
    readonly ClusterStores? _cluster;
    readonly PartitionLinks? _links;
    readonly PartitionDirectory _directory;
    bool _disposed;

    WalletServer(WebApplication app, DataFolder? folder, ClusterStores? cluster, PartitionLinks? links, PartitionDirectory directory, ViewHost views)
    {
        _app = app;
        _folder = folder;
        _cluster = cluster;
        _links = links;
        _directory = directory;
        Views = views;
    }

    /// <summary>What it feeds or looks at.</summary>
    internal ViewHost Views { get; }

    /// <summary>Where it listens, with the port it got.</summary>
    public Uri Address { get; private set; } = null!;

    /// <summary>Those of this process.</summary>
    public IReadOnlyList<Partition> Partitions => _directory.Hosted;

    /// <summary>Recovers the data folder, or joins the cluster, then listens.</summary>
    /// <exception cref="StartException">Something the operator must mend.</exception>
    public static async Task<WalletServer> StartAsync(WalletServerOptions options)
    {
        Uri listen = CheckListen(options.Listen);
        try
        {
            return options.Cluster is null ? await StartEmbeddedAsync(listen, options) : await StartNodeAsync(listen, options);
        }
        catch (Exception e)
        {
            throw e switch
            {
                StartException => e,
                JournalDamagedException or Ledger.InvariantBrokenException or InvalidDataException => new StartException($"The journal in {options.Cluster ?? options.DataFolder} cannot be served. {e.Message}", e),
                DiskFullException => new StartException($"storage_full: {e.Message} Make room, then start again.", e),
                IOException when e.Message.Contains("address already in use", StringComparison.Ordinal) =>
                    new StartException($"{options.Listen} is in use by another program. Stop it, or name another address with --listen.", e),
                IOException or SocketException or ArgumentException or Orleans.Runtime.OrleansException => new StartException(e.Message, e),
                _ => e,
            };
        }
    }

    /// <summary>All there is, in one process.</summary>
    static async Task<WalletServer> StartEmbeddedAsync(Uri listen, WalletServerOptions options)
    {
        DataFolder folder = DataFolder.OpenForWriting(options.DataFolder!, $"process {Environment.ProcessId}, which serves {options.Listen} since {DateTimeOffset.UtcNow:yyyy-MM-dd HH:mm:ss}Z", options.PartitionsCount);
        List<Partition> partitions = [];
        ViewHost? views = null;
        try
        {
            int count = folder.PartitionsCount;
            for (int number = 0; number < count; number++)
                partitions.Add(Partition.Start(new FileStore(options.Disk?.Invoke(number) ?? folder.Disk(number), number, options.Journal), count, options.Partition, TimeProvider.System, options.Log));
            foreach (Partition partition in partitions) partition.Connect(partitions);
            PartitionDirectory directory = new(partitions);
            CurrencyEndpoints currencies = new(directory);
            await currencies.SpreadAsync(options.Log);
            views = new ViewHost(count, view => new ViewFeeder(view, count, () => partitions, options.Log));
            if (options.HasViews) await views.ServeAsync(folder.ViewPath);
            WalletServer server = new(Build(listen, directory, currencies, views, null, options), folder, null, null, directory, views);
            await server.ListenAsync();
            return server;
        }
        catch
        {
            if (views is not null) await views.DisposeAsync();
            foreach (Partition partition in partitions) await partition.DisposeAsync();
            folder.Dispose();
            throw;
        }
    }

    /// <summary>One node of many: which partitions it has, and when, Orleans says.</summary>
    /// <summary>
    /// What reads a journal in PostgreSQL blocks its thread for as long as that takes. The pool adds two threads a second beyond its least number, which is that of the
    /// processors; while a few such wait, all else would stand still, the answer to a node that asks whether this one lives included.
    /// </summary>
    const int NodeThreadsMin = 32;

    static async Task<WalletServer> StartNodeAsync(Uri listen, WalletServerOptions options)
    {
        ThreadPool.GetMinThreads(out int workers, out int completions);
        ThreadPool.SetMinThreads(Math.Max(workers, NodeThreadsMin), completions);
        ClusterStores cluster = new(await ClusterMap.OpenAsync(options.Cluster!, options.Log), options.Log);
        ViewHost? views = null;
        PartitionLinks? links = null;
        try
        {
            int count = cluster.Map.PartitionsCount;
            WebApplication? app = null;
            PartitionDirectory? directory = null;
            // A store that is down keeps no other partition from being served.
            PartitionOptions partitionOptions = options.Partition with { IsPatient = true };
            PartitionHost? host = options.Role.HasPartitions()
                ? new PartitionHost(
                    count, number => Partition.Start(cluster.Stores[number], count, partitionOptions, TimeProvider.System, options.Log), cluster.Reaches, (partition, question, timeout) => directory!.AnswerAsync(partition, question, timeout), options.Log)
                : null;
            links = new PartitionLinks(() => app!.Services.GetRequiredService<IGrainFactory>(), count);
            host?.Connect(links.Send);
            if (host is not null) cluster.Watch();
            directory = new PartitionDirectory(count, links, host);
            CurrencyEndpoints currencies = new(directory);
            views = new ViewHost(count, host is null ? view => new ViewWatcher(view, count, options.Log) : view => new ViewFeeder(view, count, () => host.Partitions, options.Log));
            await ServeViewsAsync(views, cluster, options.Log);
            app = Build(listen, directory, currencies, views, (cluster.Map, host), options);
            WalletServer server = new(app, null, cluster, links, directory, views);
            await server.ListenAsync();
            if (host is not null) server._spreading = server.SpreadAsync(currencies, options.Log);
            cluster.Tell(() => directory.Hosted, () => new WalletNode(
                server.Address.GetLeftPart(UriPartial.Authority), Environment.ProcessId, $"{options.Role}".ToLowerInvariant(),
                new SortedDictionary<string, double?>(views.Sources.ToDictionary(source => source.View.Name, source => source.Lag?.TotalSeconds))));
            return server;
        }
        catch
        {
            if (views is not null) await views.DisposeAsync();
            if (links is not null) await links.DisposeAsync();
            await cluster.DisposeAsync();
            throw;
        }
    }

    async Task ListenAsync()
    {
        try
        {
            await _app.StartAsync();
        }
        catch
        {
            await _app.DisposeAsync();
            throw;
        }

        Address = new Uri(_app.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses.First());
    }

    static async Task ServeViewsAsync(ViewHost views, ClusterStores cluster, Action<string> log)
    {
        await FollowAsync();
        cluster.Map.Changed += (_, _) => _ = FollowAsync();

        async Task FollowAsync()
        {
            ClusterSettings settings = cluster.Map.Settings;
            try
            {
                await views.ServeAsync(settings.Id, settings.View, settings.Redis);
            }
            catch (Exception e)
            {
                log($"The views cannot be changed: {e.Message}");
            }
        }
    }

    Task _spreading = Task.CompletedTask;

    /// <summary>Every partition learns the currencies when it serves.</summary>
    async Task SpreadAsync(CurrencyEndpoints currencies, Action<string> log)
    {
        try
        {
            while (!await currencies.SpreadAsync(log)) await Task.Delay(2000, _app.Lifetime.ApplicationStopping);
        }
        catch (OperationCanceledException)
        {
            // The next start goes on.
        }
        catch (StartException e)
        {
            log(e.Message);
        }
    }

    /// <summary>Ends when the process is told to stop (SIGTERM, Ctrl-C).</summary>
    public async Task WaitForStopAsync() => await _app.WaitForShutdownAsync();

    static Uri CheckListen(string listen)
    {
        if (!Uri.TryCreate(listen, UriKind.Absolute, out Uri? uri) || uri.Scheme != Uri.UriSchemeHttp || uri.PathAndQuery != "/")
            throw new StartException($"Cannot listen on '{listen}'. Give an address such as http://127.0.0.1:7070.");
        bool isLoopback = uri.Host == "localhost" || (IPAddress.TryParse(uri.Host.Trim('[', ']'), out IPAddress? address) && IPAddress.IsLoopback(address));
        return isLoopback
            ? uri
            : throw new StartException(
                $"Refusing to listen on {listen}: without authentication every caller may move all money, so only loopback addresses are allowed. Use http://127.0.0.1:{uri.Port}, behind a proxy that authenticates.");
    }

    /// <param name="node">Of a cluster, and the partitions that it may have.</param>
    static WebApplication Build(Uri listen, PartitionDirectory directory, CurrencyEndpoints currencies, ViewHost views, (ClusterMap Map, PartitionHost? Host)? node, WalletServerOptions options)
    {
        Leaving leaving = new();
        Http2Preface http2 = new();
        WebApplicationBuilder builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.WebHost.UseKestrelCore();
        builder.WebHost.ConfigureKestrel(kestrel =>
        {
            kestrel.AddServerHeader = false;
            // What is larger than a request may be is still read to its end and thrown away, so that its sender hears why; beyond this the
            // connection is cut.
            kestrel.Limits.MaxRequestBodySize = 8 * Body.SizeBytesMaxOfMany;
            kestrel.Limits.Http2.InitialStreamWindowSize = kestrel.Limits.Http2.InitialConnectionWindowSize = Http2WindowBytes;
            kestrel.Limits.Http2.MaxFrameSize = Http2FrameBytesMax;
            if (listen.Host == "localhost") kestrel.ListenLocalhost(listen.Port, Http1);
            else kestrel.Listen(IPAddress.Parse(listen.Host.Trim('[', ']')), listen.Port, Http1);
            kestrel.Listen(http2.EndPoint, static options => options.Protocols = HttpProtocols.Http2);
        });
        void Http1(ListenOptions options)
        {
            options.Protocols = HttpProtocols.Http1;
            http2.Use(options);
        }

        builder.Services.AddSingleton<IConnectionListenerFactory>(http2);
        builder.Services.AddGrpc(grpc => grpc.MaxReceiveMessageSize = Body.SizeBytesMaxOfMany);
        builder.Services.AddSingleton<IServiceMethodProvider<GrpcEndpoints>, GrpcEndpoints.PackedStreamProvider>();
        builder.Services.AddRoutingCore();
        builder.Services.AddSingleton<IHostLifetime>(services => new SignalLifetime(services.GetRequiredService<IHostApplicationLifetime>(), leaving, node is null ? TimeSpan.Zero : LeaveDelay));
        builder.Services.Configure<HostOptions>(host => host.ShutdownTimeout = TimeSpan.FromSeconds(30));
        builder.Logging.SetMinimumLevel(LogLevel.None);
        if (node is not null) builder.Logging.AddProvider(new OrleansLog(options.Log)).AddFilter<OrleansLog>("Orleans.Runtime.MembershipService", LogLevel.Warning);
        Metrics.Add(builder, directory, views, options.MeterName);
        if (node is var (map, host))
        {
            if (host is not null) Node.AddSilo(builder, map, options.NodeAddress, host, static silo => silo.AddDashboard(), options.EndProcess, options.Log);
            else if (options.Role == NodeRole.Front) Node.AddClient(builder, map);
        }

        TransferEndpoints transfers = new(directory);
        ViewReads reads = new(views, directory.Count);
        AccountEndpoints accounts = new(directory, reads, options.Role, TimeProvider.System);
        builder.Services.AddSingleton(services => new GrpcEndpoints(directory, transfers, accounts, IsDurable(options.DataFolder), options.Log, services.GetRequiredService<IHostApplicationLifetime>().ApplicationStopping));
        WebApplication app = builder.Build();
        CancellationToken stopping = app.Lifetime.ApplicationStopping;
        app.Use(next => http =>
        {
            if (leaving.IsTrue) http.Response.Headers.Connection = "close";
            return next(http);
        });
        app.Use(next =>
        {
            // What other nodes send on comes in here.
            directory.Endpoints = http =>
            {
                http.RequestServices = app.Services;
                return AnswerAsync(http, next, options.Log);
            };
            return http => GuardAsync(http, next, options.Log);
        });
        app.UseRouting();
        if (options.Role == NodeRole.Query) app.Use(next => http => http.GetEndpoint()?.Metadata.GetMetadata<NeedsPartitions>() is null ? next(http) : throw NodeRoles.ViewsOnly());
        if (options.Role == NodeRole.Write) app.Use(next => http => !IsForCallers(http.Request.Path) || PartitionDirectory.IsSentOn(http) ? next(http) : throw NodeRoles.NoCallers());
        if (node is not null)
        {
            app.Use(next => http =>
            {
                if (directory.IsElsewhere(http)) http.Features.Set(new PartitionDirectory.Kept());
                return next(http);
            });
        }

        RouteGroupBuilder partitions = app.MapGroup("").WithMetadata(new NeedsPartitions());
        transfers.Map(partitions);
        partitions.MapGrpcService<GrpcEndpoints>().Add(GrpcEndpoints.PackedStreamProvider.First);
        accounts.Map(partitions, app);
        new SearchEndpoints(reads).Map(app);
        currencies.Map(partitions);
        new EventEndpoints(directory, stopping).Map(partitions);
        new InDoubtEndpoints(directory, TimeProvider.System).Map(partitions);
        OpenApi.Map(app);
        Metrics.Map(app);
        if (node?.Host is not null) app.MapOrleansDashboard("/dashboard");
        app.MapGet("/healthz", http => Answer.WriteAsync(http, 200, json => json.WriteString("status", "alive")));
        app.MapGet("/readyz", http => ReadyAsync(http, directory, options.Role == NodeRole.Query ? views : null, leaving.IsTrue || stopping.IsCancellationRequested));
        return app;
    }

    // Batches of a stream are large and many; the defaults are for pages.
    const int Http2WindowBytes = 8 * 1024 * 1024, Http2FrameBytesMax = 1024 * 1024;

    static bool IsForCallers(PathString path) => path.StartsWithSegments("/v1", StringComparison.Ordinal) || path.StartsWithSegments("/purse.v1.Wallet", StringComparison.Ordinal);

    /// <summary>A folder in memory forgets with the machine, whatever is flushed. PostgreSQL's writers look at its settings themselves, and refuse to write without.</summary>
    public static bool IsDurable(string? dataFolder) => dataFolder is null || new DriveInfo(Path.GetFullPath(dataFolder)).DriveFormat is not ("tmpfs" or "ramfs");

    /// <param name="views">Where they are all that it has.</param>
    static Task ReadyAsync(HttpContext http, PartitionDirectory directory, ViewHost? views, bool isStopping)
    {
        if (isStopping) throw Problem.From(RequestStatus.ShuttingDown, default);
        if (views?.Sources.FirstOrDefault(source => source.Fault is not null || source.Lag is null) is ViewSource source)
            throw new Problem("view_unavailable", $"The view {source.View.Name} is not ready: {source.Fault ?? "it is being filled"}.");
        if (directory.Hosted.Any(partition => partition.Fault is not null)) throw Problem.From(RequestStatus.Unavailable, default);
        if (!directory.Hosted.All(partition => partition.IsReady)) throw Problem.From(Ledger.Outcome.StorageFull, "");
        return Answer.WriteAsync(http, 200, json => json.WriteString("status", "ready"));
    }

    /// <summary>Around every request: its id, who may call, and every problem as problem+json.</summary>
    static Task GuardAsync(HttpContext http, RequestDelegate next, Action<string> log) => AnswerAsync(
        http,
        inner =>
        {
            // A web page that a name server points at this machine must not reach it with the caller's rights.
            if (!IsLoopbackName(http.Request.Host.Host))
                throw new Problem("misdirected_request", $"The request names the host '{Query.Shorten(http.Request.Host.Host)}'; without authentication only loopback names are served.");
            if (http.Request.Headers.Origin is { Count: > 0 } origin && !IsLoopbackOrigin(origin.ToString()))
                throw new Problem("forbidden", $"A page of '{Query.Shorten(origin.ToString())}' asked; without authentication only pages of this machine may.");
            return next(inner);
        },
        log);

    /// <summary>Every problem as problem+json, with the request's id.</summary>
    static async Task AnswerAsync(HttpContext http, RequestDelegate next, Action<string> log)
    {
        http.Response.Headers["X-Request-Id"] = RequestId(http);
        try
        {
            await next(http);
            // An answer says how long it is; where there is none, nobody was there.
            if (http.Response is { ContentLength: null, HasStarted: false, StatusCode: 404 }) throw new Problem("route_not_found", $"There is nothing at {Query.Shorten(http.Request.Path)}; README.md lists what there is.");
            if (http.Response is { ContentLength: null, HasStarted: false, StatusCode: 405 }) throw new Problem("method_not_allowed", $"{http.Request.Path} does not take {http.Request.Method}.");
        }
        catch (Exception e) when (!http.Response.HasStarted)
        {
            if (http.RequestAborted.IsCancellationRequested) return;
            Problem problem = e as Problem ?? FromFault(e, http, log);
            PartitionDirectory.Note(http, problem);
            await Answer.WriteAsync(http, problem);
        }
        catch (Exception e) when (e is OperationCanceledException or IOException && http.RequestAborted.IsCancellationRequested)
        {
            // The caller went away in the middle of an answer.
        }
    }

    static Problem FromFault(Exception e, HttpContext http, Action<string> log)
    {
        switch (e)
        {
            case BadHttpRequestException { StatusCode: 413 }:
                return new Problem("request_too_large", "The body is too large.");
            case BadHttpRequestException bad:
                return new Problem("malformed_request", bad.Message);
            case JournalDamagedException or ObjectDisposedException:
                log($"{http.Request.Method} {http.Request.Path}: {e.Message}");
                return Problem.From(RequestStatus.UnavailableUnknown, default);
            default:
                log($"{http.Request.Method} {http.Request.Path} failed: {e}");
                return new Problem("internal_error", "The server failed; its log says more under this request's time. Ask by id what became of a transfer.", "unknown");
        }
    }

    static string RequestId(HttpContext http)
    {
        string? given = http.Request.Headers["X-Request-Id"];
        bool isUsable = given is { Length: > 0 and <= 128 } && !given.AsSpan().ContainsAnyExceptInRange('!', '~');
        return isUsable ? given! : http.TraceIdentifier;
    }

    static bool IsLoopbackOrigin(string origin) => Uri.TryCreate(origin, UriKind.Absolute, out Uri? uri) && IsLoopbackName(uri.Host);

    static bool IsLoopbackName(string host) =>
        host is "localhost" or "127.0.0.1" or "[::1]" || host.EndsWith(".localhost", StringComparison.Ordinal) || (IPAddress.TryParse(host, out IPAddress? address) && IPAddress.IsLoopback(address));

    /// <summary>Answers what is in flight, then leaves snapshots; a node hands its partitions to the others.</summary>
    public async ValueTask DisposeAsync()
    {
        if (_disposed) return;
        _disposed = true;
        await _app.StopAsync();
        await _spreading;
        await Views.DisposeAsync();
        if (_cluster is null)
        {
            await EndCommitsAsync();
            await Task.WhenAll(Partitions.Select(partition => partition.DisposeAsync().AsTask()));
        }

        await _app.DisposeAsync();
        _folder?.Dispose();
        if (_links is not null) await _links.DisposeAsync();
        if (_cluster is not null) await _cluster.DisposeAsync();
    }

    /// <summary>What is under way between partitions ends while they all still serve; what cannot is taken up again at the next start.</summary>
    async Task EndCommitsAsync()
    {
        for (long deadline = Environment.TickCount64 + CommitPatienceMilliseconds; Environment.TickCount64 < deadline; await Task.Delay(10))
        {
            ReadRequest<int>[] reads = [.. Partitions.Select(_ => new ReadRequest<int>((PartitionCore core) => core.UndecidedCount))];
            RequestStatus[] statuses = await Task.WhenAll(Partitions.Select((partition, number) => partition.SubmitAsync(reads[number], TimeSpan.FromMilliseconds(CommitPatienceMilliseconds)).AsTask()));
            if (Enumerable.Range(0, reads.Length).All(number => statuses[number] != RequestStatus.Answered || reads[number].Result == 0)) return;
        }
    }

    const int CommitPatienceMilliseconds = 2000;

    /// <summary>A node of a cluster says so for as long, and serves, before it takes no more: a load balancer that looks at <c>/readyz</c> each second sends nobody into a closed door.</summary>
    static readonly TimeSpan LeaveDelay = TimeSpan.FromSeconds(2);

    sealed class Leaving
    {
        public volatile bool IsTrue;
    }

    /// <summary>SIGTERM and Ctrl-C stop the host; nothing is written to the console, which belongs to the CLI.</summary>
    sealed class SignalLifetime(IHostApplicationLifetime lifetime, Leaving leaving, TimeSpan delay) : IHostLifetime, IDisposable
    {
        readonly List<System.Runtime.InteropServices.PosixSignalRegistration> _signals = [];

        public Task WaitForStartAsync(CancellationToken cancellationToken)
        {
            foreach (System.Runtime.InteropServices.PosixSignal signal in new[] { System.Runtime.InteropServices.PosixSignal.SIGTERM, System.Runtime.InteropServices.PosixSignal.SIGINT })
            {
                _signals.Add(System.Runtime.InteropServices.PosixSignalRegistration.Create(signal, context =>
                {
                    context.Cancel = true;
                    leaving.IsTrue = true;
                    if (delay == TimeSpan.Zero) lifetime.StopApplication();
                    else _ = Task.Delay(delay).ContinueWith(_ => lifetime.StopApplication(), TaskScheduler.Default);
                }));
            }

            return Task.CompletedTask;
        }

        public Task StopAsync(CancellationToken cancellationToken) => Task.CompletedTask;

        public void Dispose() => _signals.ForEach(signal => signal.Dispose());
    }
}
