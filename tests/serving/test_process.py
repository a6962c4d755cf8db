"""The server as a process: its address, signals, exit codes; `retro serve` with a small model from disk."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from retro.cli.main import main
from retro.config.errors import ConfigError
from retro.serving.server import bind
from tests.eval.workspace import workspace
from tests.serving.live_server import wait_until

__all__ = ["workspace"]

ROOT = Path(__file__).resolve().parents[2]
#: The server of `retro serve` around the fake engine.
FAKE = """
import sys
from retro.cli.main import run_command
from retro.cli.serve import parse_config
from retro.serving.server import serve
from tests.serving.fake_engine import fake_model
raise SystemExit(run_command(lambda: serve(parse_config(None, sys.argv[1:]), lambda config: fake_model(config.slots))))
"""


class Process:
    """A running server: url, what it has logged, and its end."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
        self.lines: list[str] = []
        self.log: list[str] = []
        assert self.process.stdout is not None and self.process.stderr is not None
        self._readers = [
            threading.Thread(target=lambda: self.lines.extend(self.process.stdout or ()), daemon=True),
            threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        wait_until(lambda: "stop with" in "".join(self.lines) or self.process.poll() is not None, 60)
        match = re.search(r"http://127\.0\.0\.1:(\d+)/v1/completions", "".join(self.lines))
        assert match, self.log
        self.port = int(match[1])
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Exit code after a signal."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(60)
        for reader in self._readers:
            reader.join(10)
        return code


@contextmanager
def running(*command: str) -> Iterator[Process]:
    started = Process([sys.executable, *command])
    try:
        yield started
    finally:
        started.client.close()
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()


def fake(*items: str) -> tuple[str, ...]:
    return ("-c", FAKE, "checkpoint=x", "port=0", *items)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish_and_ends_with_0(number):
    with running(*fake("limits.shutdown_grace=30")) as server:
        answers = []
        body = {"prompt": "slow", "max_tokens": 40, "temperature": 0}
        thread = threading.Thread(target=lambda: answers.append(server.client.post("/v1/completions", json=body)))
        thread.start()
        wait_until(lambda: "retro_active_choices 1.0" in httpx.get(f"{server.client.base_url}/metrics").text)
        assert server.end(number) == 0
        thread.join(20)
        assert answers[0].status_code == 200 and answers[0].json()["usage"]["completion_tokens"] == 40
        assert any("stopping: 1 choices inside" in line for line in server.log)
        assert "Traceback" not in "".join(server.log)


def test_requests_that_outlast_the_grace_are_told_and_it_ends_with_0():
    with running(*fake("limits.shutdown_grace=0.3")) as server:
        answers = []
        body = {"prompt": "slow", "max_tokens": 1000}
        thread = threading.Thread(target=lambda: answers.append(server.client.post("/v1/completions", json=body)))
        thread.start()
        wait_until(lambda: "retro_active_choices 1.0" in httpx.get(f"{server.client.base_url}/metrics").text)
        assert server.end() == 0
        thread.join(20)
        assert answers[0].status_code == 503 and answers[0].json()["error"]["code"] == "shutting_down"
        assert "Traceback" not in "".join(server.log)


def test_silent_connections_do_not_keep_it_from_ending():
    with running(*fake("limits.shutdown_grace=20", "limits.body_timeout=60")) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as silent:
            silent.sendall(b"POST /v1/comp")
            assert server.client.get("/health").status_code == 200
            assert server.end() == 0


def test_a_port_in_use_is_one_line_and_exit_code_2(capsys):
    with running(*fake()) as server:
        again = subprocess.run(
            [sys.executable, "-c", FAKE, "checkpoint=x", f"port={server.port}"],
            capture_output=True, text=True, cwd=ROOT, timeout=60,
        )  # fmt: skip
        assert again.returncode == 2 and again.stdout == ""
        assert again.stderr.count("\n") == 1 and f"127.0.0.1:{server.port} is in use" in again.stderr
        assert server.client.get("/health").status_code == 200


def test_a_port_that_was_just_given_up_can_be_had_again():
    with running(*fake()) as server:
        server.client.get("/health")
        assert server.end() == 0
        with running("-c", FAKE, "checkpoint=x", f"port={server.port}") as again:
            assert again.client.get("/health").status_code == 200


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid", "a" * 300])
def test_an_address_that_is_not_ours_is_refused(host):
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        bind(host, 0)


def test_it_listens_on_this_machine_only_unless_told_otherwise():
    with running(*fake()) as server:
        assert not [line for line in server.log if "WARNING" in line]
        other = next((a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)), "127.0.0.1")
        if not other.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((other, server.port), timeout=2).close()
    with running(*fake("host=0.0.0.0")) as server:
        wait_until(lambda: bool(server.log))
        assert "nothing is authenticated" in "".join(server.log)


def test_help_and_mistakes_of_the_command_line(capsys, tmp_path):
    assert main(["serve", "--help"]) == 0
    assert "checkpoint=runs/X" in capsys.readouterr().out
    for items, message in [
        ([], "checkpoint"),
        (["checkpoint=x", "prot=1"], "did you mean"),
        (["checkpoint=x", "port=70000"], "port: expected 0 to 65535"),
        (["checkpoint=x", "limits.max_tokens=0"], "max_tokens: expected 1"),
        (["checkpoint=x", "allowed_hosts=[http://a]"], "host names without port"),
        (["checkpoint=x", "allowed_origins=[example.org]"], "scheme://host"),
        (["checkpoint=x", "slots=1", "limits.max_queued=2"], "could never be admitted"),
        (["nowhere.yaml", "checkpoint=x"], "nowhere.yaml"),
    ]:
        assert main(["serve", *items]) == 2, items
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error
    assert main(["serve", f"checkpoint={tmp_path}", "port=0"]) == 3
    assert "neither a run folder" in capsys.readouterr().err


def test_without_the_packages_of_the_extra_it_says_how_to_get_them():
    code = (
        "import sys, importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'uvicorn' else find(name, *a)\n"
        "from retro.cli.main import main\nraise SystemExit(main(['serve', 'checkpoint=x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "found no uvicorn" in done.stderr and "retro-pretraining[serve]" in done.stderr


def test_retro_serve_answers_with_a_model_from_disk(workspace):
    command = ("-m", "retro.cli.main", "serve", "port=0", f"checkpoint={workspace.retro}", "model_name=tiny")
    with running(*command) as server:
        assert "retrieval 2 neighbors per chunk" in "".join(server.lines)
        assert [m["id"] for m in server.client.get("/v1/models").json()["data"]] == ["tiny"]
        answer = server.client.post(
            "/v1/completions", json={"prompt": "Return the mean of all rows", "max_tokens": 20, "temperature": 0}
        )
        (choice,) = answer.json()["choices"]
        neighbors = [n for entry in choice["retrieved"] for n in entry["neighbors"]]
        assert neighbors and all(n["document"].startswith("pkg.") for n in neighbors)
        assert any("mean" in n["text"] + n["continuation"] for n in neighbors)
        assert server.end() == 0
        assert "Traceback" not in "".join(server.log)


def test_a_gpt_is_served_without_retrieval(workspace):
    with running("-m", "retro.cli.main", "serve", "port=0", f"checkpoint={workspace.gpt}") as server:
        answer = server.client.post("/v1/completions", json={"prompt": "Return", "max_tokens": 5}).json()
        assert answer["choices"][0]["retrieved"] == []
        for body in ({"retrieve": "on"}, {"num_neighbors": 1}):
            refused = server.client.post("/v1/completions", json={"prompt": "a", **body})
            assert refused.status_code == 400 and "retrieves nothing" in refused.json()["error"]["message"]
        model = server.client.get("/v1/models").json()["data"][0]["retro"]
        assert model["retrieval"] is False and json.dumps(model)
        assert server.end() == 0
