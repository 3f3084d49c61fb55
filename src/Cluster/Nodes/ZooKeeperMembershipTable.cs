using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization;
using Orleans;
using Orleans.Runtime;
using Purse.Cluster.ZooKeeper;

namespace Purse.Cluster.Nodes;

/// <summary>
/// Which silos there are, as Orleans keeps it: a row is a node of ZooKeeper below one base node.
/// <code>
/// /nodes                              empty: its version is the table's
/// └── 10.0.0.1:11111@142857142        JSON: all of a silo; its version is the row's etag
///     └── alive                       JSON: when it last said that it is alive
/// </code>
/// </summary>
/// <remarks>
/// <para>Every change of a row is one transaction that sets the base node, too, where it has the version that was read: two changes at once are one change and a refusal.</para>
/// <para>
/// Every call ends within ten seconds. Where ZooKeeper has not answered by then, or the connection broke under way, it throws <see cref="IOException"/>, and nobody
/// knows whether a change was done: Orleans reads the table and tries again. A <see cref="CancellationToken"/>, which Orleans' own interface takes beside these methods, stops the
/// waiting and not what was asked.
/// </para>
/// </remarks>
/// <param name="zooKeeper">Stays the caller's.</param>
/// <param name="path">The base node: one cluster's, and no other's. What is above it must be there.</param>
public sealed class ZooKeeperMembershipTable(ZooKeeperClient zooKeeper, string path) : IMembershipTable
{
    static readonly JsonSerializerOptions Json = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, Converters = { new JsonStringEnumConverter() }, RespectNullableAnnotations = true };

    /// <summary>Long enough for a client to find out that its server hangs, and to go to another.</summary>
    static readonly TimeSpan Patience = TimeSpan.FromSeconds(10);

    sealed record Suspicion(SiloAddress Silo, DateTime Time);

    /// <summary>What a row's node has: a form of our own, so that another version of Orleans reads it, too.</summary>
    sealed record Row
    {
        public required SiloAddress Silo { get; init; }

        public required SiloStatus Status { get; init; }

        public required string? SiloName { get; init; }

        public required string? HostName { get; init; }

        public required int ProxyPort { get; init; }

        public required DateTime StartTime { get; init; }

        public required DateTime AliveTime { get; init; }

        public required Suspicion[] Suspicions { get; init; }

        public string? RoleName { get; init; }

        public int UpdateZone { get; init; }

        public int FaultZone { get; init; }
    }

    /// <summary>Makes the base node where there is none; where it is, nothing changes.</summary>
    public async Task InitializeMembershipTable(bool tryInitTableVersion)
    {
        if (!tryInitTableVersion) return;
        try
        {
            await WithinAsync(limit => zooKeeper.CreateAsync(path, ReadOnlyMemory<byte>.Empty, NodeKind.Persistent, limit));
        }
        catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NodeExists)
        {
            // Another silo was first.
        }
    }

    /// <summary>All rows and the version, as they were at one moment.</summary>
    /// <exception cref="ZooKeeperException">There is no base node: it was not initialized.</exception>
    /// <exception cref="InvalidDataException">Somebody else has written a row.</exception>
    public Task<MembershipTableData> ReadAll() => WithinAsync(limit => ReadAsync(null, limit));

    /// <summary>Without a member where there is no such row.</summary>
    /// <inheritdoc cref="ReadAll" path="/exception"/>
    public Task<MembershipTableData> ReadRow(SiloAddress key) => WithinAsync(limit => ReadAsync(key.ToParsableString(), limit));

    /// <returns>False, and nothing done, where there is such a row, or the table was changed since.</returns>
    public Task<bool> InsertRow(MembershipEntry entry, TableVersion tableVersion) => ChangeAsync(tableVersion.VersionEtag,
        new ZooKeeperStep.Create(RowPath(entry), ToJson(entry)),
        new ZooKeeperStep.Create(AlivePath(entry), ToJson(entry.IAmAliveTime)));

    /// <returns>False, and nothing done, where there is no such row, or it or the table was changed since.</returns>
    public async Task<bool> UpdateRow(MembershipEntry entry, string etag, TableVersion tableVersion) =>
        ToVersion(etag) is int version && await ChangeAsync(tableVersion.VersionEtag, new ZooKeeperStep.Set(RowPath(entry), ToJson(entry), version));

    /// <summary>
    /// Sets a node of its own, whatever is in it: neither the table's version nor the row's etag changes, so that nobody's <see cref="UpdateRow"/> is refused
    /// because of it. Does nothing where there is no such row any more: a silo that was taken out learns it when it reads the table.
    /// </summary>
    public async Task UpdateIAmAlive(MembershipEntry entry)
    {
        try
        {
            await WithinAsync(limit => zooKeeper.SetAsync(AlivePath(entry), ToJson(entry.IAmAliveTime), -1, limit));
        }
        catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NoNode)
        {
            // Its row is gone.
        }
    }

    /// <summary>Takes out the dead of which nothing was heard since: neither from them, nor of them from a silo that suspected them.</summary>
    /// <remarks>As Orleans has it now: who is not dead stays, however old, until another silo has declared it dead.</remarks>
    public Task CleanupDefunctSiloEntries(DateTimeOffset beforeDate) => RemoveAsync(entry => entry.Status == SiloStatus.Dead && LastHeardOf(entry) < beforeDate.UtcDateTime);

    /// <summary>Takes out all rows. The base node stays, so that the version goes on from where it was.</summary>
    /// <param name="clusterId">Not looked at: the base node is one cluster's only.</param>
    public Task DeleteMembershipTableEntries(string clusterId) => RemoveAsync(_ => true);

    string RowPath(MembershipEntry entry) => $"{path}/{entry.SiloAddress.ToParsableString()}";

    string AlivePath(MembershipEntry entry) => $"{RowPath(entry)}/alive";

    static byte[] ToJson(DateTime aliveTime) => JsonSerializer.SerializeToUtf8Bytes(aliveTime, Json);

    static byte[] ToJson(MembershipEntry entry) => JsonSerializer.SerializeToUtf8Bytes(
        new Row
        {
            Silo = entry.SiloAddress,
            Status = entry.Status,
            SiloName = entry.SiloName,
            HostName = entry.HostName,
            ProxyPort = entry.ProxyPort,
            StartTime = entry.StartTime,
            AliveTime = entry.IAmAliveTime,
            Suspicions = [.. (entry.SuspectTimes ?? []).Select(suspicion => new Suspicion(suspicion.Item1, suspicion.Item2))],
            RoleName = entry.RoleName,
            UpdateZone = entry.UpdateZone,
            FaultZone = entry.FaultZone,
        },
        Json);

    /// <summary>Null for what is no etag of ours, and so no row's or table's. (To ZooKeeper -1 would be any version.)</summary>
    static int? ToVersion(string? etag) => int.TryParse(etag, NumberStyles.None, CultureInfo.InvariantCulture, out int version) ? version : null;

    static string ToEtag(ZooKeeperStat stat) => stat.Version.ToString(CultureInfo.InvariantCulture);

    static DateTime LastHeardOf(MembershipEntry entry) =>
        (entry.SuspectTimes ?? []).Select(suspicion => suspicion.Item2).Append(entry.StartTime).Append(entry.IAmAliveTime).Max();

    async Task<bool> ChangeAsync(string? tableEtag, params ZooKeeperStep[] steps)
    {
        if (ToVersion(tableEtag) is not int version) return false;
        try
        {
            await WithinAsync(async limit =>
            {
                await zooKeeper.MultiAsync([new ZooKeeperStep.Set(path, ReadOnlyMemory<byte>.Empty, version), .. steps], limit);
                return true;
            });
            return true;
        }
        catch (ZooKeeperException e) when (e.Code is ZooKeeperCode.BadVersion or ZooKeeperCode.NodeExists or ZooKeeperCode.NoNode)
        {
            return false;
        }
    }

    /// <summary>In one step, so that nobody reads half of it; none where there is nothing to remove.</summary>
    Task RemoveAsync(Func<MembershipEntry, bool> isRemoved) => WithinAsync(async limit =>
    {
        while (true)
        {
            MembershipTableData table = await ReadAsync(null, limit);
            List<ZooKeeperStep> steps = [new ZooKeeperStep.Set(path, ReadOnlyMemory<byte>.Empty, table.Version.Version)];
            foreach ((MembershipEntry entry, _) in table.Members)
            {
                if (isRemoved(entry)) steps.AddRange([new ZooKeeperStep.Delete(AlivePath(entry)), new ZooKeeperStep.Delete(RowPath(entry))]);
            }

            if (steps.Count == 1) return true;
            try
            {
                await zooKeeper.MultiAsync(steps, limit);
                return true;
            }
            catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.BadVersion)
            {
                // It was changed meanwhile: with what is there now, once more.
            }
        }
    });

    /// <summary>All rows, or the one of this name, as they were at one moment.</summary>
    async Task<MembershipTableData> ReadAsync(string? only, CancellationToken limit)
    {
        // Who was told by another silo that the table has changed finds it changed.
        await zooKeeper.SyncAsync(path, limit);
        while (true)
        {
            (List<string> names, ZooKeeperStat before) = await zooKeeper.ChildrenAsync(path, null, limit);
            Tuple<MembershipEntry, string>?[] rows = await Task.WhenAll(names.Where(name => only is null || name == only).Select(name => ReadRowAsync(name, limit)));
            // No row comes, goes or changes without the base's version, so that the same one before and after means that none did between.
            if (await zooKeeper.ExistsAsync(path, null, limit) is { } after && after.Version == before.Version)
                return new MembershipTableData([.. rows.OfType<Tuple<MembershipEntry, string>>()], new TableVersion(before.Version, ToEtag(before)));
        }
    }

    /// <summary>Null where it has just gone.</summary>
    async Task<Tuple<MembershipEntry, string>?> ReadRowAsync(string name, CancellationToken limit)
    {
        Task<(byte[] Data, ZooKeeperStat Stat)?> reading = TryGetAsync($"{path}/{name}", limit), readingAlive = TryGetAsync($"{path}/{name}/alive", limit);
        await Task.WhenAll(reading, readingAlive);
        if (await reading is not (byte[] data, ZooKeeperStat stat)) return null;
        try
        {
            Row row = JsonSerializer.Deserialize<Row>(data, Json) ?? throw new JsonException("it is null");
            DateTime told = await readingAlive is (byte[] alive, _) ? JsonSerializer.Deserialize<DateTime>(alive, Json) : row.AliveTime;
            MembershipEntry entry = new()
            {
                SiloAddress = row.Silo,
                Status = row.Status,
                SiloName = row.SiloName!,
                HostName = row.HostName!,
                ProxyPort = row.ProxyPort,
                StartTime = row.StartTime,
                // Whoever changed the row may have had an older time than the silo itself tells.
                IAmAliveTime = told > row.AliveTime ? told : row.AliveTime,
                SuspectTimes = [.. row.Suspicions.Select(suspicion => Tuple.Create(suspicion.Silo, suspicion.Time))],
                RoleName = row.RoleName,
                UpdateZone = row.UpdateZone,
                FaultZone = row.FaultZone,
            };
            return Tuple.Create(entry, ToEtag(stat));
        }
        catch (Exception e) when (e is JsonException or FormatException or ArgumentException or OverflowException)
        {
            throw new InvalidDataException($"{path}/{name} in ZooKeeper is not what this program writes: {e.Message} Delete it there, with what is below it; a silo that runs there starts again.", e);
        }
    }

    async Task<(byte[] Data, ZooKeeperStat Stat)?> TryGetAsync(string node, CancellationToken limit)
    {
        try
        {
            return await zooKeeper.GetAsync(node, null, limit);
        }
        catch (ZooKeeperException e) when (e.Code == ZooKeeperCode.NoNode)
        {
            return null;
        }
    }

    /// <summary>The client itself waits for ever where there is no server.</summary>
    async Task<T> WithinAsync<T>(Func<CancellationToken, Task<T>> ask)
    {
        using CancellationTokenSource limit = new(Patience);
        try
        {
            return await ask(limit.Token);
        }
        catch (OperationCanceledException e) when (limit.IsCancellationRequested)
        {
            throw new IOException($"No ZooKeeper server has answered for {path} within {Patience.TotalSeconds} s. Are they running, and reached from here?", e);
        }
    }
}
