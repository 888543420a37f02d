"""Accounting of a pool's engines: what each has been given, holds and has done.

A call that was given to an engine is *prefilling* until its first token, then *decoding*. The engine
is charged for the part of the prompt that it must compute until the first token, and for KV memory and
a slot until the end. KV memory of a document that several of its calls share is charged once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import final

from alto._sched.affinity import Affinity
from alto._sched.estimate import Speed, Template
from alto._sched.prefix import PrefixIndex, chain
from alto._sched.state import EngineLoad, Ticket
from alto.model import EngineCapacity

__all__ = ("Accounting",)

_PREFILL_STEPS = 4
"""Budgets of prompt tokens that an engine is given ahead. With one, engines starve (measured)."""
_BEGINNING = 256
"""Tokens after the declared prefix by which documents are distinguished."""
_REMEMBERED = 20_000
"""Beginnings and parents whose last engine is remembered, and templates."""


@final
class Accounting:
    """Counters of engines and calls. It makes no choice."""

    def __init__(self) -> None:
        self.speed: Speed = Speed()
        """Measured speed of the pool's engines."""
        self.templates: dict[Hashable, Template] = {}
        """Estimates, by key of the template."""
        self.affinity: Affinity = Affinity()
        self.engines: list[EngineLoad | None] = []
        """The engines by number; None: the number is free."""
        self._index: PrefixIndex | None = None  # made at the first engine, with its block size
        self._served: OrderedDict[Hashable, int] = OrderedDict()

    def add_engine(self, name: str, capacity: EngineCapacity, now: float, /) -> EngineLoad:
        """Add an engine that holds nothing."""
        for other in self.engines:
            if other is not None and other.capacity == capacity:
                capacity = other.capacity  # one object, so that policies can compare by identity
        slots = capacity.max_num_seqs
        free = [k for k, engine in enumerate(self.engines) if engine is None]
        index = free[0] if free else len(self.engines)
        engine = EngineLoad(
            index=index,
            name=name,
            capacity=capacity,
            speed=self.speed,
            max_outstanding=slots + max(1, min(4, slots // 16)) if slots > 1 else slots,
            max_prefill=_PREFILL_STEPS * capacity.max_num_batched_tokens,
            heard=now,
        )
        if free:
            self.engines[index] = engine
        else:
            self.engines.append(engine)
        if self._index is None:
            self._index = PrefixIndex(capacity.block_size)
        kv, size = capacity.kv_tokens, self._index.block_size
        self._index.add(index, None if kv is None else kv // size)
        return engine

    def remove_engine(self, engine: EngineLoad, /) -> None:
        """Remove an engine. The calls that it was given are taken off one by one later."""
        engine.alive = False
        self.engines[engine.index] = None
        assert self._index is not None
        self._index.remove(engine.index)
        self.affinity.forget(engine.index, self.templates.values())
        for key in [key for key, index in self._served.items() if index == engine.index]:
            del self._served[key]

    def stored(self, engine: EngineLoad, parent: int | None, token_ids: Sequence[int],
               keys: Sequence[int], salt: int = 0, /) -> None:  # fmt: skip
        """Note that *engine* holds more blocks; see :class:`alto.protocols.CacheListener`."""
        if self._is_indexed(engine):
            assert self._index is not None
            self._index.stored(engine.index, parent, token_ids, keys, salt)

    def removed(self, engine: EngineLoad, keys: Sequence[int], /) -> None:
        """Note that *engine* has evicted blocks."""
        if self._is_indexed(engine):
            assert self._index is not None
            self._index.removed(engine.index, keys)

    def cleared(self, engine: EngineLoad, /) -> None:
        """Note that *engine* holds nothing, or that it is no longer known what it holds."""
        if self._is_indexed(engine):
            assert self._index is not None
            self._index.cleared(engine.index)

    def template(self, key: Hashable, /) -> Template:
        """Return the estimates of a template, new ones at its first call."""
        template = self.templates.get(key)
        if template is None:
            if len(self.templates) >= _REMEMBERED:  # a prefix of each request's own makes many
                del self.templates[next(iter(self.templates))]
            template = self.templates[key] = Template(key)
        return template

    def _name_blocks(self, ticket: Ticket, index: PrefixIndex) -> None:
        info = ticket.info
        if info.token_ids is None:
            return
        ticket.names = index.thin(chain(info.token_ids, index.block_size, salt=info.salt))
        skipped = info.prefix_tokens // index.tokens
        if len(ticket.names) > skipped:
            at = (info.prefix_tokens + _BEGINNING) // index.tokens - 1
            ticket.beginning = ticket.names[max(skipped, min(at, len(ticket.names) - 1))]

    def look_up(self, ticket: Ticket, /) -> None:
        """Find out how much of a call's prompt each engine holds, and which served one like it.

        Blocks that the engine to which the call is bound holds, or will hold, for this call alone do
        not count.
        """
        index = self._index
        if index is not None and not ticket.named:
            ticket.named = True
            self._name_blocks(ticket, index)
        if index is not None and ticket.names:
            ticket.hits = index.hits(ticket.names, len(self.engines))
            if ticket.engine is not None and ticket.engine.alive:
                own = ticket.engine.index  # where this call itself is pending
                ticket.hits[own] = index.hit(own, ticket.names)
        served = self._served.get(ticket.beginning, -1) if ticket.beginning is not None else -1
        if served < 0 and not ticket.names and ticket.info.parent is not None:
            served = self._served.get(("parent", ticket.info.parent), -1)
        ticket.served = served

    def bind(self, ticket: Ticket, engine: EngineLoad, /) -> None:
        """Bind *ticket* to *engine*, which counts as holding its prompt from now on."""
        ticket.engine = engine
        if self._index is not None:
            self._index.sent(engine.index, ticket.names)
        self.charge(ticket, engine)

    def charge(self, ticket: Ticket, engine: EngineLoad, /) -> None:
        """Set what *ticket* costs *engine*, to which it is bound, by what :meth:`look_up` found."""
        ticket.uncached = max(1, ticket.prompt_tokens - ticket.hit_on(engine))
        if ticket.served != engine.index:
            if ticket.names:
                self._remember(ticket.beginning, engine.index)
            elif ticket.info.parent is not None:
                self._remember(("parent", ticket.info.parent), engine.index)

    def unbind(self, ticket: Ticket, /) -> None:
        """Unbind *ticket*, which has not started, from its engine."""
        engine, ticket.engine = ticket.engine, None
        if engine is not None and engine.alive:
            self._settle(ticket, engine, computed=False)

    def start(self, ticket: Ticket, engine: EngineLoad, now: float, /) -> None:
        """Charge *engine* for *ticket*, which is bound to it and is given to it now."""
        if engine.outstanding == engine.streamed:
            engine.heard = now  # it had no work, so its silence meant nothing
        ticket.state = "prefilling"
        ticket.dispatched = now
        engine.tickets[ticket] = None
        engine.outstanding += ticket.info.n
        engine.streamed += ticket.info.streamed
        engine.prefill += ticket.uncached
        ticket.queued = engine.prefill
        engine.outputs += ticket.expected_output
        shared, hit = 0, ticket.prompt_tokens - ticket.uncached
        if ticket.beginning is not None:
            entry = engine.shared.get(ticket.beginning)
            if entry is None:
                engine.shared[ticket.beginning] = [1, hit]
                shared = hit  # the first of its document is charged for the shared part
            else:
                entry[0] += 1
        ticket.charged_kv = int(ticket.uncached + ticket.expected_output)
        engine.kv += ticket.charged_kv + shared

    def take_off(self, ticket: Ticket, /, *, computed: bool) -> None:
        """Undo the charges of *ticket*, which its engine no longer has.

        Args:
            ticket: The call.
            computed: Whether its prompt was computed.
        """
        engine = ticket.engine
        assert engine is not None
        engine.tickets.pop(ticket, None)
        engine.outstanding -= ticket.info.n
        # An idle engine has exactly nothing to generate: no rounding error is carried over.
        engine.outputs = engine.outputs - ticket.expected_output if engine.outstanding else 0.0
        if ticket.state == "prefilling":
            engine.streamed -= ticket.info.streamed
            engine.prefill -= ticket.uncached
            if engine.alive:
                self._settle(ticket, engine, computed=computed)
        engine.kv -= ticket.charged_kv
        if ticket.beginning is not None:
            entry = engine.shared[ticket.beginning]
            entry[0] -= 1
            if not entry[0]:
                engine.kv -= entry[1]
                del engine.shared[ticket.beginning]

    def _settle(self, ticket: Ticket, engine: EngineLoad, *, computed: bool) -> None:
        if self._index is not None:
            self._index.settled(engine.index, ticket.names, computed=computed)

    def _remember(self, key: Hashable | None, index: int) -> None:
        if key is None:
            return
        self._served[key] = index
        self._served.move_to_end(key)
        if len(self._served) > _REMEMBERED:
            self._served.popitem(last=False)

    def first_token(self, ticket: Ticket, now: float, cached_tokens: int | None, /) -> None:
        """Count a call that was prefilling as decoding, and learn from the time that it took."""
        engine = ticket.engine
        assert engine is not None
        ticket.state = "decoding"
        engine.streamed -= ticket.info.streamed
        ticket.first = now
        ticket.among = engine.outstanding
        if engine.alive:
            engine.prefill -= ticket.uncached
            self._settle(ticket, engine, computed=True)
            steps = -(-ticket.queued // engine.capacity.max_num_batched_tokens)
            seconds = now - ticket.dispatched
            # A call that waited for a slot, or for its prompt to be written, says nothing of speed.
            waited = engine.outstanding > engine.capacity.max_num_seqs or ticket.info.streamed
            if not waited:
                self.speed.saw_prefill(ticket.queued, steps, engine.outstanding, seconds)
        cached = ticket.prompt_tokens - ticket.uncached if cached_tokens is None else cached_tokens
        ticket.template.prompt.add(ticket.prompt_tokens)
        ticket.template.uncached.add(max(0, ticket.prompt_tokens - cached))

    def completed(self, ticket: Ticket, now: float, output_tokens: int, /) -> None:
        """Learn from a call that has ended by itself. It is not taken off yet."""
        engine, template = ticket.engine, ticket.template
        assert engine is not None
        template.output.add(output_tokens / ticket.info.n)
        service = now - ticket.dispatched
        template.service.add(service)
        share = service / max(1, engine.outstanding)
        self.affinity.add_work(template, engine.index, now, share)
        if ticket.state == "decoding":
            among = (ticket.among + engine.outstanding) / 2
            among = min(among, float(engine.capacity.max_num_seqs))
            each = output_tokens // ticket.info.n - 1
            self.speed.saw_decode(among, each, now - ticket.first)

    def _is_indexed(self, engine: EngineLoad) -> bool:
        # Blocks of another length than the index has cannot be compared with its names.
        index = self._index
        return engine.alive and index is not None and engine.capacity.block_size == index.block_size

    def check(self) -> None:
        """Assert the invariants. Slow; for tests."""
        for engine in self.engines:
            if engine is None:
                continue
            tickets = list(engine.tickets)
            assert all(t.engine is engine for t in tickets)
            assert engine.outstanding == sum(t.info.n for t in tickets)
            assert engine.prefill == sum(t.uncached for t in tickets if t.state == "prefilling")
            shared = sum(tokens for _, tokens in engine.shared.values())
            assert engine.kv == shared + sum(t.charged_kv for t in tickets)
        if self._index is not None:
            self._index.check()
