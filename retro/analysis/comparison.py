"""Everything that a report says, as numbers: one pure function from run folders to a Comparison."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from retro.analysis.bootstrap import DRAWS
from retro.analysis.curves import TrainingComparison, TrainingSummary, compare_training, summarise
from retro.analysis.perplexity import PerplexityComparison, compare_perplexity
from retro.analysis.qa import QaComparison, compare_qa
from retro.analysis.qa_records import TASK as QA
from retro.analysis.questions import QuestionComparison, compare_questions
from retro.analysis.runs import Evaluation, Run
from retro.analysis.series import main_mode, reference_run, run_titles
from retro.config.errors import ArtifactMismatchError, ConfigError

PERPLEXITY_COMMAND = "retro eval configs/eval/perplexity.yaml checkpoint={path}"
QUESTIONS_COMMAND = "retro eval configs/eval/docs_qa.yaml checkpoint={path}"
QA_COMMAND = "retro eval configs/eval/qa.yaml checkpoint={path}"
_COMMANDS = {"perplexity": PERPLEXITY_COMMAND, QA: QA_COMMAND}


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """Who is compared. parameters: None if no evaluation recorded it; eval_tokens_per_s: main evaluation's speed."""

    name: str
    title: str
    path: str
    model: str
    parameters: int | None
    eval_tokens_per_s: float | None
    training: TrainingSummary | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The numbers of a report; `notes` say what is missing or was tolerated, with the command that fills the gap."""

    runs: tuple[RunSummary, ...]
    reference: str
    perplexity: tuple[PerplexityComparison, ...]
    questions: tuple[QuestionComparison, ...]
    training: tuple[TrainingComparison, ...]
    config_differences: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    draws: int
    seed: int
    qa: tuple[QaComparison, ...] = ()

    @property
    def main_perplexity(self) -> PerplexityComparison | None:
        """The evaluation that the headline is about: on the test split if there is one."""
        ordered = sorted(self.perplexity, key=lambda result: result.split != "test")  # stable: test first
        return ordered[0] if ordered else None

    def run(self, name: str) -> RunSummary:
        """The summary of a run by name."""
        return next(run for run in self.runs if run.name == name)

    def to_json(self) -> dict[str, Any]:
        """JSON-able, finite numbers only (anything else is null); `qa` only where there are such evaluations."""
        content = _finite(dataclasses.asdict(self))
        if not self.qa:
            del content["qa"]
        return content


def compare_runs(runs: Sequence[Run], draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compare runs; pure and deterministic for given runs, draws and seed.

    Raises ConfigError (no run, or fewer than 100 draws) and ArtifactMismatchError (runs over different test sets).
    """
    if not runs:
        raise ConfigError("report: expected at least one run folder, found none; name them: retro report runs/A runs/B")
    if draws < 100:
        raise ConfigError(f"draws: expected at least 100 bootstrap draws, found {draws}")
    repeated = sorted({run.name for run in runs if [r.name for r in runs].count(run.name) > 1})
    if repeated:
        raise ConfigError(f"report: expected each run once, found {', '.join(repeated)} repeatedly; name it once")
    # Answers are texts: they can be compared whatever the models were trained on and in whichever tokens.
    check_same_release([run for run in runs if not run.evaluations or _other_tasks(run)])
    reference = reference_run(runs)
    names = sorted({(e.task, name) for run in runs for name, e in run.evaluations.items()})
    _check_versions(runs)
    perplexity = [compare_perplexity(runs, name, draws, seed) for task, name in names if task == "perplexity"]
    questions = [compare_questions(runs, name, draws, seed) for task, name in names if task not in ("perplexity", QA)]
    titles = run_titles(runs)
    return Comparison(
        runs=tuple(_summary(run, titles[run.name]) for run in runs),
        reference=reference.name,
        perplexity=tuple(p for p in perplexity if p is not None),
        questions=tuple(q for q in questions if q is not None),
        training=tuple(compare_training(runs)) if not _release_differs(runs) else (),
        config_differences=config_differences(runs),
        notes=tuple(_notes(runs)),
        draws=draws,
        seed=seed,
        qa=tuple(compare_qa(runs, draws, seed)),
    )


def check_same_release(runs: Sequence[Run]) -> None:
    """Refuse runs whose tokenizer or evaluated text differ (ArtifactMismatchError).

    Databases, indexes and neighbor tables may differ: comparing retrievers on the same text is a fair question.
    """
    known = [(run, text_fingerprints(run.release)) for run in runs if run.release]
    for run, own in known[1:]:
        first, base = known[0]
        for name in sorted(base.keys() | own.keys()):
            if base.get(name) != own.get(name):
                raise ArtifactMismatchError(
                    f"{run.path}/release.json: {name} expected {base.get(name, 'none')} as in {first.path}, found "
                    f"{own.get(name, 'none')}; runs over different text cannot be compared: train and evaluate both "
                    "with the same release"
                )


def _other_tasks(run: Run) -> bool:
    return any(evaluation.task != QA for evaluation in run.evaluations.values())


def _release_differs(runs: Sequence[Run]) -> bool:
    releases = [text_fingerprints(run.release) for run in runs if run.release]
    return any(release != releases[0] for release in releases)


def text_fingerprints(release: dict[str, Any]) -> dict[str, str]:
    """Dotted name -> fingerprint of the tokenizer and of the tokens and chunks of every split.

    If the release names none of these, all fingerprints in it count.
    """
    found = dict(_fingerprints(release, ""))
    text = {
        name: value
        for name, value in found.items()
        if "tokenizer" in name.split(".")
        or ("splits" in name.split(".") and name.split(".")[-1] in ("tokens", "chunks"))
    }
    return text or found


def _fingerprints(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if isinstance(value.get("fingerprint"), str):
            yield name or "release", value["fingerprint"]
        for key in sorted(value):
            yield from _fingerprints(value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _fingerprints(item, f"{name}.{i}")


def _check_versions(runs: Sequence[Run]) -> None:
    seen: dict[str, tuple[Run, Any]] = {}
    for run in runs:
        for name, evaluation in run.evaluations.items():
            if evaluation.task == QA:  # grouped by what they are of, not by name
                continue
            identity = (evaluation.task, *(evaluation.results.get(key) for key in ("version", "split", "precision")))
            first, expected = seen.setdefault(name, (run, identity))
            if identity != expected:
                raise ArtifactMismatchError(
                    f"{run.path}/eval/{name}: expected (task, version, split, precision) {expected} as in "
                    f"{first.path}, found {identity}; evaluate both runs with the same version and configuration"
                )


def config_differences(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Dotted config field -> run name -> value, for the fields in which the runs differ."""
    flat = {run.name: dict(_flatten(run.config, "")) for run in runs if run.config}
    fields = sorted({field for values in flat.values() for field in values} - {"name"})
    missing = "(absent)"
    return {
        field: {name: values.get(field, missing) for name, values in flat.items()}
        for field in fields
        if len({repr(values.get(field, missing)) for values in flat.values()}) > 1
    }


def _flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key in value:
            yield from _flatten(value[key], f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _summary(run: Run, title: str) -> RunSummary:
    parameters, speed = None, None
    for evaluation in run.evaluations.values():
        found = evaluation.results.get("parameters")
        if isinstance(found, int):
            parameters = found
        if speed is None and evaluation.task == "perplexity":
            speed = _tokens_per_s(evaluation)
    return RunSummary(run.name, title, str(run.path), run.model, parameters, speed, summarise(run))


def _tokens_per_s(evaluation: Evaluation) -> float | None:
    """Speed in the main mode; results.json gives one figure, or one per mode."""
    throughput = evaluation.results.get("throughput")
    value = throughput.get("tokens_per_s") if isinstance(throughput, dict) else None
    if isinstance(value, dict):
        value = value.get(main_mode(evaluation.modes))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        yield from run.notes
    for run in runs:
        if run.metrics is None or not len(run.metrics.train["step"]):
            yield f"{run.name} has no training metrics, so its curves and speed are missing: retro train writes them."
        elif not len(run.metrics.validation["step"]):
            yield f"{run.name} was never validated in training: set validate_every in its configuration."
        tasks = {evaluation.task for evaluation in run.evaluations.values()}
        if not tasks & {"perplexity", QA}:
            yield f"{run.name} has no perplexity evaluation. To fill the gap: {_command(PERPLEXITY_COMMAND, run)}"
        if not tasks - {"perplexity"}:
            yield f"{run.name} has no question answering. To fill the gap: {_command(QUESTIONS_COMMAND, run)}"
        for name, evaluation in run.evaluations.items():
            if not evaluation.responses:
                command = _COMMANDS.get(evaluation.task, QUESTIONS_COMMAND)
                yield f"{run.name}: eval/{name} has no responses.jsonl. To fill the gap: {_command(command, run)}"
            elif evaluation.task == QA and not evaluation.scores:
                yield f"{run.name}: eval/{name} has no scores.jsonl. To make it: retro eval rescore {evaluation.path}"
            elif evaluation.task == "perplexity" and run.model == "retro" and not evaluation.samples:
                yield (
                    f"{run.name}: eval/{name} has no samples.json, so the reader is missing. "
                    f"To fill the gap: {_command(PERPLEXITY_COMMAND, run)}"
                )
            yield from _earlier_checkpoint(run, evaluation)
    if len(runs) == 1 and not any(e.task == QA for e in runs[0].evaluations.values()):
        yield "One run only: name a second one to compare with, as in retro report runs/A runs/B."
    if _release_differs(runs):
        yield (
            "The runs are of different releases (tokenizer or text): their answers are compared, their training is "
            "not: losses per token of one cannot be held against those of another."
        )
    steps = {
        run.name: int(run.metrics.train["step"][-1]) for run in runs if run.metrics and len(run.metrics.train["step"])
    }
    if len(set(steps.values())) > 1:
        listed = ", ".join(f"{name} {count:,}" for name, count in steps.items())
        yield f"The runs differ in training steps ({listed}); test figures compare them as they are."


def _earlier_checkpoint(run: Run, evaluation: Evaluation) -> Iterator[str]:
    """Curves and test figures of different moments must not be read as one."""
    step = evaluation.results.get("step")
    # Questions are asked to a fine-tuned model, whose steps are another run's.
    if evaluation.task != "perplexity" or run.metrics is None or not len(run.metrics.train["step"]):
        return
    last = int(run.metrics.train["step"][-1])
    if isinstance(step, int) and step < last:
        yield (
            f"{run.name}: eval/{evaluation.name} is of step {step:,}, and the training is at step {last:,}. "
            f"To evaluate the newest checkpoint: {_command(PERPLEXITY_COMMAND, run)} overwrite=true"
        )


def _command(template: str, run: Run) -> str:
    return template.format(path=run.path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
