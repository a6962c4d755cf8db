"""What a launch configuration refuses, with one line that says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from launch.job import array_commands, list_jobs
from retro.config.errors import ConfigError
from retro.config.launch import LaunchConfig
from retro.config.loader import from_dict

SLURM: dict[str, Any] = {"type": "slurm"}
CHAIN = [
    {"name": "a", "command": "retro prep run p.yaml"},
    {"name": "b", "after": "a", "command": "retro train t.yaml"},
]


def build(**fields: Any) -> LaunchConfig:
    return from_dict(LaunchConfig, fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nodes": 2}, "rendezvous.endpoint: required for several nodes"),
        ({"nodes": 2, "rendezvous": {"endpoint": "a:1"}}, "rendezvous.node_rank: required"),
        ({"nodes": 2, "rendezvous": {"endpoint": "a:1", "node_rank": 2}}, "node_rank: expected 0 to 1, found 2"),
        ({"nodes": 2, "rendezvous": {"endpoint": "a", "node_rank": 0}}, "endpoint: expected HOST:PORT, found 'a'"),
        ({"rendezvous": {"node_rank": 0}}, "rendezvous.node_rank: read with type local and several nodes only"),
        ({"rendezvous": {"interface": "e;x"}}, "interface: expected letters"),
        ({"nodes": "2-1"}, "nodes: expected a number or MIN-MAX, found '2-1'"),
        ({"nodes": "0"}, "nodes: expected a number or MIN-MAX"),
        ({"starter": "srun"}, "starter: srun is Slurm's"),
        ({"starter": "accelerate", "processes": 2}, "accelerate starts processes for GPUs, and on CPUs one only"),
        ({**SLURM, "max_restarts": 1}, "max_restarts: is read with starter torchrun only"),
        ({**SLURM, "starter": "srun", "nodes": "1-2"}, "nodes: MIN-MAX needs starter=torchrun"),
        ({"type": "kubernetes", "nodes": "1-2", "kubernetes": {"image": "x"}}, "nodes: expected one number"),
        ({"slurm": {"partition": "x"}}, "section slurm is filled in, but type is 'local'"),
        ({**SLURM, "slurm": {"partition": "a\nb"}}, "partition: expected one line"),
        ({**SLURM, "slurm": {"options": ["exclusive"]}}, "options: expected options in one line each"),
        ({**SLURM, "slurm": {"array_parallel": 2}}, "slurm.array_parallel: there is no array"),
        ({"requeues": 1}, "requeues: not read with type 'local'"),
        ({"name": "x"}, "name: not read with type 'local'"),
        ({"snapshot": False}, "snapshot: not read with type 'local'"),
        ({"launch_root": "x"}, "launch_root: not read with type 'local'"),
        ({"resources": {"hours": 1}}, "resources: with type 'local' only gpus is read"),
        ({"array": {"seed": [1]}}, "array: read with type 'slurm' only"),
        ({**SLURM, "array": {"seed": []}}, "array.seed: expected at least one value"),
        ({**SLURM, "array": {"a b": [1]}}, "array: expected names of fields"),
        ({**SLURM, "array": {"seed": [1]}, "array_tasks": 2}, "array_tasks: excludes array"),
        ({"type": "kubernetes"}, "kubernetes.image: required"),
        (
            {"type": "kubernetes", "kubernetes": {"image": "x"}, "pass_environment": ["A"]},
            "kubernetes.secret: required",
        ),
        ({"type": "kubernetes", "kubernetes": {"image": "x", "claims": {"a": "b"}}}, "claims: expected CLAIM: /ABS"),
        ({"type": "skypilot", "resources": {"gpus": 1}}, "resources.gpu_type: required by SkyPilot"),
        ({"type": "skypilot", "requeues": 3}, "requeues: SkyPilot"),
        ({"resources": {"gpu_type": "a100"}}, "gpu_type: gpus is 0"),
        ({"environment": {"WANDB_API_KEY": "s3cret"}}, "WANDB_API_KEY looks like a secret"),
        ({"environment": {"A": "1"}, "pass_environment": ["A"]}, "pass_environment: A is in environment too"),
        ({"pass_environment": ["A B"]}, "expected names of variables, found 'A B'"),
        ({"jobs": CHAIN}, "jobs: chains are for type 'slurm'"),
        ({**SLURM, "jobs": CHAIN, "name": "x"}, "jobs: name, array and array_tasks belong to each job"),
        ({**SLURM, "jobs": [CHAIN[1]]}, "jobs: 'b' is after 'a', expected a job before it: none"),
        ({**SLURM, "jobs": [CHAIN[0], CHAIN[0]]}, "jobs: two are called 'a'"),
        ({**SLURM, "jobs": [{"name": "a b", "command": "x"}]}, "name: expected up to 63 letters"),
        ({**SLURM, "jobs": [{"name": "a", "command": "x 'y"}]}, "command: expected a command line, found no closing"),
        ({**SLURM, "jobs": [{"name": "a", "command": " "}]}, "command: expected a command line, found nothing"),
        ({**SLURM, "jobs": [{**CHAIN[0], "max_restarts": 2}]}, "max_restarts: is read with starter torchrun only"),
    ],
)
def test_it_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as found:
        build(**fields)
    assert message in str(found.value) and "\n" not in str(found.value)
    assert "s3cret" not in str(found.value)


def test_jobs_of_a_chain_replace_fields_of_the_file():
    job = {**CHAIN[1], "processes": 8, "resources": {"gpus": 8}, "array": {"name": ["x", "y"]}}
    config = build(**SLURM, resources={"hours": 3}, slurm={"array_parallel": 1, "qos": "low"}, jobs=[CHAIN[0], job])
    first, second = list_jobs(config, [])
    assert (first.config.processes, first.config.resources.hours, first.after) == (1, 3.0, ())
    assert (first.config.slurm.array_parallel, first.config.slurm.qos) == (None, "low")
    assert (second.config.processes, second.config.resources.hours, second.after) == (8, None, ("a",))
    assert second.config.slurm.array_parallel == 1
    with pytest.raises(ConfigError, match="is a chain with commands of its own"):
        list_jobs(config, ["retro", "train", "x.yaml"])


@pytest.mark.parametrize(
    ("array", "command", "message"),
    [
        ({"seed": [1, 2]}, ["retro", "train", "a.yaml"], "would train one run; give the command name=NAME-@{seed}"),
        ({"seed": [1, 2]}, ["retro", "train", "a.yaml", "name=x"], "would train one run"),
        ({"seed": [1, 2]}, ["retro", "train", "a.yaml", "name=@{sede}"], "@{sede} names no key of the array"),
        ({"seed": [1, 2]}, ["./job.sh"], "array: seed is not used; write @{seed}"),
    ],
)
def test_tasks_that_cannot_be_told_apart_are_refused(array: dict[str, Any], command: list[str], message: str):
    (job,) = list_jobs(build(**SLURM, array=array), command)
    with pytest.raises(ConfigError) as found:
        array_commands(job)
    assert message in str(found.value)


def test_values_of_an_array_become_overrides():
    array = {"model.cross_attention_layers": [[], [6, 9]], "name": ["gpt x", "retro"], "wandb": [None]}
    (job,) = list_jobs(build(**SLURM, array=array), ["retro", "train", "a.yaml"])
    commands = [command[3:] for _, command in array_commands(job)]
    assert commands[0] == ("model.cross_attention_layers=[]", "name=gpt x", "wandb=null")
    assert commands[3] == ("model.cross_attention_layers=[6, 9]", "name=retro", "wandb=null")
    assert len(commands) == 4


def test_one_task_needs_no_name_of_its_own():
    (job,) = list_jobs(build(**SLURM, array={"seed": [1]}), ["retro", "train", "a.yaml"])
    assert array_commands(job) == (("seed=1", ("retro", "train", "a.yaml", "seed=1")),)
