"""SkyPilot: a task for `sky jobs launch`. Pure.

The launch folder is the task's working directory, so source and configuration travel with it. A machine that is taken
away, and exit code 75, start the task again on new machines; checkpoints must lie in a mount.
"""

from __future__ import annotations

import shlex
from typing import Any

from launch.job import Job
from launch.manifest import dump_manifest
from launch.plan import added_environment, agent, meeting_options
from launch.program import Program, read_program
from launch.rendered import Facts, Rendered, Submission
from retro.config.errors import EXIT_REQUEUE
from retro.config.launch import LaunchConfig

_PORT = 29400


def render_skypilot(config: LaunchConfig, job: Job, facts: Facts) -> Rendered:
    """task.yaml and the command that starts it. Raises ConfigError if the command cannot be run like that."""
    program = read_program(config, job.command, "python3")
    wanted, sky = config.resources, config.skypilot
    resources: dict[str, Any] = {
        **({} if sky.infra is None else {"infra": sky.infra}),
        **({} if wanted.gpus == 0 else {"accelerators": f"{wanted.gpu_type}:{wanted.gpus}"}),
        **({} if wanted.cpus is None else {"cpus": f"{wanted.cpus}+"}),
        **({} if wanted.memory_gb is None else {"memory": f"{wanted.memory_gb:g}+"}),
        "use_spot": sky.spot,
        **({} if sky.disk_gb is None else {"disk_size": sky.disk_gb}),
        **({} if sky.image is None else {"image_id": sky.image}),
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [EXIT_REQUEUE]},
    }
    cores = wanted.cpus or config.processes * (config.threads_per_process or 1)
    task: dict[str, Any] = {
        "name": job.name,
        "workdir": facts.folder,
        "num_nodes": config.node_range[1],
        "resources": resources,
        "envs": {"PYTHONUNBUFFERED": "1", **added_environment(config, cores)},
        **({"secrets": dict.fromkeys(config.pass_environment)} if config.pass_environment else {}),
        **({"file_mounts": dict(sky.mounts)} if sky.mounts else {}),
        **({"setup": sky.setup.rstrip("\n") + "\n"} if sky.setup else {}),
        "run": _script(config, program, facts),
    }
    secrets = [f"--secret={name}" for name in config.pass_environment]  # the value is taken from the environment
    command = ("sky", "jobs", "launch", "--yes", "--detach-run", *secrets, f"{facts.folder}/task.yaml")
    return Rendered(facts.folder, (("task.yaml", dump_manifest(task)),), "sky", (Submission(job.name, command),))


def _script(config: LaunchConfig, program: Program, facts: Facts) -> str:
    lines = ["set -euo pipefail"]
    if facts.snapshot:
        lines.append('export PYTHONPATH="$PWD/source${PYTHONPATH:+:$PYTHONPATH}"')
        if program.kind == "retro":
            lines.append("export PYTHONSAFEPATH=1")
    if config.processes == 1 and config.node_range[1] == 1:
        lines.append(f"exec {shlex.join(program.alone())}")
        return "\n".join(lines) + "\n"
    if config.node_range[1] == 1:
        meeting = ["--standalone"]
    else:
        lines.append('mapfile -t hosts <<< "$SKYPILOT_NODE_IPS"')
        options = meeting_options(
            config,
            endpoint=f'"${{hosts[0]}}:{_PORT}"',
            is_host="$((SKYPILOT_NODE_RANK == 0))",
            run_id='"$SKYPILOT_TASK_ID"',
        )
        meeting = [*options, '--local-addr="${hosts[$SKYPILOT_NODE_RANK]}"']
    python, m, module, *rest = agent(config, program, [])
    lines.append(f"exec {shlex.join([python, m, module])} {' '.join(meeting)} {shlex.join(rest)}")
    return "\n".join(lines) + "\n"
