using System.Diagnostics;
using Purse.Cli;

namespace Purse.Integration;

/// <summary>The README's first lines do what they say, exactly as written there but for the port.</summary>
public sealed class ReadmeTests
{
    [Fact]
    public async Task The_curl_lines_of_the_readme_end_with_the_balances_it_shows()
    {
        Assert.SkipUnless(Environment.GetEnvironmentVariable("PATH")!.Split(':').Any(p => File.Exists(Path.Combine(p, "curl"))), "curl is not installed");
        string readme = await File.ReadAllTextAsync(Path.Combine(AppContext.BaseDirectory, "README.md"));
        string[] blocks = [.. readme.Split("```").Where((_, i) => i % 2 == 1)];
        string script = blocks.Single(b => b.StartsWith("sh\n", StringComparison.Ordinal) && b.Contains("curl", StringComparison.Ordinal))[3..];
        string shown = blocks.First(b => b.StartsWith("json\n", StringComparison.Ordinal))[5..].Trim();

        using TemporaryFolder folder = new();
        using ServerProcess server = await ServerProcess.StartAsync(folder.Path);
        script = script.Replace("127.0.0.1:7070", server.Address.Authority, StringComparison.Ordinal);
        using Process shell = Process.Start(new ProcessStartInfo("bash", ["-c", script]) { RedirectStandardOutput = true, RedirectStandardError = true, UseShellExecute = false })!;
        Task<string> error = shell.StandardError.ReadToEndAsync();
        string output = await shell.StandardOutput.ReadToEndAsync();
        await shell.WaitForExitAsync();
        Assert.True(shell.ExitCode == 0, await error);
        Assert.EndsWith(shown, output.Trim(), StringComparison.Ordinal);
    }
}
