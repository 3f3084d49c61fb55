using Purse.Journal;
using Purse.Partitions;
using Purse.Server;

namespace Purse.Tests.Server;

public sealed class StartTests
{
    static WalletServerOptions Options(string folder, string listen = "http://127.0.0.1:0") => new() { DataFolder = folder, Listen = listen };

    [Theory]
    [InlineData("http://0.0.0.0:7070")]
    [InlineData("http://192.168.1.5:7070")]
    [InlineData("http://*:7070")]
    [InlineData("http://example.com:7070")]
    [InlineData("https://127.0.0.1:7070")]
    [InlineData("localhost:7070")]
    public async Task Only_loopback_addresses_are_served_without_authentication(string listen)
    {
        using TemporaryFolder folder = new();
        StartException refused = await Assert.ThrowsAsync<StartException>(() => WalletServer.StartAsync(Options(folder.Path, listen)));
        Assert.Contains("127.0.0.1", refused.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_second_server_is_told_who_holds_the_folder()
    {
        using TemporaryFolder folder = new();
        await using WalletServer first = await WalletServer.StartAsync(Options(folder.Path));
        StartException refused = await Assert.ThrowsAsync<StartException>(() => WalletServer.StartAsync(Options(folder.Path)));
        Assert.Contains($"process {Environment.ProcessId}", refused.Message, StringComparison.Ordinal);
        using DataFolder reading = DataFolder.OpenForReading(folder.Path);
        Assert.True(reading.IsHeld());
        await first.DisposeAsync();
        Assert.False(reading.IsHeld());
    }

    [Fact]
    public async Task An_address_in_use_is_said_so()
    {
        using TemporaryFolder folder = new(), other = new();
        await using WalletServer first = await WalletServer.StartAsync(Options(folder.Path));
        StartException refused = await Assert.ThrowsAsync<StartException>(() => WalletServer.StartAsync(Options(other.Path, first.Address.GetLeftPart(UriPartial.Authority))));
        Assert.Contains("in use", refused.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("""{"format":7,"partitions":1}""")]
    [InlineData("""{"format":0,"partitions":0}""")]
    [InlineData("""{"format":0,"partitions":3}""")]
    [InlineData("""{"format":0""")]
    public async Task A_folder_of_another_make_is_refused(string settings)
    {
        using TemporaryFolder folder = new();
        await File.WriteAllTextAsync(Path.Combine(folder.Path, "purse.json"), settings);
        await Assert.ThrowsAsync<StartException>(() => WalletServer.StartAsync(Options(folder.Path)));
    }

    [Fact]
    public async Task A_damaged_journal_is_not_served()
    {
        using TemporaryFolder folder = new();
        await (await WalletServer.StartAsync(Options(folder.Path))).DisposeAsync();
        await (await WalletServer.StartAsync(Options(folder.Path))).DisposeAsync();
        using (FileStream segment = File.OpenWrite(Path.Combine(folder.Path, "partitions/0", FileJournal.SegmentName(1))))
        {
            segment.Position = 100;
            segment.WriteByte(0x5a);
        }

        StartException refused = await Assert.ThrowsAsync<StartException>(() => WalletServer.StartAsync(Options(folder.Path)));
        Assert.Contains("Block 1 ", refused.Message, StringComparison.Ordinal);
    }
}
