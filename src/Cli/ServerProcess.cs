using System.Diagnostics;

namespace Purse.Cli;

/// <summary>A server in a process of its own, which can be killed.</summary>
sealed class ServerProcess : IDisposable
{
    readonly Process _process;

    ServerProcess(Process process, Uri address)
    {
        _process = process;
        Address = address;
    }

    public Uri Address { get; }

    public int Id => _process.Id;

    /// <param name="partitions">Of a new data folder; one that exists has its own.</param>
    /// <param name="others">Other options of <c>purse serve</c>.</param>
    public static Task<ServerProcess> StartAsync(string data, int? partitions = null, params string[] others) =>
        StartAsync(["serve", "--data", data, "--listen", "http://127.0.0.1:0", .. partitions is int count ? (string[])["--partitions", $"{count}"] : [], .. others]);

    /// <summary>How this program is started: by the runtime's own host, since what hosts this code may be another program, such as a test runner.</summary>
    public static string[] Program { get; } = [Path.GetFileNameWithoutExtension(Environment.ProcessPath) == "dotnet" ? Environment.ProcessPath! : "dotnet", typeof(ServerProcess).Assembly.Location];

    /// <summary>Starts this program with other arguments and waits until it says that it is ready.</summary>
    public static async Task<ServerProcess> StartAsync(List<string> arguments, params (string Name, string Value)[] environment)
    {
        ProcessStartInfo start = new(Program[0], [.. Program[1..], .. arguments]) { RedirectStandardOutput = true, RedirectStandardError = true, UseShellExecute = false };
        foreach ((string name, string value) in environment) start.Environment[name] = value;
        Process process = Process.Start(start)!;
        Queue<string> log = new();
        process.ErrorDataReceived += (_, line) =>
        {
            lock (log)
            {
                if (line.Data is not null) log.Enqueue(line.Data);
                if (log.Count > 20) log.Dequeue();
            }
        };
        process.BeginErrorReadLine();
        string? ready = await process.StandardOutput.ReadLineAsync();
        if (ready is null || !ready.StartsWith(ServeCommand.ReadyPrefix, StringComparison.Ordinal))
        {
            await process.WaitForExitAsync();
            lock (log) throw new IOException($"The server did not start (exit code {process.ExitCode}). It said:\n{string.Join('\n', log)}");
        }

        return new ServerProcess(process, new Uri(ready[ServeCommand.ReadyPrefix.Length..].Split(' ')[0]));
    }

    /// <summary>SIGKILL: no warning, no clean-up.</summary>
    public void Kill()
    {
        _process.Kill();
        _process.WaitForExit();
    }

    /// <summary>SIGTERM, and its exit code.</summary>
    public async Task<int> StopAsync()
    {
        using (Process kill = Process.Start("kill", ["-TERM", $"{_process.Id}"])) await kill.WaitForExitAsync();
        await _process.WaitForExitAsync();
        return _process.ExitCode;
    }

    public void Dispose()
    {
        if (!_process.HasExited) Kill();
        _process.Dispose();
    }
}
