"""has_answer agrees with the published test of Dense Passage Retrieval and with cases worked out by hand."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.data.qa.answers import AnswerFinder, answer_tokens, has_answer


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("Porto lies on the Douro.", ["douro"], True),
        ("Porto lies on the Douro.", ["Minho", "The  DOURO"], True),
        ("Porto lies on the Douro.", ["Dour"], False),  # whole tokens only
        ("Porto lies on the Douro.", ["the Douro ."], True),
        ("Porto lies on the Douro.", ["lies the"], False),
        ("a state-of-the-art thing", ["state of the art"], False),  # hyphens are tokens
        ("a state-of-the-art thing", ["of-the"], True),
        ("It cost $3.50 then", ["$3.50"], True),
        ("It cost $3.50 then", ["3"], True),
        ("It cost $13.50 then", ["3"], False),
        ("Jose\u0301 sang", ["Jos\u00e9"], True),  # composed or not
        ("Jose sang", ["Jos\u00e9"], False),
        ("an answer", [""], False),
        ("an answer", ["   "], False),
        ("an answer", [], False),
        ("", ["x"], False),
        ("snake_case", ["case"], True),  # an underscore is no letter
    ],
)
def test_cases_worked_out_by_hand(text: str, answers: list[str], expected: bool) -> None:
    assert has_answer(text, answers) is expected


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("It was in 1912, in April", [r"19(11|12)"], True),
        ("It was in 1913", [r"19(11|12)", r"april"], False),
        ("In APRIL", [r"april"], True),
        ("two\nlines", [r"^lines$"], True),
        ("two lines", [r"^lines$"], False),
        ("Jose\u0301", ["Jos\u00e9$"], True),
    ],
)
def test_regular_expressions(text: str, answers: list[str], expected: bool) -> None:
    assert has_answer(text, answers, "regex") is expected


def test_a_broken_expression_is_named() -> None:
    with pytest.raises(ValueError, match=r"not a regular expression .*'\(a'"):
        AnswerFinder(["a", "(a"], "regex")


def test_the_first_text_that_holds_it() -> None:
    finder = AnswerFinder(["b c"])
    assert finder.first_in(["a b", "b. c", "a b c", "b c"]) == 2
    assert finder.first_in(["a b"]) is None


def published(text: str, answers: list[str]) -> bool:
    """has_answer of github.com/facebookresearch/DPR (dpr/data/qa_validation.py), match_type "string"."""
    regex = pytest.importorskip("regex", reason="the published tokenizer needs the package regex")
    pattern = regex.compile(
        r"([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])", flags=regex.IGNORECASE + regex.UNICODE + regex.MULTILINE
    )

    def words(value: str) -> list[str]:
        return [match.group().lower() for match in pattern.finditer(unicodedata.normalize("NFD", value))]

    tokens = words(text)
    for answer in answers:
        wanted = words(answer)
        for i in range(len(tokens) - len(wanted) + 1):
            if wanted and wanted == tokens[i : i + len(wanted)]:
                return True
    return False


_CHARACTERS = st.sampled_from("aAbB19 .,-_'\n\t\u00e9e\u0301\u00df\u0130\u0915\u093f\u4e2d\u00bd\u2167\u00a0\u200b\0")


@settings(max_examples=300, deadline=None)
@given(st.text(_CHARACTERS, max_size=30), st.lists(st.text(_CHARACTERS, max_size=4), max_size=3))
def test_agrees_with_the_published_test(text: str, answers: list[str]) -> None:
    assert has_answer(text, answers) is published(text, answers)


def test_tokens_agree_with_the_published_tokenizer_for_every_character() -> None:
    regex = pytest.importorskip("regex", reason="the published tokenizer needs the package regex")
    pattern = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
    # Characters that the standard library's Unicode version does not know count as unassigned there.
    characters = [chr(code) for code in range(0x3000) if unicodedata.category(chr(code)) != "Cn"]
    for first in range(0, len(characters), 64):
        text = "x".join(characters[first : first + 64])
        expected = [token.lower() for token in pattern.findall(unicodedata.normalize("NFD", text))]
        assert answer_tokens(text) == expected
