"""status: states, progress of an unfinished stage, disk, folders that nobody uses, output for machines."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from data_prep.inspection import status as status_module
from data_prep.inspection.claims import read_claims
from data_prep.inspection.disk import Disk, folder_bytes
from data_prep.inspection.figures import figures
from data_prep.inspection.progress import commit_rate, read_progress
from data_prep.inspection.status import status, to_json
from data_prep.pipeline import run
from retro.cli.main import main
from retro.config.loader import dump_yaml
from retro.config.preparation import PrepConfig
from tests.data_prep.inspected import configure, copy, folder_of, settings, write_corpus


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PrepConfig:
    base = tmp_path_factory.mktemp("status")
    vectors = {"kind": "vectors", "vectors": {"factory": "exact"}}
    config = configure(settings(write_corpus(base / "corpus"), base / "prep", index=vectors))
    run(config, progress=False)
    return config


@pytest.fixture
def own(made: PrepConfig, tmp_path: Path) -> PrepConfig:
    return dataclasses.replace(made, root=str(copy(Path(made.root), tmp_path / "prep")))


@pytest.fixture
def half(own: PrepConfig) -> tuple[PrepConfig, Path]:
    """embed unfinished: three shards committed, one every ten seconds, the rest and what follows not there."""
    root = Path(own.root)
    folder = folder_of(root, "embed")
    for name in ("build_index", "find_neighbors", "train_index"):
        for path in root.glob(f"{name}-*"):
            shutil.rmtree(path)
    (folder / "manifest.json").unlink()
    for number, record in enumerate(sorted((folder / "shards").glob("*.json"))):
        if number < 3 and record.stem != "_finish":
            os.utime(record, (1000.0 + 10 * number,) * 2)
            continue
        for entry in json.loads(record.read_text())["files"]:
            (folder / entry["name"]).unlink()
        record.unlink()
    return own, folder


def test_everything_done(made):
    found = status(made)
    assert {item.state for item in found.steps} == {"done"} and not found.damaged and not found.too_large
    assert found.unused == [] and found.rest.bytes == 0
    assert found.disk.used == folder_bytes(made.root) > sum(item.bytes for item in found.steps) > 0
    assert all(item.folder is not None and item.folder.is_dir() for item in found.steps)


def test_further_lines_about_an_index_and_neighbors(made):
    steps = {item.step: item.figures for item in status(made).steps}
    assert any(line.startswith("missing: ") for line in steps["find_neighbors train"])
    assert any("of the database)" in line for line in steps["find_neighbors train"])
    stats = {"recall": 0.97, "recall_at": 10, "recall_queries": 512, "recall_among": 5, "vectors": 9, "reason": "small"}
    assert figures("index", stats) == [
        "recall measured on 512 queries against exact search, among 5 sampled vectors",
        "chosen by auto: small",
    ]
    assert figures("index", {**stats, "recall": None, "reason": "as configured"}) == [] == steps["embed"]


def test_an_unfinished_stage_says_how_far_it_is(half):
    config, folder = half
    found = status(config)
    states = {item.step: item for item in found.steps}
    item = states["embed"]
    assert item.state == "resumable" and item.progress is not None
    progress = item.progress
    total = progress.total
    assert total > 4 and item.detail == f"3 of {total} shards done"
    assert (progress.shards, progress.rows) == (3, 120)
    assert progress.bytes == sum(p.stat().st_size for p in folder.glob("vectors-*.npy"))
    assert progress.shards_per_second == pytest.approx(0.1)
    assert progress.seconds_left == pytest.approx((total - 3) * 10)
    assert progress.bytes_left == round(progress.bytes / 3 * (total - 3))
    assert progress.idle_seconds is not None and progress.idle_seconds > 1e6
    assert states["find_neighbors train"].state == "waiting" and states["chunk train"].state == "done"
    assert found.rest.bytes is not None and found.rest.bytes >= progress.bytes_left


def test_nothing_is_known_of_the_speed_before_three_commits(tmp_path):
    progress = read_progress(tmp_path, 5)
    assert (progress.shards, progress.total, progress.seconds_left, progress.bytes_left) == (0, 5, None, None)
    assert progress.idle_seconds is None
    assert commit_rate([]) is commit_rate([1.0]) is commit_rate([1.0, 2.0]) is None


def test_the_rate_leaves_pauses_out_and_sees_bursts():
    assert commit_rate([0.0, 2.0, 4.0, 6.0]) == pytest.approx(0.5)
    assert commit_rate([6.0, 0.0, 4.0, 2.0]) == pytest.approx(0.5)
    night = [float(t) for t in [*range(0, 20, 2), *range(50000, 50020, 2)]]
    assert commit_rate(night) == pytest.approx(0.5)
    bursts = [10.0 * (i // 4) + 0.01 * (i % 4) for i in range(40)]  # four workers, ten seconds a shard
    assert commit_rate(bursts) == pytest.approx(0.4, rel=0.1)
    assert commit_rate([5.0] * 10) is None  # a copied folder: all times are one


def test_a_slow_start_is_forgotten():
    early = [100.0 * i for i in range(200)]
    late = [early[-1] + 1.0 * i for i in range(1, 600)]
    assert commit_rate(early + late) == pytest.approx(1.0, rel=0.01)


def test_claims_are_read_whatever_they_hold(half, capsys, tmp_path):
    config, folder = half
    assert read_claims(folder) == []
    work = folder / ".work"
    work.mkdir()
    (work / "claim-00003").write_text(json.dumps({"owner": "x", "host": "node7", "pid": 41}))
    (work / "claim-00004").write_text("")
    (work / "claimant-x").write_text("{}")
    os.utime(work / "claim-00003", (1000.0, 1000.0))
    found = {item.shard: item for item in read_claims(folder)}
    assert set(found) == {"00003", "00004"}
    assert found["00003"].owner == "process 41 on node7" and found["00003"].age_seconds > 1e6
    assert found["00004"].owner == "an unknown process" and found["00004"].age_seconds < 1e4
    assert main(["prep", "status", str(saved(config, tmp_path))]) == 0
    assert "00003 is being made by process 41 on node7" in capsys.readouterr().out


def saved(config: PrepConfig, folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(dump_yaml(config))
    return path


def test_folders_that_no_step_uses_are_listed_and_left(own):
    root = Path(own.root)
    other = dataclasses.replace(own, chunk=dataclasses.replace(own.chunk, chunk_length=8))
    found = status(other)
    assert found.unused is not None
    names = {item.folder.name.split("-")[0] for item in found.unused}
    assert {"chunk", "embed", "find_neighbors"} <= names and "ingest" not in names and "train_tokenizer" not in names
    item = next(i for i in found.unused if i.folder.name.startswith("embed"))
    assert item.finished and item.bytes == folder_bytes(item.folder) > 0
    (root / "embed-0123456789abcdef" / "shards").mkdir(parents=True)
    (root / "my notes").mkdir()
    (root / "link").symlink_to(root / "my notes")
    unused = status(own).unused
    assert unused is not None
    assert [(i.folder.name, i.finished, i.bytes) for i in unused] == [("embed-0123456789abcdef", False, 0)]
    assert (root / "embed-0123456789abcdef").is_dir()


def test_a_file_with_two_names_is_counted_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1" * 1000)
    os.link(tmp_path / "a" / "x", tmp_path / "y")
    (tmp_path / "z").symlink_to(tmp_path / "y")
    assert folder_bytes(tmp_path) == 1000


def test_a_damaged_step_ends_the_list_with_exit_code_3(own, tmp_path, capsys):
    next(folder_of(Path(own.root), "embed").glob("vectors-*.npy")).unlink()
    path = saved(own, tmp_path)
    assert main(["prep", "status", str(path)]) == 3
    out = capsys.readouterr().out
    assert "damaged" in out and "recorded in the manifest but missing" in out and "not used" not in out
    assert main(["prep", "status", str(path), "--json"]) == 3
    content = json.loads(capsys.readouterr().out)
    assert content["damaged"] is True and content["unused"] is None


def test_a_disk_that_is_too_small_is_a_warning(half, tmp_path, capsys, monkeypatch):
    config, _ = half
    path = saved(config, tmp_path)
    monkeypatch.setattr(status_module, "read_disk", lambda root: Disk(used=5000, free=10, total=10000))
    assert main(["prep", "status", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: about ") and "10 B are free" in captured.err
    monkeypatch.setattr(status_module, "read_disk", lambda root: Disk(used=5000, free=None, total=None))
    assert main(["prep", "status", str(path)]) == 0
    assert capsys.readouterr().err == ""


def test_json_has_everything_and_plain_types(half, tmp_path, capsys):
    config, folder = half
    assert main(["prep", "status", str(saved(config, tmp_path)), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads(json.dumps(to_json(status(config)))) or content["steps"]
    item = next(step for step in content["steps"] if step["step"] == "embed")
    assert item["folder"] == str(folder) and item["progress"]["shards"] == 3
    assert content["disk"]["used"] > 0 and content["too_large"] is False


def test_what_a_killed_run_left_beside_the_release_is_gone_after_the_next(own):
    root = Path(own.root)
    for name in (".release.json.tmp-17-0a1b2c3d", ".release.json.tmp-17"):
        (root / name).write_text("half")
    before = (root / "release.json").read_bytes()
    run(own, progress=False)
    assert not list(root.glob(".*tmp-*")) and (root / "release.json").read_bytes() == before


def test_a_root_that_is_not_there_yet(made, tmp_path):
    found = status(dataclasses.replace(made, root=str(tmp_path / "deep" / "new")))
    assert found.steps[0].state == "missing" and found.unused == [] and found.disk.free is not None
    assert not [path for path in tmp_path.rglob("*-*") if path.is_dir()]
