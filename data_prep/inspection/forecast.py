"""What is still to come of a preparation: bytes by the cost model, with what the finished steps say put in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_prep.cost_model import plan
from data_prep.rates import load_rates
from data_prep.workload import workload_of
from retro.artifacts.manifest import read_manifest
from retro.config.errors import RetroError
from retro.config.preparation import PrepConfig

if TYPE_CHECKING:
    from data_prep.inspection.status import StepStatus

#: Steps of the pipeline, by the first word of their name, that the cost model counts as one stage.
_STAGE = {"sign_documents": "deduplicate", "find_duplicates": "deduplicate", "fit_embedder": "embed"}


@dataclass(frozen=True)
class Forecast:
    """bytes to come on disk, seconds of the stage at work; None: cannot be told yet."""

    bytes: int | None
    seconds: float | None


def forecast(config: PrepConfig, found: Sequence[StepStatus]) -> Forecast:
    """Of the steps as they stand. What cannot be told: bytes before the corpus is read, or of vectors whose length only
    the model knows."""
    working = next((item.progress for item in found if item.progress is not None), None)
    seconds = None if working is None else working.seconds_left
    if all(item.state == "done" for item in found):
        return Forecast(0, None)
    try:
        expected = _expected_bytes(config, found)
    except RetroError:
        expected = None
    if expected is None:
        return Forecast(None, seconds)
    there: dict[str, int] = {}
    unfinished: dict[str, int] = {}  # stage -> bytes to come that its own shards tell
    for item in found:
        stage = stage_of(item.step)
        there[stage] = there.get(stage, 0) + item.bytes
        if item.state != "done":
            left = item.progress.bytes_left if item.progress is not None else None
            unfinished[stage] = unfinished.get(stage, 0) + (left or 0)
    to_come = sum(max(expected.get(stage, 0.0) - there[stage], told) for stage, told in unfinished.items())
    return Forecast(max(0, round(to_come)), seconds)


def stage_of(step: str) -> str:
    """The cost model's stage of a step: `tokenize train` is of tokenize."""
    first = step.split(" ")[0]
    return _STAGE.get(first, first)


def _expected_bytes(config: PrepConfig, found: Sequence[StepStatus]) -> dict[str, float] | None:
    """Bytes of every stage of the cost model, or None."""
    stats = {item.step: read_manifest(item.folder).stats for item in found if item.state == "done" and item.folder}
    documents = stats.get("deduplicate", stats.get("ingest"))
    if documents is None or not documents.get("documents"):
        return None
    dimension: dict[str, Any] = {}
    if config.embed is not None and config.embed.kind == "transformer":
        if "fit_embedder" not in stats:
            return None
        dimension["dimension"] = int(stats["fit_embedder"]["identity"]["dimension"])
    counted = [stats[step] for step in stats if step.startswith("tokenize ")]
    tokens = sum(item["tokens"] for item in counted)
    text = sum(item["text_bytes"] for item in counted)
    given = [f"tokens_per_document={tokens / sum(item['documents'] for item in counted)}"] if tokens else []
    given += [f"text_bytes_per_token={text / tokens}"] if tokens and text else []
    rates = load_rates("papers", given)
    per_token = rates["text_bytes_per_token"]
    total = documents["text_bytes"] / per_token
    if not given:
        rates = load_rates("papers", [f"tokens_per_document={max(1.0, total / documents['documents'])}"])
    splits = documents.get("splits", {})
    everything = sum(splits.values()) or 1
    database, asked = (
        sum(splits.get(name, 0) for name in names) / everything
        for names in (config.database_splits, config.query_splits)
    )
    work = workload_of(
        config,
        tokens=max(1.0, total),
        held_out=min(max(0.0, 1 - database), 0.99),
        query_tokens=max(1.0, total * asked),
        **dimension,
    )
    return {stage.stage: stage.bytes for stage in plan(work, rates).stages}
