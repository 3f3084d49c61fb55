using System.Globalization;
using System.Text;
using Purse.Journal;
using Purse.Ledger;
using Purse.Simulation;
using Purse.Tests.Ledger;

namespace Purse.Tests.Journal;

/// <summary>
/// Journals and snapshots written today have the same bytes as the committed ones, which still replay. With PURSE_WRITE_GOLDEN set to a
/// folder, writes them there anew: for a change of format version only, which docs/journal-format.md must tell of.
/// </summary>
public sealed class GoldenFileTests
{
    static FaultyDisk WriteJournal()
    {
        FaultyDisk disk = new();
        using FileJournal journal = FileJournal.Open(disk, 3, JournalConformanceTests.Small, [], (in Block _) => { });
        StateMachine machine = new(new State(1));
        EventBatch batch = new(64);
        byte[] salt = [.. Enumerable.Range(1, 16).Select(n => (byte)n)];
        CommandDetails details = new() { By = "local", Reason = "an example", Metadata = new Erasable("{\"order\":\"A-17\"}"u8.ToArray(), salt) };
        LimitsAsWritten limits = new(CurrencyCode.Parse("USD"), true, -50, 0, true, 12345, 1);
        Command lunch = TestLedger.Transfer(UInt128.Parse("0198c0de000070008000000000000002", NumberStyles.HexNumber), "alice", "bob", "12.34");
        lunch.Details = new CommandDetails { Description = new Erasable("lunch"u8.ToArray(), salt) };
        Command[][] blocks =
        [
            [
                TestLedger.Change(CommandKind.OpenAccount, "alice", details: new CommandDetails { By = "local", Metadata = details.Metadata, Limits = [limits] }),
                TestLedger.Change(CommandKind.OpenAccount, "bob"),
            ],
            [TestLedger.Transfer(UInt128.Parse("0198c0de000070008000000000000001", NumberStyles.HexNumber), "@world", "alice", "100.00"), lunch],
            [
                TestLedger.Transfer(3, "ghost", "bob", "1.00"), TestLedger.Change(CommandKind.Freeze, "bob", Direction.Debit, details), TestLedger.Transfer(4, "bob", "alice", "1.00"),
                TestLedger.Change(CommandKind.Unfreeze, "bob", details: details), TestLedger.Change(CommandKind.SetMetadata, "bob", details: details),
                TestLedger.Change(CommandKind.SetLimits, "bob", details: new CommandDetails { Limits = [limits] }), TestLedger.Transfer(5, "bob", "@world", "12.34"),
            ],
        ];
        // One of each further kind; a reversal is given what it takes back.
        Command hold = TestLedger.Transfer(6, "alice", "bob", "50.00"), upTo = TestLedger.Transfer(10, "bob", "@world", "1000.00");
        (hold.Pending, hold.ExpiresInSeconds, upTo.UpTo) = (true, 3600, true);
        Command gem = new() { Kind = CommandKind.RegisterCurrency, Currency = CurrencyCode.Parse("GEM"), AmountScale = 3, Details = new CommandDetails { By = "local" } };
        Command Reverse(UInt128 id, UInt128 original, Original of, Int128 digits = default) => new()
        {
            Kind = CommandKind.Reverse,
            TransactionId = id,
            OriginalId = original,
            AmountDigits = digits,
            Details = new CommandDetails { Description = lunch.Details.Description, Original = of },
        };
        blocks =
        [
            .. blocks,
            [hold, new Command { Kind = CommandKind.Capture, TransactionId = 7, OriginalId = 6, AmountDigits = 40 }, new Command { Kind = CommandKind.Void, TransactionId = 8, OriginalId = 6 }, gem],
            [TestLedger.Transaction(9, ("@world", "bob", "0.001", "GEM"), ("bob", "@mint", "0.001", "GEM")), upTo, TestLedger.Transaction(11, ("alice", "bob", "1.00", "USD"), ("ghost", "bob", "1.00", "USD"))],
            // What T5 moved to @world, in part; the transaction, in full.
            [
                Reverse(12, 5, new Original(15, [new Movement(2, 3, 13992, 1234)], true, false), 2),
                Reverse(13, 9, new Original(24, [new Movement(3, 2, 20000, 1), new Movement(2, 5, 20000, 1)], true, true)),
                Reverse(14, 9, new Original(24, [new Movement(3, 2, 20000, 1), new Movement(2, 5, 20000, 1)], true, true)),
            ],
        ];
        for (int i = 0; i < blocks.Length; i++)
        {
            batch.Reset(machine.State.LastSequence + 1, 1_790_000_000_000_000 + i);
            foreach (Command command in blocks[i]) machine.Execute(command, batch);
            journal.Append(journal.Epoch, batch.FirstSequence, batch.TimeMicros, batch.Count, Event.SizeBytes, batch.EventBytes, batch.Attachments, batch.Erasable);
            journal.Flush();
        }

        journal.AppendMark();
        journal.Flush();
        new Snapshots(disk, 3).Write(machine.State.LastSequence, journal.LastRecordsNumber, journal.LastRecordsHash, machine.State.Write);
        return disk;
    }

    [Theory]
    [InlineData("journal/00000001.segment", "journal-v0.hex")]
    [InlineData("snapshots/00000000000000000037.snapshot", "snapshot-v0.hex")]
    public void The_bytes_written_today_are_the_committed_ones(string file, string golden)
    {
        FaultyDisk disk = WriteJournal();
        string text = ToText(disk.Bytes(file));
        if (Environment.GetEnvironmentVariable("PURSE_WRITE_GOLDEN") is { Length: > 0 } folder) File.WriteAllText(Path.Combine(folder, golden), text);
        Assert.Equal(File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "Golden", golden)), text);
    }

    [Fact]
    public void The_committed_journal_replays()
    {
        FaultyDisk disk = new();
        byte[] bytes = FromText(File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "Golden", "journal-v0.hex")));
        using (IDiskFile file = disk.Open(FileJournal.SegmentName(1), writable: true, create: true)) file.Write(bytes, 0);
        StateMachine machine = new(new State(1));
        using FileJournalReader reader = new(disk, 3, checkMerkleRoots: true);
        while (reader.TryReadNext(out Block block)) Purse.Partitions.Partition.Apply(block, machine);
        Assert.Null(reader.TornTail);
        Assert.Equal(37ul, machine.State.LastSequence);
        machine.State.TryCurrency(CurrencyCode.Parse("USD"), out uint usd, out _);
        Assert.Equal((Int128)4766, machine.State.Balance(machine.State.Names.Find(AccountName.Parse("alice")), usd).Posted);
        Assert.Equal((Int128)0, machine.State.CountSum(usd));
    }

    /// <summary>Offset and 16 bytes a line; lines of zeros are left out, the length is the last line.</summary>
    static string ToText(byte[] bytes)
    {
        StringBuilder text = new();
        for (int at = 0; at < bytes.Length; at += 16)
        {
            ReadOnlySpan<byte> line = bytes.AsSpan(at, Math.Min(16, bytes.Length - at));
            if (line.ContainsAnyExcept((byte)0)) text.Append(CultureInfo.InvariantCulture, $"{at:x6}: {Convert.ToHexStringLower(line)}\n");
        }

        return text.Append(CultureInfo.InvariantCulture, $"{bytes.Length:x6}\n").ToString();
    }

    static byte[] FromText(string text)
    {
        string[] lines = text.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        byte[] bytes = new byte[int.Parse(lines[^1], NumberStyles.HexNumber, CultureInfo.InvariantCulture)];
        foreach (string line in lines.SkipLast(1)) Convert.FromHexString(line[8..]).CopyTo(bytes, int.Parse(line[..6], NumberStyles.HexNumber, CultureInfo.InvariantCulture));
        return bytes;
    }
}
