using System.Buffers.Binary;
using RocksDbSharp;

namespace Purse.Ids;

/// <summary>RocksDB as such a thing is mostly kept: the whole key in a table, filters of as many bits as Purse's own, no log, nothing compressed (ids are random).</summary>
public sealed class IdsInRocksDb : IdsWay
{
    readonly RocksDb _db;
    readonly WriteOptions _write = new WriteOptions().DisableWal(1);
    readonly byte[] _key = new byte[20];
    readonly byte[] _value = new byte[8];

    public IdsInRocksDb(string folder)
    {
        BlockBasedTableOptions table = new BlockBasedTableOptions()
            .SetFilterPolicy(BloomFilterPolicy.Create(16, false))
            .SetBlockCache(Cache.CreateLru(64 * 1024 * 1024))
            .SetFormatVersion(5);
        DbOptions options = new DbOptions().SetCreateIfMissing(true).IncreaseParallelism(2);
        options.SetBlockBasedTableFactory(table).SetCompression(Compression.No).SetWriteBufferSize(64 * 1024 * 1024).SetMaxWriteBufferNumber(4).SetTargetFileSizeBase(256 * 1024 * 1024);
        Directory.CreateDirectory(folder);
        _db = RocksDb.Open(options, folder);
    }

    public override string Name => "RocksDB 11.12";

    public override int Remember(ReadOnlySpan<UInt128> ids, ReadOnlySpan<uint> homes, ulong firstSequence)
    {
        int known = 0;
        using WriteBatch batch = new();
        for (int i = 0; i < ids.Length; i++)
        {
            IdsLoad.WriteKey(_key, ids[i], homes[i]);
            if (_db.Get(_key, _value, 0, _value.Length) >= 0) known++;
            BinaryPrimitives.WriteUInt64LittleEndian(_value, firstSequence + 2 * (ulong)i);
            batch.Put(_key, _value);
        }

        _db.Write(batch, _write);
        return known;
    }

    public override int Find(ReadOnlySpan<UInt128> ids, ReadOnlySpan<uint> homes, ReadOnlySpan<ulong> sequences)
    {
        int found = 0;
        for (int i = 0; i < ids.Length; i++)
        {
            IdsLoad.WriteKey(_key, ids[i], homes[i]);
            if (_db.Get(_key, _value, 0, _value.Length) == 8 && BinaryPrimitives.ReadUInt64LittleEndian(_value) == sequences[i]) found++;
        }

        return found;
    }

    public override void Settle()
    {
        _db.Flush(new FlushOptions().SetWaitForFlush(true));
        while (_db.GetProperty("rocksdb.num-running-compactions") != "0" || _db.GetProperty("rocksdb.compaction-pending") != "0") Thread.Sleep(50);
    }

    public override void Dispose() => _db.Dispose();
}
