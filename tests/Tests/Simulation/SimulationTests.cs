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
        long lives = 0, answered = 0;
        for (int seed = first; seed < first + Seeds; seed++)
        {
            try
            {
                SimulationResult result = Simulator.Run(SimulationOptions.Draw(seed));
                lives += result.Lives;
                answered += result.Answered;
            }
            catch (SimulationFailedException e)
            {
                SimulationFailedException shrunk = Simulator.Shrink(e);
                Assert.Fail($"Seed {seed}: {e}\n\nShrunk: {shrunk.Message}\n\nAgain: ./purse simulate --seed {seed}");
            }
        }

        // Runs in which nothing happens would pass as well.
        Assert.True(lives > 5 * Seeds && answered > 20 * Seeds, $"{lives} lives, {answered} answers");
    }

    [Fact]
    public void A_seed_replays_exactly()
    {
        for (int seed = 1; seed <= 5; seed++) Assert.Equal(Simulator.Run(SimulationOptions.Draw(seed)), Simulator.Run(SimulationOptions.Draw(seed)));
    }
}
