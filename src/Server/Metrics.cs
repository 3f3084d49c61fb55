using System.Diagnostics.Metrics;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.Extensions.DependencyInjection;
using OpenTelemetry.Metrics;
using OpenTelemetry.Resources;
using Purse.Partitions;
using Purse.Views;

namespace Purse.Server;

/// <summary><c>/metrics</c>, for Prometheus. All of Purse's own are observed when somebody looks; only flushes are measured one by one.</summary>
sealed class Metrics : IDisposable
{
    readonly Meter _meter;

    Metrics(PartitionDirectory directory, ViewHost views, string meterName)
    {
        _meter = new Meter(meterName);
        _meter.CreateObservableCounter("purse.commands", () => directory.Hosted.SelectMany(CommandsOf), null, "Commands decided, by outcome.");
        Count("purse.events", "Events that are durable.", partition => (long)partition.FlushedSequence);
        Gauge("purse.commands.queued", null, "Commands that wait in the queue.", partition => partition.QueuedCommands);
        Gauge("purse.ready", null, "1 where the partition takes writes.", partition => partition.IsReady ? 1 : 0);
        Gauge("purse.epoch", null, "Which writer of the partition this is.", partition => (long)partition.Epoch);
        Gauge("purse.snapshot.position", null, "The last event of the newest snapshot.", partition => (long)partition.SnapshotSequence);
        Gauge("purse.audit.position", null, "The last event up to which the state was compared with a replay of the journal.", partition => (long)partition.AuditedSequence);
        Gauge("purse.in_doubt.coordinated", null, "Commits across partitions that this one coordinates and has not ended.", partition => partition.UndecidedCount);
        Gauge("purse.in_doubt.prepared", null, "Commits that this partition has prepared for others, which have not told it their decision.", partition => partition.PreparedForOthersCount);
        Gauge("purse.in_doubt.oldest", "s", "How long the oldest commit that this partition coordinates has been under way.", partition => partition.OldestUndecidedAge.TotalSeconds);
        _meter.CreateObservableGauge("purse.view.lag", () => views.Sources.Where(source => source.Lag is not null).Select(source => new Measurement<double>(source.Lag!.Value.TotalSeconds, new KeyValuePair<string, object?>("view", source.View.Name))), "s",
            "For how long there has been something that the view may not show.");
        _meter.CreateObservableGauge("purse.view.position", () => views.Sources.SelectMany(source => Enumerable.Range(0, directory.Count).Select(partition =>
            new Measurement<double>(source.Position(partition), new KeyValuePair<string, object?>("partition", partition), new KeyValuePair<string, object?>("view", source.View.Name)))), null, "The last event that the view shows.");

        void Count(string name, string description, Func<Partition, long> observe) =>
            _meter.CreateObservableCounter(name, () => directory.Hosted.Select(partition => new Measurement<long>(observe(partition), Of(partition))), null, description);

        void Gauge(string name, string? unit, string description, Func<Partition, double> observe) =>
            _meter.CreateObservableGauge(name, () => directory.Hosted.Select(partition => new Measurement<double>(observe(partition), Of(partition))), unit, description);
    }

    static KeyValuePair<string, object?> Of(Partition partition) => new("partition", partition.Number);

    static IEnumerable<Measurement<long>> CommandsOf(Partition partition) => partition.Tally is { } tally
        ? tally.All.Select(one => new Measurement<long>(one.Count, Of(partition), new("outcome", JsonNamingPolicy.SnakeCaseLower.ConvertName(one.Outcome.ToString()))))
        : [];

    /// <param name="meterName">Several servers in one process need one each.</param>
    public static void Add(WebApplicationBuilder builder, PartitionDirectory directory, ViewHost views, string meterName)
    {
        builder.Services.AddSingleton(_ => new Metrics(directory, views, meterName));
        builder.Services.AddOpenTelemetry()
            .ConfigureResource(resource => resource.AddService("purse", autoGenerateServiceInstanceId: false))
            .WithMetrics(metrics => metrics.AddMeter(meterName, Partition.MeterName, "Microsoft.AspNetCore.Hosting", "System.Runtime")
                // What is told is what is so now, not at the last scrape.
                .AddPrometheusExporter(exporter => exporter.ScrapeResponseCacheDurationMilliseconds = 0));
    }

    public static void Map(WebApplication app)
    {
        // It begins to be observed with the server.
        _ = app.Services.GetRequiredService<Metrics>();
        app.MapPrometheusScrapingEndpoint("/metrics");
    }

    public void Dispose() => _meter.Dispose();
}
