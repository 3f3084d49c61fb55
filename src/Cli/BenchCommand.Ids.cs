using System.CommandLine;
using System.Text.Json;
using Purse.Load;
using Purse.Server;
using Spectre.Console;

namespace Purse.Cli;

/// <summary>What it costs to remember every id for ever, in several ways, on the same ids.</summary>
static partial class BenchCommand
{
    static Command CreateIds()
    {
        Option<long> ids = new("--ids") { Description = "How many.", DefaultValueFactory = _ => 20_000_000 };
        Option<string> way = new("--way") { Description = "runs, rocksdb, faster, or all.", DefaultValueFactory = _ => "all" };
        way.AcceptOnlyFromAmong("runs", "rocksdb", "faster", "all");
        Option<bool> json = Terminal.JsonOption();
        Command command = new("ids", "Measure what it costs to remember every transaction id for ever: own runs, RocksDB and FASTER.") { ids, way, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(() => IdsAsync(parsed.GetValue(ids), parsed.GetValue(way)!, parsed.GetValue(json))));
        return command;
    }

    static async Task<int> IdsAsync(long ids, string way, bool asJson)
    {
        if (ids < 1_000_000) throw new StartException("--ids must be at least 1000000.");
        string folder = Path.GetFullPath($"purse-bench-{Environment.ProcessId}");
        List<IdsMeasured> results = [];
        foreach ((string name, Func<IdsWay> start) in (List<(string, Func<IdsWay>)>)[("runs", () => new IdsInRuns(folder)), ("rocksdb", () => new IdsInRocksDb(folder)), ("faster", () => new IdsInFaster(folder, ids))])
        {
            if (way != "all" && way != name) continue;
            try
            {
                results.Add(await Terminal.ProgressAsync(name, progress => Task.Run(() => IdsLoad.Run(start, folder, ids, progress))));
            }
            finally
            {
                if (Directory.Exists(folder)) Directory.Delete(folder, recursive: true);
            }
        }

        if (asJson) Console.WriteLine(JsonSerializer.Serialize(results, Terminal.Indented));
        else Print(results);
        return Exit.Done;
    }

    static void Print(List<IdsMeasured> results)
    {
        Table table = new Table().Border(TableBorder.Rounded).AddColumn("way");
        foreach (string column in (string[])["ids", "ns per transfer: first million", "last million", "with what runs beside, CPU", "slowest batch ms", "ns per old id", "memory B per id", "of an old id", "disk B per id"]) table.AddColumn(column, c => c.RightAligned());
        foreach (IdsMeasured one in results)
        {
            table.AddRow(
                one.Way, $"{one.Ids:N0}", $"{one.FirstNanoseconds:0}", $"{one.LastNanoseconds:0}", $"{one.CpuNanoseconds:0}", $"{one.SlowestBatchMilliseconds:0.0}", $"{one.OldNanoseconds:N0}", $"{one.MemoryBytesPerId:0.0}",
                one.OldMemoryBytesPerId is double old ? $"{old:0.00}" : "", $"{one.DiskBytesPerId:0.0}");
        }

        Terminal.Out.Write(table);
        Console.WriteLine("Per transfer: look up an id that is new, and remember it, in batches of 4096. Random ids, 10 000 homes. Memory: what the process has more than before, once all is settled; recent ids included. No way writes a log of its own: the journal is there.");
    }
}
