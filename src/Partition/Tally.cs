using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>How often each outcome was decided. The partition's thread counts; any thread may look.</summary>
public sealed class Tally
{
    // Outcomes are sparse: those that the ledger writes, and the transient ones from 1000 on.
    const int TransientFirst = 1000;
    const int OutcomesMax = 256;
    readonly long[] _counts = new long[2 * OutcomesMax];

    public void Add(Outcome outcome) => _counts[outcome < (Outcome)TransientFirst ? (int)outcome : (int)outcome - TransientFirst + OutcomesMax]++;

    public IEnumerable<(Outcome Outcome, long Count)> All
    {
        get
        {
            for (int i = 0; i < _counts.Length; i++)
            {
                if (Volatile.Read(ref _counts[i]) is > 0 and long count) yield return ((Outcome)(i < OutcomesMax ? i : i - OutcomesMax + TransientFirst), count);
            }
        }
    }
}
