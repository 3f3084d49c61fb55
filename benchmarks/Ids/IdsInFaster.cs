using System.Runtime.InteropServices;
using FASTER.core;

namespace Purse.Ids;

/// <summary>FASTER's key-value store: a hash index in memory, of 8 bytes an id, over a log whose end is in memory.</summary>
public sealed class IdsInFaster : IdsWay
{
    const int LogMemoryBits = 28;

    [StructLayout(LayoutKind.Sequential)]
    struct Key
    {
        public UInt128 Id;
        public ulong Home;
    }

    sealed class KeyComparer : IFasterEqualityComparer<Key>
    {
        public bool Equals(ref Key a, ref Key b) => a.Id == b.Id && a.Home == b.Home;

        // The ids are random.
        public long GetHashCode64(ref Key key) => (long)((ulong)key.Id ^ (key.Home * 0x9e37_79b9_7f4a_7c15));
    }

    sealed class Functions : SimpleFunctions<Key, ulong, long>
    {
        public IdsInFaster? Owner;

        public override void ReadCompletionCallback(ref Key key, ref ulong input, ref ulong output, long expected, Status status, RecordMetadata metadata)
        {
            if (status.Found && (expected == 0 || output == (ulong)expected)) Owner!._found++;
        }
    }

    readonly IDevice _log;
    readonly FasterKV<Key, ulong> _store;
    readonly ClientSession<Key, ulong, ulong, ulong, long, Functions> _session;
    int _found;

    public IdsInFaster(string folder, long ids)
    {
        Directory.CreateDirectory(folder);
        _log = Devices.CreateLogDevice(Path.Combine(folder, "faster.log"));
        // Buckets of 64 bytes with seven entries.
        long buckets = (long)System.Numerics.BitOperations.RoundUpToPowerOf2((ulong)ids / 8);
        _store = new FasterKV<Key, ulong>(buckets, new LogSettings { LogDevice = _log, MemorySizeBits = LogMemoryBits }, comparer: new KeyComparer());
        Functions functions = new() { Owner = this };
        _session = _store.For(functions).NewSession<Functions>();
    }

    public override string Name => "FASTER 2.6.5";

    public override int Remember(ReadOnlySpan<UInt128> ids, ReadOnlySpan<uint> homes, ulong firstSequence)
    {
        _found = 0;
        for (int i = 0; i < ids.Length; i++) Look(ids[i], homes[i], 0);
        _session.CompletePending(wait: true);
        for (int i = 0; i < ids.Length; i++)
        {
            Key key = new() { Id = ids[i], Home = homes[i] };
            ulong sequence = firstSequence + 2 * (ulong)i;
            _session.Upsert(ref key, ref sequence);
        }

        return _found;
    }

    public override int Find(ReadOnlySpan<UInt128> ids, ReadOnlySpan<uint> homes, ReadOnlySpan<ulong> sequences)
    {
        _found = 0;
        for (int i = 0; i < ids.Length; i++) Look(ids[i], homes[i], (long)sequences[i]);
        _session.CompletePending(wait: true);
        return _found;
    }

    void Look(UInt128 id, uint home, long expected)
    {
        Key key = new() { Id = id, Home = home };
        ulong output = 0;
        Status status = _session.Read(ref key, ref output, expected);
        if (status.Found && (expected == 0 || output == (ulong)expected)) _found++;
    }

    public override void Settle() => _store.Log.Flush(wait: true);

    public override void Dispose()
    {
        _session.Dispose();
        _store.Dispose();
        _log.Dispose();
    }
}
