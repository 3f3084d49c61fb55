using System.Numerics;
using FsCheck.Xunit;
using Purse.Ledger;

namespace Purse.Tests.Ledger;

public sealed class AmountTests
{
    [Theory]
    [InlineData("12.34", 1234, 2)]
    [InlineData("12.30", 123, 1)]
    [InlineData("0012", 12, 0)]
    [InlineData("0", 0, 0)]
    [InlineData("0.00", 0, 0)]
    [InlineData("100", 100, 0)]
    public void Reads_digits_with_one_point(string text, int digits, int scale)
    {
        Assert.Equal(Amount.ParseResult.Ok, Amount.Parse(text, out Int128 actualDigits, out int actualScale));
        Assert.Equal((digits, scale), ((int)actualDigits, actualScale));
    }

    [Theory]
    [InlineData("")]
    [InlineData(".")]
    [InlineData(".5")]
    [InlineData("5.")]
    [InlineData("1.2.3")]
    [InlineData("-1")]
    [InlineData("+1")]
    [InlineData("1e3")]
    [InlineData("1,000")]
    [InlineData(" 1")]
    [InlineData("１２")]
    [InlineData("0x10")]
    [InlineData("NaN")]
    public void Refuses_what_is_not_an_amount(string text) => Assert.Equal(Amount.ParseResult.Malformed, Amount.Parse(text, out _, out _));

    [Fact]
    public void Bounds_are_exact()
    {
        string most = new('9', 30);
        Assert.Equal(Amount.ParseResult.Ok, Amount.Parse(most, out Int128 digits, out int scale));
        Assert.Equal(Amount.ParseResult.Ok, Amount.ToMinor(digits, scale, 0, out Int128 minor));
        Assert.Equal(Amount.Limit - 1, minor);
        Assert.Equal(Amount.ParseResult.TooLarge, Amount.ToMinor(digits, scale, 1, out _));
        Assert.Equal(Amount.ParseResult.TooLarge, Amount.Parse("1" + new string('0', 30), out _, out _));
        Assert.Equal(Amount.ParseResult.TooPrecise, Amount.Parse("0.0000000000000000001", out _, out _));
        Assert.Equal(Amount.ParseResult.Ok, Amount.Parse("0.000000000000000001", out _, out _));
        Assert.Equal(Amount.ParseResult.Malformed, Amount.Parse(new string('0', 129), out _, out _));
    }

    [Property(MaxTest = 2000)]
    public bool What_is_written_reads_back(ulong high, ulong low, byte decimals, bool negative)
    {
        Int128 minor = new Int128(high >> 16, low) % Amount.BalanceLimit;
        int places = decimals % 19;
        if (negative) minor = -minor;
        string text = Amount.Format(minor, places);
        // An independent reading, in integers of any size.
        BigInteger expected = (BigInteger)minor;
        BigInteger actual = BigInteger.Parse(text.Replace(".", "", StringComparison.Ordinal));
        int point = text.IndexOf('.');
        return actual == expected && (places == 0 ? point < 0 : text.Length - point - 1 == places);
    }
}

public sealed class AccountNameTests
{
    [Theory]
    [InlineData("a")]
    [InlineData("A9._:/-")]
    [InlineData("@world")]
    [InlineData("@bank/settlement")]
    public void Takes(string text)
    {
        Assert.True(AccountName.TryParse(text, out AccountName name));
        Assert.Equal(text, name.ToString());
        Assert.Equal(text[0] == '@', name.IsSystem);
    }

    [Theory]
    [InlineData("")]
    [InlineData("@")]
    [InlineData("@@a")]
    [InlineData(".a")]
    [InlineData("a b")]
    [InlineData("ä")]
    [InlineData("~clearing/1")]
    [InlineData("a\n")]
    public void Refuses(string text) => Assert.False(AccountName.TryParse(text, out _));

    [Fact]
    public void Has_up_to_64_characters()
    {
        Assert.True(AccountName.TryParse(new string('x', 64), out _));
        Assert.False(AccountName.TryParse(new string('x', 65), out _));
        Assert.True(AccountName.TryParse("@" + new string('x', 64), out _));
        Assert.False(AccountName.TryParse("@" + new string('x', 65), out _));
    }

    // XxHash3-64, seed 0, of the UTF-8 bytes: which partition an account lives in, for ever.
    [Theory]
    [InlineData("alice")]
    [InlineData("@world")]
    public void Hash_is_that_of_its_bytes(string text) =>
        Assert.Equal(System.IO.Hashing.XxHash3.HashToUInt64(System.Text.Encoding.UTF8.GetBytes(text)), AccountName.Parse(text).Hash());
}
