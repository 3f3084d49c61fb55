using System.Diagnostics.CodeAnalysis;

namespace Purse.Ledger;

/// <summary>A broken invariant: the state cannot be trusted any more, so the partition stops. Never a business outcome.</summary>
public sealed class InvariantBrokenException(string message) : Exception(message);

/// <summary>Invariants, asserted in release builds too.</summary>
public static class Check
{
    public static void That([DoesNotReturnIf(false)] bool holds, string invariant)
    {
        if (!holds) Fail(invariant);
    }

    [DoesNotReturn]
    public static void Fail(string invariant) => throw new InvariantBrokenException($"Invariant broken: {invariant}.");
}
