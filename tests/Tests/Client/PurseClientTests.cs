using System.Buffers.Binary;
using System.Net;
using System.Net.Sockets;
using System.Text;
using Google.Protobuf;
using Grpc.Core;
using Grpc.Net.Client;
using Purse.Client;
using Purse.Client.Wire;
using Purse.Tests.Server;
using Status = Purse.Client.Wire.Status;
using TransferResult = Purse.Client.TransferResult;

namespace Purse.Tests.Client;

/// <summary>The client over both protocols, and the protocol itself as other languages meet it.</summary>
public sealed class PurseClientTests
{
    static readonly PurseProtocol[] Protocols = [PurseProtocol.Grpc, PurseProtocol.Http];

    static async Task<TestServer> StartAsync(int partitions = 1)
    {
        TestServer server = await TestServer.StartAsync(partitionsCount: partitions);
        foreach (string account in (string[])["alice", "bob", "carol", "dave"]) await server.OpenAsync(account, "1000.00");
        return server;
    }

    static Transfer Pay(string from, string to, decimal amount, string currency = "USD") => new(from, to, amount, currency);

    /// <summary>Excludes: an outcome that one way tells otherwise than another, be it packed, in plain protobuf or in JSON.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    public async Task Every_outcome_is_the_same_by_each_way(int partitions)
    {
        await using TestServer server = await StartAsync(partitions);
        await server.SendAsync(HttpMethod.Post, "/v1/wallet/accounts/dave/freeze", """{"direction":"both"}""");
        (Transfer Transfer, TransferStatus Status, Effect Effect, string? Code, string Amount)[] cases =
        [
            (Pay("alice", "bob", 12.30m), TransferStatus.Completed, Effect.Applied, null, "12.30"),
            (Pay("alice", "bob", 5.000m, "USD"), TransferStatus.Completed, Effect.Applied, null, "5.00"),
            (Pay("@world", "carol", 7m, "JPY"), TransferStatus.Completed, Effect.Applied, null, "7"),
            (Pay("alice", "bob", 1m) with { Pending = true, ExpiresInSeconds = 600 }, TransferStatus.Pending, Effect.Applied, null, "1.00"),
            (Pay("alice", "bob", 2m) with { DryRun = true }, TransferStatus.Completed, Effect.None, null, "2.00"),
            (Pay("bob", "alice", 1_000_000m) with { UpTo = true }, TransferStatus.Completed, Effect.Applied, null, ""),
            (Pay("alice", "bob", 1m) with { Description = "lunch", MetadataJson = """{"order":"A-17"}""" }, TransferStatus.Completed, Effect.Applied, null, "1.00"),
            (Pay("alice", "bob", 1_000_000m), TransferStatus.Rejected, Effect.None, "insufficient_funds", ""),
            (Pay("nobody", "bob", 1m), TransferStatus.Rejected, Effect.None, "from_account_not_found", ""),
            (Pay("alice", "nobody", 1m), TransferStatus.Rejected, Effect.None, "to_account_not_found", ""),
            (Pay("dave", "bob", 1m), TransferStatus.Rejected, Effect.None, "from_account_frozen", ""),
            (Pay("alice", "dave", 1m), TransferStatus.Rejected, Effect.None, "to_account_frozen", ""),
            (Pay("alice", "alice", 1m), TransferStatus.Rejected, Effect.None, "same_account", ""),
            (Pay("alice", "bob", 1m, "XXQ"), TransferStatus.Rejected, Effect.None, "currency_unknown", ""),
            (Pay("alice", "bob", 0.001m), TransferStatus.Rejected, Effect.None, "amount_too_precise", ""),
            (Pay("alice", "bob", 0m), TransferStatus.Rejected, Effect.None, "amount_not_positive", ""),
            (new Transfer("alice", "bob", new Amount(Int128.Parse("99999999999999999999999999999999999"), 0), "USD"), TransferStatus.Rejected, Effect.None, "amount_too_large", ""),
            (Pay("al ice", "bob", 1m), TransferStatus.Rejected, Effect.None, "account_malformed", ""),
            (Pay("zoë", "bob", 1m), TransferStatus.Rejected, Effect.None, "account_malformed", ""),
            (Pay("", "bob", 1m), TransferStatus.Rejected, Effect.None, "account_malformed", ""),
            (Pay("alice", "bob", 1m) with { ExpiresInSeconds = 5 }, TransferStatus.Rejected, Effect.None, "malformed_request", ""),
        ];
        foreach (PurseProtocol protocol in Protocols)
        {
            await using PurseClient client = new(server.Address, new PurseClientOptions { Protocol = protocol });
            foreach ((Transfer transfer, TransferStatus status, Effect effect, string? code, string amount) in cases)
            {
                Transfer own = transfer with { Id = Guid.NewGuid() };
                TransferResult first = await client.TransferAsync(own);
                Assert.Equal((protocol, own.From, own.Id, status, effect, code), (protocol, own.From, first.Id, first.Status, first.Effect, first.Code));
                if (amount.Length > 0) Assert.Equal(amount, first.Amount.ToString());
                Assert.Equal(code is null, first.CompletedAt > DateTimeOffset.UtcNow.AddMinutes(-1));
                if (effect != Effect.Applied && code is not ("insufficient_funds" or "from_account_not_found")) continue;

                // The same again, by each way, is the same answer.
                foreach (PurseProtocol other in Protocols)
                {
                    await using PurseClient otherClient = new(server.Address, new PurseClientOptions { Protocol = other });
                    TransferResult again = (await otherClient.TransfersAsync(new[] { own }))[0];
                    Assert.True(again.IsReplayed, $"{own.From} by {other}");
                    Assert.Equal((first.Status, first.Effect, first.Code, first.Amount), (again.Status, again.Effect, again.Code, again.Amount));
                    Assert.Equal(first.CompletedAt, again.CompletedAt);
                    // The packed form has room for one partition's only.
                    Assert.NotEmpty(first.Position!.Split(',').Intersect(again.Position!.Split(',')));
                    Assert.Equal("transaction_id_reused", (await otherClient.TransferAsync(own with { Amount = 0.77m })).Code);
                }
            }
        }
    }

    [Theory]
    [InlineData(PurseProtocol.Grpc, 1)]
    [InlineData(PurseProtocol.Http, 1)]
    [InlineData(PurseProtocol.Grpc, 4)]
    public async Task Callers_at_once_travel_together_and_each_gets_its_own_answer(PurseProtocol protocol, int partitions)
    {
        await using TestServer server = await StartAsync(partitions);
        await using PurseClient client = new(server.Address, new PurseClientOptions { Protocol = protocol, BatchMax = 100, WaitingMax = 300 });
        string[] accounts = ["alice", "bob", "carol", "dave"];
        TransferResult[] results = await Task.WhenAll(Enumerable.Range(0, 2000).Select(i => client.TransferAsync(Pay(accounts[i % 4], accounts[(i + 1) % 4], (i % 50 + 1) / 100m))));
        for (int i = 0; i < results.Length; i++) Assert.Equal((TransferStatus.Completed, $"{(i % 50 + 1) / 100m:0.00}"), (results[i].Status, results[i].Amount.ToString()));
        Amount[] posted = await client.GetPostedAsync(accounts, "USD");
        Assert.Equal(4000_00, posted.Aggregate(Int128.Zero, (sum, one) => sum + one.Digits));
        Assert.Equal("-4000.00", (await client.GetPostedAsync(["@world"], "USD"))[0].ToString());
        Assert.True((await client.DescribeAsync()).Flushes < 1500, "2000 callers at once need no flush each");
        Assert.Equal(posted[0], (await client.GetBalanceAsync("alice", "USD")).Posted);
    }

    /// <summary>Excludes: a client that gives up, or doubles, where a server goes away with transfers under way and comes back.</summary>
    [Theory]
    [InlineData(PurseProtocol.Grpc)]
    [InlineData(PurseProtocol.Http)]
    public async Task A_server_that_restarts_loses_nothing_and_doubles_nothing(PurseProtocol protocol)
    {
        await using TestServer server = await StartAsync();
        // The same port for its next life.
        using DroppingProxy proxy = new(() => server.Address);
        await using PurseClient client = new(proxy.Address, new PurseClientOptions { Protocol = protocol, BatchMax = 50, Timeout = TimeSpan.FromSeconds(60) });
        using CancellationTokenSource end = new();
        List<TransferResult> results = [];
        Task[] callers = [.. Enumerable.Range(0, 8).Select(_ => Task.Run(async () =>
        {
            while (!end.IsCancellationRequested)
            {
                TransferResult result = await client.TransferAsync(Pay("alice", "bob", 0.01m));
                lock (results) results.Add(result);
            }
        }))];
        for (int life = 0; life < 3; life++)
        {
            await Task.Delay(300);
            proxy.DropAll();
            await Task.Delay(100);
            await server.RestartAsync();
        }

        await end.CancelAsync();
        await Task.WhenAll(callers);
        Assert.All(results, result => Assert.Equal(TransferStatus.Completed, result.Status));
        Assert.Equal(results.Count, results.Select(one => one.Id).Distinct().Count());
        Assert.Equal(new Amount(1000_00 + results.Count, 2), (await client.GetPostedAsync(["bob"], "USD"))[0]);
    }

    /// <summary>Excludes: "none" where a lost answer may hide that the money moved.</summary>
    [Fact]
    public async Task What_may_have_been_done_is_unknown_until_somebody_says_it()
    {
        await using TestServer server = await StartAsync();
        using DroppingProxy proxy = new(() => server.Address) { DropsAnswers = true };
        await using PurseClient client = new(proxy.Address, new PurseClientOptions { Timeout = TimeSpan.FromSeconds(2) });
        Transfer transfer = Pay("alice", "bob", 1m);
        TransferResult lost = await client.TransferAsync(transfer);
        Assert.Equal((TransferStatus.Rejected, Effect.Unknown, true), (lost.Status, lost.Effect, lost.IsRetryable));
        proxy.DropsAnswers = false;
        proxy.DropAll();
        TransferResult again = await client.TransferAsync(transfer);
        Assert.Equal((TransferStatus.Completed, Effect.Applied, true), (again.Status, again.Effect, again.IsReplayed));
        Assert.Equal("1001.00", (await client.GetPostedAsync(["bob"], "USD"))[0].ToString());
    }

    [Fact]
    public async Task A_full_queue_is_waited_for_and_nothing_is_lost()
    {
        await using TestServer server = await TestServer.StartAsync(queuedCommandsMax: 100);
        await server.OpenAsync("alice", "1000.00");
        await server.OpenAsync("bob", "0");
        await using PurseClient client = new(server.Address, new PurseClientOptions { BatchMax = 60, BatchesInFlightMax = 32 });
        TransferResult[] results = await client.TransfersAsync(Enumerable.Range(0, 5000).Select(_ => Pay("alice", "bob", 0.01m)).ToArray());
        Assert.All(results, result => Assert.Equal(TransferStatus.Completed, result.Status));
        Assert.Equal("50.00", (await client.GetPostedAsync(["bob"], "USD"))[0].ToString());
    }

    /// <summary>Bytes as any language may write them, from docs/grpc.md and nothing else.</summary>
    [Fact]
    public async Task The_packed_form_is_what_its_page_says()
    {
        await using TestServer server = await StartAsync();
        using GrpcChannel channel = GrpcChannel.ForAddress(server.Address);
        Wallet.WalletClient wallet = new(channel);
        byte[] record = new byte[56];
        Guid id = Guid.Parse("0198c0de-0000-7000-8000-000000000001");
        Convert.FromHexString("0198c0de000070008000000000000001").CopyTo(record, 0);
        BinaryPrimitives.WriteInt64LittleEndian(record.AsSpan(16), 1230);
        BinaryPrimitives.WriteUInt32LittleEndian(record.AsSpan(32), 1);
        BinaryPrimitives.WriteUInt32LittleEndian(record.AsSpan(36), 0);
        "USD"u8.CopyTo(record.AsSpan(40));
        record[52] = 2;
        byte[] names = [3, .. "bob"u8, 5, .. "alice"u8];
        using AsyncDuplexStreamingCall<PackedTransfers, PackedResults> call = wallet.Stream();
        await call.RequestStream.WriteAsync(new PackedTransfers { Batch = 7, Names = ByteString.CopyFrom(names), Transfers = ByteString.CopyFrom(record) });
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
        Assert.Equal(7ul, call.ResponseStream.Current.Batch);
        ReadOnlySpan<byte> result = call.ResponseStream.Current.Results.Span;
        Assert.Equal(40, result.Length);
        Assert.Equal((0, 1, 0, 0, 2), (BinaryPrimitives.ReadUInt16LittleEndian(result), result[2], result[3], BinaryPrimitives.ReadUInt16LittleEndian(result[4..]), result[6]));
        Assert.Equal(1230, BinaryPrimitives.ReadInt64LittleEndian(result[24..]));
        long micros = BinaryPrimitives.ReadInt64LittleEndian(result[16..]);
        ulong sequence = BinaryPrimitives.ReadUInt64LittleEndian(result[8..]);
        Response told = await server.GetAsync($"/v1/wallet/transfers/{id}");
        Assert.Equal(("alice", "bob", "12.30", $"0:{sequence}"), (told.Text("from_account"), told.Text("to_account"), told.Text("amount"), told.Text("position")));
        Assert.Equal(micros, (DateTimeOffset.Parse(told.Text("completed_at"), System.Globalization.CultureInfo.InvariantCulture) - DateTimeOffset.UnixEpoch).Ticks / 10);
    }

    [Fact]
    public async Task Hostile_messages_get_a_clear_answer_and_the_stream_goes_on()
    {
        await using TestServer server = await StartAsync();
        using GrpcChannel channel = GrpcChannel.ForAddress(server.Address);
        using AsyncDuplexStreamingCall<PackedTransfers, PackedResults> call = new Wallet.WalletClient(channel).Stream();
        byte[] good = new byte[56];
        good[16] = 1;
        good[36] = 1;
        "USD"u8.CopyTo(good.AsSpan(40));
        good[15] = 1;
        byte[] names = [5, .. "alice"u8, 3, .. "bob"u8];
        async Task<PackedResults> SendAsync(byte[] names, byte[] records, uint timeoutMs = 0)
        {
            await call.RequestStream.WriteAsync(new PackedTransfers { Batch = 1, TimeoutMs = timeoutMs, Names = ByteString.CopyFrom(names), Transfers = ByteString.CopyFrom(records) });
            Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
            return call.ResponseStream.Current;
        }

        Assert.Contains("records have 56", (await SendAsync(names, good[..55])).Problem, StringComparison.Ordinal);
        Assert.Contains("1 to 10000", (await SendAsync(names, [])).Problem, StringComparison.Ordinal);
        Assert.Contains("1 to 10000", (await SendAsync(names, [.. Enumerable.Range(0, 10_001).SelectMany(_ => good)])).Problem, StringComparison.Ordinal);
        Assert.Contains("timeout_ms", (await SendAsync(names, good, 600_001)).Problem, StringComparison.Ordinal);
        foreach ((int at, byte value, ushort code) in new (int, byte, ushort)[] { (36, 2, 2), (39, 0xff, 2), (53, 0x80, 1), (54, 1, 1), (48, 1, 1), (31, 0xff, 13), (52, 200, 11), (43, 0xff, 10), (16, 0, 13) })
        {
            byte[] bad = [.. good];
            bad[at] = value;
            Assert.Equal((at, code), (at, BinaryPrimitives.ReadUInt16LittleEndian((await SendAsync(names, bad)).Results.Span)));
        }

        // Names that end early, and bytes of chance.
        Assert.Equal(2, BinaryPrimitives.ReadUInt16LittleEndian((await SendAsync([5, .. "ali"u8], good)).Results.Span));
        Random random = new(7);
        for (int i = 0; i < 300; i++)
        {
            byte[] someNames = new byte[random.Next(200)], some = new byte[56 * random.Next(1, 20)];
            random.NextBytes(someNames);
            random.NextBytes(some);
            Assert.Equal(some.Length / 56 * 40, (await SendAsync(random.Next(2) == 0 ? names : someNames, some)).Results.Length);
        }

        Assert.Equal(0, BinaryPrimitives.ReadUInt16LittleEndian((await SendAsync(names, good)).Results.Span));
    }

    /// <summary>Excludes: bytes that are no message of wallet.proto, and end more than their own stream, or are taken for a batch.</summary>
    [Fact]
    public async Task Bytes_that_are_no_message_end_their_stream_with_a_clear_status()
    {
        await using TestServer server = await StartAsync();
        using GrpcChannel channel = GrpcChannel.ForAddress(server.Address);
        Marshaller<byte[]> bare = Marshallers.Create<byte[]>(static bytes => bytes, static bytes => bytes);
        Method<byte[], byte[]> method = new(MethodType.DuplexStreaming, "purse.v1.Wallet", "Stream", bare, bare);
        byte[][] hostile =
        [
            // A length that goes past the end, a field that does, a number without an end, groups, and a tag alone.
            [0x1a, 0x7f, 1], [0x22, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], [0x09, 1, 2], [0x08, .. Enumerable.Repeat((byte)0xff, 11)], [0x0b], [0x08],
        ];
        foreach (byte[] message in hostile)
        {
            using AsyncDuplexStreamingCall<byte[], byte[]> call = channel.CreateCallInvoker().AsyncDuplexStreamingCall(method, null, default);
            await call.RequestStream.WriteAsync(message);
            RpcException refused = await Assert.ThrowsAsync<RpcException>(async () =>
            {
                while (await call.ResponseStream.MoveNext(CancellationToken.None)) Assert.Fail("that was no batch, and was answered");
            });
            Assert.Equal(StatusCode.InvalidArgument, refused.StatusCode);
            Assert.Contains("malformed_request", refused.Status.Detail, StringComparison.Ordinal);
        }

        // What nobody asks for is passed over: a later version may say more.
        using AsyncDuplexStreamingCall<byte[], byte[]> later = channel.CreateCallInvoker().AsyncDuplexStreamingCall(method, null, default);
        await later.RequestStream.WriteAsync([0x08, 7, 0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7d, 1, 2, 3, 4, 0x7a, 1, 0]);
        Assert.True(await later.ResponseStream.MoveNext(CancellationToken.None));
        PackedResults answer = PackedResults.Parser.ParseFrom(later.ResponseStream.Current);
        Assert.Equal(7ul, answer.Batch);
        Assert.Contains("1 to 10000", answer.Problem, StringComparison.Ordinal);
    }

    /// <summary>Excludes: a caller that sends without end, listens to nothing, and has its results take all of the server's memory.</summary>
    [Fact]
    public async Task Who_sends_without_listening_is_not_read_from_any_more()
    {
        await using TestServer server = await StartAsync();
        using GrpcChannel channel = GrpcChannel.ForAddress(server.Address);
        using AsyncDuplexStreamingCall<PackedTransfers, PackedResults> call = new Wallet.WalletClient(channel).Stream();
        const int Transfers = 10_000, BatchesMax = 200;
        PackedTransfers batch = new() { Names = ByteString.Empty, Transfers = ByteString.CopyFrom(new byte[Transfers * 56]) };
        int sent = 0;
        Task writing = Task.CompletedTask;
        for (; sent < BatchesMax; sent++)
        {
            writing = call.RequestStream.WriteAsync(batch);
            if (await Task.WhenAny(writing, Task.Delay(TimeSpan.FromSeconds(3))) != writing) break;
        }

        Assert.InRange(sent, 1, BatchesMax - 1);
        // Once somebody listens, it goes on.
        for (int read = 0; read <= sent; read++)
        {
            Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
            Assert.Equal(Transfers * 40, call.ResponseStream.Current.Results.Length);
        }

        await writing;
    }

    [Fact]
    public async Task Plain_calls_say_in_words_what_is_wrong()
    {
        await using TestServer server = await StartAsync(2);
        using GrpcChannel channel = GrpcChannel.ForAddress(server.Address);
        Wallet.WalletClient wallet = new(channel);
        Purse.Client.Wire.TransferResult refused = await wallet.TransferAsync(new TransferRequest { TransactionId = Guid.NewGuid().ToString(), FromAccount = "alice", ToAccount = "bob", Amount = "5000", Currency = "USD" });
        Assert.Equal((Status.Rejected, Outcome.None, "insufficient_funds"), (refused.Status, refused.Outcome, refused.Code));
        Assert.Contains("1000.00 available", refused.Detail, StringComparison.Ordinal);
        Assert.Equal("transaction_id_malformed", (await wallet.TransferAsync(new TransferRequest { TransactionId = "7", FromAccount = "alice", ToAccount = "bob", Amount = "1", Currency = "USD" })).Code);
        Assert.Equal(StatusCode.InvalidArgument, (await Assert.ThrowsAsync<RpcException>(async () => await wallet.TransferAsync(new TransferRequest { MetadataJson = "{" }))).StatusCode);
        OpenAccountsResult opened = await wallet.OpenAccountsAsync(new OpenAccountsRequest { Accounts = { "alice", "erin", "@bank", "a b" } });
        Assert.Equal([(false, ""), (true, ""), (false, "account_malformed"), (false, "account_malformed")], opened.Accounts.Select(one => (one.Created, one.Code)));
        BalancesResult balances = await wallet.BalancesAsync(new BalancesRequest { Accounts = { "alice", "erin", "nobody", "@world" }, Currency = "USD" });
        Assert.Equal(["1000.00", "0.00", "account_not_found", "-4000.00"], balances.Balances.Select(one => one.Code + one.Posted));
        Assert.Equal(StatusCode.InvalidArgument, (await Assert.ThrowsAsync<RpcException>(async () => await wallet.BalancesAsync(new BalancesRequest { Accounts = { "alice" }, Currency = "?" }))).StatusCode);
        Description description = await wallet.DescribeAsync(new DescribeRequest());
        Assert.Equal((2u, true), (description.Partitions, description.JournalBytes > 0 && description.Flushes > 0));
    }

    /// <summary>Excludes: HTTP/1.1 that does not work any more beside HTTP/2, or a first byte that decides too soon.</summary>
    [Fact]
    public async Task One_port_speaks_both_protocols_however_slowly_they_begin()
    {
        await using TestServer server = await StartAsync();
        foreach ((string beginning, string rest, string answer) in new[]
        {
            ("GET /hea", "lthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 200"),
            ("P", "RI /x HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 404"),
            // A preface that is none, told so by HTTP/1.1 in the other's words: a frame of 8 bytes that ends the connection.
            ("PRI * HTTP/2.0\r\n", "\r\nSX\r\n\r\n", "\0\0\b\a"),
            ("PRI * HTTP/2.0\r\n\r\nS", "M\r\n\r\n\0\0\0\u0004\0\0\0\0\0", "\0\0"),
        })
        {
            using TcpClient tcp = new();
            await tcp.ConnectAsync(IPAddress.Loopback, server.Address.Port);
            NetworkStream stream = tcp.GetStream();
            await stream.WriteAsync(Encoding.Latin1.GetBytes(beginning));
            await Task.Delay(50);
            await stream.WriteAsync(Encoding.Latin1.GetBytes(rest));
            byte[] bytes = new byte[answer.Length];
            await stream.ReadExactlyAsync(bytes);
            Assert.Equal(answer, Encoding.Latin1.GetString(bytes));
        }
    }

    [Theory]
    [InlineData("12.34", "1234", 2)]
    [InlineData("-0.05", "-5", 2)]
    [InlineData("7", "7", 0)]
    [InlineData("79228162514264337593543950335", "79228162514264337593543950335", 0)]
    [InlineData("0.000000000000000001", "1", 18)]
    public void Amounts_are_exact(string text, string digits, int decimals)
    {
        Amount parsed = Amount.Parse(text), converted = decimal.Parse(text, System.Globalization.CultureInfo.InvariantCulture);
        Assert.Equal((Int128.Parse(digits), decimals), (parsed.Digits, parsed.Decimals));
        Assert.Equal((parsed, text, text), (converted, parsed.ToString(), converted.ToString()));
    }

    [Fact]
    public void Every_code_that_a_packed_transfer_may_have_is_one_of_the_contract() =>
        Assert.All(PackedCodes.ByName.Keys, code => Assert.True(Purse.Server.Problem.Codes.ContainsKey(code), code));
}
