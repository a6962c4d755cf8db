"""`retro launch` with a real Slurm: what is submitted trains, stops in time, is put back, and waits for others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.slurm_cluster import ClusterUnavailableError, SlurmCluster, wait_until
from tests.system.workplace import ROOT, eval_command, prep_settings, train_command, write_config, write_corpus
from tests.train import releases

pytestmark = pytest.mark.slow
STEPS = 160


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # munge's socket must have a short name
        found = SlurmCluster(Path(folder))
        try:
            found.start()
        except ClusterUnavailableError as reason:
            pytest.skip(str(reason))
        try:
            yield found
        finally:
            found.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with release.json, two.yaml (launch with two tasks) and train.yaml (a run of seconds)."""
    root = tmp_path_factory.mktemp("launch place")  # with a space
    release = releases.build_release(root)
    fields = {"steps": STEPS, "micro_batch": 1, "log_every": 1, "checkpoint_every": 100, "validate_every": 0}
    releases.write_yaml(root / "train.yaml", releases.settings(release, root / "runs", **fields))
    settings = {"type": "slurm", "processes": 2, "resources": {"cpus": 2, "hours": 1}, "slurm": {"signal_seconds": 90}}
    write_config(root / "two.yaml", settings)
    return root


@pytest.fixture(scope="module")
def undisturbed(cluster: SlurmCluster, place: Path) -> dict[str, bytes]:
    """Weights of the run of two tasks that nothing happens to."""
    (job,) = launch(cluster, place, "two.yaml", "--", *train("undisturbed")).values()
    cluster.wait_for(job, "COMPLETED")
    log = cluster.log(job)
    assert "on 2 process(es)" in log and f"finished: {STEPS} steps" in log
    return weights(place / "runs" / "undisturbed")


def train(name: str) -> list[str]:
    return ["retro", "train", "train.yaml", f"name={name}"]


def launch(cluster: SlurmCluster, place: Path, *arguments: str) -> dict[str, str]:
    """Submit; job -> number."""
    environment = {**cluster.environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "launch", *arguments], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^(\S+): job (\d+)", done.stdout, re.MULTILINE))


def weights(run: Path) -> dict[str, bytes]:
    """The tensors of the last checkpoint, file by file."""
    folder = run / "checkpoints" / f"step_{STEPS:06}"
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors") if path.name.startswith("model")}
    assert found, sorted(folder.iterdir())
    return found


def steps(run: Path) -> list[int]:
    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [row["step"] for row in rows if row["event"] == "train"]


def hold_in_training(cluster: SlurmCluster, job: str, run: Path, count: int = 5) -> None:
    """Return when the run has made some steps, and cannot be finished before Slurm does what the test wants: one of its
    processes is stopped, the other waits for it. Slurm sends SIGCONT before any signal of its own."""

    def trained() -> bool:
        assert cluster.state(job) in ("PENDING", "RUNNING"), cluster.log(job)
        return len(steps(run)) >= count

    wait_until(trained, f"{count} steps of {run.name}")
    cluster.hold(job, rank=1)


def test_two_tasks_of_srun_train_one_run(undisturbed: dict[str, bytes], place: Path):
    assert steps(place / "runs" / "undisturbed") == list(range(1, STEPS + 1))
    assert undisturbed


def test_a_time_limit_is_survived(cluster: SlurmCluster, place: Path, undisturbed: dict[str, bytes]):
    """Slurm's warning -> checkpoint -> 75 -> back into the queue -> resumed -> the weights of the undisturbed run."""
    run = place / "runs" / "limited"
    (job,) = launch(cluster, place, "two.yaml", "--", *train("limited")).values()
    hold_in_training(cluster, job, run)
    cluster.warn(job)
    cluster.wait_for(job, "COMPLETED")
    log = cluster.log(job)
    assert "stopped by SIGUSR1 after step" in log
    assert f"job {job}: stopped with exit code 75; back into the queue (1 of 20)" in log
    assert "resuming at step" in log and f"finished: {STEPS} steps" in log
    assert cluster.facts(job)["Restarts"] == "1"
    assert steps(run) == list(range(1, STEPS + 1))
    assert weights(run) == undisturbed


def test_a_preempted_job_goes_on_later(cluster: SlurmCluster, place: Path, undisturbed: dict[str, bytes]):
    run = place / "runs" / "preempted"
    (job,) = launch(cluster, place, "two.yaml", "--", *train("preempted")).values()
    hold_in_training(cluster, job, run)
    urgent = cluster.call("sbatch", "--parsable", "-p", "urgent", "-n", "2", "-o", "/dev/null", "--wrap", "true")
    cluster.wait_for(urgent, "COMPLETED")
    cluster.wait_for(job, "COMPLETED")
    log = cluster.log(job)
    assert "stopped by SIGTERM after step" in log and "resuming at step" in log
    assert cluster.facts(job)["Restarts"] == "1"
    assert weights(run) == undisturbed


def test_a_cancelled_job_checkpoints_and_stays_cancelled(cluster: SlurmCluster, place: Path):
    run = place / "runs" / "cancelled"
    (job,) = launch(cluster, place, "two.yaml", "--", *train("cancelled")).values()
    hold_in_training(cluster, job, run)
    cluster.call("scancel", job)
    wait_until(lambda: not cluster.call("squeue", "-h", "-j", job), "the end of the cancelled job")
    assert cluster.state(job) == "CANCELLED"
    log = cluster.log(job)
    assert "stopped by SIGTERM after step" in log and "back into the queue" not in log
    assert list((run / "checkpoints").glob("step_*/manifest.json")) and len(steps(run)) < STEPS


def test_the_number_of_requeues_is_bounded(cluster: SlurmCluster, place: Path):
    config = write_config(place / "always.yaml", {"type": "slurm", "requeues": 1})
    (job,) = launch(cluster, place, config.name, "--", "sh", "-c", "exit 75").values()
    cluster.wait_for(job, "FAILED")
    facts, log = cluster.facts(job), cluster.log(job)
    assert (facts["Restarts"], facts["ExitCode"]) == ("1", "75:0")
    assert log.count("back into the queue (1 of 1)") == 1 and "was put back 1 times already and ends" in log


def test_the_tasks_of_an_array_train_runs_of_their_own(cluster: SlurmCluster, place: Path):
    fields = {"type": "slurm", "array": {"seed": [5, 6]}}
    config = write_config(place / "array.yaml", fields)
    command = ["retro", "train", "train.yaml", "name=seed-@{seed}", "steps=4", "warmup_steps=2"]
    (job,) = launch(cluster, place, config.name, "--", *command).values()
    for index in (0, 1):
        cluster.wait_for(f"{job}_{index}", "COMPLETED")
    for seed in (5, 6):
        run = place / "runs" / f"seed-{seed}"
        assert f"\nseed: {seed}\n" in (run / "config.yaml").read_text() and steps(run) == [1, 2, 3, 4]


def chain(place: Path, corpus: Path) -> dict[str, Any]:
    """prep -> train (two processes of torchrun) -> eval."""
    release = place / "prep" / "release.json"
    prep = write_config(place / "prep.yaml", prep_settings(corpus, place / "prep"))

    def line(words: list[str]) -> str:
        return " ".join(f"'{word}'" for word in words)

    two = {"processes": 2, "starter": "torchrun", "resources": {"cpus": 2}}
    training = line(["retro", *train_command("gpt", release, place / "runs", steps=10), "global_batch=4"])
    return {
        "type": "slurm",
        "jobs": [
            {"name": "prep", "command": line(["retro", "prep", "run", str(prep)])},
            {"name": "train", "after": "prep", "command": training, **two},
            {
                "name": "eval",
                "after": ["train"],
                "command": line(["retro", *eval_command("perplexity", place / "runs" / "gpt", "max_sequences=8")]),
            },
        ],
    }


def test_a_chain_runs_in_order(cluster: SlurmCluster, tmp_path: Path):
    config = write_config(tmp_path / "chain.yaml", chain(tmp_path, write_corpus(tmp_path / "corpus")))
    jobs = launch(cluster, tmp_path, config.name)
    assert list(jobs) == ["prep", "train", "eval"]
    assert cluster.facts(jobs["train"])["Dependency"].startswith(f"afterok:{jobs['prep']}")
    for job in jobs.values():
        cluster.wait_for(job, "COMPLETED")
    assert "on 2 process(es)" in cluster.log(jobs["train"])
    assert (tmp_path / "runs" / "gpt" / "eval" / "perplexity-test" / "results.json").is_file()


def test_after_a_failed_job_the_others_never_run(cluster: SlurmCluster, tmp_path: Path):
    config = write_config(tmp_path / "chain.yaml", chain(tmp_path, tmp_path / "no-corpus"))
    jobs = launch(cluster, tmp_path, config.name)
    cluster.wait_for(jobs["prep"], "FAILED")
    assert "error: " in cluster.log(jobs["prep"])
    for name in ("train", "eval"):
        cluster.wait_for(jobs[name], "CANCELLED")
    assert not (tmp_path / "runs" / "gpt").exists()
