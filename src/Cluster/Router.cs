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

    /// <summary>Of an ordinary account: XxHash3-64 of its name, modulo the partitions.</summary>
    public static int PartitionOf(in AccountName account, int count) => (int)(account.Hash() % (ulong)count);

    /// <summary>Of an id that belongs to no account: XxHash3-64 of its 16 bytes, as a UUID is written, modulo the partitions.</summary>
    public static int PartitionOf(UInt128 id, int count)
    {
        Span<byte> bytes = stackalloc byte[16];
        BinaryPrimitives.WriteUInt128BigEndian(bytes, id);
        return (int)(XxHash3.HashToUInt64(bytes) % (ulong)count);
    }

    /// <summary>Where an id with this home lives.</summary>
    public Partition Of(in AccountName home, UInt128 id) => partitions[home.IsSystem ? PartitionOf(id, partitions.Count) : PartitionOf(home, partitions.Count)];

    public Partition Of(in AccountName ordinary) => partitions[PartitionOf(ordinary, partitions.Count)];

    /// <summary>The partitions that have a part of the account: its own, or all of them for a system account.</summary>
    public IReadOnlyList<Partition> PartsOf(in AccountName account) => account.IsSystem ? partitions : [Of(account)];

    /// <summary>Where both parties are: a system account is wherever the other one is, two of them where the id is.</summary>
    /// <returns>Null where they live apart.</returns>
    public Partition? Of(in AccountName payer, in AccountName payee, UInt128 id)
    {
        Partition home = Of(payer.IsSystem ? payee : payer, id);
        return payer.IsSystem || payee.IsSystem || Of(payee) == home ? home : null;
    }

    /// <summary>Where all postings of a transaction are: two system accounts are where the first posting is.</summary>
    /// <returns>Null where they live apart.</returns>
    public Partition? Of(ReadOnlySpan<Posting> postings, UInt128 id)
    {
        Partition? home = Of(postings[0].Account, postings[0].Counterparty, id);
        foreach (ref readonly Posting posting in postings)
        {
            if (posting.Account.IsSystem && posting.Counterparty.IsSystem) continue;
            if (Of(posting.Account, posting.Counterparty, id) != home) return null;
        }

        return home;
    }
}
