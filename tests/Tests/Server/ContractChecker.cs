using System.Text.Json;
using System.Text.RegularExpressions;
using Purse.Server;

namespace Purse.Tests.Server;

/// <summary>
/// Holds real requests and answers against the OpenAPI document: the operation is there, its status, its media type, its code, every member
/// that must be there, and none that the document does not know. Keeps what it saw.
/// </summary>
sealed class ContractChecker
{
    public static readonly JsonElement Document = JsonDocument.Parse(OpenApi.Utf8).RootElement;

    /// <summary><c>METHOD path</c> and the codes it refused with, <c>ok</c> for a success.</summary>
    public HashSet<(string Operation, string Code)> Codes { get; } = [];

    /// <summary>Members of requests that were accepted, and of answers: <c>METHOD path &gt; member</c>, <c>Schema.member</c>.</summary>
    public HashSet<string> Members { get; } = [];

    public void Check(string method, string path, string? request, int status, string contentType, JsonElement answer)
    {
        string? code = answer.ValueKind == JsonValueKind.Object && contentType == "application/problem+json" ? answer.GetProperty("code").GetString() : null;
        if (code is "route_not_found" or "method_not_allowed") return;
        (string template, JsonElement operation) = Find(method, path);
        string name = $"{method.ToUpperInvariant()} {template}";
        Assert.True(operation.GetProperty("responses").TryGetProperty($"{status}", out JsonElement response), $"{name} answered {status} {code}, which the document does not name");
        JsonElement content = response.GetProperty("content");
        Assert.True(content.TryGetProperty(contentType, out JsonElement media), $"{name} answered {status} with {contentType}");
        Validate(media.GetProperty("schema"), answer, $"{name} {status}", sees: true);
        if (code is not null) Assert.True(media.GetProperty("examples").TryGetProperty(code, out _), $"{name} answered {code}, which the document does not name");
        Codes.Add((name, code ?? "ok"));
        // Among many transfers, one of the wrong shape is refused alone.
        bool anyRejected = answer.TryGetProperty("transfers", out JsonElement many) && many.EnumerateArray().Any(one => one.GetProperty("status").GetString() == "rejected");
        if (code is not null || anyRejected || request is null || !operation.TryGetProperty("requestBody", out JsonElement body)) return;
        using JsonDocument sent = JsonDocument.Parse(request);
        Validate(body.GetProperty("content").GetProperty("application/json").GetProperty("schema"), sent.RootElement, $"{name} request", sees: true);
    }

    static (string Template, JsonElement Operation) Find(string method, string path)
    {
        string bare = path.Split('?')[0];
        foreach (JsonProperty one in Document.GetProperty("paths").EnumerateObject())
        {
            if (Fits(one.Name, bare) && one.Value.TryGetProperty(method.ToLowerInvariant(), out JsonElement operation)) return (one.Name, operation);
        }

        throw new Xunit.Sdk.XunitException($"The document does not know {method} {path}.");
    }

    static bool Fits(string template, string path)
    {
        string[] expected = template.Split('/'), given = path.Split('/');
        return expected.Length == given.Length && expected.Zip(given).All(pair => pair.First == pair.Second || (pair.First.StartsWith('{') && pair.Second.Length > 0));
    }

    /// <summary>As much of JSON Schema as the document uses.</summary>
    public void Validate(JsonElement schema, JsonElement value, string where, bool sees = false)
    {
        Assert.True(Errors(schema, value, where, sees ? Members : null) is { } errors && errors.Count == 0, string.Join("; ", Errors(schema, value, where, null)));
    }

    static List<string> Errors(JsonElement schema, JsonElement value, string where, HashSet<string>? seen, string schemaName = "")
    {
        if (schema.TryGetProperty("$ref", out JsonElement reference))
        {
            string[] parts = reference.GetString()!.Split('/');
            return Errors(Document.GetProperty(parts[1]).GetProperty(parts[2]).GetProperty(parts[3]), value, where, seen, parts[3]);
        }

        if (schema.TryGetProperty("oneOf", out JsonElement alternatives))
        {
            JsonElement[] fitting = [.. alternatives.EnumerateArray().Where(one => Errors(one, value, where, null).Count == 0)];
            if (fitting.Length != 1) return [$"{where} fits {fitting.Length} of {alternatives.GetArrayLength()}: {string.Join(" | ", alternatives.EnumerateArray().SelectMany(one => Errors(one, value, where, null)))}"];
            return Errors(fitting[0], value, where, seen);
        }

        List<string> errors = [];
        if (schema.TryGetProperty("type", out JsonElement type))
        {
            string[] types = type.ValueKind == JsonValueKind.Array ? [.. type.EnumerateArray().Select(one => one.GetString()!)] : [type.GetString()!];
            string actual = value.ValueKind switch
            {
                JsonValueKind.Object => "object",
                JsonValueKind.Array => "array",
                JsonValueKind.String => "string",
                JsonValueKind.Number => "integer",
                JsonValueKind.True or JsonValueKind.False => "boolean",
                _ => "null",
            };
            if (!types.Contains(actual)) return [$"{where} is {actual}, not {string.Join(" or ", types)}"];
        }

        if (value.ValueKind == JsonValueKind.String)
        {
            string text = value.GetString()!;
            if (schema.TryGetProperty("pattern", out JsonElement pattern) && !Regex.IsMatch(text, pattern.GetString()!, RegexOptions.NonBacktracking)) errors.Add($"{where} is '{text}', not {pattern.GetString()}");
            if (schema.TryGetProperty("enum", out JsonElement values) && values.EnumerateArray().All(one => one.GetString() != text)) errors.Add($"{where} is '{text}', not one of {values.GetRawText()}");
            if (schema.TryGetProperty("format", out JsonElement format) && format.GetString() == "uuid" && !Guid.TryParse(text, out _)) errors.Add($"{where} is '{text}', not a UUID");
            if (schema.TryGetProperty("format", out format) && format.GetString() == "date-time" && !text.EndsWith('Z')) errors.Add($"{where} is '{text}', not a time");
        }

        if (value.ValueKind == JsonValueKind.Array && schema.TryGetProperty("items", out JsonElement items))
            errors.AddRange(value.EnumerateArray().SelectMany((one, i) => Errors(items, one, $"{where}[{i}]", seen)));
        if (value.ValueKind != JsonValueKind.Object) return errors;
        if (schema.TryGetProperty("required", out JsonElement required))
            errors.AddRange(required.EnumerateArray().Where(one => !value.TryGetProperty(one.GetString()!, out _)).Select(one => $"{where} lacks {one.GetString()}"));
        foreach (JsonProperty member in value.EnumerateObject())
        {
            if (schema.TryGetProperty("properties", out JsonElement properties) && properties.TryGetProperty(member.Name, out JsonElement known))
            {
                seen?.Add($"{schemaName}.{member.Name}");
                errors.AddRange(Errors(known, member.Value, $"{where}.{member.Name}", seen));
            }
            else if (schema.TryGetProperty("additionalProperties", out JsonElement others) && others.ValueKind != JsonValueKind.False)
            {
                if (others.ValueKind == JsonValueKind.Object) errors.AddRange(Errors(others, member.Value, $"{where}.{member.Name}", seen));
            }
            else
            {
                errors.Add($"{where} has {member.Name}, which the document does not know");
            }
        }

        return errors;
    }
}
