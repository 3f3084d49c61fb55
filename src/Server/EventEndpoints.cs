using System.Globalization;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Cluster;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>The published event stream: every event, in order, resumable by position.</summary>
sealed class EventEndpoints(Router router, CancellationToken stopping)
{
    static readonly JsonWriterOptions Options = new() { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    /// <summary>How soon a live stream looks for news.</summary>
    static readonly TimeSpan LivePoll = TimeSpan.FromMilliseconds(10);
    const int EventsPerWriteMax = 1000;

    public void Map(IEndpointRouteBuilder routes) => routes.MapGet("/v1/events", (RequestDelegate)StreamAsync);

    async Task StreamAsync(HttpContext http)
    {
        Query.AllowParameters(http, "after", "partition", "live");
        IReadOnlyList<Partition> partitions = Query.Parameter(http, "partition") is string number ? [PartitionOf(number)] : router.All;
        bool live = Query.Parameter(http, "live") switch
        {
            null or "true" => true,
            "false" => false,
            { } other => throw new Problem("malformed_request", $"live is '{Query.Shorten(other)}'; it must be true or false."),
        };
        string? after = Query.Parameter(http, "after");
        ulong[] next = [.. partitions.Select(partition => (after is null ? 0 : Query.Position("after", after, partition.Number) ?? 0) + 1)];
        for (int i = 0; i < next.Length; i++)
        {
            ulong last = Readers(partitions[i]).FlushedSequence;
            if (next[i] - 1 > last) throw new Problem("time_in_future", $"after is {after}; the last event is {Answer.Position(partitions[i].Number, last)}.");
        }

        http.Response.ContentType = "application/x-ndjson";
        http.Response.Headers.CacheControl = "no-store";
        await http.Response.StartAsync(http.RequestAborted);
        using CancellationTokenSource end = CancellationTokenSource.CreateLinkedTokenSource(http.RequestAborted, stopping);
        using Utf8JsonWriter json = new(http.Response.BodyWriter, Options);
        EventReaders?[] readers = new EventReaders?[partitions.Count];
        while (!end.IsCancellationRequested)
        {
            bool any = false;
            for (int i = 0; i < partitions.Count && !end.IsCancellationRequested; i++)
            {
                // While a partition is down, its last readers have all that was told of.
                readers[i] = partitions[i].Readers ?? readers[i];
                if (readers[i] is not EventReaders reader || next[i] > reader.FlushedSequence) continue;
                List<RecordedEvent> events = reader.ReadOn(next[i], (int)Math.Min(EventsPerWriteMax, reader.FlushedSequence - next[i] + 1));
                foreach (RecordedEvent e in events)
                {
                    EventJson.Write(json, partitions[i].Number, reader.WithHead(e), reader.State);
                    json.Flush();
                    json.Reset();
                    http.Response.BodyWriter.GetSpan(1)[0] = (byte)'\n';
                    http.Response.BodyWriter.Advance(1);
                }

                next[i] += (ulong)events.Count;
                any = true;
                // One block at most waits for a slow reader, however many partitions there are.
                await http.Response.BodyWriter.FlushAsync(CancellationToken.None);
            }

            if (any) continue;
            if (!live) break;
            // The first time round, this is what sends the headers.
            await http.Response.BodyWriter.FlushAsync(CancellationToken.None);
            await Task.Delay(LivePoll, end.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }
    }

    Partition PartitionOf(string text) => int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int number) && number < router.All.Count
        ? router.All[number]
        : throw new Problem("malformed_request", $"There is no partition '{Query.Shorten(text)}'; this server has 0 to {router.All.Count - 1}.");

    static EventReaders Readers(Partition partition) => partition.Readers ?? throw Problem.From(RequestStatus.Unavailable, default);
}
