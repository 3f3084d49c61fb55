using System.Globalization;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Opening, changing and reading accounts.</summary>
sealed partial class AccountEndpoints
{
    const int HistoryLimitDefault = 50;
    const int HistoryLimitMax = 1000;

    /// <summary>Walks through long histories read the disk on the request's thread: a few at a time leave the rest of the server alone.</summary>
    readonly SemaphoreSlim _walks = new(4);
    readonly PartitionDirectory _directory;
    readonly ViewReads _views;
    readonly NodeRole _role;
    readonly TimeProvider _clock;
    readonly PartQuestion<AccountAsked, AccountPart> _account;
    readonly PartQuestion<BalanceAsked, BalancePart> _balance;
    readonly PartQuestion<HistoryAsked, HistoryPart> _history;
    readonly PartQuestion<string[], OpenedPart[]> _open;
    readonly PartQuestion<BalancesAsked, BalancePart?[]> _balances;

    public AccountEndpoints(PartitionDirectory directory, ViewReads views, NodeRole role, TimeProvider clock)
    {
        (_directory, _views, _role, _clock) = (directory, views, role, clock);
        _account = directory.Question("account", PartJson.Default.AccountAsked, PartJson.Default.AccountPart, AccountPartAsync);
        _balance = directory.Question("balance", PartJson.Default.BalanceAsked, PartJson.Default.BalancePart, BalancePartAsync);
        _history = directory.Question("history", PartJson.Default.HistoryAsked, PartJson.Default.HistoryPart, HistoryPartAsync);
        _open = directory.Question("open", PartJson.Default.StringArray, PartJson.Default.OpenedPartArray, OpenPartAsync);
        _balances = directory.Question("balances", PartJson.Default.BalancesAsked, PartJson.Default.BalancePartArray, BalancesPartAsync);
    }

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
        if (await _directory.HereAsync(http, _directory.Router.Of(account)) is not Partition partition) return;
        Decision decision = await ExecuteAsync(http, partition, command);
        if (decision.Outcome == Outcome.AccountExists && !IsSameOpening(body, command.Details, Readers(partition), decision.Sequence))
            throw new Problem("account_exists", $"Account '{account}' was opened before with other metadata or limits.").With("account", body.Account);
        await AnswerChangedAsync(http, partition, account, decision.Outcome == Outcome.Done ? 201 : 200);
    }

    /// <summary>The change is durable by now, whatever becomes of reading the account for the answer.</summary>
    static async Task AnswerChangedAsync(HttpContext http, Partition partition, AccountName account, int status)
    {
        try
        {
            await AnswerAccountAsync(http, partition, account, status);
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
        if (await _directory.HereAsync(http, _directory.Router.Of(command.Account)) is not Partition partition) return;
        await ExecuteAsync(http, partition, command);
        await AnswerChangedAsync(http, partition, command.Account, 200);
    }

    static async Task<Decision> ExecuteAsync(HttpContext http, Partition partition, Command command)
    {
        Query.AllowParameters(http);
        TimeSpan timeout = Query.Timeout(http);
        CommandRequest request = new(1);
        request.Commands[0] = command;
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
                DecisionDetails left = decision.Details!;
                throw new Problem("balance_not_zero", $"Account '{command.Account}' still has {Amount.Format(left.Posted, decimals)} {currency}; an account is closed empty.")
                    .With("currency", currency).With("posted", Amount.Format(left.Posted, decimals)).With("held", Amount.Format(left.Held, decimals));
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
        AccountName name = Query.AccountOfPath(http);
        if (IsOfView(http)) await _views.AnswerAccountAsync(http, name);
        else if (name.IsSystem) await AnswerSystemAccountAsync(http, name);
        else if (await _directory.HereAsync(http, _directory.Router.Of(name)) is Partition partition) await AnswerAccountAsync(http, partition, name, 200);
    }

    static async Task AnswerAccountAsync(HttpContext http, Partition partition, AccountName name, int status)
    {
        (AccountView? view, ulong sequence) = await ReadAsync(partition, state => View(state, name), Min(http, partition.Number), Query.Timeout(http), http.RequestAborted);
        if (view is null) throw NotFound(name);
        EventReaders readers = Readers(partition);
        RecordedEvent? frozen = view.Account.FrozenSequence == 0 ? null : readers.Read(view.Account.FrozenSequence);
        byte[]? metadata = view.Account.MetadataSequence == 0 ? null : readers.Read(view.Account.MetadataSequence).Attachment.Erased(AttachmentTag.Metadata);
        await Answer.WriteAsync(http, status, json =>
        {
            json.WriteString("account", name.Utf8);
            json.WriteString("status", view.Account.IsClosed ? "closed" : frozen is not null ? "frozen" : "open");
            if (frozen is not null) WriteFrozen(json, frozen);
            EventJson.WriteLimits(json, view.Limits, readers.State);
            if (metadata is not null) EventJson.WriteRaw(json, "metadata", metadata);
            WriteBalances(json, ToParts(view, readers.State, sequence));
            json.WriteString("position", Answer.Position(partition.Number, sequence));
        });
    }

    static AccountView? View(State state, AccountName name)
    {
        uint number = state.Names.Find(name);
        return number == 0 || !state.Account(number).IsOpened ? null : new AccountView(state.Account(number), [.. state.Balances(number)], state.LimitsOf(number));
    }

    static BalancePart[] ToParts(AccountView? view, State state, ulong sequence) =>
        [.. (view?.Balances ?? []).Select(balance => new BalancePart(state.CurrencyCode(balance.Currency), state.Decimals(balance.Currency), balance.Posted, balance.Held, sequence))];

    /// <summary>Each partition has a part of it: its balances are the sums.</summary>
    async Task AnswerSystemAccountAsync(HttpContext http, AccountName name)
    {
        TimeSpan timeout = Query.Timeout(http);
        long started = Environment.TickCount64;
        List<BalancePart> balances = [];
        List<string> positions = [];
        foreach (int number in _directory.Router.PartsOf(name))
        {
            AccountPart part = await _directory.AskAsync(_account, number, new AccountAsked(name.ToString(), Min(http, number)), Query.Left(timeout, started), http.RequestAborted);
            balances.AddRange(part.Balances);
            positions.Add(Answer.Position(number, part.Position));
        }

        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteString("account", name.Utf8);
            json.WriteString("status", "open");
            json.WriteStartObject("limits");
            json.WriteEndObject();
            WriteBalances(json, balances);
            json.WriteString("position", string.Join(',', positions));
        });
    }

    static async Task<AccountPart> AccountPartAsync(Partition partition, AccountAsked asked, TimeSpan timeout, CancellationToken cancellation)
    {
        AccountName name = AccountName.Parse(asked.Account);
        (AccountView? view, ulong sequence) = await ReadAsync(partition, state => View(state, name), asked.Min, timeout, cancellation);
        return new AccountPart(sequence, ToParts(view, Readers(partition).State, sequence));
    }

    static void WriteBalances(Utf8JsonWriter json, IEnumerable<BalancePart> parts)
    {
        json.WriteStartObject("balances");
        foreach (IGrouping<string, BalancePart> currency in parts.GroupBy(part => part.Currency).OrderBy(group => group.Key, StringComparer.Ordinal))
        {
            json.WriteStartObject(currency.Key);
            WriteFigures(json, Sum(currency, part => part.Posted), Sum(currency, part => part.Held), currency.First().Decimals);
            json.WriteEndObject();
        }

        json.WriteEndObject();
    }

    static Int128 Sum(IEnumerable<BalancePart> parts, Func<BalancePart, Int128> figure) => parts.Aggregate((Int128)0, (sum, part) => sum + figure(part));

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
        null => _role == NodeRole.Query,
        "partition" => _role == NodeRole.Query ? throw NodeRoles.ViewsOnly() : false,
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
            await _views.AnswerBalanceAsync(http, name, CurrencyParameter(http));
            return;
        }

        string currency = Query.Currency(CurrencyParameter(http)).ToString();
        if (asOf > NowMicros()) throw new Problem("time_in_future", $"as_of is {asOfText}; it is {Answer.Time(NowMicros())} now.");
        TimeSpan timeout = Query.Timeout(http);
        long started = Environment.TickCount64;
        List<BalancePart> parts = [];
        List<string> positions = [];
        Partition? here = null;
        if (!name.IsSystem)
        {
            here = await _directory.HereAsync(http, _directory.Router.Of(name));
            if (here is null) return;
        }

        foreach (int number in _directory.Router.PartsOf(name))
        {
            ulong? at = atText is null ? null : Query.Position("at", atText, number)
                ?? throw new Problem("malformed_request", $"at is '{Query.Shorten(atText)}', which has no entry for partition {number}.");
            BalanceAsked asked = new(name.ToString(), currency, asOf, at, Min(http, number));
            BalancePart part = here is null
                ? await _directory.AskAsync(_balance, number, asked, Query.Left(timeout, started), http.RequestAborted)
                : await BalancePartAsync(here, asked, timeout, http.RequestAborted);
            parts.Add(part);
            positions.Add(Answer.Position(number, part.Position));
        }

        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteString("account", name.Utf8);
            json.WriteString("currency", currency);
            WriteFigures(json, Sum(parts, part => part.Posted), Sum(parts, part => part.Held), parts[0].Decimals);
            json.WriteString("position", string.Join(',', positions));
            if (asOf is long time) json.WriteString("as_of", Answer.Time(time));
            if (parts.Where(part => part.Event is not null).MaxBy(part => part.EventMicros)?.Event is not string made) return;
            json.WritePropertyName("event");
            json.WriteRawValue(made);
        });
    }

    async Task<BalancePart> BalancePartAsync(Partition partition, BalanceAsked asked, TimeSpan timeout, CancellationToken cancellation)
    {
        AccountName name = AccountName.Parse(asked.Account);
        int decimals = DecimalsOf(partition, asked.Currency);
        (Balance balance, ulong sequence) = await ReadBalanceAsync(partition, name, asked.Currency, asked.Min, timeout, cancellation, asked.AsOfMicros ?? 0);
        if (asked.At > sequence) throw new Problem("time_in_future", $"at is {partition.Number}:{asked.At}; the last event is {partition.Number}:{sequence}.");
        if (asked.AsOfMicros is null && asked.At is null) return new BalancePart(asked.Currency, decimals, balance.Posted, balance.Held, sequence);
        EventReaders readers = Readers(partition);
        ulong found = await WalkAsync(timeout, cancellation, walking => asked.AsOfMicros is long time
            ? readers.History.LastAtOrBefore(readers, balance, time, walking).Sequence
            : readers.History.LastAtOrBeforeSequence(readers, balance, asked.At!.Value, walking).Sequence);
        if (found == 0) return new BalancePart(asked.Currency, decimals, 0, 0, asked.At ?? sequence);
        RecordedEvent made = readers.Read(found);
        return new BalancePart(asked.Currency, decimals, made.Event.Posted, made.Event.Held, asked.At ?? sequence, made.TimeMicros, EventJson.ToText(partition.Number, readers.WithHead(made), readers.State));
    }

    async Task HistoryAsync(HttpContext http)
    {
        Query.AllowParameters(http, "currency", "limit", "cursor", "order", "from", "to", "min_position", "source");
        if (IsOfView(http)) throw new Problem("malformed_request", "History comes from the partition, which is exact; GET /v1/wallet/transfers searches the view.");
        AccountName name = Query.AccountOfPath(http);
        string currency = Query.Currency(CurrencyParameter(http)).ToString();
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

        IReadOnlyList<int> numbers = _directory.Router.PartsOf(name);
        (ulong Next, ulong End)[]? places = null;
        if (cursor is not null) (ascending, places) = Query.Cursor(cursor, numbers.Count);
        Partition? here = null;
        if (!name.IsSystem)
        {
            here = await _directory.HereAsync(http, numbers[0]);
            if (here is null) return;
        }

        TimeSpan timeout = Query.Timeout(http);
        long started = Environment.TickCount64;
        List<HistoryPart> parts = [];
        for (int i = 0; i < numbers.Count; i++)
        {
            HistoryAsked asked = new(name.ToString(), currency, limit, ascending, from, to, places?[i].Next, places?[i].End, Min(http, numbers[i]));
            parts.Add(here is null
                ? await _directory.AskAsync(_history, numbers[i], asked, Query.Left(timeout, started), http.RequestAborted)
                : await HistoryPartAsync(here, asked, timeout, http.RequestAborted));
        }

        // Of a system account, the parts' events come by their times.
        IEnumerable<(HistoryEvent Event, int Part)> all = parts.SelectMany((part, i) => part.Events.Select(e => (e, i)));
        if (parts.Count > 1) all = ascending ? all.OrderBy(one => one.Event.TimeMicros) : all.OrderByDescending(one => one.Event.TimeMicros);
        List<(HistoryEvent Event, int Part)> page = [.. all.Take(limit)];
        ulong[] next = [.. parts.Select((part, i) =>
        {
            ulong shown = (ulong)page.Count(one => one.Part == i);
            return ascending ? part.Next + shown : part.Next - shown;
        })];
        // Ascending without an upper end there is always more to come; a cursor for it only where there is already.
        bool more = page.Count > 0 && parts.Where((part, i) => ascending ? next[i] <= Math.Min(part.End, part.EventsCount) : next[i] >= Math.Max(part.End, 1)).Any();
        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteStartArray("events");
            foreach ((HistoryEvent e, _) in page) json.WriteRawValue(e.Json);
            json.WriteEndArray();
            json.WriteString("next_cursor", more ? Query.Cursor(ascending, parts.Select((part, i) => (next[i], part.End))) : null);
        });
    }

    async Task<HistoryPart> HistoryPartAsync(Partition partition, HistoryAsked asked, TimeSpan timeout, CancellationToken cancellation)
    {
        DecimalsOf(partition, asked.Currency);
        EventReaders readers = Readers(partition);
        Balance balance = (await ReadBalanceAsync(partition, AccountName.Parse(asked.Account), asked.Currency, asked.Min, timeout, cancellation)).Balance;
        return await WalkAsync(timeout, cancellation, walking =>
        {
            (ulong next, ulong end) = asked is { Next: ulong n, End: ulong e } ? (n, e) : Bounds(readers, balance, asked, walking);
            List<RecordedEvent> page = Page(readers, balance, asked.Ascending, next, end, asked.Limit, walking);
            return new HistoryPart(next, end, balance.EventsCount, [.. page.Select(one => new HistoryEvent(one.TimeMicros, EventJson.ToText(partition.Number, readers.WithHead(one), readers.State)))]);
        });
    }

    static (ulong Next, ulong End) Bounds(EventReaders readers, in Balance balance, HistoryAsked asked, CancellationToken cancellation)
    {
        ulong first = asked.FromMicros is long f ? readers.History.LastAtOrBefore(readers, balance, f - 1, cancellation).Number + 1 : 1;
        ulong last = asked.ToMicros is long t ? readers.History.LastAtOrBefore(readers, balance, t, cancellation).Number : asked.Ascending ? ulong.MaxValue : balance.EventsCount;
        return asked.Ascending ? (first, last) : (last, first);
    }

    async Task<T> WalkAsync<T>(TimeSpan timeout, CancellationToken cancellation, Func<CancellationToken, T> walk)
    {
        using CancellationTokenSource deadline = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
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
        catch (OperationCanceledException) when (!cancellation.IsCancellationRequested)
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

    /// <summary>Every partition knows all currencies.</summary>
    static int DecimalsOf(Partition partition, string currency) =>
        Readers(partition).State.TryCurrency(CurrencyCode.Parse(currency), out _, out int decimals) ? decimals : throw Problem.From(Outcome.CurrencyUnknown, currency);

    static async Task<(Balance Balance, ulong Sequence)> ReadBalanceAsync(
        Partition partition, AccountName name, string currency, ulong min, TimeSpan timeout, CancellationToken cancellation, long asOfMicros = 0)
    {
        CurrencyCode code = CurrencyCode.Parse(currency);
        ((bool Found, Balance Balance) read, ulong sequence) = await ReadAsync(
            partition,
            state =>
            {
                uint account = state.Names.Find(name);
                state.TryCurrency(code, out uint number, out _);
                return (account != 0 && state.Account(account).IsOpened, state.Balance(account, number));
            },
            min,
            timeout,
            cancellation,
            asOfMicros);
        if (!read.Found && !name.IsSystem) throw NotFound(name);
        return (read.Balance, sequence);
    }

    /// <summary>The event of this partition that the answer has to show.</summary>
    static ulong Min(HttpContext http, int partition) => Query.Parameter(http, "min_position") is string text ? Query.Position("min_position", text, partition) ?? 0 : 0;

    /// <summary>Rides the queue; waits for the event that it has to show.</summary>
    static async Task<(T Result, ulong Sequence)> ReadAsync<T>(Partition partition, Func<State, T> read, ulong min, TimeSpan timeout, CancellationToken cancellation, long asOfMicros = 0)
    {
        long started = Environment.TickCount64, deadline = started + (long)timeout.TotalMilliseconds;
        while (true)
        {
            ReadRequest<T> request = new(read) { AsOfMicros = asOfMicros };
            RequestStatus status = await partition.SubmitAsync(request, Query.Left(timeout, started));
            if (status != RequestStatus.Answered) throw Problem.From(status, timeout);
            if (request.Sequence >= min) return (request.Result, request.Sequence);
            if (Environment.TickCount64 >= deadline)
                throw new Problem("deadline_exceeded", $"The last event is {partition.Number}:{request.Sequence}; min_position {partition.Number}:{min} was not reached within {timeout.TotalMilliseconds:0} ms.");
            await Task.Delay(10, cancellation);
        }
    }

    long NowMicros() => (_clock.GetUtcNow() - DateTimeOffset.UnixEpoch).Ticks / TimeSpan.TicksPerMicrosecond;

    static EventReaders Readers(Partition partition) => partition.Readers ?? throw Problem.From(RequestStatus.Unavailable, default);
}
