using System.Runtime.InteropServices;

namespace Purse.Partitions;

/// <summary>The priority of a thread among all others of the machine; .NET's own has no effect on Linux.</summary>
public static partial class Niceness
{
    /// <summary>Takes what all others leave.</summary>
    public const int Least = 19;

    /// <summary>A third of what a thread gets that is not nice: enough to keep up with what must not pile up.</summary>
    public const int Modest = 5;

    /// <summary>Of this thread, which must be one of its own.</summary>
    public static void Set(int niceness)
    {
        if (!OperatingSystem.IsLinux()) return;
        // An idle thread gives way at once to any other that wakes; the highest niceness alone would finish its turn first.
        int priority = 0;
        if (niceness < Least || SetScheduler(0, PolicyIdle, in priority) != 0) _ = SetPriority(0, GetThreadId(), niceness);
    }

    const int PolicyIdle = 5; // SCHED_IDLE

    [LibraryImport("libc", EntryPoint = "sched_setscheduler")]
    private static partial int SetScheduler(int who, int policy, in int parameter);

    [LibraryImport("libc", EntryPoint = "setpriority")]
    private static partial int SetPriority(int which, int who, int priority);

    [LibraryImport("libc", EntryPoint = "gettid")]
    private static partial int GetThreadId();
}
