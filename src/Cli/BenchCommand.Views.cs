using System.Diagnostics;
using Purse.Cluster.Local;
using Purse.Ledger;
using Purse.Load;
using Purse.Views;
using Spectre.Console;

namespace Purse.Cli;

/// <summary>How fast views catch up, how far they are behind under load, and what they cost the writer.</summary>
static partial class BenchCommand
{
    const string MeasuredView = "bench";

    /// <param name="CatchUpTransfersPerSecond">From an empty view to one that shows all, with no load beside it.</param>
    /// <param name="TransfersPerSecond">Of the writer at its limit, without this view and with it, in the same run.</param>
    /// <param name="BehindSeconds">After that load: how long until the view showed it.</param>
    /// <param name="LagMilliseconds">With 10 000 transfers a second: in the middle, and at most.</param>
    /// <param name="ReadsPerSecond">Balances, with 64 readers.</param>
    sealed record ViewMeasured(
        string View, double CatchUpTransfersPerSecond, double TransfersPerSecondWithout, double TransfersPerSecondWith, double BehindSeconds, double LagMillisecondsP50, double LagMillisecondsMax,
        double ReadsPerSecond);

    static async Task<List<ViewMeasured>> ViewsAsync(string folder, EngineLoad load, long transfers, int batch, int clients)
    {
        Directory.CreateDirectory(folder);
        List<ViewMeasured> results = [];
        await load.RunAsync("", transfers, batch, clients, static _ => { });
        results.Add(await MeasureAsync(load, new SqliteView(Path.Combine(folder, "view.db"), load.Partitions.Count), transfers, batch, clients));
        if (LocalPostgreSql.ProgramsFolder is null) Terminal.Note("PostgreSQL is not installed: its view is not measured.");
        else
        {
            await using LocalPostgreSql server = await LocalPostgreSql.MakeAsync(Path.Combine(folder, "postgres"), ["max_wal_size = 8GB", "shared_buffers = 512MB"]);
            results.Add(await MeasureAsync(load, new PostgreSqlView(server.ConnectionString, MeasuredView, load.Partitions.Count), transfers, batch, clients));
        }

        if (!LocalRedis.IsInstalled) Terminal.Note("Redis is not installed: its view is not measured.");
        else
        {
            await using LocalRedis server = await LocalRedis.StartAsync(Path.Combine(folder, "redis"));
            results.Add(await MeasureAsync(load, new RedisView(server.Address, 0, 1, MeasuredView, load.Partitions.Count), transfers, batch, clients));
        }

        return results;
    }

    static async Task<ViewMeasured> MeasureAsync(EngineLoad load, IView view, long transfers, int batch, int clients)
    {
        string name = view.Name.Split(' ')[0];
        Measured without = await Terminal.ProgressAsync($"without {name}", progress => load.RunAsync("", transfers, batch, clients, progress));
        ulong events = load.Partitions.Aggregate(0ul, (sum, partition) => sum + partition.FlushedSequence);
        Stopwatch watch = Stopwatch.StartNew();
        await using ViewFeeder feeder = new(view, load.Partitions.Count, () => load.Partitions, Terminal.Note);
        await Terminal.ProgressAsync($"{name} catches up", progress => ShownAsync(load, feeder, progress));
        double caughtUp = events / 2 / watch.Elapsed.TotalSeconds;
        Measured with = await Terminal.ProgressAsync($"with {name}", progress => load.RunAsync("", transfers, batch, clients, progress));
        watch.Restart();
        await Terminal.ProgressAsync($"{name} catches up", progress => ShownAsync(load, feeder, progress));
        double behind = watch.Elapsed.TotalSeconds;

        // 100 transfers every 10 ms, for five seconds.
        using CancellationTokenSource end = new();
        List<double> lags = [];
        Task sampling = Task.Run(async () =>
        {
            for (; !end.IsCancellationRequested; await Task.Delay(5)) lags.Add(feeder.Lag!.Value.TotalMilliseconds);
        });
        watch.Restart();
        for (int i = 0; i < 500; i++)
        {
            await load.RunAsync("", 100, 100, 1, static _ => { });
            if (watch.Elapsed < TimeSpan.FromMilliseconds(10 * (i + 1))) await Task.Delay(TimeSpan.FromMilliseconds(10 * (i + 1)) - watch.Elapsed);
        }

        await end.CancelAsync();
        await sampling;
        lags.Sort();
        return new ViewMeasured(name, caughtUp, without.TransfersPerSecond, with.TransfersPerSecond, behind, lags[lags.Count / 2], lags[^1], await ReadAsync(feeder, load));
    }

    static async Task<int> ShownAsync(EngineLoad load, ViewFeeder feeder, Action<double> progress)
    {
        while (true)
        {
            double events = load.Partitions.Sum(partition => (double)partition.FlushedSequence), shown = load.Partitions.Sum(partition => (double)feeder.Position(partition.Number));
            if (shown >= events && feeder.IsComplete) return 0;
            progress(shown / events);
            await Task.Delay(5);
        }
    }

    static async Task<double> ReadAsync(ViewSource feeder, EngineLoad load)
    {
        const int Readers = 64;
        long done = 0;
        int[] parts = [.. load.Partitions.Select(partition => partition.Number)];
        Stopwatch watch = Stopwatch.StartNew();
        await Task.WhenAll(Enumerable.Range(0, Readers).Select(reader => Task.Run(async () =>
        {
            Random random = new(reader);
            while (watch.Elapsed < TimeSpan.FromSeconds(3))
            {
                AccountName name = AccountName.Parse($"account-{random.Next(load.AccountsCount)}");
                if ((await ViewHost.BalancesAsync(feeder, name, [parts[name.PartitionOf(parts.Length)]], CancellationToken.None)).Balances.Count == 0) throw new IOException($"{feeder.View.Name} shows no balance of {name}.");
                Interlocked.Increment(ref done);
            }
        })));
        return done / watch.Elapsed.TotalSeconds;
    }

    static void Print(List<ViewMeasured> results)
    {
        Table table = new Table().Border(TableBorder.Rounded).AddColumn("view");
        foreach (string column in (string[])["catch-up transfers/s", "writer without", "writer with", "behind after s", "lag p50 ms", "lag max ms", "balance reads/s"]) table.AddColumn(column, c => c.RightAligned());
        foreach (ViewMeasured one in results)
        {
            table.AddRow(
                one.View, $"{one.CatchUpTransfersPerSecond:N0}", $"{one.TransfersPerSecondWithout:N0}", $"{one.TransfersPerSecondWith:N0}", $"{one.BehindSeconds:0.0}", $"{one.LagMillisecondsP50:0.0}",
                $"{one.LagMillisecondsMax:0.0}", $"{one.ReadsPerSecond:N0}");
        }

        Terminal.Out.Write(table);
        Console.WriteLine("writer: transfers a second at its limit; lag: with 10 000 transfers a second; reads: 64 at once. All on this machine, beside each other.");
    }
}
