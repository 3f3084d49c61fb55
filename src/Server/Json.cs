using System.Buffers;
using System.Text.Json;
using System.Text.Json.Serialization;
using System.Text.Json.Serialization.Metadata;
using System.Text.RegularExpressions;
using System.Text.Unicode;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.Primitives;

namespace Purse.Server;

/// <summary>The body of <c>POST /v1/wallet/balance_transfer</c>.</summary>
public sealed record BalanceTransferBody
{
    public required string FromAccount { get; init; }

    public required string ToAccount { get; init; }

    public required string Amount { get; init; }

    public required string Currency { get; init; }

    public required string TransactionId { get; init; }

    public string? Description { get; init; }

    public JsonElement? Metadata { get; init; }

    public bool? Pending { get; init; }

    public int? ExpiresIn { get; init; }

    public bool? UpTo { get; init; }

    public bool? DryRun { get; init; }
}

public sealed record TransfersBody
{
    public required BalanceTransferBody[] Transfers { get; init; }
}

public sealed record PostingBody
{
    public required string FromAccount { get; init; }

    public required string ToAccount { get; init; }

    public required string Amount { get; init; }

    public required string Currency { get; init; }
}

public sealed record TransactionBody
{
    public required string TransactionId { get; init; }

    public required PostingBody[] Postings { get; init; }

    public string? Description { get; init; }

    public JsonElement? Metadata { get; init; }

    public bool? DryRun { get; init; }
}

/// <summary>The body of a capture.</summary>
public sealed record AmountBody
{
    public required string TransactionId { get; init; }

    public string? Amount { get; init; }
}

public sealed record ReverseBody
{
    public required string TransactionId { get; init; }

    public string? Amount { get; init; }

    public string? Description { get; init; }

    public JsonElement? Metadata { get; init; }
}

public sealed record CurrencyBody
{
    public required string Currency { get; init; }

    public required int Decimals { get; init; }
}

public sealed record VoidBody
{
    public required string TransactionId { get; init; }
}

public sealed record OpenAccountBody
{
    public required string Account { get; init; }

    public JsonElement? Metadata { get; init; }

    public Dictionary<string, LimitsBody>? Limits { get; init; }
}

public sealed record LimitsBody
{
    public string? MinBalance { get; init; }

    public string? MaxBalance { get; init; }
}

public sealed record SetLimitsBody
{
    public required Dictionary<string, LimitsBody> Limits { get; init; }

    public string? Reason { get; init; }
}

public sealed record SetMetadataBody
{
    public required JsonElement Metadata { get; init; }

    public string? Reason { get; init; }
}

public sealed record FreezeBody
{
    public required string Direction { get; init; }

    public string? Reason { get; init; }
}

/// <summary>Of unfreeze and close, which need none.</summary>
public sealed record ReasonBody
{
    public string? Reason { get; init; }
}

/// <summary>Strict: unknown, doubled and missing members are refused, and so is a number where a string is due.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.SnakeCaseLower,
    UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow,
    AllowDuplicateProperties = false,
    RespectNullableAnnotations = true,
    MaxDepth = 32)]
[JsonSerializable(typeof(BalanceTransferBody))]
[JsonSerializable(typeof(TransfersBody))]
[JsonSerializable(typeof(TransactionBody))]
[JsonSerializable(typeof(PostingBody))]
[JsonSerializable(typeof(LimitsBody))]
[JsonSerializable(typeof(AmountBody))]
[JsonSerializable(typeof(ReverseBody))]
[JsonSerializable(typeof(CurrencyBody))]
[JsonSerializable(typeof(VoidBody))]
[JsonSerializable(typeof(OpenAccountBody))]
[JsonSerializable(typeof(SetLimitsBody))]
[JsonSerializable(typeof(SetMetadataBody))]
[JsonSerializable(typeof(FreezeBody))]
[JsonSerializable(typeof(ReasonBody))]
public sealed partial class BodyJson : JsonSerializerContext;

/// <summary>Reads bodies.</summary>
static partial class Body
{
    const int SizeBytesMax = 64 * 1024;

    /// <summary>Of bodies that hold many transfers or postings.</summary>
    public const int SizeBytesMaxOfMany = 8 * 1024 * 1024;

    /// <param name="ifEmpty">What an empty body means, where it may be empty.</param>
    public static async ValueTask<T> ReadAsync<T>(HttpContext http, JsonTypeInfo<T> type, int sizeBytesMax = SizeBytesMax, T? ifEmpty = null)
        where T : class
    {
        HttpRequest request = http.Request;
        if (request.ContentLength > sizeBytesMax) throw TooLarge(sizeBytesMax);
        bool isJson = IsJson(request.Headers.ContentType);
        if (!isJson && !(ifEmpty is not null && StringValues.IsNullOrEmpty(request.Headers.ContentType)))
            throw new Problem("unsupported_media_type", $"Content-Type is '{request.Headers.ContentType}'; it must be application/json.");

        System.IO.Pipelines.ReadResult read;
        while (true)
        {
            read = await request.BodyReader.ReadAsync(http.RequestAborted);
            if (read.Buffer.Length > sizeBytesMax)
            {
                request.BodyReader.AdvanceTo(read.Buffer.End);
                throw TooLarge(sizeBytesMax);
            }

            if (read.IsCompleted) break;
            request.BodyReader.AdvanceTo(read.Buffer.Start, read.Buffer.End);
        }

        try
        {
            if (http.Features.Get<PartitionDirectory.Kept>() is { } kept) kept.Body = read.Buffer.ToArray();
            if (read.Buffer.IsEmpty && ifEmpty is not null) return ifEmpty;
            return Parse(read.Buffer, type);
        }
        finally
        {
            request.BodyReader.AdvanceTo(read.Buffer.End);
        }
    }

    static Problem TooLarge(int sizeBytesMax) => new("request_too_large", $"The body has more than {sizeBytesMax} bytes.");

    static bool IsJson(StringValues contentType)
    {
        ReadOnlySpan<char> text = contentType.ToString();
        int parameters = text.IndexOf(';');
        if (parameters >= 0) text = text[..parameters];
        return text.Trim().Equals("application/json", StringComparison.OrdinalIgnoreCase);
    }

    static T Parse<T>(ReadOnlySequence<byte> json, JsonTypeInfo<T> type)
        where T : class
    {
        ReadOnlySpan<byte> utf8 = json.IsSingleSegment ? json.FirstSpan : json.ToArray();
        if (!Utf8.IsValid(utf8)) throw new Problem("malformed_request", "The body is not valid UTF-8.");
        try
        {
            return JsonSerializer.Deserialize(utf8, type)
                ?? throw new Problem("malformed_request", "The body is null; it must be a JSON object.");
        }
        catch (JsonException e)
        {
            throw new Problem("malformed_request", Explain(e));
        }
        catch (InvalidOperationException)
        {
            throw new Problem("malformed_request", "A string in the body has an escape that is not valid Unicode.");
        }
    }

    /// <summary>The serializer's message without its type names.</summary>
    internal static string Explain(JsonException e)
    {
        string path = e.Path is null or "$" ? "" : e.Path.TrimStart('$', '.');
        if (Missing().Match(e.Message) is { Success: true } missing) return $"{(path.Length == 0 ? "The body" : $"'{path}'")} lacks {missing.Groups[1].Value}.";
        if (Unknown().Match(e.Message) is { Success: true } unknown) return $"The member '{unknown.Groups[1].Value}' is not known here.";
        if (Doubled().Match(e.Message) is { Success: true } doubled) return $"The member '{doubled.Groups[1].Value}' is there twice.";
        if (e.Message.Contains("null values", StringComparison.Ordinal)) return path.Length == 0 ? "A member is null that must not be." : $"'{path}' must not be null.";
        if (e.Message.Contains("could not be converted", StringComparison.Ordinal))
        {
            if (path.Length == 0) return "The body must be a JSON object.";
            string member = path[(path.LastIndexOf('.') + 1)..];
            if (member is "pending" or "up_to" or "dry_run") return $"'{path}' must be true or false.";
            if (member is "expires_in" or "decimals") return $"'{path}' must be a whole number{(member == "expires_in" ? " of seconds" : "")}.";
            if (path is "transfers" or "postings") return $"'{path}' must be an array.";
            bool isObject = member.EndsWith(']') || path == "limits" || (path.StartsWith("limits", StringComparison.Ordinal) && !path.EndsWith("_balance", StringComparison.Ordinal));
            return isObject ? $"'{path}' must be an object." : $"'{path}' must be a string{(member == "amount" ? ", such as \"12.34\"" : "")}.";
        }

        int end = e.Message.IndexOf(" Path:", StringComparison.Ordinal);
        return $"The body is not valid JSON: {(end < 0 ? e.Message : e.Message[..end])}";
    }

    [GeneratedRegex("missing required properties including: ([^.]*)\\.", RegexOptions.NonBacktracking)]
    private static partial Regex Missing();

    [GeneratedRegex("JSON property '([^']*)' could not be mapped", RegexOptions.NonBacktracking)]
    private static partial Regex Unknown();

    [GeneratedRegex("Duplicate property '([^']*)' encountered", RegexOptions.NonBacktracking)]
    private static partial Regex Doubled();
}
