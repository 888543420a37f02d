"""Small loads by which the constants of an engine are told apart, and the fit to what they took.

Most trials are a few calls at once. Two times are taken of them: until the last first token, which
prompts decide, and from there to the end, which decoding does. In the others, *flows*, calls come one by
one while others decode, as they do in use: each of a few lanes asks for the next as soon as it has the
last, and the whole is timed. What a profile would take is asked of the simulated engine itself,
`Batching`. Lengths of prompts vary around those of a trial, as they do in use, for an engine on a CPU
takes longer where it has not met a number of tokens lately. Which step does what hardly depends on the constants, and for
given steps times are linear in them. So Gauss and Newton's method, with a least squares that gives no
negative constants, is there after a few rounds.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import islice

import attrs
import numpy as np
from numpy.typing import NDArray

from alto.engines._simulated.batching import Batching
from alto.engines.profiles import EngineProfile

__all__ = ("CONSTANTS", "Fit", "Trial", "fit", "nonnegative", "predict", "trials_for")

CONSTANTS = (
    "base_s",
    "per_sequence_s",
    "per_context_token_s",
    "per_prefill_token_s",
    "per_prefill_step_s",
    "per_prefill_s",
    "per_prefill_pair_s",
    "latency_s",
)
"""What is fitted, by its name in the profile."""

ROUNDS = 8
SMALL = 1e-12
VARIED = 0.25
"""Part by which prompts are shorter or longer than a trial says."""


@attrs.frozen(kw_only=True)
class Trial:
    """Calls with nothing in common: all at once, or one after the other in each of a few lanes."""

    calls: int
    """How many at once."""
    prompt_tokens: int
    output_tokens: int
    rounds: int = 1
    """Calls of a lane. Where there are several the first are of different lengths, so that the lanes
    do not go in step."""

    @property
    def name(self) -> str:
        """In a few words."""
        flow = f"{self.rounds} x " if self.rounds > 1 else ""
        return f"{flow}{self.calls} x {self.prompt_tokens} + {self.output_tokens}"

    def prompts(self, lane: int) -> tuple[int, ...]:
        """The length of each prompt of a lane, the same every time: near what the trial says."""
        by = int(VARIED * self.prompt_tokens)
        luck = random.Random(f"{self.name} {lane}")
        return tuple(self.prompt_tokens + luck.randint(-by, by) for _ in range(self.rounds))

    def outputs(self, lane: int) -> tuple[int, ...]:
        """How much each call of a lane asks for."""
        if self.rounds == 1:
            return (self.output_tokens,)
        first = max(1, self.output_tokens * (lane + 1) // self.calls)
        return (first, *(self.output_tokens,) * (self.rounds - 1))


@attrs.frozen(kw_only=True)
class Fit:
    """A profile, and how well it says what was measured."""

    profile: EngineProfile
    residuals: Mapping[str, tuple[float, ...]]
    """Relative error of the predicted times, by trial: to the last first token, and after it, or of
    all that a flow took."""


def trials_for(max_num_seqs: int, max_model_len: int) -> tuple[Trial, ...]:
    """Trials that tell the constants apart on an engine with these limits."""
    outputs = min(32, max_model_len // 8)
    batches = sorted({min(n, max_num_seqs) for n in (1, 4, 16, 64)})
    decoding = [Trial(calls=n, prompt_tokens=16, output_tokens=outputs) for n in batches]
    room = int((max_model_len - outputs) / (1 + VARIED))
    context = [
        Trial(calls=min(n, max_num_seqs), prompt_tokens=min(length, room), output_tokens=outputs)
        for n, length in ((8, 768), (32, 384))
    ]
    prompts = [
        Trial(calls=1, prompt_tokens=min(length, room), output_tokens=1)
        for length in (16, 256, 768, 1600)
    ]
    bursts = [
        Trial(calls=min(n, max_num_seqs), prompt_tokens=min(length, room), output_tokens=1)
        for n, length in ((4, 256), (48, 16))
    ]
    flows = [
        Trial(
            calls=min(n, max_num_seqs), prompt_tokens=min(length, room), output_tokens=outputs,
            rounds=6,
        )
        for n, length in ((2, 32), (6, 128), (24, 64), (24, 256))
    ]  # fmt: skip
    return tuple(dict.fromkeys((*decoding, *context, *prompts, *bursts, *flows)))


def predict(profile: EngineProfile, trial: Trial) -> tuple[float, float]:
    """Seconds to the last first token, and from there to the end; of a flow all, and 0."""
    engine = Batching(profile)
    lanes = [
        iter(list(zip(trial.prompts(lane), trial.outputs(lane), strict=True)))
        for lane in range(trial.calls)
    ]

    def ask(lane: int, now: float) -> None:
        for prompt, output in islice(lanes[lane], 1):
            engine.add(lane, prompt, (), now=now, output_tokens=output)

    for lane in range(trial.calls):
        ask(lane, 0.0)
    first = end = 0.0
    while (due := engine.next_event()) is not None:
        for event in engine.advance(due):
            if event.kind == "first":
                first = event.time
            elif event.kind == "finished":
                end = event.time
                ask(event.key, end)  # type: ignore[arg-type]  # keys are lanes
    return (first, end - first) if trial.rounds == 1 else (end, 0.0)


def nonnegative(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector without negative numbers for which *matrix* times it is nearest to *target*.

    Source: Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    width = matrix.shape[1]
    free = np.zeros(width, dtype=bool)
    answer = np.zeros(width)
    for _ in range(10 * width):
        gradient = matrix.T @ (target - matrix @ answer)
        gradient[free] = -np.inf
        if free.all() or gradient.max() <= SMALL * np.abs(matrix).sum():
            return answer
        free[int(gradient.argmax())] = True
        while True:
            trial = np.zeros(width)
            trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            if trial[free].min() > 0:
                break
            bad = free & (trial <= 0)
            steps = answer[bad] / np.maximum(answer[bad] - trial[bad], SMALL)
            answer = answer + steps.min() * (trial - answer)
            free &= answer > SMALL * max(1.0, float(np.abs(answer).max()))
            if not free.any():
                break
        answer = np.where(free, trial, 0.0)
    return answer


def fit(start: EngineProfile, measured: Mapping[Trial, Sequence[float]]) -> Fit:
    """The constants under which a simulated engine takes the times that were measured.

    Args:
        start: Has the limits; its constants are where the search begins.
        measured: Seconds to the last first token, and from there to the end, for each trial. Each
            counts by its relative error; the second is ignored where there is no decoding.
    """
    profile = start
    for _ in range(ROUNDS):
        matrix, target = _linear(profile, measured)
        scale = np.maximum(np.abs(matrix).max(axis=0), SMALL)
        answer = nonnegative(matrix / scale, target) / scale
        values = {name: float(x) for name, x in zip(CONSTANTS, answer, strict=True)}
        values["base_s"] = max(values["base_s"], 1e-9)  # a step takes time
        old = np.array([getattr(profile, name) for name in CONSTANTS])
        profile = attrs.evolve(profile, **values)
        if np.allclose(old, list(values.values()), rtol=1e-9, atol=1e-15):
            break
    residuals = {
        trial.name: tuple(
            float(ours / theirs - 1)
            for ours, theirs, counts in _compared(profile, trial, times)
            if counts
        )
        for trial, times in measured.items()
    }
    return Fit(profile=profile, residuals=residuals)


def _compared(
    profile: EngineProfile, trial: Trial, times: Sequence[float]
) -> list[tuple[float, float, bool]]:
    ours = predict(profile, trial)
    return [
        (ours[0], times[0], True),
        (ours[1], times[1], trial.output_tokens > 1 and times[1] > 0),
    ]


def _linear(
    profile: EngineProfile, measured: Mapping[Trial, Sequence[float]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows of the linear problem around *profile*, each divided by what was measured."""
    rows, target = [], []
    for trial, times in measured.items():
        now = _compared(profile, trial, times)
        slopes = []
        for name in CONSTANTS:
            value = getattr(profile, name)
            step = max(1e-4 * value, 1e-9)  # too small to change which step does what
            moved = _compared(attrs.evolve(profile, **{name: value + step}), trial, times)
            slopes.append([(b[0] - a[0]) / step for a, b in zip(now, moved, strict=True)])
        for index, (_, theirs, counts) in enumerate(now):
            if counts:
                rows.append([slope[index] / theirs for slope in slopes])
                target.append(1.0)
    return np.array(rows), np.array(target)
