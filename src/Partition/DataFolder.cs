using System.Runtime.InteropServices;
using System.Text.Json;
using Microsoft.Win32.SafeHandles;
using Purse.Journal;

namespace Purse.Partitions;

/// <summary>Something about the data folder that the operator must mend; the message says what and how.</summary>
public sealed class DataFolderException(string message) : IOException(message);

/// <summary>
/// The folder a server keeps everything in: <c>purse.json</c> (format and partition count), <c>lock</c> and <c>holder</c> (one process at a
/// time, and who), <c>partitions/N/</c> with <c>journal/</c>, <c>snapshots/</c> and <c>epoch</c>, and <c>view.db</c>, which is made from them.
/// </summary>
public sealed partial class DataFolder : IDisposable
{
    const string SettingsFile = "purse.json";
    const int CurrentFormat = 0;

    public const int PartitionsMax = 1024;

    readonly SafeFileHandle? _lock;

    DataFolder(string root, int partitionsCount, SafeFileHandle? held)
    {
        Root = root;
        PartitionsCount = partitionsCount;
        _lock = held;
    }

    public string Root { get; }

    public int PartitionsCount { get; }

    /// <summary>What is searched: made from the journals, and made again where it is deleted.</summary>
    public string ViewPath => Path.Combine(Root, "view.db");

    public FileDisk Disk(int partition) => new(PartitionPath(Root, partition));

    public FileStore Store(int partition) => new(Disk(partition), partition, new JournalOptions());

    static string PartitionPath(string root, int partition) => Path.Combine(root, "partitions", $"{partition}");

    /// <summary>Opens or makes the folder for one server, alone.</summary>
    /// <param name="holder">What a second process is told.</param>
    /// <param name="partitionsCount">For a new folder, 1 where it is not given; a folder that was made for another number is refused.</param>
    public static DataFolder OpenForWriting(string root, string holder, int? partitionsCount = null)
    {
        root = Path.GetFullPath(root);
        try
        {
            Directory.CreateDirectory(root);
            SafeFileHandle held = Lock(root);
            try
            {
                TellHolder(root, holder);
                string settings = Path.Combine(root, SettingsFile);
                if (!File.Exists(settings)) Make(root, partitionsCount ?? 1);
                int made = ReadPartitionsCount(root);
                if (partitionsCount is int wanted && wanted != made)
                {
                    throw new DataFolderException(
                        $"{root} was made for {made} partition{(made == 1 ? "" : "s")}, not {wanted}: the number decides where accounts live, and never changes. Leave out --partitions, or name another folder with --data.");
                }

                // An unmounted or forgotten part must not be taken for an empty one.
                int missing = Enumerable.Range(0, made).FirstOrDefault(number => !Directory.Exists(PartitionPath(root, number)), -1);
                if (missing >= 0) throw new DataFolderException($"{PartitionPath(root, missing)} is missing: {root} was made for {made} partition{(made == 1 ? "" : "s")}. Restore it from a copy; nothing was changed.");
                return new DataFolder(root, made, held);
            }
            catch
            {
                held.Dispose();
                throw;
            }
        }
        catch (UnauthorizedAccessException e)
        {
            throw new DataFolderException($"Cannot write to the data folder {root}: {e.Message} Give its owner as the server's user, or name another with --data.");
        }
    }

    /// <summary>Opens the folder to read its journals, also beside the server that writes them.</summary>
    public static DataFolder OpenForReading(string root)
    {
        root = Path.GetFullPath(root);
        if (!File.Exists(Path.Combine(root, SettingsFile)))
            throw new DataFolderException($"{root} is not a data folder of Purse: it has no {SettingsFile}. Name the folder that `purse serve --data` was given.");
        return new DataFolder(root, ReadPartitionsCount(root), held: null);
    }

    /// <summary>Whether a server has the folder now.</summary>
    public bool IsHeld()
    {
        try
        {
            using SafeFileHandle handle = File.OpenHandle(Path.Combine(Root, "lock"), FileMode.Open, FileAccess.Read, FileShare.ReadWrite);
            return Flock(handle, LockShared | LockNonBlocking) != 0;
        }
        catch (FileNotFoundException)
        {
            return false;
        }
        catch (IOException)
        {
            return true;
        }
    }

    static SafeFileHandle Lock(string root)
    {
        string path = Path.Combine(root, "lock");
        // A reader that asks whether the folder is held has it for a moment: try for a second.
        for (int attempt = 0; ; attempt++)
        {
            SafeFileHandle? handle = null;
            try
            {
                handle = File.OpenHandle(path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.ReadWrite);
                if (Flock(handle, LockExclusive | LockNonBlocking) == 0) return handle;
            }
            catch (IOException) when (File.Exists(path))
            {
                // Held: the runtime's own lock refused.
            }

            handle?.Dispose();
            if (attempt == 20)
            {
                string holder = Path.Combine(root, "holder");
                string who = File.Exists(holder) ? File.ReadAllText(holder).Trim() : "another process";
                throw new DataFolderException($"The data folder {root} is in use by {who}. Stop that one first, or name another folder with --data.");
            }

            Thread.Sleep(50);
        }
    }

    static void TellHolder(string root, string holder)
    {
        try
        {
            File.WriteAllText(Path.Combine(root, "holder"), holder + "\n");
        }
        catch (IOException)
        {
            // A full disk: the server can still start and answer reads; a second one is only told less.
        }
    }

    /// <summary>The partitions' folders first, the settings that speak of them last.</summary>
    static void Make(string root, int partitionsCount)
    {
        string partitions = Path.Combine(root, "partitions");
        if (Directory.Exists(partitions) && Directory.EnumerateFiles(partitions, "*", SearchOption.AllDirectories).Any())
        {
            throw new DataFolderException(
                $"{root} has partitions, but no {SettingsFile} that says how many. Restore it from a copy, or write {{\"format\":0,\"partitions\":N}} with the right number; a wrong one loses accounts.");
        }

        for (int number = 0; number < partitionsCount; number++) Directory.CreateDirectory(PartitionPath(root, number));
        new FileDisk(partitions).FlushNames("");
        new FileDisk(root).FlushNames("");
        string path = Path.Combine(root, SettingsFile), temporary = path + ".writing";
        using (FileStream stream = File.Create(temporary))
        {
            JsonSerializer.Serialize(stream, new Dictionary<string, int> { ["format"] = CurrentFormat, ["partitions"] = partitionsCount });
            stream.Flush(flushToDisk: true);
        }

        File.Move(temporary, path, overwrite: true);
        new FileDisk(root).FlushNames("");
    }

    static int ReadPartitionsCount(string root)
    {
        string path = Path.Combine(root, SettingsFile);
        try
        {
            using JsonDocument settings = JsonDocument.Parse(File.ReadAllBytes(path));
            int format = settings.RootElement.GetProperty("format").GetInt32();
            if (format != CurrentFormat) throw new DataFolderException($"{path} says format {format}; this version reads {CurrentFormat}. Use the version that wrote it.");
            int partitions = settings.RootElement.GetProperty("partitions").GetInt32();
            return partitions is >= 1 and <= PartitionsMax ? partitions : throw new DataFolderException($"{path} says {partitions} partitions; there are 1 to {PartitionsMax}.");
        }
        catch (Exception e) when (e is JsonException or KeyNotFoundException or InvalidOperationException or FormatException)
        {
            throw new DataFolderException($"{path} is not readable ({e.Message}). It should say {{\"format\":0,\"partitions\":1}}.");
        }
    }

    const int LockShared = 1, LockExclusive = 2, LockNonBlocking = 4;

    [LibraryImport("libc", EntryPoint = "flock", SetLastError = true)]
    private static partial int Flock(SafeFileHandle file, int operation);

    public void Dispose() => _lock?.Dispose();
}
