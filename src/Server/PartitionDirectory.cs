using System.Collections.Concurrent;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using Microsoft.AspNetCore.Http;
using Purse.Cluster;
using Purse.Cluster.Nodes;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>What one partition is asked by who answers for several of them. It is answered where the partition is.</summary>
/// <param name="AnswerAsync">Throws a <see cref="Problem"/> where it cannot be answered; it is told how long the asker waits.</param>
sealed record PartQuestion<TAsked, TAnswer>(string Name, JsonTypeInfo<TAsked> Asked, JsonTypeInfo<TAnswer> Answered, Func<Partition, TAsked, TimeSpan, CancellationToken, Task<TAnswer>> AnswerAsync);

/// <summary>
/// Leads what is asked to the partition that it is about. In one process all of them are here. In a cluster a request about one partition is answered by the
/// same endpoint on the node that has it, and a request about several asks each of them for its part.
/// </summary>
sealed class PartitionDirectory
{
    readonly IReadOnlyList<Partition>? _all;
    readonly PartitionLinks? _links;
    readonly PartitionHost? _host;
    readonly ConcurrentDictionary<string, Func<Partition, ReadOnlyMemory<byte>, TimeSpan, Task<byte[]>>> _questions = new();

    /// <param name="all">Every partition, by number.</param>
    public PartitionDirectory(IReadOnlyList<Partition> all)
    {
        _all = all;
        Router = new Router(all.Count);
    }

    /// <param name="host">The partitions of this node; null where it never has any.</param>
    public PartitionDirectory(int partitionsCount, PartitionLinks links, PartitionHost? host)
    {
        (_links, _host) = (links, host);
        Router = new Router(partitionsCount);
    }

    public Router Router { get; }

    public int Count => Router.PartitionsCount;

    /// <summary>Those of this process.</summary>
    public IReadOnlyList<Partition> Hosted => _all ?? _host?.Partitions ?? [];

    /// <summary>Every partition, by number, where all of them are in this process; else null.</summary>
    public IReadOnlyList<Partition>? AllHere => _all;

    /// <summary>Answers a request that another node sent on; set once there is somebody to do so.</summary>
    public RequestDelegate? Endpoints { get; set; }

    /// <summary>Whether the request has yet to go to where its partition is.</summary>
    public bool IsElsewhere(HttpContext http) => _all is null && http.Features.Get<SentOn>() is null;

    /// <summary>Of a request that was sent on to its partition: which that is.</summary>
    public static int? NumberHere(HttpContext http) => http.Features.Get<SentOn>()?.Partition.Number;

    /// <summary>One that is here.</summary>
    public Partition Local(HttpContext http, int number)
    {
        if (_all is not null) return _all[number];
        SentOn sentOn = http.Features.Get<SentOn>()!;
        return sentOn.Partition.Number == number ? sentOn.Partition : throw new InvalidOperationException($"A request about partition {number} was sent to partition {sentOn.Partition.Number}.");
    }

    /// <summary>The partition, where it is here; else null, and the request was answered by the node that has it.</summary>
    public async ValueTask<Partition?> HereAsync(HttpContext http, int number)
    {
        if (!IsElsewhere(http)) return Local(http, number);
        await SendOnAsync(http, number);
        return null;
    }

    public PartQuestion<TAsked, TAnswer> Question<TAsked, TAnswer>(
        string name, JsonTypeInfo<TAsked> asked, JsonTypeInfo<TAnswer> answered, Func<Partition, TAsked, TimeSpan, CancellationToken, Task<TAnswer>> answerAsync)
    {
        _questions[name] = async (partition, json, timeout) =>
        {
            TAsked question = Read(json, asked) ?? throw new InvalidDataException($"A question about {name} is null.");
            return Write(await answerAsync(partition, question, timeout, CancellationToken.None), answered);
        };
        return new(name, asked, answered, answerAsync);
    }

    /// <exception cref="Problem">What the partition says in place of an answer.</exception>
    public async Task<TAnswer> AskAsync<TAsked, TAnswer>(PartQuestion<TAsked, TAnswer> question, int number, TAsked asked, TimeSpan timeout, CancellationToken cancellation = default)
    {
        if (_all is not null) return await question.AnswerAsync(_all[number], asked, timeout, cancellation);
        byte[] name = Encoding.UTF8.GetBytes(question.Name);
        byte[] payload = [PartKind, (byte)name.Length, .. name, .. Write(asked, question.Asked)];
        PartitionLinks.Answer answer = await _links!.AskAsync(number, payload, timeout).WaitAsync(cancellation);
        if (answer.Payload is not { Length: > 0 } bytes) throw NoAnswer(timeout, isUnknown: false);
        if (bytes[0] == AnsweredPart) return Read(bytes.AsMemory(1), question.Answered) ?? throw new InvalidDataException($"An answer about {question.Name} is null.");
        using BinaryReader reader = new(new MemoryStream(bytes, 1, bytes.Length - 1));
        throw new Problem(reader.ReadString(), reader.ReadString(), reader.ReadString());
    }

    /// <summary>Bytes as they are, all else as JSON.</summary>
    static byte[] Write<T>(T value, JsonTypeInfo<T> type) => value is byte[] bytes ? bytes : JsonSerializer.SerializeToUtf8Bytes(value, type);

    static T? Read<T>(ReadOnlyMemory<byte> bytes, JsonTypeInfo<T> type) => typeof(T) == typeof(byte[]) ? (T)(object)bytes.ToArray() : JsonSerializer.Deserialize(bytes.Span, type);

    const byte HttpKind = 0, PartKind = 1, AnsweredPart = 0, ProblemOfPart = 1;

    static Problem NoAnswer(TimeSpan timeout, bool isUnknown) =>
        Problem.From(isUnknown ? RequestStatus.DeadlineUnknown : RequestStatus.DeadlineNotStarted, timeout);

    /// <summary>A request that came from another node, about this partition.</summary>
    sealed class SentOn(Partition partition)
    {
        public Partition Partition => partition;

        /// <summary>Why it should be asked again, perhaps elsewhere.</summary>
        public FrameKind Kind { get; set; } = FrameKind.Answer;
    }

    public static bool IsSentOn(HttpContext http) => http.Features.Get<SentOn>() is not null;

    /// <summary>A partition that is leaving, or that does not serve now, may be served by another node before the caller's time is over.</summary>
    public static void Note(HttpContext http, Problem problem)
    {
        if (http.Features.Get<SentOn>() is SentOn sentOn) sentOn.Kind = KindOf(problem);
    }

    static FrameKind KindOf(Problem problem) =>
        problem.Code is not ("partition_unavailable" or "shutting_down") ? FrameKind.Answer : problem.Outcome == "none" ? FrameKind.AskAgain : FrameKind.AskAgainUnknown;

    /// <summary>On the node that has the partition.</summary>
    public async Task<(FrameKind Kind, byte[] Payload)> AnswerAsync(Partition partition, ReadOnlyMemory<byte> question, TimeSpan timeout)
    {
        if (question.Span[0] == HttpKind) return await AnswerHttpAsync(partition, question[1..], timeout);
        int length = question.Span[1];
        string name = Encoding.UTF8.GetString(question.Span.Slice(2, length));
        try
        {
            return (FrameKind.Answer, [AnsweredPart, .. await _questions[name](partition, question[(2 + length)..], timeout)]);
        }
        catch (Exception e) when (e is Problem or ObjectDisposedException)
        {
            // Its journal was closed under the hands of who read it: it is leaving.
            Problem problem = e as Problem ?? Problem.From(RequestStatus.ShuttingDown, timeout);
            using MemoryStream bytes = new();
            using BinaryWriter writer = new(bytes);
            writer.Write(ProblemOfPart);
            writer.Write(problem.Code);
            writer.Write(problem.Message);
            writer.Write(problem.Outcome);
            return (KindOf(problem), bytes.ToArray());
        }
    }

    /// <summary>What has to be kept of a body, since the request may have to go elsewhere.</summary>
    public sealed class Kept
    {
        public byte[] Body { get; set; } = [];
    }

    async Task SendOnAsync(HttpContext http, int number)
    {
        (int status, List<(string Name, string Value)> headers, ReadOnlyMemory<byte> body) = await AskHttpAsync(http, number, http.Features.Get<Kept>()?.Body ?? [], Query.Timeout(http));
        http.Response.StatusCode = status;
        foreach ((string name, string value) in headers) http.Response.Headers[name] = value;
        http.Response.ContentLength = body.Length;
        await http.Response.BodyWriter.WriteAsync(body, http.RequestAborted);
    }

    /// <summary>The same request with some of its body, for one partition of several.</summary>
    /// <returns>The answer's body.</returns>
    /// <exception cref="Problem">It was not answered.</exception>
    public async Task<ReadOnlyMemory<byte>> SendOnAsync(HttpContext http, int number, byte[] some, TimeSpan timeout)
    {
        (int status, _, ReadOnlyMemory<byte> body) = await AskHttpAsync(http, number, some, timeout);
        return status == 200 ? body : throw ToProblem(body, null);
    }

    static Problem ToProblem(ReadOnlyMemory<byte> json, string? outcome)
    {
        using JsonDocument problem = JsonDocument.Parse(json);
        string Text(string member) => problem.RootElement.GetProperty(member).GetString()!;
        return new Problem(Text("code"), Text("detail"), outcome ?? Text("outcome"));
    }

    async Task<(int Status, List<(string Name, string Value)> Headers, ReadOnlyMemory<byte> Body)> AskHttpAsync(HttpContext http, int number, byte[] requestBody, TimeSpan timeout)
    {
        using MemoryStream bytes = new();
        using (BinaryWriter writer = new(bytes, Encoding.UTF8, leaveOpen: true))
        {
            writer.Write(HttpKind);
            writer.Write(http.Request.Method);
            writer.Write(http.Request.Path.Value!);
            writer.Write(http.Request.QueryString.Value ?? "");
            writer.Write(http.Request.ContentType ?? "");
            writer.Write(http.Response.Headers["X-Request-Id"].ToString());
            writer.Write(requestBody);
        }

        PartitionLinks.Answer answer = await _links!.AskAsync(number, bytes.ToArray(), timeout);
        if (answer.Payload is null) throw NoAnswer(timeout, isUnknown: true);
        using BinaryReader reader = new(new MemoryStream(answer.Payload));
        int status = reader.ReadInt32();
        List<(string Name, string Value)> headers = [.. Enumerable.Range(0, reader.ReadInt32()).Select(_ => (reader.ReadString(), reader.ReadString()))];
        ReadOnlyMemory<byte> body = answer.Payload.AsMemory((int)reader.BaseStream.Position);
        // It was asked before, somewhere that did not say what came of it: what is said now is of the last time only.
        if (status >= 500 && answer.IsUnknown) throw ToProblem(body, "unknown");
        return (status, headers, body);
    }

    async Task<(FrameKind Kind, byte[] Payload)> AnswerHttpAsync(Partition partition, ReadOnlyMemory<byte> request, TimeSpan timeout)
    {
        RequestDelegate endpoints = Endpoints ?? throw new InvalidOperationException("This node answers nothing yet.");
        byte[] bytes = request.ToArray();
        using BinaryReader reader = new(new MemoryStream(bytes));
        SentOn sentOn = new(partition);
        DefaultHttpContext http = new();
        http.Features.Set(sentOn);
        http.Request.Method = reader.ReadString();
        http.Request.Path = reader.ReadString();
        http.Request.QueryString = new QueryString(reader.ReadString());
        if (reader.ReadString() is { Length: > 0 } contentType) http.Request.ContentType = contentType;
        http.Request.Headers["X-Request-Id"] = reader.ReadString();
        http.Request.Headers["X-Request-Timeout-Ms"] = $"{Math.Clamp((int)timeout.TotalMilliseconds, 1, 600_000)}";
        http.Request.ContentLength = bytes.Length - reader.BaseStream.Position;
        http.Request.Body = new MemoryStream(bytes, (int)reader.BaseStream.Position, bytes.Length - (int)reader.BaseStream.Position);
        using MemoryStream body = new();
        http.Response.Body = body;
        await endpoints(http);
        await http.Response.CompleteAsync();

        using MemoryStream answer = new();
        using BinaryWriter writer = new(answer);
        writer.Write(http.Response.StatusCode);
        KeyValuePair<string, Microsoft.Extensions.Primitives.StringValues>[] headers = [.. http.Response.Headers.Where(header => header.Key != "Content-Length")];
        writer.Write(headers.Length);
        foreach ((string name, Microsoft.Extensions.Primitives.StringValues value) in headers)
        {
            writer.Write(name);
            writer.Write(value.ToString());
        }

        writer.Write(body.GetBuffer().AsSpan(0, (int)body.Length));
        return (sentOn.Kind, answer.ToArray());
    }
}
