using System.IO.Hashing;

namespace Purse.Ledger;

/// <summary>
/// Account names by number and numbers by name. Numbers run from 1 in the order of the events that first name an account. Names lie
/// end to end in chunks of 1 MiB, so a name costs its length and about twelve bytes.
/// </summary>
/// <param name="seed">
/// Where names fall in the table: secret, so that nobody can choose names that collide. It changes no outcome.
/// </param>
public sealed class Names(long seed)
{
    const int ChunkBits = 20;

    readonly Chunked<uint> _offsets = new();
    byte[][] _chunks = [];
    uint _end;
    ulong[] _slots = new ulong[1024];

    public int Count => _offsets.Count;

    /// <summary>Names are kept for ever, so there is an end to them: 4 GiB, less room for those that one command may bring.</summary>
    public bool IsFull => _end > uint.MaxValue - (4u << ChunkBits);

    /// <summary>0 where the name was never spoken of. May be called from any thread, which finds what was there when it began.</summary>
    public uint Find(in AccountName name)
    {
        ulong hash = Hash(name.Utf8);
        ulong[] slots = Volatile.Read(ref _slots);
        for (ulong slot = hash; ; slot++)
        {
            ulong entry = Volatile.Read(ref slots[slot & (ulong)(slots.Length - 1)]);
            if (entry == 0) return 0;
            if (entry >> 32 == hash >> 32 && Utf8((uint)entry).SequenceEqual(name.Utf8)) return (uint)entry;
        }
    }

    public uint Add(ReadOnlySpan<byte> name)
    {
        Check.That(name.Length is > 0 and <= AccountName.LengthMax, "an account's name has 1 to 65 bytes");
        if ((_end >> ChunkBits) != (_end + (uint)name.Length) >> ChunkBits) _end = ((_end >> ChunkBits) + 1) << ChunkBits;
        Check.That(_end < uint.MaxValue - (1 << ChunkBits), "the names of a partition fit in 4 GiB");
        int chunk = (int)(_end >> ChunkBits);
        if (chunk == _chunks.Length)
        {
            byte[][] chunks = new byte[chunk + 1][];
            _chunks.CopyTo(chunks, 0);
            chunks[chunk] = new byte[1 << ChunkBits];
            Volatile.Write(ref _chunks, chunks);
        }

        int at = (int)(_end & ((1 << ChunkBits) - 1));
        _chunks[chunk][at] = (byte)name.Length;
        name.CopyTo(_chunks[chunk].AsSpan(at + 1));
        _offsets.Add() = _end;
        _end += (uint)name.Length + 1;

        if (_offsets.Count > _slots.Length / 4 * 3) Rehash(_slots.Length * 2);
        else Insert(_slots, Hash(name), (uint)_offsets.Count);
        return (uint)_offsets.Count;
    }

    /// <summary>May be called from any thread for a number that was published to it.</summary>
    public ReadOnlySpan<byte> Utf8(uint number)
    {
        uint offset = _offsets[(int)number - 1];
        byte[] chunk = Volatile.Read(ref _chunks)[offset >> ChunkBits];
        int at = (int)(offset & ((1 << ChunkBits) - 1));
        return chunk.AsSpan(at + 1, chunk[at]);
    }

    public AccountName this[uint number] => AccountName.FromTrusted(Utf8(number));

    void Rehash(int length)
    {
        ulong[] slots = new ulong[length];
        for (uint number = 1; number <= _offsets.Count; number++) Insert(slots, Hash(Utf8(number)), number);
        Volatile.Write(ref _slots, slots);
    }

    static void Insert(ulong[] slots, ulong hash, uint number)
    {
        ulong slot = hash;
        while (slots[slot & (ulong)(slots.Length - 1)] != 0) slot++;
        // The name is there before its number can be found.
        Volatile.Write(ref slots[slot & (ulong)(slots.Length - 1)], (hash & 0xffff_ffff_0000_0000) | number);
    }

    ulong Hash(ReadOnlySpan<byte> name) => XxHash3.HashToUInt64(name, seed);

    /// <summary>The first so many. May be called from any thread that was told how many there are.</summary>
    internal void Write(BinaryWriter writer, int count)
    {
        writer.Write(count);
        for (uint number = 1; number <= count; number++)
        {
            ReadOnlySpan<byte> name = Utf8(number);
            writer.Write((byte)name.Length);
            writer.Write(name);
        }
    }

    internal void Read(BinaryReader reader)
    {
        int count = reader.ReadInt32();
        Span<byte> name = stackalloc byte[AccountName.LengthMax];
        for (int i = 0; i < count; i++)
        {
            int length = reader.ReadByte();
            Check.That(length <= AccountName.LengthMax, "a snapshot's names are names");
            reader.BaseStream.ReadExactly(name[..length]);
            Add(name[..length]);
        }
    }
}
