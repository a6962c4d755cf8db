"""A process that has imported everything and forks a child per command, so that hundreds of runs cost no start-up.

It has run nothing of OpenMP itself (a fork after that hangs) and has one thread. A child can be told to die, as by
`kill -9`, before or after its n-th operation on files: that visits the moments that a timer hits too rarely.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What changes files, by the names under which the library and Python's own modules call it.
OPERATIONS = ("open", "mkdir", "link", "rename", "replace", "unlink", "remove", "rmdir", "fsync", "truncate")


class Zygote:
    """The parent's end. A context; its children end with it."""

    def __enter__(self) -> Zygote:
        from tests.system.workplace import environment  # not above: every worker of a child imports this module

        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.zygote"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == {"threads": 1}
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def fork(self, command: list[str], log: Path, die_at: tuple[str, int] | None = None) -> int:
        """Start `retro *command`, its output in `log`; returns its process number. die_at: ("before" | "after", n)."""
        return self._ask({"command": command, "log": str(log), "die_at": die_at})["pid"]

    def wait(self, pid: int) -> int:
        """The child's exit code, negative for a signal."""
        return self._ask({"wait": pid})["code"]

    def run(self, command: list[str], log: Path, die_at: tuple[str, int] | None = None) -> int:
        """Fork and wait."""
        return self.wait(self.fork(command, log, die_at))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote has ended"
        return json.loads(line)


def die_at_operation(when: str, count: int) -> None:
    """From here on this process dies before or after its count-th operation on files in the main thread."""
    left = count
    main = threading.main_thread()

    def deadly(call: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if threading.current_thread() is not main or not counts(*arguments, **options):
                return call(*arguments, **options)
            left -= 1
            dies = left == 0
            if dies and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*arguments, **options)
            finally:
                if dies:
                    os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    def writes(path: Any, flags: Any = "r", *arguments: Any, mode: Any = None, **options: Any) -> bool:
        if isinstance(flags, int):
            return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return any(letter in (flags if not isinstance(mode, str) else mode) for letter in "wxa+")

    for name in OPERATIONS:
        setattr(os, name, deadly(getattr(os, name), writes if name == "open" else lambda *a, **o: True))
    builtins.open = io.open = deadly(io.open, writes)  # type: ignore[assignment]


def serve() -> None:
    """Read requests from stdin until it ends."""
    import faiss  # noqa: F401 - imported, not used: see above
    import scipy.sparse.linalg  # noqa: F401
    import sentencepiece  # noqa: F401

    import data_prep.pipeline  # noqa: F401
    import retro.cli.prep_verbs.run
    import retro.retrieval.faiss_index
    import retro.retrieval.lexical  # noqa: F401
    from retro.cli.main import main

    answers = os.fdopen(os.dup(1), "w")

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    answer({"threads": len(os.listdir("/proc/self/task"))})
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer({"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])})
            continue
        pid = os.fork()
        if pid:
            answer({"pid": pid})
            continue
        code = 70
        try:
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if request["die_at"] is not None:
                die_at_operation(*request["die_at"])
            code = main(request["command"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


if __name__ == "__main__":
    # Torch before faiss: both bring an OpenMP.
    import torch  # noqa: F401

    serve()
