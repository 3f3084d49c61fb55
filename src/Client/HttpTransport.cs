using System.Buffers;
using System.Globalization;
using System.Net.Http.Headers;
using System.Text.Json;

namespace Purse.Client;

/// <summary>Batches in JSON, a request each.</summary>
sealed class HttpTransport(HttpClient http) : Transport
{
    public override async Task SendAsync(ReadOnlyMemory<Transfer> transfers, Memory<TransferResult> results, TimeSpan timeout, CancellationToken cancellation)
    {
        using HttpRequestMessage request = new(HttpMethod.Post, "v1/wallet/transfers") { Content = new ReadOnlyMemoryContent(Write(transfers.Span)) };
        request.Content.Headers.ContentType = new MediaTypeHeaderValue("application/json");
        request.Headers.Add("X-Request-Timeout-Ms", ((int)Math.Clamp(timeout.TotalMilliseconds, 1, 600_000)).ToString(CultureInfo.InvariantCulture));
        using CancellationTokenSource deadline = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        deadline.CancelAfter(timeout + TimeSpan.FromSeconds(1));
        try
        {
            using HttpResponseMessage response = await http.SendAsync(request, deadline.Token);
            using JsonDocument answer = JsonDocument.Parse(await response.Content.ReadAsByteArrayAsync(deadline.Token));
            if (response.IsSuccessStatusCode) Read(answer.RootElement.GetProperty("transfers"), transfers.Span, results.Span);
            // A problem of the request as a whole is one of each.
            else for (int i = 0; i < transfers.Length; i++) results.Span[i] = Read(answer.RootElement, transfers.Span[i]);
        }
        catch (Exception e) when (e is HttpRequestException or IOException or JsonException or KeyNotFoundException or InvalidOperationException || (e is OperationCanceledException && !cancellation.IsCancellationRequested))
        {
            throw new TransportException(e.Message, e);
        }
    }

    static ReadOnlyMemory<byte> Write(ReadOnlySpan<Transfer> transfers)
    {
        ArrayBufferWriter<byte> body = new(transfers.Length * 200);
        using Utf8JsonWriter json = new(body);
        json.WriteStartObject();
        json.WriteStartArray("transfers");
        foreach (ref readonly Transfer transfer in transfers)
        {
            json.WriteStartObject();
            json.WriteString("transaction_id", transfer.Id);
            json.WriteString("from_account", transfer.From);
            json.WriteString("to_account", transfer.To);
            json.WriteString("amount", transfer.Amount.ToString());
            json.WriteString("currency", transfer.Currency);
            if (transfer.Pending) json.WriteBoolean("pending", true);
            if (transfer.UpTo) json.WriteBoolean("up_to", true);
            if (transfer.DryRun) json.WriteBoolean("dry_run", true);
            if (transfer.ExpiresInSeconds != 0) json.WriteNumber("expires_in", transfer.ExpiresInSeconds);
            if (transfer.Description is string description) json.WriteString("description", description);
            if (transfer.MetadataJson is string metadata)
            {
                json.WritePropertyName("metadata");
                json.WriteRawValue(metadata);
            }

            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WriteEndObject();
        json.Flush();
        return body.WrittenMemory;
    }

    static void Read(JsonElement outcomes, ReadOnlySpan<Transfer> transfers, Span<TransferResult> results)
    {
        if (outcomes.GetArrayLength() != transfers.Length) throw new TransportException($"{outcomes.GetArrayLength()} results came for {transfers.Length} transfers.");
        for (int i = 0; i < transfers.Length; i++) results[i] = Read(outcomes[i], transfers[i]);
    }

    /// <summary>An outcome, or a problem.</summary>
    static TransferResult Read(JsonElement one, in Transfer transfer)
    {
        string? Text(string member) => one.TryGetProperty(member, out JsonElement value) ? value.GetString() : null;
        bool Flag(string member) => one.TryGetProperty(member, out JsonElement value) && value.GetBoolean();
        string? code = Text("code");
        TransferStatus status = code is not null ? TransferStatus.Rejected : Text("status") switch
        {
            "pending" => TransferStatus.Pending,
            "in_doubt" => TransferStatus.InDoubt,
            _ => TransferStatus.Completed,
        };
        return new TransferResult
        {
            Id = transfer.Id,
            Status = status,
            Effect = TransferResult.EffectOf(status, Text("outcome") == "unknown", transfer.DryRun),
            Code = code,
            Detail = Text("detail"),
            IsRetryable = Flag("retryable"),
            IsReplayed = Flag("idempotent_replayed"),
            Amount = Text("amount") is string amount ? Amount.Parse(amount) : default,
            CompletedAt = Text("completed_at") is string at ? DateTimeOffset.Parse(at, CultureInfo.InvariantCulture) : default,
            PositionText = Text("position"),
        };
    }

    public override ValueTask DisposeAsync() => ValueTask.CompletedTask;
}
