namespace Purse.Journal;

/// <summary>Where one partition's journal is kept, and the immutable files beside it: a folder, or a PostgreSQL database.</summary>
public interface IJournalStore
{
    int Partition { get; }

    /// <summary>Snapshots, which whoever takes over reads.</summary>
    IDisk Files { get; }

    /// <summary>
    /// Takes the journal over for writing: fences any writer before, and reads every block from the first, giving each to
    /// <paramref name="onBlock"/>.
    /// </summary>
    /// <param name="floors">What must be there; a journal without it has lost what was durable.</param>
    /// <param name="from">Of the floors, the one whose state the caller has: where blocks can be found without reading those before them, it is read from there.</param>
    /// <exception cref="JournalDamagedException">A durable block is missing or not what it was; no block was changed.</exception>
    JournalWriter TakeOver(IReadOnlyCollection<JournalFloor> floors, JournalWriter.OnBlock onBlock, JournalFloor? from = null);

    /// <summary>From the first block on, beside whoever writes.</summary>
    JournalReader Read(bool checkMerkleRoots);
}

/// <summary>A folder.</summary>
public sealed class FileStore(IDisk disk, int partition, JournalOptions options) : IJournalStore
{
    public int Partition => partition;

    public IDisk Files => disk;

    public JournalWriter TakeOver(IReadOnlyCollection<JournalFloor> floors, JournalWriter.OnBlock onBlock, JournalFloor? from = null) => FileJournal.Open(disk, partition, options, floors, onBlock);

    public JournalReader Read(bool checkMerkleRoots) => new FileJournalReader(disk, partition, checkMerkleRoots);
}
