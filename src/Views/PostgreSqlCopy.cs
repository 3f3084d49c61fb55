using System.Buffers.Binary;
using Npgsql;

namespace Purse.Views;

/// <summary>
/// Rows in PostgreSQL's binary COPY format, made without an object for each value (https://www.postgresql.org/docs/current/sql-copy.html; numeric as
/// numeric_send writes it).
/// </summary>
sealed class PostgreSqlCopy
{
    /// <summary>Its signature, no flags, no more header.</summary>
    static readonly byte[] Header = [.. "PGCOPY\n"u8, 0xff, .. "\r\n\0"u8, 0, 0, 0, 0, 0, 0, 0, 0];
    static readonly long Year2000Micros = (new DateTime(2000, 1, 1, 0, 0, 0, DateTimeKind.Utc) - DateTime.UnixEpoch).Ticks / TimeSpan.TicksPerMicrosecond;

    byte[] _bytes = new byte[1024 * 1024];
    int _length;

    public void Begin()
    {
        _length = 0;
        Header.CopyTo(Take(Header.Length));
    }

    public void Row(short columns) => BinaryPrimitives.WriteInt16BigEndian(Take(2), columns);

    public void Null() => BinaryPrimitives.WriteInt32BigEndian(Take(4), -1);

    public void Int(int value) => BinaryPrimitives.WriteInt32BigEndian(Value(4), value);

    public void Long(long value) => BinaryPrimitives.WriteInt64BigEndian(Value(8), value);

    public void Time(long unixMicros) => Long(unixMicros - Year2000Micros);

    public void Uuid(UInt128 value, bool isNullable = true)
    {
        if (value == 0 && isNullable) Null();
        else BinaryPrimitives.WriteUInt128BigEndian(Value(16), value);
    }

    public void Utf8(ReadOnlySpan<byte> value) => value.CopyTo(Value(value.Length));

    public void Ascii(string value) => System.Text.Encoding.ASCII.GetBytes(value, Value(value.Length));

    /// <summary>A text of a caller's own: PostgreSQL has none with a zero in it, which is shown as the sign for what cannot be.</summary>
    public void Text(byte[]? utf8)
    {
        if (utf8 is null) Null();
        else if (utf8.AsSpan().Contains((byte)0)) Utf8(System.Text.Encoding.UTF8.GetBytes(System.Text.Encoding.UTF8.GetString(utf8).Replace('\0', '\ufffd')));
        else Utf8(utf8);
    }

    /// <summary>Digits of 10 000 around the point: how many, the first one's power, the sign, how many decimals are shown.</summary>
    public void Numeric(Int128 minor, int decimals)
    {
        bool isNegative = minor < 0;
        UInt128 rest = (UInt128)(isNegative ? -minor : minor);
        int fractionDigits = (decimals + 3) / 4;
        for (int pad = fractionDigits * 4 - decimals; pad > 0; pad--) rest *= 10;
        Span<short> digits = stackalloc short[16];
        int count = 0;
        for (; rest != 0; rest /= 10_000) digits[count++] = (short)(rest % 10_000);
        int weight = count - fractionDigits - 1;
        int skip = 0;
        while (skip < count && digits[skip] == 0) skip++;
        Span<byte> value = Value(8 + 2 * (count - skip));
        BinaryPrimitives.WriteInt16BigEndian(value, (short)(count - skip));
        BinaryPrimitives.WriteInt16BigEndian(value[2..], (short)(count == 0 ? 0 : weight));
        BinaryPrimitives.WriteUInt16BigEndian(value[4..], isNegative ? (ushort)0x4000 : (ushort)0);
        BinaryPrimitives.WriteInt16BigEndian(value[6..], (short)decimals);
        for (int i = count - 1, at = 8; i >= skip; i--, at += 2) BinaryPrimitives.WriteInt16BigEndian(value[at..], digits[i]);
    }

    public void Send(NpgsqlConnection connection, string table)
    {
        BinaryPrimitives.WriteInt16BigEndian(Take(2), -1);
        using NpgsqlRawCopyStream stream = connection.BeginRawBinaryCopy($"copy {table} from stdin (format binary)");
        stream.Write(_bytes.AsSpan(0, _length));
    }

    Span<byte> Value(int length)
    {
        BinaryPrimitives.WriteInt32BigEndian(Take(4), length);
        return Take(length);
    }

    Span<byte> Take(int length)
    {
        if (_bytes.Length - _length < length) Array.Resize(ref _bytes, Math.Max(_bytes.Length * 2, _length + length));
        Span<byte> taken = _bytes.AsSpan(_length, length);
        _length += length;
        return taken;
    }
}
