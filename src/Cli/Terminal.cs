using System.CommandLine;
using System.CommandLine.Parsing;
using System.Diagnostics;
using System.Text.Json;
using Purse.Journal;
using Purse.Ledger;
using Purse.Load;
using Purse.Partitions;
using Purse.Server;
using Spectre.Console;

namespace Purse.Cli;

/// <summary>Exit codes, the same for every command; the README lists them.</summary>
static class Exit
{
    public const int Done = 0;

    /// <summary>Refused by the ledger, a check that failed, damage.</summary>
    public const int Failed = 1;

    /// <summary>Wrong usage, or something to mend before the command can run at all.</summary>
    public const int Usage = 2;
}

/// <summary>Results on stdout, all else on stderr.</summary>
static class Terminal
{
    public static IAnsiConsole Err { get; } = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(Console.Error) });

    public static IAnsiConsole Out { get; } = CreateOut();

    public static JsonSerializerOptions Indented { get; } = new() { WriteIndented = true, PropertyNamingPolicy = System.Text.Json.JsonNamingPolicy.SnakeCaseLower, Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    public static void Error(string message) => Console.Error.WriteLine($"purse: {message}");

    public static void Note(string message) => Console.Error.WriteLine(message);

    /// <summary>What an operator can mend becomes a sentence; a fault of ours keeps its stack.</summary>
    public static async Task<int> RunAsync(Func<Task<int>> command)
    {
        try
        {
            return await command();
        }
        catch (Exception e) when (e is JournalDamagedException or InvariantBrokenException or InvalidDataException)
        {
            Error(e.Message);
            return Exit.Failed;
        }
        catch (Exception e) when (e is StartException or DataFolderException or UnauthorizedAccessException)
        {
            Error(e.Message);
            return e.InnerException is JournalDamagedException or InvariantBrokenException ? Exit.Failed : Exit.Usage;
        }
        catch (Exception e) when (e is IOException or TimeoutException or System.Data.Common.DbException or StackExchange.Redis.RedisException)
        {
            Error(e.Message);
            return Exit.Failed;
        }
    }

    /// <summary>A progress bar where somebody watches, nothing where nobody does.</summary>
    public static async Task<T> ProgressAsync<T>(string title, Func<Action<double>, Task<T>> work)
    {
        if (!Err.Profile.Capabilities.Interactive || Console.IsErrorRedirected) return await work(static _ => { });
        return await Err.Progress()
            .HideCompleted(true)
            .Columns(new TaskDescriptionColumn(), new ProgressBarColumn(), new PercentageColumn(), new RemainingTimeColumn())
            .StartAsync(async context =>
            {
                ProgressTask task = context.AddTask(Markup.Escape(title), maxValue: 1);
                return await work(done => task.Value = done);
            });
    }

    /// <summary>A line a second on stderr: how far it is, how fast, how long requests took, what the journal grew by. Where somebody watches, each takes the place of the last.</summary>
    public static async Task<T> LiveAsync<T>(long transfers, LoadProgress progress, Func<Task<long>> journalBytes, Func<Task<T>> work)
    {
        using CancellationTokenSource end = new();
        bool isWatched = Err.Profile.Capabilities.Interactive && !Console.IsErrorRedirected;
        Task showing = ShowAsync();
        try
        {
            return await work();
        }
        finally
        {
            await end.CancelAsync();
            await showing;
            if (isWatched) Console.Error.Write("\r\e[K");
        }

        async Task ShowAsync()
        {
            Stopwatch watch = Stopwatch.StartNew();
            long before = 0;
            double then = 0;
            while (!end.IsCancellationRequested)
            {
                await Task.Delay(1000, end.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
                if (end.IsCancellationRequested) return;
                (long done, double now) = (progress.Done, watch.Elapsed.TotalSeconds);
                double[] latencies = progress.TakeLatenciesMilliseconds(0.5, 0.99);
                string line = $"{100.0 * done / transfers,3:0} %  {(done - before) / (now - then),9:N0} transfers/s  p50 {latencies[0]:0.0} ms  p99 {latencies[1]:0.0} ms  journal {await journalBytes() / 1e6:N0} MB";
                Console.Error.Write(isWatched ? $"\r\e[K{line}" : line + "\n");
                (before, then) = (done, now);
            }
        }
    }

    public static Option<bool> JsonOption() => new("--json") { Description = "Print the result as JSON." };

    public static Option<string> DataOption() => new("--data") { Description = "The data folder.", DefaultValueFactory = _ => "purse-data" };

    public static Option<string?> ClusterOption() => new("--cluster") { Description = "zk://host:port,host:port/path, in place of a data folder." };

    /// <summary>A cluster says where everything is.</summary>
    public static void CheckEither(CommandResult result, Option<string> data, Option<string?> cluster)
    {
        if (result.GetValue(cluster) is not null && result.GetResult(data) is { Implicit: false }) result.AddError("--cluster says where everything is: leave out --data.");
    }

    static IAnsiConsole CreateOut()
    {
        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(Console.Out) });
        // Into a pipe, a table must not be folded at a width that nobody has.
        if (Console.IsOutputRedirected) console.Profile.Width = 250;
        return console;
    }
}
