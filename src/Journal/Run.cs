using System.IO.Hashing;
using System.Runtime.InteropServices;

namespace Purse.Journal;

/// <summary>What a run says of itself; the last bytes of its file.</summary>
[StructLayout(LayoutKind.Explicit, Size = SizeBytes, Pack = 8)]
public struct RunHeader
{
    public const int SizeBytes = 128;
    public const ulong MagicNumber = 0x4e55524553525550; // "PURSERUN"

    [FieldOffset(0)] public ulong Magic;
    [FieldOffset(8)] public uint FormatVersion;
    [FieldOffset(12)] public uint Partition;

    /// <summary>It has all entries of the events after this one, up to and with <see cref="To"/>.</summary>
    [FieldOffset(16)] public ulong From;
    [FieldOffset(24)] public ulong To;

    /// <summary>Of the hashes in it.</summary>
    [FieldOffset(32)] public long Seed;
    [FieldOffset(40)] public long EntriesCount;
    [FieldOffset(48)] public uint EntryWords;

    /// <summary>How often its entries were merged.</summary>
    [FieldOffset(52)] public uint Level;
    [FieldOffset(56)] public uint HasFilter;

    /// <summary>Over the pages' first words and the filter; each page has a checksum of its own.</summary>
    [FieldOffset(64)] public ulong IndexChecksum;
    [FieldOffset(120)] public ulong Checksum;

    public static ulong ComputeChecksum(in RunHeader header) => XxHash3.HashToUInt64(MemoryMarshal.AsBytes(new ReadOnlySpan<RunHeader>(in header))[..120]);
}

/// <summary>A run is not what was written. It is made again from the journal; until then nothing may be answered from it.</summary>
public sealed class RunDamagedException(string message, string name) : IOException(message)
{
    public string Name { get; } = name;
}

/// <summary>
/// An immutable file of sorted entries of a few words each: pages of 4 KiB, each with its checksum, then each page's first word, a filter, and the
/// header. In memory it costs the first words and the filter; a look at an entry reads one page.
/// </summary>
public sealed class Run
{
    public const int PageBytes = 4096;
    public const int PageWords = PageBytes / sizeof(ulong);

    readonly IDiskFile _file;
    readonly ulong[] _firstWords;
    int _users = 1;

    Run(string name, in RunHeader header, IDiskFile file, ulong[] firstWords, RunFilter? filter)
    {
        (Name, Header, _file, _firstWords, Filter) = (name, header, file, firstWords, filter);
        EntriesPerPage = EntriesPerPageOf((int)header.EntryWords);
    }

    public string Name { get; }

    public RunHeader Header { get; }

    public RunFilter? Filter { get; }

    public int EntriesPerPage { get; }

    public int PagesCount => _firstWords.Length;

    public long MemoryBytes => _firstWords.Length * sizeof(ulong) + (Filter?.SizeBytes ?? 0);

    public static int EntriesPerPageOf(int entryWords) => (PageWords - 1) / entryWords;

    /// <summary>Null where the file is not whole, or another one's.</summary>
    /// <exception cref="IOException">The disk could not be read: that says nothing about the file.</exception>
    public static Run? TryOpen(IDisk disk, string name, int partition, int entryWords)
    {
        IDiskFile file = disk.Open(name, writable: false);
        try
        {
            if (TryRead(file, partition, entryWords, out RunHeader header, out ulong[] firstWords, out RunFilter? filter))
            {
                Run run = new(name, header, file, firstWords, filter);
                file = null!;
                return run;
            }

            return null;
        }
        finally
        {
            file?.Dispose();
        }
    }

    static bool TryRead(IDiskFile file, int partition, int entryWords, out RunHeader header, out ulong[] firstWords, out RunFilter? filter)
    {
        (header, firstWords, filter) = (default, [], null);
        long length = file.Length;
        Span<byte> bytes = stackalloc byte[RunHeader.SizeBytes];
        if (length < bytes.Length || file.Read(bytes, length - bytes.Length) < bytes.Length) return false;
        header = MemoryMarshal.Read<RunHeader>(bytes);
        if (header.Magic != RunHeader.MagicNumber || header.Checksum != RunHeader.ComputeChecksum(header) || header.FormatVersion != 0) return false;
        if (header.Partition != (uint)partition || header.EntryWords != (uint)entryWords) return false;

        int entriesPerPage = EntriesPerPageOf(entryWords);
        long pages = (header.EntriesCount + entriesPerPage - 1) / entriesPerPage, filterBytes = header.HasFilter != 0 ? RunFilter.SizeBytesOf(header.EntriesCount) : 0;
        if (length != pages * (PageBytes + sizeof(ulong)) + filterBytes + RunHeader.SizeBytes) return false;
        firstWords = new ulong[pages];
        XxHash3 hash = new();
        long offset = pages * PageBytes;
        Span<byte> all = MemoryMarshal.AsBytes(firstWords.AsSpan());
        if (!TryFill(file, all, offset, hash)) return false;
        offset += all.Length;
        if (header.HasFilter != 0) filter = new RunFilter(header.EntriesCount);
        for (long at = 0; at < filterBytes;)
        {
            Span<byte> piece = filter!.Bytes(at, (int)Math.Min(1024 * 1024, filterBytes - at));
            if (!TryFill(file, piece, offset + at, hash)) return false;
            at += piece.Length;
        }

        return hash.GetCurrentHashAsUInt64() == header.IndexChecksum;
    }

    static bool TryFill(IDiskFile file, Span<byte> target, long offset, XxHash3 hash)
    {
        if (file.Read(target, offset) < target.Length) return false;
        hash.Append(target);
        return true;
    }

    /// <summary>The first page that may have an entry with this first word, or a greater one.</summary>
    public int FirstPage(ulong word)
    {
        int low = 0, high = _firstWords.Length;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (_firstWords[middle] < word) low = middle + 1;
            else high = middle;
        }

        return Math.Max(0, low - 1);
    }

    /// <summary>The last page that may have an entry with this first word, or a lesser one; -1 where there is none.</summary>
    public int LastPage(ulong word)
    {
        int low = 0, high = _firstWords.Length;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (_firstWords[middle] <= word) low = middle + 1;
            else high = middle;
        }

        return low - 1;
    }

    /// <summary>Whether a page may have an entry whose first word is at most this.</summary>
    public bool MayHaveUpTo(int page, ulong word) => page < _firstWords.Length && _firstWords[page] <= word;

    public int EntriesCount(int page) => (int)Math.Min(EntriesPerPage, Header.EntriesCount - (long)page * EntriesPerPage);

    /// <summary>Reads one page; its entries lie end to end. Only between <see cref="TryEnter"/> and <see cref="Leave"/>.</summary>
    public void Read(int page, Span<ulong> target)
    {
        Span<byte> bytes = MemoryMarshal.AsBytes(target[..PageWords]);
        if (_file.Read(bytes, (long)page * PageBytes) < PageBytes || !IsWhole(page, bytes)) throw Damaged(page);
    }

    /// <summary>Reads pages that lie side by side.</summary>
    public void Read(int page, int count, Span<ulong> target)
    {
        Span<byte> bytes = MemoryMarshal.AsBytes(target[..(count * PageWords)]);
        if (_file.Read(bytes, (long)page * PageBytes) < bytes.Length) throw Damaged(page);
        for (int i = 0; i < count; i++)
        {
            if (!IsWhole(page + i, bytes.Slice(i * PageBytes, PageBytes))) throw Damaged(page + i);
        }
    }

    /// <summary>The page's number is part of it: one that lies where another belongs is no page.</summary>
    internal static ulong ChecksumOf(int page, ReadOnlySpan<byte> bytes) => XxHash3.HashToUInt64(bytes[..(PageBytes - sizeof(ulong))], page);

    static bool IsWhole(int page, ReadOnlySpan<byte> bytes) => MemoryMarshal.Read<ulong>(bytes[(PageBytes - sizeof(ulong))..]) == ChecksumOf(page, bytes) || Injected.Is(JournalDefect.RunPageBelieved);

    RunDamagedException Damaged(int page) => new($"Page {page} of {Name} is not what was written.", Name);

    /// <summary>False where the run was merged into another since: that one is to be looked at.</summary>
    public bool TryEnter()
    {
        for (int users = Volatile.Read(ref _users); users > 0;)
        {
            int seen = Interlocked.CompareExchange(ref _users, users + 1, users);
            if (seen == users) return true;
            users = seen;
        }

        return false;
    }

    /// <summary>Whoever leaves last closes the file.</summary>
    public void Leave()
    {
        if (Interlocked.Decrement(ref _users) > 0) return;
        _file.Dispose();
        Closed?.Invoke(this);
    }

    /// <summary>Called once, when nobody reads it any more.</summary>
    internal Action<Run>? Closed { get; set; }
}
