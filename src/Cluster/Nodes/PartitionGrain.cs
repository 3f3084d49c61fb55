using Orleans.Concurrency;
using Orleans.Runtime;
using Orleans.Runtime.Placement;

namespace Purse.Cluster.Nodes;

/// <summary>A partition, on the node that has it now. Orleans finds it, and makes it somewhere else when its node is gone.</summary>
[Alias("purse.partition")]
public interface IPartitionGrain : IGrainWithIntegerKey
{
    /// <summary>Takes what a node asks of the partition and says to it, many at once (<see cref="Frame"/>); what is answered goes to the mailbox.</summary>
    [Alias("accept")]
    ValueTask AcceptAsync([Immutable] byte[] frames, IMailbox mailbox);

    /// <summary>So that it is on some node: what is under way there goes on without anybody who asks.</summary>
    /// <param name="node">That says so.</param>
    /// <param name="canServe">Whether that one reaches the partition's store.</param>
    [Alias("keep")]
    ValueTask KeepAsync(SiloAddress node, bool canServe);
}

/// <summary>Where a node takes the answers to all that it asked.</summary>
[Alias("purse.mailbox")]
public interface IMailbox : IGrainObserver
{
    [OneWay]
    [Alias("deliver")]
    Task DeliverAsync([Immutable] byte[] frames);
}

/// <summary>
/// No more than a door: the partition has its own threads, and recovers on one of them, so that neither its activation nor a call waits for a journal.
/// Two of them may be there for a moment, on two nodes; the journal's epoch decides which one writes.
/// </summary>
[Reentrant]
[PartitionPlacement]
public sealed class PartitionGrain(PartitionHost host) : Grain, IPartitionGrain
{
    HostedPartition _hosted = null!;

    public override Task OnActivateAsync(CancellationToken cancellationToken)
    {
        int number = (int)this.GetPrimaryKeyLong();
        _hosted = host.Begin(number, (why, to) =>
        {
            if (to is null) GrainContext.Deactivate(new DeactivationReason(DeactivationReasonCode.ApplicationRequested, why));
            else GrainContext.Migrate(new Dictionary<string, object> { [IPlacementDirector.PlacementHintKey] = to }, CancellationToken.None);
        });
        return Task.CompletedTask;
    }

    public ValueTask AcceptAsync(byte[] frames, IMailbox mailbox)
    {
        host.Accept(_hosted, frames, mailbox);
        return default;
    }

    public ValueTask KeepAsync(SiloAddress node, bool canServe)
    {
        _hosted.Heard(node, canServe);
        return default;
    }

    /// <summary>Answers what is in flight, and leaves a snapshot: whoever takes it over begins there.</summary>
    public override Task OnDeactivateAsync(DeactivationReason reason, CancellationToken cancellationToken) => host.EndAsync(_hosted);
}
