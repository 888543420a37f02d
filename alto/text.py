# long: the functions that users import, each with its page, and what they have in common

"""Streams of text, cut into pieces while they grow.

Every function takes chunks of text of any size, for example a ``Group[str]``, and gives each piece as
soon as it is certain: as soon as no text that may follow could change it. How the text is cut into
chunks changes nothing. Options are checked at the call. :func:`joined` takes such pieces, and gives them
together where a call for each would cost too much. What all others have in common:

* ``max_chars``: characters that a piece has at most. A longer one is cut, as soon as it is longer, at the
  last white space within the limit; where there is none, after as many whole characters as fit,
  where a letter and its accents, joined consonants, or the parts of an emoji, are one. The limit
  counts code points, as ``len`` does, and always holds: a character that has more than
  *max_chars* of them (up to ten in an emoji) is cut after so many.
* ``idle``: seconds. Where no chunk arrives for that long, what is there is given as a piece, and what
  comes later begins a new one. The read that waits goes on and loses nothing; it runs in a task of
  its own, which ends with the iteration.

Errors: at the call ``TypeError`` where the text is no async iterable and ``ValueError`` where an option
is out of range; while iterating ``TypeError`` where a chunk is no ``str``. An error of the chunks comes
through after the pieces that were certain by then; the rest is not given.

Cancellation of a read: nothing is lost, and the next read goes on, in any task; where the chunks come
from a generator that waits inside of a ``with``, other than ``aclosing``, it ends, and the next read raises
``Closed``. When the pieces are left early, the iterator of the chunks is closed: inside a stage at the
stage's next checkpoint, elsewhere by ``aclose``.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Any, Final, NoReturn, final

from alto._resumable import close
from alto._text.coalescing import Coarsening, joined
from alto._text.json import JsonSplitter
from alto._text.pieces import Pieces
from alto._text.regex import RegexSplitter, Separator
from alto._text.sentences import SentenceSplitter
from alto._text.splitter import LineSplitter, Splitter, TokenSplitter
from alto._validate import check_size, is_number

__all__ = ("Coarsening", "joined", "json_items", "lines", "regex", "sentences", "tokens")

_IDLE: Final = object()
_END: Final = object()


def sentences(
    text: AsyncIterable[str], /, *, max_chars: int | None = None, idle: float | None = None
) -> AsyncGenerator[str, None]:
    """Sentences of *text*, each as soon as it is certain to have ended.

    A sentence ends at an empty line, before an item of a list at the beginning of a line, and at

    * a full stop, a question mark or an exclamation mark before white space, with the quotes and
      brackets after it. ``3.5`` and ``example.org`` go on;
    * a mark of another script (``。``, ``！``, ``।``, ``؟``), wherever it stands.

    It goes on after the number of a list item, and before a small letter that follows an ellipsis or
    a closing quote or bracket. After an English abbreviation or an initial it goes on, unless the next
    word begins sentences and no names: ``the U.S. Army``, but ``in the U.S. | The``. There the
    sentence is given with the first letter of the next word, or the whole of it; in all other cases
    with the white space after the mark.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.
        max_chars: Characters that a piece has at most; None: any number.
        idle: Seconds without a chunk after which what is there is given; None: never.

    Returns:
        Sentences without the white space around them. The rest of the text is the last one.

    Raises:
        TypeError, ValueError: As said for all of these functions.
    """
    _check(text, "sentences", max_chars, idle)
    return Pieces(_cut(text, "sentences", SentenceSplitter(max_chars), idle))


def lines(
    text: AsyncIterable[str],
    /,
    *,
    keep_empty: bool = False,
    max_chars: int | None = None,
    idle: float | None = None,
) -> AsyncGenerator[str, None]:
    r"""Lines of *text*, each as soon as its line break is there: ``\n``, ``\r\n`` or ``\r``.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.
        keep_empty: Whether empty lines are given too.
        max_chars: Characters that a piece has at most; None: any number.
        idle: Seconds without a chunk after which what is there is given; None: never.

    Returns:
        Lines without the white space around them.

    Raises:
        TypeError, ValueError: As said for all of these functions.
    """
    _check(text, "lines", max_chars, idle)
    return Pieces(_cut(text, "lines", LineSplitter(max_chars, keep_empty=keep_empty), idle))


def tokens(
    text: AsyncIterable[str],
    /,
    *,
    size: int = 1,
    max_chars: int | None = None,
    idle: float | None = None,
) -> AsyncGenerator[str, None]:
    """Words of *text*, *size* at a time, each as soon as the character after it is there.

    These are words for people and for search by words, not the tokens of a model. A word is a
    run of characters between white space; the marks at its ends belong to it. In scripts without
    spaces it is a single Han character, or a run of hiragana, of katakana, or of Thai, Lao, Burmese
    or Khmer, which ``max_chars`` may cut.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.
        size: Words in a piece.
        max_chars: Characters that a piece has at most; None: any number.
        idle: Seconds without a chunk after which what is there is given; None: never.

    Returns:
        Words, with the white space between them as it was. The last piece may have fewer.

    Raises:
        TypeError, ValueError: As said for all of these functions.
    """
    _check(text, "tokens", max_chars, idle)
    check_size("size", size)
    return Pieces(_cut(text, "tokens", TokenSplitter(size, max_chars), idle))


def regex(
    text: AsyncIterable[str],
    /,
    pattern: str | re.Pattern[str],
    *,
    max_chars: int | None = None,
    idle: float | None = None,
) -> AsyncGenerator[str, None]:
    r"""What is between the matches of *pattern*, each piece as soon as the match after it is certain.

    The pieces are those of ``re.split``, but for white space around them and for empty ones. A match
    is certain when nothing that may follow could change it: that of ``\n+`` with the first
    character after it, that of ``;`` at once or one character later.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.
        pattern: What separates two pieces. Refused are patterns that may match nothing at all, back
            references, and ``^``, ``$``, ``\A`` and ``\Z`` for the whole text; ``(?m)^`` and ``(?m)$``,
            ``\b``, look ahead and look behind are fine.
        max_chars: Characters that a piece has at most; None: any number.
        idle: Seconds without a chunk after which what is there is given; None: never.

    Returns:
        Pieces without the white space around them.

    Raises:
        TypeError, ValueError: As said for all of these functions; and *pattern* is none for text, or
            is refused.
    """
    _check(text, "regex", max_chars, idle)
    return Pieces(_cut(text, "regex", RegexSplitter(Separator(pattern), max_chars), idle))


def json_items(  # noqa: PLR0913  # each says where the JSON is, or what counts as JSON
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
    r"""Values of the JSON in *text*, parsed, each as soon as it is whole.

    Text before the first ``[`` or ``{`` is skipped. After a ``[`` the values are the items of that
    list. After a ``{`` they are that object and every object behind it, whatever is between them, so
    JSON lines are read too. A string, an object or a list is given with the character that closes
    it, a number, ``true``, ``false`` or ``null`` with the one after it.

    Which list is meant is not guessed: ``[1]`` in a sentence may cite a source or be the answer, and an
    item that was given cannot be taken back. So any ``[`` or ``{`` behind the list, and a ``[``
    behind an object, is an error: if the iteration ends without one, the values are all the JSON
    that was looked at. Say where to look if the text has other brackets: behind a literal text with
    *after*, in code blocks with *fenced*, at nothing behind the list with *first*. For lists that are
    one to a line, parse each of :func:`lines`.

    There is no ``idle``, since a part of a value is no value. For values of a type, and an engine that
    is made to write them, see ``schema=`` of ``LLM.generate``.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.
        after: Nothing is looked at before the end of the first occurrence of this text, for example
            ``"</think>"``.
        fenced: Whether to look only inside fenced code blocks (lines with three backticks before and
            behind). Blocks that are marked as another language than JSON are skipped.
        field: The text is an object, and the values are the items of the list in this field. A dot
            leads into an object, ``"result.claims"``; a tuple of names allows dots in them. Other fields
            are checked, and dropped.
        first: Whether to ignore what is behind the first list, or the first object, which is then the
            only value. The text is read to its end all the same.
        lenient: Whether to accept raw line breaks, tabs and other control characters in strings;
            a comma behind the last item or field; a backslash before a character that JSON does
            not escape, as in ``App\Http``, which stands for itself (``\'`` is an apostrophe); and
            comments, ``// ...`` and ``/* ... */``, inside the list or object. All else stays strict.
        max_chars: Characters that the text of a value has at most; None: any number. What is dropped
            because of *field* is not limited.

    Returns:
        Values as ``json.loads`` makes them.

    Raises:
        TypeError, ValueError: As said for all of these functions; and *after* or *field* is empty, or
            no text.
        OutputError: While iterating, after the values before it: the text is no JSON, which ``NaN`` and
            numbers that are too large for a float are not either; or it ended early; or another list
            or object follows; or a value is too long; or what *after*, *fenced* or *field* ask for is
            not there, where the message has the fields that are. The message says where and
            what to do; ``text`` is that of the value.
    """
    _check(text, "json_items", max_chars, None)
    if after is not None:
        _check_name("after", after, "a text such as '</think>'")
    path = () if field is None else _path(field)
    splitter = JsonSplitter(
        max_chars, after=after, fenced=fenced, field=path, first=first, lenient=lenient
    )
    return Pieces(_cut(text, "json_items", splitter, None))


def _path(field: object) -> tuple[str, ...]:
    """Return the names that lead to a list.

    Raises:
        TypeError, ValueError: It is no name, or an empty one.
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


async def _cut(
    text: AsyncIterable[str], name: str, splitter: Splitter, idle: float | None
) -> AsyncGenerator[Any, None]:
    chunks: AsyncIterator[Any] = aiter(text) if idle is None else _Rests(text, idle)
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
class _Rests:
    """The chunks of a text, and ``_IDLE`` where none comes for *idle* seconds after the last.

    The text is read by a task of its own, from its first chunk to its closing: a read that is under
    way when time is up must go on, and a source may do things that only one task may do. That task
    has the context of the call, so a group knows who waits. It reads a chunk when one is asked for, and
    never ahead. It is no part of a task group, since a generator may not yield inside of one;
    :meth:`aclose` waits for its end.
    """

    __slots__ = ("_asked", "_chunk", "_closing", "_error", "_idle", "_loop", "_reader", "_resting", "_text",
                 "_wake")  # fmt: skip

    def __init__(self, text: AsyncIterable[Any], idle: float) -> None:
        self._text = text
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Task[None] | None = None
        self._asked: asyncio.Event | None = None  # What the reader waits for, if it does.
        self._wake: asyncio.Event | None = None  # What we wait for, if we do.
        self._chunk: object = None  # What the reader has read and nobody has taken.
        self._error: BaseException | None = None
        self._closing = False
        self._resting = True  # Whether nothing has come since the start or the last `_IDLE`.

    def __aiter__(self) -> _Rests:
        return self

    async def __anext__(self) -> object:
        """The next chunk, or ``_IDLE``. Cancellation: the read goes on, until it is closed."""
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
        return chunk[0]  # type: ignore[index]  # in a tuple, since it may be anything

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
        except BaseException as error:  # noqa: BLE001  # raised to whoever iterates
            self._error = error
        try:
            if chunks is not None:
                await close(chunks)
        finally:
            self._chunk = _END
            self._ring()

    async def aclose(self) -> None:
        """End the reader, which closes the chunks. Cancellation: may be called again."""
        reader = self._reader
        if reader is None:
            return
        if not self._closing:  # once, since a second time would disturb the cleaning up
            self._closing = True
            reader.cancel()
        await asyncio.wait([reader])
        self._error = None  # it has frames in its traceback that keep what was read
        if not reader.cancelled():
            reader.result()
