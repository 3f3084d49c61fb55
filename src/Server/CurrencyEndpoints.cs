using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Currencies: those of ISO 4217 are built in, others are registered once and never change.</summary>
sealed class CurrencyEndpoints
{
    readonly PartitionDirectory _directory;
    readonly PartQuestion<CurrencyAsked, CurrencyPart> _registration;
    readonly PartQuestion<int, CurrencyAsked[]> _registered;

    public CurrencyEndpoints(PartitionDirectory directory)
    {
        _directory = directory;
        _registration = directory.Question("currency", PartJson.Default.CurrencyAsked, PartJson.Default.CurrencyPart, RegisterPartAsync);
        _registered = directory.Question("currencies", PartJson.Default.Int32, PartJson.Default.CurrencyAskedArray, ListPartAsync);
    }

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

        if (await _directory.HereAsync(http, 0) is not Partition first) return;
        Decision decision = await RegisterAsync(first, code, (byte)body.Decimals, timeout);
        switch (decision.Outcome)
        {
            case Outcome.Done or Outcome.Unchanged:
                // Partition 0 decides; the caller is answered once all the others know it too. Sent again, it is finished.
                long started = Environment.TickCount64;
                for (int other = 1; other < _directory.Count; other++)
                {
                    try
                    {
                        CurrencyPart followed = await _directory.AskAsync(_registration, other, new CurrencyAsked(body.Currency, (byte)body.Decimals), Query.Left(timeout, started));
                        if (followed.Outcome is not Outcome.Done and not Outcome.Unchanged) throw Problem.From(followed.Outcome, body.Currency);
                    }
                    catch (Problem problem)
                    {
                        throw new Problem(problem.Code, $"{body.Currency} is registered, but partition {other} does not know it yet. Send the same again.", "applied");
                    }
                }

                await Answer.WriteAsync(http, decision.Outcome == Outcome.Done ? 201 : 200, json =>
                {
                    json.WriteString("currency", body.Currency);
                    json.WriteNumber("decimals", body.Decimals);
                });
                return;
            case Outcome.CurrencyExists:
                int decimals = (first.Readers ?? throw Problem.From(RequestStatus.Unavailable, default)).State.Decimals(decision.Currency);
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

    static async Task<CurrencyPart> RegisterPartAsync(Partition partition, CurrencyAsked asked, TimeSpan timeout, CancellationToken cancellation) =>
        new((await RegisterAsync(partition, CurrencyCode.Parse(asked.Code), asked.Decimals, timeout)).Outcome);

    /// <summary>Those that were registered in the partition, in order.</summary>
    static async Task<CurrencyAsked[]> ListPartAsync(Partition partition, int nothing, TimeSpan timeout, CancellationToken cancellation)
    {
        ReadRequest<CurrencyAsked[]> read = new((State state) =>
            [.. Enumerable.Range(Iso4217.RegisteredFirst, state.Currencies.Count).Select(number => new CurrencyAsked(state.CurrencyCode((uint)number), (byte)state.Decimals((uint)number)))]);
        RequestStatus status = await partition.SubmitAsync(read, timeout);
        return status == RequestStatus.Answered ? read.Result : throw Problem.From(status, timeout);
    }

    /// <summary>Finishes what a crash may have cut short: every partition knows all that partition 0 knows.</summary>
    /// <returns>Whether all of it is.</returns>
    public async Task<bool> SpreadAsync(Action<string> log)
    {
        if (_directory.Count <= 1) return true;
        bool isFinished = true;
        TimeSpan patience = TimeSpan.FromSeconds(10);
        CurrencyAsked[] known;
        try
        {
            known = await _directory.AskAsync(_registered, 0, 0, patience);
        }
        catch (Problem problem)
        {
            log($"Partition 0 did not tell its currencies; the other partitions may not know all of them. {problem.Message}");
            return false;
        }

        for (int other = 1; other < _directory.Count; other++)
        {
            foreach (CurrencyAsked currency in known)
            {
                string unfinished = $"Partition {other} does not know {currency.Code}, and refuses transfers in it: register it again, or restart the server";
                try
                {
                    CurrencyPart followed = await _directory.AskAsync(_registration, other, currency, patience);
                    if (followed.Outcome == Outcome.CurrencyExists)
                        throw new StartException($"Partition {other} has {currency.Code} with other decimals than partition 0: these partitions do not belong together. Restore all of them from one copy.");
                    if (followed.Outcome == Outcome.StorageFull) log($"{unfinished}, once there is room.");
                    isFinished &= followed.Outcome != Outcome.StorageFull;
                }
                catch (Problem problem)
                {
                    isFinished = false;
                    log($"{unfinished}: {problem.Message}");
                }
            }
        }

        return isFinished;
    }

    async Task ListAsync(HttpContext http)
    {
        Query.AllowParameters(http);
        CurrencyAsked[] registered = await _directory.AskAsync(_registered, 0, 0, Query.Timeout(http));
        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteStartArray("currencies");
            foreach ((string code, int decimals) in Iso4217.All.Concat(registered.Select(one => (one.Code, (int)one.Decimals))).OrderBy(currency => currency.Item1, StringComparer.Ordinal))
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
