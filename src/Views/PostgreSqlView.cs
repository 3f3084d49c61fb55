using System.Data.Common;
using Npgsql;
using Purse.Ledger;

namespace Purse.Views;

/// <summary>The view in a PostgreSQL database of its own, filled by COPY.</summary>
public sealed class PostgreSqlView : SqlView
{
    readonly NpgsqlDataSource _source;
    readonly PostgreSqlCopy _copy = new(), _entriesCopy = new();
    NpgsqlConnection? _connection;

    /// <param name="connectionString">Of a user who owns the database, and has no rights in any that keeps a journal.</param>
    public PostgreSqlView(string connectionString, string id, int partitionsCount)
        : base(id, partitionsCount)
    {
        NpgsqlConnectionStringBuilder connection = new(connectionString) { ApplicationName = "purse view", MaxAutoPrepare = 20, AutoPrepareMinUsages = 2 };
        Name = $"postgres {(connection.Host!.Contains(':', StringComparison.Ordinal) ? connection.Host : $"{connection.Host}:{connection.Port}")}/{connection.Database}";
        NpgsqlDataSourceBuilder builder = new(connection.ConnectionString);
        _source = connection.Host!.Contains(',', StringComparison.Ordinal) ? builder.BuildMultiHost().WithTargetSession(TargetSessionAttributes.Primary) : builder.Build();
    }

    public override string Name { get; }

    public override ulong[] Open()
    {
        _connection?.Dispose();
        _connection = _source.OpenConnection();
        // What a failing server takes back is read from the journals again, since the checkpoint is in the same transaction.
        Execute("set synchronous_commit = off");
        if (Scalar("select to_regclass('about')::text") is null or DBNull || Scalar($"select version from about where id = '{Id}'") is not int version || version != Version) Clear();
        Execute("create temporary table new_balances (like balances) on commit delete rows");
        return Checkpoint.PositionsOf(Look());
    }

    public override Checkpoint[] Look()
    {
        using NpgsqlConnection own = _source.OpenConnection();
        return Look(own);
    }

    public override void Mark(IReadOnlyList<(int Partition, ulong Position)> current, long timeMicros)
    {
        using NpgsqlCommand command = new("update checkpoints c set current_at = $1 from unnest($2, $3) as m (partition, position) where c.partition = m.partition and c.position = m.position", _connection);
        command.Parameters.Add(new NpgsqlParameter { Value = TimeOf(timeMicros) });
        command.Parameters.Add(new NpgsqlParameter<int[]> { TypedValue = [.. current.Select(one => one.Partition)] });
        command.Parameters.Add(new NpgsqlParameter<long[]> { TypedValue = [.. current.Select(one => (long)one.Position)] });
        command.ExecuteNonQuery();
    }

    void Execute(string sql)
    {
        // An index of many rows takes as long as it takes.
        using NpgsqlCommand command = new(sql, _connection) { CommandTimeout = 0 };
        command.ExecuteNonQuery();
    }

    object? Scalar(string sql)
    {
        using NpgsqlCommand command = new(sql, _connection);
        return command.ExecuteScalar();
    }

    /// <summary>The keys of what is only ever appended, too: COPY into a table without an index is nearly twice as fast.</summary>
    public override void Complete() => Execute($"""
        create unique index if not exists entries_key on entries (partition, position);
        create unique index if not exists transfers_key on transfers (partition, position, posting);
        {Indexes}
        """);

    public override void Clear()
    {
        using NpgsqlConnection own = _source.OpenConnection();
        using NpgsqlTransaction transaction = own.BeginTransaction();
        string sql = $"""
            drop table if exists {string.Join(", ", TableNames)};
            {TablesWith("text collate \"C\"", "timestamptz", "numeric", "uuid", ")")}
            insert into about values ('{Id}', {Version});
            insert into checkpoints select partition, 0, null from generate_series(0, {PartitionsCount - 1}) as partition;
            """;
        using (NpgsqlCommand command = new(sql, own)) command.ExecuteNonQuery();
        transaction.Commit();
    }

    public override bool Write(ViewBatch batch)
    {
        NpgsqlConnection connection = _connection!;
        using NpgsqlTransaction transaction = connection.BeginTransaction();
        using (NpgsqlCommand checkpoint = new("update checkpoints set position = $1 where partition = $2 and position = $3", connection))
        {
            checkpoint.Parameters.Add(new NpgsqlParameter<long> { TypedValue = (long)batch.Last });
            checkpoint.Parameters.Add(new NpgsqlParameter<int> { TypedValue = batch.Partition });
            checkpoint.Parameters.Add(new NpgsqlParameter<long> { TypedValue = (long)batch.After });
            if (checkpoint.ExecuteNonQuery() == 0) return false;
        }

        State state = batch.State;
        EncodeEntries(batch, state);
        // While the server takes these, the next ones are encoded.
        Task entries = Task.Run(() =>
        {
            if (batch.Entries.Count > 0) _entriesCopy.Send(connection, "entries");
        });
        try
        {
            EncodeTransfers(batch, state);
        }
        finally
        {
            entries.GetAwaiter().GetResult();
        }

        if (batch.Transfers.Count > 0) _copy.Send(connection, "transfers");
        WriteBalances(connection, batch, state);
        WriteRest(connection, batch, state);
        transaction.Commit();
        return true;
    }

    void EncodeEntries(ViewBatch batch, State state)
    {
        _entriesCopy.Begin();
        foreach (ref readonly EntryRow row in System.Runtime.InteropServices.CollectionsMarshal.AsSpan(batch.Entries))
        {
            int decimals = state.Decimals(row.Currency);
            _entriesCopy.Row(11);
            _entriesCopy.Int(batch.Partition);
            _entriesCopy.Long((long)row.Position);
            _entriesCopy.Time(row.TimeMicros);
            _entriesCopy.Ascii(NameOf(row.Kind));
            _entriesCopy.Utf8(state.Names.Utf8(row.Account));
            _entriesCopy.Ascii(state.CurrencyCode(row.Currency));
            _entriesCopy.Numeric(row.Amount, decimals);
            _entriesCopy.Numeric(row.Posted, decimals);
            _entriesCopy.Numeric(row.Held, decimals);
            if (row.Counterparty == 0) _entriesCopy.Null();
            else _entriesCopy.Utf8(state.Names.Utf8(row.Counterparty));
            _entriesCopy.Uuid(row.TransactionId, isNullable: row.Kind == EventKind.Expired);
        }
    }

    void EncodeTransfers(ViewBatch batch, State state)
    {
        _copy.Begin();
        foreach (ref readonly TransferRow row in System.Runtime.InteropServices.CollectionsMarshal.AsSpan(batch.Transfers))
        {
            _copy.Row(17);
            _copy.Int(batch.Partition);
            _copy.Long((long)row.Position);
            _copy.Int(row.Posting);
            _copy.Uuid(row.TransactionId, isNullable: false);
            _copy.Int(row.Origin.Partition);
            _copy.Long((long)row.Origin.Position);
            _copy.Uuid(row.OriginalId);
            _copy.Time(row.TimeMicros);
            _copy.Utf8(state.Names.Utf8(row.From));
            _copy.Utf8(state.Names.Utf8(row.To));
            _copy.Ascii(state.CurrencyCode(row.Currency));
            _copy.Numeric(row.Amount, state.Decimals(row.Currency));
            _copy.Ascii(NameOf(row.Status));
            if (row.Status == TransferStatus.Rejected) _copy.Ascii(NameOf(row.Refusal));
            else _copy.Null();
            _copy.Text(row.Description);
            _copy.Text(row.Metadata);
            _copy.Text(MembersOf(row.Metadata) is string members ? System.Text.Encoding.UTF8.GetBytes(members) : null);
        }
    }

    void WriteBalances(NpgsqlConnection connection, ViewBatch batch, State state)
    {
        if (batch.Balances.Count == 0) return;
        _copy.Begin();
        foreach (((uint account, uint currency), BalanceRow row) in batch.Balances)
        {
            int decimals = state.Decimals(currency);
            _copy.Row(6);
            _copy.Utf8(state.Names.Utf8(account));
            _copy.Ascii(state.CurrencyCode(currency));
            _copy.Int(batch.Partition);
            _copy.Numeric(row.Posted, decimals);
            _copy.Numeric(row.Held, decimals);
            _copy.Long((long)row.Position);
        }

        _copy.Send(connection, "new_balances");
        Execute("insert into balances select * from new_balances on conflict (account, currency, partition) do update set posted = excluded.posted, held = excluded.held, position = excluded.position");
    }

    /// <summary>What happens less often than transfers do.</summary>
    static void WriteRest(NpgsqlConnection connection, ViewBatch batch, State state)
    {
        using NpgsqlBatch rest = new(connection);
        foreach ((string currency, int decimals) in batch.Currencies) rest.BatchCommands.Add(Command("insert into currencies values ($1, $2) on conflict do nothing", currency, decimals));
        foreach (AccountRow row in batch.Accounts)
        {
            string name = state.Names[row.Account].ToString();
            object metadata = TextOf(row.Metadata);
            rest.BatchCommands.Add(row.Kind switch
            {
                EventKind.AccountOpened => Command("insert into accounts values ($1, 'open', $2, $3, $4, $5, $6)", name, metadata, LimitsOf(row.Limits, state), DateTime.UnixEpoch.AddMicroseconds(row.TimeMicros), batch.Partition, (long)row.Position),
                EventKind.LimitsChanged => Command("update accounts set limits = $1, position = $2 where account = $3", LimitsOf(row.Limits, state), (long)row.Position, name),
                EventKind.MetadataChanged => Command("update accounts set metadata = $1, position = $2 where account = $3", metadata, (long)row.Position, name),
                _ => Command("update accounts set status = $1, position = $2 where account = $3", row.Kind == EventKind.Closed ? "closed" : row.IsFrozen ? "frozen" : "open", (long)row.Position, name),
            });
        }

        // In one order, since another node may write what it knows of the same ones.
        foreach (IdRow row in batch.Ids.OrderBy(row => (row.Of.Partition, row.Of.Position)))
        {
            rest.BatchCommands.Add(Command(
                $"insert into ids values ($1, $2, $3, $4::uuid, $5, $6, $7) {IdsConflict}", row.Of.Partition, (long)row.Of.Position, row.Status is TransferStatus status ? NameOf(status) : DBNull.Value,
                row.OriginalId == 0 ? DBNull.Value : GuidOf(row.OriginalId).ToString(), TextOf(row.Description), TextOf(row.Metadata), MembersOf(row.Metadata) ?? (object)DBNull.Value));
        }

        if (rest.BatchCommands.Count > 0) rest.ExecuteNonQuery();

        static object TextOf(byte[]? utf8) => utf8 is null ? DBNull.Value : System.Text.Encoding.UTF8.GetString(utf8).Replace('\0', '\ufffd');

        static NpgsqlBatchCommand Command(string sql, params ReadOnlySpan<object> values)
        {
            NpgsqlBatchCommand command = new(sql);
            foreach (object value in values) command.Parameters.Add(value is DBNull ? new NpgsqlParameter { Value = value, NpgsqlDbType = NpgsqlTypes.NpgsqlDbType.Text } : new NpgsqlParameter { Value = value });
            return command;
        }
    }

    protected override object TimeOf(long micros) => DateTime.UnixEpoch.AddMicroseconds(micros);

    protected override long MicrosOf(object time) => ((DateTime)time - DateTime.UnixEpoch).Ticks / TimeSpan.TicksPerMicrosecond;

    protected override string AmountText(string column) => $"{column}::text";

    protected override string Compare(string column, string comparison, string parameter) => $"{column} {comparison} {parameter}::numeric";

    protected override string Contains(string column, string parameter) => $"position({parameter} in {column}) > 0";

    protected override async Task<DbConnection> OpenToReadAsync(CancellationToken cancellation) => await _source.OpenConnectionAsync(cancellation);

    public override void Dispose()
    {
        _connection?.Dispose();
        _source.Dispose();
    }
}
