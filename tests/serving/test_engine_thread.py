"""The thread that drives the engine: failures, refusals, the end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from retro.serving.completion_request import parse_completion_request
from retro.serving.completions import engine_options
from retro.serving.engine_thread import EngineFailure, EngineThread, RequestRefused
from tests.serving.fake_engine import FakeEngine
from tests.serving.live_server import wait_until


def options(prompt: str, tokens: int = 5):
    body = b'{"prompt": "x", "max_tokens": %d, "temperature": 0}' % tokens
    return engine_options(parse_completion_request(body), tuple(prompt.encode()), 0)


def text_of(updates) -> str:
    return "".join(update.text for update in updates)


async def collect(generation):
    return [update async for update in generation]


@pytest.fixture
def thread():
    engines: list[FakeEngine] = []
    made = EngineThread(lambda: engines.append(FakeEngine(2)) or engines[-1])
    made.engines = engines
    made.start()
    yield made
    for engine in engines:
        engine.gate.set()
    made.stop()


def test_a_failure_is_that_of_the_requests_inside_and_the_next_ones_are_served(thread, caplog):
    async def play():
        good = thread.submit(options("slow", 500))
        await good.__anext__()
        bad = thread.submit(options("crash"))
        for generation in (bad, good):
            with pytest.raises(EngineFailure, match="failed"):
                await collect(generation)
        return text_of(await collect(thread.submit(options("after"))))

    assert asyncio.run(play()) == "alpha"
    assert len(thread.engines) == 2 and thread.alive
    assert "the device fell off" in caplog.text and "2 requests are lost" in caplog.text


def test_what_the_engine_refuses_fails_alone(thread):
    async def play():
        good, bad = thread.submit(options("good")), thread.submit(options("refuse"))
        with pytest.raises(RequestRefused, match="refuses"):
            await collect(bad)
        return text_of(await collect(good))

    assert asyncio.run(play()) == "alpha"
    assert len(thread.engines) == 1


def test_a_request_cancelled_before_it_was_submitted_never_runs(thread):
    async def play():
        thread.engines[0].gate.clear()
        first = thread.submit(options("a"))
        wait_until(lambda: thread.engines[0].waiting == 1)
        second = thread.submit(options("b", 500))
        second.cancel()
        second.cancel()
        thread.engines[0].gate.set()
        await collect(first)
        assert await collect(second) == []

    asyncio.run(play())
    wait_until(lambda: not thread._by_ticket)
    assert thread.engines[0].most_active == 1


def test_stopping_fails_what_is_inside_and_refuses_the_rest(thread):
    async def play():
        inside = thread.submit(options("slow", 500))
        await inside.__anext__()
        await asyncio.to_thread(thread.stop)
        with pytest.raises(EngineFailure, match="shutting down") as failure:
            await collect(inside)
        assert failure.value.shutdown
        with pytest.raises(EngineFailure):
            thread.submit(options("late"))

    asyncio.run(play())
    assert not thread.alive


def test_an_engine_that_cannot_be_built_again_ends_the_service():
    built = threading.Event()

    def build():
        if built.is_set():
            raise RuntimeError("no device")
        built.set()
        return FakeEngine()

    thread = EngineThread(build)
    thread.start()

    async def play():
        with pytest.raises(EngineFailure):
            await collect(thread.submit(options("crash")))
        await asyncio.to_thread(wait_until, lambda: not thread.alive)
        with pytest.raises(EngineFailure):
            thread.submit(options("a"))

    asyncio.run(play())


def test_a_loop_that_is_gone_does_not_stop_the_engine(thread):
    async def leave():
        thread.engines[0].gate.clear()
        thread.submit(options("slow", 20))

    asyncio.run(leave())
    thread.engines[0].gate.set()

    async def play():
        return text_of(await collect(thread.submit(options("after"))))

    assert asyncio.run(play()) == "alpha"
