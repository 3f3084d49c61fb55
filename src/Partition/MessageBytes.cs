using System.Buffers;
using System.Buffers.Binary;
using Purse.Ledger;

namespace Purse.Partitions;

/// <summary>
/// Messages between partitions of two nodes, as bytes, little-endian: the kind, from, to, the attempt and the low water, then what the kind has. Only
/// nodes of one version speak to each other in them.
/// </summary>
public static class MessageBytes
{
    /// <summary>A transaction has up to 64 postings.</summary>
    const int PostingsMax = StateMachine.PostingsMax;
    const int TextBytesMax = 16 * 1024;

    public static byte[] Write(ReadOnlySpan<Message> messages)
    {
        ArrayBufferWriter<byte> bytes = new(256);
        foreach (ref readonly Message message in messages) Write(bytes, message);
        return bytes.WrittenSpan.ToArray();
    }

    public static void Write(IBufferWriter<byte> bytes, in Message message)
    {
        Put(bytes, (byte)message.Kind);
        Put(bytes, message.From);
        Put(bytes, message.To);
        Put(bytes, message.Attempt);
        Put(bytes, message.LowWater);
        switch (message.Kind)
        {
            case MessageKind.Prepare:
                Write(bytes, message.Preparation!);
                break;
            case MessageKind.Vote:
                Vote vote = message.Vote;
                Put(bytes, (int)vote.Outcome);
                Put(bytes, vote.Posting);
                Put(bytes, vote.IsAboutPayee ? (byte)1 : (byte)0);
                Put(bytes, vote.Posted);
                Put(bytes, vote.Held);
                Put(bytes, vote.Incoming);
                Put(bytes, vote.Bound);
                break;
            case MessageKind.Decision:
                Put(bytes, message.IsCommit ? (byte)1 : (byte)0);
                break;
            case MessageKind.Acknowledgement:
                Put(bytes, message.Sequence);
                break;
        }
    }

    static void Write(IBufferWriter<byte> bytes, Preparation preparation)
    {
        Put(bytes, preparation.Coordinator);
        Put(bytes, preparation.Attempt);
        Put(bytes, (Int128)preparation.TransactionId);
        Put(bytes, (int)preparation.Flags);
        Put(bytes, preparation.Postings.Length);
        foreach (ref readonly Posting posting in preparation.Postings.AsSpan())
        {
            Put(bytes, posting.Account.Utf8);
            Put(bytes, posting.Counterparty.Utf8);
            Put(bytes, posting.AmountDigits);
            Put(bytes, posting.AmountScale);
            Put(bytes, posting.Currency.Packed);
            Put(bytes, (int)posting.Index);
        }

        foreach (Erasable? text in (ReadOnlySpan<Erasable?>)[preparation.Description, preparation.Metadata])
        {
            Put(bytes, text is null ? (byte)0 : (byte)1);
            if (text is null) continue;
            Put(bytes, text.Salt);
            Put(bytes, text.Utf8);
        }
    }

    /// <exception cref="InvalidDataException">They are not messages.</exception>
    public static List<Message> Read(ReadOnlySpan<byte> bytes)
    {
        List<Message> messages = [];
        while (bytes.Length > 0) messages.Add(ReadOne(ref bytes));
        return messages;
    }

    static Message ReadOne(ref ReadOnlySpan<byte> bytes)
    {
        Message message = new()
        {
            Kind = (MessageKind)TakeByte(ref bytes),
            From = TakeInt(ref bytes),
            To = TakeInt(ref bytes),
            Attempt = (ulong)TakeLong(ref bytes),
            LowWater = (ulong)TakeLong(ref bytes),
        };
        return message.Kind switch
        {
            MessageKind.Prepare => message with { Preparation = ReadPreparation(ref bytes) },
            MessageKind.Vote => message with { Vote = ReadVote(ref bytes) },
            MessageKind.Decision => message with { IsCommit = TakeByte(ref bytes) != 0 },
            MessageKind.Acknowledgement => message with { Sequence = (ulong)TakeLong(ref bytes) },
            _ => throw new InvalidDataException($"A message of kind {message.Kind} is not known."),
        };
    }

    static Vote ReadVote(ref ReadOnlySpan<byte> bytes) => new()
    {
        Outcome = (Outcome)TakeInt(ref bytes),
        Posting = TakeInt(ref bytes),
        IsAboutPayee = TakeByte(ref bytes) != 0,
        Posted = TakeInt128(ref bytes),
        Held = TakeInt128(ref bytes),
        Incoming = TakeInt128(ref bytes),
        Bound = TakeInt128(ref bytes),
    };

    static Preparation ReadPreparation(ref ReadOnlySpan<byte> bytes)
    {
        (int coordinator, ulong attempt, UInt128 id, EventFlags flags) = (TakeInt(ref bytes), (ulong)TakeLong(ref bytes), (UInt128)TakeInt128(ref bytes), (EventFlags)TakeInt(ref bytes));
        int count = TakeInt(ref bytes);
        if (count is < 0 or > PostingsMax) throw new InvalidDataException($"A message has {count} postings.");
        Posting[] postings = new Posting[count];
        for (int i = 0; i < count; i++)
        {
            postings[i] = new Posting
            {
                Account = TakeName(ref bytes),
                Counterparty = TakeName(ref bytes),
                AmountDigits = TakeInt128(ref bytes),
                AmountScale = TakeByte(ref bytes),
                Currency = new CurrencyCode((ulong)TakeLong(ref bytes)),
                Index = (ushort)TakeInt(ref bytes),
            };
        }

        return new Preparation { Coordinator = coordinator, Attempt = attempt, TransactionId = id, Flags = flags, Postings = postings, Description = TakeErasable(ref bytes), Metadata = TakeErasable(ref bytes) };
    }

    static AccountName TakeName(ref ReadOnlySpan<byte> bytes)
    {
        ReadOnlySpan<byte> text = TakeBytes(ref bytes);
        if (text.Length == 0) return default;
        return AccountName.TryParse(text, out AccountName name) ? name : throw new InvalidDataException("A message names an account that cannot be.");
    }

    static Erasable? TakeErasable(ref ReadOnlySpan<byte> bytes)
    {
        if (TakeByte(ref bytes) == 0) return null;
        byte[] salt = TakeBytes(ref bytes).ToArray();
        return new Erasable(TakeBytes(ref bytes).ToArray(), salt);
    }

    static void Put(IBufferWriter<byte> bytes, byte value)
    {
        bytes.GetSpan(1)[0] = value;
        bytes.Advance(1);
    }

    static void Put(IBufferWriter<byte> bytes, int value)
    {
        BinaryPrimitives.WriteInt32LittleEndian(bytes.GetSpan(4), value);
        bytes.Advance(4);
    }

    static void Put(IBufferWriter<byte> bytes, ulong value)
    {
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.GetSpan(8), value);
        bytes.Advance(8);
    }

    static void Put(IBufferWriter<byte> bytes, Int128 value)
    {
        BinaryPrimitives.WriteInt128LittleEndian(bytes.GetSpan(16), value);
        bytes.Advance(16);
    }

    static void Put(IBufferWriter<byte> bytes, ReadOnlySpan<byte> text)
    {
        Put(bytes, text.Length);
        bytes.Write(text);
    }

    static ReadOnlySpan<byte> Take(ref ReadOnlySpan<byte> bytes, int count)
    {
        if (bytes.Length < count) throw new InvalidDataException("A message is cut off.");
        ReadOnlySpan<byte> taken = bytes[..count];
        bytes = bytes[count..];
        return taken;
    }

    static byte TakeByte(ref ReadOnlySpan<byte> bytes) => Take(ref bytes, 1)[0];

    static int TakeInt(ref ReadOnlySpan<byte> bytes) => BinaryPrimitives.ReadInt32LittleEndian(Take(ref bytes, 4));

    static long TakeLong(ref ReadOnlySpan<byte> bytes) => BinaryPrimitives.ReadInt64LittleEndian(Take(ref bytes, 8));

    static Int128 TakeInt128(ref ReadOnlySpan<byte> bytes) => BinaryPrimitives.ReadInt128LittleEndian(Take(ref bytes, 16));

    static ReadOnlySpan<byte> TakeBytes(ref ReadOnlySpan<byte> bytes)
    {
        int length = TakeInt(ref bytes);
        return length is >= 0 and <= TextBytesMax ? Take(ref bytes, length) : throw new InvalidDataException($"A message has a text of {length} bytes.");
    }
}
