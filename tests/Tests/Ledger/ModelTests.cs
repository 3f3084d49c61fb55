using System.Numerics;
using FsCheck;
using FsCheck.Fluent;
using Purse.Ledger;
using Purse.Server;
using Purse.Simulation;

namespace Purse.Tests.Ledger;

/// <summary>
/// Random sequences of every command on few accounts, against a model that knows nothing of events. After each sequence the model, the state, a replay and a snapshot agree, and every currency adds up to 0.
/// </summary>
public sealed class ModelTests
{
    static readonly string[] Names = ["alice", "bob", "carol", "@world", "@bank"];
    static readonly string[] Currencies = LedgerModel.Currencies;
    static readonly int[] Decimals = LedgerModel.Decimals;

    public sealed record Step(int Kind, int From, int To, int Currency, long Minor, int Id, int Direction, bool DryRun);

    const int Sequences = 420;
    const int StepsPerSequence = 250;
    static int _commands;

    static Arbitrary<Step[]> Steps()
    {
        // Few ids, so that some come twice; amounts that often hit a limit exactly.
        Gen<Step> step =
            from kind in Gen.Choose(0, 29)
            from fromAccount in Gen.Choose(0, Names.Length - 1)
            from hop in Gen.Choose(1, Names.Length - 1)
            from currency in Gen.Choose(0, Currencies.Length - 1)
            from minor in Gen.OneOf(Gen.Choose(1, 10), Gen.Choose(1, 1000))
            from id in Gen.Choose(1, 120)
            from direction in Gen.Choose(1, 3)
            from dryRun in Gen.Choose(1, 20)
            select new Step(kind, fromAccount, (fromAccount + hop) % Names.Length, currency, minor, id, direction, dryRun == 1);
        return Arb.From(step.ArrayOf(StepsPerSequence), steps => steps.Length < 2 ? [] : [steps[..(steps.Length / 2)], steps[(steps.Length / 2)..], steps[1..], steps[..^1]]);
    }

    [Fact]
    public void Model_state_replay_and_snapshot_agree()
    {
        _commands = 0;
        Prop.ForAll(Steps(), Holds).Check(Config.QuickThrowOnFailure.WithMaxTest(Sequences).WithQuietOnSuccess(true));
        Assert.True(_commands >= 100_000, $"{_commands} commands");
    }

    static void Holds(Step[] steps)
    {
        TestLedger ledger = new();
        LedgerModel model = new();
        foreach (Step step in steps)
        {
            if (step.Kind == 19 && step.Minor % 3 == 0) ledger.Wait(step.Minor % 7);
            model.AdvanceTo(ledger.TimeMicros + 1);

            if (step.Kind == 20 && step.Minor % 4 == 0) ledger.Restart(fromSnapshot: step.Minor % 8 == 0);
            (Command command, string expected) = Predict(step.DryRun ? model.Copy() : model, step, ledger);
            command.DryRun = step.DryRun;
            Decision decision = ledger.Execute(command);
            Assert.Equal(expected, EventJson.OutcomeCode(decision.Outcome));
            _commands++;
        }

        State state = ledger.State;
        foreach (((string account, string currency), BigInteger posted) in model.Balances)
        {
            state.TryCurrency(CurrencyCode.Parse(currency), out uint number, out _);
            Assert.Equal(posted, (BigInteger)state.Balance(state.Names.Find(AccountName.Parse(account)), number).Posted);
            Assert.Equal(model.HeldOf(account, currency), (BigInteger)state.Balance(state.Names.Find(AccountName.Parse(account)), number).Held);
        }

        Assert.All(state.CurrenciesInUse(), currency => Assert.Equal((Int128)0, state.CountSum(currency)));
        byte[] bytes = TestLedger.Bytes(state);
        Assert.Equal(bytes, TestLedger.Bytes(ledger.Replay(tableSeed: steps.Length)));
        State restored = new(tableSeed: 99);
        restored.Read(new MemoryStream(bytes));
        Assert.Equal(bytes, TestLedger.Bytes(restored));
        Assert.Equal(ledger.Events.Count(e => (e.Event.Kind == EventKind.Debited && e.Event.Index == 0) || e.Event.Kind is EventKind.Held or EventKind.Captured or EventKind.TransferRejected
            || (e.Event.Kind == EventKind.Released && e.Event.Flags == EventFlags.None)), (int)restored.Ids.Count);
    }

    static (Command Command, string Expected) Predict(LedgerModel model, Step step, TestLedger ledger)
    {
        string from = Names[step.From], to = Names[step.To], currency = Currencies[step.Currency];
        string ordinary = Names[step.From % 3];
        int decimals = Decimals[step.Currency];
        CurrencyCode code = CurrencyCode.Parse(currency);
        switch (step.Kind)
        {
            case 0 or 1:
                return (TestLedger.Change(CommandKind.OpenAccount, ordinary), model.Open(ordinary));
            case 2:
            {
                bool hasMin = step.Direction != 1, hasMax = step.Direction != 2;
                LimitsAsWritten limits = new(code, hasMin, -step.Minor, decimals, hasMax, step.Minor * 10, decimals);
                return (
                    TestLedger.Change(CommandKind.SetLimits, ordinary, details: new CommandDetails { Limits = [limits] }),
                    model.SetLimits(ordinary, currency, hasMin ? -step.Minor : null, hasMax ? step.Minor * 10 : null));
            }

            case 3:
                return (TestLedger.Change(CommandKind.Freeze, ordinary, (Direction)step.Direction), model.Freeze(ordinary, (Direction)step.Direction));
            case 4:
                return (TestLedger.Change(CommandKind.Unfreeze, ordinary), model.Freeze(ordinary, Direction.None));
            case 5 when step.Minor % 4 == 0:
                return (TestLedger.Change(CommandKind.Close, ordinary), model.Close(ordinary));
            case 5 when step.Minor % 4 == 1:
                return (TestLedger.Change(CommandKind.SetMetadata, ordinary, details: new CommandDetails { Metadata = new Erasable("{}"u8.ToArray(), new byte[16]) }), model.Metadata(ordinary));
            case 5 when step.Minor % 4 == 2:
                // GEM has no decimals once it is there; another number is tried only then.
                byte gemDecimals = (byte)(ledger.State.Currencies.Count > 0 && step.Direction == 1 ? 4 : 0);
                return (new Command { Kind = CommandKind.RegisterCurrency, Currency = CurrencyCode.Parse("GEM"), AmountScale = gemDecimals }, model.Register(gemDecimals));
            case 6 or 7:
            {
                // Mostly one of the last holds, now and then any id; in part, in full, or given back.
                UInt128 original = model.SomeHold(step.Id) is UInt128 id && step.From > 0 ? id : (UInt128)(1 + (step.Id * 7) % 120), own = (UInt128)(200 + step.Id);
                BigInteger amount = step.Kind == 7 ? -1 : step.Minor % 2 == 0 ? 0 : step.Minor;
                Command end = new()
                {
                    Kind = amount < 0 ? CommandKind.Void : CommandKind.Capture,
                    TransactionId = own,
                    OriginalId = original,
                    AmountDigits = amount > 0 ? step.Minor : 0,
                    AmountScale = (byte)model.DecimalsOf(original),
                };
                return (end, model.End(own, original, amount));
            }

            case 8 or 9:
            {
                // Mostly what moved money, now and then any id; a transaction in full.
                UInt128 original = model.SomeMoved(step.Id) is (UInt128 id, _) && step.From > 0 ? id : (UInt128)(1 + (step.Id * 7) % 500), own = (UInt128)(400 + step.Id);
                Command reversal = ledger.Reversal(own, original);
                BigInteger amount = reversal.Details?.Original?.IsTransaction == true || step.Minor % 2 == 0 ? 0 : step.Minor;
                reversal.AmountDigits = (Int128)amount;
                reversal.AmountScale = (byte)model.DecimalsOf(original);
                return (reversal, model.Reverse(own, original, amount));
            }

            case 10 or 11 or 12:
            {
                // Round trips through few accounts, so that later postings spend what earlier ones brought.
                LedgerModel.Movement[] movements = [.. Enumerable.Range(0, 1 + (int)(step.Minor % 4)).Select(i => new LedgerModel.Movement(
                    Names[(step.From + i * step.Direction) % Names.Length], Names[(step.From + i * step.Direction + 1 + i % 3) % Names.Length],
                    Currencies[i == 2 ? (step.Currency + 1) % Currencies.Length : step.Currency], step.Minor - i > 0 ? step.Minor - i : 1))];
                Command transaction = new()
                {
                    Kind = CommandKind.Transaction,
                    TransactionId = (UInt128)(600 + step.Id),
                    Details = new CommandDetails
                    {
                        Postings = [.. movements.Select(m => new Posting
                        {
                            Account = AccountName.Parse(m.From), Counterparty = AccountName.Parse(m.To), Currency = CurrencyCode.Parse(m.Currency),
                            AmountDigits = (Int128)m.Amount, AmountScale = (byte)Decimals[Array.IndexOf(Currencies, m.Currency)],
                        })],
                    },
                };
                return (transaction, model.Transaction(movements, (UInt128)(600 + step.Id)));
            }

            default:
            {
                // Money has to come in for anything else to happen.
                if (step.Kind > 22) (from, to) = ("@world", ordinary);
                Command transfer = new()
                {
                    Kind = CommandKind.Transfer,
                    TransactionId = (UInt128)step.Id,
                    Account = AccountName.Parse(from),
                    Counterparty = AccountName.Parse(to),
                    Currency = code,
                    AmountDigits = step.Minor,
                    AmountScale = (byte)decimals,
                };
                transfer.Pending = step.Kind is 13 or 14 or 15;
                transfer.UpTo = step.Kind is 15 or 16 or 17;
                transfer.ExpiresInSeconds = transfer.Pending && step.Direction != 3 ? (int)(1 + step.Minor % 9) : 0;
                return (transfer, model.Transfer(new LedgerModel.Movement(from, to, currency, step.Minor), (UInt128)step.Id, transfer.Pending, transfer.ExpiresInSeconds, transfer.UpTo));
            }
        }
    }
}
