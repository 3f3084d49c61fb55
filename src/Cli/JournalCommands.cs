using System.CommandLine;
using System.Diagnostics;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;
using Purse.Cluster;
using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;
using Purse.Server;
using Spectre.Console;
using Command = System.CommandLine.Command;

namespace Purse.Cli;

/// <summary>What reads the journals by itself, also beside the server that writes them: replay, verify, export.</summary>
static class JournalCommands
{
    const int RowsMax = 50;

    public static Command Replay()
    {
        Option<string> data = Terminal.DataOption();
        Option<string?> cluster = Terminal.ClusterOption();
        Option<string?> at = new("--at") { Description = "Stop after this position (0:12) or time (2026-11-23T04:00:00Z), inclusive." };
        Option<string?> account = new("--account") { Description = "Only this account." };
        Option<string?> currency = new("--currency") { Description = "Only this currency." };
        Option<bool> json = Terminal.JsonOption();
        Command command = new("replay", "Rebuild all balances from the first event on, ignoring snapshots.") { data, cluster, at, account, currency, json };
        command.Validators.Add(result => Terminal.CheckEither(result, data, cluster));
        command.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            await using Journals journals = await Journals.OpenAsync(parsed.GetValue(data)!, parsed.GetValue(cluster));
            return await ReplayAsync(journals, parsed.GetValue(at), parsed.GetValue(account), parsed.GetValue(currency), parsed.GetValue(json));
        }));
        return command;
    }

    public static Command Verify()
    {
        Option<string> data = Terminal.DataOption();
        Option<string?> cluster = Terminal.ClusterOption();
        Option<bool> json = Terminal.JsonOption();
        Command command = new("verify", "Check the whole chain, every checksum, every invariant, and snapshots and runs against a replay. Exit 1 on any damage.") { data, cluster, json };
        command.Validators.Add(result => Terminal.CheckEither(result, data, cluster));
        command.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            await using Journals journals = await Journals.OpenAsync(parsed.GetValue(data)!, parsed.GetValue(cluster));
            return await VerifyAsync(journals, parsed.GetValue(json));
        }));
        return command;
    }

    public static Command Export()
    {
        Option<string> data = Terminal.DataOption();
        Option<string?> cluster = Terminal.ClusterOption();
        Option<string> format = new("--format") { Description = "jsonl or csv.", DefaultValueFactory = _ => "jsonl" };
        format.AcceptOnlyFromAmong("jsonl", "csv");
        Command command = new("export", "Write every event to stdout, in order, one partition after the other.") { data, cluster, format };
        command.Validators.Add(result => Terminal.CheckEither(result, data, cluster));
        command.SetAction((parsed, _) => Terminal.RunAsync(async () =>
        {
            await using Journals journals = await Journals.OpenAsync(parsed.GetValue(data)!, parsed.GetValue(cluster));
            return await ExportAsync(journals, parsed.GetValue(format)!);
        }));
        return command;
    }

    /// <summary>Those of a data folder, or of a cluster.</summary>
    sealed record Journals(IReadOnlyList<IJournalStore> Stores, DataFolder? Folder, ClusterStores? Cluster) : IAsyncDisposable
    {
        public int Count => Stores.Count;

        public static async Task<Journals> OpenAsync(string data, string? cluster)
        {
            if (cluster is null)
            {
                DataFolder folder = DataFolder.OpenForReading(data);
                return new Journals([.. Enumerable.Range(0, folder.PartitionsCount).Select(folder.Store)], folder, null);
            }

            ClusterStores stores = new(await ClusterMap.OpenAsync(cluster, static _ => { }), Terminal.Note);
            return new Journals(stores.Stores, null, stores);
        }

        public async ValueTask DisposeAsync()
        {
            Folder?.Dispose();
            if (Cluster is not null) await Cluster.DisposeAsync();
        }
    }

    /// <summary>What a replay has found.</summary>
    public sealed record Replayed(State State, ulong Events, ulong Blocks, TornTail? TornTail, TimeSpan Took);

    /// <summary>Reads a partition's journal from the first event on.</summary>
    /// <param name="sequenceMax">Where to stop, inclusive.</param>
    /// <param name="timeMicrosMax">Where to stop, inclusive.</param>
    /// <param name="onBlock">Sees each block after its events were applied.</param>
    public static Replayed ReplayPartition(
        IJournalStore store, int partitionsCount, bool checkMerkleRoots, ulong sequenceMax, long timeMicrosMax, Action<double> progress, OnReplayed? onBlock = null)
    {
        Stopwatch watch = Stopwatch.StartNew();
        StateMachine machine = new(new State(Random.Shared.NextInt64(), store.Partition, partitionsCount));
        using JournalReader reader = store.Read(checkMerkleRoots);
        while (machine.State.LastSequence < sequenceMax && reader.TryReadNext(out Block block))
        {
            if (block.Header.TimeMicros > timeMicrosMax) break;
            if (block.Header.RecordsCount > 0 && block.Header.LastSequence > sequenceMax)
            {
                // A position may lie inside a block.
                ReadOnlySpan<Event> all = block.RecordsAs<Event>();
                for (int i = 0; block.Header.FirstSequence + (ulong)i <= sequenceMax; i++)
                    machine.Apply(block.Header.FirstSequence + (ulong)i, block.Header.TimeMicros, all[i], block.Attachments, block.Erasable);
                break;
            }

            Partition.Apply(block, machine);
            // Nothing is decided here: a replay needs its last generation only. Who verifies sees at once that each id was decided once in its own.
            if (checkMerkleRoots) machine.State.Ids.Link();
            onBlock?.Invoke(block, machine.State);
            machine.State.Generations.Forget(machine.State.LastSequence);
            if (reader.LastNumber % 256 == 0) progress(reader.Done);
        }

        reader.Flush();
        return new Replayed(machine.State, machine.State.LastSequence, reader.LastNumber, reader.TornTail, watch.Elapsed);
    }

    public delegate void OnReplayed(in Block block, State state);

    /// <summary>One line of a replay: of a system account, what its parts in all partitions add up to.</summary>
    sealed record Line(string Account, string Currency, int Decimals)
    {
        public Int128 Posted { get; set; }

        public Int128 Held { get; set; }

        public ulong Events { get; set; }
    }

    static async Task<int> ReplayAsync(Journals journals, string? at, string? account, string? currency, bool asJson)
    {
        if (!TryParseAt(at, journals.Count, out ulong[] sequencesMax, out long timeMicrosMax)) return Exit.Usage;
        Replayed[] all = await Terminal.ProgressAsync("Replaying", progress => Task.Run(() => Enumerable.Range(0, journals.Count).Select(partition =>
            ReplayPartition(journals.Stores[partition], journals.Count, checkMerkleRoots: false, sequencesMax[partition], timeMicrosMax, done => progress((partition + done) / journals.Count))).ToArray()));
        foreach (Replayed replayed in all) WarnOfTornTail(journals, replayed.TornTail);

        Dictionary<(string, string), Line> lines = [];
        foreach (State state in all.Select(replayed => replayed.State))
        {
            for (int i = 0; i < state.BalancesCount; i++)
            {
                Balance balance = state.BalanceAt(i);
                string name = state.Names[balance.Account].ToString(), code = state.CurrencyCode(balance.Currency);
                if ((account is not null && name != account) || (currency is not null && code != currency)) continue;
                if (!lines.TryGetValue((name, code), out Line? line)) lines[(name, code)] = line = new Line(name, code, state.Decimals(balance.Currency));
                line.Posted += balance.Posted;
                line.Held += balance.Held;
                line.Events += balance.EventsCount;
            }

            // Asked for one balance that has no event yet: it is zero.
            if (account is null || currency is null || lines.Count > 0 || !CurrencyCode.TryParse(currency, out CurrencyCode asked) || !state.TryCurrency(asked, out _, out int decimals)) continue;
            if (AccountName.TryParse(account, out AccountName of) && state.Names.Find(of) != 0) lines[(account, currency)] = new Line(account, currency, decimals);
        }

        if (account is not null && lines.Count == 0)
        {
            Terminal.Error($"No event up to there touched a balance of '{account}'{(currency is null ? "" : $" in {currency}")}.");
            return Exit.Failed;
        }

        if (asJson) Console.WriteLine(JsonSerializer.Serialize(ToJson(all, lines.Values), Terminal.Indented));
        else PrintReplay(all, lines.Values, isFiltered: account is not null || currency is not null);
        return Exit.Done;
    }

    static bool TryParseAt(string? at, int partitions, out ulong[] sequencesMax, out long timeMicrosMax)
    {
        sequencesMax = new ulong[partitions];
        Array.Fill(sequencesMax, ulong.MaxValue);
        timeMicrosMax = long.MaxValue;
        if (at is null) return true;
        try
        {
            if (at.Contains('T', StringComparison.Ordinal))
            {
                timeMicrosMax = Query.TimeMicros("--at", at);
                return true;
            }

            for (int partition = 0; partition < partitions; partition++)
                sequencesMax[partition] = Query.Position("--at", at, partition) ?? throw new Problem("malformed_request", $"--at {at} has no entry for partition {partition}.");
            return true;
        }
        catch (Problem problem)
        {
            Terminal.Error(problem.Message);
            return false;
        }
    }

    static string Position(IEnumerable<Replayed> all) => string.Join(',', all.Select((replayed, partition) => Answer.Position(partition, replayed.State.LastSequence)));

    /// <summary>Over all partitions; within each they are 0 as well, which the replay has checked.</summary>
    static SortedDictionary<string, string> Sums(IEnumerable<Replayed> all)
    {
        SortedDictionary<string, string> sums = new(StringComparer.Ordinal);
        foreach (IGrouping<string, (State State, uint Currency)> currency in all.SelectMany(replayed => replayed.State.CurrenciesInUse().Select(c => (replayed.State, Currency: c))).GroupBy(one => one.State.CurrencyCode(one.Currency)))
        {
            Int128 sum = currency.Aggregate(Int128.Zero, (total, one) => total + one.State.CountSum(one.Currency));
            sums[currency.Key] = Amount.Format(sum, currency.First().State.Decimals(currency.First().Currency));
        }

        return sums;
    }

    static object ToJson(Replayed[] all, IEnumerable<Line> lines) => new
    {
        position = Position(all),
        time = Answer.Time(all.Max(replayed => replayed.State.LastTimeMicros)),
        events = all.Aggregate(0ul, (sum, replayed) => sum + replayed.Events),
        blocks = all.Aggregate(0ul, (sum, replayed) => sum + replayed.Blocks),
        seconds = all.Sum(replayed => replayed.Took.TotalSeconds),
        torn_tail = all.Select(replayed => replayed.TornTail?.ToString()).FirstOrDefault(torn => torn is not null),
        sums = Sums(all),
        balances = lines.Select(line => new
        {
            account = line.Account,
            currency = line.Currency,
            posted = Amount.Format(line.Posted, line.Decimals),
            held = Amount.Format(line.Held, line.Decimals),
            available = Amount.Format(line.Posted - line.Held, line.Decimals),
            events = line.Events,
        }),
    };

    static void PrintReplay(Replayed[] all, ICollection<Line> lines, bool isFiltered)
    {
        Table table = new Table().Border(TableBorder.Rounded)
            .AddColumn("account").AddColumn("currency").AddColumn("posted", c => c.RightAligned()).AddColumn("held", c => c.RightAligned())
            .AddColumn("available", c => c.RightAligned()).AddColumn("events", c => c.RightAligned());
        foreach (Line line in lines.Take(RowsMax))
        {
            table.AddRow(
                line.Account, line.Currency, Amount.Format(line.Posted, line.Decimals),
                Amount.Format(line.Held, line.Decimals), Amount.Format(line.Posted - line.Held, line.Decimals), $"{line.Events}");
        }

        if (lines.Count > 0) Terminal.Out.Write(table);
        if (lines.Count > RowsMax) Console.WriteLine($"… and {lines.Count - RowsMax} more balances; --json prints all, --account and --currency choose.");
        Console.WriteLine($"replayed {all.Aggregate(0ul, (sum, one) => sum + one.Events)} events in {all.Aggregate(0ul, (sum, one) => sum + one.Blocks)} blocks up to {Position(all)} in {all.Sum(one => one.Took.TotalSeconds):0.00} s");
        if (!isFiltered) PrintSums(all);
    }

    static void PrintSums(Replayed[] all)
    {
        foreach ((string currency, string sum) in Sums(all)) Console.WriteLine($"{currency} sum {(sum.AsSpan().ContainsAnyExcept("0.") ? sum : "0")}");
        for (int partition = 0; partition < all.Length; partition++)
        {
            if (!all[partition].State.IsBalanced) Console.WriteLine($"{Answer.Position(partition, all[partition].State.LastSequence)} lies between the two events of a transfer; its other half follows.");
        }
    }

    static void WarnOfTornTail(Journals journals, TornTail? torn)
    {
        // Beside a writer, it is only the block on its way.
        if (torn is not null && journals.Folder?.IsHeld() == false) Terminal.Note($"warning: {torn}. The next start cuts it off; nothing that was acknowledged as durable is in it.");
    }

    static async Task<int> VerifyAsync(Journals journals, bool asJson)
    {
        List<string> failures = [];
        List<Replayed> all = [];
        for (int partition = 0; partition < journals.Count; partition++)
        {
            List<string> own = [];
            try
            {
                Replayed replayed = await Terminal.ProgressAsync("Verifying", progress =>
                    Task.Run(() => VerifyPartition(journals.Stores[partition], journals.Count, own, done => progress((partition + done) / journals.Count))));
                all.Add(replayed);
                WarnOfTornTail(journals, replayed.TornTail);
                foreach (uint currency in replayed.State.CurrenciesInUse().Where(c => replayed.State.CountSum(c) != 0))
                    own.Add($"the balances in {replayed.State.CurrencyCode(currency)} add up to {Amount.Format(replayed.State.CountSum(currency), replayed.State.Decimals(currency))}, not 0");
            }
            catch (Exception e) when (e is JournalDamagedException or InvariantBrokenException or InvalidDataException or IndexOutOfRangeException or ArgumentOutOfRangeException)
            {
                own.Add(e.Message);
            }

            failures.AddRange(own.Select(failure => journals.Count == 1 ? failure : $"partition {partition}: {failure}"));
        }

        bool isWhole = all.Count == journals.Count;
        if (asJson)
        {
            Console.WriteLine(JsonSerializer.Serialize(
                new
                {
                    ok = failures.Count == 0,
                    events = isWhole ? all.Aggregate(0ul, (sum, one) => sum + one.Events) : (ulong?)null,
                    blocks = isWhole ? all.Aggregate(0ul, (sum, one) => sum + one.Blocks) : (ulong?)null,
                    position = isWhole ? Position(all) : null,
                    torn_tail = all.Select(one => one.TornTail?.ToString()).FirstOrDefault(torn => torn is not null),
                    failures,
                },
                Terminal.Indented));
        }
        else if (failures.Count == 0)
        {
            Console.WriteLine($"verified {all.Aggregate(0ul, (sum, one) => sum + one.Events)} events in {all.Aggregate(0ul, (sum, one) => sum + one.Blocks)} blocks up to {Position(all)} in {all.Sum(one => one.Took.TotalSeconds):0.00} s: chain, checksums, Merkle roots, invariants, each id once, snapshots, runs");
            PrintSums([.. all]);
        }

        foreach (string failure in failures) Terminal.Error(failure);
        return failures.Count == 0 ? Exit.Done : Exit.Failed;
    }

    static Replayed VerifyPartition(IJournalStore store, int partitionsCount, List<string> failures, Action<double> progress)
    {
        Snapshots snapshots = new(store.Files, store.Partition);
        Dictionary<ulong, (string Name, SnapshotHeader Header)> expected = [];
        foreach (string name in snapshots.List())
        {
            if (snapshots.TryReadHeader(name, out SnapshotHeader header)) expected[header.BlockNumber] = (name, header);
            else failures.Add($"{name} is damaged. It is only a shortcut: delete it.");
        }

        using RunCheck runs = new(store, failures);
        Replayed replayed = ReplayPartition(store, partitionsCount, checkMerkleRoots: true, ulong.MaxValue, long.MaxValue, progress, (in Block block, State state) =>
        {
            CheckDigests(block, failures);
            runs.See(state.Generations);
            if (!expected.Remove(block.Header.Number, out (string Name, SnapshotHeader Header) snapshot)) return;
            if (BlockHeader.ComputeHash(block.HeaderBytes) != snapshot.Header.BlockHash) failures.Add($"{snapshot.Name} was made after another block {block.Header.Number}. Delete it.");
            else if (!IsSameState(snapshots, snapshot.Name, snapshot.Header, state)) failures.Add($"{snapshot.Name} differs from the replay up to block {block.Header.Number}. Delete it.");
        });
        foreach ((string name, SnapshotHeader header) in expected.Values)
        {
            failures.Add($"journal_lost_tail: {name} was made after event {header.Sequence}, but the journal ends at event {replayed.State.LastSequence} (block {replayed.Blocks}). Restore the journal from a copy.");
        }

        if (runs.Finish(replayed.State) is string warning) Terminal.Note($"warning: {warning}");
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

    static bool IsSameState(Snapshots snapshots, string name, SnapshotHeader header, State state) =>
        snapshots.HashOf(hashed => snapshots.Read(name, header, written => written.CopyTo(hashed))) == snapshots.HashOf(state.Write);

    static async Task<int> ExportAsync(Journals journals, string format)
    {
        await using Stream output = new BufferedStream(Console.OpenStandardOutput(), 1024 * 1024);
        if (format == "csv") output.Write(Encoding.UTF8.GetBytes(string.Join(',', CsvColumns) + "\n"));
        for (int partition = 0; partition < journals.Count; partition++)
        {
            Replayed replayed = await Terminal.ProgressAsync("Exporting", progress =>
                Task.Run(() => ExportPartition(journals.Stores[partition], journals.Count, format, output, done => progress((partition + done) / journals.Count))));
            WarnOfTornTail(journals, replayed.TornTail);
        }

        return Exit.Done;
    }

    static readonly string[] CsvColumns =
    [
        "position", "time", "kind", "account", "counterparty", "currency", "amount", "posted", "held", "transaction_id", "previous", "code", "by", "reason", "direction",
        "description", "metadata", "limits", "hold", "expires_at", "reverses", "posting", "postings", "requested_amount", "decimals",
    ];

    static Replayed ExportPartition(IJournalStore store, int partitionsCount, string format, Stream output, Action<double> progress)
    {
        using MemoryStream line = new();
        using Utf8JsonWriter json = new(line, new JsonWriterOptions { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping });
        return ReplayPartition(store, partitionsCount, checkMerkleRoots: false, ulong.MaxValue, long.MaxValue, progress, (in Block block, State state) =>
        {
            ReadOnlySpan<Event> events = block.RecordsAs<Event>();
            byte[] attachments = block.Attachments.ToArray(), erasable = block.Erasable.ToArray();
            for (int i = 0; i < events.Length; i++)
            {
                line.SetLength(0);
                json.Reset();
                EventJson.Write(json, store.Partition, new RecordedEvent(block.Header.FirstSequence + (ulong)i, block.Header.TimeMicros, events[i], attachments, erasable), state);
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
