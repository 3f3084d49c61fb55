using System.Text;

namespace Purse.Ledger;

/// <summary>
/// A state as it was at one moment, between two blocks. Another thread than the state's own may write it down, while that goes on; the bytes are the
/// same for whoever applied the same events.
/// </summary>
public sealed class StateImage : IDisposable
{
    readonly State _state;
    readonly int _namesCount;
    readonly Chunked<Account>.Image _accounts;
    readonly Chunked<Balance>.Image _balances;
    readonly Chunked<LimitsOfBalance>.Image _limits;
    readonly Chunked<Hold>.Image _holds;
    readonly Chunked<Reversal>.Image _reversals;
    readonly Chunked<RegisteredCurrency>.Image _currencies;

    // What is small, or bounded, is written down at once.
    readonly byte[] _clearing;
    readonly byte[] _attempts;
    readonly ulong _idsCount;
    readonly Generations.Image _generations;

    internal StateImage(State state, bool whileItChanges)
    {
        _state = state;
        (LastSequence, LastTimeMicros) = (state.LastSequence, state.LastTimeMicros);
        _namesCount = state.Names.Count;
        _accounts = state.AccountList.BeginImage(whileItChanges);
        _balances = state.BalanceList.BeginImage(whileItChanges);
        _limits = state.LimitsList.BeginImage(whileItChanges);
        _holds = state.Holds.BeginImage(whileItChanges);
        _reversals = state.Reversals.BeginImage(whileItChanges);
        _currencies = state.Currencies.BeginImage(whileItChanges);
        _clearing = Bytes(state.WriteClearing);
        _attempts = Bytes(state.Attempts.Write);
        _idsCount = state.Ids.Count;
        _generations = state.Generations.BeginImage(LastSequence);
    }

    public ulong LastSequence { get; }

    public long LastTimeMicros { get; }

    /// <summary>What of ids and marks it leaves out: all that is of events up to this one.</summary>
    public ulong LeftOut => _generations.Boundary;

    public void Write(Stream stream)
    {
        using BinaryWriter writer = new(stream, Encoding.UTF8, leaveOpen: true);
        writer.Write(State.FormatVersion);
        writer.Write(LastSequence);
        writer.Write(LastTimeMicros);
        _state.Names.Write(writer, _namesCount);
        Write(writer, _accounts);
        Write(writer, _balances);
        Write(writer, _limits);
        Write(writer, _holds);
        Write(writer, _reversals);
        Write(writer, _currencies);
        writer.Write(_clearing);
        writer.Write(_attempts);
        writer.Write(_idsCount);
        _generations.Write(writer);
    }

    static void Write<T>(BinaryWriter writer, Chunked<T>.Image list)
        where T : unmanaged
    {
        writer.Write(list.Count);
        writer.Flush();
        list.Write(writer.BaseStream);
    }

    static byte[] Bytes(Action<BinaryWriter> write)
    {
        using MemoryStream bytes = new();
        using BinaryWriter writer = new(bytes);
        write(writer);
        writer.Flush();
        return bytes.ToArray();
    }

    /// <summary>Nothing is put aside for it any more.</summary>
    public void Dispose()
    {
        _accounts.Dispose();
        _balances.Dispose();
        _limits.Dispose();
        _holds.Dispose();
        _reversals.Dispose();
        _currencies.Dispose();
    }
}
