namespace Purse.Ledger;

/// <summary>
/// Deliberate mistakes, by which the simulator proves that it would find such. Off everywhere but on a thread on which the simulator turned
/// one on; nothing else can.
/// </summary>
internal enum LedgerDefect
{
    None = 0,

    /// <summary>The last id of a snapshot is not remembered.</summary>
    IdForgottenOnRecovery,

    /// <summary>Holds that are due are given back a second late.</summary>
    HoldLeaked,

    /// <summary>A dry run leaves its events.</summary>
    DryRunRecorded,

    /// <summary>What is left of a transfer is not looked at when it is taken back.</summary>
    ReversedTwice,

    /// <summary>A posting is judged on the balances before its transaction.</summary>
    PostingsBlindToEachOther,

    /// <summary>A refusal is not remembered under its id.</summary>
    RefusalForgotten,

    /// <summary>A capture does not judge its payee again.</summary>
    CaptureIntoFrozen,

    /// <summary>A participant votes for, and sets nothing aside.</summary>
    VoteDoesNotBind,

    /// <summary>An id whose commit across partitions is under way is taken for a new one.</summary>
    UndecidedNotWaitedFor,

    /// <summary>A hold expires while its capture across partitions is undecided.</summary>
    CaptureDoesNotKeepHold,

    /// <summary>What goes to another partition is not booked as in flight.</summary>
    ClearingForgotten,

    /// <summary>A snapshot does not say what was decided of an attempt.</summary>
    DecisionNotInSnapshot,

    /// <summary>What changes while a snapshot is written is not put aside for it.</summary>
    ImageNotKept,
}

internal static class Injected
{
    [ThreadStatic]
    static LedgerDefect Current;

    internal static bool Is(LedgerDefect defect) => Current == defect;

    internal static void Set(LedgerDefect defect) => Current = defect;
}
