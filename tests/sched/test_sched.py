from __future__ import annotations

import io

import pytest

from alto import sched
from alto.model import EngineCapacity
from alto.sched import (
    CallInfo,
    LeastLoaded,
    PrefixThreshold,
    PromptAware,
    RoundRobin,
    Scheduler,
    dump_decisions,
    load_decisions,
    replay,
)

CAPACITY = EngineCapacity(
    max_num_seqs=8, max_num_batched_tokens=512, kv_tokens=20_000, block_size=16
)
POLICIES = (PromptAware, LeastLoaded, RoundRobin, PrefixThreshold)


def drive(scheduler, calls=120):
    """A few seconds in the life of a pool of three, with two documents and two templates."""
    for name in "abc":
        scheduler.add_engine(name, CAPACITY, now=0.0)
    running, now = [], 0.0
    for k in range(calls):
        now += 0.01
        tokens = [k % 2] * 320 + [k] * 40
        work = CallInfo(
            template=("stage", k % 2), token_ids=tokens, prompt_tokens=len(tokens), max_tokens=40,
            group=k // 4, parent=k // 4, arrived=k // 4 * 0.04, prefix_tokens=32,
        )  # fmt: skip
        scheduler.submit(work, now=now)
        running += scheduler.dispatch(now=now)
        if k % 2 and running:
            ticket = running.pop(0)
            scheduler.first_token(ticket, now=now, cached_tokens=0)
            scheduler.ended(ticket, now=now + 0.005, output_tokens=20, completed=True)
            running += scheduler.dispatch(now=now + 0.005)


class TestRecords:
    """Decisions, kept and asked again."""

    @pytest.mark.parametrize("policy", POLICIES)
    def test_a_replay_against_the_same_policy_agrees(self, policy):
        """Asked again with what it knew, also after a trip through a file, a policy says the same."""
        decisions, file = [], io.StringIO()
        drive(Scheduler(policy(), recorder=decisions.append))
        assert len(decisions) >= 120
        dump_decisions(decisions, file)
        file.seek(0)
        replayed = list(replay(load_decisions(file), policy()))
        assert len(replayed) == len(decisions)
        assert [r.chosen for r in replayed] == [d.chosen for d in decisions]
        assert all(r.agrees for r in replayed)
        for again, once in zip(replayed, decisions, strict=True):
            assert again.scores == pytest.approx(dict(once.scores), rel=1e-9)

    def test_another_policy_may_differ(self):
        """A policy that is blind to prefixes chooses other engines for some of the calls."""
        decisions = []
        drive(Scheduler(PromptAware(), recorder=decisions.append))
        replayed = list(replay(decisions, LeastLoaded()))
        assert {r.agrees for r in replayed} == {True, False}
        assert all(r.chosen in "abc" for r in replayed)

    def test_a_record_says_why_and_with_what_scores(self):
        """Every decision has a branch, a score per engine, and the lowest of them was chosen."""
        decisions = []
        drive(Scheduler(PromptAware(), recorder=decisions.append))
        assert {d.branch for d in decisions} >= {"submitted", "turn"}
        for decision in decisions:
            assert set(decision.scores) == {e["name"] for e in decision.engines} <= {"a", "b", "c"}
            assert decision.scores[decision.chosen] == min(decision.scores.values())
        assert max(max(d.facts["hits"]) for d in decisions) > 0

    def test_a_policy_without_scores_is_recorded_without(self):
        """Also one whose scores fail."""

        class Odd:
            def choose(self, call, engines):
                return engines[0]

            def score(self, call, engine):
                raise ZeroDivisionError

        for policy in (RoundRobin(), Odd()):
            decisions = []
            drive(Scheduler(policy, recorder=decisions.append), calls=3)
            assert [d.scores for d in decisions] == [{}, {}, {}]

    def test_a_policy_that_fails_is_recorded_as_a_fall_back(self):
        """The branch tells that another rule has chosen."""

        class Failing:
            def choose(self, call, engines):
                raise ZeroDivisionError

        decisions = []
        drive(Scheduler(Failing(), recorder=decisions.append), calls=3)
        assert {d.branch for d in decisions} == {"fallback"}


class TestScheduler:
    """What it refuses, and what it says."""

    @pytest.mark.parametrize("policy", ["LeastLoaded", LeastLoaded, object()])
    def test_what_is_no_policy_is_refused(self, policy):
        """A class, a name or any other object is named in the error."""
        with pytest.raises(TypeError, match=r"choose\(call, engines\), such as LeastLoaded\(\)"):
            Scheduler(policy)

    def test_a_stall_of_nothing_is_refused(self):
        """An engine needs some time to answer."""
        with pytest.raises(ValueError, match="above 0 seconds"):
            Scheduler(stall=0)

    def test_it_says_what_it_does(self):
        """Its policy, its engines, what waits."""
        scheduler = Scheduler()
        scheduler.submit(CallInfo(template="t", prompt_tokens=3), now=0.0)
        assert repr(scheduler) == "<Scheduler PromptAware, 0 engines, 1 waiting>"

    def test_a_listener_tells_what_an_engine_holds(self):
        """Events of an engine draw calls to it, and a clear ends that."""
        decisions = []
        scheduler = Scheduler(recorder=decisions.append)
        engines = [scheduler.add_engine(name, CAPACITY, now=0.0) for name in "ab"]
        tokens = list(range(320))
        listener = scheduler.listener(engines[1])
        listener.stored(None, tokens, list(range(20)))
        work = CallInfo(template="t", prompt_tokens=330, token_ids=[*tokens, *[7] * 10])
        ticket = scheduler.submit(work, now=0.0)
        assert (ticket.engine, ticket.hits[1]) == (engines[1], 320)
        listener.removed([19, 18, 17, 16])
        assert scheduler.submit(work, now=0.0).hits[1] == 256
        listener.cleared()
        scheduler.remove_engine(engines[1], now=0.0)
        listener.stored(None, tokens, list(range(20)))
        scheduler.check()

    def test_a_policy_that_has_left_says_where_it_went(self):
        """A baseline is imported with an error that names its file; other names are unknown."""
        with pytest.raises(ImportError, match=r"bench/_scheduling/baselines\.py"):
            from alto.sched import LMetric  # noqa: F401, PLC0415
        with pytest.raises(ImportError, match=r"from alto\.sched import EngineLoad"):
            _ = sched.EngineBook
        assert not hasattr(sched, "no_such_name")

    @pytest.mark.parametrize("policy", POLICIES)
    def test_an_unknown_order_is_refused(self, policy):
        """Not when the first call comes, but when the policy is made."""
        with pytest.raises(ValueError, match="order must be"):
            policy(order="fifo")

    @pytest.mark.parametrize(
        "make",
        [
            lambda: PrefixThreshold(match=2),
            lambda: PrefixThreshold(most=-1),
            lambda: PrefixThreshold(ratio=0.5),
            lambda: PromptAware(inflicted=-1),
            lambda: PromptAware(affinity=0),
            lambda: PromptAware(preferred=1.5),
            lambda: CallInfo(template="t", prompt_tokens=3, n=0),
            lambda: CallInfo(template="t", prompt_tokens=-1),
        ],
    )
    def test_numbers_that_mean_nothing_are_refused(self, make):
        """With what they may be."""
        with pytest.raises(ValueError, match=r"at least|to 1|at most 1"):
            make()

    def test_a_file_that_holds_no_decisions_is_refused(self):
        """The error says which line, and what was expected."""
        for text in ("\n{}\n", "\nnonsense\n", "\n[1, 2]\n"):
            with pytest.raises(ValueError, match="line 2 is no decision"):
                list(load_decisions(io.StringIO(text)))
