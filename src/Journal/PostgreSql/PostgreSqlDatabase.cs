using Npgsql;

namespace Purse.Journal;

/// <summary>What an operator says of a database that keeps journals.</summary>
public sealed record PostgreSqlOptions
{
    /// <summary>As Npgsql takes it; several hosts where a standby may be promoted.</summary>
    public required string ConnectionString { get; init; }

    /// <summary>It has a synchronous standby: without one, it takes no writes.</summary>
    public bool IsReplicated { get; init; }

    /// <summary>What takes longer is not waited for: nobody knows then what became of it.</summary>
    public TimeSpan Timeout { get; init; } = TimeSpan.FromSeconds(10);
}

/// <summary>
/// One PostgreSQL database with the journals of any number of partitions. Makes its tables itself; checks in every session that what is
/// committed is durable. All that goes wrong is an <see cref="IOException"/>.
/// </summary>
public sealed class PostgreSqlDatabase : IDisposable
{
    public const int SchemaVersion = 1;

    /// <summary>Raised by purse.advance.</summary>
    const string Fenced = "PU001", NotReplicated = "PU002";
    const string DiskFull = "53100";

    // The head row is the fence: an append that does not find it as its writer left it raises, and nothing of it stays.
    const string Schema = """
        create schema if not exists purse;
        create table if not exists purse.version (version int not null);
        create table if not exists purse.heads (
            partition int primary key, epoch bigint not null, number bigint not null, sequence bigint not null, hash bytea not null, sealed_to text);
        create table if not exists purse.blocks (
            partition int not null, number bigint not null, first_sequence bigint not null, last_sequence bigint not null,
            header bytea not null, body bytea not null, primary key (partition, number));
        alter table purse.blocks alter column body set storage external;
        create index if not exists blocks_by_sequence on purse.blocks (partition, last_sequence, number);
        create table if not exists purse.files (
            partition int not null, name text not null, chunk int not null, bytes bytea not null, primary key (partition, name, chunk));
        alter table purse.files alter column bytes set storage external;
        create or replace function purse.advance(
            of_partition int, of_epoch bigint, after_number bigint, after_hash bytea, to_number bigint, to_sequence bigint, to_hash bytea, is_replicated bool)
        returns void language plpgsql as $$
        begin
            if is_replicated and current_setting('synchronous_standby_names') = '' then
                raise exception using errcode = 'PU002', message = 'synchronous_standby_names is empty';
            end if;
            update purse.heads set number = to_number, sequence = to_sequence, hash = to_hash
            where partition = of_partition and epoch = of_epoch and number = after_number and hash = after_hash and sealed_to is null;
            if not found then
                raise exception using errcode = 'PU001', message = 'the head of the journal is not where this writer left it';
            end if;
        end $$;
        """;

    readonly NpgsqlDataSource _source;
    readonly NpgsqlDataSource _writers;
    volatile bool _hasSchema;

    public PostgreSqlDatabase(PostgreSqlOptions options)
    {
        Options = options;
        NpgsqlConnectionStringBuilder connection;
        try
        {
            connection = new NpgsqlConnectionStringBuilder(options.ConnectionString);
        }
        catch (ArgumentException e)
        {
            throw new IOException($"This is no PostgreSQL connection string: {e.Message} It should look like Host=127.0.0.1;Port=5432;Database=purse;Username=purse.", e);
        }

        connection.CommandTimeout = (int)Math.Ceiling(options.Timeout.TotalSeconds);
        connection.Timeout = connection.CommandTimeout;
        connection.CancellationTimeout = 1000;
        // With the session from its first moment on: what a pool gives back is reset to that.
        connection.Options = $"{connection.Options} -c synchronous_commit=on".TrimStart();
        // Which of several hosts is the primary may have changed since the last look.
        connection.HostRecheckSeconds = 0;
        connection.MaxAutoPrepare = 20;
        connection.AutoPrepareMinUsages = 2;
        connection.ApplicationName ??= "purse";
        Name = $"{(connection.Host!.Contains(':', StringComparison.Ordinal) ? connection.Host : $"{connection.Host}:{connection.Port}")}/{connection.Database}";
        _source = Build(connection);
        connection.Pooling = false;
        _writers = Build(connection);
    }

    NpgsqlDataSource Build(NpgsqlConnectionStringBuilder connection)
    {
        NpgsqlDataSourceBuilder builder = new(connection.ConnectionString);
        builder.UsePhysicalConnectionInitializer(Prepare, async opened => await Task.Run(() => Prepare(opened)));
        // Of several hosts only the one that takes writes.
        return connection.Host!.Contains(',', StringComparison.Ordinal) ? builder.BuildMultiHost().WithTargetSession(TargetSessionAttributes.Primary) : builder.Build();
    }

    public PostgreSqlOptions Options { get; }

    /// <summary>For messages: where it is, without what is secret.</summary>
    public string Name { get; }

    /// <summary>A journal is no more durable than its server's settings say.</summary>
    void Prepare(NpgsqlConnection connection)
    {
        using NpgsqlCommand command = new("select name, setting from pg_settings where name in ('fsync', 'full_page_writes') and setting <> 'on'", connection);
        using NpgsqlDataReader reader = command.ExecuteReader();
        if (reader.Read()) throw new IOException($"{Name} has {reader.GetString(0)} = {reader.GetString(1)}: what it commits may be lost. Set it to on, and restart that server.");
    }

    /// <summary>Makes the tables where they are missing. Several may do so at once.</summary>
    void EnsureSchema(NpgsqlConnection connection)
    {
        using NpgsqlTransaction transaction = connection.BeginTransaction();
        Execute(connection, "select pg_advisory_xact_lock(7310868735957689957)");
        // Every look that needs no rights is taken before what does: a journal's user need not own its tables.
        bool isThere = (bool)Scalar(connection, "select to_regclass('purse.version') is not null")!;
        object? version = isThere ? Scalar(connection, "select version from purse.version") : null;
        if (version is int found)
        {
            if (found != SchemaVersion) throw new IOException($"The tables in {Name} have version {found}; this version of purse reads {SchemaVersion}. Use the one that made them.");
            return;
        }

        Execute(connection, Schema);
        Execute(connection, $"insert into purse.version values ({SchemaVersion})");
        transaction.Commit();
    }

    /// <summary>One of its own, which a successor may end without harm to anybody else.</summary>
    internal NpgsqlConnection OpenForWriting() => Open(_writers);

    /// <summary>Of the pool; given back by disposing it.</summary>
    internal NpgsqlConnection Open()
    {
        if (_hasSchema) return Open(_source);
        using (NpgsqlConnection connection = Open(_source))
        {
            try
            {
                EnsureSchema(connection);
            }
            catch (Exception e) when (e is NpgsqlException or TimeoutException or InvalidOperationException)
            {
                throw Translate(e);
            }
        }

        _hasSchema = true;
        return Open(_source);
    }

    NpgsqlConnection Open(NpgsqlDataSource source)
    {
        try
        {
            return source.OpenConnection();
        }
        catch (Exception e) when (e is NpgsqlException or TimeoutException or InvalidOperationException or System.Net.Sockets.SocketException)
        {
            throw Translate(e);
        }
    }

    internal T With<T>(Func<NpgsqlConnection, T> use)
    {
        using NpgsqlConnection connection = Open();
        try
        {
            return use(connection);
        }
        catch (Exception e) when (e is NpgsqlException or TimeoutException or InvalidOperationException)
        {
            throw Translate(e);
        }
    }

    internal static void Execute(NpgsqlConnection connection, string sql, params object[] parameters)
    {
        using NpgsqlCommand command = Command(connection, sql, parameters);
        command.ExecuteNonQuery();
    }

    internal static object? Scalar(NpgsqlConnection connection, string sql, params object[] parameters)
    {
        using NpgsqlCommand command = Command(connection, sql, parameters);
        return command.ExecuteScalar() is { } value and not DBNull ? value : null;
    }

    internal static NpgsqlCommand Command(NpgsqlConnection connection, string sql, params object[] parameters)
    {
        NpgsqlCommand command = new(sql, connection);
        foreach (object parameter in parameters) command.Parameters.Add(new NpgsqlParameter { Value = parameter });
        return command;
    }

    /// <summary>What it means to a journal; the message says all, since what is inside an exception is taken for its cause.</summary>
    internal IOException Translate(Exception e) => e switch
    {
        PostgresException { SqlState: Fenced } => new FencedException($"Another writer has taken the journal over in {Name}: {e.Message}"),
        PostgresException { SqlState: NotReplicated } => new IOException(
            $"{Name} is declared replicated, and {((PostgresException)e).MessageText}: it takes no writes until a synchronous standby is named there."),
        PostgresException { SqlState: DiskFull } p => Full(p),
        // A new session on a full disk: the server has no code for it.
        PostgresException { MessageText: "could not write init file" } p => Full(p),
        PostgresException p => new IOException($"{Name}: {p.MessageText} ({p.SqlState})."),
        _ => new IOException($"{Name}: {Reason(e)}"),
    };

    /// <summary>What each of several hosts answered, once where they answer the same, and what to do where it is known.</summary>
    static string Reason(Exception e)
    {
        IEnumerable<Exception> causes = e.InnerException is AggregateException several ? several.InnerExceptions : [e.InnerException ?? e];
        return string.Join(" ", causes.Select(static one => one.InnerException is null ? Sentence(one.Message) : Sentence($"{one.Message}: {one.InnerException.Message}")).Distinct());

        static string Sentence(string message) => message.Contains("No password has been provided", StringComparison.Ordinal)
            ? "it asks for a password, and none is known: name a file with it in the environment variable PGPASSFILE (docs/cluster.md)."
            : message.EndsWith('.') ? message : $"{message}.";
    }

    DiskFullException Full(PostgresException e) => new(_full = $"There is no room in {Name}: {e.MessageText}.");

    volatile string? _full;

    /// <summary>Why nothing new is taken; null while there is room.</summary>
    internal string? FullBecause => _full;

    /// <summary>Whether there is room again, found out by taking some for a moment.</summary>
    internal bool HasRoomAgain()
    {
        try
        {
            return With(connection =>
            {
                using NpgsqlTransaction transaction = connection.BeginTransaction();
                Execute(connection, "create temporary table room (bytes bytea) on commit drop");
                Execute(connection, "alter table room alter column bytes set storage external");
                Execute(connection, "insert into room values ($1)", new byte[RoomBytes]);
                transaction.Rollback();
                _full = null;
                return true;
            });
        }
        catch (IOException)
        {
            return false;
        }
    }

    /// <summary>Whether it answers at all, as a server that takes writes.</summary>
    /// <param name="last">That it answered on before; null opens one.</param>
    /// <returns>The connection, for the next time.</returns>
    /// <exception cref="IOException">It does not; the connection is closed.</exception>
    public async Task<NpgsqlConnection> AskAsync(NpgsqlConnection? last)
    {
        NpgsqlConnection? connection = last;
        try
        {
            connection ??= await _writers.OpenConnectionAsync();
            await using NpgsqlCommand command = new("select pg_is_in_recovery()", connection);
            if (await command.ExecuteScalarAsync() is true) throw new IOException($"{Name} is a standby.");
            return connection;
        }
        catch (Exception e)
        {
            if (connection is not null) await connection.DisposeAsync();
            if (e is NpgsqlException or TimeoutException or InvalidOperationException or System.Net.Sockets.SocketException) throw Translate(e);
            throw;
        }
    }

    /// <summary>Its server's clock.</summary>
    public DateTimeOffset Now() => With(static connection => new DateTimeOffset((DateTime)Scalar(connection, "select clock_timestamp()")!));

    const int RoomBytes = 4 * 1024 * 1024;

    public void Dispose()
    {
        _source.Dispose();
        _writers.Dispose();
    }

    public override string ToString() => Name;
}

/// <summary>One partition's journal in a database.</summary>
public sealed class PostgreSqlStore(PostgreSqlDatabase database, int partition) : IJournalStore
{
    public int Partition => partition;

    public IDisk Files { get; } = new PostgreSqlFiles(database, partition);

    public JournalWriter TakeOver(IReadOnlyCollection<JournalFloor> floors, JournalWriter.OnBlock onBlock, JournalFloor? from = null) => PostgreSqlJournal.Open(database, partition, floors, onBlock, from);

    public JournalReader Read(bool checkMerkleRoots) => new PostgreSqlJournalReader(database, partition, checkMerkleRoots);
}
