"""Sections of a launch configuration: resources of a machine, meeting of several, and one section per batch system."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from retro.config.checks import require, require_at_least

#: Names that batch systems, shells and folders all take.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class ResourceConfig:
    """What one machine must offer; None = the batch system's own default. Raises ConfigError.

    gpus: accelerators; gpu_type: their name in the batch system (a100, H100); cpus: cores for all processes of the
    machine; memory_gb: main memory; hours: time limit of the whole job.
    """

    gpus: int = 0
    gpu_type: str | None = None
    cpus: int | None = None
    memory_gb: float | None = None
    hours: float | None = None

    def __post_init__(self) -> None:
        require_at_least(self, 0, "gpus")
        require_at_least(self, 1, "cpus")
        for name in ("memory_gb", "hours"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}: expected above 0, or null for the default, found {value}")
        require(
            self.gpu_type is None or SAFE_NAME.fullmatch(self.gpu_type) is not None,
            f"gpu_type: expected a name such as a100, found {self.gpu_type!r}",
        )
        require(self.gpu_type is None or self.gpus > 0, "gpu_type: gpus is 0; set gpus or remove gpu_type")


@dataclass(frozen=True)
class RendezvousConfig:
    """How processes of several machines find each other. Raises ConfigError.

    endpoint: HOST:PORT of the machine of rank 0, the same on all (type local); node_rank: of this machine, from 0;
    it decides who keeps the meeting place, so no host name has to resolve to the right address. address: of this
    machine as the others reach it, None = what its host name resolves to. interface: network interface for gloo and
    NCCL (eth0), needed where the host name resolves to 127.0.0.1. id: tells runs apart that share an endpoint.
    """

    endpoint: str | None = None
    node_rank: int | None = None
    address: str | None = None
    interface: str | None = None
    id: str = "retro"

    def __post_init__(self) -> None:
        require_at_least(self, 0, "node_rank")
        if self.endpoint is not None:
            host, _, port = self.endpoint.rpartition(":")
            require(
                host != "" and port.isdecimal() and 0 < int(port) < 65536,
                f"endpoint: expected HOST:PORT, found {self.endpoint!r}",
            )
        for name in ("address", "interface", "id"):
            value = getattr(self, name)
            require(
                value is None or re.fullmatch(r"[A-Za-z0-9:][A-Za-z0-9._:,-]*", value) is not None,
                f"{name}: expected letters, digits and . _ - : only, found {value!r}",
            )


@dataclass(frozen=True)
class SlurmConfig:
    """How sbatch is asked. Raises ConfigError.

    partition, account, qos, constraint, reservation: as sbatch takes them. signal_seconds: so long before the time
    limit the job is told to stop, 0 = never; must be enough for one step and one checkpoint, and Slurm may be up to 60
    seconds early. array_parallel: tasks of an array that run at a time, None = all. options: further `#SBATCH` options
    (--exclusive); srun: further options of srun (--cpu-bind=none, --container-image=...). setup: shell lines before
    the command (module load ...).
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    signal_seconds: int = 120
    array_parallel: int | None = None
    options: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    setup: str = ""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "signal_seconds")
        require(self.signal_seconds <= 65535, f"signal_seconds: expected at most 65535, found {self.signal_seconds}")
        require_at_least(self, 1, "array_parallel")
        for name in ("partition", "account", "qos", "constraint", "reservation"):
            value = getattr(self, name)
            require(
                value is None or (value != "" and value.isprintable()), f"{name}: expected one line, found {value!r}"
            )
        for name in ("options", "srun"):
            for item in getattr(self, name):
                require(
                    item.startswith("-") and item.isprintable(),
                    f"{name}: expected options in one line each such as --exclusive, found {item!r}",
                )


@dataclass(frozen=True)
class KubernetesConfig:
    """The pods of a job. Raises ConfigError.

    image: container image with Python, torch and this project's dependencies (its source comes with the job); claims:
    persistent volume claim -> absolute path at which it is mounted; working_directory: where the command runs, usually
    in a claim; secret: name of the Secret that has the variables of pass_environment as keys. node_selector: labels
    of nodes; tolerations: keys of taints that are borne; shared_memory_gb: of /dev/shm, which NCCL and data loaders
    need; grace_seconds: between the wish to stop and the kill: one step and one checkpoint; gpu_resource: the cluster's
    name of an accelerator; labels: of job and pods (queue names of Kueue and the like).
    """

    image: str = ""
    namespace: str | None = None
    claims: dict[str, str] = field(default_factory=dict)
    working_directory: str = "/workspace"
    secret: str | None = None
    service_account: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[str, ...] = ()
    shared_memory_gb: float = 8
    grace_seconds: int = 120
    gpu_resource: str = "nvidia.com/gpu"

    def __post_init__(self) -> None:
        require_at_least(self, 1, "grace_seconds")
        require(self.shared_memory_gb > 0, f"shared_memory_gb: expected above 0, found {self.shared_memory_gb}")
        for name in ("namespace", "secret", "service_account"):
            value = getattr(self, name)
            require(
                value is None or _DNS_NAME.fullmatch(value) is not None,
                f"{name}: expected a Kubernetes name (a-z, 0-9, -), found {value!r}",
            )
        for claim, path in self.claims.items():
            require(
                _DNS_NAME.fullmatch(claim) is not None and path.startswith("/"),
                f"claims: expected CLAIM: /ABSOLUTE/PATH, found {claim!r}: {path!r}",
            )
        require(
            self.working_directory.startswith("/"),
            f"working_directory: expected an absolute path, found {self.working_directory!r}",
        )


@dataclass(frozen=True)
class SkyPilotConfig:
    """A managed job of SkyPilot. Raises ConfigError.

    infra: cloud, region and zone (aws/us-east-1), None = the cheapest; spot: preemptible machines; image: image_id;
    disk_gb; mounts: path on the machine -> bucket or folder, mounted so that what is written there outlives the
    machine (run_root must lie there); setup: shell lines that install the dependencies, once per machine.
    """

    infra: str | None = None
    spot: bool = True
    image: str | None = None
    disk_gb: int | None = None
    mounts: dict[str, str] = field(default_factory=dict)
    setup: str = ""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "disk_gb")
        for path, source in self.mounts.items():
            require(
                path.startswith(("/", "~/")) and source != "",
                f"mounts: expected /PATH: SOURCE, found {path!r}: {source!r}",
            )
