using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;

namespace Purse.Ledger;

/// <summary>
/// A list that grows by chunks: nothing ever moves, so growing copies nothing, and other threads may read elements that were
/// published to them (by a flushed sequence) while the one writer appends. One other thread may write down an <see cref="Image"/> of it meanwhile.
/// </summary>
public sealed class Chunked<T>
    where T : unmanaged
{
    const int ChunkBits = 14;
    const int ChunkLength = 1 << ChunkBits;

    T[][] _chunks = [];
    int _count;
    volatile Image? _image;

    // What the last image put aside lay here; the next one's does. As garbage it would be the collector's largest.
    Image.Aside[][] _spare = [];

    public int Count => _count;

    public ref readonly T this[int index] => ref _chunks[index >> ChunkBits][index & (ChunkLength - 1)];

    /// <summary>An element to be changed; one that is only looked at is had without this.</summary>
    public ref T Edit(int index)
    {
        T[] chunk = _chunks[index >> ChunkBits];
        _image?.Keep(index, chunk);
        return ref chunk[index & (ChunkLength - 1)];
    }

    /// <summary>Has an element brought near, so that a later look does not wait for it.</summary>
    public unsafe void Prefetch(int index)
    {
        if (!Sse.IsSupported) return;
        // An address that the collector moves away meanwhile is only of no use.
        byte* element = (byte*)Unsafe.AsPointer(ref _chunks[index >> ChunkBits][index & (ChunkLength - 1)]);
        Sse.Prefetch0(element);
        if (sizeof(T) > 32) Sse.Prefetch0(element + sizeof(T) - 1);
    }

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
        return ref _chunks[chunk][_count++ & (ChunkLength - 1)];
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

    /// <summary>What the list has now, to be written down.</summary>
    /// <param name="whileItChanges">Another thread will, and the owner goes on: one such at a time.</param>
    public Image BeginImage(bool whileItChanges)
    {
        Image image = new(this, whileItChanges);
        if (!whileItChanges) return image;
        Check.That(_image is null, "one image of a list is made at a time");
        return _image = image;
    }

    /// <summary>
    /// The list as it was at one moment. Its owner puts an element aside before it changes it for the first time since, unless it was written down
    /// already: one after the other, so that an image takes the memory of what is changed meanwhile, wherever in the list that is.
    /// </summary>
    public sealed class Image : IDisposable
    {
        const int AsideBits = 12;
        const int AsideLength = 1 << AsideBits;

        readonly Chunked<T> _list;
        readonly T[][] _chunks;
        readonly int _count;

        // A bit for each element that was put aside; the owner's own.
        readonly ulong[] _isAside;

        // Of each chunk, the last one that was put aside of it, counted from 1; 0 for none.
        readonly int[] _last;
        Aside[][] _aside;
        int _asideCount;
        int _writtenCount;

        /// <summary>An element as it was, where in its chunk, and which was put aside of that chunk before.</summary>
        internal struct Aside
        {
            public int At;
            public int Before;
            public T Element;
        }

        internal Image(Chunked<T> list, bool whileItChanges)
        {
            (_list, _chunks, _count) = (list, list._chunks, list._count);
            _isAside = whileItChanges ? new ulong[(_count + 63) / 64] : [];
            _last = new int[(_count + ChunkLength - 1) >> ChunkBits];
            _aside = whileItChanges ? list._spare : [];
        }

        public int Count => _count;

        /// <summary>By the list's owner, before the element changes.</summary>
        internal void Keep(int index, T[] chunk)
        {
            if (index >= _count || index < Volatile.Read(ref _writtenCount) || Injected.Is(LedgerDefect.ImageNotKept)) return;
            ref ulong isAside = ref _isAside[index / 64];
            ulong bit = 1UL << (index & 63);
            if ((isAside & bit) != 0) return;
            isAside |= bit;
            if (_asideCount == _aside.Length << AsideBits) _aside = [.. _aside, GC.AllocateUninitializedArray<Aside>(AsideLength)];
            ref Aside aside = ref _aside[_asideCount >> AsideBits][_asideCount & (AsideLength - 1)];
            _asideCount++;
            ref int last = ref _last[index >> ChunkBits];
            (aside.At, aside.Before, aside.Element) = (index & (ChunkLength - 1), last, chunk[index & (ChunkLength - 1)]);
            // A full barrier: whoever sees the change sees the old element, too.
            Interlocked.Exchange(ref last, _asideCount);
        }

        public void Write(Stream stream)
        {
            T[] elements = GC.AllocateUninitializedArray<T>(ChunkLength);
            for (int at = 0; at < _count; at += ChunkLength)
            {
                int length = Math.Min(ChunkLength, _count - at);
                _chunks[at >> ChunkBits].AsSpan(0, length).CopyTo(elements);
                // What changed before or under the copy was put aside before it changed, and so is seen from here.
                Interlocked.MemoryBarrier();
                int last = Volatile.Read(ref _last[at >> ChunkBits]);
                Aside[][] asides = Volatile.Read(ref _aside);
                while (last > 0)
                {
                    ref readonly Aside aside = ref asides[(last - 1) >> AsideBits][(last - 1) & (AsideLength - 1)];
                    elements[aside.At] = aside.Element;
                    last = aside.Before;
                }

                Volatile.Write(ref _writtenCount, at + length);
                stream.Write(MemoryMarshal.AsBytes(elements.AsSpan(0, length)));
            }
        }

        public void Dispose()
        {
            if (_list._image != this) return;
            // No more than this one needed: what was large once is not kept for ever. Where it was not written to its end, its owner may be putting more aside just now.
            Aside[][] aside = Volatile.Read(ref _aside);
            _list._spare = aside[..Math.Min(aside.Length, (_asideCount + AsideLength - 1) >> AsideBits)];
            _list._image = null;
        }
    }
}
