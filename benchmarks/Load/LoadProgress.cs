using System.Diagnostics;
using System.Numerics;

namespace Purse.Load;

/// <summary>What a load has done so far, for who watches it. Sixteen steps to each doubling of a latency.</summary>
public sealed class LoadProgress
{
    const int Steps = 16;

    readonly int[] _latencies = new int[64 * Steps];
    long _done;

    public long Done => Volatile.Read(ref _done);

    public void Add(int transfers, long latencyTicks)
    {
        Interlocked.Add(ref _done, transfers);
        Interlocked.Increment(ref _latencies[Step(Math.Max(1, latencyTicks))]);
    }

    static int Step(long ticks)
    {
        int power = BitOperations.Log2((ulong)ticks);
        return power * Steps + (int)(power < 4 ? (ticks << (4 - power)) & (Steps - 1) : (ticks >> (power - 4)) & (Steps - 1));
    }

    /// <summary>Of the requests since the last look, within a sixteenth.</summary>
    public double[] TakeLatenciesMilliseconds(params ReadOnlySpan<double> shares)
    {
        int[] taken = new int[_latencies.Length];
        long count = 0;
        for (int i = 0; i < taken.Length; i++) count += taken[i] = Interlocked.Exchange(ref _latencies[i], 0);
        double[] milliseconds = new double[shares.Length];
        if (count == 0) return milliseconds;
        for (int k = 0; k < shares.Length; k++)
        {
            long rest = (long)(count * shares[k]);
            int step = 0;
            while (step < taken.Length - 1 && (rest -= taken[step]) >= 0) step++;
            milliseconds[k] = Math.Pow(2, step / Steps) * (1 + (step % Steps + 0.5) / Steps) * 1000 / Stopwatch.Frequency;
        }

        return milliseconds;
    }
}
