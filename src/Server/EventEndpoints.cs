using System.Globalization;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>The published event stream: every event, in order, resumable by position.</summary>
sealed class EventEndpoints(Partition partition, CancellationToken stopping)
{
    static readonly JsonWriterOptions Options = new() { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    /// <summary>How soon a live stream looks for news.</summary>
    static readonly TimeSpan LivePoll = TimeSpan.FromMilliseconds(10);
    const int EventsPerWriteMax = 1000;

    public void Map(IEndpointRouteBuilder routes) => routes.MapGet("/v1/events", (RequestDelegate)StreamAsync);

    async Task StreamAsync(HttpContext http)
    {
        Query.AllowParameters(http, "after", "partition", "live");
        string after = Query.Parameter(http, "after") ?? $"{partition.Number}:0";
        ulong seen = Query.Position("after", after, partition.Number) ?? 0;
        if (Query.Parameter(http, "partition") is string number && number != partition.Number.ToString(CultureInfo.InvariantCulture))
            throw new Problem("malformed_request", $"There is no partition '{Query.Shorten(number)}'; this server has partition {partition.Number}.");
        bool live = Query.Parameter(http, "live") switch
        {
            null or "true" => true,
            "false" => false,
            { } other => throw new Problem("malformed_request", $"live is '{Query.Shorten(other)}'; it must be true or false."),
        };
        EventReaders readers = Readers();
        if (seen > readers.FlushedSequence)
            throw new Problem("time_in_future", $"after is {after}; the last event is {Answer.Position(partition.Number, readers.FlushedSequence)}.");

        ulong next = seen + 1;
        http.Response.ContentType = "application/x-ndjson";
        http.Response.Headers.CacheControl = "no-store";
        await http.Response.StartAsync(http.RequestAborted);
        using CancellationTokenSource end = CancellationTokenSource.CreateLinkedTokenSource(http.RequestAborted, stopping);
        using Utf8JsonWriter json = new(http.Response.BodyWriter, Options);
        while (!end.IsCancellationRequested)
        {
            readers = partition.Readers ?? readers;
            ulong last = readers.FlushedSequence;
            if (next > last)
            {
                if (!live) break;
                await http.Response.BodyWriter.FlushAsync(CancellationToken.None);
                await Task.Delay(LivePoll, end.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
                continue;
            }

            List<RecordedEvent> events = readers.ReadOn(next, (int)Math.Min(EventsPerWriteMax, last - next + 1));
            foreach (RecordedEvent e in events)
            {
                EventJson.Write(json, partition.Number, e, readers.State);
                json.Flush();
                json.Reset();
                http.Response.BodyWriter.GetSpan(1)[0] = (byte)'\n';
                http.Response.BodyWriter.Advance(1);
            }

            next += (ulong)events.Count;
            await http.Response.BodyWriter.FlushAsync(CancellationToken.None);
        }
    }

    EventReaders Readers() => partition.Readers ?? throw Problem.From(RequestStatus.Unavailable, default);
}
