from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alto._sched.estimate import Speed, Template
from alto._sched.policies import (
    LeastLoaded,
    PrefixThreshold,
    PromptAware,
    RoundRobin,
)
from alto._sched.queue import WaitQueue
from alto._sched.state import CallInfo, EngineLoad, Ticket
from alto.model import EngineCapacity


def engines_of(*loads, seats=128, kv=None, prefill=()):
    """Engines with so many generations each, of 100 expected tokens."""
    capacity = EngineCapacity(max_num_seqs=seats, max_num_batched_tokens=2048, kv_tokens=kv)
    return [
        EngineLoad(
            index=k, name=f"e{k}", capacity=capacity, speed=Speed(), max_outstanding=seats + 4,
            max_prefill=8192, outstanding=load, outputs=100.0 * load,
            prefill=prefill[k] if prefill else 0,
        )
        for k, load in enumerate(loads)
    ]  # fmt: skip


def call(tokens=1000, hits=(), *, prefix=0, key=None, output=100.0, beginning=None, number=1):
    """A call that finds so much of its prompt on each engine."""
    info = CallInfo(template=key, prompt_tokens=tokens, prefix_tokens=prefix)
    return Ticket(
        number=number, info=info, prompt_tokens=tokens, template=Template(key),
        expected_output=output, hits=hits, beginning=beginning,
    )  # fmt: skip


def choice(policy, ticket, engines):
    """The number of the engine that is chosen."""
    return policy.choose(ticket, engines).index


class TestPromptAware:
    """The cheapest, counting what a call does to others."""

    def test_a_cached_prompt_draws(self):
        """Of equal engines the one that holds the prompt."""
        assert choice(PromptAware(), call(hits=(0, 960, 0)), engines_of(5, 5, 5)) == 1

    def test_a_crowd_repels(self):
        """An engine with far more to do loses, though it holds a little of the prompt."""
        assert choice(PromptAware(), call(hits=(64, 0)), engines_of(60, 2)) == 1

    def test_a_queue_of_prompts_repels(self):
        """What must be computed first counts, cached or not."""
        engines = engines_of(5, 5, prefill=(8000, 0))
        assert choice(PromptAware(), call(hits=(512, 0)), engines) == 1

    def test_calls_that_are_ahead_in_the_queue_count(self):
        """Calls that wait for an engine and go first make it later; those that go later do not."""
        engines, first = engines_of(3, 3), call(key="t")
        first.key = (10.0, 0, 1)
        engines[0].queue = WaitQueue.snapshot(
            5, 4000, 500.0, first=first, earliest=10.0, latest=20.0
        )
        late, early, middle = call(), call(), call()
        late.key, early.key, middle.key = (30.0, 0, 9), (5.0, 0, 9), (15.0, 0, 9)
        policy = PromptAware()
        costs = [policy.scores(c, engines)[0] for c in (early, middle, late)]
        assert costs == sorted(set(costs))
        assert costs[0] == policy.scores(early, engines)[1]
        assert [choice(policy, c, engines) for c in (late, middle)] == [1, 1]

    def test_delay_to_others_counts(self):
        """What an engine holds is waited for, though another that holds nothing would be done sooner."""
        engines = engines_of(100, 100, prefill=(0, 2500))
        long = call(4000, hits=(0, 2000), output=1.0)
        assert choice(PromptAware(), long, engines) == 1
        assert choice(PromptAware(inflicted=0.0), long, engines) == 0

    def test_the_declared_prefix_is_left_out(self):
        """An engine that holds nothing but the template's head is no better than any other."""
        engines = engines_of(5, 4)
        assert choice(PromptAware(), call(1000, (640, 0), prefix=640), engines) == 1
        assert choice(PromptAware(), call(1000, (640, 0)), engines) == 0

    def test_full_batches_repel(self):
        """An engine whose places are taken costs a wait."""
        engines = engines_of(4, 3, seats=4, prefill=(0, 3000))
        assert choice(PromptAware(), call(100), engines) == 1
        assert choice(PromptAware(), call(100), engines_of(3, 3, seats=4, prefill=(0, 3000))) == 0

    def test_full_memory_repels(self):
        """An engine whose KV cache is full costs a wait."""
        engines = engines_of(3, 4, kv=10_000)
        engines[0].kv, engines[1].kv = 9_990, 1_000
        assert choice(PromptAware(), call(500), engines) == 1

    def test_who_served_the_document_before_is_preferred_a_little(self):
        """Affinity decides between equals, and not against a crowd."""
        ticket = call()
        ticket.served = 1
        assert choice(PromptAware(), ticket, engines_of(3, 3)) == 1
        assert choice(PromptAware(), ticket, engines_of(0, 60)) == 0

    def test_preferred_engines_cost_a_little_less(self):
        """An engine that the template prefers decides between equals."""
        ticket = call()
        ticket.template.preferred = (2,)
        assert choice(PromptAware(), ticket, engines_of(3, 3, 3)) == 2

    @given(
        st.lists(st.integers(0, 200), min_size=1, max_size=6),
        st.integers(1, 5000),
        st.lists(st.integers(0, 5000), max_size=6),
    )
    def test_it_chooses_the_lowest_score(self, loads, tokens, hits):
        """What it chooses has the lowest of the scores that it gives, and the least load of those."""
        policy, engines = PromptAware(), engines_of(*loads)
        ticket = call(tokens, tuple(min(hit, tokens) for hit in hits))
        scores = policy.scores(ticket, engines)
        chosen = policy.choose(ticket, engines)
        assert scores[chosen.index] == min(scores)
        equal = [e.load for e in engines if scores[e.index] == min(scores)]
        assert chosen.load == min(equal)


class TestSimpleRules:
    """The rules of others."""

    def test_round_robin_takes_turns_and_survives_changes(self):
        """One after the other, whatever comes and goes."""
        policy, engines = RoundRobin(), engines_of(9, 0, 5)
        assert [choice(policy, call(), engines) for _ in range(4)] == [0, 1, 2, 0]
        assert choice(policy, call(), [engines[0], engines[2]]) == 2
        assert choice(policy, call(), [engines[0], engines[2]]) == 0

    def test_least_loaded_counts_those_that_wait(self):
        """The fewest generations, of equals the first."""
        engines = engines_of(3, 2, 2)
        assert choice(LeastLoaded(), call(), engines) == 1
        assert LeastLoaded().score(call(), engines[0]) == 3

    def test_prefix_threshold_follows_a_good_match_only(self):
        """Above half of the prompt the best match, else the least loaded."""
        engines = engines_of(9, 1, 0)
        assert choice(PrefixThreshold(), call(1000, (600, 0, 0)), engines) == 0
        assert choice(PrefixThreshold(), call(1000, (400, 0, 0)), engines) == 2

    def test_prefix_threshold_leaves_the_declared_prefix_out(self):
        """A match of nothing but the template's head is none."""
        engines = engines_of(9, 1, 0)
        assert choice(PrefixThreshold(), call(1000, (600, 0, 0), prefix=600), engines) == 2
        assert choice(PrefixThreshold(), call(1000, (700, 0, 0), prefix=600), engines) == 2
        assert choice(PrefixThreshold(), call(1000, (900, 0, 0), prefix=600), engines) == 0

    def test_prefix_threshold_gives_in_to_imbalance(self):
        """Where loads are far apart the match does not count."""
        assert choice(PrefixThreshold(), call(1000, (900, 0)), engines_of(40, 2)) == 1
        assert choice(PrefixThreshold(), call(1000, (900, 0)), engines_of(30, 2)) == 0


def test_hits_count_with_and_without_the_prefix():
    """An engine that is new to the call holds nothing of it."""
    engines, ticket = engines_of(0, 0, 0), call(1000, (700, 100), prefix=300)
    assert [ticket.hit_on(e) for e in engines] == [700, 100, 0]
    assert [ticket.own_hit_on(e) for e in engines] == [400, 0, 0]
