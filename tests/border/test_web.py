"""Web services: a client that goes takes its request with it, down to the engine's generation."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.border.serving import RaisingSend, Service, engine, served, until

pytestmark = [pytest.mark.realtime, pytest.mark.slow]

WAYS = ("bare", "generator", "within", "events", "wrapped")
LONG = {"q": "20000 word "}
"""A question whose answer takes a quarter of an hour, so that it never ends by itself."""


PROGRAM = Path(__file__).with_name("web_program.py")


@pytest.fixture(autouse=True)
def _no_garbage_collector():
    """Whatever ends here ends without it."""
    gc.disable()
    yield
    gc.enable()


async def first_words(parts: AsyncIterator[str], least: int) -> str:
    """Read *least* characters or a little more. To drop *parts* closes the connection."""
    text = ""
    while len(text) < least:
        text += await anext(parts)
    return text


def idle(service: Service, *, collects: bool) -> bool:
    """Whether nothing is left; *collects*: but for what waits for the collector."""
    if collects:
        gc.collect()
    return service.idle


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
@pytest.mark.parametrize("middleware", [False, True], ids=["plain", "middleware"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_goes(way: str, middleware: bool, spec: str) -> None:
    """The request and its generation are cancelled soon after the client went."""
    service = Service(engine(), middleware=middleware)
    asgi = service.asgi if spec == "2.3" else RaisingSend(service.asgi)
    async with served(asgi) as client:
        async with client.stream("GET", f"/{way}", params=LONG) as response:
            assert response.status_code == 200
            parts = response.aiter_text()
            assert "word" in await first_words(parts, 20)
            assert service.app.statistics().open_requests == 1
            assert service.engine.statistics().running == 1
        await until(lambda: service.idle)
        assert service.engine.statistics().aborted == 1
    assert service.drained


@pytest.mark.parametrize("middleware", [False, True], ids=["plain", "middleware"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:the results of app.stream:ResourceWarning")  # Collected.
async def test_a_client_that_stops_reading_and_goes(way: str, middleware: bool) -> None:
    """So it is where the server waits for room to send."""
    # Cancelled there below a `BaseHTTPMiddleware`, the task's error is kept by a cycle of anyio's (a
    # frame of `TaskGroup._spawn`), and with it a response whose generator waits at its `yield`. Where
    # that holds the handle by `async with`, only the collector finds it.
    service = Service(engine(delay=0.001), middleware=middleware)
    question = {"q": f"100000 {'x' * 30_000}"}

    async with served(service.asgi) as client:
        async with client.stream("GET", f"/{way}", params=question) as response:
            parts = response.aiter_text()
            await first_words(parts, 10)
            await until(lambda: service.app.statistics().buffered_items >= 10)
        await until(lambda: idle(service, collects=middleware and way == "within"))
        assert service.engine.statistics().finished == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_stays_gets_everything(way: str) -> None:
    """Who reads to the end gets the whole answer, with the context of the request."""
    service = Service(engine(delay=0.001))
    async with served(service.asgi) as client:
        answers = await asyncio.gather(
            *(
                client.get(f"/{way}", params={"q": "5 ab"}, headers={"tenant": f"t{number}"})
                for number in range(3)
            )
        )
        for number, answer in enumerate(answers):
            text = answer.text.replace("data: ", "").replace("\n\n", "")
            assert text == f"t{number}: " + "ab" * 5
        await until(lambda: service.idle)
        assert service.engine.statistics().aborted == 0


@pytest.mark.parametrize("middleware", [False, True], ids=["plain", "middleware"])
@pytest.mark.filterwarnings("ignore:the results of app.stream:ResourceWarning")  # Collected.
async def test_clients_that_go_at_random_moments(middleware: bool) -> None:
    """Twenty clients go whenever they like, some before the first word; others stay."""
    # Below a middleware one may go while its word is handed on: see above for anyio's cycle.
    luck = random.Random(14)
    service = Service(engine(delay=0.01), middleware=middleware)

    async def visit(client: httpx.AsyncClient, way: str, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async with client.stream("GET", f"/{way}", params=LONG) as response:
                    parts = response.aiter_text()
                    await first_words(parts, 10**9)

    async with served(service.asgi) as client, asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(visit(client, WAYS[number % len(WAYS)], luck.uniform(0, 1)))
        stays = tasks.create_task(client.get("/bare", params={"q": "60 ab"}))
        await until(lambda: stays.done() and idle(service, collects=middleware))
        assert stays.result().text == "none: " + "ab" * 60


async def test_too_many_requests() -> None:
    """More requests than there may be get 503 before anything of them has started."""
    service = Service(engine(), max_requests=1)
    async with served(service.asgi) as client:
        async with client.stream("GET", "/bare", params=LONG) as response:
            parts = response.aiter_text()
            await first_words(parts, 10)
            for way in ("bare", "events", "whole"):
                refused = await client.get(f"/{way}", params=LONG)
                assert refused.status_code == 503
                assert refused.headers["Retry-After"] == "1"
                assert "requests" in refused.json()["error"]
            assert len(service.engine.requests) == 1
            assert service.app.statistics().open_requests == 1
        await until(lambda: service.idle)
        assert (await client.get("/whole", params={"q": "1 ab"})).json() == ["none: ", "ab"]


async def test_a_request_is_cancelled_by_its_id() -> None:
    """Another client may end it; whoever reads it learns so, and its id is forgotten."""
    service = Service(engine())
    async with served(service.asgi) as client:
        async with client.stream("GET", "/events", params=LONG) as response:
            parts = response.aiter_text()
            await first_words(parts, 10)
            its = {"id": response.headers["X-Request-ID"]}
            assert (await client.get("/cancel", params=its)).status_code == 204
            assert "".join([part async for part in parts]).endswith("event: cancelled\n\n")
        await until(lambda: service.idle)
        await until(lambda: not service.running)
        assert (await client.get("/cancel", params=its)).status_code == 404


async def test_draining_waits_for_what_goes_on_after_a_response() -> None:
    """The lifespan's drain lets a job end that no connection waits for."""
    service = Service(engine(delay=0.05))
    async with served(service.asgi) as client:
        assert (await client.get("/job", params={"q": "10 ab"})).status_code == 202
        assert service.done == []
    assert service.drained
    assert service.done == ["none: " + "ab" * 10]


def free_port() -> int:
    """Find one."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.asynccontextmanager
async def program(grace: int) -> AsyncIterator[tuple[subprocess.Popen[str], httpx.AsyncClient]]:
    """Run the service as a program; ends it if it has not ended."""
    port = free_port()
    with subprocess.Popen(  # noqa: ASYNC220  # it takes a moment
        [sys.executable, str(PROGRAM), str(port), str(grace)],
        cwd=PROGRAM.parents[2], env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "open\n"
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False
            ) as client:
                await until_answers(client)
                yield process, client
        finally:
            process.kill()


async def until_answers(client: httpx.AsyncClient) -> None:
    """Wait until the server accepts connections, which is after its lifespan has begun."""
    for _ in range(1000):
        with contextlib.suppress(httpx.ConnectError):
            await client.get("/nothing")
            return
        await asyncio.sleep(0.01)


async def test_a_signal_lets_open_streams_and_jobs_end() -> None:
    """After SIGTERM what is open goes on to its end, and the drain waits for the job."""
    async with program(0) as (process, client):
        assert (await client.get("/job", params={"q": "40 job"})).status_code == 202
        async with client.stream("GET", "/events", params={"q": "20 ab"}) as response:
            parts = response.aiter_text()
            text = await first_words(parts, 10)
            process.send_signal(signal.SIGTERM)
            text += "".join([part async for part in parts])
        assert text.count("data: ab") == 20
        output, _ = await asyncio.to_thread(process.communicate)
    assert output == f"drained=True running=0\njobs=['none: {'job' * 40}']\n"


async def test_a_signal_with_a_grace_cuts_streams_that_do_not_end() -> None:
    """After the grace uvicorn cancels its tasks, and the requests of endless streams with them."""
    async with program(1) as (process, client):
        async with client.stream("GET", "/bare", params=LONG) as response:
            parts = response.aiter_text()
            await first_words(parts, 10)
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(httpx.RemoteProtocolError):
                async for _ in parts:
                    pass
        output, _ = await asyncio.to_thread(process.communicate)
    assert output == "drained=True running=0\njobs=[]\n"
