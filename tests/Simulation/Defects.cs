using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Simulation;

/// <summary>The deliberate mistakes that the simulator has to find, docs/testing.md has the table.</summary>
public static class Defects
{
    public static IReadOnlyList<string> All { get; } =
    [
        .. Enum.GetValues<LedgerDefect>().Where(d => d != LedgerDefect.None).Select(d => d.ToString()),
        .. Enum.GetValues<JournalDefect>().Where(d => d != JournalDefect.None).Select(d => d.ToString()),
        .. Enum.GetValues<PartitionDefect>().Where(d => d != PartitionDefect.None).Select(d => d.ToString()),
    ];

    /// <summary>Runs seeds with the mistake made until one finds it.</summary>
    /// <returns>How many were needed and what they found; null where so many found nothing.</returns>
    public static (int Seeds, string Found)? Find(string defect, int firstSeed, int seedsMax)
    {
        Set(defect);
        try
        {
            for (int n = 0; n < seedsMax; n++)
            {
                try
                {
                    Simulator.Run(SimulationOptions.Draw(firstSeed + n));
                }
                catch (SimulationFailedException e)
                {
                    return (n + 1, e.Message.Split('\n')[0]);
                }
            }

            return null;
        }
        finally
        {
            Set("");
        }
    }

    static void Set(string defect)
    {
        Purse.Ledger.Injected.Set(Enum.TryParse(defect, out LedgerDefect ledger) ? ledger : LedgerDefect.None);
        Purse.Journal.Injected.Set(Enum.TryParse(defect, out JournalDefect journal) ? journal : JournalDefect.None);
        Purse.Partitions.Injected.Set(Enum.TryParse(defect, out PartitionDefect partition) ? partition : PartitionDefect.None);
    }
}
