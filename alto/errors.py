"""Errors that alto raises, by cause and remedy.

::

    AltoError
    ├── GraphError            (ValueError)     a stage or pipeline is declared wrongly: fix the program
    ├── ResourceError         (ValueError)     open() was given too few, too many or wrong resources
    ├── InputError            (TypeError)      a request's input is not what the pipeline declares
    ├── InvalidRequest        (ValueError)     a generation was asked for with impossible parameters
    │   └── PromptTooLong                      the prompt does not fit the model's context
    ├── OutputError           (ValueError)     a typed output is not what its schema says
    │   └── OutputTruncated                    it hit max_tokens before it was complete
    ├── Closed                                 it was closed, or left early
    ├── Overloaded                             refused before it was started: ask again later
    ├── WorkerDied                             a stage's worker process died, twice, at the same call
    ├── RequestError                           one request failed; other requests continue
    │   ├── StageError                         a stage raised; the cause is in ``__cause__``
    │   ├── BufferExceeded                     a request holds more items than its cap
    │   ├── RoutingError                       a stage's router gave no replica
    │   ├── DeadlineExceeded  (TimeoutError)   the request ran out of time
    │   └── RequestCancelled  (Closed)         the request was stopped: its app or handle was closed
    └── EngineError                            an engine failed; the foreign error is in ``__cause__``
        ├── EngineStartError                   it did not start; carries its last lines of output
        ├── EngineDied                         it died while it was running
        └── GenerationFailed                   it gave up on one generation; others continue

Every class builds its own message from typed fields, which stay readable on the instance.

``except RequestError`` catches every failure of a request that was started. A request that is refused
before it starts raises another error: `InputError`, `Overloaded`, or `Closed` if the app is not open.

Every error, also one of a subclass, survives pickling, `copy.copy` and `copy.deepcopy`, with its
fields, its notes, and the chain of its causes. An exception in that chain that cannot be copied is
replaced by an `UnpicklableError`, and a field that cannot be copied by its ``repr``. Tracebacks are
not kept.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any, Literal, Self, cast

from alto._error_pickling import UnpicklableError, copied, deepcopied, pickled
from alto._safe_text import told, unwrapped

__all__ = (
    "AltoError",
    "BufferExceeded",
    "Closed",
    "DeadlineExceeded",
    "EngineDied",
    "EngineError",
    "EngineStartError",
    "GenerationFailed",
    "GraphError",
    "InputError",
    "InvalidRequest",
    "OutputError",
    "OutputTruncated",
    "Overloaded",
    "PromptTooLong",
    "RequestCancelled",
    "RequestError",
    "ResourceError",
    "RoutingError",
    "StageError",
    "UnpicklableError",
    "WorkerDied",
)


class AltoError(Exception):
    """Base class of all errors of alto."""

    @property
    def root_cause(self) -> BaseException:
        """The innermost exception that this one was raised from; itself where there is none.

        Follows ``__cause__``, what ``raise ... from`` sets, through errors of alto and of others
        alike, and goes into groups that hold one exception. A group of several is a root cause
        itself. ``__context__`` is not followed.
        """
        error: BaseException = self
        seen = {id(self)}
        while True:
            held = unwrapped(error)
            if isinstance(held, BaseExceptionGroup) or held.__cause__ is None:
                return held
            if id(held.__cause__) in seen:  # a cycle of causes, which only a program can make
                return held
            error = held.__cause__
            seen.add(id(error))

    def __reduce__(self) -> tuple[Any, ...]:
        return pickled(self, AltoError)

    def __copy__(self) -> Self:
        return cast("Self", copied(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return cast("Self", deepcopied(self, AltoError, memo))


class GraphError(AltoError, ValueError):
    """A stage or a pipeline is declared wrongly; nothing was started.

    The message names the stage, the parameter and the remedy.
    """


class ResourceError(AltoError, ValueError):
    """A keyword-only parameter of a stage has no value, an unknown one, or two."""


class InputError(AltoError, TypeError):
    """A request's input does not fit what the pipeline declares; it was not started."""


class InvalidRequest(AltoError, ValueError):
    """A generation was asked for with parameters no engine can serve."""


class PromptTooLong(InvalidRequest):
    """The prompt, with the tokens it asks for, does not fit the model's context.

    Attributes:
        prompt_tokens: Length of the prompt, in tokens; None where the engine did not say.
        limit: The model's context, in tokens.
    """

    def __init__(self, prompt_tokens: int | None, limit: int, *, detail: str = "") -> None:
        self.prompt_tokens = prompt_tokens
        self.limit = limit
        length = "the prompt" if prompt_tokens is None else f"a prompt of {prompt_tokens} tokens"
        tail = f" ({detail})" if detail else ""
        super().__init__(
            f"{length} does not fit a context of {limit} tokens; "
            f"shorten it or raise the engine's max_model_len{tail}"
        )


class OutputError(AltoError, ValueError):
    """A model's output cannot be read as the type that was asked for.

    Attributes:
        text: The output up to its end.
        items: The items of it that were complete, in order.
    """

    def __init__(self, reason: str, /, *, text: str, items: Sequence[object] = ()) -> None:
        self.text = text
        self.items: tuple[object, ...] = tuple(items)
        super().__init__(reason)


class OutputTruncated(OutputError):
    """A typed output ended before it was complete: raise ``max_tokens``.

    Attributes:
        max_tokens: Limit of the generation, in tokens; None: the rest of the model's context.
    """

    def __init__(
        self, max_tokens: int | None, /, *, text: str, items: Sequence[object] = ()
    ) -> None:
        self.max_tokens = max_tokens
        limit = (
            "the end of the model's context" if max_tokens is None else f"max_tokens={max_tokens}"
        )
        remedy = "shorten the prompt" if max_tokens is None else "raise max_tokens"
        super().__init__(
            f"the output reached {limit} before its JSON was complete, after "
            f"{_counted(len(items), 'whole item')}; {remedy}, or ask for less",
            text=text,
            items=items,
        )


class Closed(AltoError):
    """An object was used after it was closed or left early."""


class Overloaded(AltoError):
    """A call or a request was refused, since too many wait or are open already.

    Nothing was started, so it is no `RequestError`, and asking again later repeats nothing. What a
    stage gets from a pool of engines fails that stage's request as any other error does: as the
    cause of a `StageError`.

    Attributes:
        waiting: Current number.
        limit: Maximum number.
        kind: ``"calls"`` that wait for an engine of a pool (``max_waiting``), or ``"requests"`` that
            are open in an app (``open(max_requests=...)``).
    """

    def __init__(
        self, waiting: int, limit: int, /, *, kind: Literal["calls", "requests"] = "calls"
    ) -> None:
        self.waiting = waiting
        self.limit = limit
        self.kind = kind
        one = waiting == 1
        if kind == "calls":
            message = (
                f"{_counted(waiting, 'call')} {'waits' if one else 'wait'} for an engine, and no more "
                f"than {limit} may; ask again later, or raise the pool's max_waiting"
            )
        else:
            message = (
                f"{_counted(waiting, 'request')} {'is' if one else 'are'} open, and this app takes no "
                f"more than {limit} (open(max_requests={limit})); ask again later (a web server "
                f"answers 503), or raise max_requests"
            )
        super().__init__(message)


class RequestError(AltoError):
    """One request failed. Everything it had started is stopped; other requests continue.

    Attributes:
        request_id: The request's ``id``; None where no request is known, as in the sequential
            interpreter of the test kit.
    """

    request_id: str | None = None


class StageError(RequestError):
    """A stage raised while it worked on a request.

    Attributes:
        stage: Name of the stage.
        path: Ancestry of the call that raised: one index per open level, ``()`` at the root.
        cause: The exception that it raised. An exception group of one, such as a task group with one
            failed task raises, is replaced by the exception in it; ``__cause__`` keeps the group.
    """

    def __init__(self, stage: str, path: tuple[int, ...], cause: BaseException, /) -> None:
        self.stage = stage
        self.path = path
        self.cause: BaseException = unwrapped(cause)
        super().__init__(f"stage {stage!r} raised at path {path}: {told(cause)}")
        self.__cause__: BaseException | None = cause


class BufferExceeded(RequestError):
    """A request holds more items in group and join buffers than its cap allows.

    Attributes:
        stage: Name of the stage whose input overflowed; None: the request's own results, which wait
            for earlier ones where they are read in ancestry order.
        limit: The cap, in items, set by ``open(max_held_items=...)``.
    """

    def __init__(self, stage: str | None, limit: int, /) -> None:
        self.stage = stage
        self.limit = limit
        if stage is None:
            message = (
                f"a request holds more than {limit} results that wait for earlier ones; raise "
                f"open(max_held_items=...), or read them with order='arrival'"
            )
        else:
            message = (
                f"a request holds more than {limit} items that wait for their group or join "
                f"(the last one for stage {stage!r}); raise open(max_held_items=...) "
                f"or make the stages above it yield less"
            )
        super().__init__(message)


class RoutingError(RequestError):
    """The router of a stage failed, or named a replica that does not exist.

    Attributes:
        stage: Name of the stage.
        reason: What the router did.
    """

    def __init__(self, stage: str, reason: str, /) -> None:
        self.stage = stage
        self.reason = reason
        super().__init__(f"stage {stage!r} cannot route an item: {reason}; fix the router")


class DeadlineExceeded(RequestError, TimeoutError):
    """A request was not done in time and was stopped.

    Attributes:
        timeout: The time it had, in seconds.
    """

    def __init__(self, timeout: float, /) -> None:
        self.timeout = timeout
        super().__init__(f"the request was not done within its timeout of {timeout:g} s")


class RequestCancelled(RequestError, Closed):
    """A request was stopped before it was complete: its app or its handle was closed.

    The results that it had given are valid; the others are lost.

    Attributes:
        reason: What stopped it, such as ``"its app was closed"``.
    """

    def __init__(self, reason: str, /) -> None:
        self.reason = reason
        super().__init__(
            f"the request was cancelled before it was complete, since {reason}; "
            f"run it again if it is still wanted"
        )


class WorkerDied(AltoError):
    """A worker process died while it ran a call, and so did the one that ran the call again.

    Attributes:
        stage: Name of the stage.
        replica: Number of the replica.
        exit_code: Exit code of the last process: negative for a signal; None: unknown.
    """

    def __init__(self, stage: str, replica: int, exit_code: int | None, /) -> None:
        self.stage = stage
        self.replica = replica
        self.exit_code = exit_code
        super().__init__(
            f"the worker process of stage {stage!r}, replica {replica}, died twice while it ran "
            f"this call{_how(exit_code)}; see whether the function runs out of memory, crashes in "
            f"native code, or ends its process"
        )


class EngineError(AltoError):
    """An engine failed; the foreign error, if there is one, is in ``__cause__``.

    Attributes:
        engine: Name of the engine.
        reason: What went wrong, in the engine's words.
    """

    def __init__(self, engine: str, reason: str) -> None:
        self.engine = engine
        self.reason = reason
        super().__init__(f"engine {engine!r}: {reason}")


class EngineStartError(EngineError):
    """An engine did not start.

    Attributes:
        output: The last lines that the engine's processes wrote, oldest first.
    """

    def __init__(self, engine: str, reason: str, *, output: Sequence[str] = ()) -> None:
        self.output: tuple[str, ...] = tuple(output)
        lines = "".join(f"\n    {line}" for line in self.output)
        said = f"\n  its last lines of output:{lines}" if lines else ""
        super().__init__(engine, f"did not start: {reason}{said}")


class EngineDied(EngineError):
    """An engine that was running has died; start a new one."""


class GenerationFailed(EngineError):
    """An engine ended one generation without finishing it; others continue."""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return ""
    names = {-one: one.name for one in signal.Signals}
    killed_by = names.get(exit_code)
    return f" (exit code {exit_code})" if killed_by is None else f" (killed by {killed_by})"
