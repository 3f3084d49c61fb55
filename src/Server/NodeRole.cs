namespace Purse.Server;

/// <summary>What a node of a cluster is for.</summary>
public enum NodeRole
{
    All,

    /// <summary>Answers from the views, and from nothing else: it has no partition, no journal, and no password of one.</summary>
    Query,
}

/// <summary>Marks the endpoints that ask a partition.</summary>
sealed class NeedsPartitions;

static class NodeRoles
{
    /// <summary>What became of a transfer is not known here.</summary>
    public static Problem ViewsOnly() => new("partition_unavailable", "This node answers from views only (--role query). Ask a node that has partitions.", "unknown");
}
