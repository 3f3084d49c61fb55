using System.Buffers;
using System.IO.Pipelines;
using System.Net;
using System.Threading.Channels;
using Microsoft.AspNetCore.Connections;
using Microsoft.AspNetCore.Server.Kestrel.Core;

namespace Purse.Server;

/// <summary>
/// HTTP/1.1 and HTTP/2 on one port without TLS, which Kestrel cannot do by itself (dotnet/aspnetcore#56984): who speaks HTTP/2 begins with 24 bytes that nothing else
/// begins with. Such a connection is handed over, with nothing taken from it, to an endpoint of the same server that speaks HTTP/2 only.
/// </summary>
sealed class Http2Preface : IConnectionListenerFactory, IConnectionListenerFactorySelector
{
    static readonly TimeSpan Patience = TimeSpan.FromMinutes(2);

    readonly Channel<ConnectionContext> _handedOver = Channel.CreateUnbounded<ConnectionContext>();

    static ReadOnlySpan<byte> Preface => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"u8;

    /// <summary>Where the connections of HTTP/2 come in: at no address.</summary>
    public EndPoint EndPoint { get; } = new Inner();

    sealed class Inner : EndPoint
    {
        public override string ToString() => "http2";
    }

    /// <summary>Of an endpoint for HTTP/1.1.</summary>
    public void Use(ListenOptions listen) => listen.Use(next => async connection =>
    {
        if (!await IsHttp2Async(connection))
        {
            await next(connection);
            return;
        }

        HandedOver handedOver = new(connection);
        if (_handedOver.Writer.TryWrite(handedOver)) await handedOver.Ended;
    });

    static async ValueTask<bool> IsHttp2Async(ConnectionContext connection)
    {
        PipeReader input = connection.Transport.Input;
        using CancellationTokenSource patience = CancellationTokenSource.CreateLinkedTokenSource(connection.ConnectionClosed);
        patience.CancelAfter(Patience);
        while (true)
        {
            ReadResult read;
            try
            {
                read = await input.ReadAsync(patience.Token);
            }
            catch (OperationCanceledException)
            {
                // Said nothing for that long, or gone: the other side of HTTP knows how to end that.
                connection.Abort();
                return false;
            }

            int length = (int)Math.Min(read.Buffer.Length, Preface.Length);
            bool isLike = StartsLikePreface(read.Buffer.Slice(0, length));
            bool isKnown = !isLike || length == Preface.Length || read.IsCompleted;
            // What is known is left to be read at once; before that, only more is news.
            input.AdvanceTo(read.Buffer.Start, isKnown ? read.Buffer.Start : read.Buffer.End);
            if (isKnown) return isLike && length == Preface.Length;
        }
    }

    static bool StartsLikePreface(in ReadOnlySequence<byte> beginning)
    {
        Span<byte> bytes = stackalloc byte[Preface.Length];
        beginning.CopyTo(bytes);
        return bytes[..(int)beginning.Length].SequenceEqual(Preface[..(int)beginning.Length]);
    }

    /// <summary>The same connection; its first owner waits until the second one is done with it.</summary>
    sealed class HandedOver(ConnectionContext connection) : ConnectionContext
    {
        readonly TaskCompletionSource _ended = new(TaskCreationOptions.RunContinuationsAsynchronously);

        public Task Ended => _ended.Task;

        public override string ConnectionId
        {
            get => connection.ConnectionId;
            set => connection.ConnectionId = value;
        }

        public override Microsoft.AspNetCore.Http.Features.IFeatureCollection Features => connection.Features;

        public override IDictionary<object, object?> Items
        {
            get => connection.Items;
            set => connection.Items = value;
        }

        public override IDuplexPipe Transport
        {
            get => connection.Transport;
            set => connection.Transport = value;
        }

        public override CancellationToken ConnectionClosed
        {
            get => connection.ConnectionClosed;
            set => connection.ConnectionClosed = value;
        }

        public override EndPoint? LocalEndPoint
        {
            get => connection.LocalEndPoint;
            set => connection.LocalEndPoint = value;
        }

        public override EndPoint? RemoteEndPoint
        {
            get => connection.RemoteEndPoint;
            set => connection.RemoteEndPoint = value;
        }

        public override void Abort(ConnectionAbortedException abortReason) => connection.Abort(abortReason);

        public override ValueTask DisposeAsync()
        {
            _ended.TrySetResult();
            return ValueTask.CompletedTask;
        }
    }

    bool IConnectionListenerFactorySelector.CanBind(EndPoint endpoint) => endpoint is Inner;

    ValueTask<IConnectionListener> IConnectionListenerFactory.BindAsync(EndPoint endpoint, CancellationToken cancellationToken) => new(new Listener(_handedOver, endpoint));

    sealed class Listener(Channel<ConnectionContext> handedOver, EndPoint endPoint) : IConnectionListener
    {
        public EndPoint EndPoint => endPoint;

        public async ValueTask<ConnectionContext?> AcceptAsync(CancellationToken cancellationToken = default)
        {
            try
            {
                return await handedOver.Reader.ReadAsync(cancellationToken);
            }
            catch (ChannelClosedException)
            {
                return null;
            }
        }

        public ValueTask UnbindAsync(CancellationToken cancellationToken = default)
        {
            handedOver.Writer.TryComplete();
            return ValueTask.CompletedTask;
        }

        public ValueTask DisposeAsync() => ValueTask.CompletedTask;
    }
}
