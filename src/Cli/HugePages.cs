using System.Globalization;
using System.Runtime.InteropServices;

namespace Purse.Cli;

/// <summary>
/// Accounts by the million are looked up all over the heap, and with pages of 4 KiB most of the time goes into finding out where these are. Where the system gives
/// huge pages to whoever asks (<c>madvise</c>, the usual setting), this asks for the collector's heap, once, before it is large.
/// </summary>
static partial class HugePages
{
    const int Advice = 14; // MADV_HUGEPAGE

    /// <summary>Where it cannot be had, everything works as it does without.</summary>
    public static unsafe void Advise()
    {
        if (!OperatingSystem.IsLinux()) return;
        ulong inHeap;
        fixed (byte* bytes = GC.AllocateUninitializedArray<byte>(100_000)) inHeap = (ulong)bytes;
        try
        {
            (ulong from, ulong to) = MappedAround(inHeap, File.ReadLines("/proc/self/maps"));
            if (to > from) _ = Madvise((nint)from, (nint)(to - from), Advice);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or EntryPointNotFoundException)
        {
            // No such system.
        }
    }

    /// <summary>The anonymous memory around an address, from the first page of it to the last: what is reserved and what is in use are mapped apart.</summary>
    /// <param name="maps">Lines as proc(5) has them: <c>FROM-TO rwxp OFFSET DEVICE INODE PATH</c>, the last of which anonymous memory has only where somebody named it.</param>
    internal static (ulong From, ulong To) MappedAround(ulong address, IEnumerable<string> maps)
    {
        ulong from = 0, to = 0;
        foreach (string line in maps)
        {
            string[] fields = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
            string[] range = fields[0].Split('-');
            ulong begin = ulong.Parse(range[0], NumberStyles.HexNumber, CultureInfo.InvariantCulture), end = ulong.Parse(range[1], NumberStyles.HexNumber, CultureInfo.InvariantCulture);
            bool isAnonymous = fields[4] == "0" && (fields.Length == 5 || fields[5].StartsWith("[anon", StringComparison.Ordinal));
            if (!isAnonymous || begin != to)
            {
                if (address >= from && address < to) break;
                (from, to) = isAnonymous ? (begin, end) : (0, 0);
            }
            else
            {
                to = end;
            }
        }

        return address >= from && address < to ? (from, to) : (0, 0);
    }

    [LibraryImport("libc", EntryPoint = "madvise")]
    private static partial int Madvise(nint address, nint length, int advice);
}
