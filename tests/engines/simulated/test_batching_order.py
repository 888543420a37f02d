"""Who runs when, and who keeps what memory: rules of continuous batching, with exact times."""

from __future__ import annotations

import pytest

from alto.engines._simulated.batching import Batching
from alto.engines._simulated.blocks import Blocks
from alto.engines.profiles import EngineProfile


def engine(**changes) -> Batching:
    """A step takes a second, and half a second for each prompt token in it."""
    settings = {
        "name": "plain",
        "source": "made up",
        "base_s": 1.0,
        "per_prefill_token_s": 0.5,
        "max_num_seqs": 2,
        "max_num_batched_tokens": 8,
        "kv_tokens": 32,
        "block_size": 4,
        "max_model_len": 32,
    }
    return Batching(EngineProfile(**settings | changes))


def told(machine: Batching) -> list[tuple]:
    """Everything up to the end, without what was cached and when it began."""
    events = []
    while (due := machine.next_event()) is not None:
        events += [event[:4] for event in machine.advance(due)]
    return events


def first_of(key: str, machine: Batching) -> float:
    """When its first token comes."""
    return next(event[0] for event in told(machine) if event[1:3] == ("first", key))


def test_a_long_prompt_is_computed_in_pieces_that_fit_the_budget():
    """Twenty tokens in steps of eight take three steps, and a token then comes each second."""
    machine = engine()
    machine.add("a", 20, (), now=3.0, output_tokens=3)
    assert told(machine) == [(16.0, "first", "a", 1), (18.0, "finished", "a", 3)]


def test_decoding_goes_before_prompts():
    """While one decodes, a prompt gets the rest of the budget."""
    machine = engine(max_num_batched_tokens=3)
    machine.add("a", 1, (), now=0.0, output_tokens=9)
    assert machine.advance(1.5)[0].kind == "first"
    machine.add("b", 4, (), now=1.5, output_tokens=1)
    assert first_of("b", machine) == 6.5  # a step of a alone, then two with two tokens of b each


@pytest.mark.parametrize(
    ("asked", "comes", "first"), [(1.5, 3.5, 5.0), (1.5, 3.75, 6.0), (3.5, 3.5, 6.0)]
)
def test_a_call_that_comes_in_a_stretch_waits_for_the_end_of_the_step(asked, comes, first):
    """At the very time of a boundary it gets in, unless that boundary was told of."""
    machine = engine()
    machine.add("a", 1, (), now=0.0, output_tokens=20)
    machine.advance(asked)
    machine.add("b", 1, (), now=comes, output_tokens=1)
    assert machine.next_event() == first - 1.5
    assert first_of("b", machine) == first


def test_watched_counts_are_told_and_no_others():
    """Those beyond the end are never reached, and the end is told as such."""
    machine = engine()
    machine.add("a", 2, (), now=0.0, output_tokens=5, watch=(1, 3, 5, 7))
    assert told(machine) == [
        (2.0, "first", "a", 1),
        (2.0, "reached", "a", 1),
        (4.0, "reached", "a", 3),
        (6.0, "reached", "a", 5),
        (6.0, "finished", "a", 5),
    ]


def test_latency_delays_a_call_and_nothing_else():
    """The engine is free meanwhile."""
    machine = engine(latency_s=10.0)
    machine.add("a", 2, (), now=1.0, output_tokens=1)
    assert machine.next_event() == 11.0
    assert (machine.running, machine.waiting) == (0, 1)
    assert told(machine)[-1] == (13.0, "finished", "a", 1)


def test_the_place_of_one_that_is_given_up_is_free_at_the_end_of_the_step():
    """Nothing more is said of it, nor of one that is given up while it waits."""
    machine = engine(max_num_seqs=1)
    for key in "abc":
        machine.add(key, 2, (), now=0.0, output_tokens=8)
    machine.advance(2.25)
    machine.abort("a", now=2.25)
    machine.abort("c", now=2.25)
    assert (machine.running, machine.waiting) == (0, 1)
    assert told(machine) == [(5.0, "first", "b", 1), (12.0, "finished", "b", 8)]
    assert machine.kv_used == 0


def test_the_whole_prompt_is_never_cached():
    """The last token is computed anew, so of two full blocks one is found."""
    machine = engine()
    for key in "ab":
        machine.add(key, 8, (1, 2), now=0.0, output_tokens=1)
    cached = [e.cached_tokens for e in machine.advance(100.0) if e.kind == "finished"]
    assert cached == [0, 4]


def test_a_prompt_is_shared_within_the_step_that_computes_it():
    """The second of two equal ones computes its last block only."""
    machine = engine(max_num_batched_tokens=16)
    for key in "ab":
        machine.add(key, 9, (1, 2), now=0.0, output_tokens=1)
    assert told(machine)[-1] == (1.0 + 0.5 * (9 + 1), "finished", "b", 1)


def test_the_youngest_loses_its_memory_and_goes_on_where_it_was():
    """Each token is said once, and the older one is done first."""
    machine = engine(kv_tokens=16, max_model_len=16)
    machine.add("a", 7, (1,), now=0.0, output_tokens=9)
    machine.add("b", 7, (2,), now=0.0, output_tokens=4)
    events = told(machine)
    assert machine.preempted == 1
    for key, tokens in (("a", 9), ("b", 4)):
        kinds = [event[1:] for event in events if event[2] == key]
        assert kinds == [("first", key, 1), ("finished", key, tokens)]
    assert events[-1][2] == "b"
    assert machine.kv_used == 0


def test_one_that_loses_its_memory_gives_back_what_it_took_for_this_step():
    """The first takes the last block, and the second, which goes before it, takes all from it."""
    machine = engine(kv_tokens=20, max_model_len=20, max_num_batched_tokens=16)
    machine.add("a", 7, (), now=0.0, output_tokens=6, priority=5)
    machine.add("b", 7, (), now=0.0, output_tokens=6, priority=5)
    assert [e[2] for e in told(machine) if e[1] == "finished"] == ["a", "b"]
    machine = engine(kv_tokens=20, max_model_len=20, max_num_batched_tokens=16)
    machine.add("a", 7, (), now=0.0, output_tokens=6, priority=5)
    machine.advance(0.5)
    machine.add("b", 8, (), now=0.5, output_tokens=6, priority=0)
    assert [e[2] for e in told(machine) if e[1] == "finished"] == ["b", "a"]
    assert machine.preempted == 1
    assert machine._blocks.free == 5


@pytest.mark.parametrize("gives_up", [True, False])
def test_who_waits_behind_one_that_lacks_memory(gives_up):
    """It gets in when that one does, or at the end of the step in which that one is given up."""
    machine = engine(kv_tokens=20, max_model_len=20, max_num_seqs=3)
    machine.add("a", 7, (), now=0.0, output_tokens=9)
    machine.add("b", 15, (), now=1.0, output_tokens=1)
    machine.add("c", 3, (), now=1.0, output_tokens=1)
    machine.advance(5.0)
    assert machine.waiting == 2
    if gives_up:
        machine.abort("b", now=5.0)
    assert first_of("c", machine) == (8.0 if gives_up else 24.5)


def test_a_call_that_goes_before_one_that_lacks_memory_does_not_wait_for_it():
    """It has a lower priority number, and fits."""
    machine = engine(kv_tokens=20, max_model_len=20, max_num_seqs=3)
    machine.add("a", 7, (), now=0.0, output_tokens=9)
    machine.add("b", 15, (), now=1.0, output_tokens=1, priority=1)
    machine.advance(5.0)
    machine.add("c", 3, (), now=5.0, output_tokens=1)
    assert first_of("c", machine) == 8.0


def test_the_longest_unused_goes_first_and_the_deepest_of_those():
    """Blocks without content are used up before; a block that is held stays."""
    gone = []
    blocks = Blocks(6, removed=gone.extend)
    for names in ((1, 2), (3, 4)):
        blocks.take(2)
        assert blocks.add(names, 0, 2) == 2
        blocks.release(names, 2, object(), full=0, partial=0)
    blocks.take(2)
    assert gone == []
    blocks.hold((1, 2), 1)
    assert (blocks.held, blocks.free, blocks.named) == (3, 3, 4)
    blocks.take(1)
    assert gone == [2]
    blocks.take(1)
    assert gone == [2, 4]
    assert blocks.find((1, 2), 2) == (1, 0)
    assert blocks.find((3, 4), 2) == (1, 1)
    blocks.take(1)
    assert gone == [2, 4, 3]
    assert blocks.free == 0


def test_blocks_of_one_sequence_are_found_again_up_to_where_they_are_left():
    """The first of a run stay longest."""
    blocks, run = Blocks(5), object()
    blocks.take(5)
    blocks.release((), 0, run, full=4, partial=1)
    blocks.take(2)
    assert blocks.idle_of(run) == 3
    blocks.reclaim(run, 2)
    assert (blocks.idle_of(run), blocks.free) == (1, 1)
    blocks.reclaim(run, 1)
    assert (blocks.idle_of(run), blocks.free) == (0, 0)
