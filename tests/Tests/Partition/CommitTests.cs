using Purse.Ledger;
using Purse.Partitions;
using Purse.Tests.Ledger;

namespace Purse.Tests.Partitions;

/// <summary>Steps of a commit across partitions that the simulator meets too seldom, one by one.</summary>
public sealed class CommitTests
{
    readonly PartitionCore _core = new(new StateMachine(new State(1, 0, 2)), 0);
    readonly RequestQueue _queue = new(1000);
    readonly EventBatch _batch = new(1000);
    long _nowMicros = 1_000_000;

    static string In(int partition) => Enumerable.Range(0, 100).Select(i => $"a{i}").First(name => AccountName.Parse(name).PartitionOf(2) == partition);

    CommandRequest Ask(Command command, TimeSpan? timeout = null)
    {
        CommandRequest request = new(1);
        request.Commands[0] = command;
        _ = request.Begin(timeout ?? Timeout.InfiniteTimeSpan);
        Assert.Null(_queue.TryAdd(request));
        return request;
    }

    /// <summary>Makes a block; it is not durable yet.</summary>
    ulong Fill()
    {
        _core.Fill(_batch, _nowMicros += 1000, _queue, hasRoom: true, hasReserve: true);
        return _core.AppendedSequence;
    }

    List<Message> Flush(ulong sequence)
    {
        _core.Flushed(sequence);
        List<Message> sent = [.. _core.Outgoing];
        _core.Outgoing.Clear();
        return sent;
    }

    /// <summary>
    /// Excludes: the participant forgets a refusal, a crash takes the decision back that it led to, and the question that comes again is never answered.
    /// </summary>
    [Fact]
    public void The_low_water_mark_passes_a_refusal_only_when_what_it_decided_is_durable()
    {
        Ask(TestLedger.Change(CommandKind.OpenAccount, In(0)));
        Ask(TestLedger.Transfer(1, "@world", In(0), "10.00"));
        Assert.Empty(Flush(Fill()));
        CommandRequest first = Ask(TestLedger.Transfer(2, In(0), In(1), "1.00"));
        Message asked = Assert.Single(Flush(Fill()));
        Assert.Equal((MessageKind.Prepare, 1, asked.Attempt), (asked.Kind, asked.To, asked.LowWater));

        Ask(TestLedger.Transfer(3, In(0), In(1), "2.00"));
        ulong second = Fill();
        _core.Receive(new Message { Kind = MessageKind.Vote, From = 1, To = 0, Attempt = asked.Attempt, Vote = new Vote { Outcome = Outcome.ToAccountNotFound, IsAboutPayee = true } });
        ulong decided = Fill();
        Message other = Assert.Single(Flush(second));
        Assert.Equal(asked.Attempt, other.LowWater);
        Assert.False(first.IsReusable);

        Assert.Empty(Flush(decided));
        Assert.True(first.IsReusable);
        Assert.Equal(Outcome.ToAccountNotFound, first.Decisions[0].Outcome);
        _nowMicros += 1_000_000;
        Message again = Assert.Single(Flush(Fill()));
        Assert.Equal((other.Attempt, other.Attempt), (again.Attempt, again.LowWater));
    }

    /// <summary>Excludes: memory that grows for as long as a partition is down, with every caller that gives up and asks again.</summary>
    [Fact]
    public async Task Callers_that_gave_up_are_not_kept()
    {
        Ask(TestLedger.Change(CommandKind.OpenAccount, In(0)));
        Ask(TestLedger.Transfer(1, "@world", In(0), "10.00"));
        Flush(Fill());
        Command command = TestLedger.Transfer(2, In(0), In(1), "1.00");
        CommandRequest first = Ask(command);
        ulong head = Assert.Single(Flush(Fill())).Attempt;
        for (int round = 0; round < 20; round++)
        {
            CommandRequest[] again = [.. Enumerable.Range(0, 50).Select(_ => Ask(command, TimeSpan.FromMilliseconds(1)))];
            Flush(Fill());
            using CancellationTokenSource limit = new(TimeSpan.FromSeconds(20));
            while (!again.All(one => one.IsEnded)) await Task.Delay(1, limit.Token);
        }

        Assert.InRange(_core.WaitersCountOf(head), 1, 200);
        Assert.False(first.IsEnded);
    }
}
