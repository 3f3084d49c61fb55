using System.Globalization;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Cluster;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Opening, changing and reading accounts.</summary>
sealed class AccountEndpoints(Router router, ViewReads views, NodeRole role, TimeProvider clock)
{
    const int HistoryLimitDefault = 50;
    const int HistoryLimitMax = 1000;

    /// <summary>Walks through long histories read the disk on the request's thread: a few at a time leave the rest of the server alone.</summary>
    readonly SemaphoreSlim _walks = new(4);

    /// <summary>Without authentication every caller is this one.</summary>
    public const string By = "local";

    /// <param name="reads">What a node without partitions answers, too.</param>
    public void Map(IEndpointRouteBuilder routes, IEndpointRouteBuilder reads)
    {
        const string account = "/v1/wallet/accounts/{account}";
        routes.MapPost("/v1/wallet/accounts", (RequestDelegate)OpenAsync);
        reads.MapGet(account, (RequestDelegate)GetAsync);
        routes.MapPut($"{account}/limits", (RequestDelegate)SetLimitsAsync);
        routes.MapPut($"{account}/metadata", (RequestDelegate)SetMetadataAsync);
        routes.MapPost($"{account}/freeze", (RequestDelegate)FreezeAsync);
        routes.MapPost($"{account}/unfreeze", http => ChangeAsync(http, CommandKind.Unfreeze));
        routes.MapPost($"{account}/close", http => ChangeAsync(http, CommandKind.Close));
        reads.MapGet($"{account}/balance", (RequestDelegate)BalanceAsync);
        routes.MapGet($"{account}/history", (RequestDelegate)HistoryAsync);
    }

    async Task OpenAsync(HttpContext http)
    {
        OpenAccountBody body = await Body.ReadAsync(http, BodyJson.Default.OpenAccountBody);
        AccountName account = Query.Account("account", body.Account);
        if (account.IsSystem) throw Query.SystemAccount(account);
        Command command = new()
        {
            Kind = CommandKind.OpenAccount,
            Account = account,
            Details = new CommandDetails { By = By, Metadata = Query.Metadata(body.Metadata), Limits = Query.Limits(body.Limits) },
        };
        Decision decision = await ExecuteAsync(http, command);
        if (decision.Outcome == Outcome.AccountExists && !IsSameOpening(body, command.Details, Readers(router.Of(account)), decision.Sequence))
            throw new Problem("account_exists", $"Account '{account}' was opened before with other metadata or limits.").With("account", body.Account);
        await AnswerChangedAsync(http, account, decision.Outcome == Outcome.Done ? 201 : 200);
    }

    /// <summary>The change is durable by now, whatever becomes of reading the account for the answer.</summary>
    async Task AnswerChangedAsync(HttpContext http, AccountName account, int status)
    {
        try
        {
            await AnswerAccountAsync(http, account, status);
        }
        catch (Problem problem) when (problem.Retryable)
        {
            throw new Problem(problem.Code, "The change was made, but the account could not be read for the answer. Read it again, or send the same again.", "applied");
        }
    }

    static bool IsSameOpening(OpenAccountBody body, CommandDetails details, EventReaders readers, ulong sequence)
    {
        State state = readers.State;
        RecordedEvent opened = readers.Read(sequence);
        Limits[] asked = [.. details.Limits!.Select(one => ToLimits(one, state)).OrderBy(one => one.Currency)];
        return asked.AsSpan().SequenceEqual(opened.Attachment.Limits()) && TransferEndpoints.SameJson(body.Metadata, opened.Attachment.Erased(AttachmentTag.Metadata));
    }

    static Limits ToLimits(in LimitsAsWritten written, State state)
    {
        state.TryCurrency(written.Currency, out uint currency, out int decimals);
        Amount.ToMinor(Int128.Abs(written.MinDigits), written.MinScale, decimals, out Int128 min);
        Amount.ToMinor(Int128.Abs(written.MaxDigits), written.MaxScale, decimals, out Int128 max);
        return new Limits(
            currency,
            written.HasMin ? (written.MinDigits < 0 ? -min : min) : null,
            written.HasMax ? (written.MaxDigits < 0 ? -max : max) : null);
    }

    async Task SetLimitsAsync(HttpContext http)
    {
        AccountName account = Query.OrdinaryAccountOfPath(http);
        SetLimitsBody body = await Body.ReadAsync(http, BodyJson.Default.SetLimitsBody);
        await ChangeAsync(http, new Command { Kind = CommandKind.SetLimits, Account = account, Details = new CommandDetails { By = By, Reason = Query.Reason(body.Reason), Limits = Query.Limits(body.Limits) } });
    }

    async Task SetMetadataAsync(HttpContext http)
    {
        AccountName account = Query.OrdinaryAccountOfPath(http);
        SetMetadataBody body = await Body.ReadAsync(http, BodyJson.Default.SetMetadataBody);
        await ChangeAsync(http, new Command { Kind = CommandKind.SetMetadata, Account = account, Details = new CommandDetails { By = By, Reason = Query.Reason(body.Reason), Metadata = Query.Metadata(body.Metadata) } });
    }

    async Task FreezeAsync(HttpContext http)
    {
        AccountName account = Query.OrdinaryAccountOfPath(http);
        FreezeBody body = await Body.ReadAsync(http, BodyJson.Default.FreezeBody);
        Direction direction = body.Direction switch
        {
            "debit" => Direction.Debit,
            "credit" => Direction.Credit,
            "both" => Direction.Both,
            _ => throw new Problem("malformed_request", $"direction is '{Query.Shorten(body.Direction)}'; it must be debit, credit or both."),
        };
        await ChangeAsync(http, new Command
        {
            Kind = CommandKind.Freeze,
            Account = account,
            Direction = direction,
            Details = new CommandDetails { By = By, Reason = Query.Reason(body.Reason) },
        });
    }

    async Task ChangeAsync(HttpContext http, CommandKind kind)
    {
        AccountName account = Query.OrdinaryAccountOfPath(http);
        ReasonBody body = await Body.ReadAsync(http, BodyJson.Default.ReasonBody, ifEmpty: new ReasonBody());
        await ChangeAsync(http, new Command { Kind = kind, Account = account, Details = new CommandDetails { By = By, Reason = Query.Reason(body.Reason) } });
    }

    async Task ChangeAsync(HttpContext http, Command command)
    {
        await ExecuteAsync(http, command);
        await AnswerChangedAsync(http, command.Account, 200);
    }

    async Task<Decision> ExecuteAsync(HttpContext http, Command command)
    {
        Query.AllowParameters(http);
        TimeSpan timeout = Query.Timeout(http);
        CommandRequest request = new(1);
        request.Commands[0] = command;
        Partition partition = router.Of(command.Account);
        RequestStatus status = await partition.SubmitAsync(request, timeout);
        if (status != RequestStatus.Answered) throw Problem.From(status, timeout);
        Decision decision = request.Decisions[0];
        switch (decision.Outcome)
        {
            case Outcome.Done or Outcome.Unchanged or Outcome.AccountExists:
                return decision;
            case Outcome.AccountNotFound:
                throw NotFound(command.Account);
            case Outcome.BalanceNotZero:
            {
                State state = Readers(partition).State;
                int decimals = state.Decimals(decision.Currency);
                string currency = state.CurrencyCode(decision.Currency);
                throw new Problem("balance_not_zero", $"Account '{command.Account}' still has {Amount.Format(decision.Posted, decimals)} {currency}; an account is closed empty.")
                    .With("currency", currency).With("posted", Amount.Format(decision.Posted, decimals)).With("held", Amount.Format(decision.Held, decimals));
            }

            default:
                throw Problem.From(decision.Outcome, string.Join(", ", command.Details?.Limits?.Select(one => one.Currency.ToString()) ?? []));
        }
    }

    static Problem NotFound(AccountName account) => new("account_not_found", $"No account '{account}' was opened.");

    sealed record AccountView(Account Account, List<Balance> Balances, Limits[] Limits);

    async Task GetAsync(HttpContext http)
    {
        Query.AllowParameters(http, "min_position", "source");
        if (IsOfView(http)) await views.AnswerAccountAsync(http, Query.AccountOfPath(http));
        else await AnswerAccountAsync(http, Query.AccountOfPath(http), 200);
    }

    async Task AnswerAccountAsync(HttpContext http, AccountName name, int status)
    {
        // Of a system account, each partition has a part: its balances are the sums.
        SortedDictionary<string, (Int128 Posted, Int128 Held, int Decimals)> balances = new(StringComparer.Ordinal);
        List<string> positions = [];
        AccountView? view = null;
        EventReaders readers = null!;
        long started = Environment.TickCount64;
        foreach (Partition partition in router.PartsOf(name))
        {
            (view, ulong sequence) = await ReadAsync(http, partition, state =>
            {
                uint number = state.Names.Find(name);
                if (number == 0 || !state.Account(number).IsOpened) return null;
                return new AccountView(state.Account(number), [.. state.Balances(number)], state.LimitsOf(number));
            }, started);
            if (view is null && !name.IsSystem) throw NotFound(name);
            readers = Readers(partition);
            positions.Add(Answer.Position(partition.Number, sequence));
            foreach (Balance balance in view?.Balances ?? [])
            {
                string currency = readers.State.CurrencyCode(balance.Currency);
                (Int128 posted, Int128 held, _) = balances.GetValueOrDefault(currency);
                balances[currency] = (posted + balance.Posted, held + balance.Held, readers.State.Decimals(balance.Currency));
            }
        }

        Account account = view?.Account ?? default;
        RecordedEvent? frozen = account.FrozenSequence == 0 ? null : readers.Read(account.FrozenSequence);
        byte[]? metadata = account.MetadataSequence == 0 ? null : readers.Read(account.MetadataSequence).Attachment.Erased(AttachmentTag.Metadata);
        await Answer.WriteAsync(http, status, json =>
        {
            json.WriteString("account", name.Utf8);
            json.WriteString("status", account.IsClosed ? "closed" : frozen is not null ? "frozen" : "open");
            if (frozen is not null) WriteFrozen(json, frozen);
            EventJson.WriteLimits(json, view?.Limits ?? [], readers.State);
            if (metadata is not null) EventJson.WriteRaw(json, "metadata", metadata);
            json.WriteStartObject("balances");
            foreach ((string currency, (Int128 posted, Int128 held, int decimals)) in balances)
            {
                json.WriteStartObject(currency);
                WriteFigures(json, posted, held, decimals);
                json.WriteEndObject();
            }

            json.WriteEndObject();
            json.WriteString("position", string.Join(',', positions));
        });
    }

    static void WriteFrozen(Utf8JsonWriter json, RecordedEvent frozen)
    {
        json.WriteStartObject("frozen");
        json.WriteString("direction", EventJson.DirectionName((Direction)frozen.Event.Code));
        if (frozen.Attachment.Text(AttachmentTag.Reason) is string reason) json.WriteString("reason", reason);
        if (frozen.Attachment.Text(AttachmentTag.By) is string by) json.WriteString("by", by);
        json.WriteString("since", Answer.Time(frozen.TimeMicros));
        json.WriteEndObject();
    }

    bool IsOfView(HttpContext http) => Query.Parameter(http, "source") switch
    {
        null => role == NodeRole.Query,
        "partition" => role == NodeRole.Query ? throw NodeRoles.ViewsOnly() : false,
        "view" => true,
        { } other => throw new Problem("malformed_request", $"source is '{Query.Shorten(other)}'; it must be partition or view."),
    };

    public static void WriteFigures(Utf8JsonWriter json, Int128 posted, Int128 held, int decimals)
    {
        json.WriteString("posted", Amount.Format(posted, decimals));
        json.WriteString("held", Amount.Format(held, decimals));
        json.WriteString("available", Amount.Format(posted - held, decimals));
    }

    async Task BalanceAsync(HttpContext http)
    {
        Query.AllowParameters(http, "currency", "as_of", "at", "min_position", "source");
        AccountName name = Query.AccountOfPath(http);
        string? asOfText = Query.Parameter(http, "as_of"), atText = Query.Parameter(http, "at");
        if (asOfText is not null && atText is not null) throw new Problem("malformed_request", "as_of and at cannot both be given.");
        long? asOf = asOfText is null ? null : Query.TimeMicros("as_of", asOfText);
        if (IsOfView(http))
        {
            if (asOf is not null || atText is not null) throw new Problem("malformed_request", "A view shows balances as they are now; as_of and at are answered with source=partition.");
            await views.AnswerBalanceAsync(http, name, CurrencyParameter(http));
            return;
        }

        CurrencyCode currency = CurrencyParameter(http, out int decimals);
        if (asOf > NowMicros()) throw new Problem("time_in_future", $"as_of is {asOfText}; it is {Answer.Time(NowMicros())} now.");

        Int128 posted = 0, held = 0;
        List<string> positions = [];
        (RecordedEvent Event, EventReaders Readers)? then = null;
        long started = Environment.TickCount64;
        foreach (Partition partition in router.PartsOf(name))
        {
            ulong? at = atText is null ? null : Query.Position("at", atText, partition.Number)
                ?? throw new Problem("malformed_request", $"at is '{Query.Shorten(atText)}', which has no entry for partition {partition.Number}.");
            (Balance balance, ulong sequence) = await ReadBalanceAsync(http, partition, name, currency, started, asOf ?? 0);
            if (at > sequence) throw new Problem("time_in_future", $"at is {partition.Number}:{at}; the last event is {partition.Number}:{sequence}.");
            positions.Add(Answer.Position(partition.Number, at ?? sequence));
            if (asOf is not null || at is not null)
            {
                EventReaders readers = Readers(partition);
                ulong found = await WalkAsync(http, cancellation => asOf is long time
                    ? readers.History.LastAtOrBefore(readers, balance, time, cancellation).Sequence
                    : readers.History.LastAtOrBeforeSequence(readers, balance, at!.Value, cancellation).Sequence);
                RecordedEvent? made = found == 0 ? null : readers.Read(found);
                (balance.Posted, balance.Held) = (made?.Event.Posted ?? 0, made?.Event.Held ?? 0);
                if (made is not null && made.TimeMicros >= (then?.Event.TimeMicros ?? 0)) then = (made, readers);
            }

            posted += balance.Posted;
            held += balance.Held;
        }

        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteString("account", name.Utf8);
            json.WriteString("currency", currency.ToString());
            WriteFigures(json, posted, held, decimals);
            json.WriteString("position", string.Join(',', positions));
            if (asOf is long time) json.WriteString("as_of", Answer.Time(time));
            if (then is not var (made, readers)) return;
            json.WritePropertyName("event");
            EventJson.Write(json, readers.Partition, readers.WithHead(made), readers.State);
        });
    }

    /// <summary>Where a page goes on in the events of one partition.</summary>
    sealed record Part(EventReaders Readers, Balance Balance)
    {
        public ulong Next { get; set; }

        public ulong End { get; set; }

        public bool HasMore(bool ascending) => ascending ? Next <= Math.Min(End, Balance.EventsCount) : Next >= Math.Max(End, 1);
    }

    async Task HistoryAsync(HttpContext http)
    {
        Query.AllowParameters(http, "currency", "limit", "cursor", "order", "from", "to", "min_position", "source");
        if (IsOfView(http)) throw new Problem("malformed_request", "History comes from the partition, which is exact; GET /v1/wallet/transfers searches the view.");
        AccountName name = Query.AccountOfPath(http);
        CurrencyCode currency = CurrencyParameter(http, out _);
        int limit = Limit(Query.Parameter(http, "limit"));
        bool ascending = Query.Parameter(http, "order") switch
        {
            null or "desc" => false,
            "asc" => true,
            { } other => throw new Problem("malformed_request", $"order is '{Query.Shorten(other)}'; it must be asc or desc."),
        };
        long? from = Query.Parameter(http, "from") is string fromText ? Query.TimeMicros("from", fromText) : null;
        long? to = Query.Parameter(http, "to") is string toText ? Query.TimeMicros("to", toText) : null;
        string? cursor = Query.Parameter(http, "cursor");

        List<Part> parts = [];
        long started = Environment.TickCount64;
        foreach (Partition partition in router.PartsOf(name)) parts.Add(new Part(Readers(partition), (await ReadBalanceAsync(http, partition, name, currency, started, 0)).Balance));
        if (cursor is not null)
        {
            (ascending, (ulong Next, ulong End)[] places) = Query.Cursor(cursor, parts.Count);
            for (int i = 0; i < parts.Count; i++) (parts[i].Next, parts[i].End) = places[i];
        }

        List<(RecordedEvent Event, Part Part)> page = await WalkAsync(http, cancellation =>
        {
            List<(RecordedEvent Event, Part Part)> all = [];
            foreach (Part part in parts)
            {
                if (cursor is null) (part.Next, part.End) = Bounds(part, ascending, from, to, cancellation);
                all.AddRange(Page(part.Readers, part.Balance, ascending, part.Next, part.End, limit, cancellation).Select(e => (e, part)));
            }

            // Of a system account, the parts' events come by their times.
            if (parts.Count > 1) all = [.. ascending ? all.OrderBy(one => one.Event.TimeMicros) : all.OrderByDescending(one => one.Event.TimeMicros)];
            return all.Count <= limit ? all : all[..limit];
        });
        foreach ((_, Part part) in page) part.Next = ascending ? part.Next + 1 : part.Next - 1;
        // Ascending without an upper end there is always more to come; a cursor for it only where there is already.
        bool more = page.Count > 0 && parts.Exists(part => part.HasMore(ascending));
        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteStartArray("events");
            foreach ((RecordedEvent e, Part part) in page) EventJson.Write(json, part.Readers.Partition, part.Readers.WithHead(e), part.Readers.State);
            json.WriteEndArray();
            json.WriteString("next_cursor", more ? Query.Cursor(ascending, parts.Select(part => (part.Next, part.End))) : null);
        });
    }

    static (ulong Next, ulong End) Bounds(Part part, bool ascending, long? from, long? to, CancellationToken cancellation)
    {
        ulong first = from is long f ? part.Readers.History.LastAtOrBefore(part.Readers, part.Balance, f - 1, cancellation).Number + 1 : 1;
        ulong last = to is long t ? part.Readers.History.LastAtOrBefore(part.Readers, part.Balance, t, cancellation).Number : ascending ? ulong.MaxValue : part.Balance.EventsCount;
        return ascending ? (first, last) : (last, first);
    }

    async Task<T> WalkAsync<T>(HttpContext http, Func<CancellationToken, T> walk)
    {
        TimeSpan timeout = Query.Timeout(http);
        using CancellationTokenSource deadline = CancellationTokenSource.CreateLinkedTokenSource(http.RequestAborted);
        deadline.CancelAfter(timeout);
        try
        {
            await _walks.WaitAsync(deadline.Token);
            try
            {
                return walk(deadline.Token);
            }
            finally
            {
                _walks.Release();
            }
        }
        catch (OperationCanceledException) when (!http.RequestAborted.IsCancellationRequested)
        {
            throw new Problem("deadline_exceeded", $"The history is long and was not walked to its goal within {timeout.TotalMilliseconds:0} ms. Ask again: the next walk goes on from there.");
        }
    }

    /// <summary>Events by their numbers in the balance's chain, which is walked backwards whatever the order.</summary>
    static List<RecordedEvent> Page(EventReaders readers, in Balance balance, bool ascending, ulong next, ulong end, int limit, CancellationToken cancellation)
    {
        ulong count = (ulong)limit;
        ulong high = ascending ? Math.Min(Math.Min(end, balance.EventsCount), next + count - 1) : Math.Min(next, balance.EventsCount);
        ulong low = ascending ? next : Math.Max(Math.Max(end, 1), high >= count ? high - count + 1 : 1);
        if (high < low || high == 0 || low == 0) return [];
        List<RecordedEvent> page = [.. readers.Backwards(readers.History.Find(readers, balance, high, cancellation)).Take((int)(high - low + 1))];
        if (ascending) page.Reverse();
        return page;
    }

    public static int Limit(string? text)
    {
        if (text is null) return HistoryLimitDefault;
        return int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int limit) && limit is >= 1 and <= HistoryLimitMax
            ? limit
            : throw new Problem("malformed_request", $"limit is '{Query.Shorten(text)}'; it must be 1 to {HistoryLimitMax}.");
    }

    static string CurrencyParameter(HttpContext http) => Query.Parameter(http, "currency") ?? throw new Problem("malformed_request", "The parameter currency is missing, such as ?currency=USD.");

    CurrencyCode CurrencyParameter(HttpContext http, out int decimals)
    {
        string text = CurrencyParameter(http);
        CurrencyCode code = Query.Currency(text);
        return Readers(router.All[0]).State.TryCurrency(code, out _, out decimals) ? code : throw Problem.From(Outcome.CurrencyUnknown, text);
    }

    async Task<(Balance Balance, ulong Sequence)> ReadBalanceAsync(HttpContext http, Partition partition, AccountName name, CurrencyCode currency, long startedTicks, long asOfMicros)
    {
        ((bool Found, Balance Balance) read, ulong sequence) = await ReadAsync(
            http,
            partition,
            state =>
            {
                uint account = state.Names.Find(name);
                state.TryCurrency(currency, out uint number, out _);
                return (account != 0 && state.Account(account).IsOpened, state.Balance(account, number));
            },
            startedTicks,
            asOfMicros);
        if (!read.Found && !name.IsSystem) throw NotFound(name);
        return (read.Balance, sequence);
    }

    /// <summary>Rides the queue; waits for <c>min_position</c> where one is asked for.</summary>
    /// <param name="startedTicks">When the first of several parts was asked; 0 where there is one.</param>
    static async Task<(T Result, ulong Sequence)> ReadAsync<T>(HttpContext http, Partition partition, Func<State, T> read, long startedTicks, long asOfMicros = 0)
    {
        ulong min = Query.Parameter(http, "min_position") is string text ? Query.Position("min_position", text, partition.Number) ?? 0 : 0;
        TimeSpan timeout = Query.Timeout(http);
        long deadline = startedTicks + (long)timeout.TotalMilliseconds;
        while (true)
        {
            ReadRequest<T> request = new(read) { AsOfMicros = asOfMicros };
            RequestStatus status = await partition.SubmitAsync(request, Query.Left(timeout, startedTicks));
            if (status != RequestStatus.Answered) throw Problem.From(status, timeout);
            if (request.Sequence >= min) return (request.Result, request.Sequence);
            if (Environment.TickCount64 >= deadline)
                throw new Problem("deadline_exceeded", $"The last event is {partition.Number}:{request.Sequence}; min_position {partition.Number}:{min} was not reached within {timeout.TotalMilliseconds:0} ms.");
            await Task.Delay(10, http.RequestAborted);
        }
    }

    long NowMicros() => (clock.GetUtcNow() - DateTimeOffset.UnixEpoch).Ticks / TimeSpan.TicksPerMicrosecond;

    static EventReaders Readers(Partition partition) => partition.Readers ?? throw Problem.From(RequestStatus.Unavailable, default);
}
