"""Several hosts on one machine: network namespaces, each with an address and a host name of its own, on one switch.

Only networks and names are apart; files are shared, as on a cluster's file system. Needs root and iproute2 (Linux);
`why_not()` tells what is missing. Nothing outside the namespaces is changed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def why_not() -> str | None:
    """Why there can be no hosts here; None if there can."""
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            return f"needs {program} (iproute2, util-linux)"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    name = f"rt{secrets.token_hex(3)}"
    made = _run("ip", "netns", "add", name, check=False)
    if made.returncode:
        return f"network namespaces cannot be made: {made.stderr.strip()}"
    try:
        tried = _run(*_inside(name), "unshare", "--uts", "true", check=False)
        linked = _run("ip", "-n", name, "link", "add", "switch", "type", "bridge", check=False)
    finally:
        _run("ip", "netns", "del", name)
    problem = tried if tried.returncode else linked
    return f"network namespaces cannot be used: {problem.stderr.strip()}" if problem.returncode else None


class Host:
    """One of them: `address`, and the processes that run there."""

    def __init__(self, namespace: str, number: int) -> None:
        self.namespace, self.number, self.address = namespace, number, f"10.77.0.{number + 1}"

    def start(self, command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a command on this host, its output appended to `log`."""
        named = ["unshare", "--uts", "sh", "-c", f'hostname host{self.number} && exec "$@"', "sh", *command]
        with open(log, "ab") as out:
            return subprocess.Popen(
                [*_inside(self.namespace), *named], stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment
            )

    def processes(self) -> list[int]:
        """Everything that runs there."""
        return [int(pid) for pid in _run("ip", "netns", "pids", self.namespace).stdout.split()]

    def kill(self) -> None:
        """kill -9 of everything, until nothing is left: the others see connections that are closed."""
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def lose_power(self) -> None:
        """The others hear nothing of it: the network falls silent first, then everything is killed."""
        self.connect(False)
        self.kill()

    def connect(self, on: bool = True) -> None:
        """Plug the network in or pull it out."""
        _run("ip", "-n", self.namespace, "link", "set", "eth0", "up" if on else "down")


class Hosts:
    """`count` hosts; a context, which ends their processes and takes them away."""

    def __init__(self, count: int) -> None:
        self._prefix = f"rt{secrets.token_hex(3)}"
        self._switch = f"{self._prefix}s"
        self.hosts = [Host(f"{self._prefix}h{number}", number) for number in range(count)]

    def __enter__(self) -> list[Host]:
        try:
            _run("ip", "netns", "add", self._switch)
            _run("ip", "-n", self._switch, "link", "add", "switch", "type", "bridge")
            _run("ip", "-n", self._switch, "link", "set", "switch", "up")
            for host in self.hosts:
                port = f"port{host.number}"
                _run("ip", "netns", "add", host.namespace)
                _run("ip", "-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns",
                     host.namespace)  # fmt: skip
                _run("ip", "-n", self._switch, "link", "set", port, "master", "switch", "up")
                _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    _run("ip", "-n", host.namespace, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self.hosts

    def __exit__(self, *exception: object) -> None:
        known = _run("ip", "netns", "list").stdout
        for host in self.hosts:
            if host.namespace in known:
                host.kill()
                _run("ip", "netns", "del", host.namespace)
        if self._switch in known:
            _run("ip", "netns", "del", self._switch)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 120.0) -> None:
    """Return when it holds. Raises AssertionError after the timeout."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.02)


def _inside(namespace: str) -> list[str]:
    return ["ip", "netns", "exec", namespace]


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done
