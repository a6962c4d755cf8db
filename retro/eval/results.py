"""results.json, and scores.jsonl where a task has it: pure functions of the state record and the stored responses. No
model, no torch.

scores.jsonl has a line per line of responses.jsonl, in the same order: what each metric gives for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from retro.artifacts.atomic import atomic_path, write_json_atomic
from retro.config.errors import ArtifactMismatchError, ArtifactUnfinishedError
from retro.eval.metrics.bits_per_byte import Row
from retro.eval.responses import RESULTS_NAME, SCORES_NAME, State, json_line, read_responses, read_state
from retro.eval.tasks import docs_qa, perplexity, qa
from retro.eval.tasks.qa_results import qa_results, qa_scores


def _perplexity(rows: Sequence[Row], state: State) -> dict[str, Any]:
    material = state.identity["material"]
    return perplexity.perplexity_results(rows, material["modes"], material["chunk_length"])


def _docs_qa(rows: Sequence[Row], state: State) -> dict[str, Any]:
    return docs_qa.docs_qa_results(rows, state.identity["material"]["modes"])


def _qa(rows: Sequence[Row], state: State) -> dict[str, Any]:
    return qa_results(rows, state.identity["material"])


# task -> (version, results)
_RESULTS: dict[str, tuple[int, Callable[[Sequence[Row], State], dict[str, Any]]]] = {
    perplexity.NAME: (perplexity.VERSION, _perplexity),
    docs_qa.NAME: (docs_qa.VERSION, _docs_qa),
    qa.NAME: (qa.VERSION, _qa),
}


def summarise(rows: Sequence[Row], state: State) -> dict[str, Any]:
    """The whole of results.json. Raises ArtifactMismatchError for responses of another version of the task."""
    task, version = state.identity["task"], state.identity["version"]
    if task not in _RESULTS or _RESULTS[task][0] != version:
        known = ", ".join(f"{name} {number}" for name, (number, _) in _RESULTS.items())
        raise ArtifactMismatchError(
            f"responses of task {task} version {version}: expected one of {known}; evaluate again with overwrite=true"
        )
    modes = _columns(state)
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
        # Tokens read (perplexity) or written (questions) per second in the model, in the main mode (arm) and in each.
        "throughput": {"tokens_per_s": speeds.get(modes[0]), "modes": speeds},
    }


def _columns(state: State) -> list[str]:
    """The modes, or arms, that every unit was asked in."""
    material = state.identity["material"]
    return list(material["arms"] if state.identity["task"] == qa.NAME else material["modes"])


def write_results(folder: str | Path) -> dict[str, Any]:
    """Compute results.json (task qa: and scores.jsonl) from what is stored in `folder`, write it and return the former.

    Raises ArtifactUnfinishedError if responses are missing yet, and ArtifactError subclasses for damage.
    """
    folder = Path(folder)
    state = read_state(folder)
    if not state.finished:
        raise ArtifactUnfinishedError(f"{folder}: the responses are unfinished; run `retro eval` again, it resumes")
    rows = read_responses(folder, state)
    results = summarise(rows, state)
    if state.identity["task"] == qa.NAME:
        with atomic_path(folder / SCORES_NAME) as path:
            path.write_bytes(b"".join(map(json_line, qa_scores(rows, state.identity["material"]["metrics"]))))
    write_json_atomic(folder / RESULTS_NAME, results)
    return results
