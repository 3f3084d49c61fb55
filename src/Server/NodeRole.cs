namespace Purse.Server;

/// <summary>What a node of a cluster is for.</summary>
public enum NodeRole
{
    /// <summary>Takes requests and has partitions.</summary>
    All,

    /// <summary>Takes requests, and has no partition: it leads them to the nodes that do.</summary>
    Front,

    /// <summary>Has partitions, and takes no requests but those that other nodes send.</summary>
    Write,

    /// <summary>Answers from the views, and from nothing else: it has no partition, no journal, and no password of one.</summary>
    Query,
}

/// <summary>Marks the endpoints that ask a partition.</summary>
sealed class NeedsPartitions;

static class NodeRoles
{
    public static bool HasPartitions(this NodeRole role) => role is NodeRole.All or NodeRole.Write;

    // What became of a transfer is not known there.

    public static Problem ViewsOnly() => new("partition_unavailable", "This node answers from views only (--role query). Ask a node that has partitions, or a front.", "unknown");

    public static Problem NoCallers() => new("partition_unavailable", "This node takes requests from other nodes only (--role write). Ask a front.", "unknown");
}
