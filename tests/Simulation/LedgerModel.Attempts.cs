using System.Numerics;

namespace Purse.Simulation;

/// <summary>The same wallet, spread over partitions: what is not one step there is judged, set aside, decided and carried out side by side.</summary>
public sealed partial class LedgerModel
{
    /// <summary>A commit across partitions.</summary>
    public sealed class ModelAttempt
    {
        public required (string Home, UInt128 Id) Key { get; init; }

        public required Movement[] Movements { get; init; }

        public bool IsTransaction { get; init; }

        public bool IsHold { get; init; }

        public long? ExpiresAtMicros { get; init; }

        /// <summary>What a capture or a reversal is about.</summary>
        public (string Home, UInt128 Id)? Captures { get; init; }

        public (string Home, UInt128 Id)? Reverses { get; init; }

        /// <summary>By partition: what it said. Its place in the order of checks, and the refusal; "done" for none.</summary>
        public Dictionary<int, (int Posting, bool IsAboutPayee, string Outcome)> Votes { get; } = [];

        public List<ModelReservation> Reservations { get; } = [];

        /// <summary>Empty before the decision.</summary>
        public string Outcome { get; set; } = "";

        public HashSet<int> CarriedOut { get; } = [];

        /// <summary>The refusal that comes first, or "done".</summary>
        public (int Posting, string Outcome) Lowest =>
            Votes.Values.Where(v => v.Outcome != "done").OrderBy(v => (v.Posting, v.IsAboutPayee)).Select(v => (v.Posting, v.Outcome)).FirstOrDefault((0, "done"));
    }

    public sealed record ModelReservation(int Partition, string Account, string Currency, BigInteger Held, BigInteger Incoming);

    readonly List<ModelAttempt> _attempts = [];

    public IEnumerable<ModelAttempt> Attempts => _attempts;

    BigInteger ReservedOf(string account, string currency, Func<ModelReservation, BigInteger> what) => _attempts.SelectMany(a => a.Reservations)
        .Where(r => r.Account == account && r.Currency == currency).Aggregate(BigInteger.Zero, (sum, r) => sum + what(r));

    /// <summary>Where a party is: a system account is where the other one is, two of them where the coordinator is.</summary>
    int PartitionOf(string account, string counterparty, int coordinator) => account[0] != '@' ? PartitionOf(account) : counterparty[0] != '@' ? PartitionOf(counterparty) : coordinator;

    public IEnumerable<int> PartitionsOf(ModelAttempt attempt, int coordinator) =>
        attempt.Movements.SelectMany(m => new[] { PartitionOf(m.From, m.To, coordinator), PartitionOf(m.To, m.From, coordinator) }).Append(coordinator).Distinct();

    /// <summary>Empty where the attempt may begin; else what its coordinator refuses at once.</summary>
    public string Begin(ModelAttempt attempt)
    {
        if (_decided.ContainsKey(attempt.Key) || _attempts.Exists(a => a.Key == attempt.Key)) return "duplicate";
        if (attempt.Captures is (string, UInt128) about)
        {
            if (!_holds.TryGetValue(about, out ModelHold? hold) || hold.IsCapturing) return "not_a_hold";
            if (hold.End.Length > 0) return hold.End;
            if (attempt.Movements[0].Amount > hold.Amount) return "exceeds_held_amount";
            _holds[about] = hold with { IsCapturing = true };
        }

        if (attempt.Reverses is (string, UInt128) original && _attempts.Exists(a => a.Reverses == original && (a.Outcome is "" or "done"))) return "under_way";
        _attempts.Add(attempt);
        return "";
    }

    /// <summary>What one side says, which it sets aside if it says yes.</summary>
    public (int Posting, bool IsAboutPayee, string Outcome) Vote(ModelAttempt attempt, int partition, int coordinator)
    {
        Dictionary<(string, string), BigInteger> before = new(Balances), lowest = [], highest = [];
        (int, bool, string) vote = (0, false, "done");
        for (int i = 0; i < attempt.Movements.Length && vote.Item3 == "done"; i++)
        {
            (string from, string to, string currency, BigInteger amount) = attempt.Movements[i];
            bool fromHere = PartitionOf(from, to, coordinator) == partition, toHere = PartitionOf(to, from, coordinator) == partition;
            // What a hold holds was judged when it was made.
            if (fromHere && attempt.Captures is null && JudgePayer(from, currency, amount) is not "done" and var payer) vote = (i, false, payer);
            else if (toHere && JudgePayee(to, currency, amount) is not "done" and var payee) vote = (i, true, payee);
            if (fromHere) Add(from, currency, -amount);
            if (toHere) Add(to, currency, amount);
        }

        Balances = before;
        attempt.Votes[partition] = vote;
        if (vote.Item3 != "done" || attempt.Captures is not null && partition == coordinator || attempt.IsHold && partition != coordinator) return vote;
        foreach ((string account, string currency) in lowest.Keys.Union(highest.Keys))
        {
            ModelReservation one = new(partition, account, currency, -lowest.GetValueOrDefault((account, currency)), highest.GetValueOrDefault((account, currency)));
            attempt.Reservations.Add(attempt.IsHold ? one with { Incoming = 0 } : one);
        }

        return vote;

        void Add(string account, string currency, BigInteger amount)
        {
            Balances[(account, currency)] = Posted(account, currency) + amount;
            BigInteger sum = Posted(account, currency) - before.GetValueOrDefault((account, currency));
            lowest[(account, currency)] = BigInteger.Min(lowest.GetValueOrDefault((account, currency)), sum);
            highest[(account, currency)] = BigInteger.Max(highest.GetValueOrDefault((account, currency)), sum);
        }
    }

    /// <summary>The decision, which is the home's outcome under the id.</summary>
    public void Decide(ModelAttempt attempt, string outcome)
    {
        attempt.Outcome = outcome;
        _decided[attempt.Key] = outcome;
        if (attempt.Captures is (string, UInt128) about) _holds[about] = _holds[about] with { IsCapturing = false, End = outcome == "done" ? "hold_already_captured" : _holds[about].End };
        if (outcome != "done") return;
        if (attempt.IsHold)
        {
            Movement only = attempt.Movements[0];
            _holds[attempt.Key] = new ModelHold(only.From, only.To, only.Currency, only.Amount, attempt.ExpiresAtMicros);
            return;
        }

        _moved[attempt.Key] = new Moved(attempt.Movements, attempt.IsTransaction, attempt.IsTransaction ? 1 : attempt.Movements[0].Amount);
        if (attempt.Reverses is (string, UInt128) original)
            _moved[original] = _moved[original] with { Left = attempt.IsTransaction ? 0 : _moved[original].Left - attempt.Movements[0].Amount };
    }

    /// <summary>What it leaves on one side.</summary>
    public void CarryOut(ModelAttempt attempt, int partition, int coordinator)
    {
        attempt.CarriedOut.Add(partition);
        attempt.Reservations.RemoveAll(r => r.Partition == partition);
        if (attempt.Outcome != "done" || attempt.IsHold) return;
        foreach ((string from, string to, string currency, BigInteger amount) in attempt.Movements)
        {
            if (PartitionOf(from, to, coordinator) == partition) Balances[(from, currency)] = Posted(from, currency) - amount;
            if (PartitionOf(to, from, coordinator) == partition) Balances[(to, currency)] = Posted(to, currency) + amount;
        }
    }

    public void Finish(ModelAttempt attempt) => _attempts.Remove(attempt);

    /// <summary>What a single transfer or hold moves.</summary>
    public Movement ToMove(Movement asked, bool upTo)
    {
        BigInteger available = Posted(asked.From, asked.Currency) - HeldOf(asked.From, asked.Currency) - (this[asked.From].Limits.GetValueOrDefault(asked.Currency).Min ?? 0);
        return upTo && asked.From[0] != '@' && available > 0 ? asked with { Amount = BigInteger.Min(asked.Amount, available) } : asked;
    }

    /// <summary>Where an id's home is.</summary>
    public static (string Home, UInt128 Id) KeyOf(Movement first, UInt128 id) => (Home(first.From, first.To), id);

    public (string Home, UInt128 Id) KeyOf(UInt128 original) => _decided.Keys.Single(k => k.Id == original);

    public Movement? MovementOfHold((string Home, UInt128 Id) key, BigInteger amount) =>
        _holds.TryGetValue(key, out ModelHold? hold) ? new Movement(hold.From, hold.To, hold.Currency, amount == 0 ? hold.Amount : amount) : null;

    /// <summary>What a reversal would move; null where nothing is left.</summary>
    public Movement[]? MovementsBack((string Home, UInt128 Id) key, BigInteger amount, out bool isTransaction)
    {
        isTransaction = false;
        if (!_moved.TryGetValue(key, out Moved? moved) || moved.Left == 0 || (!moved.IsTransaction && amount > moved.Left)) return null;
        isTransaction = moved.IsTransaction;
        Movement[] back = [.. moved.Movements.Reverse().Select(m => m with { From = m.To, To = m.From })];
        return isTransaction ? back : [back[0] with { Amount = amount == 0 ? moved.Left : amount }];
    }

    public long TimeOf(int partition) => _timeMicros[partition];
}
