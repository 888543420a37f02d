"""Every error alto raises, by whose fault it is and what to do about it.

::

    AltoError
    ├── GraphError            (ValueError)     a stage or pipeline is declared wrongly: fix the program
    ├── ResourceError         (ValueError)     open() was given too few, too many or wrong resources
    ├── InputError            (TypeError)      a request's input is not what the pipeline declares
    ├── InvalidRequest        (ValueError)     a generation was asked for with impossible parameters
    │   └── PromptTooLong                      the prompt does not fit the model's context
    ├── OutputError           (ValueError)     a typed output is not what its schema says
    │   └── OutputTruncated                    it hit max_tokens before it was complete
    ├── Closed                                 you closed it, or left it early
    ├── Overloaded                             too much waits already; ask again later
    ├── WorkerDied                             a stage's worker process died, twice, at the same call
    ├── RequestError                           one request failed; other requests go on
    │   ├── StageError                         a stage raised; the cause is in ``__cause__``
    │   ├── BufferExceeded                     a request holds more items than its cap
    │   ├── RoutingError                       a stage's router gave no replica
    │   └── DeadlineExceeded  (TimeoutError)   the request's time was over
    └── EngineError                            an engine failed; the foreign error is in ``__cause__``
        ├── EngineStartError                   it did not start; carries its last lines of output
        ├── EngineDied                         it was running and is not any more
        └── GenerationFailed                   it gave up on one generation; others go on

Every class builds its own message from typed fields, which stay readable on the instance.
"""

from __future__ import annotations

from collections.abc import Sequence

from alto._told import told

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
    "RequestError",
    "ResourceError",
    "RoutingError",
    "StageError",
    "WorkerDied",
)


class AltoError(Exception):
    """The root of everything alto raises on purpose."""


class GraphError(AltoError, ValueError):
    """A stage or a pipeline is declared wrongly; nothing has been started.

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

    def __init__(self, prompt_tokens: int | None, limit: int, /, *, detail: str = "") -> None:
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
        text: The output, as far as it came.
        items: The items of it that were complete, in order.
    """

    def __init__(self, reason: str, /, *, text: str, items: Sequence[object] = ()) -> None:
        self.text = text
        self.items: tuple[object, ...] = tuple(items)
        super().__init__(reason)


class OutputTruncated(OutputError):
    """A typed output ended before it was complete: raise ``max_tokens``.

    Attributes:
        max_tokens: What the generation was allowed; None: the rest of the model's context.
    """

    def __init__(
        self, max_tokens: int | None, /, *, text: str, items: Sequence[object] = ()
    ) -> None:
        self.max_tokens = max_tokens
        limit = "the model's context" if max_tokens is None else f"max_tokens={max_tokens}"
        super().__init__(
            f"the output reached {limit} before its JSON was complete, after {len(items)} whole "
            f"item(s); raise max_tokens, or ask for less",
            text=text,
            items=items,
        )


class Closed(AltoError):
    """What you used was closed, or left early, before."""


class Overloaded(AltoError):
    """More calls wait for an engine than may; nothing was started.

    Attributes:
        waiting: Calls that wait.
        limit: The most that may.
    """

    def __init__(self, waiting: int, limit: int, /, *, kind: str = "calls") -> None:
        self.waiting = waiting
        self.limit = limit
        super().__init__(
            f"{waiting} calls wait for an engine, and no more than {limit} may; "
            f"ask again later, or raise max_waiting"
        )


class RequestError(AltoError):
    """One request failed. Everything it had started is stopped; other requests go on."""


class RequestCancelled(RequestError, Closed):
    """A request was stopped before its end.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: str, /) -> None:
        self.reason = reason
        super().__init__(f"the request was cancelled: {reason}")


class StageError(RequestError):
    """A stage raised while it worked on a request.

    Attributes:
        stage: Name of the stage.
        path: Ancestry of the call that raised: one index per open level, ``()`` at the root.
        cause: The exception itself, also ``__cause__``.
    """

    def __init__(self, stage: str, path: tuple[int, ...], cause: BaseException, /) -> None:
        self.stage = stage
        self.path = path
        self.cause = cause
        super().__init__(f"stage {stage!r} raised at path {path}: {told(cause)}")


class BufferExceeded(RequestError):
    """A request holds more items in group and join buffers than its cap allows.

    Attributes:
        stage: Name of the stage whose input overflowed.
        limit: The cap, in items, set by ``open(max_held_items=...)``.
    """

    def __init__(self, stage: str, limit: int, /) -> None:
        self.stage = stage
        self.limit = limit
        super().__init__(
            f"a request holds more than {limit} items that wait for their group or join "
            f"(the last one for stage {stage!r}); raise open(max_held_items=...) "
            f"or make the stages above it yield less"
        )


class RoutingError(RequestError):
    """The router of a stage failed, or named a replica that does not exist.

    Attributes:
        stage: Name of the stage.
        reason: What the router did.
    """

    def __init__(self, stage: str, reason: str, /) -> None:
        self.stage = stage
        self.reason = reason
        super().__init__(f"stage {stage!r} cannot route an item: {reason}; mend the router")


class DeadlineExceeded(RequestError, TimeoutError):
    """A request was not done in time and was stopped.

    Attributes:
        timeout: The time it had, in seconds.
    """

    def __init__(self, timeout: float, /) -> None:
        self.timeout = timeout
        super().__init__(f"the request was not done within its timeout of {timeout:g} s")


class WorkerDied(AltoError):
    """A worker process died while it ran a call, and so did the one that ran the call again.

    Attributes:
        stage: Name of the stage.
        replica: Number of the replica.
        exit_code: How the last process ended: negative for a signal; None where it is not known.
    """

    def __init__(self, stage: str, replica: int, exit_code: int | None, /) -> None:
        self.stage = stage
        self.replica = replica
        self.exit_code = exit_code
        how = "" if exit_code is None else f" (exit code {exit_code})"
        super().__init__(
            f"the worker process of stage {stage!r}, replica {replica}, died twice while it ran "
            f"this call{how}; look at what the function does to its process"
        )


class EngineError(AltoError):
    """An engine failed; the foreign error, if there is one, is in ``__cause__``.

    Attributes:
        engine: Name of the engine.
        reason: What went wrong, in the engine's words.
    """

    def __init__(self, engine: str, reason: str, /) -> None:
        self.engine = engine
        self.reason = reason
        super().__init__(f"engine {engine!r}: {reason}")


class EngineStartError(EngineError):
    """An engine did not start.

    Attributes:
        output: The last lines that the engine's processes wrote, oldest first.
    """

    def __init__(self, engine: str, reason: str, /, *, output: Sequence[str] = ()) -> None:
        self.output: tuple[str, ...] = tuple(output)
        lines = "".join(f"\n    {line}" for line in self.output)
        said = f"\n  its last lines of output:{lines}" if lines else ""
        super().__init__(engine, f"did not start: {reason}{said}")


class EngineDied(EngineError):
    """An engine that was running is not any more; start a new one."""


class GenerationFailed(EngineError):
    """An engine ended one generation without finishing it; others go on."""
