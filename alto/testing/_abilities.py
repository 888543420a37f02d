"""Promises that an engine keeps, or refuses to give: samples, log-probabilities, streamed prompts.

An engine need not be able to do any of it. One that cannot says so with ``InvalidRequest``; one
that does it wrongly, or acts as if it had not been asked, breaks the contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import attrs

from alto.errors import InvalidRequest
from alto.model import Chunk, GenerateRequest, StreamedPrompt
from alto.testing._probe import Probe, require, text_of

__all__ = ("Abilities", "usage_adds_up")

_SAMPLES = 3


class _TailFailedError(Exception):
    """What a failing tail raises."""


def usage_adds_up(chunks: Sequence[Chunk], request: GenerateRequest) -> None:
    """Counts and times of the last chunk."""
    usage = chunks[-1].usage
    if usage is None:
        raise AssertionError("the last chunk must have a usage")
    limit = None if request.max_tokens is None else request.max_tokens * request.n
    require(
        limit is None or 0 <= usage.output_tokens <= limit,
        f"with max_tokens={request.max_tokens} output_tokens must not be {usage.output_tokens}",
    )
    ids = sum(len(chunk.token_ids) for chunk in chunks)
    require(
        ids in (0, usage.output_tokens),
        f"output_tokens is {usage.output_tokens}, and the chunks have {ids} token ids",
    )
    require(usage.prompt_tokens > 0, "prompt_tokens must be above 0")
    require(
        0 <= usage.cached_tokens <= usage.prompt_tokens,
        f"cached_tokens must be within the prompt: {usage}",
    )
    for name in ("queue_time", "first_token_time"):
        require(getattr(usage, name) >= 0, f"{name} must be at least 0 seconds: {usage}")


@attrs.frozen(kw_only=True)
class Abilities(Probe):
    """What an engine may be able to do. Every method leaves it as it was."""

    async def served(self, request: GenerateRequest) -> list[Chunk] | None:
        """All chunks; None: the engine refused the request, as it may."""
        try:
            chunks = await self.read(request)
        except InvalidRequest:
            chunks = None
        self.idle(f"after {_described(request)}")
        return chunks

    async def samples_are_well_formed(self) -> None:
        """Several samples of one prompt: each ends once, the usage is for all."""
        request = attrs.evolve(self.request, n=_SAMPLES, temperature=1.0)
        chunks = await self.served(request)
        if chunks is None:
            return
        open_samples = set(range(_SAMPLES))
        for chunk in chunks:
            require(
                chunk.index in open_samples,
                f"with n={_SAMPLES} no chunk may have index {chunk.index!r} "
                f"while only {sorted(open_samples)} have not ended",
            )
            if chunk.finish_reason is not None:
                open_samples.remove(chunk.index)
        require(
            not open_samples,
            f"with n={_SAMPLES} each sample has a chunk with a finish_reason, "
            f"and {sorted(open_samples)} have none",
        )
        usage_adds_up(chunks, request)

    async def logprobs_come_with_tokens(self) -> None:
        """One for each token of every chunk."""
        chunks = await self.served(attrs.evolve(self.request, logprobs=2))
        for number, chunk in enumerate(chunks or ()):
            logprobs = chunk.logprobs or ()
            require(
                [entry.token_id for entry in logprobs] == [*chunk.token_ids],
                f"with logprobs=2 chunk {number} must have one for each of its token ids "
                f"{chunk.token_ids!r}, not {chunk.logprobs!r}",
            )
            for entry in logprobs:
                require(
                    entry.logprob <= 0 and all(value <= 0 for _, value in entry.top),
                    f"a log-probability must not be above 0: {entry!r}",
                )

    async def a_streamed_prompt_is_its_text(self, *, equal: bool) -> None:
        """A prompt that comes piece by piece gets the answer of the whole."""
        prompt = self.request.prompt
        if not isinstance(prompt, str):
            return
        places = [0, len(prompt) // 3, len(prompt) // 2, len(prompt)]
        head, *rest = (prompt[a:b] for a, b in pairwise(places))
        for start, pieces in ((head, rest), ("", [head, *rest]), (prompt, [])):
            streamed = attrs.evolve(self.request, prompt=StreamedPrompt(start, _tail(pieces)))
            chunks = await self.served(streamed)
            if chunks is None:
                return
            require(chunks, "a generation with a streamed prompt must have at least one chunk")
            require(
                chunks[-1].finish_reason is not None,
                "the last chunk for a streamed prompt must have a finish_reason",
            )
            usage_adds_up(chunks, streamed)
            if equal:
                whole = text_of(await self.read(self.request))
                require(
                    text_of(chunks) == whole,
                    f"streamed as {start!r} and {pieces!r} the prompt must get the text of the "
                    f"whole, {whole!r}, not {text_of(chunks)!r}",
                )

    async def a_failing_tail_frees(self) -> None:
        """A prompt whose tail raises ends with that error, and holds nothing."""
        if not isinstance(self.request.prompt, str):
            return
        streamed = StreamedPrompt(self.request.prompt, _failing())
        try:
            chunks = await self.served(attrs.evolve(self.request, prompt=streamed))
        except _TailFailedError:
            self.idle("after the tail of a streamed prompt failed")
            return
        except Exception as error:
            raise AssertionError(
                f"what the tail of a streamed prompt raises must arrive as it is, not as {error!r}"
            ) from error
        require(
            chunks is None,
            f"where the tail of a streamed prompt raises, so must the generation; "
            f"it said {text_of(chunks or ())!r}",
        )

    async def leaving_an_open_tail_frees(self) -> None:
        """A reader that is cancelled while the prompt is still being written leaves nothing."""
        if not isinstance(self.request.prompt, str):
            return
        asked = asyncio.Event()
        streamed = StreamedPrompt(self.request.prompt, _endless(asked))
        request = attrs.evolve(self.request, prompt=streamed)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self.outcome(request))
            asking = group.create_task(asked.wait())
            await self.within(
                "a generation whose tail is read",
                asyncio.wait((reader, asking), return_when=asyncio.FIRST_COMPLETED),
            )
            await asyncio.sleep(0)
            asking.cancel()
            reader.cancel()
        if not reader.cancelled() and isinstance(error := reader.result(), Exception):
            require(isinstance(error, InvalidRequest), f"it must not fail with {error!r}")
        self.idle("after a reader left while the tail of its prompt was open")


def _described(request: GenerateRequest) -> str:
    if isinstance(request.prompt, StreamedPrompt):
        return "a streamed prompt"
    return f"n={request.n}" if request.n > 1 else f"logprobs={request.logprobs}"


async def _tail(pieces: Sequence[str]) -> AsyncIterator[str]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


async def _failing() -> AsyncIterator[str]:
    yield " and"
    await asyncio.sleep(0)
    raise _TailFailedError


async def _endless(asked: asyncio.Event) -> AsyncIterator[str]:
    yield " and"
    asked.set()
    await asyncio.Event().wait()
