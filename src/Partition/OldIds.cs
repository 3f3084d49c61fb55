using System.IO.Hashing;
using System.Runtime.InteropServices;
using Purse.Journal;
using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>
/// Ids that left the state's memory: in runs in the journal's store, sorted by 48 bits of their hash and by home, each with the sequence of the
/// event that it is remembered by. What is found is compared with that event, so that an answer is exact.
/// </summary>
public sealed class OldIds : IDisposable
{
    public const string Folder = "ids";

    internal const int EntryWords = 2;

    // Of an entry: hash (48 bits) and lower half of the home; its upper half and the sequence (48 bits).
    const int HomeBits = 16;
    const int SequenceBits = 48;
    const ulong SequenceMax = (1ul << SequenceBits) - 1;

    /// <summary>So many commands are looked at together: what one waits for is on its way while others are looked at.</summary>
    const int CommandsAtOnce = 16;

    readonly RunSet _runs;
    State? _state;
    Func<ulong, UInt128>? _transactionIdOf;

    /// <param name="life">Unlike that of any other writer.</param>
    public OldIds(IJournalStore store, long life, long seed, Action<string> log)
    {
        _runs = new RunSet(store.Files, store.Partition, Folder, EntryWords, hasFilters: true, life, seed);
        _runs.Open(log);
    }

    /// <summary>Ids that are remembered by events up to this one are in runs.</summary>
    public ulong Covered => _runs.Covered;

    public RunSet Runs => _runs;

    /// <summary>From now on it is asked for ids that this state does not have any more.</summary>
    /// <param name="transactionIdOf">Reads what the event of a sequence says, on any thread.</param>
    public void Serve(State state, Func<ulong, UInt128> transactionIdOf)
    {
        (_state, _transactionIdOf) = (state, transactionIdOf);
        state.Ids.Link();
    }

    /// <summary>Puts the ids of a full generation in a run.</summary>
    public void Write(Generation generation) => _runs.Add(generation.To, MemoryMarshal.Cast<RunEntry, ulong>(Sorted(generation)));

    RunEntry[] Sorted(Generation generation)
    {
        int skipped = 0, count = generation.Count - (Injected.Is(PartitionDefect.IdLeftOutOfRun) ? 1 : 0);
        while (skipped < count && generation[skipped].Sequence <= _runs.Covered) skipped++;
        RunEntry[] entries = new RunEntry[Math.Max(0, count - skipped)];
        for (int i = skipped; i < count; i++)
        {
            entries[i - skipped] = EntryOf(generation[i], _runs.Seed);
        }

        return RunEntry.Sorted(entries);
    }

    internal static RunEntry EntryOf(in RememberedId one, long seed)
    {
        Check.That(one.Sequence <= SequenceMax, "sequences fit in 48 bits");
        return new RunEntry(FirstWord(HashOf(one.TransactionId, seed), one.Home), ((ulong)(one.Home >> HomeBits) << SequenceBits) | one.Sequence);
    }

    /// <summary>What of an entry a run's filter knows.</summary>
    internal static ulong HashIn(in RunEntry entry) => entry.First >> HomeBits;

    internal static ulong SequenceIn(in RunEntry entry) => entry.Second & SequenceMax;

    /// <summary>Whether both are of one home, and of ids with the same hash: nearly always of the same id.</summary>
    internal static bool AreAlike(in RunEntry a, in RunEntry b) => a.First == b.First && a.Second >> SequenceBits == b.Second >> SequenceBits;

    ulong HashOf(UInt128 id) => HashOf(id, _runs.Seed);

    static ulong HashOf(UInt128 id, long seed) => XxHash3.HashToUInt64(MemoryMarshal.AsBytes(new ReadOnlySpan<UInt128>(in id)), seed) >> 16;

    static ulong FirstWord(ulong hash, uint home) => (hash << HomeBits) | (home & 0xffff);

    /// <summary>
    /// Looks for the ids of a request where the state has them not any more, and in its full generations, so that the deciding thread need not. May be
    /// called from any thread.
    /// </summary>
    /// <exception cref="RunDamagedException">Nothing may be answered before the run was made again.</exception>
    public void Search(Request request)
    {
        State state = _state!;
        IdSearch search = request.Search;
        // In this order: what leaves memory meanwhile is in runs already.
        ReadOnlySpan<Generation> full = state.Generations.Full(out ulong sequence);
        search.Begin(state.Generations, sequence);
        if (request is CommandRequest transfers) LookUpAccounts(state, transfers.Commands.AsSpan(0, transfers.Count));
        Run[] runs = _runs.Runs;
        if (full.Length == 0 && runs.Length == 0) return;
        ReadOnlySpan<Command> commands = request.Asked;
        Span<ulong> hashes = stackalloc ulong[CommandsAtOnce];
        for (int from = 0; from < commands.Length; from += CommandsAtOnce)
        {
            int count = Math.Min(CommandsAtOnce, commands.Length - from);
            for (int i = 0; i < count; i++)
            {
                UInt128 id = commands[from + i].TransactionId;
                hashes[i] = HashOf(id);
                foreach (Run run in runs) run.Filter!.Prefetch(hashes[i]);
                foreach (Generation generation in full) generation.Prefetch(id);
            }

            for (int i = 0; i < count; i++)
            {
                ref readonly Command command = ref commands[from + i];
                bool hasOriginal = command.Kind is CommandKind.Capture or CommandKind.Void or CommandKind.Reverse;
                if (!hasOriginal && !MayHave(command.TransactionId, hashes[i], full, runs)) continue;
                if (!StateMachine.TryHomeToRecall(state, command, out uint? home)) continue;
                List<RememberedId> found = search.Found;
                int before = found.Count;
                Find(home, command.TransactionId, full, found);
                if (hasOriginal && command.OriginalId != command.TransactionId) Find(home, command.OriginalId, full, found);
                search.FoundOf(from + i, before);
            }
        }
    }

    /// <summary>What names the state has numbers for, so that the deciding thread need not ask.</summary>
    static void LookUpAccounts(State state, Span<Command> commands)
    {
        foreach (ref Command command in commands)
        {
            bool isTransfer = command.Kind == CommandKind.Transfer;
            command.KnownAccount = isTransfer ? state.Names.Find(command.Account) : 0;
            command.KnownCounterparty = isTransfer ? state.Names.Find(command.Counterparty) : 0;
        }
    }

    static bool MayHave(UInt128 id, ulong hash, ReadOnlySpan<Generation> full, Run[] runs)
    {
        foreach (Generation generation in full)
        {
            if (generation.Has(id)) return true;
        }

        foreach (Run run in runs)
        {
            if (run.Filter!.MayHave(hash)) return true;
        }

        return false;
    }

    void Find(uint? home, UInt128 id, ReadOnlySpan<Generation> full, List<RememberedId> found)
    {
        int start = found.Count, max = start + Recalled.HomesMax + 1;
        foreach (Generation generation in full)
        {
            if (home is not uint one) generation.FindAll(id, found, max);
            else if (generation.Find(one, id) is not 0 and ulong sequence) found.Add(new RememberedId { TransactionId = id, Sequence = sequence, Home = one });
        }

        ulong hash = HashOf(id);
        int inMemory = found.Count;
        while (!TryFindInRuns(_runs.Runs, home, id, hash, found, start)) found.RemoveRange(inMemory, found.Count - inMemory);
    }

    /// <summary>False where a run was merged meanwhile: the others have to be looked at.</summary>
    /// <param name="start">Where in the list those of this id begin.</param>
    bool TryFindInRuns(Run[] runs, uint? home, UInt128 id, ulong hash, List<RememberedId> found, int start)
    {
        foreach (Run run in runs)
        {
            if (!run.Filter!.MayHave(hash)) continue;
            if (!run.TryEnter()) return false;
            try
            {
                Find(run, home, id, hash, found, start);
            }
            finally
            {
                run.Leave();
            }
        }

        return true;
    }

    void Find(Run run, uint? home, UInt128 id, ulong hash, List<RememberedId> found, int start)
    {
        Span<ulong> page = stackalloc ulong[Run.PageWords];
        ulong first = FirstWord(hash, home ?? 0), last = home is uint one ? FirstWord(hash, one) : FirstWord(hash, 0xffff);
        for (int number = run.FirstPage(first); run.MayHaveUpTo(number, last); number++)
        {
            run.Read(number, page);
            int count = run.EntriesCount(number);
            for (int i = FirstAtLeast(page, count, first); i < count && page[i * EntryWords] <= last; i++)
            {
                ulong word = page[i * EntryWords], rest = page[i * EntryWords + 1], sequence = rest & SequenceMax;
                uint of = (uint)(word & 0xffff) | (uint)(rest >> SequenceBits << HomeBits);
                // Both where it is in memory still, too.
                if ((home is not null && of != home) || IsKnown(CollectionsMarshal.AsSpan(found)[start..], sequence)) continue;
                if (_transactionIdOf!(sequence) != id) continue;
                if (found.Count - start > Recalled.HomesMax) return;
                found.Add(new RememberedId { TransactionId = id, Sequence = sequence, Home = of });
            }
        }
    }

    static bool IsKnown(ReadOnlySpan<RememberedId> found, ulong sequence)
    {
        foreach (ref readonly RememberedId one in found)
        {
            if (one.Sequence == sequence) return true;
        }

        return false;
    }

    static int FirstAtLeast(ReadOnlySpan<ulong> page, int count, ulong word)
    {
        int low = 0, high = count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (page[middle * EntryWords] < word) low = middle + 1;
            else high = middle;
        }

        return low;
    }

    /// <summary>Where an id is remembered, as far as that is in runs; of one home, or of all.</summary>
    public List<RememberedId> Find(UInt128 id, uint? home)
    {
        List<RememberedId> found = [];
        while (!TryFindInRuns(_runs.Runs, home, id, HashOf(id), found, 0)) found.Clear();
        return found;
    }

    public void Dispose() => _runs.Dispose();
}
