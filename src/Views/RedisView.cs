using System.Text;
using Purse.Ledger;
using StackExchange.Redis;

namespace Purse.Views;

/// <summary>
/// One of the Redis nodes with balances, those of the accounts whose hash leads to it (docs/views.md has the keys). A script compares and sets, so that
/// a late or doubled update never wins; the checkpoint moves in the same script, so that a node that was wiped, or had another place, is filled again.
/// </summary>
public sealed class RedisView(string address, int index, int nodesCount, string id, int partitionsCount) : IView
{
    const string About = "purse:about", Checkpoints = "purse:checkpoints", BalancePrefix = "balance:";
    const int BalancesPerScript = 2_000;

    /// <summary>
    /// Keys: what it is about and the checkpoints, then one a balance. Arguments: what it must be about, partition, from, to (or nothing, where more is to
    /// come), then four a balance.
    /// </summary>
    const string Script = """
        if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
        if (redis.call('HGET', KEYS[2], ARGV[2]) or '0') ~= ARGV[3] then return 0 end
        for i = 3, #KEYS do
          local a = 4 * i - 7
          local currency = ARGV[a]
          local seen = redis.call('HGET', KEYS[i], currency .. '/position')
          if not seen or tonumber(string.match(seen, ':(%d+)$')) < tonumber(string.match(ARGV[a + 3], ':(%d+)$')) then
            redis.call('HSET', KEYS[i], currency, ARGV[a + 1], currency .. '/held', ARGV[a + 2], currency .. '/position', ARGV[a + 3])
          end
        end
        if ARGV[4] ~= '' then redis.call('HSET', KEYS[2], ARGV[2], ARGV[4]) end
        return 1
        """;

    /// <summary>Deletes keys only for as long as this is the one that empties the node.</summary>
    const string ClearScript = """
        if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
        for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
        if ARGV[2] then redis.call('SET', KEYS[1], ARGV[2]) end
        return 1
        """;

    /// <summary>Keys as above. Arguments: what it must be about, the time, then partition and position of each that was current then.</summary>
    const string MarkScript = """
        if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
        for i = 3, #ARGV, 2 do
          if (redis.call('HGET', KEYS[2], ARGV[i]) or '0') == ARGV[i + 1] then redis.call('HSET', KEYS[2], ARGV[i] .. '/current', ARGV[2]) end
        end
        return 1
        """;

    readonly Lock _lock = new();
    volatile ConnectionMultiplexer? _redis;

    public string Name { get; } = $"redis {address}";

    public int Index => index;

    /// <summary>Takes up to two seconds where the node is away: for whoever feeds it.</summary>
    IDatabase Connect()
    {
        lock (_lock)
        {
            _redis ??= ConnectionMultiplexer.Connect(new ConfigurationOptions
            {
                EndPoints = { address },
                AbortOnConnectFail = true,
                ConnectTimeout = 2000,
                SyncTimeout = 5000,
                AsyncTimeout = 5000,
                BacklogPolicy = BacklogPolicy.FailFast,
                ClientName = "purse",
            });
            return _redis.GetDatabase();
        }
    }

    /// <summary>Of which cluster, and at which place among how many: with another layout every account is somewhere else.</summary>
    string Layout => $"{id}/{index}/{nodesCount}/1";

    public ulong[] Open()
    {
        if (Connect().StringGet(About) != Layout) Clear();
        return Checkpoint.PositionsOf(Look());
    }

    public Checkpoint[] Look()
    {
        // Whoever emptied it did not come to an end.
        if (Connect().StringGet(About) != Layout) return new Checkpoint[partitionsCount];
        Dictionary<string, long> fields = Connect().HashGetAll(Checkpoints).ToDictionary(entry => $"{entry.Name}", entry => (long)entry.Value);
        return [.. Enumerable.Range(0, partitionsCount).Select(partition => new Checkpoint((ulong)fields.GetValueOrDefault($"{partition}"), fields.GetValueOrDefault($"{partition}/current")))];
    }

    public void Mark(IReadOnlyList<(int Partition, ulong Position)> current, long timeMicros) =>
        Connect().ScriptEvaluate(MarkScript, [About, Checkpoints], [Layout, timeMicros, .. current.SelectMany(one => (RedisValue[])[one.Partition, $"{one.Position}"])]);

    public void Complete()
    {
        // It has all that it will have.
    }

    public void Clear()
    {
        IDatabase database = Connect();
        // Nobody writes, and whoever else was emptying it does no more, from here on: this one does.
        string token = $"emptied by {Guid.NewGuid()}";
        database.StringSet(About, token);
        foreach (RedisKey[] some in _redis!.GetServer(address).Keys(database.Database, $"{BalancePrefix}*", 1000).Chunk(1000))
        {
            if ((int)database.ScriptEvaluate(ClearScript, [About, .. some], [token]) == 0) return;
        }

        database.ScriptEvaluate(ClearScript, [About, Checkpoints], [token, Layout]);
    }

    public bool Write(ViewBatch batch)
    {
        State state = batch.State;
        IDatabase database = Connect();
        List<RedisKey> keys = [About, Checkpoints];
        List<RedisValue> values = [Layout, batch.Partition, $"{batch.After}", ""];
        foreach (((uint account, uint currency), BalanceRow row) in batch.Balances)
        {
            AccountName name = state.Names[account];
            if (name.PartitionOf(nodesCount) != index) continue;
            int decimals = state.Decimals(currency);
            keys.Add(KeyOf(name, batch.Partition));
            values.AddRange([state.CurrencyCode(currency), Amount.Format(row.Posted, decimals), Amount.Format(row.Held, decimals), $"{batch.Partition}:{row.Position}"]);
            if (keys.Count < BalancesPerScript) continue;
            if (!Run()) return false;
        }

        values[3] = $"{batch.Last}";
        return Run();

        bool Run()
        {
            bool isDone = (int)database.ScriptEvaluate(Script, [.. keys], [.. values]) == 1;
            keys.RemoveRange(2, keys.Count - 2);
            values.RemoveRange(4, values.Count - 4);
            return isDone;
        }
    }

    /// <summary>Each partition has a part of a system account.</summary>
    static string KeyOf(AccountName name, int partition) => name.IsSystem ? $"{BalancePrefix}{name}#{partition}" : $"{BalancePrefix}{name}";

    /// <summary>What the node shows of an account; one partition's part of a system account. Up to where the partition is in it, in the same look.</summary>
    public async Task<(List<FoundBalance> Balances, ulong Position)> BalancesAsync(AccountName account, int partition)
    {
        ITransaction look = (_redis ?? throw new IOException("it was never reached")).GetDatabase().CreateTransaction();
        Task<HashEntry[]> all = look.HashGetAllAsync(KeyOf(account, partition));
        Task<RedisValue> checkpoint = look.HashGetAsync(Checkpoints, partition);
        await look.ExecuteAsync();
        Dictionary<string, string> fields = (await all).ToDictionary(entry => $"{entry.Name}", entry => $"{entry.Value}");
        RedisValue position = await checkpoint;
        return ([.. fields.Where(field => !field.Key.Contains('/', StringComparison.Ordinal)).Select(field => new FoundBalance(
            account.ToString(), field.Key, partition, field.Value, fields.GetValueOrDefault($"{field.Key}/held", "0"), ulong.Parse(fields.GetValueOrDefault($"{field.Key}/position", "0:0").Split(':')[1], System.Globalization.CultureInfo.InvariantCulture)))],
            position.IsNull ? 0 : (ulong)(long)position);
    }

    public void Dispose() => _redis?.Dispose();
}
