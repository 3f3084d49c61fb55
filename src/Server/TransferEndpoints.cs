using System.Collections.Concurrent;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Routing;
using Purse.Cluster;
using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Moving money: transfers and holds, many at once, transactions, captures, voids, reversals.</summary>
sealed partial class TransferEndpoints
{
    public const int TransfersMax = 10_000;

    readonly PartitionDirectory _directory;
    readonly PartQuestion<OriginalAsked, OriginalPart> _original;
    readonly PartQuestion<byte[], byte[]> _judgement;
    readonly PartQuestion<IdAsked, IdPart> _id;
    readonly PartQuestion<CommitAsked, string[]> _commit;
    readonly PartQuestion<byte[], byte[]> _packed;
    readonly ConcurrentBag<CommandRequest> _requests = [];

    public TransferEndpoints(PartitionDirectory directory)
    {
        _directory = directory;
        _original = directory.Question("original", PartJson.Default.OriginalAsked, PartJson.Default.OriginalPart, FindOriginalAsync);
        _judgement = directory.Question("judgement", PartJson.Default.ByteArray, PartJson.Default.ByteArray, JudgeAsync);
        _id = directory.Question("id", PartJson.Default.IdAsked, PartJson.Default.IdPart, FindAsync);
        _commit = directory.Question("commit", PartJson.Default.CommitAsked, PartJson.Default.StringArray, ReadCommitAsync);
        _packed = directory.Question("packed", PartJson.Default.ByteArray, PartJson.Default.ByteArray, ExecutePartAsync);
    }

    public void Map(IEndpointRouteBuilder routes)
    {
        routes.MapPost("/v1/wallet/balance_transfer", (RequestDelegate)TransferAsync);
        routes.MapPost("/v1/wallet/transfers", (RequestDelegate)TransfersAsync);
        routes.MapPost("/v1/wallet/transactions", (RequestDelegate)TransactionAsync);
        routes.MapPost("/v1/wallet/transfers/{id}/capture", (RequestDelegate)CaptureAsync);
        routes.MapPost("/v1/wallet/transfers/{id}/void", (RequestDelegate)VoidAsync);
        routes.MapPost("/v1/wallet/transfers/{id}/reverse", (RequestDelegate)ReverseAsync);
        routes.MapGet("/v1/wallet/transfers/{id}", (RequestDelegate)GetAsync);
    }

    async Task TransferAsync(HttpContext http)
    {
        Query.AllowParameters(http);
        TimeSpan timeout = Query.Timeout(http);
        long started = Environment.TickCount64;
        BalanceTransferBody body = await Body.ReadAsync(http, BodyJson.Default.BalanceTransferBody);
        ToCommand(body, out Command command);
        if (await _directory.HereAsync(http, PartitionOf(command)) is not Partition partition) return;
        Decision decision = await AskOthersAsync(partition, command, await ExecuteAsync(partition, command, timeout), timeout, started);
        EventReaders readers = Readers(partition);
        if (decision.Outcome == Outcome.Undecided) await Answer.WriteInDoubtAsync(http, command.TransactionId);
        else if (decision.Outcome == Outcome.Done) await Answer.WriteAsync(http, 200, json => WriteTransfer(json, body, command, decision, readers));
        else await AnswerAsync(http, ToResult(body, command, decision, readers), readers);
    }

    /// <summary>Independent transfers, decided in order; each gets the outcome it would get alone.</summary>
    async Task TransfersAsync(HttpContext http)
    {
        Query.AllowParameters(http);
        TimeSpan timeout = Query.Timeout(http);
        long started = Environment.TickCount64;
        BalanceTransferBody[] bodies = (await Body.ReadAsync(http, BodyJson.Default.TransfersBody, Body.SizeBytesMaxOfMany)).Transfers;
        if (bodies.Length > TransfersMax) throw new Problem("too_many_transfers", $"There are {bodies.Length} transfers; up to {TransfersMax} are taken at once.");
        // Each partition gets its own in one request, in their order.
        Problem?[] refused = new Problem?[bodies.Length];
        Command[] commands = new Command[bodies.Length];
        int[] partitionOf = new int[bodies.Length], countOf = new int[_directory.Count];
        for (int i = 0; i < bodies.Length; i++)
        {
            if (bodies[i] is null) throw new Problem("malformed_request", $"transfers[{i}] must not be null.");
            try
            {
                ToCommand(bodies[i], out commands[i]);
                countOf[partitionOf[i] = PartitionOf(commands[i])]++;
            }
            catch (Problem problem)
            {
                refused[i] = problem;
            }
        }

        if (_directory.IsElsewhere(http))
        {
            await SendOnAsync(http, bodies, refused, partitionOf, timeout);
            return;
        }

        CommandRequest?[] requests = [.. countOf.Select(count => count == 0 ? null : new CommandRequest(count) { Count = 0 })];
        for (int i = 0; i < bodies.Length; i++)
        {
            if (refused[i] is null && requests[partitionOf[i]] is CommandRequest request) request.Commands[request.Count++] = commands[i];
        }

        RequestStatus[] statuses = await Task.WhenAll(requests.Select((request, number) =>
            request is null ? Task.FromResult(RequestStatus.Answered) : _directory.Local(http, number).SubmitAsync(request, timeout).AsTask()));
        // One that all partitions failed is a failed request; one that some failed tells which of its transfers they were.
        if (requests.Any(request => request is not null) && requests.Zip(statuses).All(one => one.First is null || !IsDecided(one.Second)))
            throw Problem.From(statuses.Where(status => !IsDecided(status)).OrderByDescending(Problem.IsUnknown).First(), timeout);
        foreach ((CommandRequest? request, int number) in requests.Select((request, number) => (request, number)))
        {
            for (int i = 0; i < request?.Count && IsDecided(statuses[number]); i++) request.Decisions[i] = await AskOthersAsync(_directory.Local(http, number), request.Commands[i], request.Decisions[i], timeout, started);
        }

        int[] decided = new int[_directory.Count];
        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteStartArray("transfers");
            for (int i = 0; i < bodies.Length; i++)
            {
                int number = partitionOf[i];
                Problem? problem = refused[i];
                if (problem is null && !IsDecided(statuses[number])) problem = Problem.From(statuses[number], timeout);
                json.WriteStartObject();
                if (problem is not null) WriteRejected(json, bodies[i].TransactionId, problem);
                else WriteOneOfMany(json, bodies[i], commands[i], requests[number]!.Decisions[decided[number]++], Readers(_directory.Local(http, number)));
                json.WriteEndObject();
            }

            json.WriteEndArray();
        });
    }

    /// <summary>Each partition's own go to the node that has it, and their outcomes come back into the order of all.</summary>
    async Task SendOnAsync(HttpContext http, BalanceTransferBody[] bodies, Problem?[] refused, int[] partitionOf, TimeSpan timeout)
    {
        IGrouping<int, int>[] groups = [.. Enumerable.Range(0, bodies.Length).Where(i => refused[i] is null).GroupBy(i => partitionOf[i])];
        (Problem? Problem, JsonElement[] Outcomes)[] answers = await Task.WhenAll(groups.Select(async group =>
        {
            try
            {
                byte[] some = JsonSerializer.SerializeToUtf8Bytes(new TransfersBody { Transfers = [.. group.Select(i => bodies[i])] }, BodyJson.Default.TransfersBody);
                using JsonDocument answer = JsonDocument.Parse(await _directory.SendOnAsync(http, group.Key, some, timeout));
                return ((Problem?)null, answer.RootElement.GetProperty("transfers").EnumerateArray().Select(one => one.Clone()).ToArray());
            }
            catch (Problem problem)
            {
                return (problem, []);
            }
        }));
        // One that all partitions failed is a failed request; one that some failed tells which of its transfers they were.
        if (answers.Length > 0 && answers.All(answer => answer.Problem is not null)) throw answers.OrderByDescending(answer => answer.Problem!.Outcome == "unknown").First().Problem!;
        JsonElement?[] outcomes = new JsonElement?[bodies.Length];
        foreach ((IGrouping<int, int> group, (Problem? problem, JsonElement[] some)) in groups.Zip(answers))
        {
            foreach ((int i, int index) in group.Select((i, index) => (i, index)))
            {
                if (problem is null) outcomes[i] = some[index];
                else refused[i] = problem;
            }
        }

        await Answer.WriteAsync(http, 200, json =>
        {
            json.WriteStartArray("transfers");
            for (int i = 0; i < bodies.Length; i++)
            {
                if (outcomes[i] is JsonElement outcome)
                {
                    outcome.WriteTo(json);
                    continue;
                }

                json.WriteStartObject();
                WriteRejected(json, bodies[i].TransactionId, refused[i]!);
                json.WriteEndObject();
            }

            json.WriteEndArray();
        });
    }

    static void WriteOneOfMany(Utf8JsonWriter json, BalanceTransferBody body, in Command command, in Decision decision, EventReaders readers)
    {
        if (decision.Outcome == Outcome.Undecided)
        {
            Answer.WriteInDoubt(json, command.TransactionId);
            return;
        }

        if (decision.Outcome == Outcome.Done)
        {
            WriteTransfer(json, body, command, decision, readers);
            return;
        }

        Result result = ToResult(body, command, decision, readers);
        if (result.Problem is Problem problem) WriteRejected(json, Answer.ToGuid(command.TransactionId).ToString(), problem);
        else WriteTransfer(json, result.Recorded!, readers);
        if (result.IsReplayed) json.WriteBoolean("idempotent_replayed", true);
    }

    static void WriteRejected(Utf8JsonWriter json, string transactionId, Problem problem)
    {
        json.WriteString("transaction_id", transactionId);
        json.WriteString("status", "rejected");
        json.WriteString("code", problem.Code);
        json.WriteNumber("http_status", problem.Status);
        json.WriteString("detail", problem.Message);
        json.WriteBoolean("retryable", problem.Retryable);
        json.WriteString("outcome", problem.Outcome);
        Answer.WriteMembers(json, problem.Members.Where(member => member.Name != "transaction_id"));
    }

    static void ToCommand(BalanceTransferBody body, out Command command)
    {
        Posting posting = ToPosting(body.FromAccount, body.ToAccount, body.Amount, body.Currency);
        command = new Command
        {
            Kind = CommandKind.Transfer,
            TransactionId = Query.TransactionId(body.TransactionId),
            Account = posting.Account,
            Counterparty = posting.Counterparty,
            AmountDigits = posting.AmountDigits,
            AmountScale = posting.AmountScale,
            Currency = posting.Currency,
            Details = Details(body.Description, body.Metadata),
            Pending = body.Pending == true,
            UpTo = body.UpTo == true,
            DryRun = body.DryRun == true,
        };
        if (body.ExpiresIn is not int seconds) return;
        if (!command.Pending) throw new Problem("malformed_request", "expires_in is for holds: it needs \"pending\": true.");
        if (seconds is < 1 or > 31_536_000) throw new Problem("malformed_request", $"expires_in is {seconds}; it must be 1 to 31536000 seconds.");
        command.ExpiresInSeconds = seconds;
    }

    static Posting ToPosting(string from, string to, string amount, string currency)
    {
        Posting posting = new() { Account = Query.Account("from_account", from), Counterparty = Query.Account("to_account", to) };
        (posting.AmountDigits, posting.AmountScale) = Query.PositiveAmount(amount);
        posting.Currency = Query.Currency(currency);
        if (posting.Account == posting.Counterparty) throw new Problem("same_account", $"from_account and to_account are both '{from}'.");
        return posting;
    }

    static CommandDetails? Details(string? descriptionText, JsonElement? metadataElement)
    {
        Erasable? description = Query.Description(descriptionText), metadata = Query.Metadata(metadataElement);
        return description is null && metadata is null ? null : new CommandDetails { Description = description, Metadata = metadata };
    }

    async Task TransactionAsync(HttpContext http)
    {
        Query.AllowParameters(http);
        TimeSpan timeout = Query.Timeout(http);
        long started = Environment.TickCount64;
        TransactionBody body = await Body.ReadAsync(http, BodyJson.Default.TransactionBody, Body.SizeBytesMaxOfMany);
        Command command = new()
        {
            Kind = CommandKind.Transaction,
            TransactionId = Query.TransactionId(body.TransactionId),
            DryRun = body.DryRun == true,
            Details = new CommandDetails { Description = Query.Description(body.Description), Metadata = Query.Metadata(body.Metadata), Postings = ToPostings(body.Postings) },
        };
        Posting first = command.Details.Postings[0];
        if (await _directory.HereAsync(http, _directory.Router.Of(first.Account, first.Counterparty, command.TransactionId)) is not Partition partition) return;
        Decision decision = await AskOthersAsync(partition, command, await ExecuteAsync(partition, command, timeout), timeout, started);
        EventReaders readers = Readers(partition);
        PostingBody refused = body.Postings[decision.Posting];
        switch (decision.Outcome)
        {
            case Outcome.Undecided:
                await Answer.WriteInDoubtAsync(http, command.TransactionId);
                return;
            case Outcome.Done:
                await Answer.WriteAsync(http, 200, json => WriteTransaction(json, body, command, decision, readers));
                return;
            case Outcome.Duplicate:
                await AnswerAsync(http, Replay(command, body.Metadata, readers.ReadDecision(decision.Sequence), readers), readers);
                return;
            case < Outcome.FromAccountNotFound or >= Outcome.StorageFull:
                throw AtPosting(decision.Posting, Problem.From(decision.Outcome, refused.Currency));
            default:
                Problem refusal = Refusal(decision, refused.FromAccount, refused.ToAccount, command.TransactionId, readers).With("posting", decision.Posting);
                await Answer.WriteAsync(http, command.DryRun ? refusal.With("dry_run", true) : refusal);
                return;
        }
    }

    static Posting[] ToPostings(PostingBody[] bodies)
    {
        if (bodies.Length == 0) throw new Problem("malformed_request", "postings is empty; a transaction has 1 to 64.");
        if (bodies.Length > StateMachine.PostingsMax) throw new Problem("too_many_postings", $"There are {bodies.Length} postings; a transaction has up to {StateMachine.PostingsMax}.");
        Posting[] postings = new Posting[bodies.Length];
        for (int i = 0; i < bodies.Length; i++)
        {
            if (bodies[i] is not PostingBody body) throw new Problem("malformed_request", $"postings[{i}] must not be null.");
            try
            {
                postings[i] = ToPosting(body.FromAccount, body.ToAccount, body.Amount, body.Currency);
            }
            catch (Problem problem)
            {
                throw AtPosting(i, problem);
            }
        }

        return postings;
    }

    static Problem AtPosting(int posting, Problem problem) =>
        problem.Status == 503 ? problem : new Problem(problem.Code, $"Posting {posting}: {problem.Message}", problem.Outcome).With("posting", posting);

    async Task CaptureAsync(HttpContext http)
    {
        AmountBody body = await Body.ReadAsync(http, BodyJson.Default.AmountBody);
        Command command = AboutOriginal(http, CommandKind.Capture, body.TransactionId, body.Amount);
        TimeSpan timeout = Query.Timeout(http);
        if (await _directory.HereAsync(http, await LocateAsync(http, command, timeout)) is not Partition partition) return;
        await AnswerAsync(http, partition, command, null, await ExecuteAsync(partition, command, timeout));
    }

    async Task VoidAsync(HttpContext http)
    {
        VoidBody body = await Body.ReadAsync(http, BodyJson.Default.VoidBody);
        Command command = AboutOriginal(http, CommandKind.Void, body.TransactionId, null);
        TimeSpan timeout = Query.Timeout(http);
        if (await _directory.HereAsync(http, await LocateAsync(http, command, timeout)) is not Partition partition) return;
        await AnswerAsync(http, partition, command, null, await ExecuteAsync(partition, command, timeout));
    }

    /// <summary>
    /// What is reversed may be as old as the journal, and the state remembers no more of it than where it is: first the original is found
    /// and read, then the reversal is decided.
    /// </summary>
    async Task ReverseAsync(HttpContext http)
    {
        ReverseBody body = await Body.ReadAsync(http, BodyJson.Default.ReverseBody);
        Command command = AboutOriginal(http, CommandKind.Reverse, body.TransactionId, body.Amount);
        Erasable? description = Query.Description(body.Description), metadata = Query.Metadata(body.Metadata);
        command.Details = new CommandDetails { Description = description, Metadata = metadata };
        TimeSpan timeout = Query.Timeout(http);
        long started = Environment.TickCount64;
        if (await _directory.HereAsync(http, await LocateAsync(http, command, timeout)) is not Partition partition) return;
        (Outcome outcome, ulong sequence, ulong before) = await FindAsync(partition, command, timeout, started);
        if (outcome == Outcome.Undecided)
        {
            await Answer.WriteInDoubtAsync(http, command.TransactionId);
            return;
        }

        if (outcome != Outcome.Done) throw Problem.From(outcome, "");
        EventReaders readers = Readers(partition);
        if (before != 0)
        {
            await AnswerAsync(http, Replay(command, body.Metadata, readers.ReadDecision(before), readers), readers);
            return;
        }

        Original original = readers.ReadOriginal(sequence);
        if (original.IsTransaction && body.Amount is not null)
            throw new Problem("malformed_request", $"{Answer.ToGuid(command.OriginalId)} is a transaction, which is reversed in full: leave out amount.");
        command.Details = new CommandDetails { Description = description, Metadata = metadata, Original = original };
        await AnswerAsync(http, partition, command, body.Metadata, await ExecuteAsync(partition, command, Query.Left(timeout, started)));
    }

    /// <summary>A command about the transfer that the path names, and the home that <c>?account=</c> may name.</summary>
    static Command AboutOriginal(HttpContext http, CommandKind kind, string transactionId, string? amount)
    {
        Query.AllowParameters(http, "account");
        Command command = new()
        {
            Kind = kind,
            OriginalId = Query.TransactionId((string)http.Request.RouteValues["id"]!),
            TransactionId = Query.TransactionId(transactionId),
            Account = Query.Parameter(http, "account") is string home ? Query.Account("account", home) : default,
        };
        if (amount is not null) (command.AmountDigits, command.AmountScale) = Query.PositiveAmount(amount);
        return command;
    }

    /// <summary>Answers a capture, a void or a reversal.</summary>
    static async Task AnswerAsync(HttpContext http, Partition partition, Command command, JsonElement? metadata, Decision decision)
    {
        if (decision.Outcome == Outcome.Undecided)
        {
            await Answer.WriteInDoubtAsync(http, command.TransactionId);
            return;
        }

        EventReaders readers = Readers(partition);
        if (decision.Outcome is not Outcome.Done and not Outcome.Duplicate and (< Outcome.FromAccountNotFound or >= Outcome.StorageFull))
            throw Problem.From(decision.Outcome, decision.Currency == 0 ? "" : readers.State.CurrencyCode(decision.Currency));
        RecordedEvent recorded = readers.ReadDecision(decision.Sequence);
        if (decision.Details?.Parts is { } parts) recorded = recorded.EndingAt(parts);
        await AnswerAsync(http, decision.Outcome == Outcome.Duplicate ? Replay(command, metadata, recorded, readers) : ToResult(recorded, isReplayed: false, readers), readers);
    }

    static Task AnswerAsync(HttpContext http, Result result, EventReaders readers)
    {
        if (result.IsReplayed) http.Response.Headers["Idempotent-Replayed"] = "true";
        // A refusal is an everyday answer: written, not thrown.
        return result.Problem is Problem problem ? Answer.WriteAsync(http, problem) : Answer.WriteAsync(http, 200, json => WriteTransfer(json, result.Recorded!, readers));
    }

    async ValueTask<Decision> ExecuteAsync(Partition partition, Command command, TimeSpan timeout)
    {
        CommandRequest request = _requests.TryTake(out CommandRequest? idle) ? idle : new CommandRequest(1);
        request.Commands[0] = command;
        RequestStatus status = await partition.SubmitAsync(request, timeout);
        // One that its caller gave up on may still be in the partition's hands: it is not used again.
        Decision decision = request.Decisions[0];
        if (request.IsReusable) _requests.Add(request);
        if (!IsDecided(status)) throw Problem.From(status, timeout);
        // It waited for another commit, and left nothing: that one may have to be decided first for long.
        return decision.Outcome != Outcome.Blocked ? decision : throw Problem.From(RequestStatus.DeadlineNotStarted, timeout);
    }

    /// <summary>Whether the decisions say what became of each command, be it that it is under way between partitions.</summary>
    static bool IsDecided(RequestStatus status) => status is RequestStatus.Answered or RequestStatus.InDoubt;

    /// <summary>What a capture, void or reversal is about. What is being decided across partitions is waited for.</summary>
    static async ValueTask<(Outcome Outcome, ulong Original, ulong Before)> FindAsync(Partition partition, Command command, TimeSpan timeout, long started)
    {
        while (true)
        {
            ReadRequest<(Outcome Outcome, ulong Original, ulong Before)> find = new((State state) =>
                (StateMachine.FindOriginalOf(state, command, out ulong original, out _, out ulong before), original, before))
            {
                About = command,
            };
            TimeSpan left = Query.Left(timeout, started);
            RequestStatus status = await partition.SubmitAsync(find, left);
            // So far it only looked: nothing was recorded.
            if (status == RequestStatus.DeadlineUnknown) status = RequestStatus.DeadlineNotStarted;
            if (status != RequestStatus.Answered) throw Problem.From(status, timeout);
            if (find.Result.Outcome is not Outcome.Blocked and not Outcome.Undecided) return find.Result;
            if (left < LookAgain + LookAgain) return find.Result.Outcome == Outcome.Undecided ? find.Result : throw Problem.From(RequestStatus.DeadlineNotStarted, timeout);
            await Task.Delay(LookAgain);
        }
    }

    static readonly TimeSpan LookAgain = TimeSpan.FromMilliseconds(10);

    /// <summary>Of a dry run across partitions: what the others would say now; the refusal that comes first counts.</summary>
    async ValueTask<Decision> AskOthersAsync(Partition home, Command command, Decision decision, TimeSpan timeout, long started)
    {
        if (!decision.IsPartOnly) return decision;
        State state = Readers(home).State;
        ReadOnlyMemory<Posting> postings = command.Details?.Postings
            ?? [new Posting { Account = command.Account, Counterparty = command.Counterparty, AmountDigits = command.AmountDigits, AmountScale = command.AmountScale, Currency = command.Currency }];
        DecisionDetails why = decision.Details ?? DecisionDetails.None;
        Vote lowest = new() { Outcome = decision.Outcome, Posting = decision.Posting, Posted = why.Posted, Held = why.Held, Incoming = why.Incoming, Bound = why.Bound };
        lowest.IsAboutPayee = decision.Outcome is Outcome.ToAccountNotFound or Outcome.ToAccountClosed or Outcome.ToAccountFrozen or Outcome.ExceedsMaxBalance || (decision.Outcome == Outcome.BalanceOverflow && why.Bound > 0);
        for (int other = 0; other < _directory.Count; other++)
        {
            if (other == home.Number || Preparation(other) is not Preparation asked) continue;
            byte[] prepare = MessageBytes.Write([new Message { Kind = MessageKind.Prepare, From = home.Number, To = other, Attempt = 0, Preparation = asked }]);
            Vote vote = MessageBytes.Read(await _directory.AskAsync(_judgement, other, prepare, Query.Left(timeout, started)))[0].Vote;
            if (vote.IsRefusal && (!lowest.IsRefusal || vote.Precedes(lowest))) lowest = vote;
        }

        if (!lowest.IsRefusal) return decision;
        Decision refused = new() { Outcome = lowest.Outcome, Posting = lowest.Posting, LastSequence = decision.LastSequence };
        refused.Details = new DecisionDetails { Posted = lowest.Posted, Held = lowest.Held, Incoming = lowest.Incoming, Bound = lowest.Bound };
        (refused.Currency, refused.Amount) = Minor(postings.Span[lowest.Posting]);
        if (command.Kind == CommandKind.Transfer) refused.Amount = decision.Amount;
        return refused;

        (uint Currency, Int128 Amount) Minor(in Posting posting)
        {
            state.TryCurrency(posting.Currency, out uint currency, out int decimals);
            Amount.ToMinor(posting.AmountDigits, posting.AmountScale, decimals, out Int128 amount);
            return (currency, amount);
        }

        Preparation? Preparation(int other)
        {
            List<Posting> touching = [];
            for (int i = 0; i < postings.Length; i++)
            {
                Posting posting = postings.Span[i];
                if ((posting.Account.IsSystem || _directory.Router.Of(posting.Account) != other) && (posting.Counterparty.IsSystem || _directory.Router.Of(posting.Counterparty) != other)) continue;
                (uint currency, Int128 amount) = Minor(posting);
                if (command.Kind == CommandKind.Transfer) amount = decision.Amount;
                touching.Add(posting with { AmountDigits = amount, AmountScale = (byte)state.Decimals(currency), Index = (ushort)i });
            }

            return touching.Count == 0 ? null : new Preparation { Coordinator = home.Number, Attempt = 0, TransactionId = command.TransactionId, Flags = EventFlags.None, Postings = [.. touching] };
        }
    }

    static async Task<byte[]> JudgeAsync(Partition partition, byte[] prepare, TimeSpan timeout, CancellationToken cancellation)
    {
        Message message = MessageBytes.Read(prepare)[0];
        Vote vote = await LookAsync(partition, (PartitionCore core) => core.Judge(message.Preparation!), timeout);
        return MessageBytes.Write([new Message { Kind = MessageKind.Vote, From = message.To, To = message.From, Attempt = 0, Vote = vote }]);
    }

    /// <summary>Of one partition among several. It only looks: nothing was recorded, whatever becomes of it.</summary>
    /// <param name="about">The command whose ids are asked for, if any.</param>
    static async Task<T> LookAsync<T>(Partition partition, Func<PartitionCore, T> look, TimeSpan timeout, Command about = default)
    {
        ReadRequest<T> read = new(look) { About = about };
        RequestStatus status = await partition.SubmitAsync(read, timeout);
        if (status == RequestStatus.DeadlineUnknown) status = RequestStatus.DeadlineNotStarted;
        return status == RequestStatus.Answered ? read.Result : throw Problem.From(status, timeout);
    }

    static EventReaders Readers(Partition partition) => partition.Readers ?? throw Problem.From(RequestStatus.Unavailable, default);

    int PartitionOf(in Command transfer) => _directory.Router.Of(transfer.Account, transfer.Counterparty, transfer.TransactionId);

    /// <summary>The partition that a capture, void or reversal belongs in: its original's. Where no home is told, all are asked.</summary>
    async ValueTask<int> LocateAsync(HttpContext http, Command command, TimeSpan timeout)
    {
        // Whoever sent it here has looked.
        if (PartitionDirectory.NumberHere(http) is int here) return here;
        // What was asked about a transfer between two system accounts lives where that one does, whatever its own id.
        if (!command.Account.IsEmpty && !command.Account.IsSystem) return _directory.Router.Of(command.Account);
        if (_directory.Count == 1) return 0;
        List<(int Partition, ulong Before)> candidates = [];
        bool isAmbiguous = false;
        long started = Environment.TickCount64;
        OriginalAsked asked = new(command.Kind, command.OriginalId, command.TransactionId, command.Account.IsEmpty ? null : command.Account.ToString());
        for (int partition = 0; partition < _directory.Count; partition++)
        {
            // Not found, or the only one, is said only when all have answered.
            OriginalPart found = await _directory.AskAsync(_original, partition, asked, Query.Left(timeout, started));
            isAmbiguous |= found.Outcome == Outcome.TransferAmbiguous;
            // What is being decided is there, too; whatever is asked waits for it in its partition.
            if (found.Outcome is Outcome.Done or Outcome.Blocked) candidates.Add((partition, found.Before));
            if (found.Outcome == Outcome.Undecided) candidates.Add((partition, ulong.MaxValue));
        }

        if (candidates.Count == 0 && !isAmbiguous) throw Problem.From(Outcome.TransferNotFound, "");
        // Where several homes used the original's id, this one may have been decided before: its own id tells in which.
        if (candidates.Count > 1 || isAmbiguous) candidates.RemoveAll(one => one.Before == 0);
        return candidates.Count == 1 ? candidates[0].Partition : throw Problem.From(Outcome.TransferAmbiguous, "");
    }

    static Task<OriginalPart> FindOriginalAsync(Partition partition, OriginalAsked asked, TimeSpan timeout, CancellationToken cancellation)
    {
        Command command = new() { Kind = asked.Kind, OriginalId = asked.OriginalId, TransactionId = asked.TransactionId, Account = asked.Account is null ? default : AccountName.Parse(asked.Account) };
        return LookAsync(partition, core => new OriginalPart(StateMachine.FindOriginalOf(core.State, command, out _, out _, out ulong before), before), timeout, command);
    }
}
