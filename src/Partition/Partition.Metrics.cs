using System.Diagnostics.Metrics;
using Purse.Journal;

namespace Purse.Partitions;

/// <summary>What operators look at. Any thread may read it; nothing here waits for the partition.</summary>
public sealed partial class Partition
{
    public const string MeterName = "Purse.Partition";

    static readonly Meter Instruments = new(MeterName);
    static readonly Histogram<double> FlushSeconds = Instruments.CreateHistogram(
        "purse.journal.flush.duration",
        "s",
        "Time to append waiting blocks and make them durable.",
        advice: new InstrumentAdvice<double> { HistogramBucketBoundaries = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5] });

    /// <summary>How often each outcome was decided since the process started.</summary>
    public Tally? Tally => Volatile.Read(ref _serving)?.Core.Tally;

    long _flushesCount;
    long _journalBytes;

    /// <summary>How often the journal was flushed since the process started, and how many bytes were appended to it.</summary>
    public long FlushesCount => Volatile.Read(ref _flushesCount);

    public long JournalBytes => Volatile.Read(ref _journalBytes);

    public ulong FlushedSequence => Volatile.Read(ref _serving)?.Journal.FlushedSequence ?? 0;

    /// <summary>The last block that is durable; null while it never served.</summary>
    public JournalFloor? FlushedFloor => Volatile.Read(ref _serving)?.Journal.FlushedFloor("this process");

    public ulong SnapshotSequence => Volatile.Read(ref _serving)?.SnapshotSequence ?? 0;

    /// <summary>Up to here the state was compared with a replay of the journal, or begun with.</summary>
    public ulong AuditedSequence => Volatile.Read(ref _serving)?.AuditedSequence ?? 0;

    public ulong Epoch => Volatile.Read(ref _serving)?.Journal.Epoch ?? 0;

    /// <summary>Commits across partitions that this one coordinates and has not ended.</summary>
    public int UndecidedCount => Volatile.Read(ref _serving)?.Core.UndecidedCount ?? 0;

    /// <summary>Commits that this one has prepared for others, which have not told it their decision.</summary>
    public int PreparedForOthersCount => Volatile.Read(ref _serving)?.Core.State.Attempts.PreparedForOthersCount ?? 0;

    /// <summary>How long the oldest of its own has been under way.</summary>
    public TimeSpan OldestUndecidedAge =>
        Volatile.Read(ref _serving)?.Core.OldestUndecidedMicros is > 0 and long began ? TimeSpan.FromMicroseconds(Math.Max(0, NowMicros() - began)) : TimeSpan.Zero;
}
