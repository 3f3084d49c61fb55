using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using System.Text;

namespace Purse.Load;

/// <summary>
/// Transfers over HTTP/1.1, one or many in a request, each connection sending the next when it has the answer to the last. Bare sockets: on two cores a full
/// HTTP client would take from the server what it is meant to measure.
/// </summary>
public static class HttpLoad
{
    public static Task<Measured> RunAsync(string name, Uri server, long transfers, int accounts, int connections, Action<double> progress) => RunAsync(
        name, [server], transfers,
        random =>
        {
            int from = random.Next(accounts), to = (from + 1 + random.Next(accounts - 1)) % accounts;
            return ($"account-{from}", $"account-{to}");
        },
        1, connections, progress);

    /// <param name="servers">Each gets its share of the connections.</param>
    /// <param name="choose">Who pays, and who is paid.</param>
    public static async Task<Measured> RunAsync(string name, Uri[] servers, long transfers, Func<Random, (string From, string To)> choose, int batch, int connections, Action<double> progress, LoadProgress? live = null)
    {
        int perConnection = (int)Math.Max(1, transfers / connections / batch);
        long[] latencies = new long[perConnection * connections];
        long refused = 0, done = 0;
        TimeSpan cpu = Environment.CpuUsage.TotalTime;
        Stopwatch watch = Stopwatch.StartNew();
        await Task.WhenAll(Enumerable.Range(0, connections).Select(c => Task.Run(async () =>
        {
            Random random = new(c);
            using Connection connection = await Connection.OpenAsync(servers[c % servers.Length]);
            for (int i = 0; i < perConnection; i++)
            {
                string body = batch == 1 ? Transfer(random) : $$"""{"transfers":[{{string.Join(',', Enumerable.Range(0, batch).Select(_ => Transfer(random)))}}]}""";
                long started = Stopwatch.GetTimestamp();
                (int status, int completed) = await connection.PostAsync(batch == 1 ? "/v1/wallet/balance_transfer" : "/v1/wallet/transfers", body);
                long took = Stopwatch.GetTimestamp() - started;
                latencies[c * perConnection + i] = took;
                live?.Add(batch, took);
                if (status != 200) Interlocked.Add(ref refused, batch);
                else if (batch > 1) Interlocked.Add(ref refused, batch - completed);
                progress((double)Interlocked.Add(ref done, batch) / transfers);
            }

            string Transfer(Random random)
            {
                (string from, string to) = choose(random);
                return $$"""{"from_account":"{{from}}","to_account":"{{to}}","amount":"0.{{1 + random.Next(99):00}}","currency":"USD","transaction_id":"{{Guid.NewGuid()}}"}""";
            }
        })));
        return Measured.From(name, (long)perConnection * batch * connections, connections, batch, watch.Elapsed, latencies, refused) with { ClientCpuSeconds = (Environment.CpuUsage.TotalTime - cpu).TotalSeconds };
    }

    /// <summary>Opens the accounts a load moves money between, each with a deposit.</summary>
    public static Task OpenAccountsAsync(Uri server, int accounts) => OpenAccountsAsync(server, Enumerable.Range(0, accounts).Select(i => $"account-{i}"));

    public static async Task OpenAccountsAsync(Uri server, IEnumerable<string> accounts)
    {
        using Connection connection = await Connection.OpenAsync(server);
        foreach (string account in accounts)
        {
            (int opened, _) = await connection.PostAsync("/v1/wallet/accounts", $$"""{"account":"{{account}}"}""");
            (int deposited, _) = await connection.PostAsync(
                "/v1/wallet/balance_transfer",
                $$"""{"from_account":"@world","to_account":"{{account}}","amount":"1000000","currency":"USD","transaction_id":"{{Guid.NewGuid()}}"}""");
            if (opened is not (200 or 201) || deposited != 200) throw new IOException($"{account} could not be opened (HTTP {opened}, {deposited}).");
        }
    }

    sealed class Connection : IDisposable
    {
        readonly Socket _socket = new(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        byte[] _out = new byte[2048], _in = new byte[8192];
        string _host = "";

        public static async Task<Connection> OpenAsync(Uri server)
        {
            Connection connection = new() { _host = server.Authority };
            await connection._socket.ConnectAsync(new IPEndPoint(IPAddress.Parse(server.Host), server.Port));
            return connection;
        }

        /// <summary>The status of the answer, and how many transfers it says are completed; the rest of it is read and dropped.</summary>
        public async ValueTask<(int Status, int Completed)> PostAsync(string path, string body)
        {
            if (_out.Length < body.Length + 512) _out = new byte[body.Length * 2];
            int length = Encoding.ASCII.GetBytes($"POST {path} HTTP/1.1\r\nHost: {_host}\r\nContent-Type: application/json\r\nContent-Length: {body.Length}\r\n\r\n{body}", _out);
            await _socket.SendAsync(_out.AsMemory(0, length), SocketFlags.None);
            int received = 0;
            while (true)
            {
                if (received == _in.Length) Array.Resize(ref _in, _in.Length * 2);
                int n = await _socket.ReceiveAsync(_in.AsMemory(received), SocketFlags.None);
                if (n == 0) throw new IOException("The server closed the connection.");
                received += n;
                if (IsWhole(_in.AsSpan(0, received))) return ((_in[9] - '0') * 100 + (_in[10] - '0') * 10 + (_in[11] - '0'), MemoryExtensions.Count(_in.AsSpan(0, received), "\"completed\""u8));
            }
        }

        static bool IsWhole(ReadOnlySpan<byte> answer)
        {
            int end = answer.IndexOf("\r\n\r\n"u8);
            if (end < 0) return false;
            ReadOnlySpan<byte> head = answer[..end];
            int at = head.IndexOf("Content-Length: "u8);
            if (at < 0) return answer.EndsWith("0\r\n\r\n"u8);
            int length = 0;
            for (int i = at + 16; i < head.Length && char.IsAsciiDigit((char)head[i]); i++) length = length * 10 + (head[i] - '0');
            return answer.Length >= end + 4 + length;
        }

        public void Dispose() => _socket.Dispose();
    }
}
