"""`retro serve`: take the port, load the model, answer until a signal."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from retro.config.errors import ConfigError
from retro.config.serving import ServeConfig
from retro.serving.app import Service, build_app
from retro.serving.connection import patient_connection
from retro.serving.served_model import ServedModel

logger = logging.getLogger("retro.serving")

#: After shutdown_grace requests are failed; their answers have so long to be sent.
_LAST_WORDS = 2.0
_BACKLOG = 256


class GracefulServer(uvicorn.Server):
    """uvicorn's server, which ends with a normal return on SIGTERM and SIGINT, and calls `on_signal` at once."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn raises captured signals again at the end, which would make the exit status theirs."""
        loop = asyncio.get_running_loop()
        handled = (signal.SIGINT, signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            again = self.should_exit
            self.handle_exit(number, frame)
            if not again:
                loop.call_soon_threadsafe(self._on_signal)

        before = {number: signal.signal(number, handle) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(config: ServeConfig, open_model: Callable[[ServeConfig], ServedModel]) -> int:
    """Serve until SIGTERM or SIGINT; returns 0. Raises ConfigError for a port that cannot be had, before the model is
    loaded, and what `open_model` raises."""
    set_up_log(config.log_level)
    with bind(config.host, config.port) as listener:
        service = Service(open_model(config), config)
        service.start()
        try:
            asyncio.run(_serve(service, listener))
        finally:
            service.stop()
    logger.info("stopped")
    return 0


async def _serve(service: Service, listener: socket.socket) -> None:
    grace = service.config.limits.shutdown_grace
    loop = asyncio.get_running_loop()

    def begin_to_stop() -> None:
        logger.info("stopping: %d choices inside, at most %gs for them", service.admission.taken, grace)
        service.drain()
        # Joining waits for a step to end: not in the loop.
        loop.call_later(grace, lambda: loop.run_in_executor(None, service.stop))

    server = GracefulServer(uvicorn_config(service), begin_to_stop)
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # somebody else has begun to listen since we were bound
        raise _no_address(service.config.host, listener.getsockname()[1], error) from None
    print_banner(service, listener)
    await server.serve(sockets=[listener])


def uvicorn_config(service: Service) -> uvicorn.Config:
    """uvicorn without its own log and with the limits of the configuration."""
    limits = service.config.limits
    connection: Any = patient_connection(
        max_connections=limits.max_connections,
        head_timeout=limits.body_timeout,
        body_timeout=limits.body_timeout,
        write_timeout=limits.write_timeout,
    )
    return uvicorn.Config(
        build_app(service),
        http=connection,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        proxy_headers=False,
        timeout_keep_alive=limits.keep_alive,  # type: ignore[arg-type]
        timeout_graceful_shutdown=limits.shutdown_grace + _LAST_WORDS,  # type: ignore[arg-type]
    )


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. Raises ConfigError if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host: {host!r} is no address of this machine ({error}); give host=127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    try:
        # Connections of a server before us that linger in TIME_WAIT do not count; one that listens does.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _no_address(host, port, error) from None
    return listener


def _no_address(host: str, port: int, error: OSError) -> ConfigError:
    what = {
        errno.EADDRINUSE: "is in use by another program; stop it, or give another port=NUMBER (0 = any free one)",
        errno.EACCES: "needs privileges; give a port of 1024 or more",
        errno.EADDRNOTAVAIL: "is no address of this machine; give host=127.0.0.1",
    }
    return ConfigError(f"port: {host}:{port} {what.get(error.errno or 0, f'cannot be listened on ({error.strerror})')}")


def print_banner(service: Service, listener: socket.socket) -> None:
    """Where the server is, on stdout; a warning where others can reach it."""
    config, model = service.config, service.model
    port = listener.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    url = f"http://{f'[{name}]' if ':' in name and not name.startswith('[') else name}:{port}"
    retrieval = f"{model.num_neighbors} neighbors per chunk" if model.retrieves else "off"
    print(f"retro serve: {model.name}, retrieval {retrieval}, {model.slots} at a time")
    print(f"  {'page       ' + url + '/' if config.page else 'no page'}")
    print(f"  endpoint   {url}/v1/completions")
    print(f"  also       {url}/v1/models /health /ready /metrics /openapi.json")
    print("  stop with Ctrl-C", flush=True)
    if not config.loopback:
        logger.warning(
            "listening on %s: everyone who reaches this machine can use the model; nothing is authenticated or "
            "encrypted here, put a reverse proxy in front",
            config.host,
        )


def set_up_log(level: str) -> None:
    """Lines of this package, and errors of uvicorn (its warnings are of malformed requests), on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, lowest in (("retro.serving", level.upper()), ("uvicorn", "ERROR"), ("asyncio", "WARNING")):
        named = logging.getLogger(name)
        named.handlers, named.propagate = [handler], False
        named.setLevel(lowest)
