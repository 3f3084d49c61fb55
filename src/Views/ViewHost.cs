using Purse.Ledger;

namespace Purse.Views;

/// <summary>The views that a process answers from.</summary>
/// <param name="follow">How it knows a view's age: it feeds it, or it looks.</param>
public sealed class ViewHost(int partitionsCount, Func<IView, ViewSource> follow) : IAsyncDisposable
{
    readonly SemaphoreSlim _changing = new(1, 1);
    readonly Dictionary<string, ViewSource> _sources = [];
    volatile ViewSource? _search;
    volatile ViewSource[] _redis = [];

    /// <summary>All of them.</summary>
    public IReadOnlyList<ViewSource> Sources { get; private set; } = [];

    /// <summary>The one with rows; null where there is none.</summary>
    public ViewSource? Search => _search;

    /// <summary>Of a data folder: a file in it.</summary>
    public Task ServeAsync(string sqlitePath) => ChangeAsync([("sqlite", () => new SqliteView(sqlitePath, partitionsCount))]);

    /// <summary>Of a cluster, as its settings are now: what they do not name any more is not followed any more.</summary>
    public Task ServeAsync(string id, string? postgreSql, IReadOnlyList<string> redis) => ChangeAsync(ViewsOf(id, postgreSql, redis, partitionsCount));

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
            foreach (string key in _sources.Keys.Except(wanted.Select(one => one.Key)).ToArray())
            {
                _sources.Remove(key, out ViewSource? ended);
                await ended!.DisposeAsync();
            }

            foreach ((string key, Func<IView> make) in wanted)
            {
                if (!_sources.ContainsKey(key)) _sources[key] = follow(make());
            }

            Sources = [.. _sources.Values];
            _search = Sources.FirstOrDefault(source => source.View is SqlView);
            _redis = [.. Sources.Where(source => source.View is RedisView).OrderBy(source => ((RedisView)source.View).Index)];
        }
        finally
        {
            _changing.Release();
        }
    }

    /// <summary>The one that shows balances of this account: its Redis node, or else the one with rows.</summary>
    public ViewSource? Of(in AccountName account) => _redis is { Length: > 0 } nodes ? nodes[account.PartitionOf(nodes.Length)] : _search;

    /// <summary>What a view shows of an account's balances, and up to where each partition is in it.</summary>
    public static async Task<(List<FoundBalance> Balances, ulong[] Positions)> BalancesAsync(ViewSource source, AccountName account, IReadOnlyList<int> parts, CancellationToken cancellation)
    {
        if (source.View is RedisView redis)
        {
            (List<FoundBalance> Balances, ulong Position)[] all = await Task.WhenAll(parts.Select(partition => redis.BalancesAsync(account, partition)));
            return ([.. all.SelectMany(one => one.Balances)], [.. all.Select(one => one.Position)]);
        }

        // Before the look: what it shows is at least as new.
        ulong[] positions = [.. parts.Select(source.Position)];
        return (await ((SqlView)source.View).BalancesAsync([account.ToString()], cancellation), positions);
    }

    public async ValueTask DisposeAsync()
    {
        await ChangeAsync([]);
        _changing.Dispose();
    }
}
