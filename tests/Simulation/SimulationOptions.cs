using Purse.Partitions;

namespace Purse.Simulation;

/// <summary>
/// One run: what may happen in it and how often, all of it drawn from a seed. Each run is a mix of its own (a swarm), since a run in which
/// everything happens hides what only shows when one thing happens a lot. Rates are per mille of steps.
/// </summary>
public sealed record SimulationOptions
{
    public required int Seed { get; init; }

    /// <summary>Steps in which anything may be down; then all heals, and every caller must get its answer.</summary>
    public int Steps { get; init; } = 1500;

    public int Partitions { get; init; } = 1;

    public int Clients { get; init; } = 4;

    public int Accounts { get; init; } = 4;

    /// <summary>What each account has in the beginning, in whole units: with little, reservations decide.</summary>
    public int Funds { get; init; } = 500;

    public int EventsPerBlockMax { get; init; } = 64;

    public int BlocksInFlightMax { get; init; } = 4;

    /// <summary>How much more often a block is made than flushed: blocks pile up in flight.</summary>
    public int SlowDisk { get; init; }

    public int KillRate { get; init; }

    public int PowerCutRate { get; init; }

    public int FailWriteRate { get; init; }

    public int FailFlushRate { get; init; }

    public int DiskFullRate { get; init; }

    /// <summary>A second writer takes the partition over while the first one goes on.</summary>
    public int SecondWriterRate { get; init; }

    public int ClockJumpRate { get; init; }

    /// <summary>Of a hundred messages between partitions, how many are lost, and how many arrive more than once.</summary>
    public int LossPercent { get; init; }

    public int DoublePercent { get; init; }

    /// <summary>How many messages may be on their way before the oldest is delivered first; any order before that.</summary>
    public int DelayedMax { get; init; } = 1;

    /// <summary>An operator ends a commit across partitions.</summary>
    public int AbortRate { get; init; }

    /// <summary>A partition is told to stop, as when its server is.</summary>
    public int CleanStopRate { get; init; }

    /// <summary>How much a participant remembers for the sake of a commit that waits for another one.</summary>
    public int RememberedMax { get; init; } = PartitionCore.RememberedMax;

    /// <summary>Whether that may be so little that positions are lost, and not every vote is waited for.</summary>
    public bool RemembersLittle => RememberedMax < 100;

    /// <summary>With few, ids leave memory all the time.</summary>
    public ulong EventsPerGeneration { get; init; } = Ledger.State.EventsPerGeneration;

    /// <summary>A file of old ids is lost, cut short or changed.</summary>
    public int RunDamageRate { get; init; }

    /// <summary>Of a recovery, per cent: the disk fails to read.</summary>
    public int FailReadRate { get; init; }

    public int SnapshotRate { get; init; }

    public int HoldPercent { get; init; }

    public int TransactionPercent { get; init; }

    public int ReversalPercent { get; init; }

    public int AccountChangePercent { get; init; }

    public int ReadPercent { get; init; }

    /// <summary>Commands sent again though they were answered, some of them as dry runs.</summary>
    public int RepeatPercent { get; init; }

    /// <summary>Requests of several commands.</summary>
    public int BulkPercent { get; init; }

    public static SimulationOptions Draw(int seed)
    {
        Random random = new(seed);
        int Sometimes(int max) => random.Next(2) == 0 ? 0 : 1 + random.Next(max);
        return new SimulationOptions
        {
            Seed = seed,
            Steps = 500 + random.Next(2500),
            Partitions = random.Next(4) == 0 ? 1 : 2 + random.Next(3),
            Clients = 1 + random.Next(10),
            Accounts = 2 + random.Next(6),
            Funds = random.Next(2) == 0 ? 500 : 60,
            EventsPerBlockMax = 1 + random.Next(random.Next(2) == 0 ? 8 : 200),
            BlocksInFlightMax = 1 + random.Next(8),
            SlowDisk = Sometimes(20),
            KillRate = Sometimes(10),
            PowerCutRate = Sometimes(10),
            FailWriteRate = Sometimes(8),
            FailFlushRate = Sometimes(8),
            DiskFullRate = Sometimes(4),
            SecondWriterRate = Sometimes(8),
            ClockJumpRate = Sometimes(20),
            LossPercent = Sometimes(40),
            DoublePercent = Sometimes(40),
            DelayedMax = 1 + Sometimes(50),
            AbortRate = Sometimes(10),
            SnapshotRate = Sometimes(30),
            HoldPercent = Sometimes(50),
            TransactionPercent = Sometimes(40),
            ReversalPercent = Sometimes(40),
            AccountChangePercent = Sometimes(20),
            ReadPercent = Sometimes(50),
            RepeatPercent = Sometimes(20),
            CleanStopRate = Sometimes(5),
            FailReadRate = Sometimes(20),
            BulkPercent = Sometimes(40),
            RememberedMax = random.Next(2) == 0 ? 0 : PartitionCore.RememberedMax,
            EventsPerGeneration = random.Next(4) == 0 ? Ledger.State.EventsPerGeneration : 1 + (ulong)random.Next(random.Next(2) == 0 ? 20 : 200),
            RunDamageRate = Sometimes(8),
        };
    }

    /// <summary>Smaller runs that may still show the same failure, the most promising first.</summary>
    public IEnumerable<SimulationOptions> Smaller(int failedAtStep)
    {
        if (failedAtStep < Steps) yield return this with { Steps = failedAtStep };
        yield return this with { Steps = Steps / 2 };
        yield return this with { Steps = Steps * 9 / 10 };
        if (KillRate > 0) yield return this with { KillRate = 0 };
        if (PowerCutRate > 0) yield return this with { PowerCutRate = 0 };
        if (FailWriteRate > 0) yield return this with { FailWriteRate = 0 };
        if (FailFlushRate > 0) yield return this with { FailFlushRate = 0 };
        if (DiskFullRate > 0) yield return this with { DiskFullRate = 0 };
        if (SecondWriterRate > 0) yield return this with { SecondWriterRate = 0 };
        if (ClockJumpRate > 0) yield return this with { ClockJumpRate = 0 };
        if (LossPercent > 0) yield return this with { LossPercent = 0 };
        if (DoublePercent > 0) yield return this with { DoublePercent = 0 };
        if (DelayedMax > 1) yield return this with { DelayedMax = 1 };
        if (AbortRate > 0) yield return this with { AbortRate = 0 };
        if (Partitions > 1) yield return this with { Partitions = Partitions - 1 };
        if (SnapshotRate > 0) yield return this with { SnapshotRate = 0 };
        if (SlowDisk > 0) yield return this with { SlowDisk = 0 };
        if (HoldPercent > 0) yield return this with { HoldPercent = 0 };
        if (TransactionPercent > 0) yield return this with { TransactionPercent = 0 };
        if (ReversalPercent > 0) yield return this with { ReversalPercent = 0 };
        if (AccountChangePercent > 0) yield return this with { AccountChangePercent = 0 };
        if (ReadPercent > 0) yield return this with { ReadPercent = 0 };
        if (CleanStopRate > 0) yield return this with { CleanStopRate = 0 };
        if (FailReadRate > 0) yield return this with { FailReadRate = 0 };
        if (RunDamageRate > 0) yield return this with { RunDamageRate = 0 };
        if (EventsPerGeneration < Ledger.State.EventsPerGeneration) yield return this with { EventsPerGeneration = Ledger.State.EventsPerGeneration };
        if (RemembersLittle) yield return this with { RememberedMax = PartitionCore.RememberedMax };
        if (BulkPercent > 0) yield return this with { BulkPercent = 0 };
        if (RepeatPercent > 0) yield return this with { RepeatPercent = 0 };
        if (Clients > 1) yield return this with { Clients = Clients / 2 };
    }
}
