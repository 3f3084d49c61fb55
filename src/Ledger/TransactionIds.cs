using System.Runtime.InteropServices;

namespace Purse.Ledger;

/// <summary>
/// What was found of some ids outside of the state's memory, by whoever asks, before the state is asked. Remembered ids never change, so what was
/// found stays true.
/// </summary>
/// <param name="Sequence">All that was remembered by events up to this one was looked through.</param>
/// <param name="Id">For this id, and for the other.</param>
public readonly record struct Recalled(ulong Sequence, UInt128 Id, UInt128 OtherId, ArraySegment<RememberedId> Found)
{
    /// <summary>Of an id that more homes used than this, not all were looked for where no home was told.</summary>
    public const int HomesMax = 100;
}

/// <summary>
/// Every transaction id ever decided, for ever and exactly. Those of the latest events are in memory, a generation for every so many events; those of
/// generations that were written elsewhere since may be forgotten, and are recalled from there by whoever asks (<see cref="Recall"/>).
/// </summary>
/// <param name="seed">Secret, so that nobody can choose ids that collide. It changes no outcome.</param>
/// <param name="eventsPerGeneration">A snapshot has the ids of the generation that is not full yet only.</param>
public sealed class TransactionIds(long seed, ulong eventsPerGeneration)
{
    const int SlotsMin = 4096;

    // The last one is being filled. Replaced, never changed: other threads read it.
    IdGeneration[] _generations = [new IdGeneration(seed, 0, eventsPerGeneration, SlotsMin)];
    Recalled _recalled;

    /// <summary>How many were ever decided.</summary>
    public ulong Count { get; private set; }

    /// <summary>Ids that are remembered by events up to this one are not here any more.</summary>
    public ulong Forgotten => Volatile.Read(ref _generations)[0].From;

    /// <summary>The full generations that are still here, oldest first. May be read by any thread.</summary>
    /// <param name="sequence">Up to here all ids are in them, or forgotten; those of later events are the deciding thread's own.</param>
    public ReadOnlySpan<IdGeneration> Full(out ulong sequence)
    {
        IdGeneration[] generations = Volatile.Read(ref _generations);
        sequence = generations[^1].From;
        return generations.AsSpan(0, generations.Length - 1);
    }

    /// <summary>Of this very state, and no other: what was found for a state before is not true of the next.</summary>
    public object Life { get; } = new();

    /// <summary>The first event of what was decided under this id in this home; 0 where nothing was.</summary>
    public ulong Find(uint home, UInt128 id)
    {
        CheckRecalled(id);
        for (int i = _generations.Length - 1; i >= 0 && _generations[i].To > _recalled.Sequence; i--)
        {
            if (_generations[i].Find(home, id) is not 0 and ulong sequence) return sequence;
        }

        foreach (ref readonly RememberedId one in _recalled.Found.AsSpan())
        {
            if (one.Home == home && one.TransactionId == id) return one.Sequence;
        }

        return 0;
    }

    /// <summary>The uses of this id in its homes, but no more than so many.</summary>
    public List<RememberedId> FindAll(UInt128 id, int max)
    {
        Check.That(max <= Recalled.HomesMax + 1, "no more homes are looked through than are recalled");
        CheckRecalled(id);
        List<RememberedId> found = [];
        for (int i = _generations.Length - 1; i >= 0 && _generations[i].To > _recalled.Sequence; i--) _generations[i].FindAll(id, found, max);
        foreach (ref readonly RememberedId one in _recalled.Found.AsSpan())
        {
            if (found.Count < max && one.TransactionId == id) found.Add(one);
        }

        return found;
    }

    /// <summary>Whether so many homes used it that not all are known here.</summary>
    public bool IsCrowded(UInt128 id)
    {
        int count = 0;
        foreach (ref readonly RememberedId one in _recalled.Found.AsSpan()) count += one.TransactionId == id ? 1 : 0;
        return count > Recalled.HomesMax;
    }

    /// <summary>Has the id's place in memory brought near, so that a later look does not wait for it.</summary>
    public void Prefetch(UInt128 id) => _generations[^1].Prefetch(id);

    /// <summary>What holds for the ids that are asked for next.</summary>
    public void Recall(in Recalled recalled) => _recalled = recalled;

    void CheckRecalled(UInt128 id)
    {
        if (Forgotten == 0) return;
        if (_recalled.Sequence < Forgotten || (_recalled.Id != id && _recalled.OtherId != id)) Check.Fail("an id is asked for only when it was looked for where older ones are");
    }

    public void Add(uint home, UInt128 id, ulong sequence)
    {
        Reach(sequence - 1);
        _generations[^1].Add(home, id, sequence);
        Count++;
    }

    /// <summary>All up to this event is applied: a generation that ends there is full.</summary>
    public void Reach(ulong sequence)
    {
        while (sequence >= _generations[^1].To) Begin(_generations[^1]);
    }

    // As many slots as the one before came to have: in a steady load none ever grows.
    void Begin(IdGeneration last) => Volatile.Write(ref _generations, [.. _generations, new IdGeneration(seed, last.To, last.To + eventsPerGeneration, last.SlotsCount)]);

    /// <summary>Makes all ready to be asked; fails where an id was decided twice.</summary>
    public void Link()
    {
        foreach (IdGeneration generation in _generations) generation.Link();
    }

    /// <summary>Lets go of full generations that end there or before: their ids are found elsewhere.</summary>
    public void Forget(ulong sequence)
    {
        int forgotten = 0;
        while (forgotten < _generations.Length - 1 && _generations[forgotten].To <= sequence) forgotten++;
        if (forgotten > 0) Volatile.Write(ref _generations, _generations[forgotten..]);
    }

    /// <summary>Where the generation of the event after this one begins: a snapshot taken here has the ids after it.</summary>
    public ulong BoundaryAt(ulong sequence) => sequence / eventsPerGeneration * eventsPerGeneration;

    internal void Write(BinaryWriter writer, ulong lastSequence)
    {
        ulong boundary = BoundaryAt(lastSequence);
        writer.Write(Count);
        writer.Write(boundary);
        writer.Write(_generations.Sum(generation => generation.CountAfter(boundary)));
        foreach (IdGeneration generation in _generations) generation.Write(writer, boundary);
    }

    internal void Read(BinaryReader reader, ulong lastSequence)
    {
        ulong count = reader.ReadUInt64(), boundary = reader.ReadUInt64();
        // Written with another length of generations, the first one is what is left of that.
        _generations = [new IdGeneration(seed, boundary, BoundaryAt(boundary) + eventsPerGeneration, SlotsMin)];
        RememberedId one = default;
        for (int left = reader.ReadInt32(); left > 0; left--)
        {
            reader.BaseStream.ReadExactly(MemoryMarshal.AsBytes(new Span<RememberedId>(ref one)));
            if (left > 1 || !Injected.Is(LedgerDefect.IdForgottenOnRecovery)) Add(one.Home, one.TransactionId, one.Sequence);
        }

        Count = count;
        Reach(lastSequence);
    }
}
