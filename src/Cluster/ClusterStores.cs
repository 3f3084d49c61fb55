using System.Collections.Concurrent;
using System.Diagnostics;
using Npgsql;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Cluster;

/// <summary>The databases of a cluster, and each partition's place in them. Follows the map: a store that gets another address is opened there.</summary>
public sealed class ClusterStores : IAsyncDisposable
{
    /// <summary>A partition whose clock and whose store's clock are further apart takes no writes.</summary>
    public static readonly TimeSpan ClockDifferenceMax = TimeSpan.FromMilliseconds(500);

    /// <summary>A partition takes no writes while its last block is further ahead of its clock.</summary>
    static readonly TimeSpan AheadMax = TimeSpan.FromSeconds(1);
    static readonly TimeSpan FloorInterval = TimeSpan.FromSeconds(1);

    readonly Action<string> _log;
    readonly ConcurrentDictionary<string, (StoreSettings Settings, PostgreSqlDatabase Database)> _open = new();
    readonly ConcurrentDictionary<string, Reach> _reaches = new();
    readonly CancellationTokenSource _stop = new();
    Task _watching = Task.CompletedTask;
    Func<IReadOnlyList<Partition>> _partitions = static () => [];
    Task _telling = Task.CompletedTask;

    public ClusterStores(ClusterMap map, Action<string> log)
    {
        Map = map;
        _log = log;
        Stores = [.. Enumerable.Range(0, map.PartitionsCount).Select(number => new ClusterStore(this, number, log))];
        map.Changed += Follow;
    }

    public ClusterMap Map { get; }

    /// <summary>By partition.</summary>
    public IReadOnlyList<ClusterStore> Stores { get; }

    public PostgreSqlDatabase Open(string store)
    {
        if (!Map.Settings.Stores.TryGetValue(store, out StoreSettings? settings))
            throw new IOException($"The cluster has no store '{store}'; it has {string.Join(", ", Map.Settings.Stores.Keys)}. Add it with `purse cluster stores add`.");
        return _open.GetOrAdd(store, static (_, settings) => (settings, new PostgreSqlDatabase(new PostgreSqlOptions { ConnectionString = settings.Connection, IsReplicated = settings.Replicated })), settings).Database;
    }

    /// <summary>A store is at another address now: whoever writes there goes on at the new one.</summary>
    void Follow(object? sender, EventArgs e)
    {
        foreach ((string name, (StoreSettings settings, PostgreSqlDatabase database)) in _open)
        {
            if (Map.Settings.Stores.GetValueOrDefault(name) is not { } now || now == settings) continue;
            _log($"Store {name} is at {now.Connection} now.");
            _open.TryRemove(name, out _);
            // What is asked at the old address says nothing of the new one.
            _reaches.TryRemove(name, out _);
            foreach (Partition partition in _partitions())
            {
                if (Stores[partition.Number].Name == name) partition.Reopen($"store {name} has another address");
            }

            database.Dispose();
        }

        foreach (Partition partition in _partitions())
        {
            // Moved while nobody wrote: the seal would be found by the next command, which would have to be sent again.
            if (Map.Settings.Partitions[partition.Number] is string store && store != Stores[partition.Number].Name) partition.Reopen($"the map has partition {partition.Number} in store {store}");
        }
    }

    /// <summary>What is known of the way to a store.</summary>
    sealed class Reach
    {
        public int Missed, Answered;

        /// <summary>Not while it comes and goes.</summary>
        public bool IsSteady;

        public Task Asking = Task.CompletedTask;

        public NpgsqlConnection? Connection;
    }

    /// <summary>Not by the clock: a process that stood still for a while has asked nobody.</summary>
    const int MissedMax = 3, AnsweredMin = 5;
    static readonly TimeSpan ReachInterval = TimeSpan.FromSeconds(1);

    /// <summary>Asks every store each second, so that it is known which of them this node reaches.</summary>
    public void Watch() => _watching = Task.Run(async () =>
    {
        while (!_stop.IsCancellationRequested)
        {
            foreach (string store in Map.Settings.Stores.Keys)
            {
                Reach reach = _reaches.GetOrAdd(store, static _ => new Reach());
                // One that does not answer keeps no other waiting, and misses a second for each that it takes.
                if (reach.Asking.IsCompleted) reach.Asking = AskAsync(store, reach);
                else Miss(reach);
            }

            await Task.Delay(ReachInterval, _stop.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }
    });

    async Task AskAsync(string store, Reach reach)
    {
        try
        {
            // On a connection of its own: those of the pool may all be at work.
            reach.Connection = await Open(store).AskAsync(reach.Connection);
            lock (reach)
            {
                reach.Missed = 0;
                if (++reach.Answered >= AnsweredMin) reach.IsSteady = true;
            }
        }
        catch (Exception e) when (e is IOException or ObjectDisposedException)
        {
            reach.Connection = null;
            Miss(reach);
        }
    }

    static void Miss(Reach reach)
    {
        lock (reach)
        {
            reach.Answered = 0;
            if (++reach.Missed >= MissedMax) reach.IsSteady = false;
        }
    }

    /// <summary>Whether the store that a partition should be in answers this node; null where that is not known, or comes and goes.</summary>
    public bool? Reaches(int partition)
    {
        if (Map.Settings.Partitions[partition] is not string store || !_reaches.TryGetValue(store, out Reach? reach)) return null;
        lock (reach) return reach.Missed >= MissedMax ? false : reach.IsSteady ? true : null;
    }

    /// <summary>Tells every second what is durable, and what this process is.</summary>
    /// <param name="partitions">Those of this process, as they are when it tells.</param>
    /// <param name="wallet">Null where nothing is to be told of it.</param>
    public void Tell(Func<IReadOnlyList<Partition>> partitions, Func<WalletNode>? wallet)
    {
        _partitions = partitions;
        _telling = Task.Run(async () =>
        {
            while (!_stop.IsCancellationRequested)
            {
                try
                {
                    await Task.WhenAll(partitions().Select(TellAsync)).WaitAsync(TimeSpan.FromSeconds(10), _stop.Token);
                    if (wallet is not null) await Map.TellWalletAsync(wallet()).WaitAsync(TimeSpan.FromSeconds(10), _stop.Token);
                }
                catch (Exception e) when (e is IOException or TimeoutException or OperationCanceledException or InvalidDataException)
                {
                    // ZooKeeper is away. It is told when it is back; no write waits for it.
                }

                await Task.WhenAll(partitions().Select(partition => Task.Run(() => CheckClock(partition))));
                await Task.Delay(FloorInterval, _stop.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            }
        });
    }

    async Task TellAsync(Partition partition)
    {
        if (partition.FlushedFloor is not { Number: > 0 } floor || Stores[partition.Number].Name is not string store) return;
        if (Stores[partition.Number].IsMapLate)
        {
            // Whoever moved it did not come so far.
            await Map.ChangeAsync(settings => settings with { Partitions = [.. settings.Partitions.Select((at, number) => number == partition.Number ? store : at)] });
            Stores[partition.Number].IsMapLate = false;
        }

        await Map.RaiseFloorAsync(partition.Number, new FloorNode(floor.Number, floor.Sequence, floor.Hash.ToString(), partition.Epoch, store, partition.UndecidedCount));
    }

    void CheckClock(Partition partition)
    {
        if (partition.Fault is not null || Stores[partition.Number].Name is not string store) return;
        try
        {
            CheckClock(Open(store), partition.Number);
        }
        catch (IOException e) when (e.Message.StartsWith(ClockWords, StringComparison.Ordinal))
        {
            partition.Reopen(e.Message);
        }
        catch (IOException)
        {
            // The database cannot be asked; whoever writes there knows, too.
        }
    }

    const string ClockWords = "The clocks differ: ";

    internal static void CheckClock(PostgreSqlDatabase database, int partition)
    {
        long started = Stopwatch.GetTimestamp();
        DateTimeOffset theirs = database.Now(), ours = DateTimeOffset.UtcNow;
        TimeSpan took = Stopwatch.GetElapsedTime(started);
        // What took long says little; it is asked again.
        if (took > ClockDifferenceMax) return;
        TimeSpan difference = ours - took / 2 - theirs;
        if (difference.Duration() > ClockDifferenceMax)
        {
            throw new IOException(
                $"{ClockWords}this machine's is {difference.TotalSeconds:0.0} s {(difference > TimeSpan.Zero ? "ahead of" : "behind")} that of {database}. Partition {partition} takes no writes until both are within {ClockDifferenceMax.TotalSeconds} s: let NTP set them.");
        }
    }

    internal static void CheckAhead(JournalWriter journal)
    {
        TimeSpan ahead = DateTimeOffset.UnixEpoch.AddMicroseconds(journal.LastTimeMicros) - DateTimeOffset.UtcNow;
        if (ahead > AheadMax)
            throw new IOException($"{ClockWords}the last block of partition {journal.Partition} is {ahead.TotalSeconds:0.0} s ahead of this machine's. It takes no writes until that time has come: let NTP set the clock.");
    }

    public async ValueTask DisposeAsync()
    {
        await _stop.CancelAsync();
        await _telling;
        await _watching;
        foreach (Reach reach in _reaches.Values) reach.Connection?.Dispose();
        foreach ((_, PostgreSqlDatabase database) in _open.Values) database.Dispose();
        await Map.DisposeAsync();
        _stop.Dispose();
    }
}

/// <summary>The store that a partition is in now. The map says where it should be; a seal there says better.</summary>
public sealed class ClusterStore(ClusterStores stores, int partition, Action<string> log) : IJournalStore
{
    string? _name;

    public int Partition => partition;

    /// <summary>Where it was taken over last, or else where the map says; null where it says nothing.</summary>
    public string? Name => Volatile.Read(ref _name) ?? stores.Map.Settings.Partitions[partition];

    /// <summary>A seal led it elsewhere than the map says.</summary>
    internal bool IsMapLate { get; set; }

    public IDisk Files => Current().Files;

    PostgreSqlStore Current() => At(Name ?? throw new IOException($"Partition {partition} is in no store. Add stores with `purse cluster stores add`."));

    PostgreSqlStore At(string name) => new(stores.Open(name), partition);

    public JournalReader Read(bool checkMerkleRoots) => Current().Read(checkMerkleRoots);

    public JournalWriter TakeOver(IReadOnlyCollection<JournalFloor> floors, JournalWriter.OnBlock onBlock, JournalFloor? from = null)
    {
        if (stores.Map.Floor(partition) is JournalFloor floor) floors = [.. floors, floor];
        string name = Name ?? throw new IOException($"Partition {partition} is in no store. Add stores with `purse cluster stores add`.");
        bool isAnyRead = false;
        JournalWriter.OnBlock read = (in Block block) =>
        {
            isAnyRead = true;
            onBlock(block);
        };
        for (int hops = 0; ; hops++)
        {
            PostgreSqlDatabase database = stores.Open(name);
            ClusterStores.CheckClock(database, partition);
            try
            {
                JournalWriter journal = At(name).TakeOver(floors, read, from);
                try
                {
                    ClusterStores.CheckAhead(journal);
                }
                catch
                {
                    journal.Dispose();
                    throw;
                }

                Volatile.Write(ref _name, name);
                IsMapLate = hops > 0;
                stores.Map.RaiseFloor(partition, FloorOf(journal, name));
                return journal;
            }
            // Sealed while it was read: all of it would be read once more, into what has it already. Whoever asked begins anew.
            catch (JournalSealedException moved) when (hops < HopsMax && !isAnyRead)
            {
                // It is not there before all of it is; whoever was moving it may be gone.
                log($"Partition {partition} moved from store {name} to {moved.Store}.");
                PostgreSqlMove.Finish(database, stores.Open(moved.Store), partition);
                name = moved.Store;
            }
        }
    }

    const int HopsMax = 100;

    static FloorNode FloorOf(JournalWriter journal, string store)
    {
        JournalFloor floor = journal.FlushedFloor(store);
        return new FloorNode(floor.Number, floor.Sequence, floor.Hash.ToString(), journal.Epoch, store, 0);
    }

    /// <summary>
    /// Moves the journal to another store while its writer goes on: nothing is lost, and writes pause while the last of it is copied and read. May be
    /// repeated where it was cut short.
    /// </summary>
    public async Task MoveAsync(string to, Action<ulong, ulong>? progress = null)
    {
        string from = Name ?? throw new IOException($"Partition {partition} is in no store.");
        PostgreSqlDatabase target = stores.Open(to);
        for (string? seal; (seal = PostgreSqlMove.SealOf(stores.Open(from), partition)) is not null && seal != from; from = seal)
        {
            // A move before this one was cut short, or the map is late.
            PostgreSqlMove.Finish(stores.Open(from), stores.Open(seal), partition);
            if (seal == to) break;
        }

        if (from != to && PostgreSqlMove.SealOf(stores.Open(from), partition) is null)
        {
            PostgreSqlDatabase source = stores.Open(from);
            // Twice: what came while the first was under way is little, and the pause is short.
            PostgreSqlMove.Copy(source, target, partition, progress);
            PostgreSqlMove.Copy(source, target, partition);
            EventBatch seal = new(1);
            seal.BeginAttachment();
            seal.Attach(AttachmentTag.Store, to);
            uint attachment = seal.EndAttachment();
            seal.Add(EventKind.Sealed).Attachment = attachment;
            // Its owner may be taking the journal over just now, and ends whoever writes there; or it has found the seal, and ends the move itself.
            await AgainAsync(() => PostgreSqlMove.Seal(source, partition, to, Event.SizeBytes, seal.EventBytes, seal.Attachments));
            await AgainAsync(() => PostgreSqlMove.Finish(source, target, partition));
        }

        await stores.Map.ChangeAsync(settings => settings with { Partitions = [.. settings.Partitions.Select((store, number) => number == partition ? to : store)] });
        Volatile.Write(ref _name, to);
    }

    /// <summary>
    /// What is known to have been durable, and is not in the journal: its store was restored from an old copy, or is a standby that was promoted without it.
    /// Reads all of the journal, which has to be whole as far as it goes.
    /// </summary>
    /// <returns>The journal's last block; the floor and the snapshots that it does not have.</returns>
    public async Task<(JournalFloor End, List<JournalFloor> Lost)> FindLossAsync()
    {
        // What looks lost here may be where it went.
        if (Name is string here && PostgreSqlMove.SealOf(stores.Open(here), partition) is string there)
            throw new IOException($"The journal of partition {partition} in store {here} is sealed: it goes on in store {there}. End that move first: `purse cluster move {partition} {there}`.");
        Snapshots snapshots = new(Files, partition);
        List<JournalFloor> floors = await stores.Map.ReadFloorAsync(partition) is FloorNode told ? [stores.Map.ToFloor(partition, told)] : [];
        foreach (string name in snapshots.List())
        {
            // What is not whole is passed over by everybody.
            if (snapshots.TryReadHeader(name, out SnapshotHeader header)) floors.Add(new JournalFloor(header.BlockNumber, header.Sequence, header.BlockHash, name));
        }

        using JournalReader reader = Read(checkMerkleRoots: false);
        await Task.Run(() =>
        {
            while (reader.TryReadNext(out Block _)) floors.RemoveAll(floor => floor.Number == reader.LastNumber && floor.Hash == reader.LastHash);
        });
        return (new JournalFloor(reader.LastNumber, reader.LastSequence, reader.LastHash, "the journal"), floors);
    }

    /// <summary>Forgets what was found lost, for good: whoever takes the partition over goes on from the journal's end.</summary>
    public async Task AcceptLossAsync(JournalFloor end, IEnumerable<JournalFloor> lost)
    {
        foreach (JournalFloor snapshot in lost.Where(floor => floor.KnownFrom.StartsWith(Snapshots.Folder, StringComparison.Ordinal))) Files.Delete(snapshot.KnownFrom);
        if (await stores.Map.ReadFloorAsync(partition) is FloorNode floor)
            await stores.Map.LowerFloorAsync(partition, floor with { Number = end.Number, Sequence = end.Sequence, Hash = end.Hash.ToString(), Epoch = 0 });
    }

    static async Task AgainAsync(Action step)
    {
        for (int attempt = 1; ; attempt++)
        {
            try
            {
                step();
                return;
            }
            catch (IOException e) when (e is not JournalSealedException && attempt < 5)
            {
                await Task.Delay(200 * attempt);
            }
        }
    }
}
