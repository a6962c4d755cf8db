"""Demonstrations."""

from __future__ import annotations

import dataclasses

from retro.data.qa.shots import ShotPool, choose_shots
from tests.data.qa.questions import question

TRAIN = [question(i, relation=f"r{i % 5}") for i in range(50)]


def test_one_of_each_other_relation():
    """Mallen et al. 2023: 15 demonstrations, one of each of the other relations."""
    asked = question(100, relation="r2")
    shots = choose_shots(TRAIN, asked, 4)
    assert sorted(shot.question.relation for shot in shots) == ["r0", "r1", "r3", "r4"]
    # More than there are relations: a second one of each.
    many = choose_shots(TRAIN, asked, 8)
    assert sorted(shot.question.relation for shot in many) == sorted(["r0", "r1", "r3", "r4"] * 2)
    assert many[:4] == shots
    assert len({shot.question.id for shot in many}) == 8


def test_without_relation_all_are_drawn_from():
    asked = question(100)
    shots = choose_shots(TRAIN, asked, 12)
    assert len({shot.question.id for shot in shots}) == 12
    drawn = {choose_shots(TRAIN, question(n), 1)[0].question.relation for n in range(100, 140)}
    assert len(drawn) == 5


def test_a_question_does_not_demonstrate_itself():
    pool = ShotPool(TRAIN[:2])
    assert [shot.question.id for shot in pool.choose(question(0), 5)] == ["q1"]
    other_id = dataclasses.replace(TRAIN[0], question=dataclasses.replace(TRAIN[0].question, id="x", relation=""))
    assert [shot.question.id for shot in pool.choose(other_id, 5)] == ["q1"]
    assert pool.choose(question(0), 0) == ()
    text = f"  {TRAIN[0].question.question.upper()}"
    same = dataclasses.replace(other_id, question=dataclasses.replace(other_id.question, question=text))
    assert [shot.question.id for shot in pool.choose(same, 5)] == ["q1"]


def test_depends_on_seed_and_question_alone():
    pool, asked = ShotPool(TRAIN), question(100, relation="r2")
    assert pool.choose(asked, 4, 1) == ShotPool(TRAIN).choose(asked, 4, 1)
    assert pool.choose(asked, 4, 1) != pool.choose(asked, 4, 2)
    assert pool.choose(asked, 4) != pool.choose(question(101, relation="r2"), 4)
