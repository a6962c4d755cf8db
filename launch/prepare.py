"""From a configuration and a command to what is rendered: the only place that reads the files that a launch keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.folder import content_digest, write_folder
from launch.inputs import keep_config, use_kept
from launch.job import Job, list_jobs
from launch.kubernetes import MOUNT, render_kubernetes
from launch.rendered import Facts, Rendered
from launch.skypilot import render_skypilot
from launch.slurm import render_slurm
from retro.artifacts.source_code import digest_source, read_source, source_root
from retro.config.launch import LaunchConfig
from retro.config.loader import dump_yaml


@dataclass(frozen=True)
class Launch:
    """What is rendered, and the files that go with it: configurations by name, source by relative path."""

    rendered: Rendered
    configurations: dict[str, str]
    source: dict[str, bytes] = field(repr=False)
    source_folder: Path

    def write(self) -> Path:
        """Write the launch folder. Raises ConfigError if that fails."""
        return write_folder(
            self.rendered,
            configurations=self.configurations,
            source=self.source,
            source_folder=self.source_folder,
        )


def prepare_launch(config: LaunchConfig, command: Sequence[str], *, python: str, working_directory: Path) -> Launch:
    """Everything but writing and submitting. Raises ConfigError for a command or configuration that is wrong."""
    jobs = list_jobs(config, command)
    kept = [keep_config(job) for job in jobs]
    root = source_root()
    source = read_source(root) if config.snapshot else {}
    configurations = {"launch.yaml": dump_yaml(config), **{k.name: k.text for k in kept if k is not None}}
    mark = content_digest(
        [
            *(f"{name}\n{text}" for name, text in configurations.items()),
            *("\0".join(job.command) for job in jobs),
            digest_source(source),
            python,
            str(working_directory),
        ]
    )
    label = "-".join(job.name for job in jobs)[:60]
    folder = (working_directory / config.launch_root).resolve() / f"{label}-{mark}"
    facts = Facts(python, str(working_directory), str(folder), mark, config.snapshot)
    place = {"slurm": f"{folder}/", "kubernetes": f"{MOUNT}/", "skypilot": ""}[config.type]
    final = [use_kept(job, k, lambda name: place + name) for job, k in zip(jobs, kept, strict=True)]
    return Launch(_render(config, final, facts, kept[0].name if kept[0] else None), configurations, source, root)


def _render(config: LaunchConfig, jobs: Sequence[Job], facts: Facts, kept: str | None) -> Rendered:
    if config.type == "slurm":
        return render_slurm(jobs, facts)
    if config.type == "kubernetes":
        return render_kubernetes(config, jobs[0], facts, kept)
    return render_skypilot(config, jobs[0], facts)
