"""Make a JSON schema of a Python type, and read values of the type from JSON that is still being written.

This module knows no type by itself: msgspec does (classes of attrs, dataclasses, ``TypedDict`` and
others), and pydantic if the type contains one of its models; ijson parses the text as it arrives. None of
the three is imported before the first use of ``schema=``.

The values of a list are known one by one, each with the character that closes it; a number, which
may always have one more digit, with the character after it.

`alto._text.json` is not used here, although it cuts JSON too. It finds the end of a value by brackets
alone, so a fault inside a value shows only at its end, and ijson finds it at once, which aborts the
generation. It also skips text around the JSON, which is a fault here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, final, get_args, get_origin, get_type_hints

import attrs

from alto.errors import InvalidRequest, OutputError, OutputTruncated
from alto.model import FinishReason

__all__ = ("TypedReader", "Schema", "schema_of")

ACCEPTED = (
    "classes of attrs, dataclasses, msgspec.Struct, TypedDict, NamedTuple, Enum and pydantic, "
    "Literal, int, float, str, bool, type(None), and list, dict and unions of these"
)
"""Types that ``schema=`` accepts, for messages."""
MISSING = "schema= needs msgspec and ijson; install them with: pip install 'alto-llm[typed]'"
"""Message if a library is not installed."""

Convert = Callable[[Any], Any]


class _MisfitError(Exception):
    """A value does not fit its type: the path within the value, and the reason."""

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"{why} - at `${path}`")


@final
@attrs.frozen(kw_only=True, eq=False)
class Schema:
    """Type of a model's output, with its JSON schema and conversion."""

    name: str
    """Name of the type, as in source code."""
    as_list: str
    """Name of the list type whose items can be streamed; of a list type, its own."""
    json: dict[str, Any]
    """JSON schema of the type, which allows no other members. It is shared: do not change it."""
    is_list: bool
    """The values are the items of a list; if false, the output is one value."""
    convert: Convert
    """Converts JSON, as Python's own types, to one value; raises `_MisfitError`."""
    check: Convert | None
    """Converts the whole list, if the type has constraints on the list itself; else None."""


def schema_of(kind: object, /) -> Schema:
    """Return the schema of a type.

    Raises:
        InvalidRequest: *kind* is no type, or none that JSON can express; or a library is missing.
    """
    try:
        import ijson  # noqa: F401, PLC0415  # an extra, imported at the first use of schema=
        import msgspec  # noqa: F401, PLC0415  # the same
    except ImportError as error:
        raise InvalidRequest(MISSING) from error
    try:
        hash(kind)
    except TypeError:
        return _build(kind)
    return _build_once(kind)


@lru_cache(maxsize=256)
def _build_once(kind: object) -> Schema:
    return _build(kind)


def _build(kind: object) -> Schema:
    bare, extra = (get_args(kind)[0], True) if get_origin(kind) is Annotated else (kind, False)
    is_list = bare is list or get_origin(bare) is list
    item = next(iter(get_args(bare)), Any) if is_list else kind
    try:
        build = _pydantic if _is_pydantic(kind, set()) else _msgspec
        schema, convert = build(kind, item)
        check = build(kind, kind)[1] if is_list and extra else None
    except Exception as error:  # a library, or a class of the user's, may raise anything
        lines = [line for line in str(error).splitlines() if line.strip()]
        why = next((line for line in lines if "not supported" in line), next(iter(lines), ""))
        if isinstance(error, NameError):
            why += ", at the top level of the module that uses it in an annotation"
        msg = (
            f"schema={_name(kind)} has no JSON schema: {type(error).__name__}: {why}; "
            f"accepted are {ACCEPTED}"
        )
        raise InvalidRequest(msg) from error
    closed: dict[str, Any] = _closed(schema)
    return Schema(
        name=_name(kind),
        as_list=_name(kind) if is_list else _as_list(bare, closed),
        json=closed,
        is_list=is_list,
        convert=convert,
        check=check,
    )


def _msgspec(kind: Any, item: Any) -> tuple[dict[str, Any], Convert]:  # noqa: ANN401  # types
    import msgspec  # noqa: PLC0415  # an extra, imported at the first use of schema=

    def convert(value: object) -> object:
        try:
            return msgspec.convert(value, item, strict=True, str_keys=True)
        except msgspec.ValidationError as error:
            why, _, path = str(error).partition(" - at `$")
            raise _MisfitError(path.rstrip("`"), why) from error

    return msgspec.json.schema(kind), convert


def _pydantic(kind: Any, item: Any) -> tuple[dict[str, Any], Convert]:  # noqa: ANN401  # types
    import pydantic  # noqa: PLC0415  # *kind* contains one of its types, so it is imported already

    adapter = pydantic.TypeAdapter[object](item)

    def convert(value: object) -> object:
        try:  # as JSON, since strict models take a date from JSON but not from a str
            return adapter.validate_json(json.dumps(value))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
            raise _MisfitError(path, first["msg"]) from error

    return pydantic.TypeAdapter(kind).json_schema(), convert


def _is_pydantic(kind: object, seen: set[type]) -> bool:
    """Return whether a type contains something of pydantic."""
    if "pydantic" not in sys.modules:
        return False  # a type cannot contain what has not been imported
    if type(kind).__module__.partition(".")[0] in ("pydantic", "annotated_types"):
        return True  # Annotated[int, Field(gt=0)], PositiveInt
    parts = list(get_args(kind))
    if isinstance(kind, type) and not parts and kind not in seen:
        seen.add(kind)
        if hasattr(kind, "__pydantic_core_schema__") or hasattr(kind, "__pydantic_complete__"):
            return True
        with suppress(Exception):  # the library that reads the type reports a missing name
            parts = list(get_type_hints(kind, include_extras=True).values())
    return any(_is_pydantic(part, seen) for part in parts)


def _closed(node: Any, *, names: bool = False) -> Any:  # noqa: ANN401  # JSON
    """Return a JSON schema that refuses members which its type does not have."""
    if isinstance(node, list):
        return [_closed(part) for part in node]
    if not isinstance(node, dict):
        return node
    if names:  # from names to schemas
        return {name: _closed(part) for name, part in node.items()}
    closed = {
        key: part if key in _VALUES else _closed(part, names=key in ("properties", "$defs"))
        for key, part in node.items()
    }
    if "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


_VALUES = ("const", "default", "enum", "examples")
"""Keywords whose values are plain JSON, not schemas."""


def _as_list(kind: object, schema: dict[str, Any]) -> str:
    """Return the name of the list type to use instead: of the same items, or of *kind* if it has none."""
    if schema.get("type") != "array" or "prefixItems" in schema:
        return f"list[{_name(kind)}]"
    items = [_name(item) for item in get_args(kind) if item is not Ellipsis]
    return f"list[{items[0]}]" if items else "list"


def _name(kind: object) -> str:
    if kind is NoneType:
        return "None"
    if kind is Ellipsis:
        return "..."
    if isinstance(kind, type) and not get_args(kind):
        return kind.__qualname__.rpartition("<locals>.")[2]
    origin: object = get_origin(kind)
    if origin in (Union, UnionType):
        return " | ".join(map(_name, get_args(kind)))
    if origin is Annotated:
        return _name(get_args(kind)[0])
    if isinstance(origin, type):
        return f"{_name(origin)}[{', '.join(map(_name, get_args(kind)))}]"
    return repr(kind).removeprefix("typing.")


def _plain(value: object) -> object:
    """Return *value* with floats for the parser's decimals, which hold numbers of any size."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value


_MOST_DIGITS = 1000
"""Most digits of a number. Python and the parser have their limits at 4,300."""
_DIGITS = re.compile(r"[0-9]+")


@final
class TypedReader:
    """Incremental reader of one output of a model: has each value as soon as it is complete.

    No method raises: after a fault :attr:`error` is set, and later text is not read.
    """

    __slots__ = ("_begun", "_digits", "_faults", "_found", "_parser", "_raw", "_schema", "_texts", "error",
                 "values")  # fmt: skip

    def __init__(self, schema: Schema, /) -> None:
        import ijson  # noqa: PLC0415  # an extra, imported at the first use of schema=

        self._schema = schema
        # Models also write numbers out of every range, and nesting deeper than Python's stack.
        self._faults = (ijson.JSONError, ValueError, ArithmeticError, RecursionError)
        self._digits = 0  # Digits at the end of the text so far.
        self._texts: list[str] = []
        self._begun = not schema.is_list  # No "[" has to be checked for any more.
        self._found = ijson.sendable_list()
        self._parser = ijson.items_coro(self._found, "item" if schema.is_list else "")
        self._raw: list[object] = []
        self.values: list[Any] = []
        """Complete values, in order."""
        self.error: OutputError | None = None
        """The fault of the output; None: there is none."""

    def __del__(self) -> None:
        """Close the parser, since one of ijson's complains about incomplete JSON when it is dropped."""
        with suppress(Exception):
            self._parser.close()

    @property
    def text(self) -> str:
        """The text that was read."""
        return "".join(self._texts)

    def feed(self, text: str, /) -> None:
        """Read more text."""
        if self.error is not None or not text:
            return
        self._texts.append(text)
        if not self._begun and (head := text.lstrip(" \t\r\n")):
            self._begun = True
            if head[0] != "[":
                self._fail(f"is no JSON list, it begins with {head[:20]!r}")
                return
        if self._has_endless_number(text):
            self._fail(f"has a number of more than {_MOST_DIGITS} digits")
            return
        fault: Exception | None = None
        try:
            self._parser.send(text.encode("utf-8", "surrogatepass"))
        except self._faults as error:
            fault = error
        if fault is not None or self._found:
            self._take(fault)

    def _has_endless_number(self, text: str) -> bool:
        """Return whether a number has too many digits, which would crash the parser and the process."""
        longest = 0
        for run in _DIGITS.finditer(text):
            longest = max(longest, len(run[0]) + (self._digits if run.start() == 0 else 0))
        rest = text[len(text.rstrip("0123456789")) :]
        self._digits = len(rest) + (self._digits if len(rest) == len(text) else 0)
        return longest > _MOST_DIGITS

    def finish(self, reason: FinishReason, max_tokens: int | None, /) -> None:
        """End the output, for *reason*."""
        if self.error is not None:
            return
        known = len(self.values)
        fault: Exception | None = None
        try:
            self._parser.close()
        except self._faults as error:
            fault = error
            self._found.clear()  # a number, which may be incomplete
        complete = self._take(fault)
        cut_number = len(self.values) > known  # only the end closed it, so it may be incomplete
        if reason == "length" and (cut_number or not complete):
            items = self.values if self._schema.is_list else ()
            self.error = OutputTruncated(max_tokens, text=self.text, items=items)
        elif complete and self._schema.check is not None:
            try:
                self._schema.check(self._raw)
            except _MisfitError as error:
                self._fail(f"does not fit {self._schema.name}: {error}", error)

    def _take(self, fault: Exception | None) -> bool:
        """Convert the values that the parser found, then note *fault*. Returns whether there is none."""
        try:
            return self._take_found(fault)
        except RecursionError:
            self._fail("is nested too deep")
            return False

    def _take_found(self, fault: Exception | None) -> bool:
        found = list(self._found)
        self._found.clear()
        for raw in map(_plain, found):
            try:
                value = self._schema.convert(raw)
            except _MisfitError as error:
                where = f"[{len(self.values)}]" if self._schema.is_list else ""
                misfit = _MisfitError(where + error.path, error.why)
                self._fail(f"does not fit {self._schema.name}: {misfit}", error)
                return False
            self.values.append(value)
            if self._schema.check is not None:
                self._raw.append(raw)
        if fault is not None:
            self._fail(_explain(fault, self.text), fault)
        return fault is None

    def _fail(self, what: str, cause: Exception | None = None) -> None:
        items = self.values if self._schema.is_list else ()
        self.error = OutputError(f"the model's output {what}", text=self.text, items=items)
        self.error.__cause__ = cause


def _explain(fault: Exception, text: str) -> str:
    """Return the reason of a parser's fault in a line; its own message draws the place."""
    why = str(fault).partition("\n")[0]
    if "EOF" in why or "Incomplete" in why:
        return f"ended before its JSON was complete, with {text[-40:]!r}"
    return f"is no JSON ({why}), in {text[-40:]!r}"
