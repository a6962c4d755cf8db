"""A stage for the tests of execution: shard i holds i squared, the closing step their sum. It can be slow, and it can
fail at one shard in every way there is."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from data_prep.runner import Executor, run_stage
from data_prep.stage import Shard, ShardResult, Stage
from retro.config.errors import ArtifactCorruptError


class Squares(Stage):
    """`fault` happens at shard `poison`: content, exit, kill, raise, disk; at most `times` times if that is given
    (counted in the folder, over all processes). `wait`: seconds that a shard takes."""

    name = "squares"
    kind = "numbers"

    def __init__(
        self,
        count: int = 6,
        wait: float = 0.0,
        poison: int | None = None,
        fault: str = "content",
        times: int | None = None,
        gpus: int = 0,
    ) -> None:
        super().__init__({"count": count}, {})
        self.count, self.wait, self.poison, self.fault, self.times, self._gpus = count, wait, poison, fault, times, gpus

    @property
    def gpus(self) -> int:
        return self._gpus

    def plan(self) -> list[Shard]:
        return [Shard(f"{i:05d}", {"i": i}) for i in range(self.count)]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        i = shard.spec["i"]
        folder = out.parents[1]
        if i == self.poison:
            self._fail(folder)
        path = out / f"square-{shard.name}.txt"
        with path.open("w") as file:
            file.write(str(i * i)[:1])
            file.flush()
            time.sleep(self.wait)
            file.write(str(i * i)[1:])
        with (folder / ".calls").open("a") as log:
            log.write(f"{i}\n")
        with (folder / ".workers").open("a") as log:
            log.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\n")
        return ShardResult(1, {"i": i})

    def _fail(self, folder: Path) -> None:
        with (folder / ".faults").open("a+") as log:
            log.seek(0)
            if self.times is not None and len(log.read()) >= self.times:
                return
            log.write("x")
        if self.fault == "content":
            raise ArtifactCorruptError("input line 7: not JSON")
        if self.fault == "exit":
            os._exit(9)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "raise":
            raise ValueError("not what was\nthought of")
        if self.fault == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "square.txt")
        raise AssertionError(self.fault)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        total = sum(int((folder / f["name"]).read_text()) for r in records for f in r["files"])
        time.sleep(self.wait)
        (out / "sum.txt").write_text(str(total))
        return {"sum": total}


if __name__ == "__main__":
    # A shell starts background jobs with interrupts ignored, and so would be all that tests start there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # root workers wait [rank world [count]]
    numbers = [float(argument) for argument in sys.argv[2:]] + [0, 1, 6][len(sys.argv) - 4 :]
    workers, wait, rank, world, count = numbers
    stage = Squares(count=int(count), wait=wait)
    run_stage(stage, Path(sys.argv[1]), Executor(int(workers), rank=int(rank), world=int(world)), progress=False)
