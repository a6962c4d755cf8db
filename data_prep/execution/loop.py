"""The run loop: hands out the shards of a stage until every one of them is committed, by us or by others."""

from __future__ import annotations

import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from data_prep.execution.backend import Backend, Outcome
from data_prep.execution.claims import Claims
from data_prep.execution.executor import Executor
from data_prep.execution.failures import Failure, failure_error, keep_trace
from data_prep.execution.progress import Progress
from data_prep.execution.records import read_record, recorded_names
from data_prep.stage import Shard, Stage

#: Seconds between two looks at what other processes have in hand: the first, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 2.0


def run_shards(
    stage: Stage, folder: Path, shards: list[Shard], executor: Executor, claims: Claims, bar: Progress
) -> list[dict[str, Any]]:
    """Make every shard that is not committed and that nobody else is making; wait for those of others.

    Returns the records in the order of `shards`. Raises RetroError naming the shard that cannot be made.
    """
    there = recorded_names(folder)
    done = {shard.name: read_record(folder, shard.name) for shard in shards if shard.name in there}
    records = {name: record for name, record in done.items() if record is not None}
    bar.begin(len(records))
    queue = deque(i for i in executor.order(len(shards)) if shards[i].name not in records)
    if queue:
        backend = executor.open(stage, folder, claims.owner, len(queue))
        try:
            _Round(stage, folder, shards, executor.config.attempts, claims, bar, records, backend).run(queue)
        finally:
            backend.close()
    return [records[shard.name] for shard in shards]


class _Round:
    """The state of one run over the missing shards of a stage."""

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        shards: list[Shard],
        attempts: int,
        claims: Claims,
        bar: Progress,
        records: dict[str, dict[str, Any]],
        backend: Backend,
    ) -> None:
        self._stage, self._folder, self._shards, self._attempts = stage, folder, shards, attempts
        self._claims, self._bar, self._records, self._backend = claims, bar, records, backend
        self._failures: Counter[str] = Counter()

    def run(self, queue: deque[int]) -> None:
        """Until every shard is committed. `queue`: indices of the missing ones, in order."""
        elsewhere: list[int] = []  # claimed by other processes when we last looked
        numbers = {self._shards[i].name: i for i in queue}
        pause = FIRST_PAUSE
        while queue or elsewhere or self._backend.busy():
            while queue and self._backend.free():
                index = queue.popleft()
                if not self._hand_out(self._shards[index]):
                    elsewhere.append(index)
            if self._backend.busy() or queue:
                outcomes = self._backend.wait(1.0 if not elsewhere else pause)
                for outcome in outcomes:
                    if not self._settle(outcome):
                        queue.appendleft(numbers[outcome.shard.name])
            else:
                time.sleep(pause)
            self._bar.look(self._folder)
            if elsewhere and not queue:
                before = len(elsewhere)
                elsewhere = [i for i in elsewhere if not self._adopt(self._shards[i])]
                pause = FIRST_PAUSE if len(elsewhere) < before else min(pause * 1.5, LONGEST_PAUSE)
                if self._backend.free():  # one of them may have been given up
                    queue.extend(elsewhere)
                    elsewhere = []

    def _adopt(self, shard: Shard) -> bool:
        """Whether the shard is committed, by whomever."""
        if shard.name not in self._records:
            record = read_record(self._folder, shard.name)
            if record is None:
                return False
            self._records[shard.name] = record
        return True

    def _hand_out(self, shard: Shard) -> bool:
        """See to it that the shard is made; False if another process holds it."""
        if self._adopt(shard):
            return True
        if not self._claims.take(shard.name):
            return False
        if self._adopt(shard):  # committed and released between the look and the claim
            self._claims.release(shard.name)
        else:
            self._backend.submit(shard)
        return True

    def _settle(self, outcome: Outcome) -> bool:
        """Take note of an outcome; False if the shard must be tried again. Raises RetroError if that is no use."""
        name = outcome.shard.name
        if outcome.record is not None:
            self._records[name] = outcome.record
            self._claims.release(name)
            self._bar.advance(outcome.record["rows"])
            return True
        assert outcome.failure is not None
        self._claims.discard_temporaries(name)
        if self._adopt(outcome.shard):  # the worker died after the commit, or another process was faster
            self._claims.release(name)
            return True
        self._failures[name] += 1
        self._bar.failed += 1
        count = self._failures[name]
        if outcome.failure.final or count >= self._attempts:
            log = keep_trace(self._claims.work, name, outcome.failure)
            raise failure_error(self._stage.name, f"shard {name}", outcome.failure, count, log)
        self._note(name, count, outcome.failure)
        return False

    def _note(self, name: str, count: int, failure: Failure) -> None:
        self._bar.note(f"shard {name}, attempt {count} of {self._attempts}: {failure.cause}; it is tried again")
