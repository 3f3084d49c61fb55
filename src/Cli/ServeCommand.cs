using System.CommandLine;
using System.Net;
using Purse.Partitions;
using Purse.Server;

namespace Purse.Cli;

static class ServeCommand
{
    public const string Name = "serve";
    public const string ListenDefault = "http://127.0.0.1:7070";

    /// <summary>What stands before the address in the line that says a server is ready; <see cref="ServerProcess"/> reads it.</summary>
    public const string ReadyPrefix = "Purse is ready on ";

    public static Command Create()
    {
        Option<string> data = Terminal.DataOption();
        Option<string> listen = new("--listen") { Description = "The address to serve; loopback only, port 0 takes a free one.", DefaultValueFactory = _ => ListenDefault };
        Option<int?> partitions = new("--partitions") { Description = "For a new data folder: how many shards its accounts are spread over, for ever; 1 by default." };
        partitions.Validators.Add(result =>
        {
            if (result.GetValueOrDefault<int?>() is < 1 or > DataFolder.PartitionsMax) result.AddError($"--partitions takes 1 to {DataFolder.PartitionsMax}.");
        });
        Option<string?> cluster = new("--cluster") { Description = "Serve the cluster at zk://host:port,host:port/path, in place of a data folder." };
        Option<NodeRole> role = new("--role") { Description = "Of a cluster's node: all; front, which takes requests and has no partitions; write, which has partitions and takes no requests; query, which answers from the views and needs no right to a journal." };
        Option<string> node = new("--node") { Description = "Where the other nodes of the cluster reach this one, as ADDRESS:PORT; the next port is taken, too. Port 0 takes free ones.", DefaultValueFactory = _ => "127.0.0.1:0" };
        node.Validators.Add(result =>
        {
            if (!IPEndPoint.TryParse(result.GetValueOrDefault<string>(), out IPEndPoint? _)) result.AddError("--node takes an address such as 10.0.0.5:11111.");
        });
        Option<ulong> snapshotEvery = SnapshotOption();
        Command command = new(Name, "Serve wallets from a data folder, or those of a cluster.") { data, listen, partitions, cluster, role, node, snapshotEvery };
        command.Validators.Add(result =>
        {
            if (result.GetValue(cluster) is not null && (result.GetResult(data) is { Implicit: false } || result.GetValue(partitions) is not null))
                result.AddError("--cluster says where everything is: leave out --data and --partitions.");
            if (result.GetValue(cluster) is null && result.GetValue(role) != NodeRole.All) result.AddError("--role is of a cluster's node: say which with --cluster.");
        });
        command.SetAction((parsed, _) => Terminal.RunAsync(() => RunAsync(parsed.GetValue(data)!, parsed.GetValue(cluster), parsed.GetValue(listen)!, parsed.GetValue(partitions), parsed.GetValue(role), IPEndPoint.Parse(parsed.GetValue(node)!), parsed.GetValue(snapshotEvery))));
        return command;
    }

    const ulong SnapshotEveryMin = 10_000;

    public static Option<ulong> SnapshotOption()
    {
        Option<ulong> option = new("--snapshot-every")
        {
            Description = "After how many events of a partition a snapshot is made, from which the next start goes on; with many balances, after more.",
            DefaultValueFactory = _ => new PartitionOptions().EventsPerSnapshot,
        };
        option.Validators.Add(result =>
        {
            if (result.GetValueOrDefault<ulong>() < SnapshotEveryMin) result.AddError($"--snapshot-every takes {SnapshotEveryMin} or more.");
        });
        return option;
    }

    static async Task<int> RunAsync(string data, string? cluster, string listen, int? partitions, NodeRole role, IPEndPoint node, ulong snapshotEvery)
    {
        HugePages.Advise();
        await using WalletServer server = await WalletServer.StartAsync(new WalletServerOptions
        {
            DataFolder = cluster is null ? data : null,
            Cluster = cluster,
            Role = role,
            NodeAddress = node,
            Listen = listen,
            PartitionsCount = partitions,
            Partition = new PartitionOptions { EventsPerSnapshot = snapshotEvery },
            EndProcess = static () => Environment.Exit(Exit.Failed),
            Log = message => Terminal.Note($"{DateTimeOffset.UtcNow:HH:mm:ss.fff} {message}"),
        });
        Console.WriteLine($"{ReadyPrefix}{server.Address.GetLeftPart(UriPartial.Authority)} ({(cluster is null ? $"data in {Path.GetFullPath(data)}" : $"cluster {cluster}")})");
        await server.WaitForStopAsync();
        Terminal.Note($"{DateTimeOffset.UtcNow:HH:mm:ss.fff} Stopping: answering what is in flight, then leaving a snapshot.");
        // Of a node that was taken for dead it says that it did not end well (Node.cs).
        return Environment.ExitCode;
    }
}
