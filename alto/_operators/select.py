"""Operators that hand items on: ``first``, ``where``, ``switch``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeGuard, TypeVar, get_args, overload

from alto._graph.spec import GroupOrder
from alto._graph.types import accepts, show
from alto._operators.arguments import (
    check_choice,
    check_function,
    check_takes,
    check_whole,
    function_of,
)
from alto._operators.bodies import Routed, branching, keeping, leaving, routing
from alto._operators.call import OperatorCall
from alto._safe_text import short
from alto.errors import GraphError
from alto.stream import Stream

__all__ = ("first", "switch", "where")

T = TypeVar("T")
U = TypeVar("U")


def first(
    stream: Stream[T], /, n: int = 1, *, by: Stream[object] | None = None,
    order: GroupOrder = "ancestry",
) -> Stream[T]:  # fmt: skip
    """Pass on the first *n* items of each group, each at once; all, where there are fewer.

    With the last of them the group is left: calls that only it was waiting for are cancelled, down
    to the engines' generations. The result has a level of its own, with at most *n* items below a parent.

    Args:
        stream: The items to take from; it must be below something, so not one item per request.
        n: Most items per group.
        by: The stream whose items the groups belong to, where that is not the direct parent.
        order: ``"ancestry"``: those that a sequential program would make first, the same under
            every schedule; ``"arrival"``: those that come first, for a quorum or a race.

    Raises:
        GraphError: *n* is no whole number from 1, or there is nothing to gather or gather by.

    Cancellation: as in a stage, calls that only the group was waiting for are cancelled.
    """
    call = OperatorCall("first")
    check_whole(n, call.where, "n")
    check_choice(order, call.where, "order=", get_args(GroupOrder))
    output = call.gathered(stream).type
    return call.stage(leaving(n), {"stream": stream}, output, group=True, by=by, order=order)


@overload
def where(stream: Stream[T], /, predicate: Callable[[T], TypeGuard[U]]) -> Stream[U]: ...
@overload
def where(stream: Stream[T], /, predicate: Callable[[T], object]) -> Stream[T]: ...
def where(stream: Stream[Any], /, predicate: Callable[[Any], object]) -> Stream[Any]:
    """Pass on the items for which *predicate* is true.

    The result has a level of its own, with the item itself or nothing below each item. So it still
    joins with the streams that its items were made from, and a stage or operator that gathers it
    names the ancestor:
    ``count(where(claims, is_checkable), by=question)``.

    Args:
        stream: The items to choose from.
        predicate: A function, sync or async, that is called once per item. One that is annotated
            ``-> TypeGuard[U]`` gives a ``Stream[U]``.

    Raises:
        GraphError: *predicate* is no such function, or provably takes other items.
        StageError: In a request: *predicate* raised.

    Cancellation: a *predicate* that waits is cancelled when its item is no longer needed.
    """
    call = OperatorCall("where")
    symbol = call.symbol(stream, "stream")
    function = f"{call.where}: predicate"
    check_function(predicate, function, 1)
    known = function_of(predicate, 1)
    check_takes(known.takes[0], symbol, function)
    output = symbol.type if known.narrows is None else known.narrows
    return call.stage(keeping(predicate), {"stream": stream}, output, group=False)


@overload
def switch(
    stream: Stream[T], choose: Callable[[T], object], case: object, /, *, otherwise: Literal[True]
) -> tuple[Stream[T], Stream[T]]: ...
@overload
def switch(
    stream: Stream[T], choose: Callable[[T], object], case: object, case2: object, /, *,
    otherwise: Literal[False] = ...,
) -> tuple[Stream[T], Stream[T]]: ...  # fmt: skip
@overload
def switch(
    stream: Stream[T], choose: Callable[[T], object], case: object, case2: object, /, *,
    otherwise: Literal[True],
) -> tuple[Stream[T], Stream[T], Stream[T]]: ...  # fmt: skip
@overload
def switch(
    stream: Stream[T], choose: Callable[[T], object], case: object, case2: object, case3: object,
    /, *, otherwise: Literal[False] = ...,
) -> tuple[Stream[T], Stream[T], Stream[T]]: ...  # fmt: skip
@overload
def switch(
    stream: Stream[T], choose: Callable[[T], object], case: object, case2: object, case3: object,
    /, *, otherwise: Literal[True],
) -> tuple[Stream[T], Stream[T], Stream[T], Stream[T]]: ...  # fmt: skip
@overload
def switch(
    stream: Stream[T], choose: Callable[[T], object], /, *cases: object, otherwise: bool = ...
) -> tuple[Stream[T], ...]: ...
def switch(
    stream: Stream[Any], choose: Callable[[Any], object], /, *cases: object, otherwise: bool = False
) -> tuple[Stream[Any], ...]:
    """Divide a stream: each item goes to the stream for the case that *choose* gives.

    ``hard, easy = alto.switch(claims, is_hard, True, False)``. Each result has a level of its own,
    with the item itself or nothing below each item, so that :func:`alto.merge` brings what was made in
    the branches together again, in the order of the items.

    Args:
        stream: The items to divide.
        choose: A function, sync or async, that is called once per item and gives its case.
        *cases: The values that *choose* may give; they must be hashable, and are compared with ``==``.
        otherwise: True adds one more stream at the end, for items of no case. Without it such an
            item fails its request.

    Returns:
        A stream per case, in the order of *cases*. Each must be used; where one is not needed, use
        :func:`where`.

    Raises:
        GraphError: An argument is not as described, or *choose* provably takes other items or never
            gives a case.
        StageError: In a request: *choose* raised, or gave none of the cases.

    Cancellation: a *choose* that waits is cancelled when its item is no longer needed.
    """
    call = OperatorCall("switch")
    symbol = call.symbol(stream, "stream")
    function = f"{call.where}: choose"
    check_function(choose, function, 1)
    known = function_of(choose, 1)
    check_takes(known.takes[0], symbol, function)
    branches = _branches(cases, known.gives, otherwise, call.where)
    default = len(cases) if otherwise else None
    body = routing(choose, branches, default)
    routed = call.stage(body, {"stream": stream}, Routed, group=False)
    names = [short(case) for case in cases] + ["otherwise"] * otherwise
    return tuple(
        call.stage(branching(branch), {"item": routed}, symbol.type, group=False,
                   suffix=f"[{name}]")
        for branch, name in enumerate(names)
    )  # fmt: skip


def _branches(
    cases: tuple[object, ...], gives: object, otherwise: object, where: str
) -> dict[object, int]:
    # Check the cases, and number them.
    if not isinstance(otherwise, bool):
        msg = f"{where}: otherwise= must be True or False, not {short(otherwise)}"
        raise GraphError(msg)
    if len(cases) + otherwise < 2:
        remedy = "name the others, or add otherwise=True"
        if len(cases) == 1 and isinstance(cases[0], list | tuple):
            remedy = "write them one by one: `switch(stream, choose, *cases)`"
        msg = f"{where} needs two cases or more, not {len(cases)}; {remedy}"
        raise GraphError(msg)
    branches: dict[object, int] = {}
    for case in cases:
        try:
            known = case in branches
        except TypeError:
            msg = f"{where}: case {short(case)} cannot be hashed; use texts, numbers or enums"
            raise GraphError(msg) from None
        if known:
            msg = f"{where}: case {short(case)} is given twice; give each case once"
            raise GraphError(msg)
        if not accepts(case, gives):
            msg = (
                f"{where}: case {short(case)} ({type(case).__name__}) cannot be a result of choose,"
                f" which is annotated {show(gives)}; correct one of them"
            )
            raise GraphError(msg)
        branches[case] = len(branches)
    return branches
