"""The worker process of the local pool: receives a stage, then its shards one at a time, then perhaps another stage."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from data_prep.execution.backend import attempt_shard
from data_prep.execution.failures import Failure, describe_error
from data_prep.stage import Shard, Stage

_PR_SET_PDEATHSIG = 1


def serve(connection: Connection, parent: int, threads: int, gpus: list[str] | None) -> None:
    """Answer every shard that comes over `connection` with its Outcome, until it is closed.

    Other messages are (stage, folder, owner), the stage of the shards that follow, and None: forget it. To a message
    that cannot be read the answer is the Failure that says why.
    parent: number of the process that started this one; threads: for OpenMP libraries; gpus: CUDA_VISIBLE_DEVICES.
    """
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    given: tuple[Stage, str, str] | None = None
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return  # the parent has closed its end
        except Exception as error:  # a class of another version, a missing module
            message = describe_error(error)
        try:
            if isinstance(message, Shard):
                assert given is not None
                connection.send(attempt_shard(given[0], Path(given[1]), message, given[2]))
            elif isinstance(message, Failure):
                connection.send(message)
                return
            else:
                given = message
                gc.collect()
        except (EOFError, OSError):
            return


def die_with(parent: int) -> None:
    """End this process when its parent ends, however that happens: it must not go on beside a new run.

    Linux kills it at the same moment; elsewhere a thread looks twice a second.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()
