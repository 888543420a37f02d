"""The baselines of the benchmark of policies, and the paper's router."""

from __future__ import annotations

import io
from collections import Counter

import pytest

from alto._sched.estimate import Speed, Template
from alto._sched.state import CallInfo, EngineLoad, Ticket
from alto.model import EngineCapacity
from alto.protocols import ReplicaLoad, RoutedItem
from alto.sched import Scheduler, dump_decisions, load_decisions, replay
from bench._paper.configs import RequestHash
from bench._scheduling.baselines import BoundedLoadHash, LMetric, StaticPartition

BASELINES = (LMetric, BoundedLoadHash, StaticPartition)
CAPACITY = EngineCapacity(max_num_seqs=128, max_num_batched_tokens=2048)


def books(*loads):
    """Engines with so many generations each."""
    return [
        EngineLoad(
            index=k, name=f"e{k}", capacity=CAPACITY, speed=Speed(), max_outstanding=132, max_prefill=8192,
            outstanding=load, outputs=100.0 * load,
        )
        for k, load in enumerate(loads)
    ]  # fmt: skip


def call(tokens=1000, hits=(), *, key=None, beginning=None):
    """A call that finds so much of its prompt on each engine."""
    return Ticket(
        number=1, info=CallInfo(template=key, prompt_tokens=tokens), prompt_tokens=tokens,
        template=Template(key), expected_output=100.0, hits=hits, beginning=beginning,
    )  # fmt: skip


def choice(policy, ticket, engines):
    """The number of the engine that is chosen."""
    return policy.choose(ticket, engines).index


@pytest.mark.parametrize("policy", BASELINES)
class TestAll:
    """Properties of every baseline."""

    def test_an_unknown_order_is_refused(self, policy):
        """When the policy is made, not when the first call comes."""
        with pytest.raises(ValueError, match="order must be"):
            policy(order="fifo")

    def test_a_replay_against_the_same_policy_agrees(self, policy):
        """Asked again with what it knew, also after a trip through a file, it says the same."""
        decisions, file = [], io.StringIO()
        scheduler, running = Scheduler(policy(), recorder=decisions.append), []
        for name in "abc":
            scheduler.add_engine(name, CAPACITY, now=0.0)
        for k in range(60):
            tokens = [k % 2] * 320 + [k] * 40
            info = CallInfo(template=("stage", k % 2), token_ids=tokens, prompt_tokens=len(tokens))
            scheduler.submit(info, now=0.01 * k)
            running += scheduler.dispatch(now=0.01 * k)
            if k % 2:
                ended = running.pop(0)
                scheduler.first_token(ended, now=0.01 * k, cached_tokens=0)
                scheduler.ended(ended, now=0.01 * k, output_tokens=20, completed=True)
            scheduler.check()
        dump_decisions(decisions, file)
        file.seek(0)
        assert len(decisions) >= 60
        assert all(r.agrees for r in replay(load_decisions(file), policy()))


class TestLMetric:
    """Uncached tokens times load."""

    def test_l_metric_multiplies(self):
        """Uncached tokens times load + 1, without a threshold."""
        engines = books(9, 1, 0)
        assert choice(LMetric(), call(1000, (950, 0, 0)), engines) == 0
        assert choice(LMetric(), call(1000, (0, 600, 0)), engines) == 1
        assert choice(LMetric(), call(1000, (0, 400, 0)), engines) == 2


class TestStaticPartition:
    """The paper's set-up."""

    def test_shares_are_slices(self):
        """Each stage has its own engines, in the order given, and takes them in turn."""
        policy = StaticPartition({"answer": 2, "claims": 2, "queries": 3})
        engines = books(*[0] * 7)

        def four(stage):
            return [choice(policy, call(key=(f"verify.{stage}", 0)), engines) for _ in range(4)]

        assert four("answer") == [0, 1, 0, 1]
        assert four("claims") == [2, 3, 2, 3]
        assert four("queries") == [4, 5, 6, 4]
        assert four("other") == [0, 1, 2, 3]

    def test_without_shares_engines_are_dealt_out(self):
        """Templates share the engines evenly, in the order in which they are seen."""
        policy, engines = StaticPartition(), books(0, 0, 0, 0)
        assert choice(policy, call(key="a"), engines) == 0
        assert choice(policy, call(key="b"), engines) == 2
        assert {choice(policy, call(key="a"), engines) for _ in range(4)} == {0, 1}
        assert {choice(policy, call(key="b"), engines) for _ in range(4)} == {2, 3}

    def test_more_templates_than_engines_share(self):
        """Every template has an engine at least."""
        policy, engines = StaticPartition(), books(0, 0)
        for key in "abcde":
            choice(policy, call(key=key), engines)
        assert {choice(policy, call(key=key), engines) for key in "abcde"} == {0, 1}

    @pytest.mark.parametrize("shares", [{}, {"a": 0}])
    def test_empty_shares_are_refused(self, shares):
        """A stage without an engine could never run."""
        with pytest.raises(ValueError, match="at least one engine"):
            StaticPartition(shares)


class TestBoundedLoadHash:
    """Consistent hashing with a bound."""

    def test_equal_beginnings_have_one_owner(self):
        """What begins alike goes to the same engine, and not everything to one."""
        engines, policy = books(1, 1, 1, 1, 1, 1, 1, 1), BoundedLoadHash(bound=3.0)
        owners = [choice(policy, call(beginning=k), engines) for k in range(64)]
        assert owners == [choice(policy, call(beginning=k), engines) for k in range(64)]
        assert len(set(owners)) == 8

    def test_full_owners_are_passed_over(self):
        """No engine takes a call that would bring it above the bound, while there is another."""
        policy = BoundedLoadHash()
        for k in range(50):
            engines = books(4, 2, 3)
            chosen = policy.choose(call(beginning=k), engines)
            assert chosen.load + 1 <= 1.25 * (9 + 1) / 3

    def test_few_move_when_an_engine_goes(self):
        """Only what the lost engine owned has another owner."""
        engines, policy = books(*[1] * 8), BoundedLoadHash(bound=3.0)
        before = [choice(policy, call(beginning=k), engines) for k in range(200)]
        after = [choice(policy, call(beginning=k), engines[:-1]) for k in range(200)]
        assert all(a == b for a, b in zip(before, after, strict=True) if b != 7 and a != 7)
        assert 7 not in after

    def test_an_impossible_bound_is_refused(self):
        """A bound of the mean or less leaves no engine."""
        with pytest.raises(ValueError, match="above 1"):
            BoundedLoadHash(bound=1.0)


def test_request_hash_looks_at_the_request_only():
    """All calls of a request go together, and requests are dealt out evenly."""
    router = RequestHash()
    replicas = [ReplicaLoad(number=k, slots=1, free=1) for k in range(3)]
    homes = Counter()
    for request in range(300):
        items = [
            RoutedItem(stage="s", request=request, path=(k,), group=False, value=None)
            for k in range(5)
        ]
        (home,) = {router.choose(item, replicas) for item in items}
        homes[home] += 1
    assert all(70 < count < 130 for count in homes.values())
