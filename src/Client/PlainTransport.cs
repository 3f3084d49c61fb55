using System.Globalization;
using Grpc.Core;
using Purse.Client.Wire;

namespace Purse.Client;

/// <summary>Batches in plain protobuf, a call each.</summary>
sealed class PlainTransport(Wallet.WalletClient wallet) : Transport
{
    public override async Task SendAsync(ReadOnlyMemory<Transfer> transfers, Memory<TransferResult> results, TimeSpan timeout, CancellationToken cancellation)
    {
        TransfersRequest request = new() { TimeoutMs = (uint)Math.Clamp(timeout.TotalMilliseconds, 1, 600_000) };
        foreach (ref readonly Transfer transfer in transfers.Span) request.Transfers.Add(ToRequest(transfer));
        TransfersResult answer;
        try
        {
            answer = await wallet.TransfersAsync(request, deadline: DateTime.UtcNow + timeout + TimeSpan.FromSeconds(1), cancellationToken: cancellation);
        }
        catch (RpcException e) when (!cancellation.IsCancellationRequested)
        {
            throw new TransportException(e.Status.Detail, e);
        }

        if (answer.Results.Count != transfers.Length) throw new TransportException($"{answer.Results.Count} results came for {transfers.Length} transfers.");
        for (int i = 0; i < transfers.Length; i++) results.Span[i] = FromResult(answer.Results[i], transfers.Span[i].Id);
    }

    static TransferRequest ToRequest(in Transfer transfer)
    {
        TransferRequest request = new()
        {
            TransactionId = transfer.Id.ToString(),
            FromAccount = transfer.From,
            ToAccount = transfer.To,
            Amount = transfer.Amount.ToString(),
            Currency = transfer.Currency,
            Pending = transfer.Pending,
            UpTo = transfer.UpTo,
            DryRun = transfer.DryRun,
            ExpiresInSeconds = (uint)transfer.ExpiresInSeconds,
        };
        if (transfer.Description is string description) request.Description = description;
        if (transfer.MetadataJson is string metadata) request.MetadataJson = metadata;
        return request;
    }

    static TransferResult FromResult(Wire.TransferResult result, Guid id) => new()
    {
        Id = id,
        Status = (TransferStatus)result.Status,
        Effect = (Effect)result.Outcome,
        Code = result.Code.Length == 0 ? null : result.Code,
        Detail = result.Detail.Length == 0 ? null : result.Detail,
        IsRetryable = result.Retryable,
        IsReplayed = result.IdempotentReplayed,
        Amount = result.Amount.Length == 0 ? default : Amount.Parse(result.Amount),
        CompletedAt = result.CompletedAt.Length == 0 ? default : DateTimeOffset.Parse(result.CompletedAt, CultureInfo.InvariantCulture),
        PositionText = result.Position.Length == 0 ? null : result.Position,
    };

    public override ValueTask DisposeAsync() => ValueTask.CompletedTask;
}
