"""The handle through which a stage talks to an engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict, TypeVar, Unpack, final, overload

from alto._current_call import current_call
from alto._llm.generation import Generation, TypedGeneration
from alto._llm.pooling import Vector, cosine, embed_all
from alto._llm.schema import schema_of
from alto.errors import InvalidRequest
from alto.model import EmbedRequest, GenerateRequest, Message, Origin, Prompt, StreamedPrompt
from alto.protocols import Engine, HasLoad, Scorer

__all__ = ("Generation", "GenerationOptions", "LLM", "TypedGeneration")

T = TypeVar("T")


class GenerationOptions(TypedDict, total=False):
    """Keyword arguments of :meth:`alto.LLM.generate`, which documents them."""

    max_tokens: int | None
    temperature: float
    top_p: float
    stop: str | Sequence[str]
    seed: int | None
    ignore_eos: bool
    choice: Sequence[str] | None
    regex: str | None
    json_schema: dict[str, Any] | None
    priority: int | None
    prefix: Prompt | None
    n: int
    logprobs: int | None
    lora: str | None
    resume: bool


@final
class LLM:
    """Handle of an engine in a stage: prompts in, streams of text out."""

    __slots__ = ("_counter", "_engine", "_scorer")

    def __init__(self, engine: Engine, /) -> None:
        self._engine = engine
        self._counter = engine if isinstance(engine, HasLoad) else None
        self._scorer = engine if isinstance(engine, Scorer) else None

    def __repr__(self) -> str:
        """Return the name of the engine."""
        return f"<LLM on {self._engine.name!r}>"

    @property
    def engine(self) -> Engine:
        """Engine behind this handle."""
        return self._engine

    @property
    def load(self) -> int:
        """Number of generations that run or wait on the least busy engine of the pool.

        For an engine that is no pool, its own number; 0 if it is stopped.
        """
        if self._counter is not None:
            return self._counter.load
        now = self._engine.statistics()
        return now.running + now.waiting

    @overload
    def generate(
        self,
        prompt: Prompt | StreamedPrompt,
        *,
        schema: None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: Prompt | StreamedPrompt,
        *,
        schema: type[T],
        **options: Unpack[GenerationOptions],
    ) -> TypedGeneration[T]: ...

    @overload
    def generate(
        self,
        prompt: Prompt | StreamedPrompt,
        *,
        schema: object,
        **options: Unpack[GenerationOptions],
    ) -> TypedGeneration[Any]: ...  # to some type checkers a Literal or a Union is no type[T]

    def generate(  # noqa: PLR0913  # each is a parameter of its own in stages' code
        self,
        prompt: Prompt | StreamedPrompt,
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        ignore_eos: bool = False,
        choice: Sequence[str] | None = None,
        regex: str | None = None,
        json_schema: dict[str, Any] | None = None,
        priority: int | None = None,
        prefix: Prompt | None = None,
        n: int = 1,
        logprobs: int | None = None,
        lora: str | None = None,
        resume: bool = False,
        schema: object | None = None,
    ) -> Generation:
        """Describe a generation; it starts when it is iterated or awaited.

        ``async for chunk in llm.generate(...)`` streams the generation, ``await
        llm.generate(...).text()`` waits for all of it. Leaving the loop early aborts it in the engine.

        Args:
            prompt: Text, token ids, or :class:`~alto.model.Message` turns; or a
                :class:`~alto.model.StreamedPrompt`, whose end is still being written.
            max_tokens: Generate at most this many; None: to the end of the model's context.
            temperature: 0 is greedy; larger is more random.
            top_p: Sample from the smallest set of tokens with this much probability; (0, 1].
            stop: End before the first of these texts.
            seed: Makes a sampled generation repeatable on one engine; from -2**63 to 2**63 - 1.
            ignore_eos: Continue after the model's end-of-text token.
            choice: Constrain the output to one of these texts.
            regex: Constrain the output to match this expression.
            json_schema: Constrain the output to JSON of this schema.
            priority: Lower runs earlier; None: the request's own priority.
            prefix: Head that the prompts of one template share, a hint for placement.
            n: Number of independent samples; more than one needs a temperature above 0.
            logprobs: Give each token with its log-probability and those of this many others.
            lora: Name of the LoRA adapter to use.
            resume: If an engine dies during the generation, continue it on another one.
            schema: Constrain the output to JSON of this type, and give values of the type: a class of
                attrs, msgspec or pydantic, a dataclass, ``TypedDict``, ``NamedTuple``, ``Enum``,
                ``Literal``, a plain type, or lists, dicts and unions of these. Needs
                ``alto-llm[typed]``.

        Returns:
            The generation; with *schema*, a :class:`TypedGeneration`, which also has ``value()`` and
            ``items()``.

        Raises:
            InvalidRequest: At once: no engine could serve a parameter.
        """
        if isinstance(choice, str):
            msg = f"choice must be several texts, not the one text {choice!r}"
            raise InvalidRequest(msg)
        typed = None
        if schema is not None:
            if choice is not None or regex is not None or json_schema is not None:
                msg = "give one constraint at most: with schema= the output is JSON of that type"
                raise InvalidRequest(msg)
            typed = schema_of(schema)
            json_schema = typed.json
        priority, origin = _inherited(priority)
        request = GenerateRequest(
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=(stop,) if isinstance(stop, str) else _several("stop", stop),
            seed=seed,
            ignore_eos=ignore_eos,
            choice=None if choice is None else _several("choice", choice),
            regex=regex,
            json_schema=json_schema,
            priority=priority,
            n=n,
            logprobs=logprobs,
            lora=lora,
            prefix=prefix,
            resume=resume,
            origin=origin,
        )
        if n > 1 and temperature == 0:
            msg = f"n={n} samples at temperature 0 would all be the same; raise the temperature"
            raise InvalidRequest(msg)
        if typed is None:
            return Generation(self._engine, request)
        return TypedGeneration[Any](self._engine, request, typed)

    async def text(
        self, prompt: Prompt | StreamedPrompt, **options: Unpack[GenerationOptions]
    ) -> str:
        """Generate, and return the whole text: short for ``await llm.generate(prompt, ...).text()``."""
        return await self.generate(prompt, **options).text()

    @overload
    async def embed(  # type: ignore[overload-overlap]  # a str is also a sequence of str
        self, prompt: Prompt, /, *, priority: int | None = None
    ) -> Vector: ...

    @overload
    async def embed(
        self, prompts: Sequence[Prompt], /, *, priority: int | None = None
    ) -> list[Vector]: ...

    async def embed(
        self, prompts: Prompt | Sequence[Prompt], /, *, priority: int | None = None
    ) -> Vector | list[Vector]:
        """Compute the vector of a prompt, or those of several, at once and in order.

        Args:
            prompts: Text, token ids or a chat; or a list of any of these.
            priority: Lower runs earlier; None: the request's own priority.

        Returns:
            One vector for a prompt, a list of vectors for a list of prompts.

        Raises:
            InvalidRequest: The engine gives no vectors, or a prompt is empty.

        Cancellation: the requests are aborted in the engine.
        """
        found = await self._embed(prompts, tokens=False, priority=priority)
        return found[0] if isinstance(found, tuple) else [vectors[0] for vectors in found]

    @overload
    async def embed_tokens(  # type: ignore[overload-overlap]  # the same
        self, prompt: Prompt, /, *, priority: int | None = None
    ) -> tuple[Vector, ...]: ...

    @overload
    async def embed_tokens(
        self, prompts: Sequence[Prompt], /, *, priority: int | None = None
    ) -> list[tuple[Vector, ...]]: ...

    async def embed_tokens(
        self, prompts: Prompt | Sequence[Prompt], /, *, priority: int | None = None
    ) -> tuple[Vector, ...] | list[tuple[Vector, ...]]:
        """Compute a vector for each token of a prompt, or of several, as late interaction needs.

        Args:
            prompts: Text, token ids or a chat; or a list of any of these.
            priority: Lower runs earlier; None: the request's own priority.

        Returns:
            One tuple of vectors for a prompt, a list of them for a list of prompts.

        Raises:
            InvalidRequest: The engine gives no vectors, or a prompt is empty.

        Cancellation: the requests are aborted in the engine.
        """
        return await self._embed(prompts, tokens=True, priority=priority)

    async def _embed(
        self, prompts: Prompt | Sequence[Prompt], *, tokens: bool, priority: int | None
    ) -> tuple[Vector, ...] | list[tuple[Vector, ...]]:
        """Return the vectors of one prompt in a tuple, those of several in a list of tuples."""
        inherited, origin = _inherited(priority)
        listed, several = _listed(prompts)
        requests = [
            EmbedRequest(prompt=prompt, tokens=tokens, priority=inherited, origin=origin)
            for prompt in listed
        ]
        vectors = [answer.vectors for answer in await embed_all(self._engine, requests)]
        return vectors if several else vectors[0]

    async def score(
        self,
        query: str,
        documents: Sequence[str],
        *,
        by: Literal["pair", "embedding"] | None = None,
        priority: int | None = None,
    ) -> list[float]:
        """Score how well each document answers a query; higher is better.

        Args:
            query: The question.
            documents: Texts that may answer it.
            by: ``"pair"``: a cross-encoder reads the query with each document. ``"embedding"``:
                the cosine of their vectors, -1 to 1. None: by pairs if the engine supports them
                (its ``scores_pairs`` is true), else by vectors.
            priority: Lower runs earlier; None: the request's own priority.

        Returns:
            A score for each document, in order.

        Raises:
            InvalidRequest: The engine supports neither, or a text is empty.

        Cancellation: the requests are aborted in the engine.
        """
        if isinstance(documents, str):
            msg = f"documents must be several texts, not the one text {documents!r}"
            raise InvalidRequest(msg)
        if by not in ("pair", "embedding", None):
            msg = f"by must be 'pair', 'embedding' or None, not {by!r}"
            raise InvalidRequest(msg)
        if by is None:
            by = "pair" if self._scorer is not None and self._scorer.scores_pairs else "embedding"
        if by == "embedding":
            asked, *found = await self.embed([query, *documents], priority=priority)
            return [cosine(asked, vector) for vector in found]
        inherited, origin = _inherited(priority)
        requests = [
            EmbedRequest(prompt=query, pair=document, priority=inherited, origin=origin)
            for document in documents
        ]
        return [answer.vectors[0][0] for answer in await embed_all(self._engine, requests)]


def _inherited(priority: int | None) -> tuple[int, Origin | None]:
    """Return the priority and the origin of a new request: those of the running stage call."""
    call = current_call.get()
    if call is None:
        return (0 if priority is None else priority), None
    return (call.priority if priority is None else priority), call.origin


def _listed(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Any], bool]:
    """Return the prompts, and whether they are a list. Token ids and a chat are one prompt."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        return [prompts], False
    if prompts and isinstance(prompts[0], (int, Message)):
        return [prompts], False
    return [*prompts], True


def _several(name: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, Iterable):
        msg = f"{name} must be texts, not {values!r}"
        raise InvalidRequest(msg)
    return tuple(values)
