# ruff: noqa: D101, D102  # a liar's name says which promise it breaks
from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress

import attrs
import pytest

from alto.errors import Closed, InvalidRequest
from alto.model import (
    Chunk,
    EngineStatistics,
    GenerateRequest,
    StreamedPrompt,
    TokenLogprob,
    Usage,
)
from alto.testing.checks import check_engine
from alto.testing.scripted import Scripted

TEXT = ("to ", "be ", "or ", "not")
TOO_LONG = GenerateRequest(prompt="word " * 100)


class Honest:
    """The plainest engine that keeps the contract; each liar below breaks one promise of it."""

    name = "honest"
    delay = 0.01

    def __init__(self):
        self.on = False
        self.running: dict[asyncio.Event, asyncio.TimerHandle] = {}

    async def start(self):
        self.on = True

    async def stop(self):
        self.on = False
        for ended, timer in self.running.items():
            timer.cancel()
            ended.set()
        self.running.clear()

    def check_health(self):
        if not self.on:
            raise Closed("not running")

    def statistics(self):
        return EngineStatistics(running=len(self.running))

    def chunks(self, request):
        texts = TEXT if request.max_tokens is None else TEXT[: request.max_tokens]
        reason = "length" if len(texts) < len(TEXT) else "stop"
        logprobs = None if request.logprobs is None else (self.logprob,)
        chunks = [
            Chunk(text=text, token_ids=(1,), index=index, logprobs=logprobs)
            for text in texts
            for index in range(self.samples(request))
        ]
        for chunk in chunks[-self.samples(request) :]:
            chunk.finish_reason = reason
        chunks[-1].usage = Usage(prompt_tokens=3, output_tokens=len(chunks))
        return chunks

    logprob = TokenLogprob(1, -0.5, ((1, -0.5), (2, -2.0)))

    def samples(self, request):
        return request.n

    async def whole(self, prompt):
        """The text of a prompt, which this engine does not look at."""
        if isinstance(prompt, StreamedPrompt):
            async for _ in prompt.tail:
                pass

    def check(self, request):
        if request == TOO_LONG:
            raise InvalidRequest("too long")

    def admit(self):
        self.check_health()

    async def generate(self, request):
        self.admit()
        self.check(request)
        await self.whole(request.prompt)
        chunks = self.chunks(request)
        ended = asyncio.Event()
        done = asyncio.get_running_loop().call_later(
            self.delay * (len(chunks) + 0.5), self.running.pop, ended
        )
        self.running[ended] = done
        try:
            for number, chunk in enumerate(chunks):
                await asyncio.sleep(self.delay)
                if ended.is_set():
                    await self.end_reader(number)
                if chunk.finish_reason is not None:
                    self.leave(ended)
                yield chunk
        finally:
            self.leave(ended)

    async def end_reader(self, number):
        raise Closed("stopped")

    def leave(self, ended):
        timer = self.running.pop(ended, None)
        if timer is not None:
            timer.cancel()


class NoName(Honest):
    name = None


class BusyAtFirst(Honest):
    def statistics(self):
        return EngineStatistics(running=len(self.running) + (not self.on))


class HealthyBeforeStart(Honest):
    def check_health(self):
        pass


class GeneratesBeforeStart(Honest):
    def admit(self):
        pass


class WrongErrorBeforeStart(Honest):
    def admit(self):
        if not self.on:
            raise RuntimeError("not running")


class StartsForEver(Honest):
    async def start(self):
        await asyncio.sleep(3600)


class StartsTwice(Honest):
    async def start(self):
        if self.on:
            await asyncio.sleep(3600)
        self.on = True


class SaysNothing(Honest):
    def chunks(self, request):
        return []


class SaysEmptyText(Honest):
    def chunks(self, request):
        return [attrs.evolve(chunk, text="") for chunk in super().chunks(request)]


class SaysStrings(Honest):
    async def generate(self, request):
        async for chunk in super().generate(request):
            yield chunk.text


class ListsOfIds(Honest):
    def chunks(self, request):
        return [attrs.evolve(c, token_ids=list(c.token_ids)) for c in super().chunks(request)]


class NoFinishReason(Honest):
    def chunks(self, request):
        return [attrs.evolve(chunk, finish_reason=None) for chunk in super().chunks(request)]


class TwoFinishReasons(Honest):
    def chunks(self, request):
        return [attrs.evolve(chunk, finish_reason="stop") for chunk in super().chunks(request)]


class NoUsage(Honest):
    def chunks(self, request):
        return [attrs.evolve(chunk, usage=None) for chunk in super().chunks(request)]


class WithUsage(Honest):
    usage = Usage()

    def chunks(self, request):
        *first, last = super().chunks(request)
        return [*first, attrs.evolve(last, usage=self.usage)]


class TooManyTokens(WithUsage):
    usage = Usage(prompt_tokens=3, output_tokens=99)


class TokensDoNotAddUp(WithUsage):
    usage = Usage(prompt_tokens=3, output_tokens=2)


class NoPromptTokens(WithUsage):
    usage = Usage(prompt_tokens=0, output_tokens=4)


class MoreCachedThanThere(WithUsage):
    usage = Usage(prompt_tokens=3, cached_tokens=4, output_tokens=4)


class IgnoresMaxTokens(Honest):
    def chunks(self, request):
        return super().chunks(attrs.evolve(request, max_tokens=None))


class SaysStopAtMaxTokens(Honest):
    def chunks(self, request):
        *first, last = super().chunks(request)
        return [*first, attrs.evolve(last, finish_reason="stop")]


class Forgetful(Honest):
    numbers = itertools.count()

    def chunks(self, request):
        *first, last = super().chunks(request)
        return [*first, attrs.evolve(last, text=str(next(self.numbers)))]


class MixesThemUp(Honest):
    def chunks(self, request):
        *first, last = super().chunks(request)
        return [*first, attrs.evolve(last, text=str(len(self.running) > 1))]


class RaisesInACrowd(Honest):
    async def generate(self, request):
        async for chunk in super().generate(request):
            assert len(self.running) < 5, "too many"
            yield chunk


class OnlyGoesOnWhenRead(Honest):
    async def generate(self, request):
        self.admit()
        self.check(request)
        ended = asyncio.Event()
        self.running[ended] = asyncio.get_running_loop().call_later(0, int)
        try:
            for chunk in self.chunks(request):
                await asyncio.sleep(self.delay)
                if chunk.finish_reason is not None:
                    self.leave(ended)
                yield chunk
        finally:
            self.leave(ended)


class RefusesAbilities(Honest):
    """Refusing all that is optional keeps the contract."""

    def check(self, request):
        super().check(request)
        if (
            request.n > 1
            or request.logprobs is not None
            or isinstance(request.prompt, StreamedPrompt)
        ):
            raise InvalidRequest("plain text only")


class IgnoresSamples(Honest):
    def samples(self, request):
        return 1


class OneSampleTooMany(Honest):
    def samples(self, request):
        return request.n + (request.n > 1)


class SpeaksAfterItsEnd(Honest):
    def chunks(self, request):
        chunks = super().chunks(request)
        if request.n > 1:
            chunks[0].finish_reason = "stop"
        return chunks


class UsageOfOneSample(Honest):
    def chunks(self, request):
        chunks = super().chunks(request)
        chunks[-1].usage = attrs.evolve(chunks[-1].usage, output_tokens=len(chunks) // request.n)
        return chunks


class IndexOfAnotherSample(Honest):
    def chunks(self, request):
        return [attrs.evolve(chunk, index=chunk.index + 1) for chunk in super().chunks(request)]


class NegativeQueueTime(WithUsage):
    usage = Usage(prompt_tokens=3, output_tokens=4, queue_time=-1.0)


class NegativeFirstToken(WithUsage):
    usage = Usage(prompt_tokens=3, output_tokens=4, first_token_time=-1.0)


class IgnoresLogprobs(Honest):
    def chunks(self, request):
        return super().chunks(attrs.evolve(request, logprobs=None))


class LogprobsOfOtherTokens(Honest):
    logprob = TokenLogprob(2, -0.5)


class ImpossibleLogprob(Honest):
    logprob = TokenLogprob(1, 0.5)


class ImpossibleTop(Honest):
    logprob = TokenLogprob(1, -0.5, ((1, -0.5), (2, 2.0)))


class TextOfTheHead(Honest):
    def chunks(self, request):
        *first, last = super().chunks(request)
        cut = (
            isinstance(request.prompt, StreamedPrompt)
            and request.prompt.head != "Tell me something."
        )
        return [*first, attrs.evolve(last, text="!" if cut else last.text)]


class NoEndOfAStreamedPrompt(Honest):
    def chunks(self, request):
        chunks = super().chunks(request)
        return chunks[:-1] if isinstance(request.prompt, StreamedPrompt) else chunks


class SwallowsTheTailsError(Honest):
    async def whole(self, prompt):
        with suppress(Exception):
            await super().whole(prompt)


class WrapsTheTailsError(Honest):
    async def whole(self, prompt):
        try:
            await super().whole(prompt)
        except Exception as error:
            raise RuntimeError("the tail failed") from error


class LeaksWhenTheTailFails(Honest):
    async def whole(self, prompt):
        self.running[ended := asyncio.Event()] = asyncio.get_running_loop().call_later(0, int)
        await super().whole(prompt)
        del self.running[ended]


class LeaksWhileTheTailIsOpen(Honest):
    async def whole(self, prompt):
        self.running[ended := asyncio.Event()] = asyncio.get_running_loop().call_later(0, int)
        try:
            await super().whole(prompt)
        except Exception:
            del self.running[ended]
            raise
        del self.running[ended]


class NeverReadsTheTail(Honest):
    async def whole(self, prompt):
        if isinstance(prompt, StreamedPrompt):
            await asyncio.sleep(3600)


class LeaksWhenClosed(Honest):
    def leave(self, ended):
        if self.running.get(ended) and self.leaving_is_normal():
            super().leave(ended)

    def leaving_is_normal(self):
        return self.running and asyncio.current_task().cancelling() == 0 and not self.closing

    closing = False

    async def generate(self, request):
        chunks = super().generate(request)
        try:
            async for chunk in chunks:
                yield chunk
        except GeneratorExit:
            self.closing = True
            await chunks.aclose()
            self.closing = False
            raise


class LeaksWhenCancelled(Honest):
    def leave(self, ended):
        if asyncio.current_task().cancelling() == 0:
            super().leave(ended)


class HangsWhenClosed(Honest):
    async def generate(self, request):
        try:
            async for chunk in super().generate(request):
                yield chunk
        except GeneratorExit:
            await asyncio.sleep(3600)


class ServesEverything(Honest):
    def check(self, request):
        pass


class RefusesWrongly(Honest):
    def check(self, request):
        if request == TOO_LONG:
            raise KeyError("too long")


class LeaksWhenRefusing(Honest):
    def check(self, request):
        if request == TOO_LONG:
            self.running[asyncio.Event()] = asyncio.get_running_loop().call_later(0, int)
            raise InvalidRequest("too long")


class StopsForEver(Honest):
    async def stop(self):
        if self.on:
            self.on = False
            await asyncio.sleep(3600)


class StopLetsThemFinish(Honest):
    async def stop(self):
        self.on = False


class StopLeavesSome(Honest):
    async def stop(self):
        await super().stop()
        self.left = True

    left = False

    def statistics(self):
        return EngineStatistics(running=len(self.running) + self.left)


class StopForgetsReaders(Honest):
    async def stop(self):
        was_on, self.on = self.on, False
        for timer in self.running.values():
            timer.cancel()
        self.running.clear()
        self.delay = 3600 if was_on else self.delay


class StopForgetsThoseThatStart(Honest):
    async def end_reader(self, number):
        if number == 0:
            await asyncio.sleep(3600)
        raise Closed("stopped")


class StopBreaksThoseThatStart(Honest):
    async def end_reader(self, number):
        raise Closed("stopped") if number else RuntimeError("half started")


class HealthyAfterStop(Honest):
    stopped = False

    async def stop(self):
        self.stopped = self.on
        await super().stop()

    def check_health(self):
        if not self.stopped:
            super().check_health()


class ServesAfterStop(Honest):
    stopped = False

    async def stop(self):
        self.stopped = self.on
        await super().stop()

    def admit(self):
        if not self.stopped:
            self.check_health()


class StopsOnce(Honest):
    stopped = False

    async def stop(self):
        if self.stopped:
            await asyncio.sleep(3600)
        self.stopped = self.on
        await super().stop()


class StartsOnce(Honest):
    started = False

    async def start(self):
        if self.started and not self.on:
            await asyncio.sleep(3600)
        self.started = True
        await super().start()


class BadInItsSecondLife(Honest):
    lives = 0

    async def start(self):
        self.lives += not self.on
        await super().start()

    def chunks(self, request):
        chunks = super().chunks(request)
        return chunks if self.lives < 2 else chunks[:-1]


class NoEngine:
    name = "none"


BROKEN = [
    (NoEngine, "lacks a method"),
    (NoName, "name must be a str"),
    (BusyAtFirst, "before the start, statistics"),
    (HealthyBeforeStart, r"check_health\(\) before the start"),
    (GeneratesBeforeStart, "before the start must raise Closed, but it said 'to be"),
    (WrongErrorBeforeStart, "must raise Closed, not RuntimeError"),
    (StartsForEver, r"start\(\) did not end within"),
    (StartsTwice, r"a second start\(\) did not end"),
    (SaysNothing, "at least one chunk"),
    (SaysEmptyText, "text must not be empty"),
    (SaysStrings, "chunk 0 is no Chunk: 'to '"),
    (ListsOfIds, "a tuple of token ids"),
    (NoFinishReason, "chunk 3 of 4 has None"),
    (TwoFinishReasons, "chunk 0 of 4 has 'stop'"),
    (NoUsage, "must have a usage"),
    (TooManyTokens, "output_tokens must not be 99"),
    (TokensDoNotAddUp, "output_tokens is 2, and the chunks have 4"),
    (NoPromptTokens, "prompt_tokens must be above 0"),
    (MoreCachedThanThere, "within the prompt"),
    (IgnoresMaxTokens, "max_tokens=1 the usage must not be"),
    (SaysStopAtMaxTokens, "must be 'length', not 'stop'"),
    (Forgetful, "equal requests must get equal text"),
    (MixesThemUp, "at once must get equal text"),
    (RaisesInACrowd, "too many"),
    (OnlyGoesOnWhenRead, "a generation that is not read on did not end"),
    (IndexOfAnotherSample, "chunk 0 of one sample has index 1"),
    (NegativeQueueTime, "queue_time must be at least 0"),
    (NegativeFirstToken, "first_token_time must be at least 0"),
    (IgnoresSamples, "and .1, 2. have none"),
    (OneSampleTooMany, "with n=3 no chunk may have index 3"),
    (SpeaksAfterItsEnd, "may have index 0 while only .1, 2. have not ended"),
    (UsageOfOneSample, "output_tokens is 4, and the chunks have 12"),
    (IgnoresLogprobs, "with logprobs=2 chunk 0 must have one for each of its token ids"),
    (LogprobsOfOtherTokens, "with logprobs=2 chunk 0 must have one for each"),
    (ImpossibleLogprob, "must not be above 0"),
    (ImpossibleTop, "must not be above 0"),
    (TextOfTheHead, "streamed as 'Tell m' and .* must get the text of the whole, 'to be or not'"),
    (NoEndOfAStreamedPrompt, "the last chunk for a streamed prompt must have a finish_reason"),
    (SwallowsTheTailsError, "so must the generation; it said 'to be or not'"),
    (WrapsTheTailsError, "must arrive as it is, not as RuntimeError"),
    (LeaksWhenTheTailFails, "after the tail of a streamed prompt failed, statistics"),
    (LeaksWhileTheTailIsOpen, "while the tail of its prompt was open, statistics"),
    (NeverReadsTheTail, "a generation did not end"),
    (LeaksWhenClosed, "after a generation was closed early, statistics"),
    (LeaksWhenCancelled, "after a reading task was cancelled at its step 1, statistics"),
    (HangsWhenClosed, r"aclose\(\) did not end"),
    (ServesEverything, "must raise InvalidRequest, but it said"),
    (RefusesWrongly, "must raise InvalidRequest, not KeyError"),
    (LeaksWhenRefusing, "after a refused request, statistics"),
    (StopsForEver, r"stop\(\) did not end"),
    (StopLetsThemFinish, "must end with Closed"),
    (StopLeavesSome, "statistics.. must be all zeros"),
    (StopForgetsReaders, "a generation after the stop did not end"),
    (StopForgetsThoseThatStart, "must end with Closed, not AssertionError.'a generation did not"),
    (StopBreaksThoseThatStart, "must end with Closed, not RuntimeError"),
    (HealthyAfterStop, r"check_health\(\) after the stop must raise Closed"),
    (ServesAfterStop, "after the stop must raise Closed, but it said"),
    (StopsOnce, r"a second stop\(\) did not end"),
    (StartsOnce, r"start\(\) after a stop did not end"),
    (BadInItsSecondLife, "chunk 2 of 3 has None"),
]


@pytest.mark.parametrize(
    ("broken", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
async def test_a_broken_promise_is_found(broken, message):
    """The engine that breaks one promise fails the check, in words that say which."""
    with pytest.raises(AssertionError, match=message):
        await check_engine(broken, expect=None, unservable=[TOO_LONG], timeout=10)


async def test_an_honest_engine_passes():
    """The engine that all the broken ones derive from keeps the contract."""
    await check_engine(Honest, expect="".join(TEXT), unservable=[TOO_LONG])


async def test_abilities_may_be_refused():
    """An engine that says of what it cannot do that it cannot keeps the contract."""
    await check_engine(RefusesAbilities, expect="".join(TEXT), unservable=[TOO_LONG])


async def test_an_engine_is_checked_with_token_ids():
    """Without a text the prompt cannot be streamed, and everything else is checked."""
    await check_engine(Honest, prompt=[1, 2, 3], expect="".join(TEXT))


async def test_another_text_than_expected_is_found():
    """The text is compared where it is known."""
    with pytest.raises(AssertionError, match="must join to 'to be', not 'to be or not'"):
        await check_engine(Honest, expect="to be")


async def test_an_engine_that_never_repeats_itself_may_say_so():
    """Without `repeatable` texts may differ."""
    await check_engine(Forgetful, repeatable=False)


async def test_an_engine_may_be_checked_without_a_restart():
    """Without `restart` one life is enough."""
    await check_engine(StartsOnce, restart=False)


@pytest.mark.parametrize("delay", [0.0, 0.01])
@pytest.mark.parametrize("slots", [None, 3])
async def test_the_scripted_engine_keeps_the_contract(delay, slots):
    """With and without delays and slots."""
    await check_engine(
        lambda: Scripted(
            lambda _: list(TEXT), delay=delay, first_delay=0.05, slots=slots, max_model_len=50
        ),
        expect="".join(TEXT),
        unservable=[TOO_LONG],
    )


@pytest.mark.realtime
async def test_the_contract_holds_on_the_real_clock():
    """Nothing in the check depends on virtual time."""
    await check_engine(lambda: Scripted(lambda _: list(TEXT), delay=0.001))
