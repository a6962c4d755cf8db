"""Adaptive retrieval: thresholds that are known beforehand are found; never worse than the better arm where fitted."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.analysis.adaptive import AdaptiveSettings, analyse_adaptive
from retro.analysis.adaptive_policies import confidence_policy, fitted_rule, popularity_policy
from retro.analysis.adaptive_questions import pair_answers
from retro.analysis.adaptive_splits import SplitPlan, draw_dev, evaluate_splits, gain_over, saved
from retro.analysis.adaptive_thresholds import ThresholdFit, best_threshold, candidates, fit_thresholds
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError
from tests.analysis.adaptive_questions import answered, crossing_questions

FIT = ThresholdFit()


def slow_best(values, gains, thresholds):
    """Every threshold tried on its own."""
    totals = [sum(g for v, g in zip(values, gains, strict=True) if v < t) for t in thresholds]
    return next(t for t, total in zip(thresholds, totals, strict=True) if total >= max(totals) - 1e-9)


def test_candidates_are_never_the_edges_of_ten_bins_and_always():
    assert candidates(np.array([1.0, 2.0, 11.0]), FIT).tolist() == [-math.inf, *range(1, 12), math.inf]
    halves = ThresholdFit(bins=2, spacing="number")
    assert candidates(np.array([1.0, 2.0, 11.0]), halves).tolist() == [-math.inf, 1, 2, 11, math.inf]
    assert candidates(np.array([3.0, 3.0]), FIT).tolist() == [-math.inf, 3, math.inf]
    assert candidates(np.array([-math.inf]), FIT).tolist() == [-math.inf, math.inf]


def test_a_threshold_worked_out_by_hand():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    thresholds = np.array([-math.inf, 1, 2, 3, 4, math.inf])
    # Retrieval wins the two least, loses the next: below 3.
    assert best_threshold(values, np.array([1.0, 1, -1, 0]), thresholds) == 3
    # Nothing to gain: never. Of equals the one that retrieves least.
    assert best_threshold(values, np.array([0.0, 0, 0, 0]), thresholds) == -math.inf
    assert best_threshold(values, np.array([1.0, -1, 1, 0]), thresholds) == 2
    assert best_threshold(values, np.array([0.0, 0, 0, 1]), thresholds) == math.inf


def test_a_lucky_threshold_is_not_taken_with_a_margin():
    values = np.arange(40.0)
    thresholds = np.array([-math.inf, 10, 20, 30, math.inf])
    few, many = np.full(40, 1.0), np.full(40, 1.0)
    few[38:] = -1  # two questions that retrieval spoils
    many[20:] = -1
    assert best_threshold(values, few, np.array([-math.inf, 38, math.inf])) == 38
    assert best_threshold(values, few, np.array([-math.inf, 38, math.inf]), math.inf, 2.0) == math.inf
    assert best_threshold(values, many, thresholds, math.inf, 2.0) == 20
    assert best_threshold(values, many, thresholds, -math.inf, 2.0) == 20
    # A group whose own better arm is the other one departs from the common one only if it is sure of it.
    groups = np.array([0] * 36 + [1] * 4)
    gains = np.array([1.0] * 36 + [-1.0, 1.0, -1.0, -1.0])
    chosen = np.ones(40, bool)
    assert list(fit_thresholds(values, gains, groups, 2, chosen, ThresholdFit(margin=2.0))) == [math.inf, math.inf]
    assert fit_thresholds(values, gains, groups, 2, chosen, ThresholdFit(margin=0.0))[1] == -math.inf


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0])), min_size=1, max_size=30))
def test_the_best_threshold_is_the_one_that_trying_all_finds(pairs):
    values, gains = (np.array(column, float) for column in zip(*pairs, strict=True))
    thresholds = candidates(values, FIT)
    assert best_threshold(values, gains, thresholds) == slow_best(values, gains, thresholds)


@settings(max_examples=25, deadline=None)
@given(
    steepness=st.floats(0.5, 4.0),
    places=st.lists(st.tuples(st.floats(3.0, 9.0), st.floats(0.15, 0.85)), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_the_crossing_of_known_probabilities_is_found_within_one_bin(steepness, places, seed):
    named = {f"r{i}": place for i, place in enumerate(places)}
    questions, crossings = crossing_questions(np.random.default_rng(seed), 400, named, steepness, sampled=False)
    rule = fitted_rule(popularity_policy(questions, FIT), questions, {})
    logs = questions.log_popularity
    for name, crossing in crossings.items():
        own = logs[np.array([r == name for r in questions.relations])]
        width = np.ptp(own) / FIT.bins
        if own.min() + width < crossing < own.max() - width:
            assert abs(rule.thresholds[name] - crossing) <= width


@pytest.mark.parametrize("edges", ["dev", "all"])
def test_the_crossing_of_answers_drawn_at_random_is_found_within_one_bin(edges):
    named = {"author": (5.0, 0.4), "religion": (7.0, 0.6), "capital": (3.0, 0.5)}
    questions, crossings = crossing_questions(np.random.default_rng(0), 3000, named)
    policy = popularity_policy(questions, ThresholdFit(edges=edges))
    dev = draw_dev(policy.groups, SplitPlan(), 0)
    thresholds = dict(zip(policy.names, policy.thresholds(questions.gains, dev), strict=True))
    for name, crossing in crossings.items():
        assert abs(thresholds[name] - crossing) <= 12.0 / FIT.bins, name
    result = evaluate_splits(policy, questions, SplitPlan(splits=20))
    better = max(result.scores["closed"].mean(), result.scores["retrieval"].mean())
    assert result.scores["adaptive"].mean() > better + 0.05
    assert np.all(result.scores["oracle"] >= result.scores["adaptive"])
    # Below the crossings lie (5 - 0.41 + 7 + 0.41 + 3) / 36 of the questions.
    assert result.shares.mean() == pytest.approx(15 / 36, abs=0.05)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["", "a", "b", "c"]),
            st.one_of(st.none(), st.floats(0, 1e6)),
            st.sampled_from([0.0, 0.5, 1.0]),
            st.sampled_from([0.0, 0.5, 1.0]),
        ),
        min_size=2,
        max_size=60,
    ),
    edges=st.sampled_from(["dev", "all"]),
    minimum=st.integers(1, 20),
    seed=st.integers(0, 5),
)
def test_adaptive_is_never_worse_than_the_better_arm_where_it_was_fitted(rows, edges, minimum, seed):
    relations, popularity, closed, retrieval = zip(*rows, strict=True)
    popularity = [math.nan if p is None else p for p in popularity]
    logprobs = [[-p / 1e6, -0.5] if p == p else [] for p in popularity]
    questions = answered(relations, popularity, closed, retrieval, logprobs=logprobs)
    if all(math.isnan(p) for p in popularity):
        with pytest.raises(ArtifactMismatchError, match="popularity"):
            popularity_policy(questions, FIT)
        return
    fit = ThresholdFit(edges=edges)
    for policy in (popularity_policy(questions, fit, minimum), confidence_policy(questions, fit)):
        dev = draw_dev(policy.groups, SplitPlan(seed=seed), 0)
        chosen = policy.retrieves(policy.thresholds(questions.gains, dev))
        adaptive = np.where(chosen, questions.retrieval.scores, questions.closed.scores)
        assert (
            adaptive[dev].sum() >= max(questions.closed.scores[dev].sum(), questions.retrieval.scores[dev].sum()) - 1e-9
        )


def test_a_rule_decides_as_the_policy_that_it_was_fitted_by():
    rng = np.random.default_rng(1)
    questions, _ = crossing_questions(rng, 200, {"author": (5.0, 0.4), "religion": (7.0, 0.6), "": (4.0, 0.5)})
    few = answered(["color"] * 4, [0, 1, 7, math.nan], [0, 0, 1, 1], [1, 1, 0, 0])
    both = answered(
        questions.relations + few.relations,
        np.concatenate([questions.popularity, few.popularity]),
        np.concatenate([questions.closed.scores, few.closed.scores]),
        np.concatenate([questions.retrieval.scores, few.retrieval.scores]),
        logprobs=[[-v, -v / 2] for v in rng.random(len(questions.ids) + 4) + np.append(questions.gains, [0] * 4)],
    )
    everything = np.ones(len(both.ids), bool)
    policy = popularity_policy(both, FIT)
    rule = fitted_rule(policy, both, {"from": "here"})
    assert sorted(rule.thresholds) == ["", "author", "color", "religion"]
    assert (rule.arms.closed, rule.arms.retrieval, rule.fitted) == ("closed_book", "retro", {"from": "here"})
    wanted = policy.retrieves(policy.thresholds(both.gains, everything))
    known = [None if math.isnan(p) else p for p in both.popularity]
    assert [rule.retrieves(r, p) for r, p in zip(both.relations, known, strict=True)] == wanted.tolist()
    assert rule.without_popularity is False  # the one such question was better off without
    policy = confidence_policy(both, FIT, "least", 1)
    rule = fitted_rule(policy, both, {}, "least", 1)
    wanted = policy.retrieves(policy.thresholds(both.gains, everything))
    assert [rule.retrieves(row) for row in both.closed.logprobs] == wanted.tolist()
    assert 0 < sum(wanted) < len(wanted)


def test_splits_leave_a_quarter_of_each_relation_and_differ():
    groups = np.repeat([0, 1, 2], [40, 4, 1])
    first, second = (draw_dev(groups, SplitPlan(), number) for number in (0, 1))
    assert np.bincount(groups[first]).tolist() == [30, 3, 1]
    assert not np.array_equal(first, second)
    assert np.array_equal(first, draw_dev(groups, SplitPlan(), 0))
    assert not np.array_equal(first, draw_dev(groups, SplitPlan(seed=1), 0))


def test_thresholds_are_fitted_on_dev_alone():
    """What the test questions were answered decides nothing."""
    rng = np.random.default_rng(2)
    questions, _ = crossing_questions(rng, 100, {"author": (5.0, 0.4), "religion": (7.0, 0.6)})
    policy = popularity_policy(questions, FIT)
    dev = draw_dev(policy.groups, SplitPlan(), 3)
    other = np.where(dev, questions.gains, -questions.gains)
    assert np.array_equal(policy.thresholds(questions.gains, dev), policy.thresholds(other, dev))
    values = np.where(dev, policy.values, policy.values * 5)
    moved = fit_thresholds(values, questions.gains, policy.groups, len(policy.names), dev, FIT)
    assert np.array_equal(moved, policy.thresholds(questions.gains, dev))
    with_all = dataclasses.replace(FIT, edges="all")
    moved = fit_thresholds(values, questions.gains, policy.groups, len(policy.names), dev, with_all)
    assert not np.array_equal(moved, policy.thresholds(questions.gains, dev))


def test_what_is_saved_worked_out_by_hand():
    """Two of four answers need retrieval, of the rare; it takes 3 s, the closed book 1 s."""
    questions = answered(["r"] * 40, [2.0] * 20 + [900.0] * 20, [0.0] * 20 + [1.0] * 20, [1.0] * 20 + [0.0] * 20,
                         logprobs=[[-2.0]] * 20 + [[-0.1]] * 20)  # fmt: skip
    plan = SplitPlan(splits=5)
    result = evaluate_splits(popularity_policy(questions, FIT), questions, plan)
    assert result.scores["adaptive"].tolist() == [1.0] * 5 == result.scores["oracle"].tolist()
    assert np.allclose(result.scores["closed"], 1 - result.shares)
    assert np.allclose(result.expenses["seconds"]["adaptive"], 1 + 2 * result.shares)
    assert np.array_equal(result.expenses["latency_ms"]["retrieval"], [3000.0] * 5)
    assert saved(np.array([1.5]), np.array([3.0])) == [0.5]
    # The confidence policy asks the closed book first, and pays for both.
    result = evaluate_splits(confidence_policy(questions, FIT), questions, plan)
    assert result.scores["adaptive"].tolist() == [1.0] * 5
    assert np.allclose(result.expenses["seconds"]["adaptive"], 1 + 3 * result.shares)


def test_figures_of_an_analysis():
    rng = np.random.default_rng(3)
    questions, _ = crossing_questions(rng, 300, {"author": (5.0, 0.4), "religion": (7.0, 0.6)})
    settings = AdaptiveSettings(SplitPlan(splits=30), draws=200)
    done = analyse_adaptive(questions, ("popularity", "confidence"), settings, {"split": "dev"})
    popularity = done.figures["policies"]["popularity"]
    accuracy = {name: values["mean"] for name, values in popularity["accuracy"].items()}
    assert max(accuracy["closed"], accuracy["retrieval"]) < accuracy["adaptive"] < accuracy["oracle"]
    assert popularity["gain"]["by_question"]["low"] > 0
    assert popularity["gain"]["over_better_fixed"]["mean"] == pytest.approx(
        accuracy["adaptive"] - accuracy[popularity["better_fixed"]]
    )
    assert 0 < popularity["share_retrieved"]["mean"] < 1
    assert 0 < popularity["expenses"]["seconds"]["saved"]["mean"] < 1
    assert popularity["rule"]["thresholds"].keys() == {"author", "religion"}
    # Constant confidence tells nothing: the arm that was better on dev, and no gain.
    confidence = done.figures["policies"]["confidence"]
    assert confidence["gain"]["over_fixed_by_dev"]["mean"] == 0
    bins = done.figures["by_popularity"]
    assert sum(part["questions"] for part in bins) == 600
    assert bins[0]["closed"] < bins[0]["retrieval"] and bins[-1]["closed"] > bins[-1]["retrieval"]
    assert bins[0]["policies"]["popularity"]["share"] == 1 and bins[-1]["policies"]["popularity"]["share"] == 0
    curve = popularity["curve"]
    assert (curve[0]["share"], curve[-1]["share"]) == (0, 1) and len(curve) == 21
    assert curve[0]["accuracy"] == pytest.approx(done.figures["all"]["closed"])
    assert curve[-1]["accuracy"] == pytest.approx(done.figures["all"]["retrieval"])
    assert max(point["accuracy"] for point in curve) > accuracy["retrieval"]
    assert done.figures["correlation"]["closed"] > 0.4 > abs(done.figures["correlation"]["retrieval"])
    assert sum(done.figures["agreement"].values()) == pytest.approx(1)
    assert done.rules["popularity"].fitted == {"split": "dev", "questions": 600}


def row(key, arm, right, **fields):
    return {"id": key, "arm": arm, "right": right, "relation": "r", "popularity": 10.0, "token_logprobs": [-0.5],
            "passages": [], "seconds": 1.0, "latency_ms": None, "prompt_tokens": 4, "encoder_tokens": 0,
            "new_tokens": 1, **fields}  # fmt: skip


def test_rows_of_two_arms_are_paired_by_question():
    closed = [row("a", "closed_book", 1.0), row("b", "closed_book", None), row("c", "closed_book", 0.0)]
    retrieval = [row(key, "rag", 1.0, popularity=None, latency_ms=7) for key in "cba"]
    found = pair_answers(closed, retrieval, lambda r: r["right"])
    assert (found.ids, found.left_out) == (("a", "c"), 1)
    assert found.gains.tolist() == [0.0, 1.0] and found.units.tolist() == [0, 1]
    same = [{**r, "evidence": ["doc", "other"]} for r in closed]
    assert pair_answers(same, retrieval, lambda r: r["right"]).units.tolist() == [0, 0]
    assert found.popularity.tolist() == [10.0, 10.0]
    assert found.retrieval.expenses["latency_ms"].tolist() == [7, 7]
    assert np.isnan(found.closed.expenses["latency_ms"]).all()
    with pytest.raises(ArtifactMismatchError, match="with 2 in common"):
        pair_answers(closed, retrieval[:2], lambda r: r["right"])
    with pytest.raises(ArtifactMismatchError, match="both arms answered"):
        pair_answers(closed, retrieval, lambda r: None)
    with pytest.raises(ArtifactCorruptError, match="once"):
        pair_answers([*closed, closed[0]], retrieval, lambda r: r["right"])
    with pytest.raises(ArtifactCorruptError, match="seconds: expected a number, found 'x'"):
        pair_answers([row("a", "g", 1.0, seconds="x")], [row("a", "h", 1.0)], lambda r: r["right"])


def test_questions_about_one_document_are_drawn_together():
    """Ten copies of each question tell no more than one of each."""
    rng = np.random.default_rng(4)
    few, _ = crossing_questions(rng, 60, {"author": (5.0, 0.4)})
    many = answered(
        few.relations * 10,
        np.tile(few.popularity, 10),
        np.tile(few.closed.scores, 10),
        np.tile(few.retrieval.scores, 10),
    )
    held_out = evaluate_splits(popularity_policy(many, FIT), many, SplitPlan(splits=40))

    def width(units):
        questions = dataclasses.replace(many, units=units)
        found = gain_over(held_out, questions, many.retrieval.scores, 400, 0)
        return found.high - found.low

    assert width(np.tile(np.arange(60), 10)) > 2.5 * width(np.arange(600))


def test_a_confidence_that_is_never_looked_at_costs_nothing():
    policy = confidence_policy(answered(["r", "r"], [1, 1], [0, 1], [1, 1]), FIT)
    closed, retrieval = np.array([2.0, 2.0]), np.array([5.0, 5.0])
    both = np.array([True, True])
    assert list(policy.expense(both, closed, retrieval, np.array([-0.5]))) == [7, 7]
    assert list(policy.expense(both, closed, retrieval, np.array([math.inf]))) == [5, 5]
    assert list(policy.expense(~both, closed, retrieval, np.array([-math.inf]))) == [2, 2]
