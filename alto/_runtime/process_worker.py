"""The code that runs in a worker process: makes resources, runs calls, gives resources back.

Each function takes bytes and returns bytes. Exceptions are pickled here, because only here it is known
whether an exception survives pickling.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import copy_context
from multiprocessing.util import Finalize
from typing import Any, ClassVar, Final, TypeAlias

from alto._graph.spec import PerReplica
from alto._safe_text import message, noted, told
from alto.errors import ResourceError

__all__ = ("PLAIN", "Location", "begin", "end", "find_function", "run")

PLAIN: Final = "give it plain data, or let the stage run elsewhere: runs_in='thread'"
"""The remedy for an object that cannot be pickled."""
Location: TypeAlias = tuple[str, str]
"""A module, and a name in it."""


def find_function(module: str, where: str) -> object:
    """Return the function of the stage with that name in a module; None if there is none."""
    value: object = sys.modules.get(module)
    for part in where.split("."):
        value = getattr(value, part, None)
    return getattr(value, "fn", value)


class _WorkerState:
    """The function and the resources of this process."""

    fn: Callable[..., Any]
    resources: ClassVar[dict[str, object]] = {}
    kept: ClassVar[ExitStack] = ExitStack()


def begin(payload: bytes) -> bytes:
    """Make the resources. Returns the exception or None, pickled."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to the parent too, which ends this process.
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, name="alto-guard", daemon=True).start()
    try:
        (module, where), name, number, sent = pickle.loads(payload)  # noqa: S301  # our parent's
        __import__(module)
        function = find_function(module, where)
        assert callable(function), (module, where)
        _WorkerState.fn = function
        Finalize(None, _WorkerState.kept.close, exitpriority=10)
        for resource, data in sent:
            _WorkerState.resources[resource] = _made(
                name, resource, number, data, _WorkerState.kept
            )
    except BaseException as error:  # noqa: BLE001  # raised by the parent
        return pickle.dumps(_sendable(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return pickle.dumps(None)


def _leave(number: int, _: object) -> None:
    # The start was cancelled: raise SystemExit, so that what was made is given back.
    sys.exit(128 + number)


def _made(name: str, resource: str, number: int, data: bytes, kept: ExitStack) -> object:
    value = pickle.loads(data)  # noqa: S301  # our parent's
    if not isinstance(value, PerReplica):
        return value
    try:
        made = value.make(number)
        if isinstance(made, AbstractContextManager):
            made = kept.enter_context(made)
        if hasattr(made, "__aenter__") or asyncio.iscoroutine(made):
            if asyncio.iscoroutine(made):
                made.close()
            msg = "a worker process has no event loop; make it with a plain function or `with`"
            raise TypeError(msg)  # noqa: TRY301  # reported like any other reason
    except Exception as error:
        msg = (
            f"stage {name!r}: resource {resource!r} of replica {number} could not be made: "
            f"{told(error)}"
        )
        raise ResourceError(msg) from error
    return made


def end(_: bytes) -> bytes:
    """Give the resources back. Returns the exception or None, pickled."""
    try:
        _WorkerState.kept.close()
    except BaseException as error:  # noqa: BLE001  # raised by the parent
        return pickle.dumps(_sendable(error))
    return pickle.dumps(None)


def run(sent: bytes) -> bytes:
    """Run a call. Returns whether it raised, and its exception or result, pickled."""
    try:
        # Each call has its own context, so that no call sees what an earlier one has set.
        value = copy_context().run(_called, *pickle.loads(sent))  # noqa: S301  # our parent's
    except BaseException as error:  # noqa: BLE001  # raised by the parent
        return pickle.dumps((True, _sendable(error)))
    try:
        return pickle.dumps((False, value), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001  # raised by the parent
        why = f"its result cannot be sent back from the worker process ({told(error)}); {PLAIN}"
        return pickle.dumps((True, TypeError(why)))


def _called(
    args: Sequence[object], values: Mapping[str, object], context: Mapping[Location, object]
) -> object:
    for (module, name), value in context.items():
        getattr(importlib.import_module(module), name).set(value)
    return _WorkerState.fn(*args, **{**_WorkerState.resources, **values})


def _sendable(error: BaseException) -> Exception:
    # Not every exception survives pickling: some have constructors with other arguments.
    where = f"{type(error).__module__}.{type(error).__qualname__}"
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):
            survived = pickle.loads(pickle.dumps(error))  # noqa: S301  # made here
            if type(survived) is not type(error):
                raise TypeError(survived)
            noted(error, f"in worker process {os.getpid()}{_traced(error)}")
            return error
    return RuntimeError(f"{where}: {message(error)}{_traced(error)}")


def _traced(error: BaseException) -> str:
    lines, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"\n  {code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    return "".join(lines[1:])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
