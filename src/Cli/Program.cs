using System.CommandLine;
using System.Text;
using Purse.Cli;

Console.OutputEncoding = Encoding.UTF8;
RootCommand root = new("A digital-wallet ledger server: money moves between accounts, every change is an event, nothing is lost.")
{
    ServeCommand.Create(),
    DemoCommand.Create(),
    WalletCommands.Account(),
    WalletCommands.Transfer(),
    WalletCommands.Transaction(),
    WalletCommands.Capture(),
    WalletCommands.Void(),
    WalletCommands.Reverse(),
    WalletCommands.Balance(),
    WalletCommands.History(),
    WalletCommands.Currency(),
    WalletCommands.InDoubt(),
    ClusterCommands.Create(),
    ViewCommands.Create(),
    JournalCommands.Replay(),
    JournalCommands.Verify(),
    JournalCommands.Export(),
    SimulateCommand.Create(),
    BenchCommand.Create(),
    BenchCommand.CreateEcho(),
};
// A leading @ names a system account here, not a file with more arguments.
ParseResult parsed = root.Parse(args, new ParserConfiguration { ResponseFileTokenReplacer = null });
if (parsed.Errors.Count > 0)
{
    foreach (System.CommandLine.Parsing.ParseError error in parsed.Errors) Terminal.Error(error.Message);
    Terminal.Error($"See `purse {string.Join(' ', args.TakeWhile(a => !a.StartsWith('-')).Take(1).Append("--help"))}`.");
    return Exit.Usage;
}

// A server ends when it has answered what it began (WalletServer sees to it); any other command is ended 2 s after it was told to, the library's way.
InvocationConfiguration configuration = new();
if (parsed.CommandResult.Command.Name == ServeCommand.Name) configuration.ProcessTerminationTimeout = null;
return await parsed.InvokeAsync(configuration);
