"""What a scheduler knows of calls and engines: the records that policies decide by.

They are mutable, for counters change in the step that decides, and cheap to copy, for a decision
can be recorded with what it was made on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from alto._sched.estimate import Speed, Template
from alto._sched.queue import Line, OrderKey
from alto.model import EngineCapacity

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("EngineBook", "Ticket", "TicketState", "Work", "rivals")

TicketState: TypeAlias = Literal["waiting", "prefilling", "decoding", "ended"]


@attrs.frozen(kw_only=True)
class Work:
    """A call to be placed: what is known of it before an engine has seen it."""

    template: Hashable
    """Calls of equal template have prompts made alike: a stage and its declared prefix."""
    prompt_tokens: int
    """Length of the prompt."""
    token_ids: Sequence[int] | None = None
    """The prompt, to see what of it an engine holds; None: nobody can tell."""
    prefix_tokens: int = 0
    """Length of the declared prefix, which all calls of the template share."""
    max_tokens: int | None = None
    """Most tokens that it may generate; 0: it is to be embedded; None: no limit."""
    n: int = 1
    """Samples."""
    priority: int = 0
    """Lower goes earlier."""
    arrived: float | None = None
    """When the outermost request began, in seconds; None: now."""
    deadline: float | None = None
    """When it must be done, in seconds; None: never."""
    depth: int = 0
    """How far downstream in its pipeline; of equally old calls the deeper goes first."""
    group: Hashable | None = None
    """Equal for calls that a join waits for together."""
    parent: Hashable | None = None
    """Equal for calls that probably share a long prefix, since one item is above them."""
    salt: int = 0
    """What else must be equal for cached blocks to be shared, such as an adapter."""
    streamed: bool = False
    """Whether its prompt is still being written: until its first token its engine waits for others."""

    def __attrs_post_init__(self) -> None:
        """Refuse numbers that nobody can count with."""
        if self.n < 1 or self.prompt_tokens < 0 or self.prefix_tokens < 0:
            msg = (
                f"a call has at least one sample and no negative lengths, not n={self.n!r}, "
                f"prompt_tokens={self.prompt_tokens!r}, prefix_tokens={self.prefix_tokens!r}"
            )
            raise ValueError(msg)


@attrs.define(eq=False, kw_only=True)
class Ticket:
    """A call in a scheduler's books. Policies read it and change nothing."""

    number: int
    """Unique in its scheduler, in order of submission."""
    work: Work
    prompt_tokens: int
    """Length of the prompt."""
    template: Template
    """What is known of calls like it."""
    expected_output: float
    """Tokens that it will probably generate, all samples together."""
    names: tuple[int, ...] = ()
    """The blocks of its prompt that an index can know, in order."""
    named: bool = False
    """Whether they have been looked for: not before there is an engine."""
    beginning: int | None = None
    """The name of the block 256 tokens behind its declared prefix, or of its last block, if it is not
    within the prefix: calls with the same document have the same."""
    served: int = -1
    """Number of the engine that last served the same beginning; where nobody knows the prompt's
    tokens, that last served a child of the same parent; -1: none."""
    hits: Sequence[int] = ()
    """Tokens that each engine holds of it or soon will, by number of the engine."""
    key: OrderKey = (0.0, 0, 0)
    """Its place in a line; smaller goes first."""
    state: TicketState = "waiting"
    engine: EngineBook | None = None
    """Where it waits, or runs."""
    uncached: int = 0
    """Prompt tokens that its engine was charged for."""
    charged_kv: int = 0
    """KV tokens that its engine was charged for."""
    submitted: float = 0.0
    chosen: float = -1.0
    """When its engine was chosen."""
    dispatched: float = 0.0
    """When it was given to its engine."""
    first: float = 0.0
    """When its first token came."""
    among: int = 0
    """Generations on its engine at that time."""
    queued: float = 0.0
    """Prompt tokens that its engine had to compute when it got this, its own included."""
    version: int = 0
    """Entries of a line with an older one are void."""

    def hit_on(self, engine: EngineBook, /) -> int:
        """Tokens of the prompt that *engine* holds or soon will."""
        return self.hits[engine.index] if engine.index < len(self.hits) else 0

    def own_hit_on(self, engine: EngineBook, /) -> int:
        """The same without the prefix that all calls of the template share."""
        return max(0, self.hit_on(engine) - self.work.prefix_tokens)


@attrs.define(eq=False, kw_only=True)
class EngineBook:
    """An engine in a scheduler's books. Policies read it and change nothing."""

    index: int
    """Its number; numbers of engines that have gone are used again."""
    name: str
    capacity: EngineCapacity
    speed: Speed
    """How fast it is."""
    most: int
    """Generations that it is given at once: as many as run, and a few that are ready to follow."""
    most_prefill: int
    """Prompt tokens that it is given before it has computed earlier ones."""
    alive: bool = True
    outstanding: int = 0
    """Generations that it was given and that have not ended."""
    prefill: int = 0
    """Prompt tokens that it was given, holds no cache of, and has not computed."""
    kv: int = 0
    """KV tokens that its generations will need, together."""
    outputs: float = 0.0
    """Tokens that its generations will probably generate, together."""
    line: Line = attrs.Factory(Line)
    """Calls that wait for it."""
    tickets: dict[Ticket, None] = attrs.Factory(dict)
    """Calls that it was given and that have not ended."""
    shared: dict[Hashable, list[int]] = attrs.Factory(dict)
    """Per beginning: how many of its generations have it, and the KV tokens that they share."""
    streamed: int = 0
    """Calls whose prompts are still being written, as far as is known."""
    heard: float = 0.0
    """When it last said anything."""
    silent: bool = False
    """It has work and has said nothing for too long; it gets no more until it speaks."""

    @property
    def load(self) -> int:
        """Generations that it was given and that wait for it."""
        return self.outstanding + self.line.count

    @property
    def has_room(self) -> bool:
        """Whether it should be given another call now."""
        if not self.alive or self.silent:
            return False
        if self.outstanding >= self.most or self.prefill >= self.most_prefill:
            return False
        limit = self.capacity.kv_tokens
        return limit is None or self.outstanding == 0 or self.kv < limit

    def facts(self) -> Mapping[str, float]:
        """The numbers that policies look at, for a record."""
        return {
            "outstanding": self.outstanding,
            "prefill": self.prefill,
            "kv": self.kv,
            "outputs": self.outputs,
            "line": self.line.count,
            "line_prefill": self.line.prefill,
        }


def rivals(ticket: Ticket, book: EngineBook, engines: Sequence[EngineBook], /) -> list[EngineBook]:
    """Those of *engines* that may be better for *ticket* than *book*, which has room; it is among them.

    One that is full, and holds no more of the prompt, would be later.
    """
    hits, known, own = ticket.hits, len(ticket.hits), ticket.hit_on(book)
    return [
        e
        for e in engines
        if e is book
        or (e.outstanding < e.most and e.has_room)
        or (e.index < known and hits[e.index] > own)
    ]
