"""`python -m launch.agent [--accelerate] OPTIONS ...`: torchrun (or `accelerate launch`) with an honest exit code.

Ends with the code of the workers' first process where there is one, 75 included, instead of 1; an agent that was given
RETRO_EXIT_FILE leaves 75 to that file and ends with 0, as its workers do. SIGUSR1 and SIGUSR2, which batch systems
send as a warning to every process or to the first one only, are passed on to the workers and do not kill the agent.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from launch.exit_file import VARIABLE, forget, from_environment, read_exit_code
from retro.config.errors import EXIT_REQUEUE

_MODULES = {False: "torch.distributed.run", True: "accelerate.commands.launch"}


def children(process: int) -> list[int]:
    """Direct children of a process; none where the system does not tell (other than Linux)."""
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += [int(number) for number in path.read_text().split()]
        except OSError:  # the thread has ended meanwhile
            continue
    return found


def _pass_on(number: int, _: FrameType | None) -> None:
    for child in children(os.getpid()):
        try:
            os.kill(child, number)
        except ProcessLookupError:
            continue


def start(module: str, arguments: list[str]) -> tuple[int, bool]:
    """Run the starter in this process: (its exit code, whether it was stopped from outside)."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return (stop.code if isinstance(stop.code, int) else int(stop.code is not None)), False
    except KeyboardInterrupt:
        return 130, True
    except Exception as error:
        # torchrun's own: SignalException (a signal has come), ChildFailedError (workers failed; it says which).
        number = getattr(error, "sigval", None)
        if number is not None:
            return 128 + int(number), True
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1, False
    return 0, False


def main() -> int:
    """The exit code for whoever started the agent."""
    arguments = sys.argv[1:]
    accelerate = arguments[:1] == ["--accelerate"]
    given = from_environment()
    with tempfile.TemporaryDirectory(prefix="retro-agent-") as folder:
        file = given or Path(folder) / "exit"
        forget(file)
        os.environ[VARIABLE] = str(file)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, _pass_on)
        code, stopped = start(_MODULES[accelerate], arguments[1:] if accelerate else arguments)
        said = read_exit_code(file)
    if said == EXIT_REQUEUE and (code == 0 or stopped):
        return EXIT_REQUEUE if given is None else 0
    if said not in (None, 0, EXIT_REQUEUE):
        assert said is not None
        return said
    return code


if __name__ == "__main__":
    raise SystemExit(main())
