# long: the functions that users import, with full docstrings, and what they have in common

"""Split streams of text into pieces while they grow.

Every function takes chunks of text of any size, for example a ``Group[str]``, and gives each piece as
soon as it is certain: as soon as no later text can change it. The boundaries of the chunks change
nothing. Options are checked at the call. :func:`joined` takes such pieces, and gives several together
where a call for each would cost too much. All other functions have in common:

* ``max_chars``: the most characters of a piece. A longer piece is cut as soon as it is longer, at the
  last white space within the limit; where there is none, after as many whole characters as fit.
  A letter and its accents, joined consonants, or the parts of an emoji, are one character here. The limit
  counts code points, as ``len`` does, and always holds: a character that has more than
  *max_chars* of them (up to ten in an emoji) is cut inside.
* ``idle``: seconds. If no chunk arrives for that long, the text so far is given as a piece, and later
  text begins a new one. The read that waits continues and loses nothing; it runs in a task of
  its own, which ends with the iteration.

Errors: at the call, ``TypeError`` if the text is no async iterable and ``ValueError`` if an option
is out of range; while iterating, ``TypeError`` if a chunk is no ``str``. An error of the chunks is raised
after the pieces that were certain by then; the rest is not given.

Cancellation of a read: nothing is lost, and the next read continues, in any task. If the chunks come
from a generator that waits inside a ``with`` other than ``aclosing``, that generator ends, and the next
read raises ``Closed``. When the pieces are left early, the iterator of the chunks is closed: inside a
stage at the stage's next checkpoint, elsewhere by ``aclose``.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

from alto._resumable import ResumableGenerator, close
from alto._text.coalescing import Coarsening, joined
from alto._text.json import JsonSplitter
from alto._text.sentences import SentenceSplitter
from alto._text.splitter import LineSplitter, SeparatorSplitter, Splitter, WordSplitter
from alto._validate import check_size, is_number

__all__ = ("Coarsening", "joined", "json_items", "lines", "sentences", "split", "words")

_RENAMED: Final = {"regex": "split, which takes separators as plain text", "tokens": "words"}
_IDLE: Final = object()
_END: Final = object()


if not TYPE_CHECKING:  # with a __getattr__ type checkers accept every name

    def __getattr__(name: str) -> NoReturn:
        new = _RENAMED.get(name)
        hint = "" if new is None else f"; it is now alto.text.{new}"
        msg = f"module 'alto.text' has no attribute {name!r}{hint}"
        raise AttributeError(msg)


def sentences(
    text: AsyncIterable[str], /, *, max_chars: int | None = None, idle: float | None = None
) -> AsyncGenerator[str, None]:
    """Split *text* into sentences, each given as soon as its end is certain.

    A sentence ends at an empty line, before an item of a list at the beginning of a line, and at

    * a full stop, a question mark or an exclamation mark before white space, with the quotes and
      brackets after it. ``3.5`` and ``example.org`` do not end one;
    * a mark of another script (``。``, ``！``, ``।``, ``؟``), wherever it stands.

    It continues after the number of a list item, and before a small letter that follows an ellipsis or
    a closing quote or bracket. After an English abbreviation or an initial it continues, unless the next
    word is one that begins sentences but not names: ``the U.S. Army``, but ``in the U.S. | The``. In these
    cases the sentence is given when the first letter of the next word has arrived, or the whole word; in
    all others when the white space after the mark has.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.
        max_chars: Most characters of a piece; None: any number.
        idle: Seconds without a chunk after which the rest so far is given; None: never.

    Returns:
        Sentences without surrounding white space. The rest of the text is the last one.

    Raises:
        TypeError: *text* is no async iterable, or an option has the wrong type.
        ValueError: An option is out of range.
    """
    _check(text, "sentences", max_chars, idle)
    return _split(text, "sentences", SentenceSplitter(max_chars), idle)


def lines(
    text: AsyncIterable[str],
    /,
    *,
    keep_empty: bool = False,
    max_chars: int | None = None,
    idle: float | None = None,
) -> AsyncGenerator[str, None]:
    r"""Split *text* into lines, each given when its line break has arrived: ``\n``, ``\r\n`` or ``\r``.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.
        keep_empty: Give empty lines too.
        max_chars: Most characters of a piece; None: any number.
        idle: Seconds without a chunk after which the rest so far is given; None: never.

    Returns:
        Lines without surrounding white space.

    Raises:
        TypeError: *text* is no async iterable, or an option has the wrong type.
        ValueError: An option is out of range.
    """
    _check(text, "lines", max_chars, idle)
    return _split(text, "lines", LineSplitter(max_chars, keep_empty=keep_empty), idle)


def words(
    text: AsyncIterable[str],
    /,
    *,
    size: int = 1,
    max_chars: int | None = None,
    idle: float | None = None,
) -> AsyncGenerator[str, None]:
    """Split *text* into words, *size* at a time, given when the character after them has arrived.

    Words are meant for people and for keyword search; they are not the tokens of a model. A word is a
    run of characters between white space; the marks at its ends belong to it. In scripts without
    spaces it is a single Han character, or a run of hiragana, of katakana, or of Thai, Lao, Burmese
    or Khmer, which ``max_chars`` may cut.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.
        size: Words in a piece.
        max_chars: Most characters of a piece; None: any number.
        idle: Seconds without a chunk after which the rest so far is given; None: never.

    Returns:
        Pieces of *size* words, with the white space between them as it was. The last may have fewer.

    Raises:
        TypeError: *text* is no async iterable, or an option has the wrong type.
        ValueError: An option is out of range.
    """
    _check(text, "words", max_chars, idle)
    check_size("size", size)
    return _split(text, "words", WordSplitter(size, max_chars), idle)


def split(
    text: AsyncIterable[str],
    /,
    *separators: str,
    max_chars: int | None = None,
    idle: float | None = None,
) -> AsyncGenerator[str, None]:
    r"""Split *text* at *separators*, which are plain text.

    The cuts are those of a split of the whole text: at the leftmost separator, at the longest if several
    begin there, and then again after it. A piece is given when the last character of the separator after it
    has arrived. While only the beginning of a separator is there, that beginning is held back.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.
        separators: One or more texts, for example ``"\n"`` and ``";"``. A run of separators counts as
            one, since empty pieces are left out.
        max_chars: Most characters of a piece; None: any number.
        idle: Seconds without a chunk after which the rest so far is given; None: never.

    Returns:
        Pieces without the separators and without surrounding white space.

    Raises:
        TypeError: *text* is no async iterable, an option has the wrong type, there is no separator, or
            one is no ``str``, such as a compiled pattern.
        ValueError: An option is out of range, or a separator is empty.
    """
    _check(text, "split", max_chars, idle)
    _check_separators(separators)
    return _split(text, "split", SeparatorSplitter(separators, max_chars), idle)


def json_items(  # noqa: PLR0913  # where the JSON is, and what counts as JSON
    text: AsyncIterable[str],
    /,
    *,
    after: str | None = None,
    fenced: bool = False,
    field: str | tuple[str, ...] | None = None,
    first: bool = False,
    lenient: bool = False,
    max_chars: int | None = None,
) -> AsyncGenerator[Any, None]:
    r"""Parse the values of the JSON in *text*, each given as soon as it is complete.

    Text before the first ``[`` or ``{`` is skipped. After a ``[`` the values are the items of that
    list. After a ``{`` they are that object and every later object, whatever is between them, so
    JSON lines are read too. A string, an object or a list is given with the character that closes
    it, a number, ``true``, ``false`` or ``null`` with the next one.

    The function does not guess which list is meant: ``[1]`` in a sentence may cite a source or be the
    answer, and an item that was given cannot be taken back. So any ``[`` or ``{`` after the list, and a
    ``[`` after an object, is an error: if the iteration ends without one, the values are all the JSON
    that there was. If the text has other brackets, choose where to look: after a literal text with
    *after*, in code blocks with *fenced*, at nothing after the list with *first*. If each line has a list
    of its own, parse each of :func:`lines`.

    There is no ``idle``, since a part of a value is no value. For values of a type, and an engine that
    is made to write them, see ``schema=`` of ``LLM.generate``.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.
        after: Skip the text up to the end of the first occurrence of this, for example ``"</think>"``.
        fenced: Look only inside fenced code blocks (between lines with three backticks). Blocks that
            are marked as another language than JSON are skipped.
        field: The text is an object, and the values are the items of the list in this field. A dot
            leads into an object, ``"result.claims"``; a tuple of names allows dots in them. Other fields
            are checked, and dropped.
        first: Ignore the text after the first list, or after the first object, which is then the
            only value. The text is still read to its end.
        lenient: Accept raw line breaks, tabs and other control characters in strings;
            a comma after the last item or field; a backslash before a character that JSON does
            not escape, as in ``App\Http``, which stands for itself (``\'`` is an apostrophe); and
            comments, ``// ...`` and ``/* ... */``, inside the list or object. All else stays strict.
        max_chars: Most characters of the text of a value; None: any number. Text that is dropped
            because of *field* is not limited.

    Returns:
        Values as ``json.loads`` makes them.

    Raises:
        TypeError: *text* is no async iterable, or an option has the wrong type.
        ValueError: An option is out of range, or *after* or *field* is empty.
        OutputError: While iterating, after the values before it: the text is no JSON (``NaN`` and
            numbers too large for a float are none); or it ended early; or another list
            or object follows; or a value is too long; or *after*, *fenced* or *field* is not found, in
            which case the message lists the fields that are there. The message says where and
            what to do; ``text`` is that of the value.
    """
    _check(text, "json_items", max_chars, None)
    if after is not None:
        _check_name("after", after, "a text such as '</think>'")
    path = () if field is None else _path(field)
    splitter = JsonSplitter(
        max_chars, after=after, fenced=fenced, field=path, first=first, lenient=lenient
    )
    return _split(text, "json_items", splitter, None)


def _path(field: object) -> tuple[str, ...]:
    """Return the names that lead to a list.

    Raises:
        TypeError: *field* is neither a name nor a tuple of names.
        ValueError: A name is empty.
    """
    names = field.split(".") if isinstance(field, str) else field
    for name in names or ("",) if isinstance(names, list | tuple) else (field,):
        what = "a name, names joined by dots such as 'result.claims', or a tuple of names"
        _check_name("field", name, what)
    return tuple(names) if isinstance(names, list | tuple) else ()


def _check(text: object, name: str, max_chars: object, idle: object) -> None:
    if not isinstance(text, AsyncIterable):
        msg = (
            f"alto.text.{name}() takes an async iterable of text, such as a Group[str] or "
            f"`(chunk.text async for chunk in generation)`, not {type(text).__name__}"
        )
        raise TypeError(msg)
    if max_chars is not None:
        check_size("max_chars", max_chars)
    if idle is None:
        return
    if not is_number(idle):
        msg = f"idle must be a number of seconds or None, not {idle!r}"
        raise TypeError(msg)
    if not 0 < idle < math.inf:
        msg = f"idle must be more than 0 seconds and finite, or None for never, not {idle!r}"
        raise ValueError(msg)


def _check_separators(separators: tuple[object, ...]) -> None:
    if not separators:
        msg = r"alto.text.split() needs at least one separator, as in split(text, '\n', ';')"
        raise TypeError(msg)
    for separator in separators:
        if isinstance(separator, re.Pattern):
            msg = (
                f"alto.text.split() takes separators as plain text, not the pattern {separator.pattern!r}; "
                r"give each text that separates, as in split(text, '\n', ';'), or use the pattern on each "
                "of lines() or sentences()"
            )
            raise TypeError(msg)
        if not isinstance(separator, str):
            msg = f"a separator must be a str, as in split(text, '\\n', ';'), not {separator!r}"
            raise TypeError(msg)
        if not separator:
            msg = "a separator must not be empty; to cut after a number of characters use max_chars"
            raise ValueError(msg)


def _check_name(name: str, value: object, what: str) -> None:
    if not isinstance(value, str):
        msg = f"{name} must be {what}, not {value!r}"
        raise TypeError(msg)
    if not value:
        msg = f"{name} must be {what}, and not be empty"
        raise ValueError(msg)


def _refuse(name: str, chunk: object) -> NoReturn:
    if isinstance(chunk, bytes | bytearray | memoryview):
        remedy = "decode it first, with codecs.getincrementaldecoder('utf-8')()"
    elif isinstance(getattr(chunk, "text", None), str):
        remedy = "give its text: `(chunk.text async for chunk in generation)`"
    else:
        remedy = "give one text at a time"
    msg = f"alto.text.{name}() takes chunks of str, not {type(chunk).__name__}; {remedy}"
    raise TypeError(msg)


def _split(
    text: AsyncIterable[str], name: str, splitter: Splitter, idle: float | None
) -> AsyncGenerator[Any, None]:
    return ResumableGenerator(_pieces(text, name, splitter, idle), "text")


async def _pieces(
    text: AsyncIterable[str], name: str, splitter: Splitter, idle: float | None
) -> AsyncGenerator[Any, None]:
    chunks: AsyncIterator[Any] = aiter(text) if idle is None else _ChunksOrIdle(text, idle)
    try:
        async for chunk in chunks:
            if isinstance(chunk, str):
                pieces = splitter.feed(chunk)
            elif chunk is _IDLE:
                pieces = splitter.flush()
            else:
                _refuse(name, chunk)
            for piece in pieces:
                yield piece
            if splitter.error is not None:
                raise splitter.error
        for piece in splitter.flush():
            yield piece
        if splitter.error is not None:
            raise splitter.error
    finally:
        await close(chunks)


@final
class _ChunksOrIdle:
    """Iterator over the chunks of a text, and ``_IDLE`` if none comes for *idle* seconds after the last.

    A task of its own reads the text, from its first chunk to its closing: a read that is under
    way when the time is up must go on, and a source may do things that are bound to one task. That task
    has the context of the call, so a group knows which call waits. It reads a chunk when one is asked for,
    and never ahead. It is not in a task group, since a generator must not yield inside one;
    :meth:`aclose` waits for its end.
    """

    __slots__ = ("_asked", "_chunk", "_closing", "_error", "_idle", "_loop", "_reader", "_resting", "_text",
                 "_wake")  # fmt: skip

    def __init__(self, text: AsyncIterable[Any], idle: float) -> None:
        self._text = text
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Task[None] | None = None
        self._asked: asyncio.Event | None = (
            None  # Set to request the next chunk; None: not waiting.
        )
        self._wake: asyncio.Event | None = (
            None  # Set when a chunk or the time-out is there; None: not waiting.
        )
        self._chunk: object = None  # A chunk in a tuple, or `_END`; None: taken.
        self._error: BaseException | None = None
        self._closing = False
        self._resting = True  # Nothing has come since the start or the last `_IDLE`.

    def __aiter__(self) -> _ChunksOrIdle:
        return self

    async def __anext__(self) -> object:
        """Return the next chunk, or ``_IDLE``. Cancellation: the read continues until it is closed."""
        if self._reader is None:
            self._reader = self._loop.create_task(self._read())
        if self._chunk is None:
            if self._asked is not None:
                self._asked.set()
            self._wake = asyncio.Event()
            timer = None if self._resting else self._loop.call_later(self._idle, self._ring)
            try:
                await self._wake.wait()
            finally:
                self._wake = None
                if timer is not None:
                    timer.cancel()
        chunk, self._chunk = self._chunk, None
        if chunk is None:
            self._resting = True
            return _IDLE
        if chunk is _END:
            self._chunk = _END
            error, self._error = self._error, None
            raise StopAsyncIteration if error is None else error
        self._resting = False
        return chunk[0]  # type: ignore[index]  # a chunk may be anything, also None

    def _ring(self) -> None:
        if self._wake is not None:
            self._wake.set()

    async def _read(self) -> None:
        chunks = None
        try:
            chunks = aiter(self._text)
            async for chunk in chunks:
                self._asked = asyncio.Event()
                self._chunk = (chunk,)
                self._ring()
                await self._asked.wait()
        except BaseException as error:  # noqa: BLE001  # raised by the next read
            self._error = error
        try:
            if chunks is not None:
                await close(chunks)
        finally:
            self._chunk = _END
            self._ring()

    async def aclose(self) -> None:
        """End the reading task, which closes the chunks. Cancellation: may be called again."""
        reader = self._reader
        if reader is None:
            return
        if not self._closing:  # a second cancellation would interrupt the source's cleanup
            self._closing = True
            reader.cancel()
        await asyncio.wait([reader])
        self._error = None  # frames in its traceback keep the chunks alive
        if not reader.cancelled():
            reader.result()
