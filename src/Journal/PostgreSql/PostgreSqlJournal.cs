using Npgsql;

namespace Purse.Journal;

/// <summary>
/// One partition's blocks as rows. The blocks of a flush and the head that they lead to are one transaction, in one round trip: all of it is
/// there, or nothing. Where the answer to it is lost, nobody knows which: this writer is dead then, and whoever takes over raises the epoch first,
/// which waits for what may still be under way, and looks then.
/// </summary>
sealed class PostgreSqlJournal : JournalWriter
{
    const string Insert = "insert into purse.blocks (partition, number, first_sequence, last_sequence, header, body) values ($1, $2, $3, $4, $5, $6)";
    const string Advance = "select purse.advance($1, $2, $3, $4, $5, $6, $7, $8)";

    /// <summary>A connection is told apart by this, so that a successor can end it.</summary>
    const string WriterName = "purse writer of partition";

    readonly PostgreSqlDatabase _database;

    /// <summary>From the first flush on: where there is no room, there may be none for a new connection either, and reads are answered all the same.</summary>
    NpgsqlConnection? _connection;
    readonly List<Pending> _pending = [];
    readonly Stack<byte[]> _spare = new();

    // The head as the last flush left it.
    ulong _headNumber;
    byte[] _headHash;
    volatile string? _warning;
    bool _isSealing;

    /// <summary>A block that is not durable yet.</summary>
    readonly record struct Pending(BlockHeader Header, Hash256 Hash, byte[] Bytes);

    PostgreSqlJournal(PostgreSqlDatabase database, ulong epoch, JournalReader recovered, NpgsqlConnection? connection = null)
        : base(recovered.Partition, epoch, recovered)
    {
        _database = database;
        if (connection is not null) Use(connection);
        _headNumber = recovered.LastNumber;
        _headHash = recovered.LastHash.ToArray();
    }

    void Use(NpgsqlConnection connection)
    {
        _connection = connection;
        connection.Notice += OnNotice;
    }

    /// <summary>"Canceling wait for synchronous replication": committed, but perhaps only here.</summary>
    void OnNotice(object sender, NpgsqlNoticeEventArgs notice)
    {
        if (notice.Notice.InvariantSeverity is "WARNING") _warning = notice.Notice.MessageText;
    }

    void CheckWarning()
    {
        if (_warning is { } warning) throw new IOException($"{_database}: {warning}. Whether this commit is durable is not known.");
    }

    public static PostgreSqlJournal Open(PostgreSqlDatabase database, int partition, IReadOnlyCollection<JournalFloor> floors, OnBlock onBlock, JournalFloor? from)
    {
        (ulong epoch, ulong number, byte[] hash) = database.With(connection => RaiseEpoch(connection, database, partition));
        ulong after = from is JournalFloor start && start.Number <= number ? start.Number : 0;
        // What comes before it is not read: each floor is looked up where it should be.
        foreach (JournalFloor floor in floors.Where(floor => floor.Number > 0 && floor.Number <= after))
        {
            using PostgreSqlJournalReader there = new(database, partition, floor.Number);
            CheckFloors([floor], there, isAtEnd: false);
        }

        using PostgreSqlJournalReader reader = new(database, partition, after);
        while (reader.LastNumber < number && reader.TryReadNext(out Block block))
        {
            CheckFloors(floors, reader, isAtEnd: false);
            onBlock(block);
        }

        CheckFloors(floors, reader, isAtEnd: true);
        // Both in one look: somebody else may have taken over meanwhile, and gone on.
        (ulong now, ulong last, string? sealedTo) = database.With(connection => EpochLastAndSeal(connection, partition));
        if (sealedTo is not null && now == epoch + 1) throw Sealed(database, partition, sealedTo);
        if (now != epoch) throw new FencedException($"Epoch {epoch} of partition {partition} was over before it began: epoch {now} owns it now.");
        if (reader.LastNumber != number || last != number || !reader.LastHash.ToArray().AsSpan().SequenceEqual(hash))
        {
            throw new JournalDamagedException(
                $"The head of partition {partition} in {database} says block {number} ({Convert.ToHexStringLower(hash)}), and its blocks end at {last} ({reader.LastHash}). Restore the database from a copy; nothing was changed.",
                reader.LastNumber + 1, default);
        }

        PostgreSqlJournal journal = new(database, epoch, reader);
        try
        {
            // The epoch is in the chain, too; but reads are answered even where there is no room for that.
            if (!journal.HasRoom) return journal;
            journal.AppendMark(reader.LastTimeMicros);
            journal.Flush();
            return journal;
        }
        catch
        {
            journal.Dispose();
            throw;
        }
    }

    static (ulong Epoch, ulong LastNumber, string? SealedTo) EpochLastAndSeal(NpgsqlConnection connection, int partition)
    {
        using NpgsqlCommand look = PostgreSqlDatabase.Command(connection, "select epoch, (select coalesce(max(number), 0) from purse.blocks where partition = $1), sealed_to from purse.heads where partition = $1", partition);
        using NpgsqlDataReader row = look.ExecuteReader();
        return row.Read() ? ((ulong)row.GetInt64(0), (ulong)row.GetInt64(1), row.IsDBNull(2) ? null : row.GetString(2)) : default;
    }

    /// <summary>Waits for the row that a writer before may still hold; after it, that one's next flush finds another epoch.</summary>
    static (ulong Epoch, ulong Number, byte[] Hash) RaiseEpoch(NpgsqlConnection connection, PostgreSqlDatabase database, int partition)
    {
        // One that hangs in the middle of a transaction would hold it for as long as it hangs.
        PostgreSqlDatabase.Execute(connection, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1 and datname = current_database() and usename = current_user and pid <> pg_backend_pid()", $"{WriterName} {partition}");
        PostgreSqlDatabase.Execute(connection, "insert into purse.heads (partition, epoch, number, sequence, hash) values ($1, 0, 0, 0, $2) on conflict do nothing", partition, new byte[Hash256.SizeBytes]);
        // One that hangs here, and is given up, must not raise it behind its successor's back: it can be ended, too.
        using NpgsqlTransaction transaction = connection.BeginTransaction();
        PostgreSqlDatabase.Execute(connection, $"set local application_name = '{WriterName} {partition}'");
        (ulong Epoch, ulong Number, byte[] Hash) raised = default;
        using (NpgsqlCommand raise = PostgreSqlDatabase.Command(connection, "update purse.heads set epoch = epoch + 1 where partition = $1 and sealed_to is null returning epoch, number, hash", partition))
        using (NpgsqlDataReader row = raise.ExecuteReader())
        {
            if (row.Read()) raised = ((ulong)row.GetInt64(0), (ulong)row.GetInt64(1), row.GetFieldValue<byte[]>(2));
        }

        transaction.Commit();
        if (raised.Epoch > 0) return raised;
        throw Sealed(database, partition, PostgreSqlDatabase.Scalar(connection, "select sealed_to from purse.heads where partition = $1", partition) as string ?? "?");
    }

    static JournalSealedException Sealed(PostgreSqlDatabase database, int partition, string store) =>
        new($"The journal of partition {partition} in {database} is sealed: it goes on in store {store}.", store);

    /// <inheritdoc cref="PostgreSqlMove.Seal"/>
    public static void Seal(PostgreSqlDatabase database, int partition, string store, int recordSizeBytes, ReadOnlySpan<byte> record, ReadOnlySpan<byte> attachments)
    {
        using NpgsqlConnection connection = database.OpenForWriting();
        try
        {
            PostgreSqlDatabase.Execute(connection, $"set application_name = '{WriterName} {partition}'");
            using NpgsqlTransaction transaction = connection.BeginTransaction();
            ulong epoch, number;
            using (NpgsqlCommand raise = PostgreSqlDatabase.Command(connection, "update purse.heads set epoch = epoch + 1 where partition = $1 and sealed_to is null returning epoch, number", partition))
            using (NpgsqlDataReader row = raise.ExecuteReader())
            {
                (epoch, number) = row.Read() ? ((ulong)row.GetInt64(0), (ulong)row.GetInt64(1)) : default;
            }

            if (epoch == 0)
            {
                string? to = PostgreSqlDatabase.Scalar(connection, "select sealed_to from purse.heads where partition = $1", partition) as string;
                if (to == store)
                {
                    // Perhaps only here: it is sealed where what comes after it is durable.
                    ConfirmDurable(connection, database);
                    return;
                }

                throw to is null ? new IOException($"There is no journal of partition {partition} in {database}.") : Sealed(database, partition, to);
            }

            using PostgreSqlJournalReader reader = new(database, partition, number);
            using PostgreSqlJournal journal = new(database, epoch, reader, connection) { _isSealing = true };
            journal.Append(epoch, reader.LastSequence + 1, reader.LastTimeMicros, 1, recordSizeBytes, record, attachments, []);
            journal.Flush();
            PostgreSqlDatabase.Execute(connection, "update purse.heads set sealed_to = $2 where partition = $1", partition, store);
            transaction.Commit();
            journal.CheckWarning();
        }
        catch (Exception e) when (e is NpgsqlException or TimeoutException or InvalidOperationException)
        {
            throw database.Translate(e);
        }
    }

    /// <summary>What is committed was durable when it was.</summary>
    public override ulong MarkedNumber => FlushedNumber;

    public override ulong MarkedSequence => FlushedSequence;

    public override bool WantsMark => false;

    public override bool IsFlushFenced => true;

    // The flush that finds a full disk ends this writer, and leaves nothing; the next one takes no new commands until there is room.
    public override bool HasRoom => _database.FullBecause is null;

    public override bool HasReserve => HasRoom;

    public override bool WantsNext => !IsDead && !HasRoom;

    public override string? AllocationFailure => _database.FullBecause;

    public override bool AllocateNext() => _database.HasRoomAgain();

    /// <summary>
    /// Of a replicated database by a commit, which waits for the standby: one that was deposed with its server, and does not know, would read its own
    /// epoch there for ever.
    /// </summary>
    public override void ConfirmEpoch() => ConfirmEpoch(byCommit: _database.Options.IsReplicated);

    void ConfirmEpoch(bool byCommit)
    {
        (ulong epoch, string? sealedTo) = _database.With(connection =>
        {
            if (byCommit) ConfirmDurable(connection, _database);
            using NpgsqlCommand look = PostgreSqlDatabase.Command(connection, "select epoch, sealed_to from purse.heads where partition = $1", Partition);
            using NpgsqlDataReader row = look.ExecuteReader();
            return row.Read() ? ((ulong)row.GetInt64(0), row.IsDBNull(1) ? null : row.GetString(1)) : default;
        });
        // What this writer itself has raised, and not committed yet.
        if (epoch < Epoch && _isSealing) return;
        // The seal raised the epoch once: who was sealed and not deposed before goes along.
        if (sealedTo is not null && epoch == Epoch + 1) throw Sealed(_database, Partition, sealedTo);
        if (epoch != Epoch || sealedTo is not null) throw new FencedException($"Epoch {Epoch} of partition {Partition} is over: epoch {epoch} owns it now{(sealedTo is null ? "" : $", in store {sealedTo}")}.");
    }

    /// <summary>A commit that waits for the standby, and with it for all before it.</summary>
    static void ConfirmDurable(NpgsqlConnection connection, PostgreSqlDatabase database)
    {
        string? warning = null;
        void OnNotice(object sender, NpgsqlNoticeEventArgs notice)
        {
            if (notice.Notice.InvariantSeverity is "WARNING") warning = notice.Notice.MessageText;
        }

        connection.Notice += OnNotice;
        try
        {
            PostgreSqlDatabase.Execute(connection, "select pg_logical_emit_message(true, 'purse', '')");
        }
        finally
        {
            connection.Notice -= OnNotice;
        }

        if (warning is not null) throw new IOException($"{database}: {warning}. Whether what it has is durable is not known.");
    }

    protected override void CheckEpoch(ulong epoch)
    {
        // The head row says the rest.
        if (epoch != Epoch) throw new FencedException($"Epoch {epoch} of partition {Partition} is not this writer's {Epoch}.");
    }

    protected override void Write(ReadOnlySpan<byte> block, in BlockHeader header)
    {
        int length = BlockHeader.SizeBytes + header.BodyBytes;
        if (!_spare.TryPop(out byte[]? bytes) || bytes.Length < length) bytes = new byte[length * 2];
        block[..length].CopyTo(bytes);
        _pending.Add(new Pending(header, BlockHeader.ComputeHash(block), bytes));
    }

    protected override void MakeDurable()
    {
        try
        {
            if (_connection is null)
            {
                Use(_database.OpenForWriting());
                PostgreSqlDatabase.Execute(_connection!, $"set application_name = '{WriterName} {Partition}'");
            }

            using NpgsqlBatch batch = new(_connection);
            (BlockHeader last, Hash256 lastHash, _) = _pending[^1];
            byte[] hash = lastHash.ToArray();
            // First, in the order in which a seal takes them: the head's row, then the blocks.
            batch.BatchCommands.Add(new NpgsqlBatchCommand(Advance)
            {
                Parameters =
                {
                    new NpgsqlParameter<int> { TypedValue = Partition },
                    new NpgsqlParameter<long> { TypedValue = (long)Epoch },
                    new NpgsqlParameter<long> { TypedValue = (long)_headNumber },
                    new NpgsqlParameter<byte[]> { TypedValue = _headHash },
                    new NpgsqlParameter<long> { TypedValue = (long)last.Number },
                    new NpgsqlParameter<long> { TypedValue = (long)last.LastSequence },
                    new NpgsqlParameter<byte[]> { TypedValue = hash },
                    new NpgsqlParameter<bool> { TypedValue = _database.Options.IsReplicated },
                },
            });
            foreach (Pending one in _pending)
            {
                batch.BatchCommands.Add(new NpgsqlBatchCommand(Insert)
                {
                    Parameters =
                    {
                        new NpgsqlParameter<int> { TypedValue = Partition },
                        new NpgsqlParameter<long> { TypedValue = (long)one.Header.Number },
                        new NpgsqlParameter<long> { TypedValue = (long)one.Header.FirstSequence },
                        new NpgsqlParameter<long> { TypedValue = (long)one.Header.LastSequence },
                        new NpgsqlParameter<ReadOnlyMemory<byte>> { TypedValue = one.Bytes.AsMemory(0, BlockHeader.SizeBytes) },
                        new NpgsqlParameter<ReadOnlyMemory<byte>> { TypedValue = one.Bytes.AsMemory(BlockHeader.SizeBytes, one.Header.BodyBytes) },
                    },
                });
            }

            batch.ExecuteNonQuery();
            CheckWarning();
            (_headNumber, _headHash) = (last.Number, hash);
        }
        catch (Exception e) when (e is NpgsqlException or TimeoutException or InvalidOperationException)
        {
            throw WhyOf(_database.Translate(e));
        }

        foreach (Pending one in _pending) _spare.Push(one.Bytes);
        _pending.Clear();
    }

    /// <summary>Whoever takes over ends this writer's connection: that is what its owner has to hear.</summary>
    IOException WhyOf(IOException failure)
    {
        try
        {
            ConfirmEpoch(byCommit: false);
        }
        catch (IOException e)
        {
            // Or the database cannot be asked.
            if (e is FencedException or JournalSealedException) return e;
        }

        return failure;
    }

    public override RecordReader OpenRecords() => new PostgreSqlRecordReader(_database, Partition);

    public override JournalReader ReadAfter(ulong sequence)
    {
        using PostgreSqlRecordReader records = new(_database, Partition);
        return new PostgreSqlJournalReader(_database, Partition, records.ReadBlock(sequence));
    }

    public override void Dispose()
    {
        try
        {
            _connection?.Dispose();
        }
        catch (NpgsqlException)
        {
            // It was broken before.
        }
    }
}
