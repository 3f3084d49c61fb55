namespace Purse.Ledger;

/// <summary>
/// Every sixteenth event of a balance. From one of them on, any event before it is a few steps along the balance's chain, so that each is near whoever
/// knows the marks.
/// </summary>
public struct BalanceMark
{
    public const ulong Stride = 16;

    public uint Account;
    public uint Currency;

    /// <summary>Of the event among its balance's, from 1.</summary>
    public ulong Number;

    public ulong Sequence;
    public long TimeMicros;
}
