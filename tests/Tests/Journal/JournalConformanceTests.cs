using System.Runtime.InteropServices;
using Purse.Journal;
using Purse.Simulation;

namespace Purse.Tests.Journal;

/// <summary>What every journal must do, whatever it lies on. A store without this green is not shipped.</summary>
public abstract class JournalConformanceTests
{
    internal const int RecordBytes = 104;

    internal static readonly JournalOptions Small = new() { SegmentSizeBytes = 128 * 1024, ReserveBytes = 32 * 1024 };

    private protected abstract IJournalStore NewStore();

    /// <summary>One record as written: which block it belongs to can be read from it.</summary>
    static byte[] Records(ulong firstSequence, int count)
    {
        byte[] bytes = new byte[count * RecordBytes];
        for (int i = 0; i < count; i++)
        {
            Span<byte> record = bytes.AsSpan(i * RecordBytes, RecordBytes);
            record.Fill((byte)(firstSequence + (ulong)i));
            MemoryMarshal.Write(record, firstSequence + (ulong)i);
        }

        return bytes;
    }

    internal static void Append(JournalWriter journal, int count, byte[]? attachments = null, byte[]? erasable = null)
    {
        ulong first = journal.AppendedSequence + 1;
        journal.Append(journal.Epoch, first, (long)first * 1000, count, RecordBytes, Records(first, count), attachments ?? [], erasable ?? []);
    }

    internal static FileStore At(IDisk disk) => new(disk, 0, Small);

    internal static JournalWriter Open(IDisk disk, List<ulong>? sequences = null) => Open(At(disk), sequences);

    internal static JournalWriter Open(IJournalStore store, List<ulong>? sequences = null) => store.TakeOver([], (in Block block) =>
    {
        for (int i = 0; i < block.Header.RecordsCount; i++)
        {
            ulong sequence = block.Header.FirstSequence + (ulong)i;
            Assert.True(block.Records.Slice(i * RecordBytes, RecordBytes).SequenceEqual(Records(sequence, 1)));
            sequences?.Add(sequence);
        }
    });

    static ulong[] Sequences(ulong last) => [.. Enumerable.Range(1, (int)last).Select(n => (ulong)n)];

    [Fact]
    public void Gives_back_what_was_appended_in_order_across_segments_and_restarts()
    {
        IJournalStore store = NewStore();
        Random random = new(1);
        ulong last = 0;
        for (int life = 0; life < 4; life++)
        {
            List<ulong> read = [];
            using JournalWriter journal = Open(store, read);
            Assert.Equal(Sequences(last), read);
            Assert.Equal((ulong)life + 1, journal.Epoch);
            Assert.Null(journal.TornTail);
            for (int i = 0; i < 30; i++)
            {
                Append(journal, 1 + random.Next(200), attachments: new byte[random.Next(5000)], erasable: new byte[random.Next(500)]);
                if (random.Next(2) == 0) journal.Flush();
                journal.AllocateNext();
            }

            journal.Flush();
            Assert.Equal(journal.AppendedSequence, journal.FlushedSequence);
            last = journal.AppendedSequence;
        }

        AssertMany(store);
    }

    /// <summary>What was appended is in several pieces, where the store has such.</summary>
    private protected virtual void AssertMany(IJournalStore store)
    {
    }

    [Fact]
    public void A_sequence_that_does_not_follow_is_refused()
    {
        using JournalWriter journal = Open(NewStore());
        Append(journal, 3);
        Assert.Throws<ArgumentException>(() => journal.Append(journal.Epoch, 3, 9000, 1, RecordBytes, Records(3, 1), [], []));
        Assert.Throws<ArgumentException>(() => journal.Append(journal.Epoch, 5, 9000, 1, RecordBytes, Records(5, 1), [], []));
        Append(journal, 1);
    }

    [Fact]
    public void A_writer_that_was_taken_over_from_is_fenced_and_what_it_wrote_before_stays()
    {
        IJournalStore store = NewStore();
        using JournalWriter first = Open(store);
        Append(first, 2);
        first.Flush();
        List<ulong> read = [];
        using JournalWriter second = Open(store, read);
        Assert.Equal(Sequences(2), read);
        Assert.Throws<FencedException>(first.ConfirmEpoch);
        // At the latest when it would be durable.
        Assert.Throws<FencedException>(() =>
        {
            Append(first, 1);
            first.Flush();
        });
        // Dead from then on, whatever it is asked.
        Assert.Throws<IOException>(() => Append(first, 1));
        Assert.Throws<IOException>(first.Flush);
        Append(second, 1);
        second.Flush();
        Assert.Equal(3ul, second.FlushedSequence);
    }

    [Fact]
    public void An_epoch_of_another_is_fenced()
    {
        using JournalWriter journal = Open(NewStore());
        Assert.Throws<FencedException>(() => journal.Append(journal.Epoch + 1, 1, 1000, 1, RecordBytes, Records(1, 1), [], []));
    }

    /// <summary>What was flushed is vouched for, at the latest by an empty block of an idle writer.</summary>
    [Fact]
    public void All_that_was_flushed_is_vouched_for_in_the_end()
    {
        using JournalWriter journal = Open(NewStore());
        Assert.False(journal.WantsMark);
        Append(journal, 1);
        Assert.False(journal.WantsMark);
        Assert.NotEqual(journal.LastRecordsNumber, journal.MarkedNumber);
        journal.Flush();
        if (journal.WantsMark)
        {
            journal.AppendMark();
            journal.Flush();
        }

        Assert.False(journal.WantsMark);
        Assert.InRange(journal.MarkedNumber, journal.LastRecordsNumber, journal.LastNumber);
    }

    [Fact]
    public void Two_readers_see_the_same_beside_the_writer()
    {
        IJournalStore store = NewStore();
        using JournalWriter journal = Open(store);
        using JournalReader reader = store.Read(checkMerkleRoots: true);
        for (int i = 0; i < 50; i++)
        {
            Append(journal, 20);
            journal.Flush();
            while (reader.TryReadNext(out _))
            {
            }

            Assert.Equal(journal.AppendedSequence, reader.LastSequence);
            Assert.Equal(journal.LastHash, reader.LastHash);
        }
    }

    [Fact]
    public void Any_record_is_found_beside_the_writer()
    {
        IJournalStore store = NewStore();
        using JournalWriter journal = Open(store);
        Random random = new(2);
        for (int i = 0; i < 60; i++) Append(journal, 1 + random.Next(40));
        journal.Flush();
        using RecordReader reader = journal.OpenRecords();
        byte[] record = new byte[RecordBytes];
        for (ulong sequence = 1; sequence <= journal.FlushedSequence; sequence++)
        {
            reader.Read(sequence, record);
            Assert.Equal(Records(sequence, 1), record);
        }
    }

    /// <summary>Beside a record lie its attachments and texts, which are read bit by bit; and whole blocks, in any order.</summary>
    [Fact]
    public void All_that_lies_beside_a_record_is_found()
    {
        using JournalWriter journal = Open(NewStore());
        byte[] attachments = [.. Enumerable.Range(0, 90_000).Select(i => (byte)(i % 251))], erasable = [.. Enumerable.Range(0, 7000).Select(i => (byte)(i % 13))];
        Append(journal, 3);
        Append(journal, 5, attachments, erasable);
        Append(journal, 700);
        journal.Flush();
        using RecordReader reader = journal.OpenRecords();
        byte[] record = new byte[RecordBytes], part = new byte[1000];
        foreach (ulong sequence in (ulong[])[6, 1, 708, 4, 300, 8])
        {
            reader.Read(sequence, record);
            Assert.Equal(Records(sequence, 1), record);
            if (sequence is < 4 or > 8) continue;
            reader.ReadAttachments(80_000, part);
            Assert.Equal(attachments[80_000..81_000], part);
            reader.ReadErasable(5000, part);
            Assert.Equal(erasable[5000..6000], part);
            Block block = reader.ReadBlock(sequence);
            Assert.Equal((4ul, 8ul), (block.Header.FirstSequence, block.Header.LastSequence));
            Assert.True(block.Attachments.SequenceEqual(attachments) && block.Erasable.SequenceEqual(erasable));
        }
    }

    [Fact]
    public void Reading_goes_on_after_any_record()
    {
        IJournalStore store = NewStore();
        using JournalWriter journal = Open(store);
        for (int i = 0; i < 20; i++) Append(journal, 7);
        journal.Flush();
        for (ulong sequence = 1; sequence <= 140; sequence += 3)
        {
            using JournalReader reader = journal.ReadAfter(sequence);
            ulong next = (sequence - 1) / 7 * 7 + 8;
            for (; reader.TryReadNext(out Block block); next += block.Header.RecordsCount) Assert.Equal(next, block.Header.FirstSequence);
            Assert.Equal(141ul, next);
        }
    }

    [Fact]
    public void A_journal_that_lost_what_is_known_of_is_refused()
    {
        IJournalStore store = NewStore();
        Hash256 hash;
        ulong number;
        using (JournalWriter journal = Open(store))
        {
            Append(journal, 3);
            journal.Flush();
            (number, hash) = (journal.LastNumber, journal.LastHash);
        }

        static void Ignore(in Block block)
        {
        }

        store.TakeOver([new JournalFloor(number, 3, hash, "a friend")], Ignore).Dispose();
        Assert.StartsWith("journal_lost_tail: a friend", Assert.Throws<JournalDamagedException>(() => store.TakeOver([new JournalFloor(number + 50, 300, hash, "a friend")], Ignore)).Message, StringComparison.Ordinal);
        Assert.Contains("has another block there", Assert.Throws<JournalDamagedException>(() => store.TakeOver([new JournalFloor(number, 3, default, "a friend")], Ignore)).Message, StringComparison.Ordinal);
    }

    /// <summary>Excludes: a floor before it that is passed over, and a chain that does not go on from it.</summary>
    [Fact]
    public void Who_has_the_state_of_a_block_goes_on_from_there()
    {
        IJournalStore store = NewStore();
        List<JournalFloor> floors = [];
        using (JournalWriter journal = Open(store))
        {
            for (ulong last = 1; last <= 9; last++)
            {
                Append(journal, 1);
                journal.Flush();
                floors.Add(new JournalFloor(journal.LastNumber, last, journal.LastHash, $"event {last}"));
            }
        }

        // Somebody who wrote nothing else was there since.
        Open(store).Dispose();
        List<ulong> read = [];
        JournalWriter.OnBlock collect = (in Block block) =>
        {
            if (block.Header.RecordsCount > 0) read.Add(block.Header.FirstSequence);
        };
        using (JournalWriter journal = store.TakeOver(floors, collect, floors[4]))
        {
            Assert.Equal([6UL, 7UL, 8UL, 9UL], read.Where(sequence => sequence > 5));
            Assert.Equal((9UL, floors[8].Number, floors[8].Hash), (journal.AppendedSequence, journal.LastRecordsNumber, journal.LastRecordsHash));
            Append(journal, 1);
            journal.Flush();
        }

        read.Clear();
        // Of the last block with records: nothing comes after it but marks.
        using (JournalWriter journal = store.TakeOver(floors, collect, floors[8])) Assert.Equal(10UL, read[^1]);
        using (JournalReader reader = store.Read(checkMerkleRoots: true))
        {
            while (reader.TryReadNext(out Block _))
            {
            }

            Assert.Equal(10UL, reader.LastSequence);
        }

        foreach (int wrong in (int[])[1, 4, 7])
        {
            JournalFloor[] some = [.. floors.Select((floor, i) => i == wrong ? floor with { Hash = floors[0].Hash } : floor)];
            Assert.Contains($"journal_lost_tail: event {wrong + 1}", Assert.Throws<JournalDamagedException>(() => store.TakeOver(some, collect, some[4])).Message, StringComparison.Ordinal);
        }

        JournalFloor beyond = new(floors[8].Number + 50, 99, floors[8].Hash, "a snapshot");
        Assert.Contains("journal_lost_tail: a snapshot", Assert.Throws<JournalDamagedException>(() => store.TakeOver([beyond], collect, beyond)).Message, StringComparison.Ordinal);
    }

    /// <summary>Immutable files beside the journal: whole under their name, or not there.</summary>
    [Fact]
    public void Files_are_found_by_whoever_takes_over()
    {
        IJournalStore store = NewStore();
        Snapshots snapshots = new(store.Files, store.Partition);
        byte[] state = new byte[3_000_000];
        new Random(3).NextBytes(state);
        for (ulong sequence = 5; sequence < 9; sequence++) snapshots.Write(sequence, sequence - 1, default, stream => stream.Write(state));
        string[] names = [.. snapshots.List()];
        Assert.Equal(["snapshots/00000000000000000007.snapshot", "snapshots/00000000000000000008.snapshot"], names);
        Assert.True(snapshots.TryReadHeader(names[1], out SnapshotHeader header));
        byte[] read = new byte[state.Length];
        snapshots.Read(names[1], header, stream => stream.ReadExactly(read));
        Assert.Equal(state, read);
        store.Files.Delete(names[0]);
        Assert.Equal([names[1]], snapshots.List());
        Assert.Throws<FileNotFoundException>(() => store.Files.Open(names[0], writable: false));
    }
}

public sealed class FileDiskJournalTests : JournalConformanceTests, IDisposable
{
    readonly TemporaryFolder _folder = new();

    IDisk NewDisk() => new FileDisk(_folder.Path);

    private protected override IJournalStore NewStore() => At(NewDisk());

    private protected override void AssertMany(IJournalStore store) => Assert.True(FileJournal.Segments(store.Files).Count > 3);

    /// <summary>Excludes: what went past the system's cache hidden from a reader by what the cache had there, and the other way round.</summary>
    [Fact]
    public void A_reader_sees_what_was_written_past_the_cache()
    {
        const int Large = 512 * 1024, Page = FileJournal.AlignmentBytes;
        IDisk disk = NewDisk();
        using IDiskFile writer = disk.Open("journal/file", writable: true, create: true);
        writer.WriteZeros(0, 4 * Large);
        writer.Flush();
        using IDiskFile reader = disk.Open("journal/file", writable: false);
        byte[] expected = new byte[4 * Large], read = new byte[4 * Large], pinned = GC.AllocateArray<byte>(Large + Page, pinned: true);
        Random random = new(11);
        for (int round = 0; round < 50; round++)
        {
            // All of it is in the cache before each write; some are of a part of it, at places that do not allow for more than the cache.
            Assert.Equal(expected.Length, reader.Read(read, 0));
            Assert.Equal(expected, read);
            random.NextBytes(pinned);
            int aligned = (int)(Page - (System.Runtime.InteropServices.Marshal.UnsafeAddrOfPinnedArrayElement(pinned, 0) & (Page - 1))) & (Page - 1);
            int offset = random.Next(3 * Large / Page) * Page, length = (round % 3) switch { 0 => Large, 1 => Page, _ => Large - 1 };
            pinned.AsSpan(aligned, length).CopyTo(expected.AsSpan(offset));
            writer.Write(pinned.AsSpan(aligned, length), offset);
        }

        Assert.Equal(expected.Length, reader.Read(read, 0));
        Assert.Equal(expected, read);
    }

    [Fact]
    public void Only_segments_lie_in_the_journal_folder()
    {
        using JournalWriter journal = Open(NewDisk());
        Append(journal, 10);
        journal.AllocateNext();
        journal.Flush();
        Assert.All(Directory.GetFileSystemEntries(Path.Combine(_folder.Path, "journal")), f => Assert.Matches("^[0-9]{8}\\.segment$", Path.GetFileName(f)));
    }

    /// <summary>Excludes: a segment's worth of disk lost for good with every crash in the middle of an allocation.</summary>
    [Fact]
    public void What_a_crash_left_of_an_allocation_is_gone_with_the_next_writer()
    {
        IDisk disk = NewDisk();
        using (JournalWriter journal = Open(disk)) Append(journal, 1);
        foreach (string name in new[] { "allocating-00000002", "allocating-00000002-1" })
        {
            using IDiskFile left = disk.Open(name, writable: true, create: true);
            left.Write(new byte[100], 0);
        }

        Assert.Contains("allocating-00000002-1", disk.List(""));
        using JournalWriter next = Open(disk);
        Assert.Equal(["epoch"], disk.List(""));
    }

    public void Dispose() => _folder.Dispose();
}

/// <summary>The conformance cases on a disk in memory, and what only a disk that fails on command can show.</summary>
public sealed class FaultyDiskJournalTests : JournalConformanceTests
{
    private protected override IJournalStore NewStore() => At(new FaultyDisk());

    /// <summary>Excludes: a take-over that fails halfway, and with it the fence before a writer that was deposed long ago.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_take_over_that_fails_leaves_the_fence_where_it_was(bool torn)
    {
        FaultyDisk disk = new();
        using JournalWriter first = FileJournal.Open(disk, 0, Small, [], (in Block _) => { });
        using JournalWriter second = FileJournal.Open(disk, 0, Small, [], (in Block _) => { });
        (disk.FailWriteIn, disk.FailingWriteIsTorn) = (1, torn);
        Assert.Throws<IOException>(() => FileJournal.Open(disk, 0, Small, [], (in Block _) => { }));
        Assert.Throws<FencedException>(() => Append(first, 1));
        Assert.Throws<FencedException>(first.ConfirmEpoch);
        second.ConfirmEpoch();
        Append(second, 1);
        using JournalWriter third = FileJournal.Open(disk, 0, Small, [], (in Block _) => { });
        Assert.True(third.Epoch > second.Epoch);
        Assert.Throws<FencedException>(second.ConfirmEpoch);
    }

    /// <summary>Excludes: a flushed block lost, a block after a lost one kept, a torn block served.</summary>
    [Fact]
    public void After_any_power_cut_all_that_was_flushed_is_there_and_nothing_out_of_order()
    {
        for (int seed = 0; seed < 400; seed++)
        {
            Random random = new(seed);
            FaultyDisk disk = new();
            ulong flushed = 0, appended = 0;
            for (int life = 0; life < 3; life++)
            {
                List<ulong> read = [];
                using JournalWriter journal = Open(disk, read);
                Assert.True((ulong)read.Count >= flushed, $"seed {seed}: {flushed} were flushed, {read.Count} came back");
                Assert.True((ulong)read.Count <= appended, $"seed {seed}: {appended} were appended, {read.Count} came back");
                Assert.Equal(Sequences((ulong)read.Count), read);
                for (int i = random.Next(25); i > 0; i--)
                {
                    Append(journal, 1 + random.Next(150));
                    if (random.Next(3) == 0) journal.Flush();
                    if (random.Next(4) == 0) journal.AllocateNext();
                }

                (flushed, appended) = (journal.FlushedSequence, journal.AppendedSequence);
                disk = disk.AfterPowerCut(seed * 10 + life);
            }
        }
    }

    static ulong[] Sequences(ulong last) => [.. Enumerable.Range(1, (int)last).Select(n => (ulong)n)];

    static FaultyDisk Covered(out List<(ulong Number, long Offset, int Size)> blocks)
    {
        FaultyDisk disk = new();
        using (JournalWriter journal = Open(disk))
        {
            Append(journal, 3);
            journal.Flush();
            Append(journal, 60, attachments: new byte[300], erasable: new byte[70]);
            journal.Flush();
            Append(journal, 1);
            journal.Flush();
            journal.AppendMark();
            journal.Flush();
        }

        blocks = [];
        using FileJournalReader reader = new(disk, 0, checkMerkleRoots: true);
        while (reader.TryReadNext(out Block block)) blocks.Add((block.Header.Number, block.Location.Offset, block.Header.SizeOnDiskBytes));
        return disk;
    }

    /// <summary>Excludes: a changed byte anywhere in a durable block that is served, cut off as a torn tail, or changed again.</summary>
    [Fact]
    public void Any_flipped_byte_in_a_marked_block_is_damage_and_the_block_is_named()
    {
        FaultyDisk disk = Covered(out List<(ulong Number, long Offset, int Size)> blocks);
        string segment = FileJournal.SegmentName(1);
        byte[] before = disk.Bytes(segment);
        foreach ((ulong number, long offset, int size) in blocks.SkipLast(1))
        {
            // Every byte of the header, and every seventh of the rest, padding included.
            for (int at = 0; at < size; at += at < BlockHeader.SizeBytes ? 1 : 7)
            {
                disk.Flip(segment, offset + at);
                JournalDamagedException damage = Assert.Throws<JournalDamagedException>(() => Open(disk).Dispose());
                Assert.Equal(number, damage.BlockNumber);
                Assert.Contains($"Block {number} ", damage.Message, StringComparison.Ordinal);
                disk.Flip(segment, offset + at);
            }
        }

        Assert.Equal(before, disk.Bytes(segment));
    }

    [Fact]
    public void A_cut_anywhere_in_the_last_block_is_a_torn_tail()
    {
        FaultyDisk whole = Covered(out List<(ulong Number, long Offset, int Size)> blocks);
        (ulong number, long offset, int size) = blocks[^1];
        for (int keep = 1; keep < size; keep += 13)
        {
            FaultyDisk disk = whole.Copy();
            disk.Cut(FileJournal.SegmentName(1), offset + keep);
            using (FileJournalReader reader = new(disk, 0, checkMerkleRoots: true))
            {
                while (reader.TryReadNext(out _))
                {
                }

                // A cut in the padding of zeros leaves a block that is not whole either.
                Assert.Equal(number, reader.TornTail!.BlockNumber);
            }

            List<ulong> read = [];
            using JournalWriter journal = Open(disk, read);
            Assert.Equal(64, read.Count);
            Assert.NotNull(journal.TornTail);
            Append(journal, 5);
            journal.Flush();
            journal.Dispose();
            read.Clear();
            using JournalWriter again = Open(disk, read);
            Assert.Equal(69, read.Count);
            Assert.Null(again.TornTail);
        }
    }

    [Fact]
    public void A_missing_segment_is_damage()
    {
        FaultyDisk disk = new();
        using (JournalWriter journal = Open(disk))
        {
            for (int i = 0; i < 60; i++)
            {
                Append(journal, 100);
                journal.Flush();
            }
        }

        Assert.True(FileJournal.Segments(disk).Count >= 4);
        foreach (int segment in new[] { 1, 2 })
        {
            FaultyDisk without = disk.Copy();
            without.Delete(FileJournal.SegmentName(segment));
            Assert.Throws<JournalDamagedException>(() => Open(without).Dispose());
        }
    }

    /// <summary>Excludes: a flush that is retried after it failed and then believed (the system has dropped the pages).</summary>
    [Fact]
    public void After_a_failed_flush_the_journal_is_dead_and_recovery_finds_what_is_there()
    {
        FaultyDisk disk = new();
        JournalWriter journal = Open(disk);
        Append(journal, 2);
        journal.Flush();
        Append(journal, 2);
        disk.FailFlushIn = 1;
        Assert.Throws<IOException>(journal.Flush);
        Assert.Throws<IOException>(journal.Flush);
        Assert.Throws<IOException>(() => Append(journal, 1));
        Assert.Equal(2ul, journal.FlushedSequence);
        List<ulong> read = [];
        using JournalWriter recovered = Open(disk.AfterPowerCut(7), read);
        Assert.Equal(2, read.Count);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void After_a_failed_write_the_journal_is_dead_and_recovery_cuts_what_was_torn(bool torn)
    {
        FaultyDisk disk = new() { FailingWriteIsTorn = torn };
        JournalWriter journal = Open(disk);
        Append(journal, 2);
        journal.Flush();
        disk.FailWriteIn = 1;
        Assert.Throws<IOException>(() => Append(journal, 100));
        Assert.Throws<IOException>(() => Append(journal, 1));
        List<ulong> read = [];
        using JournalWriter recovered = Open(disk, read);
        Assert.Equal(2, read.Count);
        Assert.Equal(torn, recovered.TornTail is not null);
    }

    [Fact]
    public void A_full_disk_leaves_the_reserve_and_writing_goes_on_when_there_is_room()
    {
        FaultyDisk disk = new();
        using JournalWriter journal = Open(disk);
        disk.CapacityBytes = disk.UsedBytes + 1000;
        Assert.False(journal.AllocateNext());
        while (journal.HasRoom) Append(journal, 10);
        // The reserve takes what must still be written.
        for (int i = 0; i < 3; i++) Append(journal, 10);
        journal.Flush();
        ulong last = journal.FlushedSequence;
        disk.CapacityBytes = long.MaxValue;
        Assert.True(journal.AllocateNext());
        Assert.True(journal.HasRoom);
        for (int i = 0; i < 100; i++) Append(journal, 10);
        journal.Flush();
        Assert.Equal(last + 1000, journal.FlushedSequence);
    }

    [Fact]
    public void A_snapshot_that_was_not_written_whole_is_not_used()
    {
        FaultyDisk disk = new();
        Snapshots snapshots = new(disk, 0);
        byte[] state = [.. Enumerable.Range(0, 10_000).Select(n => (byte)n)];
        snapshots.Write(5, 2, default, stream => stream.Write(state));
        string name = Assert.Single(snapshots.List());
        Assert.True(snapshots.TryReadHeader(name, out SnapshotHeader header));
        byte[] read = new byte[state.Length];
        snapshots.Read(name, header, stream => stream.ReadExactly(read));
        Assert.Equal(state, read);
        int length = disk.Bytes(name).Length;
        for (int at = 0; at < length; at += 97)
        {
            FaultyDisk flipped = disk.Copy(), cut = disk.Copy();
            flipped.Flip(name, at);
            Assert.False(new Snapshots(flipped, 0).TryReadHeader(name, out _));
            cut.Cut(name, at);
            Assert.False(new Snapshots(cut, 0).TryReadHeader(name, out _));
        }

        // A length that is less than nothing, where it is taken for a signed one.
        using (IDiskFile file = disk.Open(name, writable: true)) file.Write([0x80], 71);
        Assert.False(snapshots.TryReadHeader(name, out _));
    }

    [Fact]
    public void A_full_disk_leaves_the_older_snapshot()
    {
        FaultyDisk disk = new();
        Snapshots snapshots = new(disk, 0);
        snapshots.Write(5, 2, default, stream => stream.Write(new byte[100]));
        disk.CapacityBytes = disk.UsedBytes + 50;
        Assert.Throws<DiskFullException>(() => snapshots.Write(9, 3, default, stream => stream.Write(new byte[100])));
        Assert.Equal("snapshots/00000000000000000005.snapshot", Assert.Single(snapshots.List()));
        Assert.False(disk.Exists("snapshots/writing"));
    }
}
