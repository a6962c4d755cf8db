from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.execution.claims import Claims, clear_leftovers
from data_prep.execution.liveness import is_gone, new_owner
from data_prep.execution.records import RECORDS, WORK, execute_shard, temporary_name
from data_prep.runner import run_stage
from data_prep.stage import Shard
from tests.data_prep.squares import Squares
from tests.data_prep.test_runner import calls, content

LEASE = 60.0
ROOT = Path(__file__).parents[2]

DYING = """
import os, signal, sys
from pathlib import Path
from data_prep.execution.claims import Claims
with Claims(Path(sys.argv[1]), 60.0) as claims:
    assert all(claims.take(name) for name in sys.argv[2:])
    (claims.work / f"tmp-{claims.owner}-00000000-{sys.argv[2]}").mkdir()
    print(claims.owner, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die_with_claims(folder: Path, *names: str) -> str:
    """A process claims the names, begins the first, and is killed; returns its owner's name."""
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(folder), *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


def elsewhere(folder: Path, name: str, age: float) -> str:
    """A claim and a temporary of a process of another machine, whose last heartbeat is `age` seconds ago."""
    owner = f"ffffffffffff.1.1.{os.urandom(4).hex()}"
    claimant = folder / WORK / f"claimant-{owner}"
    claimant.write_text(f'{{"owner": "{owner}", "host": "other", "pid": 1}}')
    os.link(claimant, folder / WORK / f"claim-{name}")
    os.utime(claimant, (claimant.stat().st_mtime - age,) * 2)
    (folder / WORK / temporary_name(owner, name)).mkdir()
    return owner


def temporaries(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[-1] for path in (folder / WORK).glob("tmp-*"))


def test_a_part_has_one_holder_and_nothing_is_left_at_the_end(tmp_path):
    with Claims(tmp_path, LEASE) as one:
        with Claims(tmp_path, LEASE) as two:
            assert one.take("00000") and one.take("00000")
            assert not two.take("00000") and two.take("00001") and not one.take("00001")
            assert two.holder("00000") == f"process {os.getpid()} on {os.uname().nodename}"
            one.release("00000")
            assert two.take("00000")
            one.release("00000")  # not its own any more
            assert not one.take("00000")
        assert one.take("00000") and (tmp_path / WORK).is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_of_this_machine_held_is_free_at_once(tmp_path):
    owner = die_with_claims(tmp_path, "00000", "00001")
    assert is_gone(owner) is True and temporaries(tmp_path) == ["00000"]
    with Claims(tmp_path, LEASE) as claims:
        assert claims.take("00000")
        claims.sweep()
        assert temporaries(tmp_path) == []
        assert not (tmp_path / WORK / "claim-00001").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_of_another_machine_runs_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the clock of this machine is wrong, and does not matter
    with Claims(tmp_path, LEASE) as claims:
        elsewhere(tmp_path, "00000", LEASE - 10)
        elsewhere(tmp_path, "00001", LEASE + 10)
        assert not claims.take("00000")
        assert claims.take("00001")


def test_temporaries_of_a_machine_out_of_reach_stay_until_their_shard_is_made(tmp_path):
    """A lease that has run out does not prove a death: its writer must not lose what it writes to."""
    with Claims(tmp_path, LEASE) as claims:
        (tmp_path / RECORDS).mkdir()
        live, stalled = elsewhere(tmp_path, "00000", 0.0), elsewhere(tmp_path, "00001", LEASE + 10)
        claims.sweep()
        assert temporaries(tmp_path) == ["00000", "00001"]
        execute_shard(Squares(), tmp_path, Shard("00001", {"i": 1}), claims.owner)
        claims.sweep()
        assert temporaries(tmp_path) == ["00000"]
        assert not (tmp_path / WORK / f"claimant-{stalled}").exists()
    assert (tmp_path / WORK / f"claimant-{live}").exists()


def test_a_stalled_process_that_was_given_up_goes_on_and_its_late_failure_is_none(tmp_path):
    stage = Squares()
    (tmp_path / RECORDS).mkdir()

    class Interrupted(Squares):
        def run_shard(self, shard, out):
            execute_shard(stage, tmp_path, shard)  # another process took over while this one stood still,
            out.rmdir()  # and cleared away what it took for the rest of a dead one
            return super().run_shard(shard, out)

    with Claims(tmp_path, LEASE) as claims:
        (tmp_path / WORK / f"claimant-{claims.owner}").unlink()
        assert claims.take("00002")
        record = execute_shard(Interrupted(), tmp_path, Shard("00002", {"i": 2}), claims.owner)
    assert record["rows"] == 1 and (tmp_path / "square-00002.txt").read_text() == "4"


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    def link(source, target):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    with Claims(tmp_path, LEASE) as one, Claims(tmp_path, LEASE) as two:
        assert one.take("00000") and not two.take("00000")
        one.release("00000")
        assert two.take("00000")
        empty = tmp_path / WORK / "claim-00001"
        empty.touch()  # its maker was killed between two calls
        assert not one.take("00001")
        os.utime(empty, (empty.stat().st_mtime - LEASE - 10,) * 2)
        assert one.take("00001")
    assert list(tmp_path.iterdir()) == []


def test_names_of_processes():
    owner = new_owner()
    place, number, started, _ = owner.split(".")
    assert is_gone(owner) is False
    assert is_gone(f"{place}.{number}.{int(started, 16) + 1:x}.0") is True  # the number is used again
    assert is_gone(f"{place}.{2**22 + 1:x}.{started}.0") is True
    assert is_gone(f"000000000000.{number}.{started}.0") is None  # another machine or container
    assert is_gone("nonsense") is None


def test_a_zombie_is_gone():
    code = "from data_prep.execution.liveness import new_owner; print(new_owner())"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    owner = child.stdout.read().strip()
    deadline = time.monotonic() + 30
    while is_gone(owner) is False and time.monotonic() < deadline:  # it ends, and nobody has asked how
        time.sleep(0.01)
    assert is_gone(owner) is True
    child.communicate()


def test_what_a_kill_left_beside_a_finished_artifact_is_cleared(tmp_path):
    folder = run_stage(Squares(), tmp_path, progress=False)
    clean = content(folder)
    die_with_claims(folder, "00000")
    assert (folder / WORK).is_dir()
    assert run_stage(Squares(), tmp_path, progress=False) == folder
    assert content(folder) == clean
    clear_leftovers(folder, LEASE)
    assert not (folder / WORK).exists()


def start(root: Path, *numbers: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.data_prep.squares", str(root), *map(str, numbers)], cwd=ROOT)


def test_processes_share_a_stage_and_no_shard_is_made_twice(tmp_path):
    clean = content(run_stage(Squares(count=24), tmp_path / "clean", progress=False))
    both = [start(tmp_path / "both", 1, 0.1, 0, 1, 24) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    folder = tmp_path / "both" / Squares(count=24).folder_name()
    assert content(folder) == clean
    assert sorted(calls(folder)) == list(range(24))
    workers = [line.split()[0] for line in (folder / ".workers").read_text().splitlines()]
    assert len(set(workers)) == 2


def test_one_of_three_ranks_is_killed(tmp_path):
    clean = content(run_stage(Squares(count=12), tmp_path / "clean", progress=False))
    root = tmp_path / "three"
    ranks = [start(root, 1, 0.2, rank, 3, 12) for rank in range(3)]
    folder = root / Squares(count=12).folder_name()
    deadline = time.monotonic() + 60
    while not (folder / "shards" / "00001.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks[1].kill()
    assert [process.wait(60) for process in ranks] == [0, -signal.SIGKILL, 0]
    assert content(folder) == clean
    assert sorted(set(calls(folder))) == list(range(12))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_gives_everything_back(tmp_path, workers):
    process = start(tmp_path, workers, 30)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/.work/tmp-*/square-*"))) < workers:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    assert not list(tmp_path.rglob(WORK))
