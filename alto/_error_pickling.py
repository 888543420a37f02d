"""Exceptions taken apart and put together again, so that they survive pickling and copying.

Python rebuilds an exception by calling its class with its ``args``. That fails for every class whose
constructor takes something else than its message, it loses ``__cause__`` and ``__context__``, and a
process pool that cannot rebuild the exception of one job fails all the others with it.

So an error of alto is taken apart: it and every exception that can be reached from it (as a cause, a
context, a member of a group, a field) become one flat list of records, in which they refer to each
other by number. A record that cannot be restored becomes an `UnpicklableError`; its place in the
chain stays. Tracebacks are left behind.
"""

from __future__ import annotations

import copy
import copyreg
import pickle
from collections.abc import Callable, Mapping
from types import MemberDescriptorType
from typing import Any, TypeAlias, cast

import attrs

from alto._safe_text import members, message, shown

__all__ = ("UnpicklableError", "copied", "deepcopied", "pickled", "unpickled")

_MOST_TEXT = 1000
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_Codec: TypeAlias = Callable[[Any], Any]


class UnpicklableError(Exception):
    """A stand-in for an exception that could not be pickled or copied.

    It is found only among the causes of an error that was pickled or copied, in the place of the
    exception that could not follow.

    Attributes:
        type_name: Name of the exception's class, with its module.
        text: Its message.
    """

    __module__ = "alto.errors"

    def __init__(self, type_name: str, text: str, /) -> None:
        self.type_name = type_name
        self.text = text
        super().__init__(type_name, text)

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


# ---- records. A value in them is plain, or one of the first three classes.


@attrs.frozen
class _Link:
    """A reference to the exception of another record."""

    number: int


@attrs.frozen
class _Tuple:
    """A tuple, saved value by value, so that a value that cannot be saved does not affect the others."""

    values: tuple[object, ...]


@attrs.frozen
class _Saved:
    """A value as the codec has saved it, with a text to use if it cannot be loaded."""

    data: object
    text: str


@attrs.frozen
class _Parts:
    """An exception as its class and everything that it holds; its constructor is not called."""

    cls: _Saved
    args: object
    fields: Mapping[str, object]
    slots: Mapping[str, object]
    members: tuple[_Link, ...]
    """The exceptions of a group; empty for any other exception."""


@attrs.frozen
class _Record:
    """One exception: itself, its links, and the text of its replacement."""

    itself: _Parts | _Saved | None
    """None: it cannot be saved."""
    cause: _Link | None
    context: _Link | None
    suppress: bool
    name: str
    text: str
    notes: tuple[str, ...]


# ---- the ways to take a copy


def pickled(error: BaseException, kind: type[BaseException], /) -> tuple[object, ...]:
    """Return what ``__reduce__`` returns for *error*, whose class has its ``__reduce__`` from *kind*.

    Values are pickled one by one, here, so that the failure of one stays its own.
    """
    return unpickled, (type(error), _taken_apart(error, kind, pickle.dumps))


def unpickled(cls: type[BaseException], records: tuple[_Record, ...], /) -> BaseException:
    """Make an error of class *cls* from its records."""
    return _put_together(cls.__new__(cls), records, pickle.loads)  # noqa: S301  # part of a pickle


def copied(error: BaseException, /) -> BaseException:
    """Return a shallow copy, which shares fields and causes with *error*."""
    cls = type(error)
    new = cls.__new__(cls)
    new.args = error.args
    _fill(new, vars(error), _slots(error))
    new.__cause__ = error.__cause__
    new.__context__ = error.__context__
    new.__suppress_context__ = error.__suppress_context__
    return new


def deepcopied(
    error: BaseException, kind: type[BaseException], memo: dict[int, Any], /
) -> BaseException:
    """Return a deep copy of *error*, whose class has its ``__deepcopy__`` from *kind*."""
    cls = type(error)
    new = memo[id(error)] = cls.__new__(cls)
    records = _taken_apart(error, kind, lambda value: copy.deepcopy(value, memo))
    return _put_together(new, records, lambda value: value)


# ---- taking apart


def _taken_apart(
    root: BaseException, kind: type[BaseException], save: _Codec
) -> tuple[_Record, ...]:
    found = [root]
    numbers = {id(root): 0}

    def link(error: BaseException) -> _Link:
        if id(error) not in numbers:
            numbers[id(error)] = len(found)
            found.append(error)
        return _Link(numbers[id(error)])

    # The list grows while it is read. The class of the root is pickled with what `__reduce__` gives.
    return tuple([_record(error, kind, save, link) for error in found])


def _record(
    error: BaseException,
    kind: type[BaseException],
    save: _Codec,
    link: Callable[[BaseException], _Link],
) -> _Record:
    cause, context = error.__cause__, error.__context__
    suppress = error.__suppress_context__
    notes = getattr(error, "__notes__", ())
    return _Record(
        _itself(error, kind, save, link),
        None if cause is None else link(cause),
        None if context is None or suppress else link(context),  # It is not shown either.
        suppress,
        _name(type(error)),
        message(error),
        tuple(note for note in notes if isinstance(note, str)) if _is_listed(notes) else (),
    )


def _itself(
    error: BaseException,
    kind: type[BaseException],
    save: _Codec,
    link: Callable[[BaseException], _Link],
) -> _Parts | _Saved | None:
    cls = type(error)
    ours = isinstance(error, kind) and cls.__reduce__ is kind.__reduce__
    group = isinstance(error, BaseExceptionGroup)
    root = link(error).number == 0

    def saved(value: object, *, inside: bool = False) -> object:
        if isinstance(value, BaseException):
            return link(value)
        if type(value) in _PLAIN:
            return value
        if type(value) is tuple and not inside:
            return _Tuple(tuple([saved(one, inside=True) for one in value]))
        text = shown(value)[:_MOST_TEXT]
        try:
            return _Saved(save(value), text)
        except Exception:
            if not ours:  # With a field that is something else, it would not be what it says it is.
                raise
            return text

    try:
        if ours or group or _is_ordinary(cls):
            return _Parts(
                _Saved(None if root else save(cls), ""),
                vars(BaseExceptionGroup)["message"].__get__(error) if group else saved(error.args),
                {name: saved(value) for name, value in vars(error).items()},
                {name: saved(value) for name, value in _slots(error).items()},
                tuple([link(one) for one in members(error)])
                if isinstance(error, BaseExceptionGroup)
                else (),
            )
        whole = save(error)
    except Exception:  # noqa: BLE001  # whatever its own methods raise: its stand-in travels
        return None
    # One that is its own copy cannot be given other links than it has.
    return None if whole is error else _Saved(whole, "")


def _is_ordinary(cls: type[BaseException]) -> bool:
    # Python would take such a class apart in the same way: class, args, fields.
    return (
        cls.__reduce__ is BaseException.__reduce__
        and cls.__reduce_ex__ is BaseException.__reduce_ex__
        and cls.__setstate__ is BaseException.__setstate__
        and cls not in copyreg.dispatch_table
        and not hasattr(cls, "__deepcopy__")
    )


def _slots(error: BaseException) -> dict[str, object]:
    # What is held outside of its `__dict__`: fields in C, and those of a class with `__slots__`.
    found: dict[str, object] = {}
    for cls in type(error).__mro__:
        if cls in (BaseException, BaseExceptionGroup):  # These are set by other means.
            continue
        for name, member in vars(cls).items():
            if isinstance(member, MemberDescriptorType):
                try:
                    value = member.__get__(error)
                except AttributeError:  # It has no value.
                    continue
                # None is how Python shows that a field in C has no value, and setting it gives one:
                # the message of an `OSError` is made of those that have.
                if value is not None or cls.__module__ != "builtins":
                    found[name] = value
    return found


def _name(cls: type) -> str:
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def _is_listed(notes: object) -> bool:
    return isinstance(notes, list | tuple)


# ---- putting together


def _put_together(root: BaseException, records: tuple[_Record, ...], load: _Codec) -> BaseException:
    made: dict[int, BaseException] = {0: root}
    groups: list[int] = []
    replaced: set[int] = set()
    for number, record in enumerate(records[1:], 1):
        if isinstance(record.itself, _Parts) and record.itself.members:
            groups.append(number)
            continue
        new = _made(record, load)
        if new is None:
            replaced.add(number)
        made[number] = UnpicklableError(record.name, record.text) if new is None else new
    _make_groups(made, groups, records, load)
    for number, record in enumerate(records):
        new, parts = made[number], record.itself
        if isinstance(parts, _Parts) and number not in replaced:
            if not parts.members:
                new.args = cast("tuple[Any, ...]", _loaded(parts.args, made, load))
            _fill(
                new,
                {name: _loaded(value, made, load) for name, value in parts.fields.items()},
                {name: _loaded(value, made, load) for name, value in parts.slots.items()},
            )
        elif record.notes:
            vars(new)["__notes__"] = list(record.notes)  # Whatever its class has made of them.
        new.__cause__ = None if record.cause is None else made[record.cause.number]
        new.__context__ = None if record.context is None else made[record.context.number]
        new.__suppress_context__ = record.suppress  # Setting a cause has set it.
    return root


def _made(record: _Record, load: _Codec) -> BaseException | None:
    # None: it cannot be made here.
    itself = record.itself
    if itself is None:
        return None
    try:
        if isinstance(itself, _Parts):
            cls = load(itself.cls.data)
            return cast("BaseException", cls.__new__(cls))
        whole: object = load(itself.data)
    except Exception:  # noqa: BLE001  # whatever is missing
        return None
    # A class that makes a message of its arguments makes another one of its own message.
    return whole if isinstance(whole, BaseException) and message(whole) == record.text else None


def _make_groups(
    made: dict[int, BaseException],
    groups: list[int],
    records: tuple[_Record, ...],
    load: _Codec,
) -> None:
    # A group needs its members when it is made, some of which are groups. No group is in itself.
    while groups:
        later = []
        for number in reversed(groups):
            parts = cast("_Parts", records[number].itself)
            if all(link.number in made for link in parts.members):
                held = [made[link.number] for link in parts.members]
                made[number] = _made_group(records[number], parts, held, load)
            else:
                later.append(number)
        groups = later[::-1]


def _made_group(
    record: _Record, parts: _Parts, held: list[BaseException], load: _Codec
) -> BaseException:
    title = cast("str", parts.args)
    try:
        cls = load(parts.cls.data)
        return cast("BaseException", cls.__new__(cls, title, held))
    except Exception:  # noqa: BLE001  # its class takes something else, or is not here
        return BaseExceptionGroup(f"{record.name}: {title}", held)


def _loaded(value: object, made: Mapping[int, BaseException], load: _Codec) -> object:
    if isinstance(value, _Link):
        return made[value.number]
    if isinstance(value, _Tuple):
        return tuple([_loaded(one, made, load) for one in value.values])
    if isinstance(value, _Saved):
        try:
            return load(value.data)
        except Exception:  # noqa: BLE001  # its class is not here, or cannot be loaded
            return value.text
    return value


def _fill(new: BaseException, fields: Mapping[str, object], slots: Mapping[str, object]) -> None:
    vars(new).update(fields)
    for name, value in slots.items():
        try:
            BaseException.__setattr__(new, name, value)
        except (AttributeError, TypeError):  # Python alone may set it.
            continue
