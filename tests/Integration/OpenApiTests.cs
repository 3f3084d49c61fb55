using System.Diagnostics;
using System.Text.Json;
using Purse.Cli;

namespace Purse.Integration;

/// <summary>The document as strangers see it: a public linter, and a client that a public generator makes of it. Both come from npm.</summary>
public sealed class OpenApiTests
{
    static async Task<(int Exit, string Output)> RunAsync(string folder, string program, params string[] arguments)
    {
        ProcessStartInfo start = new(program, arguments) { WorkingDirectory = folder, UseShellExecute = false, RedirectStandardOutput = true, RedirectStandardError = true };
        start.Environment["REDOCLY_TELEMETRY"] = "off";
        start.Environment["REDOCLY_SUPPRESS_UPDATE_NOTICE"] = "true";
        using Process process = Process.Start(start)!;
        using CancellationTokenSource limit = new(TimeSpan.FromMinutes(4));
        Task<string> output = process.StandardOutput.ReadToEndAsync(limit.Token), error = process.StandardError.ReadToEndAsync(limit.Token);
        await process.WaitForExitAsync(limit.Token);
        return (process.ExitCode, await output + await error);
    }

    /// <summary>Null where it is new enough; else why these tests are skipped.</summary>
    static async Task<string?> LacksNodeAsync()
    {
        try
        {
            (_, string version) = await RunAsync(Path.GetTempPath(), "node", "--version");
            await RunAsync(Path.GetTempPath(), "npm", "--version");
            return Version.Parse(version.Trim().TrimStart('v')) >= new Version(20, 19) ? null : $"Node.js {version.Trim()} is older than 20.19.";
        }
        catch (System.ComponentModel.Win32Exception e)
        {
            return $"Node.js and npm are not installed: {e.Message}";
        }
    }

    [Fact]
    public async Task A_linter_finds_no_error_and_a_generated_client_moves_money()
    {
        if (await LacksNodeAsync() is string why) Assert.Skip(why);
        using TemporaryFolder folder = new();
        foreach (string file in Directory.GetFiles(Path.Combine(AppContext.BaseDirectory, "openapi"))) File.Copy(file, Path.Combine(folder.Path, Path.GetFileName(file)));
        (int exit, string output) = await RunAsync(folder.Path, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts");
        string[] offline = ["ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH"];
        if (exit != 0 && offline.FirstOrDefault(code => output.Contains(code, StringComparison.Ordinal)) is string offlineCode) Assert.Skip($"The npm registry cannot be reached ({offlineCode}).");
        Assert.True(exit == 0, output);
        using ServerProcess server = await ServerProcess.StartAsync(Path.Combine(folder.Path, "data"));
        using HttpClient http = new() { BaseAddress = server.Address };
        await File.WriteAllBytesAsync(Path.Combine(folder.Path, "openapi.json"), await http.GetByteArrayAsync("/openapi/v1.json"));

        string bin = Path.Combine(folder.Path, "node_modules", ".bin");
        (exit, output) = await RunAsync(folder.Path, Path.Combine(bin, "redocly"), "lint", "openapi.json", "--format", "json");
        Assert.True(exit == 0, output);
        using JsonDocument findings = JsonDocument.Parse(output[output.IndexOf('{', StringComparison.Ordinal)..(output.LastIndexOf('}') + 1)]);
        Assert.Equal((0, 0), (findings.RootElement.GetProperty("totals").GetProperty("errors").GetInt32(), findings.RootElement.GetProperty("totals").GetProperty("warnings").GetInt32()));

        (exit, output) = await RunAsync(folder.Path, Path.Combine(bin, "openapi-ts"), "-i", "openapi.json", "-o", "client", "-c", "@hey-api/client-fetch");
        Assert.True(exit == 0, output);
        (exit, output) = await RunAsync(folder.Path, Path.Combine(bin, "tsc"), "-p", ".");
        Assert.True(exit == 0, output);
        (exit, output) = await RunAsync(folder.Path, "node", "out/wallet.js", server.Address.GetLeftPart(UriPartial.Authority));
        Assert.True(exit == 0, output);
        Assert.Equal(
            """{"transfer":"completed","hold":"pending","capture":["completed","15.00"],"balance":"15.00","refused":"to_account_not_found","retryable":false}""",
            output.Trim());
    }
}
