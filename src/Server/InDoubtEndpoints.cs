using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Commits across partitions that are under way: to see what they wait for, and to end one before it is decided.</summary>
sealed class InDoubtEndpoints
{
    const int ListedMax = 1000;

    readonly PartitionDirectory _directory;
    readonly TimeProvider _clock;
    readonly PartQuestion<int, InDoubtPart[]> _inDoubt;

    public InDoubtEndpoints(PartitionDirectory directory, TimeProvider clock)
    {
        (_directory, _clock) = (directory, clock);
        _inDoubt = directory.Question("in_doubt", PartJson.Default.Int32, PartJson.Default.InDoubtPartArray, ListPartAsync);
    }

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
        List<InDoubtPart> all = [];
        List<int> unreachable = [];
        for (int number = 0; number < _directory.Count; number++)
        {
            // What is in doubt is so because something is down: the others are listed all the same.
            TimeSpan share = TimeSpan.FromMilliseconds(Math.Max(50, Query.Left(timeout, started).TotalMilliseconds / (_directory.Count - number + 1)));
            try
            {
                all.AddRange(await _directory.AskAsync(_inDoubt, number, ListedMax, share));
            }
            catch (Problem)
            {
                unreachable.Add(number);
            }
        }

        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteStartArray("in_doubt");
            foreach (InDoubtPart one in all.OrderBy(one => one.PreparedMicros)) json.WriteRawValue(one.Json);
            json.WriteEndArray();
            json.WriteStartArray("unreachable");
            foreach (int number in unreachable) json.WriteNumberValue(number);
            json.WriteEndArray();
        });
    }

    async Task<InDoubtPart[]> ListPartAsync(Partition partition, int listedMax, TimeSpan timeout, CancellationToken cancellation)
    {
        ReadRequest<List<PartitionCore.InDoubt>> read = new((PartitionCore core) => core.ListInDoubt(listedMax));
        RequestStatus status = await partition.SubmitAsync(read, timeout);
        if (status != RequestStatus.Answered || partition.Readers is not EventReaders readers) throw Problem.From(status == RequestStatus.Answered ? RequestStatus.Unavailable : status, timeout);
        return [.. read.Result.Select(one => new InDoubtPart(one.PreparedMicros, ToText(partition.Number, one, readers.State)))];
    }

    string ToText(int partition, PartitionCore.InDoubt one, State state)
    {
        long nowMicros = (_clock.GetUtcNow() - DateTimeOffset.UnixEpoch).Ticks / TimeSpan.TicksPerMicrosecond;
        (uint payer, uint payee, uint currency, Int128 amount) = one.Movements[0];
        System.Buffers.ArrayBufferWriter<byte> text = new(512);
        using (Utf8JsonWriter json = new(text, Answer.JsonOptions))
        {
            json.WriteStartObject();
            json.WriteString("prepared_at", Answer.Position(partition, one.Head));
            json.WriteString("transaction_id", Answer.ToGuid(one.TransactionId));
            json.WriteString("role", one.Coordinator == partition ? "coordinator" : "participant");
            json.WriteString("coordinator", Answer.Position(one.Coordinator, one.CoordinatorSequence));
            json.WriteString("state", one.Status switch { AttemptStatus.Committed => "committed", AttemptStatus.Aborted => "aborted", _ => "prepared" });
            json.WriteString("since", Answer.Time(one.PreparedMicros));
            json.WriteNumber("age_ms", Math.Max(0, (nowMicros - one.PreparedMicros) / 1000));
            json.WriteStartArray("waits_for");
            foreach (int other in one.WaitsFor) json.WriteNumberValue(other);
            json.WriteEndArray();
            json.WriteString("from_account", state.Names.Utf8(payer));
            json.WriteString("to_account", state.Names.Utf8(payee));
            json.WriteString("amount", Amount.Format(amount, state.Decimals(currency)));
            json.WriteString("currency", state.CurrencyCode(currency));
            json.WriteNumber("postings_count", one.Movements.Length);
            json.WriteEndObject();
        }

        return System.Text.Encoding.UTF8.GetString(text.WrittenSpan);
    }

    /// <summary>Before the decision only. The payer's money is free again at once.</summary>
    async Task AbortAsync(HttpContext http)
    {
        Query.AllowParameters(http);
        TimeSpan timeout = Query.Timeout(http);
        string text = (string)http.Request.RouteValues["position"]!;
        string[] words = text.Split(':');
        if (words.Length != 2 || !int.TryParse(words[0], out int number) || number < 0 || number >= _directory.Count || !ulong.TryParse(words[1], out ulong head))
            throw new Problem("malformed_request", $"'{Query.Shorten(text)}' is not the position of a commit under way; GET /v1/audit/in_doubt lists them as prepared_at.");
        if (await _directory.HereAsync(http, number) is not Partition partition) return;
        AbortRequest request = new(head, AccountEndpoints.By);
        RequestStatus status = await partition.SubmitAsync(request, timeout);
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
