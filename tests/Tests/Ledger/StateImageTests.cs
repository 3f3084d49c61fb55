using System.Runtime.InteropServices;
using Purse.Ledger;

namespace Purse.Tests.Ledger;

public sealed class StateImageTests
{
    /// <summary>Four words that are always the same: one that was read while it was written is seen.</summary>
    struct Element(long value)
    {
        public long A = value, B = value, C = value, D = value;
    }

    /// <summary>Excludes: an element that changes under the image's hands, is torn, or is as it became later.</summary>
    [Fact]
    public async Task An_image_of_a_list_is_what_the_list_was_while_its_owner_goes_on_changing_it()
    {
        const int Count = 150_001;
        Chunked<Element> list = new();
        Random random = new(1);
        for (int i = 0; i < Count; i++) list.Add() = new Element(i);
        for (int round = 0; round < 20; round++)
        {
            byte[] before = Bytes(list);
            using MemoryStream written = new();
            Chunked<Element>.Image image = list.BeginImage(whileItChanges: true);
            Task writing = Task.Run(() =>
            {
                image.Write(written);
                image.Dispose();
            });
            long changes = 0;
            do
            {
                list.Edit(random.Next(list.Count)) = new Element(changes);
                if (changes % 64 == 0) list.Add() = new Element(-changes);
            }
            while (++changes < 10_000 || !writing.IsCompleted);
            await writing;
            Assert.True(before.AsSpan().SequenceEqual(written.ToArray()), $"round {round}, after {changes} changes");
        }
    }

    static byte[] Bytes(Chunked<Element> list)
    {
        Element[] elements = new Element[list.Count];
        for (int i = 0; i < elements.Length; i++) elements[i] = list[i];
        return MemoryMarshal.AsBytes(elements.AsSpan()).ToArray();
    }

    /// <summary>Excludes: anything in a snapshot that is as it became after the snapshot was begun.</summary>
    [Fact]
    public void An_image_of_a_state_has_nothing_of_what_comes_after_it()
    {
        TestLedger ledger = new();
        foreach (string account in (string[])["alice", "bob"]) ledger.Execute(TestLedger.Change(CommandKind.OpenAccount, account));
        UInt128 id = 0;
        for (int round = 0; round < 3; round++)
        {
            Assert.Equal(Outcome.Done, ledger.Execute(TestLedger.Transfer(++id, "@world", "alice", "10.00")).Outcome);
            UInt128 hold = ++id;
            Assert.Equal(Outcome.Done, ledger.Execute(TestLedger.Transfer(hold, "alice", "bob", "1.00") with { Pending = true, ExpiresInSeconds = 3600 }).Outcome);
            byte[] before = TestLedger.Bytes(ledger.State);
            using StateImage image = ledger.State.BeginImage();

            Assert.Equal(Outcome.Done, ledger.Execute(new Command { Kind = CommandKind.Capture, TransactionId = ++id, OriginalId = hold, Account = AccountName.Parse("alice") }).Outcome);
            Assert.Equal(Outcome.Done, ledger.Execute(ledger.Reversal(++id, hold + 1, AccountName.Parse("alice"))).Outcome);
            Assert.Equal(Outcome.Done, ledger.Execute(TestLedger.Change(CommandKind.Freeze, "bob", Direction.Debit)).Outcome);
            Assert.Equal(Outcome.Done, ledger.Execute(TestLedger.Change(CommandKind.Unfreeze, "bob", Direction.Debit)).Outcome);
            Assert.Equal(Outcome.Done, ledger.Execute(TestLedger.Change(CommandKind.OpenAccount, $"carol{round}")).Outcome);
            Assert.Equal(Outcome.Done, ledger.Execute(TestLedger.Transfer(++id, "alice", $"carol{round}", "1.00", "USD")).Outcome);
            Command currency = new() { Kind = CommandKind.RegisterCurrency, Currency = CurrencyCode.Parse($"GOLD{round}"), AmountScale = 2 };
            Assert.Equal(Outcome.Done, ledger.Execute(currency).Outcome);

            using MemoryStream written = new();
            image.Write(written);
            Assert.Equal(before, written.ToArray());
            Assert.NotEqual(before, TestLedger.Bytes(ledger.State));
        }
    }

    /// <summary>Excludes: slots that are made ahead, piece by piece, and hold what that memory held before; an id that is lost, or found, where one generation follows another.</summary>
    [Fact]
    public void Ids_of_generations_whose_slots_were_made_ahead_are_found_and_no_others()
    {
        const ulong EventsPerGeneration = 50_000;
        // Memory that is used again for the slots, and is full of something else.
        for (int i = 0; i < 64; i++) GC.AllocateUninitializedArray<ulong>(64 * 1024).AsSpan().Fill(0xeeee_eeee_eeee_eeee);
        GC.Collect();
        TransactionIds ids = new(7, EventsPerGeneration);
        ulong sequence = 0;
        for (UInt128 id = 1; sequence < 6 * EventsPerGeneration; id++)
        {
            Assert.Equal(0ul, ids.Find(1, id));
            ids.Add(1, id, sequence + 1);
            sequence += 2;
            ids.Generations.Reach(sequence);
        }

        Assert.Equal(7, ids.Generations.All.Length);
        for (ulong first = 1; first <= sequence; first += 2) Assert.Equal(first, ids.Find(1, (first + 1) / 2));
        Assert.Equal(0ul, ids.Find(2, 1));
    }
}
