using System.Buffers.Binary;
using System.Text;

namespace Purse.Cluster.ZooKeeper;

/// <summary>ZooKeeper's serialization: big-endian integers, lengths of 32 bits before strings, buffers and lists, -1 for none.</summary>
struct JuteWriter()
{
    byte[] _bytes = new byte[256];
    int _length;

    public readonly ReadOnlyMemory<byte> Written => _bytes.AsMemory(0, _length);

    Span<byte> Take(int length)
    {
        if (_length + length > _bytes.Length) Array.Resize(ref _bytes, Math.Max(_bytes.Length * 2, _length + length));
        Span<byte> taken = _bytes.AsSpan(_length, length);
        _length += length;
        return taken;
    }

    public void Write(bool value) => Take(1)[0] = value ? (byte)1 : (byte)0;

    public void Write(int value) => BinaryPrimitives.WriteInt32BigEndian(Take(4), value);

    public void Write(long value) => BinaryPrimitives.WriteInt64BigEndian(Take(8), value);

    public void Write(ReadOnlySpan<byte> buffer)
    {
        Write(buffer.Length);
        buffer.CopyTo(Take(buffer.Length));
    }

    public void Write(string value)
    {
        int length = Encoding.UTF8.GetByteCount(value);
        Write(length);
        Encoding.UTF8.GetBytes(value, Take(length));
    }

    public void Write(IReadOnlyCollection<string> values)
    {
        Write(values.Count);
        foreach (string value in values) Write(value);
    }
}

/// <summary>The way back. What a server sends is checked: a length beyond the frame is <see cref="InvalidDataException"/>.</summary>
ref struct JuteReader(ReadOnlySpan<byte> frame)
{
    ReadOnlySpan<byte> _rest = frame;

    public readonly int Left => _rest.Length;

    ReadOnlySpan<byte> Take(int length)
    {
        if (length < 0 || length > _rest.Length) throw new InvalidDataException($"A frame of ZooKeeper has {_rest.Length} bytes left where {length} should be.");
        ReadOnlySpan<byte> taken = _rest[..length];
        _rest = _rest[length..];
        return taken;
    }

    public bool ReadBoolean() => Take(1)[0] != 0;

    public int ReadInt32() => BinaryPrimitives.ReadInt32BigEndian(Take(4));

    public long ReadInt64() => BinaryPrimitives.ReadInt64BigEndian(Take(8));

    public byte[] ReadBuffer() => ReadInt32() is >= 0 and int length ? Take(length).ToArray() : [];

    public string ReadString() => ReadInt32() is >= 0 and int length ? Encoding.UTF8.GetString(Take(length)) : "";

    public List<string> ReadStrings()
    {
        int count = ReadInt32();
        // Each has at least its length.
        if (count > _rest.Length / 4) throw new InvalidDataException($"A frame of ZooKeeper says {count} strings, and has {_rest.Length} bytes left.");
        List<string> strings = new(Math.Max(0, count));
        for (int i = 0; i < count; i++) strings.Add(ReadString());
        return strings;
    }

    public ZooKeeperReply ReadReply() => new(ReadInt32(), ReadInt64(), (ZooKeeperCode)ReadInt32());

    public (WatchEvent Event, string Path) ReadWatchEvent()
    {
        WatchEvent what = (WatchEvent)ReadInt32();
        // The session's state, which the connection itself tells.
        _ = ReadInt32();
        return (what, ReadString());
    }

    public (int TimeoutMilliseconds, long SessionId, byte[] Password) ReadConnected()
    {
        // The protocol's version.
        _ = ReadInt32();
        return (ReadInt32(), ReadInt64(), ReadBuffer());
    }

    public ZooKeeperStat ReadStat()
    {
        long created = ReadInt64(), modified = ReadInt64(), createdAt = ReadInt64(), modifiedAt = ReadInt64();
        int version = ReadInt32(), childrenVersion = ReadInt32();
        _ = ReadInt32();
        long owner = ReadInt64();
        int length = ReadInt32(), children = ReadInt32();
        return new ZooKeeperStat(created, modified, createdAt, modifiedAt, version, childrenVersion, owner, length, children, ReadInt64());
    }
}
