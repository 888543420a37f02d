"""Type variables of generic stages and pipelines: solved at each call from the streams given.

``async def distinct(items: Group[T]) -> AsyncIterator[T]``, called on a ``Stream[str]``, gives a
``Stream[str]``. A variable that several parameters share stands for the union of what they get,
which is always a solution, because type arguments are compared covariantly. So only a bound or the
constraints of a variable can make a call wrong. A variable that the streams do not determine is
``Any``.
"""

from __future__ import annotations

from collections import abc
from typing import Any, NewType, ParamSpec, TypeVar, Union, Unpack, final, get_args

from alto._graph.types import (
    CALLABLE,
    arguments_as,
    class_of,
    fits,
    is_union,
    is_unpacked,
    plain,
    show,
)

__all__ = ("TypeVariables", "variables_in")

SENDS = (abc.Generator, abc.AsyncGenerator, abc.Coroutine)
"""Classes of which only the first argument is what they give."""


def variables_in(tp: object, /) -> tuple[TypeVar, ...]:
    """Return the type variables in *tp*; none of a generic class without arguments."""
    if isinstance(tp, TypeVar):
        return (tp,)
    found = getattr(tp, "__parameters__", ()) if get_args(tp) else ()
    return tuple(one for one in found if isinstance(one, TypeVar))


@final
class TypeVariables:
    """The type variables of one call, and the types found for each."""

    def __init__(self) -> None:
        self._found: dict[TypeVar, list[object]] = {}

    def bind(self, given: object, wanted: object, /) -> str | None:
        """Find the variables in *wanted*, a parameter's type, by comparing it with *given*.

        Returns:
            The violated bound or constraints, for a message; None where there are none.
        """
        variables = variables_in(plain(wanted))
        if variables:
            self._compare(given, wanted)
        for variable in variables:
            refused = self._refused(variable)
            if refused is not None:
                return refused
        return None

    def fill(self, tp: object, /) -> object:
        """Return *tp* with its variables replaced by what was found; by Any where nothing was."""
        if isinstance(tp, TypeVar):
            return self._solution(tp)
        parameters = getattr(tp, "__parameters__", ()) if get_args(tp) else ()
        if not parameters:
            return tp
        filled: Any = tp  # Any: it is subscripted.
        return filled[tuple(self._argument(parameter) for parameter in parameters)]

    def _argument(self, parameter: object) -> object:
        if isinstance(parameter, TypeVar):
            return self._solution(parameter)
        return ... if isinstance(parameter, ParamSpec) else Unpack[tuple[Any, ...]]

    def _solution(self, variable: TypeVar) -> Any:  # noqa: ANN401  # a type
        found = self._found.get(variable)
        if not found:
            return Any
        if not variable.__constraints__:
            return Union[tuple(found)]  # noqa: UP007  # built at run time
        # A constrained variable is exactly one of its constraints; which one may be unknown.
        fitting = self._fitting(variable, found)
        exact = [one for one in fitting if one in found]
        if exact:
            return exact[0]
        return fitting[0] if len(fitting) == 1 else Any

    def _refused(self, variable: TypeVar) -> str | None:
        found = self._found.get(variable, [])
        if variable.__constraints__:
            if self._fitting(variable, found):
                return None
            allowed = " or ".join(map(show, variable.__constraints__))
            return f"{variable.__name__} is {allowed}, not {' and '.join(map(show, found))}"
        bound = variable.__bound__
        wrong = [one for one in found if bound is not None and not fits(one, bound)]
        if not wrong:
            return None
        return f"{variable.__name__} is bound to {show(bound)}, which {show(wrong[0])} is not"

    def _fitting(self, variable: TypeVar, found: list[object]) -> list[object]:
        return [constraint for constraint in variable.__constraints__
                if all(fits(one, constraint) for one in found)]  # fmt: skip

    def _compare(self, given: object, wanted: object) -> None:
        given, wanted = plain(given), plain(wanted)
        if not variables_in(wanted):
            return
        if isinstance(wanted, TypeVar):
            found = self._found.setdefault(wanted, [])
            if given not in found:
                found.append(given)
        elif is_union(given):  # Before a wanted union: each member given may match another one.
            for one in get_args(given):
                self._compare(one, wanted)
        elif is_union(wanted):
            self._compare_with_union(given, wanted)
        elif isinstance(given, NewType):
            self._compare(given.__supertype__, wanted)
        else:
            self._compare_arguments(given, wanted)

    def _compare_with_union(self, given: object, wanted: object) -> None:
        # The first member that fits takes it, a variable alone only what no other member takes.
        alone = [one for one in get_args(wanted) if isinstance(one, TypeVar)]
        others = [one for one in get_args(wanted) if not isinstance(one, TypeVar)]
        if class_of(given) is None:  # It may be any of them.
            self._give_up(wanted)
            return
        fitting = next((one for one in others if fits(given, one)), None)
        if fitting is not None:
            self._compare(given, fitting)
        elif alone:
            self._compare(given, alone[0])

    def _compare_arguments(self, given: object, wanted: object) -> None:
        cls = class_of(wanted)
        have = None if cls is None or class_of(given) is None else arguments_as(given, cls)
        want = get_args(wanted)
        if have is None or cls is None:
            self._give_up(wanted)
        elif cls is tuple:
            self._compare_tuples(have, want, wanted)
        elif cls is CALLABLE or cls in SENDS:
            # What goes in may be of a wider type: it says nothing of the variables in it.
            place = -1 if cls is CALLABLE else 0
            self._compare(have[place], want[place])
        elif len(have) == len(want):
            parameters = getattr(cls, "__parameters__", ())
            for number, (one, other) in enumerate(zip(have, want, strict=True)):
                if number >= len(parameters) or not _is_contravariant(parameters[number]):
                    self._compare(one, other)
        else:
            self._give_up(wanted)

    def _compare_tuples(
        self, have: tuple[object, ...], want: tuple[object, ...], wanted: object
    ) -> None:
        if any(map(is_unpacked, (*have, *want))):
            self._give_up(wanted)
        elif want[-1] is Ellipsis:
            for one in have:
                if one is not Ellipsis:
                    self._compare(one, want[0])
        elif have[-1] is Ellipsis:
            for other in want:
                self._compare(have[0], other)
        elif len(have) == len(want):
            for one, other in zip(have, want, strict=True):
                self._compare(one, other)

    def _give_up(self, wanted: object) -> None:
        # Nothing is known of what the variables in `wanted` get here.
        for variable in variables_in(wanted):
            self._compare(Any, variable)


def _is_contravariant(parameter: object) -> bool:
    return bool(getattr(parameter, "__contravariant__", False))
