using System.Runtime.InteropServices;

namespace Purse.Ledger;

/// <summary>
/// What the state knows of its latest events only, a generation for every so many of them: the ids that they are remembered by, and marks on the way
/// through each balance's events. Full generations that were written elsewhere since may be forgotten.
/// </summary>
/// <param name="seed">Secret, so that nobody can choose ids that collide. It changes no outcome.</param>
/// <param name="eventsPerGeneration">A snapshot has the generation that is not full yet only.</param>
public sealed class Generations(long seed, ulong eventsPerGeneration)
{
    const int SlotsMin = 4096;

    // The last one is being filled. Replaced, never changed: other threads read it.
    Generation[] _all = [new Generation(seed, 0, eventsPerGeneration, SlotsMin)];

    /// <summary>Oldest first. May be read by any thread.</summary>
    public ReadOnlySpan<Generation> All => Volatile.Read(ref _all);

    /// <summary>What was of events up to this one is not here any more.</summary>
    public ulong Forgotten => All[0].From;

    /// <summary>Of this very state, and no other: what was found for a state before is not true of the next.</summary>
    public object Life { get; } = new();

    internal Generation Last => _all[^1];

    /// <summary>The full ones that are still here, oldest first: nothing in them changes. May be read by any thread.</summary>
    /// <param name="sequence">Up to here all is in them, or forgotten; what is of later events is the deciding thread's own.</param>
    public ReadOnlySpan<Generation> Full(out ulong sequence)
    {
        ReadOnlySpan<Generation> all = All;
        sequence = all[^1].From;
        return all[..^1];
    }

    /// <summary>All up to this event is applied: a generation that ends there is full.</summary>
    internal void Reach(ulong sequence)
    {
        if (sequence % EventsPerPiece == 0 && Last.IsLinked) ClearAhead(Last, sequence);
        while (sequence >= Last.To) Begin(Last);
    }

    // As many slots as the one before came to have: in a steady load none ever grows.
    void Begin(Generation last) =>
        Volatile.Write(ref _all, [.. _all, new Generation(seed, last.To, last.To + eventsPerGeneration, last.SlotsCount, _ahead.Take(last.SlotsCount))]);

    const ulong EventsPerPiece = 1024;

    // Of the generation after the last.
    SlotsAhead _ahead;

    /// <summary>Through the second half of a generation.</summary>
    void ClearAhead(Generation last, ulong sequence)
    {
        ulong half = Math.Max(1, eventsPerGeneration / 2);
        if (sequence + half < last.To) return;
        // All of them a piece before its end, whatever the length of a piece.
        ulong done = Math.Min(half, sequence + half + EventsPerPiece - last.To);
        _ahead.Clear(last.SlotsCount, (int)((UInt128)(uint)last.SlotsCount * done / half));
    }

    /// <summary>Lets go of full generations that end there or before; false where there is none.</summary>
    public bool Forget(ulong sequence)
    {
        int forgotten = 0;
        while (forgotten < _all.Length - 1 && _all[forgotten].To <= sequence) forgotten++;
        if (forgotten == 0) return false;
        Volatile.Write(ref _all, _all[forgotten..]);
        return true;
    }

    /// <summary>Where the generation of the event after this one begins: a snapshot taken here has what comes after it.</summary>
    public ulong BoundaryAt(ulong sequence) => sequence / eventsPerGeneration * eventsPerGeneration;

    /// <summary>What a snapshot taken after this event has of them. What is added later is not in it, and nothing that is there changes.</summary>
    internal Image BeginImage(ulong lastSequence) => new(_all, BoundaryAt(lastSequence));

    internal sealed class Image(Generation[] all, ulong boundary)
    {
        readonly (Generation Of, int Ids, int Marks)[] _counts = [.. all.Select(generation => (generation, generation.Count, generation.MarksCount))];

        /// <summary>What is of events up to here is not in it.</summary>
        public ulong Boundary => boundary;

        public void Write(BinaryWriter writer)
        {
            writer.Write(boundary);
            writer.Write(_counts.Sum(one => one.Ids - one.Of.FirstAfter(boundary, one.Ids)));
            foreach ((Generation of, int ids, _) in _counts) of.Write(writer, of.FirstAfter(boundary, ids), ids);
            writer.Write(_counts.Sum(one => one.Marks - one.Of.FirstMarkAfter(boundary, one.Marks)));
            foreach ((Generation of, _, int marks) in _counts) of.WriteMarks(writer, of.FirstMarkAfter(boundary, marks), marks);
        }
    }

    internal void Read(BinaryReader reader, ulong lastSequence)
    {
        ulong boundary = reader.ReadUInt64();
        // Written with another length of generations, the first one is what is left of that.
        _all = [new Generation(seed, boundary, BoundaryAt(boundary) + eventsPerGeneration, SlotsMin)];
        Queue<BalanceMark> marks = [];
        List<RememberedId> ids = [];
        RememberedId id = default;
        for (int left = reader.ReadInt32(); left > 0; left--)
        {
            reader.BaseStream.ReadExactly(MemoryMarshal.AsBytes(new Span<RememberedId>(ref id)));
            if (left > 1 || !Injected.Is(LedgerDefect.IdForgottenOnRecovery)) ids.Add(id);
        }

        BalanceMark mark = default;
        for (int left = reader.ReadInt32(); left > 0; left--)
        {
            reader.BaseStream.ReadExactly(MemoryMarshal.AsBytes(new Span<BalanceMark>(ref mark)));
            marks.Enqueue(mark);
        }

        foreach (RememberedId one in ids)
        {
            // In the order in which they came to be, so that each comes into its generation.
            while (marks.TryPeek(out BalanceMark first) && first.Sequence <= one.Sequence) Add(marks.Dequeue());
            Reach(one.Sequence - 1);
            Last.Add(one.Home, one.TransactionId, one.Sequence);
        }

        while (marks.TryDequeue(out BalanceMark rest)) Add(rest);
        Reach(lastSequence);

        void Add(in BalanceMark one)
        {
            Reach(one.Sequence - 1);
            Last.Add(one);
        }
    }
}
