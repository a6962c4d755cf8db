"""One evaluation of task `qa`, read: who was asked what, what was answered, and how that was scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from retro.analysis.runs import Evaluation, Run
from retro.config.errors import ArtifactCorruptError

TASK = "qa"
_AGAIN = "run `retro eval rescore` on the folder, or `retro eval` again"


@dataclasses.dataclass(frozen=True)
class QaRow:
    """One answer of one arm. scores: metric -> 0..1, None where the model gave no answer; row: as stored."""

    scores: Mapping[str, float | None]
    row: Mapping[str, Any]

    @property
    def given(self) -> int:
        """How many passages the model was given."""
        return len(self.row.get("passages") or ())

    @property
    def answer_given(self) -> bool:
        """Whether what the model read of its passages holds an answer."""
        return self.row.get("answer_given") is True


@dataclasses.dataclass(frozen=True)
class QaAnswers:
    """An evaluation folder of task `qa`.

    definition: the task definition as stored (name, version, title, metrics, ...); metrics: names, the primary one
    first; passages: most passages of a question (qa.layout.passages); shots: examples in the prompt; prepared:
    fingerprint of the prepared questions; arms: arm -> question id -> row, arms in the order of results.json.
    """

    run: Run
    evaluation: Evaluation
    definition: Mapping[str, Any]
    split: str
    metrics: tuple[str, ...]
    passages: int
    shots: int
    layout: Mapping[str, Any]
    prepared: str
    arms: Mapping[str, Mapping[str, QaRow]]

    @property
    def task(self) -> str:
        """Name of the task definition."""
        return str(self.definition["name"])

    @property
    def where(self) -> str:
        """For messages: path of the folder."""
        return f"{self.run.path}/eval/{self.evaluation.name}"

    @property
    def popularity_edges(self) -> list[float]:
        """Lower ends of the popularity bins, [] where there are none. Raises ArtifactCorruptError."""
        edges = (self.evaluation.results.get("by_popularity") or {}).get("edges") or []
        if not isinstance(edges, list) or not all(type(edge) in (int, float) for edge in edges):
            raise ArtifactCorruptError(
                f"{self.where}/results.json: by_popularity.edges: expected numbers, found {str(edges)[:60]}; {_AGAIN}"
            )
        return edges

    @property
    def recall(self) -> list[tuple[str, dict[str, dict[int, float]]]]:
        """Shares of questions with "evidence" or an "answer" among the first k passages: of all questions ("") and,
        where the results tell them apart, of their groups. Raises ArtifactCorruptError."""
        stored = self.evaluation.results.get("retrieval") or {}
        try:
            parts = [("", stored), *(stored.get("by_group") or {}).items()]
            return [
                (str(name), {what: _by_k(figures[what]) for what in ("evidence", "answer") if figures.get(what)})
                for name, figures in parts
            ]
        except (TypeError, ValueError, AttributeError) as error:
            raise ArtifactCorruptError(
                f"{self.where}/results.json: retrieval: expected shares by k, found something else ({error}); {_AGAIN}"
            ) from None

    @property
    def num_questions(self) -> int:
        """How many questions every arm was asked."""
        return len(next(iter(self.arms.values())))


def _by_k(shares: Mapping[str, Any]) -> dict[int, float]:
    return dict(sorted((int(k), float(value)) for k, value in shares.items()))


def read_qa_evaluations(runs: Sequence[Run]) -> list[QaAnswers]:
    """Every evaluation of task `qa` with responses and scores. Raises ArtifactCorruptError for damage."""
    return [
        _read(run, evaluation)
        for run in runs
        for evaluation in run.evaluations.values()
        if evaluation.task == TASK and evaluation.responses and evaluation.scores
    ]


def _read(run: Run, evaluation: Evaluation) -> QaAnswers:
    results, path = evaluation.results, evaluation.path
    try:
        definition, settings = dict(results["task_definition"]), results["qa"]
        metrics = [str(name) for name in definition["metrics"]]
        primary = str(definition["primary"])
        found = QaAnswers(
            run=run,
            evaluation=evaluation,
            definition={**definition, "name": str(definition["name"]), "version": int(definition["version"])},
            split=str(results["split"]),
            metrics=(primary, *(name for name in metrics if name != primary)),
            passages=int(settings["layout"]["passages"]),
            shots=int(settings["shots"]),
            layout={key: value for key, value in settings["layout"].items() if key != "passages"},
            prepared=str(settings["questions"]),
            arms={},
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        detail = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise ArtifactCorruptError(f"{path / 'results.json'}: {detail}; {_AGAIN}") from None
    return dataclasses.replace(found, arms=_rows(evaluation, found.metrics))


def _rows(evaluation: Evaluation, metrics: Sequence[str]) -> dict[str, dict[str, QaRow]]:
    scores = _scores(evaluation, metrics)
    arms: dict[str, dict[str, QaRow]] = {str(arm): {} for arm in evaluation.results["arms"]}
    source = evaluation.path / "responses.jsonl"
    for number, row in enumerate(evaluation.responses, start=1):
        arm, key = str(row.get("arm")), str(row.get("id"))
        problem = None
        if arm not in arms:
            problem = f"arm {arm!r} is not in results.json"
        elif key in arms[arm]:
            problem = f"arm {arm} has question {key!r} twice"
        elif (arm, key) not in scores:
            problem = f"arm {arm}, question {key!r} has no line in scores.jsonl"
        if problem is not None:
            raise ArtifactCorruptError(f"{source}:{number}: {problem}; {_AGAIN}")
        arms[arm][key] = QaRow(scores[arm, key], row)
    first = next(iter(arms))
    for arm, rows in arms.items():
        if rows.keys() != arms[first].keys():
            raise ArtifactCorruptError(
                f"{source}: expected the same questions for every arm, found {len(rows)} of arm {arm} and "
                f"{len(arms[first])} of {first}; {_AGAIN}"
            )
    return arms


def _scores(evaluation: Evaluation, metrics: Sequence[str]) -> dict[tuple[str, str], dict[str, float | None]]:
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    for number, line in enumerate(evaluation.scores, start=1):
        try:
            values = {name: None if line[name] is None else float(line[name]) for name in metrics}
            found[str(line["arm"]), str(line["id"])] = values
        except (KeyError, TypeError, ValueError) as error:
            detail = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactCorruptError(f"{evaluation.path / 'scores.jsonl'}:{number}: {detail}; {_AGAIN}") from None
    return found
