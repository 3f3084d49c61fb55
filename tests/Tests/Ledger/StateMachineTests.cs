using System.Reflection;
using System.Runtime.CompilerServices;
using Purse.Ledger;

namespace Purse.Tests.Ledger;

public sealed class StateMachineTests
{
    [Fact]
    public void A_transfer_makes_two_events_one_for_each_account_linked_to_the_balances_before()
    {
        TestLedger ledger = new();
        ledger.Execute(TestLedger.Change(CommandKind.OpenAccount, "alice"));
        ledger.Execute(TestLedger.Change(CommandKind.OpenAccount, "bob"));
        ledger.Execute(TestLedger.Transfer(1, "@world", "alice", "10.00"));
        Decision decision = ledger.Execute(TestLedger.Transfer(2, "alice", "bob", "4.00"));

        Assert.Equal(decision.Sequence + 1, decision.LastSequence);
        Event debited = ledger.Events[(int)decision.Sequence - 1].Event, credited = ledger.Events[(int)decision.LastSequence - 1].Event;
        Assert.Equal((EventKind.Debited, EventKind.Credited), (debited.Kind, credited.Kind));
        Assert.Equal((1u, 2u, 2u, 1u), (debited.Account, debited.Counterparty, credited.Account, credited.Counterparty));
        Assert.Equal(((Int128)600, (Int128)400), (debited.Posted, credited.Posted));
        // alice's event before was the credit of her deposit; bob had none.
        Assert.Equal((decision.Sequence - 1, 0ul), (debited.Previous, credited.Previous));
    }

    [Fact]
    public void An_event_has_104_bytes() => Assert.Equal(104, Unsafe.SizeOf<Event>());

    /// <summary>Excludes: money made or lost by an event that does not follow from the state before it.</summary>
    [Fact]
    public void Apply_refuses_events_that_do_not_follow()
    {
        TestLedger ledger = new();
        ledger.Execute(TestLedger.Change(CommandKind.OpenAccount, "alice"));
        ledger.Execute(TestLedger.Change(CommandKind.OpenAccount, "bob"));
        ledger.Execute(TestLedger.Transfer(1, "@world", "alice", "10.00"));
        ledger.Execute(TestLedger.Transfer(2, "alice", "bob", "4.00"));
        (Event[] events, byte[][] attachments) = ([.. ledger.Events.Select(e => e.Event)], [.. ledger.Events.Select(e => e.Attachments)]);

        Change((ref Event e) => e.Amount++);
        Change((ref Event e) => e.Amount = -e.Amount);
        Change((ref Event e) => e.Posted++);
        Change((ref Event e) => e.Held++);
        Change((ref Event e) => e.Previous++);
        Change((ref Event e) => e.Account = 99);
        Change((ref Event e) => e.Account = 0);
        Change((ref Event e) => e.Currency++);
        Assert.Throws<InvariantBrokenException>(() => new StateMachine(new State(1)).Apply(2, 1, events[0], attachments[0]));
        Assert.Throws<InvalidDataException>(() => Apply(events.Length - 1, (ref Event e) => e.Kind = (EventKind)99));

        void Change(Changed change)
        {
            // The debit and the credit of the last transfer, each in turn.
            Assert.Throws<InvariantBrokenException>(() => Apply(events.Length - 2, change));
            Assert.Throws<InvariantBrokenException>(() => Apply(events.Length - 1, change));
        }

        void Apply(int changed, Changed change)
        {
            StateMachine machine = new(new State(1));
            for (int i = 0; i < events.Length; i++)
            {
                Event e = events[i];
                if (i == changed) change(ref e);
                machine.Apply((ulong)i + 1, i + 1, e, attachments[i]);
            }

            machine.CheckBalanced();
        }
    }

    delegate void Changed(ref Event e);

    /// <summary>Warm tables take no growth in the measured part, so every byte counted would be one a transfer costs.</summary>
    [Fact]
    public void Decide_and_apply_allocate_nothing()
    {
        StateMachine machine = new(new State(1));
        EventBatch batch = new(4096);
        UInt128 id = 0;
        long time = 0;
        Command[] transfers = [.. Enumerable.Range(0, 100).Select(i => TestLedger.Transfer(0, $"a{i}", $"a{(i + 1) % 100}", "0.01"))];
        foreach (Command transfer in transfers)
        {
            Command open = new() { Kind = CommandKind.OpenAccount, Account = transfer.Account };
            Execute(open);
            Command deposit = TestLedger.Transfer(++id, "@world", transfer.Account.ToString(), "1000.00");
            Execute(deposit);
        }

        for (int i = 0; i < 20_000; i++) Run(i);
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 5_000; i++) Run(i);
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);

        void Run(int i)
        {
            Command transfer = transfers[i % 100];
            transfer.TransactionId = ++id;
            Execute(transfer);
        }

        void Execute(in Command command)
        {
            if (batch.FirstSequence == 0 || !batch.HasRoom) batch.Reset(machine.State.LastSequence + 1, ++time);
            Outcome outcome = machine.Execute(command, batch).Outcome;
            if (outcome != Outcome.Done) throw new InvalidOperationException($"{outcome}");
        }
    }

    /// <summary>Excludes: an id that a hostile caller uses in very many homes, and every look-up walks them all.</summary>
    [Fact]
    public void One_id_in_many_homes_is_found_in_each()
    {
        State state = new(7);
        for (uint home = 0; home < 50_000; home++)
        {
            state.Ids.Add(home, 1, 2 * home + 1);
            if (home < 20) state.Ids.Add(home, 2, 2 * home + 2);
        }

        byte[] written = TestLedger.Bytes(state);
        State read = new(8);
        read.Read(new MemoryStream(written));
        Assert.Equal(written, TestLedger.Bytes(read));
        foreach (TransactionIds one in new[] { state.Ids, read.Ids })
        {
            for (uint home = 0; home < 50_000; home++) Assert.Equal(2 * home + 1, one.Find(home, 1));
            for (uint home = 0; home < 30; home++) Assert.Equal(home < 20 ? 2 * home + 2 : 0u, one.Find(home, 2));
            Assert.Equal(0ul, one.Find(50_000, 1));
            Assert.Equal(20, one.FindAll(2, 100).Select(found => found.Home).Distinct().Count());
            Assert.Equal(65, one.FindAll(1, 65).Count);
        }
    }

    [Fact]
    public void No_field_of_the_ledger_holds_money_as_a_fraction()
    {
        Type[] forbidden = [typeof(float), typeof(double), typeof(decimal)];
        IEnumerable<FieldInfo> fields = typeof(StateMachine).Assembly.GetTypes()
            .SelectMany(t => t.GetFields(BindingFlags.Instance | BindingFlags.Static | BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.DeclaredOnly));
        Assert.DoesNotContain(fields, f => forbidden.Contains(f.FieldType));
    }

    [Fact]
    public void Currencies_keep_their_numbers()
    {
        Assert.True(Iso4217.TryGet(CurrencyCode.Parse("USD"), out uint usd, out int decimals));
        Assert.Equal((1 + ((20u * 26) + 18) * 26 + 3, 2), (usd, decimals));
        Assert.Equal("USD", Iso4217.Code(usd).ToString());
        Assert.Equal(167, Iso4217.All.Count());
        Assert.Equal(0, Iso4217.All.Single(c => c.Code == "JPY").Decimals);
        Assert.Equal(3, Iso4217.All.Single(c => c.Code == "BHD").Decimals);
        Assert.Equal(4, Iso4217.All.Single(c => c.Code == "CLF").Decimals);
    }
}
