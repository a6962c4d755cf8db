"""The connection of this process to a Ray cluster: one for all stages, ended only if we began it."""

from __future__ import annotations

import os
import socket
import threading
from types import ModuleType
from typing import Any

from retro.config.errors import ConfigError
from retro.config.execution import ExecutorConfig

_RAY_PORT = 6379
_begun = False


def connect(config: ExecutorConfig) -> ModuleType:
    """The module `ray`, connected to `config.address` (None: to a cluster started here). Does nothing if it is.

    Raises ConfigError if Ray is not installed or if the cluster cannot be reached within `config.connect_seconds`.
    """
    global _begun
    # Said before the import, which reads them: no reports over the network, and GPUs stay visible to tasks without.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"executor.type is 'ray', but Ray cannot be imported ({error}); "
            "pip install 'retro-pretraining[ray]', or set executor.type=process"
        ) from None
    if ray.is_initialized():
        return ray
    if config.address is not None:
        _check_reachable(config.address, config.connect_seconds)
    options: dict[str, Any] = {"address": config.address or "local", "log_to_driver": False, "logging_level": "ERROR"}
    if config.address is None:
        options["include_dashboard"] = False
    _init_in_time(ray, options, config)
    _begun = True
    return ray


def disconnect() -> None:
    """Leave the cluster, and stop it if it was started here; nothing if this process was connected before us."""
    global _begun
    if _begun:
        import ray

        ray.shutdown()
        _begun = False


def _check_reachable(address: str, timeout: float) -> None:
    """Ray itself waits long, and prints much, for an address where nobody answers."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(
            f"executor.address: expected host:port, ray://host:port or auto, found {address!r}; "
            f"`ray start --head` prints it, the port is {_RAY_PORT} by default"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
    except OSError as error:
        raise ConfigError(
            f"executor.address: no Ray cluster answers at {address} ({error.strerror or error}); "
            "start it with `ray start --head`, correct the address, or leave it out to start one here"
        ) from None


def _init_in_time(ray: ModuleType, options: dict[str, Any], config: ExecutorConfig) -> None:
    problem: list[BaseException] = []

    def call() -> None:
        try:
            ray.init(**options)
        except BaseException as error:
            problem.append(error)

    if config.address is None:
        call()  # in this thread: the processes that it starts end with the thread that started them
    else:
        # To connect has no time limit of its own; a thread can at least be left behind.
        thread = threading.Thread(target=call, name="ray-init", daemon=True)
        thread.start()
        thread.join(config.connect_seconds)
        if thread.is_alive():
            raise ConfigError(
                f"executor: no connection to the Ray cluster at {config.address} within {config.connect_seconds:g} s; "
                "check that it is up and of this version, or raise executor.connect_seconds"
            )
    if problem:
        if not isinstance(problem[0], Exception):
            raise problem[0]
        lines = str(problem[0]).strip().splitlines() or [type(problem[0]).__name__]
        raise ConfigError(
            f"executor: Ray at {config.address or 'this machine'} cannot be used: {lines[0]}; nodes and this process "
            "need one version of Ray and one token (RAY_AUTH_TOKEN), or RAY_AUTH_MODE=disabled everywhere"
        )
