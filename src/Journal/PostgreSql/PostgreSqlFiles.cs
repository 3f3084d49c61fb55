using Npgsql;

namespace Purse.Journal;

/// <summary>
/// Files of a partition in the database that keeps its journal, in rows of <see cref="ChunkBytes"/>. What a call has done is durable when it returns.
/// </summary>
sealed class PostgreSqlFiles(PostgreSqlDatabase database, int partition) : IDisk
{
    const int ChunkBytes = 1024 * 1024;

    public IReadOnlyList<string> List(string folder) => database.With(connection =>
    {
        using NpgsqlCommand command = PostgreSqlDatabase.Command(connection, "select distinct name from purse.files where partition = $1", partition);
        using NpgsqlDataReader rows = command.ExecuteReader();
        List<string> names = [];
        while (rows.Read())
        {
            string name = rows.GetString(0);
            if ((name.LastIndexOf('/') is >= 0 and int slash ? name[..slash] : "") == folder) names.Add(name);
        }

        names.Sort(StringComparer.Ordinal);
        return names;
    });

    public IDiskFile Open(string name, bool writable, bool create = false) => database.With(connection =>
    {
        if (create) PostgreSqlDatabase.Execute(connection, "insert into purse.files values ($1, $2, 0, '') on conflict do nothing", partition, name);
        else if (PostgreSqlDatabase.Scalar(connection, "select 1 from purse.files where partition = $1 and name = $2 limit 1", partition, name) is null) throw new FileNotFoundException($"{name} is not in {database}.", name);
        return new ChunkedFile(database, partition, name);
    });

    public void Rename(string from, string to) => database.With(connection =>
    {
        using NpgsqlTransaction transaction = connection.BeginTransaction();
        PostgreSqlDatabase.Execute(connection, "delete from purse.files where partition = $1 and name = $2", partition, to);
        PostgreSqlDatabase.Execute(connection, "update purse.files set name = $3 where partition = $1 and name = $2", partition, from, to);
        transaction.Commit();
        return 0;
    });

    public void Delete(string name) => database.With(connection =>
    {
        PostgreSqlDatabase.Execute(connection, "delete from purse.files where partition = $1 and name = $2", partition, name);
        return 0;
    });

    public void FlushNames(string folder)
    {
    }

    sealed class ChunkedFile(PostgreSqlDatabase database, int partition, string name) : IDiskFile
    {
        public long Length => database.With(connection => (long)(PostgreSqlDatabase.Scalar(
            connection, $"select chunk::bigint * {ChunkBytes} + length(bytes) from purse.files where partition = $1 and name = $2 order by chunk desc limit 1", partition, name) ?? 0L));

        public int Read(Span<byte> buffer, long offset)
        {
            int read = 0;
            while (read < buffer.Length)
            {
                long at = offset + read;
                int within = (int)(at % ChunkBytes), wanted = Math.Min(buffer.Length - read, ChunkBytes - within);
                byte[] piece = database.With(connection => (byte[]?)PostgreSqlDatabase.Scalar(
                    connection, "select substring(bytes from $4 for $5) from purse.files where partition = $1 and name = $2 and chunk = $3", partition, name, (int)(at / ChunkBytes), within + 1, wanted)) ?? [];
                piece.CopyTo(buffer[read..]);
                read += piece.Length;
                if (piece.Length < wanted) break;
            }

            return read;
        }

        public void Write(ReadOnlySpan<byte> bytes, long offset)
        {
            while (bytes.Length > 0)
            {
                int chunk = (int)(offset / ChunkBytes), within = (int)(offset % ChunkBytes), length = Math.Min(bytes.Length, ChunkBytes - within);
                byte[] piece = bytes[..length].ToArray();
                database.With(connection =>
                {
                    byte[] before = within == 0 && length == ChunkBytes
                        ? []
                        : (byte[]?)PostgreSqlDatabase.Scalar(connection, "select bytes from purse.files where partition = $1 and name = $2 and chunk = $3", partition, name, chunk) ?? [];
                    byte[] after = new byte[Math.Max(before.Length, within + length)];
                    before.CopyTo(after, 0);
                    piece.CopyTo(after, within);
                    PostgreSqlDatabase.Execute(
                        connection, "insert into purse.files values ($1, $2, $3, $4) on conflict (partition, name, chunk) do update set bytes = excluded.bytes", partition, name, chunk, after);
                    return 0;
                });
                bytes = bytes[length..];
                offset += length;
            }
        }

        public void Flush()
        {
        }

        public void Dispose()
        {
        }
    }
}
