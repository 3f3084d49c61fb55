using System.Data.Common;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using Microsoft.Data.Sqlite;
using Purse.Ledger;
using SQLitePCL;

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
        foreach ((int partition, ulong position) in current) statements.Mark.Time(timeMicros).Number(partition).Number((long)position).Run();
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
        if (statements.Checkpoint.Number((long)batch.Last).Number(batch.Partition).Number((long)batch.After).Run() == 0) return false;
        State state = batch.State;
        foreach ((string currency, int decimals) in batch.Currencies) statements.Currency.Text(currency).Number(decimals).Run();
        foreach (AccountRow row in batch.Accounts) WriteAccount(row, batch, statements);
        foreach (ref readonly EntryRow row in CollectionsMarshal.AsSpan(batch.Entries))
        {
            int decimals = state.Decimals(row.Currency);
            statements.Entry
                .Number(batch.Partition).Number((long)row.Position).Time(row.TimeMicros).Text(NameOf(row.Kind)).Name(state, row.Account).Text(state.CurrencyCode(row.Currency)).Amount(row.Amount, decimals)
                .Amount(row.Posted, decimals).Amount(row.Held, decimals).Name(state, row.Counterparty).Uuid(row.TransactionId, isNullable: row.Kind == EventKind.Expired).Run();
        }

        foreach (ref readonly TransferRow row in CollectionsMarshal.AsSpan(batch.Transfers))
        {
            statements.Transfer
                .Number(batch.Partition).Number((long)row.Position).Number(row.Posting).Uuid(row.TransactionId, isNullable: false).Number(row.Origin.Partition).Number((long)row.Origin.Position).Uuid(row.OriginalId)
                .Time(row.TimeMicros).Name(state, row.From).Name(state, row.To).Text(state.CurrencyCode(row.Currency)).Amount(row.Amount, state.Decimals(row.Currency)).Text(NameOf(row.Status))
                .Text(row.Status == TransferStatus.Rejected ? NameOf(row.Refusal) : null).Text(TextOf(row.Description)).Text(TextOf(row.Metadata)).Text(MembersOf(row.Metadata)).Run();
        }

        foreach (((uint account, uint currency), BalanceRow row) in batch.Balances)
        {
            int decimals = state.Decimals(currency);
            statements.Balance.Name(state, account).Text(state.CurrencyCode(currency)).Number(batch.Partition).Amount(row.Posted, decimals).Amount(row.Held, decimals).Number((long)row.Position).Run();
        }

        foreach (IdRow row in batch.Ids)
        {
            statements.Id
                .Number(row.Of.Partition).Number((long)row.Of.Position).Text(row.Status is TransferStatus status ? NameOf(status) : null).Uuid(row.OriginalId)
                .Text(TextOf(row.Description)).Text(TextOf(row.Metadata)).Text(MembersOf(row.Metadata)).Run();
        }

        transaction.Commit();
        return true;
    }

    static void WriteAccount(in AccountRow row, ViewBatch batch, Statements statements)
    {
        string? metadata = TextOf(row.Metadata);
        switch (row.Kind)
        {
            case EventKind.AccountOpened:
                statements.AccountOpened.Name(batch.State, row.Account).Text(metadata).Text(LimitsOf(row.Limits, batch.State)).Time(row.TimeMicros).Number(batch.Partition).Number((long)row.Position).Run();
                break;
            case EventKind.LimitsChanged:
                statements.AccountLimits.Text(LimitsOf(row.Limits, batch.State)).Number((long)row.Position).Name(batch.State, row.Account).Run();
                break;
            case EventKind.MetadataChanged:
                statements.AccountMetadata.Text(metadata).Number((long)row.Position).Name(batch.State, row.Account).Run();
                break;
            default:
                statements.AccountStatus.Text(row.Kind == EventKind.Closed ? "closed" : row.IsFrozen ? "frozen" : "open").Number((long)row.Position).Name(batch.State, row.Account).Run();
                break;
        }
    }

    static string? TextOf(byte[]? utf8) => utf8 is null ? null : Encoding.UTF8.GetString(utf8);

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
        public Statement Checkpoint { get; } = new(connection, "update checkpoints set position = ? where partition = ? and position = ?");

        public Statement Mark { get; } = new(connection, "update checkpoints set current_at = ? where partition = ? and position = ?");

        public Statement Currency { get; } = new(connection, "insert into currencies values (?, ?) on conflict do nothing");

        public Statement Entry { get; } = new(connection, "insert into entries values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");

        public Statement Transfer { get; } = new(connection, "insert into transfers values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");

        public Statement Balance { get; } = new(connection, "insert into balances values (?, ?, ?, ?, ?, ?) on conflict do update set posted = excluded.posted, held = excluded.held, position = excluded.position");

        public Statement Id { get; } = new(connection, $"insert into ids values (?, ?, ?, ?, ?, ?, ?) {IdsConflict}");

        public Statement AccountOpened { get; } = new(connection, "insert into accounts values (?, 'open', ?, ?, ?, ?, ?)");

        public Statement AccountLimits { get; } = new(connection, "update accounts set limits = ?, position = ? where account = ?");

        public Statement AccountMetadata { get; } = new(connection, "update accounts set metadata = ?, position = ? where account = ?");

        public Statement AccountStatus { get; } = new(connection, "update accounts set status = ?, position = ? where account = ?");

        public void Dispose()
        {
            foreach (Statement statement in (Statement[])[Checkpoint, Mark, Currency, Entry, Transfer, Balance, Id, AccountOpened, AccountLimits, AccountMetadata, AccountStatus]) statement.Dispose();
        }
    }

    /// <summary>
    /// Values are given one after the other, in the order of their places, and are bound as they are: to look up each place by its name, and to make an object and a text of each
    /// value, takes as long as all that SQLite does for a row.
    /// </summary>
    /// <exception cref="SqliteException">What SQLite says, with its code.</exception>
    sealed class Statement : IDisposable
    {
        readonly sqlite3 _connection;
        readonly sqlite3_stmt _statement;
        readonly byte[] _time = new byte[TimeFormat.Length];
        long _timeMicros = long.MinValue;
        int _timeLength;
        int _given;

        public Statement(SqliteConnection connection, string sql)
        {
            _connection = connection.Handle!;
            Check(raw.sqlite3_prepare_v2(_connection, sql, out _statement));
        }

        public Statement Number(long value)
        {
            Check(raw.sqlite3_bind_int64(_statement, ++_given, value));
            return this;
        }

        public Statement Text(string? text)
        {
            if (text is null) return Null();
            if (text.Length > 128) return Utf8(Encoding.UTF8.GetBytes(text));
            Span<byte> utf8 = stackalloc byte[3 * text.Length];
            return Utf8(utf8[..Encoding.UTF8.GetBytes(text, utf8)]);
        }

        /// <param name="account">Its number; 0 for none.</param>
        public Statement Name(State state, uint account) => account == 0 ? Null() : Utf8(state.Names.Utf8(account));

        public Statement Amount(Int128 minor, int decimals) => Text(Ledger.Amount.Format(minor, decimals));

        /// <param name="isNullable">Whether 0 is none; else it is an id like others.</param>
        public Statement Uuid(UInt128 id, bool isNullable = true)
        {
            if (id == 0 && isNullable) return Null();
            Span<byte> utf8 = stackalloc byte[36];
            GuidOf(id).TryFormat(utf8, out int length);
            return Utf8(utf8[..length]);
        }

        public Statement Time(long micros)
        {
            // All events of a block have the same.
            if (micros != _timeMicros)
            {
                DateTime.UnixEpoch.AddMicroseconds(micros).TryFormat(_time, out _timeLength, TimeFormat, CultureInfo.InvariantCulture);
                _timeMicros = micros;
            }

            return Utf8(_time.AsSpan(0, _timeLength));
        }

        Statement Null()
        {
            Check(raw.sqlite3_bind_null(_statement, ++_given));
            return this;
        }

        Statement Utf8(ReadOnlySpan<byte> text)
        {
            // An empty span would be bound as null.
            Check(text.Length == 0 ? raw.sqlite3_bind_text(_statement, ++_given, "") : raw.sqlite3_bind_text(_statement, ++_given, text));
            return this;
        }

        /// <summary>Returns how many rows it changed.</summary>
        public int Run()
        {
            _given = 0;
            int result = raw.sqlite3_step(_statement);
            raw.sqlite3_reset(_statement);
            Check(result);
            return raw.sqlite3_changes(_connection);
        }

        void Check(int result) => SqliteException.ThrowExceptionForRC(result, _connection);

        public void Dispose() => _statement.Dispose();
    }
}
