using Purse.Ledger;

namespace Purse.Tests.Ledger;

public sealed class OneOrMoreTests
{
    OneOrMore<string> _list;

    /// <summary>Excludes: elements that are lost, or stay, where a list goes from one element to more and back.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void It_has_what_a_list_has(int seed)
    {
        Random random = new(seed);
        List<string> expected = [];
        for (int step = 0; step < 2_000; step++)
        {
            switch (random.Next(10))
            {
                case 0:
                    _list.Clear();
                    expected.Clear();
                    break;
                case 1 or 2 or 3:
                    string digit = $"{random.Next(10)}";
                    bool isEnding = random.Next(2) == 0;
                    _list.RemoveAll(one => one.EndsWith(digit, StringComparison.Ordinal) == isEnding);
                    expected.RemoveAll(one => one.EndsWith(digit, StringComparison.Ordinal) == isEnding);
                    break;
                case 4 when expected.Count > 0:
                    int at = random.Next(expected.Count);
                    _list.Span[at] = expected[at] = $"changed {step}";
                    break;
                default:
                    _list.Add($"{step}");
                    expected.Add($"{step}");
                    break;
            }

            Assert.Equal(expected.Count, _list.Count);
            Assert.Equal(expected, _list.Span.ToArray());
        }
    }
}
