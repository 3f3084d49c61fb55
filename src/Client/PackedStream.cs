using System.Buffers;
using System.Text;
using Grpc.Core;

namespace Purse.Client;

/// <summary>A batch of transfers on its way: <c>PackedTransfers</c> of wallet.proto. Its memory is used again once it is disposed of.</summary>
sealed class PackedRequest(byte[]? rented = null) : IDisposable
{
    byte[]? _rented = rented;

    public ulong Batch { get; set; }

    public uint TimeoutMs { get; set; }

    public ReadOnlyMemory<byte> Names { get; set; }

    public ReadOnlyMemory<byte> Transfers { get; set; }

    public void Dispose() => PackedStream.Return(ref _rented);
}

/// <summary>What they came to: <c>PackedResults</c> of wallet.proto. Its memory is used again once it is disposed of.</summary>
sealed class PackedResponse(byte[]? rented = null) : IDisposable
{
    byte[]? _rented = rented;

    public ulong Batch { get; set; }

    public ReadOnlyMemory<byte> Results { get; set; }

    public string Problem { get; set; } = "";

    /// <summary>Of the server's, what it takes of its stream's room; not sent.</summary>
    public int Room { get; init; }

    public void Dispose() => PackedStream.Return(ref _rented);
}

/// <summary>
/// The stream of wallet.proto, its messages read and written in memory that is used again: the protobuf library would leave a gigabyte of garbage for every ten
/// million transfers. The bytes are the same.
/// </summary>
static class PackedStream
{
    public static readonly Method<PackedRequest, PackedResponse> Method = new(
        MethodType.DuplexStreaming, "purse.v1.Wallet", "Stream", new Marshaller<PackedRequest>(Write, ReadRequest), new Marshaller<PackedResponse>(Write, ReadResponse));

    const int HeadBytesMax = 48;

    public static void Return(ref byte[]? rented)
    {
        if (Interlocked.Exchange(ref rented, null) is byte[] bytes) ArrayPool<byte>.Shared.Return(bytes);
    }

    static byte[] Take(DeserializationContext context, out int length)
    {
        length = context.PayloadLength;
        byte[] bytes = ArrayPool<byte>.Shared.Rent(Math.Max(1, length));
        context.PayloadAsReadOnlySequence().CopyTo(bytes);
        return bytes;
    }

    static PackedRequest ReadRequest(DeserializationContext context)
    {
        byte[] bytes = Take(context, out int length);
        PackedRequest request = new(bytes);
        Fields fields = new(bytes.AsSpan(0, length));
        while (fields.MoveNext())
        {
            switch (fields.Number)
            {
                case 1 when fields.IsInteger:
                    request.Batch = fields.Value;
                    break;
                case 2 when fields.IsInteger:
                    request.TimeoutMs = (uint)fields.Value;
                    break;
                case 3 when !fields.IsInteger:
                    request.Names = bytes.AsMemory(fields.Start, (int)fields.Value);
                    break;
                case 4 when !fields.IsInteger:
                    request.Transfers = bytes.AsMemory(fields.Start, (int)fields.Value);
                    break;
            }
        }

        return request;
    }

    static PackedResponse ReadResponse(DeserializationContext context)
    {
        byte[] bytes = Take(context, out int length);
        PackedResponse response = new(bytes);
        Fields fields = new(bytes.AsSpan(0, length));
        while (fields.MoveNext())
        {
            switch (fields.Number)
            {
                case 1 when fields.IsInteger:
                    response.Batch = fields.Value;
                    break;
                case 2 when !fields.IsInteger:
                    response.Results = bytes.AsMemory(fields.Start, (int)fields.Value);
                    break;
                case 3 when !fields.IsInteger:
                    response.Problem = Encoding.UTF8.GetString(bytes, fields.Start, (int)fields.Value);
                    break;
            }
        }

        return response;
    }

    static void Write(PackedRequest request, SerializationContext context)
    {
        Span<byte> head = stackalloc byte[HeadBytesMax], middle = stackalloc byte[HeadBytesMax];
        int headLength = 0, middleLength = 0;
        AddInteger(head, ref headLength, 1, request.Batch);
        AddInteger(head, ref headLength, 2, request.TimeoutMs);
        AddLength(head, ref headLength, 3, request.Names.Length);
        AddLength(middle, ref middleLength, 4, request.Transfers.Length);
        context.SetPayloadLength(headLength + request.Names.Length + middleLength + request.Transfers.Length);
        IBufferWriter<byte> writer = context.GetBufferWriter();
        writer.Write(head[..headLength]);
        writer.Write(request.Names.Span);
        writer.Write(middle[..middleLength]);
        writer.Write(request.Transfers.Span);
        context.Complete();
    }

    static void Write(PackedResponse response, SerializationContext context)
    {
        Span<byte> head = stackalloc byte[HeadBytesMax], middle = stackalloc byte[HeadBytesMax];
        int headLength = 0, middleLength = 0;
        byte[] problem = Encoding.UTF8.GetBytes(response.Problem);
        AddInteger(head, ref headLength, 1, response.Batch);
        AddLength(head, ref headLength, 2, response.Results.Length);
        AddLength(middle, ref middleLength, 3, problem.Length);
        context.SetPayloadLength(headLength + response.Results.Length + middleLength + problem.Length);
        IBufferWriter<byte> writer = context.GetBufferWriter();
        writer.Write(head[..headLength]);
        writer.Write(response.Results.Span);
        writer.Write(middle[..middleLength]);
        writer.Write(problem);
        context.Complete();
    }

    const int IntegerType = 0, EightBytesType = 1, LengthType = 2, FourBytesType = 5;

    static void AddInteger(Span<byte> bytes, ref int length, int number, ulong value)
    {
        bytes[length++] = (byte)((number << 3) | IntegerType);
        AddVarint(bytes, ref length, value);
    }

    static void AddLength(Span<byte> bytes, ref int length, int number, int value)
    {
        bytes[length++] = (byte)((number << 3) | LengthType);
        AddVarint(bytes, ref length, (ulong)value);
    }

    static void AddVarint(Span<byte> bytes, ref int length, ulong value)
    {
        for (; value > 0x7f; value >>= 7) bytes[length++] = (byte)(value | 0x80);
        bytes[length++] = (byte)value;
    }

    /// <summary>The fields of a protobuf message, one after the other. Those that nobody asks for are passed over.</summary>
    ref struct Fields(ReadOnlySpan<byte> message)
    {
        readonly ReadOnlySpan<byte> _message = message;
        int _at;

        public int Number { get; private set; }

        /// <summary>Else it is bytes.</summary>
        public bool IsInteger { get; private set; }

        /// <summary>The integer, or how many bytes there are.</summary>
        public ulong Value { get; private set; }

        /// <summary>Of the bytes.</summary>
        public int Start { get; private set; }

        public bool MoveNext()
        {
            while (_at < _message.Length)
            {
                ulong tag = Varint();
                (Number, IsInteger) = (tag >> 3 > int.MaxValue ? 0 : (int)(tag >> 3), (tag & 7) == IntegerType);
                switch (tag & 7)
                {
                    case IntegerType:
                        Value = Varint();
                        return true;
                    case LengthType:
                        Value = Varint();
                        Start = _at;
                        Skip(Value);
                        return true;
                    case EightBytesType:
                        Skip(8);
                        break;
                    case FourBytesType:
                        Skip(4);
                        break;
                    default:
                        throw Malformed();
                }
            }

            return false;
        }

        void Skip(ulong count)
        {
            if (count > (ulong)(_message.Length - _at)) throw Malformed();
            _at += (int)count;
        }

        ulong Varint()
        {
            ulong value = 0;
            for (int shift = 0; shift < 64 && _at < _message.Length; shift += 7)
            {
                byte next = _message[_at++];
                value |= (ulong)(next & 0x7f) << shift;
                if (next < 0x80) return value;
            }

            throw Malformed();
        }

        static RpcException Malformed() => new(new Status(StatusCode.InvalidArgument, "malformed_request: the message is not one of wallet.proto."));
    }
}
