from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alto._sched.policies import (
    LeastLoaded,
    PrefixThreshold,
    PromptAware,
    RoundRobin,
)
from alto._sched.queue import MOST_SIBLINGS, PRIORITY_SECONDS, STRAGGLER_SECONDS
from alto._sched.scheduler import Scheduler
from alto._sched.state import CallInfo
from alto.model import EngineCapacity

POLICIES = (LeastLoaded, PrefixThreshold, PromptAware, RoundRobin)
SMALL = EngineCapacity(max_num_seqs=3, max_num_batched_tokens=64, kv_tokens=400, block_size=64)
ROOMY = EngineCapacity(max_num_seqs=1000, max_num_batched_tokens=10**6, block_size=64)
STALL = 5.0


def work(tokens=(1,) * 10, **facts):
    """A call with that prompt."""
    facts.setdefault("template", "t")
    facts.setdefault("prompt_tokens", len(tokens))
    return CallInfo(token_ids=tokens, **facts)


class Pool(RuleBasedStateMachine):
    """Random events, against a model that keeps only who waits and who runs where."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.waiting = {}
        self.running = {}
        self.orphans = []
        self.engines = []
        self.faults = []
        self.keys = {}
        self.number = 100

    @initialize(policy=st.sampled_from(POLICIES), order=st.sampled_from(["request", "arrival"]))
    def begin(self, policy, order):
        """A pool without engines."""
        self.scheduler = Scheduler(policy(order=order), on_fault=self.faults.append, stall=STALL)

    @rule(seats=st.integers(1, 20), kv=st.sampled_from([None, 200, 2000]))
    @precondition(lambda self: len(self.engines) < 4)
    def engine_comes(self, seats, kv):
        """One more engine."""
        capacity = EngineCapacity(
            max_num_seqs=seats, max_num_batched_tokens=64, kv_tokens=kv, block_size=64
        )
        name = f"e{len(self.engines)}"
        self.engines.append(self.scheduler.add_engine(name, capacity, now=self.now))

    @rule(data=st.data())
    @precondition(lambda self: self.engines)
    def engine_goes(self, data):
        """One engine less; its calls are told."""
        engine = self.engines.pop(data.draw(st.integers(0, len(self.engines) - 1)))
        had = self.scheduler.remove_engine(engine, now=self.now)
        assert set(had) == {t for t, where in self.running.items() if where is engine}
        assert not engine.alive
        self.orphans += had

    @rule(data=st.data(), again=st.booleans())
    @precondition(lambda self: self.orphans)
    def orphan_goes_on(self, data, again):
        """A call whose engine has gone waits again, or ends."""
        ticket = self.orphans.pop(data.draw(st.integers(0, len(self.orphans) - 1)))
        del self.running[ticket]
        if again:
            self.scheduler.resubmit(ticket, now=self.now)
            self.waiting[ticket] = None
        else:
            self.scheduler.ended(ticket, now=self.now, output_tokens=0, completed=False)

    @rule(
        length=st.integers(1, 300), document=st.integers(0, 3), template=st.integers(0, 2),
        n=st.integers(1, 3), priority=st.integers(-1, 1), group=st.integers(0, 2),
        deadline=st.sampled_from([None, 1.0, 100.0]), depth=st.integers(0, 2),
        fresh=st.booleans(), count=st.integers(1, 8),
    )  # fmt: skip
    def call_comes(  # noqa: PLR0917  # hypothesis gives them by name
        self, length, document, template, n, priority, group, deadline, depth, fresh, count
    ):
        """A few calls of some kind."""
        for _ in range(count):
            self.number += 1
            self.call(
                (self.number if fresh else document,) * length,
                template, n, priority, group, deadline, depth,
            )  # fmt: skip

    def call(self, tokens, template, n, priority, group, deadline, depth):  # noqa: PLR0917  # as above
        """One call."""
        length = len(tokens)
        what = work(
            tokens, template=template, n=n, priority=priority, depth=depth,
            group=(group,) if group else None, parent=group or None, prefix_tokens=length // 4,
            deadline=None if deadline is None else self.now + deadline, max_tokens=50,
            arrived=self.now - group,
        )  # fmt: skip
        self.waiting[self.scheduler.submit(what, now=self.now)] = None

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def call_leaves(self, data):
        """A call that waits is not wanted any more."""
        ticket = data.draw(st.sampled_from(list(self.waiting)))
        del self.waiting[ticket]
        self.scheduler.withdraw(ticket, now=self.now)

    @rule(data=st.data(), cached=st.sampled_from([None, 0, 64]))
    @precondition(lambda self: self.running)
    def token_comes(self, data, cached):
        """The first token of a call, or a later one."""
        ticket = data.draw(st.sampled_from(list(self.running)))
        self.scheduler.first_token(ticket, now=self.now, cached_tokens=cached)

    @rule(data=st.data(), completed=st.booleans())
    @precondition(lambda self: set(self.running) - set(self.orphans))
    def call_ends(self, data, completed):
        """A call on a living engine ends."""
        live = [t for t in self.running if t not in self.orphans]
        ticket = data.draw(st.sampled_from(live))
        del self.running[ticket]
        self.scheduler.ended(ticket, now=self.now, output_tokens=20, completed=completed)

    @rule(seconds=st.sampled_from([0.0005, 0.01, 1.0, 6.0]))
    def time_passes(self, seconds):
        """The clock moves."""
        self.now += seconds

    @rule()
    def dispatch(self):
        """Nothing over the bounds, and nothing idle below them."""
        before = {
            engine: (engine.outstanding, engine.prefill, engine.kv) for engine in self.engines
        }
        started = self.scheduler.dispatch(now=self.now)
        assert len(set(started)) == len(started)
        for ticket in started:
            del self.waiting[ticket]
            self.running[ticket] = ticket.engine
            assert ticket.engine in self.engines
        given = {}
        for ticket in started:
            given.setdefault(ticket.engine, []).append(ticket)
        for engine, tickets in given.items():
            assert not engine.silent
            outstanding, prefill, kv = before[engine]
            for ticket in tickets:
                # Every call was given while there was room.
                assert outstanding < engine.max_outstanding
                assert prefill < engine.max_prefill
                limit = engine.capacity.kv_tokens
                assert limit is None or outstanding == 0 or kv < limit
                outstanding += ticket.info.n
                prefill += ticket.uncached
                kv += ticket.charged_kv
        for engine in self.engines:
            assert not (engine.has_room and engine.queue.count), (
                "it has room, and somebody waits for it"
            )
        if any(not engine.silent for engine in self.engines):
            assert sum(len(b.queue.tickets()) for b in self.engines) == len(self.waiting)

    @invariant()
    def counters_agree(self):
        """The counters are those of a recount, and the policies were never at fault."""
        assert self.faults == []
        self.scheduler.check()
        assert self.scheduler.waiting == len(self.waiting)
        assert set(self.scheduler.engines) == set(self.engines)
        for ticket in self.waiting:
            best = self.keys.setdefault(ticket, ticket.key)
            latest = best[0] + STRAGGLER_SECONDS * MOST_SIBLINGS
            if ticket.info.deadline is None:  # else what calls like it take has its part
                assert ticket.key[0] <= latest, "siblings that come later cost more than they may"
            assert ticket.key[1:] == best[1:]
            self.keys[ticket] = min(best, ticket.key)
        for engine in self.engines:
            mine = [t for t, where in self.running.items() if where is engine]
            assert engine.outstanding == sum(t.info.n for t in mine)

    def teardown(self):
        """When all has ended, all counters are zero."""
        for ticket in list(self.waiting):
            self.scheduler.withdraw(ticket, now=self.now)
        for ticket in list(self.running):
            self.scheduler.ended(ticket, now=self.now, output_tokens=1, completed=True)
        for engine in self.engines:
            assert (engine.outstanding, engine.prefill, engine.kv, engine.outputs) == (0, 0, 0, 0.0)
            assert (engine.queue.count, engine.queue.prefill, engine.shared) == (0, 0, {})
        if hasattr(self, "scheduler"):
            assert self.scheduler.waiting == 0
            assert len(self.scheduler._siblings) == 0
            index = self.scheduler._accounting._index
            assert index is None or not any(index._pending.values())
            self.scheduler.check()


TestPool = Pool.TestCase
TestPool.settings = settings(deadline=None, stateful_step_count=60)


def started(scheduler, now=0.0):
    """Who starts, by depth of their number."""
    return [ticket.number for ticket in scheduler.dispatch(now=now)]


def one_engine(seats=1, **options):
    """A pool of one engine with *seats* places and nothing else that binds."""
    scheduler = Scheduler(LeastLoaded(order=options.pop("order", "request")), **options)
    capacity = EngineCapacity(max_num_seqs=seats, max_num_batched_tokens=10**6, block_size=64)
    scheduler.add_engine("only", capacity, now=0.0)
    return scheduler


def finish(scheduler, now=0.0):
    """End all that runs, one place after the other, and say who came next."""
    order = []
    while scheduler.waiting or any(b.tickets for b in scheduler.engines):
        for engine in scheduler.engines:
            for ticket in list(engine.tickets):
                scheduler.ended(ticket, now=now, output_tokens=1, completed=True)
        order += started(scheduler, now)
    return order


class TestOrder:
    """Who goes first."""

    def test_older_requests_go_first(self):
        """The age of the request counts, not that of the call."""
        scheduler = one_engine()
        for arrived in (3.0, 1.0, 2.0):
            scheduler.submit(work(arrived=arrived), now=5.0)
        assert started(scheduler) + finish(scheduler) == [2, 3, 1]

    def test_first_come_first_served_where_asked(self):
        """With order="arrival" only the time of submission counts, and priority."""
        scheduler = one_engine(order="arrival")
        for k, arrived in enumerate((3.0, 1.0, 2.0)):
            scheduler.submit(work(arrived=arrived, depth=k), now=5.0 + k)
        scheduler.submit(work(priority=-1), now=9.0)
        assert started(scheduler) + finish(scheduler) == [4, 1, 2, 3]

    def test_deeper_stages_go_first_among_equals(self):
        """Of calls of one age the one further downstream."""
        scheduler = one_engine()
        for depth in (0, 2, 1):
            scheduler.submit(work(arrived=1.0, depth=depth), now=5.0)
        assert started(scheduler) + finish(scheduler) == [2, 3, 1]

    def test_priority_is_worth_a_minute_and_no_more(self):
        """A more urgent call goes before an older one, until that is a minute older."""
        scheduler = one_engine()
        scheduler.submit(work(arrived=100.0, priority=1), now=100.0)
        scheduler.submit(work(arrived=100.0 + PRIORITY_SECONDS - 1), now=160.0)
        scheduler.submit(work(arrived=100.0 + PRIORITY_SECONDS + 1), now=160.0)
        assert started(scheduler) + finish(scheduler) == [2, 1, 3]

    def test_a_near_deadline_goes_first(self):
        """A call with little time left goes before older ones, and the nearer of two first."""
        scheduler = one_engine()
        scheduler.submit(work(arrived=0.0), now=50.0)
        scheduler.submit(work(arrived=49.0, deadline=59.0), now=50.0)
        scheduler.submit(work(arrived=49.0, deadline=54.0), now=50.0)
        scheduler.submit(work(arrived=49.0, deadline=500.0), now=50.0)
        assert started(scheduler) + finish(scheduler) == [3, 2, 1, 4]

    def test_the_last_of_a_group_goes_first(self):
        """Of two calls of equal age the one whose siblings are done goes before one with many."""
        scheduler = one_engine()
        for k in range(4):
            scheduler.submit(work(arrived=1.0, group="a"), now=1.0)
            assert k or started(scheduler) == [1]
        scheduler.submit(work(arrived=1.0 + 1.5 * STRAGGLER_SECONDS, group="b"), now=1.1)
        # Three open siblings in a when the next one starts, one in b.
        assert finish(scheduler) == [5, 2, 3, 4]

    def test_one_of_many_gives_way_to_one_that_is_alone(self):
        """Of two calls of nearly one age the one with fewer open siblings goes first."""
        scheduler = one_engine()
        scheduler.submit(work(arrived=0.0), now=0.0)
        assert started(scheduler) == [1]
        for _ in range(8):
            scheduler.submit(work(arrived=1.0, group="a"), now=1.0)
        scheduler.submit(work(arrived=1.0 + 6.5 * STRAGGLER_SECONDS, group="b"), now=1.3)
        scheduler.submit(work(arrived=1.0 + 7.5 * STRAGGLER_SECONDS, group="c"), now=1.3)
        assert finish(scheduler) == [10, 2, 3, 4, 5, 6, 7, 8, 9, 11]

    @pytest.mark.parametrize("together", [True, False])
    def test_all_calls_of_a_group_have_the_place_of_its_size(self, together):
        """Whether they come at once or one by one, the first does not go before a smaller group."""
        scheduler = one_engine()
        scheduler.submit(work(arrived=0.0), now=0.0)
        assert started(scheduler) == [1]
        many = []
        for _ in range(8):
            many.append(scheduler.submit(work(arrived=1.0, group="a"), now=1.0))
            assert together or started(scheduler) == []
        few = [scheduler.submit(work(arrived=1.0, group="b"), now=1.0) for _ in range(4)]
        for _ in range(2):
            assert started(scheduler) == []
        assert [t.key[0] for t in many] == pytest.approx([1.0 + 8 * STRAGGLER_SECONDS] * 8)
        assert [t.key[0] for t in few] == pytest.approx([1.0 + 4 * STRAGGLER_SECONDS] * 4)
        assert finish(scheduler) == [t.number for t in (*few, *many)]

    def test_a_call_that_comes_back_has_the_place_of_those_that_are_left(self):
        """Its siblings ended while it was on an engine that has died since."""
        scheduler = one_engine(seats=50)
        many = [scheduler.submit(work(arrived=0.0, group="a"), now=0.0) for _ in range(8)]
        assert len(started(scheduler)) == 8
        for ticket in many[1:]:
            scheduler.ended(ticket, now=1.0, output_tokens=1, completed=True)
        (engine,) = scheduler.engines
        assert scheduler.remove_engine(engine, now=1.0) == (many[0],)
        scheduler.resubmit(many[0], now=1.0)
        assert many[0].key[0] == pytest.approx(STRAGGLER_SECONDS)

    def test_more_siblings_than_count_cost_no_more(self):
        """The place of the largest group is half a second behind that of one alone."""
        scheduler = one_engine()
        scheduler.submit(work(arrived=0.0), now=0.0)
        assert started(scheduler) == [1]
        many = [scheduler.submit(work(arrived=1.0, group="a"), now=1.0) for _ in range(30)]
        assert started(scheduler) == []
        expected = 1.0 + MOST_SIBLINGS * STRAGGLER_SECONDS
        assert [t.key[0] for t in many] == pytest.approx([expected] * 30)

    def test_a_group_that_grows_in_order_of_arrival_stays(self):
        """With order="arrival" siblings make no difference."""
        scheduler = one_engine(order="arrival")
        scheduler.submit(work(arrived=0.0), now=0.0)
        assert started(scheduler) == [1]
        many = [scheduler.submit(work(group="a"), now=1.0) for _ in range(3)]
        few = scheduler.submit(work(group="b"), now=1.0)
        assert finish(scheduler) == [*(t.number for t in many), few.number]

    def test_calls_left_alone_are_moved_forward(self):
        """When the siblings of a waiting call end, it passes those that it was behind."""
        scheduler = one_engine()
        blocker = scheduler.submit(work(arrived=0.0), now=0.0)
        assert scheduler.dispatch(now=0.0) == [blocker]
        many = [scheduler.submit(work(arrived=1.0, group="a"), now=1.0) for _ in range(6)]
        other = scheduler.submit(work(arrived=1.0 + 3 * STRAGGLER_SECONDS), now=1.0)
        for ticket in many[:5]:
            scheduler.withdraw(ticket, now=1.0)
        assert many[5].key < other.key
        assert finish(scheduler) == [many[5].number, other.number]


class TestLearning:
    """What ended calls tell of others."""

    def test_outputs_are_counted_per_sample(self):
        """Three samples of ten tokens each make the next call be expected to say ten or so."""
        scheduler = one_engine(seats=8)
        for _ in range(40):
            ticket = scheduler.submit(work(n=3), now=0.0)
            scheduler.dispatch(now=0.0)
            scheduler.ended(ticket, now=1.0, output_tokens=30, completed=True)
        assert scheduler.submit(work(), now=1.0).expected_output == pytest.approx(10, rel=0.6)
        assert scheduler.submit(work(n=3), now=1.0).expected_output == pytest.approx(30, rel=0.6)

    def test_calls_that_were_cut_tell_nothing(self):
        """An output that was not finished is no output of that length."""
        scheduler = one_engine(seats=8)
        expected = scheduler.submit(work(), now=0.0).expected_output
        ticket = scheduler.submit(work(), now=0.0)
        scheduler.dispatch(now=0.0)
        scheduler.ended(ticket, now=1.0, output_tokens=1, completed=False)
        assert scheduler.submit(work(), now=1.0).expected_output == expected

    def test_who_served_a_document_or_a_parent_is_remembered(self):
        """The next call about it knows; a parent counts only where nobody knows the tokens."""
        scheduler = Scheduler(RoundRobin())
        engines = [scheduler.add_engine(name, ROOMY, now=0.0) for name in "abc"]
        document = tuple(range(640))
        scheduler.submit(work(), now=0.0)
        first = scheduler.submit(work(document), now=0.0)
        assert first.engine is engines[1]
        assert scheduler.submit(work((*document, 1)), now=0.0).served == 1
        blind = {"template": "t", "prompt_tokens": 99, "parent": "p"}
        once = scheduler.submit(CallInfo(**blind), now=0.0)
        assert scheduler.submit(CallInfo(**blind), now=0.0).served == once.engine.index
        assert scheduler.submit(work((5,) * 200, parent="p"), now=0.0).served == -1

    def test_documents_are_told_apart_behind_the_prefix(self):
        """Calls with one head and one document begin alike, those with another document do not."""
        scheduler = one_engine(seats=8)
        head = tuple(range(640))

        def begin(*rest):
            ticket = scheduler.submit(work((*head, *rest), prefix_tokens=640), now=0.0)
            return ticket.beginning

        one, other = [1] * 400, [2] * 400
        assert begin(*one, 3) == begin(*one, 4) is not None
        assert begin(*one) != begin(*other)
        assert begin() is None


class TestWaiting:
    """Who waits, and for whom."""

    def test_without_engines_calls_wait_for_the_first(self):
        """Calls that came before any engine start when there is one."""
        scheduler = Scheduler(PromptAware())
        tickets = [scheduler.submit(work(), now=0.0) for _ in range(3)]
        assert scheduler.dispatch(now=0.0) == []
        scheduler.add_engine("a", ROOMY, now=1.0)
        assert scheduler.dispatch(now=1.0) == tickets

    def test_a_call_waits_for_its_best_engine(self):
        """Where an engine holds a long document, a call waits for it though another is idle."""
        scheduler = Scheduler(PromptAware())
        seats = EngineCapacity(max_num_seqs=1, max_num_batched_tokens=4096, block_size=64)
        document = tuple(range(4096))
        first = scheduler.submit(work(document, max_tokens=2), now=0.0)
        for name in "ab":
            scheduler.add_engine(name, seats, now=0.0)
        scheduler.dispatch(now=0.0)
        home = first.engine
        scheduler.first_token(first, now=0.2, cached_tokens=0)
        second = scheduler.submit(work((*document, 1), max_tokens=2), now=0.2)
        assert scheduler.dispatch(now=0.2) == []
        assert second.engine is home
        scheduler.ended(first, now=0.3, output_tokens=2, completed=True)
        assert scheduler.dispatch(now=0.3) == [second]
        assert second.uncached == 1

    def test_an_idle_engine_takes_over_what_waits_too_long(self):
        """When a call's engine turns out to be late, an idle one takes it."""
        scheduler = Scheduler(PromptAware())
        seats = EngineCapacity(max_num_seqs=1, max_num_batched_tokens=4096, block_size=64)
        scheduler.add_engine("a", seats, now=0.0)
        for _ in range(4):
            scheduler.submit(work(max_tokens=100), now=0.0)
        assert len(scheduler.dispatch(now=0.0)) == 1
        late = scheduler.add_engine("b", seats, now=1.0)
        assert [t.engine for t in scheduler.dispatch(now=1.0)] == [late]

    def test_a_silent_engine_gets_nothing_until_it_speaks(self):
        """What waits for an engine that says nothing goes to others; when it speaks it is back."""
        scheduler = Scheduler(RoundRobin(), stall=STALL)
        engines = [scheduler.add_engine(name, SMALL, now=0.0) for name in "ab"]
        for _ in range(12):
            scheduler.submit(work(max_tokens=10), now=0.0)
        running = scheduler.dispatch(now=0.0)
        assert [b.queue.count for b in engines] == [2, 2]
        scheduler.heard(engines[0], now=4.0)
        assert scheduler.next_wake(4.0) == pytest.approx(STALL)
        scheduler.dispatch(now=6.0)
        assert (engines[1].silent, engines[1].queue.count, engines[0].queue.count) == (True, 0, 4)
        first = next(t for t in running if t.engine is engines[1])
        scheduler.first_token(first, now=7.0, cached_tokens=0)
        assert not engines[1].silent
        scheduler.check()

    def test_an_idle_engine_is_not_silent(self):
        """An engine without work has nothing to say."""
        scheduler = Scheduler(RoundRobin(), stall=STALL)
        engine = scheduler.add_engine("a", SMALL, now=0.0)
        scheduler.submit(work(), now=100.0)
        assert len(scheduler.dispatch(now=100.0)) == 1
        scheduler.dispatch(now=101.0)
        assert not engine.silent
        assert scheduler.next_wake(101.0) is None


class _Wrong:
    """A policy that does wrong."""

    def __init__(self, wrong):
        self.wrong = wrong

    def choose(self, call, engines):
        return self.wrong(engines)


def _raises(engines):
    raise ZeroDivisionError


class TestFaults:
    """Policies that do wrong."""

    @pytest.mark.parametrize("wrong", [_raises, lambda engines: "a", lambda engines: None])
    def test_the_call_is_placed_all_the_same_and_the_fault_told_once(self, wrong):
        """A policy that raises, or names what is not there, is replaced for that call."""
        faults = []
        scheduler = Scheduler(_Wrong(wrong), on_fault=faults.append)
        for name in "ab":
            scheduler.add_engine(name, SMALL, now=0.0)
        for _ in range(2):
            scheduler.submit(work(), now=0.0)
        assert [t.engine.name for t in scheduler.dispatch(now=0.0)] == ["a", "b"]
        assert len(faults) == 1

    def test_a_policy_gets_a_list_of_its_own(self):
        """Whatever it does to what it is given, the engines stay."""
        seen = []
        scheduler = Scheduler(_Wrong(lambda engines: seen.append(engines) or engines[0]))
        for name in "ab":
            scheduler.add_engine(name, SMALL, now=0.0)
        scheduler.submit(work(), now=0.0)
        assert type(seen[0]) is tuple
        assert len(seen[0]) == 2

    def test_a_call_that_cannot_be_counted_leaves_nothing(self):
        """Where a prompt's ids are no ids, submit raises, and nobody waits."""
        scheduler = Scheduler(LeastLoaded())
        scheduler.add_engine("a", SMALL, now=0.0)
        with pytest.raises(OverflowError):
            scheduler.submit(work((10**30,) * 99, group="g"), now=0.0)
        assert (scheduler.waiting, len(scheduler._siblings)) == (0, 0)
        scheduler.check()

    def test_an_engine_that_has_gone_is_no_choice(self):
        """A policy that sticks to an engine that is gone is a fault."""
        faults, kept = [], []
        scheduler = Scheduler(
            _Wrong(lambda engines: (kept or kept.append(engines[0]) or kept)[0]),
            on_fault=faults.append,
        )
        gone = scheduler.add_engine("a", SMALL, now=0.0)
        scheduler.add_engine("b", SMALL, now=0.0)
        scheduler.submit(work(), now=0.0)
        scheduler.dispatch(now=0.0)
        for ticket in scheduler.remove_engine(gone, now=1.0):
            scheduler.resubmit(ticket, now=1.0)
        assert [t.engine.name for t in scheduler.dispatch(now=1.0)] == ["b"]
        assert "not among them" in str(faults[0])
