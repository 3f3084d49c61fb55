namespace Purse.Ledger;

/// <summary>One remembered id: who it belongs to, and the first event that was written for it.</summary>
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
/// Every transaction id ever decided, for ever and exactly, in the order of their events. The slots hash the id alone, so that one
/// probe finds the id in every home that used it: the first few are a chain, all others are found by home and id as well, so that an id
/// which a hostile caller uses in a million homes costs no more than any other.
/// </summary>
/// <param name="seed">Secret, so that nobody can choose ids that collide. It changes no outcome.</param>
public sealed class TransactionIds(long seed)
{
    const int ChainLengthMax = 8;

    readonly Chunked<RememberedId> _ids = new();
    readonly Dictionary<(UInt128 Id, uint Home), uint> _crowded = [];
    ulong[] _slots = new ulong[4096];
    int _slotsUsed;

    public int Count => _ids.Count;

    /// <summary>The first event of what was decided under this id in this home; 0 where nothing was.</summary>
    public ulong Find(uint home, UInt128 id)
    {
        uint number = First(id, out _);
        for (int steps = 0; number != 0; steps++)
        {
            if (steps == ChainLengthMax) return _crowded.TryGetValue((id, home), out number) ? _ids[(int)number - 1].Sequence : 0;
            ref RememberedId one = ref _ids[(int)number - 1];
            if (one.Home == home) return one.Sequence;
            number = one.Next;
        }

        return 0;
    }

    /// <summary>The uses of this id in its homes, but no more than so many.</summary>
    public List<RememberedId> FindAll(UInt128 id, int max)
    {
        List<RememberedId> found = [];
        for (uint number = First(id, out _); number != 0 && found.Count < max; number = _ids[(int)number - 1].Next) found.Add(_ids[(int)number - 1]);
        return found;
    }

    public void Add(uint home, UInt128 id, ulong sequence)
    {
        Check.That(Find(home, id) == 0, "an id is decided once");
        _ids.Add() = new RememberedId { TransactionId = id, Sequence = sequence, Home = home };
        Link((uint)_ids.Count);
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

    void Link(uint number)
    {
        ref RememberedId added = ref _ids[(int)number - 1];
        uint last = First(added.TransactionId, out ulong slot);
        if (last == 0)
        {
            if ((_slotsUsed + 1) * 2 > _slots.Length)
            {
                Grow(_slots.Length * 2);
                First(added.TransactionId, out slot);
            }

            _slots[slot & (ulong)(_slots.Length - 1)] = (Hash(added.TransactionId) & 0xffff_ffff_0000_0000) | number;
            _slotsUsed++;
            return;
        }

        // Those beyond the chain's first few stand behind them, the newest first.
        int length = 1;
        while (length < ChainLengthMax && _ids[(int)last - 1].Next is not 0 and uint next)
        {
            last = next;
            length++;
        }

        if (length == ChainLengthMax) _crowded.Add((added.TransactionId, added.Home), number);
        added.Next = _ids[(int)last - 1].Next;
        _ids[(int)last - 1].Next = number;
    }

    void Grow(int length)
    {
        ulong[] before = _slots;
        _slots = new ulong[length];
        foreach (ulong entry in before)
        {
            if (entry == 0) continue;
            ulong slot = Hash(_ids[(int)(uint)entry - 1].TransactionId);
            while (_slots[slot & (ulong)(length - 1)] != 0) slot++;
            _slots[slot & (ulong)(length - 1)] = entry;
        }
    }

    ulong Hash(UInt128 id)
    {
        UInt128 product = (UInt128)((ulong)id ^ (ulong)seed ^ 0x9e3779b97f4a7c15) * ((ulong)(id >> 64) ^ ulong.RotateLeft((ulong)seed, 32) ^ 0xa0761d6478bd642f);
        return (ulong)product ^ (ulong)(product >> 64);
    }

    public void Write(BinaryWriter writer)
    {
        writer.Write(_ids.Count);
        writer.Flush();
        _ids.Write(writer.BaseStream);
    }

    public void Read(BinaryReader reader)
    {
        int count = reader.ReadInt32();
        _ids.Read(reader.BaseStream, count);
        int length = _slots.Length;
        while (count * 2 >= length) length *= 2;
        _slots = new ulong[length];
        for (int i = 0; i < count; i++) _ids[i].Next = 0;
        for (uint number = 1; number <= count; number++)
        {
            if (number < count || !Injected.Is(LedgerDefect.IdForgottenOnRecovery)) Link(number);
        }
    }
}
