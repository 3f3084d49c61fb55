namespace Purse.Cluster.ZooKeeper;

/// <summary>What a node is beside its data. Times are milliseconds since 1970; transaction ids order everything that ever happened in the ensemble.</summary>
public sealed record ZooKeeperStat(
    long CreatedTransaction, long ModifiedTransaction, long CreatedMilliseconds, long ModifiedMilliseconds, int Version, int ChildrenVersion, long EphemeralOwner, int DataLength, int ChildrenCount, long ChildrenTransaction);

[Flags]
public enum NodeKind
{
    Persistent = 0,

    /// <summary>Gone with the session that made it.</summary>
    Ephemeral = 1,

    /// <summary>Gets ten digits behind its name, higher than any before under the same parent.</summary>
    Sequential = 2,
}

public enum ZooKeeperCode
{
    Ok = 0,

    /// <summary>The connection ended with the request under way: nobody knows whether it was done.</summary>
    ConnectionLoss = -4,
    MarshallingError = -5,
    OperationTimeout = -7,
    BadArguments = -8,
    NoNode = -101,
    NoAuth = -102,
    BadVersion = -103,
    NoChildrenForEphemerals = -108,
    NodeExists = -110,
    NotEmpty = -111,
    SessionExpired = -112,
    AuthFailed = -115,
    SessionMoved = -118,
    NotReadOnly = -119,
}

/// <summary>What ZooKeeper answered instead of doing it.</summary>
public sealed class ZooKeeperException(ZooKeeperCode code, string what) : IOException($"ZooKeeper: {what}: {code}.")
{
    public ZooKeeperCode Code { get; } = code;
}

/// <summary>What every answer begins with.</summary>
readonly record struct ZooKeeperReply(int Xid, long Transaction, ZooKeeperCode Code);

/// <summary>What a watch is told of, once.</summary>
public enum WatchEvent
{
    Created = 1,
    Deleted = 2,
    DataChanged = 3,
    ChildrenChanged = 4,

    /// <summary>The session is over: the watch is, too, and nothing was seen since.</summary>
    SessionLost = -1,
}

/// <summary>A step of <see cref="ZooKeeperClient.MultiAsync"/>: all or none of them are done.</summary>
public abstract record ZooKeeperStep(string Path)
{
    public sealed record Create(string Path, ReadOnlyMemory<byte> Data, NodeKind Kind = NodeKind.Persistent) : ZooKeeperStep(Path);

    public sealed record Delete(string Path, int Version = -1) : ZooKeeperStep(Path);

    public sealed record Set(string Path, ReadOnlyMemory<byte> Data, int Version = -1) : ZooKeeperStep(Path);

    /// <summary>Done where the node has this version.</summary>
    public sealed record Check(string Path, int Version) : ZooKeeperStep(Path);
}
