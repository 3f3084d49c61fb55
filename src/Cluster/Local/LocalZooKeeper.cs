using System.Diagnostics;
using System.Net.Sockets;
using System.Text;
using Purse.Cluster.ZooKeeper;

namespace Purse.Cluster.Local;

/// <summary>A ZooKeeper server of this machine's own package, as a child process in a folder of its own, on loopback. For trying out and for tests.</summary>
public sealed class LocalZooKeeper : IAsyncDisposable
{
    const string Classes = "/usr/share/java/zookeeper.jar", Logger = "/usr/share/java/slf4j-simple.jar";
    Process _process;

    LocalZooKeeper(string folder, int port, bool asksForPassword)
    {
        Folder = folder;
        Port = port;
        Command =
        [
            "java", "-Xmx256m", .. asksForPassword ? (string[])["-Djava.security.auth.login.config=jaas.conf"] : [], "-Djava.net.preferIPv4Stack=true", "-cp", $"{Classes}:{Logger}",
            "-Dorg.slf4j.simpleLogger.showDateTime=true", "org.apache.zookeeper.server.quorum.QuorumPeerMain", "zoo.cfg",
        ];
        _process = LocalProcess.Start(folder, Command);
    }

    public string Folder { get; }

    public int Port { get; }

    public int ProcessId => _process.Id;

    public string[] Command { get; }

    public string Address => $"127.0.0.1:{Port}";

    public static bool IsInstalled => File.Exists(Classes);

    /// <summary>An ensemble in an empty folder; ready when it has a leader.</summary>
    /// <param name="count">Of servers: 1, or 3 to live on without one.</param>
    /// <param name="credentials">Where everybody has to sign in with them.</param>
    public static async Task<List<LocalZooKeeper>> MakeEnsembleAsync(string folder, int count, ZooKeeperCredentials? credentials = null)
    {
        if (!IsInstalled) throw new IOException("ZooKeeper is not installed: install Debian's package zookeeper.");
        int[] ports = [.. Enumerable.Range(0, count * 3).Select(_ => LocalProcess.FreePort())];
        List<LocalZooKeeper> servers = [];
        for (int i = 0; i < count; i++)
        {
            string own = Path.Combine(folder, $"zookeeper-{i + 1}");
            Directory.CreateDirectory(Path.Combine(own, "data"));
            File.WriteAllText(Path.Combine(own, "data/myid"), $"{i + 1}");
            List<string> lines =
            [
                "tickTime=500", "initLimit=20", "syncLimit=10", $"dataDir={own}/data", $"clientPort={ports[i * 3]}", "clientPortAddress=127.0.0.1", "admin.enableServer=false",
                "4lw.commands.whitelist=ruok,srvr,mntr", "minSessionTimeout=1000",
            ];
            if (count > 1) lines.AddRange(Enumerable.Range(0, count).Select(n => $"server.{n + 1}=127.0.0.1:{ports[n * 3 + 1]}:{ports[n * 3 + 2]}"));
            if (credentials is not null)
            {
                lines.AddRange(["authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider", "enforce.auth.enabled=true", "enforce.auth.schemes=sasl"]);
                File.WriteAllText(Path.Combine(own, "jaas.conf"), $"Server {{ org.apache.zookeeper.server.auth.DigestLoginModule required user_{credentials.User}=\"{credentials.Password}\"; }};\n");
            }

            File.WriteAllLines(Path.Combine(own, "zoo.cfg"), lines);
            servers.Add(new LocalZooKeeper(own, ports[i * 3], credentials is not null));
        }

        foreach (LocalZooKeeper server in servers) await server.WaitAsync();
        return servers;
    }

    /// <summary>Until it serves: it answers that it is well before that.</summary>
    public async Task WaitAsync()
    {
        for (long deadline = Environment.TickCount64 + 60_000; await ModeAsync() is null; await Task.Delay(50))
        {
            if (_process.HasExited || Environment.TickCount64 > deadline) throw new IOException($"The ZooKeeper server in {Folder} does not serve; its log is there.");
        }
    }

    /// <summary><c>leader</c>, <c>follower</c> or <c>standalone</c>; null where it does not serve.</summary>
    public Task<string?> ModeAsync() => ModeAsync(Port);

    public static async Task<string?> ModeAsync(int port)
    {
        try
        {
            using TcpClient client = new();
            using CancellationTokenSource limit = new(1000);
            await client.ConnectAsync("127.0.0.1", port, limit.Token);
            await client.GetStream().WriteAsync("srvr"u8.ToArray(), limit.Token);
            using StreamReader reader = new(client.GetStream(), Encoding.UTF8);
            string told = await reader.ReadToEndAsync(limit.Token);
            return told.Split('\n').FirstOrDefault(line => line.StartsWith("Mode: ", StringComparison.Ordinal))?["Mode: ".Length..].Trim();
        }
        catch (Exception e) when (e is SocketException or IOException or OperationCanceledException)
        {
            return null;
        }
    }

    public async Task KillAsync()
    {
        if (_process.HasExited) return;
        _process.Kill();
        await _process.WaitForExitAsync();
    }

    public void Restart()
    {
        _process.Dispose();
        _process = LocalProcess.Start(Folder, Command);
    }

    /// <summary>It hangs from here on, until it is told to go on: nothing is closed, nothing is answered.</summary>
    public Task PauseAsync() => LocalProcess.SignalAsync(ProcessId, "STOP");

    public Task ContinueAsync() => LocalProcess.SignalAsync(ProcessId, "CONT");

    public async ValueTask DisposeAsync()
    {
        await KillAsync();
        _process.Dispose();
    }
}
