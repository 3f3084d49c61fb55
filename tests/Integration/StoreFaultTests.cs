using System.Collections.Concurrent;
using System.Diagnostics;
using Purse.Cluster.Local;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Integration;

/// <summary>
/// Partitions on real PostgreSQL servers that are stopped, killed and promoted under a load of transfers within and between them. After each: nothing
/// acknowledged is lost, nothing is applied twice, sums are zero over all databases, nothing stays in doubt, and a replay from the first event equals
/// the served state.
/// </summary>
public sealed class StoreFaultTests : IAsyncDisposable
{
    const int Accounts = 20;
    const int Clients = 8;
    static readonly CurrencyCode Usd = CurrencyCode.Parse("USD");

    readonly TemporaryFolder _folder = new();
    readonly List<LocalPostgreSql> _servers = [];
    readonly List<PostgreSqlDatabase> _databases = [];
    readonly List<Partition> _partitions = [];
    readonly List<IJournalStore> _stores = [];
    readonly ConcurrentQueue<string> _log = new();

    /// <summary>By id: where it was said to be, and what became of it.</summary>
    readonly ConcurrentDictionary<UInt128, (int Partition, Decision Decision)> _acknowledged = new();
    long _lastAcknowledgedTicks;
    long _longestPauseTicks;

    static void SkipWithoutServer() => Assert.SkipWhen(LocalPostgreSql.ProgramsFolder is null, "PostgreSQL is not installed: ./test installs it when run as root.");

    async Task<LocalPostgreSql> MakeServerAsync(params string[] settings)
    {
        LocalPostgreSql server = await LocalPostgreSql.MakeAsync(Path.Combine(_folder.Path, $"s{_servers.Count}"), settings);
        _servers.Add(server);
        return server;
    }

    async Task<LocalPostgreSql> MakeStandbyAsync(LocalPostgreSql of, bool isSynchronous)
    {
        LocalPostgreSql standby = await of.MakeStandbyAsync(Path.Combine(_folder.Path, $"s{_servers.Count}"), $"s{_servers.Count}", isSynchronous);
        _servers.Add(standby);
        return standby;
    }

    async Task<LocalPostgreSql> RestartAsync(LocalPostgreSql server)
    {
        LocalPostgreSql again = await LocalPostgreSql.StartAsync(server.Folder, server.Port, server.Password);
        _servers[_servers.IndexOf(server)] = again;
        return again;
    }

    async Task ServeAsync(params PostgreSqlOptions[] databases)
    {
        foreach (PostgreSqlOptions options in databases) _databases.Add(new PostgreSqlDatabase(options));
        PartitionOptions partitionOptions = new() { RecoveryDelay = TimeSpan.FromMilliseconds(50), EventsPerSnapshot = 5_000 };
        for (int number = 0; number < databases.Length; number++)
        {
            _stores.Add(new PostgreSqlStore(_databases[number], number));
            _partitions.Add(Partition.Start(_stores[number], databases.Length, partitionOptions, TimeProvider.System, _log.Enqueue));
        }

        foreach (Partition partition in _partitions) partition.Connect(_partitions);
        for (int i = 0; i < Accounts; i++)
        {
            AccountName account = Name(i);
            await ExecuteAsync(new Command { Kind = CommandKind.OpenAccount, Account = account });
            await ExecuteAsync(Transfer(AccountName.Parse("@world"), account, 100_000));
        }
    }

    static AccountName Name(int i) => AccountName.Parse($"a{i}");

    static Command Transfer(in AccountName from, in AccountName to, Int128 amount) => new()
    {
        Kind = CommandKind.Transfer,
        TransactionId = UInt128.Parse(Guid.NewGuid().ToString("N"), System.Globalization.NumberStyles.HexNumber),
        Account = from,
        Counterparty = to,
        AmountDigits = amount,
        Currency = Usd,
    };

    /// <summary>The same again until it is answered for good, as a careful caller does.</summary>
    async Task ExecuteAsync(Command command)
    {
        int number = (command.Account.IsSystem ? command.Counterparty : command.Account).PartitionOf(_partitions.Count);
        for (Stopwatch watch = Stopwatch.StartNew(); ; await Task.Delay(20))
        {
            Assert.True(watch.Elapsed < TimeSpan.FromMinutes(2), $"no answer for two minutes:\n{string.Join('\n', _log)}");
            CommandRequest request = new(1);
            request.Commands[0] = command;
            RequestStatus status = await _partitions[number].SubmitAsync(request, TimeSpan.FromSeconds(2));
            if (status != RequestStatus.Answered || request.Decisions[0].Outcome is Outcome.Overloaded or Outcome.StorageFull or Outcome.Undecided) continue;
            Decision decision = request.Decisions[0];
            Assert.True(decision.Outcome is Outcome.Done or Outcome.Duplicate or Outcome.AccountExists, $"{decision.Outcome}");
            if (command.Kind == CommandKind.Transfer) _acknowledged[command.TransactionId] = (number, decision);
            long now = Stopwatch.GetTimestamp(), before = Interlocked.Exchange(ref _lastAcknowledgedTicks, now);
            if (before != 0) InterlockedMax(ref _longestPauseTicks, now - before);
            return;
        }
    }

    static void InterlockedMax(ref long target, long value)
    {
        for (long seen = Volatile.Read(ref target); value > seen;)
        {
            long found = Interlocked.CompareExchange(ref target, value, seen);
            if (found == seen) return;
            seen = found;
        }
    }

    /// <summary>Under a load that goes on before, during and after it.</summary>
    async Task UnderLoadAsync(string what, Func<Task> fault)
    {
        using CancellationTokenSource end = new();
        Task[] clients = [.. Enumerable.Range(0, Clients).Select(client => Task.Run(async () =>
        {
            Random random = new(client);
            while (!end.IsCancellationRequested)
            {
                int from = random.Next(Accounts);
                await ExecuteAsync(Transfer(Name(from), Name((from + 1 + random.Next(Accounts - 1)) % Accounts), 1 + random.Next(3)));
            }
        }))];
        await Task.Delay(500);
        int before = _acknowledged.Count;
        Interlocked.Exchange(ref _longestPauseTicks, 0);
        await fault();
        await Task.Delay(500);
        // Every partition takes writes again.
        int after = _acknowledged.Count;
        for (Stopwatch watch = Stopwatch.StartNew(); _acknowledged.Count < after + 200 || !_partitions.TrueForAll(partition => partition.IsReady); await Task.Delay(20))
            Assert.True(watch.Elapsed < TimeSpan.FromMinutes(1), $"after {what} writes do not go on:\n{string.Join('\n', _log)}");
        await end.CancelAsync();
        await Task.WhenAll(clients);
        TestContext.Current.SendDiagnosticMessage($"{what}: {before} acknowledged before, {_acknowledged.Count} in all; the longest pause between two was {Stopwatch.GetElapsedTime(0, _longestPauseTicks).TotalSeconds:0.00} s");
        await CheckAsync(what);
    }

    async Task CheckAsync(string what)
    {
        for (Stopwatch watch = Stopwatch.StartNew(); _partitions.Exists(partition => partition.UndecidedCount > 0); await Task.Delay(50))
            Assert.True(watch.Elapsed < TimeSpan.FromSeconds(30), $"after {what} something stays in doubt:\n{string.Join('\n', _log)}");
        Int128 sum = 0;
        Dictionary<UInt128, int> seen = [];
        foreach (Partition partition in _partitions)
        {
            ReadRequest<(byte[] State, ulong Sequence)> read = new((State state) => (Bytes(state), state.LastSequence));
            Assert.Equal(RequestStatus.Answered, await partition.SubmitAsync(read, TimeSpan.FromSeconds(20)));
            StateMachine machine = new(new State(1, partition.Number, _partitions.Count));
            using JournalReader reader = _stores[partition.Number].Read(checkMerkleRoots: true);
            while (machine.State.LastSequence < read.Result.Sequence && reader.TryReadNext(out Block block))
            {
                Partition.Apply(block, machine);
                foreach (ref readonly Event e in block.RecordsAs<Event>())
                {
                    if (e.Kind == EventKind.Debited) seen[e.TransactionId] = seen.GetValueOrDefault(e.TransactionId) + 1;
                }
            }

            Assert.True(read.Result.State.AsSpan().SequenceEqual(Bytes(machine.State)), $"after {what} partition {partition.Number} is not what its replay makes");
            Assert.True(machine.State.TryCurrency(Usd, out uint usd, out _));
            for (int i = 0; i < machine.State.BalancesCount; i++) sum += machine.State.BalanceAt(i).Posted;
            foreach ((_, _, Int128 posted) in machine.State.Clearing) sum += posted;
            Assert.All(Enumerable.Range(0, machine.State.BalancesCount), i => Assert.Equal((0, 0), (machine.State.BalanceAt(i).Held, machine.State.BalanceAt(i).Incoming)));
        }

        Assert.Equal(0, sum);
        foreach ((UInt128 id, (int at, Decision decision)) in _acknowledged) Assert.True(seen.GetValueOrDefault(id) == 1, $"after {what} transaction {id:x}, {decision.Outcome} at {at}:{decision.Sequence}, is in the journals {seen.GetValueOrDefault(id)} times");
        Assert.All(seen, one => Assert.Equal(1, one.Value));
    }

    static byte[] Bytes(State state)
    {
        using MemoryStream stream = new();
        state.Write(stream);
        return stream.ToArray();
    }

    [Fact]
    public async Task Servers_that_are_stopped_and_killed_come_back_with_all_that_was_acknowledged()
    {
        SkipWithoutServer();
        LocalPostgreSql first = await MakeServerAsync(), second = await MakeServerAsync();
        await ServeAsync(new PostgreSqlOptions { ConnectionString = first.ConnectionString }, new PostgreSqlOptions { ConnectionString = second.ConnectionString });
        await UnderLoadAsync("a server was killed", async () =>
        {
            await first.KillAsync();
            first = await RestartAsync(first);
        });
        await UnderLoadAsync("a server was restarted", async () =>
        {
            await second.StopAsync();
            second = await RestartAsync(second);
        });
        await UnderLoadAsync("both servers were killed", async () =>
        {
            await Task.WhenAll(first.KillAsync(), second.KillAsync());
            first = await RestartAsync(first);
            await Task.Delay(300);
            second = await RestartAsync(second);
        });
        await UnderLoadAsync("all connections were ended", () => second.ExecuteAsync("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'"));
    }

    [Fact]
    public async Task A_promoted_standby_has_all_that_was_acknowledged()
    {
        SkipWithoutServer();
        LocalPostgreSql other = await MakeServerAsync(), primary = await MakeServerAsync();
        LocalPostgreSql standby = await MakeStandbyAsync(primary, isSynchronous: true);
        await ServeAsync(
            new PostgreSqlOptions { ConnectionString = other.ConnectionString },
            new PostgreSqlOptions { ConnectionString = primary.ConnectionString.Replace($"Host=127.0.0.1;Port={primary.Port}", $"Host=127.0.0.1:{primary.Port},127.0.0.1:{standby.Port}", StringComparison.Ordinal), IsReplicated = true });
        await UnderLoadAsync("a primary was killed and its standby promoted", async () =>
        {
            await primary.KillAsync();
            await standby.PromoteAsync();
            await Task.Delay(500);
            // Declared replicated, it takes nothing before it has a standby of its own.
            Assert.False(_partitions[1].IsReady);
            await MakeStandbyAsync(standby, isSynchronous: true);
        });
    }

    /// <summary>Excludes: a store that forgot its end, and is gone on with as if nothing had been.</summary>
    [Fact]
    public async Task A_promoted_standby_that_lost_the_end_is_refused()
    {
        SkipWithoutServer();
        LocalPostgreSql primary = await MakeServerAsync();
        LocalPostgreSql standby = await MakeStandbyAsync(primary, isSynchronous: false);
        await ServeAsync(new PostgreSqlOptions { ConnectionString = primary.ConnectionString });
        // Caught up, and then it misses something.
        await Task.Delay(500);
        await standby.StopAsync();
        for (int i = 0; i < 5; i++) await ExecuteAsync(Transfer(Name(0), Name(1), 1));
        JournalFloor floor;
        using (JournalReader reader = _stores[0].Read(checkMerkleRoots: false))
        {
            while (reader.TryReadNext(out _))
            {
            }

            floor = new JournalFloor(reader.LastNumber, reader.LastSequence, reader.LastHash, "whoever remembers");
        }

        await primary.KillAsync();
        standby = await RestartAsync(standby);
        await standby.PromoteAsync();
        using PostgreSqlDatabase promoted = new(new PostgreSqlOptions { ConnectionString = standby.ConnectionString });
        JournalDamagedException refused = Assert.Throws<JournalDamagedException>(() => new PostgreSqlStore(promoted, 0).TakeOver([floor], static (in Block _) => { }));
        Assert.StartsWith("journal_lost_tail: whoever remembers knows event", refused.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_store_without_room_takes_nothing_new_answers_reads_and_goes_on_when_there_is_room()
    {
        SkipWithoutServer();
        LocalPostgreSql server = await MakeServerAsync();
        string small = Path.Combine(_folder.Path, "small");
        Directory.CreateDirectory(small);
        Assert.SkipUnless(Environment.UserName == "root" && await RunAsync("mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", small), "A small file system can only be mounted by root.");
        try
        {
            await RunAsync("chown", "postgres:postgres", small);
            await server.ExecuteAsync($"create tablespace small location '{small}'");
            await server.ExecuteAsync("create database purse tablespace small");
            await server.ExecuteAsync("create table filler (bytes bytea) tablespace small");
            await server.ExecuteAsync("alter table filler alter column bytes set storage external");
            await ServeAsync(new PostgreSqlOptions { ConnectionString = server.ConnectionString.Replace("Database=postgres", "Database=purse", StringComparison.Ordinal) });
            await UnderLoadAsync("a store's disk was full", async () =>
            {
                foreach (int bytes in new[] { 1_000_000, 100_000, 4_000 })
                {
                    while (await TryFillAsync(server, bytes))
                    {
                    }
                }

                for (Stopwatch watch = Stopwatch.StartNew(); ; await Task.Delay(20))
                {
                    Assert.True(watch.Elapsed < TimeSpan.FromSeconds(60), $"the disk is not full:\n{string.Join('\n', _log)}");
                    CommandRequest request = new(1);
                    request.Commands[0] = Transfer(Name(0), Name(1), 1);
                    if (await _partitions[0].SubmitAsync(request, TimeSpan.FromSeconds(2)) == RequestStatus.Answered && request.Decisions[0].Outcome == Outcome.StorageFull) break;
                }

                ReadRequest<int> read = new((State state) => state.BalancesCount);
                Assert.Equal(RequestStatus.Answered, await _partitions[0].SubmitAsync(read, TimeSpan.FromSeconds(5)));
                Assert.InRange(read.Result, Accounts, Accounts + 1);
                await server.ExecuteAsync("drop table filler");
            });
        }
        finally
        {
            await StopAllAsync();
            await RunAsync("umount", small);
        }
    }

    static async Task<bool> TryFillAsync(LocalPostgreSql server, int bytes)
    {
        try
        {
            await server.ExecuteAsync($"insert into filler values (decode(repeat('ab', {bytes}), 'hex'))");
            return true;
        }
        catch (Npgsql.PostgresException e) when (e.SqlState == "53100")
        {
            return false;
        }
    }

    static async Task<bool> RunAsync(string program, params string[] arguments)
    {
        using Process process = Process.Start(program, arguments);
        await process.WaitForExitAsync();
        return process.ExitCode == 0;
    }

    async Task StopAllAsync()
    {
        foreach (Partition partition in _partitions) await partition.DisposeAsync();
        foreach (PostgreSqlDatabase database in _databases) database.Dispose();
        foreach (LocalPostgreSql server in _servers) await server.DisposeAsync();
        _partitions.Clear();
        _databases.Clear();
        _servers.Clear();
    }

    public async ValueTask DisposeAsync()
    {
        await StopAllAsync();
        _folder.Dispose();
    }
}
