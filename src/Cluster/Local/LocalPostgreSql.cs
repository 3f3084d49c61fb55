using System.Diagnostics;
using System.Security.Cryptography;

namespace Purse.Cluster.Local;

/// <summary>
/// A PostgreSQL server of this machine's own package, as a child process in a folder of its own, on loopback. For trying out and for tests.
/// </summary>
public sealed class LocalPostgreSql : IAsyncDisposable
{
    public const string User = "purse";
    readonly Process _process;

    LocalPostgreSql(string folder, int port, string password, Process process)
    {
        Folder = folder;
        Port = port;
        Password = password;
        _process = process;
    }

    public string Folder { get; }

    public int Port { get; }

    public string Password { get; }

    public int ProcessId => _process.Id;

    public string[] Command => CommandIn(Folder);

    static string[] CommandIn(string folder) => [.. CommandOf("postgres", "-D", Path.Combine(folder, "data"))];

    public string ConnectionString => ConnectionTo(Port, Password);

    static string ConnectionTo(int port, string password) => $"Host=127.0.0.1;Port={port};Database=postgres;Username={User};Password={password}";

    /// <summary>Where the programs are; null where PostgreSQL is not installed.</summary>
    public static string? ProgramsFolder { get; } = Directory.Exists("/usr/lib/postgresql")
        ? Directory.EnumerateDirectories("/usr/lib/postgresql").Select(version => Path.Combine(version, "bin")).Where(bin => File.Exists(Path.Combine(bin, "postgres")))
            .OrderByDescending(bin => int.TryParse(Path.GetFileName(Path.GetDirectoryName(bin)), out int version) ? version : 0).FirstOrDefault()
        : null;

    /// <summary>Makes a new server in an empty folder, and waits until it takes connections.</summary>
    /// <param name="settings">Lines for postgresql.conf.</param>
    public static async Task<LocalPostgreSql> MakeAsync(string folder, IEnumerable<string>? settings = null)
    {
        Directory.CreateDirectory(folder);
        string password = Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(16)), passwordFile = KeepPassword(folder, password), data = Path.Combine(folder, "data");
        await GiveAwayAsync(folder);
        await RunAsync("initdb", folder, null, "-D", data, "-U", User, "--auth=scram-sha-256", $"--pwfile={passwordFile}", "--no-locale", "-E", "UTF8", "--no-sync");
        int port = LocalProcess.FreePort();
        await File.AppendAllLinesAsync(Path.Combine(data, "postgresql.conf"),
        [
            "listen_addresses = '127.0.0.1'", $"port = {port}", $"unix_socket_directories = ''", "max_prepared_transactions = 64", "max_wal_senders = 8", .. settings ?? [],
        ]);
        return await StartAsync(folder, port, password);
    }

    static string KeepPassword(string folder, string password)
    {
        string file = Path.Combine(folder, PasswordFile);
        File.WriteAllText(file, password);
        if (!OperatingSystem.IsWindows()) File.SetUnixFileMode(file, UnixFileMode.UserRead | UnixFileMode.UserWrite);
        return file;
    }

    const string PasswordFile = "password";

    /// <summary>One that was made before, and runs.</summary>
    public static LocalPostgreSql Open(string folder, int port, int processId) =>
        new(folder, port, File.ReadAllText(Path.Combine(folder, PasswordFile)), Process.GetProcessById(processId));

    /// <summary>A copy of this server that follows it.</summary>
    /// <param name="name">Its slot, and its name in synchronous_standby_names.</param>
    /// <param name="isSynchronous">From now on nothing counts as committed here before it is durable there.</param>
    public async Task<LocalPostgreSql> MakeStandbyAsync(string folder, string name, bool isSynchronous)
    {
        Directory.CreateDirectory(folder);
        KeepPassword(folder, Password);
        await GiveAwayAsync(folder);
        string data = Path.Combine(folder, "data");
        await RunAsync(
            "pg_basebackup", folder, Password, "-d", $"host=127.0.0.1 port={Port} user={User} application_name={name}", "-D", data, "-X", "stream", "-R", "-C", "-S", name, "-c", "fast", "--no-sync");
        int port = LocalProcess.FreePort();
        await File.AppendAllLinesAsync(Path.Combine(data, "postgresql.conf"), [$"port = {port}"]);
        // The copy was told all settings, but not under which name it follows.
        await File.AppendAllLinesAsync(Path.Combine(data, "postgresql.auto.conf"), [$"primary_conninfo = 'host=127.0.0.1 port={Port} user={User} password={Password} application_name={name}'"]);
        LocalPostgreSql standby = await StartAsync(folder, port, Password);
        if (isSynchronous)
        {
            await ExecuteAsync($"alter system set synchronous_standby_names = '{name}'");
            await ExecuteAsync("select pg_reload_conf()");
        }

        return standby;
    }

    /// <summary>Makes a standby the server that takes writes.</summary>
    public Task PromoteAsync() => ExecuteAsync("select pg_promote()");

    public async Task ExecuteAsync(string sql)
    {
        await using Npgsql.NpgsqlConnection connection = new(ConnectionString + ";Pooling=false");
        await connection.OpenAsync();
        await using Npgsql.NpgsqlCommand command = new(sql, connection);
        await command.ExecuteNonQueryAsync();
    }

    /// <summary>Starts what was made before, or stopped, or killed.</summary>
    public static async Task<LocalPostgreSql> StartAsync(string folder, int port, string password)
    {
        long deadline = Environment.TickCount64 + 60_000;
        while (true)
        {
            try
            {
                return await TryStartAsync(folder, port, password, deadline);
            }
            catch (IOException e) when (e.Message.Contains("shared memory block", StringComparison.Ordinal) && Environment.TickCount64 < deadline)
            {
                // The children of one that was killed are still ending.
                await Task.Delay(100);
            }
        }
    }

    static async Task<LocalPostgreSql> TryStartAsync(string folder, int port, string password, long deadline)
    {
        Process process = LocalProcess.Start(folder, CommandIn(folder));
        LocalPostgreSql server = new(folder, port, password, process);
        for (; ; await Task.Delay(20))
        {
            if (process.HasExited || Environment.TickCount64 > deadline)
            {
                if (!process.HasExited) process.Kill();
                await process.WaitForExitAsync();
                throw new IOException($"The PostgreSQL server in {folder} does not take connections: {LocalProcess.LogOf(folder)}");
            }

            if (await IsReadyAsync(server)) return server;
        }
    }

    static Task<bool> IsReadyAsync(LocalPostgreSql server) => IsReadyAsync(server.ConnectionString);

    /// <summary>Whether the server that was made in this folder takes connections.</summary>
    public static Task<bool> IsReadyAsync(string folder, int port) => IsReadyAsync(ConnectionTo(port, File.ReadAllText(Path.Combine(folder, PasswordFile))));

    static async Task<bool> IsReadyAsync(string connectionString)
    {
        try
        {
            await using Npgsql.NpgsqlConnection connection = new(connectionString + ";Pooling=false");
            await connection.OpenAsync();
            return true;
        }
        catch (Npgsql.NpgsqlException)
        {
            return false;
        }
    }

    /// <summary>Ends every session and writes what is in memory, as its fast shutdown does.</summary>
    public async Task StopAsync()
    {
        if (_process.HasExited) return;
        await RunProgramAsync("kill", "-INT", $"{ProcessId}");
        await _process.WaitForExitAsync();
    }

    /// <summary>As when the machine fails: the server and all of its children at once.</summary>
    public async Task KillAsync()
    {
        if (_process.HasExited) return;
        // The children notice that the first process is gone, and end; a new one waits for that.
        _process.Kill();
        await _process.WaitForExitAsync();
    }

    static bool IsRoot => Environment.UserName == "root";

    /// <summary>PostgreSQL refuses to run as root: its own user has to own the folder, and reach it.</summary>
    static async Task GiveAwayAsync(string folder)
    {
        if (!IsRoot) return;
        await RunProgramAsync("chown", "-R", "postgres:postgres", folder);
        // The parents of a temporary folder are often private.
        for (string? parent = Path.GetDirectoryName(folder); parent is not null && !OperatingSystem.IsWindows(); parent = Path.GetDirectoryName(parent))
        {
            UnixFileMode mode = File.GetUnixFileMode(parent);
            if ((mode & UnixFileMode.OtherExecute) == 0) File.SetUnixFileMode(parent, mode | UnixFileMode.OtherExecute);
        }
    }

    /// <summary>As PostgreSQL's own user, where this is root: it refuses to run as that.</summary>
    static IEnumerable<string> CommandOf(string program, params string[] arguments)
    {
        string path = Path.Combine(ProgramsFolder ?? throw new IOException("PostgreSQL is not installed: install Debian's package postgresql."), program);
        return IsRoot ? ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups", path, .. arguments] : [path, .. arguments];
    }

    static async Task RunAsync(string program, string folder, string? password, params string[] arguments)
    {
        string[] command = [.. CommandOf(program, arguments)];
        ProcessStartInfo start = new(command[0], command[1..]) { WorkingDirectory = folder, UseShellExecute = false, RedirectStandardError = true, RedirectStandardOutput = true };
        if (password is not null) start.Environment["PGPASSWORD"] = password;
        using Process process = Process.Start(start)!;
        Task<string> errors = process.StandardError.ReadToEndAsync(), output = process.StandardOutput.ReadToEndAsync();
        await process.WaitForExitAsync();
        if (process.ExitCode != 0) throw new IOException($"{program} failed: {await errors}{await output}");
    }

    static async Task RunProgramAsync(string program, params string[] arguments)
    {
        using Process process = Process.Start(program, arguments);
        await process.WaitForExitAsync();
    }

    public async ValueTask DisposeAsync()
    {
        await StopAsync();
        _process.Dispose();
    }
}
