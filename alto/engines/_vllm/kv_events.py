"""Events of an engine's prefix cache, as its scheduler publishes them.

The scheduler, in another process, sends a numbered batch of events over ZeroMQ after each step that
changed the cache. Events are decoded by field name, without vLLM's classes, since these get new fields
with every version. A missing number means that a batch was lost: the contents of the cache are then
unknown and the listeners are cleared, which costs some cache hits and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

from alto._sched.prefix import salt_of
from alto.protocols import CacheListener

__all__ = ("CacheEvents", "CacheEventReader")

_FIELDS: Final = {
    "BlockStored": (
        "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium",
        "lora_name",
    ),
    "BlockRemoved": ("block_hashes", "medium"),
    "AllBlocksCleared": (),
}  # fmt: skip
"""Field names of each event, in the order used by versions that send an event as a list."""
_LONGEST_PATH = 90
"""Maximum characters of a socket's path on every system, with a small margin."""
_RETRY = 20
"""Milliseconds between two attempts to find the engine's socket while it starts."""


@final
class CacheEventReader:
    """Decoder of one engine's messages that calls its listeners. Never raises.

    Invariant: a listener knows only blocks that the engine holds, except for events in transit.
    """

    def __init__(self) -> None:
        self.listeners: list[CacheListener] = []
        self._next = 0

    def read(self, frames: Sequence[bytes]) -> None:
        """Process one message: a topic, its number, and a batch of events."""
        from msgspec import DecodeError, msgpack

        number = int.from_bytes(frames[-2], "big") if len(frames) > 1 else -1
        lost, self._next = number != self._next, number + 1
        if not self.listeners:
            return
        if lost:
            self._clear()
        try:
            events = msgpack.decode(frames[-1])[1]
            for event in map(_by_name, events):
                self._tell(event)
        except (DecodeError, LookupError, TypeError, ValueError):
            self._clear()  # unknown format: its content is lost

    def _tell(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "AllBlocksCleared":
            self._clear()
            return
        if event.get("medium") not in (None, "GPU") or event.get("group_idx") not in (None, 0):
            return  # a copy in another medium, or the same tokens for other layers
        keys = [_number(key) for key in event["block_hashes"]]
        if kind == "BlockRemoved":
            for listener in self.listeners:
                listener.removed(keys)
        elif kind == "BlockStored":
            parent = event.get("parent_block_hash")
            above = None if parent is None else _number(parent)
            salt = salt_of(event.get("lora_name"))
            for listener in self.listeners:
                listener.stored(above, event["token_ids"], keys, salt)

    def _clear(self) -> None:
        for listener in self.listeners:
            listener.cleared()


def _by_name(event: Any) -> Mapping[str, Any]:  # noqa: ANN401  # just decoded
    if isinstance(event, Mapping):
        return event
    kind, *values = event
    return {"type": kind, **dict(zip(_FIELDS[kind], values, strict=False))}


def _number(key: int | bytes) -> int:
    return key if isinstance(key, int) else int.from_bytes(key, "big")


@final
class CacheEvents:
    """Subscription to the events of one run of an engine. For use in one event loop only."""

    def __init__(self) -> None:
        """Subscribe to :attr:`endpoint`, at which the engine does not publish yet."""
        import zmq
        import zmq.asyncio

        folder = tempfile.mkdtemp(prefix="alto-")  # private to this user: events contain prompts
        if len(folder) > _LONGEST_PATH:
            shutil.rmtree(folder, ignore_errors=True)
            folder = tempfile.mkdtemp(prefix="alto-", dir="/tmp")
        self._folder = Path(folder)
        self.endpoint = f"ipc://{folder}/kv"
        """Address at which the engine must publish."""
        self._reader = CacheEventReader()
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RETRY)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._monitor: Any = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.subscribe(b"")
        self._socket.connect(self.endpoint)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def add(self, listener: CacheListener, /) -> None:
        """Pass events to *listener* from now on."""
        self._reader.listeners.append(listener)

    async def wait_connected(self, timeout: float) -> bool:
        """Wait at most *timeout* seconds for the engine's socket; return whether it was found.

        Events that the engine publishes earlier are lost.
        """
        monitor, self._monitor = self._monitor, None
        if monitor is None:
            return True
        try:
            async with asyncio.timeout(timeout):
                await monitor.recv_multipart()
        except TimeoutError:
            return False
        finally:
            self._socket.disable_monitor()
            monitor.close(0)
        return True

    async def close(self) -> None:
        """Unsubscribe, and remove the socket and its folder."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._monitor = None
        self._socket.close(0)
        self._context.term()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)

    async def _run(self) -> None:
        while True:
            self._reader.read(await self._socket.recv_multipart())
            await asyncio.sleep(0)  # a continuous stream of events must not block the loop
