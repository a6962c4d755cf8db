"""results.json: a pure function of the state record and the stored responses. No model, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from retro.artifacts.atomic import write_json_atomic
from retro.config.errors import ArtifactMismatchError, ArtifactUnfinishedError
from retro.eval.metrics.bits_per_byte import Row
from retro.eval.responses import RESULTS_NAME, State, read_responses, read_state
from retro.eval.tasks import docs_qa, perplexity


def _perplexity(rows: Sequence[Row], state: State) -> dict[str, Any]:
    material = state.identity["material"]
    return perplexity.perplexity_results(rows, material["modes"], material["chunk_length"])


def _docs_qa(rows: Sequence[Row], state: State) -> dict[str, Any]:
    return docs_qa.docs_qa_results(rows, state.identity["material"]["modes"])


# task -> (version, results)
_RESULTS: dict[str, tuple[int, Callable[[Sequence[Row], State], dict[str, Any]]]] = {
    perplexity.NAME: (perplexity.VERSION, _perplexity),
    docs_qa.NAME: (docs_qa.VERSION, _docs_qa),
}


def summarise(rows: Sequence[Row], state: State) -> dict[str, Any]:
    """The whole of results.json. Raises ArtifactMismatchError for responses of another version of the task."""
    task, version = state.identity["task"], state.identity["version"]
    if task not in _RESULTS or _RESULTS[task][0] != version:
        known = ", ".join(f"{name} {number}" for name, (number, _) in _RESULTS.items())
        raise ArtifactMismatchError(
            f"responses of task {task} version {version}: expected one of {known}; evaluate again with overwrite=true"
        )
    modes = state.identity["material"]["modes"]
    speeds = {m: state.tokens[m] / state.seconds[m] for m in modes if state.seconds.get(m) and state.tokens.get(m)}
    return {
        "task": task,
        "version": version,
        "split": state.identity["split"],
        "checkpoint_fingerprint": state.identity["checkpoint"],
        "release_fingerprint": state.identity["release"],
        "num_neighbors": state.identity["num_neighbors"],
        "precision": state.identity.get("precision"),
        **state.facts,
        **_RESULTS[task][1](rows, state),
        # Tokens read (perplexity) or written (questions) per second in the model, in the main mode and in each.
        "throughput": {"tokens_per_s": speeds.get(modes[0]), "modes": speeds},
    }


def write_results(folder: str | Path) -> dict[str, Any]:
    """Compute results.json from what is stored in `folder`, write and return it.

    Raises ArtifactUnfinishedError if responses are missing yet, and ArtifactError subclasses for damage.
    """
    folder = Path(folder)
    state = read_state(folder)
    if not state.finished:
        raise ArtifactUnfinishedError(f"{folder}: the responses are unfinished; run `retro eval` again, it resumes")
    results = summarise(read_responses(folder, state), state)
    write_json_atomic(folder / RESULTS_NAME, results)
    return results
