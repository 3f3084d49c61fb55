using System.Buffers.Binary;
using System.IO.Hashing;
using System.Text;
using Orleans.Placement;
using Orleans.Runtime;
using Orleans.Runtime.Placement;

namespace Purse.Cluster.Nodes;

/// <summary>
/// Which node should have which partition: the same answer wherever it is asked, from the nodes that live. Each has its share, to within one partition,
/// and a node that comes or goes moves little more than its own share.
/// </summary>
[Serializable, GenerateSerializer, Immutable]
public sealed class PartitionPlacement : PlacementStrategy
{
    /// <param name="nodes">By name, in any order.</param>
    /// <returns>By partition, the place of its node in <paramref name="nodes"/>.</returns>
    public static int[] Assign(int partitionsCount, IReadOnlyList<string> nodes)
    {
        int share = (partitionsCount + nodes.Count - 1) / nodes.Count;
        int[] counts = new int[nodes.Count], assigned = new int[partitionsCount];
        // Rendezvous hashing; who has its share already leaves a partition to the next.
        for (int partition = 0; partition < partitionsCount; partition++)
        {
            int number = partition;
            assigned[partition] = Enumerable.Range(0, nodes.Count).Where(node => counts[node] < share).MaxBy(node => Weight(number, nodes[node]));
            counts[assigned[partition]]++;
        }

        return assigned;
    }

    /// <summary>Where a partition that is on one node should go.</summary>
    /// <param name="reaches">Whether the node where it is reaches its store; null where that is not known.</param>
    /// <param name="canServe">Whether another says that it does.</param>
    /// <returns>Null: it stays.</returns>
    internal static SiloAddress? Move(int partition, int partitionsCount, SiloAddress here, IReadOnlyList<SiloAddress> active, bool? reaches, Func<SiloAddress, bool> canServe)
    {
        if (reaches is null || active.Count == 0) return null;
        if (reaches == true)
        {
            SiloAddress right = Assign(partition, partitionsCount, active);
            return right.Equals(here) || !canServe(right) ? null : right;
        }

        // A store that nobody reaches is waited for here as well as anywhere.
        SiloAddress[] able = [.. active.Where(node => !node.Equals(here) && canServe(node))];
        return able.Length == 0 ? null : Assign(partition, partitionsCount, able);
    }

    static (ulong, string) Weight(int partition, string node)
    {
        Span<byte> bytes = stackalloc byte[4 + Encoding.UTF8.GetByteCount(node)];
        BinaryPrimitives.WriteInt32LittleEndian(bytes, partition);
        Encoding.UTF8.GetBytes(node, bytes[4..]);
        return (XxHash3.HashToUInt64(bytes), node);
    }

    public static SiloAddress Assign(int partition, int partitionsCount, IReadOnlyList<SiloAddress> silos) => silos[Assign(partitionsCount, [.. silos.Select(silo => silo.ToParsableString())])[partition]];
}

[AttributeUsage(AttributeTargets.Class)]
public sealed class PartitionPlacementAttribute() : PlacementAttribute(new PartitionPlacement());

sealed class PartitionPlacementDirector(PartitionHost host) : IPlacementDirector
{
    public Task<SiloAddress> OnAddActivation(PlacementStrategy strategy, PlacementTarget target, IPlacementContext context)
    {
        SiloAddress[] silos = context.GetCompatibleSilos(target);
        if (IPlacementDirector.GetPlacementHint(target.RequestContextData, silos) is SiloAddress chosen) return Task.FromResult(chosen);
        int number = (int)target.GrainIdentity.GetIntegerKey();
        return Task.FromResult(number >= 0 && number < host.PartitionsCount ? PartitionPlacement.Assign(number, host.PartitionsCount, silos) : silos[0]);
    }
}
