using System.Diagnostics;
using System.Text.Json;
using Purse.Cli;

namespace Purse.Integration;

/// <summary>The command line as a user runs it, in a process of its own.</summary>
static class PurseProcess
{
    // The test host has the program's files beside it.
    static readonly string Program = typeof(ServerProcess).Assembly.Location;

    public static async Task<(int Exit, string Out, string Err)> RunAsync(params string[] arguments)
    {
        using Process process = Process.Start(new ProcessStartInfo("dotnet", [Program, .. arguments]) { RedirectStandardOutput = true, RedirectStandardError = true, UseShellExecute = false })!;
        Task<string> output = process.StandardOutput.ReadToEndAsync(), error = process.StandardError.ReadToEndAsync();
        await process.WaitForExitAsync();
        return (process.ExitCode, await output, await error);
    }

    public static async Task<JsonElement> JsonAsync(params string[] arguments)
    {
        (int exit, string output, string error) = await RunAsync([.. arguments, "--json"]);
        Assert.True(exit == 0, $"{string.Join(' ', arguments)} ended with {exit}: {error}");
        return JsonDocument.Parse(output).RootElement;
    }
}

sealed class TemporaryFolder : IDisposable
{
    public string Path { get; } = Directory.CreateTempSubdirectory("purse-test-").FullName;

    public void Dispose() => Directory.Delete(Path, recursive: true);
}
