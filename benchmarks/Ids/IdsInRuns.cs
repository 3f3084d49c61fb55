using System.Runtime.InteropServices;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Ids;

/// <summary>Purse's own way: generations in memory, then sorted runs behind filters. What is found is compared with an event in a file, as with a journal's.</summary>
public sealed class IdsInRuns : IdsWay
{
    readonly State _state = new(1);
    readonly AccountName[] _names = [.. Enumerable.Range(1, (int)IdsLoad.Homes).Select(home => AccountName.Parse($"account-{home}"))];
    readonly Derived _derived;
    readonly IDiskFile _events;
    CommandRequest _request = new(1);
    Task _writing = Task.CompletedTask;
    Task _merging = Task.CompletedTask;

    public IdsInRuns(string folder)
    {
        foreach (AccountName name in _names) _state.Names.Add(name.Utf8);
        FileDisk disk = new(folder);
        _derived = new Derived(new FileStore(disk, 0, new JournalOptions()), life: 1, seed: 1, static _ => { });
        _events = disk.Open("events", writable: true, create: true);
        _derived.Serve(_state, IdOf);
    }

    public override string Name => "own runs";

    public override double? OldMemoryBytesPerId => _derived.Ids.Runs.EntriesCount == 0 ? null : (double)_derived.Ids.Runs.MemoryBytes / _derived.Ids.Runs.EntriesCount;

    UInt128 IdOf(ulong sequence)
    {
        UInt128 id = 0;
        _events.Read(MemoryMarshal.AsBytes(new Span<UInt128>(ref id)), (long)(sequence / 2) * 16);
        return id;
    }

    CommandRequest Ask(ReadOnlySpan<UInt128> ids, ReadOnlySpan<uint> homes)
    {
        if (_request.Commands.Length < ids.Length) _request = new CommandRequest(ids.Length);
        _request.Count = ids.Length;
        for (int i = 0; i < ids.Length; i++)
        {
            ref Command command = ref _request.Commands[i];
            (command.Kind, command.TransactionId, command.Account) = (CommandKind.Transfer, ids[i], _names[homes[i] - 1]);
        }

        _derived.Ids.Search(_request);
        return _request;
    }

    public override int Remember(ReadOnlySpan<UInt128> ids, ReadOnlySpan<uint> homes, ulong firstSequence)
    {
        _events.Write(MemoryMarshal.AsBytes(ids), (long)(firstSequence / 2) * 16);
        CommandRequest request = Ask(ids, homes);
        int known = 0;
        for (int i = 0; i < ids.Length; i++)
        {
            // As the partition does.
            if (i + 4 < ids.Length) _state.Ids.Prefetch(ids[i + 4]);
            _state.Ids.Recall(request.Search.Of(i, request.Commands[i]));
            if (_state.Ids.Find(homes[i], ids[i]) != 0) known++;
            else _state.Ids.Add(homes[i], ids[i], firstSequence + 2 * (ulong)i);
        }

        Tend();
        return known;
    }

    void Tend()
    {
        Generations generations = _state.Generations;
        generations.Forget(_derived.Covered);
        if (_writing.IsFaulted || _merging.IsFaulted) throw new IOException("A run could not be written.", _writing.Exception ?? _merging.Exception);
        if (_writing.IsCompleted && _derived.IsDue(generations, ulong.MaxValue)) _writing = Task.Run(() => _derived.WriteDue(generations, ulong.MaxValue));
        if (_merging.IsCompleted && _derived.HasToMerge) _merging = Task.Run(() => _derived.TryMerge(static () => { }, CancellationToken.None));
    }

    public override int Find(ReadOnlySpan<UInt128> ids, ReadOnlySpan<uint> homes, ReadOnlySpan<ulong> sequences)
    {
        CommandRequest request = Ask(ids, homes);
        int found = 0;
        for (int i = 0; i < ids.Length; i++)
        {
            _state.Ids.Recall(request.Search.Of(i, request.Commands[i]));
            if (_state.Ids.Find(homes[i], ids[i]) == sequences[i]) found++;
        }

        return found;
    }

    public override void Settle()
    {
        while (!_writing.IsCompleted || !_merging.IsCompleted || _derived.HasToMerge || _derived.IsDue(_state.Generations, ulong.MaxValue))
        {
            Tend();
            Thread.Sleep(10);
        }

        _state.Generations.Forget(_derived.Covered);
    }

    public override void Dispose()
    {
        _derived.Dispose();
        _events.Dispose();
    }
}
