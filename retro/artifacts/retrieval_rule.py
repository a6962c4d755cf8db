"""policy.json: a fitted rule that says for one question whether to retrieve (Mallen et al. 2023, section 5).

Made by `retro qa adaptive`, used by `retro generate`, `retro serve` and `retro eval`. Format 1:

    {"format": 1, "kind": "popularity", "thresholds": {relation: T}, "default": T, "without_popularity": bool,
     "arms": {"closed": ARM, "retrieval": ARM}, "fitted": {...}}
    {"format": 1, "kind": "confidence", "measure": "mean" | "sum" | "least", "tokens": N, "threshold": T, "arms": ...,
     "fitted": ...}

T is a number, "never" or "always".
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from retro.artifacts.fingerprint import fingerprint
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError

FORMAT = 1
Measure = Literal["mean", "sum", "least"]
MEASURES: tuple[Measure, ...] = ("mean", "sum", "least")


def log_popularity(popularity: float) -> float:
    """Natural log of monthly page views, of which fewer than one count as one (Mallen et al. 2023, section 5.1)."""
    return math.log(max(popularity, 1.0))


def confidence(logprobs: Sequence[float], measure: Measure) -> float:
    """How sure a model was of an answer, from the natural log-probabilities of its tokens: their mean, their sum, or
    the least of them. NaN without tokens."""
    if not logprobs:
        return math.nan
    if measure == "mean":
        return math.fsum(logprobs) / len(logprobs)
    return math.fsum(logprobs) if measure == "sum" else min(logprobs)


@dataclasses.dataclass(frozen=True)
class RuleArms:
    """The arms that a rule chooses between, as evaluations spell them (retro.config.qa)."""

    closed: str
    retrieval: str


@dataclasses.dataclass(frozen=True)
class PopularityRule:
    """Retrieve if the subject's log popularity is below the threshold of the question's relation.

    thresholds: by relation, of log_popularity; -inf = never, inf = always; default: for other relations;
    without_popularity: what holds where the popularity is unknown; fitted: on what (JSON-able, for people).
    """

    thresholds: Mapping[str, float]
    default: float
    without_popularity: bool
    arms: RuleArms
    fitted: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    kind = "popularity"

    def retrieves(self, relation: str, popularity: float | None) -> bool:
        """Whether to retrieve for a question; popularity: monthly page views, None = unknown."""
        if popularity is None:
            return self.without_popularity
        return log_popularity(popularity) < self.thresholds.get(relation, self.default)

    def to_json(self) -> dict[str, Any]:
        """The content of a policy.json."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "thresholds": {name: _written(value) for name, value in self.thresholds.items()},
            "default": _written(self.default),
            "without_popularity": self.without_popularity,
            "arms": dataclasses.asdict(self.arms),
            "fitted": dict(self.fitted),
        }


@dataclasses.dataclass(frozen=True)
class ConfidenceRule:
    """Answer without retrieval first; retrieve if the model was less sure than the threshold.

    measure: see `confidence`, of the first `tokens` new tokens, the end-of-text token included; threshold: -inf =
    never, inf = always.
    """

    measure: Measure
    tokens: int
    threshold: float
    arms: RuleArms
    fitted: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    kind = "confidence"

    @property
    def fixed(self) -> bool | None:
        """True = always, False = never: nothing need be asked first; None = it depends on the answer."""
        return None if math.isfinite(self.threshold) else self.threshold > 0

    def retrieves(self, logprobs: Sequence[float]) -> bool:
        """Whether to retrieve, given the natural log-probabilities of the tokens of the answer without retrieval. An
        answer without tokens says nothing: it retrieves unless nothing does."""
        value = confidence(logprobs[: self.tokens], self.measure)
        return self.threshold > -math.inf if math.isnan(value) else value < self.threshold

    def to_json(self) -> dict[str, Any]:
        """The content of a policy.json."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "measure": self.measure,
            "tokens": self.tokens,
            "threshold": _written(self.threshold),
            "arms": dataclasses.asdict(self.arms),
            "fitted": dict(self.fitted),
        }


RetrievalRule = PopularityRule | ConfidenceRule


def rule_fingerprint(rule: RetrievalRule) -> str:
    """Identity of what a rule decides: its content without `fitted`."""
    return fingerprint("policy", FORMAT, {k: v for k, v in rule.to_json().items() if k != "fitted"}, {})


def open_rule(path: str | Path) -> RetrievalRule:
    """The rule of a policy.json. Raises ArtifactMissingError, ArtifactCorruptError or ArtifactMismatchError."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactMissingError(f"{path}: not found; expected a policy that `retro qa adaptive` made") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactCorruptError(f"{path}: expected a policy in JSON, found none ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ArtifactMismatchError(
            f"{path}: expected a policy of format {FORMAT}, as `retro qa adaptive` makes it, found {found!r}"
        )
    try:
        return _read(content)
    except KeyError as error:
        raise ArtifactCorruptError(f"{path}: no field {error}; make it again with `retro qa adaptive`") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ArtifactCorruptError(f"{path}: {error}; make it again with `retro qa adaptive`") from None


def _read(content: dict[str, Any]) -> RetrievalRule:
    names = content["arms"]
    if not isinstance(names, dict) or not all(isinstance(names[key], str) for key in ("closed", "retrieval")):
        raise ValueError(f"arms: expected the names of `closed` and `retrieval`, found {names!r}")
    arms, fitted = RuleArms(names["closed"], names["retrieval"]), content.get("fitted", {})
    if not isinstance(fitted, dict):
        raise ValueError(f"fitted: expected an object, found {fitted!r}")
    if content["kind"] == "popularity":
        thresholds, unknown = content["thresholds"], content["without_popularity"]
        if not isinstance(thresholds, dict):
            raise ValueError(f"thresholds: expected an object of relations, found {thresholds!r}")
        if not isinstance(unknown, bool):
            raise ValueError(f"without_popularity: expected true or false, found {unknown!r}")
        by_relation = {name: _threshold(value, f"thresholds.{name}") for name, value in thresholds.items()}
        return PopularityRule(by_relation, _threshold(content["default"], "default"), unknown, arms, fitted)
    if content["kind"] == "confidence":
        measure, tokens = content["measure"], content["tokens"]
        if measure not in MEASURES:
            raise ValueError(f"measure: expected one of {', '.join(MEASURES)}, found {measure!r}")
        if type(tokens) is not int or tokens < 1:
            raise ValueError(f"tokens: expected a number of 1 or more, found {tokens!r}")
        return ConfidenceRule(measure, tokens, _threshold(content["threshold"], "threshold"), arms, fitted)
    raise ValueError(f"kind: expected popularity or confidence, found {content['kind']!r}")


def _written(threshold: float) -> float | str:
    if math.isinf(threshold):
        return "always" if threshold > 0 else "never"
    return threshold


def _threshold(value: object, name: str) -> float:
    if value == "never":
        return -math.inf
    if value == "always":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f'{name}: expected a number, "never" or "always", found {value!r}')
    return float(value)
