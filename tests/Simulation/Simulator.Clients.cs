using Purse.Journal;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Simulation;

/// <summary>What clients ask, and what they make of the answers: nobody gives up on a command before it is answered for good.</summary>
public sealed partial class Simulator
{
    void Ask(Client client)
    {
        if (client.Request is not null)
        {
            // Now and then a caller gives up; what it asked for goes on.
            if (_random.Next(200) == 0 && !_isHealed) GiveUp(client);
            return;
        }

        if (client.Commands.Count == 0 && _random.Next(100) < _options.ReadPercent)
        {
            AskForBalance(client);
            return;
        }

        if (client.Commands.Count == 0)
        {
            if (_isHealed) return;
            client.Commands.Add(NextCommand());
            for (int more = _random.Next(100) < _options.BulkPercent && !IsToBeLookedUp(client.Commands[0]) ? _random.Next(8) : 0; more > 0; more--)
            {
                // One request goes to one partition.
                Command next = NextCommand();
                if (!IsToBeLookedUp(next) && PartitionOf(next) == PartitionOf(client.Commands[0])) client.Commands.Add(next);
                else _putOff.Enqueue(next);
            }
        }

        if (!TryTurnTo(client, _shards[PartitionOf(client.Commands[0])])) return;
        if (IsToBeLookedUp(client.Commands[0]))
        {
            Command command = client.Commands[0];
            client.IsLookingUp = true;
            Submit(client, new ReadRequest<(Outcome Outcome, ulong Original, ulong Before)>((State state) =>
                (StateMachine.FindOriginalOf(state, command, out ulong original, out _, out ulong before), original, before))
            {
                About = command,
            });
            return;
        }

        CommandRequest request = new(client.Commands.Count) { Count = client.Commands.Count };
        client.Commands.CopyTo(request.Commands);
        foreach (Command command in client.Commands)
        {
            if (FateOf(command) is Fate fate) fate.AttemptsInFlight++;
        }

        Submit(client, request);
    }

    void AskForBalance(Client client)
    {
        AccountName account = Account(_random.Next(_options.Accounts + 1) is > 0 and int n ? n - 1 : -1);
        CurrencyCode code = CurrencyCode.Parse(LedgerModel.Currencies[_random.Next(2)]);
        if (_isHealed || !TryTurnTo(client, account.IsSystem ? _shards[_random.Next(_shards.Length)] : _shards[account.PartitionOf(_shards.Length)])) return;
        client.Asked!.Core.State.TryCurrency(code, out uint currency, out _);
        // Of the past: up to now, as that partition's clock has it.
        long asOfMicros = _random.Next(4) == 0 ? NowMicros(client.Asked.Shard) - _random.Next(2) * _random.Next(1_000_000) : 0;
        client.Read = (account, currency, asOfMicros);
        Submit(client, new ReadRequest<Balance>((State state) => state.Balance(state.Names.Find(account), currency)) { AsOfMicros = asOfMicros });
    }

    /// <summary>A reversal is told what it takes back.</summary>
    static bool IsToBeLookedUp(in Command command) => command.Kind == CommandKind.Reverse && command.Details is null;

    /// <summary>Null for what leaves nothing behind in any case.</summary>
    Fate? FateOf(in Command command) => command.DryRun ? null : _fates.GetValueOrDefault(command.TransactionId);

    /// <summary>Commands that did not fit in with others.</summary>
    readonly Queue<Command> _putOff = new();

    Command NextCommand()
    {
        if (_random.Next(2) == 0 && _putOff.TryDequeue(out Command first)) return first;
        if (_ids.Count == 0 || _random.Next(100) >= _options.RepeatPercent) return NewCommand();
        Command again = _sent[_ids[_random.Next(_ids.Count)]];
        if (again.Kind is CommandKind.Transfer or CommandKind.Transaction && _random.Next(4) == 0) again.DryRun = true;
        return again;
    }

    /// <summary>False where nobody is there.</summary>
    bool TryTurnTo(Client client, Shard shard)
    {
        client.Asked = PickWriter(shard);
        (client.NotBefore, client.AskedStep) = (shard.AcknowledgedSequence, _step);
        return client.Asked is not null;
    }

    /// <summary>As the router does: where the id's home is.</summary>
    int PartitionOf(in Command command)
    {
        if (command.Kind is CommandKind.Capture or CommandKind.Void or CommandKind.Reverse) return PartitionOf(_sent[command.OriginalId]);
        (AccountName payer, AccountName payee) = command.Details?.Postings is [var first, ..] ? (first.Account, first.Counterparty) : (command.Account, command.Counterparty);
        return (payer.IsSystem ? payee : payer).PartitionOf(_shards.Length);
    }

    void Submit(Client client, Request request)
    {
        client.Request = request;
        client.Answer = request.Begin(Timeout.InfiniteTimeSpan);
        if (!TrySearch(client.Asked!, request)) request.Complete(RequestStatus.Unavailable);
        else if (client.Asked!.Queue.TryAdd(request) is RequestStatus refused) request.Complete(refused);
    }

    /// <summary>As the partition does before it queues a request.</summary>
    bool TrySearch(Writer writer, Request request)
    {
        try
        {
            writer.Derived.Ids.Search(request);
            return true;
        }
        catch (IOException e)
        {
            Trace(writer.Shard, $"epoch {writer.Journal.Epoch} cannot look for old ids: {e.Message}");
            if (e is not RunDamagedException damage) return false;
            writer.Derived.Delete(damage);
            Stop(writer);
            return false;
        }
    }

    static AccountName Account(int number) => AccountName.Parse(number < 0 ? "@world" : $"a{number}");

    UInt128 NewId()
    {
        Span<byte> bytes = stackalloc byte[16];
        _random.NextBytes(bytes);
        return System.Buffers.Binary.BinaryPrimitives.ReadUInt128BigEndian(bytes);
    }

    Command NewCommand()
    {
        Command command = _setUp.TryDequeue(out Command first) ? first : RandomCommand();
        if (command.Kind is not (CommandKind.Transfer or CommandKind.Transaction or CommandKind.Capture or CommandKind.Void or CommandKind.Reverse)) return command;
        command.TransactionId = NewId();
        _sent[command.TransactionId] = command;
        _fates[command.TransactionId] = new Fate();
        if (!command.DryRun) _ids.Add(command.TransactionId);
        return command;
    }

    Command RandomCommand()
    {
        int from = _random.Next(_options.Accounts), to = (from + 1 + _random.Next(_options.Accounts - 1)) % _options.Accounts;
        Command command = _random.Next(100) switch
        {
            int n when n < _options.AccountChangePercent => NewChange(from),
            int n when n < _options.AccountChangePercent + 20 && _ids.Count > 0 && _options.HoldPercent > 0 => new Command
            {
                Kind = _random.Next(3) == 0 ? CommandKind.Void : CommandKind.Capture,
                OriginalId = _random.Next(5) == 0 ? SomeId() : SomeHold(),
                AmountDigits = _random.Next(2) * _random.Next(50),
            },
            _ when _ids.Count > 0 && _random.Next(100) < _options.ReversalPercent / 2 => new Command { Kind = CommandKind.Reverse, OriginalId = SomeId(), AmountDigits = _random.Next(2) * _random.Next(20) },
            _ when _random.Next(100) < _options.TransactionPercent => new Command
            {
                Kind = CommandKind.Transaction,
                Details = new CommandDetails
                {
                    Postings = [.. Enumerable.Range(0, 1 + _random.Next(_random.Next(10) == 0 ? 64 : 5)).Select(i => new Posting
                    {
                        Account = Account((from + i) % _options.Accounts), Counterparty = Account(_random.Next(20) == 0 ? -1 : (from + i + 1) % _options.Accounts),
                        AmountDigits = 1 + _random.Next(50), AmountScale = 0, Currency = CurrencyCode.Parse(LedgerModel.Currencies[_random.Next(2)]),
                    })],
                },
            },
            _ => new Command
            {
                Kind = CommandKind.Transfer,
                Account = Account(_random.Next(3) == 0 ? -1 : from),
                Counterparty = Account(_random.Next(8) == 0 && from != 0 ? 0 : to),
                AmountDigits = 1 + _random.Next(100),
                AmountScale = 0,
                Currency = CurrencyCode.Parse(LedgerModel.Currencies[_random.Next(2)]),
                Pending = _random.Next(100) < _options.HoldPercent,
                UpTo = _random.Next(10) == 0,
                DryRun = _random.Next(30) == 0,
            },
        };
        if (command.Account == command.Counterparty && command.Kind == CommandKind.Transfer) command.Counterparty = Account(-1);
        if (command.Account == command.Counterparty && command.Kind == CommandKind.Transfer) command.Account = Account(from);
        if (command.Pending && _random.Next(3) > 0) command.ExpiresInSeconds = 1 + _random.Next(20);
        return command;
    }

    /// <summary>One of the last holds, if there is any.</summary>
    UInt128 SomeHold() => _ids.AsEnumerable().Reverse().Where(id => _sent[id].Pending).Take(1 + _random.Next(4)).LastOrDefault(SomeId());

    UInt128 SomeId() => _ids[Math.Max(0, _ids.Count - 1 - _random.Next(20))];

    Command NewChange(int account)
    {
        Command command = new() { Account = Account(account), Details = new CommandDetails { By = "simulation" } };
        switch (_random.Next(12))
        {
            case 0 or 5 or 6:
                (command.Kind, command.Direction) = (CommandKind.Freeze, (Direction)(1 + _random.Next(3)));
                break;
            case 1 or 2:
                command.Kind = CommandKind.Unfreeze;
                break;
            case 3:
                CurrencyCode currency = CurrencyCode.Parse(LedgerModel.Currencies[_random.Next(2)]);
                bool hasMin = _random.Next(2) == 0;
                (command.Kind, command.Details) = (CommandKind.SetLimits, new CommandDetails
                {
                    Limits = [new LimitsAsWritten(currency, hasMin, -_random.Next(50), 0, !hasMin || _random.Next(2) == 0, 1000 + _random.Next(5000), 0)],
                });
                break;
            case 4:
                command.Kind = CommandKind.Close;
                break;
            default:
                command.Kind = CommandKind.OpenAccount;
                break;
        }

        return command;
    }

    void ReadAnswers()
    {
        foreach (Client client in _clients)
        {
            if (client.Request is null || !client.Answer.IsCompleted) continue;
            RequestStatus status = client.Answer.Result;
            (Request request, Writer asked) = (client.Request, client.Asked!);
            client.Request = null;
            if (status == RequestStatus.Answered) _answered++;
            if (client.Read is var (account, currency, asOfMicros))
            {
                client.Read = null;
                if (status == RequestStatus.Answered && request is ReadRequest<Balance> read)
                {
                    _reads.Add(new ReadAnswer(
                        asked.Shard.Number, account, currency, read.Result.Posted, read.Result.Held, read.Sequence, client.NotBefore, client.AskedStep, asOfMicros, asked.Journal.Epoch));
                    // Whoever asks after this answer sees no less.
                    asked.Shard.AcknowledgedSequence = Math.Max(asked.Shard.AcknowledgedSequence, read.Sequence);
                }
            }
            else if (client.IsLookingUp)
            {
                client.IsLookingUp = false;
                if (status == RequestStatus.Answered) OnLookedUp(client, ((ReadRequest<(Outcome, ulong, ulong)>)request).Result, asked);
            }
            else
            {
                OnDecided(client, (CommandRequest)request, asked, status);
            }
        }
    }

    static void OnLookedUp(Client client, (Outcome Outcome, ulong Original, ulong Before) found, Writer asked)
    {
        Command command = client.Commands[0];
        if (found.Outcome == Outcome.Done && found.Before == 0)
        {
            Original original = asked.Readers.ReadOriginal(found.Original);
            // As the server does: a transaction is reversed in full, and an amount is refused before anything is decided.
            if (original.IsTransaction && command.AmountDigits != 0)
            {
                client.Commands.Clear();
                return;
            }

            command.Details = new CommandDetails { Original = original };
            client.Commands[0] = command;
        }
        else if (found.Outcome is not Outcome.Blocked and not Outcome.Undecided)
        {
            client.Commands.Clear();
        }
    }

    void OnDecided(Client client, CommandRequest request, Writer asked, RequestStatus status)
    {
        Command[] commands = [.. client.Commands];
        client.Commands.Clear();
        foreach (Command command in commands)
        {
            if (FateOf(command) is Fate fate) fate.AttemptsInFlight--;
        }

        for (int i = 0; i < commands.Length; i++)
        {
            // "Left nothing behind", or nobody knows: the same again, later.
            if (status == RequestStatus.Answered ? OnDecided(client, commands[i], request.Decisions[i], asked) : OnUnknown(commands[i], status)) client.Commands.Add(commands[i]);
        }
    }

    bool OnUnknown(in Command command, RequestStatus status)
    {
        if (FateOf(command) is Fate fate) fate.MayBeRecorded |= status is RequestStatus.UnavailableUnknown or RequestStatus.DeadlineUnknown;
        return true;
    }

    /// <returns>Whether it has to be asked again.</returns>
    bool OnDecided(Client client, Command command, Decision decision, Writer asked)
    {
        _fates.TryGetValue(command.TransactionId, out Fate? fate);
        if (decision.Outcome == Outcome.Duplicate)
            Check(fate is { MayBeRecorded: true } or { AttemptsInFlight: > 0 }, $"transaction {command.TransactionId:x} was said to have left nothing behind, and is a duplicate now");
        if (decision.Outcome is Outcome.StorageFull or Outcome.Overloaded) return true;
        // What was read from a journal is told to that command only: another attempt looks again.
        if (command.Kind == CommandKind.Reverse) command.Details = null;
        if (decision.Sequence == 0) return false;
        if (fate is not null) fate.MayBeRecorded = true;
        _acknowledged.Add(new Acknowledged(asked.Shard.Number, command, decision, client.NotBefore, _step));
        // Every side shows it from now on.
        foreach (Part part in decision.Details?.Parts ?? [new Part(asked.Shard.Number, decision.LastSequence)])
            _shards[part.Partition].AcknowledgedSequence = Math.Max(_shards[part.Partition].AcknowledgedSequence, part.Sequence);
        return false;
    }
}
