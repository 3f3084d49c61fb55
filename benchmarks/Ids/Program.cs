// What it costs to remember every id for ever, in several ways, on the same ids: `dotnet run -c Release --project benchmarks/Ids -- --ids 100000000 --way runs`.
using System.CommandLine;
using Purse.Ids;
using Spectre.Console;

Option<long> idsOption = new("--ids") { Description = "How many, at least a million.", DefaultValueFactory = _ => 20_000_000 };
Option<string> wayOption = new("--way") { Description = "runs, rocksdb, faster, or all.", DefaultValueFactory = _ => "all" };
wayOption.AcceptOnlyFromAmong("runs", "rocksdb", "faster", "all");
idsOption.Validators.Add(result =>
{
    if (result.GetValueOrDefault<long>() < 1_000_000) result.AddError("--ids must be at least 1000000.");
});
RootCommand command = new("Measure what it costs to remember every transaction id for ever: own runs, RocksDB and FASTER.") { idsOption, wayOption };
command.SetAction(parsed => Run(parsed.GetValue(idsOption), parsed.GetValue(wayOption)!));
return command.Parse(args).Invoke();

static int Run(long ids, string way)
{
    // Beside the data of a real server rather than in a temporary folder, which may be memory.
    string folder = Path.GetFullPath($"purse-bench-{Environment.ProcessId}");
    Table table = new Table().Border(TableBorder.Rounded).AddColumn("way");
    foreach (string column in (string[])["ids", "ns per transfer: first million", "last million", "with what runs beside, CPU", "slowest batch ms", "ns per old id", "memory B per id", "of an old id", "disk B per id"]) table.AddColumn(column, c => c.RightAligned());
    foreach ((string name, Func<IdsWay> start) in (List<(string, Func<IdsWay>)>)[("runs", () => new IdsInRuns(folder)), ("rocksdb", () => new IdsInRocksDb(folder)), ("faster", () => new IdsInFaster(folder, ids))])
    {
        if (way != "all" && way != name) continue;
        try
        {
            IdsMeasured one = IdsLoad.Run(start, folder, ids, done => Console.Error.Write($"\r{name} {done:P0} "));
            table.AddRow(
                one.Way, $"{one.Ids:N0}", $"{one.FirstNanoseconds:0}", $"{one.LastNanoseconds:0}", $"{one.CpuNanoseconds:0}", $"{one.SlowestBatchMilliseconds:0.0}", $"{one.OldNanoseconds:N0}", $"{one.MemoryBytesPerId:0.0}",
                one.OldMemoryBytesPerId is double old ? $"{old:0.00}" : "", $"{one.DiskBytesPerId:0.0}");
        }
        finally
        {
            Console.Error.WriteLine();
            if (Directory.Exists(folder)) Directory.Delete(folder, recursive: true);
        }
    }

    AnsiConsole.Write(table);
    Console.WriteLine("Per transfer: look up an id that is new, and remember it, in batches of 4096. Random ids, 10 000 homes. Memory: what the process has more than before, once all is settled; recent ids included. No way writes a log of its own: the journal is there.");
    return 0;
}
