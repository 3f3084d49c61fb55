using Purse.Cli;

namespace Purse.Tests.Server;

public sealed class HugePagesTests
{
    static readonly string[] Maps =
    [
        "1000-2000 r-xp 00000000 fd:00 77 /usr/bin/dotnet",
        "2000-3000 rw-p 00000000 00:00 0 ",
        "5000-6000 rw-p 00000000 00:00 0 ",
        "6000-7000 ---p 00000000 00:00 0 ",
        "7000-8000 rw-p 00000000 00:00 0                  [anon:heap]",
        "8000-9000 rw-p 00000000 00:00 0 ",
        "9000-a000 rw-p 00000000 00:00 0                  [heap]",
        "b000-c000 rw-s 00000000 00:01 9 /memfd:doublemapper (deleted)",
        "c000-d000 rw-p 00000000 00:00 0 ",
    ];

    [Theory]
    [InlineData(0x6800, 0x5000, 0x9000)]
    [InlineData(0x5000, 0x5000, 0x9000)]
    [InlineData(0x2fff, 0x2000, 0x3000)]
    [InlineData(0xcfff, 0xc000, 0xd000)]
    [InlineData(0x1800, 0, 0)]
    [InlineData(0x4000, 0, 0)]
    [InlineData(0x9800, 0, 0)]
    [InlineData(0xffff, 0, 0)]
    public void What_is_mapped_around_an_address_is_found(ulong address, ulong from, ulong to) => Assert.Equal((from, to), HugePages.MappedAround(address, Maps));
}
