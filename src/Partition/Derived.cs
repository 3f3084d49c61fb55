using Purse.Journal;
using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>What is made from the journal and kept beside it in runs, so that the state need not have it: ids of old events, and marks on the way through them.</summary>
public sealed class Derived : IDisposable
{
    /// <param name="life">Unlike that of any other writer.</param>
    /// <param name="seed">Secret where callers choose ids.</param>
    public Derived(IJournalStore store, long life, long seed, Action<string> log)
    {
        Ids = new OldIds(store, life, seed, log);
        try
        {
            History = new History(store, life, log);
        }
        catch
        {
            Ids.Dispose();
            throw;
        }
    }

    public OldIds Ids { get; }

    public History History { get; }

    /// <summary>All that is of events up to this one is in runs.</summary>
    public ulong Covered => Math.Min(Ids.Covered, History.Covered);

    /// <summary>The last event that any run speaks of.</summary>
    public ulong CoveredMost => Math.Max(Ids.Covered, History.Covered);

    /// <summary>From now on it is asked for what this state does not have any more.</summary>
    public void Serve(State state, Func<ulong, UInt128> transactionIdOf)
    {
        Ids.Serve(state, transactionIdOf);
        History.Serve(state);
    }

    /// <summary>Puts full generations in runs.</summary>
    /// <param name="markedSequence">Up to here the journal itself can prove that it was durable: no run speaks of more.</param>
    public void WriteDue(Generations generations, ulong markedSequence)
    {
        foreach (Generation generation in generations.Full(out _))
        {
            if (generation.To <= Covered) continue;
            if (generation.To > markedSequence && !Injected.Is(PartitionDefect.RunTooFar)) return;
            Check.That(generation.From <= Covered, "runs leave no event out");
            if (generation.To > History.Covered) History.Write(generation);
            if (generation.To > Ids.Covered) Ids.Write(generation);
        }
    }

    public bool IsDue(Generations generations, ulong markedSequence)
    {
        foreach (Generation generation in generations.Full(out _))
        {
            if (generation.To > Covered && generation.To <= markedSequence) return true;
        }

        return false;
    }

    public bool HasToMerge => Ids.Runs.HasToMerge || History.Runs.HasToMerge;

    /// <summary>One merge, where there is one to make.</summary>
    /// <param name="mayDelete">Throws where another has taken over.</param>
    public bool TryMerge(Action mayDelete, CancellationToken cancellation) => Ids.Runs.TryMerge(mayDelete, cancellation) || History.Runs.TryMerge(mayDelete, cancellation);

    /// <summary>What is damaged is not found by whoever takes over next, and is made again.</summary>
    public void Delete(RunDamagedException damage)
    {
        try
        {
            Ids.Runs.Delete(damage);
        }
        catch (IOException)
        {
            // It will be met again.
        }
    }

    /// <summary>Runs that speak of events which the journal does not have.</summary>
    public void DropAbove(ulong sequence)
    {
        Ids.Runs.DropAbove(sequence);
        History.Runs.DropAbove(sequence);
    }

    public void Dispose()
    {
        Ids.Dispose();
        History.Dispose();
    }
}
