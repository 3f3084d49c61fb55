// Draws the charts of docs/performance.md from what `purse bench --json` and `purse bench compare --json` wrote:
//   dotnet run --project benchmarks/Charts -- growth docs RESULT.json...
//   dotnet run --project benchmarks/Charts -- shapes docs UNIFORM.json ZIPF.json HOT.json
using System.Globalization;
using System.Text.Json;
using ScottPlot;

const int WidthPixels = 820, HeightPixels = 420;
CultureInfo.CurrentCulture = CultureInfo.InvariantCulture;

switch (args)
{
    case ["growth", var folder, .. var files]:
        DrawGrowth(folder, files);
        return 0;
    case ["shapes", var folder, var uniform, var zipf, var hot]:
        DrawShapes(folder, [uniform, zipf, hot]);
        return 0;
    default:
        Console.Error.WriteLine("growth FOLDER RESULT.json..., or shapes FOLDER UNIFORM.json ZIPF.json HOT.json");
        return 2;
}

static JsonElement Read(string file)
{
    using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(file));
    return document.RootElement.Clone();
}

static double Median(IEnumerable<double> values)
{
    double[] sorted = [.. values.Order()];
    return sorted[sorted.Length / 2];
}

// One line for each number of accounts, over the number of transfers; the median where there are several runs.
static void DrawGrowth(string folder, string[] files)
{
    JsonElement[] runs = [.. files.Select(Read)];
    (string File, string Title, string Member, double Unit)[] charts =
    [
        ("growth-rate.png", "Durable transfers a second, through the client", "transfers_per_second", 1e3),
        ("growth-memory.png", "Memory of the server, MB", "server_rss_bytes", 1e6),
    ];
    foreach ((string file, string title, string member, double unit) in charts)
    {
        Plot plot = new();
        double[] transfers = [.. runs.Select(run => run.GetProperty("transfers").GetDouble()).Select(Round).Distinct().Order()];
        foreach (IGrouping<double, JsonElement> line in runs.GroupBy(run => run.GetProperty("accounts").GetDouble()).OrderBy(line => line.Key))
        {
            (double X, double Y)[] points = [.. line.GroupBy(run => Round(run.GetProperty("transfers").GetDouble())).OrderBy(at => at.Key).Select(at => (Math.Log10(at.Key), Median(at.Select(run => run.GetProperty(member).GetDouble())) / unit))];
            double[] xs = [.. points.Select(p => p.X)], ys = [.. points.Select(p => p.Y)];
            ScottPlot.Plottables.Scatter scatter = plot.Add.Scatter(xs, ys);
            scatter.LegendText = $"{Short(line.Key)} accounts";
            scatter.LineWidth = 2;
            scatter.MarkerSize = 8;
        }

        plot.Axes.Bottom.TickGenerator = new ScottPlot.TickGenerators.NumericManual([.. transfers.Select(Math.Log10)], [.. transfers.Select(Short)]);
        plot.Axes.AutoScale();
        plot.Axes.SetLimitsY(0, plot.Axes.GetLimits().Top * 1.05);
        plot.XLabel("transfers in the journal at the end");
        plot.YLabel(unit == 1e3 ? "thousand a second" : "MB");
        plot.Title(title);
        // Memory grows, and rates do not fall: where no line is.
        plot.ShowLegend(file == "growth-memory.png" ? Alignment.UpperLeft : Alignment.LowerRight);
        plot.SavePng(Path.Combine(folder, file), WidthPixels, HeightPixels);
    }
}

static double Round(double transfers) => Math.Pow(10, Math.Round(Math.Log10(transfers)));

static string Short(double count) => count >= 1e6 ? $"{count / 1e6:0} M" : $"{count / 1e3:0} k";

// A group of bars for each way, on a logarithmic axis: what a hot account does to rows is an order of magnitude.
static void DrawShapes(string folder, string[] files)
{
    string[] shapes = ["all alike", "Zipf", "one pays all"];
    (string Way, int? Clients, string Label)[] ways =
    [
        ("Purse, by its client", null, "Purse,\nby its client"),
        ("Purse, in process, journal in PostgreSQL", null, "Purse on\nPostgreSQL"),
        ("rows in PostgreSQL, a transaction each", 64, "PostgreSQL rows,\n64 clients"),
        ("rows in PostgreSQL, a procedure with many", 4, "PostgreSQL rows,\n500 at once"),
        ("a script in Redis, appendfsync always", null, "Redis script,\n64 clients"),
        ("a script in Redis, appendfsync always, pipelined", null, "Redis script,\npipelined"),
    ];
    Color[] colors = [Colors.SteelBlue, Colors.Orange, Colors.IndianRed];
    Plot plot = new();
    for (int shape = 0; shape < files.Length; shape++)
    {
        JsonElement[] results = [.. Read(files[shape]).EnumerateArray()];
        List<Bar> bars = [];
        for (int way = 0; way < ways.Length; way++)
        {
            double rate = results.First(one => one.GetProperty("way").GetString() == ways[way].Way && (ways[way].Clients is not int clients || one.GetProperty("measured").GetProperty("clients").GetInt32() == clients))
                .GetProperty("measured").GetProperty("transfers_per_second").GetDouble();
            bars.Add(new Bar { Position = way * 4 + shape, Value = Math.Log10(rate), ValueBase = 2, FillColor = colors[shape], Label = rate >= 1e4 ? $"{rate / 1e3:0} k" : $"{rate / 1e3:0.0} k" });
        }

        ScottPlot.Plottables.BarPlot plotted = plot.Add.Bars(bars);
        plotted.LegendText = shapes[shape];
        plotted.ValueLabelStyle.FontSize = 9;
    }

    plot.Axes.Bottom.TickGenerator = new ScottPlot.TickGenerators.NumericManual([.. ways.Select((_, way) => way * 4.0 + 1)], [.. ways.Select(way => way.Label)]);
    plot.Axes.Left.TickGenerator = new ScottPlot.TickGenerators.NumericManual([2, 3, 4, 5, 6], ["100", "1 k", "10 k", "100 k", "1 M"]);
    plot.Axes.SetLimitsY(2, 6.4);
    plot.YLabel("transfers a second, logarithmic");
    plot.Title("Who pays: all accounts alike, by Zipf's law, or one account everything");
    plot.ShowLegend(Alignment.UpperRight);
    plot.SavePng(Path.Combine(folder, "hot-accounts.png"), WidthPixels, HeightPixels);
}
