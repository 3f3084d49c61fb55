using System.Numerics;
using Purse.Ledger;

namespace Purse.Simulation;

/// <summary>
/// What a wallet must do, told simply: dictionaries and integers of any size, one command after the other, no events, no disk. It predicts
/// the outcome of every command.
/// </summary>
/// <param name="partitions">Across them, commands are not one step but several, each of which it predicts (LedgerModel.Attempts.cs).</param>
public sealed partial class LedgerModel(int partitions = 1)
{
    public static readonly string[] Currencies = ["USD", "JPY", "BHD", "GEM"];
    public static readonly int[] Decimals = [2, 0, 3, 0];

    sealed class ModelAccount
    {
        public bool Opened, Closed, NoDebit, NoCredit;
        public Dictionary<string, (BigInteger? Min, BigInteger? Max)> Limits = [];

        public ModelAccount Copy() => new() { Opened = Opened, Closed = Closed, NoDebit = NoDebit, NoCredit = NoCredit, Limits = new(Limits) };
    }

    sealed record ModelHold(string From, string To, string Currency, BigInteger Amount, long? ExpiresAtMicros, string End = "", bool IsCapturing = false);

    public sealed record Movement(string From, string To, string Currency, BigInteger Amount);

    /// <summary>What an id moved, and how much of it is left to take back.</summary>
    sealed record Moved(Movement[] Movements, bool IsTransaction, BigInteger Left);

    Dictionary<string, ModelAccount> _accounts = [];
    Dictionary<(string Home, UInt128 Id), string> _decided = [];
    Dictionary<(string Home, UInt128 Id), ModelHold> _holds = [];
    Dictionary<(string Home, UInt128 Id), Moved> _moved = [];
    HashSet<string> _registered = [];
    long[] _timeMicros = new long[partitions];

    public Dictionary<(string Account, string Currency), BigInteger> Balances { get; private set; } = [];

    /// <summary>For a dry run: whatever happens to the copy did not happen.</summary>
    public LedgerModel Copy() => new(partitions)
    {
        _accounts = _accounts.ToDictionary(a => a.Key, a => a.Value.Copy()),
        _decided = new(_decided),
        _holds = new(_holds),
        _moved = new(_moved),
        _registered = [.. _registered],
        _timeMicros = [.. _timeMicros],
        Balances = new(Balances),
    };

    public BigInteger HeldOf(string account, string currency) =>
        _holds.Values.Where(h => h.End.Length == 0 && h.From == account && h.Currency == currency).Aggregate(BigInteger.Zero, (sum, h) => sum + h.Amount)
        + ReservedOf(account, currency, static one => one.Held);

    /// <summary>Time passes; what is due is still held.</summary>
    public void SetTime(long timeMicros, int partition = 0) => _timeMicros[partition] = timeMicros;

    int PartitionOf(string account) => partitions == 1 ? 0 : AccountName.Parse(account).PartitionOf(partitions);

    bool IsDue(ModelHold hold) => hold is { End: "", IsCapturing: false } && hold.ExpiresAtMicros <= _timeMicros[PartitionOf(hold.From[0] == '@' ? hold.To : hold.From)];

    public bool IsAnyDue(int partition = 0) => _holds.Values.Any(h => PartitionOf(h.From[0] == '@' ? h.To : h.From) == partition && IsDue(h));

    /// <summary>Ends a hold; false where it is not due, or has ended.</summary>
    public bool TryExpire(UInt128 id)
    {
        foreach ((string, UInt128) key in _holds.Where(h => h.Key.Id == id && IsDue(h.Value)).Select(h => h.Key).ToList())
        {
            _holds[key] = _holds[key] with { End = "hold_expired" };
            return true;
        }

        return false;
    }

    /// <summary>Time passes; what is due ends.</summary>
    public void AdvanceTo(long timeMicros)
    {
        Array.Fill(_timeMicros, timeMicros);
        foreach ((string, UInt128) key in _holds.Where(h => IsDue(h.Value)).Select(h => h.Key).ToList()) _holds[key] = _holds[key] with { End = "hold_expired" };
    }

    /// <summary>Empty where the command can go on, under the key that it gives.</summary>
    string FindOriginal(UInt128 id, UInt128 original, out (string Home, UInt128 Id) about, out (string Home, UInt128 Id) key)
    {
        List<(string Home, UInt128 Id)> homes = [.. _decided.Keys.Where(k => k.Id == original)];
        about = key = default;
        if (homes.Count > 1 && homes.Count(h => _decided.ContainsKey((h.Home, id))) == 1) return "duplicate";
        if (homes.Count != 1) return homes.Count == 0 ? "transfer_not_found" : "transfer_ambiguous";
        about = homes[0];
        key = (about.Home, id);
        return _decided.ContainsKey(key) ? "duplicate" : "";
    }

    /// <summary>Captures, or voids where the amount is negative; 0 captures all.</summary>
    public string End(UInt128 id, UInt128 original, BigInteger amount)
    {
        string found = FindOriginal(id, original, out (string, UInt128) about, out (string, UInt128) key);
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

    string JudgeEnd((string Home, UInt128 Id) original, BigInteger amount, out BigInteger moved)
    {
        moved = 0;
        if (!_holds.TryGetValue(original, out ModelHold? hold)) return "not_a_hold";
        if (hold.End.Length > 0) return hold.End;
        moved = amount == 0 ? hold.Amount : amount;
        if (amount < 0) return "done";
        return moved > hold.Amount ? "exceeds_held_amount" : JudgePayee(hold.To, hold.Currency, moved);
    }

    /// <summary>0 takes back all that is left.</summary>
    public string Reverse(UInt128 id, UInt128 original, BigInteger amount)
    {
        string found = FindOriginal(id, original, out (string, UInt128) about, out (string, UInt128) key);
        if (found.Length > 0) return found;
        string outcome = JudgeReversal(about, amount, out Movement[] movements);
        _decided[key] = outcome;
        if (outcome != "done") return outcome;
        Moved moved = _moved[about];
        _moved[about] = moved with { Left = moved.IsTransaction ? 0 : moved.Left - movements[0].Amount };
        _moved[key] = new Moved(movements, moved.IsTransaction, moved.IsTransaction ? 1 : movements[0].Amount);
        return outcome;
    }

    string JudgeReversal((string Home, UInt128 Id) about, BigInteger amount, out Movement[] movements)
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

    public string Transfer(Movement movement, UInt128 id, bool pending, int expiresIn, bool upTo)
    {
        (string from, string to, string currency, BigInteger asked) = movement;
        (string, UInt128) key = (Home(from, to), id);
        if (_decided.ContainsKey(key)) return "duplicate";
        if (!Knows(currency)) return "currency_unknown";
        BigInteger available = Posted(from, currency) - HeldOf(from, currency) - (this[from].Limits.GetValueOrDefault(currency).Min ?? 0);
        if (upTo && from[0] != '@' && available > 0) movement = movement with { Amount = BigInteger.Min(asked, available) };
        string outcome = Judge(movement);
        _decided[key] = outcome;
        if (outcome != "done") return outcome;
        if (pending)
        {
            _holds[key] = new ModelHold(from, to, currency, movement.Amount, expiresIn == 0 ? null : _timeMicros[PartitionOf(key.Item1)] + expiresIn * 1_000_000L);
            return outcome;
        }

        Move(movement);
        _moved[key] = new Moved([movement], false, movement.Amount);
        return outcome;
    }

    public string Transaction(Movement[] movements, UInt128 id)
    {
        (string, UInt128) key = (Home(movements[0].From, movements[0].To), id);
        if (_decided.ContainsKey(key)) return "duplicate";
        if (!movements.All(m => Knows(m.Currency))) return "currency_unknown";
        string outcome = MoveAll(movements);
        _decided[key] = outcome;
        if (outcome == "done") _moved[key] = new Moved(movements, true, 1);
        return outcome;
    }

    string Judge(Movement movement)
    {
        string outcome = JudgePayer(movement.From, movement.Currency, movement.Amount);
        return outcome == "done" ? JudgePayee(movement.To, movement.Currency, movement.Amount) : outcome;
    }

    string JudgePayer(string from, string currency, BigInteger amount)
    {
        if (from[0] == '@') return "done";
        ModelAccount payer = this[from];
        if (!payer.Opened) return "from_account_not_found";
        if (payer.Closed) return "from_account_closed";
        if (payer.NoDebit) return "from_account_frozen";
        BigInteger? min = payer.Limits.GetValueOrDefault(currency).Min;
        if (Posted(from, currency) - HeldOf(from, currency) - amount < (min ?? 0)) return min is null ? "insufficient_funds" : "below_min_balance";
        return "done";
    }

    string JudgePayee(string to, string currency, BigInteger amount)
    {
        if (to[0] == '@') return "done";
        ModelAccount payee = this[to];
        if (!payee.Opened) return "to_account_not_found";
        if (payee.Closed) return "to_account_closed";
        if (payee.NoCredit) return "to_account_frozen";
        return payee.Limits.GetValueOrDefault(currency).Max is BigInteger max && Posted(to, currency) + ReservedOf(to, currency, static one => one.Incoming) + amount > max ? "exceeds_max_balance" : "done";
    }

    /// <summary>The id of one of the last few holds.</summary>
    public UInt128? SomeHold(int n) => _holds.Count == 0 ? null : _holds.Keys.ElementAt(_holds.Count - 1 - n % Math.Min(_holds.Count, 4)).Id;

    /// <summary>An id that moved money, and whether it was a transaction.</summary>
    public (UInt128 Id, bool IsTransaction)? SomeMoved(int n) => _moved.Count == 0 ? null : _moved.ElementAt(n % _moved.Count) is var one ? (one.Key.Id, one.Value.IsTransaction) : null;

    /// <summary>Of the one hold or transfer with this id; anything where there is none.</summary>
    public int DecimalsOf(UInt128 id)
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
        if (Balances.Any(b => b.Key.Account == name && b.Value != 0) || Currencies.Any(c => HeldOf(name, c) != 0 || ReservedOf(name, c, static one => one.Incoming) != 0)) return "balance_not_zero";
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
