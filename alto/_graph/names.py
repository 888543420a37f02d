"""Where the names in a function's annotations are looked up, and when that cannot be done yet."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import get_type_hints

from alto._graph.show import show
from alto.errors import GraphError

__all__ = ("Names", "Unresolved")


NO_TYPES = (bool, bytes, complex, dict, float, int, list, set, tuple)
"""Values of these are not types; people write ``[str]`` who mean ``list[str]``."""


class Unresolved(GraphError):
    """A name in an annotation means nothing yet; it may later, so this can be tried again."""


class Names:
    """The scope of a function's annotations: its globals, what it closes over, its caller's locals.

    The caller is whoever decorates the function. Its locals are a snapshot, so a type that is
    defined in the same function after the decoration is not found.
    """

    def __init__(self, fn: Callable[..., object], caller: Mapping[str, object], /) -> None:
        inner = inspect.unwrap(fn)
        self._globals: dict[str, object] = getattr(inner, "__globals__", {})
        self._locals = dict(caller)
        code = getattr(inner, "__code__", None)
        for name, cell in zip(
            getattr(code, "co_freevars", ()),
            getattr(inner, "__closure__", None) or (),
            strict=False,
        ):
            try:
                self._locals[name] = cell.cell_contents
            except ValueError:  # Not assigned yet.
                continue

    def resolve(self, annotation: object, /, *, where: str) -> object:
        """The type that *annotation* means, strings in it included.

        Args:
            annotation: As written; a string where the module postpones annotations.
            where: What is annotated, for the message: ``stage 'search': parameter 'query'``.

        Raises:
            Unresolved: A name is not defined (yet).
            GraphError: The annotation is no type at all.
        """
        holder = SimpleNamespace(__annotations__={"it": annotation})
        try:
            found = get_type_hints(holder, self._globals, self._locals, include_extras=True)["it"]
        except (NameError, AttributeError) as error:
            msg = (
                f"{where}: the annotation {show(annotation)!r} cannot be resolved ({error}); "
                f"define or import the name before the first use, outside `if TYPE_CHECKING`, "
                f"at the top of the module or where the function can see it"
            )
            raise Unresolved(msg) from error
        except Exception as error:
            msg = (
                f"{where}: the annotation {show(annotation)!r} is not a type "
                f"({type(error).__name__}: {error}); correct it"
            )
            raise GraphError(msg) from error
        if isinstance(found, NO_TYPES):
            msg = f"{where}: the annotation {found!r} is not a type; correct it"
            raise GraphError(msg)
        return found
