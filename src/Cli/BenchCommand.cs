using System.CommandLine;
using System.Text.Json;
using Purse.Cluster.Local;
using Purse.Journal;
using Purse.Load;
using Purse.Partitions;
using Purse.Server;
using Spectre.Console;

namespace Purse.Cli;

/// <summary>The load command: transfers in process, and over HTTP beside an echo on the same Kestrel in the same run.</summary>
static partial class BenchCommand
{
    public static Command Create()
    {
        Option<string> mode = new("--mode") { Description = "engine, http, views, cluster (starts one, of --partitions, at least 12), or all: engine and http.", DefaultValueFactory = _ => "all" };
        mode.AcceptOnlyFromAmong("engine", "http", "views", "cluster", "all");
        Option<long> transfers = new("--transfers") { Description = "How many in process; over HTTP a share of it that takes about as long.", DefaultValueFactory = _ => 5_000_000 };
        Option<int> accounts = new("--accounts") { Description = "How many accounts, used uniformly.", DefaultValueFactory = _ => 10_000 };
        Option<int> batch = new("--batch") { Description = "Transfers a request, in process.", DefaultValueFactory = _ => 4_096 };
        Option<int> clients = new("--clients") { Description = "Concurrent clients, in process.", DefaultValueFactory = _ => 4 };
        Option<int> partitions = new("--partitions") { Description = "In process: over how many journals the accounts are spread.", DefaultValueFactory = _ => 1 };
        Option<int> cross = new("--cross") { Description = "In process: of a hundred transfers, how many go to another partition; measured after as many that do not.", DefaultValueFactory = _ => 0 };
        Option<string> journal = new("--journal") { Description = "In process: file or postgres, which starts PostgreSQL servers of its own.", DefaultValueFactory = _ => "file" };
        journal.AcceptOnlyFromAmong("file", "postgres");
        Option<int> stores = new("--stores") { Description = "Over how many PostgreSQL servers the partitions are spread.", DefaultValueFactory = _ => 1 };
        Option<int> hot = HotOption();
        Option<string> ids = new("--ids") { Description = "In process: random, or ordered as time is.", DefaultValueFactory = _ => "random" };
        ids.AcceptOnlyFromAmong("random", "ordered");
        Option<bool> json = Terminal.JsonOption();
        Command command = new("bench", "Measure durable transfers a second on a folder of its own.") { mode, transfers, accounts, batch, clients, hot, ids, partitions, cross, journal, stores, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(() => RunAsync(
            parsed.GetValue(mode)!, parsed.GetValue(transfers), parsed.GetValue(accounts), parsed.GetValue(batch), parsed.GetValue(clients), parsed.GetValue(partitions), parsed.GetValue(cross), parsed.GetValue(journal)!, parsed.GetValue(stores), parsed.GetValue(hot), parsed.GetValue(ids) == "ordered", parsed.GetValue(json))));
        command.Subcommands.Add(CreateCompare());
        command.Subcommands.Add(CreateIds());
        command.Subcommands.Add(CreateHistory());
        return command;
    }

    static Option<int> HotOption() => new("--hot") { Description = "Of a hundred transfers, how many one account pays.", DefaultValueFactory = _ => 0 };

    static void CheckHot(int hot)
    {
        if (hot is < 0 or > 100) throw new StartException($"--hot is {hot}; it must be 0 to 100.");
    }

    public static Command CreateEcho()
    {
        Command command = new("bench-echo", "The echo that `bench` compares with.") { Hidden = true };
        command.SetAction((_, _) => Terminal.RunAsync(async () =>
        {
            await EchoServer.RunAsync(address => Console.WriteLine($"{ServeCommand.ReadyPrefix}{address.GetLeftPart(UriPartial.Authority)} (echo)"));
            return Exit.Done;
        }));
        return command;
    }

    static async Task<int> RunAsync(string mode, long transfers, int accounts, int batch, int clients, int partitions, int cross, string journal, int storesCount, int hot, bool hasOrderedIds, bool asJson)
    {
        if (transfers < 1 || batch < 1 || clients < 1) throw new StartException("--transfers, --batch and --clients must be at least 1.");
        if (partitions < 1 || partitions > DataFolder.PartitionsMax) throw new StartException($"--partitions is {partitions}; it must be 1 to {DataFolder.PartitionsMax}.");
        if (cross is < 0 or > 100 || (cross > 0 && partitions == 1)) throw new StartException($"--cross is {cross}; it must be 0 to 100, and needs --partitions of 2 or more.");
        if (storesCount < 1 || storesCount > partitions) throw new StartException($"--stores is {storesCount}; it must be 1 to --partitions.");
        CheckHot(hot);
        if (accounts < 2) throw new StartException("--accounts must be at least 2.");
        // Beside the data of a real server rather than in a temporary folder, which may be memory.
        string folder = Path.GetFullPath($"purse-bench-{Environment.ProcessId}");
        List<Measured> results = [];
        try
        {
            if (mode is "engine" or "all")
            {
                await using Stores stores = await Stores.MakeAsync(Path.Combine(folder, "engine"), journal == "postgres" ? storesCount : 0, partitions);
                await using EngineLoad load = await EngineLoad.StartAsync(stores.All, accounts, batch, clients);
                (load.HotPercent, load.HasOrderedIds) = (hot, hasOrderedIds);
                if (cross == 0) results.Add(await Terminal.ProgressAsync("engine", progress => load.RunAsync("engine", transfers, batch, clients, 0, progress)));
                else await CrossAsync(load, transfers, batch, clients, cross, results);
                if (journal == "postgres") await RowsAsync(stores.ConnectionStrings, accounts, cross, hot, results);
            }

            if (mode == "views")
            {
                await using Stores stores = await Stores.MakeAsync(Path.Combine(folder, "engine"), 0, partitions);
                await using EngineLoad load = await EngineLoad.StartAsync(stores.All, accounts, batch, clients);
                List<ViewMeasured> views = await ViewsAsync(Path.Combine(folder, "views"), load, transfers, batch, clients);
                if (asJson) Console.WriteLine(JsonSerializer.Serialize(views, Terminal.Indented));
                else Print(views);
                return Exit.Done;
            }

            if (mode == "cluster") await ClusterAsync(folder, Math.Max(partitions, 12), Math.Min(transfers, 20_000), results);
            if (mode is "http" or "all") await HttpAsync(Path.Combine(folder, "http"), transfers, Math.Min(accounts, 1000), results);
        }
        finally
        {
            if (Directory.Exists(folder)) Directory.Delete(folder, recursive: true);
        }

        if (asJson) Console.WriteLine(JsonSerializer.Serialize(results, Terminal.Indented));
        else Print(results);
        return results.Exists(r => r.Refused > 0) ? Exit.Failed : Exit.Done;
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

    /// <summary>Local ones and those across, in turn on the same partitions: in batches, and one at a time.</summary>
    static async Task CrossAsync(EngineLoad load, long transfers, int batch, int clients, int cross, List<Measured> results)
    {
        const int OneAtATime = 2_000;
        await load.RunAsync("", Math.Max(transfers / 10, batch * clients), batch, clients, cross, static _ => { });
        foreach (int percent in new[] { 0, cross })
            results.Add(await Terminal.ProgressAsync(Name(percent), progress => load.RunAsync(Name(percent), transfers, batch, clients, percent, progress)));
        foreach (int percent in new[] { 0, 100 })
            results.Add(await Terminal.ProgressAsync(Name(percent), progress => load.RunAsync(Name(percent), OneAtATime, 1, 1, percent, progress)));

        static string Name(int percent) => percent == 0 ? "engine, local" : $"engine, {percent} % across";
    }

    /// <summary>The same servers, with rows in place of journals.</summary>
    static async Task RowsAsync(IEnumerable<string> servers, int accounts, int cross, int hot, List<Measured> results)
    {
        const int Clients = 32, Transfers = 20_000;
        if (cross == 0)
        {
            await using RowsLoad rows = await RowsLoad.StartAsync(servers.Take(1), accounts, Clients);
            await rows.RunAsync("", Transfers / 10, Clients, static _ => { });
            results.Add(await Terminal.ProgressAsync("rows", progress => rows.RunAsync("rows", Transfers, Clients, progress, random => random.Next(100) < hot ? 0 : random.Next(accounts))));
        }
        else if (servers.Count() > 1)
        {
            await using RowsLoad rows = await RowsLoad.StartAsync(servers.Take(2), accounts, Clients);
            await rows.RunTwoPhaseAsync("", Transfers / 10, Clients, static _ => { });
            results.Add(await Terminal.ProgressAsync("rows, two-phase", progress => rows.RunTwoPhaseAsync("rows, two-phase", Transfers, Clients, progress)));
            results.Add(await Terminal.ProgressAsync("rows, two-phase", progress => rows.RunTwoPhaseAsync("rows, two-phase", Transfers / 10, 1, progress)));
        }
    }

    static async Task HttpAsync(string folder, long transfers, int accounts, List<Measured> results)
    {
        using ServerProcess echo = await ServerProcess.StartAsync(["bench-echo"]);
        using ServerProcess server = await ServerProcess.StartAsync(folder);
        await HttpLoad.OpenAccountsAsync(server.Address, accounts);
        foreach (int connections in new[] { 1, 16, 64 })
        {
            long count = Math.Max(connections, transfers * (connections == 1 ? 2 : 20) / 500);
            // Warm first, then measured.
            await HttpLoad.RunAsync("", echo.Address, count / 4, accounts, connections, static _ => { });
            await HttpLoad.RunAsync("", server.Address, count / 4, accounts, connections, static _ => { });
            results.Add(await Terminal.ProgressAsync($"echo, {connections} connections", progress => HttpLoad.RunAsync("echo", echo.Address, count, accounts, connections, progress)));
            results.Add(await Terminal.ProgressAsync($"http, {connections} connections", progress => HttpLoad.RunAsync("http", server.Address, count, accounts, connections, progress)));
        }
    }

    static void Print(List<Measured> results)
    {
        Table table = new Table().Border(TableBorder.Rounded).AddColumn("mode").AddColumn("clients", c => c.RightAligned()).AddColumn("batch", c => c.RightAligned())
            .AddColumn("transfers", c => c.RightAligned()).AddColumn("transfers/s", c => c.RightAligned()).AddColumn("p50 ms", c => c.RightAligned())
            .AddColumn("p99 ms", c => c.RightAligned()).AddColumn("max ms", c => c.RightAligned()).AddColumn("of echo", c => c.RightAligned()).AddColumn("server CPU µs", c => c.RightAligned());
        foreach (Measured one in results)
        {
            Measured? echo = one.Name == "http" ? results.Find(r => r.Name == "echo" && r.Clients == one.Clients) : null;
            table.AddRow(
                one.Name, $"{one.Clients}", $"{one.Batch}", $"{one.Transfers:N0}", $"{one.TransfersPerSecond:N0}", $"{one.LatencyMillisecondsP50:0.00}",
                $"{one.LatencyMillisecondsP99:0.00}", $"{one.LatencyMillisecondsMax:0.0}", echo is null ? "" : $"{one.TransfersPerSecond / echo.TransfersPerSecond:0.00}",
                one.ServerCpuSeconds is double seconds ? $"{seconds * 1e6 / one.Transfers:0}" : "");
        }

        Terminal.Out.Write(table);
        Console.WriteLine("engine and http are durable (flushed before answered), with ids remembered, clients on the same machine; echo keeps nothing.");
        if (results.Sum(r => r.Refused) is > 0 and long refused) Terminal.Error($"{refused} requests were not answered with 200.");
    }
}
