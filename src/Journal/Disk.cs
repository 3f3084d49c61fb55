using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace Purse.Journal;

/// <summary>
/// One partition's folder. <see cref="FileDisk"/> is a real one; tests and simulation have one that fails on command. Names are relative,
/// with <c>/</c>.
/// </summary>
/// <remarks>
/// Writes may be torn and lost until <see cref="IDiskFile.Flush"/> returns; after it, they stay. A created, renamed or deleted name stays
/// after <see cref="FlushNames"/>. All failures are <see cref="IOException"/>; a full disk is <see cref="DiskFullException"/>.
/// </remarks>
public interface IDisk
{
    /// <summary>The names in a folder, sorted; none where the folder is missing.</summary>
    IReadOnlyList<string> List(string folder);

    IDiskFile Open(string name, bool writable, bool create = false);

    void Rename(string from, string to);

    void Delete(string name);

    void FlushNames(string folder);
}

public interface IDiskFile : IDisposable
{
    long Length { get; }

    /// <summary>Fills as much of the buffer as the file has; returns how much that was.</summary>
    int Read(Span<byte> buffer, long offset);

    void Write(ReadOnlySpan<byte> bytes, long offset);

    /// <summary>All of it will be read soon.</summary>
    void ReadAhead()
    {
    }

    /// <summary>Writes zeros, at multiples of <see cref="FileJournal.AlignmentBytes"/>.</summary>
    void WriteZeros(long offset, int length) => Write(new byte[length], offset);

    void Flush();
}

public sealed class DiskFullException(string message, Exception? inner = null) : IOException(message, inner);

public sealed partial class FileDisk(string root) : IDisk
{
    public string Root { get; } = Path.GetFullPath(root);

    public IReadOnlyList<string> List(string folder)
    {
        string path = Path.Combine(Root, folder);
        if (!Directory.Exists(path)) return [];
        return [.. Directory.EnumerateFiles(path).Select(f => folder.Length == 0 ? Path.GetFileName(f) : $"{folder}/{Path.GetFileName(f)}").Order(StringComparer.Ordinal)];
    }

    public IDiskFile Open(string name, bool writable, bool create = false)
    {
        string path = Path.Combine(Root, name);
        if (create) CreateFolder(Path.GetDirectoryName(path)!);
        return new RealFile(path, File.OpenHandle(
            path, create ? FileMode.OpenOrCreate : FileMode.Open, writable ? FileAccess.ReadWrite : FileAccess.Read, FileShare.ReadWrite | FileShare.Delete));
    }

    /// <summary>A new folder is durable in its parent before anything is put in it.</summary>
    static void CreateFolder(string path)
    {
        if (Directory.Exists(path)) return;
        string parent = Path.GetDirectoryName(path)!;
        CreateFolder(parent);
        Directory.CreateDirectory(path);
        FlushFolder(parent);
    }

    public void Rename(string from, string to)
    {
        string target = Path.Combine(Root, to);
        CreateFolder(Path.GetDirectoryName(target)!);
        File.Move(Path.Combine(Root, from), target, overwrite: true);
    }

    public void Delete(string name) => File.Delete(Path.Combine(Root, name));

    public void FlushNames(string folder) => FlushFolder(Path.Combine(Root, folder));

    static void FlushFolder(string path)
    {
        // The runtime opens no folders: this is what makes a name durable on Linux.
        int descriptor = Open(path, 0);
        if (descriptor < 0) throw new IOException($"Cannot open {path}: {Marshal.GetLastPInvokeErrorMessage()}.");
        int result = Fsync(descriptor);
        string error = Marshal.GetLastPInvokeErrorMessage();
        _ = Close(descriptor);
        if (result != 0) throw new IOException($"Cannot flush {path}: {error}.");
    }

    [LibraryImport("libc", EntryPoint = "open", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Open(string path, int flags);

    [LibraryImport("libc", EntryPoint = "fsync", SetLastError = true)]
    private static partial int Fsync(int descriptor);

    [LibraryImport("libc", EntryPoint = "close", SetLastError = true)]
    private static partial int Close(int descriptor);

    // The runtime's own flush is fsync, which also writes the modification time: on preallocated segments that is a needless commit of
    // the file system's journal.
    [LibraryImport("libc", EntryPoint = "fdatasync", SetLastError = true)]
    private static partial int Fdatasync(SafeFileHandle file);

    [LibraryImport("libc", EntryPoint = "posix_fadvise")]
    private static partial int Advise(SafeFileHandle file, long offset, long length, int advice);

    sealed class RealFile(string path, SafeFileHandle handle) : IDiskFile
    {
        const int DiskFull = 28; // ENOSPC
        const int QuotaExceeded = 122; // EDQUOT

        public long Length => RandomAccess.GetLength(handle);

        public int Read(Span<byte> buffer, long offset)
        {
            int read = 0;
            while (read < buffer.Length)
            {
                int n = RandomAccess.Read(handle, buffer[read..], offset + read);
                if (n == 0) break;
                read += n;
            }

            return read;
        }

        /// <summary>
        /// On a thread of its own: to find room in the system's cache takes more processor time than to check what is read. The system takes no more than a megabyte or so at once.
        /// </summary>
        public void ReadAhead()
        {
            if (!OperatingSystem.IsLinux()) return;
            long length = Length;
            _ = Task.Factory.StartNew(ReadAll, CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);

            void ReadAll()
            {
                try
                {
                    const long Piece = 1024 * 1024;
                    const int WillNeed = 3; // POSIX_FADV_WILLNEED
                    for (long offset = 0; offset < length; offset += Piece) _ = Advise(handle, offset, Piece, WillNeed);
                }
                catch (ObjectDisposedException)
                {
                    // Read already.
                }
            }
        }

        public void Write(ReadOnlySpan<byte> bytes, long offset)
        {
            try
            {
                if (bytes.Length < DirectBytesMin || !IsAligned(bytes, offset) || !TryWriteDirectly(bytes, offset)) RandomAccess.Write(handle, bytes, offset);
            }
            catch (IOException e) when ((e.HResult & 0xffff) is DiskFull or QuotaExceeded)
            {
                throw new DiskFullException($"No room to write {path}: {e.Message}", e);
            }
        }

        public unsafe void WriteZeros(long offset, int length)
        {
            for (int at = 0; at < length; at += ZerosBytes) Write(new ReadOnlySpan<byte>(Zeros, Math.Min(ZerosBytes, length - at)), offset + at);
        }

        const int ZerosBytes = 1024 * 1024;

        /// <summary>Kept for good: fresh memory costs more than the write.</summary>
        static readonly unsafe byte* Zeros = AllocateZeros();

        static unsafe byte* AllocateZeros()
        {
            byte* zeros = (byte*)NativeMemory.AlignedAlloc(ZerosBytes, FileJournal.AlignmentBytes);
            NativeMemory.Clear(zeros, ZerosBytes);
            return zeros;
        }

        /// <summary>
        /// What is written in pieces as large as this goes past the system's cache: to copy it there took up to a fifth of the processor time of a server at full load, and whoever
        /// reads is behind such a writer anyway. Smaller pieces are read again at once, by views.
        /// </summary>
        const int DirectBytesMin = 256 * 1024;

        static unsafe bool IsAligned(ReadOnlySpan<byte> bytes, long offset)
        {
            fixed (byte* at = bytes) return (((ulong)at | (ulong)offset | (uint)bytes.Length) & (FileJournal.AlignmentBytes - 1)) == 0;
        }

        /// <summary>False on a file system that cannot do so.</summary>
        bool TryWriteDirectly(ReadOnlySpan<byte> bytes, long offset)
        {
            if (_isIndirect) return false;
            try
            {
                _direct ??= OpenDirect();
                if (!_direct.IsInvalid)
                {
                    RandomAccess.Write(_direct, bytes, offset);
                    return true;
                }
            }
            catch (IOException e) when ((e.HResult & 0xffff) is Invalid or NotSupported)
            {
                // Opened, and then not able to after all.
            }

            _isIndirect = true;
            return false;
        }

        /// <summary>The same file, whatever has its name by now.</summary>
        SafeFileHandle OpenDirect()
        {
            bool isHeld = false;
            try
            {
                // Fails where it is closed: its number may be another file's.
                handle.DangerousAddRef(ref isHeld);
                return new SafeFileHandle(FileDisk.Open($"/proc/self/fd/{handle.DangerousGetHandle()}", WriteOnly | CloseOnExec | Direct), ownsHandle: true);
            }
            finally
            {
                if (isHeld) handle.DangerousRelease();
            }
        }

        const int WriteOnly = 1, CloseOnExec = 0x80000;
        const int Invalid = 22; // EINVAL
        const int NotSupported = 95; // EOPNOTSUPP

        static readonly int Direct = RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 0x10000 : 0x4000;

        SafeFileHandle? _direct;
        bool _isIndirect;

        public void Flush()
        {
            if (Fdatasync(handle) == 0) return;
            int error = Marshal.GetLastPInvokeError();
            string message = $"Cannot flush {path}: {Marshal.GetPInvokeErrorMessage(error)}.";
            throw error is DiskFull or QuotaExceeded ? new DiskFullException(message) : new IOException(message);
        }

        public void Dispose()
        {
            _direct?.Dispose();
            handle.Dispose();
        }
    }
}
