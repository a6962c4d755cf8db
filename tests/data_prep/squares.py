"""A stage for the runner's tests: shard i holds i squared, the closing step their sum. Slow enough to be killed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from data_prep.runner import Executor, run_stage
from data_prep.stage import Shard, ShardResult, Stage
from retro.config.errors import ArtifactCorruptError


class Squares(Stage):
    name = "squares"
    kind = "numbers"

    def __init__(self, count: int = 6, wait: float = 0.0, poison: int | None = None) -> None:
        super().__init__({"count": count}, {})
        self.count, self.wait, self.poison = count, wait, poison

    def plan(self) -> list[Shard]:
        return [Shard(f"{i:05d}", {"i": i}) for i in range(self.count)]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        i = shard.spec["i"]
        if i == self.poison:
            raise ArtifactCorruptError("input line 7: not JSON")
        if self.poison == -i - 1:
            os._exit(9)
        path = out / f"square-{shard.name}.txt"
        with path.open("w") as file:
            file.write(str(i * i)[:1])
            file.flush()
            time.sleep(self.wait)
            file.write(str(i * i)[1:])
        with (out.parent / ".calls").open("a") as log:
            log.write(f"{i}\n")
        return ShardResult(1, {"i": i})

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        total = sum(int((folder / f["name"]).read_text()) for r in records for f in r["files"])
        time.sleep(self.wait)
        (out / "sum.txt").write_text(str(total))
        return {"sum": total}


if __name__ == "__main__":
    run_stage(Squares(wait=float(sys.argv[3])), Path(sys.argv[1]), Executor(int(sys.argv[2])), progress=False)
