using Npgsql;
using NpgsqlTypes;

namespace Purse.Journal;

/// <summary>
/// Takes a partition's journal from one database to another while its writer goes on: copy what is there, seal the old one, copy the rest, and open
/// the new one. What is copied never changes, so every step may be repeated, by anybody, and whoever finds a seal can end the move.
/// </summary>
public static class PostgreSqlMove
{
    const int BlocksPerStep = 64;
    const string MoverName = "purse mover of partition";

    /// <summary>Copies the snapshots, and the blocks that are there now.</summary>
    /// <param name="progress">Blocks that the new store has, and that the old one has.</param>
    /// <exception cref="IOException">The new store has something else under this partition's number, or one of them fails.</exception>
    public static void Copy(PostgreSqlDatabase from, PostgreSqlDatabase to, int partition, Action<ulong, ulong>? progress = null) => Translating(from, to, partition, (source, target) =>
    {
        Head? there = HeadOf(target, partition);
        if (there is { SealedTo: null }) throw new IOException($"Partition {partition} has an open journal in {to} already, of {there.Number} blocks. If it is not the one that is to be moved, drop its rows there first.");
        CopyFiles(source, target, partition);
        CopyBlocks(source, target, from, to, partition, progress);
    });

    /// <summary>
    /// Ends the journal in its old store, for good: <paramref name="record"/> is its last one, and no epoch is accepted after it. Waits for the flush that is
    /// under way; the writer's next one finds the seal. Where it was sealed to the same store before, nothing is done.
    /// </summary>
    public static void Seal(PostgreSqlDatabase database, int partition, string store, int recordSizeBytes, ReadOnlySpan<byte> record, ReadOnlySpan<byte> attachments) =>
        PostgreSqlJournal.Seal(database, partition, store, recordSizeBytes, record, attachments);

    /// <summary>Ends the move of a sealed journal. Nothing is done where that was done before.</summary>
    public static void Finish(PostgreSqlDatabase from, PostgreSqlDatabase to, int partition) => Translating(from, to, partition, (source, target) =>
    {
        Head sealedHead = HeadOf(source, partition) is { SealedTo: not null } head ? head : throw new IOException($"The journal of partition {partition} in {from} is not sealed.");
        if (HeadOf(target, partition) is { } there && there.Number >= sealedHead.Number) return;
        // One that hangs in the middle of a step would hold the rows that are to be written now.
        PostgreSqlDatabase.Execute(
            target, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1 and datname = current_database() and usename = current_user and pid <> pg_backend_pid()", $"{MoverName} {partition}");
        CopyBlocks(source, target, from, to, partition, progress: null);
        // The old journal's epochs bind the new one, too. A move back opens what an earlier one had sealed.
        PostgreSqlDatabase.Execute(
            target,
            "insert into purse.heads values ($1, $2, $3, $4, $5, null) on conflict (partition) do update set epoch = $2, number = $3, sequence = $4, hash = $5, sealed_to = null where heads.number < $3 and heads.sealed_to is not null",
            partition, sealedHead.Epoch, (long)sealedHead.Number, sealedHead.Sequence, sealedHead.Hash);
    });

    /// <summary>Where a sealed journal goes on; null where it is open.</summary>
    public static string? SealOf(PostgreSqlDatabase database, int partition) =>
        database.With(connection => (HeadOf(connection, partition) ?? throw new IOException($"There is no journal of partition {partition} in {database}.")).SealedTo);

    sealed record Head(long Epoch, ulong Number, long Sequence, byte[] Hash, string? SealedTo);

    static Head? HeadOf(NpgsqlConnection connection, int partition)
    {
        using NpgsqlCommand look = PostgreSqlDatabase.Command(connection, "select epoch, number, sequence, hash, sealed_to from purse.heads where partition = $1", partition);
        using NpgsqlDataReader row = look.ExecuteReader();
        return row.Read() ? new Head(row.GetInt64(0), (ulong)row.GetInt64(1), row.GetInt64(2), row.GetFieldValue<byte[]>(3), row.IsDBNull(4) ? null : row.GetString(4)) : null;
    }

    static void CopyBlocks(NpgsqlConnection source, NpgsqlConnection target, PostgreSqlDatabase from, PostgreSqlDatabase to, int partition, Action<ulong, ulong>? progress)
    {
        ulong end = HeadOf(source, partition)?.Number ?? throw new IOException($"There is no journal of partition {partition} in {from}.");
        long copied = (long)(PostgreSqlDatabase.Scalar(target, "select coalesce(max(number), 0) from purse.blocks where partition = $1", partition) ?? 0L);
        if (copied > 0)
        {
            const string header = "select header from purse.blocks where partition = $1 and number = $2";
            byte[]? here = (byte[]?)PostgreSqlDatabase.Scalar(source, header, partition, copied), there = (byte[]?)PostgreSqlDatabase.Scalar(target, header, partition, copied);
            if (here is null || there is null || !here.AsSpan().SequenceEqual(there)) throw new IOException($"{to} has other blocks of partition {partition} than {from}, at number {copied}. Drop its rows there first.");
        }

        while ((ulong)copied < end)
        {
            using NpgsqlBatch step = new(target);
            using (NpgsqlCommand read = PostgreSqlDatabase.Command(
                source, $"select number, first_sequence, last_sequence, header, body from purse.blocks where partition = $1 and number > $2 order by number limit {BlocksPerStep}", partition, copied))
            using (NpgsqlDataReader row = read.ExecuteReader())
            {
                // A block may be large: a step is bounded by its bytes, too.
                for (long bytes = 0; bytes < JournalWriter.BodyBytesMax && row.Read();)
                {
                    NpgsqlBatchCommand insert = new("insert into purse.blocks (partition, number, first_sequence, last_sequence, header, body) values ($1, $2, $3, $4, $5, $6) on conflict do nothing");
                    insert.Parameters.Add(new NpgsqlParameter<int> { TypedValue = partition });
                    for (int column = 0; column < 3; column++) insert.Parameters.Add(new NpgsqlParameter<long> { TypedValue = row.GetInt64(column) });
                    for (int column = 3; column < 5; column++) insert.Parameters.Add(new NpgsqlParameter<byte[]> { TypedValue = row.GetFieldValue<byte[]>(column), NpgsqlDbType = NpgsqlDbType.Bytea });
                    step.BatchCommands.Add(insert);
                    copied = row.GetInt64(0);
                    bytes += row.GetFieldValue<byte[]>(4).Length;
                }
            }

            if (step.BatchCommands.Count == 0) throw new IOException($"{from} has no block {copied + 1} of partition {partition}, though its head says {end}.");
            step.ExecuteNonQuery();
            progress?.Invoke((ulong)copied, end);
        }
    }

    static void CopyFiles(NpgsqlConnection source, NpgsqlConnection target, int partition)
    {
        List<(string Name, int Chunk)> files = [];
        using (NpgsqlCommand list = PostgreSqlDatabase.Command(source, "select name, chunk from purse.files where partition = $1 and (name like '%.snapshot' or name like '%.run') order by name, chunk", partition))
        using (NpgsqlDataReader row = list.ExecuteReader())
        {
            while (row.Read()) files.Add((row.GetString(0), row.GetInt32(1)));
        }

        foreach ((string name, int chunk) in files)
        {
            byte[]? bytes = (byte[]?)PostgreSqlDatabase.Scalar(source, "select bytes from purse.files where partition = $1 and name = $2 and chunk = $3", partition, name, chunk);
            // Deleted meanwhile: a newer one took its place. What was copied of it is no whole file, and passed over.
            if (bytes is not null) PostgreSqlDatabase.Execute(target, "insert into purse.files values ($1, $2, $3, $4) on conflict do nothing", partition, name, chunk, bytes);
        }
    }

    static void Translating(PostgreSqlDatabase from, PostgreSqlDatabase to, int partition, Action<NpgsqlConnection, NpgsqlConnection> move)
    {
        try
        {
            using NpgsqlConnection source = from.Open();
            // The tables, where the store is new.
            to.Open().Dispose();
            using NpgsqlConnection target = to.OpenForWriting();
            PostgreSqlDatabase.Execute(target, $"set application_name = '{MoverName} {partition}'");
            move(source, target);
        }
        catch (Exception e) when (e is NpgsqlException or TimeoutException or InvalidOperationException)
        {
            throw new IOException($"Partition {partition} could not be copied from {from} to {to}: {(e.InnerException ?? e).Message}", e);
        }
    }
}
