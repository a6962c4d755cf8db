"""A real Slurm on this one machine: munged, slurmctld and slurmd with a configuration of their own in one folder.

Needs root and the binaries (Debian: slurm-wlm, munge); no systemd, no cgroups, no accounting. Another Slurm
of the machine is left alone.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

BINARIES = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
_SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldDebug=debug
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
MinJobAge=3600
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


class ClusterUnavailableError(Exception):
    """Why there can be no Slurm here."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Return when `condition` holds; AssertionError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)


class SlurmCluster:
    """One node of two CPUs, partitions main (is preempted, 60 s of grace) and urgent (preempts it)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": _SEARCH,
        }
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Raises ClusterUnavailableError."""
        missing = [name for name in BINARIES if shutil.which(name, path=_SEARCH) is None]
        if missing:
            raise ClusterUnavailableError(f"not installed: {', '.join(missing)}")
        if os.geteuid() != 0:
            raise ClusterUnavailableError("slurmd runs as root only")
        host = socket.gethostname().split(".")[0]
        try:
            socket.gethostbyname(host)
        except OSError:
            raise ClusterUnavailableError(f"the host name {host!r} does not resolve") from None
        self.folder.chmod(0o755)  # munge wants its socket within everybody's reach
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        ports = {"controller_port": _free_port(), "node_port": _free_port()}
        (self.folder / "slurm.conf").write_text(_CONFIGURATION.format(host=host, folder=self.folder, **ports))
        munge = [f"--{name}={self.folder}/munge/{name.split('-')[0]}" for name in ("key-file", "pid-file", "log-file")]
        socket_file = self.folder / "munge" / "socket"
        self._daemon("munged", "--foreground", *munge, f"--socket={socket_file}", f"--seed-file={socket_file}-seed")
        try:
            wait_until(socket_file.exists, "munged's socket", 10)
            self._daemon("slurmctld", "-D")
            self._daemon("slurmd", "-D")
            wait_until(lambda: self._answer("sinfo", "-h", "-p", "main", "-o", "%T") == "idle", "an idle node", 30)
        except AssertionError as error:
            tail = " ".join(line for file in self.folder.glob("*.out") for line in file.read_text().splitlines()[-2:])
            self.stop()
            raise ClusterUnavailableError(f"Slurm does not start here: {error} {tail}") from None

    def stop(self) -> None:
        """End all jobs and all daemons."""
        if len(self._daemons) > 2:
            self._answer("scancel", "--user=root")
            deadline = time.monotonic() + 15
            while self._answer("squeue", "-h") and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)
        self._daemons.clear()

    def _daemon(self, name: str, *arguments: str) -> None:
        program = shutil.which(name, path=_SEARCH)
        assert program is not None
        with open(self.folder / f"{name}.out", "wb") as output:
            self._daemons.append(
                subprocess.Popen([program, *arguments], stdout=output, stderr=output, env=self.environment)
            )

    def _answer(self, *arguments: str) -> str:
        return subprocess.run(arguments, env=self.environment, capture_output=True, text=True).stdout.strip()

    def call(self, *arguments: str) -> str:
        """Output of a command of Slurm; AssertionError if it fails."""
        done = subprocess.run(arguments, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says about a job or the task JOB_INDEX of an array."""
        return dict(re.findall(r"([\w:/]+)=(.*?)(?=\s[\w:/]+=|\s*$)", self.call("scontrol", "show", "job", "-o", job)))

    def state(self, job: str) -> str:
        """JobState."""
        return self.facts(job)["JobState"]

    def wait_for(self, job: str, state: str, seconds: float = 150) -> None:
        """Return when the job is in `state`; AssertionError with its log if it ends otherwise."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "PREEMPTED")

        def reached() -> bool:
            now = self.state(job)
            if now in final and now != state:
                raise AssertionError(f"job {job}: {now}, expected {state}\n{self.log(job)}")
            return now == state

        try:
            wait_until(reached, f"job {job} {state}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log(job)}") from None

    def log(self, job: str) -> str:
        """The job's output so far."""
        path = Path(self.facts(job)["StdOut"])
        return path.read_text() if path.is_file() else f"({path} is not there)"

    def pid(self, job: str, rank: int) -> int:
        """Of the task of that rank of the job's first step."""
        for line in self.call("scontrol", "listpids", job).splitlines()[1:]:
            pid, _, step, _, number = line.split()
            if step == "0" and number == str(rank):
                return int(pid)
        raise AssertionError(f"job {job} has no task {rank}")

    def warn(self, job: str) -> None:
        """Shorten the job's time limit so that Slurm sends the signal that announces it; return when it was sent."""
        self.call("scontrol", "update", f"JobId={job}", "TimeLimit=2")
        log = self.folder / "slurmctld.log"
        wait_until(lambda: f"warning signal 10 to JobId={job}" in log.read_text(), "Slurm's warning", 45)
        self.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")

    def hold(self, job: str, rank: int) -> None:
        """Stop one process of the job until Slurm sends it a signal: the others wait for it."""
        os.kill(self.pid(job, rank), signal.SIGSTOP)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
