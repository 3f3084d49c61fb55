using Purse.Ledger;
using Purse.Partitions;

namespace Purse.Server;

/// <summary>Many accounts in one request, each partition asked once for all of its own.</summary>
sealed partial class AccountEndpoints
{
    /// <summary>Opens accounts without metadata or limits.</summary>
    /// <returns>For each whether it is new; or what is wrong.</returns>
    public async Task<(bool IsCreated, Problem? Problem)[]> OpenManyAsync(IReadOnlyList<string> accounts, TimeSpan timeout)
    {
        (bool IsCreated, Problem? Problem)[] opened = new (bool, Problem?)[accounts.Count];
        await AskEachAsync(
            accounts, _open, name => name.IsSystem ? throw Query.SystemAccount(name) : [_directory.Router.Of(name)], static names => names,
            (i, part) => opened[i] = (part.IsCreated, part.Code is string code ? new Problem(code, part.Detail) : null), (i, problem) => opened[i].Problem = problem, timeout);
        return opened;
    }

    static async Task<OpenedPart[]> OpenPartAsync(Partition partition, string[] names, TimeSpan timeout, CancellationToken cancellation)
    {
        CommandRequest request = new(names.Length) { Count = names.Length };
        for (int i = 0; i < names.Length; i++)
            request.Commands[i] = new Command { Kind = CommandKind.OpenAccount, Account = AccountName.Parse(names[i]), Details = new CommandDetails { By = By, Limits = [] } };
        RequestStatus status = await partition.SubmitAsync(request, timeout);
        if (status != RequestStatus.Answered) throw Problem.From(status, timeout);
        OpenedPart[] opened = new OpenedPart[names.Length];
        for (int i = 0; i < names.Length; i++)
        {
            Decision decision = request.Decisions[i];
            opened[i] = decision.Outcome switch
            {
                Outcome.Done => new OpenedPart(true, null, ""),
                Outcome.AccountExists when !IsSameOpening(new OpenAccountBody { Account = names[i] }, request.Commands[i].Details!, Readers(partition), decision.Sequence) =>
                    new OpenedPart(false, "account_exists", $"Account '{names[i]}' was opened before with metadata or limits."),
                Outcome.AccountExists => new OpenedPart(false, null, ""),
                _ => Refused(Problem.From(decision.Outcome, "")),
            };
        }

        return opened;

        static OpenedPart Refused(Problem problem) => new(false, problem.Code, problem.Message);
    }

    /// <returns>For each its money, with all that its parts have where it is a system account; or what is wrong.</returns>
    public async Task<(Int128 Posted, Int128 Held, int Decimals, Problem? Problem)[]> BalancesAsync(IReadOnlyList<string> accounts, string currency, TimeSpan timeout)
    {
        Query.Currency(currency);
        (Int128 Posted, Int128 Held, int Decimals, Problem? Problem)[] balances = new (Int128, Int128, int, Problem?)[accounts.Count];
        await AskEachAsync(
            accounts, _balances, name => _directory.Router.PartsOf(name), names => new BalancesAsked(names, currency),
            (i, part) =>
            {
                if (part is null) balances[i].Problem = NotFound(AccountName.Parse(accounts[i]));
                else balances[i] = (balances[i].Posted + part.Posted, balances[i].Held + part.Held, part.Decimals, balances[i].Problem);
            },
            (i, problem) => balances[i].Problem = problem, timeout);
        return balances;
    }

    static async Task<BalancePart?[]> BalancesPartAsync(Partition partition, BalancesAsked asked, TimeSpan timeout, CancellationToken cancellation)
    {
        int decimals = DecimalsOf(partition, asked.Currency);
        AccountName[] names = [.. asked.Accounts.Select(AccountName.Parse)];
        CurrencyCode code = CurrencyCode.Parse(asked.Currency);
        ((bool Found, Balance Balance)[] read, ulong sequence) = await ReadAsync(
            partition,
            state =>
            {
                state.TryCurrency(code, out uint number, out _);
                (bool, Balance)[] all = new (bool, Balance)[names.Length];
                for (int i = 0; i < names.Length; i++)
                {
                    uint account = state.Names.Find(names[i]);
                    all[i] = (names[i].IsSystem || (account != 0 && state.Account(account).IsOpened), state.Balance(account, number));
                }

                return all;
            },
            0, timeout, cancellation);
        return [.. read.Select(one => one.Found ? new BalancePart(asked.Currency, decimals, one.Balance.Posted, one.Balance.Held, sequence) : null)];
    }

    /// <summary>Asks each partition about those accounts of which it has a part.</summary>
    /// <param name="partsOf">May throw what is wrong with one.</param>
    async Task AskEachAsync<TAsked, TAnswer>(
        IReadOnlyList<string> accounts, PartQuestion<TAsked, TAnswer[]> question, Func<AccountName, IReadOnlyList<int>> partsOf, Func<string[], TAsked> toQuestion, Action<int, TAnswer> answer,
        Action<int, Problem> fail, TimeSpan timeout)
    {
        List<int>?[] of = new List<int>?[_directory.Count];
        for (int i = 0; i < accounts.Count; i++)
        {
            try
            {
                foreach (int partition in partsOf(Query.Account("account", accounts[i]))) (of[partition] ??= []).Add(i);
            }
            catch (Problem problem)
            {
                fail(i, problem);
            }
        }

        // One after the other gives its answers: several may speak of the same account.
        (List<int> Places, TAnswer[]? Answers, Problem? Problem)[] all = await Task.WhenAll(Enumerable.Range(0, of.Length).Where(number => of[number] is not null).Select(async number =>
        {
            List<int> places = of[number]!;
            try
            {
                return (places, await _directory.AskAsync(question, number, toQuestion([.. places.Select(i => accounts[i])]), timeout), (Problem?)null);
            }
            catch (Problem problem)
            {
                return (places, (TAnswer[]?)null, problem);
            }
        }));
        foreach ((List<int> places, TAnswer[]? answers, Problem? problem) in all)
        {
            for (int k = 0; k < places.Count; k++)
            {
                if (answers is null) fail(places[k], problem!);
                else answer(places[k], answers[k]);
            }
        }
    }
}
