using System.Diagnostics;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Load;

/// <summary>Transfers in process: clients that submit batches to a partition on a file journal, each waiting until its batch is durable.</summary>
public static class EngineLoad
{
    public static async Task<Measured> RunAsync(string folder, long transfers, int accounts, int batch, int clients, Action<double> progress)
    {
        await using Partition partition = Partition.Start(0, 1, new FileDisk(folder), new PartitionOptions { QueuedCommandsMax = Math.Max(65_536, batch * clients * 2) }, TimeProvider.System, static _ => { });
        AccountName[] names = [.. Enumerable.Range(0, accounts).Select(i => AccountName.Parse($"account-{i}"))];
        CurrencyCode usd = CurrencyCode.Parse("USD");
        await OpenAsync(partition, names, usd);

        long perClient = transfers / clients / batch * batch;
        int requestsPerClient = (int)(perClient / batch);
        long[] latencies = new long[requestsPerClient * clients];
        long refused = 0, done = 0;
        Stopwatch watch = Stopwatch.StartNew();
        await Task.WhenAll(Enumerable.Range(0, clients).Select(client => Task.Run(async () =>
        {
            Random random = new(client);
            CommandRequest request = new(batch) { Count = batch };
            for (int r = 0; r < requestsPerClient; r++)
            {
                Fill(request, names, usd, random);
                long started = Stopwatch.GetTimestamp();
                RequestStatus status = await partition.SubmitAsync(request, TimeSpan.FromMinutes(1));
                latencies[client * requestsPerClient + r] = Stopwatch.GetTimestamp() - started;
                if (status != RequestStatus.Answered) throw new IOException($"The partition answered {status}.");
                foreach (ref readonly Decision decision in request.Decisions.AsSpan())
                {
                    if (decision.Outcome != Outcome.Done) Interlocked.Increment(ref refused);
                }

                progress((double)Interlocked.Add(ref done, batch) / transfers);
            }
        })));
        return Measured.From("engine", perClient * clients, clients, batch, watch.Elapsed, latencies, refused);
    }

    static void Fill(CommandRequest request, AccountName[] names, CurrencyCode usd, Random random)
    {
        Span<byte> id = stackalloc byte[16];
        for (int i = 0; i < request.Count; i++)
        {
            int from = random.Next(names.Length), to = (from + 1 + random.Next(names.Length - 1)) % names.Length;
            random.NextBytes(id);
            ref Command command = ref request.Commands[i];
            command.Kind = CommandKind.Transfer;
            command.Account = names[from];
            command.Counterparty = names[to];
            command.Currency = usd;
            command.AmountDigits = 1 + random.Next(100);
            command.AmountScale = 2;
            command.TransactionId = System.Buffers.Binary.BinaryPrimitives.ReadUInt128LittleEndian(id);
        }
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
                    AmountDigits = 1_000_000_000,
                    AmountScale = 0,
                    TransactionId = 1,
                };
            }

            if (await partition.SubmitAsync(request, TimeSpan.FromMinutes(1)) != RequestStatus.Answered) throw new IOException("The accounts could not be opened.");
        }
    }
}
