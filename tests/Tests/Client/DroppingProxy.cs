using System.Net;
using System.Net.Sockets;

namespace Purse.Tests.Client;

/// <summary>Between a client and a server whose address may change: drops connections, or answers, on command.</summary>
sealed class DroppingProxy : IDisposable
{
    readonly TcpListener _listener = new(IPAddress.Loopback, 0);
    readonly Func<Uri> _server;
    readonly List<TcpClient> _open = [];
    volatile bool _dropsAnswers;

    public DroppingProxy(Func<Uri> server)
    {
        _server = server;
        _listener.Start();
        _ = AcceptAsync();
    }

    public Uri Address => new($"http://127.0.0.1:{((IPEndPoint)_listener.LocalEndpoint).Port}");

    /// <summary>What the server says goes nowhere, but for the first that it says on each connection, its settings.</summary>
    public bool DropsAnswers
    {
        get => _dropsAnswers;
        set => _dropsAnswers = value;
    }

    public void DropAll()
    {
        lock (_open)
        {
            foreach (TcpClient one in _open) one.Close();
            _open.Clear();
        }
    }

    async Task AcceptAsync()
    {
        while (true)
        {
            TcpClient near, far = new();
            try
            {
                near = await _listener.AcceptTcpClientAsync();
            }
            catch (Exception e) when (e is SocketException or ObjectDisposedException or InvalidOperationException)
            {
                return;
            }

            lock (_open) _open.AddRange([near, far]);
            _ = PassAsync(near, far);
        }
    }

    async Task PassAsync(TcpClient near, TcpClient far)
    {
        try
        {
            await far.ConnectAsync(IPAddress.Loopback, _server().Port);
            await Task.WhenAny(CopyAsync(near, far, isAnswer: false), CopyAsync(far, near, isAnswer: true));
        }
        catch (Exception e) when (e is SocketException or IOException or ObjectDisposedException or InvalidOperationException)
        {
            // It was dropped, or there is no server now.
        }

        near.Close();
        far.Close();
    }

    async Task CopyAsync(TcpClient from, TcpClient to, bool isAnswer)
    {
        byte[] buffer = new byte[64 * 1024];
        NetworkStream source = from.GetStream(), target = to.GetStream();
        while (await source.ReadAsync(buffer) is > 0 and int length)
        {
            if (!isAnswer || !_dropsAnswers) await target.WriteAsync(buffer.AsMemory(0, length));
        }
    }

    public void Dispose()
    {
        _listener.Stop();
        DropAll();
    }
}
