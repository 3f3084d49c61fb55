using System.Runtime.InteropServices;

namespace Purse.Ledger;

[Flags]
public enum AccountFlags : byte
{
    None = 0,
    Opened = 1,
    Closed = 2,
    System = 4,
}

public struct Account
{
    /// <summary>1 + the index of its newest balance; each balance names the next. 0 for none.</summary>
    public uint FirstBalance;
    public AccountFlags Flags;
    public Direction Frozen;

    /// <summary>1 + the partition that it lives in, where that is another one: here it is a name only. 0 for those that live here, and for system accounts.</summary>
    public ushort Peer;
    public ulong OpenedSequence;

    /// <summary>The event that holds its metadata now, 0 for none.</summary>
    public ulong MetadataSequence;

    /// <summary>The event that says who froze it and why, 0 where it is not frozen.</summary>
    public ulong FrozenSequence;

    public readonly bool IsOpened => (Flags & AccountFlags.Opened) != 0;

    public readonly bool IsClosed => (Flags & AccountFlags.Closed) != 0;

    /// <summary>Goes below zero: stands for money outside the wallet system.</summary>
    public readonly bool IsUnlimited => (Flags & AccountFlags.System) != 0;
}

/// <summary>One account's money in one currency, minor units.</summary>
public struct Balance
{
    public Int128 Posted;

    /// <summary>May still leave: holds and undecided debits.</summary>
    public Int128 Held;

    /// <summary>Promised: undecided credits.</summary>
    public Int128 Incoming;

    /// <summary>Sequence of the last event that touched it, and how many did.</summary>
    public ulong LastSequence;
    public ulong EventsCount;

    public uint Account;
    public uint Currency;

    /// <summary>1 + the index of this account's next balance, 0 for none.</summary>
    public uint Next;

    /// <summary>1 + the index of its limits, 0 for none.</summary>
    public uint Limits;

    public readonly Int128 Available => Posted - Held;
}

struct LimitsOfBalance
{
    public Int128 Min;
    public Int128 Max;
    public ulong HasMin;
    public ulong HasMax;
}

/// <summary>
/// Everything one partition knows. Only <see cref="StateMachine.Apply"/> changes it. Its written form is the same for every
/// instance that applied the same events, so two states can be compared byte by byte.
/// </summary>
/// <param name="tableSeed">Places names and ids in tables; changes no outcome and no written byte.</param>
/// <param name="partition">Which of so many partitions it is; with the names, that says which accounts live here.</param>
/// <param name="eventsPerGeneration">Ids and marks of older events than those of the last so many may be kept elsewhere.</param>
public sealed class State(long tableSeed, int partition = 0, int partitionsCount = 1, ulong eventsPerGeneration = State.EventsPerGeneration)
{
    /// <summary>Written first, so that a state of another form is refused and never misread.</summary>
    internal const uint FormatVersion = 4;

    public const ulong EventsPerGeneration = 4_000_000;

    internal readonly Chunked<Account> AccountList = new();
    internal readonly Chunked<Balance> BalanceList = new();
    internal readonly Chunked<LimitsOfBalance> LimitsList = new();

    /// <summary>By currency number; what all balances of this partition add up to. 0 between commands, always.</summary>
    internal Int128[] Sums = new Int128[Iso4217.RegisteredFirst];

    /// <summary>How many currencies do not add up to 0 now: one in the middle of a transfer, none after it.</summary>
    internal int UnbalancedCurrencies;

    public Names Names { get; } = new(tableSeed);

    public TransactionIds Ids { get; } = new(tableSeed, eventsPerGeneration);

    public Generations Generations => Ids.Generations;

    public Holds Holds { get; } = new();

    public Reversals Reversals { get; } = new();

    public Currencies Currencies { get; } = new();

    public Attempts Attempts { get; } = new();

    /// <summary>
    /// What left for accounts of another partition, and came from them: minus and plus what they show here. The two of a pair of partitions
    /// add up to what is in flight between them.
    /// </summary>
    readonly SortedDictionary<(int Peer, uint Currency), Int128> _clearing = [];

    public int Partition { get; } = partition;

    public int PartitionsCount { get; } = partitionsCount;

    public ulong LastSequence { get; internal set; }

    public long LastTimeMicros { get; internal set; }

    /// <summary>False between the two events of a transfer.</summary>
    public bool IsBalanced => UnbalancedCurrencies == 0;

    public int BalancesCount => BalanceList.Count;

    /// <summary>By number, from 1.</summary>
    public ref readonly Account Account(uint number) => ref AccountList[(int)number - 1];

    public ref readonly Balance BalanceAt(int index) => ref BalanceList[index];

    /// <summary>Zero with no events where the account has none in this currency.</summary>
    public Balance Balance(uint account, uint currency)
    {
        int index = FindBalance(account, currency);
        return index < 0 ? new Balance { Account = account, Currency = currency } : BalanceList[index];
    }

    public IEnumerable<Balance> Balances(uint account)
    {
        for (uint next = account == 0 ? 0 : Account(account).FirstBalance; next != 0; next = BalanceList[(int)next - 1].Next)
            yield return BalanceList[(int)next - 1];
    }

    public Limits LimitsOf(in Balance balance) => new(balance.Currency, MinOf(balance), MaxOf(balance));

    public Int128? MinOf(in Balance balance) => balance.Limits != 0 && LimitsList[(int)balance.Limits - 1] is { HasMin: not 0 } limits ? limits.Min : null;

    public Int128? MaxOf(in Balance balance) => balance.Limits != 0 && LimitsList[(int)balance.Limits - 1] is { HasMax: not 0 } limits ? limits.Max : null;

    /// <summary>The limits that are set, in the order of their currencies.</summary>
    public Limits[] LimitsOf(uint account) =>
        [.. Balances(account).Select(b => LimitsOf(b)).Where(l => l.Min is not null || l.Max is not null).OrderBy(l => l.Currency)];

    public IEnumerable<(int Peer, uint Currency, Int128 Posted)> Clearing => _clearing.Select(one => (one.Key.Peer, one.Key.Currency, one.Value));

    internal void WriteClearing(BinaryWriter writer)
    {
        writer.Write(_clearing.Count);
        foreach ((int peer, uint currency, Int128 posted) in Clearing)
        {
            writer.Write(peer);
            writer.Write(currency);
            writer.Write((ulong)posted);
            writer.Write((ulong)(posted >> 64));
        }
    }

    internal void AddToClearing(int peer, uint currency, Int128 amount)
    {
        _clearing[(peer, currency)] = _clearing.GetValueOrDefault((peer, currency)) + amount;
        AddToSum(currency, amount);
    }

    /// <summary><see cref="Ledger.Account.Peer"/> of an account with this name.</summary>
    public ushort PeerOf(in AccountName name) => PartitionsCount == 1 || name.IsSystem || name.PartitionOf(PartitionsCount) is var home && home == Partition ? (ushort)0 : (ushort)(1 + home);

    /// <summary>What all balances of a currency add up to, what is in flight included, counted anew.</summary>
    public Int128 CountSum(uint currency)
    {
        Int128 sum = 0;
        for (int i = 0; i < BalanceList.Count; i++)
        {
            if (BalanceList[i].Currency == currency) sum += BalanceList[i].Posted;
        }

        foreach ((_, uint of, Int128 posted) in Clearing)
        {
            if (of == currency) sum += posted;
        }

        return sum;
    }

    /// <summary>The currencies of all balances, in order.</summary>
    public SortedSet<uint> CurrenciesInUse()
    {
        SortedSet<uint> currencies = [];
        for (int i = 0; i < BalanceList.Count; i++) currencies.Add(BalanceList[i].Currency);
        return currencies;
    }

    public bool TryCurrency(CurrencyCode code, out uint number, out int decimals) =>
        // What was registered stays what it is, also where a later ISO 4217 takes up the same code.
        (Currencies.Count > 0 && Currencies.TryGet(code, out number, out decimals)) || Iso4217.TryGet(code, out number, out decimals);

    public int Decimals(uint currency) => currency < Iso4217.RegisteredFirst ? Iso4217.Decimals(currency) : (int)Currencies[currency].Decimals;

    public CurrencyCode CodeOf(uint currency) => currency < Iso4217.RegisteredFirst ? Iso4217.Code(currency) : Currencies[currency].Code;

    public string CurrencyCode(uint currency) => currency < Iso4217.RegisteredFirst ? Iso4217.Text(currency) : Currencies[currency].Code.ToString();

    /// <summary>False also for a number that a command in the making gives to a name not spoken of before.</summary>
    public bool IsOpened(uint account) => account - 1 < (uint)AccountList.Count && Account(account).IsOpened;

    /// <summary>It will be asked for soon.</summary>
    /// <param name="account">Any number: it may have been looked up in the life before.</param>
    public void PrefetchAccount(uint account)
    {
        if (account - 1 < (uint)AccountList.Count) AccountList.Prefetch((int)account - 1);
    }

    /// <summary>Its newest balance will be asked for soon.</summary>
    public void PrefetchBalance(uint account)
    {
        if (account - 1 < (uint)AccountList.Count && Account(account).FirstBalance is not 0 and uint first) BalanceList.Prefetch((int)first - 1);
    }

    internal int FindBalance(uint account, uint currency)
    {
        if (account - 1 >= (uint)AccountList.Count) return -1;
        for (uint next = AccountList[(int)account - 1].FirstBalance; next != 0;)
        {
            ref readonly Balance balance = ref BalanceList[(int)next - 1];
            if (balance.Currency == currency) return (int)next - 1;
            next = balance.Next;
        }

        return -1;
    }

    /// <summary>All of it as it is now, to be written down by another thread while it goes on changing. One at a time.</summary>
    public StateImage BeginImage() => new(this, whileItChanges: true);

    public void Write(Stream stream)
    {
        using StateImage image = new(this, whileItChanges: false);
        image.Write(stream);
    }

    public void Read(Stream stream)
    {
        using BinaryReader reader = new(stream, System.Text.Encoding.UTF8, leaveOpen: true);
        uint version = reader.ReadUInt32();
        if (version != FormatVersion) throw new InvalidDataException($"The state was written in format {version}; this version reads {FormatVersion}.");
        LastSequence = reader.ReadUInt64();
        LastTimeMicros = reader.ReadInt64();
        Names.Read(reader);
        Read(reader, AccountList);
        Read(reader, BalanceList);
        Read(reader, LimitsList);
        Holds.Read(reader);
        Reversals.Read(reader);
        Currencies.Read(reader);
        for (int count = reader.ReadInt32(); count > 0; count--)
        {
            (int peer, uint currency, ulong low) = (reader.ReadInt32(), reader.ReadUInt32(), reader.ReadUInt64());
            AddToClearing(peer, currency, new Int128(reader.ReadUInt64(), low));
        }

        Attempts.Read(reader, AccountList);
        Ids.Read(reader);
        Generations.Read(reader, LastSequence);
        for (int i = 0; i < BalanceList.Count; i++) AddToSum(BalanceList[i].Currency, BalanceList[i].Posted);
        Check.That(UnbalancedCurrencies == 0, "the balances of every currency in a snapshot add up to 0");
    }

    internal void AddToSum(uint currency, Int128 amount)
    {
        if (currency >= Sums.Length) Array.Resize(ref Sums, Math.Max((int)currency + 1, Sums.Length * 2));
        ref Int128 sum = ref Sums[currency];
        if (sum == 0) UnbalancedCurrencies++;
        sum += amount;
        if (sum == 0) UnbalancedCurrencies--;
    }

    static void Read<T>(BinaryReader reader, Chunked<T> list)
        where T : unmanaged => list.Read(reader.BaseStream, reader.ReadInt32());
}
