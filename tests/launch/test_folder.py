"""The folder of a launch: whole, the same for the same launch, without values of secrets; and what is submitted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.folder import CONFIG_MAP_BYTES, SOURCE_NAME
from launch.submit import SubmissionError
from retro.config.errors import ConfigError
from tests.system.workplace import ROOT
from tests.train import releases


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with train.yaml (a model in a file of its own), slurm.yaml and an sbatch that counts."""
    monkeypatch.chdir(tmp_path)
    values = releases.settings(tmp_path / "release.json", tmp_path / "runs")
    releases.write_yaml(tmp_path / "model.yaml", values["model"])
    releases.write_yaml(tmp_path / "train.yaml", {**values, "model": "model.yaml"})
    (tmp_path / "slurm.yaml").write_text("type: slurm\nname: it\npass_environment: [WANDB_API_KEY]\n")
    chain = {
        "type": "slurm",
        "jobs": [{"name": n, "command": "true", **({"after": a} if a else {})} for n, a in (("a", ""), ("b", "a"))],
    }
    releases.write_yaml(tmp_path / "chain.yaml", chain)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sbatch", "scancel"):
        (tools / name).write_text(
            f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/calls\n{{ wc -l < {tmp_path}/calls; }}\n'
        )
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    return tmp_path


TRAIN = ["--", "retro", "train", "train.yaml"]


def folder_of(place: Path) -> Path:
    (found,) = (place / "runs" / "launches").iterdir()
    return found


def test_what_is_submitted_is_kept(place: Path, capsys: pytest.CaptureFixture):
    assert main(["slurm.yaml", "--dry-run", *TRAIN]) == 0
    assert not (place / "runs").exists()
    dry = capsys.readouterr().out
    assert main(["slurm.yaml", *TRAIN]) == 0
    folder = folder_of(place)
    assert capsys.readouterr().out == f"{folder}\nit: job 1\n"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "it.sbatch", "it.yaml", "launch.json", "launch.yaml", "logs", "packages.txt", "source", "submitted.jsonl",
    }  # fmt: skip
    script = (folder / "it.sbatch").read_text()
    assert f"# === {folder}/it.sbatch\n{script}" in dry  # the dry run said where, and what
    assert (place / "calls").read_text() == f"sbatch --parsable {folder}/it.sbatch\n"
    assert f"retro.cli.train {folder}/it.yaml)" in script
    assert "pyyaml==" in (folder / "packages.txt").read_text().lower()
    record = json.loads((folder / "launch.json").read_text())
    assert record["commands"] == [f"sbatch --parsable {folder}/it.sbatch"]
    assert json.loads((folder / "submitted.jsonl").read_text())["number"] == "1"
    everything = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    assert b"s3cret" not in everything and "s3cret" not in dry


def test_the_job_does_not_see_later_changes(place: Path):
    assert main(["slurm.yaml", *TRAIN]) == 0
    folder = folder_of(place)
    model = (place / "model.yaml").read_text()
    (place / "model.yaml").write_text(model.replace('"width": 16', '"width": 32'))
    kept = (folder / "it.yaml").read_text()
    assert "width: 16" in kept
    assert main(["slurm.yaml", *TRAIN]) == 0
    assert len(list((place / "runs" / "launches").iterdir())) == 2 and (folder / "it.yaml").read_text() == kept
    # The script's own environment takes the copy of the source, even in a checkout.
    environment = {**os.environ, "PYTHONPATH": str(folder / "source"), "PYTHONSAFEPATH": "1"}
    code = "import retro, launch, data_prep; print(retro.__file__, launch.__file__, data_prep.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert all(path.startswith(str(folder / "source")) for path in done.stdout.split()), done.stdout


def test_the_same_launch_has_the_same_folder(place: Path):
    for _ in range(2):
        assert main(["slurm.yaml", *TRAIN]) == 0
    assert len((folder_of(place) / "submitted.jsonl").read_text().splitlines()) == 2


def test_mistakes_of_the_command_are_found_before_it_waits_in_a_queue(place: Path):
    with pytest.raises(ConfigError, match="'stepps'; did you mean 'steps'"):
        main(["slurm.yaml", *TRAIN, "stepps=3"])
    with pytest.raises(ConfigError, match=r"absent.yaml: configuration file not found"):
        main(["slurm.yaml", "--dry-run", "--", "retro", "train", "absent.yaml"])
    sweep = ["slurm.yaml", "array.seed=[1, -2]", "--", "retro", "train", "train.yaml", "name=x@{seed}"]
    with pytest.raises(ConfigError, match="seed"):
        main(sweep)
    assert not (place / "runs").exists()


def test_many_tasks_of_one_run_are_refused(place: Path):
    with pytest.raises(ConfigError, match="array_tasks: all its tasks would train one run"):
        main(["slurm.yaml", "array_tasks=2", *TRAIN])


def test_a_variable_that_is_not_set_is_missed_before_submission(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(ConfigError, match="pass_environment: WANDB_API_KEY is not set here"):
        main(["slurm.yaml", *TRAIN])
    assert main(["slurm.yaml", "--dry-run", *TRAIN]) == 0


def test_a_chain_is_submitted_with_dependencies(place: Path, capsys: pytest.CaptureFixture):
    assert main(["chain.yaml"]) == 0
    folder = folder_of(place)
    assert capsys.readouterr().out.splitlines()[1:] == ["a: job 1", "b: job 2, after a (1)"]
    assert (place / "calls").read_text().splitlines() == [
        f"sbatch --parsable {folder}/a.sbatch",
        f"sbatch --parsable --dependency=afterok:1 --kill-on-invalid-dep=yes {folder}/b.sbatch",
    ]


def test_a_refused_job_takes_the_ones_before_it_back(place: Path):
    text = '#!/bin/bash\n[[ $* == *b.sbatch ]] && { echo "bad partition" >&2; exit 1; }; echo 41\n'
    (place / "tools" / "sbatch").write_text(text)
    with pytest.raises(SubmissionError, match="sbatch: job b: bad partition"):
        main(["chain.yaml"])
    assert (place / "calls").read_text() == "scancel 41\n"


def test_without_the_batch_system_files_can_be_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="sbatch is not installed here; --write only writes the files"):
        main(["slurm.yaml", *TRAIN])
    capsys.readouterr()
    assert main(["chain.yaml", "--write"]) == 0
    folder = next(path for path in (place / "runs" / "launches").iterdir() if path.name.startswith("a-b-"))
    assert capsys.readouterr().out.splitlines() == [
        str(folder),
        f"job_a=$(sbatch --parsable {folder}/a.sbatch)",
        f'job_b=$(sbatch --parsable --dependency=afterok:"${{job_a%%;*}}" --kill-on-invalid-dep=yes {folder}/b.sbatch)',
    ]
    (place / "local.yaml").write_text("type: local\n")
    with pytest.raises(ConfigError, match="--write: type local runs at once"):
        main(["local.yaml", "--write", *TRAIN])


def test_the_folder_cannot_be_made(place: Path):
    (place / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file.*cannot be written .*; set launch_root"):
        main(["slurm.yaml", "launch_root=file/x", *TRAIN])


def test_a_pod_gets_the_source_packed(place: Path):
    (place / "k.yaml").write_text("type: kubernetes\nname: it\nkubernetes: {image: x}\n")
    assert main(["k.yaml", "--write", *TRAIN]) == 0
    folder = folder_of(place)
    with tarfile.open(folder / SOURCE_NAME) as archive:
        assert {"retro/cli/train.py", "launch/worker.py", "retro/serving/page/index.html"} <= set(archive.getnames())
    assert "/launch/it.yaml" in (folder / "run.sh").read_text()
    assert (folder / SOURCE_NAME).stat().st_size < 0.7 * CONFIG_MAP_BYTES  # room to grow
