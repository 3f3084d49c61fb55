using Purse.Ledger;

namespace Purse.Tests.Ledger;

/// <summary>A ledger in memory, one command a block, with everything it decided kept for a replay.</summary>
sealed class TestLedger
{
    readonly EventBatch _batch = new(64);
    readonly List<(Event Event, long TimeMicros, byte[] Attachments)> _events = [];
    long _timeMicros = 1_000_000;

    public StateMachine Machine { get; } = new(new State(tableSeed: 42));

    public State State => Machine.State;

    public IReadOnlyList<(Event Event, long TimeMicros, byte[] Attachments)> Events => _events;

    public Decision Execute(in Command command)
    {
        _batch.Reset(State.LastSequence + 1, ++_timeMicros);
        Assert.True(Machine.TryExpireDue(_batch));
        Decision decision = Machine.Execute(command, _batch);
        byte[] attachments = _batch.Attachments.ToArray();
        foreach (ref readonly Event e in _batch.Events) _events.Add((e, _batch.TimeMicros, attachments));
        return decision;
    }

    public void Wait(long seconds) => _timeMicros += seconds * 1_000_000;

    /// <summary>Another state from the same events.</summary>
    public State Replay(long tableSeed)
    {
        StateMachine machine = new(new State(tableSeed));
        ulong sequence = 0;
        foreach ((Event e, long time, byte[] attachments) in _events) machine.Apply(++sequence, time, e, attachments);
        machine.CheckBalanced();
        return machine.State;
    }

    public static byte[] Bytes(State state)
    {
        using MemoryStream stream = new();
        state.Write(stream);
        return stream.ToArray();
    }

    public static Command Transfer(UInt128 id, string from, string to, string amount, string currency = "USD")
    {
        Assert.Equal(Amount.ParseResult.Ok, Amount.Parse(amount, out Int128 digits, out int scale));
        return new Command
        {
            Kind = CommandKind.Transfer,
            TransactionId = id,
            Account = AccountName.Parse(from),
            Counterparty = AccountName.Parse(to),
            AmountDigits = digits,
            AmountScale = (byte)scale,
            Currency = CurrencyCode.Parse(currency),
        };
    }

    public static Command Change(CommandKind kind, string account, Direction direction = Direction.None, CommandDetails? details = null) =>
        new() { Kind = kind, Account = AccountName.Parse(account), Direction = direction, Details = details };

    public string Held(string account, string currency)
    {
        Assert.True(State.TryCurrency(CurrencyCode.Parse(currency), out uint number, out int decimals));
        return Amount.Format(State.Balance(State.Names.Find(AccountName.Parse(account)), number).Held, decimals);
    }

    public string Balance(string account, string currency)
    {
        Assert.True(State.TryCurrency(CurrencyCode.Parse(currency), out uint number, out int decimals));
        return Amount.Format(State.Balance(State.Names.Find(AccountName.Parse(account)), number).Posted, decimals);
    }
}
