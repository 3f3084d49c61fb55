using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Cluster;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Commits across partitions that are under way: to see what they wait for, and to end one before it is decided.</summary>
sealed class InDoubtEndpoints(Router router, TimeProvider clock)
{
    const int ListedMax = 1000;

    public void Map(IEndpointRouteBuilder routes)
    {
        routes.MapGet("/v1/audit/in_doubt", (RequestDelegate)ListAsync);
        routes.MapPost("/v1/audit/in_doubt/{position}/abort", (RequestDelegate)AbortAsync);
    }

    async Task ListAsync(HttpContext http)
    {
        Query.AllowParameters(http);
        TimeSpan timeout = Query.Timeout(http);
        long started = Environment.TickCount64;
        List<(Partition Partition, PartitionCore.InDoubt One)> all = [];
        List<int> unreachable = [];
        foreach (Partition partition in router.All)
        {
            ReadRequest<List<PartitionCore.InDoubt>> read = new((PartitionCore core) => core.ListInDoubt(ListedMax));
            // What is in doubt is so because something is down: the others are listed all the same.
            TimeSpan share = TimeSpan.FromMilliseconds(Math.Max(50, Query.Left(timeout, started).TotalMilliseconds / (router.All.Count - partition.Number + 1)));
            if (await partition.SubmitAsync(read, share) == RequestStatus.Answered) all.AddRange(read.Result.Select(one => (partition, one)));
            else unreachable.Add(partition.Number);
        }

        long nowMicros = (clock.GetUtcNow() - DateTimeOffset.UnixEpoch).Ticks / TimeSpan.TicksPerMicrosecond;
        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteStartArray("in_doubt");
            foreach ((Partition partition, PartitionCore.InDoubt one) in all.OrderBy(pair => pair.One.PreparedMicros))
            {
                if (partition.Readers is not EventReaders readers) continue;
                (uint payer, uint payee, uint currency, Int128 amount) = one.Movements[0];
                json.WriteStartObject();
                json.WriteString("prepared_at", Answer.Position(partition.Number, one.Head));
                json.WriteString("transaction_id", Answer.ToGuid(one.TransactionId));
                json.WriteString("role", one.Coordinator == partition.Number ? "coordinator" : "participant");
                json.WriteString("coordinator", Answer.Position(one.Coordinator, one.CoordinatorSequence));
                json.WriteString("state", one.Status switch { AttemptStatus.Committed => "committed", AttemptStatus.Aborted => "aborted", _ => "prepared" });
                json.WriteString("since", Answer.Time(one.PreparedMicros));
                json.WriteNumber("age_ms", Math.Max(0, (nowMicros - one.PreparedMicros) / 1000));
                json.WriteStartArray("waits_for");
                foreach (int other in one.WaitsFor) json.WriteNumberValue(other);
                json.WriteEndArray();
                json.WriteString("from_account", readers.State.Names.Utf8(payer));
                json.WriteString("to_account", readers.State.Names.Utf8(payee));
                json.WriteString("amount", Amount.Format(amount, readers.State.Decimals(currency)));
                json.WriteString("currency", readers.State.CurrencyCode(currency));
                json.WriteNumber("postings_count", one.Movements.Length);
                json.WriteEndObject();
            }

            json.WriteEndArray();
            json.WriteStartArray("unreachable");
            foreach (int number in unreachable) json.WriteNumberValue(number);
            json.WriteEndArray();
        });
    }

    /// <summary>Before the decision only. The payer's money is free again at once.</summary>
    async Task AbortAsync(HttpContext http)
    {
        Query.AllowParameters(http);
        TimeSpan timeout = Query.Timeout(http);
        string text = (string)http.Request.RouteValues["position"]!;
        string[] words = text.Split(':');
        if (words.Length != 2 || !int.TryParse(words[0], out int number) || number < 0 || number >= router.All.Count || !ulong.TryParse(words[1], out ulong head))
            throw new Problem("malformed_request", $"'{Query.Shorten(text)}' is not the position of a commit under way; GET /v1/audit/in_doubt lists them as prepared_at.");
        AbortRequest request = new(head, AccountEndpoints.By);
        RequestStatus status = await router.All[number].SubmitAsync(request, timeout);
        if (status != RequestStatus.Answered) throw Problem.From(status, timeout);
        if (request.IsAborted is null) throw new Problem("transfer_not_found", $"No commit across partitions that partition {number} coordinates is under way at {text}.");
        if (request.IsAborted == false) throw new Problem("already_decided", $"What began at {text} was decided; it ends as soon as every partition has heard of it.");
        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteString("prepared_at", text);
            json.WriteString("state", "aborted");
        });
    }
}
