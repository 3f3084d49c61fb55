using System.Diagnostics;
using Npgsql;

namespace Purse.Load;

/// <summary>
/// Transfers as rows, as wallets keep them by hand: each is one transaction that takes its id, moves two balances and leaves two entries. On the same
/// servers as the journals that are compared with it, with one round trip for each transaction and no account that is hot.
/// </summary>
public sealed class RowsLoad : IAsyncDisposable
{
    const string Tables = """
        create table if not exists rows_balances (account int primary key, posted bigint not null check (posted >= 0)) with (fillfactor = 50);
        create table if not exists rows_entries (transfer uuid not null, account int not null, amount bigint not null, posted bigint not null check (posted >= 0), primary key (transfer, account));
        """;

    /// <summary>
    /// A batch in one statement: rows locked in order, entries with the balance after each, balances moved by their sums. The checks refuse the whole batch
    /// where one transfer of it must be refused, and its caller sends them one by one then: its best case, which is all that is measured.
    /// </summary>
    const string Procedure = """
        create or replace function rows_transfer(ids uuid[], debtors int[], creditors int[], amounts bigint[]) returns void language plpgsql as $$
        begin
            perform 1 from rows_balances where account in (select unnest(debtors) union select unnest(creditors)) order by account for update;
            with transfers as (select * from unnest(ids, debtors, creditors, amounts) with ordinality as one (id, debtor, creditor, amount, n)),
            moves as (select id, debtor as account, -amount as amount, n from transfers union all select id, creditor, amount, n from transfers),
            entries as (
                insert into rows_entries
                select m.id, m.account, m.amount, b.posted + sum(m.amount) over (partition by m.account order by m.n) from moves m join rows_balances b using (account)
                returning account, amount)
            update rows_balances b set posted = b.posted + moved.amount from (select account, sum(amount) as amount from entries group by account) moved where b.account = moved.account;
        end $$;
        """;

    readonly List<NpgsqlDataSource> _servers = [];
    readonly int _accounts;

    RowsLoad(int accounts) => _accounts = accounts;

    /// <param name="connectionStrings">One server, or two for a commit in two phases.</param>
    public static async Task<RowsLoad> StartAsync(IEnumerable<string> connectionStrings, int accounts, int clients)
    {
        RowsLoad load = new(accounts);
        foreach (string connectionString in connectionStrings)
        {
            NpgsqlDataSource server = NpgsqlDataSource.Create($"{connectionString};Maximum Pool Size={clients + 1};Max Auto Prepare=20;Auto Prepare Min Usages=2");
            load._servers.Add(server);
            await using NpgsqlCommand make = server.CreateCommand($"{Tables} {Procedure} insert into rows_balances select n, {OpeningBalance} from generate_series(0, {accounts - 1}) as n on conflict do nothing;");
            await make.ExecuteNonQueryAsync();
        }

        return load;
    }

    /// <summary>On the first server: both accounts are there.</summary>
    /// <param name="draw">Who pays, of as many as there are; null draws all alike.</param>
    public Task<Measured> RunAsync(string name, long transfers, int clients, Action<double> progress, Func<Random, int>? draw = null) => RunAsync(name, transfers, 1, clients, progress, async (connections, random) =>
    {
        (int from, int to) = Pick(random, draw);
        (Guid id, long amount) = (Guid.NewGuid(), 1 + random.Next(100));
        await using NpgsqlBatch batch = new(connections[0]);
        Add(batch, "begin");
        // In the order of their numbers, so that no two wait for each other.
        foreach ((int account, long change) in from < to ? new[] { (from, -amount), (to, amount) } : [(to, amount), (from, -amount)]) Add(batch, Move, id, account, change);
        Add(batch, "commit");
        await batch.ExecuteNonQueryAsync();
    });

    /// <summary>The same with a stored procedure that takes many at once.</summary>
    public Task<Measured> RunProcedureAsync(string name, long transfers, int batch, int clients, Action<double> progress, Func<Random, int>? draw = null) => RunAsync(name, transfers, batch, clients, progress, async (connections, random) =>
    {
        (int From, int To)[] pairs = [.. Enumerable.Range(0, batch).Select(_ => Pick(random, draw))];
        await using NpgsqlCommand call = new("select rows_transfer($1, $2, $3, $4)", connections[0]);
        call.Parameters.Add(new NpgsqlParameter<Guid[]> { TypedValue = [.. pairs.Select(_ => Guid.NewGuid())] });
        call.Parameters.Add(new NpgsqlParameter<int[]> { TypedValue = [.. pairs.Select(pair => pair.From)] });
        call.Parameters.Add(new NpgsqlParameter<int[]> { TypedValue = [.. pairs.Select(pair => pair.To)] });
        call.Parameters.Add(new NpgsqlParameter<long[]> { TypedValue = [.. pairs.Select(_ => 1L + random.Next(100))] });
        await call.ExecuteNonQueryAsync();
    });

    /// <summary>Whether the balances still add up to what they were, on all servers together.</summary>
    public async Task<bool> IsBalancedAsync()
    {
        decimal sum = 0;
        foreach (NpgsqlDataSource server in _servers)
        {
            await using NpgsqlCommand command = server.CreateCommand("select sum(posted) from rows_balances");
            sum += (decimal)(await command.ExecuteScalarAsync())!;
        }

        return sum == (decimal)OpeningBalance * _accounts * _servers.Count;
    }

    /// <summary>The payer on the first server, the payee on the second: prepared on both, then committed on both.</summary>
    public Task<Measured> RunTwoPhaseAsync(string name, long transfers, int clients, Action<double> progress) => RunAsync(name, transfers, 1, clients, progress, async (connections, random) =>
    {
        (int from, int to) = Pick(random, null);
        (Guid id, long amount) = (Guid.NewGuid(), 1 + random.Next(100));
        await Task.WhenAll(PrepareAsync(connections[0], from, -amount), PrepareAsync(connections[1], to, amount));
        await Task.WhenAll(connections.Select(async connection =>
        {
            await using NpgsqlCommand commit = new($"commit prepared '{id}'", connection);
            await commit.ExecuteNonQueryAsync();
        }));

        async Task PrepareAsync(NpgsqlConnection connection, int account, long change)
        {
            await using NpgsqlBatch batch = new(connection);
            Add(batch, "begin");
            Add(batch, Move, id, account, change);
            Add(batch, $"prepare transaction '{id}'");
            await batch.ExecuteNonQueryAsync();
        }
    });

    const string Move = """
        with moved as (update rows_balances set posted = posted + $3 where account = $2 and posted + $3 >= 0 returning posted)
        insert into rows_entries select $1, $2, $3, posted from moved
        """;

    static void Add(NpgsqlBatch batch, string sql, Guid id = default, int account = 0, long change = 0)
    {
        NpgsqlBatchCommand command = new(sql);
        if (change != 0)
        {
            command.Parameters.Add(new NpgsqlParameter<Guid> { TypedValue = id });
            command.Parameters.Add(new NpgsqlParameter<int> { TypedValue = account });
            command.Parameters.Add(new NpgsqlParameter<long> { TypedValue = change });
        }

        batch.BatchCommands.Add(command);
    }

    const long OpeningBalance = 1_000_000_000;

    (int From, int To) Pick(Random random, Func<Random, int>? draw)
    {
        int from = draw?.Invoke(random) ?? random.Next(_accounts);
        return (from, (from + 1 + random.Next(_accounts - 1)) % _accounts);
    }

    async Task<Measured> RunAsync(string name, long transfers, int batch, int clients, Action<double> progress, Func<NpgsqlConnection[], Random, Task> transfer)
    {
        int perClient = (int)Math.Max(1, transfers / clients / batch);
        long[] latencies = new long[perClient * clients];
        int done = 0;
        Stopwatch watch = Stopwatch.StartNew();
        await Task.WhenAll(Enumerable.Range(0, clients).Select(client => Task.Run(async () =>
        {
            Random random = new(client);
            NpgsqlConnection[] connections = await Task.WhenAll(_servers.Select(server => server.OpenConnectionAsync().AsTask()));
            try
            {
                for (int i = 0; i < perClient; i++)
                {
                    long started = Stopwatch.GetTimestamp();
                    await transfer(connections, random);
                    latencies[client * perClient + i] = Stopwatch.GetTimestamp() - started;
                    progress((double)Interlocked.Increment(ref done) * batch / transfers);
                }
            }
            finally
            {
                foreach (NpgsqlConnection connection in connections) await connection.DisposeAsync();
            }
        })));
        return Measured.From(name, (long)perClient * batch * clients, clients, batch, watch.Elapsed, latencies, refused: 0);
    }

    public async ValueTask DisposeAsync()
    {
        foreach (NpgsqlDataSource server in _servers) await server.DisposeAsync();
    }
}
