"""A server around the fake engine, and a client of it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

    from tests.serving.fake_engine import FakeEngine
    from tests.serving.live_server import LiveServer

#: Without these nothing here can be imported; test_extra.py says so.
MISSING = [n for n in ("fastapi", "uvicorn", "prometheus_client", "httpx") if importlib.util.find_spec(n) is None]
collect_ignore = [p.name for p in Path(__file__).parent.glob("test_*.py") if MISSING and p.name != "test_extra.py"]


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """Lines of servers go to the test's log only, whatever a test before set up."""
    logger = logging.getLogger("retro.serving")
    logger.handlers, logger.propagate = [], True
    logger.setLevel("DEBUG")
    yield


class Served:
    """A live server, its engines in the order in which they were built, and a client."""

    def __init__(self, live: LiveServer, engines: list[FakeEngine], client: httpx.Client) -> None:
        self.live, self.engines, self.client = live, engines, client

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]

    def post(self, **body: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json=body)

    def works(self) -> bool:
        """It still answers, and rightly."""
        answer = self.post(prompt="ok", max_tokens=6, temperature=0)
        return answer.status_code == 200 and answer.json()["choices"][0]["text"] == "alpha "


@pytest.fixture
def start() -> Iterator[Callable[..., Served]]:
    """`start(slots=4, **fields of ServeConfig)`."""
    import httpx

    from tests.serving.fake_engine import fake_model
    from tests.serving.live_server import LiveServer

    with ExitStack() as stack:

        def begin(slots: int = 4, **fields: Any) -> Served:
            engines: list[FakeEngine] = []
            live = stack.enter_context(LiveServer(fake_model(slots, engines), slots=slots, **fields))
            client = stack.enter_context(httpx.Client(base_url=live.url, timeout=30, trust_env=False))
            return Served(live, engines, client)

        yield begin


@pytest.fixture
def served(start: Callable[..., Served]) -> Served:
    """A server with the default limits."""
    return start()
