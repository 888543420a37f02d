"""What streaming should give: a model of a page, without a simulator.

Steps of an engine are the unit. A producer writes a token a step; a call of the consumer begins when
its last piece is written, and writes a token a step too. So the *overlap*, the part of the
consumer's time that is over when the producer ends, follows from lengths and sizes of calls alone, and so
does the number of steps *K* from the beginning of a request to its end.

How long a step takes is a matter of load: *base* seconds, and the work of all who are on the engine. A
request brings *W* seconds of work: for each token that it writes, each that its prompts compute, each that
it attends to. With *N* requests on an engine beside it its latency is

    T = K * base + N * W + own

where *N* is given where clients wait for their answers, and ``rate * T`` per engine, by Little's law,
where requests come by chance. *own* is the work of the request itself, of which the heads of calls
more are on its own engine by chance only. To stream lowers *K* and, by these heads, raises *W*; it
pays where it lowers T.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from alto._text.coalescing import CallCost
from alto.engines.profiles import EngineProfile
from bench._gain.shapes import QUESTION_TOKENS, Mode, Plan, Shape

ROUNDS = 60
"""Of the fixed point of load and latency; it moves by a third of the way each time."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A pipeline on a pool."""

    shape: Shape
    profile: EngineProfile
    engines: int
    cached: bool
    """Whether engines have a prefix cache."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a mode should come to at a load."""

    latency: float | None
    """Mean seconds of a request; None: more and more, for the pool cannot do what comes."""
    overlap: float
    """Part of the consumer's time before the producer ends."""
    calls: float
    """Of the consumer, per request."""
    generations: float
    """On an engine."""


@dataclass(frozen=True, slots=True)
class _Request:
    steps: float
    work: float
    tokens: float
    calls: float
    early: float
    busy: float


def computed(setting: Setting, head: int) -> int:
    """Tokens of a head that a prompt computes: what is not in a whole block that is cached."""
    return head % setting.profile.block_size if setting.cached else head


def call_tokens(profile: EngineProfile) -> float:
    """Prompt tokens that are computed in the time that a call takes beside its prompt's."""
    seconds = profile.per_prefill_step_s + profile.per_prefill_s
    return seconds / profile.per_prefill_token_s


def capacity(setting: Setting, requests: Sequence[Plan]) -> float:
    """Requests per second that a pool could do without streaming, if steps cost nothing but work."""
    each = [_request(setting, plan, _ready("waiting")) for plan in requests]
    return setting.engines / statistics.mean(request.work for request in each)


def predict(
    setting: Setting, requests: Sequence[Plan], mode: Mode, *,
    clients: int | None = None, rate: float = 0.0,
) -> Predicted:  # fmt: skip
    """What *mode* should come to, with so many clients or requests per second."""
    generations, latency, work = 0.0, 0.0, 0.0
    each: list[_Request] = []
    least = statistics.mean(_request(setting, p, _ready("waiting")).work for p in requests)
    size = _coarsening(setting)
    for _ in range(ROUNDS):
        met = max(0.0, generations - 0.5)  # on the engine that has the fewest
        each = [_request(setting, plan, _ready(mode, size, met)) for plan in requests]
        steps = statistics.mean(request.steps for request in each)
        work = statistics.mean(request.work for request in each)
        there = (clients or rate * latency) / setting.engines
        others = there - 1 / setting.engines if clients else there
        own = least + (work - least) / setting.engines
        seconds = steps * setting.profile.base_s + others * work + own
        seconds += 2 * setting.profile.latency_s  # of the producer's call, and of the last one
        latency += (seconds - latency) / 3 if latency else seconds
        generations = there * statistics.mean(request.tokens for request in each) / steps
    return Predicted(
        latency=latency if rate * work < setting.engines else None,
        overlap=sum(request.early for request in each) / sum(request.busy for request in each),
        calls=statistics.mean(request.calls for request in each),
        generations=generations,
    )


def _coarsening(setting: Setting) -> CallCost:
    """The rule, knowing what calls cost; it counts tokens of pieces, where alto counts characters."""
    shape, profile = setting.shape, setting.profile
    return CallCost(
        uncached=computed(setting, shape.consumer_head) + 1,
        output=shape.output / shape.tokens,
        step_tokens=profile.base_s / profile.per_prefill_token_s,
        call_tokens=call_tokens(profile),
    )


def _ready(
    mode: Mode, size: CallCost | None = None, met: float = 0.0
) -> Callable[[int, int], bool]:
    if mode == "adaptive":
        assert size is not None
        return lambda held, given: size.is_worth_it(held, given, met)
    return lambda *_: mode == "pieces"


def _calls(plan: Plan, ready: Callable[[int, int], bool]) -> Iterator[tuple[int, int, int]]:
    """Of each call: when it begins, tokens of its pieces, tokens that it writes."""
    begin = held = written = 0
    last = len(plan.tokens) - 1
    for number, (tokens, output) in enumerate(zip(plan.tokens, plan.outputs, strict=True)):
        begin += tokens
        held += tokens
        written += output
        if number == last or ready(held, begin - held):
            yield begin, held, written
            held = written = 0


def _request(setting: Setting, plan: Plan, ready: Callable[[int, int], bool]) -> _Request:
    shape, profile = setting.shape, setting.profile
    text, output = sum(plan.tokens), sum(plan.outputs)
    prompt = shape.head + QUESTION_TOKENS + 1
    prefill = computed(setting, shape.head) + QUESTION_TOKENS + 1
    context = text * (prompt + text / 2)
    steps = early = calls = 0
    for begin, held, written in _calls(plan, ready):
        calls += 1
        steps = max(steps, begin + written)
        early += min(text - begin, written)
        prefill += computed(setting, shape.consumer_head) + held + 1
        context += written * (shape.consumer_head + held + 1 + written / 2)
    work = (
        profile.per_sequence_s * (text + output)
        + profile.per_prefill_token_s * (prefill + call_tokens(profile) * (1 + calls))
        + profile.per_context_token_s * context
    )
    return _Request(steps, work, text + output, calls, early, output)
