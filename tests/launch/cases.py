"""Launches whose rendering is kept in tests/golden/launch. `python -m tests.launch.cases` writes the files again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.job import list_jobs
from launch.kubernetes import render_kubernetes
from launch.rendered import Facts, Rendered
from launch.skypilot import render_skypilot
from launch.slurm import render_slurm
from retro.config.launch import LaunchConfig
from retro.config.loader import from_dict

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "launch"
#: Every character that a shell, sbatch or YAML could take for its own.
HOSTILE = "a'b\"c $HOME `id` $(id) \\ ; & | * ? # ! {x,y} %j ü\n--x: y"
FACTS = Facts(
    python="/opt/env/bin/python",
    working_directory="/home/ada/my project",
    folder="/home/ada/my project/runs/launches/train-01234567",
    digest="01234567",
    snapshot=True,
)
TRAIN = ["retro", "train", "configs/train/small_retro.yaml"]

CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "slurm_one_process": ({"type": "slurm"}, TRAIN),
    "slurm_srun": (
        {
            "type": "slurm",
            "name": "small",
            "processes": 8,
            "nodes": "4",
            "resources": {"gpus": 8, "gpu_type": "a100", "cpus": 64, "memory_gb": 512, "hours": 36},
            "environment": {"NCCL_DEBUG": "WARN"},
            "pass_environment": ["WANDB_API_KEY"],
            "rendezvous": {"interface": "ib0"},
            "requeues": 100,
            "slurm": {
                "partition": "gpu",
                "account": "lm",
                "qos": "high",
                "constraint": "h100|a100",
                "reservation": "mine",
                "signal_seconds": 600,
                "options": ["--exclusive", '--comment=a "quoted" word'],
                "srun": ["--cpu-bind=none", "--container-image=a b"],
                "setup": "module load cuda\nmodule load gcc\n",
            },
        },
        TRAIN,
    ),
    "slurm_torchrun": (
        {"type": "slurm", "processes": 2, "nodes": "1-4", "max_restarts": 3, "slurm": {"signal_seconds": 0}},
        TRAIN,
    ),
    "slurm_accelerate": (
        {"type": "slurm", "processes": 2, "nodes": "2", "starter": "accelerate", "resources": {"gpus": 2}},
        TRAIN,
    ),
    "slurm_array": (
        {
            "type": "slurm",
            "array": {"seed": [0, 1], "learning_rate": [1e-3, "6e-4"], "optimizer": ["muon"]},
            "slurm": {"array_parallel": 2},
        },
        [*TRAIN, "name=sweep-@{seed}-@{learning_rate}"],
    ),
    "slurm_chain": (
        {
            "type": "slurm",
            "resources": {"hours": 1},
            "jobs": [
                {"name": "prep", "command": "retro prep run --rank auto p.yaml", "array_tasks": 16},
                {"name": "train-it", "after": "prep", "command": "retro train t.yaml 'name=a b'", "processes": 2},
                {"name": "eval", "after": ["prep", "train-it"], "command": "retro eval e.yaml checkpoint=runs/x"},
            ],
        },
        [],
    ),
    "slurm_hostile": (
        {"type": "slurm", "environment": {"A": HOSTILE}, "array": {"x": [HOSTILE]}},
        ["./job.sh", "@{x}", "@{index}", HOSTILE],
    ),
    "kubernetes_nodes": (
        {
            "type": "kubernetes",
            "processes": 8,
            "nodes": "2",
            "max_restarts": 3,
            "requeues": 5,
            "resources": {"gpus": 8, "gpu_type": "NVIDIA-H100", "cpus": 64, "memory_gb": 256, "hours": 48},
            "environment": {"NCCL_DEBUG": "WARN"},
            "pass_environment": ["WANDB_API_KEY"],
            "kubernetes": {
                "image": "your-team/retro:1",
                "namespace": "lm",
                "claims": {"retro": "/workspace", "scratch": "/scratch"},
                "secret": "wandb",
                "service_account": "trainer",
                "labels": {"kueue.x-k8s.io/queue-name": "lm"},
                "node_selector": {"pool": "gpu"},
                "tolerations": ["nvidia.com/gpu"],
            },
        },
        TRAIN,
    ),
    "kubernetes_hostile": (
        {
            "type": "kubernetes",
            "name": "9_Lives.x",
            "environment": {"A": HOSTILE},
            "kubernetes": {"image": "retro:1", "working_directory": "/my work"},
        },
        ["./job.sh", HOSTILE],
    ),
    "skypilot": (
        {
            "type": "skypilot",
            "processes": 8,
            "nodes": "2",
            "resources": {"gpus": 8, "gpu_type": "H100", "cpus": 64, "memory_gb": 256},
            "pass_environment": ["WANDB_API_KEY"],
            "skypilot": {
                "infra": "aws/us-east-1",
                "image": "ami-0",
                "disk_gb": 500,
                "mounts": {"/retro": "s3://bucket"},
                "setup": "pip install torch\npip install numpy",
            },
        },
        TRAIN,
    ),
    "skypilot_hostile": ({"type": "skypilot", "environment": {"A": HOSTILE}}, ["./job.sh", HOSTILE]),
}


def render(name: str) -> Rendered:
    """The case without the launch folder: no file is read."""
    fields, command = CASES[name]
    config = from_dict(LaunchConfig, fields)
    jobs = list_jobs(config, command)
    if config.type == "slurm":
        return render_slurm(jobs, FACTS)
    if config.type == "kubernetes":
        return render_kubernetes(config, jobs[0], FACTS, "retro-train.yaml")
    return render_skypilot(config, jobs[0], FACTS)


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.txt").write_text(render(case).text(), encoding="utf-8")
