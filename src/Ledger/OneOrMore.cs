using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Purse.Ledger;

/// <summary>A list that mostly has one element: that one lies where the list does, so that to look at it waits for no more memory. A field, never copied.</summary>
public struct OneOrMore<T>
{
    T _one;

    /// <summary>All of them, where there were ever more.</summary>
    T[]? _all;

    public int Count { get; private set; }

    [UnscopedRef]
    public Span<T> Span => Count <= 1 ? new Span<T>(ref _one)[..Count] : _all.AsSpan(0, Count);

    public void Add(T element)
    {
        if (Count == 0)
        {
            _one = element;
            Count = 1;
            return;
        }

        if (_all is null || Count == _all.Length) Array.Resize(ref _all, Math.Max(4, Count * 2));
        if (Count == 1) _all[0] = _one;
        _all[Count++] = element;
    }

    public void RemoveAll(Predicate<T> match)
    {
        int count = Count, kept = 0;
        Span<T> all = Span;
        for (int i = 0; i < count; i++)
        {
            if (!match(all[i])) all[kept++] = all[i];
        }

        all[kept..].Clear();
        if (count > 1 && kept <= 1) (_one, all[0]) = (all[0], default!);
        Count = kept;
    }

    public void Clear()
    {
        if (RuntimeHelpers.IsReferenceOrContainsReferences<T>()) Span.Clear();
        _one = default!;
        Count = 0;
    }
}
