using System.CommandLine;
using System.Diagnostics;
using Purse.Simulation;

namespace Purse.Cli;

/// <summary><c>purse simulate</c>: the ledger, the partition and its journal under a seed, with everything going wrong.</summary>
static class SimulateCommand
{
    public static Command Create()
    {
        Option<int?> seed = new("--seed") { Description = "The first seed; a random one by default. Each run takes the next." };
        Option<double?> minutes = new("--minutes") { Description = "How long; without it one run, where a seed is given." };
        Command command = new("simulate", "Run the real ledger, partitions, two-phase commit and journals on disks, a network and clocks that fail in every way.") { seed, minutes };
        command.SetAction(parsed => Run(parsed.GetValue(seed), parsed.GetValue(minutes)));
        return command;
    }

    /// <summary>What led to a failure: the end of its trace.</summary>
    const int TraceLinesMax = 60;

    static int Run(int? firstSeed, double? minutes)
    {
        int seed = firstSeed ?? Random.Shared.Next();
        TimeSpan limit = TimeSpan.FromMinutes(minutes ?? (firstSeed is null ? 1 : 0));
        Stopwatch elapsed = Stopwatch.StartNew();
        long runs = 0, answered = 0, lives = 0, faults = 0, events = 0, simulatedMicros = 0, moved = 0, movedAcross = 0, messages = 0;
        TimeSpan told = TimeSpan.Zero;
        do
        {
            try
            {
                SimulationResult result = Simulator.Run(SimulationOptions.Draw(seed));
                runs++;
                answered += result.Answered;
                lives += result.Lives;
                faults += result.Faults;
                events += (long)result.Events;
                simulatedMicros += result.SimulatedMicros;
                moved += result.Moved;
                movedAcross += result.MovedAcross;
                messages += result.Messages;
            }
            catch (SimulationFailedException e)
            {
                Terminal.Error($"Seed {seed} failed: {e.Message}");
                Terminal.Error("Shrinking…");
                SimulationFailedException shrunk = Simulator.Shrink(e);
                Queue<string> trace = new();
                try
                {
                    Simulator.Run(shrunk.Options, line =>
                    {
                        trace.Enqueue(line);
                        if (trace.Count > TraceLinesMax) trace.Dequeue();
                    });
                }
                catch (SimulationFailedException again)
                {
                    foreach (string line in trace) Console.Error.WriteLine(line);
                    Terminal.Error($"{again}");
                }

                Terminal.Error($"Run it again with `purse simulate --seed {seed}`.");
                return Exit.Failed;
            }

            if (elapsed.Elapsed - told > TimeSpan.FromSeconds(10))
            {
                told = elapsed.Elapsed;
                Console.Error.WriteLine($"{runs} runs, up to seed {seed}, {faults} faults…");
            }

            seed = unchecked(seed + 1);
        }
        while (elapsed.Elapsed < limit);
        Console.WriteLine($"{runs} runs kept every promise: {TimeSpan.FromMicroseconds(simulatedMicros).TotalHours:0.0} simulated hours, {faults} faults, {lives} lives, {answered} answers,");
        Console.WriteLine($"{moved} movements of money, {movedAcross} of them across partitions, {messages} messages, {events} events.");
        return Exit.Done;
    }
}
