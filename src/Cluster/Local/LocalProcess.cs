using System.Diagnostics;
using System.Net;
using System.Net.Sockets;

namespace Purse.Cluster.Local;

/// <summary>Starts what goes on after this process: in a session of its own, with its output in a file.</summary>
public static class LocalProcess
{
    /// <param name="folder">Where it runs, and where its <c>log</c> is.</param>
    /// <param name="command">Its program and arguments.</param>
    public static Process Start(string folder, params IEnumerable<string> command)
    {
        ProcessStartInfo start = new("/bin/sh") { WorkingDirectory = folder, UseShellExecute = false };
        // A pipe would end with whoever reads it.
        foreach (string argument in (string[])["-c", "exec setsid \"$@\" </dev/null >>log 2>&1", "sh", .. command]) start.ArgumentList.Add(argument);
        return Process.Start(start)!;
    }

    /// <summary>The end of what it said, for a message.</summary>
    public static string LogOf(string folder)
    {
        string path = Path.Combine(folder, "log");
        return File.Exists(path) ? string.Join('\n', File.ReadLines(path).TakeLast(20)) : "";
    }

    public static async Task SignalAsync(int processId, string signal)
    {
        using Process kill = Process.Start("kill", [$"-{signal}", $"{processId}"]);
        await kill.WaitForExitAsync();
    }

    /// <summary>
    /// Below the range from which outgoing connections get theirs: a server that was killed finds its port free when it comes back. (From within that
    /// range, a client that goes on trying to connect ends up connected to itself, and has the port.)
    /// </summary>
    public static int FreePort()
    {
        for (int attempt = 0; ; attempt++)
        {
            int port = Random.Shared.Next(10_000, 32_768);
            try
            {
                using TcpListener listener = new(IPAddress.Loopback, port);
                listener.Start();
                return port;
            }
            catch (SocketException) when (attempt < 1000)
            {
                // Somebody has it.
            }
        }
    }
}
