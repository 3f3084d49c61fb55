using System.Security.Cryptography;
using System.Text;

namespace Purse.Cluster.ZooKeeper;

/// <summary>What a client says to a server that asks who it is.</summary>
public sealed record ZooKeeperCredentials(string User, string Password);

/// <summary>
/// SASL DIGEST-MD5 (RFC 2831) as ZooKeeper speaks it: the password is never sent, and the server proves that it knows it, too. Weak by today's
/// measure, and the only one that ZooKeeper has without Kerberos: the path to the ensemble has to be trusted.
/// </summary>
static class DigestMd5
{
    const string Uri = "zookeeper/zk-sasl-md5";

    /// <summary>The answer to a server's challenge, and what the server has to say to it.</summary>
    /// <exception cref="InvalidDataException">It is no challenge.</exception>
    public static (byte[] Response, string Expected) Respond(ReadOnlySpan<byte> challenge, ZooKeeperCredentials credentials, string clientNonce)
    {
        Dictionary<string, string> said = Parse(Encoding.UTF8.GetString(challenge));
        if (!said.TryGetValue("nonce", out string? nonce)) throw new InvalidDataException("ZooKeeper asks for a password without a nonce");
        string realm = said.GetValueOrDefault("realm", "zk-sasl-md5");
        byte[] secret = [.. Md5($"{credentials.User}:{realm}:{credentials.Password}"), .. Encoding.UTF8.GetBytes($":{nonce}:{clientNonce}")];
        string key = Hex(Md5(secret));
        string Proof(string of) => Hex(Md5($"{key}:{nonce}:00000001:{clientNonce}:auth:{Hex(Md5($"{of}:{Uri}"))}"));
        string response =
            $"charset=utf-8,username=\"{Escape(credentials.User)}\",realm=\"{Escape(realm)}\",nonce=\"{nonce}\",nc=00000001,cnonce=\"{clientNonce}\",digest-uri=\"{Uri}\",maxbuf=65536,response={Proof("AUTHENTICATE")},qop=auth";
        return (Encoding.UTF8.GetBytes(response), $"rspauth={Proof("")}");
    }

    /// <summary><c>name=value,name="value"</c>.</summary>
    static Dictionary<string, string> Parse(string text)
    {
        Dictionary<string, string> parsed = [];
        for (int at = 0; at < text.Length;)
        {
            int equals = text.IndexOf('=', at);
            if (equals < 0) break;
            string name = text[at..equals].Trim(' ', ',');
            at = equals + 1;
            StringBuilder value = new();
            if (at < text.Length && text[at] == '"')
            {
                for (at++; at < text.Length && text[at] != '"'; at++)
                {
                    if (text[at] == '\\' && at + 1 < text.Length) at++;
                    value.Append(text[at]);
                }

                at++;
            }
            else
            {
                while (at < text.Length && text[at] != ',') value.Append(text[at++]);
            }

            parsed[name] = value.ToString();
            at++;
        }

        return parsed;
    }

    static string Escape(string text) => text.Replace("\\", "\\\\", StringComparison.Ordinal).Replace("\"", "\\\"", StringComparison.Ordinal);

    static byte[] Md5(string text) => Md5(Encoding.UTF8.GetBytes(text));

#pragma warning disable CA5351 // The protocol's own.
    static byte[] Md5(byte[] bytes) => MD5.HashData(bytes);
#pragma warning restore CA5351

    static string Hex(byte[] bytes) => Convert.ToHexStringLower(bytes);
}
