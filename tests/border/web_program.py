"""A web service as a program of its own: `web_program.py PORT GRACE`; it says how it ended."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette

from tests.border.serving import Service, engine


def say(line: str) -> None:
    """Print it at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Reported(Service):
    """A service that says at its end what is left."""

    @contextlib.asynccontextmanager
    async def lifespan(self, server: Starlette) -> AsyncIterator[None]:
        """Open, drain and close, as `Service` does."""
        async with super().lifespan(server):
            say("open")
            yield
        say(f"drained={self.drained} running={self.engine.statistics().running}")
        say(f"jobs={self.done}")


if __name__ == "__main__":
    port, grace = sys.argv[1:]
    uvicorn.run(
        Reported(engine(delay=0.02)).asgi,
        port=int(port),
        log_level="critical",
        ws="none",
        timeout_graceful_shutdown=int(grace) or None,
    )
