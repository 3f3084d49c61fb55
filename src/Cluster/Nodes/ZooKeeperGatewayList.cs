using Orleans;
using Orleans.Messaging;
using Orleans.Runtime;

namespace Purse.Cluster.Nodes;

/// <summary>Where a client of the silos connects: to each that is active and takes clients.</summary>
/// <param name="maxStaleness">For as long a client leaves a gateway alone that did not answer it, though it is in the list.</param>
public sealed class ZooKeeperGatewayList(ZooKeeperMembershipTable table, TimeSpan maxStaleness) : IGatewayListProvider
{
    volatile Uri[]? _last;

    public TimeSpan MaxStaleness => maxStaleness;

    public bool IsUpdatable => true;

    /// <summary>Makes the table where there is none, so that a client may be there before the first silo, and finds an empty list.</summary>
    /// <exception cref="IOException">ZooKeeper is away.</exception>
    public Task InitializeGatewayListProvider() => table.InitializeMembershipTable(tryInitTableVersion: true);

    /// <summary>While ZooKeeper is away, what it said last.</summary>
    /// <exception cref="IOException">ZooKeeper is away, and was never there.</exception>
    public async Task<IList<Uri>> GetGateways()
    {
        try
        {
            MembershipTableData data = await table.ReadAll();
            _last =
            [
                .. data.Members.Select(member => member.Item1)
                    .Where(silo => silo.Status == SiloStatus.Active && silo.ProxyPort > 0)
                    .Select(silo => SiloAddress.New(silo.SiloAddress.Endpoint.Address, silo.ProxyPort, silo.SiloAddress.Generation).ToGatewayUri()),
            ];
        }
        catch (IOException) when (_last is not null)
        {
            // The silos are there without it: a client that has lost one needs the others now.
        }

        return [.. _last];
    }
}
