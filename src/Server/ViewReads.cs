using System.Collections.Concurrent;
using System.Globalization;
using System.Text.Json;
using Microsoft.AspNetCore.Http;
using Purse.Ledger;
using Purse.Views;

namespace Purse.Server;

/// <summary>Answers from a view: not exact, and never dearer to the writer. Each says how old it is.</summary>
sealed class ViewReads(ViewHost views, int partitionsCount)
{
    /// <summary>A currency never changes once it is known.</summary>
    readonly ConcurrentDictionary<CurrencyCode, int> _decimals = new();

    /// <summary>The view with rows.</summary>
    public ViewSource Search => views.Search ?? throw new Problem("view_unavailable", "This server has no view to search.");

    /// <summary>The view that shows this account's balances.</summary>
    public ViewSource Of(in AccountName account) => views.Of(account) ?? throw new Problem("view_unavailable", "This server has no view of balances.");

    /// <summary>Waits until the view shows what <c>min_position</c> names, in every partition that it names.</summary>
    public async Task WaitAsync(HttpContext http, ViewSource source)
    {
        if (Query.Parameter(http, "min_position") is not string text) return;
        TimeSpan timeout = Query.Timeout(http);
        long deadline = Environment.TickCount64 + (long)timeout.TotalMilliseconds;
        for (int partition = 0; partition < partitionsCount; partition++)
        {
            ulong min = Query.Position("min_position", text, partition) ?? 0;
            while (source.Position(partition) < min)
            {
                if (Environment.TickCount64 >= deadline)
                    throw new Problem("deadline_exceeded", $"The view shows partition {partition} up to {source.Position(partition)}; min_position {partition}:{min} was not reached within {timeout.TotalMilliseconds:0} ms.");
                await Task.Delay(5, http.RequestAborted);
            }
        }
    }

    /// <summary>Reads from the view's store; one that does not answer is a problem of the view's, not of the request.</summary>
    public static async Task<T> ReadAsync<T>(ViewSource source, Func<Task<T>> read)
    {
        try
        {
            return await read();
        }
        catch (Exception e) when (e is System.Data.Common.DbException or StackExchange.Redis.RedisException or TimeoutException or InvalidOperationException or ObjectDisposedException or IOException)
        {
            throw new Problem("view_unavailable", $"The view {source.View.Name} does not answer: {source.Fault ?? e.Message}");
        }
    }

    /// <summary>The partitions that have a part of the account.</summary>
    int[] PartsOf(in AccountName name) => name.IsSystem ? [.. Enumerable.Range(0, partitionsCount)] : [name.PartitionOf(partitionsCount)];

    /// <summary>Of these partitions, or of all: the one that is furthest behind.</summary>
    public static TimeSpan AgeOf(ViewSource source, int[]? parts = null)
    {
        TimeSpan age = TimeSpan.Zero;
        foreach (TimeSpan? lag in parts is null ? [source.Lag] : parts.Select(source.LagOf))
        {
            if (lag is null) throw new Problem("view_unavailable", $"How old the view {source.View.Name} is cannot be said: {source.Fault ?? "it is being filled, and has not shown all that there is yet"}.");
            if (lag > age) age = lag.Value;
        }

        return age;
    }

    /// <summary>As the view has it: without asking any partition.</summary>
    public async Task<(CurrencyCode Code, int Decimals)> CurrencyAsync(HttpContext http, string text)
    {
        CurrencyCode code = Query.Currency(text);
        if (_decimals.TryGetValue(code, out int decimals)) return (code, decimals);
        // What was registered stays what it is, also where a later ISO 4217 takes up the same code.
        int? registered = views.Search is null ? null : await FindAsync(Search);
        if (registered is null && !Iso4217.TryGet(code, out _, out decimals)) throw Problem.From(Outcome.CurrencyUnknown, text);
        _decimals[code] = registered ?? decimals;
        return (code, registered ?? decimals);

        async Task<int?> FindAsync(ViewSource source)
        {
            await WaitAsync(http, source);
            return await ReadAsync(source, () => ((SqlView)source.View).FindDecimalsAsync(text, http.RequestAborted));
        }
    }

    public static void WriteAge(Utf8JsonWriter json, TimeSpan lag)
    {
        json.WriteString("source", "view");
        json.WriteNumber("lag_ms", (long)Math.Ceiling(lag.TotalMilliseconds));
    }

    public async Task AnswerBalanceAsync(HttpContext http, AccountName name, string currencyText)
    {
        (CurrencyCode currency, int decimals) = await CurrencyAsync(http, currencyText);
        ViewSource source = Of(name);
        await WaitAsync(http, source);
        int[] parts = PartsOf(name);
        // Before the look: the answer is no older than it says.
        TimeSpan lag = AgeOf(source, parts);
        (List<FoundBalance> balances, ulong[] positions) = await ReadAsync(source, () => ViewHost.BalancesAsync(source, name, parts, http.RequestAborted));
        string code = currency.ToString();
        (Int128 posted, Int128 held) = Sum(balances.Where(balance => balance.Currency == code));
        // An account without money yet may not have been opened; only rows tell.
        if (!name.IsSystem && balances.Count == 0 && !await IsOpenedAsync(name, http)) throw new Problem("account_not_found", $"No account '{name}' is in the view.");
        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteString("account", name.Utf8);
            json.WriteString("currency", code);
            AccountEndpoints.WriteFigures(json, posted, held, decimals);
            json.WriteString("position", string.Join(',', parts.Zip(positions, Answer.Position)));
            WriteAge(json, lag);
        });
    }

    async Task<bool> IsOpenedAsync(AccountName name, HttpContext http)
    {
        ViewSource search = Search;
        await WaitAsync(http, search);
        return await ReadAsync(search, () => ((SqlView)search.View).FindAccountAsync(name.ToString(), http.RequestAborted)) is not null;
    }

    public async Task AnswerAccountAsync(HttpContext http, AccountName name)
    {
        ViewSource source = Search;
        await WaitAsync(http, source);
        int[] parts = PartsOf(name);
        TimeSpan lag = AgeOf(source, parts);
        ulong[] positions = [.. parts.Select(source.Position)];
        SqlView view = (SqlView)source.View;
        (FoundAccount? account, List<FoundBalance> balances) = await ReadAsync(source, async () =>
            (await view.FindAccountAsync(name.ToString(), http.RequestAborted), await view.BalancesAsync([name.ToString()], http.RequestAborted)));
        if (account is null && !name.IsSystem) throw new Problem("account_not_found", $"No account '{name}' is in the view.");
        await Answer.WriteAsync(http, 200, json =>
        {
            WriteAccount(json, account ?? new FoundAccount(name.ToString(), "open", null, "{}"), balances);
            json.WriteString("position", string.Join(',', parts.Zip(positions, Answer.Position)));
            WriteAge(json, lag);
        });
    }

    public static void WriteAccount(Utf8JsonWriter json, FoundAccount account, IEnumerable<FoundBalance> balances)
    {
        json.WriteString("account", account.Account);
        json.WriteString("status", account.Status);
        json.WritePropertyName("limits");
        json.WriteRawValue(account.Limits);
        if (account.Metadata is not null)
        {
            json.WritePropertyName("metadata");
            json.WriteRawValue(account.Metadata);
        }

        json.WriteStartObject("balances");
        foreach (IGrouping<string, FoundBalance> currency in balances.GroupBy(balance => balance.Currency))
        {
            (Int128 posted, Int128 held) = Sum(currency);
            json.WriteStartObject(currency.Key);
            AccountEndpoints.WriteFigures(json, posted, held, DecimalsOf(currency.First().Posted));
            json.WriteEndObject();
        }

        json.WriteEndObject();
    }

    /// <summary>Of a system account, each partition has a part.</summary>
    static (Int128 Posted, Int128 Held) Sum(IEnumerable<FoundBalance> balances)
    {
        (Int128 posted, Int128 held) = (0, 0);
        foreach (FoundBalance balance in balances)
        {
            posted += Minor(balance.Posted);
            held += Minor(balance.Held);
        }

        return (posted, held);
    }

    static Int128 Minor(string amount) => Int128.Parse(amount.Replace(".", "", StringComparison.Ordinal), NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture);

    static int DecimalsOf(string amount) => amount.IndexOf('.', StringComparison.Ordinal) is >= 0 and int point ? amount.Length - point - 1 : 0;
}
