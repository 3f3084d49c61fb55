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
    Recalled _recalled;

    public Generations Generations { get; } = new(seed, eventsPerGeneration);

    /// <summary>How many were ever decided.</summary>
    public ulong Count { get; private set; }

    /// <summary>The first event of what was decided under this id in this home; 0 where nothing was.</summary>
    public ulong Find(uint home, UInt128 id)
    {
        CheckRecalled(id);
        ReadOnlySpan<Generation> generations = Generations.All;
        for (int i = generations.Length - 1; i >= 0 && generations[i].To > _recalled.Sequence; i--)
        {
            if (generations[i].Find(home, id) is not 0 and ulong sequence) return sequence;
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
        ReadOnlySpan<Generation> generations = Generations.All;
        for (int i = generations.Length - 1; i >= 0 && generations[i].To > _recalled.Sequence; i--) generations[i].FindAll(id, found, max);
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

    /// <summary>It will be asked for soon.</summary>
    public void Prefetch(UInt128 id) => Generations.Last.Prefetch(id);

    /// <summary>What holds for the ids that are asked for next.</summary>
    public void Recall(in Recalled recalled) => _recalled = recalled;

    void CheckRecalled(UInt128 id)
    {
        if (Generations.Forgotten == 0) return;
        if (_recalled.Sequence < Generations.Forgotten || (_recalled.Id != id && _recalled.OtherId != id)) Check.Fail("an id is asked for only when it was looked for where older ones are");
    }

    public void Add(uint home, UInt128 id, ulong sequence)
    {
        Generations.Reach(sequence - 1);
        Generations.Last.Add(home, id, sequence);
        Count++;
    }

    internal void Read(BinaryReader reader) => Count = reader.ReadUInt64();

    /// <summary>Makes all ready to be asked; fails where an id was decided twice.</summary>
    public void Link()
    {
        foreach (Generation generation in Generations.All) generation.Link();
    }
}
