using System.Globalization;
using System.Text.Json;
using Purse.Cli;
using Purse.Journal;

namespace Purse.Integration;

/// <summary>The commands, as processes, on a server of their own and on damaged folders.</summary>
public sealed class CommandLineTests
{
    static string Segment(string data) => Path.Combine(data, "partitions/0", FileJournal.SegmentName(1));

    static async Task FillAsync(string data, int transfers, bool graceful)
    {
        using ServerProcess server = await ServerProcess.StartAsync(data);
        string address = server.Address.GetLeftPart(UriPartial.Authority);
        Assert.Equal(0, (await PurseProcess.RunAsync("account", "open", "alice", "--server", address)).Exit);
        for (int i = 0; i < transfers; i++) Assert.Equal(0, (await PurseProcess.RunAsync("transfer", "@world", "alice", "10.00", "USD", "--server", address)).Exit);
        if (graceful) Assert.Equal(0, await server.StopAsync());
    }

    /// <summary>Excludes: a heap whose pages nobody asked to be huge, which at ten million accounts makes a server three times slower.</summary>
    [Fact]
    public async Task A_server_asks_for_huge_pages()
    {
        const string Setting = "/sys/kernel/mm/transparent_hugepage/enabled";
        Assert.SkipUnless(File.Exists(Setting) && !File.ReadAllText(Setting).Contains("[never]", StringComparison.Ordinal), "This system has no huge pages for whoever asks.");
        using TemporaryFolder folder = new();
        using ServerProcess server = await ServerProcess.StartAsync(folder.Path);
        // Of all that is mapped, the heap's reserve is by far the largest.
        long sizeKiB = 0, largestKiB = 0;
        bool isLargestAdvised = false;
        foreach (string line in File.ReadLines($"/proc/{server.Id}/smaps"))
        {
            string[] words = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
            if (words[0] == "Size:") sizeKiB = long.Parse(words[1], CultureInfo.InvariantCulture);
            if (words[0] == "VmFlags:" && sizeKiB > largestKiB) (largestKiB, isLargestAdvised) = (sizeKiB, words.Contains("hg"));
        }

        Assert.True(isLargestAdvised, $"the largest mapping, of {largestKiB} KiB, is not advised");
    }

    [Fact]
    public async Task A_wallet_by_hand()
    {
        using TemporaryFolder folder = new();
        using ServerProcess server = await ServerProcess.StartAsync(folder.Path);
        string address = server.Address.GetLeftPart(UriPartial.Authority);
        async Task<(int Exit, string Out, string Err)> Run(params string[] arguments) => await PurseProcess.RunAsync([.. arguments, "--server", address]);

        Assert.Equal(0, (await Run("account", "open", "alice", "--limit", "USD::1000", "--metadata", """{"tier":"gold"}""")).Exit);
        Assert.Equal(0, (await Run("account", "open", "shop/1")).Exit);
        Assert.Equal(0, (await Run("transfer", "@world", "alice", "100.00", "USD")).Exit);
        (int exit, string done, _) = await Run("transfer", "alice", "shop/1", "12.34", "USD", "--description", "lunch", "--id", "0198c0de-0000-7000-8000-000000000001");
        Assert.Equal(0, exit);
        Assert.StartsWith("completed: 12.34 USD from alice to shop/1", done, StringComparison.Ordinal);
        Assert.Contains("alice has 87.66 USD available", (await Run("balance", "alice", "--currency", "USD")).Out, StringComparison.Ordinal);
        Assert.Contains("87.66", (await Run("balance", "alice")).Out, StringComparison.Ordinal);
        Assert.Contains("debited", (await Run("history", "alice", "--currency", "USD")).Out, StringComparison.Ordinal);
        Assert.Contains("gold", (await Run("account", "show", "alice")).Out, StringComparison.Ordinal);
        Assert.Contains("is frozen", (await Run("account", "freeze", "shop/1", "--direction", "debit", "--reason", "audit")).Out, StringComparison.Ordinal);

        string hold = Guid.NewGuid().ToString();
        Assert.StartsWith("pending: 5.00 USD", (await Run("transfer", "alice", "@world", "5.00", "USD", "--pending", "--expires-in", "600", "--id", hold)).Out, StringComparison.Ordinal);
        Assert.Contains("82.66 USD available", (await Run("balance", "alice", "--currency", "USD")).Out, StringComparison.Ordinal);
        Assert.StartsWith("completed: 5.00 USD", (await Run("void", hold)).Out, StringComparison.Ordinal);
        Assert.Contains("hold_already_voided", (await Run("capture", hold, "--amount", "1")).Err, StringComparison.Ordinal);

        string tried = (await Run("transfer", "alice", "shop/1", "7.66", "USD", "--dry-run")).Out;
        Assert.StartsWith("would be completed: 7.66 USD from alice", tried, StringComparison.Ordinal);
        string both = Guid.NewGuid().ToString();
        (int moved, string postings, _) = await Run("transaction", "--posting", "alice", "@fees", "0.66", "USD", "--posting", "@world", "alice", "0.66", "USD", "--id", both);
        Assert.Equal((0, 2), (moved, postings.Split('\n', StringSplitOptions.RemoveEmptyEntries).Count(line => line.StartsWith("completed: 0.66 USD", StringComparison.Ordinal))));
        Assert.Equal(2, (await Run("transaction", "--posting", "alice", "@fees", "0.66")).Exit);
        Assert.Equal(0, (await Run("reverse", both, "--description", "no fees today")).Exit);
        Assert.Contains("already_reversed", (await Run("reverse", both)).Err, StringComparison.Ordinal);
        Assert.StartsWith("GEM has 3 decimals", (await Run("currency", "add", "GEM", "--decimals", "3")).Out, StringComparison.Ordinal);
        Assert.Contains("GEM", (await Run("currency", "list")).Out, StringComparison.Ordinal);
        Assert.StartsWith("completed: 1.500 GEM", (await Run("transfer", "@world", "alice", "1.5", "GEM")).Out, StringComparison.Ordinal);

        (int refused, _, string why) = await Run("transfer", "shop/1", "alice", "1", "USD");
        Assert.Equal(1, refused);
        Assert.StartsWith("purse: from_account_frozen: ", why, StringComparison.Ordinal);
        Assert.Equal(0, (await Run("account", "unfreeze", "shop/1")).Exit);
        (int usage, _, string how) = await Run("transfer", "alice");
        Assert.Equal(2, usage);
        Assert.Contains("--help", how, StringComparison.Ordinal);
        (int nobody, _, string where) = await PurseProcess.RunAsync("balance", "alice", "--server", "http://127.0.0.1:1");
        Assert.Equal(2, nobody);
        Assert.Contains("purse serve", where, StringComparison.Ordinal);

        // Beside the live server: what was answered is there.
        JsonElement replayed = await PurseProcess.JsonAsync("replay", "--data", folder.Path, "--account", "alice", "--currency", "USD");
        Assert.Equal("87.66", replayed.GetProperty("balances")[0].GetProperty("posted").GetString());
        Assert.True((await PurseProcess.JsonAsync("verify", "--data", folder.Path)).GetProperty("ok").GetBoolean());
        (_, string csv, _) = await PurseProcess.RunAsync("export", "--data", folder.Path, "--format", "csv");
        Assert.Contains(",debited,alice,shop/1,USD,12.34,", csv, StringComparison.Ordinal);
        (int second, _, string held) = await PurseProcess.RunAsync("serve", "--data", folder.Path, "--listen", "http://127.0.0.1:0");
        Assert.Equal(2, second);
        Assert.Contains($"process {server.Id}", held, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_flipped_byte_is_found_by_verify_and_keeps_the_server_from_starting()
    {
        using TemporaryFolder folder = new();
        await FillAsync(folder.Path, 3, graceful: true);
        // Bytes of a block in the middle: header, events, padding.
        foreach (long offset in new long[] { 4096 + 40, 4096 + 300, 2 * 4096 + 4000 })
        {
            Flip(folder.Path, offset);
            (int exit, _, string error) = await PurseProcess.RunAsync("verify", "--data", folder.Path);
            Assert.Equal(1, exit);
            Assert.Contains($"Block {offset / 4096 + 1} ", error, StringComparison.Ordinal);
            (int serve, _, string refused) = await PurseProcess.RunAsync("serve", "--data", folder.Path, "--listen", "http://127.0.0.1:0");
            Assert.Equal(1, serve);
            Assert.Contains($"Block {offset / 4096 + 1} ", refused, StringComparison.Ordinal);
            Flip(folder.Path, offset);
        }

        Assert.Equal(0, (await PurseProcess.RunAsync("verify", "--data", folder.Path)).Exit);
    }

    static void Flip(string data, long offset)
    {
        using FileStream file = new(Segment(data), FileMode.Open, FileAccess.ReadWrite);
        file.Position = offset;
        int value = file.ReadByte();
        file.Position = offset;
        file.WriteByte((byte)(value ^ 1));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task A_cut_in_the_last_block_is_a_torn_tail_and_the_server_starts(bool graceful)
    {
        using TemporaryFolder folder = new();
        await FillAsync(folder.Path, 2, graceful);
        long end = End(folder.Path);
        using (FileStream file = new(Segment(folder.Path), FileMode.Open, FileAccess.ReadWrite)) file.SetLength(end - 4096 + 100);
        (int exit, _, string warning) = await PurseProcess.RunAsync("verify", "--data", folder.Path);
        Assert.Equal(0, exit);
        Assert.Contains("warning", warning, StringComparison.Ordinal);
        Assert.Contains("torn tail", warning, StringComparison.Ordinal);
        using ServerProcess server = await ServerProcess.StartAsync(folder.Path);
        Assert.Equal(0, (await PurseProcess.RunAsync("transfer", "@world", "alice", "1.00", "USD", "--server", server.Address.ToString())).Exit);
        Assert.Equal(0, (await PurseProcess.RunAsync("verify", "--data", folder.Path)).Exit);
    }

    /// <summary>Where the last block ends.</summary>
    static long End(string data)
    {
        using FileJournalReader reader = new(new FileDisk(Path.Combine(data, "partitions/0")), 0, checkMerkleRoots: false);
        while (reader.TryReadNext(out _))
        {
        }

        return reader.Next.Offset;
    }

    [Fact]
    public async Task A_snapshot_that_differs_from_the_replay_is_found()
    {
        using TemporaryFolder folder = new();
        await FillAsync(folder.Path, 2, graceful: true);
        string snapshot = Assert.Single(Directory.GetFiles(Path.Combine(folder.Path, "partitions/0/snapshots")));
        byte[] bytes = await File.ReadAllBytesAsync(snapshot);
        bytes[200] ^= 1;
        await File.WriteAllBytesAsync(snapshot, bytes);
        (int exit, _, string error) = await PurseProcess.RunAsync("verify", "--data", folder.Path);
        Assert.Equal(1, exit);
        Assert.Contains(Path.GetFileName(snapshot), error, StringComparison.Ordinal);
        // Only a shortcut: the server does without it.
        using ServerProcess server = await ServerProcess.StartAsync(folder.Path);
        Assert.Contains("20.00", (await PurseProcess.RunAsync("balance", "alice", "--server", server.Address.ToString())).Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task The_demo_agrees_with_itself()
    {
        (int exit, string output, string error) = await PurseProcess.RunAsync("demo", "--transfers", "3000");
        Assert.True(exit == 0, error + output);
        Assert.Equal("sum 0", output.Split('\n', StringSplitOptions.RemoveEmptyEntries)[^1]);
    }

    [Theory]
    [InlineData("grpc", "500", "2", "--hot", "20", "--hold", "10", "--partitions", "2", "--cross", "30")]
    [InlineData("engine", "500", "2", "--zipf", "--ids", "ordered")]
    [InlineData("http", "1", "16")]
    public async Task The_load_command_measures(string mode, string batch, string clients, params string[] more)
    {
        JsonElement result = await PurseProcess.JsonAsync(["bench", "--mode", mode, "--transfers", "16000", "--accounts", "100", "--batch", batch, "--clients", clients, .. more]);
        Assert.Equal((mode, 16_000, 0), (result.GetProperty("mode").GetString(), result.GetProperty("transfers").GetInt64(), result.GetProperty("refused").GetInt64()));
        Assert.True(result.GetProperty("durable").GetBoolean() && result.GetProperty("balanced").GetBoolean());
        foreach (string name in (string[])["transfers_per_second", "journal_bytes_per_transfer", "flushes", "server_rss_bytes", "server_cpu_seconds"]) Assert.True(result.GetProperty(name).GetDouble() > 0, name);
        double[] latencies = [.. ((string[])["p50", "p99", "p999", "max"]).Select(name => result.GetProperty("latency_ms").GetProperty(name).GetDouble())];
        Assert.Equal(latencies.Order(), latencies);
        Assert.True(latencies[0] > 0);
    }
}
