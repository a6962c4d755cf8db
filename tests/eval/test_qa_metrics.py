"""Scores of open questions: by hand, against an obvious reference, and against published evaluation code."""

import json
import math
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.config.errors import ArtifactMismatchError
from retro.data.qa.record import QaQuestion
from retro.data.qa.task import Metric
from retro.eval.metrics.exact_match import exact_match, f1, normalise_nq
from retro.eval.metrics.qa_baselines import commonest_answers, guesses_for
from retro.eval.metrics.qa_popularity import EDGES, popularity_bin, scores_by_popularity
from retro.eval.metrics.qa_scores import (
    METRICS,
    check_metrics,
    regex_match,
    score_answer,
    score_text,
    substring,
    substring_strict,
)
from tests.reference import slow_qa_scores as slow

STORED = json.loads((Path(__file__).parent / "stored" / "published_qa_scores.json").read_text(encoding="utf-8"))
TEXTS, PATTERNS = STORED["text"], STORED["regex"]


@pytest.mark.parametrize("row", TEXTS, ids=lambda row: ascii(row["prediction"]))
def test_published_evaluation_code_gives_the_same(row):
    prediction, answers = row["prediction"], row["answers"]
    assert exact_match(prediction, answers) == row["squad_2.0"]["exact_match"] == row["squad_1.1"]["exact_match"]
    assert exact_match(prediction, answers) == row["fid"]["exact_match"]
    assert METRICS["exact_match_nq"][1](prediction, answers) == row["nq_open"]["exact_match"]
    assert f1(prediction, answers) == pytest.approx(row["squad_2.0"]["f1"], abs=1e-12)
    # SQuAD 1.1 has no empty answers: its F1 of two empty texts is 0.
    if slow.words(prediction) or all(slow.words(answer) for answer in answers):
        assert f1(prediction, answers) == pytest.approx(row["squad_1.1"]["f1"], abs=1e-12)
    assert substring(prediction, answers) == row["popqa"]["accuracy"]


@pytest.mark.parametrize("row", PATTERNS, ids=lambda row: ascii(row["prediction"]))
def test_published_matching_of_regular_expressions_gives_the_same(row):
    assert regex_match(row["prediction"], row["patterns"]) == row["drqa"]["match"]


def test_the_stored_scores_tell_the_metrics_apart():
    right = [(row["squad_2.0"]["exact_match"], row["popqa"]["accuracy"]) for row in TEXTS]
    assert {(0, 0), (0, 1), (1, 0), (1, 1)} == set(right)
    assert any(row["nq_open"]["exact_match"] != row["squad_2.0"]["exact_match"] for row in TEXTS)
    assert {row["drqa"]["match"] for row in PATTERNS} == {0, 1}


def test_transformers_squad_metrics_agree_where_they_are():
    squad = pytest.importorskip("transformers.data.metrics.squad_metrics", reason="transformers 5 has none")
    for row in TEXTS:
        prediction, answers = row["prediction"], row["answers"]
        assert exact_match(prediction, answers) == max(squad.compute_exact(a, prediction) for a in answers)
        assert f1(prediction, answers) == pytest.approx(max(squad.compute_f1(a, prediction) for a in answers))


LETTERS = st.text(alphabet="aAnthe .,-'é\u0301ße1_\n", max_size=14)


@given(LETTERS, st.lists(LETTERS, min_size=1, max_size=3))
def test_scores_are_those_of_the_obvious_reference(prediction, answers):
    assert exact_match(prediction, answers) == slow.exact(prediction, answers)
    assert exact_match(prediction, answers, normalise_nq) == slow.exact(prediction, answers, decompose=True)
    assert f1(prediction, answers) == pytest.approx(slow.overlap(prediction, answers), abs=1e-12)


@given(LETTERS, st.lists(LETTERS.filter(str.strip), min_size=1, max_size=3))
def test_strict_lies_between_exact_match_and_nothing(prediction, answers):
    # Right by exact match and something left of the answer: right by whole words too.
    if slow.words(prediction) and exact_match(prediction, answers):
        assert substring_strict(prediction, answers) == 1.0


def test_substring_rewards_parts_of_words_and_the_strict_variant_does_not():
    assert substring("He was an artist.", ["art"]) == 1.0
    assert substring_strict("He was an artist.", ["art"]) == 0.0
    assert substring_strict("The Art, of war", ["art"]) == 1.0
    assert substring_strict("of The Art!", ["the art of"]) == 0.0
    assert substring_strict("a political  Leader.", ["political leader"]) == 1.0


def test_substring_tries_three_spellings_against_the_raw_text():
    assert substring("a Political leader", ["political leader"]) == 1.0  # capitalised
    assert substring("a political leader", ["Political Leader"]) == 1.0  # lower-cased
    assert substring("a Political Leader", ["political leader"]) == 0.0  # none of the three
    assert substring("new\u00a0york", ["new york"]) == 0.0  # nothing is normalised


def test_substring_reads_the_first_line_only():
    assert substring("no idea\nParis", ["Paris"]) == 0.0
    assert substring("\n\nParis\nno idea", ["Paris"]) == 1.0


def test_strict_answers_of_which_nothing_is_left():
    assert substring_strict("", ["The"]) == 0.0
    assert substring_strict("they play The  the loudly", ["The The"]) == 1.0
    assert substring_strict("they play the loudly", ["The The"]) == 0.0
    assert substring_strict("anything", ["  "]) == 0.0


def test_regex_matches_at_the_begin_and_says_what_does_not_compile():
    assert regex_match("1871, in May", [r"187\d"]) == 1.0
    assert regex_match("in 1871", [r"187\d"]) == 0.0
    with pytest.raises(ValueError, match="not a regular expression"):
        regex_match("x", ["(unclosed"])


@pytest.mark.parametrize("metric", [substring, substring_strict, regex_match])
def test_no_accepted_answer_is_an_error(metric):
    with pytest.raises(ValueError, match="at least one"):
        metric("x", [])


def test_a_row_is_scored_by_the_field_that_each_metric_reads():
    row = {"text": " The PAINTER (born", "prediction": "The PAINTER (born", "answers": ["painter"]}
    names = ["exact_match", "f1", "substring", "substring_strict"]
    assert score_answer(row, names) == {
        "exact_match": 0.0,
        "f1": pytest.approx(2 / 3),
        "substring": 0.0,
        "substring_strict": 1.0,
    }
    assert score_answer({**row, "prediction": None, "text": None}, names) == dict.fromkeys(names)
    assert score_text(" painter\nmore", ["painter"], ["exact_match"]) == {"exact_match": 1.0}


def test_literal_metrics_keep_signs():
    assert METRICS["exact_match_literal"][1]("-1", ["1"]) == 0.0 and METRICS["exact_match"][1]("-1", ["1"]) == 1.0
    assert METRICS["f1_literal"][1]("-1", ["1"]) == pytest.approx(2 / 3)


def test_a_task_may_name_every_metric_and_no_other():
    assert set(get_args(Metric)) == set(METRICS)


def test_unknown_metrics_are_named():
    check_metrics(list(METRICS), "task")
    with pytest.raises(ArtifactMismatchError, match=r"task: expected metrics out of exact_match.*found 'bleu'"):
        check_metrics(["f1", "bleu"], "task")


def popular(popularity, score):
    return {"popularity": popularity, "exact_match": score}


def test_bins_of_popularity():
    assert [popularity_bin(value) for value in (0, 1, 2.9, 3, 999, 1000, 10**9)] == [0, 0, 0, 1, 5, 6, len(EDGES) - 1]
    rows = [popular(0, 1.0), popular(2, 0.0), popular(12, 1.0), popular(None, 1.0), popular(29, None)]
    table = scores_by_popularity({"a": rows}, ["exact_match"], "exact_match")
    assert table["arms"]["a"] == [
        {"low": 1, "high": 3, "exact_match": 0.5, "n": 2, "missing": 0},
        {"low": 3, "high": 10, "exact_match": None, "n": 0, "missing": 0},
        {"low": 10, "high": 30, "exact_match": 1.0, "n": 1, "missing": 1},
    ]
    assert scores_by_popularity({"a": [popular(None, 1.0)]}, ["exact_match"], "exact_match") is None


def test_correlation_with_log_popularity_by_hand():
    rows = [popular(1, 0.0), popular(math.e, 0.0), popular(math.e**2, 1.0)]  # logs 0, 1, 2
    table = scores_by_popularity({"a": rows, "b": rows[:2]}, ["exact_match"], "exact_match")
    # covariance 1, variances 2 and 2/3: 1 / sqrt(4/3)
    assert table["correlation"] == {"a": pytest.approx(math.sqrt(3) / 2), "b": None}


def trained(answer, group="g", relation="r"):
    return QaQuestion("id", "?", (answer,), group=group, relation=relation)


def test_guesses_count_spellings_as_one_and_fall_back():
    train = [trained("The Sea"), trained("the sea"), trained("The Sea"), trained("Hill", relation="s")]
    train += [trained("Hill", group="h", relation="r")] * 3
    guesses = commonest_answers(train)
    assert guesses["all"] == "Hill" and guesses["group"] == {"g": "The Sea", "h": "Hill"}
    assert guesses["relation"] == {"g": {"r": "The Sea", "s": "Hill"}, "h": {"r": "Hill"}}
    assert guesses == json.loads(json.dumps(guesses))
    assert guesses_for({"group": "g", "relation": "s"}, guesses) == {
        "commonest_answer": "Hill",
        "commonest_of_group": "The Sea",
        "commonest_of_relation": "Hill",
    }
    assert guesses_for({"group": "g", "relation": "new"}, guesses)["commonest_of_relation"] == "The Sea"
    assert guesses_for({"group": "new", "relation": "r"}, guesses)["commonest_of_relation"] == "Hill"
    assert commonest_answers([]) == {} and guesses_for({"group": "g", "relation": "r"}, {}) == {}
