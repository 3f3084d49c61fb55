using System.Security.Cryptography;

namespace Purse.Journal;

/// <summary>
/// The root over a block's payload, as RFC 6962 builds it: a leaf is SHA-256 of 0x00 and up to 4 KiB, a node SHA-256 of 0x01 and its two
/// children; an odd one out moves up as it is. Leaves of 4 KiB cost a thirtieth of the hashing that a leaf for each event would add.
/// </summary>
public sealed class MerkleTree
{
    public const int LeafSizeBytes = 4096;

    readonly byte[] _leaf = new byte[1 + LeafSizeBytes];
    readonly byte[] _node = new byte[1 + 2 * Hash256.SizeBytes];
    Hash256[] _level = new Hash256[512];

    public MerkleTree() => _node[0] = 1;

    /// <summary>All zeros for an empty payload.</summary>
    public Hash256 Root(ReadOnlySpan<byte> payload)
    {
        int count = (payload.Length + LeafSizeBytes - 1) / LeafSizeBytes;
        if (count == 0) return default;
        if (count > _level.Length) _level = new Hash256[count * 2];
        for (int i = 0; i < count; i++)
        {
            ReadOnlySpan<byte> piece = payload[(i * LeafSizeBytes)..Math.Min(payload.Length, (i + 1) * LeafSizeBytes)];
            piece.CopyTo(_leaf.AsSpan(1));
            SHA256.HashData(_leaf.AsSpan(0, 1 + piece.Length), _level[i]);
        }

        for (; count > 1; count = (count + 1) / 2)
        {
            for (int i = 0; i < count / 2; i++)
            {
                ((ReadOnlySpan<byte>)_level[2 * i]).CopyTo(_node.AsSpan(1));
                ((ReadOnlySpan<byte>)_level[2 * i + 1]).CopyTo(_node.AsSpan(1 + Hash256.SizeBytes));
                SHA256.HashData(_node, _level[i]);
            }

            if (count % 2 == 1) _level[count / 2] = _level[count - 1];
        }

        return _level[0];
    }
}
