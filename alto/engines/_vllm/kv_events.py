"""What an engine keeps in its prefix cache, as its scheduler publishes it.

The scheduler, in another process, sends a numbered batch of events over ZeroMQ after a step that
changed something. They are decoded without vLLM's classes, field by field by name, since these grow
with every version. A number that is missing means that a batch was lost: then nothing is known any
more, and the listeners are told so, which costs some cache hits and no more.
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
"""In this order where a version sends an event as a list."""
_LONGEST_PATH = 90
"""Characters that a socket's path may have on every system, with a few to spare."""
_RETRY = 20
"""Milliseconds between two attempts to find the engine's socket while it starts."""


@final
class CacheEventReader:
    """Turns the messages of one engine into calls of its listeners. Never raises.

    Invariant: a listener knows at most what the engine holds, but for what is under way.
    """

    def __init__(self) -> None:
        self.listeners: list[CacheListener] = []
        self._next = 0

    def read(self, frames: Sequence[bytes]) -> None:
        """Take in one message: a topic, its number, and a batch of events."""
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
            self._clear()  # not what we know: what it says is lost

    def _tell(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "AllBlocksCleared":
            self._clear()
            return
        if event.get("medium") not in (None, "GPU") or event.get("group_idx") not in (None, 0):
            return  # a copy elsewhere, or the same tokens once more for other layers
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
    """The events of one life of an engine. Made, used and closed in its event loop."""

    def __init__(self) -> None:
        """Listen from now on at :attr:`endpoint`, where nobody speaks yet."""
        import zmq
        import zmq.asyncio

        folder = tempfile.mkdtemp(prefix="alto-")  # for nobody else: events hold prompts
        if len(folder) > _LONGEST_PATH:
            shutil.rmtree(folder, ignore_errors=True)
            folder = tempfile.mkdtemp(prefix="alto-", dir="/tmp")
        self._folder = Path(folder)
        self.endpoint = f"ipc://{folder}/kv"
        """Where the engine is to publish."""
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
        """Tell *listener* from now on."""
        self._reader.listeners.append(listener)

    async def wait_connected(self, timeout: float) -> bool:
        """Whether the engine's socket was found, at the latest after *timeout* seconds.

        What it publishes before it is found is lost.
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
        """Hear no more, and leave nothing behind."""
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
            await asyncio.sleep(0)  # an engine that never stops may not keep the loop
