"""`retro qa adaptive RUN/eval/NAME --closed ARM --retrieval ARM`: when is retrieval worth it? Reads files only."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.config.errors import ArtifactCorruptError, ConfigError

if TYPE_CHECKING:
    from retro.analysis.adaptive import AdaptiveSettings, Kind
    from retro.analysis.adaptive_questions import Row

_AGAIN = "evaluate with task: qa, and run `retro eval rescore` on the folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "evaluations",
        nargs="+",
        type=Path,
        metavar="RUN/eval/NAME",
        help="finished evaluations of one set of questions",
    )
    parser.add_argument(
        "--closed", required=True, metavar="ARM", help="arm without retrieval; ARM@RUN/eval/NAME where several have it"
    )
    parser.add_argument("--retrieval", required=True, nargs="+", metavar="ARM", help="arms with retrieval, likewise")
    parser.add_argument("--metric", help="what answers are judged by (default: the task's primary metric)")
    parser.add_argument(
        "--policy",
        nargs="+",
        choices=("popularity", "confidence"),
        help="which policies (default: both, the first if questions have a popularity)",
    )
    parser.add_argument("--splits", type=int, default=100, help="random splits (default: %(default)s)")
    parser.add_argument(
        "--dev", type=float, default=0.75, help="share of each relation that is fitted on (default: %(default)s)"
    )
    parser.add_argument("--bins", type=int, default=10, help="bins whose edges are tried (default: %(default)s)")
    parser.add_argument(
        "--edges",
        choices=("dev", "all"),
        default="dev",
        help="whose values the bins divide: all as in the paper's code, which looks at the test questions' popularity "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=2.0,
        metavar="ERRORS",
        help="standard errors by which a threshold must beat the better fixed arm where it is fitted; 0 = by anything, "
        "as in the paper (default: %(default)s)",
    )
    parser.add_argument(
        "--min-questions",
        type=int,
        default=10,
        help="relations with fewer questions share a threshold (default: %(default)s)",
    )
    parser.add_argument(
        "--measure",
        choices=("mean", "sum", "least"),
        default="mean",
        help="confidence: of the log-probabilities of the tokens without retrieval (default: %(default)s)",
    )
    parser.add_argument("--cost", type=Path, metavar="FILE", help="JSON file of prices and the time of a search")
    parser.add_argument("--seed", type=int, default=0, help="of splits and bootstrap (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=2000, help="bootstrap draws (default: %(default)s)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of adaptive.json and the policies (default: the first one)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the figures; write adaptive.json and the fitted policies."""
    _check(arguments)
    from retro.analysis.adaptive import FORMAT, analyse_adaptive
    from retro.analysis.adaptive_prices import read_prices
    from retro.analysis.adaptive_questions import pair_answers
    from retro.analysis.adaptive_text import describe_comparison
    from retro.artifacts.atomic import write_json_atomic
    from retro.eval.responses import ADAPTIVE_NAME

    prices = None if arguments.cost is None else read_prices(arguments.cost)
    evaluations = [_Evaluation(path) for path in arguments.evaluations]
    first = evaluations[0]
    for other in evaluations:
        if (other.task, other.split) != (first.task, first.split):
            raise ConfigError(
                f"{other.path}: expected an evaluation of {first.task}, split {first.split}, as {first.path} is, found "
                f"{other.task}, split {other.split}"
            )
    metric = arguments.metric or first.primary
    score = _scorer(metric)
    output = arguments.output or arguments.evaluations[0]
    if not output.is_dir():
        raise ConfigError(f"output: expected a folder, found none at {output}; make it")
    closed, source = _find_arm(arguments.closed, "closed", evaluations)
    settings, unit = _settings(arguments, source.answer_tokens), prices.unit if prices is not None else ""
    content: dict[str, Any] = {
        "format": FORMAT,
        "task": first.task,
        "split": first.split,
        "metric": metric,
        "questions": first.questions,
        "evaluations": [str(path) for path in arguments.evaluations],
        "settings": settings.to_json(),
        "unit": unit or None,
        "comparisons": [],
    }
    for text in arguments.retrieval:
        rows, _ = _find_arm(text, "retrieval", evaluations)
        questions = pair_answers(closed, rows, score, prices)
        known = bool((questions.popularity >= 0).any())
        kinds: tuple[Kind, ...] = tuple(
            arguments.policy or (("popularity", "confidence") if known else ("confidence",))
        )
        fitted = {"task": first.task, "split": first.split, "metric": metric, "prepared": first.questions}
        result = analyse_adaptive(questions, kinds, settings, fitted)
        content["comparisons"].append(result.figures)
        print("\n".join(describe_comparison(result.figures, metric, settings.to_json(), unit)))
        for kind, rule in result.rules.items():
            path = output / _policy_name(text, kind, len(arguments.retrieval) > 1, known)
            write_json_atomic(path, rule.to_json())
            print(f"  policy: {path}")
        if not known and not arguments.policy:
            print("  no question has a popularity: no policy of it")
    write_json_atomic(output / ADAPTIVE_NAME, content)
    print(f"numbers: {output / ADAPTIVE_NAME}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for name, low, high in (
        ("splits", 1, 100_000),
        ("bins", 1, 1000),
        ("min_questions", 1, None),
        ("draws", 100, None),
    ):
        value = getattr(arguments, name)
        if value < low or (high is not None and value > high):
            expected = f"{low} or more" if high is None else f"{low} to {high}"
            raise ConfigError(f"{name.replace('_', '-')}: expected {expected}, found {value}")
    if not 0 <= arguments.margin < float("inf"):
        raise ConfigError(f"margin: expected 0 or more standard errors, found {arguments.margin}")
    if not 0 < arguments.dev < 1:
        raise ConfigError(f"dev: expected a share above 0 and below 1, found {arguments.dev}")
    if arguments.seed < 0:
        raise ConfigError(f"seed: expected 0 or more, found {arguments.seed}")
    if len(set(arguments.retrieval)) < len(arguments.retrieval):
        raise ConfigError(f"retrieval: expected each arm once, found {' '.join(arguments.retrieval)}")
    if arguments.policy and len(set(arguments.policy)) < len(arguments.policy):
        raise ConfigError("policy: expected each once")


class _Evaluation:
    """A finished evaluation folder of task qa: its rows by arm, and what scores them."""

    def __init__(self, path: Path) -> None:
        from retro.eval.responses import read_responses, read_state

        self.path = path
        state = read_state(path)
        try:
            results = json.loads((path / "results.json").read_text(encoding="utf-8"))
            definition = results["task_definition"]
            self.task, self.primary = str(definition["name"]), str(definition["primary"])
            self.split, self.questions = str(results["split"]), str(results["qa"]["questions"])
            self.answer_tokens = int(results["qa"]["max_new_tokens"])
        except (OSError, ValueError, OverflowError, KeyError, TypeError) as error:
            detail = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactCorruptError(f"{path / 'results.json'}: {detail}; {_AGAIN}") from None
        self.arms: dict[str, list[Row]] = {}
        for row in read_responses(path, state):
            self.arms.setdefault(str(row.get("arm")), []).append(row)


def _scorer(metric: str) -> Callable[[Row], float | None]:
    """Score of a row, None where the model gave no answer. Raises ConfigError for a metric that is none."""
    from retro.eval.metrics.qa_scores import METRICS, score_answer

    if metric not in METRICS:
        raise ConfigError(f"metric: expected one of {', '.join(METRICS)}, found {metric!r}")

    def score(row: Row) -> float | None:
        try:
            return score_answer(row, (metric,))[metric]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            detail = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactCorruptError(
                f"responses: question {row['id']!r}: expected a response of task qa ({detail}); {_AGAIN}"
            ) from None

    return score


def _find_arm(text: str, option: str, evaluations: Sequence[_Evaluation]) -> tuple[list[Row], _Evaluation]:
    """The rows of ARM, or of ARM@FOLDER, and the evaluation that they are of."""
    arm, at, folder = text.partition("@")
    among = [e for e in evaluations if not at or e.path.resolve() == Path(folder).resolve()]
    if not among:
        raise ConfigError(f"{option}: {folder} is none of the evaluations given; add it, or correct {text!r}")
    having = [e for e in among if arm in e.arms]
    if not having:
        known = ", ".join(dict.fromkeys(name for e in among for name in e.arms))
        raise ConfigError(f"{option}: expected one of the arms {known}, found {arm!r}")
    if len(having) > 1:
        raise ConfigError(
            f"{option}: arm {arm!r} is in {' and '.join(str(e.path) for e in having)}; say which with {arm}@FOLDER"
        )
    return having[0].arms[arm], having[0]


def _settings(arguments: argparse.Namespace, tokens: int) -> AdaptiveSettings:
    from retro.analysis.adaptive import AdaptiveSettings
    from retro.analysis.adaptive_splits import SplitPlan

    return AdaptiveSettings(
        SplitPlan(arguments.splits, arguments.dev, arguments.seed),
        bins=arguments.bins,
        edges=arguments.edges,
        margin=arguments.margin,
        min_questions=arguments.min_questions,
        measure=arguments.measure,
        tokens=tokens,
        draws=arguments.draws,
    )


def _policy_name(arm: str, kind: str, several: bool, popularity: bool) -> str:
    """policy.json is the popularity policy if there is one; others say what they are."""
    parts = ["policy"]
    if several:
        parts.append(re.sub(r"[^A-Za-z0-9]+", "_", arm.replace("++", "_plus").partition("@")[0]).strip("_"))
    if kind == "confidence" and popularity:
        parts.append("confidence")
    return "-".join(parts) + ".json"
