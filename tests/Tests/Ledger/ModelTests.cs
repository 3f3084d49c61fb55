using System.Numerics;
using FsCheck;
using FsCheck.Fluent;
using FsCheck.Xunit;
using Purse.Ledger;
using Purse.Server;

namespace Purse.Tests.Ledger;

/// <summary>
/// Random sequences of every command on few accounts, against a model that knows nothing of events: dictionaries and integers of any
/// size. After each sequence the model, the state, a replay and a snapshot agree, and every currency adds up to 0.
/// </summary>
public sealed class ModelTests
{
    static readonly string[] Names = ["alice", "bob", "carol", "@world", "@bank"];
    static readonly string[] Currencies = ["USD", "JPY", "BHD"];

    public sealed record Step(int Kind, int From, int To, int Currency, long Minor, int Id, int Direction);

    sealed class Model
    {
        sealed class ModelAccount
        {
            public bool Opened, Closed, NoDebit, NoCredit;
            public readonly Dictionary<string, (BigInteger? Min, BigInteger? Max)> Limits = [];
        }

        readonly Dictionary<string, ModelAccount> _accounts = [];
        readonly Dictionary<(string Home, int Id), string> _decided = [];
        readonly Dictionary<(string Home, int Id), ModelHold> _holds = [];
        long _seconds;

        sealed class ModelHold
        {
            public string From = "", To = "", Currency = "", End = "";
            public BigInteger Amount;
            public long? ExpiresAt;
        }

        public BigInteger HeldOf(string account, string currency) =>
            _holds.Values.Where(h => h.End.Length == 0 && h.From == account && h.Currency == currency).Aggregate(BigInteger.Zero, (sum, h) => sum + h.Amount);

        /// <summary>Time passes; what is due ends.</summary>
        public void Wait(long seconds)
        {
            _seconds += seconds;
            foreach (ModelHold hold in _holds.Values.Where(h => h.End.Length == 0 && h.ExpiresAt <= _seconds)) hold.End = "hold_expired";
        }

        /// <summary>Captures, or voids where the amount is negative; 0 captures all.</summary>
        public string End(int id, int original, BigInteger amount)
        {
            List<(string Home, int Id)> homes = [.. _decided.Keys.Where(k => k.Id == original)];
            if (homes.Count > 1 && homes.Count(h => _decided.ContainsKey((h.Home, id))) == 1) return "duplicate";
            if (homes.Count != 1) return homes.Count == 0 ? "transfer_not_found" : "transfer_ambiguous";
            (string, int) key = (homes[0].Home, id);
            if (_decided.ContainsKey(key)) return "duplicate";
            string outcome = JudgeEnd(homes[0], amount, out BigInteger moved);
            _decided[key] = outcome;
            if (outcome != "done") return outcome;
            ModelHold hold = _holds[homes[0]];
            hold.End = amount < 0 ? "hold_already_voided" : "hold_already_captured";
            if (amount < 0) return outcome;
            Balances[(hold.From, hold.Currency)] = Posted(hold.From, hold.Currency) - moved;
            Balances[(hold.To, hold.Currency)] = Posted(hold.To, hold.Currency) + moved;
            return outcome;
        }

        string JudgeEnd((string Home, int Id) original, BigInteger amount, out BigInteger moved)
        {
            moved = 0;
            if (!_holds.TryGetValue(original, out ModelHold? hold)) return "not_a_hold";
            if (hold.End.Length > 0) return hold.End;
            moved = amount == 0 ? hold.Amount : amount;
            if (amount < 0) return "done";
            return moved > hold.Amount ? "exceeds_held_amount" : JudgePayee(hold.To, hold.Currency, moved);
        }

        public Dictionary<(string Account, string Currency), BigInteger> Balances { get; } = [];

        ModelAccount this[string name] => _accounts.TryGetValue(name, out ModelAccount? account) ? account : _accounts[name] = new ModelAccount();

        BigInteger Posted(string account, string currency) => Balances.GetValueOrDefault((account, currency));

        public string Transfer(string from, string to, string currency, BigInteger amount, int id, bool pending, int expiresIn)
        {
            bool fromSystem = from[0] == '@', toSystem = to[0] == '@';
            (string, int) key = (fromSystem ? (toSystem ? "" : to) : from, id);
            if (_decided.ContainsKey(key)) return "duplicate";
            string outcome = Judge(from, to, currency, amount);
            _decided[key] = outcome;
            if (outcome != "done") return outcome;
            if (pending)
            {
                _holds[key] = new ModelHold { From = from, To = to, Currency = currency, Amount = amount, ExpiresAt = expiresIn == 0 ? null : _seconds + expiresIn };
                return outcome;
            }

            Balances[(from, currency)] = Posted(from, currency) - amount;
            Balances[(to, currency)] = Posted(to, currency) + amount;
            return outcome;
        }

        string Judge(string from, string to, string currency, BigInteger amount)
        {
            if (from[0] != '@')
            {
                ModelAccount payer = this[from];
                if (!payer.Opened) return "from_account_not_found";
                if (payer.Closed) return "from_account_closed";
                if (payer.NoDebit) return "from_account_frozen";
                BigInteger? min = payer.Limits.GetValueOrDefault(currency).Min;
                if (Posted(from, currency) - HeldOf(from, currency) - amount < (min ?? 0)) return min is null ? "insufficient_funds" : "below_min_balance";
            }

            return JudgePayee(to, currency, amount);
        }

        string JudgePayee(string to, string currency, BigInteger amount)
        {
            if (to[0] == '@') return "done";
            ModelAccount payee = this[to];
            if (!payee.Opened) return "to_account_not_found";
            if (payee.Closed) return "to_account_closed";
            if (payee.NoCredit) return "to_account_frozen";
            return payee.Limits.GetValueOrDefault(currency).Max is BigInteger max && Posted(to, currency) + amount > max ? "exceeds_max_balance" : "done";
        }

        /// <summary>The id of one of the last few holds.</summary>
        public int? SomeHold(int n) => _holds.Count == 0 ? null : _holds.Keys.ElementAt(_holds.Count - 1 - n % Math.Min(_holds.Count, 4)).Id;

        /// <summary>Of the one hold with this id; anything where there is none.</summary>
        public int DecimalsOf(int id) => _holds.Where(h => h.Key.Id == id).Select(h => h.Value.Currency).FirstOrDefault() switch { "USD" => 2, "BHD" => 3, _ => 0 };

        public string Open(string name)
        {
            if (this[name].Opened) return "account_exists";
            this[name].Opened = true;
            return "done";
        }

        public string SetLimits(string name, string currency, BigInteger? min, BigInteger? max)
        {
            ModelAccount account = this[name];
            if (!account.Opened) return "account_not_found";
            if (account.Limits.Count == 1 && account.Limits.TryGetValue(currency, out var now) && now == (min, max)) return "unchanged";
            account.Limits.Clear();
            account.Limits[currency] = (min, max);
            return "done";
        }

        public string Freeze(string name, Direction direction)
        {
            ModelAccount account = this[name];
            if (!account.Opened) return "account_not_found";
            (bool, bool) before = (account.NoDebit, account.NoCredit);
            account.NoDebit = direction != Direction.None && (account.NoDebit || direction.HasFlag(Direction.Debit));
            account.NoCredit = direction != Direction.None && (account.NoCredit || direction.HasFlag(Direction.Credit));
            return before == (account.NoDebit, account.NoCredit) ? "unchanged" : "done";
        }

        public string Close(string name)
        {
            ModelAccount account = this[name];
            if (!account.Opened) return "account_not_found";
            if (account.Closed) return "unchanged";
            if (Balances.Any(b => b.Key.Account == name && b.Value != 0) || Currencies.Any(c => HeldOf(name, c) != 0)) return "balance_not_zero";
            account.Closed = true;
            return "done";
        }
    }

    static Arbitrary<Step[]> Steps()
    {
        // Few ids, so that some come twice; amounts that often hit a limit exactly.
        Gen<Step> step =
            from kind in Gen.Choose(0, 19)
            from fromAccount in Gen.Choose(0, Names.Length - 1)
            from hop in Gen.Choose(1, Names.Length - 1)
            from currency in Gen.Choose(0, Currencies.Length - 1)
            from minor in Gen.OneOf(Gen.Choose(1, 10), Gen.Choose(1, 1000))
            from id in Gen.Choose(1, 120)
            from direction in Gen.Choose(1, 3)
            select new Step(kind, fromAccount, (fromAccount + hop) % Names.Length, currency, minor, id, direction);
        return Arb.From(step.ArrayOf().Resize(300), steps => steps.Length < 2 ? [] : [steps[..(steps.Length / 2)], steps[(steps.Length / 2)..], steps[1..], steps[..^1]]);
    }

    [Property(MaxTest = 400)]
    public Property Model_state_replay_and_snapshot_agree() => Prop.ForAll(Steps(), Holds);

    static void Holds(Step[] steps)
    {
        TestLedger ledger = new();
        Model model = new();
        foreach (Step step in steps)
        {
            // Transfers take microseconds here, and the model counts seconds.
            if (step.Kind == 19 && step.Minor % 3 == 0)
            {
                ledger.Wait(step.Minor % 7);
                model.Wait(step.Minor % 7);
            }

            (Command command, string expected) = Predict(model, step);
            Decision decision = ledger.Execute(command);
            Assert.Equal(expected, EventJson.OutcomeCode(decision.Outcome));
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
        Assert.Equal(ledger.Events.Count(e => e.Event.Kind is EventKind.Debited or EventKind.Held or EventKind.Captured or EventKind.TransferRejected
            || (e.Event.Kind == EventKind.Released && e.Event.Flags == EventFlags.None)), restored.Ids.Count);
    }

    static (Command Command, string Expected) Predict(Model model, Step step)
    {
        string from = Names[step.From], to = Names[step.To], currency = Currencies[step.Currency];
        string ordinary = Names[step.From % 3];
        int decimals = step.Currency switch { 0 => 2, 1 => 0, _ => 3 };
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
            case 6 or 7:
            {
                // Mostly one of the last holds, now and then any id; in part, in full, or given back.
                int original = model.SomeHold(step.Id) is int id && step.From > 0 ? id : 1 + (step.Id * 7) % 120, own = 200 + step.Id;
                BigInteger amount = step.Kind == 7 ? -1 : step.Minor % 2 == 0 ? 0 : step.Minor;
                Command end = new()
                {
                    Kind = amount < 0 ? CommandKind.Void : CommandKind.Capture,
                    TransactionId = (UInt128)own,
                    OriginalId = (UInt128)original,
                    AmountDigits = amount > 0 ? step.Minor : 0,
                };
                // Whole units: minor ones of a currency with decimals would need its own scale.
                return (end, model.End(own, original, amount > 0 ? amount * BigInteger.Pow(10, model.DecimalsOf(original)) : amount));
            }

            default:
            {
                // Money has to come in for anything else to happen.
                if (step.Kind > 14) (from, to) = ("@world", ordinary);
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
                transfer.Pending = step.Kind is 8 or 9 or 10;
                transfer.ExpiresInSeconds = transfer.Pending && step.Direction != 3 ? (int)(1 + step.Minor % 9) : 0;
                return (transfer, model.Transfer(from, to, currency, step.Minor, step.Id, transfer.Pending, transfer.ExpiresInSeconds));
            }
        }
    }
}
