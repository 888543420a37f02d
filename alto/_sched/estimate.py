"""Estimates from earlier calls, which the placement of the next one needs.

Every estimate is an average that forgets, since loads change. Three things are estimated: for each
*template* (a stage and its declared prefix) how long its prompts and outputs are; for the pool how
fast its engines prefill and decode; for each template how much of the pool's time it takes, which
decides how many engines it prefers.
"""

from __future__ import annotations

__all__ = ("Average", "Speed", "Template")


class Average:
    """A mean over about the last *window* values; exact while there are fewer.

    Args:
        window: Values that count, >= 1.
    """

    __slots__ = ("count", "mean", "window")

    def __init__(self, window: int = 200) -> None:
        self.window: int = window
        self.count: int = 0
        self.mean: float = 0.0

    def add(self, value: float, /) -> None:
        """Update the mean with *value*."""
        self.count += 1
        self.mean += (value - self.mean) / min(self.count, self.window)

    def __repr__(self) -> str:
        return f"Average({self.mean:g} of {self.count})"


class Template:
    """Estimates for the calls of one stage with one declared prefix.

    Attributes:
        prompt: Tokens of a prompt.
        uncached: Tokens of a prompt that the engine had to compute.
        output: Tokens generated per sample.
        service: Seconds on an engine.
        preferred: Numbers of the engines that its calls prefer, the most used first.
    """

    __slots__ = ("key", "output", "preferred", "prompt", "service", "uncached", "work")

    def __init__(self, key: object, /) -> None:
        self.key: object = key
        self.prompt: Average = Average()
        self.uncached: Average = Average()
        self.output: Average = Average()
        self.service: Average = Average()
        self.preferred: tuple[int, ...] = ()
        self.work: dict[int, float] = {}
        """Seconds of work per engine of the last minute or so, decayed."""

    def expected_output(self, max_tokens: int | None, /) -> float:
        """Return the tokens per sample that a call will probably generate.

        A new template is assumed to use half of its limit, and at most 128; that guess has the
        weight of two calls. Guesses, moving averages and the truth lead to placements that differ
        by less than 1 % (a study with 128 slots per engine).
        """
        guess = 128.0 if max_tokens is None else min(128.0, max_tokens / 2)
        seen = self.output
        expected = (2 * guess + seen.count * seen.mean) / (2 + seen.count)
        return expected if max_tokens is None else min(expected, float(max_tokens))


class Speed:
    """Speed of the engines of a pool, estimated from the times that calls took.

    A step with *n* generations in it takes ``base + per_sequence * n`` seconds, and ``prefill``
    seconds more for each prompt token that is computed in it. ``base`` and ``per_sequence`` are fitted by least
    squares over about the last 300 generations, ``prefill`` is a ratio of sums.

    Args:
        prefill: Seconds per prompt token, before the first observation.
        base: Seconds per step, before the first observation.
        per_sequence: Seconds per step and generation, before the first observation.
    """

    __slots__ = ("_fresh", "_n", "_nn", "_s", "_sn", "_time", "_tokens", "_w", "base",
                 "per_sequence", "prefill")  # fmt: skip

    _KEEP = 1 - 1 / 300

    def __init__(
        self, prefill: float = 4e-5, base: float = 1e-2, per_sequence: float = 5e-5
    ) -> None:
        self.prefill: float = prefill
        self.base: float = base
        self.per_sequence: float = per_sequence
        # The priors count as a few observations: of generations alone and among 64, and of prompts.
        self._w = self._n = self._nn = self._s = self._sn = 0.0
        self._tokens, self._time = 2000.0, 2000.0 * prefill
        self._fresh = 0
        for n in (1.0, 64.0):
            self._add_step(n, base + per_sequence * n, 2.0)

    def step(self, n: float, /) -> float:
        """Return the seconds of a step with *n* generations."""
        return self.base + self.per_sequence * n

    def saw_decode(self, n: float, tokens: int, seconds: float, /) -> None:
        """Learn from a generation: *seconds* for *tokens* after its first, among *n* on average."""
        if tokens < 1 or seconds <= 0:
            return
        keep = self._KEEP
        self._w *= keep
        self._n *= keep
        self._nn *= keep
        self._s *= keep
        self._sn *= keep
        self._add_step(n, seconds / tokens, min(1.0, tokens / 16))
        self._fresh += 1
        if self._fresh >= 8 or self._w < 8:
            self._fresh = 0
            self._fit()

    def saw_prefill(self, tokens: float, steps: float, n: float, seconds: float, /) -> None:
        """Learn from a first token after *seconds*, with *tokens* to compute in *steps* among *n*."""
        if tokens <= 0 or seconds <= 0:
            return
        spent = max(seconds - steps * (self.base + self.per_sequence * n), 0.1 * seconds)
        keep = max(0.0, 1 - tokens / 200_000)
        self._tokens = self._tokens * keep + tokens
        self._time = self._time * keep + spent
        self.prefill = self._time / self._tokens

    def _add_step(self, n: float, seconds: float, weight: float) -> None:
        self._w += weight
        self._n += weight * n
        self._nn += weight * n * n
        self._s += weight * seconds
        self._sn += weight * seconds * n

    def _fit(self) -> None:
        mean_n, mean_s = self._n / self._w, self._s / self._w
        spread = self._nn / self._w - mean_n * mean_n
        if spread > 1:
            slope = (self._sn / self._w - mean_n * mean_s) / spread
            self.per_sequence = min(max(slope, 0.0), mean_s / max(mean_n, 1.0))
        self.base = max(mean_s - self.per_sequence * mean_n, 0.01 * mean_s)
