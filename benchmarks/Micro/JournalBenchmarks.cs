using BenchmarkDotNet.Attributes;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Micro;

/// <summary>A block of transfers encoded, hashed and handed to the system; and the same flushed; and applied again, as a replay does.</summary>
[MemoryDiagnoser]
public class JournalBenchmarks
{
    string _folder = "";
    FileStore _store = null!;
    JournalWriter _journal = null!;
    SampleLedger _ledger = null!;

    [GlobalSetup]
    public void Setup()
    {
        // Beside the data of a real server rather than in a temporary folder, which may be memory.
        _folder = Path.GetFullPath($"purse-micro-{Environment.ProcessId}");
        _store = new FileStore(new FileDisk(_folder), 0, new JournalOptions());
        _journal = _store.TakeOver([], static (in Block _) => { }, null);
        _ledger = new SampleLedger(10_000);
        _ledger.NewTransfers();
        _ledger.Begin();
        foreach (ref readonly Command command in _ledger.Commands.AsSpan()) _ledger.Machine.Execute(command, _ledger.Batch);
    }

    [GlobalCleanup]
    public void Cleanup()
    {
        _journal.Dispose();
        Directory.Delete(_folder, recursive: true);
    }

    [Benchmark(OperationsPerInvoke = LedgerBenchmarks.Transfers)]
    public void Append()
    {
        // The same bytes again and again, as the next events.
        EventBatch batch = _ledger.Batch;
        _journal.Append(_journal.Epoch, _journal.AppendedSequence + 1, Math.Max(batch.TimeMicros, _journal.LastTimeMicros), batch.Count, Event.SizeBytes, batch.EventBytes, batch.Attachments, batch.Erasable);
        if (_journal.WantsNext) _journal.AllocateNext();
    }

    [Benchmark(OperationsPerInvoke = LedgerBenchmarks.Transfers)]
    public void AppendAndFlush()
    {
        Append();
        _journal.Flush();
    }
}
