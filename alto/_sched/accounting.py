"""What a pool's engines have, hold and have done: the counters behind every choice.

A call that was given to an engine is *prefilling* until its first token, then *decoding*. The engine
is charged for what it must compute of the prompt until the first token, for KV memory and for a
place until the end. KV memory of a document that several of its calls share is charged once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import final

from alto._sched.affinity import Homes
from alto._sched.estimate import Speed, Template
from alto._sched.prefix import PrefixIndex, chain
from alto._sched.state import EngineBook, Ticket
from alto.model import EngineCapacity

__all__ = ("Ledger",)

_PREFILL_STEPS = 4
"""Budgets of prompt tokens that an engine is given ahead. One starves engines (measured)."""
_BEGINNING = 256
"""Tokens behind the declared prefix by which documents are told apart."""
_REMEMBERED = 20_000
"""Beginnings and parents whose last engine is kept."""


@final
class Ledger:
    """Counts. Says nothing about who goes where."""

    def __init__(self) -> None:
        self.speed: Speed = Speed()
        self.templates: dict[Hashable, Template] = {}
        self.homes: Homes = Homes()
        self.books: list[EngineBook | None] = []
        self._index: PrefixIndex | None = None
        self._served: OrderedDict[Hashable, int] = OrderedDict()

    def add_engine(self, name: str, capacity: EngineCapacity, now: float, /) -> EngineBook:
        """An engine has come, and holds nothing."""
        for other in self.books:
            if other is not None and other.capacity == capacity:
                capacity = other.capacity  # one object for equals, so that policies see it at once
        seats = capacity.max_num_seqs
        free = [k for k, book in enumerate(self.books) if book is None]
        index = free[0] if free else len(self.books)
        book = EngineBook(
            index=index,
            name=name,
            capacity=capacity,
            speed=self.speed,
            most=seats + max(1, min(4, seats // 16)) if seats > 1 else seats,
            most_prefill=_PREFILL_STEPS * capacity.max_num_batched_tokens,
            heard=now,
        )
        if free:
            self.books[index] = book
        else:
            self.books.append(book)
        if self._index is None:
            self._index = PrefixIndex(capacity.block_size)
        kv, size = capacity.kv_tokens, self._index.block_size
        self._index.add(index, None if kv is None else kv // size)
        return book

    def remove_engine(self, book: EngineBook, /) -> None:
        """An engine has gone. Calls that it had are taken off one by one."""
        book.alive = False
        self.books[book.index] = None
        assert self._index is not None
        self._index.remove(book.index)
        self.homes.forget(book.index, self.templates.values())
        for key in [key for key, index in self._served.items() if index == book.index]:
            del self._served[key]

    def stored(self, book: EngineBook, parent: int | None, token_ids: Sequence[int],
               keys: Sequence[int], salt: int = 0, /) -> None:  # fmt: skip
        """An engine holds more blocks; see :class:`alto.protocols.CacheListener`."""
        if self._knows(book):
            assert self._index is not None
            self._index.stored(book.index, parent, token_ids, keys, salt)

    def removed(self, book: EngineBook, keys: Sequence[int], /) -> None:
        """An engine has thrown blocks out."""
        if self._knows(book):
            assert self._index is not None
            self._index.removed(book.index, keys)

    def cleared(self, book: EngineBook, /) -> None:
        """Nobody knows any more what an engine holds."""
        if self._knows(book):
            assert self._index is not None
            self._index.cleared(book.index)

    def template(self, key: Hashable, /) -> Template:
        """What is known of calls of a template."""
        template = self.templates.get(key)
        if template is None:
            if len(self.templates) >= _REMEMBERED:  # a prefix of each request's own makes many
                del self.templates[next(iter(self.templates))]
            template = self.templates[key] = Template(key)
        return template

    def _name_blocks(self, ticket: Ticket, index: PrefixIndex) -> None:
        work = ticket.work
        if work.token_ids is None:
            return
        ticket.names = index.thin(chain(work.token_ids, index.block_size, salt=work.salt))
        skipped = work.prefix_tokens // index.tokens
        if len(ticket.names) > skipped:
            at = (work.prefix_tokens + _BEGINNING) // index.tokens - 1
            ticket.beginning = ticket.names[max(skipped, min(at, len(ticket.names) - 1))]

    def look_up(self, ticket: Ticket, /) -> None:
        """Find out what each engine holds of a call's prompt, and who served its like.

        What the engine that it is bound to holds, or will, for this call alone does not count.
        """
        index = self._index
        if index is not None and not ticket.named:
            ticket.named = True
            self._name_blocks(ticket, index)
        if index is not None and ticket.names:
            ticket.hits = index.hits(ticket.names, len(self.books))
            if (
                ticket.engine is not None and ticket.engine.alive
            ):  # what it holds for this call only
                own = ticket.engine.index
                ticket.hits[own] = index.hit(own, ticket.names)
        served = self._served.get(ticket.beginning, -1) if ticket.beginning is not None else -1
        if served < 0 and not ticket.names and ticket.work.parent is not None:
            served = self._served.get(("parent", ticket.work.parent), -1)
        ticket.served = served

    def bind(self, ticket: Ticket, book: EngineBook, /) -> None:
        """*ticket* is to run on *book*, which counts as holding its prompt from now on."""
        ticket.engine = book
        if self._index is not None:
            self._index.sent(book.index, ticket.names)
        self.charge(ticket, book)

    def charge(self, ticket: Ticket, book: EngineBook, /) -> None:
        """What *ticket* costs *book*, to which it is bound, is as :meth:`look_up` has found."""
        ticket.uncached = max(1, ticket.prompt_tokens - ticket.hit_on(book))
        if ticket.served != book.index:
            if ticket.names:
                self._remember(ticket.beginning, book.index)
            elif ticket.work.parent is not None:
                self._remember(("parent", ticket.work.parent), book.index)

    def unbind(self, ticket: Ticket, /) -> None:
        """*ticket*, which has not started, is to run elsewhere, or not at all."""
        book, ticket.engine = ticket.engine, None
        if book is not None and book.alive:
            self._settle(ticket, book, computed=False)

    def start(self, ticket: Ticket, book: EngineBook, now: float, /) -> None:
        """*book* gets *ticket*, which is bound to it."""
        if book.outstanding == book.streamed:
            book.heard = now  # it had no reason to speak
        ticket.state = "prefilling"
        ticket.dispatched = now
        book.tickets[ticket] = None
        book.outstanding += ticket.work.n
        book.streamed += ticket.work.streamed
        book.prefill += ticket.uncached
        ticket.queued = book.prefill
        book.outputs += ticket.expected_output
        shared, hit = 0, ticket.prompt_tokens - ticket.uncached
        if ticket.beginning is not None:
            entry = book.shared.get(ticket.beginning)
            if entry is None:
                book.shared[ticket.beginning] = [1, hit]
                shared = hit
            else:
                entry[0] += 1
        ticket.charged_kv = int(ticket.uncached + ticket.expected_output)
        book.kv += ticket.charged_kv + shared

    def take_off(self, ticket: Ticket, /, *, computed: bool) -> None:
        """The engine of *ticket* has it no more. *computed*: whether its prompt was."""
        book = ticket.engine
        assert book is not None
        book.tickets.pop(ticket, None)
        book.outstanding -= ticket.work.n
        book.outputs = book.outputs - ticket.expected_output if book.outstanding else 0.0
        if ticket.state == "prefilling":
            book.streamed -= ticket.work.streamed
            book.prefill -= ticket.uncached
            if book.alive:
                self._settle(ticket, book, computed=computed)
        book.kv -= ticket.charged_kv
        if ticket.beginning is not None:
            entry = book.shared[ticket.beginning]
            entry[0] -= 1
            if not entry[0]:
                book.kv -= entry[1]
                del book.shared[ticket.beginning]

    def _settle(self, ticket: Ticket, book: EngineBook, *, computed: bool) -> None:
        if self._index is not None:
            self._index.settled(book.index, ticket.names, computed=computed)

    def _remember(self, key: Hashable | None, index: int) -> None:
        if key is None:
            return
        self._served[key] = index
        self._served.move_to_end(key)
        if len(self._served) > _REMEMBERED:
            self._served.popitem(last=False)

    def first_token(self, ticket: Ticket, now: float, cached_tokens: int | None, /) -> None:
        """The first token of a call that was prefilling has come."""
        book = ticket.engine
        assert book is not None
        ticket.state = "decoding"
        book.streamed -= ticket.work.streamed
        ticket.first = now
        ticket.among = book.outstanding
        if book.alive:
            book.prefill -= ticket.uncached
            self._settle(ticket, book, computed=True)
            steps = -(-ticket.queued // book.capacity.max_num_batched_tokens)
            seconds = now - ticket.dispatched
            waited = book.outstanding > book.capacity.max_num_seqs or ticket.work.streamed
            if not waited:  # for a place, or for text
                self.speed.saw_prefill(ticket.queued, steps, book.outstanding, seconds)
        cached = ticket.prompt_tokens - ticket.uncached if cached_tokens is None else cached_tokens
        ticket.template.prompt.add(ticket.prompt_tokens)
        ticket.template.uncached.add(max(0, ticket.prompt_tokens - cached))

    def completed(self, ticket: Ticket, now: float, output_tokens: int, /) -> None:
        """A call that an engine still has has ended by itself: learn from it."""
        book, template = ticket.engine, ticket.template
        assert book is not None
        template.output.add(output_tokens / ticket.work.n)
        service = now - ticket.dispatched
        template.service.add(service)
        self.homes.worked(template, book.index, now, service / max(1, book.outstanding))
        if ticket.state == "decoding":
            among = (ticket.among + book.outstanding) / 2
            among = min(among, float(book.capacity.max_num_seqs))
            each = output_tokens // ticket.work.n - 1
            self.speed.saw_decode(among, each, now - ticket.first)

    def _knows(self, book: EngineBook) -> bool:
        """Whether *book* lives and the blocks of its engine are as long as the index has them."""
        index = self._index
        return book.alive and index is not None and book.capacity.block_size == index.block_size

    def check(self) -> None:
        """Assert the invariants. Slow."""
        for book in self.books:
            if book is None:
                continue
            tickets = list(book.tickets)
            assert all(t.engine is book for t in tickets)
            assert book.outstanding == sum(t.work.n for t in tickets)
            assert book.prefill == sum(t.uncached for t in tickets if t.state == "prefilling")
            shared = sum(tokens for _, tokens in book.shared.values())
            assert book.kv == shared + sum(t.charged_kv for t in tickets)
        if self._index is not None:
            self._index.check()
