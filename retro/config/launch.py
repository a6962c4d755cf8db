"""Configuration of `retro launch`: on which machines, and as how many processes, a command runs."""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass, field
from typing import Any, Literal

from retro.config.checks import require, require_at_least
from retro.config.launch_parts import (
    SAFE_NAME,
    VARIABLE,
    KubernetesConfig,
    RendezvousConfig,
    ResourceConfig,
    SkyPilotConfig,
    SlurmConfig,
)

Starter = Literal["auto", "torchrun", "srun", "accelerate"]
Array = dict[str, tuple[Any, ...]]

_SECRET = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)
# Not MIN:MAX as torchrun writes it: YAML reads 1:4 as the number 64.
_NODES = re.compile(r"([1-9][0-9]*)(?:-([1-9][0-9]*))?")


@dataclass(frozen=True)
class JobConfig:
    """One job of a chain (type slurm). Raises ConfigError.

    name: within the chain; command: one line as after `--`, quoted as for a shell; after: jobs that must have ended
    well before, a name or a list. The rest replaces the file's values for this job.
    """

    name: str
    command: str
    after: str | tuple[str, ...] = ()
    processes: int | None = None
    nodes: str | None = None
    starter: Starter | None = None
    threads_per_process: int | None = None
    max_restarts: int | None = None
    requeues: int | None = None
    resources: ResourceConfig | None = None
    array: Array | None = None
    array_tasks: int | None = None
    slurm: SlurmConfig | None = None

    def __post_init__(self) -> None:
        require(SAFE_NAME.fullmatch(self.name) is not None, f"name: {_expected_name(self.name)}")
        self.arguments()

    def arguments(self) -> tuple[str, ...]:
        """The command as a list. Raises ConfigError if its quotes do not close or it is empty."""
        try:
            found = tuple(shlex.split(self.command))
        except ValueError as error:
            problem: str | None = str(error).lower()
        else:
            problem = None if found else "nothing"
        require(problem is None, f"command: expected a command line, found {problem} in {self.command!r}")
        return found

    @property
    def predecessors(self) -> tuple[str, ...]:
        """`after` as a list."""
        return (self.after,) if isinstance(self.after, str) else self.after


#: Fields of JobConfig that stand for the field of LaunchConfig of the same name.
_REPLACED = tuple(f.name for f in dataclasses.fields(JobConfig) if f.name not in ("name", "command", "after"))


@dataclass(frozen=True)
class LaunchConfig:
    """Where a command runs. Raises ConfigError for impossible values.

    type: local = this machine, which may be one of several; slurm, kubernetes, skypilot = handed to that system.
    name: of the job, None = from the command. processes: per machine, one per GPU, or on a CPU as many as wanted;
    nodes: machines, or MIN-MAX for torchrun's elastic agent; max_restarts: so often the agent starts all processes
    again after one of them failed. starter: auto = srun under Slurm (one task per process), else torchrun; accelerate
    = `accelerate launch`, on GPUs only. threads_per_process: OMP_NUM_THREADS, None = the cores divided by the
    processes. environment: further variables; pass_environment: names of variables whose values are taken from where
    the command is given, and are never written down (keys, tokens).

    array: key -> values; every combination is one task, with key=value appended to a `retro` command, and `@{key}` in
    any argument replaced. array_tasks: so many tasks of the same command, told apart by SLURM_ARRAY_TASK_ID
    (`retro prep run --rank auto`). jobs: a chain instead of the command after `--`. requeues: how often a job that
    stopped with exit code 75 (time limit, preemption) is put back, None = 20 (Slurm, Kubernetes). Arrays and chains are
    for slurm.

    launch_root: folder in which each launch gets a folder of its own, with scripts, configurations, packages and, with
    snapshot, the source that the job will run; not for type local, which runs at once.
    """

    type: Literal["local", "slurm", "kubernetes", "skypilot"] = "local"
    name: str | None = None
    processes: int = 1
    nodes: str = "1"
    max_restarts: int = 0
    starter: Starter = "auto"
    threads_per_process: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    pass_environment: tuple[str, ...] = ()
    rendezvous: RendezvousConfig = field(default_factory=RendezvousConfig)
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    array: Array = field(default_factory=dict)
    array_tasks: int | None = None
    jobs: tuple[JobConfig, ...] = ()
    requeues: int | None = None
    launch_root: str = "runs/launches"
    snapshot: bool = True
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)
    skypilot: SkyPilotConfig = field(default_factory=SkyPilotConfig)

    def __post_init__(self) -> None:
        require_at_least(self, 1, "processes", "threads_per_process", "array_tasks")
        require_at_least(self, 0, "max_restarts", "requeues")
        name = self.name
        require(name is None or SAFE_NAME.fullmatch(name) is not None, f"name: {_expected_name(name)}")
        require(self.launch_root != "", "launch_root: expected a folder, found an empty text")
        self._check_environment()
        self._check_nodes()
        self._check_type()
        self._check_array()
        self._check_jobs()

    @property
    def node_range(self) -> tuple[int, int]:
        """Fewest and most machines."""
        found = _NODES.fullmatch(self.nodes)
        assert found is not None
        return int(found[1]), int(found[2] or found[1])

    @property
    def chosen_starter(self) -> str:
        """`starter` with auto resolved."""
        if self.starter != "auto":
            return self.starter
        return "srun" if self.type == "slurm" and self.node_range[0] == self.node_range[1] else "torchrun"

    @property
    def requeue_limit(self) -> int:
        """`requeues` with its default."""
        return 20 if self.requeues is None else self.requeues

    def of_job(self, job: JobConfig) -> LaunchConfig:
        """This configuration with the values of one job of the chain. Raises ConfigError if they do not agree."""
        changes = {name: getattr(job, name) for name in _REPLACED if getattr(job, name) is not None}
        if not job.array and job.array_tasks is None and job.slurm is None:
            changes["slurm"] = dataclasses.replace(self.slurm, array_parallel=None)
        return dataclasses.replace(self, jobs=(), name=job.name, **changes)

    def _check_environment(self) -> None:
        for name in (*self.environment, *self.pass_environment):
            require(VARIABLE.fullmatch(name) is not None, f"environment: expected names of variables, found {name!r}")
        for name in self.environment:
            require(
                _SECRET.search(name) is None,
                f"environment: {name} looks like a secret, and this file and the scripts would show it; set the "
                f"variable where you launch, and give pass_environment=[{name}]",
            )
        both = sorted(set(self.environment) & set(self.pass_environment))
        require(not both, f"pass_environment: {', '.join(both)} is in environment too; remove it from one of them")
        require(
            self.threads_per_process is None or "OMP_NUM_THREADS" not in self.environment,
            "environment: OMP_NUM_THREADS is set by threads_per_process; give one of them",
        )

    def _check_nodes(self) -> None:
        found = _NODES.fullmatch(self.nodes)
        require(
            found is not None and int(found[1]) <= int(found[2] or found[1]),
            f"nodes: expected a number or MIN-MAX, found {self.nodes!r}",
        )
        few, many = self.node_range
        starter = self.chosen_starter
        require(starter != "srun" or self.type == "slurm", f"starter: srun is Slurm's, found type {self.type!r}")
        require(
            starter == "torchrun" or few == many,
            f"nodes: MIN-MAX needs starter=torchrun, found {starter}; give one number",
        )
        require(
            starter == "torchrun" or self.max_restarts == 0,
            f"max_restarts: is read with starter torchrun only, found {starter}; remove it or set starter=torchrun",
        )
        require(
            starter != "accelerate" or self.processes == 1 or self.resources.gpus >= self.processes,
            f"starter: accelerate starts processes for GPUs, and on CPUs one only, without a word; found "
            f"{self.processes} processes and resources.gpus={self.resources.gpus}; use starter=torchrun, or say "
            f"resources.gpus={self.processes}",
        )
        meeting = self.rendezvous
        if self.type == "local" and many > 1:
            for name in ("endpoint", "node_rank"):
                require(
                    getattr(meeting, name) is not None,
                    f"rendezvous.{name}: required for several nodes; give endpoint=HOST:PORT of the first machine, the "
                    "same on all, and each machine its node_rank from 0",
                )
            require(
                meeting.node_rank is not None and meeting.node_rank < many,
                f"rendezvous.node_rank: expected 0 to {many - 1}, found {meeting.node_rank}",
            )
        else:
            for name in ("endpoint", "node_rank", "address"):
                require(
                    getattr(meeting, name) is None,
                    f"rendezvous.{name}: read with type local and several nodes only; remove it",
                )

    def _check_type(self) -> None:
        sections = {"slurm": SlurmConfig(), "kubernetes": KubernetesConfig(), "skypilot": SkyPilotConfig()}
        for name, default in sections.items():
            require(
                self.type == name or getattr(self, name) == default,
                f"section {name} is filled in, but type is {self.type!r}; set type={name} or remove the section",
            )
        if self.type == "local":
            for name in ("name", "requeues"):
                require(
                    getattr(self, name) is None, f"{name}: not read with type 'local', which runs at once; remove it"
                )
            default = LaunchConfig.__dataclass_fields__
            for name in ("launch_root", "snapshot"):
                require(
                    getattr(self, name) == default[name].default,
                    f"{name}: not read with type 'local', which writes no folder; remove it",
                )
            found = self.resources
            require(
                found == ResourceConfig(gpus=found.gpus, gpu_type=found.gpu_type),
                "resources: with type 'local' only gpus is read; remove the others",
            )
        require(
            self.type != "skypilot" or self.requeues is None,
            "requeues: SkyPilot starts a job again without a bound when it says 75; remove it",
        )
        few, many = self.node_range
        require(
            self.type in ("local", "slurm") or few == many,
            f"nodes: expected one number with type {self.type!r}, found {self.nodes!r}",
        )
        require(
            self.type != "kubernetes" or self.kubernetes.image != "",
            "kubernetes.image: required, a container image with Python, torch and this project's dependencies",
        )
        require(
            self.type != "kubernetes" or not self.pass_environment or self.kubernetes.secret is not None,
            "kubernetes.secret: required with pass_environment, the name of the Secret that has these keys",
        )
        require(
            self.type != "skypilot" or self.resources.gpus == 0 or self.resources.gpu_type is not None,
            "resources.gpu_type: required by SkyPilot beside gpus, e.g. H100",
        )

    def _check_array(self) -> None:
        if not self.array and self.array_tasks is None:
            require(
                self.slurm.array_parallel is None or any(job.array or job.array_tasks for job in self.jobs),
                "slurm.array_parallel: there is no array; remove it",
            )
            return
        require(self.type == "slurm", f"array: read with type 'slurm' only, found type {self.type!r}")
        require(not self.array or self.array_tasks is None, "array_tasks: excludes array; remove one of them")
        for key, values in self.array.items():
            require(
                re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", key) is not None and key != "index",
                f"array: expected names of fields, found {key!r}",
            )
            require(len(values) > 0, f"array.{key}: expected at least one value, found none")

    def _check_jobs(self) -> None:
        if not self.jobs:
            return
        require(self.type == "slurm", f"jobs: chains are for type 'slurm', found type {self.type!r}")
        require(
            not self.array and self.array_tasks is None and self.name is None,
            "jobs: name, array and array_tasks belong to each job of a chain; move them there",
        )
        seen: list[str] = []
        for job in self.jobs:
            require(job.name not in seen, f"jobs: two are called {job.name!r}; give each its own name")
            for name in job.predecessors:
                require(
                    name in seen,
                    f"jobs: {job.name!r} is after {name!r}, expected a job before it: {', '.join(seen) or 'none'}",
                )
            seen.append(job.name)
            self.of_job(job)


def _expected_name(found: str | None) -> str:
    return f"expected up to 63 letters, digits, - _ and ., found {found!r}"
