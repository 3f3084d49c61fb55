using System.Net;
using System.Net.Sockets;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Orleans.Configuration;
using Orleans.Hosting;
using Orleans.Messaging;
using Orleans.Runtime;

namespace Purse.Cluster.Nodes;

/// <summary>A node of the cluster: an Orleans silo that hosts partitions, or a client of those that do. Who lives is in ZooKeeper.</summary>
public static class Node
{
    const string ServiceId = "purse";

    /// <summary>How soon what is known of the other nodes is looked up again.</summary>
    static readonly TimeSpan RefreshInterval = TimeSpan.FromSeconds(2);

    /// <summary>
    /// A node that is killed is noticed by its connections, one that hangs by three probes in a row that are not answered. One vote is enough: with two
    /// nodes there is no other, and a false one costs a take-over, never a transfer.
    /// </summary>
    static readonly TimeSpan ProbeTimeout = TimeSpan.FromSeconds(1), ProbeTimeoutMax = TimeSpan.FromSeconds(2);
    const int ProbesMissedMax = 3;

    /// <summary>A batch to a partition is taken at once; one that is not is asked again.</summary>
    static readonly TimeSpan CallTimeout = TimeSpan.FromSeconds(5);

    /// <param name="more">What the process adds to its silo.</param>
    /// <param name="endProcess">Where this node was taken for dead, and does not come to its end.</param>
    /// <param name="address">Where other nodes reach this one; port 0 takes a free one, and the next free one for clients.</param>
    public static void AddSilo(IHostApplicationBuilder builder, ClusterMap map, IPEndPoint address, PartitionHost host, Action<ISiloBuilder> more, Action endProcess, Action<string> log)
    {
        (int siloPort, int gatewayPort) = address.Port == 0 ? (FreePort(address.Address), FreePort(address.Address)) : (address.Port, address.Port + 1);
        builder.UseOrleans(silo =>
        {
            silo.Configure<ClusterOptions>(options => (options.ClusterId, options.ServiceId) = (map.Settings.Id, ServiceId));
            silo.Configure<EndpointOptions>(options =>
            {
                (options.AdvertisedIPAddress, options.SiloPort, options.GatewayPort) = (address.Address, siloPort, gatewayPort);
                (options.SiloListeningEndpoint, options.GatewayListeningEndpoint) = (new IPEndPoint(address.Address, siloPort), new IPEndPoint(address.Address, gatewayPort));
            });
            silo.Configure<ClusterMembershipOptions>(options =>
            {
                options.ProbeTimeout = ProbeTimeout;
                options.MinProbeTimeout = ProbeTimeout;
                options.MaxProbeTimeout = ProbeTimeoutMax;
                options.NumMissedProbesLimit = ProbesMissedMax;
                options.NumVotesForDeathDeclaration = 1;
                // Where only the way between two is cut, a third that reaches both would keep them alive, and neither could ask the other's partitions:
                // one of them ends, and comes back when it reaches all. Which one it is, is left to who is first; one that misses many waits longer.
                options.EnableIndirectProbes = false;
                options.TableRefreshTimeout = RefreshInterval;
                options.IAmAliveTablePublishTimeout = RefreshInterval;
                options.DefunctSiloExpiration = TimeSpan.FromMinutes(10);
                options.DefunctSiloCleanupPeriod = TimeSpan.FromMinutes(1);
            });
            silo.Configure<SiloMessagingOptions>(options => options.ResponseTimeout = options.SystemResponseTimeout = CallTimeout);
            silo.Services.AddSingleton<IMembershipTable>(_ => map.Membership());
            silo.Services.AddSingleton(host);
            silo.Services.AddSingleton<IFatalErrorHandler>(services => new EvictedHandler(services.GetRequiredService<IHostApplicationLifetime>(), endProcess, log));
            // The older one deactivates grains of living nodes, too, when the node that knew where they are is gone.
#pragma warning disable ORLEANSEXP003 // Said to be for evaluation; what it promises is what the fault suite tries, and the journals' epochs do not rest on it.
            silo.AddDistributedGrainDirectory();
#pragma warning restore ORLEANSEXP003
            // Two of one grain for a moment do no harm: nobody waits until a dead node would have noticed that it is.
            silo.Configure<GrainDirectoryOptions>(options => options.RangeLeaseDuration = TimeSpan.Zero);
            silo.AddPlacementDirector<PartitionPlacement, PartitionPlacementDirector>();
            silo.Services.AddHostedService(services => new Keeper(services.GetRequiredService<IGrainFactory>(), host, services.GetRequiredService<ISiloStatusOracle>(), log));
            more(silo);
        });
    }

    public static void AddClient(IHostApplicationBuilder builder, ClusterMap map) => builder.UseOrleansClient(client =>
    {
        client.Configure<ClusterOptions>(options => (options.ClusterId, options.ServiceId) = (map.Settings.Id, ServiceId));
        client.Configure<GatewayOptions>(options => options.GatewayListRefreshPeriod = RefreshInterval);
        client.Configure<ClientMessagingOptions>(options => options.ResponseTimeout = CallTimeout);
        client.Services.AddSingleton<IGatewayListProvider>(_ => map.Gateways(RefreshInterval));
        // There is none yet, or none any more for a moment.
        client.UseConnectionRetryFilter(async (_, cancellation) =>
        {
            await Task.Delay(500, cancellation);
            return true;
        });
    });

    static int FreePort(IPAddress address)
    {
        using TcpListener listener = new(address, 0);
        listener.Start();
        return ((IPEndPoint)listener.LocalEndpoint).Port;
    }

    static readonly TimeSpan EvictedEndsWithin = TimeSpan.FromSeconds(3);

    /// <summary>A node that hung, and was taken for dead, hears it when it goes on. It ends: another has its partitions, and its journals are fenced.</summary>
    sealed class EvictedHandler(IHostApplicationLifetime lifetime, Action endProcess, Action<string> log) : IFatalErrorHandler
    {
        public bool IsUnexpected(Exception exception) => false;

        public void OnFatalException(object? sender = null, string? context = null, Exception? exception = null)
        {
            log("This node was taken for dead, and others have its partitions: it ends. Start it again.");
            Environment.ExitCode = 1;
            // Callers still get their answers. Farewells to nodes that take it for dead, or that it does not reach, are not waited for.
            _ = Task.Delay(EvictedEndsWithin).ContinueWith(_ => endProcess(), TaskScheduler.Default);
            lifetime.StopApplication();
        }
    }
}

/// <summary>
/// Calls every partition now and then, so that each is on some node: a commit under way and a hold that is due go on without traffic. Hands on what
/// belongs to another node, once the nodes have been the same for a while, and at once what only others reach the store of.
/// </summary>
sealed class Keeper(IGrainFactory grains, PartitionHost host, ISiloStatusOracle silos, Action<string> log) : BackgroundService
{
    static readonly TimeSpan Interval = TimeSpan.FromSeconds(1), StableAfter = TimeSpan.FromSeconds(5);

    protected override async Task ExecuteAsync(CancellationToken stoppingToken)
    {
        string known = "";
        long since = Environment.TickCount64;
        while (!stoppingToken.IsCancellationRequested)
        {
            await Task.Delay(Interval, stoppingToken).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            if (stoppingToken.IsCancellationRequested) return;
            // One that does not answer keeps no other waiting.
            for (int number = 0; number < host.PartitionsCount; number++) _ = KeepAsync(number);
            SiloAddress[] active = [.. silos.GetApproximateSiloStatuses(onlyActive: true).Keys.Order()];
            string now = string.Join(' ', active.Select(silo => silo.ToParsableString()));
            if (now != known) (known, since) = (now, Environment.TickCount64);
            bool isStable = Environment.TickCount64 - since >= StableAfter.TotalMilliseconds;
            foreach (HostedPartition hosted in host.Hosted)
            {
                bool? reaches = host.Reaches(hosted.Number);
                if (reaches != false) hosted.Keep();
                if (PartitionPlacement.Move(hosted.Number, host.PartitionsCount, silos.SiloAddress, active, reaches, hosted.CanServe) is not SiloAddress to) continue;
                if (reaches == false)
                {
                    // Said again until it is gone: where the other node is gone as well, nothing came of it.
                    if (!hosted.IsAbandoned) log($"The store of partition {hosted.Number} is not in reach from here, and is from {to}: it goes there.");
                    hosted.Abandon($"partition {hosted.Number} is out of reach", to);
                    continue;
                }

                // Not while it recovers: handing it on in the middle of that takes longer than leaving it.
                if (!isStable || !hosted.Starting.IsCompletedSuccessfully) continue;
                hosted.Release($"partition {hosted.Number} belongs to another node", to);
                // Each time it comes back, where it is not known yet, it is taken over once more.
                since = Environment.TickCount64;
            }
        }
    }

    async Task KeepAsync(int number)
    {
        try
        {
            await grains.GetGrain<IPartitionGrain>(number).KeepAsync(silos.SiloAddress, host.Reaches(number) == true);
        }
        catch (Exception)
        {
            // It is looked at again.
        }
    }
}
