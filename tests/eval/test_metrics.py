"""Metrics over response rows, by hand-computed cases."""

import math

import pytest

from retro.data.questions import Question
from retro.eval.metrics.answers import common_answers, mean_scores, retrieval_recall, score_answer, scores_by
from retro.eval.metrics.bits_per_byte import bits_per_byte, part_of
from retro.eval.metrics.exact_match import exact_match, f1, normalise_answer, normalise_literal
from retro.eval.metrics.leakage import ALPHAS, leakage_curve
from retro.eval.metrics.positions import loss_by_position


def row(bits, tokens=2, num_bytes=4, overlap=None, index=1, document_chunk=1, logprobs=None):
    return {
        "bits": {"on": bits},
        "tokens": tokens,
        "bytes": num_bytes,
        "overlap": overlap,
        "index": index,
        "document_chunk": document_chunk,
        "logprobs": {"on": logprobs or []},
    }


def test_bits_per_byte_is_a_ratio_of_sums_not_a_mean_of_ratios():
    score = bits_per_byte([row(8.0, tokens=2, num_bytes=4), row(2.0, tokens=3, num_bytes=6)], "on")
    assert score["bits_per_byte"] == 1.0  # 10 / 10; the mean of 2 and 1/3 would be 1.17
    assert score["loss"] == pytest.approx(10 * math.log(2) / 5)
    assert score["perplexity"] == pytest.approx(4.0)  # 2 bits per token
    assert (score["tokens"], score["bytes"], score["chunks"], score["missing"]) == (5, 10, 2, 0)


def test_missing_scores_are_missing_not_zero():
    rows = [row(8.0), row(None)]
    score = bits_per_byte(rows, "on")
    assert (score["bits_per_byte"], score["bytes"], score["chunks"], score["missing"]) == (2.0, 4, 1, 1)
    nothing = bits_per_byte(rows, "off")
    assert nothing["bits_per_byte"] is None and nothing["loss"] is None and nothing["missing"] == 2


def test_parts_of_a_text():
    assert part_of(row(1.0, index=3, document_chunk=0)) == "first_chunk"
    assert part_of(row(1.0, index=0, document_chunk=0)) == "first_chunk"
    assert part_of(row(1.0, index=0, document_chunk=4)) == "sequence_start"
    assert part_of(row(1.0, index=1, document_chunk=1)) == "served"


def test_leakage_curve_by_hand():
    rows = [
        row(8.0, num_bytes=4, overlap=0.0),
        row(2.0, num_bytes=4, overlap=0.125),
        row(1.0, num_bytes=8, overlap=1.0),
        row(99.0, num_bytes=8, overlap=None),  # unknown: in no part of the curve
    ]
    curve = leakage_curve(rows, ["on"])
    assert curve["alphas"] == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0] == list(ALPHAS)
    assert curve["chunks"] == [1, 2, 2, 2, 2, 2, 2, 2, 3]
    assert curve["modes"]["on"]["bits_per_byte"] == [2.0, *[1.25] * 7, pytest.approx(11 / 16)]
    assert curve["modes"]["on"]["share_of_bytes"] == [0.25, *[0.5] * 7, 1.0]


def test_leakage_curve_without_overlaps_and_with_empty_parts():
    assert leakage_curve([row(1.0)], ["on"]) is None
    curve = leakage_curve([row(1.0, overlap=0.5)], ["on"], (0.25, 0.5))
    assert curve["modes"]["on"]["bits_per_byte"] == [None, 0.25]


def test_loss_by_position_over_served_chunks_only():
    rows = [
        row(1.0, tokens=2, logprobs=[-1.0, -3.0]),
        row(1.0, tokens=1, logprobs=[-2.0]),
        row(1.0, tokens=2, logprobs=[-50.0, -50.0], document_chunk=0),
        row(1.0, tokens=2, logprobs=[-50.0, -50.0], index=0),
        row(1.0, tokens=2, logprobs=[None, -5.0]),
    ]
    result = loss_by_position(rows, ["on"], 3)
    assert result["tokens"] == [3, 2, 0]
    assert result["modes"]["on"] == [1.5, 4.0, None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Quick, brown fox!", "quick brown fox"),
        ("an apple a day", "apple day"),
        ("theory", "theory"),  # articles are whole words
        ("-1", "1"),
        ("   ", ""),
    ],
)
def test_squad_normalisation(text, expected):
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("``None``.", "None"),
        ("'mean'", "mean"),
        ('"mean"', "mean"),
        ("-1", "-1"),
        ("0.5.", "0.5"),
        ("1.", "1."),
        ("Series  or\nDataFrame", "Series or DataFrame"),
        ("''", ""),
        ("the", "the"),
    ],
)
def test_literal_normalisation(text, expected):
    assert normalise_literal(text) == expected


def test_exact_match_takes_the_best_alias():
    assert exact_match("the Answer!", ["question", "answer"]) == 1.0
    assert exact_match("answers", ["question", "answer"]) == 0.0
    assert exact_match("-1", ["1"]) == 1.0  # what SQuAD's rule does to signs
    assert exact_match("-1", ["1"], normalise_literal) == 0.0
    assert exact_match("'mean'", ["mean"], normalise_literal) == 1.0


def test_f1_by_hand():
    # prediction {cat, sat, mat}, answer {cat, sat}: precision 2/3, recall 1, F1 4/5
    assert f1("the cat sat mat", ["a cat sat"]) == pytest.approx(0.8)
    assert f1("dog", ["cat", "dog barks"]) == pytest.approx(2 / 3)  # the best alias: precision 1, recall 1/2
    assert f1("dog", ["cat"]) == 0.0
    assert f1("", [""]) == 1.0 and f1("", ["x"]) == 0.0
    # signs are tokens of literals: ["-", "1"] against ["1"]: precision 1/2, recall 1
    assert f1("-1", ["1"], normalise_literal) == pytest.approx(2 / 3)


def test_no_accepted_answer_is_an_error():
    for metric in (exact_match, f1):
        with pytest.raises(ValueError, match="at least one"):
            metric("x", [])


def test_mean_scores_count_missing_answers_apart():
    rows = [
        {"kind": "a", **score_answer("None", ["None"])},
        {"kind": "b", **score_answer("0", ["None"])},
        {"kind": "b", **score_answer(None, ["None"])},
    ]
    assert mean_scores(rows) == {"exact_match": 0.5, "f1": 0.5, "n": 2, "missing": 1}
    assert scores_by(rows, "kind")["b"] == {"exact_match": 0.0, "f1": 0.0, "n": 1, "missing": 1}
    assert mean_scores([])["exact_match"] is None


def test_recall_counts_ranks_below_k_and_reports_no_k_beyond_what_was_retrieved():
    rows = [
        {"document_rank": 0, "evidence_rank": 3, "num_retrieved": 5},
        {"document_rank": 1, "evidence_rank": None, "num_retrieved": 5},
        {"document_rank": None, "evidence_rank": None, "num_retrieved": 5},
    ]
    recall = retrieval_recall(rows)
    assert recall["document"] == {"1": pytest.approx(1 / 3), "2": pytest.approx(2 / 3), "5": pytest.approx(2 / 3)}
    assert recall["evidence"] == {"1": 0.0, "2": 0.0, "5": pytest.approx(1 / 3)}


def question(kind, parameter, answer):
    return Question("id", "doc", "train", kind, parameter, "?", (answer,), answer)


def test_guesses_by_kind_and_by_parameter():
    train = [question("default", "axis", "0")] * 2 + [question("default", "out", "None")] * 3
    train += [question("return_type", "", "int")]
    guess = common_answers(train)
    assert guess("default", "axis") == {"most_common_answer": "None", "most_common_for_parameter": "0"}
    assert guess("default", "unseen") == {"most_common_answer": "None", "most_common_for_parameter": "None"}
    assert guess("return_type", "")["most_common_answer"] == "int"
    assert common_answers([])("default", "axis") == {}
