using System.Runtime.InteropServices;
using Purse.Ledger;

namespace Purse.Micro;

/// <summary>A ledger with accounts that have money, and transfers between them.</summary>
sealed class SampleLedger
{
    static readonly CurrencyCode Usd = CurrencyCode.Parse("USD");

    public StateMachine Machine { get; } = new(new State(Random.Shared.NextInt64()));

    public EventBatch Batch { get; } = new(8_192);

    public Command[] Commands { get; } = new Command[LedgerBenchmarks.Transfers];

    readonly AccountName[] _names;

    public SampleLedger(int accounts)
    {
        _names = [.. Enumerable.Range(0, accounts).Select(i => AccountName.Parse($"account-{i}"))];
        AccountName world = AccountName.Parse("@world");
        Begin();
        foreach (AccountName name in _names)
        {
            if (!Batch.HasRoom) Begin();
            Machine.Execute(new Command { Kind = CommandKind.OpenAccount, Account = name }, Batch);
            Machine.Execute(new Command { Kind = CommandKind.Transfer, Account = world, Counterparty = name, Currency = Usd, AmountDigits = 1_000_000_000, TransactionId = 1 }, Batch);
        }
    }

    public void Begin() => Batch.Reset(Machine.State.LastSequence + 1, Machine.State.LastTimeMicros + 1);

    public void NewTransfers()
    {
        Span<UInt128> id = stackalloc UInt128[1];
        for (int i = 0; i < Commands.Length; i++)
        {
            int from = Random.Shared.Next(_names.Length);
            Random.Shared.NextBytes(MemoryMarshal.AsBytes(id));
            Commands[i] = new Command
            {
                Kind = CommandKind.Transfer,
                Account = _names[from],
                Counterparty = _names[(from + 1 + Random.Shared.Next(_names.Length - 1)) % _names.Length],
                Currency = Usd,
                AmountDigits = 1 + Random.Shared.Next(100),
                AmountScale = 2,
                TransactionId = id[0],
            };
        }
    }
}
