using System.Buffers;
using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Numerics;
using System.Runtime.InteropServices;
using Purse.Client;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Transfers as packed records (docs/grpc.md): what one stream brings a million times a second.</summary>
sealed partial class TransferEndpoints
{
    /// <summary>By the power of two that they hold: requests that nobody uses now.</summary>
    static readonly ConcurrentBag<CommandRequest>[] IdleRequests = [.. Enumerable.Range(0, 15).Select(static _ => new ConcurrentBag<CommandRequest>())];

    /// <summary>Names and records of one batch, wherever they lie.</summary>
    readonly record struct PackedBatch(ReadOnlyMemory<byte> Names, ReadOnlyMemory<byte> Records)
    {
        public int Count => Records.Length / PackedTransfer.SizeBytes;

        public ReadOnlySpan<PackedTransfer> Transfers => MemoryMarshal.Cast<byte, PackedTransfer>(Records.Span);
    }

    /// <summary>Where the names begin, at their byte of length. From a pool.</summary>
    readonly struct NamePlaces : IDisposable
    {
        readonly int[] _places;
        readonly int _count;

        public NamePlaces(ReadOnlySpan<byte> names)
        {
            int[] places = ArrayPool<int>.Shared.Rent(4096);
            int count = 0;
            for (int at = 0; at < names.Length; at += 1 + names[at])
            {
                if (count == places.Length)
                {
                    int[] more = ArrayPool<int>.Shared.Rent(count * 2);
                    places.CopyTo(more, 0);
                    ArrayPool<int>.Shared.Return(places);
                    places = more;
                }

                places[count++] = at;
            }

            (_places, _count) = (places, count);
        }

        public bool TryGet(ReadOnlySpan<byte> names, uint number, out AccountName name)
        {
            name = default;
            if (number >= (uint)_count) return false;
            int at = _places[number];
            return at + 1 + names[at] <= names.Length && AccountName.TryParse(names.Slice(at + 1, names[at]), out name);
        }

        /// <summary>With its byte of length.</summary>
        public ReadOnlySpan<byte> Whole(ReadOnlySpan<byte> names, uint number) => names.Slice(_places[number], 1 + names[_places[number]]);

        public void Dispose() => ArrayPool<int>.Shared.Return(_places);
    }

    /// <summary>Decides a batch, each transfer with the outcome it would have alone.</summary>
    /// <param name="results">A record for each of them.</param>
    /// <exception cref="InvalidDataException">It is not made of records.</exception>
    public async Task ExecutePackedAsync(ReadOnlyMemory<byte> names, ReadOnlyMemory<byte> records, Memory<byte> results, TimeSpan timeout)
    {
        PackedBatch batch = new(names, records);
        if (_directory.Count == 1 && _directory.AllHere is { } here)
        {
            await ExecuteAsync(here[0], batch, results, timeout);
            return;
        }

        // Each partition gets its own, in their order.
        List<int>?[] of = Spread(batch, results.Span);
        await Task.WhenAll(Enumerable.Range(0, of.Length).Where(number => of[number] is not null).Select(async number =>
        {
            List<int> places = of[number]!;
            byte[] some;
            try
            {
                some = await _directory.AskAsync(_packed, number, Part(batch, places), timeout);
            }
            catch (Problem problem)
            {
                foreach (int i in places) Records(results)[i] = Rejected(problem);
                return;
            }

            ReadOnlySpan<PackedResult> answers = MemoryMarshal.Cast<byte, PackedResult>(some);
            for (int k = 0; k < places.Count; k++) Records(results)[places[k]] = answers[k];
        }));
    }

    static Span<PackedResult> Records(Memory<byte> results) => MemoryMarshal.Cast<byte, PackedResult>(results.Span);

    /// <summary>By partition, the places of its transfers. What has none is refused at once.</summary>
    List<int>?[] Spread(in PackedBatch batch, Span<byte> results)
    {
        List<int>?[] of = new List<int>?[_directory.Count];
        ReadOnlySpan<byte> names = batch.Names.Span;
        using NamePlaces places = new(names);
        ReadOnlySpan<PackedTransfer> transfers = batch.Transfers;
        for (int i = 0; i < transfers.Length; i++)
        {
            if (places.TryGet(names, transfers[i].From, out AccountName payer) && places.TryGet(names, transfers[i].To, out AccountName payee))
                (of[_directory.Router.Of(payer, payee, transfers[i].Id)] ??= []).Add(i);
            else MemoryMarshal.Cast<byte, PackedResult>(results)[i] = Rejected(AccountMalformed);
        }

        return of;
    }

    static readonly Problem AccountMalformed = new("account_malformed", "");
    static readonly Problem Malformed = new("malformed_request", "");

    /// <summary>Some transfers of a batch with their names, as one piece: the length of the names, names, records.</summary>
    static byte[] Part(in PackedBatch batch, List<int> which)
    {
        ReadOnlySpan<byte> names = batch.Names.Span;
        using NamePlaces places = new(names);
        ReadOnlySpan<PackedTransfer> transfers = batch.Transfers;
        int length = 0;
        foreach (int i in which) length += places.Whole(names, transfers[i].From).Length + places.Whole(names, transfers[i].To).Length;
        byte[] part = new byte[4 + length + which.Count * PackedTransfer.SizeBytes];
        BinaryPrimitives.WriteInt32LittleEndian(part, length);
        Span<byte> target = part.AsSpan(4, length);
        Span<PackedTransfer> records = MemoryMarshal.Cast<byte, PackedTransfer>(part.AsSpan(4 + length));
        for (int k = 0; k < which.Count; k++)
        {
            PackedTransfer record = transfers[which[k]];
            foreach (uint name in (ReadOnlySpan<uint>)[record.From, record.To])
            {
                ReadOnlySpan<byte> whole = places.Whole(names, name);
                whole.CopyTo(target);
                target = target[whole.Length..];
            }

            (record.From, record.To) = (2 * (uint)k, 2 * (uint)k + 1);
            records[k] = record;
        }

        return part;
    }

    async Task<byte[]> ExecutePartAsync(Partition partition, byte[] part, TimeSpan timeout, CancellationToken cancellation)
    {
        int length = BinaryPrimitives.ReadInt32LittleEndian(part);
        PackedBatch batch = new(part.AsMemory(4, length), part.AsMemory(4 + length));
        byte[] results = new byte[batch.Count * PackedResult.SizeBytes];
        await ExecuteAsync(partition, batch, results, timeout);
        return results;
    }

    async Task ExecuteAsync(Partition partition, PackedBatch batch, Memory<byte> results, TimeSpan timeout)
    {
        long started = Environment.TickCount64;
        ConcurrentBag<CommandRequest> pool = IdleRequests[BitOperations.Log2(BitOperations.RoundUpToPowerOf2((uint)batch.Count))];
        CommandRequest request = pool.TryTake(out CommandRequest? idle) ? idle : new CommandRequest((int)BitOperations.RoundUpToPowerOf2((uint)batch.Count));
        bool areAllWell = Fill(request, batch, Records(results));
        RequestStatus status = request.Count == 0 ? RequestStatus.Answered : await partition.SubmitAsync(request, timeout);
        if (!IsDecided(status)) Reject(results, Problem.From(status, timeout));
        else if (!Tell(request, Readers(partition), results, areAllWell)) await TellRestAsync(partition, request, results, timeout, started);
        if (request.Count == 0 || request.IsReusable) pool.Add(request);
    }

    /// <summary>The command of each record that is well-formed; the others are refused.</summary>
    /// <returns>Whether all are.</returns>
    static bool Fill(CommandRequest request, in PackedBatch batch, Span<PackedResult> results)
    {
        ReadOnlySpan<byte> names = batch.Names.Span;
        using NamePlaces places = new(names);
        ReadOnlySpan<PackedTransfer> transfers = batch.Transfers;
        int count = 0;
        for (int i = 0; i < transfers.Length; i++)
        {
            ref readonly PackedTransfer transfer = ref transfers[i];
            ref Command command = ref request.Commands[count];
            // Of one that is decided, its answer writes over this.
            results[i] = default;
            if (!places.TryGet(names, transfer.From, out command.Account) || !places.TryGet(names, transfer.To, out command.Counterparty))
            {
                results[i] = Rejected(AccountMalformed);
                continue;
            }

            bool isPending = (transfer.Flags & PackedFlags.Pending) != 0;
            if (transfer.Reserved != 0 || (transfer.Flags & ~(PackedFlags.Pending | PackedFlags.UpTo | PackedFlags.DryRun)) != 0 || (transfer.ExpiresInSeconds != 0 && !isPending) || transfer.ExpiresInSeconds > 31_536_000)
            {
                results[i] = Rejected(Malformed);
                continue;
            }

            command.Kind = CommandKind.Transfer;
            command.AmountDigits = transfer.AmountDigits;
            command.AmountScale = transfer.AmountDecimals;
            command.Currency = new CurrencyCode(transfer.Currency);
            command.TransactionId = transfer.Id;
            command.Pending = isPending;
            command.UpTo = (transfer.Flags & PackedFlags.UpTo) != 0;
            command.DryRun = (transfer.Flags & PackedFlags.DryRun) != 0;
            command.ExpiresInSeconds = (int)transfer.ExpiresInSeconds;
            command.Details = null;
            count++;
        }

        request.Count = count;
        return count == transfers.Length;
    }

    /// <summary>Writes all answers that need nothing read for them.</summary>
    /// <returns>Whether these were all.</returns>
    static bool Tell(CommandRequest request, EventReaders readers, Memory<byte> results, bool areAllWell)
    {
        bool isDone = true;
        State state = readers.State;
        ushort partition = (ushort)readers.Partition;
        Span<PackedResult> records = Records(results);
        for (int i = 0, k = 0; k < request.Count; i++)
        {
            if (!areAllWell && records[i].Status != 0) continue;
            ref readonly Decision decision = ref request.Decisions[k];
            if (decision.Outcome == Outcome.Done && !decision.IsPartOnly) records[i] = Completed(request.Commands[k].Pending, decision, partition, state);
            else isDone = false;
            k++;
        }

        return isDone;
    }

    static PackedResult Completed(bool isPending, in Decision decision, ushort partition, State state) => new()
    {
        Status = (byte)(isPending ? TransferStatus.Pending : TransferStatus.Completed),
        Partition = partition,
        Sequence = decision.LastSequence,
        TimeMicros = decision.TimeMicros,
        AmountDigits = decision.Amount,
        AmountDecimals = (byte)state.Decimals(decision.Currency),
    };

    /// <summary>Refusals, ids that were decided before, dry runs that others have a say in.</summary>
    async Task TellRestAsync(Partition partition, CommandRequest request, Memory<byte> results, TimeSpan timeout, long started)
    {
        EventReaders readers = Readers(partition);
        int count = results.Length / PackedResult.SizeBytes;
        for (int i = 0, k = 0; i < count && k < request.Count; i++)
        {
            if (Records(results)[i].Code != 0) continue;
            Command command = request.Commands[k];
            Decision decision = request.Decisions[k++];
            if (Records(results)[i].Status != 0) continue;
            PackedResult result;
            try
            {
                decision = await AskOthersAsync(partition, command, decision, timeout, started);
                result = ToPacked(command, decision, readers);
            }
            catch (Problem problem)
            {
                result = Rejected(problem);
            }

            Records(results)[i] = result;
        }
    }

    static PackedResult ToPacked(in Command command, in Decision decision, EventReaders readers)
    {
        ushort partition = (ushort)readers.Partition;
        switch (decision.Outcome)
        {
            case Outcome.Done:
                return Completed(command.Pending, decision, partition, readers.State);
            case Outcome.Undecided:
                return new PackedResult { Status = (byte)TransferStatus.InDoubt, Flags = PackedResultFlags.Unknown };
            case Outcome.Duplicate:
                Result result = Replay(command, null, readers.ReadDecision(decision.Sequence), readers);
                PackedResult packed = result.Problem is Problem problem ? Rejected(problem) : Recorded(result.Recorded!, partition, readers);
                if (!result.IsReplayed) return packed;
                packed.Flags |= PackedResultFlags.Replayed;
                if (result.Problem is not null) (packed.Partition, packed.Sequence) = (partition, decision.Sequence);
                return packed;
            case < Outcome.FromAccountNotFound or >= Outcome.StorageFull:
                return Rejected(Problem.From(decision.Outcome, ""));
            default:
                return new PackedResult { Status = (byte)TransferStatus.Rejected, Code = (ushort)decision.Outcome, Partition = partition, Sequence = decision.LastSequence };
        }
    }

    static PackedResult Recorded(RecordedEvent first, ushort partition, EventReaders readers) => new()
    {
        Status = (byte)(first.Event.Kind == EventKind.Held ? TransferStatus.Pending : TransferStatus.Completed),
        Partition = partition,
        Sequence = first.Parts.FirstOrDefault(part => part.Partition == partition) is { Sequence: > 0 } part ? part.Sequence : LastOf(first),
        TimeMicros = first.TimeMicros,
        AmountDigits = first.Event.Amount,
        AmountDecimals = (byte)readers.State.Decimals(first.Event.Currency),
    };

    static PackedResult Rejected(Problem problem) => new()
    {
        Status = (byte)TransferStatus.Rejected,
        Code = PackedCodes.ByName[problem.Code],
        Flags = (problem.Retryable ? PackedResultFlags.Retryable : 0) | (problem.Outcome == "unknown" ? PackedResultFlags.Unknown : 0),
    };

    /// <summary>All that are not refused already.</summary>
    static void Reject(Memory<byte> results, Problem problem)
    {
        PackedResult rejected = Rejected(problem);
        foreach (ref PackedResult result in Records(results))
        {
            if (result.Status == 0) result = rejected;
        }
    }
}
