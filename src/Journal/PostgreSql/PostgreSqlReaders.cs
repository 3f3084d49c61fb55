using System.IO.Hashing;
using Npgsql;

namespace Purse.Journal;

/// <summary>Blocks in order; several in one query.</summary>
sealed class PostgreSqlJournalReader : JournalReader
{
    const int BlocksPerQuery = 64;
    readonly PostgreSqlDatabase _database;
    readonly ulong _numberMax;
    NpgsqlConnection? _connection;
    NpgsqlCommand? _command;
    NpgsqlDataReader? _rows;
    bool _isAnyRead;
    byte[] _buffer = new byte[64 * 1024];

    public PostgreSqlJournalReader(PostgreSqlDatabase database, int partition, bool checkMerkleRoots)
        : base(partition, checkMerkleRoots)
    {
        _database = database;
        _numberMax = database.With(connection => PostgreSqlDatabase.Scalar(connection, "select number from purse.heads where partition = $1", partition)) is long number ? (ulong)number : 0;
    }

    /// <summary>Continues after a block that was read before.</summary>
    public PostgreSqlJournalReader(PostgreSqlDatabase database, int partition, in Block after)
        : this(database, partition, checkMerkleRoots: false) => Accept(after);

    /// <summary>Continues after the block that has this number.</summary>
    public PostgreSqlJournalReader(PostgreSqlDatabase database, int partition, ulong afterNumber)
        : this(database, partition, checkMerkleRoots: false)
    {
        if (afterNumber == 0) return;
        database.With(connection =>
        {
            using NpgsqlCommand command = PostgreSqlDatabase.Command(connection, "select header, body from purse.blocks where partition = $1 and number = $2", partition, (long)afterNumber);
            using NpgsqlDataReader row = command.ExecuteReader();
            if (!row.Read() || !TryTake(row, partition, ref _buffer, out Block block)) throw Damaged(afterNumber);
            Accept(block);
            return 0;
        });
    }

    public override double Done => _numberMax == 0 ? 1 : Math.Min(1, (double)LastNumber / _numberMax);

    public override bool TryReadNext(out Block block)
    {
        try
        {
            while (true)
            {
                if (_rows is null)
                {
                    _connection = _database.Open();
                    _command = PostgreSqlDatabase.Command(
                        _connection, $"select header, body from purse.blocks where partition = $1 and number > $2 order by number limit {BlocksPerQuery}", Partition, (long)LastNumber);
                    _rows = _command.ExecuteReader();
                    _isAnyRead = false;
                }

                if (_rows.Read())
                {
                    _isAnyRead = true;
                    if (!TryTake(_rows, Partition, ref _buffer, out block) || !Follows(block))
                        throw Damaged(LastNumber + 1);
                    Accept(block);
                    return true;
                }

                EndQuery();
                if (_isAnyRead) continue;
                block = default;
                return false;
            }
        }
        catch (Exception e) when (e is NpgsqlException or TimeoutException or InvalidOperationException)
        {
            EndQuery();
            throw _database.Translate(e);
        }
    }

    JournalDamagedException Damaged(ulong number) =>
        new($"Block {number} of partition {Partition} in {_database} is missing or not what was written. Restore the database from a copy; no block was changed.", number, default);

    /// <summary>A block from the row that has its header and body; false where that is not whole.</summary>
    internal static bool TryTake(NpgsqlDataReader row, int partition, ref byte[] buffer, out Block block)
    {
        block = default;
        if (row.GetBytes(0, 0, null, 0, 0) != BlockHeader.SizeBytes) return false;
        long bodyBytes = row.GetBytes(1, 0, null, 0, 0);
        int size = BlockHeader.AlignedSize(bodyBytes);
        if (buffer.Length < size) buffer = new byte[size * 2];
        row.GetBytes(0, 0, buffer, 0, BlockHeader.SizeBytes);
        row.GetBytes(1, 0, buffer, BlockHeader.SizeBytes, (int)bodyBytes);
        Span<byte> bytes = buffer.AsSpan(0, size);
        // Zeros to the next page are not kept.
        bytes[(BlockHeader.SizeBytes + (int)bodyBytes)..].Clear();
        if (!BlockHeader.TryRead(bytes, partition, out BlockHeader header) || header.BodyBytes != bodyBytes) return false;
        if (XxHash3.HashToUInt64(bytes[BlockHeader.SizeBytes..]) != header.BodyChecksum) return false;
        block = new Block(header, bytes, default);
        return true;
    }

    void EndQuery()
    {
        _rows?.Dispose();
        _command?.Dispose();
        _connection?.Dispose();
        (_rows, _command, _connection) = (null, null, null);
    }

    public override void Dispose() => EndQuery();
}

/// <summary>Single records. A small block is fetched whole, of a large one only what is asked for.</summary>
sealed class PostgreSqlRecordReader(PostgreSqlDatabase database, int partition) : RecordReader
{
    const int WholeBytesMax = 64 * 1024;
    readonly byte[] _header = new byte[BlockHeader.SizeBytes];
    byte[]? _body;
    byte[] _buffer = [];

    private protected override void Find(ulong sequence)
    {
        if (IsHere(sequence)) return;
        database.With(connection =>
        {
            using NpgsqlCommand command = PostgreSqlDatabase.Command(
                connection, "select header, case when length(body) <= $3 then body end from purse.blocks where partition = $1 and last_sequence >= $2 order by last_sequence, number limit 1",
                partition, (long)sequence, WholeBytesMax);
            using NpgsqlDataReader row = command.ExecuteReader();
            if (!row.Read() || row.GetBytes(0, 0, _header, 0, _header.Length) != _header.Length || !BlockHeader.TryRead(_header, partition, out BlockHeader header)
                || sequence < header.FirstSequence || sequence > header.LastSequence) throw Damaged(sequence);
            _body = row.IsDBNull(1) ? null : row.GetFieldValue<byte[]>(1);
            Header = header;
            return 0;
        });
    }

    private protected override void ReadExactly(int offset, Span<byte> target)
    {
        if (_body is null)
        {
            int length = target.Length;
            byte[] piece = database.With(connection => (byte[]?)PostgreSqlDatabase.Scalar(
                connection, "select substring(body from $3 for $4) from purse.blocks where partition = $1 and number = $2", partition, (long)Header.Number, offset + 1, length)) ?? [];
            if (piece.Length < length) throw Damaged(Header.FirstSequence);
            piece.CopyTo(target);
            return;
        }

        if (offset + target.Length > _body.Length) throw Damaged(Header.FirstSequence);
        _body.AsSpan(offset, target.Length).CopyTo(target);
    }

    public override Block ReadBlock(ulong sequence)
    {
        Find(sequence);
        ulong number = Header.Number;
        bool isWhole = database.With(connection =>
        {
            using NpgsqlCommand command = PostgreSqlDatabase.Command(connection, "select header, body from purse.blocks where partition = $1 and number = $2", partition, (long)number);
            using NpgsqlDataReader row = command.ExecuteReader();
            return row.Read() && PostgreSqlJournalReader.TryTake(row, partition, ref _buffer, out _);
        });
        return isWhole ? new Block(Header, _buffer.AsSpan(0, Header.SizeOnDiskBytes), default) : throw Damaged(sequence);
    }

    JournalDamagedException Damaged(ulong sequence) => new($"Event {sequence} of partition {partition} is not where {database} should have it. Stop the server and run `purse verify`.", Header.Number, default);

    public override void Dispose()
    {
    }
}
