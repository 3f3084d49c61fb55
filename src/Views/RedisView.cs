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

    /// <summary>Keys: one a balance, and in the end the checkpoints. Arguments: partition, from, to (or nothing, where more is to come), then four a balance.</summary>
    const string Script = """
        local at = redis.call('HGET', KEYS[#KEYS], ARGV[1])
        if (at or '0') ~= ARGV[2] then return 0 end
        for i = 1, #KEYS - 1 do
          local a = 4 * i
          local currency = ARGV[a]
          local seen = redis.call('HGET', KEYS[i], currency .. '/position')
          if not seen or tonumber(string.match(seen, ':(%d+)$')) < tonumber(string.match(ARGV[a + 3], ':(%d+)$')) then
            redis.call('HSET', KEYS[i], currency, ARGV[a + 1], currency .. '/held', ARGV[a + 2], currency .. '/position', ARGV[a + 3])
          end
        end
        if ARGV[3] ~= '' then redis.call('HSET', KEYS[#KEYS], ARGV[1], ARGV[3]) end
        return 1
        """;

    readonly Lock _lock = new();
    ConnectionMultiplexer? _redis;

    public string Name { get; } = $"redis {address}";

    public int Index => index;

    IDatabase Database
    {
        get
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
    }

    /// <summary>Of which cluster, and at which place among how many: with another layout every account is somewhere else.</summary>
    string Layout => $"{id}/{index}/{nodesCount}/1";

    public ulong[] Open()
    {
        if (Database.StringGet(About) != Layout) Clear();
        return Positions();
    }

    public ulong[] Positions()
    {
        ulong[] positions = new ulong[partitionsCount];
        foreach (HashEntry entry in Database.HashGetAll(Checkpoints))
        {
            if (entry.Name.TryParse(out int partition) && partition < positions.Length) positions[partition] = (ulong)(long)entry.Value;
        }

        return positions;
    }

    public void Complete()
    {
        // It has all that it will have.
    }

    public void Clear()
    {
        IDatabase database = Database;
        // First what says that it is whole.
        database.KeyDelete([About, Checkpoints]);
        foreach (RedisKey[] some in _redis!.GetServer(address).Keys(database.Database, $"{BalancePrefix}*", 1000).Chunk(1000)) database.KeyDelete(some);
        database.StringSet(About, Layout);
    }

    public bool Write(ViewBatch batch)
    {
        State state = batch.State;
        IDatabase database = Database;
        List<RedisKey> keys = [];
        List<RedisValue> values = [batch.Partition, $"{batch.After}", ""];
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

        values[2] = $"{batch.Last}";
        return Run();

        bool Run()
        {
            keys.Add(Checkpoints);
            bool isDone = (int)database.ScriptEvaluate(Script, [.. keys], [.. values]) == 1;
            keys.Clear();
            values.RemoveRange(3, values.Count - 3);
            return isDone;
        }
    }

    /// <summary>Each partition has a part of a system account.</summary>
    static string KeyOf(AccountName name, int partition) => name.IsSystem ? $"{BalancePrefix}{name}#{partition}" : $"{BalancePrefix}{name}";

    /// <summary>What the node shows of an account; one partition's part of a system account. Up to where the partition is in it, in the same look.</summary>
    public async Task<(List<FoundBalance> Balances, ulong Position)> BalancesAsync(AccountName account, int partition)
    {
        ITransaction look = Database.CreateTransaction();
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
