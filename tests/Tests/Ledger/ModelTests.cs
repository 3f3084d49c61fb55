using System.Numerics;
using FsCheck;
using FsCheck.Fluent;
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
    static readonly string[] Currencies = ["USD", "JPY", "BHD", "GEM"];
    static readonly int[] Decimals = [2, 0, 3, 0];

    public sealed record Step(int Kind, int From, int To, int Currency, long Minor, int Id, int Direction, bool DryRun);

    sealed class Model
    {
        sealed class ModelAccount
        {
            public bool Opened, Closed, NoDebit, NoCredit;
            public Dictionary<string, (BigInteger? Min, BigInteger? Max)> Limits = [];

            public ModelAccount Copy() => new() { Opened = Opened, Closed = Closed, NoDebit = NoDebit, NoCredit = NoCredit, Limits = new(Limits) };
        }

        sealed record ModelHold(string From, string To, string Currency, BigInteger Amount, long? ExpiresAt, string End = "");

        public sealed record Movement(string From, string To, string Currency, BigInteger Amount);

        /// <summary>What an id moved, and how much of it is left to take back.</summary>
        sealed record Moved(Movement[] Movements, bool IsTransaction, BigInteger Left);

        Dictionary<string, ModelAccount> _accounts = [];
        Dictionary<(string Home, int Id), string> _decided = [];
        Dictionary<(string Home, int Id), ModelHold> _holds = [];
        Dictionary<(string Home, int Id), Moved> _moved = [];
        HashSet<string> _registered = [];
        long _seconds;

        public Dictionary<(string Account, string Currency), BigInteger> Balances { get; private set; } = [];

        /// <summary>For a dry run: whatever happens to the copy did not happen.</summary>
        public Model Copy() => new()
        {
            _accounts = _accounts.ToDictionary(a => a.Key, a => a.Value.Copy()),
            _decided = new(_decided),
            _holds = new(_holds),
            _moved = new(_moved),
            _registered = [.. _registered],
            _seconds = _seconds,
            Balances = new(Balances),
        };

        public BigInteger HeldOf(string account, string currency) =>
            _holds.Values.Where(h => h.End.Length == 0 && h.From == account && h.Currency == currency).Aggregate(BigInteger.Zero, (sum, h) => sum + h.Amount);

        /// <summary>Time passes; what is due ends.</summary>
        public void Wait(long seconds)
        {
            _seconds += seconds;
            foreach ((string, int) key in _holds.Where(h => h.Value.End.Length == 0 && h.Value.ExpiresAt <= _seconds).Select(h => h.Key).ToList())
                _holds[key] = _holds[key] with { End = "hold_expired" };
        }

        /// <summary>Empty where the command can go on, under the key that it gives.</summary>
        string FindOriginal(int id, int original, out (string Home, int Id) about, out (string Home, int Id) key)
        {
            List<(string Home, int Id)> homes = [.. _decided.Keys.Where(k => k.Id == original)];
            about = key = default;
            if (homes.Count > 1 && homes.Count(h => _decided.ContainsKey((h.Home, id))) == 1) return "duplicate";
            if (homes.Count != 1) return homes.Count == 0 ? "transfer_not_found" : "transfer_ambiguous";
            about = homes[0];
            key = (about.Home, id);
            return _decided.ContainsKey(key) ? "duplicate" : "";
        }

        /// <summary>Captures, or voids where the amount is negative; 0 captures all.</summary>
        public string End(int id, int original, BigInteger amount)
        {
            string found = FindOriginal(id, original, out (string, int) about, out (string, int) key);
            if (found.Length > 0) return found;
            string outcome = JudgeEnd(about, amount, out BigInteger moved);
            _decided[key] = outcome;
            if (outcome != "done") return outcome;
            ModelHold hold = _holds[about];
            _holds[about] = hold with { End = amount < 0 ? "hold_already_voided" : "hold_already_captured" };
            if (amount < 0) return outcome;
            Movement movement = new(hold.From, hold.To, hold.Currency, moved);
            Move(movement);
            _moved[key] = new Moved([movement], false, moved);
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

        /// <summary>0 takes back all that is left.</summary>
        public string Reverse(int id, int original, BigInteger amount)
        {
            string found = FindOriginal(id, original, out (string, int) about, out (string, int) key);
            if (found.Length > 0) return found;
            string outcome = JudgeReversal(about, amount, out Movement[] movements);
            _decided[key] = outcome;
            if (outcome != "done") return outcome;
            Moved moved = _moved[about];
            _moved[about] = moved with { Left = moved.IsTransaction ? 0 : moved.Left - movements[0].Amount };
            _moved[key] = new Moved(movements, moved.IsTransaction, moved.IsTransaction ? 1 : movements[0].Amount);
            return outcome;
        }

        string JudgeReversal((string Home, int Id) about, BigInteger amount, out Movement[] movements)
        {
            movements = [];
            if (!_moved.TryGetValue(about, out Moved? moved)) return "exceeds_reversible_amount";
            if (moved.Left == 0) return "already_reversed";
            if (!moved.IsTransaction && amount > moved.Left) return "exceeds_reversible_amount";
            movements = [.. moved.Movements.Reverse().Select(m => m with { From = m.To, To = m.From })];
            if (!moved.IsTransaction) movements = [movements[0] with { Amount = amount == 0 ? moved.Left : amount }];
            return MoveAll(movements);
        }

        ModelAccount this[string name] => _accounts.TryGetValue(name, out ModelAccount? account) ? account : _accounts[name] = new ModelAccount();

        BigInteger Posted(string account, string currency) => Balances.GetValueOrDefault((account, currency));

        void Move(Movement m)
        {
            Balances[(m.From, m.Currency)] = Posted(m.From, m.Currency) - m.Amount;
            Balances[(m.To, m.Currency)] = Posted(m.To, m.Currency) + m.Amount;
        }

        /// <summary>All or nothing.</summary>
        string MoveAll(Movement[] movements)
        {
            Dictionary<(string, string), BigInteger> before = new(Balances);
            foreach (Movement movement in movements)
            {
                string outcome = Judge(movement);
                if (outcome != "done")
                {
                    Balances = before;
                    return outcome;
                }

                Move(movement);
            }

            return "done";
        }

        static string Home(string from, string to) => from[0] == '@' ? (to[0] == '@' ? "" : to) : from;

        bool Knows(string currency) => currency != "GEM" || _registered.Contains(currency);

        public string Transfer(Movement movement, int id, bool pending, int expiresIn, bool upTo)
        {
            (string from, string to, string currency, BigInteger asked) = movement;
            (string, int) key = (Home(from, to), id);
            if (_decided.ContainsKey(key)) return "duplicate";
            if (!Knows(currency)) return "currency_unknown";
            BigInteger available = Posted(from, currency) - HeldOf(from, currency) - (this[from].Limits.GetValueOrDefault(currency).Min ?? 0);
            if (upTo && from[0] != '@' && available > 0) movement = movement with { Amount = BigInteger.Min(asked, available) };
            string outcome = Judge(movement);
            _decided[key] = outcome;
            if (outcome != "done") return outcome;
            if (pending)
            {
                _holds[key] = new ModelHold(from, to, currency, movement.Amount, expiresIn == 0 ? null : _seconds + expiresIn);
                return outcome;
            }

            Move(movement);
            _moved[key] = new Moved([movement], false, movement.Amount);
            return outcome;
        }

        public string Transaction(Movement[] movements, int id)
        {
            (string, int) key = (Home(movements[0].From, movements[0].To), id);
            if (_decided.ContainsKey(key)) return "duplicate";
            if (!movements.All(m => Knows(m.Currency))) return "currency_unknown";
            string outcome = MoveAll(movements);
            _decided[key] = outcome;
            if (outcome == "done") _moved[key] = new Moved(movements, true, 1);
            return outcome;
        }

        string Judge(Movement movement)
        {
            (string from, string to, string currency, BigInteger amount) = movement;
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

        /// <summary>An id that moved money, and whether it was a transaction.</summary>
        public (int Id, bool IsTransaction)? SomeMoved(int n) => _moved.Count == 0 ? null : _moved.ElementAt(n % _moved.Count) is var one ? (one.Key.Id, one.Value.IsTransaction) : null;

        /// <summary>Of the one hold or transfer with this id; anything where there is none.</summary>
        public int DecimalsOf(int id)
        {
            string? currency = _holds.Where(h => h.Key.Id == id).Select(h => h.Value.Currency).Concat(_moved.Where(m => m.Key.Id == id).Select(m => m.Value.Movements[0].Currency)).FirstOrDefault();
            return currency is null ? 0 : Decimals[Array.IndexOf(Currencies, currency)];
        }

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
            if (!Knows(currency)) return "currency_unknown";
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

        public string Metadata(string name) => this[name].Opened ? "done" : "account_not_found";

        public string Register(int decimals)
        {
            if (!_registered.Add("GEM")) return decimals == 0 ? "unchanged" : "currency_exists";
            return "done";
        }
    }

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
        Model model = new();
        foreach (Step step in steps)
        {
            // Transfers take microseconds here, and the model counts seconds.
            if (step.Kind == 19 && step.Minor % 3 == 0)
            {
                ledger.Wait(step.Minor % 7);
                model.Wait(step.Minor % 7);
            }

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
            || (e.Event.Kind == EventKind.Released && e.Event.Flags == EventFlags.None)), restored.Ids.Count);
    }

    static (Command Command, string Expected) Predict(Model model, Step step, TestLedger ledger)
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
                int original = model.SomeHold(step.Id) is int id && step.From > 0 ? id : 1 + (step.Id * 7) % 120, own = 200 + step.Id;
                BigInteger amount = step.Kind == 7 ? -1 : step.Minor % 2 == 0 ? 0 : step.Minor;
                Command end = new()
                {
                    Kind = amount < 0 ? CommandKind.Void : CommandKind.Capture,
                    TransactionId = (UInt128)own,
                    OriginalId = (UInt128)original,
                    AmountDigits = amount > 0 ? step.Minor : 0,
                    AmountScale = (byte)model.DecimalsOf(original),
                };
                return (end, model.End(own, original, amount));
            }

            case 8 or 9:
            {
                // Mostly what moved money, now and then any id; a transaction in full.
                int original = model.SomeMoved(step.Id) is (int id, _) && step.From > 0 ? id : 1 + (step.Id * 7) % 500, own = 400 + step.Id;
                Command reversal = ledger.Reversal((UInt128)own, (UInt128)original);
                BigInteger amount = reversal.Details?.Original?.IsTransaction == true || step.Minor % 2 == 0 ? 0 : step.Minor;
                reversal.AmountDigits = (Int128)amount;
                reversal.AmountScale = (byte)model.DecimalsOf(original);
                return (reversal, model.Reverse(own, original, amount));
            }

            case 10 or 11 or 12:
            {
                // Round trips through few accounts, so that later postings spend what earlier ones brought.
                Model.Movement[] movements = [.. Enumerable.Range(0, 1 + (int)(step.Minor % 4)).Select(i => new Model.Movement(
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
                return (transaction, model.Transaction(movements, 600 + step.Id));
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
                return (transfer, model.Transfer(new Model.Movement(from, to, currency, step.Minor), step.Id, transfer.Pending, transfer.ExpiresInSeconds, transfer.UpTo));
            }
        }
    }
}
