using System.Buffers;
using System.Globalization;
using System.Text.Json;
using Microsoft.AspNetCore.Http;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Writes answers.</summary>
public static class Answer
{
    const int BufferBytesMax = 64 * 1024;

    [ThreadStatic]
    static ArrayBufferWriter<byte>? Buffer;

    // Account names and amounts hold nothing that needs escaping, and a human reads these answers.
    public static JsonWriterOptions JsonOptions { get; } = new() { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    public static async Task WriteAsync(HttpContext http, int status, Action<Utf8JsonWriter> write, string contentType = "application/json")
    {
        // Whole before the first byte leaves: an answer that fails halfway becomes a problem, not a mixture.
        ArrayBufferWriter<byte> body = Buffer ??= new ArrayBufferWriter<byte>(1024);
        body.ResetWrittenCount();
        using (Utf8JsonWriter json = new(body, JsonOptions))
        {
            json.WriteStartObject();
            write(json);
            json.WriteEndObject();
        }

        http.Response.StatusCode = status;
        http.Response.ContentType = contentType;
        http.Response.ContentLength = body.WrittenCount;
        http.Response.BodyWriter.Write(body.WrittenSpan);
        if (body.Capacity > BufferBytesMax) Buffer = null;
        await http.Response.BodyWriter.FlushAsync(http.RequestAborted);
    }

    public static Task WriteAsync(HttpContext http, Problem problem)
    {
        if (problem.Status is 503 or 429) http.Response.Headers.RetryAfter = "1";
        return WriteAsync(http, problem.Status, json => Write(json, problem), "application/problem+json");
    }

    public static void Write(Utf8JsonWriter json, Problem problem)
    {
        json.WriteString("type", problem.Type);
        json.WriteString("title", Problem.Codes[problem.Code].Title);
        json.WriteNumber("status", problem.Status);
        json.WriteString("detail", problem.Message);
        json.WriteString("code", problem.Code);
        json.WriteBoolean("retryable", problem.Retryable);
        json.WriteString("outcome", problem.Outcome);
        WriteMembers(json, problem.Members);
    }

    public static void WriteMembers(Utf8JsonWriter json, IEnumerable<(string Name, object? Value)> members)
    {
        foreach ((string name, object? value) in members)
        {
            switch (value)
            {
                case string text:
                    json.WriteString(name, text);
                    break;
                case bool flag:
                    json.WriteBoolean(name, flag);
                    break;
                case int number:
                    json.WriteNumber(name, number);
                    break;
                case IEnumerable<string> list:
                    json.WriteStartArray(name);
                    foreach (string one in list) json.WriteStringValue(one);
                    json.WriteEndArray();
                    break;
                default:
                    throw new ArgumentException($"A problem's member {name} cannot be a {value?.GetType()}.", nameof(members));
            }
        }
    }

    public static void WriteTransfer(
        Utf8JsonWriter json, string status, Guid transactionId, string from, string to, string amount, string currency, long timeMicros, string position)
    {
        json.WriteString("transaction_id", transactionId);
        json.WriteString("status", status);
        json.WriteString("from_account", from);
        json.WriteString("to_account", to);
        json.WriteString("amount", amount);
        json.WriteString("currency", currency);
        json.WriteString("completed_at", Time(timeMicros));
        json.WriteString("position", position);
    }

    /// <summary>Under way between partitions when the caller's time was over: the same id answers for it, now and later.</summary>
    public static Task WriteInDoubtAsync(HttpContext http, UInt128 transactionId)
    {
        http.Response.Headers.RetryAfter = "1";
        return WriteAsync(http, 202, json => WriteInDoubt(json, transactionId));
    }

    public static void WriteInDoubt(Utf8JsonWriter json, UInt128 transactionId)
    {
        json.WriteString("transaction_id", ToGuid(transactionId));
        json.WriteString("status", "in_doubt");
    }

    public static void WritePosting(Utf8JsonWriter json, string from, string to, string amount, string currency)
    {
        json.WriteStartObject();
        json.WriteString("from_account", from);
        json.WriteString("to_account", to);
        json.WriteString("amount", amount);
        json.WriteString("currency", currency);
        json.WriteEndObject();
    }

    public static string Position(int partition, ulong sequence) => string.Create(CultureInfo.InvariantCulture, $"{partition}:{sequence}");

    /// <summary>One entry for each partition, in their order.</summary>
    public static string Position(IEnumerable<Part> parts) => string.Join(',', parts.OrderBy(part => part.Partition).Select(part => Position(part.Partition, part.Sequence)));

    /// <summary>RFC 3339 in UTC, with microseconds.</summary>
    public static string Time(long micros) =>
        DateTimeOffset.UnixEpoch.AddTicks(micros * TimeSpan.TicksPerMicrosecond).ToString("yyyy-MM-dd'T'HH:mm:ss.ffffff'Z'", CultureInfo.InvariantCulture);

    public static Guid ToGuid(UInt128 id)
    {
        Span<byte> bytes = stackalloc byte[16];
        System.Buffers.Binary.BinaryPrimitives.WriteUInt128BigEndian(bytes, id);
        return new Guid(bytes, bigEndian: true);
    }

    public static UInt128 FromGuid(Guid id)
    {
        Span<byte> bytes = stackalloc byte[16];
        id.TryWriteBytes(bytes, bigEndian: true, out _);
        return System.Buffers.Binary.BinaryPrimitives.ReadUInt128BigEndian(bytes);
    }
}
