"""The same stage on Ray: a cluster of two nodes on this machine, of which one is lost; and what users get wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_prep.execution.ray_session import connect, disconnect
from data_prep.runner import Executor, run_stage
from retro.config.errors import ArtifactCorruptError, ConfigError, RetroError
from retro.config.execution import ExecutorConfig
from tests.data_prep.squares import Squares
from tests.data_prep.test_runner import calls, content

ROOT = Path(__file__).parents[2]
ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")


@pytest.fixture(scope="module")
def cluster():
    """A head without cores, so that all work is on the nodes that tests add."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found.add_node(num_cpus=1)
    yield found
    disconnect()
    found.shutdown()


@pytest.fixture
def on_ray(cluster):
    """Executor(workers) on that cluster."""

    def executor(workers: int = 2, **options) -> Executor:
        return Executor(workers, ExecutorConfig(type="ray", address=cluster.address, **options))

    return executor


@pytest.fixture
def unconnected() -> None:
    disconnect()


@pytest.fixture
def clean(tmp_path: Path) -> dict[str, bytes]:
    return content(run_stage(Squares(), tmp_path / "clean", progress=False))


def test_a_poisonous_shard_is_named(tmp_path, clean, on_ray):
    with pytest.raises(RetroError, match=r"^squares, shard 00004 \(2 attempts\): its Ray worker process died"):
        run_stage(Squares(poison=4, fault="exit"), tmp_path, on_ray(attempts=2), progress=False)
    folder = tmp_path / Squares().folder_name()
    assert (folder / ".faults").read_text() == "xx"
    assert content(run_stage(Squares(), tmp_path, on_ray(), progress=False)) == clean


def test_the_same_bytes_when_a_node_is_killed_in_the_middle(tmp_path, cluster, on_ray, capsys):
    count = 10
    clean = content(run_stage(Squares(count=count), tmp_path / "clean", progress=False))
    node = cluster.add_node(num_cpus=1)
    root = tmp_path / "ray"
    folder = root / Squares(count=count).folder_name()

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            log = folder / ".workers"
            pids = {line.split()[0] for line in log.read_text().splitlines()} if log.exists() else set()
            if len(pids) == 2:  # both nodes have worked
                cluster.remove_node(node, allow_graceful=False)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    assert run_stage(Squares(count=count, wait=0.5), root, on_ray()) == folder
    thread.join()
    assert content(folder) == clean
    assert sorted(set(calls(folder))) == list(range(count))
    assert "attempt 1 of 3: its node of the Ray cluster" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_that_dies_once_and_as_many_workers_as_fit(tmp_path, clean, on_ray):
    folder = run_stage(Squares(poison=1, fault="kill", times=1), tmp_path, on_ray(0), progress=False)
    assert content(folder) == clean


def test_statements_about_content_fail_at_once(tmp_path, on_ray):
    with pytest.raises(ArtifactCorruptError, match=r"^squares, shard 00001: input line 7: not JSON$"):
        run_stage(Squares(poison=1), tmp_path, on_ray(), progress=False)
    assert (tmp_path / Squares().folder_name() / ".faults").read_text() == "x"


def test_what_fits_on_no_node_is_said(tmp_path, on_ray):
    with pytest.raises(
        ConfigError, match=r"needs 1 CPU and 3 GPU on one node of the Ray cluster, found .*1 CPU, 0 GPU"
    ):
        run_stage(Squares(gpus=3), tmp_path, on_ray(), progress=False)
    with pytest.raises(ConfigError, match="needs 64 CPU"):
        run_stage(Squares(), tmp_path, on_ray(num_cpus=64), progress=False)


@pytest.mark.slow
def test_relative_folders_are_those_of_the_driver(tmp_path, clean, on_ray, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert content(run_stage(Squares(), Path("relative"), on_ray(), progress=False)) == clean


@pytest.mark.slow
def test_a_stage_that_the_nodes_cannot_load(tmp_path, on_ray, monkeypatch):
    (tmp_path / "onlyhere.py").write_text(
        "from tests.data_prep.squares import Squares\nclass Mine(Squares):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import onlyhere

    with pytest.raises(RetroError, match=r"squares: workers cannot be started .*onlyhere.*all nodes need this package"):
        run_stage(onlyhere.Mine(), tmp_path / "out", on_ray(), progress=False)


LOCAL = """
import sys
from pathlib import Path
from data_prep.execution.ray_session import disconnect
from data_prep.runner import Executor, run_stage
from retro.config.execution import ExecutorConfig
from tests.data_prep.squares import Squares
print(run_stage(Squares(), Path(sys.argv[1]), Executor(2, ExecutorConfig(type="ray")), progress=False))
import ray
assert ray.is_initialized()
disconnect()
assert not ray.is_initialized()
"""


@pytest.mark.slow
def test_a_cluster_of_our_own_is_started_and_stopped(tmp_path, clean):
    done = subprocess.run(
        [sys.executable, "-c", LOCAL, str(tmp_path / "ray")], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert content(Path(done.stdout.strip())) == clean


@pytest.mark.slow
def test_a_foreign_connection_is_used_and_stays(tmp_path, clean, cluster):
    """Last: the module's connection is given up for one that is not ours."""
    disconnect()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        folder = run_stage(Squares(), tmp_path, Executor(1, ExecutorConfig(type="ray")), progress=False)
        assert content(folder) == clean
        disconnect()
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.parametrize("address", ["somewhere", "ray://host", "host:"])
def test_what_is_no_address(unconnected, address):
    with pytest.raises(ConfigError, match=r"executor\.address: expected host:port"):
        connect(ExecutorConfig(type="ray", address=address))


def test_an_address_where_nobody_answers(unconnected):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        connect(ExecutorConfig(type="ray", address=f"127.0.0.1:{port}", connect_seconds=5))


SILENT = """
import sys
from data_prep.execution.ray_session import connect
from retro.cli.main import run_command
from retro.config.execution import ExecutorConfig
code = run_command(lambda: connect(ExecutorConfig(type="ray", address=sys.argv[1], connect_seconds=2)) and 0)
sys.stderr.flush()
import os
os._exit(code)
"""


@pytest.mark.slow
def test_an_address_where_something_else_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", SILENT, f"127.0.0.1:{server.getsockname()[1]}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "error: executor: no connection to the Ray cluster at 127.0.0.1" in done.stderr


def test_without_ray(unconnected, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install"):
        connect(ExecutorConfig(type="ray"))
