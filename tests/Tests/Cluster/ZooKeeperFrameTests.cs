using System.Buffers.Binary;
using System.Net;
using System.Net.Sockets;
using Purse.Cluster.ZooKeeper;

namespace Purse.Tests.Cluster;

/// <summary>What comes over the wire, whoever sent it.</summary>
public sealed class ZooKeeperFrameTests
{
    static byte[] Frame(Action<Writing> write)
    {
        Writing writing = new();
        write(writing);
        return writing.Writer.Written.ToArray();
    }

    sealed class Writing
    {
        public JuteWriter Writer = new();
    }

    [Fact]
    public void What_is_written_is_read_back()
    {
        byte[] frame = Frame(w =>
        {
            w.Writer.Write(-7);
            w.Writer.Write(long.MinValue + 3);
            w.Writer.Write("grüße");
            w.Writer.Write([1, 2, 3]);
            w.Writer.Write(["a", "", "c"]);
            w.Writer.Write(true);
        });
        JuteReader reader = new(frame);
        Assert.Equal((-7, long.MinValue + 3, "grüße"), (reader.ReadInt32(), reader.ReadInt64(), reader.ReadString()));
        Assert.Equal([1, 2, 3], reader.ReadBuffer());
        Assert.Equal(["a", "", "c"], reader.ReadStrings());
        Assert.True(reader.ReadBoolean());
        Assert.Equal(0, reader.Left);
    }

    /// <summary>Excludes: a frame that is cut, or says what it has not, read beyond its end, or answered with a gigabyte of memory.</summary>
    [Fact]
    public void Frames_that_were_tampered_with_are_refused_and_nothing_else_happens()
    {
        byte[] whole = Frame(w =>
        {
            w.Writer.Write(5);
            w.Writer.Write(77L);
            w.Writer.Write(0);
            w.Writer.Write(1);
            w.Writer.Write(false);
            w.Writer.Write(0);
            w.Writer.Write("/purse/partitions/0");
            w.Writer.Write(["one", "two", "three"]);
            w.Writer.Write(new byte[100]);
        });
        Random random = new(7);
        int refused = 0;
        for (int i = 0; i < 200_000; i++)
        {
            byte[] frame = whole[..random.Next(whole.Length + 1)];
            for (int flips = random.Next(4); flips > 0 && frame.Length > 0; flips--) frame[random.Next(frame.Length)] = (byte)random.Next(256);
            if (random.Next(4) == 0 && frame.Length > 20) BinaryPrimitives.WriteInt32BigEndian(frame.AsSpan(random.Next(frame.Length - 4)), random.Next(2) == 0 ? int.MaxValue : -random.Next(3));
            try
            {
                JuteReader reader = new(frame);
                _ = reader.ReadReply();
                switch (i % 6)
                {
                    case 0:
                        _ = reader.ReadWatchEvent();
                        break;
                    case 1:
                        _ = reader.ReadConnected();
                        break;
                    case 2:
                        (_, _) = (reader.ReadStrings(), reader.ReadStat());
                        break;
                    case 3:
                        (_, _) = (reader.ReadBuffer(), reader.ReadStat());
                        break;
                    case 4:
                        _ = ZooKeeperClient.ReadMulti(ref reader);
                        break;
                    default:
                        (_, _, _) = (reader.ReadInt32(), reader.ReadString(), reader.ReadStrings());
                        break;
                }
            }
            catch (Exception e) when (e is InvalidDataException or ZooKeeperException)
            {
                refused++;
            }
        }

        Assert.InRange(refused, 50_000, 199_999);
    }

    /// <summary>Excludes: a server that talks nonsense, and a client that never looks for another.</summary>
    [Fact]
    public async Task A_server_that_talks_nonsense_is_left()
    {
        using TcpListener listener = new(IPAddress.Loopback, 0);
        listener.Start();
        int connections = 0;
        Random random = new(3);
        Task serving = Task.Run(async () =>
        {
            while (Volatile.Read(ref connections) < 40)
            {
                using TcpClient client = await listener.AcceptTcpClientAsync();
                Interlocked.Increment(ref connections);
                byte[] buffer = new byte[1000];
                _ = await client.GetStream().ReadAsync(buffer);
                // Now and then the hand is shaken first.
                if (random.Next(2) == 0) await client.GetStream().WriteAsync(Convert.FromHexString("00000025" + "00000000" + "00000fa0" + "0000000000000001" + "00000010" + new string('0', 32) + "00"));
                random.NextBytes(buffer);
                if (random.Next(2) == 0) BinaryPrimitives.WriteInt32BigEndian(buffer, random.Next(900));
                await client.GetStream().WriteAsync(buffer);
            }
        }, TestContext.Current.CancellationToken);
        await using ZooKeeperClient client = new($"127.0.0.1:{((IPEndPoint)listener.LocalEndpoint).Port}", TimeSpan.FromSeconds(2), static _ => { });
        await serving.WaitAsync(TimeSpan.FromSeconds(60), TestContext.Current.CancellationToken);
        Assert.Equal(40, connections);
    }

    /// <summary>The example of RFC 2831, section 4, with ZooKeeper's own name for the service.</summary>
    [Fact]
    public void A_password_is_proved_as_the_standard_says()
    {
        (byte[] response, string expected) = DigestMd5.Respond(
            "realm=\"elwood.innosoft.com\",nonce=\"OA6MG9tEQGm2hh\",qop=\"auth\",algorithm=md5-sess,charset=utf-8"u8, new ZooKeeperCredentials("chris", "secret"), "OA6MHXh6VqTrRk");
        string text = System.Text.Encoding.UTF8.GetString(response);
        Assert.Contains("username=\"chris\",realm=\"elwood.innosoft.com\",nonce=\"OA6MG9tEQGm2hh\",nc=00000001,cnonce=\"OA6MHXh6VqTrRk\"", text, StringComparison.Ordinal);
        Assert.Matches("response=[0-9a-f]{32},qop=auth$", text);
        Assert.Matches("^rspauth=[0-9a-f]{32}$", expected);
        Assert.Throws<InvalidDataException>(() => DigestMd5.Respond("nothing"u8, new ZooKeeperCredentials("chris", "secret"), "x"));
    }

    [Theory]
    [InlineData("zk1")]
    [InlineData("zk1:")]
    [InlineData("zk1:2181,:5")]
    [InlineData("zk1:99999/path")]
    public void What_is_no_address_is_said(string servers) =>
        Assert.Contains("zk1:2181,zk2:2181", Assert.Throws<ArgumentException>(() => new ZooKeeperClient(servers, TimeSpan.FromSeconds(4), static _ => { })).Message, StringComparison.Ordinal);
}
