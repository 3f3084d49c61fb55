using System.Buffers;
using System.Globalization;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>The published event stream: every event, in order, resumable by position.</summary>
sealed class EventEndpoints
{
    static readonly JsonWriterOptions Options = new() { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    /// <summary>How soon a live stream looks for news.</summary>
    static readonly TimeSpan LivePoll = TimeSpan.FromMilliseconds(10);
    const int EventsPerWriteMax = 1000;
    static readonly TimeSpan Patience = TimeSpan.FromSeconds(10);

    readonly PartitionDirectory _directory;
    readonly CancellationToken _stopping;
    readonly PartQuestion<EventsAsked, EventsPart> _events;

    public EventEndpoints(PartitionDirectory directory, CancellationToken stopping)
    {
        (_directory, _stopping) = (directory, stopping);
        _events = directory.Question("events", PartJson.Default.EventsAsked, PartJson.Default.EventsPart, ReadAsync);
    }

    public void Map(IEndpointRouteBuilder routes) => routes.MapGet("/v1/events", (RequestDelegate)StreamAsync);

    async Task StreamAsync(HttpContext http)
    {
        Query.AllowParameters(http, "after", "partition", "live");
        int[] partitions = Query.Parameter(http, "partition") is string number ? [PartitionOf(number)] : [.. Enumerable.Range(0, _directory.Count)];
        bool live = Query.Parameter(http, "live") switch
        {
            null or "true" => true,
            "false" => false,
            { } other => throw new Problem("malformed_request", $"live is '{Query.Shorten(other)}'; it must be true or false."),
        };
        string? after = Query.Parameter(http, "after");
        ulong[] next = [.. partitions.Select(partition => (after is null ? 0 : Query.Position("after", after, partition) ?? 0) + 1)];
        for (int i = 0; i < next.Length; i++)
        {
            ulong last = (await AskAsync(partitions[i], next[i], 0)).FlushedSequence;
            if (next[i] - 1 > last) throw new Problem("time_in_future", $"after is {after}; the last event is {Answer.Position(partitions[i], last)}.");
        }

        http.Response.ContentType = "application/x-ndjson";
        http.Response.Headers.CacheControl = "no-store";
        await http.Response.StartAsync(http.RequestAborted);
        using CancellationTokenSource end = CancellationTokenSource.CreateLinkedTokenSource(http.RequestAborted, _stopping);
        while (!end.IsCancellationRequested)
        {
            bool any = false;
            for (int i = 0; i < partitions.Length && !end.IsCancellationRequested; i++)
            {
                EventsPart part;
                try
                {
                    part = await AskAsync(partitions[i], next[i], EventsPerWriteMax);
                }
                catch (Problem) when (live)
                {
                    // While a partition is down it has no news.
                    continue;
                }

                if (part.Count == 0) continue;
                next[i] += (ulong)part.Count;
                any = true;
                // One block at most waits for a slow reader, however many partitions there are.
                await http.Response.BodyWriter.WriteAsync(part.Lines, CancellationToken.None);
            }

            if (any) continue;
            if (!live) break;
            // The first time round, this is what sends the headers.
            await http.Response.BodyWriter.FlushAsync(CancellationToken.None);
            await Task.Delay(LivePoll, end.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }
    }

    Task<EventsPart> AskAsync(int partition, ulong next, int max) => _directory.AskAsync(_events, partition, new EventsAsked(next, max), Patience, _stopping);

    static Task<EventsPart> ReadAsync(Partition partition, EventsAsked asked, TimeSpan timeout, CancellationToken cancellation)
    {
        EventReaders readers = partition.Readers ?? throw Problem.From(RequestStatus.Unavailable, default);
        ulong flushed = readers.FlushedSequence;
        if (asked.Max == 0 || asked.Next > flushed) return Task.FromResult(new EventsPart(flushed, 0, []));
        List<RecordedEvent> events = readers.ReadOn(asked.Next, (int)Math.Min((ulong)asked.Max, flushed - asked.Next + 1));
        ArrayBufferWriter<byte> lines = new(256 * events.Count);
        using Utf8JsonWriter json = new(lines, Options);
        foreach (RecordedEvent e in events)
        {
            EventJson.Write(json, partition.Number, readers.WithHead(e), readers.State);
            json.Flush();
            json.Reset();
            lines.Write("\n"u8);
        }

        return Task.FromResult(new EventsPart(flushed, events.Count, lines.WrittenSpan.ToArray()));
    }

    int PartitionOf(string text) => int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int number) && number < _directory.Count
        ? number
        : throw new Problem("malformed_request", $"There is no partition '{Query.Shorten(text)}'; this server has 0 to {_directory.Count - 1}.");
}
