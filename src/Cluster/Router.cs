using System.Buffers.Binary;
using System.IO.Hashing;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Cluster;

/// <summary>
/// Where accounts live: <c>hash(account) % partitions</c>, for ever. System accounts live in every partition, a part in each, so that deposits
/// and withdrawals stay where the other account is.
/// </summary>
public sealed class Router(IReadOnlyList<Partition> partitions)
{
    public IReadOnlyList<Partition> All => partitions;

    /// <summary>Of an id that belongs to no account: XxHash3-64 of its 16 bytes, as a UUID is written, modulo the partitions.</summary>
    public static int PartitionOf(UInt128 id, int count)
    {
        Span<byte> bytes = stackalloc byte[16];
        BinaryPrimitives.WriteUInt128BigEndian(bytes, id);
        return (int)(XxHash3.HashToUInt64(bytes) % (ulong)count);
    }

    /// <summary>Where an id with this home lives.</summary>
    public Partition Of(in AccountName home, UInt128 id) => partitions[home.IsSystem ? PartitionOf(id, partitions.Count) : home.PartitionOf(partitions.Count)];

    public Partition Of(in AccountName ordinary) => partitions[ordinary.PartitionOf(partitions.Count)];

    /// <summary>The partitions that have a part of the account: its own, or all of them for a system account.</summary>
    public IReadOnlyList<Partition> PartsOf(in AccountName account) => account.IsSystem ? partitions : [Of(account)];

    /// <summary>
    /// Where a transfer is decided: at its id's home. What lives elsewhere is asked from there (PartitionCore.Commit.cs). A system account is wherever the
    /// other party is, two of them where the id is.
    /// </summary>
    public Partition Of(in AccountName payer, in AccountName payee, UInt128 id) => Of(payer.IsSystem ? payee : payer, id);
}
