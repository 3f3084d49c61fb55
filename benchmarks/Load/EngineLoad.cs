using System.Diagnostics;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Load;

/// <summary>Transfers in process: clients that submit batches to partitions, each waiting until its batch is durable.</summary>
public sealed class EngineLoad : IAsyncDisposable
{
    static readonly CurrencyCode Usd = CurrencyCode.Parse("USD");

    readonly List<Partition> _partitions = [];

    /// <summary>By partition: the accounts that live there.</summary>
    readonly AccountName[][] _names;

    public IReadOnlyList<Partition> Partitions => _partitions;

    public int AccountsCount { get; }

    /// <summary>Of each partition's transfers; its accounts are drawn from those that live there.</summary>
    readonly LoadShape[] _shapes;

    long _lastId = Stopwatch.GetTimestamp();

    const long OpeningBalance = 1_000_000_000;

    EngineLoad(IReadOnlyList<IJournalStore> stores, LoadShape shape, int queuedCommandsMax)
    {
        int partitionsCount = stores.Count;
        int accounts = AccountsCount = shape.Accounts;
        PartitionOptions options = new() { QueuedCommandsMax = queuedCommandsMax };
        foreach (IJournalStore store in stores) _partitions.Add(Partition.Start(store, partitionsCount, options, TimeProvider.System, static _ => { }));
        foreach (Partition partition in _partitions) partition.Connect(_partitions);
        AccountName[] all = [.. Enumerable.Range(0, accounts).Select(i => AccountName.Parse($"account-{i}"))];
        _names = [.. Enumerable.Range(0, partitionsCount).Select(number => all.Where(name => name.PartitionOf(partitionsCount) == number).ToArray())];
        _shapes = [.. _names.Select(names => shape with { Accounts = names.Length })];
    }

    /// <param name="stores">One for each partition.</param>
    public static async Task<EngineLoad> StartAsync(IReadOnlyList<IJournalStore> stores, LoadShape shape, int batch, int clients)
    {
        EngineLoad load = new(stores, shape, Math.Max(65_536, batch * clients * 2));
        for (int number = 0; number < stores.Count; number++)
        {
            if (load._names[number].Length < 2) throw new IOException($"Of {shape.Accounts} accounts fewer than two live in partition {number}; give more with --accounts.");
            await OpenAsync(load._partitions[number], load._names[number], Usd);
        }

        return load;
    }

    public async Task<Measured> RunAsync(string name, long transfers, int batch, int clients, Action<double> progress, LoadProgress? live = null)
    {
        long perClient = Math.Max(1, transfers / clients / batch) * batch;
        int requestsPerClient = (int)(perClient / batch);
        long[] latencies = new long[requestsPerClient * clients];
        long refused = 0, done = 0;
        Stopwatch watch = Stopwatch.StartNew();
        await Task.WhenAll(Enumerable.Range(0, clients).Select(client => Task.Run(async () =>
        {
            Random random = new();
            CommandRequest request = new(batch) { Count = batch };
            for (int r = 0; r < requestsPerClient; r++)
            {
                int home = (client + r) % _partitions.Count;
                Fill(request, home, random);
                long started = Stopwatch.GetTimestamp();
                RequestStatus status = await _partitions[home].SubmitAsync(request, TimeSpan.FromMinutes(1));
                long took = Stopwatch.GetTimestamp() - started;
                latencies[client * requestsPerClient + r] = took;
                if (status != RequestStatus.Answered) throw new IOException($"The partition answered {status}.");
                foreach (ref readonly Decision decision in request.Decisions.AsSpan())
                {
                    if (decision.Outcome != Outcome.Done) Interlocked.Increment(ref refused);
                }

                progress((double)Interlocked.Add(ref done, batch) / transfers);
                live?.Add(batch, took);
            }
        })));
        return Measured.From(name, perClient * clients, clients, batch, watch.Elapsed, latencies, refused) with { Accounts = AccountsCount };
    }

    void Fill(CommandRequest request, int home, Random random)
    {
        AccountName[] names = _names[home];
        LoadShape shape = _shapes[home];
        Span<byte> id = stackalloc byte[16];
        for (int i = 0; i < request.Count; i++)
        {
            int from = shape.Draw(random), to = (from + 1 + random.Next(names.Length - 1)) % names.Length;
            random.NextBytes(id);
            ref Command command = ref request.Commands[i];
            command.Kind = CommandKind.Transfer;
            command.Account = names[from];
            AccountName[] others = shape.CrossPercent > 0 && random.Next(100) < shape.CrossPercent ? _names[(home + 1 + random.Next(_names.Length - 1)) % _names.Length] : names;
            command.Counterparty = others == names ? names[to] : others[random.Next(others.Length)];
            command.Currency = Usd;
            command.AmountDigits = 1 + random.Next(100);
            command.AmountScale = 2;
            command.Pending = shape.HoldPercent > 0 && random.Next(100) < shape.HoldPercent;
            command.TransactionId = shape.HasOrderedIds ? new UInt128((ulong)Interlocked.Increment(ref _lastId), 1) : System.Buffers.Binary.BinaryPrimitives.ReadUInt128LittleEndian(id);
        }
    }

    /// <summary>Whether the balances still add up to what was deposited, over all partitions.</summary>
    public async Task<bool> IsBalancedAsync()
    {
        Int128 sum = 0;
        for (int number = 0; number < _partitions.Count; number++)
        {
            AccountName[] names = _names[number];
            ReadRequest<Int128> request = new(state =>
            {
                Int128 posted = 0;
                foreach (AccountName name in names)
                {
                    foreach (Balance balance in state.Balances(state.Names.Find(name))) posted += balance.Posted;
                }

                return posted;
            });
            if (await _partitions[number].SubmitAsync(request, TimeSpan.FromMinutes(1)) != RequestStatus.Answered) throw new IOException("The balances could not be read.");
            sum += request.Result;
        }

        return sum == (Int128)OpeningBalance * 100 * AccountsCount;
    }

    static async Task OpenAsync(Partition partition, AccountName[] names, CurrencyCode usd)
    {
        AccountName world = AccountName.Parse("@world");
        foreach (AccountName[] chunk in names.Chunk(5_000))
        {
            CommandRequest request = new(chunk.Length * 2) { Count = chunk.Length * 2 };
            for (int i = 0; i < chunk.Length; i++)
            {
                request.Commands[2 * i] = new Command { Kind = CommandKind.OpenAccount, Account = chunk[i] };
                request.Commands[2 * i + 1] = new Command
                {
                    Kind = CommandKind.Transfer,
                    Account = world,
                    Counterparty = chunk[i],
                    Currency = usd,
                    AmountDigits = OpeningBalance,
                    AmountScale = 0,
                    TransactionId = 1,
                };
            }

            if (await partition.SubmitAsync(request, TimeSpan.FromMinutes(1)) != RequestStatus.Answered) throw new IOException("The accounts could not be opened.");
        }
    }

    public async ValueTask DisposeAsync() => await Task.WhenAll(_partitions.Select(partition => partition.DisposeAsync().AsTask()));
}
