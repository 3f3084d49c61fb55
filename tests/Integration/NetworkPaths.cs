using System.Diagnostics;
using System.Globalization;

namespace Purse.Integration;

/// <summary>
/// Cuts the way between two processes of this machine, as a switch that fails does it: what is sent is lost in silence, in both directions, and whoever
/// waits goes on waiting. A packet filter tells processes apart by their group. Needs root, and <c>nft</c>.
/// </summary>
sealed class NetworkPaths : IAsyncDisposable
{
    const int FirstGroup = 60_001;

    const string Table = "purse_test";

    readonly int _groupsCount;

    NetworkPaths(int groupsCount) => _groupsCount = groupsCount;

    /// <returns>Null where this machine does not let its packets be filtered.</returns>
    public static async Task<NetworkPaths?> TryOpenAsync(int groupsCount)
    {
        if (Environment.UserName != "root" || !File.Exists("/usr/sbin/nft") || !File.Exists("/usr/bin/setpriv")) return null;
        // Answers belong to whoever opened the connection. It is marked from its first packet on, so that processes start after this.
        string marks = string.Join(' ', Enumerable.Range(FirstGroup, groupsCount).Select(group => string.Create(CultureInfo.InvariantCulture, $"meta skgid {group} ct direction original ct mark set {group};")));
        // One that was left behind by a test that was killed goes first.
        return await RunAsync($"add table inet {Table}\ndelete table inet {Table}\ntable inet {Table} {{ chain marking {{ type filter hook output priority -150; policy accept; {marks} }}; chain cutting {{ type filter hook output priority 0; policy accept; }}; }}")
            ? new NetworkPaths(groupsCount)
            : null;
    }

    /// <summary>The same program as a process of a group.</summary>
    public static string[] InGroup(int index, string[] command) => ["setpriv", "--regid", $"{FirstGroup + index}", "--clear-groups", .. command];

    /// <summary>From a group's processes to these ports, and back.</summary>
    public async Task CutAsync(int index, params IEnumerable<int> ports)
    {
        if (index >= _groupsCount) throw new ArgumentOutOfRangeException(nameof(index));
        string all = string.Join(", ", ports);
        Assert.True(await RunAsync(string.Join('\n', new[] { "dport", "sport" }.Select(end => $"add rule inet {Table} cutting ct mark {FirstGroup + index} tcp {end} {{ {all} }} drop"))));
    }

    /// <summary>All ways are open again.</summary>
    public static async Task HealAsync() => Assert.True(await RunAsync($"flush chain inet {Table} cutting"));

    public async ValueTask DisposeAsync() => await RunAsync($"delete table inet {Table}");

    static async Task<bool> RunAsync(string rules)
    {
        using Process nft = Process.Start(new ProcessStartInfo("/usr/sbin/nft", ["-f", "-"]) { RedirectStandardInput = true, UseShellExecute = false })!;
        await nft.StandardInput.WriteAsync(rules + "\n");
        nft.StandardInput.Close();
        await nft.WaitForExitAsync();
        return nft.ExitCode == 0;
    }
}
