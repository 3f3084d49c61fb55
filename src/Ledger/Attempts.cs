using System.Runtime.InteropServices;

namespace Purse.Ledger;

/// <summary>Where the events of something end in one partition.</summary>
public readonly record struct Part(int Partition, ulong Sequence);

/// <summary>What one side says of its part of an attempt: for, or against with the figures that explain it.</summary>
public struct Vote
{
    /// <summary><see cref="Outcome.Done"/> is a vote for.</summary>
    public Outcome Outcome;

    /// <summary>The lowest posting that it refuses, and whether for its payee's sake.</summary>
    public int Posting;
    public bool IsAboutPayee;

    /// <summary>The balance that the refusal is about, and the limit that it would have passed, minor units.</summary>
    public Int128 Posted;
    public Int128 Held;
    public Int128 Incoming;
    public Int128 Bound;

    public readonly bool IsRefusal => Outcome != Outcome.Done;

    /// <summary>Whether this refusal comes first in the documented order of checks: posting by posting, the payer before the payee.</summary>
    public readonly bool Precedes(in Vote other) => (Posting, IsAboutPayee ? 1 : 0).CompareTo((other.Posting, other.IsAboutPayee ? 1 : 0)) < 0;
}

/// <summary>What a coordinator asks a participant to prepare: the postings that touch accounts there, by name, since numbers are each partition's own.</summary>
public sealed class Preparation
{
    public required int Coordinator { get; init; }

    /// <summary>The coordinator's head: what the attempt is known by between partitions.</summary>
    public required ulong Attempt { get; init; }

    public required UInt128 TransactionId { get; init; }

    public required EventFlags Flags { get; init; }

    /// <summary>Amounts in minor units: their scale is that of the currency, so that they mean the same where it was not heard of yet.</summary>
    public required Posting[] Postings { get; init; }

    public Erasable? Description { get; init; }

    public Erasable? Metadata { get; init; }
}

public enum AttemptStatus : byte
{
    Prepared = 0,

    /// <summary>A participant voted against.</summary>
    Refused = 1,
    Committed = 2,
    Aborted = 3,
}

/// <summary>What an attempt set aside of one balance: the lowest and the highest that its postings take it to on the way.</summary>
public record struct Reservation(uint Account, uint Currency, Int128 Held, Int128 Incoming);

/// <summary>
/// One commit across partitions, as one side has it. The coordinator's lasts from its head until all sides show the decision (finished); a
/// participant's until the coordinator says that it needs it no more (low-water mark).
/// </summary>
public sealed class Attempt
{
    /// <summary>Its head in this partition.</summary>
    public ulong Sequence { get; internal set; }

    public int Coordinator { get; internal set; }

    /// <summary>Its head in the coordinator's partition; the two make its name.</summary>
    public ulong CoordinatorSequence { get; internal set; }

    public bool IsOwn { get; internal set; }

    public UInt128 TransactionId { get; internal set; }

    /// <summary>Number of the account that the id belongs to, 0 between two system accounts. The coordinator's only.</summary>
    public uint Home { get; internal set; }

    public EventFlags Flags { get; internal set; }

    /// <summary>The event that a capture or reversal is about. The coordinator's only.</summary>
    public ulong Original { get; internal set; }

    public long PreparedMicros { get; internal set; }

    public AttemptStatus Status { get; internal set; }

    /// <summary>First and last event of the decision, 0 before it.</summary>
    public ulong DecisionSequence { get; internal set; }

    public ulong LastSequence { get; internal set; }

    public long DecisionMicros { get; internal set; }

    /// <summary>Of a participant, its vote; of the coordinator, what it would refuse itself, which others may precede; when decided, the refusal.</summary>
    public Vote Vote
    {
        get => _against is Vote vote ? vote : default;
        internal set => _against = value.IsRefusal ? value : null;
    }

    object? _against;

    /// <summary>Of a hold, when it will be due, 0 for never.</summary>
    public long ExpiresAtMicros { get; internal set; }

    /// <summary>Of a reversal, what was left to take back.</summary>
    public Int128 Left { get; internal set; }

    public bool HasTexts { get; internal set; }

    /// <summary>Only at the coordinator, which has to pass them on.</summary>
    public Erasable? Description { get; internal set; }

    public Erasable? Metadata { get; internal set; }

    /// <summary>What this side knows of its postings, in order, and which of the transaction they are.</summary>
    public ReadOnlySpan<Movement> Movements => _movements.Span;

    public ReadOnlySpan<ushort> Indexes => _indexes.Span;

    public ReadOnlySpan<Reservation> Reservations => _reservations.Span;

    /// <summary>The other partitions that have a part in it, each once. Only at the coordinator.</summary>
    public ReadOnlySpan<int> Participants => _participants.Span;

    /// <summary>What whoever takes its steps keeps with it: no part of the state, and never written.</summary>
    public object? Companion { get; set; }

    /// <summary>Whether money is still set aside that would leave.</summary>
    internal bool HoldsAnything
    {
        get
        {
            foreach (Reservation one in Reservations)
            {
                if (one.Held != 0) return true;
            }

            return false;
        }
    }

    public bool IsTransaction => (Flags & EventFlags.Posting) != 0;

    public bool IsDecided => Status is AttemptStatus.Committed or AttemptStatus.Aborted;

    internal int MovementsCount => _movements.Count;

    OneOrMore<Movement> _movements;
    OneOrMore<ushort> _indexes;
    OneOrMore<Reservation> _reservations;
    OneOrMore<int> _participants;

    /// <summary>Other own attempts under the same id, of other homes; and whether there ever was one since it began.</summary>
    internal Attempt? NextSameId;
    internal Attempt? PreviousSameId;
    internal bool IsIdShared;

    internal void Add(in Movement movement, ushort index)
    {
        _movements.Add(movement);
        _indexes.Add(index);
    }

    internal void AddParticipant(int partition) => _participants.Add(partition);

    internal void Reserve(uint account, uint currency, Int128 held, Int128 incoming)
    {
        foreach (ref Reservation one in _reservations.Span)
        {
            if (one.Account != account || one.Currency != currency) continue;
            one.Held += held;
            one.Incoming += incoming;
            return;
        }

        _reservations.Add(new Reservation(account, currency, held, incoming));
    }

    /// <summary>What is still set aside of a balance; nothing after that.</summary>
    internal Reservation Release(uint account, uint currency)
    {
        foreach (ref Reservation one in _reservations.Span)
        {
            if (one.Account != account || one.Currency != currency) continue;
            Reservation released = one;
            (one.Held, one.Incoming) = (0, 0);
            return released;
        }

        return default;
    }

    internal void Clear()
    {
        (Sequence, Coordinator, CoordinatorSequence, IsOwn, TransactionId, Home, Flags, Original) = (0, 0, 0, false, 0, 0, EventFlags.None, 0);
        (PreparedMicros, Status, DecisionSequence, LastSequence, DecisionMicros, Vote) = (0, AttemptStatus.Prepared, 0, 0, 0, default);
        (ExpiresAtMicros, Left, HasTexts, Description, Metadata, Companion) = (0, 0, false, null, null, null);
        (NextSameId, PreviousSameId, IsIdShared) = (null, null, false);
        _movements.Clear();
        _indexes.Clear();
        _reservations.Clear();
        _participants.Clear();
    }

    internal void Write(BinaryWriter writer)
    {
        writer.Write(Sequence);
        writer.Write(Coordinator);
        writer.Write(CoordinatorSequence);
        writer.Write(IsOwn);
        Write(writer, TransactionId);
        writer.Write(Home);
        writer.Write((byte)Flags);
        writer.Write(Original);
        writer.Write(PreparedMicros);
        writer.Write((byte)Status);
        writer.Write(DecisionSequence);
        writer.Write(LastSequence);
        writer.Write(DecisionMicros);
        writer.Write((ushort)Vote.Outcome);
        writer.Write(Vote.Posting);
        writer.Write(Vote.IsAboutPayee);
        foreach (Int128 figure in (ReadOnlySpan<Int128>)[Vote.Posted, Vote.Held, Vote.Incoming, Vote.Bound, Left]) Write(writer, (UInt128)figure);
        writer.Write(ExpiresAtMicros);
        writer.Write(HasTexts);
        foreach (Erasable? text in (ReadOnlySpan<Erasable?>)[Description, Metadata])
        {
            writer.Write(text?.Utf8.Length ?? -1);
            if (text is null) continue;
            writer.Write(text.Salt);
            writer.Write(text.Utf8);
        }

        writer.Write(MovementsCount);
        for (int i = 0; i < MovementsCount; i++)
        {
            writer.Write(Indexes[i]);
            writer.Write(Movements[i].Payer);
            writer.Write(Movements[i].Payee);
            writer.Write(Movements[i].Currency);
            Write(writer, (UInt128)Movements[i].Amount);
        }

        writer.Write(_reservations.Count);
        foreach (Reservation one in Reservations)
        {
            writer.Write(one.Account);
            writer.Write(one.Currency);
            Write(writer, (UInt128)one.Held);
            Write(writer, (UInt128)one.Incoming);
        }
    }

    internal void Read(BinaryReader reader)
    {
        Sequence = reader.ReadUInt64();
        Coordinator = reader.ReadInt32();
        CoordinatorSequence = reader.ReadUInt64();
        IsOwn = reader.ReadBoolean();
        TransactionId = ReadUInt128(reader);
        Home = reader.ReadUInt32();
        Flags = (EventFlags)reader.ReadByte();
        Original = reader.ReadUInt64();
        PreparedMicros = reader.ReadInt64();
        Status = (AttemptStatus)reader.ReadByte();
        if (Injected.Is(LedgerDefect.DecisionNotInSnapshot)) Status = AttemptStatus.Prepared;
        DecisionSequence = reader.ReadUInt64();
        LastSequence = reader.ReadUInt64();
        DecisionMicros = reader.ReadInt64();
        Vote = new Vote
        {
            Outcome = (Outcome)reader.ReadUInt16(),
            Posting = reader.ReadInt32(),
            IsAboutPayee = reader.ReadBoolean(),
            Posted = (Int128)ReadUInt128(reader),
            Held = (Int128)ReadUInt128(reader),
            Incoming = (Int128)ReadUInt128(reader),
            Bound = (Int128)ReadUInt128(reader),
        };
        Left = (Int128)ReadUInt128(reader);
        ExpiresAtMicros = reader.ReadInt64();
        HasTexts = reader.ReadBoolean();
        Description = ReadText(reader);
        Metadata = ReadText(reader);
        for (int count = reader.ReadInt32(); count > 0; count--)
        {
            ushort index = reader.ReadUInt16();
            Add(new Movement(reader.ReadUInt32(), reader.ReadUInt32(), reader.ReadUInt32(), (Int128)ReadUInt128(reader)), index);
        }

        for (int count = reader.ReadInt32(); count > 0; count--) Reserve(reader.ReadUInt32(), reader.ReadUInt32(), (Int128)ReadUInt128(reader), (Int128)ReadUInt128(reader));
    }

    static Erasable? ReadText(BinaryReader reader)
    {
        int length = reader.ReadInt32();
        if (length < 0) return null;
        byte[] salt = reader.ReadBytes(Erasable.SaltSizeBytes);
        return new Erasable(reader.ReadBytes(length), salt);
    }

    static void Write(BinaryWriter writer, UInt128 value)
    {
        writer.Write((ulong)value);
        writer.Write((ulong)(value >> 64));
    }

    static UInt128 ReadUInt128(BinaryReader reader)
    {
        ulong low = reader.ReadUInt64();
        return new UInt128(reader.ReadUInt64(), low);
    }
}

/// <summary>All commits across partitions that this partition still has to know of.</summary>
public sealed class Attempts
{
    readonly Dictionary<ulong, Attempt> _bySequence = [];
    readonly Dictionary<(int Coordinator, ulong Attempt), Attempt> _ofOthers = [];

    /// <summary>The newest own attempt with this id; each names the one before it.</summary>
    readonly Dictionary<UInt128, Attempt> _ownById = [];

    /// <summary>Those whose id another home used at the same time: so rare that most have nothing to do with it, and so many where somebody wants it that each must be found at once.</summary>
    readonly Dictionary<(uint Home, UInt128 Id), Attempt> _ofSharedIds = [];

    /// <summary>Captures and reversals, by what they are about: there is one at a time.</summary>
    readonly Dictionary<ulong, Attempt> _about = [];

    // By partition: below it, all that it coordinates is finished as far as this partition is concerned, or prepared here.
    readonly SortedDictionary<int, ulong> _lowWater = [];
    readonly Dictionary<int, PriorityQueue<Attempt, ulong>> _remembered = [];
    readonly Stack<Attempt> _spare = new();

    // Own attempts that have a part in this partition, by partition.
    readonly Dictionary<int, int> _ownWith = [];

    public int OwnCount { get; private set; }

    /// <summary>How many own attempts this partition has a part in.</summary>
    public int OwnCountWith(int partition) => _ownWith.GetValueOrDefault(partition);

    public int Count => _bySequence.Count;

    /// <summary>How many this partition has prepared for others that have not decided.</summary>
    public int PreparedForOthersCount { get; private set; }

    /// <summary>What is not finished of what this partition coordinates, and what it still remembers of others'; in the order of their heads.</summary>
    public IEnumerable<Attempt> All => _bySequence.Values.OrderBy(a => a.Sequence);

    /// <summary>The one that was found last: mostly it is asked for again at once.</summary>
    Attempt? _last;

    public Attempt? Find(ulong head)
    {
        if (_last?.Sequence == head) return _last;
        return _bySequence.TryGetValue(head, out Attempt? found) ? _last = found : null;
    }

    public Attempt? Find(uint home, UInt128 id)
    {
        if (OwnCount == 0 || !_ownById.TryGetValue(id, out Attempt? newest)) return null;
        if (newest.Home == home) return newest;
        return newest.IsIdShared ? _ofSharedIds.GetValueOrDefault((home, id)) : null;
    }

    public Attempt? Find(int coordinator, ulong attempt) => _ofOthers.TryGetValue((coordinator, attempt), out Attempt? found) ? _last = found : null;

    /// <summary>The capture or reversal that is under way of what this event began.</summary>
    public Attempt? About(ulong original) => _about.Count == 0 ? null : _about.GetValueOrDefault(original);

    public IEnumerable<Attempt> FindAll(UInt128 id)
    {
        for (Attempt? one = OwnCount == 0 ? null : _ownById.GetValueOrDefault(id); one is not null; one = one.NextSameId) yield return one;
    }

    public ulong LowWaterOf(int coordinator) => _lowWater.GetValueOrDefault(coordinator);

    internal Attempt New() => _spare.TryPop(out Attempt? spare) ? spare : new Attempt();

    internal void Add(Attempt attempt, Chunked<Account> accounts)
    {
        _bySequence.Add(attempt.Sequence, attempt);
        _last = attempt;
        if (!attempt.IsOwn)
        {
            _ofOthers.Add((attempt.Coordinator, attempt.CoordinatorSequence), attempt);
            if (!_remembered.TryGetValue(attempt.Coordinator, out PriorityQueue<Attempt, ulong>? remembered)) _remembered[attempt.Coordinator] = remembered = new();
            bool isUndecided = attempt.Status == AttemptStatus.Prepared;
            if (isUndecided) PreparedForOthersCount++;
            if (!isUndecided || attempt.CoordinatorSequence >= LowWaterOf(attempt.Coordinator)) remembered.Enqueue(attempt, attempt.CoordinatorSequence);
            return;
        }

        foreach (Movement movement in attempt.Movements)
        {
            AddParticipant(attempt, accounts[(int)movement.Payer - 1].Peer);
            AddParticipant(attempt, accounts[(int)movement.Payee - 1].Peer);
        }

        OwnCount++;
        if (attempt.Original != 0 && attempt.Status != AttemptStatus.Aborted) _about.Add(attempt.Original, attempt);
        ref Attempt? newest = ref CollectionsMarshal.GetValueRefOrAddDefault(_ownById, attempt.TransactionId, out _);
        if (newest is not null)
        {
            if (!newest.IsIdShared) AddShared(newest);
            AddShared(attempt);
            attempt.NextSameId = newest;
            newest.PreviousSameId = attempt;
        }

        newest = attempt;
    }

    void AddShared(Attempt attempt)
    {
        attempt.IsIdShared = true;
        _ofSharedIds.Add((attempt.Home, attempt.TransactionId), attempt);
    }

    void AddParticipant(Attempt attempt, ushort peer)
    {
        if (peer == 0 || attempt.Participants.Contains(peer - 1)) return;
        attempt.AddParticipant(peer - 1);
        _ownWith[peer - 1] = OwnCountWith(peer - 1) + 1;
    }

    /// <summary>What it was about may be asked for again: it was refused, or is over.</summary>
    internal void Release(Attempt attempt)
    {
        if (attempt.Original != 0 && _about.GetValueOrDefault(attempt.Original) == attempt) _about.Remove(attempt.Original);
    }

    /// <summary>An own one that is finished.</summary>
    internal void Remove(Attempt attempt)
    {
        _bySequence.Remove(attempt.Sequence);
        OwnCount--;
        if (attempt.IsIdShared) _ofSharedIds.Remove((attempt.Home, attempt.TransactionId));
        Release(attempt);
        foreach (int partition in attempt.Participants) _ownWith[partition]--;
        if (attempt.NextSameId is Attempt next) next.PreviousSameId = attempt.PreviousSameId;
        if (attempt.PreviousSameId is Attempt previous) previous.NextSameId = attempt.NextSameId;
        else if (attempt.NextSameId is Attempt now) _ownById[attempt.TransactionId] = now;
        else _ownById.Remove(attempt.TransactionId);
        Forget(attempt);
    }

    void Forget(Attempt attempt)
    {
        if (_last == attempt) _last = null;
        attempt.Clear();
        _spare.Push(attempt);
    }

    /// <summary>A participant's, now that it is decided: one that the mark has passed is forgotten with the next mark.</summary>
    internal void Decided(Attempt attempt)
    {
        if (attempt.IsOwn) return;
        PreparedForOthersCount--;
        if (attempt.CoordinatorSequence < LowWaterOf(attempt.Coordinator)) _remembered[attempt.Coordinator].Enqueue(attempt, attempt.CoordinatorSequence);
    }

    /// <summary>Nothing below the mark is ever spoken of again, but for what is prepared here and waits for its decision.</summary>
    internal void Forget(int coordinator, ulong lowWater)
    {
        if (lowWater <= LowWaterOf(coordinator)) return;
        _lowWater[coordinator] = lowWater;
        if (!_remembered.TryGetValue(coordinator, out PriorityQueue<Attempt, ulong>? remembered)) return;
        while (remembered.TryPeek(out Attempt? first, out ulong attempt) && attempt < lowWater)
        {
            remembered.Dequeue();
            if (first.Status == AttemptStatus.Prepared) continue;
            _ofOthers.Remove((coordinator, attempt));
            _bySequence.Remove(first.Sequence);
            Forget(first);
        }
    }

    internal void Write(BinaryWriter writer)
    {
        writer.Write(_lowWater.Count);
        foreach ((int coordinator, ulong lowWater) in _lowWater)
        {
            writer.Write(coordinator);
            writer.Write(lowWater);
        }

        writer.Write(_bySequence.Count);
        foreach (Attempt attempt in All) attempt.Write(writer);
    }

    internal void Read(BinaryReader reader, Chunked<Account> accounts)
    {
        for (int count = reader.ReadInt32(); count > 0; count--)
        {
            int coordinator = reader.ReadInt32();
            _lowWater[coordinator] = reader.ReadUInt64();
        }

        for (int count = reader.ReadInt32(); count > 0; count--)
        {
            Attempt attempt = New();
            attempt.Read(reader);
            Add(attempt, accounts);
        }
    }
}
