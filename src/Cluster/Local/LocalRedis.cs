using System.Diagnostics;
using System.Net.Sockets;

namespace Purse.Cluster.Local;

/// <summary>A Redis server of this machine's own package, as a child process in a folder of its own, on loopback. For trying out and for tests.</summary>
public sealed class LocalRedis : IAsyncDisposable
{
    const string Program = "/usr/bin/redis-server";
    readonly Process _process;

    LocalRedis(string folder, int port, string[] command)
    {
        Folder = folder;
        Port = port;
        Command = command;
        _process = LocalProcess.Start(folder, command);
    }

    public string Folder { get; }

    public int Port { get; }

    public int ProcessId => _process.Id;

    public string[] Command { get; }

    public string Address => $"127.0.0.1:{Port}";

    public static bool IsInstalled => File.Exists(Program);

    /// <param name="settings">More arguments of redis-server; by default it keeps nothing: what it has is read from the journals again.</param>
    public static async Task<LocalRedis> StartAsync(string folder, int port = 0, params string[] settings)
    {
        if (!IsInstalled) throw new IOException("Redis is not installed: install Debian's package redis-server.");
        Directory.CreateDirectory(folder);
        if (port == 0) port = LocalProcess.FreePort();
        if (settings.Length == 0) settings = ["--save", "", "--appendonly", "no"];
        LocalRedis redis = new(folder, port, [Program, "--bind", "127.0.0.1", "--port", $"{port}", "--dir", folder, .. settings]);
        for (long deadline = Environment.TickCount64 + 30_000; !await IsReadyAsync(port); await Task.Delay(20))
        {
            if (redis._process.HasExited || Environment.TickCount64 > deadline) throw new IOException($"The Redis server in {folder} does not serve: {LocalProcess.LogOf(folder)}");
        }

        return redis;
    }

    public static async Task<bool> IsReadyAsync(int port)
    {
        try
        {
            using TcpClient client = new();
            using CancellationTokenSource limit = new(1000);
            await client.ConnectAsync("127.0.0.1", port, limit.Token);
            await client.GetStream().WriteAsync("PING\r\n"u8.ToArray(), limit.Token);
            byte[] pong = new byte[5];
            await client.GetStream().ReadExactlyAsync(pong, limit.Token);
            return pong.AsSpan().SequenceEqual("+PONG"u8);
        }
        catch (Exception e) when (e is SocketException or IOException or OperationCanceledException)
        {
            return false;
        }
    }

    public async Task KillAsync()
    {
        if (_process.HasExited) return;
        _process.Kill();
        await _process.WaitForExitAsync();
    }

    public async ValueTask DisposeAsync()
    {
        await KillAsync();
        _process.Dispose();
    }
}
