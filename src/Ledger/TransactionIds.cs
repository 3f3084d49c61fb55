namespace Purse.Ledger;

/// <summary>One remembered id: who it belongs to, and the first event that was written for it.</summary>
public struct RememberedId
{
    public UInt128 TransactionId;
    public ulong Sequence;

    /// <summary>Number of the home account; 0 between two system accounts.</summary>
    public uint Home;
    public uint Reserved;
}

/// <summary>
/// Every transaction id ever decided, for ever and exactly, in the order of their events. The slots hash the id alone, so that one
/// probe finds the id in every home that used it.
/// </summary>
/// <param name="seed">Secret, so that nobody can choose ids that collide. It changes no outcome.</param>
public sealed class TransactionIds(long seed)
{
    readonly Chunked<RememberedId> _ids = new();
    ulong[] _slots = new ulong[4096];

    public int Count => _ids.Count;

    /// <summary>The first event of what was decided under this id in this home; 0 where nothing was.</summary>
    public ulong Find(uint home, UInt128 id)
    {
        ulong hash = Hash(id);
        for (ulong slot = hash; ; slot++)
        {
            ulong entry = _slots[slot & (ulong)(_slots.Length - 1)];
            if (entry == 0) return 0;
            // The upper half of the hash spares a look at an id that is another one.
            if (entry >> 32 != hash >> 32) continue;
            ref RememberedId one = ref _ids[(int)(uint)entry - 1];
            if (one.TransactionId == id && one.Home == home) return one.Sequence;
        }
    }

    /// <summary>The first events of this id in every home.</summary>
    public List<RememberedId> FindAll(UInt128 id)
    {
        List<RememberedId> found = [];
        for (ulong slot = Hash(id); ; slot++)
        {
            ulong entry = _slots[slot & (ulong)(_slots.Length - 1)];
            if (entry == 0) return found;
            if (_ids[(int)(uint)entry - 1].TransactionId == id) found.Add(_ids[(int)(uint)entry - 1]);
        }
    }

    public void Add(uint home, UInt128 id, ulong sequence)
    {
        Check.That(Find(home, id) == 0, "an id is decided once");
        if ((_ids.Count + 1) * 2 > _slots.Length) Rehash(_slots.Length * 2);
        _ids.Add() = new RememberedId { TransactionId = id, Sequence = sequence, Home = home };
        Insert(id, (uint)_ids.Count);
    }

    void Rehash(int length)
    {
        _slots = new ulong[length];
        for (int i = 0; i < _ids.Count; i++) Insert(_ids[i].TransactionId, (uint)i + 1);
    }

    void Insert(UInt128 id, uint number)
    {
        ulong hash = Hash(id), slot = hash;
        while (_slots[slot & (ulong)(_slots.Length - 1)] != 0) slot++;
        _slots[slot & (ulong)(_slots.Length - 1)] = (hash & 0xffff_ffff_0000_0000) | number;
    }

    ulong Hash(UInt128 id)
    {
        UInt128 product = (UInt128)((ulong)id ^ (ulong)seed ^ 0x9e3779b97f4a7c15) * ((ulong)(id >> 64) ^ ulong.RotateLeft((ulong)seed, 32) ^ 0xa0761d6478bd642f);
        return (ulong)product ^ (ulong)(product >> 64);
    }

    internal void Write(BinaryWriter writer)
    {
        writer.Write(_ids.Count);
        writer.Flush();
        _ids.Write(writer.BaseStream);
    }

    internal void Read(BinaryReader reader)
    {
        int count = reader.ReadInt32();
        _ids.Read(reader.BaseStream, count);
        int length = _slots.Length;
        while (count * 2 >= length) length *= 2;
        Rehash(length);
    }
}
