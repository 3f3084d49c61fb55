using Purse.Ledger;

namespace Purse.Partitions;

public enum MessageKind : byte
{
    /// <summary>Coordinator to participant: judge this, and set it aside.</summary>
    Prepare,

    /// <summary>Participant to coordinator: for, or against.</summary>
    Vote,

    /// <summary>Coordinator to participant: commit or abort.</summary>
    Decision,

    /// <summary>Participant to coordinator: done, and durable.</summary>
    Acknowledgement,
}

/// <summary>
/// What one partition says to another about an attempt. It may be lost, doubled and late: whoever needs an answer says it again. Nothing is said
/// before it is durable.
/// </summary>
public readonly record struct Message
{
    public required MessageKind Kind { get; init; }

    public required int From { get; init; }

    public required int To { get; init; }

    /// <summary>The head of the attempt in the coordinator's partition; with the coordinator, its name.</summary>
    public required ulong Attempt { get; init; }

    /// <summary>The coordinator's: of all attempts below, it will never speak to this participant again.</summary>
    public ulong LowWater { get; init; }

    public Preparation? Preparation { get; init; }

    /// <summary>Most are for, and take no room: there are millions of messages on their way.</summary>
    public Vote Vote
    {
        get => _against is Vote vote ? vote : default;
        init => _against = value.IsRefusal ? value : null;
    }

    readonly object? _against;

    public bool IsCommit { get; init; }

    /// <summary>Of an acknowledgement: the last event of what was done, 0 where that was forgotten since.</summary>
    public ulong Sequence { get; init; }
}
