using System.CommandLine;
using System.Diagnostics;
using System.Text.Json;
using Purse.Ledger;
using Purse.Load;
using Purse.Partitions;
using Purse.Server;
using Command = System.CommandLine.Command;

namespace Purse.Cli;

/// <summary>How long it takes to find any moment of one account's long life, beside a writer at its limit and right after a restart.</summary>
static partial class BenchCommand
{
    /// <param name="Events">Of the account after the restart: what is asked for, and those of the writer beside looks.</param>
    /// <param name="FirstMilliseconds">The first look after the restart.</param>
    /// <param name="BesideWriterMillisecondsP50">While the same account pays for everything, at the writer's limit.</param>
    /// <param name="TransfersPerSecond">Of the writer, without looks and with them, in the same run.</param>
    sealed record HistoryMeasured(
        ulong Events, double RecoverySeconds, double FirstMilliseconds, double MillisecondsP50, double MillisecondsP99, double MillisecondsMax,
        double BesideWriterMillisecondsP50, double BesideWriterMillisecondsP99, double TransfersPerSecond, double TransfersPerSecondWithLooks);

    static Command CreateHistory()
    {
        Option<long> events = new("--events") { Description = "How many events the account has.", DefaultValueFactory = _ => 10_000_000 };
        Option<bool> json = Terminal.JsonOption();
        Command command = new("history", "Measure how long as_of takes anywhere in the life of one account, beside its writer and right after a restart.") { events, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(() => HistoryAsync(parsed.GetValue(events), parsed.GetValue(json))));
        return command;
    }

    static async Task<int> HistoryAsync(long events, bool asJson)
    {
        const int Batch = 4_096, Clients = 4, Looks = 1_000;
        const long TransfersBeside = 4_000_000;
        if (events < Batch * Clients) throw new StartException($"--events must be at least {Batch * Clients}.");
        string folder = Path.GetFullPath($"purse-bench-{Environment.ProcessId}");
        try
        {
            List<double> beside = [];
            double alone, with;
            await using (Stores stores = await Stores.MakeAsync(folder, 0, 1))
            await using (EngineLoad load = await EngineLoad.StartAsync(stores.All, new LoadShape { Accounts = 100, HotPercent = 100 }, Batch, Clients))
            {
                await Terminal.ProgressAsync("history", progress => load.RunAsync("history", events, Batch, Clients, progress));
                Task<Measured> RunAsync(string name) => Terminal.ProgressAsync(name, progress => load.RunAsync(name, TransfersBeside, Batch, Clients, progress));
                alone = (await RunAsync("the writer alone")).TransfersPerSecond;
                using CancellationTokenSource written = new();
                Task<(ulong, List<double> Took)> looking = Task.Run(() => LookAsync(load.Partitions[0], int.MaxValue, TimeSpan.FromMilliseconds(5), written.Token));
                with = (await RunAsync("the writer, with looks")).TransfersPerSecond;
                await written.CancelAsync();
                beside = (await looking).Took;
            }

            await using Stores again = await Stores.MakeAsync(folder, 0, 1);
            Stopwatch watch = Stopwatch.StartNew();
            await using Partition partition = Partition.Start(again.All[0], 1, new PartitionOptions(), TimeProvider.System, Terminal.Note);
            double recovery = watch.Elapsed.TotalSeconds;
            (ulong eventsCount, List<double> took) = await LookAsync(partition, Looks, TimeSpan.Zero, CancellationToken.None);
            HistoryMeasured measured = new(
                eventsCount, recovery, took[0], Percentile(took, 50), Percentile(took, 99), took.Max(), Percentile(beside, 50), Percentile(beside, 99), alone, with);
            if (asJson) Console.WriteLine(JsonSerializer.Serialize(measured, Terminal.Indented));
            else
            {
                Console.WriteLine($"{measured.Events:N0} events, recovered in {measured.RecoverySeconds:0.0} s; as_of anywhere: first {measured.FirstMilliseconds:0.00} ms, p50 {measured.MillisecondsP50:0.00} ms, p99 {measured.MillisecondsP99:0.00} ms, max {measured.MillisecondsMax:0.00} ms");
                Console.WriteLine($"while the account pays at the writer's limit: p50 {measured.BesideWriterMillisecondsP50:0.00} ms, p99 {measured.BesideWriterMillisecondsP99:0.00} ms; the writer {measured.TransfersPerSecond:N0} transfers a second without looks, {measured.TransfersPerSecondWithLooks:N0} with {beside.Count:N0} of them");
            }

            return Exit.Done;
        }
        finally
        {
            if (Directory.Exists(folder)) Directory.Delete(folder, recursive: true);
        }
    }

    static double Percentile(List<double> took, int percent) => took.Order().ElementAt(took.Count * percent / 100);

    /// <returns>How many events the account has, and how many milliseconds each look took, at moments all over its life.</returns>
    static async Task<(ulong Events, List<double> Took)> LookAsync(Partition partition, int looks, TimeSpan pause, CancellationToken cancellation)
    {
        ReadRequest<Balance> read = new((State state) => state.Balance(state.Names.Find(AccountName.Parse("account-0")), state.TryCurrency(CurrencyCode.Parse("USD"), out uint usd, out _) ? usd : 0));
        if (await partition.SubmitAsync(read, TimeSpan.FromMinutes(1)) != RequestStatus.Answered) throw new IOException("The balance could not be read.");
        EventReaders readers = partition.Readers!;
        List<double> took = [];
        Random random = new(1);
        long last = readers.Read(read.Result.LastSequence).TimeMicros, first = last;
        for (int look = 0; look < looks && (look == 0 || !cancellation.IsCancellationRequested); look++)
        {
            // The first one looks at the first event, which tells from when on there is a life.
            long at = look == 0 ? 0 : first + random.NextInt64(last - first + 1), started = Stopwatch.GetTimestamp();
            ulong found = look == 0 ? readers.History.Find(readers, read.Result, 1, default) : readers.History.LastAtOrBefore(readers, read.Result, at, default).Sequence;
            RecordedEvent e = readers.Read(found);
            took.Add(Stopwatch.GetElapsedTime(started).TotalMilliseconds);
            if (look == 0) first = e.TimeMicros;
            else if (e.TimeMicros > at || e.Event.Account == 0) throw new IOException($"As of {at}, history finds an event of {e.TimeMicros}.");
            if (pause > TimeSpan.Zero) await Task.Delay(pause, CancellationToken.None);
        }

        return (read.Result.EventsCount, took);
    }
}
