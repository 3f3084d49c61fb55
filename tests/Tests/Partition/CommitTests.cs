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

    /// <summary>Excludes: a file of old ids fails just when a command is taken up again, and its caller hears nothing of it.</summary>
    [Fact]
    public void Who_is_taken_up_again_is_answered_where_its_ids_cannot_be_looked_for()
    {
        bool isFailing = false;
        PartitionCore core = new(new StateMachine(new State(1, 0, 2)), 0, search: _ =>
        {
            if (isFailing) throw new IOException("no such run");
        });
        Ask(TestLedger.Change(CommandKind.OpenAccount, In(0)));
        Ask(TestLedger.Transfer(1, "@world", In(0), "10.00"));
        Command command = TestLedger.Transfer(2, In(0), In(1), "1.00");
        Ask(command);
        CommandRequest blocked = Ask(command);
        core.Fill(_batch, _nowMicros += 1000, _queue, hasRoom: true, hasReserve: true);
        core.Flushed(core.AppendedSequence);
        ulong head = Assert.Single(core.Outgoing).Attempt;
        Assert.False(blocked.IsEnded);

        core.Receive(new Message { Kind = MessageKind.Vote, From = 1, To = 0, Attempt = head, Vote = new Vote { Outcome = Outcome.ToAccountNotFound, IsAboutPayee = true } });
        isFailing = true;
        Assert.Throws<IOException>(() => core.Fill(_batch, _nowMicros += 1000, _queue, hasRoom: true, hasReserve: true));
        core.Abandon();
        Assert.True(blocked.IsEnded);
    }

    /// <summary>Excludes: of the homes that use one id at the same time, one that is not found any more once another has finished, or is still found once it has finished itself.</summary>
    [Theory]
    [InlineData(0, 1, 2)]
    [InlineData(1, 2, 0)]
    [InlineData(2, 0, 1)]
    public void Homes_that_use_one_id_at_the_same_time_do_not_know_of_each_other(params int[] order)
    {
        string[] homes = [.. Enumerable.Range(0, 100).Select(i => $"a{i}").Where(name => AccountName.Parse(name).PartitionOf(2) == 0).Take(3)];
        foreach (string home in homes)
        {
            Ask(TestLedger.Change(CommandKind.OpenAccount, home));
            Ask(TestLedger.Transfer(1, "@world", home, "10.00"));
        }

        Assert.Empty(Flush(Fill()));
        for (int round = 0; round < 2; round++)
        {
            // Rounds and attempts of the first time are used again the second time.
            UInt128 id = 7 + (UInt128)round;
            CommandRequest[] asked = [.. homes.Select(home => Ask(TestLedger.Transfer(id, home, In(1), "1.00")))];
            Message[] prepares = [.. Flush(Fill())];
            Assert.Equal(3, prepares.Select(message => message.Attempt).Distinct().Count());
            Assert.Equal(homes, prepares.Select(message => message.Preparation!.Postings[0].Account.ToString()));
            List<int> finished = [];
            foreach (int one in order)
            {
                CommandRequest[] again = [.. homes.Select(home => Ask(TestLedger.Transfer(id, home, In(1), "1.00")))];
                Assert.Empty(Flush(Fill()));
                for (int home = 0; home < 3; home++)
                {
                    Assert.Equal(finished.Contains(home), again[home].IsEnded);
                    if (finished.Contains(home)) Assert.Equal(Outcome.Duplicate, again[home].Decisions[0].Outcome);
                }

                Assert.Equal(3 - finished.Count, _core.State.Attempts.FindAll(id).Count());
                _core.Receive(new Message { Kind = MessageKind.Vote, From = 1, To = 0, Attempt = prepares[one].Attempt });
                Assert.True(Assert.Single(Flush(Fill())).IsCommit);
                _core.Receive(new Message { Kind = MessageKind.Acknowledgement, From = 1, To = 0, Attempt = prepares[one].Attempt, Sequence = 1 });
                Assert.Empty(Flush(Fill()));
                Flush(Fill());
                Assert.True(asked[one].IsEnded && again[one].IsEnded);
                Assert.Equal((Outcome.Done, Outcome.Duplicate), (asked[one].Decisions[0].Outcome, again[one].Decisions[0].Outcome));
                finished.Add(one);
            }

            Assert.Equal((0, 0), (_core.State.Attempts.OwnCount, _core.UndecidedCount));
        }
    }

    /// <summary>Excludes: a clock that was set back by an hour, and commits of which nobody speaks for an hour.</summary>
    [Fact]
    public void A_clock_that_is_set_back_keeps_no_commit_waiting()
    {
        _nowMicros = 10_000_000_000;
        Ask(TestLedger.Change(CommandKind.OpenAccount, In(0)));
        Ask(TestLedger.Transfer(1, "@world", In(0), "10.00"));
        for (int i = 2; i < 7; i++) Ask(TestLedger.Transfer((UInt128)i, In(0), In(1), "1.00"));
        HashSet<ulong> asked = [.. Flush(Fill()).Select(message => message.Attempt)];
        Assert.Equal(5, asked.Count);
        _nowMicros -= 3_600_000_000;
        HashSet<ulong> again = [];
        for (int i = 0; i < 40; i++)
        {
            _nowMicros += 50_000;
            again.UnionWith(Flush(Fill()).Select(message => message.Attempt));
        }

        Assert.Equal(asked, again);
    }

    static string Among(int partition) => Enumerable.Range(0, 100).Select(i => $"a{i}").First(name => AccountName.Parse(name).PartitionOf(3) == partition);

    /// <summary>Three partitions that speak to each other at once.</summary>
    sealed class Three
    {
        readonly EventBatch _batch = new(1000);
        readonly RequestQueue[] _queues = [.. Enumerable.Range(0, 3).Select(_ => new RequestQueue(1000))];
        long _nowMicros = 1_000_000;

        public PartitionCore[] Cores { get; } = [.. Enumerable.Range(0, 3).Select(i => new PartitionCore(new StateMachine(new State(1, i, 3)), 0, rememberedMax: RememberedMax))];

        /// <summary>What is lost.</summary>
        const int RememberedMax = 20;

        public Func<Message, bool> IsLost { get; set; } = static _ => false;

        /// <summary>Of the last commit that ended.</summary>
        public Part[] Parts { get; private set; } = [];

        public Three()
        {
            for (int i = 0; i < 3; i++) Ask(i, TestLedger.Change(CommandKind.OpenAccount, Among(i)));
            Ask(0, TestLedger.Transfer(1, "@world", Among(0), "1000.00"));
            Run();
        }

        public CommandRequest Ask(int partition, params Command[] commands)
        {
            CommandRequest request = new(commands.Length) { Count = commands.Length };
            commands.CopyTo(request.Commands);
            _ = request.Begin(Timeout.InfiniteTimeSpan);
            Assert.Null(_queues[partition].TryAdd(request));
            return request;
        }

        public void Wait() => _nowMicros += 2_000_000;

        /// <summary>Another life of a partition, from what was durable.</summary>
        public void Restart(int partition)
        {
            State state = new(2, partition, 3);
            state.Read(new MemoryStream(TestLedger.Bytes(Cores[partition].State)));
            Cores[partition] = new PartitionCore(new StateMachine(state), 0, rememberedMax: RememberedMax);
        }

        public void Run()
        {
            for (bool isMoving = true; isMoving;)
            {
                isMoving = false;
                for (int i = 0; i < 3; i++)
                {
                    PartitionCore core = Cores[i];
                    if (_queues[i].IsEmpty && !core.HasWork(_nowMicros)) continue;
                    isMoving = true;
                    core.Fill(_batch, _nowMicros += 10, _queues[i], hasRoom: true, hasReserve: true);
                    foreach (ref readonly Event e in _batch.Events)
                    {
                        if (e.Kind == EventKind.Finished) Parts = new Attachment(e.Attachment, _batch.Attachments, []).Parts();
                    }

                    core.Flushed(core.AppendedSequence);
                    foreach (Message message in core.Outgoing.Where(message => !IsLost(message))) Cores[message.To].Receive(message);
                    core.Outgoing.Clear();
                }
            }
        }
    }

    /// <summary>
    /// Excludes: while one partition is down, the others remember all that they ever do for a coordinator that waits for it; and a coordinator that
    /// takes no commits with those that are up.
    /// </summary>
    /// <param name="refuses">The side that is up votes against.</param>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void One_side_that_is_down_makes_no_other_remember_what_comes_after(bool refuses)
    {
        Three three = new();
        if (refuses) three.Ask(1, TestLedger.Change(CommandKind.Freeze, Among(1), Direction.Credit));
        three.Run();
        three.IsLost = static message => message.To == 2;
        CommandRequest stuck = three.Ask(0, TestLedger.Transaction(2, (Among(0), Among(1), "1.00", "USD"), (Among(0), Among(2), "1.00", "USD")));
        three.Run();
        uint id = 100;
        if (refuses) three.Ask(1, TestLedger.Change(CommandKind.Unfreeze, Among(1)));
        for (int i = 0; i < 200; i++)
        {
            three.Ask(0, TestLedger.Transfer(id++, Among(0), Among(1), "0.01"));
            three.Run();
        }

        Assert.Equal(1, three.Cores[0].UndecidedCount);
        Assert.InRange(three.Cores[1].State.Attempts.Count, 1, 25);
        Assert.False(stuck.IsReusable);

        // As many as are allowed with the one that is down; the other one is not kept from anything.
        for (int left = StateMachine.UndecidedMax - 1; left > 0; left -= 500)
        {
            three.Ask(0, [.. Enumerable.Range(0, Math.Min(left, 500)).Select(_ => TestLedger.Transfer(id++, Among(0), Among(2), "0.01"))]);
            three.Run();
        }

        Assert.Equal(StateMachine.UndecidedMax, three.Cores[0].UndecidedCount);
        CommandRequest tooMany = three.Ask(0, TestLedger.Transfer(id++, Among(0), Among(2), "0.01"));
        CommandRequest other = three.Ask(0, TestLedger.Transfer(id++, Among(0), Among(1), "0.01"));
        three.Run();
        Assert.Equal(Outcome.Overloaded, tooMany.Decisions[0].Outcome);
        Assert.Equal(Outcome.Done, other.Decisions[0].Outcome);

        three.IsLost = static _ => false;
        three.Wait();
        three.Run();
        Assert.Equal(0, three.Cores[0].UndecidedCount);
        Assert.Equal(refuses ? Outcome.ToAccountFrozen : Outcome.Done, stuck.Decisions[0].Outcome);
        if (!refuses) Assert.Equal([0, 1, 2], stuck.Decisions[0].Details!.Parts!.Select(part => part.Partition));
    }

    /// <summary>
    /// Excludes: one side carries out a commit and forgets it while another is down; the coordinator restarts, and never learns again where that was.
    /// </summary>
    [Fact]
    public void Where_each_side_ends_is_known_after_a_restart_in_between()
    {
        Three three = new() { IsLost = static message => message is { To: 2, Kind: MessageKind.Decision } };
        three.Ask(0, TestLedger.Transaction(2, (Among(0), Among(1), "1.00", "USD"), (Among(0), Among(2), "1.00", "USD")));
        three.Run();
        for (uint id = 100; id < 110; id++)
        {
            three.Ask(0, TestLedger.Transfer(id, Among(0), Among(1), "0.01"));
            three.Run();
        }

        Assert.Equal(1, three.Cores[0].UndecidedCount);
        three.Restart(0);
        three.IsLost = static _ => false;
        three.Wait();
        three.Run();
        Assert.Equal(0, three.Cores[0].UndecidedCount);
        Assert.Equal([0, 1, 2], three.Parts.Select(part => part.Partition));
    }
}
