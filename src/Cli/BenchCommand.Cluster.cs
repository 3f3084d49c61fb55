using System.Diagnostics;
using Purse.Cluster.Local;
using Purse.Ledger;
using Purse.Load;

namespace Purse.Cli;

static partial class BenchCommand
{
    /// <summary>
    /// A whole cluster on this machine. How long one transfer takes by how far it has to go, one at a time; and what a transfer costs three wallet nodes and
    /// one, in processor time: on one machine they share its cores, so that their rates say nothing.
    /// </summary>
    static async Task ClusterAsync(string folder, int partitions, long transfers, List<Measured> results)
    {
        const int Connections = 16, Many = 250;
        string cluster = Path.Combine(folder, "cluster");
        LocalCluster up = await LocalCluster.UpAsync(cluster, partitions, ServerProcess.Program, Console.Error.WriteLine);
        try
        {
            LocalClusterProcess[] wallets = [.. up.Processes.Where(process => process.Role == "wallet")];
            int[] has = await WaitForSharesAsync(wallets, partitions);
            string[][] accounts = await OpenAccountsAsync(new Uri(wallets[0].Address), partitions);
            long few = Math.Max(100, transfers / 10);
            // None of a store that waits for a standby: the first of three.
            int[] alike = [.. Enumerable.Range(0, partitions).Where(number => number % 3 != 0)];
            int local = alike.First(number => alike.Count(other => has[other] == has[number]) > 1), here = has[local];
            int neighbour = alike.First(number => number != local && has[number] == here), away = alike.First(number => has[number] != here);
            foreach ((string name, int from, int to) in new[] { ("to its own node", local, local), ("to another node", away, away), ("across partitions of a node", local, neighbour), ("across partitions of two nodes", local, away) })
            {
                Func<Random, (string, string)> choose = random => Choose(random, accounts[from], accounts[to]);
                await HttpLoad.RunAsync("", [new Uri(wallets[here].Address)], few, choose, 1, 1, static _ => { });
                results.Add(await Terminal.ProgressAsync(name, progress => HttpLoad.RunAsync(name, [new Uri(wallets[here].Address)], few, choose, 1, 1, progress)));
            }

            // Any node takes any transfer, of which most go elsewhere: with three nodes two of three.
            foreach (int batch in new[] { 1, Many }) results.Add(await LoadAsync("three nodes", wallets, batch));
            foreach (LocalClusterProcess wallet in wallets[1..])
            {
                await LocalProcess.SignalAsync(wallet.Pid, "TERM");
                while (up.IsRunning(wallet)) await Task.Delay(50);
            }

            await WaitForSharesAsync(wallets[..1], partitions);
            foreach (int batch in new[] { 1, Many }) results.Add(await LoadAsync("one node", wallets[..1], batch));

            async Task<Measured> LoadAsync(string name, LocalClusterProcess[] nodes, int batch)
            {
                long count = batch == 1 ? transfers : transfers * 20;
                Uri[] servers = [.. nodes.Select(node => new Uri(node.Address))];
                Func<Random, (string, string)> choose = random =>
                {
                    string[] of = accounts[random.Next(partitions)];
                    return Choose(random, of, of);
                };
                await HttpLoad.RunAsync("", servers, count, choose, batch, Connections, static _ => { });
                TimeSpan before = Cpu(nodes);
                Measured measured = await Terminal.ProgressAsync(name, progress => HttpLoad.RunAsync(name, servers, count, choose, batch, Connections, progress));
                return measured with { ServerCpuSeconds = (Cpu(nodes) - before).TotalSeconds };
            }
        }
        finally
        {
            await LocalCluster.DownAsync(cluster, static _ => { });
        }

        static (string, string) Choose(Random random, string[] from, string[] to)
        {
            int debtor = random.Next(from.Length);
            return (from[debtor], to[(debtor + 1 + random.Next(to.Length - 1)) % to.Length]);
        }

        static TimeSpan Cpu(LocalClusterProcess[] nodes) => nodes.Aggregate(TimeSpan.Zero, static (sum, node) =>
        {
            using Process process = Process.GetProcessById(node.Pid);
            return sum + process.TotalProcessorTime;
        });
    }

    /// <returns>By partition, which of the nodes has it.</returns>
    static async Task<int[]> WaitForSharesAsync(LocalClusterProcess[] wallets, int partitions)
    {
        int share = (partitions + wallets.Length - 1) / wallets.Length;
        using HttpClient http = new();
        for (long deadline = Environment.TickCount64 + 120_000; ; await Task.Delay(500))
        {
            int[] has = [.. Enumerable.Repeat(-1, partitions)];
            for (int node = 0; node < wallets.Length; node++)
            {
                string metrics = await http.GetStringAsync(new Uri(wallets[node].Address + "/metrics"));
                foreach (string line in metrics.Split('\n').Where(line => line.StartsWith("purse_ready", StringComparison.Ordinal) && line.Contains("} 1", StringComparison.Ordinal)))
                {
                    string number = line[(line.IndexOf("partition=\"", StringComparison.Ordinal) + "partition=\"".Length)..];
                    has[int.Parse(number[..number.IndexOf('"', StringComparison.Ordinal)], System.Globalization.CultureInfo.InvariantCulture)] = node;
                }
            }

            if (!has.Contains(-1) && has.GroupBy(node => node).All(group => group.Count() <= share)) return has;
            if (Environment.TickCount64 > deadline) throw new IOException($"The partitions do not settle: by partition, node {string.Join(' ', has)}.");
        }
    }

    /// <returns>By partition, accounts with money.</returns>
    static async Task<string[][]> OpenAccountsAsync(Uri server, int partitions)
    {
        const int Each = 50;
        string[][] accounts = [.. Enumerable.Range(0, partitions).Select(partition =>
            Enumerable.Range(0, int.MaxValue).Select(i => $"account-{i}").Where(name => AccountName.Parse(name).PartitionOf(partitions) == partition).Take(Each).ToArray())];
        await HttpLoad.OpenAccountsAsync(server, accounts.SelectMany(static one => one));
        return accounts;
    }
}
