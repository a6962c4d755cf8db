"""Records of every form that published question sets have become the same questions; what is wrong is one line."""

from __future__ import annotations

import datetime
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.config.errors import ArtifactError
from retro.config.qa_source import Fields
from retro.data.qa.mapping import QuestionReader, lookup
from retro.data.qa.record import Passage, QaQuestion


def read(record, *, answers_are="text", split="test", file="", **fields):
    return QuestionReader(Fields(**fields), answers_are, split).read(record, "f.jsonl:1", file)


@pytest.mark.parametrize(
    ("record", "fields", "answers"),
    [
        ({"answers": ["a", "b"]}, {}, ("a", "b")),
        ({"answers": "a"}, {}, ("a",)),
        ({"answers": " a "}, {}, ("a",)),
        ({"answers": ["a", "", None, "a", "b"]}, {}, ("a", "b")),
        ({"answers": [1988, 2.5]}, {}, ("1988", "2.5")),
        ({"answer": ["x"]}, {"answers": "answer"}, ("x",)),  # NQ-open
        ({"possible_answers": '["a", "b"]'}, {"answers": "possible_answers", "answers_text": "json"}, ("a", "b")),
        ({"answers": "['a', \"b's\"]"}, {"answers_text": "python"}, ("a", "b's")),  # DPR's tables
        ({"answers": "a| b |"}, {"answers_separator": "|"}, ("a", "b")),
        ({"answers": {"value": "v", "aliases": ["a", "v"]}}, {}, ("v", "a")),  # TriviaQA on the hub
        ({"Answer": {"Value": "v", "Aliases": ["a"]}}, {"answers": "Answer"}, ("v", "a")),  # its own files
        ({"answers": {"text": ["a", "a", "b"]}}, {"answers": "answers.text"}, ("a", "b")),  # SQuAD
        ({"answers.text": ["dotted"], "answers": {"text": ["x"]}}, {"answers": "answers.text"}, ("dotted",)),
        ({"answers": ["[1]"]}, {"answers_text": "json"}, ("[1]",)),  # a list is one already
        ({"answers": "[1]"}, {}, ("[1]",)),  # not asked to be read as one
        ({"answers": ["b", "a"], "target": "a"}, {"target": "target"}, ("a", "b")),  # FiD's TriviaQA
        ({"answers": ["b"], "target": None}, {"target": "target"}, ("b",)),
    ],
)
def test_answers_of_every_form(record, fields, answers):
    assert read({"question": "q", **record}, **fields).question.answers == answers


def test_all_fields():
    record = {
        "question": " who? ",
        "answers": ["a"],
        "id": 7,
        "evidence": ["d1", "d2", "d1"],
        "kind": "popqa",
        "relation": "author",
        "subject": "Emma",
        "s_pop": "12.5",
        "o_pop": -2,
    }
    names = {"id": "id", "evidence": "evidence", "group": "kind", "relation": "relation", "subject": "subject"}
    found = read(record, popularity="s_pop", object_popularity="o_pop", **names).question
    expected = QaQuestion("7", "who?", ("a",), ("d1", "d2"), "popqa", "author", "Emma", 12.5, None)
    assert found == expected  # PopQA writes numbers below 0 where it knows none


def test_one_evidence_and_none():
    assert read({"question": "q", "answers": "a", "evidence": "d"}, evidence="evidence").question.evidence == ("d",)
    assert read({"question": "q", "answers": "a", "evidence": None}, evidence="evidence").question.evidence == ()


@pytest.mark.parametrize("unknown", [None, "", math.nan])
def test_what_is_not_known(unknown):
    """As JSON, tables and pandas write it."""
    record = {"question": "q", "answers": "a", "p": unknown, "g": unknown}
    found = read(record, popularity="p", group="g").question
    assert (found.popularity, found.group) == (None, "")


def test_the_file_is_a_field():
    assert read({"question": "q", "answers": "a"}, file="P17.train.json", relation="@file").question.relation == "P17"


def test_passages_of_dpr_and_fid():
    given = [
        {"id": "12", "title": "T", "text": " x ", "score": "71.5", "has_answer": True},
        {"title": None, "text": "y"},
        {"text": "z", "score": None},
    ]
    record = {"question": "q", "answers": ["a"], "ctxs": given}
    found = _read_passages(record, 2)
    assert found[0] == Passage("T", "x", "12", -1, 71.5)
    assert found[1].title == "" and found[1].document == "" and math.isnan(found[1].score)
    assert len(found) == 2 and len(_read_passages(record, None)) == 3


@pytest.mark.parametrize(("value", "texts"), [("one", ["one"]), (["x", "", {"text": "y"}], ["x", "y"]), ([], [])])
def test_passages_that_are_texts(value, texts):
    found = _read_passages({"question": "q", "answers": ["a"], "ctxs": value}, None)
    assert [passage.text for passage in found] == texts


def test_passages_by_columns():
    """As the hub's library gives a list of records."""
    columns = {"title": ["T", "U"], "text": ["x", "y"], "score": [2.0, 1.0]}
    found = _read_passages({"question": "q", "answers": ["a"], "ctxs": columns}, None)
    assert [(p.title, p.text, p.score) for p in found] == [("T", "x", 2.0), ("U", "y", 1.0)]


def _read_passages(record, most):
    return QuestionReader(Fields(passages="ctxs"), "text", "test", most).read(record, "f:1").passages


def test_made_ids_are_of_the_question_and_not_of_its_place():
    fields = Fields()
    one, two = QuestionReader(fields, "text", "test"), QuestionReader(fields, "text", "test")
    records = [{"question": text, "answers": ["a"]} for text in ("x", "y", "x")]
    first = [one.read(r, "f:1").question.id for r in records]
    second = [two.read(r, "f:1").question.id for r in reversed(records)]
    assert len(set(first)) == 3 and sorted(first) == sorted(second)
    assert re.fullmatch(r"test-[0-9a-f]{12}", first[0]) and first[2] == f"{first[0]}-2"
    assert read(records[0], split="dev").question.id.startswith("dev-")


@pytest.mark.parametrize(
    ("record", "fields", "message"),
    [
        ({"answers": ["a"]}, {}, "question: no such field (fields.question) in answers; name the one"),
        ({"question": "q", "answer": "a"}, {}, "answers: no such field (fields.answers) in question, answer"),
        ({}, {}, "an empty record"),
        ({"question": " ", "answers": ["a"]}, {}, "question: expected a text, found an empty one"),
        ({"question": ["q"], "answers": ["a"]}, {}, "question: expected a text, found ['q']"),
        ({"question": "q", "answers": []}, {}, "answers: expected at least one answer, found none"),
        ({"question": "q", "answers": ["", " "]}, {}, "expected at least one answer"),
        ({"question": "q", "answers": None}, {}, "expected at least one answer"),
        ({"question": "q", "answers": [True]}, {}, "answers: expected a text, found True"),
        ({"question": "q", "answers": [["a"]]}, {}, "expected a text, found ['a']"),
        ({"question": "q", "answers": {"text": "a"}}, {}, "expected a text, a list or {value, aliases}"),
        ({"question": "q", "answers": "a"}, {"answers_text": "json"}, "expected a json list of texts"),
        ({"question": "q", "answers": '"a"'}, {"answers_text": "json"}, "expected a json list of texts"),
        ({"question": "q", "answers": "__import__('os')"}, {"answers_text": "python"}, "expected a python list"),
        ({"question": "q", "answers": [datetime.datetime(2018, 5, 18)]}, {}, "took texts for times"),
        ({"question": "q", "answers": ["\ud800"]}, {}, "half a character"),
        ({"question": "q", "answers": "a", "p": "many"}, {"popularity": "p"}, "p: expected a number, found 'many'"),
        ({"question": "q", "answers": "a", "p": math.inf}, {"popularity": "p"}, "expected a number, found inf"),
        ({"question": "q", "answers": "a", "p": True}, {"popularity": "p"}, "expected a number, found True"),
        ({"question": "q", "answers": "a", "e": [{}]}, {"evidence": "e"}, "e: expected a text, found {}"),
        ({"question": "q", "answers": "a", "c": 3}, {"passages": "c"}, "c: expected a list of passages"),
        ({"question": "q", "answers": "a", "c": ["\ud800"]}, {"passages": "c"}, "c: expected text, found half"),
        ({"question": "q", "answers": "a", "c": [{"title": "t"}]}, {"passages": "c"}, "passage 0: expected a record"),
        ({"question": "q", "answers": "a", "c": {"text": ["x"], "title": []}}, {"passages": "c"}, "several lengths"),
        ({"question": "q", "answers": "a", "c": [{"text": "t", "score": "x"}]}, {"passages": "c"}, "score: expected"),
        ({"question": "q", "answers": "a", "p": 10**400}, {"popularity": "p"}, "p: expected a number, found 1000"),
        ({"question": "q", "answers": [10**400]}, {}, "answers: expected a text, found 1000"),
        ({"question": "q", "answers": "a", "c": [{"text": "t", "score": 10**400}]}, {"passages": "c"}, "score: expect"),
        ({"question": "q", "answers": ["a{99999999999999999999}"]}, {"answers_are": "regex"}, "found 'a{9999"),
        ({"question": "q", "answers": ["(" * 9999 + ")" * 9999]}, {"answers_are": "regex"}, "expected regular exp"),
    ],
)
def test_what_is_wrong_is_one_line(record, fields, message):
    with pytest.raises(ArtifactError) as caught:
        read(record, **fields)
    text = str(caught.value)
    assert message in text and text.startswith("f.jsonl:1: ") and "\n" not in text


def test_broken_expressions_are_named_where_answers_are_expressions():
    record = {"question": "q", "answers": ["a(", "b"]}
    assert read(record).question.answers == ("a(", "b")
    with pytest.raises(ArtifactError, match=r"expected regular expressions, found 'a\(' \(missing \)"):
        read(record, answers_are="regex")


def test_ids_come_once():
    reader = QuestionReader(Fields(id="id"), "text", "test")
    reader.read({"id": "x", "question": "q", "answers": "a"}, "f:1")
    with pytest.raises(ArtifactError, match=r"f:2: expected ids that come once, found 'x' again \(first in f:1\)"):
        reader.read({"id": "x", "question": "r", "answers": "a"}, "f:2")


def test_a_field_that_is_nowhere_is_a_mistake_one_that_is_somewhere_is_not():
    fields = Fields(popularity="s_pop", group="kind?")
    reader = QuestionReader(fields, "text", "test")
    reader.read({"question": "q", "answers": "a"}, "f:1")
    with pytest.raises(
        ArtifactError, match=r"field 's_pop' \(fields.popularity\) is in no record .* question, answers"
    ):
        reader.finish("f")
    found = reader.read({"question": "r", "answers": "a", "s_pop": 3, "kind": "x"}, "f:2").question
    reader.finish("f")
    assert (found.popularity, found.group) == (3.0, "x")


def test_an_empty_split_is_a_mistake():
    with pytest.raises(ArtifactError, match="f: split test: expected questions, found none"):
        QuestionReader(Fields(), "text", "test").finish("f")


def test_lookup_leads_into_records():
    assert lookup({"a": {"b": {"c": 1}}}, "a.b.c") == 1
    assert lookup({"a": None}, "a") is None


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1))
def test_forms_agree(answers):
    """A list, the same list as JSON text and as Python text are the same answers."""
    plain = read({"question": "q", "answers": answers}).question.answers
    assert read({"question": "q", "answers": json.dumps(answers)}, answers_text="json").question.answers == plain
    assert read({"question": "q", "answers": repr(answers)}, answers_text="python").question.answers == plain
