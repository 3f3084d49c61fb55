using System.Runtime.InteropServices;

namespace Purse.Ledger;

/// <summary>
/// A list that grows by chunks: nothing ever moves, so growing copies nothing, and other threads may read elements that were
/// published to them (by a flushed sequence) while the one writer appends.
/// </summary>
public sealed class Chunked<T>
    where T : unmanaged
{
    const int ChunkBits = 14;
    const int ChunkLength = 1 << ChunkBits;

    T[][] _chunks = [];
    int _count;

    public int Count => _count;

    public ref T this[int index] => ref _chunks[index >> ChunkBits][index & (ChunkLength - 1)];

    public ref T Add()
    {
        int chunk = _count >> ChunkBits;
        if (chunk == _chunks.Length)
        {
            // Doubling an array of pointers; the chunks themselves stay where they are.
            T[][] chunks = new T[Math.Max(4, chunk * 2)][];
            _chunks.CopyTo(chunks, 0);
            Volatile.Write(ref _chunks, chunks);
        }

        _chunks[chunk] ??= new T[ChunkLength];
        return ref this[_count++];
    }

    public void Write(Stream stream)
    {
        for (int at = 0; at < _count; at += ChunkLength)
            stream.Write(MemoryMarshal.AsBytes(_chunks[at >> ChunkBits].AsSpan(0, Math.Min(ChunkLength, _count - at))));
    }

    public void Read(Stream stream, int count)
    {
        Check.That(_count == 0, "a snapshot is read into an empty list");
        while (_count < count)
        {
            Add();
            int length = Math.Min(ChunkLength, count - _count + 1);
            stream.ReadExactly(MemoryMarshal.AsBytes(_chunks[(_count - 1) >> ChunkBits].AsSpan(0, length)));
            _count += length - 1;
        }
    }
}
