namespace Purse.Ledger;

public enum HoldStatus : byte
{
    Pending = 0,
    Captured = 1,
    Voided = 2,
    Expired = 3,
}

/// <summary>Money of a payer set aside for one payee, and what became of it.</summary>
public struct Hold
{
    public Int128 Amount;

    /// <summary>What a capture in part gave back, on the way to ending the hold.</summary>
    public Int128 Released;

    /// <summary>The held event.</summary>
    public ulong Sequence;

    /// <summary>The event that ended it, 0 while it is pending.</summary>
    public ulong EndSequence;

    /// <summary>When it is due, 0 for never.</summary>
    public long ExpiresAtMicros;

    public uint Account;
    public uint Counterparty;
    public uint Currency;
    public HoldStatus Status;
    public byte Reserved1;
    public ushort Reserved2;

    // Fills the struct up to its alignment, so that no byte of its written form is left to chance.
    public ulong Reserved3;
}

/// <summary>All holds in the order of their events, and the due ones in the order of their time. Ended ones stay, to answer for themselves.</summary>
public sealed class Holds
{
    readonly Chunked<Hold> _holds = new();

    // By time, then by age, so that all replicas of a state expire in the same order.
    readonly PriorityQueue<int, (long ExpiresAtMicros, int Index)> _due = new();

    public int Count => _holds.Count;

    public ref Hold this[int index] => ref _holds[index];

    /// <summary>The index of the hold made by this event, -1 where the event made none.</summary>
    public int Find(ulong sequence)
    {
        int low = 0, high = _holds.Count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (_holds[middle].Sequence < sequence) low = middle + 1;
            else high = middle;
        }

        return low < _holds.Count && _holds[low].Sequence == sequence ? low : -1;
    }

    internal void Add(in Hold hold)
    {
        _holds.Add() = hold;
        if (hold.ExpiresAtMicros != 0) _due.Enqueue(_holds.Count - 1, (hold.ExpiresAtMicros, _holds.Count - 1));
    }

    /// <summary>The first pending hold that is due at this time, -1 where none is.</summary>
    public int FirstDue(long timeMicros)
    {
        while (_due.TryPeek(out int index, out (long ExpiresAtMicros, int) at))
        {
            if (_holds[index].Status == HoldStatus.Pending) return at.ExpiresAtMicros <= timeMicros ? index : -1;
            _due.Dequeue();
        }

        return -1;
    }

    internal void Write(BinaryWriter writer)
    {
        writer.Write(_holds.Count);
        writer.Flush();
        _holds.Write(writer.BaseStream);
    }

    internal void Read(BinaryReader reader)
    {
        _holds.Read(reader.BaseStream, reader.ReadInt32());
        for (int i = 0; i < _holds.Count; i++)
        {
            if (_holds[i].Status == HoldStatus.Pending && _holds[i].ExpiresAtMicros != 0) _due.Enqueue(i, (_holds[i].ExpiresAtMicros, i));
        }
    }
}
