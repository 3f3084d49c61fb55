using System.CommandLine;
using System.Text.Json;
using Purse.Cluster;
using Purse.Cluster.Local;
using Purse.Journal;
using Purse.Partitions;
using Spectre.Console;

namespace Purse.Cli;

/// <summary>Commands that make, show and change a cluster; all but up and down speak to its ZooKeeper and its databases.</summary>
static class ClusterCommands
{
    static Option<string> ClusterOption() => new("--cluster") { Description = "zk://host:port,host:port/path", Required = true };

    public static Command Create() => new("cluster", "Make, show and change a cluster; try one out on this machine.")
    {
        Init(), Stores(), Redis(), View(), Status(), Move(), AcceptLoss(), Up(), Down(),
    };

    static Command Init()
    {
        Option<string> cluster = ClusterOption();
        Option<int> partitions = new("--partitions") { Description = "How many shards its accounts are spread over, for ever.", Required = true };
        partitions.Validators.Add(result =>
        {
            if (result.GetValueOrDefault<int>() is < 1 or > DataFolder.PartitionsMax) result.AddError($"--partitions takes 1 to {DataFolder.PartitionsMax}.");
        });
        Command command = new("init", "Make a cluster in an empty place of ZooKeeper.") { cluster, partitions };
        command.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            await ClusterMap.InitAsync(parsed.GetValue(cluster)!, parsed.GetValue(partitions), static _ => { });
            Terminal.Note($"A cluster of {parsed.GetValue(partitions)} partitions is at {parsed.GetValue(cluster)}. Next: purse cluster stores add.");
            return Exit.Done;
        }));
        return command;
    }

    static Command Stores()
    {
        Command command = new("stores", "Where journals are kept.") { StoresSubcommand("add", isNew: true), StoresSubcommand("set", isNew: false) };
        return command;
    }

    static Command StoresSubcommand(string verb, bool isNew)
    {
        Option<string> cluster = ClusterOption();
        Argument<string> name = new("name") { Description = "Such as s1." };
        Option<string> connection = new("--connection") { Description = "As Npgsql takes it, without a password: Host=db1,db1b;Database=purse;Username=purse_journal", Required = true };
        Option<bool> replicated = new("--replicated") { Description = "It has a synchronous standby, and takes no writes without one." };
        Command sub = new(verb, isNew ? "Add a PostgreSQL database. Partitions that were never written are spread over all stores again." : "Give a store another address; its journals must be there already.") { name, cluster, connection, replicated };
        sub.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            (string store, StoreSettings settings) = (parsed.GetValue(name)!, new StoreSettings(CheckConnection(parsed.GetValue(connection)!), parsed.GetValue(replicated)));
            await using ClusterMap map = await OpenAsync(parsed.GetValue(cluster)!);
            bool[] isWritten = [.. await Task.WhenAll(Enumerable.Range(0, map.PartitionsCount).Select(async number => await map.ReadFloorAsync(number) is not null))];
            await map.ChangeAsync(before =>
            {
                if (isNew == before.Stores.ContainsKey(store)) throw new IOException(isNew ? $"There is a store {store} already; `purse cluster stores set` changes its address." : $"There is no store {store}; `purse cluster stores add` makes one.");
                ClusterSettings after = before with { Stores = new SortedDictionary<string, StoreSettings>(before.Stores, StringComparer.Ordinal) { [store] = settings } };
                return isNew ? after with { Partitions = [.. before.Partitions.Select((at, number) => isWritten[number] ? at : after.Stores.Keys.ElementAt(number % after.Stores.Count))] } : after;
            });
            Terminal.Note($"Store {store} has partitions {string.Join(", ", map.Settings.Partitions.Index().Where(one => one.Item == store).Select(one => one.Index).DefaultIfEmpty(-1)).Replace("-1", "none yet", StringComparison.Ordinal)}.");
            return Exit.Done;
        }));
        return sub;
    }

    /// <summary>ZooKeeper shows it to everybody who reaches it.</summary>
    static string CheckConnection(string connection)
    {
        try
        {
            Npgsql.NpgsqlConnectionStringBuilder builder = new(connection);
            if (string.IsNullOrEmpty(builder.Host) || string.IsNullOrEmpty(builder.Username)) throw new IOException($"'{connection}' names no host, or no user. It should look like Host=db1,db1b;Database=purse;Username=purse_journal.");
            if (builder.Port > ushort.MaxValue || builder.Host.Split(',').Any(host => host.LastIndexOf(':') is > 0 and int colon && !ushort.TryParse(host.AsSpan(colon + 1), out _))) throw new IOException($"'{connection}' has a port that is none: they are numbers up to {ushort.MaxValue}.");
            if (builder.Password is not null) throw new IOException("Leave the password out: ZooKeeper shows it to all who reach it. Put it into the file that PGPASSFILE names, where the wallets run.");
            return connection;
        }
        catch (ArgumentException e)
        {
            throw new IOException($"This is no PostgreSQL connection string: {e.Message}", e);
        }
    }

    static Command Redis()
    {
        Option<string> cluster = ClusterOption();
        Argument<string[]> nodes = new("nodes") { Description = "host:port of each, in order; none to do without.", Arity = ArgumentArity.ZeroOrMore };
        Command set = new("set", "Name the Redis nodes with balances. Each is filled by itself.") { nodes, cluster };
        set.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            string[] wanted = parsed.GetValue(nodes) ?? [];
            if (wanted.FirstOrDefault(node => !(node.LastIndexOf(':') is > 0 and int colon && ushort.TryParse(node.AsSpan(colon + 1), out ushort port) && port > 0)) is string wrong) throw new IOException($"'{wrong}' is no address of a Redis node; they look like redis1:6379.");
            await using ClusterMap map = await OpenAsync(parsed.GetValue(cluster)!);
            await map.ChangeAsync(settings => settings with { Redis = wanted });
            return Exit.Done;
        }));
        return new Command("redis", "Where balances are shown.") { set };
    }

    static Command View()
    {
        Option<string> cluster = ClusterOption(), connection = new("--connection") { Description = "As Npgsql takes it, without a password; a database and a user of its own.", Required = true };
        Command set = new("set", "Name the database of the view that is searched.") { cluster, connection };
        set.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            string database = CheckConnection(parsed.GetValue(connection)!);
            await using ClusterMap map = await OpenAsync(parsed.GetValue(cluster)!);
            await map.ChangeAsync(settings => settings with { View = database });
            return Exit.Done;
        }));
        return new Command("view", "Where accounts and transfers are searched.") { set };
    }

    static async Task<ClusterMap> OpenAsync(string cluster) => await ClusterMap.OpenAsync(cluster, static _ => { });

    sealed record PartitionStatus(int Partition, string? Store, ulong? Epoch, ulong? Position, int? InDoubt);

    static Command Status()
    {
        Option<string> cluster = ClusterOption();
        Option<bool> json = Terminal.JsonOption();
        Command command = new("status", "Show partitions, stores, wallets and views.") { cluster, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            await using ClusterMap map = await OpenAsync(parsed.GetValue(cluster)!);
            List<WalletNode> wallets = await map.WalletsAsync();
            PartitionStatus[] partitions = await Task.WhenAll(Enumerable.Range(0, map.PartitionsCount).Select(async number =>
                await map.ReadFloorAsync(number) is { } floor
                    ? new PartitionStatus(number, floor.Store, floor.Epoch, floor.Sequence, floor.InDoubt)
                    : new PartitionStatus(number, map.Settings.Partitions[number], null, null, null)));
            if (parsed.GetValue(json))
            {
                Console.WriteLine(JsonSerializer.Serialize(new { map.Settings.Stores, Partitions = partitions, Wallets = wallets, map.Settings.Redis, map.Settings.View }, Terminal.Indented));
                return Exit.Done;
            }

            Table table = new Table().AddColumns("partition", "store", "epoch", "position", "in doubt").RightAligned(1, 3, 4, 5);
            foreach (PartitionStatus one in partitions) table.AddRow($"{one.Partition}", one.Store ?? "none", $"{one.Epoch}", $"{one.Position}", $"{one.InDoubt}");
            Terminal.Out.Write(table);
            table = new Table().AddColumns("store", "replicated", "connection");
            foreach ((string name, StoreSettings store) in map.Settings.Stores) table.AddRow(name, store.Replicated ? "yes" : "no", Markup.Escape(store.Connection));
            Terminal.Out.Write(table);
            table = new Table().AddColumns("wallet", "process", "role", "views behind");
            foreach (WalletNode wallet in wallets) table.AddRow(wallet.Address, $"{wallet.ProcessId}", wallet.Role, string.Join(", ", wallet.ViewLagSeconds.Select(view => view.Value is double lag ? $"{view.Key} {lag:0.00} s" : $"{view.Key} is being filled")));
            if (wallets.Count == 0) table.AddRow("none is running", "", "", "");
            Terminal.Out.Write(table);
            if (map.Settings.Redis.Length > 0) Terminal.Out.MarkupLine($"Redis nodes: {Markup.Escape(string.Join(", ", map.Settings.Redis))}");
            if (map.Settings.View is string view) Terminal.Out.MarkupLine($"View: {Markup.Escape(view)}");
            return Exit.Done;
        }));
        return command;
    }

    static Table RightAligned(this Table table, params int[] columns)
    {
        foreach (int column in columns) table.Columns[column - 1].RightAligned();
        return table;
    }

    static Command Move()
    {
        Option<string> cluster = ClusterOption();
        Argument<int> partition = new("partition") { Description = "Its number." };
        Argument<string> store = new("store") { Description = "Where it goes." };
        Command command = new("move", "Move a partition's journal to another store, while it is written. May be repeated where it was cut short.") { partition, store, cluster };
        command.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            await using ClusterStores stores = new(await OpenAsync(parsed.GetValue(cluster)!), Terminal.Note);
            (int number, string to) = (parsed.GetValue(partition), parsed.GetValue(store)!);
            ClusterStore moved = StoreOf(stores, number);
            string? from = moved.Name;
            await Terminal.ProgressAsync($"partition {number} to {to}", async progress =>
            {
                await Task.Run(() => moved.MoveAsync(to, (done, of) => progress(of == 0 ? 1 : (double)done / of)));
                return 0;
            });
            Terminal.Note(from == to ? $"Partition {number} is in store {to}." : $"Partition {number} is in store {to} now. Its rows in {from} are sealed, and may be kept or dropped.");
            return Exit.Done;
        }));
        return command;
    }

    static Command AcceptLoss()
    {
        Option<string> cluster = ClusterOption();
        Argument<int> partition = new("partition") { Description = "Its number." };
        Option<bool> yes = new("--yes") { Description = "Do it. Without this, only what would be lost is said." };
        Command command = new("accept-loss", "Go on with a journal that has lost its end (journal_lost_tail), for good. What was answered beyond that is gone.") { partition, cluster, yes };
        command.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            await using ClusterStores stores = new(await OpenAsync(parsed.GetValue(cluster)!), Terminal.Note);
            ClusterStore store = StoreOf(stores, parsed.GetValue(partition));
            (JournalFloor end, List<JournalFloor> lost) = await store.FindLossAsync();
            if (lost.Count == 0)
            {
                Terminal.Note($"Partition {store.Partition} has lost nothing: all that is known of it is in its journal, which ends at event {end.Sequence}.");
                return Exit.Done;
            }

            ulong known = lost.Max(floor => floor.Sequence);
            string what = known > end.Sequence ? $"events {end.Sequence + 1} to {known}" : $"what event {known} was";
            Terminal.Note($"Lost is {what} of partition {store.Partition}: balances are what they were at {store.Partition}:{end.Sequence}, and what was sent to other partitions after that stays there.");
            if (!parsed.GetValue(yes))
            {
                Terminal.Error($"If no copy of store {store.Name} has it, say the same again with --yes.");
                return Exit.Failed;
            }

            await store.AcceptLossAsync(end, lost);
            Terminal.Note("It is accepted. Restart the wallets: the partition serves again from there. Then `purse views rebuild`: views may show what is lost.");
            return Exit.Done;
        }));
        return command;
    }

    static ClusterStore StoreOf(ClusterStores stores, int partition) =>
        partition >= 0 && partition < stores.Stores.Count ? stores.Stores[partition] : throw new IOException($"There is no partition {partition}; the cluster has 0 to {stores.Stores.Count - 1}.");

    static Option<string> FolderOption() => new("--folder") { Description = "Where its processes have their data and logs.", DefaultValueFactory = _ => "purse-cluster" };

    static Command Up()
    {
        Option<bool> local = new("--local") { Description = "On this machine, which is all that it can do: for trying out, not for production.", Required = true };
        Option<string> folder = FolderOption();
        Option<int> partitions = new("--partitions") { Description = "Of the new cluster.", DefaultValueFactory = _ => 6 };
        Option<bool> json = Terminal.JsonOption();
        Command command = new("up", "Start a whole cluster on this machine: ZooKeeper, PostgreSQL, Redis and wallets; of one that is there, what does not run.") { local, folder, partitions, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            LocalCluster cluster = await LocalCluster.UpAsync(parsed.GetValue(folder)!, parsed.GetValue(partitions), ServerProcess.Program, Terminal.Note);
            if (parsed.GetValue(json))
            {
                Console.WriteLine(JsonSerializer.Serialize(new { cluster.Folder, Processes = cluster.Processes.Select(one => new { one.Name, one.Role, one.Pid, one.Address }), cluster.Cluster }, Terminal.Indented));
                return Exit.Done;
            }

            Table table = new Table().AddColumns("name", "role", "process", "address").RightAligned(3);
            foreach (LocalClusterProcess process in cluster.Processes) table.AddRow(process.Name, process.Role, $"{process.Pid}", process.Address);
            Terminal.Out.Write(table);
            KeyValuePair<string, string> passwords = LocalCluster.PasswordsOf(cluster.Folder);
            Terminal.Out.WriteLine($"""
                Its logs are in {cluster.Folder}/NAME/log. To look at it:

                  purse cluster status --cluster {cluster.Cluster}

                To change it, such as with `purse cluster move`, it needs its passwords, too:

                  export {passwords.Key}={passwords.Value}

                One process is stopped with `kill PROCESS`, and all of them with:

                  purse cluster down --folder {cluster.Folder}
                """);
            return Exit.Done;
        }));
        return command;
    }

    static Command Down()
    {
        Option<string> folder = FolderOption();
        Command command = new("down", "Stop a cluster that `purse cluster up` started; its folder stays.") { folder };
        command.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            LocalCluster cluster = LocalCluster.Open(parsed.GetValue(folder)!);
            int ended = await LocalCluster.DownAsync(cluster.Folder, Terminal.Note);
            Terminal.Note(ended == 0 ? "Nothing of it was running." : $"{ended} processes were stopped. Their data is still in {cluster.Folder}.");
            return Exit.Done;
        }));
        return command;
    }
}
