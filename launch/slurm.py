"""Batch scripts for Slurm, and the sbatch commands that submit them. Pure: text from configuration and facts.

A job's steps are told to stop before its time limit (SIGUSR1 to training, SIGTERM to others); training checkpoints and
says 75, and the script puts the job back with `scontrol requeue`, a bounded number of times; so it does when a job
that is to be preempted stops within its grace time. Without one Slurm puts it back (--requeue), as it does when a node
fails. A cancelled job says 75 too; its state is CANCELLED by then, and it stays so.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from launch.job import Job, array_commands, check_placeholders
from launch.plan import accelerate, added_environment, agent, meeting_options
from launch.program import Program, read_program
from launch.rendered import Facts, Rendered, Submission
from retro.config.errors import ConfigError
from retro.config.launch import LaunchConfig

#: Variables of torchrun for one task of srun; the command replaces the shell.
_TASK = (
    "'export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID "
    'LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE; exec "$@"\''
)
#: One agent per machine; $0 is the interpreter. The first machine keeps the meeting place.
_NODE = '\'exec "$0" -m launch.agent --rdzv-conf=is_host=$((SLURM_NODEID == 0)) "$@"\''
_ACCELERATE = '\'exec "$0" -m launch.agent --accelerate --machine_rank=$SLURM_NODEID "$@"\''


def render_slurm(jobs: Sequence[Job], facts: Facts) -> Rendered:
    """One script and one sbatch command per job. Raises ConfigError if a command cannot be run like that."""
    files, submissions = [], []
    for job in jobs:
        name = f"{job.name}.sbatch"
        files.append((name, _script(job, facts)))
        submissions.append(Submission(job.name, ("sbatch", "--parsable", f"{facts.folder}/{name}"), job.after))
    return Rendered(facts.folder, tuple(files), "sbatch", tuple(submissions))


def _script(job: Job, facts: Facts) -> str:
    config = job.config
    check_placeholders(job)
    tasks = array_commands(job)
    commands = [command for _, command in tasks] or [job.command]
    programs = [read_program(config, command, facts.python) for command in commands]
    program = programs[0]
    if config.array_tasks is not None and config.array_tasks > 1 and program.is_training:
        raise ConfigError("array_tasks: all its tasks would train one run; give array with what they differ in")
    lines = ["#!/bin/bash", f"# Job {job.name}, written by `retro launch`."]
    lines += [f"#SBATCH {option}" for option in _options(job, program, len(tasks), facts)]
    lines += config.slurm.setup.splitlines()  # before `set -u`, which the functions of `module` do not bear
    lines += ["set -uo pipefail", f"cd -- {shlex.quote(facts.working_directory)} || exit 2"]
    lines += [f"export {line}" for line in _exports(config, program, facts)]
    lines += [f': "${{{name}:?is in pass_environment, but not set in this job}}"' for name in config.pass_environment]
    lines += _meeting(config)
    if tasks:
        lines.append('case "${SLURM_ARRAY_TASK_ID:?this script is for an array}" in')
        for index, ((values, _), each) in enumerate(zip(tasks, programs, strict=True)):
            lines.append(f"{index}) command=({_command(config, each)}) ;; # {_comment(values)}")
        lines += ['*) echo "no task $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;', "esac"]
    else:
        lines.append(f"command=({_command(config, program)})")
    lines += _run(config, program, facts)
    return "\n".join(lines) + "\n"


def _options(job: Job, program: Program, tasks: int, facts: Facts) -> list[str]:
    config, wanted, slurm = job.config, job.config.resources, job.config.slurm
    few, many = config.node_range
    per_node = config.processes if config.chosen_starter == "srun" else 1
    options = [f"--job-name={job.name}", f"--nodes={few}" if few == many else f"--nodes={few}-{many}"]
    options.append(f"--ntasks-per-node={per_node}")
    cpus = wanted.cpus if wanted.cpus is not None else config.processes * (config.threads_per_process or 1)
    if cpus % per_node:
        raise ConfigError(
            f"resources.cpus: expected a multiple of {per_node} processes per node with starter srun, found {cpus}"
        )
    options.append(f"--cpus-per-task={cpus // per_node}")
    if wanted.gpus:
        kind = "" if wanted.gpu_type is None else f"{wanted.gpu_type}:"
        options.append(f"--gpus-per-node={kind}{wanted.gpus}")
    if wanted.memory_gb is not None:
        options.append(f"--mem={max(1, round(wanted.memory_gb * 1024))}M")
    if wanted.hours is not None:
        options.append(f"--time={_clock(wanted.hours)}")
    if slurm.signal_seconds:
        options.append(f"--signal={program.stop_signal}@{slurm.signal_seconds}")
    options += [
        f"--{name}={value}"
        for name in ("partition", "account", "qos", "constraint", "reservation")
        if (value := getattr(slurm, name)) is not None
    ]
    count = tasks or config.array_tasks
    if count:
        parallel = f"%{slurm.array_parallel}" if slurm.array_parallel else ""
        options.append(f"--array=0-{count - 1}{parallel}")
    log = "%x-%A_%a.log" if count else "%x-%j.log"
    options += ["--requeue", "--open-mode=append", f"--output={facts.folder.replace('%', '%%')}/logs/{log}"]
    return [_quote_directive(option) for option in [*options, *slurm.options]]


def _exports(config: LaunchConfig, program: Program, facts: Facts) -> list[str]:
    exports = []
    if facts.snapshot:
        exports.append(f"PYTHONPATH={shlex.quote(facts.folder + '/source')}${{PYTHONPATH:+:$PYTHONPATH}}")
        if program.kind == "retro":
            exports.append("PYTHONSAFEPATH=1")  # `python -m` else takes what is in the working directory first
    exports.append("PYTHONUNBUFFERED=1")
    cores = config.resources.cpus or config.processes * (config.threads_per_process or 1)
    return exports + [f"{name}={shlex.quote(value)}" for name, value in added_environment(config, cores).items()]


def _meeting(config: LaunchConfig) -> list[str]:
    """Where the processes meet: the job's first machine, on a port that follows from the job's number."""
    if _is_single(config):
        return []
    return [
        'mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        'export MASTER_ADDR="${hosts[0]}" MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))',
    ]


def _command(config: LaunchConfig, program: Program) -> str:
    """The words of the array `command`; several processes of torchrun and accelerate begin with the interpreter."""
    if config.chosen_starter == "srun" or _is_single(config):
        return shlex.join(program.as_worker())
    if config.chosen_starter == "accelerate":
        python, *words = accelerate(config, program, [])
        meeting = ['--main_process_ip="$MASTER_ADDR"', '--main_process_port="$MASTER_PORT"']
    else:
        python, *words = agent(config, program, [])
        endpoint, run_id = '"$MASTER_ADDR:$MASTER_PORT"', '"$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"'
        # Whether a machine is the host is known on that machine only, and added there.
        meeting = meeting_options(config, endpoint=endpoint, is_host="", run_id=run_id)[:-1]
    first = 3 if config.chosen_starter == "accelerate" else 2  # after -m launch.agent [--accelerate]
    return " ".join([shlex.quote(python), *meeting, *map(shlex.quote, words[first:])])


def _is_single(config: LaunchConfig) -> bool:
    return config.processes == 1 and config.node_range[1] == 1


def _run(config: LaunchConfig, program: Program, facts: Facts) -> list[str]:
    """Run the step, and put the job back if it says so."""
    few, many = config.node_range
    cpus = "--cpus-per-task=$SLURM_CPUS_PER_TASK"  # since Slurm 22.05 a step does not take it from the job
    # One dead task would leave the others waiting for it; an elastic agent instead goes on with fewer machines.
    options = [f"--kill-on-bad-exit={int(few == many)}", cpus, *map(shlex.quote, config.slurm.srun)]
    if _is_single(config):
        step = '"${command[@]}"'
    else:
        shell = {"srun": _TASK + " retro", "torchrun": _NODE, "accelerate": _ACCELERATE}[config.chosen_starter]
        step = f'bash -c {shell} "${{command[@]}}"'
    limit, codes = config.requeue_limit, "|".join(str(code) for code in program.requeue_codes)
    exits = shlex.quote(f"{facts.folder}/exit")
    return [
        f"mkdir -p -- {exits}",
        f'export RETRO_EXIT_FILE={exits}/"$SLURM_JOB_ID"',
        'rm -f -- "$RETRO_EXIT_FILE"',
        "trap : TERM USR1 USR2  # this shell has to outlive its step",
        "code=0",
        f"srun {' '.join(options)} {step} || code=$?",
        'said=$(cat -- "$RETRO_EXIT_FILE" 2>/dev/null)',
        'if [ "${said:-0}" != 0 ]; then code=$said; fi',
        "me=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        "me=${me:-$SLURM_JOB_ID} count=${SLURM_RESTART_COUNT:-0}",
        'case "$code" in',
        f"{codes})",
        '  state=$(scontrol show job -o "$me" | grep -o "JobState=[A-Z_]*")',
        '  case "$state" in',
        "  JobState=RUNNING|JobState=TIMEOUT)",
        f'    if [ "$count" -lt {limit} ]; then',
        f'      echo "job $me: stopped with exit code $code; back into the queue ($((count + 1)) of {limit})" >&2',
        '      scontrol requeue "$me"',
        "    else",
        f'      echo "job $me: stopped with exit code $code; was put back {limit} times already and ends" >&2',
        "    fi ;;",
        '  *) echo "job $me: stopped with exit code $code; stays as Slurm has it ($state)" >&2 ;;',
        "  esac ;;",
        "esac",
        'exit "$code"',
    ]


def _clock(hours: float) -> str:
    """Slurm's D-HH:MM:SS; at least its smallest limit, a minute."""
    seconds = max(60, round(hours * 3600))
    days, rest = divmod(seconds, 86400)
    return f"{days}-{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


def _quote_directive(option: str) -> str:
    """As sbatch reads it in a line that begins with #SBATCH: quotes and backslashes as in a shell, nothing expanded."""
    if shlex.quote(option) == option:
        return option
    return '"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _comment(text: str) -> str:
    return " ".join(text.split())
