from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alto._sched.affinity import Affinity
from alto._sched.estimate import Average, Speed, Template

NUMBERS = st.floats(-1e6, 1e6)


class TestAverage:
    """A mean that forgets."""

    @given(st.lists(NUMBERS, min_size=1, max_size=20))
    def test_it_is_exact_within_its_window(self, values):
        """Up to the window it is the mean of all."""
        average = Average(window=20)
        for value in values:
            average.add(value)
        assert average.mean == pytest.approx(sum(values) / len(values), abs=1e-6)
        assert average.count == len(values)

    def test_it_forgets(self):
        """After a few windows the old level is gone."""
        average = Average(window=10)
        for value in [0.0] * 100 + [1.0] * 60:
            average.add(value)
        assert average.mean > 0.99


class TestTemplate:
    """What calls of one kind will probably generate."""

    @pytest.mark.parametrize(("limit", "expected"), [(None, 128.0), (1000, 128.0), (40, 20.0)])
    def test_a_new_template_is_guessed(self, limit, expected):
        """Half of what it may generate, at most 128 tokens."""
        assert Template("t").expected_output(limit) == expected

    def test_what_was_seen_replaces_the_guess(self):
        """The guess weighs as much as two calls, and no estimate is above the limit."""
        template = Template("t")
        for _ in range(6):
            template.output.add(10)
        assert template.expected_output(None) == pytest.approx((2 * 128 + 6 * 10) / 8)
        for _ in range(1000):
            template.output.add(50)
        assert template.expected_output(None) == pytest.approx(50, rel=0.02)
        assert template.expected_output(30) == 30.0


class TestSpeed:
    """How fast engines are."""

    def test_a_priori_it_is_what_it_was_told(self):
        """Before anything was seen the priors hold."""
        speed = Speed(prefill=1e-4, base=0.02, per_sequence=1e-4)
        assert speed.step(10) == pytest.approx(0.021)
        assert speed.prefill == 1e-4

    @settings(max_examples=20)
    @given(
        st.floats(0.001, 0.1), st.floats(1e-5, 1e-3), st.floats(1e-6, 1e-3), st.integers(0, 1000)
    )
    def test_it_finds_the_constants_of_an_engine(self, base, each, prefill, seed):
        """After some hundred calls it predicts the engine's steps and prefill within a few percent."""
        rnd, speed = random.Random(seed), Speed()
        for _ in range(1500):
            n = rnd.randint(1, 100)
            speed.saw_decode(n, 50, 50 * (base + each * n))
        for _ in range(600):
            tokens, n = rnd.randint(200, 2000), rnd.randint(1, 100)
            speed.saw_prefill(tokens, 1, n, prefill * tokens + base + each * n)
        for n in (1, 50, 100):
            assert speed.step(n) == pytest.approx(base + each * n, rel=0.1, abs=2e-5)
        slack = 0.15 * (base + 100 * each) / 200  # a step's error, spread over the fewest tokens
        assert speed.prefill == pytest.approx(prefill, rel=0.15, abs=slack)

    def test_nonsense_is_left_out(self):
        """No tokens and no time tell nothing."""
        speed = Speed()
        before = (speed.base, speed.per_sequence, speed.prefill)
        speed.saw_decode(5, 0, 1.0)
        speed.saw_decode(5, 10, 0.0)
        speed.saw_prefill(0, 1, 1, 1.0)
        speed.saw_prefill(10, 1, 1, -1.0)
        assert (speed.base, speed.per_sequence, speed.prefill) == before

    def test_nothing_becomes_negative(self):
        """Steps that get shorter with more generations are taken to be equal."""
        speed = Speed()
        for k in range(500):
            n = 1 + k % 50
            speed.saw_decode(n, 20, 20 * (0.05 - 0.0005 * n))
            speed.saw_prefill(100, 10, n, 1e-6)
        assert speed.base > 0
        assert speed.per_sequence >= 0
        assert speed.prefill > 0


class TestAffinity:
    """The engines that a template prefers."""

    def _work(self, affinity, shares, engines=8):
        for engine in range(engines):
            for template, seconds in shares.items():
                affinity.add_work(template, engine, 0.0, seconds * (1 + 0.01 * engine))

    def test_preferred_engines_follow_the_work(self):
        """A template gets engines in proportion to its work, and at least one."""
        affinity, a, b, c = Affinity(), Template("a"), Template("b"), Template("c")
        self._work(affinity, {a: 3.0, b: 1.0, c: 0.001})
        affinity.update()
        assert [len(t.preferred) for t in (a, b, c)] == [6, 2, 1]

    def test_they_do_not_swing(self):
        """A share that moves by less than three quarters of an engine changes nothing."""
        affinity, a, b = Affinity(), Template("a"), Template("b")
        self._work(affinity, {a: 1.0, b: 1.0})
        affinity.update()
        before = (a.preferred, b.preferred)
        for share in (1.25, 0.85, 1.1):
            self._work(affinity, {a: share, b: 2 - share})
            affinity.update()
            assert (a.preferred, b.preferred) == before

    def test_they_move_when_the_load_does(self):
        """When a template takes over, so do its engines, keeping those it has."""
        affinity, a, b = Affinity(), Template("a"), Template("b")
        self._work(affinity, {a: 1.0, b: 1.0})
        affinity.update()
        old = set(a.preferred)
        for _ in range(60):
            self._work(affinity, {a: 1.99, b: 0.01})
            affinity.update()
        assert (len(a.preferred), len(b.preferred)) == (8, 1)
        assert old <= set(a.preferred)

    def test_an_engine_that_goes_is_not_preferred(self):
        """A lost engine is forgotten, and an idle template after a while too."""
        affinity, a, b = Affinity(), Template("a"), Template("b")
        self._work(affinity, {a: 1.0, b: 1.0}, engines=2)
        affinity.update()
        lost = a.preferred[0]
        affinity.forget(lost, (a, b))
        assert lost not in a.preferred
        for _ in range(200):
            affinity.add_work(b, 1, 0.0, 1.0)
            affinity.update()
        assert a.preferred == ()
        assert a.work == {}

    def test_counting_is_due_every_few_seconds(self):
        """Work is counted when it is told, once per period."""
        affinity, a = Affinity(), Template("a")
        affinity.add_work(a, 0, 1.0, 1.0)
        assert a.preferred == ()
        affinity.add_work(a, 0, 6.0, 1.0)
        assert a.preferred == (0,)
