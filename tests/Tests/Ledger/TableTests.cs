using Purse.Ledger;
using Purse.Server;

namespace Purse.Tests.Ledger;

/// <summary>
/// Runs the tables beside this file: one command a line, in an accountant's words, and what must come of it after <c>-&gt;</c>. After each
/// table the state is rebuilt from its events and must be the same, byte by byte.
/// </summary>
public sealed class TableTests
{
    public static TheoryData<string> Tables() => [.. Directory.GetFiles(Folder, "*.txt").Select(f => Path.GetFileName(f)).Order(StringComparer.Ordinal)];

    static string Folder => Path.Combine(AppContext.BaseDirectory, "Ledger", "Tables");

    [Theory]
    [MemberData(nameof(Tables))]
    public void Every_line_comes_out_as_written(string table)
    {
        TestLedger ledger = new();
        string[] lines = File.ReadAllLines(Path.Combine(Folder, table));
        for (int i = 0; i < lines.Length; i++)
        {
            string line = lines[i].Split('#')[0].Trim();
            if (line.Length == 0) continue;
            string[] sides = line.Split("->");
            string actual = Run(ledger, sides[0].Split(' ', StringSplitOptions.RemoveEmptyEntries));
            Assert.True(actual == sides[1].Trim(), $"{table}, line {i + 1}: {line}\ncame out as: {actual}");
        }

        Assert.Equal(TestLedger.Bytes(ledger.State), TestLedger.Bytes(ledger.Replay(tableSeed: 7)));
    }

    [Fact]
    public void The_tables_reach_every_outcome_that_this_version_decides()
    {
        string all = string.Concat(Directory.GetFiles(Folder, "*.txt").Select(File.ReadAllText));
        // Said by the partition, or of commits across partitions, which the simulator meets.
        string[] elsewhere =
        [
            nameof(Outcome.StorageFull), nameof(Outcome.Overloaded), nameof(Outcome.Undecided), nameof(Outcome.Prepared), nameof(Outcome.Blocked), nameof(Outcome.Aborted),
        ];
        foreach (Outcome outcome in Enum.GetValues<Outcome>())
        {
            if (!elsewhere.Contains(outcome.ToString())) Assert.Contains($"-> {EventJson.OutcomeCode(outcome)}", all, StringComparison.Ordinal);
        }
    }

    static string Run(TestLedger ledger, string[] words)
    {
        switch (words[0])
        {
            case "open":
                return Show(ledger.Execute(TestLedger.Change(CommandKind.OpenAccount, words[1], details: words.Length > 2 ? Limits(words[2..]) : null)));
            case "limits":
                return Show(ledger.Execute(TestLedger.Change(CommandKind.SetLimits, words[1], details: Limits(words[2..]))));
            case "metadata":
                return Show(ledger.Execute(TestLedger.Change(CommandKind.SetMetadata, words[1], details: new CommandDetails { Metadata = new Erasable("{}"u8.ToArray(), new byte[16]) })));
            case "freeze":
                return Show(ledger.Execute(TestLedger.Change(CommandKind.Freeze, words[1], Enum.Parse<Direction>(words[2], ignoreCase: true))));
            case "unfreeze":
                return Show(ledger.Execute(TestLedger.Change(CommandKind.Unfreeze, words[1])));
            case "close":
                return Show(ledger.Execute(TestLedger.Change(CommandKind.Close, words[1])));
            case "repeat":
                // Ids count up from the one written.
                return Enumerable.Range(0, int.Parse(words[1])).Select(n => Run(ledger, [words[2], $"T{int.Parse(words[3].AsSpan(1)) + n}", .. words[4..]])).Distinct().Single();
            case "transfer":
                return Show(ledger.Execute(TestLedger.Transfer(UInt128.Parse(words[1].AsSpan(1)), words[2], words[3], words[4], words[5])));
            case "hold":
            {
                Command hold = TestLedger.Transfer(UInt128.Parse(words[1].AsSpan(1)), words[2], words[3], words[4], words[5]);
                hold.Pending = true;
                hold.ExpiresInSeconds = words.Length > 6 ? int.Parse(words[6].TrimEnd('s')) : 0;
                return Show(ledger.Execute(hold));
            }

            case "up-to":
            {
                Command transfer = TestLedger.Transfer(UInt128.Parse(words[1].AsSpan(1)), words[2], words[3], words[4], words[5]);
                transfer.UpTo = true;
                transfer.Pending = words.Length > 6;
                return Show(ledger.Execute(transfer));
            }

            case "try":
            {
                // A dry run: the answer it would get, and nothing left behind.
                byte[] before = TestLedger.Bytes(ledger.State);
                ledger.DryRun = true;
                string answer = Run(ledger, words[1..]);
                ledger.DryRun = false;
                Assert.Equal(before, TestLedger.Bytes(ledger.State));
                return answer;
            }

            case "transaction":
            {
                // transaction T1 alice bob 1.00 USD , bob carol 1.00 USD: a refusal says which posting, from 0.
                IEnumerable<(string, string, string, string)> postings = words[2..].Where(word => word != ",").Chunk(4).Select(one => (one[0], one[1], one[2], one[3]));
                Decision decision = ledger.Execute(TestLedger.Transaction(UInt128.Parse(words[1].AsSpan(1)), [.. postings]));
                return Show(decision) + (decision.Outcome is Outcome.Done or Outcome.Duplicate ? "" : $" at {decision.Posting}");
            }

            case "reverse":
            {
                // reverse T3 of T1 2.00 ?alice
                AccountName home = words.FirstOrDefault(word => word[0] == '?') is string name ? AccountName.Parse(name[1..]) : default;
                Command reversal = ledger.Reversal(UInt128.Parse(words[1].AsSpan(1)), UInt128.Parse(words[3].AsSpan(1)), home);
                if (words.Skip(4).FirstOrDefault(word => word[0] != '?') is string amount)
                    (reversal.AmountDigits, reversal.AmountScale) = Parse(amount) is var (digits, scale) ? (digits, (byte)scale) : default;
                Decision decision = ledger.Execute(reversal);
                return Show(decision) + (decision.Posting > 0 ? $" at {decision.Posting}" : "");
            }

            case "currency":
                return Show(ledger.Execute(new Command { Kind = CommandKind.RegisterCurrency, Currency = CurrencyCode.Parse(words[1]), AmountScale = byte.Parse(words[2]) }));
            case "capture" or "void":
            {
                // capture T3 of T1 2.00: under the id T3, of the hold T1; ?alice names its home.
                Command end = new()
                {
                    Kind = words[0] == "capture" ? CommandKind.Capture : CommandKind.Void,
                    TransactionId = UInt128.Parse(words[1].AsSpan(1)),
                    OriginalId = UInt128.Parse(words[3].AsSpan(1)),
                };
                foreach (string word in words[4..])
                {
                    if (word[0] == '?') end.Account = AccountName.Parse(word[1..]);
                    else (end.AmountDigits, end.AmountScale) = Parse(word) is var (digits, scale) ? (digits, (byte)scale) : default;
                }

                return Show(ledger.Execute(end));
            }

            case "wait":
                ledger.Wait(int.Parse(words[1].TrimEnd('s')));
                return "done";
            case "held":
                return ledger.Held(words[1], words[2]);
            case "balance":
                return ledger.Balance(words[1], words[2]);
            default:
                throw new InvalidDataException($"'{words[0]}' is not a word of these tables.");
        }
    }

    static string Show(in Decision decision) => EventJson.OutcomeCode(decision.Outcome) + (decision.Outcome == Outcome.Duplicate ? $" of {decision.Sequence}" : "");

    /// <summary><c>USD min -50 max 100</c>, either or both; <c>none</c> ends all.</summary>
    static CommandDetails Limits(string[] words)
    {
        if (words is ["none"]) return new CommandDetails { Limits = [] };
        int min = Array.IndexOf(words, "min"), max = Array.IndexOf(words, "max");
        (Int128 minDigits, int minScale) = Parse(min < 0 ? "0" : words[min + 1]);
        (Int128 maxDigits, int maxScale) = Parse(max < 0 ? "0" : words[max + 1]);
        return new CommandDetails { Limits = [new LimitsAsWritten(CurrencyCode.Parse(words[0]), min >= 0, minDigits, minScale, max >= 0, maxDigits, maxScale)] };
    }

    static (Int128 Digits, int Scale) Parse(string text)
    {
        Assert.Equal(Amount.ParseResult.Ok, Amount.Parse(text.TrimStart('-'), out Int128 digits, out int scale));
        return (text[0] == '-' ? -digits : digits, scale);
    }
}
