using System.Buffers.Binary;
using System.IO.Hashing;
using Purse.Ledger;

namespace Purse.Cluster;

/// <summary>
/// Where accounts live: <c>hash(account) % partitions</c>, for ever. System accounts live in every partition, a part in each, so that deposits
/// and withdrawals stay where the other account is.
/// </summary>
public sealed class Router(int partitionsCount)
{
    readonly int[] _all = [.. Enumerable.Range(0, partitionsCount)];

    public int PartitionsCount => partitionsCount;

    /// <summary>Of an id that belongs to no account: XxHash3-64 of its 16 bytes, as a UUID is written, modulo the partitions.</summary>
    public static int PartitionOf(UInt128 id, int count)
    {
        Span<byte> bytes = stackalloc byte[16];
        BinaryPrimitives.WriteUInt128BigEndian(bytes, id);
        return (int)(XxHash3.HashToUInt64(bytes) % (ulong)count);
    }

    /// <summary>Where an id with this home lives.</summary>
    public int Of(in AccountName home, UInt128 id) => home.IsSystem ? PartitionOf(id, partitionsCount) : home.PartitionOf(partitionsCount);

    public int Of(in AccountName ordinary) => ordinary.PartitionOf(partitionsCount);

    /// <summary>The partitions that have a part of the account: its own, or all of them for a system account.</summary>
    public IReadOnlyList<int> PartsOf(in AccountName account) => account.IsSystem ? _all : [Of(account)];

    /// <summary>
    /// Where a transfer is decided: at its id's home. What lives elsewhere is asked from there (PartitionCore.Commit.cs). A system account is wherever the
    /// other party is, two of them where the id is.
    /// </summary>
    public int Of(in AccountName payer, in AccountName payee, UInt128 id) => Of(payer.IsSystem ? payee : payer, id);
}
