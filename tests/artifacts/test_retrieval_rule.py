"""policy.json: what it decides, and that what is no policy is refused in one line."""

import json
import math

import pytest

from retro.artifacts.retrieval_rule import (
    ConfidenceRule,
    PopularityRule,
    RuleArms,
    confidence,
    log_popularity,
    open_rule,
    rule_fingerprint,
)
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError

ARMS = RuleArms("closed_book", "retro")
POPULARITY = PopularityRule({"author": math.log(100), "color": -math.inf, "sport": math.inf}, 2.0, True, ARMS, {"n": 3})
CONFIDENCE = ConfidenceRule("mean", 2, -1.0, ARMS)


def test_a_subject_that_nobody_looks_up_counts_as_one_view():
    assert log_popularity(0) == log_popularity(0.5) == log_popularity(1) == 0
    assert log_popularity(math.e) == 1


@pytest.mark.parametrize(
    ("relation", "popularity", "retrieves"),
    [
        ("author", 99, True),
        ("author", 101, False),
        ("color", 0, False),
        ("sport", 1e9, True),
        ("mother", 7, True),
        ("mother", 8, False),
        ("color", None, True),
    ],
)
def test_the_popularity_rule(relation, popularity, retrieves):
    assert POPULARITY.retrieves(relation, popularity) is retrieves


def test_measures_of_confidence():
    assert confidence([-1.0, -3.0], "mean") == -2
    assert confidence([-1.0, -3.0], "sum") == -4
    assert confidence([-1.0, -3.0], "least") == -3
    assert math.isnan(confidence([], "mean"))


def test_the_confidence_rule():
    assert CONFIDENCE.retrieves([-1.5, -0.7]) and not CONFIDENCE.retrieves([-0.9, -1.1])
    assert not CONFIDENCE.retrieves([-0.9, -0.9, -50])  # beyond its tokens
    assert CONFIDENCE.retrieves([])
    assert not ConfidenceRule("mean", 2, -math.inf, ARMS).retrieves([])
    assert ConfidenceRule("mean", 2, math.inf, ARMS).retrieves([-0.0])


@pytest.mark.parametrize("rule", [POPULARITY, CONFIDENCE])
def test_rules_are_read_as_they_were_written(tmp_path, rule):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(rule.to_json(), allow_nan=False))
    assert open_rule(path) == rule


def test_a_rule_is_known_by_what_it_decides():
    same = PopularityRule(dict(POPULARITY.thresholds), 2.0, True, ARMS, {"n": 4})
    assert rule_fingerprint(same) == rule_fingerprint(POPULARITY)
    assert rule_fingerprint(PopularityRule({}, 2.0, True, ARMS)) != rule_fingerprint(POPULARITY)
    assert rule_fingerprint(CONFIDENCE) != rule_fingerprint(ConfidenceRule("sum", 2, -1.0, ARMS))


GOOD = POPULARITY.to_json()
SURE = CONFIDENCE.to_json()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, ArtifactMissingError, "not found"),
        ("{", ArtifactCorruptError, "expected a policy in JSON"),
        ("[" * 100_000, ArtifactCorruptError, "expected a policy in JSON"),
        ([], ArtifactMismatchError, "found 'list'"),
        ({**GOOD, "format": 2}, ArtifactMismatchError, "format 1, as `retro qa adaptive` makes it, found 2"),
        ({**GOOD, "kind": "x"}, ArtifactCorruptError, "kind: expected popularity or confidence, found 'x'"),
        ({**GOOD, "default": "often"}, ArtifactCorruptError, "default: expected a number"),
        ({**GOOD, "default": True}, ArtifactCorruptError, "default: expected a number"),
        ({**GOOD, "default": 10**400}, ArtifactCorruptError, "make it again"),
        ({**GOOD, "thresholds": {"a": None}}, ArtifactCorruptError, "thresholds.a: expected a number"),
        ({**GOOD, "thresholds": 3}, ArtifactCorruptError, "thresholds: expected an object"),
        ({**GOOD, "without_popularity": 1}, ArtifactCorruptError, "without_popularity: expected true or false"),
        ({**GOOD, "arms": {"closed": "x"}}, ArtifactCorruptError, "no field 'retrieval'"),
        ({**GOOD, "arms": {"closed": "x", "retrieval": 1}}, ArtifactCorruptError, "arms: expected the names"),
        ({**GOOD, "fitted": 1}, ArtifactCorruptError, "fitted: expected an object"),
        ({k: v for k, v in GOOD.items() if k != "default"}, ArtifactCorruptError, "no field 'default'"),
        ({**SURE, "measure": "most"}, ArtifactCorruptError, "measure: expected one of mean, sum, least"),
        ({**SURE, "tokens": 0}, ArtifactCorruptError, "tokens: expected a number of 1 or more"),
        ({**SURE, "threshold": [1]}, ArtifactCorruptError, "threshold: expected a number"),
        ('{"format": 1, "kind": "confidence", "measure": "mean", "tokens": 1, "threshold": NaN, '
         '"arms": {"closed": "a", "retrieval": "b"}}', ArtifactCorruptError, "found nan"),
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused(tmp_path, content, error, message):
    path = tmp_path / "policy.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(error) as caught:
        open_rule(path)
    assert message in str(caught.value) and str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
