using System.IO.Hashing;
using System.Runtime.InteropServices;

namespace Purse.Journal;

/// <summary>
/// Writes one run, from its first entry to its last, in pieces of 1 MiB. A file is whole or does not exist: written under another name, flushed, renamed.
/// </summary>
sealed class RunWriter : IDisposable
{
    const int PieceBytes = 1024 * 1024;

    /// <summary>What is written beside a journal is made durable as often, so that the journal's own flushes never wait for all of it.</summary>
    public const long FlushBytes = 4 * 1024 * 1024;

    readonly IDisk _disk;
    readonly string _temporary;
    readonly IDiskFile _file;
    readonly int _entryWords;
    readonly int _entriesPerPage;
    readonly long _entriesCount;
    readonly ulong[] _firstWords;
    readonly RunFilter? _filter;
    readonly byte[] _piece;
    int _pieceUsed;
    long _written;
    long _flushed;
    readonly ulong[] _page = new ulong[Run.PageWords];
    int _pageEntries;
    int _pages;
    long _entries;
    bool _isFinished;

    public RunWriter(IDisk disk, string temporary, int entryWords, long entriesCount, bool hasFilter)
    {
        (_disk, _temporary, _entryWords, _entriesCount) = (disk, temporary, entryWords, entriesCount);
        _entriesPerPage = Run.EntriesPerPageOf(entryWords);
        _firstWords = new ulong[(entriesCount + _entriesPerPage - 1) / _entriesPerPage];
        _filter = hasFilter ? new RunFilter(entriesCount) : null;
        // A small run needs no more than it has.
        _piece = new byte[Math.Min(PieceBytes, (long)_firstWords.Length * (Run.PageBytes + sizeof(ulong)) + (_filter?.SizeBytes ?? 0) + RunHeader.SizeBytes)];
        _file = disk.Open(temporary, writable: true, create: true);
    }

    /// <summary>The next entry in order.</summary>
    public void Add(ReadOnlySpan<ulong> entry)
    {
        if (_pageEntries == 0) _firstWords[_pages] = entry[0];
        entry.CopyTo(_page.AsSpan(_pageEntries * _entryWords));
        _filter?.Add(entry[0] >> 16);
        _entries++;
        if (++_pageEntries == _entriesPerPage) EndPage();
    }

    void EndPage()
    {
        _page.AsSpan(_pageEntries * _entryWords).Clear();
        Span<byte> bytes = MemoryMarshal.AsBytes(_page.AsSpan());
        _page[^1] = Run.ChecksumOf(_pages++, bytes);
        _pageEntries = 0;
        Write(bytes);
    }

    /// <summary>The file gets its name; it is there for good.</summary>
    public void Finish(string name, RunHeader header)
    {
        if (_pageEntries > 0) EndPage();
        if (_entries != _entriesCount) throw new InvalidOperationException($"{_entriesCount} entries were announced, {_entries} came.");
        XxHash3 hash = new();
        ReadOnlySpan<byte> firstWords = MemoryMarshal.AsBytes(_firstWords.AsSpan());
        hash.Append(firstWords);
        Write(firstWords);
        for (long at = 0; at < (_filter?.SizeBytes ?? 0);)
        {
            ReadOnlySpan<byte> piece = _filter!.Bytes(at, (int)Math.Min(PieceBytes, _filter.SizeBytes - at));
            hash.Append(piece);
            Write(piece);
            at += piece.Length;
        }

        (header.Magic, header.EntriesCount, header.EntryWords, header.HasFilter) = (RunHeader.MagicNumber, _entriesCount, (uint)_entryWords, _filter is null ? 0u : 1u);
        header.IndexChecksum = hash.GetCurrentHashAsUInt64();
        header.Checksum = RunHeader.ComputeChecksum(header);
        Write(MemoryMarshal.AsBytes(new ReadOnlySpan<RunHeader>(in header)));
        WritePiece();
        _file.Flush();
        _disk.Rename(_temporary, name);
        _isFinished = true;
        _disk.FlushNames(name[..name.LastIndexOf('/')]);
    }

    void Write(ReadOnlySpan<byte> bytes)
    {
        while (bytes.Length > 0)
        {
            int length = Math.Min(bytes.Length, _piece.Length - _pieceUsed);
            bytes[..length].CopyTo(_piece.AsSpan(_pieceUsed));
            _pieceUsed += length;
            bytes = bytes[length..];
            if (_pieceUsed == _piece.Length) WritePiece();
        }
    }

    void WritePiece()
    {
        if (_pieceUsed == 0) return;
        _file.Write(_piece.AsSpan(0, _pieceUsed), _written);
        _written += _pieceUsed;
        _pieceUsed = 0;
        if (_written - _flushed < FlushBytes) return;
        _file.Flush();
        _flushed = _written;
    }

    /// <summary>What was not finished is not left behind: where the disk is full, it may be what fills it.</summary>
    public void Dispose()
    {
        _file.Dispose();
        if (_isFinished) return;
        try
        {
            _disk.Delete(_temporary);
        }
        catch (IOException)
        {
            // Whoever opens the runs next deletes it.
        }
    }
}
