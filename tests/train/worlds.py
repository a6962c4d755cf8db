"""Groups of processes (gloo) that run a function of a test; forked from a server that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_PRELOADED = ["torch.distributed.fsdp", "torch.distributed.checkpoint", "retro.train.run", "tests.train.releases"]


def run_world(
    world: int, function: Callable[..., Any], folder: Path, *arguments: Any, timeout: float = 90
) -> list[Any]:
    """What `function(rank, *arguments)` returns in each of `world` processes that have joined a default group.

    The function is one of a module. An assertion or another exception in a process fails the test with its traceback;
    a process that was killed gives its negative exit code. Fails when they have not all ended after `timeout` seconds:
    none may wait for another one that is gone.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the server, and so of all
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / f"store-{time.monotonic_ns()}"
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=_enter, args=(rank, world, str(store), pipes[rank][1], function, arguments))
        for rank in range(world)
    ]
    try:
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()
        deadline = time.monotonic() + timeout
        answers = [_receive(receiver, deadline) for receiver, _ in pipes]
        for rank, process in enumerate(processes):
            process.join(max(0.0, deadline - time.monotonic()))
            assert process.exitcode is not None, f"process {rank} still waits after {timeout} s"
        errors = [f"process {rank}:\n{answer[1]}" for rank, answer in enumerate(answers) if answer and not answer[0]]
        assert not errors, "\n".join(errors)
        return [process.exitcode if a is None else a[1] for a, process in zip(answers, processes, strict=True)]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()


def _receive(receiver: Connection, deadline: float) -> tuple[bool, Any] | None:
    """(whether it went well, value or traceback), None from a process that has ended without a word."""
    try:
        return receiver.recv() if receiver.poll(max(0.0, deadline - time.monotonic())) else None
    except EOFError:
        return None


def _enter(
    rank: int, world: int, store: str, sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        if world > 1:
            dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
        sender.send((True, function(rank, *arguments)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    finally:
        # Not through the interpreter's end: a group whose other processes are gone would hold it up.
        sender.close()
        os._exit(0)
