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
        int number = (int)target.GrainIdentity.GetIntegerKey();
        return Task.FromResult(number >= 0 && number < host.PartitionsCount ? PartitionPlacement.Assign(number, host.PartitionsCount, silos) : silos[0]);
    }
}
