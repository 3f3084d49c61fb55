using System.CommandLine;
using System.Text.Json;
using Purse.Load;
using Purse.Server;
using Spectre.Console;

namespace Purse.Cli;

/// <summary>The load command: transfers in process, and over HTTP beside an echo on the same Kestrel in the same run.</summary>
static class BenchCommand
{
    public static Command Create()
    {
        Option<string> mode = new("--mode") { Description = "engine, http or all.", DefaultValueFactory = _ => "all" };
        mode.AcceptOnlyFromAmong("engine", "http", "all");
        Option<long> transfers = new("--transfers") { Description = "How many in process; over HTTP a share of it that takes about as long.", DefaultValueFactory = _ => 5_000_000 };
        Option<int> accounts = new("--accounts") { Description = "How many accounts, used uniformly.", DefaultValueFactory = _ => 10_000 };
        Option<int> batch = new("--batch") { Description = "Transfers a request, in process.", DefaultValueFactory = _ => 4_096 };
        Option<int> clients = new("--clients") { Description = "Concurrent clients, in process.", DefaultValueFactory = _ => 4 };
        Option<bool> json = Terminal.JsonOption();
        Command command = new("bench", "Measure durable transfers a second on a folder of its own.") { mode, transfers, accounts, batch, clients, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(() => RunAsync(
            parsed.GetValue(mode)!, parsed.GetValue(transfers), parsed.GetValue(accounts), parsed.GetValue(batch), parsed.GetValue(clients), parsed.GetValue(json))));
        return command;
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

    static async Task<int> RunAsync(string mode, long transfers, int accounts, int batch, int clients, bool asJson)
    {
        if (transfers < 1 || batch < 1 || clients < 1) throw new StartException("--transfers, --batch and --clients must be at least 1.");
        if (accounts < 2) throw new StartException("--accounts must be at least 2.");
        // Beside the data of a real server rather than in a temporary folder, which may be memory.
        string folder = Path.GetFullPath($"purse-bench-{Environment.ProcessId}");
        List<Measured> results = [];
        try
        {
            if (mode is "engine" or "all")
            {
                results.Add(await Terminal.ProgressAsync("engine", progress => EngineLoad.RunAsync(Path.Combine(folder, "engine"), transfers, accounts, batch, clients, progress)));
            }

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
            .AddColumn("p99 ms", c => c.RightAligned()).AddColumn("max ms", c => c.RightAligned()).AddColumn("of echo", c => c.RightAligned());
        foreach (Measured one in results)
        {
            Measured? echo = one.Name == "http" ? results.Find(r => r.Name == "echo" && r.Clients == one.Clients) : null;
            table.AddRow(
                one.Name, $"{one.Clients}", $"{one.Batch}", $"{one.Transfers:N0}", $"{one.TransfersPerSecond:N0}", $"{one.LatencyMillisecondsP50:0.00}",
                $"{one.LatencyMillisecondsP99:0.00}", $"{one.LatencyMillisecondsMax:0.0}", echo is null ? "" : $"{one.TransfersPerSecond / echo.TransfersPerSecond:0.00}");
        }

        Terminal.Out.Write(table);
        Console.WriteLine("engine and http are durable (flushed before answered), random ids remembered, uniform accounts, clients on the same machine; echo keeps nothing.");
        if (results.Sum(r => r.Refused) is > 0 and long refused) Terminal.Error($"{refused} requests were not answered with 200.");
    }
}
