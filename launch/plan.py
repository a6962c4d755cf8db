"""How one machine starts the processes of a command: a pure function of configuration, command and the machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from launch.program import Program, read_program
from retro.config.errors import ConfigError
from retro.config.launch import LaunchConfig

#: torchrun's agent kills workers that have not ended so many seconds after the wish to stop; a step and a checkpoint
#: must fit. Its own default is 30.
SHUTDOWN_SECONDS = 300


@dataclass(frozen=True)
class LaunchPlan:
    """One command on one machine. environment: the variables that are added."""

    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]

    def render(self) -> str:
        """A line for a POSIX shell that does the same."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment]
        return " ".join([*variables, shlex.join(self.arguments)])


def plan_launch(config: LaunchConfig, command: Sequence[str], *, python: str, cores: int) -> LaunchPlan:
    """How `command` runs on this machine.

    command: `retro train ...`, `python -m module ...`, `python script.py ...`, or any program; python: the
    interpreter; cores: usable ones. One process runs directly, more run through torchrun, on a free port when this is
    the only machine. Raises ConfigError for an empty command and for a sub-command of `retro` that runs as one process.
    """
    program = read_program(config, command, python)
    environment = tuple(added_environment(config, cores).items())
    if config.processes == 1 and config.node_range[1] == 1:
        return LaunchPlan(program.alone(), environment)
    if config.chosen_starter == "accelerate":
        return LaunchPlan(accelerate(config, program, _local_machine(config)), environment)
    return LaunchPlan(agent(config, program, _local_meeting(config)), environment)


def added_environment(config: LaunchConfig, cores: int) -> dict[str, str]:
    """Variables of every process. cores: of the machine, for OMP_NUM_THREADS where the configuration is silent."""
    threads = config.threads_per_process or max(1, cores // config.processes)
    added = {"OMP_NUM_THREADS": str(threads), **dict(sorted(config.environment.items()))}
    if config.processes > 1 or config.node_range[1] > 1:
        if config.chosen_starter != "srun":
            added.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
            if config.node_range[1] > 1 and config.chosen_starter == "torchrun":
                # With a shared store the agents remember the first meeting's address (torch 2.13), and a machine that
                # replaces a lost one waits in vain for somebody to say it: the run never goes on.
                added.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        if config.rendezvous.interface is not None:
            # Without it gloo takes the address of the host name, which often is 127.0.0.1.
            added.setdefault("GLOO_SOCKET_IFNAME", config.rendezvous.interface)
            added.setdefault("NCCL_SOCKET_IFNAME", config.rendezvous.interface)
    return added


def agent(config: LaunchConfig, program: Program, meeting: Sequence[str]) -> tuple[str, ...]:
    """torchrun's agent on one machine; meeting: its options about other machines."""
    restarts = [f"--max-restarts={config.max_restarts}"] if config.max_restarts else []
    options = [*meeting, f"--nproc-per-node={config.processes}", *restarts]
    return (program.python, "-m", "launch.agent", *options, *program.under_torchrun())


def meeting_options(config: LaunchConfig, *, endpoint: str, is_host: str, run_id: str) -> list[str]:
    """torchrun's options for several machines. is_host: 1 on the machine that keeps the meeting place, else 0.

    Said, not found out: torchrun compares host names, and where they resolve to 127.0.0.1 every machine takes itself
    for the host, or none does.
    """
    few, many = config.node_range
    return [
        f"--nnodes={few}" if few == many else f"--nnodes={few}:{many}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={run_id}",
        f"--rdzv-conf=is_host={is_host}",
    ]


def accelerate(config: LaunchConfig, program: Program, machine: Sequence[str]) -> tuple[str, ...]:
    """`accelerate launch` on one machine; machine: its options about other machines.

    Every option that it would take from the user's own accelerate configuration is given.
    """
    nodes = config.node_range[1]
    options = [
        "--multi_gpu",
        f"--num_processes={config.processes * nodes}",
        f"--num_machines={nodes}",
        *machine,
        "--mixed_precision=no",
        "--dynamo_backend=no",
    ]
    return (program.python, "-m", "launch.agent", "--accelerate", *options, *program.under_accelerate())


def _local_meeting(config: LaunchConfig) -> list[str]:
    meeting = config.rendezvous
    if config.node_range[1] == 1:
        return ["--standalone"]
    assert meeting.endpoint is not None and meeting.node_rank is not None
    is_host = "1" if meeting.node_rank == 0 else "0"
    options = meeting_options(config, endpoint=meeting.endpoint, is_host=is_host, run_id=meeting.id)
    return options + ([] if meeting.address is None else [f"--local-addr={meeting.address}"])


def _local_machine(config: LaunchConfig) -> list[str]:
    meeting = config.rendezvous
    if config.node_range[1] == 1:
        return ["--main_process_port=0"]
    assert meeting.endpoint is not None
    if meeting.address is not None:
        raise ConfigError("rendezvous.address: read with starter torchrun only, found accelerate; remove it")
    host, _, port = meeting.endpoint.rpartition(":")
    return [f"--machine_rank={meeting.node_rank}", f"--main_process_ip={host}", f"--main_process_port={port}"]
