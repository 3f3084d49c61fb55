namespace Purse.Partitions;

/// <summary>
/// The command queue: first in, first out, bounded by the number of commands in it. Any thread adds; the partition's thread takes. Full,
/// it refuses; it never grows.
/// </summary>
public sealed class RequestQueue(int commandsMax)
{
    readonly Lock _lock = new();
    readonly AutoResetEvent _wake = new(false);
    Request?[] _ring = new Request?[1024];
    int _head;
    int _count;
    int _commandsCount;
    int _asleep;
    int _commandsToWake = 1;
    RequestStatus? _closed;

    public int CommandsCount => Volatile.Read(ref _commandsCount);

    /// <summary>Null when it was added, else why not. A request larger than the whole bound is added where the queue is empty.</summary>
    public RequestStatus? TryAdd(Request request)
    {
        lock (_lock)
        {
            if (_closed is not null) return _closed;
            if (_commandsCount > 0 && _commandsCount + request.CommandsCount > commandsMax) return RequestStatus.Overloaded;
            if (_count == _ring.Length) Grow();
            _ring[(_head + _count++) & (_ring.Length - 1)] = request;
            _commandsCount += request.CommandsCount;
        }

        // The taker says how many it wants, then looks, then sleeps; here is added, then looked.
        Interlocked.MemoryBarrier();
        if (CommandsCount >= Volatile.Read(ref _commandsToWake)) Wake();
        return null;
    }

    public bool TryPeek(out Request request)
    {
        lock (_lock)
        {
            request = _count > 0 ? _ring[_head]! : null!;
            return _count > 0;
        }
    }

    public void Remove(Request request)
    {
        lock (_lock)
        {
            Ledger.Check.That(ReferenceEquals(_ring[_head], request), "requests leave the queue in order");
            _ring[_head] = null;
            _head = (_head + 1) & (_ring.Length - 1);
            _count--;
            _commandsCount -= request.CommandsCount;
        }
    }

    /// <summary>Refuses all that comes from now on; null opens it again.</summary>
    public void Close(RequestStatus? answer)
    {
        lock (_lock) _closed = answer;
        Wake();
    }

    public void Wake()
    {
        // A thread that is awake looks by itself before it sleeps; waking it costs a system call.
        if (Volatile.Read(ref _asleep) != 0 && Interlocked.Exchange(ref _asleep, 0) != 0) _wake.Set();
    }

    /// <summary>Sleeps until woken, unless there is something to do already.</summary>
    /// <param name="commandsToWake">What is added wakes it when there are so many.</param>
    public void Sleep(Func<bool> hasWork, int milliseconds, int commandsToWake)
    {
        Volatile.Write(ref _commandsToWake, commandsToWake);
        Interlocked.Exchange(ref _asleep, 1);
        if (hasWork())
        {
            // Somebody may have signalled in between; the extra wake-up does no harm.
            Interlocked.Exchange(ref _asleep, 0);
            return;
        }

        _wake.WaitOne(milliseconds);
        Interlocked.Exchange(ref _asleep, 0);
    }

    public bool IsEmpty => Volatile.Read(ref _count) == 0;

    void Grow()
    {
        Request?[] ring = new Request?[_ring.Length * 2];
        for (int i = 0; i < _count; i++) ring[i] = _ring[(_head + i) & (_ring.Length - 1)];
        _ring = ring;
        _head = 0;
    }
}
