using System.Buffers;
using System.Runtime.ExceptionServices;
using System.Text.Json;
using System.Threading.Channels;
using Grpc.AspNetCore.Server.Model;
using Grpc.Core;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Client;
using Purse.Client.Wire;
using Purse.Partitions;
using TransferResult = Purse.Client.Wire.TransferResult;

namespace Purse.Server;

/// <summary>The same transfers by gRPC: in plain protobuf by the endpoint that JSON has, and packed, many batches at once on one stream.</summary>
sealed class GrpcEndpoints(PartitionDirectory directory, TransferEndpoints transfers, AccountEndpoints accounts, bool isDurable, Action<string> log, CancellationToken stopping) : Wallet.WalletBase
{
    /// <summary>Of one stream, until their results are written to it: who sends without listening is not read from any more.</summary>
    const int TransfersUnderWayMax = 131_072;

    public override async Task<TransferResult> Transfer(TransferRequest request, ServerCallContext context)
    {
        TransfersRequest many = new() { TimeoutMs = request.TimeoutMs };
        many.Transfers.Add(request);
        return (await Transfers(many, context)).Results[0];
    }

    public override async Task<TransfersResult> Transfers(TransfersRequest request, ServerCallContext context)
    {
        DefaultHttpContext http = new();
        http.Request.Method = "POST";
        http.Request.Path = "/v1/wallet/transfers";
        http.Request.ContentType = "application/json";
        if (request.TimeoutMs != 0) http.Request.Headers["X-Request-Timeout-Ms"] = $"{request.TimeoutMs}";
        byte[] body = Write(request);
        http.Request.ContentLength = body.Length;
        http.Request.Body = new MemoryStream(body);
        using MemoryStream answer = new();
        http.Response.Body = answer;
        http.RequestAborted = context.CancellationToken;
        await directory.Endpoints!(http);
        await http.Response.CompleteAsync();
        using JsonDocument json = JsonDocument.Parse(answer.GetBuffer().AsMemory(0, (int)answer.Length));
        TransfersResult results = new();
        // A problem of the request as a whole is one of each.
        if (http.Response.StatusCode == 200) results.Results.AddRange(json.RootElement.GetProperty("transfers").EnumerateArray().Select((one, i) => Read(one, request.Transfers[i])));
        else results.Results.AddRange(request.Transfers.Select(one => Read(json.RootElement, one)));
        return results;
    }

    static byte[] Write(TransfersRequest request)
    {
        ArrayBufferWriter<byte> body = new();
        using Utf8JsonWriter json = new(body);
        json.WriteStartObject();
        json.WriteStartArray("transfers");
        foreach (TransferRequest one in request.Transfers)
        {
            json.WriteStartObject();
            json.WriteString("transaction_id", one.TransactionId);
            json.WriteString("from_account", one.FromAccount);
            json.WriteString("to_account", one.ToAccount);
            json.WriteString("amount", one.Amount);
            json.WriteString("currency", one.Currency);
            if (one.Pending) json.WriteBoolean("pending", true);
            if (one.UpTo) json.WriteBoolean("up_to", true);
            if (one.DryRun) json.WriteBoolean("dry_run", true);
            if (one.ExpiresInSeconds != 0) json.WriteNumber("expires_in", one.ExpiresInSeconds);
            if (one.HasDescription) json.WriteString("description", one.Description);
            if (one.HasMetadataJson)
            {
                json.WritePropertyName("metadata");
                try
                {
                    json.WriteRawValue(one.MetadataJson);
                }
                catch (Exception e) when (e is JsonException or ArgumentException)
                {
                    throw new RpcException(new Grpc.Core.Status(StatusCode.InvalidArgument, $"malformed_request: the metadata_json of transaction {one.TransactionId} is not JSON: {e.Message}"));
                }
            }

            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WriteEndObject();
        json.Flush();
        return body.WrittenSpan.ToArray();
    }

    static TransferResult Read(JsonElement one, TransferRequest request)
    {
        string Text(string member) => one.TryGetProperty(member, out JsonElement value) ? value.GetString() ?? "" : "";
        bool Flag(string member) => one.TryGetProperty(member, out JsonElement value) && value.GetBoolean();
        string code = Text("code");
        Client.Wire.Status status = code.Length > 0 ? Client.Wire.Status.Rejected : Text("status") switch
        {
            "pending" => Client.Wire.Status.Pending,
            "in_doubt" => Client.Wire.Status.InDoubt,
            _ => Client.Wire.Status.Completed,
        };
        return new TransferResult
        {
            TransactionId = request.TransactionId,
            Status = status,
            Outcome = (Outcome)Client.TransferResult.EffectOf((TransferStatus)status, Text("outcome") == "unknown", request.DryRun),
            Code = code,
            Detail = Text("detail"),
            Retryable = Flag("retryable"),
            IdempotentReplayed = Flag("idempotent_replayed"),
            Amount = Text("amount"),
            CompletedAt = Text("completed_at"),
            Position = Text("position"),
        };
    }

    /// <summary>Takes the place of the generated <c>Stream</c> (<see cref="PackedStreamProvider"/>): the same on the wire, in memory that is used again.</summary>
    async Task StreamAsync(IAsyncStreamReader<PackedRequest> requests, IServerStreamWriter<PackedResponse> responses, ServerCallContext context)
    {
        Channel<PackedResponse> answers = Channel.CreateUnbounded<PackedResponse>(new UnboundedChannelOptions { SingleReader = true });
        Room room = new(TransfersUnderWayMax);
        using CancellationTokenSource ending = CancellationTokenSource.CreateLinkedTokenSource(context.CancellationToken, stopping);
        // One write at a time is what a stream takes.
        Task writing = Task.Run(WriteAsync);
        int underWay = 1;
        try
        {
            while (await requests.MoveNext(ending.Token))
            {
                PackedRequest message = requests.Current;
                int count = message.Transfers.Length / PackedTransfer.SizeBytes;
                if (ProblemOf(message, count) is string problem)
                {
                    PackedResponse refusal = new() { Batch = message.Batch, Problem = problem, Room = 1 };
                    message.Dispose();
                    await room.EnterAsync(refusal.Room);
                    answers.Writer.TryWrite(refusal);
                    continue;
                }

                await room.EnterAsync(count);
                Interlocked.Increment(ref underWay);
                _ = AnswerAsync(message, count);
            }
        }
        catch (OperationCanceledException)
        {
            // The server stops, or the caller is gone: what is under way goes on, and is told to whoever still listens.
        }
        finally
        {
            Leave();
        }

        await writing;

        async Task WriteAsync()
        {
            Exception? failure = null;
            await foreach (PackedResponse answer in answers.Reader.ReadAllAsync())
            {
                using (answer)
                {
                    try
                    {
                        if (failure is null) await responses.WriteAsync(answer, context.CancellationToken);
                    }
                    catch (Exception e)
                    {
                        // Nobody listens: nothing more is read. What is under way ends, and is told to nobody.
                        failure = e;
                        await ending.CancelAsync();
                    }
                }

                room.Exit(answer.Room);
            }

            if (failure is not null) ExceptionDispatchInfo.Throw(failure);
        }

        async Task AnswerAsync(PackedRequest message, int count)
        {
            byte[] results = ArrayPool<byte>.Shared.Rent(count * PackedResult.SizeBytes);
            PackedResponse answer = new(results) { Batch = message.Batch, Room = count };
            try
            {
                Memory<byte> records = results.AsMemory(0, count * PackedResult.SizeBytes);
                records.Span.Clear();
                await transfers.ExecutePackedAsync(message.Names, message.Transfers, records, Query.Timeout(message.TimeoutMs));
                answer.Results = records;
            }
            catch (Exception e)
            {
                // Whatever it was, the batch is answered: it says nothing of any of them, so that they may be asked for again, and the stream goes on.
                answer.Problem = e is Problem problem ? $"{problem.Code}: {problem.Message}" : "internal_error: The server failed. Ask by their ids what became of the transfers, or send the same again.";
                if (e is not Problem) log($"A batch of {count} transfers failed: {e}");
            }

            message.Dispose();
            answers.Writer.TryWrite(answer);
            Leave();
        }

        void Leave()
        {
            if (Interlocked.Decrement(ref underWay) == 0) answers.Writer.Complete();
        }
    }

    /// <summary>Maps the stream as <see cref="PackedStream"/> has it, before the generated one of the same name.</summary>
    public sealed class PackedStreamProvider : IServiceMethodProvider<GrpcEndpoints>
    {
        public void OnServiceMethodDiscovery(ServiceMethodProviderContext<GrpcEndpoints> context) =>
            context.AddDuplexStreamingMethod(PackedStream.Method, [this], static (service, requests, responses, call) => service.StreamAsync(requests, responses, call));

        public static void First(EndpointBuilder endpoint)
        {
            if (endpoint is RouteEndpointBuilder route && route.Metadata.Any(static one => one is PackedStreamProvider)) route.Order = -1;
        }
    }

    static string? ProblemOf(PackedRequest message, int count)
    {
        if (message.Transfers.Length % PackedTransfer.SizeBytes != 0) return $"malformed_request: transfers has {message.Transfers.Length} bytes; records have {PackedTransfer.SizeBytes}.";
        if (count is 0 or > TransferEndpoints.TransfersMax) return $"too_many_transfers: a batch has 1 to {TransferEndpoints.TransfersMax} transfers, not {count}.";
        return message.TimeoutMs > Query.TimeoutMillisecondsMax ? $"malformed_request: timeout_ms is {message.TimeoutMs}; it must be up to {Query.TimeoutMillisecondsMax}." : null;
    }

    /// <summary>Room for so many, which whoever reads a stream waits for. One at a time enters.</summary>
    sealed class Room(int max)
    {
        int _taken;
        TaskCompletionSource? _left;

        public async ValueTask EnterAsync(int count)
        {
            while (Interlocked.Add(ref _taken, count) > max && Volatile.Read(ref _taken) != count)
            {
                TaskCompletionSource left = new(TaskCreationOptions.RunContinuationsAsynchronously);
                Volatile.Write(ref _left, left);
                // Whoever left before this was seen has made room already.
                if (Interlocked.Add(ref _taken, -count) > 0) await left.Task;
            }
        }

        public void Exit(int count)
        {
            Interlocked.Add(ref _taken, -count);
            Interlocked.Exchange(ref _left, null)?.TrySetResult();
        }
    }

    public override async Task<OpenAccountsResult> OpenAccounts(OpenAccountsRequest request, ServerCallContext context)
    {
        CheckCount(request.Accounts.Count);
        OpenAccountsResult result = new();
        foreach ((bool isCreated, Problem? problem) in await accounts.OpenManyAsync(request.Accounts, Query.Timeout(request.TimeoutMs)))
        {
            result.Accounts.Add(problem is null
                ? new OpenedAccount { Created = isCreated, Outcome = isCreated ? Outcome.Applied : Outcome.None }
                : new OpenedAccount { Code = problem.Code, Detail = problem.Message, Outcome = problem.Outcome == "unknown" ? Outcome.Unknown : Outcome.None, Retryable = problem.Retryable });
        }

        return result;
    }

    public override async Task<BalancesResult> Balances(BalancesRequest request, ServerCallContext context)
    {
        CheckCount(request.Accounts.Count);
        BalancesResult result = new();
        try
        {
            foreach ((Int128 posted, Int128 held, int decimals, Problem? problem) in await accounts.BalancesAsync(request.Accounts, request.Currency, Query.Timeout(request.TimeoutMs)))
            {
                string Money(Int128 minor) => Ledger.Amount.Format(minor, decimals);
                result.Balances.Add(problem is null
                    ? new AccountBalance { Posted = Money(posted), Held = Money(held), Available = Money(posted - held) }
                    : new AccountBalance { Code = problem.Code, Detail = problem.Message });
            }
        }
        catch (Problem problem)
        {
            throw new RpcException(new Grpc.Core.Status(StatusCode.InvalidArgument, $"{problem.Code}: {problem.Message}"));
        }

        return result;
    }

    static void CheckCount(int count)
    {
        if (count is 0 or > TransferEndpoints.TransfersMax) throw new RpcException(new Grpc.Core.Status(StatusCode.InvalidArgument, $"malformed_request: there are {count} accounts; 1 to {TransferEndpoints.TransfersMax} are taken at once."));
    }

    public override Task<Description> Describe(DescribeRequest request, ServerCallContext context) => Task.FromResult(new Description
    {
        Version = OpenApi.Version,
        Partitions = (uint)directory.Count,
        Durable = isDurable,
        Flushes = (ulong)directory.Hosted.Sum(partition => partition.FlushesCount),
        JournalBytes = (ulong)directory.Hosted.Sum(partition => partition.JournalBytes),
    });
}
