using Npgsql;
using Purse.Journal;

namespace Purse.Tests.Journal;

/// <summary>The conformance cases on a real PostgreSQL server, and what only a database can do wrong.</summary>
public sealed class PostgreSqlJournalTests(PostgreSqlServer server) : JournalConformanceTests, IClassFixture<PostgreSqlServer>, IDisposable
{
    readonly List<PostgreSqlDatabase> _databases = [];

    PostgreSqlDatabase NewDatabase(Func<PostgreSqlOptions, PostgreSqlOptions>? change = null)
    {
        PostgreSqlOptions options = new() { ConnectionString = server.NewDatabaseAsync().GetAwaiter().GetResult() };
        PostgreSqlDatabase database = new(change?.Invoke(options) ?? options);
        _databases.Add(database);
        return database;
    }

    private protected override IJournalStore NewStore() => new PostgreSqlStore(NewDatabase(), 0);

    static string Told(string sql, PostgreSqlDatabase database) => $"{database.With(connection => PostgreSqlDatabase.Scalar(connection, sql))}";

    /// <summary>Excludes: blocks of two owners for one sequence, whatever the pauses, broken connections and take-overs in between.</summary>
    [Fact]
    public void Of_two_writers_one_owns_each_sequence()
    {
        PostgreSqlDatabase database = NewDatabase();
        PostgreSqlStore store = new(database, 3);
        int races = int.Parse(Environment.GetEnvironmentVariable("PURSE_RACES") ?? "100", System.Globalization.CultureInfo.InvariantCulture), fenced = 0, acknowledged = 0;
        // By sequence: the epoch whose owner was told that it is durable.
        Dictionary<ulong, ulong> owners = [];
        for (int race = 0; race < races; race++)
        {
            Parallel.For(0, 2, side =>
            {
                Random random = new(race * 2 + side);
                try
                {
                    Thread.Sleep(random.Next(4));
                    using JournalWriter journal = Open(store);
                    for (int i = random.Next(8); i >= 0; i--)
                    {
                        if (random.Next(4) == 0) Thread.Sleep(random.Next(5));
                        if (random.Next(15) == 0) Told("select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'purse writer%' and datname = current_database()", database);
                        ulong first = journal.AppendedSequence + 1;
                        Append(journal, 1 + random.Next(3), attachments: [(byte)journal.Epoch]);
                        if (random.Next(2) == 0) Append(journal, 1);
                        journal.Flush();
                        lock (owners)
                        {
                            for (ulong sequence = first; sequence <= journal.FlushedSequence; sequence++) owners.Add(sequence, journal.Epoch);
                            acknowledged++;
                        }
                    }
                }
                catch (IOException e) when (e is not JournalDamagedException)
                {
                    if (e is FencedException) Interlocked.Increment(ref fenced);
                }
            });
        }

        Assert.True(fenced > races / 20 && acknowledged > races, $"{fenced} were fenced, {acknowledged} acknowledged");
        using JournalReader reader = store.Read(checkMerkleRoots: true);
        while (reader.TryReadNext(out Block block))
        {
            for (ulong sequence = block.Header.FirstSequence; sequence <= block.Header.LastSequence; sequence++)
            {
                if (owners.Remove(sequence, out ulong epoch)) Assert.Equal(epoch, block.Header.Epoch);
            }
        }

        Assert.Empty(owners);
    }

    /// <summary>Excludes: a riddle for whoever did not name the file of passwords, told once for every host.</summary>
    [Fact]
    public void Who_gives_no_password_is_told_where_it_belongs()
    {
        using PostgreSqlDatabase database = NewDatabase(static options => options with
        {
            ConnectionString = new NpgsqlConnectionStringBuilder(options.ConnectionString) { Password = null, Host = "127.0.0.1,127.0.0.1" }.ConnectionString,
        });
        IOException refused = Assert.Throws<IOException>(() => database.Now());
        Assert.EndsWith("it asks for a password, and none is known: name a file with it in the environment variable PGPASSFILE (docs/cluster.md).", refused.Message);
    }

    /// <summary>Excludes: a changed byte in a row that is served.</summary>
    [Theory]
    [InlineData("update purse.blocks set body = set_byte(body, 17, get_byte(body, 17) # 4) where number = 3")]
    [InlineData("update purse.blocks set header = set_byte(header, 130, get_byte(header, 130) # 4) where number = 3")]
    [InlineData("delete from purse.blocks where number = 3")]
    [InlineData("delete from purse.blocks where number = 5")]
    [InlineData("update purse.heads set number = 4, sequence = 30")]
    [InlineData("update purse.heads set hash = set_byte(hash, 1, get_byte(hash, 1) # 4)")]
    public void What_is_not_as_it_was_written_is_damage(string change)
    {
        PostgreSqlDatabase database = NewDatabase();
        PostgreSqlStore store = new(database, 0);
        using (JournalWriter journal = Open(store))
        {
            for (int i = 0; i < 4; i++)
            {
                Append(journal, 10);
                journal.Flush();
            }

            Assert.Equal(5ul, journal.LastNumber);
        }

        database.With(connection =>
        {
            PostgreSqlDatabase.Execute(connection, change);
            return 0;
        });
        Assert.Throws<JournalDamagedException>(() => Open(store));
    }

    /// <summary>Excludes: an answer that rests on a commit of which nobody knows whether it is there.</summary>
    [Fact]
    public void A_writer_whose_connection_breaks_is_dead_and_the_next_one_finds_what_is_there()
    {
        PostgreSqlDatabase database = NewDatabase();
        PostgreSqlStore store = new(database, 0);
        using JournalWriter journal = Open(store);
        Append(journal, 2);
        journal.Flush();
        Append(journal, 2);
        Told("select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'purse writer%' and datname = current_database()", database);
        Assert.IsNotType<FencedException>(Assert.ThrowsAny<IOException>(journal.Flush));
        Assert.ThrowsAny<IOException>(journal.Flush);
        Assert.Equal(2ul, journal.FlushedSequence);
        List<ulong> read = [];
        using JournalWriter next = Open(store, read);
        Assert.Equal(2, read.Count);
        Assert.Equal(journal.Epoch + 1, next.Epoch);
    }

    [Theory]
    [InlineData("update purse.version set version = 99", "version")]
    [InlineData("update purse.heads set sealed_to = 'b'", "sealed")]
    public void What_cannot_be_served_is_said(string change, string told)
    {
        PostgreSqlDatabase database = NewDatabase();
        Open(new PostgreSqlStore(database, 0)).Dispose();
        database.With(connection =>
        {
            PostgreSqlDatabase.Execute(connection, change);
            return 0;
        });
        using PostgreSqlDatabase again = new(database.Options);
        Assert.Contains(told, Assert.ThrowsAny<IOException>(() => Open(new PostgreSqlStore(again, 0))).Message, StringComparison.Ordinal);
    }

    /// <summary>Excludes: a store that was declared replicated, and takes writes without a standby.</summary>
    [Fact]
    public void A_replicated_store_without_a_standby_takes_no_writes()
    {
        PostgreSqlStore store = new(NewDatabase(options => options with { IsReplicated = true }), 0);
        Assert.Contains("takes no writes until a synchronous standby is named", Assert.ThrowsAny<IOException>(() => Open(store)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void What_is_no_connection_string_is_said()
    {
        Assert.Contains("It should look like Host=", Assert.Throws<IOException>(() => new PostgreSqlDatabase(new PostgreSqlOptions { ConnectionString = "nonsense" })).Message, StringComparison.Ordinal);
        using PostgreSqlDatabase nobody = new(new PostgreSqlOptions { ConnectionString = "Host=127.0.0.1;Port=1;Database=x;Username=x", Timeout = TimeSpan.FromSeconds(2) });
        Assert.StartsWith("127.0.0.1:1/x: ", Assert.Throws<IOException>(() => Open(new PostgreSqlStore(nobody, 0))).Message, StringComparison.Ordinal);
    }

    public void Dispose() => _databases.ForEach(database => database.Dispose());
}
