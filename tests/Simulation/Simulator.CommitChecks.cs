using System.Numerics;
using System.Text.Json;
using Purse.Ledger;

namespace Purse.Simulation;

/// <summary>
/// The journals of all partitions against one model. Between partitions only causes have an order: a vote comes after what asked for it, the decision
/// after the votes, what is carried out after the decision. Any order that keeps to that must do; one that does not exist is a promise broken.
/// </summary>
public sealed partial class Simulator
{
    /// <returns>Where each commit ends in each partition.</returns>
    Dictionary<(int Coordinator, ulong Head), List<Part>> CheckAgainstModel(LedgerModel model, List<Recorded>[] all, State[] states)
    {
        Dictionary<(int Coordinator, ulong Head), List<Part>> carriedOut = [];
        int[] next = new int[all.Length];
        Dictionary<(int Coordinator, ulong Head), LedgerModel.ModelAttempt> attempts = [];

        // What was said of where the sides of a commit end.
        List<(int Partition, ulong Sequence, ulong Head, Part[] Parts)> told = [];

        // Own heads of participants, as the coordinator names them.
        Dictionary<(int Partition, ulong Head), (int Coordinator, ulong Head)> names = [];
        for (bool isMoving = true; isMoving;)
        {
            isMoving = false;
            for (int partition = 0; partition < all.Length; partition++)
            {
                while (next[partition] < all[partition].Count && TryCheck(partition, (ulong)next[partition] + 1))
                {
                    next[partition]++;
                    isMoving = true;
                }
            }
        }

        for (int partition = 0; partition < all.Length; partition++)
            Check(next[partition] == all[partition].Count, $"event {next[partition] + 1} of partition {partition}, {(next[partition] < all[partition].Count ? all[partition][next[partition]].Event.Kind : 0)}, comes before what must have caused it");
        foreach (LedgerModel.ModelAttempt left in model.Attempts)
            throw Broken($"the commit of {left.Key.Id:x} did not end: {left.Outcome}, voted on by {string.Join(" ", left.Votes.Keys)}, carried out by {string.Join(" ", left.CarriedOut)}");
        foreach ((int partition, ulong sequence, ulong head, Part[] parts) in told)
        {
            // It says where each side ends, for ever.
            HashSet<Part> ends = [.. carriedOut[(partition, head)]];
            Check(_options.RemembersLittle ? ends.IsSupersetOf(parts) : ends.SetEquals(parts), $"event {sequence} of partition {partition} says that attempt {head} ends at {string.Join(" ", parts)}, and it ends at {string.Join(" ", carriedOut[(partition, head)])}");
        }

        return carriedOut;

        bool TryCheck(int partition, ulong sequence)
        {
            Recorded recorded = all[partition][(int)sequence - 1];
            Event e = recorded.Event;
            State state = states[partition];
            model.SetTime(recorded.TimeMicros, partition);
            if (e.Kind == EventKind.Expired)
            {
                Check(model.TryExpire(all[partition][(int)e.Link - 1].Event.TransactionId), $"event {sequence} ends a hold that is not due");
                return true;
            }

            bool isOfAttempt = e.Kind is EventKind.Prepared or EventKind.Refused or EventKind.Aborted || (e.Flags & EventFlags.CrossPartition) != 0;
            if (e.Kind == EventKind.Finished)
            {
                ulong head = all[partition][(int)e.Link - 1].Event.Link;
                LedgerModel.ModelAttempt finished = attempts[(partition, head)];
                foreach (int side in model.PartitionsOf(finished, partition))
                {
                    // Who refused has nothing to carry out.
                    if (!finished.CarriedOut.Contains(side) && finished.Votes.GetValueOrDefault(side).Outcome is null or "done") return false;
                }

                if (finished.Outcome == "done") told.Add((partition, sequence, head, recorded.Attachment.Parts()));
                model.Finish(finished);
                return true;
            }

            if (!isOfAttempt)
            {
                CheckAgainst(model, e, recorded.Attachment, state);
                return true;
            }

            if (e.Kind == EventKind.Prepared && e.Index > 0) return true;
            if (recorded.Attachment.Attempt() is var (coordinator, number, _))
            {
                names[(partition, sequence)] = (coordinator, number);
                if (!attempts.TryGetValue((coordinator, number), out LedgerModel.ModelAttempt? asked)) return false;
                if (e.Kind == EventKind.Aborted)
                {
                    // Told so before it was asked.
                    if (asked.Outcome.Length == 0) return false;
                    Check(asked.Outcome == "aborted" || (_options.RemembersLittle && asked.Outcome != "done"), $"event {sequence} ends an attempt that this partition was to vote on, as {asked.Outcome}");
                    model.CarryOut(asked, partition, coordinator);
                    return true;
                }

                Check(!model.IsAnyDue(partition), $"{e.Kind} was decided while a hold was due");
                CheckVote(model.Vote(asked, partition, coordinator), e.Kind == EventKind.Refused ? recorded.Attachment.Vote() : default, e, sequence);
                return true;
            }

            if (e.Kind == EventKind.Prepared)
            {
                Check(!model.IsAnyDue(partition), $"{e.Kind} was decided while a hold was due");
                LedgerModel.ModelAttempt begun = Begin(model, e, partition, state);
                attempts[(partition, sequence)] = begun;
                CheckVote(model.Vote(begun, partition, partition), recorded.Attachment.Vote(), e, sequence);
                return true;
            }

            // What ends it: the first event of money, the refusal, or what was let go of.
            (int of, ulong its) = names.GetValueOrDefault((partition, e.Link), (partition, e.Link));
            LedgerModel.ModelAttempt attempt = attempts[(of, its)];
            if (attempt.CarriedOut.Contains(partition))
            {
                if (carriedOut.TryGetValue((of, its), out List<Part>? known)) known[known.FindIndex(part => part.Partition == partition)] = new Part(partition, sequence);
                return true;
            }

            if (of == partition)
            {
                // The refusal comes last of what an abort leaves.
                if (e.Kind is EventKind.Aborted or EventKind.Released) return true;
                string outcome = e.Kind == EventKind.TransferRejected ? NameOf((Outcome)e.Code) : "done";
                bool isByOperator = outcome == "aborted", mayBeEarly = outcome != "done" && !isByOperator && _options.RemembersLittle;
                int refused = e.Index;
                if (isByOperator) Check(_aborted.Contains(e.TransactionId), $"event {sequence} ends an attempt that nobody wanted to end");
                else if (mayBeEarly && !attempt.Votes.Values.Any(vote => vote.Outcome == outcome && vote.Posting == refused)) return false;
                else if (!mayBeEarly && !model.PartitionsOf(attempt, of).All(attempt.Votes.ContainsKey)) return false;
                else if (!mayBeEarly) Expect(outcome, attempt.Lowest.Outcome, e);
                Check(outcome == "done" || isByOperator || mayBeEarly || e.Index == attempt.Lowest.Posting, $"event {sequence} refuses posting {e.Index}; the model says {attempt.Lowest.Posting}");
                if (outcome == "done" && !attempt.IsHold) (_moved, _movedAcross) = (_moved + 1, _movedAcross + 1);
                model.Decide(attempt, outcome);
            }
            else
            {
                if (attempt.Outcome.Length == 0) return false;
                Check((e.Kind == EventKind.Aborted) == (attempt.Outcome != "done"), $"{e.Kind} carries out what was decided as {attempt.Outcome}");
            }

            model.CarryOut(attempt, partition, of);
            if (!carriedOut.TryGetValue((of, its), out List<Part>? parts)) carriedOut[(of, its)] = parts = [];
            parts.Add(new Part(partition, sequence));
            return true;
        }
    }

    static string NameOf(Outcome outcome) => JsonNamingPolicy.SnakeCaseLower.ConvertName(outcome.ToString());

    void CheckVote((int Posting, bool IsAboutPayee, string Outcome) predicted, in Vote vote, in Event e, ulong sequence)
    {
        string outcome = vote.IsRefusal ? NameOf(vote.Outcome) : "done";
        Expect(outcome, predicted.Outcome, e);
        Check(!vote.IsRefusal || (vote.Posting, vote.IsAboutPayee) == (predicted.Posting, predicted.IsAboutPayee), $"event {sequence} refuses posting {vote.Posting}; the model says {predicted.Posting}");
    }

    LedgerModel.ModelAttempt Begin(LedgerModel model, in Event e, int partition, State state)
    {
        Check(_sent.TryGetValue(e.TransactionId, out Command command), $"nobody sent transaction {e.TransactionId:x}");
        Check(!command.DryRun, $"transaction {e.TransactionId:x} was a dry run, and is in the journal");
        UInt128 id = command.TransactionId;
        LedgerModel.ModelAttempt attempt;
        switch (command.Kind)
        {
            case CommandKind.Transfer:
            {
                LedgerModel.Movement asked = ToMovement(command.Account, command.Counterparty, command.Currency, command.AmountDigits);
                attempt = new LedgerModel.ModelAttempt
                {
                    Key = LedgerModel.KeyOf(asked, id),
                    Movements = [model.ToMove(asked, command.UpTo)],
                    IsHold = command.Pending,
                    ExpiresAtMicros = command.ExpiresInSeconds == 0 ? null : model.TimeOf(partition) + command.ExpiresInSeconds * 1_000_000L,
                };
                break;
            }

            case CommandKind.Transaction:
            {
                LedgerModel.Movement[] movements = [.. command.Details!.Postings!.Select(p => ToMovement(p.Account, p.Counterparty, p.Currency, p.AmountDigits))];
                attempt = new LedgerModel.ModelAttempt { Key = LedgerModel.KeyOf(movements[0], id), Movements = movements, IsTransaction = true };
                break;
            }

            default:
            {
                (string Home, UInt128) original = model.KeyOf(command.OriginalId);
                BigInteger amount = (BigInteger)command.AmountDigits * BigInteger.Pow(10, model.DecimalsOf(command.OriginalId));
                bool isTransaction = false;
                LedgerModel.Movement[]? movements = command.Kind == CommandKind.Reverse ? model.MovementsBack(original, amount, out isTransaction) : model.MovementOfHold(original, amount) is { } one ? [one] : null;
                attempt = new LedgerModel.ModelAttempt
                {
                    Key = (original.Home, id),
                    Movements = movements ?? throw Broken($"{e.Kind} of {id:x}, and the model knows nothing to {command.Kind}"),
                    IsTransaction = isTransaction,
                    Captures = command.Kind == CommandKind.Capture ? original : null,
                    Reverses = command.Kind == CommandKind.Reverse ? original : null,
                };
                break;
            }
        }

        string refused = model.Begin(attempt);
        Check(refused.Length == 0, $"{e.Kind} of {id:x} began; the model says {refused}");
        Check((Int128)attempt.Movements[0].Amount == e.Amount, $"{e.Kind} of {id:x} prepares {e.Amount}; the model says {attempt.Movements[0].Amount}");
        return attempt;
    }
}
