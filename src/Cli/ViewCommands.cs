using System.CommandLine;
using System.Diagnostics;
using Purse.Cluster;
using Purse.Partitions;
using Purse.Server;
using Purse.Views;

namespace Purse.Cli;

/// <summary>Read models are made from the journals, and may be made again at any time.</summary>
static class ViewCommands
{
    static readonly TimeSpan LookInterval = TimeSpan.FromMilliseconds(100);

    public static Command Create()
    {
        Option<string> data = Terminal.DataOption();
        Option<string?> cluster = Terminal.ClusterOption();
        Argument<string[]> names = new("views") { Description = "Such as redis; each whose name begins so. All where none is named.", Arity = ArgumentArity.ZeroOrMore };
        Command rebuild = new("rebuild", "Empty views, and wait until they are filled again from the first event on. What runs goes on.") { names, data, cluster };
        rebuild.Validators.Add(result => Terminal.CheckEither(result, data, cluster));
        rebuild.SetAction((parsed, cancellation) => Terminal.RunAsync(() => parsed.GetValue(cluster) is string address
            ? RebuildClusterAsync(address, parsed.GetValue(names) ?? [], cancellation)
            : RebuildFolderAsync(parsed.GetValue(data)!, parsed.GetValue(names) ?? [], cancellation)));
        return new Command("views", "Read models: accounts, balances and transfers to look at.") { rebuild };
    }

    static async Task<int> RebuildFolderAsync(string data, string[] names, CancellationToken cancellation)
    {
        using DataFolder folder = DataFolder.OpenForReading(data);
        using SqliteView view = new(folder.ViewPath, folder.PartitionsCount);
        bool isServed = folder.IsHeld();
        ulong[] before = view.Open();
        Choose([view], names);
        view.Clear();
        if (isServed) return await WatchAsync([view], before, cancellation);
        // Nobody else does it.
        await using WalletServer server = await WalletServer.StartAsync(new WalletServerOptions { DataFolder = data, Listen = "http://127.0.0.1:0" });
        return await WatchAsync([view], [.. server.Partitions.Select(partition => partition.FlushedSequence)], cancellation);
    }

    static async Task<int> RebuildClusterAsync(string address, string[] names, CancellationToken cancellation)
    {
        await using ClusterMap map = await ClusterMap.OpenAsync(address, static _ => { });
        List<IView> all = [.. ViewHost.ViewsOf(map.Settings.Id, map.Settings.View, map.Settings.Redis, map.PartitionsCount).Select(one => one.Make())];
        try
        {
            List<IView> views = Choose(all, names);
            if (views.Count == 0) throw new IOException("The cluster names no views. `purse cluster view set` and `purse cluster redis set` do.");
            foreach (IView view in views)
            {
                await Task.Run(view.Open, cancellation);
                await Task.Run(view.Clear, cancellation);
            }

            if (!(await map.WalletsAsync()).Exists(wallet => wallet.Role != "query"))
            {
                Terminal.Note($"{views.Count} views are empty. No wallet is running: the next one that starts fills them.");
                return Exit.Done;
            }

            FloorNode?[] floors = await Task.WhenAll(Enumerable.Range(0, map.PartitionsCount).Select(map.ReadFloorAsync));
            return await WatchAsync(views, [.. floors.Select(floor => floor?.Sequence ?? 0)], cancellation);
        }
        finally
        {
            foreach (IView view in all) view.Dispose();
        }
    }

    static List<IView> Choose(List<IView> all, string[] names)
    {
        string? unknown = names.FirstOrDefault(name => !all.Exists(view => view.Name.StartsWith(name, StringComparison.Ordinal)));
        if (unknown is not null) throw new IOException($"There is no view '{unknown}'; there is {string.Join(", ", all.Select(view => view.Name))}.");
        return names.Length == 0 ? all : all.FindAll(view => names.Any(name => view.Name.StartsWith(name, StringComparison.Ordinal)));
    }

    /// <param name="heads">Up to where each is filled again, by partition; what comes after that meanwhile is not waited for.</param>
    static async Task<int> WatchAsync(IReadOnlyList<IView> views, ulong[] heads, CancellationToken cancellation)
    {
        Stopwatch watch = Stopwatch.StartNew();
        double all = heads.Sum(head => (double)head) * views.Count;
        List<IView> rest = [.. views];
        double done = 0;
        await Terminal.ProgressAsync($"Filling {string.Join(", ", views.Select(view => view.Name))}", async progress =>
        {
            while (rest.Count > 0)
            {
                double now = done;
                foreach (IView view in rest.ToArray())
                {
                    ulong[] positions = Checkpoint.PositionsOf(await Task.Run(view.Look, cancellation));
                    double shown = positions.Zip(heads).Sum(pair => (double)Math.Min(pair.First, pair.Second));
                    now += shown;
                    if (positions.Zip(heads).Any(pair => pair.First < pair.Second)) continue;
                    done += shown;
                    rest.Remove(view);
                    Terminal.Note($"{view.Name} shows {shown:0} events again, after {watch.Elapsed.TotalSeconds:0.0} s.");
                }

                progress(all == 0 ? 1 : now / all);
                if (rest.Count > 0) await Task.Delay(LookInterval, cancellation);
            }

            return 0;
        });
        return Exit.Done;
    }
}
