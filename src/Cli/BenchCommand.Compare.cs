using System.CommandLine;
using System.Text.Json;
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
        Option<long> transfers = new("--transfers") { Description = "How many of Purse's own; of the others a share that takes about as long.", DefaultValueFactory = _ => 2_000_000 };
        Option<int> accounts = new("--accounts") { Description = "How many accounts.", DefaultValueFactory = _ => 10_000 };
        Option<int> hot = HotOption();
        Option<bool> json = Terminal.JsonOption();
        Command command = new("compare", "Measure Purse beside rows in PostgreSQL, on one server and on two, a script in Redis, an echo over HTTP and the bare disk.") { transfers, accounts, hot, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(() => CompareAsync(parsed.GetValue(transfers), parsed.GetValue(accounts), parsed.GetValue(hot), parsed.GetValue(json))));
        return command;
    }

    static async Task<int> CompareAsync(long transfers, int accounts, int hot, bool asJson)
    {
        const int Batch = 4_096, Clients = 4, Many = 64, RowsBatch = 500, RedisPipeline = 50;
        if (transfers < 1 || accounts < 2) throw new StartException("--transfers must be at least 1, and --accounts at least 2.");
        CheckHot(hot);
        string folder = Path.GetFullPath($"purse-bench-{Environment.ProcessId}");
        List<Compared> results = [];
        Func<Random, int> draw = random => random.Next(100) < hot ? 0 : random.Next(accounts);
        try
        {
            await using (Stores stores = await Stores.MakeAsync(Path.Combine(folder, "engine"), 0, 1))
            await using (EngineLoad load = await EngineLoad.StartAsync(stores.All, accounts, Batch, Clients))
            {
                load.HotPercent = hot;
                await load.RunAsync("", transfers / 10, Batch, Clients, 0, static _ => { });
                await AddAsync("Purse, in process, in batches", progress => load.RunAsync("", transfers, Batch, Clients, 0, progress), load.IsBalancedAsync);
            }

            await using (Stores stores = await Stores.MakeAsync(Path.Combine(folder, "two"), 0, 2))
            await using (EngineLoad load = await EngineLoad.StartAsync(stores.All, accounts, Batch, Clients))
            {
                load.HotPercent = hot;
                await load.RunAsync("", transfers / 10, Batch, Clients, 100, static _ => { });
                await AddAsync("Purse, in process, all between two partitions", progress => load.RunAsync("", transfers / 4, Batch, Clients, 100, progress), load.IsBalancedAsync);
            }

            using (ServerProcess server = await ServerProcess.StartAsync(Path.Combine(folder, "http")))
            {
                int some = Math.Min(accounts, 1000);
                await HttpLoad.OpenAccountsAsync(server.Address, some);
                Func<Random, (string, string)> choose = random =>
                {
                    int from = draw(random) % some, to = (from + 1 + random.Next(some - 1)) % some;
                    return ($"account-{from}", $"account-{to}");
                };
                foreach (int connections in new[] { 1, Many })
                {
                    long count = connections == 1 ? transfers / 400 : transfers / 20;
                    await HttpLoad.RunAsync("", [server.Address], count / 4, choose, 1, connections, static _ => { });
                    await AddAsync("Purse, over HTTP, one by one", progress => HttpLoad.RunAsync("", [server.Address], count, choose, 1, connections, progress), null);
                }

                await HttpLoad.RunAsync("", [server.Address], transfers / 20, choose, RowsBatch, Clients, static _ => { });
                await AddAsync("Purse, over HTTP, many a request", progress => HttpLoad.RunAsync("", [server.Address], transfers / 5, choose, RowsBatch, Clients, progress), null);
            }

            using (ServerProcess echo = await ServerProcess.StartAsync(["bench-echo"]))
            {
                await HttpLoad.RunAsync("", echo.Address, transfers / 80, 1000, Many, static _ => { });
                await AddAsync("an echo on the same Kestrel, which keeps nothing", progress => HttpLoad.RunAsync("", echo.Address, transfers / 20, 1000, Many, progress), null);
            }

            if (LocalPostgreSql.ProgramsFolder is null) Terminal.Note("PostgreSQL is not installed: rows are not measured.");
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
        else Print(results, accounts, hot);
        return results.Exists(one => one.IsBalanced == false || one.Measured.Refused > 0) ? Exit.Failed : Exit.Done;

        async Task AddAsync(string way, Func<Action<double>, Task<Measured>> run, Func<Task<bool>>? check)
        {
            Measured measured = await Terminal.ProgressAsync(way, run);
            results.Add(new Compared(way, measured with { Name = way }, check is null ? null : await check()));
        }
    }

    static void Print(List<Compared> results, int accounts, int hot)
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
        Console.WriteLine($"{accounts:N0} accounts, {(hot == 0 ? "all alike" : $"one of which pays {hot} of a hundred")}; random ids; everything but the echo flushed before it is answered; clients on the same machine. The first two have no socket in between; the echo and the rows on two servers draw their accounts alike; over HTTP there are 1 000 of them at most. Redis keeps no history, and the rows keep entries.");
        if (results.Sum(one => one.Measured.Refused) is > 0 and long refused) Terminal.Error($"{refused} transfers were refused.");
    }
}
