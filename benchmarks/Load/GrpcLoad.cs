using System.Diagnostics;
using System.Runtime.InteropServices;
using Purse.Client;
using Purse.Ledger;
using Amount = Purse.Client.Amount;

namespace Purse.Load;

/// <summary>
/// Transfers by the client, over the network: each caller sends the next batch when it has the answers to the last. The caller keeps its own books, and compares them
/// with the server's balances at the end.
/// </summary>
public sealed class GrpcLoad : IAsyncDisposable
{
    const string Currency = "USD";
    const long OpeningMinor = 1_000_000_000_000_00;
    const int OpenedAtOnce = 10_000;

    readonly PurseClient[] _clients;
    readonly string[] _accounts;
    readonly long[] _minor;

    /// <summary>By partition the numbers of the accounts that live there, and the partition of each.</summary>
    readonly int[][] _homes;
    readonly int[] _homeOf;
    readonly LoadShape _shape;
    long _lastId = DateTimeOffset.UtcNow.Ticks;

    GrpcLoad(PurseClient[] clients, int partitions, LoadShape shape)
    {
        _clients = clients;
        _shape = shape;
        // Accounts of their own, however often the same server is measured.
        string run = $"{DateTimeOffset.UtcNow:yyyyMMddHHmmss}";
        _accounts = [.. Enumerable.Range(0, shape.Accounts).Select(i => $"b{run}-{i}")];
        _minor = new long[shape.Accounts];
        _homeOf = [.. _accounts.Select(account => AccountName.Parse(account).PartitionOf(partitions))];
        _homes = [.. Enumerable.Range(0, partitions).Select(partition => Enumerable.Range(0, shape.Accounts).Where(i => _homeOf[i] == partition).ToArray())];
        if (_homes.Any(static home => home.Length < 2)) throw new IOException($"Of {shape.Accounts} accounts fewer than two live in one of {partitions} partitions; give more with --accounts.");
    }

    /// <summary>Opens the accounts, and gives each the same.</summary>
    public static async Task<GrpcLoad> StartAsync(Uri server, int connections, int callers, int batch, PurseProtocol protocol, LoadShape shape)
    {
        PurseClientOptions options = new() { Protocol = protocol, BatchMax = Math.Clamp(batch, 1, 10_000), BatchesInFlightMax = (callers + connections - 1) / connections, Timeout = TimeSpan.FromMinutes(1) };
        PurseClient[] clients = [.. Enumerable.Range(0, connections).Select(_ => new PurseClient(server, options))];
        PurseClient client = clients[0];
        GrpcLoad load = new(clients, (await client.DescribeAsync()).Partitions, shape);
        for (int at = 0; at < shape.Accounts; at += OpenedAtOnce)
        {
            ArraySegment<string> some = new(load._accounts, at, Math.Min(OpenedAtOnce, shape.Accounts - at));
            await client.OpenAccountsAsync(some);
            TransferResult[] deposits = await client.TransfersAsync(some.Select(account => new Transfer("@world", account, new Amount(OpeningMinor, 2), Currency)).ToArray());
            if (deposits.Any(one => !one.IsCompleted)) throw new IOException($"A deposit was not made: {deposits.First(one => !one.IsCompleted)}.");
        }

        Array.Fill(load._minor, OpeningMinor);
        return load;
    }

    public async Task<Measured> RunAsync(string name, long transfers, int batch, int callers, LoadProgress progress)
    {
        int requestsPerCaller = (int)Math.Max(1, transfers / callers / batch);
        long[] latencies = new long[requestsPerCaller * callers];
        long refused = 0;
        TimeSpan cpu = Environment.CpuUsage.TotalTime;
        Stopwatch watch = Stopwatch.StartNew();
        await Task.WhenAll(Enumerable.Range(0, callers).Select(caller => Task.Run(async () =>
        {
            PurseClient client = _clients[caller % _clients.Length];
            Random random = new();
            Transfer[] some = new Transfer[batch];
            int[] from = new int[batch], to = new int[batch];
            TransferResult[] results = new TransferResult[batch];
            for (int r = 0; r < requestsPerCaller; r++)
            {
                Fill(some, from, to, random);
                long started = Stopwatch.GetTimestamp();
                // One by one, the client gathers what callers ask for at the same time.
                if (batch == 1) results[0] = await client.TransferAsync(some[0]);
                else await client.TransfersAsync(some, results);
                long took = Stopwatch.GetTimestamp() - started;
                latencies[caller * requestsPerCaller + r] = took;
                progress.Add(batch, took);
                Interlocked.Add(ref refused, Book(some, from, to, results));
            }
        })));
        return Measured.From(name, (long)requestsPerCaller * batch * callers, callers, batch, watch.Elapsed, latencies, refused) with
        {
            ClientCpuSeconds = (Environment.CpuUsage.TotalTime - cpu).TotalSeconds,
            Accounts = _shape.Accounts,
        };
    }

    void Fill(Transfer[] some, int[] from, int[] to, Random random)
    {
        Span<ulong> id = stackalloc ulong[2];
        for (int i = 0; i < some.Length; i++)
        {
            from[i] = _shape.Draw(random);
            int partition = _homeOf[from[i]];
            bool isAcross = _shape.CrossPercent > 0 && random.Next(100) < _shape.CrossPercent;
            if (isAcross) partition = (partition + 1 + random.Next(_homes.Length - 1)) % _homes.Length;
            int[] home = _homes[partition];
            do to[i] = home[random.Next(home.Length)];
            while (to[i] == from[i]);
            if (_shape.HasOrderedIds) (id[0], id[1]) = (0, System.Buffers.Binary.BinaryPrimitives.ReverseEndianness((ulong)Interlocked.Increment(ref _lastId)));
            else (id[0], id[1]) = ((ulong)random.NextInt64(), (ulong)random.NextInt64());
            some[i] = new Transfer(new Guid(MemoryMarshal.AsBytes(id), bigEndian: true), _accounts[from[i]], _accounts[to[i]], new Amount(1 + random.Next(100), 2), Currency)
            {
                Pending = _shape.HoldPercent > 0 && random.Next(100) < _shape.HoldPercent,
            };
        }
    }

    /// <returns>How many were not done.</returns>
    long Book(Transfer[] some, int[] from, int[] to, TransferResult[] results)
    {
        int refused = 0;
        for (int i = 0; i < some.Length; i++)
        {
            if (results[i].Status == TransferStatus.Completed)
            {
                long minor = (long)results[i].Amount.Digits;
                Interlocked.Add(ref _minor[from[i]], -minor);
                Interlocked.Add(ref _minor[to[i]], minor);
            }
            else if (results[i].Status != TransferStatus.Pending)
            {
                refused++;
            }
        }

        return refused;
    }

    /// <summary>Whether every balance is what the answers said. Where one transfer's end is not known, it cannot be.</summary>
    public async Task<bool> IsBalancedAsync()
    {
        for (int at = 0; at < _accounts.Length; at += OpenedAtOnce)
        {
            ArraySegment<string> some = new(_accounts, at, Math.Min(OpenedAtOnce, _accounts.Length - at));
            Amount[] posted = await _clients[0].GetPostedAsync(some, Currency);
            for (int i = 0; i < posted.Length; i++)
            {
                if (posted[i].Digits != _minor[at + i]) return false;
            }
        }

        return true;
    }

    public Task<ServerDescription> DescribeAsync() => _clients[0].DescribeAsync();

    public async ValueTask DisposeAsync()
    {
        foreach (PurseClient client in _clients) await client.DisposeAsync();
    }
}
