using System.Diagnostics;
using Purse.Journal;

namespace Purse.Load;

/// <summary>What the disk allows: as many bytes as a batch of transfers has in a journal, written and flushed, one after the other.</summary>
public static class DiskLoad
{
    /// <param name="bytesPerTransfer">Two events.</param>
    public static Measured Run(string name, string folder, long transfers, int batch, int bytesPerTransfer, Action<double> progress)
    {
        // Preallocated, as segments are: a flush writes no metadata.
        const int RingBytes = 64 * 1024 * 1024;
        Directory.CreateDirectory(folder);
        using IDiskFile file = new FileDisk(folder).Open("limit", writable: true, create: true);
        byte[] bytes = new byte[(batch * bytesPerTransfer + 4095) / 4096 * 4096];
        Random.Shared.NextBytes(bytes);
        long places = Math.Max(1, RingBytes / bytes.Length);
        for (long place = 0; place < places; place++) file.Write(bytes, place * bytes.Length);
        file.Flush();
        int flushes = (int)Math.Max(1, transfers / batch);
        long[] latencies = new long[flushes];
        Stopwatch watch = Stopwatch.StartNew();
        for (int i = 0; i < flushes; i++)
        {
            long started = Stopwatch.GetTimestamp();
            file.Write(bytes, i % places * bytes.Length);
            file.Flush();
            latencies[i] = Stopwatch.GetTimestamp() - started;
            progress((double)i / flushes);
        }

        return Measured.From(name, (long)flushes * batch, 1, batch, watch.Elapsed, latencies, 0);
    }
}
