using System.Runtime.InteropServices;

namespace Purse.Partitions;

/// <summary>The priority of a thread among all others of the machine; .NET's own has no effect on Linux.</summary>
public static partial class Niceness
{
    /// <summary>
    /// A third of what a thread gets that is not nice: enough to keep up with what must not pile up. Not less, whatever can wait: a collection stops all threads, and waits for
    /// each of them to get its turn. With the highest niceness, beside processes that take all the processors, that was up to a second.
    /// </summary>
    const int Modest = 5;

    /// <summary>Of this thread, which must be one of its own.</summary>
    public static void BeModest()
    {
        if (OperatingSystem.IsLinux()) _ = SetPriority(0, GetThreadId(), Modest);
    }

    [LibraryImport("libc", EntryPoint = "setpriority")]
    private static partial int SetPriority(int which, int who, int priority);

    [LibraryImport("libc", EntryPoint = "gettid")]
    private static partial int GetThreadId();
}
