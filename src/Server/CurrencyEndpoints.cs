using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Cluster;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Currencies: those of ISO 4217 are built in, others are registered once and never change.</summary>
sealed class CurrencyEndpoints(Router router)
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

        Decision decision = await RegisterAsync(router.All[0], code, (byte)body.Decimals, timeout);
        switch (decision.Outcome)
        {
            case Outcome.Done or Outcome.Unchanged:
                // Partition 0 decides; the caller is answered once all the others know it too. Sent again, it is finished.
                long started = Environment.TickCount64;
                foreach (Partition other in router.All.Skip(1))
                {
                    try
                    {
                        Decision followed = await RegisterAsync(other, code, (byte)body.Decimals, Query.Left(timeout, started));
                        if (followed.Outcome is not Outcome.Done and not Outcome.Unchanged) throw Problem.From(followed.Outcome, body.Currency);
                    }
                    catch (Problem problem)
                    {
                        throw new Problem(problem.Code, $"{body.Currency} is registered, but partition {other.Number} does not know it yet. Send the same again.", "applied");
                    }
                }

                await Answer.WriteAsync(http, decision.Outcome == Outcome.Done ? 201 : 200, json =>
                {
                    json.WriteString("currency", body.Currency);
                    json.WriteNumber("decimals", body.Decimals);
                });
                return;
            case Outcome.CurrencyExists:
                int decimals = (router.All[0].Readers ?? throw Problem.From(RequestStatus.Unavailable, default)).State.Decimals(decision.Currency);
                throw new Problem("currency_exists", $"{body.Currency} has {decimals} decimals already; a currency never changes.").With("currency", body.Currency).With("decimals", decimals);
            default:
                throw Problem.From(decision.Outcome, body.Currency);
        }
    }

    static async Task<Decision> RegisterAsync(Partition partition, CurrencyCode code, byte decimals, TimeSpan timeout)
    {
        CommandRequest request = new(1);
        request.Commands[0] = new Command { Kind = CommandKind.RegisterCurrency, Currency = code, AmountScale = decimals, Details = new CommandDetails { By = AccountEndpoints.By } };
        RequestStatus status = await partition.SubmitAsync(request, timeout);
        return status == RequestStatus.Answered ? request.Decisions[0] : throw Problem.From(status, timeout);
    }

    /// <summary>Finishes what a crash may have cut short: every partition knows all that partition 0 knows.</summary>
    /// <returns>Whether all of it is.</returns>
    public static async Task<bool> SpreadAsync(Router router, Action<string> log)
    {
        if (router.All.Count <= 1) return true;
        bool isFinished = true;
        TimeSpan patience = TimeSpan.FromSeconds(10);
        ReadRequest<List<RegisteredCurrency>> read = new(state => [.. Enumerable.Range(Iso4217.RegisteredFirst, state.Currencies.Count).Select(number => state.Currencies[(uint)number])]);
        RequestStatus status = await router.All[0].SubmitAsync(read, patience);
        foreach (Partition other in router.All.Skip(1))
        {
            foreach (RegisteredCurrency currency in status == RequestStatus.Answered ? read.Result : [])
            {
                string unfinished = $"Partition {other.Number} does not know {currency.Code}, and refuses transfers in it: register it again, or restart the server";
                try
                {
                    Decision decision = await RegisterAsync(other, currency.Code, (byte)currency.Decimals, patience);
                    if (decision.Outcome == Outcome.CurrencyExists)
                        throw new StartException($"Partition {other.Number} has {currency.Code} with other decimals than partition 0: these partitions do not belong together. Restore all of them from one copy.");
                    if (decision.Outcome == Outcome.StorageFull) log($"{unfinished}, once there is room.");
                    isFinished &= decision.Outcome != Outcome.StorageFull;
                }
                catch (Problem problem)
                {
                    isFinished = false;
                    log($"{unfinished}: {problem.Message}");
                }
            }
        }

        if (status == RequestStatus.Answered) return isFinished;
        log($"Partition 0 did not tell its currencies ({status}); the other partitions may not know all of them. Restart the server.");
        return false;
    }

    async Task ListAsync(HttpContext http)
    {
        Query.AllowParameters(http);
        TimeSpan timeout = Query.Timeout(http);
        ReadRequest<List<(string Code, int Decimals)>> read = new(state =>
            [.. Enumerable.Range(Iso4217.RegisteredFirst, state.Currencies.Count).Select(number => (state.CurrencyCode((uint)number), state.Decimals((uint)number)))]);
        RequestStatus status = await router.All[0].SubmitAsync(read, timeout);
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
