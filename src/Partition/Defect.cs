namespace Purse.Partitions;

/// <summary>
/// Deliberate mistakes, by which the simulator proves that it would find such. Off everywhere but on a thread on which the simulator turned
/// one on; nothing else can.
/// </summary>
internal enum PartitionDefect
{
    None = 0,

    /// <summary>Commands are answered when they are appended.</summary>
    ReplyBeforeFlush,

    /// <summary>A snapshot takes in blocks that nothing vouches for yet.</summary>
    SnapshotTooFar,

    /// <summary>Recovery goes on one block too late after a snapshot.</summary>
    SnapshotOneBlockLate,

    /// <summary>A command that was under way when the journal failed is said to have left nothing behind.</summary>
    BegunSaidToBeNone,

    /// <summary>Holds that are due are given back after the block has decided its commands.</summary>
    ExpiryAfterCommands,
}

internal static class Injected
{
    [ThreadStatic]
    static PartitionDefect Current;

    internal static bool Is(PartitionDefect defect) => Current == defect;

    internal static void Set(PartitionDefect defect) => Current = defect;
}
