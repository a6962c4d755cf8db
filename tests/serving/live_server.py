"""A real server on a free port, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import uvicorn

from retro.config.loader import from_dict
from retro.config.serving import ServeConfig
from retro.serving.app import Service
from retro.serving.served_model import ServedModel
from retro.serving.server import bind, uvicorn_config


class LiveServer:
    """`with LiveServer(model, limits=...) as server`: server.url, server.port, server.service."""

    def __init__(self, model: ServedModel, **fields: Any) -> None:
        self.config = from_dict(ServeConfig, {"checkpoint": "x", "port": 0, **fields})
        self.service = Service(model, self.config)
        self._server = uvicorn.Server(uvicorn_config(self.service))
        self._listener = bind(self.config.host, 0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._listener])

    def __enter__(self) -> LiveServer:
        self.service.start()
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(self, *unused: object) -> None:
        self._server.should_exit = True
        self.service.stop()
        self._thread.join(20)

    def cut(self) -> None:
        """Break off all connections."""

        def abort() -> None:
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    def metric(self, name: str, **labels: str) -> float:
        """Value of a metric, 0 if it has none yet."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Poll until the condition holds; AssertionError if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
