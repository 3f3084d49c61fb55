using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Text;

namespace Purse.Load;

/// <summary>
/// Transfers as a Lua script on one Redis node that flushes before it answers (<c>appendfsync always</c>): the id is remembered, the balance checked, two
/// balances moved; no history. Bare sockets, and as many scripts in one write as a batch has.
/// </summary>
public sealed class RedisLoad
{
    const string Script =
        "if not redis.call('SET',KEYS[1],'1','NX') then return 1 end " +
        "if tonumber(redis.call('GET',KEYS[2]))<tonumber(ARGV[1]) then return 2 end " +
        "redis.call('DECRBY',KEYS[2],ARGV[1]) redis.call('INCRBY',KEYS[3],ARGV[1]) return 0";

    const long OpeningBalance = 1_000_000_000;

    readonly int _port, _accounts;
    readonly string _script;

    RedisLoad(int port, int accounts, string script) => (_port, _accounts, _script) = (port, accounts, script);

    /// <summary>What the server has to be started with, to be as durable as a journal is.</summary>
    public static string[] Settings { get; } = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

    public static async Task<RedisLoad> StartAsync(int port, int accounts)
    {
        using Connection connection = await Connection.OpenAsync(port);
        foreach (int[] chunk in Enumerable.Range(0, accounts).Chunk(1000))
        {
            foreach (int account in chunk) connection.Add("SET", $"a:{account}", OpeningBalance.ToString(CultureInfo.InvariantCulture));
            if (await connection.RunAsync(chunk.Length) != chunk.Length) throw new IOException("The accounts could not be opened in Redis.");
        }

        connection.Add("SCRIPT", "LOAD", Script);
        await connection.RunAsync(1);
        return new RedisLoad(port, accounts, connection.LastBulk);
    }

    /// <param name="draw">An account, of as many as there are.</param>
    public async Task<Measured> RunAsync(string name, long transfers, int batch, int clients, Func<Random, int> draw, Action<double> progress)
    {
        int requestsPerClient = (int)Math.Max(1, transfers / clients / batch);
        long[] latencies = new long[requestsPerClient * clients];
        long refused = 0, done = 0;
        Stopwatch watch = Stopwatch.StartNew();
        await Task.WhenAll(Enumerable.Range(0, clients).Select(client => Task.Run(async () =>
        {
            Random random = new(client);
            using Connection connection = await Connection.OpenAsync(_port);
            for (int r = 0; r < requestsPerClient; r++)
            {
                for (int i = 0; i < batch; i++)
                {
                    int from = draw(random), to = random.Next(_accounts - 1);
                    if (to >= from) to++;
                    connection.Add("EVALSHA", _script, "3", $"t:{Guid.NewGuid():N}", $"a:{from}", $"a:{to}", $"{1 + random.Next(100)}");
                }

                long started = Stopwatch.GetTimestamp();
                int zeros = await connection.RunAsync(batch);
                latencies[client * requestsPerClient + r] = Stopwatch.GetTimestamp() - started;
                if (zeros < batch) Interlocked.Add(ref refused, batch - zeros);
                progress((double)Interlocked.Add(ref done, batch) / transfers);
            }
        })));
        return Measured.From(name, (long)requestsPerClient * batch * clients, clients, batch, watch.Elapsed, latencies, refused);
    }

    /// <summary>Whether the balances still add up to what they were.</summary>
    public async Task<bool> IsBalancedAsync()
    {
        using Connection connection = await Connection.OpenAsync(_port);
        long sum = 0;
        for (int account = 0; account < _accounts; account++)
        {
            connection.Add("GET", $"a:{account}");
            await connection.RunAsync(1);
            sum += long.Parse(connection.LastBulk, CultureInfo.InvariantCulture);
        }

        return sum == OpeningBalance * _accounts;
    }

    sealed class Connection : IDisposable
    {
        readonly Socket _socket = new(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        readonly byte[] _in = new byte[64 * 1024];
        readonly StringBuilder _out = new();
        byte[] _bytes = new byte[64 * 1024];

        public string LastBulk { get; private set; } = "";

        public static async Task<Connection> OpenAsync(int port)
        {
            Connection connection = new();
            await connection._socket.ConnectAsync(new IPEndPoint(IPAddress.Loopback, port));
            return connection;
        }

        public void Add(params ReadOnlySpan<string> words)
        {
            _out.Append(CultureInfo.InvariantCulture, $"*{words.Length}\r\n");
            foreach (string word in words) _out.Append(CultureInfo.InvariantCulture, $"${word.Length}\r\n{word}\r\n");
        }

        /// <summary>Sends all that was added.</summary>
        /// <returns>How many answers are 0 or OK.</returns>
        public async Task<int> RunAsync(int answers)
        {
            if (_bytes.Length < _out.Length) _bytes = new byte[_out.Length * 2];
            int length = 0;
            foreach (ReadOnlyMemory<char> chunk in _out.GetChunks()) length += Encoding.ASCII.GetBytes(chunk.Span, _bytes.AsSpan(length));
            _out.Clear();
            Task sending = SendAsync(length);
            int good = 0, have = 0;
            while (answers > 0)
            {
                int read = await _socket.ReceiveAsync(_in.AsMemory(have), SocketFlags.None);
                if (read == 0) throw new IOException("Redis closed the connection.");
                have += read;
                int used = 0;
                while (answers > 0 && TryTake(_in.AsSpan(used, have - used), out int size, out bool isGood))
                {
                    used += size;
                    answers--;
                    if (isGood) good++;
                }

                _in.AsSpan(used, have - used).CopyTo(_in);
                have -= used;
            }

            await sending;
            return good;
        }

        async Task SendAsync(int length)
        {
            for (int sent = 0; sent < length;) sent += await _socket.SendAsync(_bytes.AsMemory(sent, length - sent), SocketFlags.None);
        }

        bool TryTake(ReadOnlySpan<byte> answer, out int size, out bool isGood)
        {
            (size, isGood) = (0, false);
            int end = answer.IndexOf("\r\n"u8);
            if (end < 0) return false;
            if (answer[0] == '-') throw new IOException($"Redis: {Encoding.ASCII.GetString(answer[1..end])}");
            size = end + 2;
            if (answer[0] == '$')
            {
                int length = int.Parse(answer[1..end], CultureInfo.InvariantCulture);
                size += length + 2;
                if (answer.Length < size) return false;
                LastBulk = Encoding.ASCII.GetString(answer.Slice(end + 2, length));
            }

            isGood = answer[..end].SequenceEqual(":0"u8) || answer[..end].SequenceEqual("+OK"u8);
            return true;
        }

        public void Dispose() => _socket.Dispose();
    }
}
