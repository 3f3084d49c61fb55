using Purse.Cluster.Local;

namespace Purse.Tests;

/// <summary>One real server for all tests of a run that need one; each has a database of its own.</summary>
public sealed class PostgreSqlServer : IAsyncLifetime
{
    TemporaryFolder? _folder;
    int _databases;

    LocalPostgreSql? _server;

    /// <summary>Skips the test where PostgreSQL is not installed.</summary>
    public LocalPostgreSql Server
    {
        get
        {
            Assert.SkipWhen(_server is null, "PostgreSQL is not installed: ./test installs it when run as root.");
            return _server;
        }
    }

    public async ValueTask InitializeAsync()
    {
        if (LocalPostgreSql.ProgramsFolder is null) return;
        _folder = new TemporaryFolder();
        _server = await LocalPostgreSql.MakeAsync(_folder.Path);
    }

    /// <summary>A new, empty database; what connects to it.</summary>
    public async Task<string> NewDatabaseAsync()
    {
        string name = $"test{Interlocked.Increment(ref _databases)}";
        await using Npgsql.NpgsqlDataSource source = Npgsql.NpgsqlDataSource.Create(Server.ConnectionString);
        await using Npgsql.NpgsqlCommand command = source.CreateCommand($"create database {name}");
        await command.ExecuteNonQueryAsync();
        return Server.ConnectionString.Replace("Database=postgres", $"Database={name}", StringComparison.Ordinal);
    }

    public async ValueTask DisposeAsync()
    {
        if (_server is not null) await _server.DisposeAsync();
        _folder?.Dispose();
    }
}
