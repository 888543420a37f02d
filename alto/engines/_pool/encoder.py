"""Prompts of a pool's calls: their tokens, and the records that the scheduler gets."""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast, final

import anyio
import attrs

from alto.engines._pool.members import Members
from alto.engines._prompt_text import whole_prompt
from alto.errors import Closed, EngineDied, PromptTooLong
from alto.model import GenerateRequest, Message, Origin, Prompt, StreamedPrompt
from alto.protocols import Member
from alto.sched import CallInfo, Ticket

__all__ = ("PromptEncoder", "in_order", "with_changes", "work_of")

_PREFIXES = 64
"""Number of declared prefixes whose tokens are kept."""


@final
class PromptEncoder:
    """Encoder of prompts into tokens, by any engine that runs.

    Args:
        name: Name of the pool.
        members: Engines of the pool.
        attempts: Number of engines that are tried.
    """

    def __init__(self, name: str, members: Members, *, attempts: int) -> None:
        self._name = name
        self._members = members
        self._attempts = attempts
        self._prefixes: OrderedDict[object, tuple[int, ...]] = OrderedDict()
        self._wanted: list[asyncio.Event] = []
        self.closed: Closed | None = None
        """Reason why all calls have ended; None: the pool runs."""
        self.refusing: Closed | None = None
        """Reason why new calls are refused, while open ones go on; None: they are accepted."""
        self.streaming = 0
        """Number of calls whose prompts an engine gets while they are being written."""
        self._reading: set[anyio.CancelScope] = set()

    def engines_changed(self) -> None:
        """Wake the calls that wait for an engine, since the set of running engines has changed."""
        for news in self._wanted:
            news.set()
        self._wanted.clear()
        if self.closed is not None or not self._members.hopeful:
            for scope in tuple(self._reading):
                scope.cancel()

    def death(self) -> EngineDied:
        """Return the error for a pool without engines."""
        return EngineDied(self._name, f"no engine is left: {self._members.last_cause()}")

    def check_hopeful(self) -> None:
        """Raise if the pool is closed, or no engine runs or may run again."""
        if self.closed is not None:
            raise Closed(*self.closed.args)
        if not self._members.hopeful:
            raise self.death()

    async def prepared(
        self, request: GenerateRequest, /
    ) -> tuple[GenerateRequest, Sequence[int] | None]:
        """Return the request for an engine, and the tokens of its prompt; None: they are not known."""
        prompt = request.prompt
        if isinstance(prompt, StreamedPrompt):
            if self._may_stream():
                self.streaming += 1
                try:
                    return request, await self.encode(prompt.head) if prompt.head else ()
                except BaseException:
                    self.streaming -= 1
                    raise
            prompt = await self._whole(prompt)
            request = attrs.evolve(request, prompt=prompt)
        tokens = await self.encode(prompt)
        if await self._member() is not None:
            request = with_changes(request, prompt=tokens, prefix=None)
            self._check_length(len(tokens))
        return request, tokens

    def _may_stream(self) -> bool:
        """Return whether an engine may get one more prompt that is still being written.

        Only a quarter of the places of an engine are given to such prompts: each of them holds its place
        while it is written, perhaps by a call that waits for the same engine.
        """
        running = self._members.running
        able = all(slot.streams_prompts for slot in running)
        places = [slot.book.capacity.max_num_seqs for slot in running if slot.book is not None]
        return able and self.streaming < min(places, default=0) // 4

    async def _whole(self, prompt: StreamedPrompt) -> str:
        """Read a prompt to its end, unless the pool is closed before."""
        with anyio.CancelScope() as scope:
            self._reading.add(scope)
            try:
                return await whole_prompt(prompt)
            finally:
                self._reading.discard(scope)
        self.check_hopeful()
        raise self.death()

    def _check_length(self, length: int) -> None:
        limits = [book.capacity.max_model_len for book in self._members.scheduler.engines]
        known = [limit for limit in limits if limit is not None]
        if known and length >= max(
            known
        ):  # one that fits only some is refused later, by `Members.check_fits`
            raise PromptTooLong(length, min(known))

    async def _member(self) -> Member | None:
        """Wait for an engine that is a `Member`, and return it; None: the running ones are not."""
        while True:
            self.check_hopeful()
            running = self._members.running
            for slot in running:
                if slot.member is not None:
                    return slot.member
            if running:
                return None
            news = asyncio.Event()
            self._wanted.append(news)
            await news.wait()

    async def encode(self, prompt: Prompt, /) -> Sequence[int]:
        """Return the token ids of a prompt; made-up ones where no engine is a `Member`."""
        for attempt in range(1, self._attempts + 1):
            member = await self._member()
            if member is None:
                return _made_up(prompt)
            try:
                return await member.encode(prompt)
            except (EngineDied, Closed) as error:
                slots = [slot for slot in self._members.running if slot.engine is member]
                gone = all(self._members.died(slot, slot.life, error) for slot in slots)
                if attempt == self._attempts or not gone:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def prefix_tokens(self, prefix: Prompt | None, tokens: Sequence[int] | None, /) -> int:
        """Return the number of *tokens*, from the first, that are those of the declared prefix."""
        if prefix is None or tokens is None:
            return 0
        key: Any = prefix if isinstance(prefix, str) else tuple(prefix)
        head = self._prefixes.get(key)
        if head is None:
            head = self._prefixes[key] = tuple(await self.encode(prefix))
            if len(self._prefixes) > _PREFIXES:
                self._prefixes.popitem(last=False)
        count = 0
        for a, b in zip(head, tokens, strict=False):
            if a != b:
                break
            count += 1
        return count


def with_changes(request: GenerateRequest, /, **changes: object) -> GenerateRequest:
    """Return a copy with *changes*, without the checks of the constructor.

    A pool changes only what needs no check, and does so for every call.
    """
    copied = copy.copy(request)
    for name, value in changes.items():
        object.__setattr__(copied, name, value)  # the class is frozen
    return copied


def in_order(request: GenerateRequest, ticket: Ticket, /) -> GenerateRequest:
    """Return the request with the scheduler's order as its priority, in milliseconds.

    So an engine that chooses by itself, among the few calls that it holds in advance or between calls to
    preempt, chooses as the scheduler would.
    """
    return with_changes(request, priority=round(1000 * ticket.key[0]))


def work_of(  # noqa: PLR0913  # fields of the record that it makes
    origin: Origin | None,
    tokens: Sequence[int] | None,
    *,
    max_tokens: int | None,
    priority: int,
    n: int = 1,
    salt: int = 0,
    prefix: Prompt | None = None,
    prefix_tokens: int = 0,
    streamed: bool = False,
) -> CallInfo:
    """Return the scheduler's record of a call; *tokens* None: they are not known."""
    stage, arrived, deadline, depth = "", None, None, 0
    group = parent = None
    if origin is not None:
        stage, arrived, deadline = origin.stage, origin.arrived, origin.deadline
        depth = origin.depth
        if origin.path:
            parent = (origin.request, origin.path[:-1])
            group = (*parent, stage)
    key = 0 if prefix is None else hash(prefix if isinstance(prefix, str) else tuple(prefix))
    return CallInfo(
        template=(stage, key),
        prompt_tokens=len(tokens) if tokens else 1,
        token_ids=tokens,
        prefix_tokens=prefix_tokens,
        max_tokens=max_tokens,
        n=n,
        priority=priority,
        arrived=arrived,
        deadline=deadline,
        depth=depth,
        group=group,
        parent=parent,
        salt=salt,
        streamed=streamed,
    )


def _made_up(prompt: Prompt) -> list[int]:
    """Return a number for each word, so that equal beginnings are found; token ids unchanged."""
    if isinstance(prompt, str):
        words = prompt.split()
    elif prompt and isinstance(prompt[0], Message):
        words = [w for m in cast(Sequence[Message], prompt) for w in (m.role, *m.content.split())]
    else:
        return list(cast(Sequence[int], prompt))
    return [hash(word) & 0x7FFFFFFF for word in words] or [0]
