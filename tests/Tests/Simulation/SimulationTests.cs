using Purse.Simulation;

namespace Purse.Tests.Simulations;

public sealed class SimulationTests
{
    const int Seeds = 200;

    /// <summary>A bounded number of runs, each from a seed of its own; a failing one is shrunk and told with how to run it again.</summary>
    [Fact]
    public void No_seed_breaks_a_promise()
    {
        int first = Environment.TickCount & 0xfffffff;
        long lives = 0, answered = 0, moved = 0;
        for (int seed = first; seed < first + Seeds; seed++)
        {
            try
            {
                SimulationResult result = Simulator.Run(SimulationOptions.Draw(seed));
                lives += result.Lives;
                answered += result.Answered;
                moved += result.Moved;
            }
            catch (SimulationFailedException e)
            {
                SimulationFailedException shrunk = Simulator.Shrink(e);
                Assert.Fail($"Seed {seed}: {e}\n\nShrunk: {shrunk.Message}\n\nAgain: ./purse simulate --seed {seed}");
            }
        }

        // Runs in which nothing happens would pass as well.
        Assert.True(lives > 5 * Seeds && answered > 20 * Seeds && moved > 10 * Seeds, $"{lives} lives, {answered} answers, {moved} movements of money");
    }

    public static TheoryData<string> AllDefects() => [.. Defects.All];

    /// <summary>The simulator is no better than what it finds. The seeds are fixed: a mistake that needs more of them than before shows here.</summary>
    [Theory]
    [MemberData(nameof(AllDefects))]
    public void A_deliberate_mistake_is_found(string defect)
    {
        (int Seeds, string Found)? found = Defects.Find(defect, firstSeed: 1, SeedsPerDefectMax);
        Assert.True(found is not null, $"{SeedsPerDefectMax} seeds did not find {defect}");
        TestContext.Current.SendDiagnosticMessage($"| `{defect}` | {found.Value.Seeds} | {found.Value.Found} |");
    }

    const int SeedsPerDefectMax = 600;

    [Fact]
    public void A_seed_replays_exactly()
    {
        for (int seed = 1; seed <= 5; seed++) Assert.Equal(Simulator.Run(SimulationOptions.Draw(seed)), Simulator.Run(SimulationOptions.Draw(seed)));
    }
}
