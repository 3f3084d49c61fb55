using System.IO.Hashing;
using System.Runtime.InteropServices;

namespace Purse.Journal;

/// <summary>
/// What a snapshot says of itself: the state after this sequence, which is the last of this block. It is used only where the journal
/// has that block with that hash.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = SizeBytes, Pack = 8)]
public struct SnapshotHeader
{
    public const int SizeBytes = 128;
    public const ulong MagicNumber = 0x504e534553525550; // "PURSESNP"

    [FieldOffset(0)] public ulong Magic;
    [FieldOffset(8)] public uint FormatVersion;
    [FieldOffset(12)] public uint Partition;
    [FieldOffset(16)] public ulong Sequence;
    [FieldOffset(24)] public ulong BlockNumber;
    [FieldOffset(32)] public Hash256 BlockHash;
    [FieldOffset(64)] public ulong StateSizeBytes;

    /// <summary>Where the last snapshot before it ends that was compared with a replay of the journal; 0 for none.</summary>
    [FieldOffset(72)] public ulong AuditedSequence;
}

/// <summary>
/// Immutable files, each a whole state; an optimisation, all of which can be deleted. A file is complete or does not exist: written under
/// another name, flushed, renamed. Header, state and the XxHash3-64 of both.
/// </summary>
/// <param name="cancellation">Ends whatever goes through a whole state, which may be long.</param>
public sealed class Snapshots(IDisk disk, int partition, CancellationToken cancellation = default)
{
    public const string Folder = "snapshots";

    public int Partition => partition;

    const int Kept = 2;

    /// <summary>Of the one that ends there.</summary>
    public static string NameOf(ulong sequence) => $"{Folder}/{sequence:D20}.snapshot";

    /// <param name="audited">Where the last one ends that was compared with a replay; it is not deleted, however old it is.</param>
    /// <param name="auditing">And the one that is being compared.</param>
    public void Write(ulong sequence, ulong blockNumber, Hash256 blockHash, Action<Stream> writeState, ulong audited = 0, ulong auditing = 0)
    {
        string name = NameOf(sequence), temporary = $"{Folder}/writing";
        try
        {
            using (IDiskFile file = disk.Open(temporary, writable: true, create: true))
            {
                SnapshotHeader header = new()
                {
                    Magic = SnapshotHeader.MagicNumber,
                    Partition = (uint)partition,
                    Sequence = sequence,
                    BlockNumber = blockNumber,
                    BlockHash = blockHash,
                    AuditedSequence = audited,
                };
                // The length is known at the end, so the checksum is computed over state first, header last.
                using HashingStream stream = new(file, SnapshotHeader.SizeBytes, 0, cancellation);
                writeState(stream);
                stream.Flush();
                header.StateSizeBytes = (ulong)stream.Position;
                ReadOnlySpan<byte> headerBytes = MemoryMarshal.AsBytes(new ReadOnlySpan<SnapshotHeader>(in header));
                file.Write(headerBytes, 0);
                stream.Hash.Append(headerBytes);
                ulong checksum = stream.Hash.GetCurrentHashAsUInt64();
                file.Write(MemoryMarshal.AsBytes(new ReadOnlySpan<ulong>(in checksum)), SnapshotHeader.SizeBytes + stream.Position);
                file.Flush();
            }

            disk.Rename(temporary, name);
            disk.FlushNames(Folder);
        }
        catch
        {
            try
            {
                disk.Delete(temporary);
            }
            catch (IOException)
            {
                // The next attempt writes over it.
            }

            throw;
        }

        HashSet<string> kept = [.. List().TakeLast(Kept), NameOf(audited), NameOf(auditing)];
        foreach (string old in List().Where(old => !kept.Contains(old))) disk.Delete(old);
    }

    /// <summary>The XxHash3-64 of a state's written form.</summary>
    public ulong HashOf(Action<Stream> writeState)
    {
        using HashingStream stream = new(null, 0, 0, cancellation);
        writeState(stream);
        stream.Flush();
        return stream.Hash.GetCurrentHashAsUInt64();
    }

    /// <summary>All that speak of more than this.</summary>
    public void DeleteAfter(ulong sequence)
    {
        foreach (string name in List().Where(name => string.CompareOrdinal(name, NameOf(sequence)) > 0)) disk.Delete(name);
    }

    /// <summary>Oldest first.</summary>
    public IEnumerable<string> List() => disk.List(Folder).Where(n => n.EndsWith(".snapshot", StringComparison.Ordinal));

    /// <summary>Its header, where the file is whole.</summary>
    public bool TryReadHeader(string name, out SnapshotHeader header)
    {
        header = default;
        using IDiskFile file = disk.Open(name, writable: false);
        Span<byte> bytes = stackalloc byte[SnapshotHeader.SizeBytes];
        if (file.Read(bytes, 0) < bytes.Length) return false;
        header = MemoryMarshal.Read<SnapshotHeader>(bytes);
        if (header.Magic != SnapshotHeader.MagicNumber || header.Partition != (uint)partition || header.FormatVersion != 0) return false;
        if (header.StateSizeBytes > (ulong)file.Length || file.Length < SnapshotHeader.SizeBytes + (long)header.StateSizeBytes + 8) return false;

        XxHash3 hash = new();
        byte[] buffer = new byte[1024 * 1024];
        long end = SnapshotHeader.SizeBytes + (long)header.StateSizeBytes;
        for (long offset = SnapshotHeader.SizeBytes; offset < end;)
        {
            int read = file.Read(buffer.AsSpan(0, (int)Math.Min(buffer.Length, end - offset)), offset);
            if (read == 0) return false;
            cancellation.ThrowIfCancellationRequested();
            hash.Append(buffer.AsSpan(0, read));
            offset += read;
        }

        hash.Append(bytes);
        Span<byte> written = stackalloc byte[8];
        return file.Read(written, end) == 8 && hash.GetCurrentHashAsUInt64() == MemoryMarshal.Read<ulong>(written);
    }

    /// <summary>The state of a snapshot whose header was read.</summary>
    public void Read(string name, in SnapshotHeader header, Action<Stream> readState)
    {
        using IDiskFile file = disk.Open(name, writable: false);
        using HashingStream stream = new(file, SnapshotHeader.SizeBytes, (long)header.StateSizeBytes, cancellation);
        readState(stream);
    }

    /// <summary>Buffers, counts and hashes between a state and its file.</summary>
    /// <param name="file">Null where only the hash is wanted.</param>
    sealed class HashingStream(IDiskFile? file, long offset, long length, CancellationToken cancellation) : Stream
    {
        readonly byte[] _buffer = new byte[1024 * 1024];
        int _used;
        int _read;
        long _position;
        long _flushed;

        public XxHash3 Hash { get; } = new();

        public override bool CanRead => true;

        public override bool CanSeek => false;

        public override bool CanWrite => true;

        public override long Length => length;

        public override long Position
        {
            get => _position;
            set => throw new NotSupportedException();
        }

        public override void Write(ReadOnlySpan<byte> bytes)
        {
            while (bytes.Length > 0)
            {
                int n = Math.Min(bytes.Length, _buffer.Length - _used);
                bytes[..n].CopyTo(_buffer.AsSpan(_used));
                _used += n;
                bytes = bytes[n..];
                if (_used == _buffer.Length) Flush();
            }
        }

        public override void Flush()
        {
            cancellation.ThrowIfCancellationRequested();
            file?.Write(_buffer.AsSpan(0, _used), offset + _position);
            Hash.Append(_buffer.AsSpan(0, _used));
            _position += _used;
            _used = 0;
            if (file is null || _position - _flushed < RunWriter.FlushBytes) return;
            file.Flush();
            _flushed = _position;
        }

        public override int Read(Span<byte> target)
        {
            if (_read == _used)
            {
                cancellation.ThrowIfCancellationRequested();
                _used = file!.Read(_buffer.AsSpan(0, (int)Math.Min(_buffer.Length, length - _position)), offset + _position);
                _position += _used;
                _read = 0;
            }

            int n = Math.Min(target.Length, _used - _read);
            _buffer.AsSpan(_read, n).CopyTo(target);
            _read += n;
            return n;
        }

        public override void Write(byte[] buffer, int start, int count) => Write(buffer.AsSpan(start, count));

        public override int Read(byte[] buffer, int start, int count) => Read(buffer.AsSpan(start, count));

        public override long Seek(long to, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();
    }
}
