using System.CommandLine;
using System.Diagnostics;
using System.Net;
using System.Net.Http.Json;
using System.Text.Json;
using Purse.Ledger;
using Purse.Partitions;
using Purse.Server;
using Spectre.Console;
using Command = System.CommandLine.Command;

namespace Purse.Cli;

/// <summary>
/// The whole promise in one command: a server of its own, money moved by several clients, the server killed in the middle and once more at
/// the end, and every cent accounted for from the first event on.
/// </summary>
static class DemoCommand
{
    const int Accounts = 20;
    const int Clients = 16;
    const long DepositMinor = 100_000_000;

    public static Command Create()
    {
        Option<int> transfers = new("--transfers") { Description = "How many transfers.", DefaultValueFactory = _ => 100_000 };
        Option<bool> json = Terminal.JsonOption();
        Command command = new("demo", "Show what Purse promises: transfers under load, a server killed hard, and the replay that agrees.") { transfers, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(() => RunAsync(parsed.GetValue(transfers), parsed.GetValue(json))));
        return command;
    }

    static async Task<int> RunAsync(int transfers, bool asJson)
    {
        if (transfers < 100) throw new StartException($"--transfers is {transfers}; it must be at least 100.");
        string data = Directory.CreateTempSubdirectory("purse-demo-").FullName;
        ServerProcess server = await ServerProcess.StartAsync(data);
        try
        {
            void Say(string what)
            {
                if (!asJson) Console.WriteLine(what);
            }

            Say($"started a server of its own, process {server.Id}, on {server.Address.Authority}, data in {data}");
            await OpenAsync(server.Address);
            Say($"opened {Accounts} accounts, deposited {Amount.Format(DepositMinor, 2)} USD into each from @world");

            Stopwatch watch = Stopwatch.StartNew();
            Clientele clientele = new(transfers);
            int killAt = transfers / 3 + Random.Shared.Next(transfers / 3);
            ServerProcess first = server;
            await Terminal.ProgressAsync("Transferring", async progress =>
            {
                Task load = clientele.RunAsync(() => server.Address, progress);
                while (clientele.Done < killAt && !load.IsCompleted) await Task.Delay(1);
                first.Kill();
                server = await ServerProcess.StartAsync(data);
                await load;
                return 0;
            });
            Say($"transferred {transfers} times with {Clients} clients in {watch.Elapsed.TotalSeconds:0.0} s; killed the server hard after {killAt} of them,");
            Say($"started it again, and sent the {clientele.Resent} that had no answer once more under their ids ({clientele.Replayed} had been done already)");

            server.Kill();
            Say("killed the server hard again");
            server.Dispose();
            server = await ServerProcess.StartAsync(data);

            using DataFolder folder = DataFolder.OpenForReading(data);
            JournalCommands.Replayed replayed = JournalCommands.ReplayPartition(folder.Store(0), folder.PartitionsCount, checkMerkleRoots: true, ulong.MaxValue, long.MaxValue, static _ => { });
            Say($"replayed {replayed.Events} events from the first one on in {replayed.Took.TotalSeconds:0.00} s");
            List<(string Account, string Clients, string Server, string Replay)> rows = await CompareAsync(server.Address, clientele, replayed.State);
            bool agrees = rows.TrueForAll(row => row.Clients == row.Server && row.Server == row.Replay);
            ulong debits = rows.Count == 0 ? 0 : CountTransfers(replayed.State);
            bool exactlyOnce = debits == (ulong)(transfers + Accounts);
            IEnumerable<Int128> sums = replayed.State.CurrenciesInUse().Select(replayed.State.CountSum);
            bool sumIsZero = sums.All(sum => sum == 0);

            if (asJson)
            {
                Console.WriteLine(JsonSerializer.Serialize(
                    new
                    {
                        ok = agrees && exactlyOnce && sumIsZero,
                        transfers,
                        resent = clientele.Resent,
                        events = replayed.Events,
                        sum = sums.Aggregate((Int128)0, (a, b) => a + Int128.Abs(b)).ToString(),
                        balances = rows.ToDictionary(row => row.Account, row => row.Replay),
                    },
                    Terminal.Indented));
            }
            else
            {
                Print(rows);
            }

            Say($"every balance: {(agrees ? "the clients' books, the server and the replay agree" : "THEY DO NOT AGREE")}");
            Say($"transfers in the journal: {debits - Accounts} of {transfers}{(exactlyOnce ? ", each once" : ": NOT EXACTLY ONCE")}");
            Say(sumIsZero ? "sum 0" : "THE SUM IS NOT 0");
            return agrees && exactlyOnce && sumIsZero ? Exit.Done : Exit.Failed;
        }
        finally
        {
            server.Dispose();
            Directory.Delete(data, recursive: true);
        }
    }

    static async Task OpenAsync(Uri address)
    {
        using HttpClient client = new() { BaseAddress = address };
        for (int i = 0; i < Accounts; i++)
        {
            (await client.PostAsJsonAsync("/v1/wallet/accounts", new { account = Name(i) })).EnsureSuccessStatusCode();
            (await client.PostAsJsonAsync("/v1/wallet/balance_transfer", new
            {
                from_account = "@world",
                to_account = Name(i),
                amount = Amount.Format(DepositMinor, 2),
                currency = "USD",
                transaction_id = Guid.NewGuid(),
            })).EnsureSuccessStatusCode();
        }
    }

    static string Name(int account) => $"customer-{account + 1}";

    static ulong CountTransfers(State state) => (ulong)state.Ids.Count;

    static async Task<List<(string Account, string Clients, string Server, string Replay)>> CompareAsync(Uri address, Clientele clientele, State replayed)
    {
        using HttpClient client = new() { BaseAddress = address };
        List<(string, string, string, string)> rows = [];
        replayed.TryCurrency(CurrencyCode.Parse("USD"), out uint usd, out int decimals);
        for (int i = 0; i < Accounts; i++)
        {
            JsonElement balance = await client.GetFromJsonAsync<JsonElement>($"/v1/wallet/accounts/{Name(i)}/balance?currency=USD");
            Balance replay = replayed.Balance(replayed.Names.Find(AccountName.Parse(Name(i))), usd);
            rows.Add((Name(i), Amount.Format(DepositMinor + clientele.NetMinor[i], decimals), balance.GetProperty("posted").GetString()!, Amount.Format(replay.Posted, decimals)));
        }

        return rows;
    }

    static void Print(List<(string Account, string Clients, string Server, string Replay)> rows)
    {
        Table table = new Table().Border(TableBorder.Rounded).AddColumn("account").AddColumn("clients' books", c => c.RightAligned()).AddColumn("server", c => c.RightAligned()).AddColumn("replay", c => c.RightAligned());
        foreach ((string account, string clients, string server, string replay) in rows) table.AddRow(account, clients, server, replay);
        Terminal.Out.Write(table);
    }

    /// <summary>Clients that keep books of their own, and send again what they got no answer for.</summary>
    sealed class Clientele(int transfers)
    {
        int _next;
        int _done;
        int _resent;
        int _replayed;

        /// <summary>What came less what went, in minor units, by account.</summary>
        public long[] NetMinor { get; } = new long[Accounts];

        public int Done => Volatile.Read(ref _done);

        public int Resent => _resent;

        public int Replayed => _replayed;

        public Task RunAsync(Func<Uri> address, Action<double> progress) => Task.WhenAll(Enumerable.Range(0, Clients).Select(client => Task.Run(async () =>
        {
            Random random = new(client);
            using HttpClient http = new();
            while (Interlocked.Increment(ref _next) <= transfers)
            {
                int from = random.Next(Accounts), to = (from + 1 + random.Next(Accounts - 1)) % Accounts, minor = 1 + random.Next(1000);
                await TransferAsync(http, address, from, to, minor, Guid.NewGuid());
                Interlocked.Add(ref NetMinor[from], -minor);
                Interlocked.Add(ref NetMinor[to], minor);
                progress((double)Interlocked.Increment(ref _done) / transfers);
            }
        })));

        async Task TransferAsync(HttpClient http, Func<Uri> address, int from, int to, int minor, Guid id)
        {
            for (int attempt = 0; ; attempt++)
            {
                try
                {
                    using HttpResponseMessage response = await http.PostAsJsonAsync(new Uri(address(), "/v1/wallet/balance_transfer"), new
                    {
                        from_account = Name(from),
                        to_account = Name(to),
                        amount = Amount.Format(minor, 2),
                        currency = "USD",
                        transaction_id = id,
                    });
                    if (response.StatusCode == HttpStatusCode.OK)
                    {
                        if (attempt > 0) Interlocked.Increment(ref _resent);
                        if (response.Headers.Contains("Idempotent-Replayed")) Interlocked.Increment(ref _replayed);
                        return;
                    }

                    if (response.StatusCode != HttpStatusCode.ServiceUnavailable) throw new IOException($"The server answered {(int)response.StatusCode}: {await response.Content.ReadAsStringAsync()}");
                }
                catch (HttpRequestException) when (attempt < 1000)
                {
                    // The server is gone for a moment.
                }

                await Task.Delay(20);
            }
        }
    }
}
