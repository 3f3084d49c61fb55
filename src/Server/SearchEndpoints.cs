using System.Buffers.Text;
using System.Globalization;
using System.Text;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Ledger;
using Purse.Views;

namespace Purse.Server;

/// <summary>Search over the read model, by cursor.</summary>
sealed class SearchEndpoints(ViewReads reads)
{
    static readonly string[] Statuses = [.. Enum.GetNames<TransferStatus>().Select(JsonNamingPolicy.SnakeCaseLower.ConvertName)];

    public void Map(IEndpointRouteBuilder routes)
    {
        routes.MapGet("/v1/wallet/accounts", (RequestDelegate)AccountsAsync);
        routes.MapGet("/v1/wallet/transfers", (RequestDelegate)TransfersAsync);
    }

    async Task AccountsAsync(HttpContext http)
    {
        Query.AllowParameters(http, "prefix", "limit", "cursor", "min_position");
        string prefix = Query.Parameter(http, "prefix") ?? "";
        if (prefix.Length > 0 && (prefix.Length > AccountName.LengthMax || !AccountName.TryParse(prefix, out AccountName name) || name.IsSystem))
            throw new Problem("account_malformed", $"prefix is '{Query.Shorten(prefix)}', which no account's name begins with.");
        int limit = AccountEndpoints.Limit(Query.Parameter(http, "limit"));
        string after = Query.Parameter(http, "cursor") is not string cursor ? "" : AccountName.TryParse(Decode(cursor), out AccountName last) ? last.ToString() : throw NoCursor(cursor);
        ViewSource source = reads.Search;
        await reads.WaitAsync(http, source);
        TimeSpan lag = ViewReads.AgeOf(source);
        SqlView view = (SqlView)source.View;
        (List<FoundAccount> accounts, ILookup<string, FoundBalance> balances) = await ViewReads.ReadAsync(source, async () =>
        {
            List<FoundAccount> found = await view.FindAccountsAsync(prefix, after, limit + 1, http.RequestAborted);
            return (found, (await view.BalancesAsync([.. found.Take(limit).Select(one => one.Account)], http.RequestAborted)).ToLookup(balance => balance.Account));
        });
        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteStartArray("accounts");
            foreach (FoundAccount account in accounts.Take(limit))
            {
                json.WriteStartObject();
                ViewReads.WriteAccount(json, account, balances[account.Account]);
                json.WriteEndObject();
            }

            json.WriteEndArray();
            json.WriteString("next_cursor", accounts.Count > limit ? Encode(accounts[limit - 1].Account) : null);
            ViewReads.WriteAge(json, lag);
        });
    }

    async Task TransfersAsync(HttpContext http)
    {
        Query.AllowParameters(http, "account", "currency", "from", "to", "min_amount", "max_amount", "status", "metadata", "limit", "cursor", "min_position");
        int limit = AccountEndpoints.Limit(Query.Parameter(http, "limit"));
        TransferSearch search = await ReadAsync(http, limit);
        ViewSource source = reads.Search;
        await reads.WaitAsync(http, source);
        TimeSpan lag = ViewReads.AgeOf(source);
        List<FoundTransfer> found = await ViewReads.ReadAsync(source, () => ((SqlView)source.View).FindTransfersAsync(search, http.RequestAborted));
        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteStartArray("transfers");
            foreach (FoundTransfer transfer in found.Take(limit)) Write(json, transfer);
            json.WriteEndArray();
            FoundTransfer? last = found.Count > limit ? found[limit - 1] : null;
            json.WriteString("next_cursor", last is null ? null : Encode(string.Create(CultureInfo.InvariantCulture, $"{last.TimeMicros},{last.Partition},{last.Position},{last.Posting}")));
            ViewReads.WriteAge(json, lag);
        });
    }

    async Task<TransferSearch> ReadAsync(HttpContext http, int limit)
    {
        string? account = Query.Parameter(http, "account") is string name ? Query.Account("account", name).ToString() : null;
        (CurrencyCode Code, int Decimals)? currency = Query.Parameter(http, "currency") is string text ? await reads.CurrencyAsync(http, text) : null;
        (string? code, int decimals) = (currency?.Code.ToString(), currency?.Decimals ?? 0);
        string? status = Query.Parameter(http, "status");
        if (status is not null && !Statuses.Contains(status)) throw new Problem("malformed_request", $"status is '{Query.Shorten(status)}'; it must be one of {string.Join(", ", Statuses)}.");
        JsonElement? metadata = null;
        if (Query.Parameter(http, "metadata") is string members)
        {
            try
            {
                metadata = JsonElement.Parse(members);
            }
            catch (JsonException)
            {
                // Said below.
            }

            if (metadata is not { ValueKind: JsonValueKind.Object }) throw new Problem("malformed_request", $"metadata is '{Query.Shorten(members)}'; it must be a JSON object, such as {{\"order\":\"A-17\"}}.");
        }

        return new TransferSearch
        {
            Account = account,
            Currency = code,
            FromMicros = Query.Parameter(http, "from") is string from ? Query.TimeMicros("from", from) : null,
            ToMicros = Query.Parameter(http, "to") is string to ? Query.TimeMicros("to", to) : null,
            MinAmount = AmountOf("min_amount"),
            MaxAmount = AmountOf("max_amount"),
            Status = status,
            Metadata = metadata,
            After = Query.Parameter(http, "cursor") is string cursor ? ReadCursor(cursor) : null,
            Limit = limit + 1,
        };

        string? AmountOf(string member)
        {
            if (Query.Parameter(http, member) is not string amount) return null;
            if (code is null) throw new Problem("malformed_request", $"{member} needs a currency beside it: amounts of different ones do not compare.");
            (Int128 digits, int scale) = Query.Amount(member, amount);
            return Amount.ToMinor(digits, scale, decimals, out Int128 minor) switch
            {
                Amount.ParseResult.Ok => Amount.Format(minor, decimals),
                Amount.ParseResult.TooPrecise => throw new Problem("amount_too_precise", $"{member} is {Query.Shorten(amount)}; {code} has {decimals} decimals."),
                _ => throw new Problem("amount_too_large", $"{member} is {Query.Shorten(amount)}; an amount is less than 10^30 minor units of its currency."),
            };
        }
    }

    static void Write(Utf8JsonWriter json, FoundTransfer transfer)
    {
        json.WriteStartObject();
        Answer.WriteTransfer(
            json, transfer.Status, transfer.TransactionId, transfer.From, transfer.To, transfer.Amount, transfer.Currency, transfer.TimeMicros, Answer.Position(transfer.Partition, transfer.Position));
        json.WriteNumber("posting", transfer.Posting);
        if (transfer.OriginalId is Guid original) json.WriteString("original_id", original);
        if (transfer.Code is not null) json.WriteString("code", transfer.Code);
        if (transfer.Description is not null) json.WriteString("description", transfer.Description);
        if (transfer.Metadata is not null)
        {
            json.WritePropertyName("metadata");
            json.WriteRawValue(transfer.Metadata);
        }

        json.WriteEndObject();
    }

    static string Encode(string place) => Base64Url.EncodeToString(Encoding.UTF8.GetBytes(place));

    static string Decode(string cursor)
    {
        try
        {
            return Encoding.UTF8.GetString(Base64Url.DecodeFromChars(cursor));
        }
        catch (FormatException)
        {
            throw NoCursor(cursor);
        }
    }

    static (long, int, ulong, int) ReadCursor(string cursor)
    {
        string[] parts = Decode(cursor).Split(',');
        const NumberStyles plain = NumberStyles.None;
        return parts.Length == 4 && long.TryParse(parts[0], plain, CultureInfo.InvariantCulture, out long time) && int.TryParse(parts[1], plain, CultureInfo.InvariantCulture, out int partition)
            && long.TryParse(parts[2], plain, CultureInfo.InvariantCulture, out long position) && int.TryParse(parts[3], plain, CultureInfo.InvariantCulture, out int posting) && time < TimeMicrosMax
            ? (time, partition, (ulong)position, posting)
            : throw NoCursor(cursor);
    }

    /// <summary>The year 9999 ends there, and with it what a time can be.</summary>
    const long TimeMicrosMax = 253_402_300_800_000_000;

    static Problem NoCursor(string cursor) => new("malformed_request", $"The cursor '{Query.Shorten(cursor)}' is not one that this server gave.");
}
