using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Currencies: those of ISO 4217 are built in, others are registered once and never change.</summary>
sealed class CurrencyEndpoints(Partition partition)
{
    public void Map(IEndpointRouteBuilder routes)
    {
        routes.MapPost("/v1/wallet/currencies", (RequestDelegate)RegisterAsync);
        routes.MapGet("/v1/wallet/currencies", (RequestDelegate)ListAsync);
    }

    async Task RegisterAsync(HttpContext http)
    {
        Query.AllowParameters(http);
        TimeSpan timeout = Query.Timeout(http);
        CurrencyBody body = await Body.ReadAsync(http, BodyJson.Default.CurrencyBody);
        if (!CurrencyCode.TryParse(body.Currency, out CurrencyCode code))
            throw new Problem("malformed_request", $"currency is '{Query.Shorten(body.Currency)}'; a currency's code is 3 to 8 of A-Z 0-9.");
        if (body.Decimals is < 0 or > Amount.DecimalsMax) throw new Problem("malformed_request", $"decimals is {body.Decimals}; it must be 0 to {Amount.DecimalsMax}.");

        CommandRequest request = new(1);
        request.Commands[0] = new Command
        {
            Kind = CommandKind.RegisterCurrency,
            Currency = code,
            AmountScale = (byte)body.Decimals,
            Details = new CommandDetails { By = AccountEndpoints.By },
        };
        RequestStatus status = await partition.SubmitAsync(request, timeout);
        if (status != RequestStatus.Answered) throw Problem.From(status, timeout);
        Decision decision = request.Decisions[0];
        switch (decision.Outcome)
        {
            case Outcome.Done or Outcome.Unchanged:
                await Answer.WriteAsync(http, decision.Outcome == Outcome.Done ? 201 : 200, json =>
                {
                    json.WriteString("currency", body.Currency);
                    json.WriteNumber("decimals", body.Decimals);
                });
                return;
            case Outcome.CurrencyExists:
                int decimals = (partition.Readers ?? throw Problem.From(RequestStatus.Unavailable, default)).State.Decimals(decision.Currency);
                throw new Problem("currency_exists", $"{body.Currency} has {decimals} decimals already; a currency never changes.").With("currency", body.Currency).With("decimals", decimals);
            default:
                throw Problem.From(decision.Outcome, body.Currency);
        }
    }

    async Task ListAsync(HttpContext http)
    {
        Query.AllowParameters(http);
        TimeSpan timeout = Query.Timeout(http);
        ReadRequest<List<(string Code, int Decimals)>> read = new(state =>
            [.. Enumerable.Range(Iso4217.RegisteredFirst, state.Currencies.Count).Select(number => (state.CurrencyCode((uint)number), state.Decimals((uint)number)))]);
        RequestStatus status = await partition.SubmitAsync(read, timeout);
        if (status != RequestStatus.Answered) throw Problem.From(status, timeout);
        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteStartArray("currencies");
            foreach ((string code, int decimals) in Iso4217.All.Concat(read.Result).OrderBy(currency => currency.Item1, StringComparer.Ordinal))
            {
                json.WriteStartObject();
                json.WriteString("currency", code);
                json.WriteNumber("decimals", decimals);
                json.WriteEndObject();
            }

            json.WriteEndArray();
        });
    }
}
