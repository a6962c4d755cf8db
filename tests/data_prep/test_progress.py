from __future__ import annotations

import pytest

from data_prep.execution import progress as module
from data_prep.execution.claims import Claims
from data_prep.execution.progress import Progress, format_seconds
from data_prep.execution.records import RECORDS, execute_shard
from data_prep.runner import Executor, run_stage
from data_prep.stage import Shard
from retro.cli.main import main
from retro.config.errors import ConfigError
from retro.config.execution import ExecutorConfig
from retro.config.loader import load_config
from retro.config.preparation import PrepConfig
from tests.data_prep.squares import Squares


def test_the_line_counts_what_others_made_and_leaves_out_what_was_there(tmp_path, capsys):
    (tmp_path / RECORDS).mkdir()
    bar = Progress("squares", 20)
    for i in range(4):
        execute_shard(Squares(), tmp_path, Shard(f"{i:05d}", {"i": i}))
    bar.begin(4)
    execute_shard(Squares(), tmp_path, Shard("00004", {"i": 4}))
    bar.advance()
    for i in range(5, 8):
        execute_shard(Squares(), tmp_path, Shard(f"{i:05d}", {"i": i}))
    bar.look(tmp_path)
    assert bar.text(2.0) == "squares: 8/20 shards (3 by other processes), 2.00/s, 6 s left"
    bar.failed = 1
    assert bar.text(400.0) == "squares: 8/20 shards (3 by other processes), 1 failed attempt, 36.0/h, 20 min left"
    bar.look(tmp_path)  # too soon to list the folder again
    assert bar.others == 3
    assert capsys.readouterr().err == ""  # a stage of a moment has one line, at its end
    bar.close("done")
    assert capsys.readouterr().err.startswith("squares: done (")


def test_durations():
    assert [format_seconds(s) for s in (3, 119, 120, 7000, 7200, 100_000, 200_000)] == [
        "3 s",
        "119 s",
        "2 min",
        "117 min",
        "2.0 h",
        "27.8 h",
        "2.3 d",
    ]


def test_a_process_that_waits_for_the_closing_step_says_for_whom(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("data_prep.execution.closing.LONGEST_PAUSE", 1.5)
    folder = tmp_path / Squares().folder_name()
    folder.mkdir()
    released: list[str] = []
    with Claims(folder, 60.0) as other:
        assert other.take("_finish")

        def sleep(seconds: float) -> None:
            if seconds > 1 and not released:
                released.append("now")
                other.release("_finish")

        monkeypatch.setattr("data_prep.execution.closing.time.sleep", sleep)
        run_stage(Squares(), tmp_path)
    assert "squares: waiting for the closing step, which process " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["executor.type=dask"], "executor.type: expected one of 'process', 'ray', found 'dask'"),
        (["executor.attempts=0"], "attempts: expected 1 or more, found 0"),
        (["executor.lease_seconds=0.5"], "lease_seconds: expected 1 or more, found 0.5"),
        (["executor.lease_seconds=nan"], "lease_seconds"),
        (["executor.type=ray", "executor.num_cpus=0"], "num_cpus: expected a number above 0, found 0"),
        (["executor.address=auto"], "address is set, but type is 'process'; set type=ray or remove it"),
        (["executor.num_cpus=2"], "num_cpus is set, but type is 'process'"),
        (["executor.connect_seconds=5"], "connect_seconds is set, but type is 'process'"),
    ],
)
def test_what_is_no_executor(options, message):
    with pytest.raises(ConfigError) as caught:
        load_config(PrepConfig, None, ["root=x", *options])
    assert message in str(caught.value)


def test_the_command_refuses_ranks_that_are_none(capsys):
    assert main(["prep", "run", "--rank", "2", "--world-size", "2", "nowhere.yaml"]) == 2
    assert "--rank: expected a number below the world size 2, found 2" in capsys.readouterr().err


def test_where_a_stage_runs_is_in_no_fingerprint(tmp_path):
    """Run twice with all that can differ: found finished, and not made again."""
    folder = run_stage(Squares(), tmp_path, Executor(1), progress=False)
    other = Executor(2, ExecutorConfig(attempts=1, lease_seconds=10), rank=1, world=3)
    assert run_stage(Squares(), tmp_path, other, progress=False) == folder
    assert len((folder / ".calls").read_text().split()) == 6


def test_listing_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    bar = Progress("squares", 10**6)
    clock = iter([100.0, 104.0])  # a listing of four seconds
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock, 100.0 + 150.0))
    bar.look(tmp_path)
    looked = bar._looked
    bar.look(tmp_path)  # 146 seconds later: 2.7 % of the time
    assert bar._looked == looked
