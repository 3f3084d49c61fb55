namespace Purse.Ledger;

/// <summary>One reversal of a transfer, a capture or a transaction.</summary>
public struct Reversal
{
    /// <summary>What could still be taken back after it, minor units; of a transaction, which is reversed in full, 0.</summary>
    public Int128 Left;

    /// <summary>The first event of what it takes back.</summary>
    public ulong Original;

    /// <summary>Its own first event.</summary>
    public ulong Sequence;

    /// <summary>1 + the index of the reversal of the same original before it, 0 for none.</summary>
    public ulong Previous;

    // Fills the struct up to its alignment, so that no byte of its written form is left to chance.
    public ulong Reserved;
}

/// <summary>All reversals in the order of their events, found by what they take back.</summary>
public sealed class Reversals
{
    readonly Chunked<Reversal> _reversals = new();

    /// <summary>1 + the index of the newest reversal, by the original's first event.</summary>
    readonly Dictionary<ulong, int> _newest = [];

    /// <summary>What can still be taken back of what this event began; null where nothing of it was yet.</summary>
    public Int128? LeftOf(ulong original) => _newest.TryGetValue(original, out int number) ? _reversals[number - 1].Left : null;

    /// <summary>The last reversals of what this event began, so many at most, oldest first.</summary>
    public List<Reversal> Of(ulong original, int max)
    {
        List<Reversal> found = [];
        for (int number = _newest.GetValueOrDefault(original); number != 0 && found.Count < max; number = (int)_reversals[number - 1].Previous) found.Add(_reversals[number - 1]);
        found.Reverse();
        return found;
    }

    internal void Add(ulong original, ulong sequence, Int128 left)
    {
        _reversals.Add() = new Reversal { Original = original, Sequence = sequence, Left = left, Previous = (ulong)_newest.GetValueOrDefault(original) };
        _newest[original] = _reversals.Count;
    }

    /// <summary>The newest reversal of this original was one across partitions: its id is remembered by another event.</summary>
    internal void Finish(ulong original, ulong sequence) => _reversals.Edit(_newest[original] - 1).Sequence = sequence;

    internal Chunked<Reversal>.Image BeginImage(bool whileItChanges) => _reversals.BeginImage(whileItChanges);

    internal void Read(BinaryReader reader)
    {
        _reversals.Read(reader.BaseStream, reader.ReadInt32());
        for (int i = 0; i < _reversals.Count; i++) _newest[_reversals[i].Original] = i + 1;
    }
}
