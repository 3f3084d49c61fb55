namespace Purse.Journal;

/// <summary>
/// Deliberate mistakes, by which the simulator proves that it would find such. Off everywhere but on a thread on which the simulator turned
/// one on; nothing else can.
/// </summary>
internal enum JournalDefect
{
    None = 0,

    /// <summary>A writer that was deposed goes on.</summary>
    FencingOff,

    /// <summary>A writer answers without a look at whether it still owns the partition.</summary>
    ReadByDeposedWriter,

    /// <summary>A block says that the one before it was durable, whether it was or not.</summary>
    MarkBeyondDurable,

    /// <summary>A flush that failed counts as done.</summary>
    FailedFlushBelieved,

    /// <summary>After a failed flush, the last blocks are not written again.</summary>
    CacheBelieved,

    /// <summary>The epoch is written over itself, and one that cannot be read fences nobody. It was so once.</summary>
    EpochLostByTornWrite,

    /// <summary>A page of a run is believed, whatever its checksum says.</summary>
    RunPageBelieved,
}

internal static class Injected
{
    [ThreadStatic]
    static JournalDefect Current;

    internal static bool Is(JournalDefect defect) => Current == defect;

    internal static void Set(JournalDefect defect) => Current = defect;
}
