using Purse.Journal;
using Purse.Ledger;

namespace Purse.Partitions;

public sealed partial class Partition
{
    /// <summary>Looks for a request's ids where the state has them not any more; false where that cannot be looked at now.</summary>
    bool TrySearch(Request request)
    {
        if (request.Asked.Length == 0 || Volatile.Read(ref _serving) is not { } serving || _fault is not null) return true;
        try
        {
            serving.Derived.Ids.Search(request);
            return true;
        }
        catch (RunDamagedException e)
        {
            Fail(serving, e);
            return false;
        }
        catch (Exception e) when (e is IOException or ObjectDisposedException)
        {
            _log($"Partition {Number}: old ids cannot be looked for: {e.Message}");
            return false;
        }
    }

    /// <summary>A recovery makes it again.</summary>
    void Fail(Serving serving, RunDamagedException damage)
    {
        serving.JournalFault ??= damage;
        _queue.Wake();
    }

    /// <summary>Full generations are written beside the writer, and leave memory when they are there; runs are merged beside both.</summary>
    void TendRuns(Serving serving)
    {
        Generations generations = serving.Core.State.Generations;
        if (generations.Forget(serving.Derived.Covered)) ThreadPool.QueueUserWorkItem(static _ => CollectLarge());
        if (serving.NextRunTicks > Environment.TickCount64) return;
        if (serving.WritingRun is not { IsCompleted: false } && serving.Derived.IsDue(generations, serving.Journal.MarkedSequence)) WriteRuns(serving, generations);
        // They are written last: when there are new ones, there are new marks, too.
        Run[] runs = serving.Derived.Ids.Runs.Runs;
        if (serving.MergingRuns is { IsCompleted: false } || ReferenceEquals(runs, serving.MergedRuns)) return;
        serving.MergedRuns = runs;
        if (serving.Derived.HasToMerge) MergeRuns(serving);
    }

    void WriteRuns(Serving serving, Generations generations)
    {
        ulong marked = serving.Journal.MarkedSequence;
        serving.WritingRun = Beside(serving, () => serving.Derived.WriteDue(generations, marked), e => NoRun(serving, e));
    }

    /// <summary>
    /// A generation and what it is sorted in are some 200 MB, what an audit replays into as large as the state, and nothing else makes garbage here: by itself the
    /// collector comes when there is about as much of it as of the state.
    /// </summary>
    static void CollectLarge() => GC.Collect(GC.MaxGeneration, GCCollectionMode.Forced, blocking: false);

    void MergeRuns(Serving serving) => serving.MergingRuns = Beside(
        serving,
        () =>
        {
            while (serving.Derived.TryMerge(serving.Journal.ConfirmEpoch, serving.Ending.Token))
            {
                // One after the other, until there is none.
            }
        },
        e => NoRun(serving, e));

    void NoRun(Serving serving, Exception e)
    {
        // Until it succeeds, what it would have stays in memory.
        _log($"Partition {Number}: no run was written: {e.Message}");
        (serving.NextRunTicks, serving.MergedRuns) = (Environment.TickCount64 + (e is DiskFullException ? FullRetryMilliseconds : 1000), null);
    }

    /// <summary>On a thread of its own.</summary>
    /// <param name="failed">Where it could not be done now; what shows that the state or the journal cannot be trusted stops the partition.</param>
    Task Beside(Serving serving, Action work, Action<Exception> failed) => Task.Factory.StartNew(
        () =>
        {
            Niceness.BeModest();
            try
            {
                work();
            }
            catch (OperationCanceledException)
            {
                // The partition ends: whoever takes over goes on.
            }
            catch (RunDamagedException e)
            {
                Fail(serving, e);
            }
            catch (Exception e) when (e is (IOException and not JournalDamagedException) or ObjectDisposedException)
            {
                failed(e);
            }
            catch (Exception e)
            {
                // The state or the journal is not to be trusted.
                serving.JournalFault = e;
                _queue.Wake();
            }
        },
        CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);

    static void EndBeside(Serving serving)
    {
        serving.Ending.Cancel();
        Await(serving.Snapshotting);
        Await(serving.Auditing);
        Await(serving.WritingRun);
        Await(serving.MergingRuns);
    }
}
