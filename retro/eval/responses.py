"""The responses of one evaluation on disk: lines appended in blocks, each block committed by a state record.

`responses.jsonl` grows by whole blocks; `state.json` says who is evaluated with what, how many blocks are committed,
and the length and SHA-256 of the bytes that belong to them. A kill at any moment leaves at most bytes behind the
committed length, which the next run cuts off. The same evaluation, killed or not, ends in the same responses.jsonl,
but for times, where a task stores them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retro.artifacts.atomic import write_json_atomic
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError

RESPONSES_NAME = "responses.jsonl"
STATE_NAME = "state.json"
RESULTS_NAME = "results.json"
SAMPLES_NAME = "samples.json"
SCORES_NAME = "scores.jsonl"
#: Of `retro qa adaptive`, about these responses.
ADAPTIVE_NAME = "adaptive.json"
_BLOCK = 1 << 20


@dataclasses.dataclass
class State:
    """Content of state.json.

    identity: what decides the responses (task, version, checkpoint, configuration, artifacts); facts: what the results
    repeat (paths, sizes) but two equal evaluations may differ in; blocks: how many are committed; bytes, sha256: of
    responses.jsonl up to there; carry: what the next block needs of the last; units: of the task that are
    done; seconds, tokens: time in the model and tokens read, by mode; finished: no block is left.
    """

    identity: dict[str, Any]
    facts: dict[str, Any]
    blocks: int = 0
    bytes: int = 0
    sha256: str = hashlib.sha256(b"").hexdigest()
    carry: Any = None
    units: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    finished: bool = False


_STATE_TYPES: dict[str, type] = {
    "identity": dict,
    "facts": dict,
    "blocks": int,
    "units": int,
    "bytes": int,
    "sha256": str,
    "seconds": dict,
    "tokens": dict,
    "finished": bool,
}


def read_state(folder: str | Path) -> State:
    """The state record of an evaluation. Raises ArtifactMissingError or ArtifactCorruptError."""
    path = Path(folder) / STATE_NAME
    if not path.is_file():
        raise ArtifactMissingError(f"{path}: not found; expected the folder of an evaluation, as `retro eval` makes it")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        state = State(**data)
        for name, kind in _STATE_TYPES.items():
            if not isinstance(getattr(state, name), kind):
                raise TypeError(f"expected {kind.__name__} for {name!r}, found {getattr(state, name)!r}")
        return state
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactCorruptError(
            f"{path}: not a readable state record ({error}); evaluate again with overwrite=true"
        ) from None


def read_responses(folder: str | Path, state: State) -> list[dict[str, Any]]:
    """The committed rows, checked against the state record. Raises ArtifactCorruptError where they differ."""
    path = Path(folder) / RESPONSES_NAME
    try:
        with open(path, "rb") as file:
            data = file.read(state.bytes)
    except FileNotFoundError:
        data = b""
    if len(data) != state.bytes or hashlib.sha256(data).hexdigest() != state.sha256:
        raise ArtifactCorruptError(
            f"{path}: expected {state.bytes} bytes as {STATE_NAME} records, found {len(data)} or other content; "
            "evaluate again with overwrite=true"
        )
    return [json.loads(line) for line in data.splitlines()]


class ResponseLog:
    """Appends blocks of responses. Open with `open_log`; `state` is what is committed."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state
        self._hash = hashlib.sha256()
        path = folder / RESPONSES_NAME
        with open(path, "ab"):
            pass
        for leftover in folder.glob(".*.tmp-*"):  # of a killed process
            leftover.unlink(missing_ok=True)
        # Bytes behind the committed length are of a block that a kill cut short.
        os.truncate(path, min(path.stat().st_size, state.bytes))
        left = state.bytes
        with open(path, "rb") as file:
            while left and (data := file.read(min(left, _BLOCK))):
                self._hash.update(data)
                left -= len(data)
        if left or self._hash.hexdigest() != state.sha256:
            raise ArtifactCorruptError(
                f"{path}: the first {state.bytes} bytes are not what {STATE_NAME} records; "
                "evaluate again with overwrite=true"
            )

    def commit(
        self,
        rows: Iterable[Mapping[str, Any]],
        carry: Any,
        seconds: Mapping[str, float],
        tokens: Mapping[str, int],
        finished: bool,
        units: int,
    ) -> None:
        """Append one block and commit it. Raises ValueError for a figure that JSON has no form for (NaN)."""
        data = b"".join(json_line(row) for row in rows)
        with open(self.folder / RESPONSES_NAME, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._hash.update(data)
        state = self.state
        for mode, value in seconds.items():
            state.seconds[mode] = state.seconds.get(mode, 0.0) + value
        for mode, count in tokens.items():
            state.tokens[mode] = state.tokens.get(mode, 0) + count
        state.blocks += 1
        state.units += units
        state.bytes += len(data)
        state.sha256 = self._hash.hexdigest()
        state.carry, state.finished = carry, finished
        write_json_atomic(self.folder / STATE_NAME, dataclasses.asdict(state))


def open_log(
    folder: str | Path, identity: dict[str, Any], facts: dict[str, Any], overwrite: bool = False
) -> ResponseLog:
    """Start an evaluation in `folder`, or continue the one that is there.

    Raises ArtifactMismatchError, naming the first difference, if what is there is an evaluation of something else and
    `overwrite` is not set; ArtifactCorruptError if it is damaged.
    """
    folder = Path(folder)
    identity = json.loads(json.dumps(identity))  # as it will be read back
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / STATE_NAME).exists():
        try:
            state = read_state(folder)
            if state.identity == identity:
                return ResponseLog(folder, state)
        except ArtifactCorruptError:
            if not overwrite:
                raise
        else:
            if not overwrite:
                raise ArtifactMismatchError(
                    f"{folder}: holds an evaluation of something else: {_difference(state.identity, identity)}; "
                    "give another name=NAME, or overwrite=true to discard it"
                )
    for name in (RESULTS_NAME, SCORES_NAME, SAMPLES_NAME, STATE_NAME, RESPONSES_NAME, ADAPTIVE_NAME):
        (folder / name).unlink(missing_ok=True)
    state = State(identity, facts)
    write_json_atomic(folder / STATE_NAME, dataclasses.asdict(state))
    return ResponseLog(folder, state)


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as it is stored, with its line end. Raises ValueError for a figure that JSON has no form for (NaN)."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8") + b"\n"


def _difference(found: Any, expected: Any, name: str = "") -> str:
    """The first place in which two JSON values differ, as text."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            if found.get(key) != expected.get(key):
                return _difference(found.get(key), expected.get(key), f"{name}.{key}" if name else key)
    return f"{name} is {found!r} there, {expected!r} here"
