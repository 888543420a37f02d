"""Continuous batching, rule by rule; see test_batching.py for all of them at once."""

from __future__ import annotations

import pytest

from alto.engines._simulated.batching import Batching
from alto.engines.profiles import EngineProfile

TICK = 2.0**-8


def profile(**changes) -> EngineProfile:
    """Constants that are sums of powers of two, so that no time is rounded."""
    settings = {
        "name": "exact",
        "source": "made up",
        "base_s": 4 * TICK,
        "per_sequence_s": TICK / 4,
        "per_context_token_s": TICK / 64,
        "per_prefill_token_s": TICK / 8,
        "per_prefill_s": TICK / 2,
        "per_prefill_pair_s": TICK / 256,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 12,
        "kv_tokens": 64,
        "block_size": 4,
        "max_model_len": 32,
    }
    return EngineProfile(**settings | changes)


def finished(engine: Batching) -> dict[object, float]:
    """When each call ends, if nothing else comes."""
    ends = {}
    while (due := engine.next_event()) is not None:
        ends |= {e.key: e.time for e in engine.advance(due) if e.kind == "finished"}
    return ends


def test_a_step_with_prompts_costs_more_once():
    """However many prompts are in it; and a step without any costs nothing of that."""
    plain, dear = profile(), profile(per_prefill_step_s=3 * TICK)
    for prefills in (1, 2, 5):
        facts = {"prefill_tokens": 8, "prefills": prefills, "prefill_pairs": 36, "decoding": 1}
        assert dear.step_seconds(**facts) - plain.step_seconds(**facts) == 3 * TICK
    assert dear.step_seconds(decoding=4) == plain.step_seconds(decoding=4)


@pytest.mark.parametrize(
    ("prompt", "blocks", "output", "complaint"),
    [
        (0, (), 1, "must be at least 1"),
        (1, (), 0, "must be at least 1"),
        (30, (), 3, "max_model_len"),
        (7, (1, 2), 1, "2 full blocks of 4"),
    ],
)
def test_a_call_that_could_never_run_is_refused(prompt, blocks, output, complaint):
    """It says why, and the machine has not heard of it."""
    engine = Batching(profile())
    with pytest.raises(ValueError, match=complaint):
        engine.add("a", prompt, blocks, now=0.0, output_tokens=output)
    assert engine.waiting == 0
    assert engine.next_event() is None


def test_a_key_is_used_by_one_call_at_a_time():
    """A second call with it is refused, until the first has ended."""
    engine = Batching(profile())
    engine.add("a", 4, (), now=0.0, output_tokens=1)
    with pytest.raises(ValueError, match="in use"):
        engine.add("a", 4, (), now=0.0, output_tokens=1)
    assert [*finished(engine)] == ["a"]
    engine.add("a", 4, (), now=9.0, output_tokens=1)
    assert [*finished(engine)] == ["a"]


def test_a_step_takes_what_the_profile_says():
    """One call: a step for its prompt, then one for each token but the first."""
    engine = Batching(profile())
    engine.add("a", 8, (), now=1.0, output_tokens=3, watch=(2,))
    told = []
    while (due := engine.next_event()) is not None:
        told += engine.advance(due)
    one, two, three = (
        profile().step_seconds(prefill_tokens=8, prefills=1, prefill_pairs=36),
        profile().step_seconds(decoding=1, context_tokens=9),
        profile().step_seconds(decoding=1, context_tokens=10),
    )
    assert [(e.kind, e.output_tokens) for e in told] == [
        ("first", 1),
        ("reached", 2),
        ("finished", 3),
    ]
    assert [e.time for e in told] == [1 + one, 1 + one + two, 1 + one + two + three]
    assert {e.began for e in told} == {1.0}


def test_a_call_that_nobody_knows_may_be_given_up():
    """Nothing happens, also where it has ended already."""
    engine = Batching(profile())
    engine.abort("a", now=0.0)
    engine.add("a", 4, (), now=0.0, output_tokens=1)
    finished(engine)
    engine.abort("a", now=5.0)
    assert (engine.running, engine.waiting, engine.next_event()) == (0, 0, None)


def test_the_lowest_priority_goes_first_unless_the_profile_says_otherwise():
    """Of two that wait the one with the lower number, or the older one."""
    order = {}
    for policy in ("priority", "fcfs"):
        engine = Batching(profile(max_num_seqs=1, policy=policy))
        for key, priority in (("old", 1), ("new", 0)):
            engine.add(key, 4, (), now=0.0, output_tokens=2, priority=priority)
        order[policy] = [*finished(engine)]
    assert order == {"priority": ["new", "old"], "fcfs": ["old", "new"]}


def test_listeners_hear_of_blocks_that_come_and_go():
    """What was stored and not removed is what the next prompt finds."""
    there, gone = [], []
    settings = profile(kv_tokens=32)
    engine = Batching(
        settings,
        stored=lambda names, start, stop: there.extend(names[start:stop]),
        removed=gone.extend,
    )
    engine.add("a", 17, (1, 2, 3, 4), now=0.0, output_tokens=1)
    finished(engine)
    assert (there, gone) == ([1, 2, 3, 4], [])
    engine.add("b", 17, (1, 2, 5, 6), now=10.0, output_tokens=1)
    finished(engine)
    assert (there, gone) == ([1, 2, 3, 4, 5, 6], [])
    engine.add("c", 16, (7, 8, 9, 10), now=20.0, output_tokens=1)
    finished(engine)
    assert gone == [4, 3]  # the longest unused, and of these the deepest first
    engine.add("d", 17, (1, 2, 3, 4), now=30.0, output_tokens=1)
    (event,) = [e for e in engine.advance(40.0) if e.kind == "finished"]
    assert event.cached_tokens == 8
