"""Rendering: to the letter, valid for the shell and for YAML, and what is quoted arrives as it was."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.launch.cases import CASES, FACTS, GOLDEN, HOSTILE, render


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_text_that_is_kept(name: str):
    kept = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert render(name).text() == kept, "if this is meant: python -m tests.launch.cases, and read the difference"


def test_there_is_no_other_kept_text():
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


def scripts(name: str) -> dict[str, str]:
    """Every shell text of a case."""
    rendered = render(name)
    found = {file: text for file, text in rendered.files if file.endswith((".sbatch", ".sh"))}
    for file, text in rendered.files:
        if file == "task.yaml":
            task = yaml.safe_load(text)
            found.update({key: task[key] for key in ("run", "setup") if key in task})
    return {**found, "commands": rendered.commands()}


@pytest.mark.parametrize("name", CASES)
def test_every_script_is_one_for_bash(name: str):
    for file, text in scripts(name).items():
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, ""), file


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("slurm")])
def test_manifests_are_yaml(name: str):
    for file, text in render(name).files:
        if file.endswith(".yaml"):
            assert all(isinstance(document, dict) for document in yaml.safe_load_all(text))


def fake(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


#: Runs its last arguments as one task of two, without Slurm.
SRUN = """
while [[ $1 == -* ]]; do echo "option $1" >&2; shift; done
export SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_LOCALID=0 SLURM_NTASKS_PER_NODE=2 SLURM_NODEID=1
exec "$@"
"""


def run_script(tmp_path: Path, text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A batch script in tmp_path, with programs that stand for Slurm's."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    fake(tools, "srun", SRUN)
    fake(tools, "scontrol", 'case "$1 $2" in "show hostnames") printf "n1\\nn2\\n" ;; *) echo "$@" >&2;; esac')
    fake(tmp_path, "job.sh", 'printf "<%s>" "$@" "$A"')
    text = text.replace("/home/ada/my project", str(tmp_path)).replace("/opt/env/bin/python", f"{tools}/python")
    fake(tools, "python", 'printf "<%s>" "$@"; env | grep -E "^(RANK|WORLD_SIZE|LOCAL_|MASTER_)" | sort')
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **variables}
    environment |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "8"}
    return subprocess.run(["bash"], input=text, text=True, capture_output=True, env=environment)


def test_hostile_values_arrive_as_they_are(tmp_path: Path):
    (script,) = [text for name, text in render("slurm_hostile").files]
    done = run_script(tmp_path, script, SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID="7")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"<{HOSTILE}><0><{HOSTILE}><{HOSTILE}>"


def test_hostile_values_arrive_in_a_pod_and_on_a_rented_machine(tmp_path: Path):
    pod = dict(render("kubernetes_hostile").files)
    container = list(yaml.safe_load_all(pod["job.yaml"]))[1]["spec"]["template"]["spec"]["containers"][0]
    values = {item["name"]: item["value"].replace("$$", "$") for item in container["env"]}  # as Kubernetes reads it
    task = yaml.safe_load(dict(render("skypilot_hostile").files)["task.yaml"])
    fake(tmp_path, "job.sh", 'printf "<%s>" "$@" "$A"')
    for script, variables in ((pod["run.sh"], values), (task["run"], task["envs"])):
        lines = [line for line in script.splitlines(True) if not line.startswith(("python3 -m tarfile", "cd"))]
        environment = {**os.environ, **variables}
        done = subprocess.run(
            ["bash"], input="".join(lines), text=True, capture_output=True, env=environment, cwd=tmp_path
        )
        assert done.stdout == f"<{HOSTILE}><{HOSTILE}>", done.stderr


def test_a_task_of_srun_gets_the_variables_of_torchrun(tmp_path: Path):
    (script,) = [text for name, text in render("slurm_srun").files]
    done = run_script(tmp_path, script.replace("module load", ": module load"), WANDB_API_KEY="x")
    assert done.stdout.splitlines() == [
        "<-m><launch.worker><retro.cli.train><configs/train/small_retro.yaml>LOCAL_RANK=0",
        "LOCAL_WORLD_SIZE=2",
        "MASTER_ADDR=n1",
        "MASTER_PORT=20007",
        "RANK=0",
        "WORLD_SIZE=2",
    ], done.stderr
    assert "option --container-image=a b" in done.stderr.splitlines()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "slurm_torchrun",
            "<-m><launch.agent><--rdzv-conf=is_host=0><--nnodes=1:4><--rdzv-backend=c10d><--rdzv-endpoint=n1:20007>"
            "<--rdzv-id=7-0><--nproc-per-node=2><--max-restarts=3><-m><launch.worker><retro.cli.train>",
        ),
        (
            "slurm_accelerate",
            "<-m><launch.agent><--accelerate><--machine_rank=1><--main_process_ip=n1><--main_process_port=20007>"
            "<--multi_gpu><--num_processes=4><--num_machines=2><--mixed_precision=no><--dynamo_backend=no><-m>"
            "<launch.worker><retro.cli.train>",
        ),
    ],
)
def test_an_agent_knows_its_machine(tmp_path: Path, name: str, arguments: str):
    (script,) = [text for _, text in render(name).files]
    done = run_script(tmp_path, script)
    assert done.stdout.startswith(arguments), done.stdout + done.stderr


def test_a_job_without_a_promised_variable_ends_before_it_begins(tmp_path: Path):
    (script,) = [text for name, text in render("slurm_srun").files]
    done = run_script(tmp_path, f"unset WANDB_API_KEY\n{script}".replace("module load", ": module load"))
    assert done.returncode != 0 and "WANDB_API_KEY: is in pass_environment, but not set" in done.stderr
    assert done.stdout == ""


def said(tmp_path: Path, code: int, state: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """A training script whose task says `code` in RETRO_EXIT_FILE, in a job of that state."""
    (script,) = [text for name, text in render("slurm_one_process").files]
    script = script.replace("srun --kill", f"srun bash -c 'echo {code} > \"$RETRO_EXIT_FILE\"'; true --kill")
    tools = tmp_path / "tools"
    run_script(tmp_path, script)  # makes the tools
    fake(tools, "scontrol", f'[ "$1" = show ] && echo "JobId=7 JobState={state} X=y" || echo "called: $@" >&2')
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_CPUS_PER_TASK": "1", "SLURM_RESTART_COUNT": str(restarts)}
    text = script.replace("/home/ada/my project", str(tmp_path))
    return subprocess.run(["bash"], input=text, text=True, capture_output=True, env=environment)


@pytest.mark.parametrize(
    ("code", "state", "restarts", "expected"),
    [
        (75, "RUNNING", 0, "called: requeue 7"),
        (75, "TIMEOUT", 19, "called: requeue 7"),
        (75, "RUNNING", 20, "put back 20 times already"),
        (75, "CANCELLED", 0, "stays as Slurm has it (JobState=CANCELLED)"),
        (75, "PREEMPTED", 0, "stays as Slurm has it (JobState=PREEMPTED)"),
        (2, "RUNNING", 0, ""),
        (0, "RUNNING", 0, ""),
    ],
)
def test_what_is_put_back(tmp_path: Path, code: int, state: str, restarts: int, expected: str):
    done = said(tmp_path, code, state, restarts)
    assert done.returncode == code
    assert expected in done.stderr
    assert ("called: requeue" in done.stderr) == ("called: requeue" in expected)


def test_facts_are_all_that_a_script_knows_of_the_machine():
    text = render("slurm_srun").text() + render("kubernetes_nodes").text()
    for foreign in (str(Path.cwd()), str(Path.home()) + "/", os.uname().nodename + ":"):
        assert foreign not in text
    assert FACTS.folder in text
