using System.Data.Common;
using System.Text;
using System.Text.Json;
using Purse.Ledger;

namespace Purse.Views;

/// <summary>A transfer as it is searched: one movement of money, done, held or refused.</summary>
public sealed record FoundTransfer(
    int Partition, ulong Position, int Posting, Guid TransactionId, Guid? OriginalId, long TimeMicros, string From, string To, string Currency, string Amount, string Status, string? Code,
    string? Description, string? Metadata);

/// <summary>An account as the view has it, without its balances.</summary>
/// <param name="Limits">JSON, as the HTTP contract has them.</param>
public sealed record FoundAccount(string Account, string Status, string? Metadata, string Limits);

/// <summary>What is searched for; null for any. Times are microseconds since 1970, both inclusive; amounts have their currency's decimals.</summary>
public sealed record TransferSearch
{
    public string? Account { get; init; }

    public string? Currency { get; init; }

    public long? FromMicros { get; init; }

    public long? ToMicros { get; init; }

    public string? MinAmount { get; init; }

    public string? MaxAmount { get; init; }

    public string? Status { get; init; }

    /// <summary>All of these members, with these values.</summary>
    public JsonElement? Metadata { get; init; }

    /// <summary>Goes on after this one, which the page before ended with.</summary>
    public (long TimeMicros, int Partition, ulong Position, int Posting)? After { get; init; }

    public required int Limit { get; init; }
}

/// <summary>Balances, transfers and entries as rows, for search and for whoever speaks SQL: the same tables in PostgreSQL and in SQLite (docs/views.md).</summary>
public abstract class SqlView(string id, int partitionsCount) : IView
{
    /// <summary>A view of another version is made again.</summary>
    protected const int Version = 2;

    /// <summary>TEXT, TIME, NUMERIC, UUID and WRITTEN stand for what the database has for them; no text depends on a language.</summary>
    const string Tables = """
        create table about (id text not null, version int not null);
        create table checkpoints (partition int primary key, position bigint not null, current_at TIME);
        create table currencies (currency text primary key, decimals int not null);
        create table accounts (account TEXT primary key, status text not null, metadata text, limits text not null, opened_at TIME not null, partition int not null, position bigint not null);
        create table balances (
            account TEXT not null, currency TEXT not null, partition int not null, posted NUMERIC not null, held NUMERIC not null, position bigint not null,
            primary key (account, currency, partition));
        create table entries (
            partition int not null, position bigint not null, time TIME not null, kind text not null, account TEXT not null, currency TEXT not null, amount NUMERIC not null,
            posted NUMERIC not null, held NUMERIC not null, counterparty TEXT, transaction_id UUID WRITTEN(partition, position));
        create table transfers (
            partition int not null, position bigint not null, posting int not null, transaction_id UUID not null, origin_partition int not null, origin_position bigint not null,
            original_id UUID, time TIME not null, from_account TEXT not null, to_account TEXT not null, currency TEXT not null, amount NUMERIC not null, status text not null,
            code text, description text, metadata text, members text WRITTEN(partition, position, posting));
        create table ids (
            origin_partition int not null, origin_position bigint not null, status text, original_id UUID, description text, metadata text, members text,
            primary key (origin_partition, origin_position));
        """;

    /// <summary>Made once the view shows all: filling it is faster without them.</summary>
    protected const string Indexes = """
        create index if not exists transfers_by_time on transfers (time, partition, position, posting);
        create index if not exists transfers_by_from on transfers (from_account, time);
        create index if not exists transfers_by_to on transfers (to_account, time);
        """;

    /// <summary>Each partition says what it knows, and leaves the rest.</summary>
    protected static readonly string IdsConflict =
        $"on conflict (origin_partition, origin_position) do update set {string.Join(", ", ((string[])["status", "original_id", "description", "metadata", "members"]).Select(column => $"{column} = coalesce(excluded.{column}, ids.{column})"))}";

    protected static readonly string[] TableNames = ["about", "checkpoints", "currencies", "accounts", "balances", "entries", "transfers", "ids"];

    static readonly string[] Kinds = [.. Enum.GetValues<EventKind>().Select(kind => JsonNamingPolicy.SnakeCaseLower.ConvertName($"{kind}"))];
    static readonly Dictionary<EventKind, string> KindNames = Enum.GetValues<EventKind>().Zip(Kinds).ToDictionary(one => one.First, one => one.Second);
    static readonly string[] StatusNames = [.. Enum.GetNames<TransferStatus>().Select(JsonNamingPolicy.SnakeCaseLower.ConvertName)];

    public abstract string Name { get; }

    /// <summary>Of the data that it shows; a view of other data is made again.</summary>
    protected string Id { get; } = id;

    protected int PartitionsCount { get; } = partitionsCount;

    public abstract ulong[] Open();

    public abstract Checkpoint[] Look();

    public abstract bool Write(ViewBatch batch);

    public abstract void Mark(IReadOnlyList<(int Partition, ulong Position)> current, long timeMicros);

    public abstract void Complete();

    public abstract void Clear();

    public abstract void Dispose();

    /// <summary>Those of a view of this data and version; all 0 for any other.</summary>
    protected Checkpoint[] Look(DbConnection connection)
    {
        Checkpoint[] found = new Checkpoint[PartitionsCount];
        using DbCommand command = connection.CreateCommand();
        command.CommandText = $"select c.partition, c.position, c.current_at from checkpoints c, about a where a.id = '{Id}' and a.version = {Version}";
        using DbDataReader row = command.ExecuteReader();
        while (row.Read())
        {
            if (row.GetInt32(0) < found.Length) found[row.GetInt32(0)] = new Checkpoint((ulong)row.GetInt64(1), row.IsDBNull(2) ? 0 : MicrosOf(row.GetValue(2)));
        }

        return found;
    }

    /// <summary>For one who reads; given back by disposing it.</summary>
    protected abstract Task<DbConnection> OpenToReadAsync(CancellationToken cancellation);

    /// <param name="written">How a table ends whose rows are written once and in order, with $1 for its key.</param>
    protected static string TablesWith(string text, string time, string numeric, string uuid, string written) =>
        System.Text.RegularExpressions.Regex.Replace(Tables, @" WRITTEN\(([^)]*)\)\)", written, System.Text.RegularExpressions.RegexOptions.NonBacktracking).Replace("TEXT", text, StringComparison.Ordinal).Replace("TIME", time, StringComparison.Ordinal).Replace("NUMERIC", numeric, StringComparison.Ordinal).Replace("UUID", uuid, StringComparison.Ordinal);

    protected static Guid GuidOf(UInt128 id)
    {
        Span<byte> bytes = stackalloc byte[16];
        System.Buffers.Binary.BinaryPrimitives.WriteUInt128BigEndian(bytes, id);
        return new Guid(bytes, bigEndian: true);
    }

    protected static string NameOf(EventKind kind) => KindNames[kind];

    protected static string NameOf(TransferStatus status) => StatusNames[(int)status];

    protected static string NameOf(Outcome outcome) => JsonNamingPolicy.SnakeCaseLower.ConvertName(outcome.ToString());

    /// <summary>Each member of an object on a line of its own: what search looks for, in the one form that equal ones have.</summary>
    protected static string? MembersOf(byte[]? metadata)
    {
        if (metadata is null) return null;
        using JsonDocument document = JsonDocument.Parse(metadata);
        return string.Concat(LinesOf(document.RootElement)) + "\n";
    }

    static IEnumerable<string> LinesOf(JsonElement members) => members.EnumerateObject().Select(member => $"\n{Compact(json => json.WriteStringValue(member.Name))}:{Compact(member.Value.WriteTo)}");

    static string Compact(Action<Utf8JsonWriter> write)
    {
        using MemoryStream stream = new();
        using (Utf8JsonWriter json = new(stream, new JsonWriterOptions { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping })) write(json);
        return Encoding.UTF8.GetString(stream.ToArray());
    }

    protected static string LimitsOf(Limits[]? limits, State state) => Compact(json =>
    {
        json.WriteStartObject();
        foreach (Limits one in limits ?? [])
        {
            int decimals = state.Decimals(one.Currency);
            json.WriteStartObject(state.CurrencyCode(one.Currency));
            if (one.Min is Int128 min) json.WriteString("min_balance", Amount.Format(min, decimals));
            if (one.Max is Int128 max) json.WriteString("max_balance", Amount.Format(max, decimals));
            json.WriteEndObject();
        }

        json.WriteEndObject();
    });

    /// <summary>How a text is compared with an amount's column.</summary>
    protected abstract string Compare(string column, string comparison, string parameter);

    protected abstract long MicrosOf(object time);

    protected abstract object TimeOf(long micros);

    protected abstract string AmountText(string column);

    public async Task<List<FoundTransfer>> FindTransfersAsync(TransferSearch search, CancellationToken cancellation)
    {
        await using DbConnection connection = await OpenToReadAsync(cancellation);
        await using DbCommand command = connection.CreateCommand();
        List<string> where = [];
        if (search.Currency is not null) where.Add($"t.currency = {Parameter(search.Currency)}");
        if (search.FromMicros is long from) where.Add($"t.time >= {Parameter(TimeOf(from))}");
        if (search.ToMicros is long to) where.Add($"t.time <= {Parameter(TimeOf(to))}");
        if (search.MinAmount is not null) where.Add(Compare("t.amount", ">=", Parameter(search.MinAmount)));
        if (search.MaxAmount is not null) where.Add(Compare("t.amount", "<=", Parameter(search.MaxAmount)));
        if (search.Status is not null) where.Add($"coalesce(e.status, t.status) = {Parameter(search.Status)}");
        foreach (string line in search.Metadata is JsonElement members ? LinesOf(members) : []) where.Add(Contains("coalesce(t.members, e.members)", Parameter(line + "\n")));
        if (search.After is var (time, partition, position, posting))
            where.Add($"(t.time, t.partition, t.position, t.posting) < ({Parameter(TimeOf(time))}, {Parameter(partition)}, {Parameter((long)position)}, {Parameter(posting)})");
        string limit = Parameter(search.Limit);
        // An account's transfers are those on either side, each by its own index.
        string[] sides = search.Account is null ? [""] : [$"t.from_account = {Parameter(search.Account)}", $"t.to_account = {Parameter(search.Account)}"];
        IEnumerable<string> selects = sides.Select(side => $"""
            select * from (
                select t.partition, t.position, t.posting, t.transaction_id, coalesce(t.original_id, e.original_id) as original_id, t.time, t.from_account, t.to_account, t.currency, {AmountText("t.amount")} as amount,
                       coalesce(e.status, t.status) as status, t.code, coalesce(t.description, e.description), coalesce(t.metadata, e.metadata)
                from transfers t left join ids e on e.origin_partition = t.origin_partition and e.origin_position = t.origin_position
                {(where.Count == 0 && side.Length == 0 ? "" : $"where {string.Join(" and ", side.Length == 0 ? where : where.Prepend(side))}")}
                order by t.time desc, t.partition desc, t.position desc, t.posting desc limit {limit}) as s{Array.IndexOf(sides, side)}
            """);
        command.CommandText = $"{string.Join(" union all ", selects)} order by time desc, partition desc, position desc, posting desc limit {limit}";
        await using DbDataReader row = await command.ExecuteReaderAsync(cancellation);
        List<FoundTransfer> found = [];
        while (await row.ReadAsync(cancellation))
        {
            found.Add(new FoundTransfer(
                row.GetInt32(0), (ulong)row.GetInt64(1), row.GetInt32(2), GuidOf(row, 3)!.Value, GuidOf(row, 4), MicrosOf(row.GetValue(5)), row.GetString(6), row.GetString(7), row.GetString(8),
                row.GetString(9), row.GetString(10), Text(row, 11), Text(row, 12), Text(row, 13)));
        }

        return found;

        string Parameter(object value) => AddParameter(command, value);
    }

    protected static string AddParameter(DbCommand command, object value)
    {
        DbParameter parameter = command.CreateParameter();
        parameter.ParameterName = $"@p{command.Parameters.Count}";
        parameter.Value = value;
        command.Parameters.Add(parameter);
        return parameter.ParameterName;
    }

    protected abstract string Contains(string column, string parameter);

    static string? Text(DbDataReader row, int column) => row.IsDBNull(column) ? null : row.GetString(column);

    static Guid? GuidOf(DbDataReader row, int column) => row.IsDBNull(column) ? null : row.GetGuid(column);

    /// <summary>Accounts that were opened, in the order of their names, with their balances.</summary>
    /// <param name="after">The last name of the page before; an empty one for the first page.</param>
    public async Task<List<FoundAccount>> FindAccountsAsync(string prefix, string after, int limit, CancellationToken cancellation)
    {
        await using DbConnection connection = await OpenToReadAsync(cancellation);
        await using DbCommand command = connection.CreateCommand();
        // No name has a byte that is larger than a small letter's.
        command.CommandText = $"""
            select account, status, metadata, limits from accounts
            where account >= {AddParameter(command, prefix)} and account < {AddParameter(command, prefix + "~")} and account > {AddParameter(command, after)}
            order by account limit {AddParameter(command, limit)}
            """;
        await using DbDataReader row = await command.ExecuteReaderAsync(cancellation);
        List<FoundAccount> found = [];
        while (await row.ReadAsync(cancellation)) found.Add(new FoundAccount(row.GetString(0), row.GetString(1), Text(row, 2), row.GetString(3)));
        return found;
    }

    public async Task<FoundAccount?> FindAccountAsync(string account, CancellationToken cancellation)
    {
        await using DbConnection connection = await OpenToReadAsync(cancellation);
        await using DbCommand command = connection.CreateCommand();
        command.CommandText = $"select account, status, metadata, limits from accounts where account = {AddParameter(command, account)}";
        await using DbDataReader row = await command.ExecuteReaderAsync(cancellation);
        return await row.ReadAsync(cancellation) ? new FoundAccount(row.GetString(0), row.GetString(1), Text(row, 2), row.GetString(3)) : null;
    }

    /// <summary>Of a currency that was registered; null for any other.</summary>
    public async Task<int?> FindDecimalsAsync(string currency, CancellationToken cancellation)
    {
        await using DbConnection connection = await OpenToReadAsync(cancellation);
        await using DbCommand command = connection.CreateCommand();
        command.CommandText = $"select decimals from currencies where currency = {AddParameter(command, currency)}";
        return await command.ExecuteScalarAsync(cancellation) is object decimals ? Convert.ToInt32(decimals, System.Globalization.CultureInfo.InvariantCulture) : null;
    }

    /// <summary>By account and currency; of a system account each partition's part.</summary>
    public async Task<List<FoundBalance>> BalancesAsync(IReadOnlyList<string> accounts, CancellationToken cancellation)
    {
        if (accounts.Count == 0) return [];
        await using DbConnection connection = await OpenToReadAsync(cancellation);
        await using DbCommand command = connection.CreateCommand();
        command.CommandText = $"""
            select account, currency, partition, {AmountText("posted")}, {AmountText("held")}, position from balances
            where account in ({string.Join(", ", accounts.Select(account => AddParameter(command, account)))}) order by account, currency, partition
            """;
        await using DbDataReader row = await command.ExecuteReaderAsync(cancellation);
        List<FoundBalance> found = [];
        while (await row.ReadAsync(cancellation)) found.Add(new FoundBalance(row.GetString(0), row.GetString(1), row.GetInt32(2), row.GetString(3), row.GetString(4), (ulong)row.GetInt64(5)));
        return found;
    }
}

/// <summary>Amounts have their currency's decimals.</summary>
public sealed record FoundBalance(string Account, string Currency, int Partition, string Posted, string Held, ulong Position);
