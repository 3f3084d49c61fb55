using Purse.Journal;

namespace Purse.Simulation;

/// <summary>
/// A disk in memory that does what real ones do at their worst: writes that are not flushed may be lost or torn at a power cut, page by
/// page; names are not durable before their folder is flushed; writes and flushes fail on command; it fills up; it can be slow.
/// </summary>
public sealed class FaultyDisk : IDisk
{
    const int SectorBytes = 512;

    readonly Lock _lock = new();
    Dictionary<string, Content> _names = [];
    Dictionary<string, Content> _durableNames = [];

    sealed class Content
    {
        public byte[] Bytes = [];
        public byte[] Durable = [];
        public readonly HashSet<int> DirtySectors = [];

        /// <summary>Failed flushes so far; every file that was open then hears of each, once, as on Linux since 4.13.</summary>
        public int FlushErrors;
    }

    /// <summary>The n-th write or flush from now on fails (1 is the next); 0 for none.</summary>
    public int FailWriteIn { get; set; }

    public int FailFlushIn { get; set; }

    /// <summary>As above, for reads; what cannot be read must not be taken for what is not there.</summary>
    public int FailReadIn { get; set; }

    /// <summary>A failing write first writes part of what it was given.</summary>
    public bool FailingWriteIsTorn { get; set; }

    public long CapacityBytes { get; set; } = long.MaxValue;

    /// <summary>Held, no flush returns.</summary>
    public ManualResetEventSlim FlushGate { get; } = new(initialState: true);

    /// <summary>How many flushes stand at the gate.</summary>
    public int FlushesWaiting => Volatile.Read(ref _flushesWaiting);

    int _flushesWaiting;

    public int FlushCount { get; private set; }

    public long UsedBytes
    {
        get
        {
            lock (_lock) return _names.Values.Sum(c => (long)c.Bytes.Length);
        }
    }

    /// <summary>What a power cut leaves: all that was flushed, and of the rest whatever sectors the seed picks.</summary>
    public FaultyDisk AfterPowerCut(int seed)
    {
        Random random = new(seed);
        double kept = random.NextDouble();
        FaultyDisk after = new();
        lock (_lock)
        {
            foreach (string name in _names.Keys.Union(_durableNames.Keys).Order(StringComparer.Ordinal))
            {
                Content? now = _names.GetValueOrDefault(name), before = _durableNames.GetValueOrDefault(name);
                Content? content = ReferenceEquals(now, before) || random.NextDouble() < kept ? now : before;
                if (content is null) continue;
                byte[] bytes = new byte[content.Bytes.Length];
                content.Durable.CopyTo(bytes, 0);
                foreach (int sector in content.DirtySectors.Order().Where(_ => random.NextDouble() < kept))
                {
                    int at = sector * SectorBytes, length = Math.Min(SectorBytes, bytes.Length - at);
                    content.Bytes.AsSpan(at, length).CopyTo(bytes.AsSpan(at));
                }

                // The length of a file that grew without a flush is as uncertain as its bytes.
                if (bytes.Length > content.Durable.Length && random.NextDouble() > kept) Array.Resize(ref bytes, content.Durable.Length + random.Next(bytes.Length - content.Durable.Length));
                after._names[name] = after._durableNames[name] = new Content { Bytes = bytes, Durable = [.. bytes] };
            }
        }

        return after;
    }

    /// <summary>The process died, the machine did not: all that was written can be read, and no more of it is durable than before.</summary>
    public FaultyDisk Copy()
    {
        FaultyDisk copy = new();
        lock (_lock)
        {
            Dictionary<Content, Content> copies = [];
            foreach (Content content in _names.Values.Concat(_durableNames.Values))
            {
                if (copies.ContainsKey(content)) continue;
                Content made = copies[content] = new Content { Bytes = [.. content.Bytes], Durable = [.. content.Durable] };
                made.DirtySectors.UnionWith(content.DirtySectors);
            }

            foreach ((string name, Content content) in _names) copy._names[name] = copies[content];
            foreach ((string name, Content content) in _durableNames) copy._durableNames[name] = copies[content];
        }

        return copy;
    }

    public void Flip(string name, long offset)
    {
        lock (_lock) _names[name].Bytes[offset] ^= 0x40;
    }

    public void Cut(string name, long length)
    {
        lock (_lock)
        {
            Content content = _names[name];
            Array.Resize(ref content.Bytes, (int)length);
            Array.Resize(ref content.Durable, (int)Math.Min(length, content.Durable.Length));
            content.DirtySectors.RemoveWhere(sector => sector * SectorBytes >= length);
        }
    }

    public byte[] Bytes(string name)
    {
        lock (_lock) return [.. _names[name].Bytes];
    }

    public bool Exists(string name)
    {
        lock (_lock) return _names.ContainsKey(name);
    }

    public IReadOnlyList<string> List(string folder)
    {
        lock (_lock) return [.. _names.Keys.Where(n => Folder(n) == folder).Order(StringComparer.Ordinal)];
    }

    static string Folder(string name) => name.LastIndexOf('/') is >= 0 and int slash ? name[..slash] : "";

    public IDiskFile Open(string name, bool writable, bool create = false)
    {
        lock (_lock)
        {
            if (!_names.TryGetValue(name, out Content? content))
            {
                if (!create) throw new FileNotFoundException(name);
                _names[name] = content = new Content();
            }

            return new OpenFile(this, content);
        }
    }

    public void Rename(string from, string to)
    {
        lock (_lock)
        {
            _names[to] = _names[from];
            _names.Remove(from);
        }
    }

    public void Delete(string name)
    {
        lock (_lock) _names.Remove(name);
    }

    public void FlushNames(string folder)
    {
        lock (_lock)
        {
            foreach (string name in _durableNames.Keys.Where(n => Folder(n) == folder && !_names.ContainsKey(n)).ToList()) _durableNames.Remove(name);
            foreach ((string name, Content content) in _names.Where(n => Folder(n.Key) == folder)) _durableNames[name] = content;
        }
    }

    sealed class OpenFile(FaultyDisk disk, Content content) : IDiskFile
    {
        int _heardErrors = content.FlushErrors;

        public long Length
        {
            get
            {
                lock (disk._lock) return content.Bytes.Length;
            }
        }

        public int Read(Span<byte> buffer, long offset)
        {
            lock (disk._lock)
            {
                if (disk.FailReadIn > 0 && --disk.FailReadIn == 0) throw new IOException("The disk failed to read.");
                if (offset >= content.Bytes.Length) return 0;
                int length = (int)Math.Min(buffer.Length, content.Bytes.Length - offset);
                content.Bytes.AsSpan((int)offset, length).CopyTo(buffer);
                return length;
            }
        }

        public void Write(ReadOnlySpan<byte> bytes, long offset)
        {
            lock (disk._lock)
            {
                bool fails = disk.FailWriteIn > 0 && --disk.FailWriteIn == 0;
                if (fails && disk.FailingWriteIsTorn) bytes = bytes[..(bytes.Length / 2)];
                else if (fails) throw new IOException("The disk failed to write.");
                long end = offset + bytes.Length;
                if (end > content.Bytes.Length)
                {
                    if (disk._names.Values.Sum(c => (long)c.Bytes.Length) - content.Bytes.Length + end > disk.CapacityBytes) throw new DiskFullException("The disk is full.");
                    Array.Resize(ref content.Bytes, (int)end);
                }

                bytes.CopyTo(content.Bytes.AsSpan((int)offset));
                for (long sector = offset / SectorBytes; sector * SectorBytes < end; sector++) content.DirtySectors.Add((int)sector);
                if (fails) throw new IOException("The disk failed to write.");
            }
        }

        public void Flush()
        {
            // A test that failed must not hang the rest.
            Interlocked.Increment(ref disk._flushesWaiting);
            disk.FlushGate.Wait(TimeSpan.FromSeconds(5));
            Interlocked.Decrement(ref disk._flushesWaiting);
            lock (disk._lock)
            {
                bool fails = disk.FailFlushIn > 0 && --disk.FailFlushIn == 0;
                if (fails)
                {
                    // As the system does: what it could not write it forgets to be dirty.
                    content.DirtySectors.Clear();
                    content.FlushErrors++;
                }

                if (_heardErrors < content.FlushErrors)
                {
                    _heardErrors = content.FlushErrors;
                    throw new IOException("The disk failed to flush.");
                }

                disk.FlushCount++;
                if (content.Durable.Length == content.Bytes.Length)
                {
                    foreach (int sector in content.DirtySectors)
                    {
                        int at = sector * SectorBytes, length = Math.Min(SectorBytes, content.Bytes.Length - at);
                        content.Bytes.AsSpan(at, length).CopyTo(content.Durable.AsSpan(at));
                    }
                }
                else
                {
                    content.Durable = [.. content.Bytes];
                }

                content.DirtySectors.Clear();
            }
        }

        public void Dispose()
        {
        }
    }
}
