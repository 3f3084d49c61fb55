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

    /// <summary>A capture across partitions is under way: until it is decided, the hold does not expire.</summary>
    public bool IsCapturing;

    // Fills the struct up to its alignment, so that no byte of its written form is left to chance.
    public ushort Reserved;

    /// <summary>The event that its id is remembered by, where that is not the held event: payee in another partition.</summary>
    public ulong FinishedSequence;
}

/// <summary>All holds in the order of their events, and the due ones in the order of their time. Ended ones stay, to answer for themselves.</summary>
public sealed class Holds
{
    readonly Chunked<Hold> _holds = new();

    // By time, then by age, so that all replicas of a state expire in the same order.
    readonly PriorityQueue<int, (long ExpiresAtMicros, int Index)> _due = new();

    // By the event that the id is remembered by, where that is another one.
    readonly Dictionary<ulong, int> _finished = [];

    public int Count => _holds.Count;

    public ref readonly Hold this[int index] => ref _holds[index];

    internal ref Hold Edit(int index) => ref _holds.Edit(index);

    /// <summary>The index of the hold made by this event, or remembered by it; -1 where the event made none.</summary>
    public int Find(ulong sequence)
    {
        if (_finished.TryGetValue(sequence, out int finished)) return finished;
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

    internal void Finish(int index, ulong sequence)
    {
        _holds.Edit(index).FinishedSequence = sequence;
        _finished.Add(sequence, index);
    }

    /// <summary>What was to be captured was not: it may be due again.</summary>
    internal void EndCapturing(int index)
    {
        ref Hold hold = ref _holds.Edit(index);
        hold.IsCapturing = false;
        if (hold.Status == HoldStatus.Pending && hold.ExpiresAtMicros != 0) _due.Enqueue(index, (hold.ExpiresAtMicros, index));
    }

    /// <summary>The first pending hold that is due at this time, -1 where none is.</summary>
    public int FirstDue(long timeMicros)
    {
        while (_due.TryPeek(out int index, out (long ExpiresAtMicros, int) at))
        {
            if (_holds[index] is { Status: HoldStatus.Pending, IsCapturing: false }) return at.ExpiresAtMicros <= timeMicros ? index : -1;
            _due.Dequeue();
        }

        return -1;
    }

    internal Chunked<Hold>.Image BeginImage(bool whileItChanges) => _holds.BeginImage(whileItChanges);

    internal void Read(BinaryReader reader)
    {
        _holds.Read(reader.BaseStream, reader.ReadInt32());
        for (int i = 0; i < _holds.Count; i++)
        {
            if (_holds[i] is { Status: HoldStatus.Pending, IsCapturing: false, ExpiresAtMicros: not 0 }) _due.Enqueue(i, (_holds[i].ExpiresAtMicros, i));
            if (_holds[i].FinishedSequence != 0) _finished.Add(_holds[i].FinishedSequence, i);
        }
    }
}
