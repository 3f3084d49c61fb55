namespace Purse.Load;

/// <summary>What a load came to.</summary>
/// <param name="LatencyMillisecondsP50">Of one request, batched or not.</param>
public sealed record Measured(
    string Name, long Transfers, int Clients, int Batch, double TransfersPerSecond, double LatencyMillisecondsP50, double LatencyMillisecondsP99, double LatencyMillisecondsMax, long Refused)
{
    /// <summary>Of the processes that answered, where it was looked at.</summary>
    public double? ServerCpuSeconds { get; init; }

    /// <param name="latencyTicks">Stopwatch ticks, one for each request, in any order; sorted in place.</param>
    public static Measured From(string name, long transfers, int clients, int batch, TimeSpan took, long[] latencyTicks, long refused)
    {
        Array.Sort(latencyTicks);
        double At(double share) => latencyTicks.Length == 0
            ? 0
            : latencyTicks[Math.Min(latencyTicks.Length - 1, (int)(latencyTicks.Length * share))] * 1000.0 / System.Diagnostics.Stopwatch.Frequency;
        return new Measured(name, transfers, clients, batch, transfers / took.TotalSeconds, At(0.5), At(0.99), At(1), refused);
    }
}
