using System.CommandLine;
using System.Text.Json;
using Purse.Client;
using Purse.Cluster.Local;
using Purse.Load;
using Purse.Server;
using Spectre.Console;
using Event = Purse.Ledger.Event;

namespace Purse.Cli;

/// <summary>What the same load comes to in other ways, in one run on this machine. They start their servers themselves.</summary>
static partial class BenchCommand
{
    /// <param name="IsBalanced">Whether the balances add up afterwards; null where there are none.</param>
    sealed record Compared(string Way, Measured Measured, bool? IsBalanced);

    static Command CreateCompare()
    {
        Option<long> transfers = new("--transfers") { Description = "How many of Purse's own; of the others a share that takes about as long.", DefaultValueFactory = _ => 4_000_000 };
        Option<int> accounts = new("--accounts") { Description = "How many accounts.", DefaultValueFactory = _ => 10_000 };
        Option<int> hot = HotOption();
        Option<bool> zipf = new("--zipf") { Description = "Accounts pay as often as Zipf's law says, in place of all alike." };
        Option<bool> json = Terminal.JsonOption();
        Command command = new("compare", "Measure Purse beside rows in PostgreSQL, on one server and on two, a script in Redis, an echo over HTTP and the bare disk.") { transfers, accounts, hot, zipf, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(() => CompareAsync(
            parsed.GetValue(transfers), new LoadShape { Accounts = parsed.GetValue(accounts), HotPercent = parsed.GetValue(hot), IsZipf = parsed.GetValue(zipf) }, parsed.GetValue(json))));
        return command;
    }

    static async Task<int> CompareAsync(long transfers, LoadShape shape, bool asJson)
    {
        const int Batch = 4_096, StreamBatch = 8_000, Clients = 4, Many = 64, RowsBatch = 500, RedisPipeline = 50;
        if (transfers < 1) throw new StartException("--transfers must be at least 1.");
        Check(shape);
        string folder = Path.GetFullPath($"purse-bench-{Environment.ProcessId}");
        int accounts = shape.Accounts;
        List<Compared> results = [];
        Func<Random, int> draw = shape.Draw;
        bool hasPostgreSql = LocalPostgreSql.ProgramsFolder is not null;
        try
        {
            using (ServerProcess server = await ServerProcess.StartAsync(Path.Combine(folder, "grpc")))
            await using (GrpcLoad load = await GrpcLoad.StartAsync(server.Address, 1, Clients, StreamBatch, PurseProtocol.Grpc, shape))
            {
                await load.RunAsync("", transfers / 10, StreamBatch, Clients, new LoadProgress());
                await AddAsync("Purse, by its client", _ => load.RunAsync("", transfers, StreamBatch, Clients, new LoadProgress()), load.IsBalancedAsync);
            }

            await EngineAsync("Purse, in process", 0, 1, 0, transfers);
            await EngineAsync("Purse, in process, all between two partitions", 0, 2, 100, transfers / 4);
            if (hasPostgreSql)
            {
                await EngineAsync("Purse, in process, journal in PostgreSQL", 1, 1, 0, transfers / 2);
                await EngineAsync("Purse, in process, all between two PostgreSQL servers", 2, 2, 100, transfers / 20);
            }

            using (ServerProcess server = await ServerProcess.StartAsync(Path.Combine(folder, "http")))
            using (ServerProcess echo = await ServerProcess.StartAsync(["bench-echo"]))
            {
                // Opened by JSON, one by one.
                int some = Math.Min(accounts, 1000);
                await HttpLoad.OpenAccountsAsync(server.Address, some);
                Func<Random, (string, string)> choose = random =>
                {
                    int from = draw(random) % some, to = (from + 1 + random.Next(some - 1)) % some;
                    return ($"account-{from}", $"account-{to}");
                };
                foreach (int connections in new[] { 1, 16, Many })
                {
                    long count = connections == 1 ? transfers / 400 : transfers / 40;
                    await HttpLoad.RunAsync("", [server.Address], count / 4, choose, 1, connections, static _ => { });
                    await AddAsync("Purse, in JSON, one by one", progress => HttpLoad.RunAsync("", [server.Address], count, choose, 1, connections, progress), null);
                    await HttpLoad.RunAsync("", echo.Address, count / 4, some, connections, static _ => { });
                    await AddAsync("an echo on the same Kestrel, which keeps nothing", progress => HttpLoad.RunAsync("", echo.Address, count, some, connections, progress), null);
                }

                await HttpLoad.RunAsync("", [server.Address], transfers / 20, choose, RowsBatch, Clients, static _ => { });
                await AddAsync("Purse, in JSON, many a request", progress => HttpLoad.RunAsync("", [server.Address], transfers / 5, choose, RowsBatch, Clients, progress), null);
            }

            if (!hasPostgreSql) Terminal.Note("PostgreSQL is not installed: rows are not measured.");
            else
            {
                await using Stores servers = await Stores.MakeAsync(Path.Combine(folder, "rows"), 2, 2);
                await using (RowsLoad rows = await RowsLoad.StartAsync(servers.ConnectionStrings.Take(1), accounts, Many))
                {
                    await rows.RunAsync("", transfers / 1000, Many, static _ => { }, draw);
                    foreach (int clients in new[] { 1, 16, Many }) await AddAsync("rows in PostgreSQL, a transaction each", progress => rows.RunAsync("", clients == 1 ? transfers / 400 : transfers / 100, clients, progress, draw), rows.IsBalancedAsync);
                    await rows.RunProcedureAsync("", transfers / 100, RowsBatch, Clients, static _ => { }, draw);
                    foreach (int clients in new[] { 1, Clients }) await AddAsync("rows in PostgreSQL, a procedure with many", progress => rows.RunProcedureAsync("", transfers / 10, RowsBatch, clients, progress, draw), rows.IsBalancedAsync);
                }

                await using RowsLoad two = await RowsLoad.StartAsync(servers.ConnectionStrings, accounts, Many);
                await two.RunTwoPhaseAsync("", transfers / 1000, Many, static _ => { });
                foreach (int clients in new[] { 1, 16 }) await AddAsync("rows on two PostgreSQL servers, PREPARE TRANSACTION", progress => two.RunTwoPhaseAsync("", clients == 1 ? transfers / 2000 : transfers / 200, clients, progress), two.IsBalancedAsync);
            }

            if (!LocalRedis.IsInstalled) Terminal.Note("Redis is not installed: its script is not measured.");
            else
            {
                await using LocalRedis server = await LocalRedis.StartAsync(Path.Combine(folder, "redis"), 0, RedisLoad.Settings);
                RedisLoad redis = await RedisLoad.StartAsync(server.Port, accounts);
                await redis.RunAsync("", transfers / 100, 1, Many, draw, static _ => { });
                await AddAsync("a script in Redis, appendfsync always", progress => redis.RunAsync("", transfers / 20, 1, Many, draw, progress), redis.IsBalancedAsync);
                await AddAsync("a script in Redis, appendfsync always, pipelined", progress => redis.RunAsync("", transfers / 10, RedisPipeline, Many, draw, progress), redis.IsBalancedAsync);
            }

            await AddAsync("the disk: the same bytes, written and flushed", progress => Task.Run(() => DiskLoad.Run("", Path.Combine(folder, "disk"), transfers, Batch, 2 * Event.SizeBytes, progress)), null);
        }
        finally
        {
            if (Directory.Exists(folder)) Directory.Delete(folder, recursive: true);
        }

        if (asJson) Console.WriteLine(JsonSerializer.Serialize(results, Terminal.Indented));
        else Print(results, shape);
        return results.Exists(one => one.IsBalanced == false || one.Measured.Refused > 0) ? Exit.Failed : Exit.Done;

        async Task EngineAsync(string way, int servers, int partitions, int crossPercent, long count)
        {
            await using Stores stores = await Stores.MakeAsync(Path.Combine(folder, $"engine-{servers}-{partitions}"), servers, partitions);
            await using EngineLoad load = await EngineLoad.StartAsync(stores.All, shape with { CrossPercent = crossPercent }, Batch, Clients);
            await load.RunAsync("", count / 10, Batch, Clients, static _ => { });
            await AddAsync(way, progress => load.RunAsync("", count, Batch, Clients, progress), load.IsBalancedAsync);
        }

        async Task AddAsync(string way, Func<Action<double>, Task<Measured>> run, Func<Task<bool>>? check)
        {
            Measured measured = await Terminal.ProgressAsync(way, run);
            results.Add(new Compared(way, measured with { Name = way }, check is null ? null : await check()));
        }
    }

    static void Print(List<Compared> results, LoadShape shape)
    {
        double own = results[0].Measured.TransfersPerSecond;
        Table table = new Table().Border(TableBorder.Rounded).AddColumn("way").AddColumn("clients", c => c.RightAligned()).AddColumn("batch", c => c.RightAligned()).AddColumn("transfers", c => c.RightAligned())
            .AddColumn("transfers/s", c => c.RightAligned()).AddColumn("of the first", c => c.RightAligned()).AddColumn("p50 ms", c => c.RightAligned()).AddColumn("p99 ms", c => c.RightAligned()).AddColumn("sums");
        foreach ((string way, Measured one, bool? isBalanced) in results)
        {
            table.AddRow(
                way, $"{one.Clients}", $"{one.Batch}", $"{one.Transfers:N0}", $"{one.TransfersPerSecond:N0}", one.TransfersPerSecond >= own / 10 ? $"{one.TransfersPerSecond / own:0.00}" : $"1/{own / one.TransfersPerSecond:0}",
                $"{one.LatencyMillisecondsP50:0.00}", $"{one.LatencyMillisecondsP99:0.00}", isBalanced switch { true => "right", false => "WRONG", null => "" });
        }

        Terminal.Out.Write(table);
        string pays = shape.HotPercent > 0 ? $"one of which pays {shape.HotPercent} of a hundred" : shape.IsZipf ? "which pay as Zipf's law says" : "all alike";
        Console.WriteLine($"{shape.Accounts:N0} accounts, {pays}; random ids; everything but the echo flushed before it is answered; callers on the same machine. What is in process has no socket in between; the echo and the rows on two servers draw their accounts alike; in JSON there are 1 000 of them at most. Redis keeps no history, and the rows keep entries.");
        if (results.Sum(one => one.Measured.Refused) is > 0 and long refused) Terminal.Error($"{refused} transfers were refused.");
    }
}
