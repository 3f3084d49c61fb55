using BenchmarkDotNet.Attributes;
using Purse.Ledger;

namespace Purse.Micro;

/// <summary>A transfer judged, and one that is also applied; its id remembered, and looked for.</summary>
[MemoryDiagnoser]
public class LedgerBenchmarks
{
    /// <summary>A block's worth.</summary>
    public const int Transfers = 4_096;

    SampleLedger _ledger = null!;
    TransactionIds _ids = null!;

    [Params(10_000, 1_000_000)]
    public int Accounts { get; set; }

    [GlobalSetup]
    public void Setup()
    {
        _ledger = new SampleLedger(Accounts);
        _ids = new State(7, eventsPerGeneration: ulong.MaxValue).Ids;
        for (ulong i = 1; i <= 4_000_000; i++) _ids.Add(1, new UInt128(i * 0x9e3779b97f4a7c15, i), i);
    }

    [IterationSetup]
    public void NewTransfers() => _ledger.NewTransfers();

    [Benchmark(OperationsPerInvoke = Transfers)]
    public int Decide()
    {
        _ledger.Begin();
        (int, int, int) empty = _ledger.Batch.Here;
        int done = 0;
        foreach (ref readonly Command command in _ledger.Commands.AsSpan())
        {
            if (_ledger.Machine.Decide(command, _ledger.Batch).Outcome == Outcome.Done) done++;
            _ledger.Batch.Rewind(empty);
        }

        return done;
    }

    [Benchmark(OperationsPerInvoke = Transfers)]
    public int DecideAndApply()
    {
        _ledger.Begin();
        int done = 0;
        foreach (ref readonly Command command in _ledger.Commands.AsSpan())
        {
            if (_ledger.Machine.Execute(command, _ledger.Batch).Outcome == Outcome.Done) done++;
        }

        return done;
    }

    [Benchmark(OperationsPerInvoke = Transfers)]
    public ulong LookUpNewIds()
    {
        ulong found = 0;
        foreach (ref readonly Command command in _ledger.Commands.AsSpan()) found |= _ids.Find(1, command.TransactionId);
        return found;
    }
}
