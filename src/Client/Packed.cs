using System.Buffers.Binary;
using System.Collections.Frozen;
using System.Runtime.InteropServices;

namespace Purse.Client;

[Flags]
enum PackedFlags : byte
{
    None = 0,
    Pending = 1,
    UpTo = 2,
    DryRun = 4,
}

/// <summary>A transfer as it travels: 56 bytes, little-endian but for the id. docs/grpc.md draws it.</summary>
[StructLayout(LayoutKind.Explicit, Size = SizeBytes, Pack = 8)]
struct PackedTransfer
{
    public const int SizeBytes = 56;

    /// <summary>As it is written, first digits first: big-endian.</summary>
    [FieldOffset(0)] public ulong IdHighBigEndian;
    [FieldOffset(8)] public ulong IdLowBigEndian;

    [FieldOffset(16)] public Int128 AmountDigits;

    /// <summary>Places among the names, from 0.</summary>
    [FieldOffset(32)] public uint From;
    [FieldOffset(36)] public uint To;

    /// <summary>The code's characters, the first one lowest, then zeros.</summary>
    [FieldOffset(40)] public ulong Currency;
    [FieldOffset(48)] public uint ExpiresInSeconds;
    [FieldOffset(52)] public byte AmountDecimals;
    [FieldOffset(53)] public PackedFlags Flags;

    /// <summary>0.</summary>
    [FieldOffset(54)] public ushort Reserved;

    public readonly UInt128 Id => new(BinaryPrimitives.ReverseEndianness(IdHighBigEndian), BinaryPrimitives.ReverseEndianness(IdLowBigEndian));
}

[Flags]
enum PackedResultFlags : byte
{
    None = 0,
    Replayed = 1,
    Retryable = 2,
    Unknown = 4,
}

/// <summary>What it came to: 40 bytes, little-endian.</summary>
[StructLayout(LayoutKind.Explicit, Size = SizeBytes, Pack = 8)]
struct PackedResult
{
    public const int SizeBytes = 40;

    /// <summary>Of <see cref="PackedCodes"/>; 0 where it was not rejected.</summary>
    [FieldOffset(0)] public ushort Code;
    [FieldOffset(2)] public byte Status;
    [FieldOffset(3)] public PackedResultFlags Flags;
    [FieldOffset(4)] public ushort Partition;
    [FieldOffset(6)] public byte AmountDecimals;

    /// <summary>0.</summary>
    [FieldOffset(7)] public byte Reserved;

    /// <summary>Its last event, in the partition that decided it; 0 where there is none.</summary>
    [FieldOffset(8)] public ulong Sequence;
    [FieldOffset(16)] public long TimeMicros;
    [FieldOffset(24)] public Int128 AmountDigits;
}

/// <summary>Codes by number. A number never changes its meaning; new ones may come.</summary>
static class PackedCodes
{
    public static readonly FrozenDictionary<ushort, string> ByNumber = new Dictionary<ushort, string>
    {
        [1] = "malformed_request",
        [2] = "account_malformed",
        [3] = "transaction_id_reused",
        [10] = "currency_unknown",
        [11] = "amount_too_precise",
        [12] = "amount_too_large",
        [13] = "amount_not_positive",
        [14] = "same_account",
        [100] = "from_account_not_found",
        [101] = "from_account_closed",
        [102] = "from_account_frozen",
        [103] = "below_min_balance",
        [104] = "insufficient_funds",
        [110] = "to_account_not_found",
        [111] = "to_account_closed",
        [112] = "to_account_frozen",
        [113] = "exceeds_max_balance",
        [120] = "balance_overflow",
        [140] = "aborted",
        [1000] = "storage_full",
        [1001] = "overloaded",
        [1100] = "shutting_down",
        [1101] = "partition_unavailable",
        [1102] = "deadline_exceeded",
        [1103] = "internal_error",
    }.ToFrozenDictionary();

    public static readonly FrozenDictionary<string, ushort> ByName = ByNumber.ToFrozenDictionary(one => one.Value, one => one.Key);
}
