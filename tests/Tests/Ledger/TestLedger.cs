using Purse.Ledger;

namespace Purse.Tests.Ledger;

/// <summary>A ledger in memory, one command a block, with everything it decided kept for a replay.</summary>
sealed class TestLedger
{
    readonly EventBatch _batch = new(64);
    readonly List<(Event Event, long TimeMicros, byte[] Attachments)> _events = [];
    long _timeMicros = 1_000_000;

    public StateMachine Machine { get; private set; } = new(new State(tableSeed: 42));

    public State State => Machine.State;

    /// <summary>Of the last command; the next one comes a microsecond later.</summary>
    public long TimeMicros => _timeMicros;

    public IReadOnlyList<(Event Event, long TimeMicros, byte[] Attachments)> Events => _events;

    /// <summary>Judge only.</summary>
    public bool DryRun { get; set; }

    public Decision Execute(Command command)
    {
        command.DryRun |= DryRun;
        _batch.Reset(State.LastSequence + 1, ++_timeMicros);
        Assert.True(Machine.TryExpireDue(_batch));
        Decision decision = Machine.Execute(command, _batch);
        byte[] attachments = _batch.Attachments.ToArray();
        foreach (ref readonly Event e in _batch.Events) _events.Add((e, _batch.TimeMicros, attachments));
        return decision;
    }

    /// <summary>Under this id the opposite of what another id did, with what a server reads from the journal first.</summary>
    public Command Reversal(UInt128 id, UInt128 original, AccountName home = default)
    {
        Command command = new() { Kind = CommandKind.Reverse, TransactionId = id, OriginalId = original, Account = home };
        if (StateMachine.FindOriginalOf(State, command, out ulong sequence, out _, out ulong before) == Outcome.Done && before == 0)
            command.Details = new CommandDetails { Original = OriginalAt(sequence) };
        return command;
    }

    Original OriginalAt(ulong sequence)
    {
        (Event e, _, byte[] attachments) = _events[(int)sequence - 1];
        if (e.Kind == EventKind.TransferRejected && e.Count > 0) return new Original(sequence, new Attachment(e.Attachment, attachments, []).Postings(), false, true);
        if (e.Counterparty == 0) return new Original(sequence, OriginalAt(e.Link).Movements[..1], false, false);
        Movement[] movements = [.. Enumerable.Range(0, Math.Max((int)e.Count, 1)).Select(i => _events[(int)sequence - 1 + 2 * i].Event).Select(one => new Movement(one.Account, one.Counterparty, one.Currency, one.Amount))];
        return new Original(sequence, movements, e.Kind is EventKind.Debited or EventKind.Captured, e.Count > 0);
    }

    /// <summary>Goes on with another state: one replayed from the first event, or one read from a snapshot.</summary>
    public void Restart(bool fromSnapshot)
    {
        State state = new(tableSeed: _timeMicros);
        if (fromSnapshot) state.Read(new MemoryStream(Bytes(State)));
        else state = Replay(tableSeed: _timeMicros);
        Machine = new StateMachine(state);
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

    public static Command Transaction(UInt128 id, params (string From, string To, string Amount, string Currency)[] postings) => new()
    {
        Kind = CommandKind.Transaction,
        TransactionId = id,
        Details = new CommandDetails
        {
            Postings = [.. postings.Select(one => Transfer(0, one.From, one.To, one.Amount, one.Currency)).Select(one => new Posting
            {
                Account = one.Account, Counterparty = one.Counterparty, AmountDigits = one.AmountDigits, AmountScale = one.AmountScale, Currency = one.Currency,
            })],
        },
    };

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
