using System.Text.Json.Serialization;
using Purse.Ledger;

namespace Purse.Server;

// What partitions are asked about the parts that they have of something, and what they answer; as JSON between nodes (PartitionDirectory).

/// <param name="Min">The event that the answer has to show; 0 for any.</param>
sealed record AccountAsked(string Account, ulong Min);

sealed record AccountPart(ulong Position, BalancePart[] Balances);

/// <param name="At">Of this event, or of a time; of now without both.</param>
sealed record BalanceAsked(string Account, string Currency, long? AsOfMicros, ulong? At, ulong Min);

/// <param name="Event">The event that made it, as the HTTP contract writes it, where another time than now was asked for.</param>
sealed record BalancePart(string Currency, int Decimals, Int128 Posted, Int128 Held, ulong Position, long EventMicros = 0, string? Event = null);

sealed record BalancesAsked(string[] Accounts, string Currency);

/// <param name="Code">Why it is not open; null where it is.</param>
sealed record OpenedPart(bool IsCreated, string? Code, string Detail);

/// <param name="Next">Where the page begins and where the last one ends, by the events' numbers in the balance; null on the first page.</param>
sealed record HistoryAsked(string Account, string Currency, int Limit, bool Ascending, long? FromMicros, long? ToMicros, ulong? Next, ulong? End, ulong Min);

sealed record HistoryPart(ulong Next, ulong End, ulong EventsCount, HistoryEvent[] Events);

/// <param name="Json">As the HTTP contract writes it.</param>
sealed record HistoryEvent(long TimeMicros, string Json);

sealed record EventsAsked(ulong Next, int Max);

/// <param name="Lines">As the event stream has them.</param>
sealed record EventsPart(ulong FlushedSequence, int Count, byte[] Lines);

/// <param name="Account">The home that was named; null for any.</param>
/// <param name="HasNames">Whether their homes are to be named.</param>
sealed record IdAsked(UInt128 Id, string? Account, bool HasNames);

sealed record IdPart(int Count, string[] Homes);

sealed record OriginalAsked(CommandKind Kind, UInt128 OriginalId, UInt128 TransactionId, string? Account);

sealed record OriginalPart(Outcome Outcome, ulong Before);

/// <summary>What a commit left in a partition.</summary>
sealed record CommitAsked(ulong Sequence, UInt128 TransactionId);

sealed record CurrencyAsked(string Code, byte Decimals);

sealed record CurrencyPart(Outcome Outcome);

sealed record InDoubtPart(long PreparedMicros, string Json);

[JsonSerializable(typeof(AccountAsked))]
[JsonSerializable(typeof(AccountPart))]
[JsonSerializable(typeof(BalanceAsked))]
[JsonSerializable(typeof(BalancePart))]
[JsonSerializable(typeof(BalancePart[]))]
[JsonSerializable(typeof(BalancesAsked))]
[JsonSerializable(typeof(OpenedPart[]))]
[JsonSerializable(typeof(HistoryAsked))]
[JsonSerializable(typeof(HistoryPart))]
[JsonSerializable(typeof(EventsAsked))]
[JsonSerializable(typeof(EventsPart))]
[JsonSerializable(typeof(IdAsked))]
[JsonSerializable(typeof(IdPart))]
[JsonSerializable(typeof(OriginalAsked))]
[JsonSerializable(typeof(OriginalPart))]
[JsonSerializable(typeof(CommitAsked))]
[JsonSerializable(typeof(CurrencyAsked))]
[JsonSerializable(typeof(CurrencyPart))]
[JsonSerializable(typeof(CurrencyAsked[]))]
[JsonSerializable(typeof(InDoubtPart[]))]
[JsonSerializable(typeof(string[]))]
[JsonSerializable(typeof(int))]
[JsonSerializable(typeof(byte[]))]
sealed partial class PartJson : JsonSerializerContext;
