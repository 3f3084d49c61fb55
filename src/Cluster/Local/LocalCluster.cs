using System.Diagnostics;
using System.Security.Cryptography;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace Purse.Cluster.Local;

/// <summary>One process of a cluster on this machine.</summary>
/// <param name="Command">Which starts it again.</param>
public sealed record LocalClusterProcess(string Name, string Role, int Pid, string Address, string[] Command)
{
    [JsonIgnore]
    public int Port => new Uri(Address.Contains("://", StringComparison.Ordinal) ? Address : $"tcp://{Address}").Port;
}

/// <summary>A whole cluster on one machine, for trying out and for tests: its servers go on after whoever started them.</summary>
/// <param name="Folder">Has a folder for each process, with its data and its <c>log</c>.</param>
/// <param name="Cluster">What <c>purse serve --cluster</c> takes.</param>
public sealed record LocalCluster(string Folder, string Cluster, List<LocalClusterProcess> Processes)
{
    const string StateFile = "cluster.json", PasswordFile = "pgpass";
    const int ZooKeepers = 3, Stores = 3, RedisNodes = 2, Wallets = 3;

    /// <summary>Processes of this program.</summary>
    static bool IsNode(string role) => role is "wallet" or "front";

    /// <summary>Of the journals' user, the view's, and the servers' own; none may do what another does.</summary>
    const string JournalUser = "purse_journal", ViewUser = "purse_view";

    static readonly JsonSerializerOptions Json = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    /// <summary>The environment of whatever opens its databases: their passwords are in a file that only its owner reads.</summary>
    public static KeyValuePair<string, string> PasswordsOf(string folder) => new("PGPASSFILE", Path.Combine(Path.GetFullPath(folder), PasswordFile));

    /// <summary>Starts all of it in an empty folder, or what does not run of the one that is there, and waits until its wallets are ready.</summary>
    /// <param name="program">How this program is started.</param>
    public static async Task<LocalCluster> UpAsync(string folder, int partitionsCount, string[] program, Action<string> progress)
    {
        folder = Path.GetFullPath(folder);
        if (File.Exists(Path.Combine(folder, StateFile))) return await UpAgainAsync(Open(folder), progress);
        if (Directory.Exists(folder) && Directory.EnumerateFileSystemEntries(folder).Any()) throw new IOException($"{folder} is not empty, and has no cluster. Name another one with --folder.");
        (string Package, bool IsInstalled)[] needed = [("zookeeper", LocalZooKeeper.IsInstalled), ("postgresql", LocalPostgreSql.ProgramsFolder is not null), ("redis-server", LocalRedis.IsInstalled)];
        string[] missing = [.. needed.Where(one => !one.IsInstalled).Select(one => one.Package)];
        if (missing.Length > 0) throw new IOException($"Not installed: {string.Join(", ", missing)}. On Debian: apt-get install --no-install-recommends {string.Join(' ', missing)}");
        Directory.CreateDirectory(folder);
        LocalCluster cluster = new(folder, "", []);
        try
        {
            return await cluster.StartAsync(partitionsCount, program, progress);
        }
        catch
        {
            await DownAsync(folder, static _ => { });
            throw;
        }
    }

    static async Task<LocalCluster> UpAgainAsync(LocalCluster cluster, Action<string> progress)
    {
        if (!cluster.Processes.Exists(process => process.Role == "wallet")) throw new IOException($"The cluster in {cluster.Folder} was never whole. Remove the folder.");
        foreach (IGrouping<bool, string> some in cluster.Processes.ToLookup(process => IsNode(process.Role), process => process.Name))
        {
            foreach (string name in some.Where(name => !cluster.IsRunning(cluster.Of(name))))
            {
                progress($"Starting {name}");
                cluster.StartAgain(name);
            }

            // What wallets use is there before them.
            foreach (string name in some) await cluster.WaitAsync(name);
        }

        return cluster;
    }

    public LocalClusterProcess Of(string name) => Processes.Find(process => process.Name == name) ?? throw new IOException($"The cluster in {Folder} has no {name}.");

    /// <summary>Starts a process that does not run any more, as it was.</summary>
    public void StartAgain(string name)
    {
        int index = Processes.FindIndex(process => process.Name == name);
        using Process process = LocalProcess.Start(Path.Combine(Folder, name), Processes[index].Command);
        Processes[index] = Processes[index] with { Pid = process.Id };
        Save();
    }

    /// <summary>Until it serves.</summary>
    public async Task WaitAsync(string name)
    {
        LocalClusterProcess process = Of(name);
        using HttpClient http = new() { Timeout = TimeSpan.FromSeconds(5) };
        // One that has only just begun may not be found where it will run.
        int ended = 0;
        for (long deadline = Environment.TickCount64 + 120_000; !await IsReadyAsync(process, http); await Task.Delay(50))
        {
            ended = IsRunning(process) ? 0 : ended + 1;
            if (ended > 3 || Environment.TickCount64 > deadline)
                throw new IOException($"{name} {(ended > 0 ? "ended" : "does not serve for two minutes")}, process {process.Pid}: {LocalProcess.LogOf(Path.Combine(Folder, name))}");
        }
    }

    async Task<bool> IsReadyAsync(LocalClusterProcess process, HttpClient http)
    {
        switch (process.Role)
        {
            case "zookeeper":
                return await LocalZooKeeper.ModeAsync(process.Port) is not null;
            case "redis":
                return await LocalRedis.IsReadyAsync(process.Port);
            case "wallet" or "front":
                try
                {
                    using HttpResponseMessage ready = await http.GetAsync(new Uri($"{process.Address}/readyz"));
                    return ready.IsSuccessStatusCode;
                }
                catch (Exception e) when (e is HttpRequestException or TaskCanceledException)
                {
                    return false;
                }

            default:
                return await LocalPostgreSql.IsReadyAsync(Path.Combine(Folder, process.Name), process.Port);
        }
    }

    async Task<LocalCluster> StartAsync(int partitionsCount, string[] program, Action<string> progress)
    {
        progress("ZooKeeper: an ensemble of three");
        List<LocalZooKeeper> ensemble = await LocalZooKeeper.MakeEnsembleAsync(Folder, ZooKeepers);
        LocalCluster cluster = this with { Cluster = $"zk://{string.Join(',', ensemble.Select(server => server.Address))}/purse" };
        for (int i = 0; i < ensemble.Count; i++) cluster.Add($"zookeeper-{i + 1}", "zookeeper", ensemble[i].ProcessId, ensemble[i].Address, ensemble[i].Command);

        progress("PostgreSQL: three servers, and a synchronous standby of the first");
        string journalPassword = NewPassword(), viewPassword = NewPassword();
        List<string> passwords = [];
        SortedDictionary<string, StoreSettings> stores = [];
        string view = "";
        for (int i = 0; i < Stores; i++)
        {
            LocalPostgreSql server = await LocalPostgreSql.MakeAsync(Path.Combine(Folder, $"postgres-{i + 1}"), ["max_wal_size = 4GB"]);
            cluster.Add($"postgres-{i + 1}", "postgres", server.ProcessId, $"127.0.0.1:{server.Port}", server.Command);
            await MakeDatabaseAsync(server, "purse", JournalUser, journalPassword);
            passwords.Add($"127.0.0.1:{server.Port}:*:{JournalUser}:{journalPassword}");
            string hosts = $"127.0.0.1:{server.Port}";
            if (i == 0)
            {
                LocalPostgreSql standby = await server.MakeStandbyAsync(Path.Combine(Folder, "postgres-1-standby"), "standby", isSynchronous: true);
                cluster.Add("postgres-1-standby", "standby", standby.ProcessId, $"127.0.0.1:{standby.Port}", standby.Command);
                passwords.Add($"127.0.0.1:{standby.Port}:*:{JournalUser}:{journalPassword}");
                hosts += $",127.0.0.1:{standby.Port}";
            }

            stores[$"s{i + 1}"] = new StoreSettings($"Host={hosts};Database=purse;Username={JournalUser}", Replicated: i == 0);
            if (i < Stores - 1) continue;
            await MakeDatabaseAsync(server, "purse_view", ViewUser, viewPassword);
            passwords.Add($"127.0.0.1:{server.Port}:*:{ViewUser}:{viewPassword}");
            view = $"Host={hosts};Database=purse_view;Username={ViewUser}";
        }

        string passwordFile = Path.Combine(Folder, PasswordFile);
        await File.WriteAllLinesAsync(passwordFile, passwords);
        if (!OperatingSystem.IsWindows()) File.SetUnixFileMode(passwordFile, UnixFileMode.UserRead | UnixFileMode.UserWrite);

        progress("Redis: two nodes");
        List<string> redis = [];
        for (int i = 0; i < RedisNodes; i++)
        {
            LocalRedis node = await LocalRedis.StartAsync(Path.Combine(Folder, $"redis-{i + 1}"));
            cluster.Add($"redis-{i + 1}", "redis", node.ProcessId, node.Address, node.Command);
            redis.Add(node.Address);
        }

        progress("The map in ZooKeeper, three wallet nodes and a front");
        await ClusterMap.InitAsync(cluster.Cluster, partitionsCount, static _ => { });
        await using (ClusterMap map = await ClusterMap.OpenAsync(cluster.Cluster, static _ => { }))
            await map.ChangeAsync(settings => settings with { Stores = stores, Partitions = [.. Enumerable.Range(0, partitionsCount).Select(number => stores.Keys.ElementAt(number % stores.Count))], Redis = [.. redis], View = view });
        for (int i = 0; i < Wallets; i++) cluster.StartNode($"wallet-{i + 1}", "wallet", "all", program);
        cluster.StartNode("front-1", "front", "front", program);
        foreach (LocalClusterProcess node in cluster.Processes.FindAll(process => IsNode(process.Role))) await cluster.WaitAsync(node.Name);
        return cluster;
    }

    static string NewPassword() => Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(16));

    static async Task MakeDatabaseAsync(LocalPostgreSql server, string name, string user, string password)
    {
        await server.ExecuteAsync($"create role {user} login password '{password}'");
        await server.ExecuteAsync($"create database {name} owner {user}");
        // Nobody else even connects to it.
        await server.ExecuteAsync($"revoke connect, temporary on database {name} from public");
    }

    /// <param name="nodeRole">As <c>purse serve --role</c> takes it.</param>
    void StartNode(string name, string role, string nodeRole, string[] program)
    {
        string own = Path.Combine(Folder, name);
        Directory.CreateDirectory(own);
        string address = $"http://127.0.0.1:{LocalProcess.FreePort()}";
        KeyValuePair<string, string> passwords = PasswordsOf(Folder);
        string[] command = ["env", $"{passwords.Key}={passwords.Value}", .. program, "serve", "--cluster", Cluster, "--role", nodeRole, "--listen", address];
        using Process process = LocalProcess.Start(own, command);
        Add(name, role, process.Id, address, command);
    }

    /// <summary>Known as soon as it runs: whatever fails later, it can be ended.</summary>
    void Add(string name, string role, int processId, string address, string[] command)
    {
        Processes.Add(new LocalClusterProcess(name, role, processId, address, command));
        Save();
    }

    void Save() => File.WriteAllText(Path.Combine(Folder, StateFile), JsonSerializer.Serialize(this, Json));

    public static LocalCluster Open(string folder)
    {
        string path = Path.Combine(Path.GetFullPath(folder), StateFile);
        if (!File.Exists(path)) throw new IOException($"There is no cluster in {folder}: it has no {StateFile}. Name the folder that `purse cluster up --folder` was given.");
        return JsonSerializer.Deserialize<LocalCluster>(File.ReadAllText(path), Json) ?? throw new IOException($"{path} is empty.");
    }

    /// <summary>Ends its processes, those that use others first. The folder stays.</summary>
    /// <returns>How many were running.</returns>
    public static async Task<int> DownAsync(string folder, Action<string> progress)
    {
        if (!File.Exists(Path.Combine(folder, StateFile))) return 0;
        LocalCluster cluster = Open(folder);
        int ended = 0;
        foreach (LocalClusterProcess process in Enumerable.Reverse(cluster.Processes))
        {
            if (!cluster.IsRunning(process)) continue;
            progress($"Stopping {process.Name}");
            // PostgreSQL ends its clients' sessions on SIGINT; with SIGTERM it would wait for them.
            await LocalProcess.SignalAsync(process.Pid, process.Role is "postgres" or "standby" ? "INT" : "TERM");
            for (long deadline = Environment.TickCount64 + 30_000; cluster.IsRunning(process); await Task.Delay(20))
            {
                if (Environment.TickCount64 > deadline) await LocalProcess.SignalAsync(process.Pid, "KILL");
            }

            ended++;
        }

        return ended;
    }

    /// <summary>By its number and the folder that it runs in: numbers are given again.</summary>
    public bool IsRunning(LocalClusterProcess process)
    {
        try
        {
            string stat = File.ReadAllText($"/proc/{process.Pid}/stat");
            // Its other threads may still be ending, and have its ports until then.
            if (stat[(stat.LastIndexOf(')') + 2)..][0] == 'Z') return Directory.GetDirectories($"/proc/{process.Pid}/task").Length > 1;
            return new FileInfo($"/proc/{process.Pid}/cwd").LinkTarget is not string cwd || cwd == Folder || cwd.StartsWith(Folder + Path.DirectorySeparatorChar, StringComparison.Ordinal);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }
}
