"""Continuous batching, beside a model that makes one step at a time, and on its own."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import event as note
from hypothesis import given
from hypothesis import strategies as st

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
        "per_prefill_step_s": TICK,
        "per_prefill_s": TICK / 2,
        "per_prefill_pair_s": TICK / 256,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 12,
        "kv_tokens": 64,
        "block_size": 4,
        "max_model_len": 32,
    }
    return EngineProfile(**settings | changes)


class Naive:
    """One step after the other, every sequence and every block a thing of its own.

    A block is ``[content, holders]``; those that nobody holds are in ``free``, next to go first.
    """

    def __init__(self, profile: EngineProfile) -> None:
        self.p = profile
        self.free = [["blank", 0] for _ in range(profile.kv_blocks)]
        self.cache = {}
        self.coming, self.waiting, self.run, self.leaving = [], [], [], []
        self.gone, self.told = set(), []
        self.time, self.until, self.plan = 0.0, -math.inf, None
        self.count = self.preempted = 0
        self.most_seqs = self.most_tokens = self.idle_steps = 0

    def add(self, key, prompt, names, *, now, output_tokens, priority, watch):
        """A call comes."""
        self.count += 1
        order = (priority if self.p.policy == "priority" else 0, self.count)
        self.coming.append(
            {
                "key": key,
                "order": order,
                "tokens": prompt,
                "prompt": prompt,
                "names": [*names],
                "target": output_tokens,
                "watch": watch,
                "done": 0,
                "computed": 0,
                "blocks": [],
                "at": max(now, self.until) + self.p.latency_s,
            }
        )

    def abort(self, key, *, now):
        """A call is given up, and steps that have ended before are over."""
        self.told += self.go(math.nextafter(now, -math.inf))
        self.coming = [s for s in self.coming if s["key"] != key]
        self.waiting = [s for s in self.waiting if s["key"] != key]
        if any(s["key"] == key for s in self.run):
            self.gone.add(key)
            self.leaving.append((max(now, self.until), key))

    def advance(self, now):
        """Step after step."""
        now = self.until = max(now, self.until)
        told, self.told = self.told, []
        return told + self.go(now)

    def go(self, now):
        """What happens up to now."""
        events = []
        while True:
            if self.plan is None and not self.begin(now):
                return events
            end, work = self.plan
            if end > now:
                return events
            self.finish_step(end, work, events)

    def begin(self, now):
        """The next step, if it begins by now."""
        while True:
            start = self.time
            if not self.run and not self.waiting:
                if not self.coming:
                    return False
                start = max(start, self.coming[0]["at"])
            if start > now:
                return False
            self.time = start
            for at, key in [*self.leaving]:
                if at <= start:
                    self.leaving.remove((at, key))
                    for s in [s for s in self.run if s["key"] == key]:
                        self.run.remove(s)
                        self.let_go(s)
            while self.coming and self.coming[0]["at"] <= start:
                self.waiting.append(self.coming.pop(0))
            if self.run or self.waiting:
                break
        self.schedule()
        return True

    def pop_block(self):
        """The block to go first."""
        block = self.free.pop(0)
        if block[0] != "blank" and self.cache.get(block[0]) is block:
            del self.cache[block[0]]
        block[0] = "blank"
        return block

    def let_go(self, s):
        """From the end to the beginning: blanks to the front of the line, the others behind it."""
        full = s["computed"] // self.p.block_size
        for index in reversed(range(len(s["blocks"]))):
            block = s["blocks"][index]
            block[1] -= 1
            if block[1] == 0:
                if index >= full:
                    block[0] = "blank"
                    self.free.insert(0, block)
                else:
                    self.free.append(block)
        s["blocks"], s["computed"] = [], 0

    def grow(self, s, tokens):
        """Memory for more tokens; False: there is not enough."""
        needed = math.ceil((s["computed"] + tokens) / self.p.block_size) - len(s["blocks"])
        if needed > len(self.free):
            return False
        for _ in range(needed):
            block = self.pop_block()
            block[1] = 1
            s["blocks"].append(block)
        return True

    def compute(self, s, tokens):
        """More tokens are in memory; full blocks get names."""
        size = self.p.block_size
        first = s["computed"] // size
        s["computed"] += tokens
        names = [*s["names"]]
        names += [(s["key"], k) for k in range(len(names), s["computed"] // size)]
        for k in range(first, s["computed"] // size):
            block = s["blocks"][k]
            s_copies = k > 0 and self.cache.get(names[k - 1]) is not s["blocks"][k - 1]
            if names[k] in self.cache or s_copies:
                block[0] = ("copy", s["key"], k)
            else:
                block[0] = names[k]
                self.cache[names[k]] = block

    def schedule(self):  # noqa: C901, PLR0912, PLR0915  # in one piece, to be compared with a description
        """Make a step."""
        budget, work, lost = self.p.max_num_batched_tokens, [], False
        for s in [*self.run]:
            if s not in self.run:
                continue
            fresh = s["tokens"] + s["done"] - s["computed"]
            prefilling = s["computed"] < s["prompt_end"]
            piece = 1 if not prefilling else min(fresh, budget)
            if piece == 0:
                continue
            while not self.grow(s, piece):
                victim = max(self.run, key=lambda one: one["order"])
                lost = True
                self.preempted += 1
                self.run.remove(victim)
                dropped = [w for w in work if w[0] is victim]
                work = [w for w in work if w[0] is not victim]
                budget += sum(w[1] for w in dropped)
                self.let_go(victim)
                if victim["key"] not in self.gone:
                    self.waiting.append(victim)
                if victim is s:
                    break
            else:
                work.append((s, piece, prefilling))
                budget -= piece
                if prefilling:
                    self.compute(s, piece)
                    s["ahead"] = piece
        self.waiting.sort(key=lambda one: one["order"])
        while not lost and budget > 0 and self.waiting and len(self.run) < self.p.max_num_seqs:
            s = self.waiting[0]
            length = s["tokens"] + s["done"]
            size = self.p.block_size
            found = []
            names = s["names"] + [(s["key"], k) for k in range(len(s["names"]), length // size)]
            for name in names[: (length - 1) // size]:
                if name not in self.cache:
                    break
                found.append(self.cache[name])
            needed = math.ceil(length / size) - len(found)
            if needed > len(self.free) - sum(b[1] == 0 for b in found):
                break
            self.waiting.pop(0)
            for block in found:
                if block[1] == 0:
                    self.free = [b for b in self.free if b is not block]
                block[1] += 1
            s["blocks"], s["computed"] = found, len(found) * size
            s.setdefault("cached", s["computed"])
            s.setdefault("began", self.time)
            s["prompt_end"] = length
            self.run.append(s)
            piece = min(length - s["computed"], budget)
            assert self.grow(s, piece)
            work.append((s, piece, True))
            budget -= piece
            self.check_step(work)
            # what is scheduled can be shared by the next one already
            self.compute(s, piece)
            s["ahead"] = piece
        self.check_step(work)
        decoding = [s for s, _, prefilling in work if not prefilling]
        pieces = [(s, piece) for s, piece, prefilling in work if prefilling]
        context = sum(s["computed"] + 1 for s in decoding)
        pairs = 0
        for s, piece in pieces:
            start = s["computed"] - s.get("ahead", 0)
            pairs += sum(start + k + 1 for k in range(piece))
        seconds = self.p.step_seconds(
            decoding=len(decoding),
            context_tokens=context,
            prefill_tokens=sum(piece for _, piece in pieces),
            prefills=len(pieces),
            prefill_pairs=pairs,
        )
        self.plan = (self.time + seconds, work)

    def check_step(self, work):
        """Limits hold."""
        assert len(self.run) <= self.p.max_num_seqs
        assert sum(piece for _, piece, _ in work) <= self.p.max_num_batched_tokens
        held = {id(block) for s in self.run for block in s["blocks"]}
        assert len(held) + len(self.free) == self.p.kv_blocks

    def finish_step(self, end, work, events):
        """The step is over."""
        self.time, self.plan = end, None
        assert work, "a step without work"
        for s, piece, _ in work:
            ahead = s.pop("ahead", 0)
            self.compute(s, piece - ahead)
            if s["computed"] < s["prompt_end"]:
                continue
            s["done"] += 1
            kinds = ["first"] if s["done"] == 1 else []
            kinds += ["reached"] if s["done"] in s["watch"] else []
            kinds += ["finished"] if s["done"] == s["target"] else []
            if s["key"] not in self.gone:
                events += [(end, k, s["key"], s["done"], s["cached"], s["began"]) for k in kinds]
            if s["done"] == s["target"]:
                self.run.remove(s)
                self.let_go(s)


HEADS = [(), (7,), (7, 8), (7, 8, 9), (5, 6), (7, 3, 2, 1)]

calls = st.tuples(
    st.just("add"),
    st.sampled_from(HEADS),
    st.integers(0, 3),
    st.one_of(st.integers(1, 12), st.just(12)),
    st.integers(0, 2),
    st.sets(st.integers(1, 12), max_size=2),
)
actions = st.one_of(
    calls,
    calls,
    calls,
    st.tuples(st.just("wait"), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.integers(30, 600)),
    st.tuples(st.just("next")),
    st.tuples(st.just("advance")),
    st.tuples(st.just("abort"), st.integers(0, 30)),
)
profiles = st.builds(
    profile,
    max_num_seqs=st.integers(1, 5),
    max_num_batched_tokens=st.integers(5, 20),
    kv_tokens=st.sampled_from([32, 32, 36, 40, 48, 256]),
    policy=st.sampled_from(["priority", "fcfs"]),
    latency_s=st.sampled_from([0.0, 3 * TICK]),
    per_context_token_s=st.sampled_from([0.0, TICK / 64]),
)


def drive(profile, todo, compare):
    """Do the same to both; returns the machine and what was told of it."""
    fast, naive = Batching(profile), Naive(profile)
    now, told, keys = 0.0, [], []
    for action in todo:
        kind = action[0]
        if kind == "add":
            _, head, tail, output, priority, watch = action
            size = profile.block_size
            prompt = len(head) * size + tail
            if prompt == 0:
                prompt = 1
            key = len(keys)
            keys.append(key)
            settings = {"now": now, "output_tokens": output, "priority": priority}
            fast.add(key, prompt, head, **settings, watch=sorted(watch))
            naive.add(key, prompt, head, **settings, watch=sorted(watch))
        elif kind == "abort" and keys:
            key = keys[action[1] % len(keys)]
            while (due := fast.next_event()) is not None and due < now:
                told += compare(fast.advance(due), naive.advance(due))
            fast.abort(key, now=now)
            naive.abort(key, now=now)
        elif kind == "wait":
            now += action[1] * TICK
        elif kind == "next":
            due = fast.next_event()
            now = now if due is None else max(now, due)
        if kind in ("advance", "next"):
            told += compare(fast.advance(now), naive.advance(now))
            invariants(fast, naive)
    while (due := fast.next_event()) is not None:
        now = max(now, due)
        told += compare(fast.advance(now), naive.advance(now))
        invariants(fast, naive)
    return fast, naive, told


def invariants(fast, naive):
    """Both hold the same."""
    running = sum(s["key"] not in naive.gone for s in naive.run)
    assert fast.running == running <= fast.profile.max_num_seqs
    assert fast.waiting == len(naive.waiting) + len(naive.coming)
    assert fast.preempted == naive.preempted
    assert 0 <= fast.kv_used <= fast.profile.kv_tokens


def same(ours, theirs):
    """Equal events."""
    assert [tuple(event) for event in ours] == theirs
    return ours


@given(profiles, st.lists(actions, min_size=5, max_size=60))
def test_a_stretch_is_nothing_but_its_steps(profile, todo):
    """Whatever comes, and whenever, the events are those of one step at a time."""
    fast, naive, told = drive(profile, todo, same)
    note(f"preempted: {bool(fast.preempted)}")
    note(f"cached: {any(event.cached_tokens for event in told)}")
    assert fast.running == fast.waiting == fast.kv_used == 0
    assert naive.advance(math.inf) == []
    assert fast._blocks.free == profile.kv_blocks
    assert not any(fast._blocks._holders.values())


@given(profiles, st.lists(calls, max_size=20), st.lists(st.integers(0, 90)), st.floats(0.7, 1.4))
def test_times_agree_where_they_are_rounded(exact, todo, gaps, factor):
    """With any constants the times are those of one step at a time, to one part in a billion."""
    constants = ("base_s", "per_sequence_s", "per_context_token_s", "per_prefill_token_s")
    rough = attrs.evolve(exact, **{k: getattr(exact, k) * factor / 0.97 for k in constants})
    fast, naive, now = Batching(rough), Naive(rough), 0.0
    for key, (_, head, tail, output, priority, watch) in enumerate(todo):
        now += gaps[key] * TICK if key < len(gaps) else 0
        prompt = max(1, len(head) * rough.block_size + tail)
        for engine in (fast, naive):
            engine.add(
                key, prompt, head,
                now=now, output_tokens=output, priority=priority, watch=sorted(watch),
            )  # fmt: skip
    told = []
    while (due := fast.next_event()) is not None:
        told += fast.advance(due)
    theirs = naive.advance(math.inf)
    assert [event[1:5] for event in told] == [one[1:5] for one in theirs]
    for ours, one in zip(told, theirs, strict=True):
        assert ours.time == pytest.approx(one[0], rel=1e-9)
    assert fast.running == fast.waiting == fast.kv_used == 0
