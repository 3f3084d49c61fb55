using System.CommandLine;
using System.Diagnostics;
using System.IO.Hashing;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;
using Purse.Server;
using Spectre.Console;
using Command = System.CommandLine.Command;

namespace Purse.Cli;

/// <summary>What reads a data folder by itself, also beside the server that writes it: replay, verify, export.</summary>
static class JournalCommands
{
    const int RowsMax = 50;

    public static Command Replay()
    {
        Option<string> data = Terminal.DataOption();
        Option<string?> at = new("--at") { Description = "Stop after this position (0:12) or time (2026-11-23T04:00:00Z), inclusive." };
        Option<string?> account = new("--account") { Description = "Only this account." };
        Option<string?> currency = new("--currency") { Description = "Only this currency." };
        Option<bool> json = Terminal.JsonOption();
        Command command = new("replay", "Rebuild all balances from the first event on, ignoring snapshots.") { data, at, account, currency, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(() => ReplayAsync(
            parsed.GetValue(data)!, parsed.GetValue(at), parsed.GetValue(account), parsed.GetValue(currency), parsed.GetValue(json))));
        return command;
    }

    public static Command Verify()
    {
        Option<string> data = Terminal.DataOption();
        Option<bool> json = Terminal.JsonOption();
        Command command = new("verify", "Check the whole chain, every checksum, every invariant, and snapshots against a replay. Exit 1 on any damage.") { data, json };
        command.SetAction((parsed, _) => Terminal.RunAsync(() => VerifyAsync(parsed.GetValue(data)!, parsed.GetValue(json))));
        return command;
    }

    public static Command Export()
    {
        Option<string> data = Terminal.DataOption();
        Option<string> format = new("--format") { Description = "jsonl or csv.", DefaultValueFactory = _ => "jsonl" };
        format.AcceptOnlyFromAmong("jsonl", "csv");
        Command command = new("export", "Write every event to stdout, in order.") { data, format };
        command.SetAction((parsed, _) => Terminal.RunAsync(() => ExportAsync(parsed.GetValue(data)!, parsed.GetValue(format)!)));
        return command;
    }

    /// <summary>What a replay has found.</summary>
    public sealed record Replayed(State State, ulong Events, ulong Blocks, TornTail? TornTail, TimeSpan Took);

    /// <summary>Reads a partition's journal from the first event on.</summary>
    /// <param name="sequenceMax">Where to stop, inclusive.</param>
    /// <param name="timeMicrosMax">Where to stop, inclusive.</param>
    /// <param name="onBlock">Sees each block after its events were applied.</param>
    public static Replayed ReplayPartition(
        DataFolder folder, int partition, bool checkMerkleRoots, ulong sequenceMax, long timeMicrosMax, Action<double> progress, OnReplayed? onBlock = null)
    {
        Stopwatch watch = Stopwatch.StartNew();
        StateMachine machine = new(new State(Random.Shared.NextInt64()));
        using JournalReader reader = new(folder.Disk(partition), partition, checkMerkleRoots);
        int segments = FileJournal.Segments(folder.Disk(partition)).Count;
        while (machine.State.LastSequence < sequenceMax && reader.TryReadNext(out Block block))
        {
            if (block.Header.TimeMicros > timeMicrosMax) break;
            if (block.Header.RecordsCount > 0 && block.Header.LastSequence > sequenceMax)
            {
                // A position may lie inside a block.
                ReadOnlySpan<Event> all = block.RecordsAs<Event>();
                for (int i = 0; block.Header.FirstSequence + (ulong)i <= sequenceMax; i++)
                    machine.Apply(block.Header.FirstSequence + (ulong)i, block.Header.TimeMicros, all[i], block.Attachments);
                break;
            }

            Partition.Apply(block, machine);
            onBlock?.Invoke(block, machine.State);
            if (reader.LastNumber % 256 == 0) progress((double)(reader.Next.Segment - 1) / segments);
        }

        reader.Flush();
        return new Replayed(machine.State, machine.State.LastSequence, reader.LastNumber, reader.TornTail, watch.Elapsed);
    }

    public delegate void OnReplayed(in Block block, State state);

    static async Task<int> ReplayAsync(string data, string? at, string? account, string? currency, bool asJson)
    {
        using DataFolder folder = DataFolder.OpenForReading(data);
        if (!TryParseAt(at, out ulong sequenceMax, out long timeMicrosMax)) return Exit.Usage;
        Replayed replayed = await Terminal.ProgressAsync("Replaying", progress =>
            Task.Run(() => ReplayPartition(folder, 0, checkMerkleRoots: false, sequenceMax, timeMicrosMax, progress)));
        WarnOfTornTail(folder, replayed.TornTail);

        State state = replayed.State;
        List<Balance> balances = [];
        for (int i = 0; i < state.BalancesCount; i++)
        {
            Balance balance = state.BalanceAt(i);
            if (account is not null && state.Names[balance.Account].ToString() != account) continue;
            if (currency is not null && state.CurrencyCode(balance.Currency) != currency) continue;
            balances.Add(balance);
        }

        if (account is not null && currency is not null && balances.Count == 0 && CurrencyCode.TryParse(currency, out CurrencyCode code) && state.TryCurrency(code, out uint number, out _))
        {
            // Asked for one balance that has no event yet: it is zero.
            if (AccountName.TryParse(account, out AccountName name) && (state.Names.Find(name) is var found && found != 0)) balances.Add(new Balance { Account = found, Currency = number });
        }

        if (account is not null && balances.Count == 0)
        {
            Terminal.Error($"No event up to there touched a balance of '{account}'{(currency is null ? "" : $" in {currency}")}.");
            return Exit.Failed;
        }

        if (asJson) Console.WriteLine(JsonSerializer.Serialize(ToJson(replayed, balances), Terminal.Indented));
        else PrintReplay(replayed, balances, isFiltered: account is not null || currency is not null);
        return Exit.Done;
    }

    static bool TryParseAt(string? at, out ulong sequenceMax, out long timeMicrosMax)
    {
        sequenceMax = ulong.MaxValue;
        timeMicrosMax = long.MaxValue;
        if (at is null) return true;
        try
        {
            if (at.Contains('T', StringComparison.Ordinal)) timeMicrosMax = Query.TimeMicros("--at", at);
            else sequenceMax = Query.Position("--at", at, 0) ?? throw new Problem("malformed_request", $"--at {at} has no entry for partition 0.");
            return true;
        }
        catch (Problem problem)
        {
            Terminal.Error(problem.Message);
            return false;
        }
    }

    static object ToJson(Replayed replayed, List<Balance> balances) => new
    {
        position = $"0:{replayed.State.LastSequence}",
        time = Answer.Time(replayed.State.LastTimeMicros),
        events = replayed.Events,
        blocks = replayed.Blocks,
        seconds = replayed.Took.TotalSeconds,
        torn_tail = replayed.TornTail?.ToString(),
        sums = replayed.State.CurrenciesInUse().ToDictionary(replayed.State.CurrencyCode, c => Amount.Format(replayed.State.CountSum(c), replayed.State.Decimals(c))),
        balances = balances.Select(balance =>
        {
            int decimals = replayed.State.Decimals(balance.Currency);
            return new
            {
                account = replayed.State.Names[balance.Account].ToString(),
                currency = replayed.State.CurrencyCode(balance.Currency),
                posted = Amount.Format(balance.Posted, decimals),
                held = Amount.Format(balance.Held, decimals),
                available = Amount.Format(balance.Available, decimals),
                events = balance.EventsCount,
            };
        }),
    };

    static void PrintReplay(Replayed replayed, List<Balance> balances, bool isFiltered)
    {
        State state = replayed.State;
        Table table = new Table().Border(TableBorder.Rounded)
            .AddColumn("account").AddColumn("currency").AddColumn("posted", c => c.RightAligned()).AddColumn("held", c => c.RightAligned())
            .AddColumn("available", c => c.RightAligned()).AddColumn("events", c => c.RightAligned());
        foreach (Balance balance in balances.Take(RowsMax))
        {
            int decimals = state.Decimals(balance.Currency);
            table.AddRow(
                state.Names[balance.Account].ToString(), state.CurrencyCode(balance.Currency), Amount.Format(balance.Posted, decimals),
                Amount.Format(balance.Held, decimals), Amount.Format(balance.Available, decimals), $"{balance.EventsCount}");
        }

        if (balances.Count > 0) Terminal.Out.Write(table);
        if (balances.Count > RowsMax) Console.WriteLine($"… and {balances.Count - RowsMax} more balances; --json prints all, --account and --currency choose.");
        Console.WriteLine($"replayed {replayed.Events} events in {replayed.Blocks} blocks up to 0:{state.LastSequence} in {replayed.Took.TotalSeconds:0.00} s");
        if (!isFiltered) PrintSums(state);
    }

    public static void PrintSums(State state)
    {
        foreach (uint currency in state.CurrenciesInUse())
        {
            Int128 sum = state.CountSum(currency);
            Console.WriteLine($"{state.CurrencyCode(currency)} sum {(sum == 0 ? "0" : Amount.Format(sum, state.Decimals(currency)))}");
        }

        if (!state.IsBalanced) Console.WriteLine($"0:{state.LastSequence} lies between the two events of a transfer; its other half follows.");
    }

    static void WarnOfTornTail(DataFolder folder, TornTail? torn)
    {
        // Beside a writer, it is only the block on its way.
        if (torn is not null && !folder.IsHeld()) Terminal.Note($"warning: {torn}. The next start cuts it off; nothing that was acknowledged as durable is in it.");
    }

    static async Task<int> VerifyAsync(string data, bool asJson)
    {
        using DataFolder folder = DataFolder.OpenForReading(data);
        List<string> failures = [];
        Replayed? replayed = null;
        try
        {
            replayed = await Terminal.ProgressAsync("Verifying", progress => Task.Run(() => VerifyPartition(folder, 0, failures, progress)));
        }
        catch (Exception e) when (e is JournalDamagedException or InvariantBrokenException or InvalidDataException or IndexOutOfRangeException or ArgumentOutOfRangeException)
        {
            failures.Add(e.Message);
        }

        if (replayed is not null)
        {
            WarnOfTornTail(folder, replayed.TornTail);
            foreach (uint currency in replayed.State.CurrenciesInUse().Where(c => replayed.State.CountSum(c) != 0))
                failures.Add($"the balances in {replayed.State.CurrencyCode(currency)} add up to {Amount.Format(replayed.State.CountSum(currency), replayed.State.Decimals(currency))}, not 0");
        }

        if (asJson)
        {
            Console.WriteLine(JsonSerializer.Serialize(
                new
                {
                    ok = failures.Count == 0,
                    events = replayed?.Events,
                    blocks = replayed?.Blocks,
                    position = replayed is null ? null : $"0:{replayed.State.LastSequence}",
                    torn_tail = replayed?.TornTail?.ToString(),
                    failures,
                },
                Terminal.Indented));
        }
        else if (replayed is not null && failures.Count == 0)
        {
            Console.WriteLine($"verified {replayed.Events} events in {replayed.Blocks} blocks up to 0:{replayed.State.LastSequence} in {replayed.Took.TotalSeconds:0.00} s: chain, checksums, Merkle roots, invariants, snapshots");
            PrintSums(replayed.State);
        }

        foreach (string failure in failures) Terminal.Error(failure);
        return failures.Count == 0 ? Exit.Done : Exit.Failed;
    }

    static Replayed VerifyPartition(DataFolder folder, int partition, List<string> failures, Action<double> progress)
    {
        Snapshots snapshots = new(folder.Disk(partition), partition);
        Dictionary<ulong, (string Name, SnapshotHeader Header)> expected = [];
        foreach (string name in snapshots.List())
        {
            if (snapshots.TryReadHeader(name, out SnapshotHeader header)) expected[header.BlockNumber] = (name, header);
            else failures.Add($"{name} is damaged. It is only a shortcut: delete it.");
        }

        Replayed replayed = ReplayPartition(folder, partition, checkMerkleRoots: true, ulong.MaxValue, long.MaxValue, progress, (in Block block, State state) =>
        {
            CheckDigests(block, failures);
            if (!expected.Remove(block.Header.Number, out (string Name, SnapshotHeader Header) snapshot)) return;
            if (BlockHeader.ComputeHash(block.HeaderBytes) != snapshot.Header.BlockHash) failures.Add($"{snapshot.Name} was made after another block {block.Header.Number}. Delete it.");
            else if (!IsSameState(snapshots, snapshot.Name, snapshot.Header, state)) failures.Add($"{snapshot.Name} differs from the replay up to block {block.Header.Number}. Delete it.");
        });
        foreach ((string name, SnapshotHeader header) in expected.Values)
        {
            failures.Add($"journal_lost_tail: {name} was made after event {header.Sequence}, but the journal ends at event {replayed.State.LastSequence} (block {replayed.Blocks}). Restore the journal from a copy.");
        }

        return replayed;
    }

    /// <summary>The texts that may be erased are not covered by the chain, but their digests are.</summary>
    static void CheckDigests(in Block block, List<string> failures)
    {
        if (block.Header.ErasableSizeBytes == 0) return;
        ReadOnlySpan<Event> events = block.RecordsAs<Event>();
        for (int i = 0; i < events.Length; i++)
        {
            Attachment attachment = new(events[i].Attachment, block.Attachments, block.Erasable);
            if (attachment.DigestHolds(AttachmentTag.Description) && attachment.DigestHolds(AttachmentTag.Metadata)) continue;
            failures.Add($"block {block.Header.Number}: a text of event {block.Header.FirstSequence + (ulong)i} is not the one that was recorded");
        }
    }

    static bool IsSameState(Snapshots snapshots, string name, in SnapshotHeader header, State state)
    {
        UInt128 written = 0;
        snapshots.Read(name, header, stream =>
        {
            XxHash128 hash = new();
            hash.Append(stream);
            written = hash.GetCurrentHashAsUInt128();
        });
        using HashStream replayed = new();
        state.Write(replayed);
        return replayed.Hash.GetCurrentHashAsUInt128() == written;
    }

    sealed class HashStream : Stream
    {
        public XxHash128 Hash { get; } = new();

        public override bool CanRead => false;

        public override bool CanSeek => false;

        public override bool CanWrite => true;

        public override long Length => throw new NotSupportedException();

        public override long Position
        {
            get => throw new NotSupportedException();
            set => throw new NotSupportedException();
        }

        public override void Write(ReadOnlySpan<byte> buffer) => Hash.Append(buffer);

        public override void Write(byte[] buffer, int offset, int count) => Hash.Append(buffer.AsSpan(offset, count));

        public override void Flush()
        {
        }

        public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();

        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();
    }

    static async Task<int> ExportAsync(string data, string format)
    {
        using DataFolder folder = DataFolder.OpenForReading(data);
        await using Stream output = new BufferedStream(Console.OpenStandardOutput(), 1024 * 1024);
        if (format == "csv") output.Write(Encoding.UTF8.GetBytes(string.Join(',', CsvColumns) + "\n"));
        Replayed replayed = await Terminal.ProgressAsync("Exporting", progress => Task.Run(() => ExportPartition(folder, 0, format, output, progress)));
        WarnOfTornTail(folder, replayed.TornTail);
        return Exit.Done;
    }

    static readonly string[] CsvColumns =
    [
        "position", "time", "kind", "account", "counterparty", "currency", "amount", "posted", "held", "transaction_id", "previous", "code", "by", "reason", "direction",
        "description", "metadata", "limits", "hold", "expires_at", "reverses", "posting", "postings", "requested_amount", "decimals",
    ];

    static Replayed ExportPartition(DataFolder folder, int partition, string format, Stream output, Action<double> progress)
    {
        using MemoryStream line = new();
        using Utf8JsonWriter json = new(line, new JsonWriterOptions { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping });
        return ReplayPartition(folder, partition, checkMerkleRoots: false, ulong.MaxValue, long.MaxValue, progress, (in Block block, State state) =>
        {
            ReadOnlySpan<Event> events = block.RecordsAs<Event>();
            byte[] attachments = block.Attachments.ToArray(), erasable = block.Erasable.ToArray();
            for (int i = 0; i < events.Length; i++)
            {
                line.SetLength(0);
                json.Reset();
                EventJson.Write(json, partition, new RecordedEvent(block.Header.FirstSequence + (ulong)i, block.Header.TimeMicros, events[i], attachments, erasable), state);
                json.Flush();
                if (format == "csv") output.Write(Encoding.UTF8.GetBytes(ToCsv(line.GetBuffer().AsMemory(0, (int)line.Length))));
                else output.Write(line.GetBuffer(), 0, (int)line.Length);
                output.WriteByte((byte)'\n');
            }
        });
    }

    static string ToCsv(ReadOnlyMemory<byte> line)
    {
        using JsonDocument document = JsonDocument.Parse(line);
        return string.Join(',', CsvColumns.Select(column => document.RootElement.TryGetProperty(column, out JsonElement value) ? CsvField(value) : ""));
    }

    static string CsvField(JsonElement value)
    {
        string text = value.ValueKind == JsonValueKind.String ? value.GetString()! : value.GetRawText();
        // A leading character that a spreadsheet takes for a formula, in a text that a caller chose, is made harmless.
        if (text.Length > 0 && text[0] is '=' or '+' or '@' or '\t' or '\r' && value.ValueKind == JsonValueKind.String && !AccountName.TryParse(text, out _)) text = "'" + text;
        return text.AsSpan().ContainsAny(",\"\n\r") ? $"\"{text.Replace("\"", "\"\"", StringComparison.Ordinal)}\"" : text;
    }
}
