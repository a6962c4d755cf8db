"""The worker process of the local pool: receives a stage once, then shards one at a time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from data_prep.execution.backend import attempt_shard
from data_prep.execution.failures import describe_error

_PR_SET_PDEATHSIG = 1


def serve(connection: Connection, parent: int, threads: int, gpus: list[str] | None) -> None:
    """Answer every shard that comes over `connection` with its Outcome, until it is closed.

    The first message is (stage, folder, owner); if it cannot be read, the answer is the Failure that says why.
    parent: number of the process that started this one; threads: for OpenMP libraries; gpus: CUDA_VISIBLE_DEVICES.
    """
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    try:
        try:
            stage, folder, owner = connection.recv()
        except (EOFError, OSError):
            return
        except Exception as error:  # a class of another version, a missing module
            connection.send(describe_error(error))
            return
        while True:
            shard = connection.recv()
            connection.send(attempt_shard(stage, Path(folder), shard, owner))
    except (EOFError, OSError):
        return  # the parent has closed its end


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
