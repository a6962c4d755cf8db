"""`retro checkpoint inspect PATH [--verify] [--json]`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.cli.prep_verbs.wording import duration, size
from retro.config.errors import ArtifactCorruptError, ArtifactMissingError

if TYPE_CHECKING:
    from retro.train.stored.describe import Description, TensorSet
    from retro.train.stored.run_table import Row, RunTable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "path", metavar="PATH", help="a run folder (all its checkpoints), a checkpoint, checkpoints/best"
    )
    parser.add_argument("--verify", action="store_true", help="read every file and compare checksums, not sizes only")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the description; exit code 3 if a checkpoint is damaged. An unfinished one is named, and is no error."""
    from retro.artifacts.byte_progress import ByteProgress
    from retro.artifacts.checkpoint_folders import CHECKPOINTS, find_checkpoint
    from retro.train.stored.describe import describe_checkpoint
    from retro.train.stored.run_table import describe_run

    path = Path(arguments.path)
    if not path.is_dir():
        raise ArtifactMissingError(f"{path}: no such run or checkpoint; correct the path")
    if path.name == CHECKPOINTS:
        path = path.parent
    folder = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if arguments.verify else 0
    bar = ByteProgress(f"checking {path.name}", total, arguments.verify)
    found: Description | RunTable
    if folder != path:
        found = describe_run(path, arguments.verify, bar.advance)
        lines = list(_table(found))
        damaged = bool(found.problems) or any(row.status == "damaged" for row in found.rows)
    else:
        found = describe_checkpoint(find_checkpoint(path) or path, arguments.verify, bar.advance)
        lines = list(_lines(found))
        damaged = bool(found.problems)
    if arguments.verify:
        bar.close()
    if arguments.json:
        print(json.dumps(_finite(found.to_dict()), indent=1, default=str, allow_nan=False))
    else:
        print("\n".join(lines), flush=True)
        for line in _problems(found):
            print(line, file=sys.stderr)
    return ArtifactCorruptError.exit_code if damaged else 0


def _lines(found: Description) -> Iterator[str]:
    """The description of one checkpoint."""
    state = found.state
    yield f"{found.folder}: {'damaged' if found.problems else 'ok'}, {_how(found.verified)}"
    yield f"  step           {_number(found.step)}"
    yield f"  samples        {_number(state.get('samples'))}"
    yield f"  tokens         {_number(state.get('tokens'))}"
    if _is_number(state.get("elapsed_s")):
        yield f"  training time  {duration(state['elapsed_s'])}"
    for name, value in state.items():
        if name == "sample_hash" and type(value) is int:
            yield f"  {name:<14} {value:016x}"  # as in metrics.jsonl
        elif name not in ("step", "samples", "tokens", "elapsed_s") and value:
            yield f"  {name:<14} {_short(value)}"
    for name in ("release", "tokenizer", "init_from", "weights"):
        value = getattr(found, name)
        if value is not None:
            yield f"  {name:<14} {_short(value)}"
    if found.parameters:
        parts = ", ".join(f"{name} {count:,}" for name, count in found.parameters.items() if count)
        yield f"  parameters     {sum(found.parameters.values()):,} ({parts})"
    for tensors in found.sets:
        yield from _set_lines(tensors)
    if found.writers is not None:
        yield f"  written by     {found.writers} process(es)"
    if found.data_processes is not None:
        yield f"  generators     of {found.data_processes} process(es) with data of their own"
    for name, value in found.callbacks.items():
        yield f"  callback       {name}: {_short(value)}"
    yield f"  all files      {size(found.bytes)}"


def _set_lines(tensors: TensorSet) -> Iterator[str]:
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(tensors.dtypes.items())) or "no tensors"
    yield f"  {tensors.stem:<14} {kinds}; {size(tensors.bytes)} in {tensors.form}"
    shown = tensors.files if len(tensors.files) <= 9 else [*tensors.files[:4], None, *tensors.files[-4:]]
    for file in shown:
        if file is None:
            yield f"    ... {len(tensors.files) - 8} more"
        else:
            yield f"    {file['name']}  {size(file['bytes'])}"


def _table(found: RunTable) -> Iterator[str]:
    """One line for every checkpoint of a run."""
    verified = any(row.description is not None and row.description.verified for row in found.rows)
    yield f"{found.folder}: {len(found.rows)} checkpoint(s), {_how(verified)}"
    if found.rows:
        yield f"  {'checkpoint':<14} {'samples':>14} {'tokens':>18} {'time':>10} {'size':>10} {'files':>6}  status"
    for row in found.rows:
        yield _row_line(found, row)
    for name in found.leftovers:
        yield f"  {name}: being written, or left by a process that was killed; the run removes it when it goes on"


def _row_line(found: RunTable, row: Row) -> str:
    marks = [name for name, other in (("newest", found.newest), ("best", found.best)) if row.name == other]
    status = ", ".join([row.status, *marks])
    if row.description is None:
        return f"  {row.name:<14} {'':>14} {'':>18} {'':>10} {'':>10} {'':>6}  {status}"
    state = row.description.state
    time = duration(state["elapsed_s"]) if _is_number(state.get("elapsed_s")) else ""
    files = sum(len(tensors.files) for tensors in row.description.sets)
    return (
        f"  {row.name:<14} {_number(state.get('samples')):>14} {_number(state.get('tokens')):>18} {time:>10} "
        f"{size(row.description.bytes):>10} {files:>6}  {status}"
    )


def _problems(found: Description | RunTable) -> Iterator[str]:
    yield from found.problems
    for row in getattr(found, "rows", ()):
        yield from row.problems


def _how(verified: bool) -> str:
    return "all checksums compared" if verified else "sizes compared (--verify: checksums too)"


def _number(value: Any) -> str:
    return f"{value:,}" if type(value) is int else "unknown"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def _finite(value: Any) -> Any:
    """The value as JSON can state it."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
