using System.Collections.Concurrent;
using System.Net;
using System.Text;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Logging;
using Orleans;
using Orleans.Configuration;
using Orleans.Hosting;
using Orleans.Messaging;
using Orleans.Runtime;
using Purse.Cluster.Local;
using Purse.Cluster.Nodes;
using Purse.Cluster.ZooKeeper;

namespace Purse.Tests.Cluster;

/// <summary>What Orleans asks of a membership table (the cases of its own tests, and more), of ours on a real ZooKeeper server.</summary>
public sealed class MembershipTableTests(ZooKeeperServer zooKeeper) : IClassFixture<ZooKeeperServer>, IAsyncDisposable
{
    static readonly DateTime Start = new(2026, 3, 4, 5, 6, 7, DateTimeKind.Utc);
    static int _paths, _silos;

    readonly ConcurrentQueue<string> _log = new();
    readonly List<ZooKeeperClient> _clients = [];

    public async ValueTask DisposeAsync()
    {
        foreach (ZooKeeperClient client in _clients) await client.DisposeAsync();
    }

    ZooKeeperClient Connect()
    {
        ZooKeeperClient client = new(zooKeeper.Server.Address, TimeSpan.FromSeconds(4), _log.Enqueue);
        _clients.Add(client);
        return client;
    }

    static string NewPath() => $"/nodes-{Interlocked.Increment(ref _paths)}";

    async Task<ZooKeeperMembershipTable> MakeAsync(string? path = null)
    {
        ZooKeeperMembershipTable table = new(Connect(), path ?? NewPath());
        await table.InitializeMembershipTable(true);
        return table;
    }

    static SiloAddress NewSilo() => SiloAddress.New(IPAddress.Loopback, 12345, Interlocked.Increment(ref _silos));

    static MembershipEntry NewEntry(SiloStatus status = SiloStatus.Joining, DateTime? time = null) => new()
    {
        SiloAddress = NewSilo(),
        Status = status,
        SiloName = "silo",
        HostName = "host",
        ProxyPort = 23456,
        StartTime = time ?? Start,
        IAmAliveTime = time ?? Start,
    };

    /// <summary>All that Orleans has in an entry.</summary>
    static string Text(MembershipEntry entry) => string.Join('|',
    [
        entry.SiloAddress.ToParsableString(), entry.Status, entry.SiloName, entry.HostName, entry.ProxyPort, entry.RoleName, entry.UpdateZone, entry.FaultZone, $"{entry.StartTime:O}", $"{entry.IAmAliveTime:O}",
        .. (entry.SuspectTimes ?? []).Select(suspicion => $"{suspicion.Item1.ToParsableString()} {suspicion.Item2:O}"),
    ]);

    static string Text(MembershipTableData table) => string.Join('\n', [table.Version, .. table.Members.Select(member => $"{Text(member.Item1)}|{member.Item2}").Order(StringComparer.Ordinal)]);

    static async Task<MembershipTableData> InsertAsync(ZooKeeperMembershipTable table, params MembershipEntry[] entries)
    {
        foreach (MembershipEntry entry in entries) Assert.True(await table.InsertRow(entry, (await table.ReadAll()).Version.Next()));
        return await table.ReadAll();
    }

    /// <summary>It is refused, and nothing has changed.</summary>
    static async Task RefusedAsync(ZooKeeperMembershipTable table, Func<Task<bool>> change)
    {
        string before = Text(await table.ReadAll());
        Assert.False(await change());
        Assert.Equal(before, Text(await table.ReadAll()));
    }

    [Fact]
    public async Task An_empty_table_has_version_0_and_is_made_once()
    {
        string path = NewPath();
        ZooKeeperMembershipTable table = await MakeAsync(path), other = new(Connect(), path);
        MembershipTableData data = await table.ReadAll();
        Assert.Equal((0, "0", 0), (data.Version.Version, data.Version.VersionEtag, data.Members.Count));
        Assert.Empty((await table.ReadRow(NewSilo())).Members);

        string before = Text(await InsertAsync(table, NewEntry()));
        await other.InitializeMembershipTable(true);
        await other.InitializeMembershipTable(false);
        Assert.Equal(before, Text(await other.ReadAll()));

        ZooKeeperMembershipTable missing = new(Connect(), NewPath());
        await missing.InitializeMembershipTable(false);
        Assert.Equal(ZooKeeperCode.NoNode, (await Assert.ThrowsAsync<ZooKeeperException>(missing.ReadAll)).Code);
        Assert.Equal(ZooKeeperCode.NoNode, (await Assert.ThrowsAsync<ZooKeeperException>(() => missing.ReadRow(NewSilo()))).Code);
    }

    /// <summary>Excludes: a field that is forgotten, and a time that loses its fraction or its zone.</summary>
    [Fact]
    public async Task A_row_is_read_by_everybody_as_it_was_written()
    {
        string path = NewPath();
        ZooKeeperMembershipTable table = await MakeAsync(path), other = new(Connect(), path);
        MembershipEntry full = NewEntry(SiloStatus.ShuttingDown, Start.AddTicks(1234567)), bare = new() { SiloAddress = SiloAddress.New(IPAddress.Parse("fe80::1:2"), 65535, int.MaxValue) };
        full.SiloName = "näme \"of/it\"";
        full.IAmAliveTime = full.StartTime.AddTicks(1);
        (full.RoleName, full.UpdateZone, full.FaultZone) = ("role", 7, 8);
        full.AddSuspector(NewSilo(), Start.AddTicks(5));
        full.AddSuspector(NewSilo(), Start.AddTicks(6));
        foreach ((MembershipEntry entry, int version) in new[] { (full, 1), (bare, 2) })
        {
            MembershipTableData data = await InsertAsync(table, entry);
            Assert.Equal((version, $"{version}"), (data.Version.Version, data.Version.VersionEtag));
            data = await other.ReadRow(entry.SiloAddress);
            Assert.Equal(version, data.Version.Version);
            Assert.Equal(Text(entry), Text(Assert.Single(data.Members).Item1));
            Assert.NotEmpty(data.Members[0].Item2);
        }

        Assert.Equal(Text(await table.ReadAll()), Text(await other.ReadAll()));
        // What others do with an entry that they have given or got is their own affair.
        string before = Text(await table.ReadAll());
        full.AddSuspector(NewSilo(), Start);
        (await table.ReadAll()).TryGet(full.SiloAddress)!.Item1.Status = SiloStatus.Dead;
        Assert.Equal(before, Text(await table.ReadAll()));
    }

    /// <summary>Excludes: -1 taken for any version, which it is to ZooKeeper.</summary>
    [Fact]
    public async Task A_row_is_inserted_once_and_only_into_the_table_that_was_read()
    {
        ZooKeeperMembershipTable table = await MakeAsync();
        MembershipEntry entry = NewEntry();
        TableVersion first = (await table.ReadAll()).Version.Next();
        Assert.True(await table.InsertRow(entry, first));
        await RefusedAsync(table, () => table.InsertRow(entry, first));
        await RefusedAsync(table, () => table.InsertRow(NewEntry(), first));
        await RefusedAsync(table, async () => await table.InsertRow(entry, (await table.ReadAll()).Version.Next()));
        foreach (string etag in (string[])["-1", "", "x", "2", "1 ", "99999999999"]) await RefusedAsync(table, () => table.InsertRow(NewEntry(), new TableVersion(2, etag)));
        MembershipTableData data = await InsertAsync(table, NewEntry());
        Assert.Equal((2, 2), (data.Version.Version, data.Members.Count));
    }

    [Fact]
    public async Task A_row_is_updated_only_as_it_and_the_table_were_read()
    {
        ZooKeeperMembershipTable table = await MakeAsync();
        MembershipTableData data = await table.ReadAll();
        for (int count = 1; count < 10; count++)
        {
            MembershipEntry entry = NewEntry();
            entry.AddSuspector(NewSilo(), Start.AddSeconds(1));
            TableVersion old = data.Version.Next();
            data = await InsertAsync(table, entry);
            string etag = data.TryGet(entry.SiloAddress)!.Item2;
            entry.AddSuspector(NewSilo(), Start.AddSeconds(2));
            entry.Status = SiloStatus.Active;
            // The row's etag is right, the table's is not.
            await RefusedAsync(table, () => table.UpdateRow(entry, etag, old));
            TableVersion next = data.Version.Next();
            Assert.True(await table.UpdateRow(entry, etag, next));
            await RefusedAsync(table, () => table.UpdateRow(entry, etag, next));
            data = await table.ReadAll();
            (MembershipEntry updated, string newEtag) = data.TryGet(entry.SiloAddress)!;
            Assert.Equal((next.Version, count, Text(entry)), (data.Version.Version, data.Members.Count, Text(updated)));
            await RefusedAsync(table, () => table.UpdateRow(entry, newEtag, next));
            // The table's is right, the row's is not.
            foreach (string wrong in (string[])[etag, "-1", "", "x", "7"]) await RefusedAsync(table, () => table.UpdateRow(entry, wrong, data.Version.Next()));
            foreach (string wrong in (string[])["-1", "", "x"]) await RefusedAsync(table, () => table.UpdateRow(entry, newEtag, new TableVersion(next.Version + 1, wrong)));
            // Both are some row's, but there is no such row.
            await RefusedAsync(table, () => table.UpdateRow(NewEntry(), newEtag, data.Version.Next()));
        }
    }

    /// <summary>Excludes: a change that is lost, or counted twice.</summary>
    [Fact]
    public async Task Of_changes_at_once_one_is_done_and_the_others_are_refused()
    {
        string path = NewPath();
        ZooKeeperMembershipTable[] tables = [await MakeAsync(path), await MakeAsync(path), await MakeAsync(path)];
        MembershipEntry entry = NewEntry();
        TableVersion first = (await tables[0].ReadAll()).Version.Next();
        Assert.Single(await Task.WhenAll(Enumerable.Range(0, 20).Select(i => tables[i % 3].InsertRow(entry, first))), isDone => isDone);
        await Task.WhenAll(Enumerable.Range(0, 19).Select(async i =>
        {
            while (true)
            {
                MembershipTableData data = await tables[i % 3].ReadAll();
                (MembershipEntry read, string etag) = Assert.Single(data.Members);
                read.UpdateZone++;
                if (await tables[i % 3].UpdateRow(read, etag, data.Version.Next())) return;
            }
        })).WaitAsync(TimeSpan.FromMinutes(1));
        MembershipTableData table = await tables[0].ReadAll();
        Assert.Equal((20, 19), (table.Version.Version, Assert.Single(table.Members).Item1.UpdateZone));

        // Two rows share the table's version.
        table = await InsertAsync(tables[0], NewEntry());
        bool[] done = await Task.WhenAll(table.Members.Index().Select(one => tables[one.Index].UpdateRow(one.Item.Item1, one.Item.Item2, table.Version.Next())));
        Assert.Single(done, isDone => isDone);
        Assert.Equal(22, (await tables[0].ReadAll()).Version.Version);
    }

    /// <summary>Excludes: rows of one version beside rows of another.</summary>
    [Fact]
    public async Task What_is_read_while_it_changes_is_of_one_moment()
    {
        const int rows = 5, changes = 200;
        string path = NewPath();
        ZooKeeperMembershipTable writer = await MakeAsync(path);
        ZooKeeperMembershipTable[] readers = [await MakeAsync(path), await MakeAsync(path), await MakeAsync(path)];
        MembershipEntry[] entries = [.. Enumerable.Range(0, rows).Select(_ => NewEntry())];
        string[] etags = [.. (await InsertAsync(writer, entries)).Members.Select(member => member.Item2)];
        Assert.Single(etags.Distinct());
        Task writing = Task.Run(async () =>
        {
            // Each change puts the version that it makes into the next row.
            for (int version = rows + 1; version <= rows + changes; version++)
            {
                int row = version % rows;
                entries[row].UpdateZone = version;
                Assert.True(await writer.UpdateRow(entries[row], $"{(version - rows - 1) / rows}", new TableVersion(version, $"{version - 1}")));
                if (version % 7 == 0) await writer.UpdateIAmAlive(entries[row]);
            }
        });
        int read = 0;
        await Task.WhenAll(readers.Select(reader => Task.Run(async () =>
        {
            for (bool isLast = false; !isLast;)
            {
                isLast = writing.IsCompleted;
                MembershipTableData all = await reader.ReadAll();
                Check(all, entries);
                Check(await reader.ReadRow(entries[^1].SiloAddress), entries[^1]);
                if (all.Version.Version < rows + changes) Interlocked.Increment(ref read);
            }
        })));
        await writing;
        Assert.True(read > 0, "nothing was read while it changed");

        void Check(MembershipTableData table, params MembershipEntry[] expected)
        {
            Assert.Equal(expected.Length, table.Members.Count);
            foreach (MembershipEntry entry in expected)
            {
                int row = Array.IndexOf(entries, entry), zone = table.TryGet(entry.SiloAddress)!.Item1.UpdateZone;
                int last = Enumerable.Range(rows + 1, changes).LastOrDefault(version => version <= table.Version.Version && version % rows == row);
                Assert.Equal((table.Version, last), (table.Version, zone));
            }
        }
    }

    /// <summary>Excludes: an update that is refused because its silo was alive meanwhile.</summary>
    [Fact]
    public async Task That_a_silo_is_alive_changes_nothing_but_when_it_said_so()
    {
        string path = NewPath();
        ZooKeeperMembershipTable table = await MakeAsync(path), other = await MakeAsync(path);
        MembershipEntry entry = NewEntry(SiloStatus.Active);
        entry.AddSuspector(NewSilo(), Start);
        MembershipTableData before = await InsertAsync(table, entry, NewEntry());
        string etag = before.TryGet(entry.SiloAddress)!.Item2;
        // As Orleans does: nothing else is in it.
        await other.UpdateIAmAlive(new MembershipEntry { SiloAddress = entry.SiloAddress, IAmAliveTime = Start.AddMinutes(2).AddTicks(3) });
        MembershipTableData after = await table.ReadAll();
        entry.IAmAliveTime = Start.AddMinutes(2).AddTicks(3);
        Assert.Equal((before.Version, etag, Text(entry)), (after.Version, after.TryGet(entry.SiloAddress)!.Item2, Text(after.TryGet(entry.SiloAddress)!.Item1)));
        Assert.Equal(Start, after.Members.Single(member => !member.Item1.SiloAddress.Equals(entry.SiloAddress)).Item1.IAmAliveTime);

        // With what was read before, and an older time, which is not taken for a newer one.
        entry.Status = SiloStatus.Dead;
        entry.IAmAliveTime = Start;
        Assert.True(await table.UpdateRow(entry, etag, before.Version.Next()));
        (MembershipEntry updated, _) = Assert.Single((await other.ReadRow(entry.SiloAddress)).Members);
        Assert.Equal((SiloStatus.Dead, Start.AddMinutes(2).AddTicks(3)), (updated.Status, updated.IAmAliveTime));
        // The silo itself, whose clock was set back, is believed.
        await table.UpdateIAmAlive(new MembershipEntry { SiloAddress = entry.SiloAddress, IAmAliveTime = Start.AddMinutes(1) });
        Assert.Equal(Start.AddMinutes(1), (await other.ReadRow(entry.SiloAddress)).Members[0].Item1.IAmAliveTime);

        // A silo whose row is gone makes none.
        string rest = Text(await table.ReadAll());
        await table.UpdateIAmAlive(NewEntry());
        Assert.Equal(rest, Text(await table.ReadAll()));
    }

    [Fact]
    public async Task Who_is_dead_for_long_is_taken_out_and_nobody_else()
    {
        string path = NewPath();
        ZooKeeperMembershipTable table = await MakeAsync(path), other = await MakeAsync(path);
        DateTime old = Start.AddDays(-10);
        DateTimeOffset limit = new(Start.AddDays(-3));
        MembershipEntry dead = NewEntry(SiloStatus.Dead, old), declared = NewEntry(SiloStatus.Dead, old), alive = NewEntry(SiloStatus.Dead, old), started = NewEntry(SiloStatus.Dead, old), atLimit = NewEntry(SiloStatus.Dead, limit.UtcDateTime);
        declared.AddSuspector(NewSilo(), Start);
        started.StartTime = Start;
        MembershipEntry[] statuses = [.. Enum.GetValues<SiloStatus>().Except([SiloStatus.None, SiloStatus.Dead]).Select(status => NewEntry(status, old))];
        await InsertAsync(table, [dead, declared, alive, started, atLimit, NewEntry(SiloStatus.Dead), .. statuses, NewEntry(SiloStatus.Active)]);
        await table.UpdateIAmAlive(new MembershipEntry { SiloAddress = alive.SiloAddress, IAmAliveTime = Start });
        MembershipTableData before = await table.ReadAll();

        // Two silos at once.
        await Task.WhenAll(table.CleanupDefunctSiloEntries(limit), other.CleanupDefunctSiloEntries(limit)).WaitAsync(TimeSpan.FromMinutes(1));
        MembershipTableData after = await table.ReadAll();
        Assert.Equal(before.Version.Version + 1, after.Version.Version);
        Assert.Equal(before.Members.Select(member => Text(member.Item1)).Where(text => text != Text(dead)).Order(StringComparer.Ordinal), after.Members.Select(member => Text(member.Item1)).Order(StringComparer.Ordinal));
        await other.CleanupDefunctSiloEntries(limit);
        Assert.Equal(Text(after), Text(await table.ReadAll()));
        await other.CleanupDefunctSiloEntries(limit.AddTicks(1));
        Assert.Equal(after.Members.Count - 1, (await table.ReadAll()).Members.Count);
        Assert.Empty((await table.ReadRow(atLimit.SiloAddress)).Members);

        // What was read before is not written any more; the same place, started again, is another silo.
        await RefusedAsync(table, async () => await table.UpdateRow(dead, before.TryGet(dead.SiloAddress)!.Item2, (await table.ReadAll()).Version.Next()));
        MembershipEntry successor = NewEntry();
        successor.SiloAddress = SiloAddress.New(dead.SiloAddress.Endpoint, dead.SiloAddress.Generation + 100_000);
        Assert.NotNull((await InsertAsync(table, successor)).TryGet(successor.SiloAddress));
    }

    [Fact]
    public async Task A_table_that_is_emptied_goes_on_from_its_version_and_its_neighbour_stays()
    {
        string path = NewPath();
        ZooKeeperMembershipTable table = await MakeAsync(path), neighbour = await MakeAsync($"{path}0");
        MembershipEntry entry = NewEntry();
        MembershipTableData before = await InsertAsync(table, entry, NewEntry(SiloStatus.Active));
        string other = Text(await InsertAsync(neighbour, entry));
        await table.DeleteMembershipTableEntries("any");
        MembershipTableData after = await table.ReadAll();
        Assert.Equal((before.Version.Version + 1, 0), (after.Version.Version, after.Members.Count));
        Assert.Equal(other, Text(await neighbour.ReadAll()));
        await table.DeleteMembershipTableEntries("any");
        Assert.Equal(after.Version, (await table.ReadAll()).Version);
        await RefusedAsync(table, () => table.InsertRow(entry, before.Version.Next()));
        Assert.Single((await InsertAsync(table, entry)).Members);
    }

    [Fact]
    public async Task Gateways_are_silos_that_are_active_and_take_clients()
    {
        ZooKeeperMembershipTable table = new(Connect(), NewPath());
        ZooKeeperGatewayList gateways = new(table, TimeSpan.FromSeconds(17));
        await gateways.InitializeGatewayListProvider();
        Assert.Equal((TimeSpan.FromSeconds(17), 0), (gateways.MaxStaleness, (await gateways.GetGateways()).Count));
        MembershipEntry[] entries = [.. Enum.GetValues<SiloStatus>().Append(SiloStatus.Active).Append(SiloStatus.Active).Select(status => NewEntry(status))];
        entries[^1].ProxyPort = 0;
        MembershipTableData data = await InsertAsync(table, entries);
        SiloAddress[] active = [.. entries[..^1].Where(entry => entry.Status == SiloStatus.Active).Select(entry => SiloAddress.New(IPAddress.Loopback, 23456, entry.SiloAddress.Generation))];
        Assert.Equal(2, active.Length);
        Assert.Equal(active.Select(silo => silo.ToGatewayUri()).OrderBy(uri => $"{uri}"), (await gateways.GetGateways()).OrderBy(uri => $"{uri}"));

        MembershipEntry gone = entries[^2];
        gone.Status = SiloStatus.Dead;
        Assert.True(await table.UpdateRow(gone, data.TryGet(gone.SiloAddress)!.Item2, data.Version.Next()));
        Assert.Equal(active[0].ToGatewayUri(), Assert.Single(await gateways.GetGateways()));
    }

    [Fact]
    public async Task A_row_that_somebody_else_has_written_is_named()
    {
        string path = NewPath();
        ZooKeeperMembershipTable table = await MakeAsync(path);
        MembershipEntry entry = NewEntry();
        await InsertAsync(table, entry);
        string node = $"{path}/{entry.SiloAddress.ToParsableString()}";
        foreach (string wrong in (string[])["", "null", "{}", """{"silo":null}""", """{"silo":"here"}"""])
        {
            await _clients[0].SetAsync(node, Encoding.UTF8.GetBytes(wrong));
            Assert.Contains(node, (await Assert.ThrowsAsync<InvalidDataException>(table.ReadAll)).Message, StringComparison.Ordinal);
        }

        await _clients[0].DeleteAsync($"{node}/alive");
        await _clients[0].DeleteAsync(node);
        Assert.Empty((await table.ReadAll()).Members);
    }

    /// <summary>Excludes: a silo that hangs with ZooKeeper, and a client that loses its silos with it.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task While_ZooKeeper_is_away_calls_fail_and_gateways_are_the_last_that_were_known(bool isPaused)
    {
        LocalZooKeeper server = zooKeeper.Server;
        string path = NewPath();
        ZooKeeperMembershipTable table = await MakeAsync(path);
        ZooKeeperGatewayList gateways = new(table, TimeSpan.FromSeconds(1)), late = new(table, TimeSpan.FromSeconds(1));
        MembershipEntry entry = NewEntry(SiloStatus.Active);
        MembershipTableData before = await InsertAsync(table, entry);
        IList<Uri> known = await gateways.GetGateways();
        Assert.Single(known);
        if (isPaused) await server.PauseAsync();
        else await server.KillAsync();
        try
        {
            Task[] asked =
            [
                table.ReadAll(), table.ReadRow(entry.SiloAddress), table.InsertRow(NewEntry(), before.Version.Next()), table.UpdateRow(entry, before.Members[0].Item2, before.Version.Next()), table.UpdateIAmAlive(entry),
                table.CleanupDefunctSiloEntries(DateTimeOffset.MaxValue), table.DeleteMembershipTableEntries("any"), table.InitializeMembershipTable(true), late.InitializeGatewayListProvider(), late.GetGateways(),
            ];
            Task<IList<Uri>> last = gateways.GetGateways();
            foreach (Task one in asked) await Assert.ThrowsAnyAsync<IOException>(() => one.WaitAsync(TimeSpan.FromMinutes(1)));
            Assert.Equal(known, await last.WaitAsync(TimeSpan.FromMinutes(1)));
        }
        finally
        {
            if (isPaused) await server.ContinueAsync();
            else server.Restart();
            await server.WaitAsync();
        }

        // Whether a change was done that nobody answered is for the next one who reads to see.
        MembershipEntry next = NewEntry();
        using CancellationTokenSource limit = new(TimeSpan.FromMinutes(1));
        while (!await table.InsertRow(next, (await table.ReadAll()).Version.Next())) limit.Token.ThrowIfCancellationRequested();
        Assert.NotNull((await table.ReadAll()).TryGet(next.SiloAddress));
        Assert.Equal(known, await gateways.GetGateways());
    }

    /// <summary>Excludes: a table that only these tests are content with.</summary>
    [Fact]
    public async Task Silos_find_each_other_by_it_and_clients_find_them()
    {
        string path = NewPath();
        ZooKeeperGatewayList gateways = new(new ZooKeeperMembershipTable(Connect(), path), TimeSpan.FromSeconds(1));
        IHost first = Silo(), second = Silo(), client = Host(builder => builder.UseOrleansClient(clustered => clustered.Services.AddSingleton<IGatewayListProvider>(gateways)));
        using CancellationTokenSource limit = new(TimeSpan.FromMinutes(1));
        try
        {
            await first.StartAsync(limit.Token);
            await second.StartAsync(limit.Token);
            await client.StartAsync(limit.Token);
            Assert.Equal(2, (await gateways.GetGateways()).Count);
            IManagementGrain management = client.Services.GetRequiredService<IGrainFactory>().GetGrain<IManagementGrain>(0);
            Assert.Equal([SiloStatus.Active, SiloStatus.Active], (await management.GetHosts()).Values);
            await second.StopAsync(limit.Token);
            MembershipTableData data = await new ZooKeeperMembershipTable(Connect(), path).ReadAll();
            Assert.Equal([SiloStatus.Active, SiloStatus.Dead], data.Members.Select(member => member.Item1.Status));
            Assert.Single(await gateways.GetGateways());
        }
        finally
        {
            foreach (IHost host in new[] { client, second, first })
            {
                await host.StopAsync(limit.Token);
                host.Dispose();
            }
        }

        IHost Silo() => Host(builder => builder.UseOrleans(silo =>
        {
            silo.ConfigureEndpoints(IPAddress.Loopback, LocalProcess.FreePort(), LocalProcess.FreePort());
            silo.Services.AddSingleton<IMembershipTable>(new ZooKeeperMembershipTable(Connect(), path));
        }));

        static IHost Host(Action<HostApplicationBuilder> add)
        {
            HostApplicationBuilder builder = Microsoft.Extensions.Hosting.Host.CreateEmptyApplicationBuilder(null);
            builder.Services.Configure<ClusterOptions>(options => options.ClusterId = options.ServiceId = "test");
            add(builder);
            return builder.Build();
        }
    }
}
