using System.Numerics;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;

namespace Purse.Ledger;

/// <summary>One remembered id: who it belongs to, and the event that it is remembered by.</summary>
public struct RememberedId
{
    public UInt128 TransactionId;
    public ulong Sequence;

    /// <summary>Number of the home account; 0 between two system accounts.</summary>
    public uint Home;

    /// <summary>1 + the index of another home's use of the same id, 0 for none.</summary>
    public uint Next;
}

/// <summary>
/// What is remembered of so many events: their ids, exactly, and marks on the way through each balance's events, both in the order of the events. The slots hash the
/// id alone, so that one probe finds the id in every home
/// that used it: the first few are a chain, all others are found by home and id as well, so that an id which a hostile caller uses in a
/// million homes costs no more than any other. Once it is full nothing in it changes: any thread may look. Its marks any thread may read at any time. The
/// slots are made when somebody looks first: a replay that only remembers does not need them.
/// </summary>
/// <param name="seed">Secret, so that nobody can choose ids that collide. It changes no outcome.</param>
/// <param name="from">It is of the events after this one, up to and with the other.</param>
/// <param name="slots">How many to begin with, a power of two.</param>
/// <param name="cleared">As many, where they are there already; null where they are not.</param>
public sealed class Generation(long seed, ulong from, ulong to, int slots, ulong[]? cleared = null)
{
    const int ChainLengthMax = 8;

    // In steps as large as these a table grows seldom, and what has to move is little each time.
    const int GrowthBits = 4;

    readonly Chunked<RememberedId> _ids = new();
    readonly Dictionary<(UInt128 Id, uint Home), uint> _crowded = [];
    readonly Chunked<BalanceMark> _marks = new();
    int _marksCount;
    ulong[] _slots = [];
    ulong[]? _cleared = cleared;
    int _slotsUsed;
    SlotsAhead _ahead;
    volatile bool _isLinked;
    readonly Lock _linking = new();

    public ulong From => from;

    public ulong To => to;

    public int Count => _ids.Count;

    public int SlotsCount => Math.Max(_slots.Length, slots);

    /// <summary>Whether anybody looked for an id in it: its slots are there.</summary>
    internal bool IsLinked => _isLinked;

    public ref readonly RememberedId this[int index] => ref _ids[index];

    /// <summary>Whether any home used it.</summary>
    public bool Has(UInt128 id)
    {
        Link();
        return First(id, out _) != 0;
    }

    /// <summary>The first event of what was decided under this id in this home; 0 where nothing was.</summary>
    public ulong Find(uint home, UInt128 id)
    {
        Link();
        uint number = First(id, out _);
        for (int steps = 0; number != 0; steps++)
        {
            if (steps == ChainLengthMax) return _crowded.TryGetValue((id, home), out number) ? _ids[(int)number - 1].Sequence : 0;
            ref readonly RememberedId one = ref _ids[(int)number - 1];
            if (one.Home == home) return one.Sequence;
            number = one.Next;
        }

        return 0;
    }

    /// <summary>Adds the uses of this id in its homes, until there are so many.</summary>
    public void FindAll(UInt128 id, List<RememberedId> found, int max)
    {
        Link();
        for (uint number = First(id, out _); number != 0 && found.Count < max; number = _ids[(int)number - 1].Next) found.Add(_ids[(int)number - 1]);
    }

    /// <summary>Has the id's slot brought near, so that a later look does not wait for it.</summary>
    public unsafe void Prefetch(UInt128 id)
    {
        // An address that the collector moves away meanwhile is only of no use.
        if (Sse.IsSupported && _isLinked) Sse.Prefetch0(System.Runtime.CompilerServices.Unsafe.AsPointer(ref _slots[Hash(id) & (ulong)(_slots.Length - 1)]));
    }

    public int MarksCount => Volatile.Read(ref _marksCount);

    public ref readonly BalanceMark Mark(int index) => ref _marks[index];

    internal void Add(in BalanceMark mark)
    {
        _marks.Add() = mark;
        // It is there before it is counted.
        Volatile.Write(ref _marksCount, _marks.Count);
    }

    internal void Add(uint home, UInt128 id, ulong sequence)
    {
        _ids.Add() = new RememberedId { TransactionId = id, Sequence = sequence, Home = home };
        if (!_isLinked) return;
        Link((uint)_ids.Count);
        ClearAhead();
    }

    /// <summary>Makes the slots, if they are not there yet; fails where an id was decided twice.</summary>
    internal void Link()
    {
        if (_isLinked) return;
        lock (_linking)
        {
            if (_isLinked) return;
            int length = slots;
            while (length < _ids.Count * 2) length *= 2;
            _slots = _cleared?.Length == length ? _cleared : new ulong[length];
            _cleared = null;
            for (uint number = 1; number <= _ids.Count; number++) Link(number);
            _isLinked = true;
        }
    }

    /// <summary>1 + the index of the id's first use, 0 for none.</summary>
    /// <param name="slot">Where it is, or would be.</param>
    uint First(UInt128 id, out ulong slot)
    {
        ulong hash = Hash(id);
        for (slot = hash; ; slot++)
        {
            ulong entry = _slots[slot & (ulong)(_slots.Length - 1)];
            if (entry == 0) return 0;
            // The upper half of the hash spares a look at an id that is another one.
            if (entry >> 32 == hash >> 32 && _ids[(int)(uint)entry - 1].TransactionId == id) return (uint)entry;
        }
    }

    const string DecidedOnce = "an id is decided once";

    void Link(uint number)
    {
        ref RememberedId added = ref _ids.Edit((int)number - 1);
        uint last = First(added.TransactionId, out ulong slot);
        if (last == 0)
        {
            if ((_slotsUsed + 1) * 2 > _slots.Length)
            {
                Grow();
                First(added.TransactionId, out slot);
            }

            _slots[slot & (ulong)(_slots.Length - 1)] = (Hash(added.TransactionId) & 0xffff_ffff_0000_0000) | number;
            _slotsUsed++;
            return;
        }

        // Those beyond the chain's first few stand behind them, the newest first.
        int length = 1;
        Check.That(_ids[(int)last - 1].Home != added.Home, DecidedOnce);
        while (length < ChainLengthMax && _ids[(int)last - 1].Next is not 0 and uint next)
        {
            last = next;
            length++;
            Check.That(_ids[(int)last - 1].Home != added.Home, DecidedOnce);
        }

        if (length == ChainLengthMax) Check.That(_crowded.TryAdd((added.TransactionId, added.Home), number), DecidedOnce);
        added.Next = _ids[(int)last - 1].Next;
        _ids.Edit((int)last - 1).Next = number;
    }

    /// <summary>What the ids of so many events need, two of them each. It rarely needs more, and then doubles.</summary>
    ulong UsualLength => BitOperations.RoundUpToPowerOf2(to - from);

    int NextLength => Math.Max(_slots.Length * 2, (int)Math.Min((ulong)_slots.Length << GrowthBits, UsualLength));

    /// <summary>Through the second half of what has room here, so that the next slots are there when they are needed.</summary>
    void ClearAhead()
    {
        int half = _slots.Length / 4;
        if (_slotsUsed > half && (ulong)_slots.Length < UsualLength) _ahead.Clear(NextLength, (int)((long)NextLength * (_slotsUsed - half) / half));
    }

    void Grow()
    {
        const int EntriesAhead = 32;
        ulong[] before = _slots;
        int length = NextLength;
        _slots = _ahead.Take(length) ?? new ulong[length];
        for (int i = 0; i < before.Length; i++)
        {
            // The ids lie in another order than their slots: what comes later is on its way while this one moves.
            if (i + EntriesAhead < before.Length && before[i + EntriesAhead] is not 0 and ulong later) _ids.Prefetch((int)(uint)later - 1);
            ulong entry = before[i];
            if (entry == 0) continue;
            ulong slot = Hash(_ids[(int)(uint)entry - 1].TransactionId);
            while (_slots[slot & (ulong)(length - 1)] != 0) slot++;
            _slots[slot & (ulong)(length - 1)] = entry;
        }
    }

    ulong Hash(UInt128 id)
    {
        ulong high = Math.BigMul((ulong)id ^ (ulong)seed ^ 0x9e3779b97f4a7c15, (ulong)(id >> 64) ^ ulong.RotateLeft((ulong)seed, 32) ^ 0xa0761d6478bd642f, out ulong low);
        return low ^ high;
    }

    /// <summary>Of these ids, as bytes that are the same for whoever applied the same events.</summary>
    internal void Write(BinaryWriter writer, int from, int to)
    {
        for (int i = from; i < to; i++)
        {
            RememberedId one = _ids[i];
            one.Next = 0;
            writer.Write(MemoryMarshal.AsBytes(new ReadOnlySpan<RememberedId>(in one)));
        }
    }

    /// <summary>The index of the first id, of so many, that is remembered by a later event.</summary>
    internal int FirstAfter(ulong sequence, int count) => First(count, index => _ids[index].Sequence > sequence);

    internal void WriteMarks(BinaryWriter writer, int from, int to)
    {
        for (int i = from; i < to; i++) writer.Write(MemoryMarshal.AsBytes(new ReadOnlySpan<BalanceMark>(in _marks[i])));
    }

    internal int FirstMarkAfter(ulong sequence, int count) => First(count, index => _marks[index].Sequence > sequence);

    static int First(int count, Func<int, bool> isAfter)
    {
        int low = 0, high = count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (isAfter(middle)) high = middle;
            else low = middle + 1;
        }

        return low;
    }
}

/// <summary>Slots that will be needed, cleared piece by piece before: 32 MB of fresh memory at once took 80 ms, for which all requests waited.</summary>
struct SlotsAhead
{
    ulong[]? _slots;
    int _cleared;

    /// <param name="length">How many there will be.</param>
    /// <param name="count">How many are to be clear by now.</param>
    public void Clear(int length, int count)
    {
        if (_slots?.Length != length) (_slots, _cleared) = (GC.AllocateUninitializedArray<ulong>(length), 0);
        if (count <= _cleared) return;
        _slots.AsSpan(_cleared, count - _cleared).Clear();
        _cleared = count;
    }

    /// <summary>Null where they are not all clear, or not so many.</summary>
    public ulong[]? Take(int length)
    {
        ulong[]? slots = _slots?.Length == length && _cleared == length ? _slots : null;
        (_slots, _cleared) = (null, 0);
        return slots;
    }
}
