namespace Purse.Client;

/// <summary>How transfers travel.</summary>
public enum PurseProtocol
{
    /// <summary>One stream of packed batches; what has texts goes in plain protobuf beside it.</summary>
    Grpc,

    /// <summary>JSON over HTTP/1.1, <c>POST /v1/wallet/transfers</c>: through anything that lets no HTTP/2 pass.</summary>
    Http,
}

public sealed record PurseClientOptions
{
    public PurseProtocol Protocol { get; init; }

    /// <summary>So many transfers travel together at most, up to 10 000.</summary>
    public int BatchMax { get; init; } = 4_096;

    /// <summary>So many batches are under way at once; what is asked for meanwhile is gathered into the next.</summary>
    public int BatchesInFlightMax { get; init; } = 4;

    /// <summary>So many single transfers wait at most; who asks for more waits for room.</summary>
    public int WaitingMax { get; init; } = 65_536;

    /// <summary>How long a transfer may take with all that is sent again. After that its result says what is known.</summary>
    public TimeSpan Timeout { get; init; } = TimeSpan.FromSeconds(10);
}
