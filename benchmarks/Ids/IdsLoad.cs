using System.Buffers.Binary;
using System.Diagnostics;

namespace Purse.Ids;

/// <summary>What remembering ids for ever costs in one way.</summary>
/// <param name="FirstNanoseconds">Per transfer of the first million: its id is looked up, is not there, and is remembered.</param>
/// <param name="LastNanoseconds">The same of the last million.</param>
/// <param name="CpuNanoseconds">Processor time per transfer, what runs beside included.</param>
/// <param name="SlowestBatchMilliseconds">Of all batches.</param>
/// <param name="OldNanoseconds">Per lookup of an old id, in batches.</param>
/// <param name="MemoryBytesPerId">What the process has more of than before, once all is settled.</param>
/// <param name="OldMemoryBytesPerId">Of an id that is not a recent one, where that can be told apart.</param>
public sealed record IdsMeasured(
    string Way, long Ids, double FirstNanoseconds, double LastNanoseconds, double CpuNanoseconds, double SlowestBatchMilliseconds, double OldNanoseconds,
    double MemoryBytesPerId, double? OldMemoryBytesPerId, double DiskBytesPerId);

/// <summary>One way to remember every id for ever, exactly. The journal is durable without it.</summary>
public abstract class IdsWay : IDisposable
{
    public abstract string Name { get; }

    /// <summary>Each must be new; each is remembered by every second event from this one on.</summary>
    /// <returns>How many were there already.</returns>
    public abstract int Remember(ReadOnlySpan<UInt128> ids, ReadOnlySpan<uint> homes, ulong firstSequence);

    /// <summary>How many of them are found, with the sequence they were remembered by.</summary>
    public abstract int Find(ReadOnlySpan<UInt128> ids, ReadOnlySpan<uint> homes, ReadOnlySpan<ulong> sequences);

    /// <summary>Waits for what is done beside.</summary>
    public abstract void Settle();

    public virtual double? OldMemoryBytesPerId => null;

    public abstract void Dispose();
}

/// <summary>The same ids, seeded, for each way.</summary>
public static class IdsLoad
{
    const int Batch = 4_096;
    public const uint Homes = 10_000;
    const int OldLookups = 50 * Batch;

    static UInt128 Id(ulong n) => new(Mix(n), Mix(n ^ 0x5bd1_e995_0000_0000));

    static uint Home(ulong n) => 1 + (uint)(Mix(n + 7) % Homes);

    static ulong Mix(ulong n)
    {
        n = (n + 0x9e37_79b9_7f4a_7c15) * 0xbf58_476d_1ce4_e5b9;
        n = (n ^ (n >> 27)) * 0x94d0_49bb_1331_11eb;
        return n ^ (n >> 31);
    }

    static ulong SequenceOf(ulong n) => 2 * n + 1;

    public static IdsMeasured Run(Func<IdsWay> start, string folder, long count, Action<double> progress)
    {
        long memoryBefore = MemoryBytes();
        using IdsWay way = start();
        UInt128[] ids = new UInt128[Batch];
        uint[] homes = new uint[Batch];
        long batches = count / Batch, first = Math.Min(batches, 1_000_000 / Batch), slowest = 0;
        long[] ticks = new long[batches];
        TimeSpan cpuBefore = Process.GetCurrentProcess().TotalProcessorTime;
        for (long batch = 0; batch < batches; batch++)
        {
            for (int i = 0; i < Batch; i++) (ids[i], homes[i]) = (Id((ulong)(batch * Batch + i)), Home((ulong)(batch * Batch + i)));
            long started = Stopwatch.GetTimestamp();
            if (way.Remember(ids, homes, SequenceOf((ulong)(batch * Batch))) != 0) throw new IOException($"{way.Name} says that it had an id before.");
            ticks[batch] = Stopwatch.GetTimestamp() - started;
            slowest = Math.Max(slowest, ticks[batch]);
            if (batch % 64 == 0) progress((double)batch / batches);
        }

        way.Settle();
        double cpu = (Process.GetCurrentProcess().TotalProcessorTime - cpuBefore).TotalNanoseconds / (batches * Batch);
        double Nanoseconds(ReadOnlySpan<long> some) => some.ToArray().Sum() * 1e9 / Stopwatch.Frequency / ((double)some.Length * Batch);

        ulong[] sequences = new ulong[Batch];
        Random random = new(1);
        Stopwatch old = new();
        for (int round = 0; round < OldLookups / Batch; round++)
        {
            for (int i = 0; i < Batch; i++)
            {
                ulong n = (ulong)random.NextInt64(batches * Batch);
                (ids[i], homes[i], sequences[i]) = (Id(n), Home(n), SequenceOf(n));
            }

            old.Start();
            int found = way.Find(ids, homes, sequences);
            old.Stop();
            if (found != Batch) throw new IOException($"{way.Name} has forgotten {Batch - found} of {Batch} ids.");
        }

        long disk = Directory.Exists(folder) ? Directory.EnumerateFiles(folder, "*", SearchOption.AllDirectories).Where(file => !file.EndsWith("events", StringComparison.Ordinal)).Sum(file => new FileInfo(file).Length) : 0;
        double all = batches * Batch;
        return new IdsMeasured(
            way.Name, batches * Batch, Nanoseconds(ticks.AsSpan(0, (int)first)), Nanoseconds(ticks.AsSpan((int)(batches - first))), cpu, slowest * 1e3 / Stopwatch.Frequency,
            old.Elapsed.TotalNanoseconds / OldLookups, (MemoryBytes() - memoryBefore) / all, way.OldMemoryBytesPerId, disk / all);
    }

    /// <summary>Memory of the process that is no file's, once the collector has given back what it can.</summary>
    static long MemoryBytes()
    {
        GC.Collect(GC.MaxGeneration, GCCollectionMode.Aggressive, blocking: true, compacting: true);
        string line = File.ReadLines("/proc/self/status").First(one => one.StartsWith("RssAnon:", StringComparison.Ordinal));
        return long.Parse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1]) * 1024;
    }

    /// <summary>20 bytes: the id, and the home it belongs to.</summary>
    internal static void WriteKey(Span<byte> key, UInt128 id, uint home)
    {
        BinaryPrimitives.WriteUInt128LittleEndian(key, id);
        BinaryPrimitives.WriteUInt32LittleEndian(key[16..], home);
    }
}
