using Microsoft.Extensions.Logging;

namespace Purse.Server;

/// <summary>What Orleans has to say of the cluster's nodes, on one line each, where an operator looks.</summary>
sealed class OrleansLog(Action<string> log) : ILoggerProvider, ILogger
{
    const int LengthMax = 300;

    public ILogger CreateLogger(string categoryName) => this;

    public IDisposable? BeginScope<TState>(TState state)
        where TState : notnull => null;

    public bool IsEnabled(LogLevel logLevel) => logLevel >= LogLevel.Warning;

    public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter)
    {
        if (!IsEnabled(logLevel)) return;
        string text = formatter(state, exception);
        if (exception is not null) text += $" ({exception.Message})";
        text = text.ReplaceLineEndings(" ");
        log($"Orleans: {(text.Length <= LengthMax ? text : $"{text[..LengthMax]}…")}");
    }

    public void Dispose()
    {
    }
}
