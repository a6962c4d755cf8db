"""`python -m launch.worker MODULE ...`: run a module as one of several processes.

A run that stops for a time limit ends with exit code 75. torchrun would take it for a failure and start all processes
again, and srun would kill the others while they still write. So the code goes into RETRO_EXIT_FILE (by the first
process of the machine) and this process ends with 0. All other codes stay what they are.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

from launch.exit_file import forget, from_environment, write_exit_code
from retro.config.errors import EXIT_REQUEUE


def run(module: str, arguments: list[str]) -> int:
    """Run `module` as __main__ in this process; returns its exit code."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, int):
            return stop.code
        if stop.code is None:
            return 0
        print(stop.code, file=sys.stderr)
        return 1
    return 0


_PR_SET_PDEATHSIG = 1


def end_with_the_starter() -> None:
    """Have this process told to stop when whatever started it is killed: agents put workers into sessions of their own,
    where they would train on and hold the run. Linux only; elsewhere nothing is done."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was killed just before
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """The exit code for the starter."""
    end_with_the_starter()
    file = from_environment()
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    if file is not None and speaks:
        forget(file)
    code = run(sys.argv[1], sys.argv[2:])
    if file is None:
        return code
    if code != 0 and speaks:
        write_exit_code(file, code)
    return 0 if code == EXIT_REQUEUE else code


if __name__ == "__main__":
    raise SystemExit(main())
