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

    /// <summary>A coordinator speaks of an attempt before that is durable.</summary>
    PrepareBeforeDurable,

    /// <summary>A coordinator tells the decision before that is durable.</summary>
    DecisionBeforeDurable,

    /// <summary>A participant votes or acknowledges before that is durable.</summary>
    VoteBeforeDurable,

    /// <summary>A caller is answered when the coordinator has decided, whatever the other sides show.</summary>
    AnsweredAtDecision,

    /// <summary>A vote that comes twice counts for two.</summary>
    VoteCountedTwice,

    /// <summary>Of several refusals, the one that was heard first counts.</summary>
    FirstRefusalHeardWins,

    /// <summary>What was not answered is not said again.</summary>
    NothingSaidAgain,

    /// <summary>A recovering coordinator does not take up what it finds undecided.</summary>
    AttemptsNotTakenUp,

    /// <summary>A recovering coordinator ends as refused what it had committed.</summary>
    AbortAfterCommit,

    /// <summary>A participant that was told to abort what it never heard of does not remember that.</summary>
    EarlyAbortForgotten,

    /// <summary>A block gets a time that a past that was told of had reached.</summary>
    PastToldOfChanges,

    /// <summary>A partition that is told to stop does not leave behind which past it told of.</summary>
    PastForgottenAtStop,

    /// <summary>The last id of a generation does not come into its run.</summary>
    IdLeftOutOfRun,

    /// <summary>The last mark of a generation comes into its run as that of the event after it.</summary>
    MarkWithWrongNumber,

    /// <summary>A run covers what nothing vouches for yet.</summary>
    RunTooFar,

    /// <summary>Recovery does not ask whether what a snapshot leaves out is in runs.</summary>
    CoverageNotAskedFor,

    /// <summary>What was looked for before more was forgotten counts all the same.</summary>
    SearchNotRepeated,
}

internal static class Injected
{
    [ThreadStatic]
    static PartitionDefect Current;

    internal static bool Is(PartitionDefect defect) => Current == defect;

    internal static void Set(PartitionDefect defect) => Current = defect;
}
