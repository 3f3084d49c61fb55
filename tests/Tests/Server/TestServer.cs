using System.Net.Http.Json;
using System.Text;
using System.Text.Json;
using Purse.Journal;
using Purse.Partitions;
using Purse.Server;

namespace Purse.Tests.Server;

/// <summary>The real server in this process, on a port and a folder of its own, and a client for it.</summary>
sealed class TestServer : IAsyncDisposable
{
    readonly TemporaryFolder _folder = new();
    WalletServer _server = null!;

    public HttpClient Client { get; private set; } = null!;

    public string Data => _folder.Path;

    public Uri Address => _server.Address;

    public WalletServer Server => _server;

    /// <summary>Every request through this class, and its answer, is held against the OpenAPI document.</summary>
    public ContractChecker Contract { get; } = new();

    /// <summary>In place of the folder's own disk.</summary>
    public Func<int, IDisk>? Disk { get; init; }

    public int QueuedCommandsMax { get; init; } = 65_536;

    public int? PartitionsCount { get; set; }

    public bool HasViews { get; init; } = true;

    /// <summary>Of one node among several; null for all there is in one process.</summary>
    public string? Cluster { get; init; }

    public NodeRole Role { get; init; }

    public static async Task<TestServer> StartNodeAsync(string cluster, NodeRole role = NodeRole.All)
    {
        TestServer test = new() { Cluster = cluster, Role = role };
        await test.RestartAsync();
        return test;
    }

    public static async Task<TestServer> StartAsync(IDisk? disk = null, Func<int, IDisk>? diskOf = null, int queuedCommandsMax = 65_536, int? partitionsCount = null, bool hasViews = true)
    {
        TestServer test = new() { Disk = disk is null ? diskOf : _ => disk, QueuedCommandsMax = queuedCommandsMax, PartitionsCount = partitionsCount, HasViews = hasViews };
        await test.RestartAsync();
        return test;
    }

    /// <summary>Stops where it runs, and starts again on the same folder.</summary>
    public async Task RestartAsync()
    {
        await StopAsync();
        _server = await WalletServer.StartAsync(new WalletServerOptions
        {
            DataFolder = Cluster is null ? Data : null,
            Cluster = Cluster,
            Role = Role,
            Listen = "http://127.0.0.1:0",
            PartitionsCount = PartitionsCount,
            HasViews = HasViews,
            Disk = Disk,
            MeterName = $"Purse.Server.{Guid.NewGuid()}",
            Journal = new JournalOptions { SegmentSizeBytes = 4 * 1024 * 1024, ReserveBytes = 1024 * 1024 },
            Partition = new PartitionOptions { QueuedCommandsMax = QueuedCommandsMax, EventsPerBlockMax = 1024 },
        });
        Client = new HttpClient { BaseAddress = _server.Address };
    }

    /// <summary>What a scrape says of one partition, without the labels' order: <c>name{label="value"}</c>; null where it says nothing.</summary>
    public async Task<double?> MetricAsync(string name, int partition, string label = "")
    {
        string[] lines = (await Client.GetStringAsync("/metrics")).Split('\n');
        string? line = lines.SingleOrDefault(one => one.StartsWith(name + "{", StringComparison.Ordinal) && one.Contains($"partition=\"{partition}\"", StringComparison.Ordinal) && one.Contains(label, StringComparison.Ordinal));
        return line is null ? null : double.Parse(line[(line.LastIndexOf('}') + 1)..].Trim().Split(' ')[0], System.Globalization.CultureInfo.InvariantCulture);
    }

    public async Task StopAsync()
    {
        Client?.Dispose();
        if (_server is not null) await _server.DisposeAsync();
    }

    public async Task<Response> SendAsync(HttpMethod method, string path, string? json = null, params (string Name, string Value)[] headers)
    {
        using HttpRequestMessage request = new(method, path) { Content = json is null ? null : new StringContent(json, Encoding.UTF8, "application/json") };
        foreach ((string name, string value) in headers) request.Headers.Add(name, value);
        return await SendAsync(request);
    }

    public async Task<Response> SendAsync(HttpRequestMessage request)
    {
        using HttpResponseMessage response = await Client.SendAsync(request);
        string text = await response.Content.ReadAsStringAsync();
        JsonElement body = text.Length == 0 ? default : JsonDocument.Parse(text).RootElement;
        string path = request.RequestUri!.IsAbsoluteUri ? request.RequestUri.PathAndQuery : request.RequestUri.OriginalString;
        string? sent = request.Content?.Headers.ContentLength < 100_000 ? await request.Content.ReadAsStringAsync() : null;
        lock (Contract) Contract.Check(request.Method.Method, path, sent, (int)response.StatusCode, response.Content.Headers.ContentType?.MediaType ?? "", body);
        return new Response(
            (int)response.StatusCode, body,
            response.Headers.Concat(response.Content.Headers).ToDictionary(h => h.Key, h => string.Join(',', h.Value), StringComparer.OrdinalIgnoreCase));
    }

    public Task<Response> GetAsync(string path) => SendAsync(HttpMethod.Get, path);

    public Task<Response> PostAsync(string path, string json) => SendAsync(HttpMethod.Post, path, json);

    public Task<Response> TransferAsync(string from, string to, string amount, string currency = "USD", Guid? id = null, string more = "") => PostAsync(
        "/v1/wallet/balance_transfer",
        $$"""{"from_account":"{{from}}","to_account":"{{to}}","amount":"{{amount}}","currency":"{{currency}}","transaction_id":"{{id ?? Guid.NewGuid()}}"{{more}}}""");

    public async Task OpenAsync(string account, string deposit = "100.00")
    {
        Assert.Equal(201, (await PostAsync("/v1/wallet/accounts", $$"""{"account":"{{account}}"}""")).Status);
        if (deposit != "0") Assert.Equal(200, (await TransferAsync("@world", account, deposit)).Status);
    }

    public async Task<string> BalanceAsync(string account, string currency = "USD") =>
        (await GetAsync($"/v1/wallet/accounts/{Uri.EscapeDataString(account)}/balance?currency={currency}")).Text("posted");

    public async ValueTask DisposeAsync()
    {
        await StopAsync();
        _folder.Dispose();
    }
}

sealed record Response(int Status, JsonElement Body, Dictionary<string, string> Headers)
{
    public string Text(string member) => Body.GetProperty(member).GetString()!;

    public string Code => Text("code");

    /// <summary>Checks every member that a problem has.</summary>
    public void IsProblem(int status, string code, string outcome = "none")
    {
        Assert.Equal((status, code), (Status, Body.TryGetProperty("code", out JsonElement actual) ? actual.GetString() : Body.GetRawText()));
        Assert.Equal("application/problem+json", Headers["Content-Type"]);
        Assert.Equal($"urn:purse:problem:{code}", Text("type"));
        Assert.NotEmpty(Text("title"));
        Assert.NotEmpty(Text("detail"));
        Assert.Equal(status, Body.GetProperty("status").GetInt32());
        Assert.Equal(status >= 500, Body.GetProperty("retryable").GetBoolean());
        Assert.Equal(outcome, Text("outcome"));
        Assert.NotEmpty(Headers["X-Request-Id"]);
    }
}
