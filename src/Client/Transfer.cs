namespace Purse.Client;

/// <summary>Money from one account to another.</summary>
public readonly record struct Transfer
{
    public Transfer(string from, string to, Amount amount, string currency)
        : this(Guid.NewGuid(), from, to, amount, currency)
    {
    }

    public Transfer(Guid id, string from, string to, Amount amount, string currency) => (Id, From, To, Amount, Currency) = (id, from, to, amount, currency);

    /// <summary>The intent's own id: sent again, however often, it is done once. A new one unless it is given.</summary>
    public Guid Id { get; init; }

    public string From { get => field ?? ""; init; }

    public string To { get => field ?? ""; init; }

    public Amount Amount { get; init; }

    /// <summary>ISO 4217, or registered with the server.</summary>
    public string Currency { get => field ?? ""; init; }

    /// <summary>Hold the money instead of moving it.</summary>
    public bool Pending { get; init; }

    /// <summary>Move what is available, up to the amount.</summary>
    public bool UpTo { get; init; }

    /// <summary>Judge it, and leave nothing behind.</summary>
    public bool DryRun { get; init; }

    /// <summary>Of a hold: until it is due, 0 for never.</summary>
    public int ExpiresInSeconds { get; init; }

    /// <summary>Up to 256 characters. With this or metadata a transfer does not travel in the packed form, which has no room for it.</summary>
    public string? Description { get; init; }

    /// <summary>A JSON object of up to 2048 bytes.</summary>
    public string? MetadataJson { get; init; }

    internal bool HasTexts => Description is not null || MetadataJson is not null;
}

public enum TransferStatus
{
    Completed = 1,

    /// <summary>A hold.</summary>
    Pending = 2,

    /// <summary><see cref="TransferResult.Code"/> says why.</summary>
    Rejected = 3,

    /// <summary>Under way between partitions: the same id answers for it, now and later.</summary>
    InDoubt = 4,
}

/// <summary>What became of the money.</summary>
public enum Effect
{
    /// <summary>Nothing was moved, nor will be by this call.</summary>
    None = 0,
    Applied = 1,

    /// <summary>Nobody could say: ask by the id, or send the same again.</summary>
    Unknown = 2,
}

/// <summary>What a transfer came to.</summary>
public readonly record struct TransferResult
{
    public Guid Id { get; init; }

    public TransferStatus Status { get; init; }

    public Effect Effect { get; init; }

    /// <summary>Of a rejection, as docs/API.md has them, such as <c>insufficient_funds</c>; <c>connection_lost</c> where no answer came. Null elsewhere.</summary>
    public string? Code { get; init; }

    /// <summary>In words, where the server gave any.</summary>
    public string? Detail { get; init; }

    /// <summary>The same may be sent again, under the same id.</summary>
    public bool IsRetryable { get; init; }

    /// <summary>It was decided before: this is what was answered first.</summary>
    public bool IsReplayed { get; init; }

    /// <summary>What was moved or held.</summary>
    public Amount Amount { get; init; }

    public DateTimeOffset CompletedAt { get; init; }

    /// <summary>For <c>min_position</c> of a read. A commit across partitions that travelled packed says only that of the payer's partition.</summary>
    public string? Position => PositionText ?? (At.Sequence == 0 ? null : string.Create(System.Globalization.CultureInfo.InvariantCulture, $"{At.Partition}:{At.Sequence}"));

    internal string? PositionText { get; init; }

    internal (ushort Partition, ulong Sequence) At { get; init; }

    public bool IsCompleted => Status == TransferStatus.Completed;

    internal static Effect EffectOf(TransferStatus status, bool isUnknown, bool isDryRun) =>
        isUnknown || status == TransferStatus.InDoubt ? Effect.Unknown : status is TransferStatus.Completed or TransferStatus.Pending && !isDryRun ? Effect.Applied : Effect.None;

    internal static TransferResult Lost(Guid id, string detail) => new() { Id = id, Status = TransferStatus.Rejected, Effect = Effect.Unknown, Code = "connection_lost", Detail = detail, IsRetryable = true };
}
