using System.CommandLine;
using System.Diagnostics;
using System.Text.Encodings.Web;
using System.Text.Json;
using Purse.Client;
using Purse.Cluster.Local;
using Purse.Journal;
using Purse.Load;
using Purse.Partitions;
using Purse.Server;
using Spectre.Console;

namespace Purse.Cli;

/// <summary>The load command: durable transfers a second, through the network by default, as they are in production.</summary>
static partial class BenchCommand
{
    /// <param name="Transfers">Null for as many as suit the mode; so are batch and clients.</param>
    sealed record Asked(string Mode, long? Transfers, int? Batch, int? Clients, int Connections, int Partitions, string Journal, int Stores, Uri? Server, ulong SnapshotEvery, bool AsJson, LoadShape Shape)
    {
        public Task<ServerProcess> StartServerAsync(string folder) => ServerProcess.StartAsync(folder, Partitions, "--snapshot-every", $"{SnapshotEvery}");
    }


    public static Command Create()
    {
        Option<string> mode = new("--mode")
        {
            Description = "grpc: by the client, over the network. http: in JSON, by bare connections. engine: in process. cluster: starts one, of --partitions, at least 12. views: how far they are behind.",
            DefaultValueFactory = _ => "grpc",
        };
        mode.AcceptOnlyFromAmong("engine", "grpc", "http", "views", "cluster");
        Option<long?> transfers = new("--transfers") { Description = "How many. 10 million in batches, 200 000 one by one." };
        Option<int> accounts = new("--accounts") { Description = "How many accounts.", DefaultValueFactory = _ => 10_000 };
        Option<int?> batch = new("--batch") { Description = "Transfers a request. 8 000 by grpc, 4 096 in process, 1 by http." };
        Option<int?> clients = new("--clients") { Description = "Callers at once, each of which waits for its answer. 4; 64 by http." };
        Option<int> connections = new("--connections") { Description = "By grpc: over how many connections they are spread.", DefaultValueFactory = _ => 1 };
        Option<int> hot = HotOption();
        Option<int> hold = new("--hold") { Description = "Of a hundred transfers, how many only set the money aside.", DefaultValueFactory = _ => 0 };
        Option<bool> zipf = new("--zipf") { Description = "Accounts pay as often as Zipf's law says, in place of all alike." };
        Option<string> ids = new("--ids") { Description = "random, or ordered as time is.", DefaultValueFactory = _ => "random" };
        ids.AcceptOnlyFromAmong("random", "ordered");
        Option<int> partitions = new("--partitions") { Description = "Over how many journals the accounts are spread.", DefaultValueFactory = _ => 1 };
        Option<int> cross = new("--cross") { Description = "Of a hundred transfers, how many go to another partition.", DefaultValueFactory = _ => 0 };
        Option<string> journal = new("--journal") { Description = "file; or in process postgres, which starts PostgreSQL servers of its own.", DefaultValueFactory = _ => "file" };
        journal.AcceptOnlyFromAmong("file", "postgres");
        Option<int> stores = new("--stores") { Description = "Over how many PostgreSQL servers the partitions are spread.", DefaultValueFactory = _ => 1 };
        Option<string?> server = new("--server") { Description = "A server that runs already, by grpc or http; it opens accounts of its own there. Without it, it starts one." };
        Option<ulong> snapshotEvery = ServeCommand.SnapshotOption();
        Option<bool> json = Terminal.JsonOption();
        Command command = new("bench", "Measure durable transfers a second.") { mode, transfers, accounts, batch, clients, connections, hot, hold, zipf, ids, partitions, cross, journal, stores, server, snapshotEvery, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(() => RunAsync(new Asked(
            parsed.GetValue(mode)!, parsed.GetValue(transfers), parsed.GetValue(batch), parsed.GetValue(clients), parsed.GetValue(connections), parsed.GetValue(partitions), parsed.GetValue(journal)!, parsed.GetValue(stores), ToUri(parsed.GetValue(server)), parsed.GetValue(snapshotEvery), parsed.GetValue(json),
            new LoadShape
            {
                Accounts = parsed.GetValue(accounts),
                HotPercent = parsed.GetValue(hot),
                HoldPercent = parsed.GetValue(hold),
                CrossPercent = parsed.GetValue(cross),
                HasOrderedIds = parsed.GetValue(ids) == "ordered",
                IsZipf = parsed.GetValue(zipf),
            }))));
        command.Subcommands.Add(CreateCompare());
        command.Subcommands.Add(CreateHistory());
        return command;
    }

    static Uri? ToUri(string? server) => server is null ? null
        : Uri.TryCreate(server, UriKind.Absolute, out Uri? uri) && uri.Scheme == Uri.UriSchemeHttp ? uri : throw new StartException($"--server is '{server}'; give an address such as http://127.0.0.1:7070.");

    static Option<int> HotOption() => new("--hot") { Description = "Of a hundred transfers, how many one account pays.", DefaultValueFactory = _ => 0 };

    public static Command CreateEcho()
    {
        Command command = new("bench-echo", "The echo that `bench compare` compares with.") { Hidden = true };
        command.SetAction((_, _) => Terminal.RunAsync(async () =>
        {
            await EchoServer.RunAsync(address => Console.WriteLine($"{ServeCommand.ReadyPrefix}{address.GetLeftPart(UriPartial.Authority)} (echo)"));
            return Exit.Done;
        }));
        return command;
    }

    static void Check(Asked asked)
    {
        if (asked.Transfers < 1 || asked.Batch < 1 || asked.Clients < 1 || asked.Connections < 1) throw new StartException("--transfers, --batch, --clients and --connections must be at least 1.");
        if (asked.Partitions < 1 || asked.Partitions > DataFolder.PartitionsMax) throw new StartException($"--partitions is {asked.Partitions}; it must be 1 to {DataFolder.PartitionsMax}.");
        if (asked.Stores < 1 || asked.Stores > asked.Partitions) throw new StartException($"--stores is {asked.Stores}; it must be 1 to --partitions.");
        Check(asked.Shape);
        if (asked.Shape.CrossPercent > 0 && asked is { Partitions: 1, Server: null }) throw new StartException($"--cross is {asked.Shape.CrossPercent}; it needs --partitions of 2 or more.");
        if (asked.Journal == "postgres" && asked.Mode != "engine") throw new StartException("--journal postgres is for --mode engine; a server over PostgreSQL is a cluster: --mode cluster, or --server with the address of one.");
        if (asked.Server is not null && asked.Mode is not ("grpc" or "http")) throw new StartException("--server is for --mode grpc and http.");
        if (asked.Mode == "http" && asked.Shape is not { HoldPercent: 0, CrossPercent: 0, HasOrderedIds: false }) throw new StartException("--hold, --cross and --ids are for --mode grpc and engine.");
    }

    static void Check(LoadShape shape)
    {
        foreach ((string name, int percent) in new[] { ("--hot", shape.HotPercent), ("--hold", shape.HoldPercent), ("--cross", shape.CrossPercent) })
        {
            if (percent is < 0 or > 100) throw new StartException($"{name} is {percent}; it must be 0 to 100.");
        }

        if (shape.Accounts < 2) throw new StartException($"--accounts is {shape.Accounts}; it must be at least 2.");
    }

    static async Task<int> RunAsync(Asked asked)
    {
        Check(asked);
        // Beside the data of a real server rather than in a temporary folder, which may be memory.
        string folder = Path.GetFullPath($"purse-bench-{Environment.ProcessId}");
        try
        {
            switch (asked.Mode)
            {
                case "views":
                {
                    (long transfers, int batch, int clients) = (asked.Transfers ?? 5_000_000, asked.Batch ?? 4_096, asked.Clients ?? 4);
                    await using Stores stores = await Stores.MakeAsync(Path.Combine(folder, "engine"), 0, asked.Partitions);
                    await using EngineLoad load = await EngineLoad.StartAsync(stores.All, asked.Shape, batch, clients);
                    List<ViewMeasured> views = await ViewsAsync(Path.Combine(folder, "views"), load, transfers, batch, clients);
                    if (asked.AsJson) Console.WriteLine(JsonSerializer.Serialize(views, Terminal.Indented));
                    else Print(views);
                    return Exit.Done;
                }

                case "cluster":
                {
                    List<Measured> results = [];
                    await ClusterAsync(folder, Math.Max(asked.Partitions, 12), Math.Min(asked.Transfers ?? 20_000, 20_000), results);
                    if (asked.AsJson) Console.WriteLine(JsonSerializer.Serialize(results, Terminal.Indented));
                    else Print(results);
                    return results.Exists(r => r.Refused > 0) ? Exit.Failed : Exit.Done;
                }

                default:
                    Measured measured = asked.Mode switch
                    {
                        "engine" => await EngineAsync(folder, asked),
                        "http" => await HttpAsync(folder, asked),
                        _ => await GrpcAsync(folder, asked),
                    };
                    if (asked.AsJson) Console.WriteLine(ToJson(asked, measured));
                    else Print(asked, measured);
                    if (measured.Refused > 0) Terminal.Error($"{measured.Refused} transfers were not done.");
                    if (measured.IsBalanced == false) Terminal.Error("The balances are not what the answers said.");
                    return measured.Refused > 0 || measured.IsBalanced == false ? Exit.Failed : Exit.Done;
            }
        }
        finally
        {
            if (Directory.Exists(folder)) Directory.Delete(folder, recursive: true);
        }
    }

    static async Task<Measured> EngineAsync(string folder, Asked asked)
    {
        (long transfers, int batch, int clients) = (asked.Transfers ?? 10_000_000, asked.Batch ?? 4_096, asked.Clients ?? 4);
        await using Stores stores = await Stores.MakeAsync(folder, asked.Journal == "postgres" ? asked.Stores : 0, asked.Partitions);
        await using EngineLoad load = await EngineLoad.StartAsync(stores.All, asked.Shape, batch, clients);
        await load.RunAsync("", Math.Max(transfers / 20, 1), batch, clients, static _ => { });
        LoadProgress progress = new();
        (long bytes, long flushes, TimeSpan cpu) = (Sum(partition => partition.JournalBytes), Sum(partition => partition.FlushesCount), Environment.CpuUsage.TotalTime);
        Measured measured = await Terminal.LiveAsync(transfers, progress, () => Task.FromResult(Sum(partition => partition.JournalBytes) - bytes), () => load.RunAsync("engine", transfers, batch, clients, static _ => { }, progress));
        return measured with
        {
            IsDurable = WalletServer.IsDurable(folder),
            JournalBytesPerTransfer = (double)(Sum(partition => partition.JournalBytes) - bytes) / measured.Transfers,
            Flushes = Sum(partition => partition.FlushesCount) - flushes,
            ServerRssBytes = Environment.WorkingSet,
            ServerCpuSeconds = (Environment.CpuUsage.TotalTime - cpu).TotalSeconds,
            IsBalanced = await load.IsBalancedAsync(),
        };

        long Sum(Func<Partition, long> what) => load.Partitions.Sum(what);
    }

    static async Task<Measured> GrpcAsync(string folder, Asked asked)
    {
        (int batch, int clients) = (asked.Batch ?? 8_000, asked.Clients ?? 4);
        if (batch > 10_000) throw new StartException($"--batch is {batch}; it must be 1 to 10000.");
        long transfers = asked.Transfers ?? (batch == 1 ? 200_000 : 10_000_000);
        using ServerProcess? own = asked.Server is null ? await asked.StartServerAsync(folder) : null;
        await using GrpcLoad load = await GrpcLoad.StartAsync(asked.Server ?? own!.Address, asked.Connections, clients, batch, PurseProtocol.Grpc, asked.Shape);
        await load.RunAsync("", Math.Max(transfers / 20, 1), batch, clients, new LoadProgress());
        return await MeasureAsync(transfers, own, load.DescribeAsync, (progress) => load.RunAsync("grpc", transfers, batch, clients, progress), load.IsBalancedAsync);
    }

    static async Task<Measured> HttpAsync(string folder, Asked asked)
    {
        (int batch, int connections) = (asked.Batch ?? 1, asked.Clients ?? 64);
        long transfers = asked.Transfers ?? (batch == 1 ? 200_000 : 2_000_000);
        using ServerProcess? own = asked.Server is null ? await asked.StartServerAsync(folder) : null;
        Uri server = asked.Server ?? own!.Address;
        await using PurseClient client = new(server);
        string[] accounts = [.. Enumerable.Range(0, asked.Shape.Accounts).Select(i => $"h{DateTimeOffset.UtcNow:yyyyMMddHHmmss}-{i}")];
        foreach (string[] some in accounts.Chunk(10_000))
        {
            await client.OpenAccountsAsync(some);
            await client.TransfersAsync(some.Select(account => new Transfer("@world", account, 1_000_000_000m, "USD")).ToArray());
        }

        Func<Random, (string, string)> choose = random =>
        {
            int from = asked.Shape.Draw(random), to = (from + 1 + random.Next(accounts.Length - 1)) % accounts.Length;
            return (accounts[from], accounts[to]);
        };
        await HttpLoad.RunAsync("", [server], Math.Max(transfers / 10, 1), choose, batch, connections, static _ => { });
        return await MeasureAsync(
            transfers, own, () => client.DescribeAsync(), async progress => await HttpLoad.RunAsync("http", [server], transfers, choose, batch, connections, static _ => { }, progress) with { Accounts = accounts.Length }, async () =>
        {
            Int128 sum = 0;
            foreach (string[] some in accounts.Chunk(10_000)) sum += (await client.GetPostedAsync(some, "USD")).Aggregate(Int128.Zero, (all, one) => all + one.Digits);
            return sum == (Int128)accounts.Length * 1_000_000_000_00;
        });
    }

    /// <param name="own">Null where it is somebody else's, at which no more can be looked than what it says.</param>
    static async Task<Measured> MeasureAsync(long transfers, ServerProcess? own, Func<Task<ServerDescription>> describe, Func<LoadProgress, Task<Measured>> run, Func<Task<bool>> isBalanced)
    {
        LoadProgress progress = new();
        ServerDescription before = await describe();
        using Process? process = own is null ? null : Process.GetProcessById(own.Id);
        TimeSpan cpu = process?.TotalProcessorTime ?? default;
        Measured measured = await Terminal.LiveAsync(transfers, progress, async () => (long)((await describe()).JournalBytes - before.JournalBytes), () => run(progress));
        process?.Refresh();
        ServerDescription after = await describe();
        return measured with
        {
            IsDurable = after.IsDurable,
            JournalBytesPerTransfer = (double)(after.JournalBytes - before.JournalBytes) / measured.Transfers,
            Flushes = (long)(after.Flushes - before.Flushes),
            ServerRssBytes = process?.WorkingSet64,
            ServerCpuSeconds = process is null ? null : (process.TotalProcessorTime - cpu).TotalSeconds,
            IsBalanced = await isBalanced(),
        };
    }

    /// <summary>Where the partitions keep their journals: folders, or databases of servers that were started for them.</summary>
    sealed class Stores : IAsyncDisposable
    {
        readonly List<LocalPostgreSql> _servers = [];
        readonly List<PostgreSqlDatabase> _databases = [];

        public List<IJournalStore> All { get; } = [];

        public IEnumerable<string> ConnectionStrings => _servers.Select(server => server.ConnectionString);

        public static async Task<Stores> MakeAsync(string folder, int serversCount, int partitions)
        {
            Stores stores = new();
            for (int i = 0; i < serversCount; i++)
            {
                LocalPostgreSql server = await LocalPostgreSql.MakeAsync(Path.Combine(folder, $"postgres-{i}"), ["max_wal_size = 8GB", "shared_buffers = 512MB"]);
                stores._servers.Add(server);
                stores._databases.Add(new PostgreSqlDatabase(new PostgreSqlOptions { ConnectionString = server.ConnectionString }));
            }

            Directory.CreateDirectory(folder);
            for (int number = 0; number < partitions; number++)
                stores.All.Add(serversCount == 0 ? new FileStore(new FileDisk(Path.Combine(folder, $"{number}")), number, new JournalOptions()) : new PostgreSqlStore(stores._databases[number % serversCount], number));
            return stores;
        }

        public async ValueTask DisposeAsync()
        {
            foreach (PostgreSqlDatabase database in _databases) database.Dispose();
            foreach (LocalPostgreSql server in _servers) await server.DisposeAsync();
        }
    }

    static string ToJson(Asked asked, Measured measured) => JsonSerializer.Serialize(
        new
        {
            mode = asked.Mode,
            measured.Transfers,
            measured.Accounts,
            measured.Batch,
            measured.Clients,
            hot_percent = asked.Shape.HotPercent,
            hold_percent = asked.Shape.HoldPercent,
            zipf = asked.Shape.IsZipf,
            ids = asked.Shape.HasOrderedIds ? "ordered" : "random",
            asked.Partitions,
            cross_percent = asked.Shape.CrossPercent,
            asked.Journal,
            durable = measured.IsDurable,
            transfers_per_second = measured.TransfersPerSecond,
            latency_ms = new { p50 = measured.LatencyMillisecondsP50, p99 = measured.LatencyMillisecondsP99, p999 = measured.LatencyMillisecondsP999, max = measured.LatencyMillisecondsMax },
            journal_bytes_per_transfer = measured.JournalBytesPerTransfer,
            measured.Flushes,
            server_rss_bytes = measured.ServerRssBytes,
            server_cpu_seconds = measured.ServerCpuSeconds,
            client_cpu_seconds = measured.ClientCpuSeconds,
            measured.Refused,
            balanced = measured.IsBalanced,
        },
        new JsonSerializerOptions { WriteIndented = true, PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping });

    static void Print(Asked asked, Measured measured)
    {
        Table table = new Table().Border(TableBorder.Rounded).AddColumn(asked.Mode).AddColumn(new TableColumn($"{measured.Transfers:N0} transfers").RightAligned());
        void Row(string name, string value) => table.AddRow(name, value);
        Row("transfers a second", $"[bold]{measured.TransfersPerSecond:N0}[/]");
        Row("latency of a request, p50 / p99", $"{measured.LatencyMillisecondsP50:0.00} / {measured.LatencyMillisecondsP99:0.00} ms");
        Row("p99.9 / longest", $"{measured.LatencyMillisecondsP999:0.00} / {measured.LatencyMillisecondsMax:0.00} ms");
        Row("journal", $"{measured.JournalBytesPerTransfer:0} B a transfer, {measured.Flushes:N0} flushes");
        Row(asked.Mode == "engine" ? "CPU, callers included" : "CPU of the server / of the callers", asked.Mode == "engine" ? $"{Micros(measured.ServerCpuSeconds)} µs a transfer" : $"{Micros(measured.ServerCpuSeconds)} / {Micros(measured.ClientCpuSeconds)} µs a transfer");
        if (measured.ServerRssBytes is long rss) Row("memory", $"{rss / 1e6:N0} MB");
        Row("balances", measured.IsBalanced == true ? "[green]what the answers said[/]" : "[red]not what the answers said[/]");
        Terminal.Out.Write(table);
        LoadShape shape = asked.Shape;
        string pays = shape.IsZipf ? ", Zipf" : "";
        if (shape.HotPercent > 0) pays += $", one of which pays {shape.HotPercent} %";
        Console.WriteLine(
            $"{(measured.IsDurable == true ? "Durable (flushed before answered)" : "NOT durable: the folder is in memory")}, ids remembered; {measured.Clients} callers, {measured.Batch:N0} a request; {measured.Accounts:N0} accounts{pays}; "
            + $"{(shape.HasOrderedIds ? "ordered" : "random")} ids; callers on the same machine.");

        string Micros(double? seconds) => seconds is double s ? $"{s * 1e6 / measured.Transfers:0.00}" : "?";
    }

    static void Print(List<Measured> results)
    {
        Table table = new Table().Border(TableBorder.Rounded).AddColumn("mode");
        foreach (string column in (string[])["clients", "batch", "transfers", "transfers/s", "p50 ms", "p99 ms", "max ms", "server CPU µs"]) table.AddColumn(column, c => c.RightAligned());
        foreach (Measured one in results)
        {
            table.AddRow(
                one.Name, $"{one.Clients}", $"{one.Batch}", $"{one.Transfers:N0}", $"{one.TransfersPerSecond:N0}", $"{one.LatencyMillisecondsP50:0.00}",
                $"{one.LatencyMillisecondsP99:0.00}", $"{one.LatencyMillisecondsMax:0.0}", one.ServerCpuSeconds is double seconds ? $"{seconds * 1e6 / one.Transfers:0}" : "");
        }

        Terminal.Out.Write(table);
        Console.WriteLine("Durable (flushed before answered), with ids remembered, callers on the same machine.");
        if (results.Sum(r => r.Refused) is > 0 and long refused) Terminal.Error($"{refused} requests were not answered with 200.");
    }
}
