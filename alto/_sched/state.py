"""State of calls and engines as a scheduler sees them: the records that policies decide by.

The records are mutable, since counters change in the step that decides, and cheap to copy, since a
decision can be recorded with the state that it was made on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, TypeAlias

import attrs

from alto._sched.estimate import Speed, Template
from alto._sched.queue import OrderKey, WaitQueue
from alto.model import EngineCapacity

__all__ = ("CallInfo", "EngineLoad", "Ticket", "TicketState", "candidates")

TicketState: TypeAlias = Literal["waiting", "prefilling", "decoding", "ended"]


@attrs.frozen(kw_only=True)
class CallInfo:
    """A call to be placed, as known before an engine has seen it."""

    template: Hashable
    """Calls of equal template have similar prompts: a stage and its declared prefix."""
    prompt_tokens: int
    """Length of the prompt."""
    token_ids: Sequence[int] | None = None
    """The prompt, to find out how much of it an engine holds; None: not known."""
    prefix_tokens: int = 0
    """Length of the declared prefix, which all calls of the template share."""
    max_tokens: int | None = None
    """Most tokens that it may generate; 0: it is to be embedded; None: no limit."""
    n: int = 1
    """Number of samples."""
    priority: int = 0
    """Lower goes earlier."""
    arrived: float | None = None
    """Time at which the outermost request began, in seconds; None: now."""
    deadline: float | None = None
    """Time by which it must end, in seconds; None: no limit."""
    depth: int = 0
    """Position of its stage downstream in the pipeline; of equally old calls the deeper goes first."""
    group: Hashable | None = None
    """Equal for calls that a join waits for together."""
    parent: Hashable | None = None
    """Equal for calls that probably share a long prefix, since one item is above them."""
    salt: int = 0
    """Stands for all else that must be equal to share cached blocks, such as an adapter."""
    streamed: bool = False
    """True if its prompt is still being written. Until its first token, its engine waits for input."""

    def __attrs_post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: There is no sample, or a length is negative.
        """
        if self.n < 1 or self.prompt_tokens < 0 or self.prefix_tokens < 0:
            msg = (
                f"a call has at least one sample and no negative lengths, not n={self.n!r}, "
                f"prompt_tokens={self.prompt_tokens!r}, prefix_tokens={self.prefix_tokens!r}"
            )
            raise ValueError(msg)


@attrs.define(eq=False, kw_only=True)
class Ticket:
    """A call in a scheduler. Policies read it and change nothing."""

    number: int
    """Unique in its scheduler, in order of submission."""
    info: CallInfo
    """The call as it was submitted."""
    prompt_tokens: int
    """Length of the prompt."""
    template: Template
    """Estimates from earlier calls of its template."""
    expected_output: float
    """Tokens that it will probably generate, all samples together."""
    names: tuple[int, ...] = ()
    """The blocks of its prompt that an index can know, in order."""
    named: bool = False
    """True once the blocks were named, which needs an engine."""
    beginning: int | None = None
    """The name of the block 256 tokens behind its declared prefix, or of its last block, if it is not
    within the prefix: calls with the same document have the same."""
    served: int = -1
    """Number of the engine that last served the same beginning; where the prompt's tokens are not
    known, that last served a child of the same parent; -1: none."""
    hits: Sequence[int] = ()
    """Tokens of it that each engine holds or soon will, by number of the engine."""
    key: OrderKey = (0.0, 0, 0)
    """Its place in a queue; smaller goes first."""
    state: TicketState = "waiting"
    engine: EngineLoad | None = None
    """The engine where it waits or runs."""
    uncached: int = 0
    """Prompt tokens that its engine was charged for."""
    charged_kv: int = 0
    """KV tokens that its engine was charged for."""
    submitted: float = 0.0
    """Time of its submission, in seconds."""
    chosen: float = -1.0
    """Time at which its engine was chosen."""
    dispatched: float = 0.0
    """Time at which it was passed to its engine."""
    first: float = 0.0
    """Time of its first token."""
    among: int = 0
    """Generations on its engine at that time."""
    queued: float = 0.0
    """Prompt tokens that its engine had to compute when it got this call, its own included."""
    version: int = 0
    """Entries of a queue with an older version are void."""

    def hit_on(self, engine: EngineLoad, /) -> int:
        """Return the tokens of the prompt that *engine* holds or soon will."""
        return self.hits[engine.index] if engine.index < len(self.hits) else 0

    def own_hit_on(self, engine: EngineLoad, /) -> int:
        """Return `hit_on` less the declared prefix, which all calls of the template share."""
        return max(0, self.hit_on(engine) - self.info.prefix_tokens)


@attrs.define(eq=False, kw_only=True)
class EngineLoad:
    """An engine in a scheduler: its limits, its load and its queue. Policies read it only."""

    index: int
    """Its number; numbers of removed engines are used again."""
    name: str
    """Its name, as in statistics."""
    capacity: EngineCapacity
    """Its limits."""
    speed: Speed
    """Its measured speed."""
    max_outstanding: int
    """Most generations that it gets at once: as many as run, and a few that are ready to follow."""
    max_prefill: int
    """Most prompt tokens that it gets before it has computed earlier ones."""
    alive: bool = True
    """False once it was removed."""
    outstanding: int = 0
    """Generations that it was given and that have not ended."""
    prefill: int = 0
    """Prompt tokens that it was given, does not hold in its cache, and has not computed."""
    kv: int = 0
    """KV tokens that its generations will need, together."""
    outputs: float = 0.0
    """Tokens that its generations will probably generate, together."""
    queue: WaitQueue = attrs.Factory(WaitQueue)
    """Calls that wait for it."""
    tickets: dict[Ticket, None] = attrs.Factory(dict)
    """Calls that it was given and that have not ended."""
    shared: dict[Hashable, list[int]] = attrs.Factory(dict)
    """Per beginning: the number of its generations that have it, and the KV tokens that they share."""
    streamed: int = 0
    """Calls that it was given whose prompts may still be being written."""
    heard: float = 0.0
    """Time of its last sign of life, in seconds."""
    silent: bool = False
    """True if it has work and gave no sign of life for too long. It gets no new calls until it does."""

    @property
    def load(self) -> int:
        """Generations that it was given or that wait for it."""
        return self.outstanding + self.queue.count

    @property
    def has_room(self) -> bool:
        """True if it should get another call now."""
        if not self.alive or self.silent:
            return False
        if self.outstanding >= self.max_outstanding or self.prefill >= self.max_prefill:
            return False
        limit = self.capacity.kv_tokens
        return limit is None or self.outstanding == 0 or self.kv < limit


def candidates(
    ticket: Ticket, own: EngineLoad, engines: Sequence[EngineLoad], /
) -> list[EngineLoad]:
    """Return the engines that may be better for *ticket* than *own*, which has room, and *own*.

    An engine that is full and holds no more of the prompt than *own* would be later, so it is left
    out.
    """
    hits, known, hit = ticket.hits, len(ticket.hits), ticket.hit_on(own)
    return [
        e
        for e in engines
        if e is own
        or (e.outstanding < e.max_outstanding and e.has_room)
        or (e.index < known and hits[e.index] > hit)
    ]
