namespace Purse.Client;

/// <summary>Brings a batch to the server, once, and its results back.</summary>
abstract class Transport : IAsyncDisposable
{
    /// <param name="results">As long as the transfers.</param>
    /// <exception cref="TransportException">No answer came: any of them may have been done.</exception>
    public abstract Task SendAsync(ReadOnlyMemory<Transfer> transfers, Memory<TransferResult> results, TimeSpan timeout, CancellationToken cancellation);

    public abstract ValueTask DisposeAsync();
}

sealed class TransportException(string message, Exception? inner = null) : Exception(message, inner);
