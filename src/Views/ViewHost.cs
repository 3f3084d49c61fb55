using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Views;

/// <summary>The views that a process feeds and answers from.</summary>
public sealed class ViewHost(IReadOnlyList<Partition> partitions, Action<string> log) : IAsyncDisposable
{
    readonly SemaphoreSlim _changing = new(1, 1);
    readonly Dictionary<string, ViewFeeder> _feeders = [];
    volatile ViewFeeder? _search;
    volatile ViewFeeder[] _redis = [];

    /// <summary>All that are fed.</summary>
    public IReadOnlyList<ViewFeeder> Feeders { get; private set; } = [];

    /// <summary>The one with rows; null where there is none.</summary>
    public ViewFeeder? Search => _search;

    /// <summary>Of a data folder: a file in it.</summary>
    public Task ServeAsync(string sqlitePath) => ChangeAsync([("sqlite", () => new SqliteView(sqlitePath, partitions.Count))]);

    /// <summary>Of a cluster, as its settings are now: what they do not name any more is not fed any more.</summary>
    public Task ServeAsync(string id, string? postgreSql, IReadOnlyList<string> redis) => ChangeAsync(ViewsOf(id, postgreSql, redis, partitions.Count));

    /// <summary>What such settings name, under a key that says all that it is made of.</summary>
    public static List<(string Key, Func<IView> Make)> ViewsOf(string id, string? postgreSql, IReadOnlyList<string> redis, int partitionsCount) =>
    [
        .. postgreSql is null ? [] : new (string, Func<IView>)[] { ($"postgres {postgreSql}", () => new PostgreSqlView(postgreSql, id, partitionsCount)) },
        .. redis.Select((address, index) => ($"redis {address} {index} of {redis.Count}", (Func<IView>)(() => new RedisView(address, index, redis.Count, id, partitionsCount)))),
    ];

    async Task ChangeAsync(List<(string Key, Func<IView> Make)> wanted)
    {
        await _changing.WaitAsync();
        try
        {
            foreach (string key in _feeders.Keys.Except(wanted.Select(one => one.Key)).ToArray())
            {
                _feeders.Remove(key, out ViewFeeder? ended);
                await ended!.DisposeAsync();
            }

            foreach ((string key, Func<IView> make) in wanted)
            {
                if (!_feeders.ContainsKey(key)) _feeders[key] = new ViewFeeder(make(), partitions, log);
            }

            Feeders = [.. _feeders.Values];
            _search = Feeders.FirstOrDefault(feeder => feeder.View is SqlView);
            _redis = [.. Feeders.Where(feeder => feeder.View is RedisView).OrderBy(feeder => ((RedisView)feeder.View).Index)];
        }
        finally
        {
            _changing.Release();
        }
    }

    /// <summary>The one that shows balances of this account: its Redis node, or else the one with rows.</summary>
    public ViewFeeder? Of(in AccountName account) => _redis is { Length: > 0 } nodes ? nodes[account.PartitionOf(nodes.Length)] : _search;

    /// <summary>What a view shows of an account's balances, and up to where each partition is in it.</summary>
    public static async Task<(List<FoundBalance> Balances, ulong[] Positions)> BalancesAsync(ViewFeeder feeder, AccountName account, IReadOnlyList<int> parts, CancellationToken cancellation)
    {
        if (feeder.View is RedisView redis)
        {
            (List<FoundBalance> Balances, ulong Position)[] all = await Task.WhenAll(parts.Select(partition => redis.BalancesAsync(account, partition)));
            return ([.. all.SelectMany(one => one.Balances)], [.. all.Select(one => one.Position)]);
        }

        // Before the look: what it shows is at least as new.
        ulong[] positions = [.. parts.Select(feeder.Position)];
        return (await ((SqlView)feeder.View).BalancesAsync([account.ToString()], cancellation), positions);
    }

    public async ValueTask DisposeAsync()
    {
        await ChangeAsync([]);
        _changing.Dispose();
    }
}
