using System.Buffers;
using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using System.Text;
using Grpc.Core;

namespace Purse.Client;

/// <summary>Batches in the packed form on one stream, answered in any order. A stream that breaks is replaced by the next batch.</summary>
sealed class StreamTransport(CallInvoker invoker) : Transport
{
    const int NameLengthMax = 255;

    readonly SemaphoreSlim _writing = new(1);
    Connection? _connection;
    ulong _lastBatch;

    sealed class Connection(AsyncDuplexStreamingCall<PackedRequest, PackedResponse> call)
    {
        public AsyncDuplexStreamingCall<PackedRequest, PackedResponse> Call => call;

        public ConcurrentDictionary<ulong, Pending> Pending { get; } = new();

        public volatile Exception? Fault;

        public Task Reading { get; set; } = Task.CompletedTask;
    }

    sealed class Pending(ReadOnlyMemory<Transfer> transfers, Memory<TransferResult> results) : TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously)
    {
        public ReadOnlyMemory<Transfer> Transfers => transfers;

        public Memory<TransferResult> Results => results;
    }

    public override async Task SendAsync(ReadOnlyMemory<Transfer> transfers, Memory<TransferResult> results, TimeSpan timeout, CancellationToken cancellation)
    {
        // It is the caller's call to leave out what would not fit.
        byte[] records = ArrayPool<byte>.Shared.Rent(transfers.Length * PackedTransfer.SizeBytes);
        byte[] names = ArrayPool<byte>.Shared.Rent(NamesLength(transfers.Span));
        Pending pending = new(transfers, results);
        Connection connection;
        ulong batch;
        await _writing.WaitAsync(cancellation);
        try
        {
            int namesLength = Pack(transfers.Span, records, names);
            connection = _connection ??= Open();
            batch = ++_lastBatch;
            connection.Pending[batch] = pending;
            using PackedRequest message = new()
            {
                Batch = batch,
                TimeoutMs = (uint)Math.Clamp(timeout.TotalMilliseconds, 1, 600_000),
                Names = names.AsMemory(0, namesLength),
                Transfers = records.AsMemory(0, transfers.Length * PackedTransfer.SizeBytes),
            };
            await connection.Call.RequestStream.WriteAsync(message, CancellationToken.None);
            // It ended before its reader could see this one.
            if (connection.Fault is { } fault && connection.Pending.TryRemove(batch, out _)) pending.TrySetException(fault);
        }
        catch (Exception e) when (e is RpcException or IOException or HttpRequestException or InvalidOperationException or ObjectDisposedException)
        {
            _connection?.Pending.TryRemove(_lastBatch, out _);
            Drop(e);
            throw new TransportException(e.Message, e);
        }
        finally
        {
            _writing.Release();
            ArrayPool<byte>.Shared.Return(records);
            ArrayPool<byte>.Shared.Return(names);
        }

        try
        {
            // A little more than the server has: its own word is better than none.
            await pending.Task.WaitAsync(timeout + TimeSpan.FromSeconds(1), cancellation);
        }
        catch (Exception e) when (e is TimeoutException or RpcException or IOException or HttpRequestException or InvalidDataException or ObjectDisposedException)
        {
            throw new TransportException(e.Message, e);
        }
        finally
        {
            // The results are the caller's memory: nobody may write there after this.
            if (!connection.Pending.TryRemove(batch, out _)) await pending.Task.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }
    }

    Connection Open()
    {
        Connection connection = new(invoker.AsyncDuplexStreamingCall(PackedStream.Method, null, default));
        connection.Reading = ReadAsync(connection);
        return connection;
    }

    async Task ReadAsync(Connection connection)
    {
        Exception fault;
        try
        {
            while (await connection.Call.ResponseStream.MoveNext(CancellationToken.None))
            {
                using PackedResponse results = connection.Call.ResponseStream.Current;
                if (connection.Pending.TryRemove(results.Batch, out Pending? pending)) Unpack(results, pending);
            }

            fault = new IOException("The server ended the stream.");
        }
        catch (Exception e) when (e is RpcException or IOException or HttpRequestException or ObjectDisposedException)
        {
            fault = e;
        }

        connection.Fault = fault;
        Interlocked.CompareExchange(ref _connection, null, connection);
        foreach (ulong batch in connection.Pending.Keys)
        {
            if (connection.Pending.TryRemove(batch, out Pending? pending)) pending.TrySetException(fault);
        }

        connection.Call.Dispose();
    }

    void Drop(Exception fault)
    {
        if (_connection is not Connection connection) return;
        connection.Fault ??= fault;
        _connection = null;
        // The reader ends with that, and fails all that still wait.
        connection.Call.Dispose();
    }

    static int NamesLength(ReadOnlySpan<Transfer> transfers)
    {
        int length = 0;
        foreach (ref readonly Transfer transfer in transfers) length += transfer.From.Length + transfer.To.Length + 2;
        return length;
    }

    /// <returns>How long the names are.</returns>
    static int Pack(ReadOnlySpan<Transfer> transfers, Span<byte> records, Span<byte> names)
    {
        int length = 0;
        uint count = 0;
        Span<PackedTransfer> packed = MemoryMarshal.Cast<byte, PackedTransfer>(records)[..transfers.Length];
        for (int i = 0; i < transfers.Length; i++)
        {
            ref readonly Transfer transfer = ref transfers[i];
            ref PackedTransfer record = ref packed[i];
            transfer.Id.TryWriteBytes(MemoryMarshal.AsBytes(new Span<PackedTransfer>(ref record)), bigEndian: true, out _);
            record.AmountDigits = transfer.Amount.Digits;
            record.AmountDecimals = transfer.Amount.Decimals;
            record.From = count++;
            record.To = count++;
            Append(transfer.From, names, ref length);
            Append(transfer.To, names, ref length);
            record.Currency = PackCurrency(transfer.Currency);
            record.ExpiresInSeconds = (uint)transfer.ExpiresInSeconds;
            record.Flags = (transfer.Pending ? PackedFlags.Pending : 0) | (transfer.UpTo ? PackedFlags.UpTo : 0) | (transfer.DryRun ? PackedFlags.DryRun : 0);
            record.Reserved = 0;
        }

        return length;
    }

    static void Append(string name, Span<byte> names, ref int length)
    {
        names[length] = (byte)name.Length;
        // What is not ASCII becomes a question mark, which no name has.
        Encoding.ASCII.GetBytes(name, names[(length + 1)..]);
        length += 1 + name.Length;
    }

    static ulong PackCurrency(string code)
    {
        ulong packed = 0;
        for (int i = 0; i < code.Length && i < 8; i++) packed |= (ulong)(byte)(code[i] < 128 ? code[i] : '?') << (8 * i);
        return packed;
    }

    /// <summary>Whether it can be told in the packed form; what cannot is told in plain protobuf, and refused there with words.</summary>
    public static bool Fits(in Transfer transfer) =>
        !transfer.HasTexts && transfer.From.Length <= NameLengthMax && transfer.To.Length <= NameLengthMax && transfer.Currency.Length <= 8 && transfer.ExpiresInSeconds >= 0;

    static void Unpack(PackedResponse message, Pending pending)
    {
        ReadOnlySpan<PackedResult> packed = MemoryMarshal.Cast<byte, PackedResult>(message.Results.Span);
        if (packed.Length != pending.Results.Length)
        {
            pending.TrySetException(new InvalidDataException(message.Problem.Length > 0 ? message.Problem : $"{packed.Length} results came for {pending.Results.Length} transfers."));
            return;
        }

        Span<TransferResult> results = pending.Results.Span;
        for (int i = 0; i < packed.Length; i++) results[i] = Unpack(packed[i], pending.Transfers.Span[i]);
        pending.TrySetResult();
    }

    static TransferResult Unpack(in PackedResult packed, in Transfer transfer)
    {
        TransferStatus status = (TransferStatus)packed.Status;
        bool isUnknown = (packed.Flags & PackedResultFlags.Unknown) != 0;
        return new TransferResult
        {
            Id = transfer.Id,
            Status = status,
            Effect = TransferResult.EffectOf(status, isUnknown, transfer.DryRun),
            Code = packed.Code == 0 ? null : PackedCodes.ByNumber.TryGetValue(packed.Code, out string? code) ? code : $"code_{packed.Code}",
            IsRetryable = (packed.Flags & PackedResultFlags.Retryable) != 0,
            IsReplayed = (packed.Flags & PackedResultFlags.Replayed) != 0,
            Amount = new Amount(packed.AmountDigits, packed.AmountDecimals),
            CompletedAt = packed.TimeMicros == 0 ? default : DateTimeOffset.UnixEpoch.AddTicks(packed.TimeMicros * TimeSpan.TicksPerMicrosecond),
            At = (packed.Partition, packed.Sequence),
        };
    }

    public override async ValueTask DisposeAsync()
    {
        Connection? connection = _connection;
        Drop(new ObjectDisposedException(nameof(PurseClient)));
        if (connection is not null) await connection.Reading;
        _writing.Dispose();
    }
}
