"""A web service over a pipeline, on a real uvicorn, and what looks at it from outside."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextvars import ContextVar
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import alto
from alto.testing import Scripted

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

tenant: ContextVar[str] = ContextVar("tenant", default="none")


@alto.stage
async def speak(question: str, *, llm: alto.LLM) -> AsyncIterator[str]:
    """Say what the engine says; opens with the context's tenant."""
    yield f"{tenant.get()}: "
    async for chunk in llm.generate(question, max_tokens=10**6):
        yield chunk.text


@alto.pipeline
def spoken(question: alto.Stream[str]) -> alto.Stream[str]:
    """One stage, on an engine."""
    return speak(question)


def says(prompt: str) -> list[str]:
    """Say ``3 abc`` as three times ``abc``."""
    times, _, word = prompt.partition(" ")
    return [word] * int(times)


def engine(*, delay: float = 0.05) -> Scripted:
    """An engine that takes real time."""
    return Scripted(says, delay=delay)


class Service:
    """Starlette over the pipeline. Its endpoints are the ways to write one."""

    def __init__(self, engine: Scripted, *, middleware: bool = False, **options: Any) -> None:
        """*options* are those of `open`."""
        self.engine = engine
        self.options = options
        self.app: Any = None
        self.fresh: Any = None
        self.drained: bool | None = None
        self.jobs: set[asyncio.Task[None]] = set()
        self.done: list[str] = []
        self.running: weakref.WeakValueDictionary[str, alto.app.StreamHandle[str]]
        self.running = weakref.WeakValueDictionary()
        ways = ("bare", "generator", "within", "events", "wrapped")
        self.asgi = Starlette(
            routes=[
                Route(f"/{way}", getattr(self, way)) for way in (*ways, "whole", "job", "cancel")
            ],
            lifespan=self.lifespan,
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)] if middleware else [],
            exception_handlers={alto.Overloaded: overloaded},
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Open the pipeline for as long as the server runs."""
        async with spoken.open(llm=self.engine, **self.options) as self.app:
            self.fresh = self.app.statistics()
            yield
            self.drained = await self.app.drain(timeout=20)

    async def bare(self, request: Request) -> Response:
        """Give Starlette the handle."""
        return StreamingResponse(self.app.stream(question(request)))

    async def generator(self, request: Request) -> Response:
        """Put a generator around the handle."""

        async def body() -> AsyncIterator[str]:
            async for word in self.app.stream(question(request)):
                yield word

        return StreamingResponse(body())

    async def within(self, request: Request) -> Response:
        """Read it inside of its `async with`."""

        async def body() -> AsyncIterator[str]:
            async with self.app.stream(question(request)) as results:
                async for word in results:
                    yield word  # noqa: ASYNC119  # as many would write it

        return StreamingResponse(body())

    async def events(self, request: Request) -> Response:
        """Send events, of a request that was started before the response."""
        results = self.app.stream(question(request))

        async def body() -> AsyncIterator[str]:
            try:
                async for word in results:
                    yield f"data: {word}\n\n"
            except alto.Closed:
                yield "event: cancelled\n\n"

        self.running[results.id] = results
        headers = {"X-Request-ID": results.id}
        return StreamingResponse(body(), media_type="text/event-stream", headers=headers)

    async def cancel(self, request: Request) -> Response:
        """Cancel a request by its id."""
        results = self.running.get(request.query_params["id"])
        if results is None:
            return Response(status_code=404)
        results.cancel()
        return Response(status_code=204)

    async def wrapped(self, request: Request) -> Response:
        """Put a generator around a generator, the outer of which sees every error."""

        async def words() -> AsyncIterator[str]:
            async for word in self.app.stream(question(request)):
                yield word

        async def body() -> AsyncIterator[str]:
            try:
                async for word in words():
                    yield word
            except alto.RequestError as error:
                yield f"failed: {error}"

        return StreamingResponse(body())

    async def whole(self, request: Request) -> Response:
        """Answer when all results are there."""
        return JSONResponse(await self.app.run(question(request)))

    async def job(self, request: Request) -> Response:
        """Start what goes on after the response."""

        async def work() -> None:
            self.done.append("".join(await self.app.run(question(request))))

        task = asyncio.ensure_future(work())
        self.jobs.add(task)
        task.add_done_callback(self.jobs.discard)
        return Response(status_code=202)

    @property
    def idle(self) -> bool:
        """Whether nothing of any request is left."""
        return self.app.statistics() == self.fresh and self.engine.statistics().running == 0


def question(request: Request) -> str:
    """Read the question; the tenant goes into the context, as a middleware would put it there."""
    tenant.set(request.headers.get("tenant", "none"))
    return request.query_params["q"]


async def pass_on(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Do nothing; that the middleware is there is the point."""
    return await call_next(request)


async def overloaded(_: Request, error: Exception) -> Response:
    """Answer 503 to what was not even started."""
    return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})


class RaisingSend:
    """A server of version 2.4 of ASGI's HTTP specification: to send to a client that left raises.

    Uvicorn says that it is of version 2.3, where Starlette listens for the client to leave.
    """

    def __init__(self, asgi: Any) -> None:
        """*asgi* is the application."""
        self.asgi = asgi

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.asgi(scope, receive, send)
            return
        gone = asyncio.Event()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        async def send_or_raise(message: Message) -> None:
            if gone.is_set():
                raise ConnectionResetError("the client is gone")
            await send(message)

        async def no_more() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        first = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive_once() -> Message:
            return first.pop() if first else await no_more()

        scope["asgi"] = {**scope["asgi"], "spec_version": "2.4"}
        watching = asyncio.ensure_future(watch())
        try:
            await self.asgi(scope, receive_once, send_or_raise)
        finally:
            watching.cancel()
            await asyncio.wait([watching])


class QuietServer(uvicorn.Server):
    """Uvicorn that leaves the signals of the test's process alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@contextlib.asynccontextmanager
async def served(asgi: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve it on a free port, and give a client of it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        port = listening.getsockname()[1]
        config = uvicorn.Config(asgi, log_level="critical", lifespan="on", ws="none")
        server = QuietServer(config)
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False
            ) as client:
                yield client
        finally:
            server.should_exit = True
            await serving
            gc.collect()  # Starlette's middleware leaves a generator, which is closed by a task.
            for _ in range(10):
                await asyncio.sleep(0)


async def until(what: Callable[[], bool], *, seconds: float = 120) -> None:
    """Wait until it is so; fail when that takes unreasonably long."""
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    while not what():
        assert clock() < end, f"not so within {seconds} s"
        await asyncio.sleep(0.01)
