using System.Data.Common;
using System.Globalization;
using System.Text;
using Microsoft.Data.Sqlite;
using Purse.Ledger;

namespace Purse.Views;

/// <summary>The view of the embedded default: a file beside the journals. Amounts and times are text that compares as it should.</summary>
public sealed class SqliteView(string path, int partitionsCount) : SqlView("embedded", partitionsCount)
{
    const string TimeFormat = "yyyy-MM-dd'T'HH:mm:ss.ffffff'Z'";

    readonly string _connectionString = new SqliteConnectionStringBuilder { DataSource = path, Mode = SqliteOpenMode.ReadWriteCreate, DefaultTimeout = 10, Pooling = false }.ToString();
    readonly string _readConnectionString = new SqliteConnectionStringBuilder { DataSource = path, Mode = SqliteOpenMode.ReadOnly, DefaultTimeout = 10 }.ToString();

    /// <summary>Of the file that is at the path now, whichever one others have open.</summary>
    readonly string _lookConnectionString = new SqliteConnectionStringBuilder { DataSource = path, Mode = SqliteOpenMode.ReadOnly, DefaultTimeout = 10, Pooling = false }.ToString();

    /// <summary>What is left on the disk is the journals'.</summary>
    const long FreeBytesMin = 256L * 1024 * 1024;

    const int NoSuchTable = 1, Corrupt = 11, NotADatabase = 26;
    SqliteConnection? _connection;
    Statements? _statements;

    public override string Name => "sqlite";

    public override ulong[] Open()
    {
        Close();
        // Their file may have been deleted.
        using (SqliteConnection readers = new(_readConnectionString)) SqliteConnection.ClearPool(readers);
        try
        {
            OpenFile();
        }
        catch (SqliteException e) when (e.SqliteErrorCode is Corrupt or NotADatabase)
        {
            Delete();
            OpenFile();
        }

        return Checkpoint.PositionsOf(Look());
    }

    void OpenFile()
    {
        _connection = new SqliteConnection(_connectionString);
        _connection.Open();
        // Its writes need not be durable at once: what is missing after a power cut is read from the journals again.
        Execute("pragma journal_mode = wal; pragma synchronous = normal; pragma cache_size = -65536; pragma wal_autocheckpoint = 8192");
        if (Scalar("select version from about where id = 'embedded'", isOptional: true) is not long version || version != Version) Clear();
    }

    /// <summary>Damaged: it is made again.</summary>
    void Delete()
    {
        Close();
        foreach (string file in (string[])[path, $"{path}-wal", $"{path}-shm"]) File.Delete(file);
    }

    public override Checkpoint[] Look()
    {
        using SqliteConnection look = new(_lookConnectionString);
        look.Open();
        return Look(look);
    }

    public override void Mark(IReadOnlyList<(int Partition, ulong Position)> current, long timeMicros)
    {
        using SqliteTransaction transaction = _connection!.BeginTransaction();
        Statements statements = _statements ??= new Statements(_connection);
        foreach ((int partition, ulong position) in current) statements.Mark.Run(transaction, TimeOf(timeMicros), partition, (long)position);
        transaction.Commit();
    }

    public override void Clear()
    {
        using SqliteConnection own = new(_connectionString);
        own.Open();
        Execute(own, "pragma journal_mode = wal");
        Execute(own, $"""
            begin immediate;
            {string.Concat(TableNames.Select(table => $"drop table if exists {table};\n"))}
            {TablesWith("text", "text", "text", "text", ", primary key ($1)) without rowid")}
            insert into about values ('embedded', {Version});
            {string.Concat(Enumerable.Range(0, PartitionsCount).Select(partition => $"insert into checkpoints values ({partition}, 0, null);\n"))}
            commit;
            """);
    }

    public override void Complete() => Execute(Indexes);

    void Execute(string sql) => Execute(_connection!, sql);

    static void Execute(SqliteConnection connection, string sql)
    {
        using SqliteCommand command = new(sql, connection);
        command.ExecuteNonQuery();
    }

    object? Scalar(string sql, bool isOptional)
    {
        try
        {
            using SqliteCommand command = new(sql, _connection);
            return command.ExecuteScalar();
        }
        catch (SqliteException e) when (isOptional && e.SqliteErrorCode == NoSuchTable)
        {
            return null;
        }
    }

    public override bool Write(ViewBatch batch)
    {
        if (new DriveInfo(Path.GetFullPath(path)) is { AvailableFreeSpace: < FreeBytesMin and long free })
            throw new IOException($"the disk of {path} has {free / 1024 / 1024} MiB left, and the last {FreeBytesMin / 1024 / 1024} are the journals'. Make room.");
        try
        {
            return WriteRows(batch);
        }
        catch (SqliteException e) when (e.SqliteErrorCode is Corrupt or NotADatabase)
        {
            Delete();
            throw;
        }
    }

    bool WriteRows(ViewBatch batch)
    {
        SqliteConnection connection = _connection!;
        using SqliteTransaction transaction = connection.BeginTransaction();
        Statements statements = _statements ??= new Statements(connection);
        if (statements.Checkpoint.Run(transaction, (long)batch.Last, batch.Partition, (long)batch.After) == 0) return false;
        State state = batch.State;
        foreach ((string currency, int decimals) in batch.Currencies) statements.Currency.Run(transaction, currency, decimals);
        foreach (AccountRow row in batch.Accounts) WriteAccount(row, batch, statements, transaction);
        foreach (EntryRow row in batch.Entries)
        {
            int decimals = state.Decimals(row.Currency);
            statements.Entry.Run(
                transaction, batch.Partition, (long)row.Position, TimeOf(row.TimeMicros), NameOf(row.Kind), NameOf(state, row.Account), state.CurrencyCode(row.Currency), Amount.Format(row.Amount, decimals),
                Amount.Format(row.Posted, decimals), Amount.Format(row.Held, decimals), row.Counterparty == 0 ? DBNull.Value : NameOf(state, row.Counterparty), row.TransactionId == 0 ? DBNull.Value : UuidOf(row.TransactionId));
        }

        foreach (ref readonly TransferRow row in System.Runtime.InteropServices.CollectionsMarshal.AsSpan(batch.Transfers))
        {
            statements.Transfer.Run(
                transaction, batch.Partition, (long)row.Position, (int)row.Posting, UuidOf(row.TransactionId), row.Origin.Partition, (long)row.Origin.Position,
                row.OriginalId == 0 ? DBNull.Value : UuidOf(row.OriginalId), TimeOf(row.TimeMicros), NameOf(state, row.From), NameOf(state, row.To), state.CurrencyCode(row.Currency),
                Amount.Format(row.Amount, state.Decimals(row.Currency)), NameOf(row.Status), row.Status == TransferStatus.Rejected ? NameOf(row.Refusal) : DBNull.Value,
                TextOf(row.Description), TextOf(row.Metadata), MembersOf(row.Metadata) ?? (object)DBNull.Value);
        }

        foreach (((uint account, uint currency), BalanceRow row) in batch.Balances)
        {
            int decimals = state.Decimals(currency);
            statements.Balance.Run(transaction, NameOf(state, account), state.CurrencyCode(currency), batch.Partition, Amount.Format(row.Posted, decimals), Amount.Format(row.Held, decimals), (long)row.Position);
        }

        foreach (IdRow row in batch.Ids)
        {
            statements.Id.Run(
                transaction, row.Of.Partition, (long)row.Of.Position, row.Status is TransferStatus status ? NameOf(status) : DBNull.Value, row.OriginalId == 0 ? DBNull.Value : UuidOf(row.OriginalId),
                TextOf(row.Description), TextOf(row.Metadata), MembersOf(row.Metadata) ?? (object)DBNull.Value);
        }

        transaction.Commit();
        return true;
    }

    void WriteAccount(in AccountRow row, ViewBatch batch, Statements statements, SqliteTransaction transaction)
    {
        string name = NameOf(batch.State, row.Account);
        object metadata = TextOf(row.Metadata);
        switch (row.Kind)
        {
            case EventKind.AccountOpened:
                statements.AccountOpened.Run(transaction, name, metadata, LimitsOf(row.Limits, batch.State), TimeOf(row.TimeMicros), batch.Partition, (long)row.Position);
                break;
            case EventKind.LimitsChanged:
                statements.AccountLimits.Run(transaction, LimitsOf(row.Limits, batch.State), (long)row.Position, name);
                break;
            case EventKind.MetadataChanged:
                statements.AccountMetadata.Run(transaction, metadata, (long)row.Position, name);
                break;
            default:
                statements.AccountStatus.Run(transaction, row.Kind == EventKind.Closed ? "closed" : row.IsFrozen ? "frozen" : "open", (long)row.Position, name);
                break;
        }
    }

    static string NameOf(State state, uint account) => Encoding.UTF8.GetString(state.Names.Utf8(account));

    static object TextOf(byte[]? utf8) => utf8 is null ? DBNull.Value : Encoding.UTF8.GetString(utf8);

    static string UuidOf(UInt128 id) => GuidOf(id).ToString();

    protected override object TimeOf(long micros) => DateTime.UnixEpoch.AddMicroseconds(micros).ToString(TimeFormat, CultureInfo.InvariantCulture);

    protected override long MicrosOf(object time) =>
        (DateTime.ParseExact((string)time, TimeFormat, CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal | DateTimeStyles.AdjustToUniversal) - DateTime.UnixEpoch).Ticks / TimeSpan.TicksPerMicrosecond;

    protected override string AmountText(string column) => column;

    /// <summary>Of one currency, and so with as many decimals: what has more digits is more.</summary>
    protected override string Compare(string column, string comparison, string parameter) => $"(length({column}), {column}) {comparison} (length({parameter}), {parameter})";

    protected override string Contains(string column, string parameter) => $"instr({column}, {parameter}) > 0";

    protected override async Task<DbConnection> OpenToReadAsync(CancellationToken cancellation)
    {
        SqliteConnection connection = new(_readConnectionString);
        await connection.OpenAsync(cancellation);
        return connection;
    }

    void Close()
    {
        _statements?.Dispose();
        _statements = null;
        _connection?.Dispose();
        _connection = null;
    }

    public override void Dispose() => Close();

    /// <summary>Compiled once a connection.</summary>
    sealed class Statements(SqliteConnection connection) : IDisposable
    {
        public Statement Checkpoint { get; } = new(connection, "update checkpoints set position = $0 where partition = $1 and position = $2", 3);

        public Statement Mark { get; } = new(connection, "update checkpoints set current_at = $0 where partition = $1 and position = $2", 3);

        public Statement Currency { get; } = new(connection, "insert into currencies values ($0, $1) on conflict do nothing", 2);

        public Statement Entry { get; } = new(connection, "insert into entries values ($0, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", 11);

        public Statement Transfer { get; } = new(connection, "insert into transfers values ($0, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)", 17);

        public Statement Balance { get; } = new(connection, "insert into balances values ($0, $1, $2, $3, $4, $5) on conflict do update set posted = excluded.posted, held = excluded.held, position = excluded.position", 6);

        public Statement Id { get; } = new(connection, $"insert into ids values ($0, $1, $2, $3, $4, $5, $6) {IdsConflict}", 7);

        public Statement AccountOpened { get; } = new(connection, "insert into accounts values ($0, 'open', $1, $2, $3, $4, $5)", 6);

        public Statement AccountLimits { get; } = new(connection, "update accounts set limits = $0, position = $1 where account = $2", 3);

        public Statement AccountMetadata { get; } = new(connection, "update accounts set metadata = $0, position = $1 where account = $2", 3);

        public Statement AccountStatus { get; } = new(connection, "update accounts set status = $0, position = $1 where account = $2", 3);

        public void Dispose()
        {
            foreach (Statement statement in (Statement[])[Checkpoint, Mark, Currency, Entry, Transfer, Balance, Id, AccountOpened, AccountLimits, AccountMetadata, AccountStatus]) statement.Dispose();
        }
    }

    sealed class Statement : IDisposable
    {
        readonly SqliteCommand _command;

        public Statement(SqliteConnection connection, string sql, int parameters)
        {
            _command = new SqliteCommand(sql, connection);
            for (int i = 0; i < parameters; i++) _command.Parameters.Add(new SqliteParameter { ParameterName = $"${i}" });
        }

        public int Run(SqliteTransaction transaction, params ReadOnlySpan<object> values)
        {
            _command.Transaction = transaction;
            for (int i = 0; i < values.Length; i++) _command.Parameters[i].Value = values[i];
            return _command.ExecuteNonQuery();
        }

        public void Dispose() => _command.Dispose();
    }
}
