using System.Buffers;
using System.Buffers.Binary;

namespace Purse.Cluster.Nodes;

/// <summary>What a frame is.</summary>
public enum FrameKind : byte
{
    /// <summary>A question, by an id of who asks.</summary>
    Question,

    /// <summary>Messages of the commit protocol: nobody waits for an answer.</summary>
    Messages,

    /// <summary>The answer to a question.</summary>
    Answer,

    /// <summary>There is no answer now, and nothing was recorded: it may be asked again, perhaps elsewhere. What it has is the answer where there is no time for that.</summary>
    AskAgain,

    /// <summary>The same, but something may have been recorded: asked again, it is answered by its id.</summary>
    AskAgainUnknown,
}

/// <summary>One of many in a batch between two nodes.</summary>
/// <param name="TimeoutMilliseconds">How long the one who asks still waits.</param>
public readonly record struct Frame(FrameKind Kind, long Id, int TimeoutMilliseconds, ReadOnlyMemory<byte> Payload)
{
    const int HeaderBytes = 1 + 8 + 4 + 4;

    public int SizeBytes => HeaderBytes + Payload.Length;

    public void Write(IBufferWriter<byte> frames)
    {
        Span<byte> header = frames.GetSpan(HeaderBytes);
        header[0] = (byte)Kind;
        BinaryPrimitives.WriteInt64LittleEndian(header[1..], Id);
        BinaryPrimitives.WriteInt32LittleEndian(header[9..], TimeoutMilliseconds);
        BinaryPrimitives.WriteInt32LittleEndian(header[13..], Payload.Length);
        frames.Advance(HeaderBytes);
        frames.Write(Payload.Span);
    }

    /// <exception cref="InvalidDataException">They are not frames.</exception>
    public static IEnumerable<Frame> ReadAll(ReadOnlyMemory<byte> frames)
    {
        while (frames.Length > 0)
        {
            if (frames.Length < HeaderBytes) throw new InvalidDataException("A frame is cut off.");
            (Frame frame, int length) = ReadHeader(frames.Span);
            if (length < 0 || frames.Length - HeaderBytes < length || frame.Kind > FrameKind.AskAgainUnknown) throw new InvalidDataException($"A frame of kind {frame.Kind} says that it has {length} bytes.");
            yield return frame with { Payload = frames.Slice(HeaderBytes, length) };
            frames = frames[(HeaderBytes + length)..];
        }
    }

    static (Frame Frame, int Length) ReadHeader(ReadOnlySpan<byte> header) => (
        new Frame((FrameKind)header[0], BinaryPrimitives.ReadInt64LittleEndian(header[1..]), BinaryPrimitives.ReadInt32LittleEndian(header[9..]), default),
        BinaryPrimitives.ReadInt32LittleEndian(header[13..]));
}
