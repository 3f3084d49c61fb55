using System.Globalization;
using System.Net;
using System.Text;
using System.Text.Json;
using Grpc.Net.Client;
using Purse.Client.Wire;

namespace Purse.Client;

/// <summary>A balance as the server had it at <paramref name="Position"/>.</summary>
public sealed record Balance(string Account, string Currency, Amount Posted, Amount Held, Amount Available, string Position);

/// <summary>What a server promises.</summary>
/// <param name="IsDurable">Nothing is answered before it is flushed.</param>
/// <param name="Flushes">Of the journals of its process so far.</param>
/// <param name="JournalBytes">That they wrote.</param>
public sealed record ServerDescription(string Version, int Partitions, bool IsDurable, ulong Flushes, ulong JournalBytes);

/// <summary>The server refused something that is not a transfer.</summary>
public sealed class PurseException(string code, string message) : Exception(message)
{
    /// <summary>As docs/API.md has them.</summary>
    public string Code { get; } = code;
}

/// <summary>
/// A wallet server's client, for many callers at once. Single transfers that come together travel together; no more is under way than the options say; what is safe
/// to send again is sent again under its own id until its time is over. Results say what became of the money, and throw nothing but a caller's own cancellation.
/// </summary>
public sealed class PurseClient : IAsyncDisposable
{
    readonly PurseClientOptions _options;
    readonly GrpcChannel _channel;
    readonly HttpClient _http;
    readonly Wallet.WalletClient _wallet;
    readonly Transport _transport;
    readonly Transport _plain;

    /// <summary>One for each batch that may be under way.</summary>
    readonly SemaphoreSlim _slots;

    /// <summary>One for each single transfer that may wait.</summary>
    readonly SemaphoreSlim _room;
    readonly Lock _lock = new();
    List<Single> _gathered = [];
    bool _isSending;

    /// <param name="server">Such as <c>http://127.0.0.1:7070</c>.</param>
    public PurseClient(Uri server, PurseClientOptions? options = null)
    {
        _options = options ?? new PurseClientOptions();
        if (_options.BatchMax is < 1 or > 10_000) throw new ArgumentOutOfRangeException(nameof(options), _options.BatchMax, "BatchMax is 1 to 10000.");
        _slots = new SemaphoreSlim(_options.BatchesInFlightMax);
        _room = new SemaphoreSlim(_options.WaitingMax);
        _http = new HttpClient { BaseAddress = server, Timeout = System.Threading.Timeout.InfiniteTimeSpan };
        SocketsHttpHandler handler = new()
        {
            EnableMultipleHttp2Connections = true,
            InitialHttp2StreamWindowSize = 16 * 1024 * 1024,
            PooledConnectionIdleTimeout = System.Threading.Timeout.InfiniteTimeSpan,
            // A server that is gone without a word is noticed by that.
            KeepAlivePingDelay = TimeSpan.FromSeconds(10),
            KeepAlivePingTimeout = TimeSpan.FromSeconds(5),
        };
        _channel = GrpcChannel.ForAddress(server, new GrpcChannelOptions { HttpHandler = handler, DisposeHttpClient = true, MaxReceiveMessageSize = 16 * 1024 * 1024, MaxSendMessageSize = 16 * 1024 * 1024 });
        _wallet = new Wallet.WalletClient(_channel);
        _transport = _options.Protocol == PurseProtocol.Grpc ? new StreamTransport(_channel.CreateCallInvoker()) : new HttpTransport(_http);
        _plain = _options.Protocol == PurseProtocol.Grpc ? new PlainTransport(_wallet) : _transport;
    }

    readonly record struct Single(Transfer Transfer, TaskCompletionSource<TransferResult> Answer);

    /// <summary>One transfer; it travels with whatever others ask for at the same time.</summary>
    /// <exception cref="OperationCanceledException">The caller does not wait any more. The transfer may be done all the same.</exception>
    public async Task<TransferResult> TransferAsync(Transfer transfer, CancellationToken cancellation = default)
    {
        await _room.WaitAsync(cancellation);
        TaskCompletionSource<TransferResult> answer = new(TaskCreationOptions.RunContinuationsAsynchronously);
        lock (_lock)
        {
            _gathered.Add(new Single(transfer, answer));
            if (!_isSending)
            {
                _isSending = true;
                _ = SendGatheredAsync();
            }
        }

        return await answer.Task.WaitAsync(cancellation);
    }

    /// <summary>Takes what was gathered whenever a batch may go: a lone caller waits for nothing.</summary>
    async Task SendGatheredAsync()
    {
        while (true)
        {
            await _slots.WaitAsync();
            List<Single> batch;
            lock (_lock)
            {
                if (_gathered.Count == 0)
                {
                    _isSending = false;
                    _slots.Release();
                    return;
                }

                batch = _gathered;
                _gathered = batch.Count > _options.BatchMax ? batch[_options.BatchMax..] : [];
            }

            if (batch.Count > _options.BatchMax) batch.RemoveRange(_options.BatchMax, batch.Count - _options.BatchMax);
            _ = SendAsync(batch);
        }
    }

    async Task SendAsync(List<Single> batch)
    {
        Transfer[] transfers = [.. batch.Select(static one => one.Transfer)];
        TransferResult[] results = new TransferResult[batch.Count];
        try
        {
            await SendUntilKnownAsync(transfers, results, CancellationToken.None);
        }
        catch (Exception e)
        {
            foreach (Single one in batch) one.Answer.TrySetException(e);
        }
        finally
        {
            _slots.Release();
            _room.Release(batch.Count);
        }

        for (int i = 0; i < batch.Count; i++) batch[i].Answer.TrySetResult(results[i]);
    }

    /// <summary>Many transfers, decided in their order, each with the outcome it would have alone. More than a batch go in several, side by side.</summary>
    public async Task<TransferResult[]> TransfersAsync(ReadOnlyMemory<Transfer> transfers, CancellationToken cancellation = default)
    {
        TransferResult[] results = new TransferResult[transfers.Length];
        await TransfersAsync(transfers, results, cancellation);
        return results;
    }

    /// <param name="results">As long as the transfers.</param>
    public async Task TransfersAsync(ReadOnlyMemory<Transfer> transfers, Memory<TransferResult> results, CancellationToken cancellation = default)
    {
        if (transfers.Length <= _options.BatchMax)
        {
            await SendBatchAsync(transfers, results, cancellation);
            return;
        }

        List<Task> batches = [];
        for (int at = 0; at < transfers.Length; at += _options.BatchMax)
        {
            int length = Math.Min(_options.BatchMax, transfers.Length - at);
            batches.Add(SendBatchAsync(transfers.Slice(at, length), results.Slice(at, length), cancellation));
        }

        await Task.WhenAll(batches);
    }

    async Task SendBatchAsync(ReadOnlyMemory<Transfer> transfers, Memory<TransferResult> results, CancellationToken cancellation)
    {
        await _slots.WaitAsync(cancellation);
        try
        {
            await SendUntilKnownAsync(transfers, results, cancellation);
        }
        finally
        {
            _slots.Release();
        }
    }

    /// <summary>
    /// Sends again, under the same ids, what may be. What once was unknown stays so until somebody says what became of it: that a later attempt left nothing behind
    /// says nothing about the one before.
    /// </summary>
    async Task SendUntilKnownAsync(ReadOnlyMemory<Transfer> transfers, Memory<TransferResult> results, CancellationToken cancellation)
    {
        long deadline = Environment.TickCount64 + (long)_options.Timeout.TotalMilliseconds;
        await SendOnceAsync(transfers, results, _options.Timeout, cancellation);
        if (!HasRetryable(results.Span)) return;

        bool[] wasUnknown = new bool[transfers.Length];
        for (int delay = 20; ; delay = Math.Min(delay * 2, 1000))
        {
            int[] again = [.. Enumerable.Range(0, transfers.Length).Where(i => MayBeSentAgain(results.Span[i]))];
            foreach (int i in again) wasUnknown[i] |= results.Span[i].Effect == Effect.Unknown;
            long left = deadline - Environment.TickCount64 - delay;
            if (again.Length == 0 || left <= 0) break;
            await Task.Delay(Random.Shared.Next(delay / 2, delay), cancellation);
            Transfer[] some = [.. again.Select(i => transfers.Span[i])];
            TransferResult[] answers = new TransferResult[some.Length];
            await SendOnceAsync(some, answers, TimeSpan.FromMilliseconds(left), cancellation);
            for (int k = 0; k < again.Length; k++) results.Span[again[k]] = answers[k];
        }

        for (int i = 0; i < wasUnknown.Length; i++)
        {
            if (wasUnknown[i] && MayBeSentAgain(results.Span[i])) results.Span[i] = results.Span[i] with { Effect = Effect.Unknown };
        }
    }

    static bool HasRetryable(ReadOnlySpan<TransferResult> results)
    {
        foreach (ref readonly TransferResult result in results)
        {
            if (MayBeSentAgain(result)) return true;
        }

        return false;
    }

    static bool MayBeSentAgain(in TransferResult result) => result.IsRetryable && result.Status == TransferStatus.Rejected;

    async Task SendOnceAsync(ReadOnlyMemory<Transfer> transfers, Memory<TransferResult> results, TimeSpan timeout, CancellationToken cancellation)
    {
        int fitting = 0;
        foreach (ref readonly Transfer transfer in transfers.Span)
        {
            if (ReferenceEquals(_transport, _plain) || StreamTransport.Fits(transfer)) fitting++;
        }

        try
        {
            // In order: one that cannot be packed takes the whole batch with it.
            await (fitting == transfers.Length ? _transport : _plain).SendAsync(transfers, results, timeout, cancellation);
        }
        catch (TransportException e)
        {
            for (int i = 0; i < transfers.Length; i++) results.Span[i] = TransferResult.Lost(transfers.Span[i].Id, e.Message);
        }
    }

    public async Task<ServerDescription> DescribeAsync(CancellationToken cancellation = default)
    {
        Description description = await _wallet.DescribeAsync(new DescribeRequest(), cancellationToken: cancellation);
        return new ServerDescription(description.Version, (int)description.Partitions, description.Durable, description.Flushes, description.JournalBytes);
    }

    /// <summary>Opens an account; one that is open stays as it is.</summary>
    public async Task OpenAccountAsync(string account, CancellationToken cancellation = default)
    {
        using JsonDocument _ = await AskAsync(HttpMethod.Post, "v1/wallet/accounts", $$"""{"account":{{JsonSerializer.Serialize(account)}}}""", cancellation);
    }

    /// <summary>Opens many accounts by gRPC, up to 10 000.</summary>
    /// <exception cref="PurseException">One of them cannot be opened; others may have been.</exception>
    public async Task OpenAccountsAsync(IEnumerable<string> accounts, CancellationToken cancellation = default)
    {
        OpenAccountsRequest request = new() { TimeoutMs = (uint)_options.Timeout.TotalMilliseconds };
        request.Accounts.AddRange(accounts);
        OpenAccountsResult result = await _wallet.OpenAccountsAsync(request, cancellationToken: cancellation);
        if (result.Accounts.FirstOrDefault(one => one.Code.Length > 0) is OpenedAccount failed) throw new PurseException(failed.Code, failed.Detail);
    }

    /// <summary>What many accounts have now, by gRPC, up to 10 000.</summary>
    /// <exception cref="PurseException">The balance of one of them is not known.</exception>
    public async Task<Amount[]> GetPostedAsync(IEnumerable<string> accounts, string currency, CancellationToken cancellation = default)
    {
        BalancesRequest request = new() { Currency = currency, TimeoutMs = (uint)_options.Timeout.TotalMilliseconds };
        request.Accounts.AddRange(accounts);
        BalancesResult result = await _wallet.BalancesAsync(request, cancellationToken: cancellation);
        return [.. result.Balances.Select(one => one.Code.Length == 0 ? Amount.Parse(one.Posted) : throw new PurseException(one.Code, one.Detail))];
    }

    /// <param name="asOf">A moment of the past, or null for now.</param>
    public async Task<Balance> GetBalanceAsync(string account, string currency, DateTimeOffset? asOf = null, CancellationToken cancellation = default)
    {
        string past = asOf is DateTimeOffset at ? $"&as_of={Uri.EscapeDataString(at.UtcDateTime.ToString("O", CultureInfo.InvariantCulture))}" : "";
        using JsonDocument answer = await AskAsync(HttpMethod.Get, $"v1/wallet/accounts/{Uri.EscapeDataString(account)}/balance?currency={Uri.EscapeDataString(currency)}{past}", null, cancellation);
        JsonElement root = answer.RootElement;
        Amount Money(string member) => Amount.Parse(root.GetProperty(member).GetString()!);
        return new Balance(account, currency, Money("posted"), Money("held"), Money("available"), root.GetProperty("position").GetString()!);
    }

    async Task<JsonDocument> AskAsync(HttpMethod method, string path, string? body, CancellationToken cancellation)
    {
        using HttpRequestMessage request = new(method, path) { Content = body is null ? null : new StringContent(body, Encoding.UTF8, "application/json") };
        using CancellationTokenSource deadline = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        deadline.CancelAfter(_options.Timeout);
        using HttpResponseMessage response = await _http.SendAsync(request, deadline.Token);
        byte[] bytes = await response.Content.ReadAsByteArrayAsync(deadline.Token);
        if (response.StatusCode is HttpStatusCode.OK or HttpStatusCode.Created) return JsonDocument.Parse(bytes);
        using JsonDocument problem = JsonDocument.Parse(bytes);
        throw new PurseException(problem.RootElement.GetProperty("code").GetString()!, problem.RootElement.GetProperty("detail").GetString()!);
    }

    public async ValueTask DisposeAsync()
    {
        await _transport.DisposeAsync();
        _channel.Dispose();
        _http.Dispose();
    }
}
