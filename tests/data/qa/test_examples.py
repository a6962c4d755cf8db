"""What stands where in each arm, and what gives way when a prompt is too long."""

from __future__ import annotations

import dataclasses

import pytest

from retro.config.qa import QaLayoutConfig, parse_arm
from retro.data.qa.examples import QuestionTooLongError, build_example, tokenize_answers
from retro.data.qa.prompt import Prompts
from retro.data.qa.prompt_fit import cut_text
from retro.data.qa.record import PreparedQuestion
from retro.data.qa.task import TaskDefinition
from tests.data.qa.questions import WordTokenizer, passage, question

TASK = TaskDefinition("toy")
LAYOUT = QaLayoutConfig(passages=3, passage_tokens=6, prompt_chunks=8, answer_tokens=8)
ASKED = question(7, passages=[passage(1), passage(2), passage(3), passage(4)])


def build(arm: str, prepared: PreparedQuestion = ASKED, layout: QaLayoutConfig = LAYOUT, task=TASK, **options):
    tokenizer = WordTokenizer()
    example = build_example(prepared, parse_arm(arm), layout, task, tokenizer, chunk_length=8, **options)
    return example, tokenizer.decode(example.prompt), [tokenizer.decode(ids) for ids in example.neighbors]


def test_templates_and_places_are_those_of_the_paper():
    """Wang et al. 2023, section 7.1: B alone; A; B with all in the encoder; A with the others in the encoder."""
    ask = "question: what is 7?\nanswer:"
    first = "title: T1, source: passage 1 says a1.\n"
    encoded = ["title: T1, source:", "title: T2, source:", "title: T3, source:"]  # six tokens of each
    example, prompt, neighbors = build("closed_book")
    assert (prompt, neighbors, example.passages, example.in_prompt) == (ask, [], (), 0)
    example, prompt, neighbors = build("rag")
    assert (prompt, neighbors, example.passages, example.in_prompt) == (first + ask, [], (0,), 1)
    example, prompt, neighbors = build("retro")
    assert (prompt, neighbors, example.passages, example.in_prompt) == (ask, encoded, (0, 1, 2), 0)
    example, prompt, neighbors = build("retro++")
    assert (prompt, neighbors, example.passages, example.in_prompt) == (first + ask, encoded[1:], (0, 1, 2), 1)
    assert not example.truncated


def test_prompt_begins_and_answer_ends():
    example, _, _ = build("closed_book")
    tokenizer = WordTokenizer()
    assert example.prompt[0] == tokenizer.bos_id and tokenizer.eos_id not in example.prompt
    assert example.answer[-1] == tokenizer.eos_id and len(example.answer) == 2  # " a7"


def test_gate_0_has_the_same_example_and_given_evidence_replaces_the_own():
    assert build("retro/gate_0") == build("retro")
    _, prompt, _ = build("rag/oracle", evidence=[passage(9)])
    assert "passage 9" in prompt and "passage 1 " not in prompt
    assert build("rag", evidence=[])[1] == build("closed_book")[1]


def test_the_question_is_whole_and_the_passage_cut():
    long = "One two three four. Five six seven eight. Nine ten eleven twelve thirteen fourteen."
    prepared = question(7, passages=[passage(1, long)])
    whole, prompt, _ = build("rag", prepared)
    assert not whole.truncated and long in prompt
    for chunks, kept in ((4, "One two three four. Five six seven eight."), (3, "One two three four.")):
        example, prompt, _ = build("rag", prepared, dataclasses.replace(LAYOUT, prompt_chunks=chunks))
        assert example.truncated and example.in_prompt == 1
        assert len(example.prompt) <= 8 * chunks
        assert prompt == f"title: T1, source: {kept}\nquestion: what is 7?\nanswer:"
    # No word of it fits beside the question.
    example, prompt, _ = build("rag", prepared, dataclasses.replace(LAYOUT, prompt_chunks=2))
    assert prompt == "question: what is 7?\nanswer:"
    assert (example.truncated, example.in_prompt, example.passages) == (True, 0, ())
    # With more passages the encoder still gets those after the first.
    two = question(7, passages=[passage(1, long), passage(2)])
    example, _, neighbors = build("retro++", two, dataclasses.replace(LAYOUT, prompt_chunks=2))
    assert (example.in_prompt, example.passages, len(neighbors)) == (0, (1,), 1)


def test_a_question_that_does_not_fit_is_named():
    with pytest.raises(QuestionTooLongError, match=r"question q7: expected at most 8 tokens .* found 10; raise layout"):
        build("rag", layout=dataclasses.replace(LAYOUT, prompt_chunks=1))
    shots = [question(i) for i in range(8)]
    with pytest.raises(QuestionTooLongError, match=r"with 8 demonstrations; raise .* or lower shots"):
        build("closed_book", shots=shots)


def test_demonstrations_come_before_with_their_own_passages():
    shots = [question(1), question(2, oracle=[passage(22)])]
    task = dataclasses.replace(TASK, instruction="Answer.")
    _, prompt, _ = build("closed_book", task=task, shots=shots)
    assert prompt == (
        "Answer.\n\nquestion: what is 1?\nanswer: a1\n\nquestion: what is 2?\nanswer: a2\n\n"
        "question: what is 7?\nanswer:"
    )
    large = dataclasses.replace(LAYOUT, prompt_chunks=20)
    example, prompt, _ = build("rag", layout=large, shots=shots)
    assert prompt.startswith("title: T1, source: passage 1 says a1.\nquestion: what is 1?\nanswer: a1\n\ntitle: T2, ")
    assert not example.truncated
    assert "passage 22" in build("rag/oracle", layout=large, shots=shots)[1]
    assert "source" not in build("retro", layout=large, shots=shots)[1]
    # All passages give way to the same extent, the asked question's first.
    words = " ".join(f"w{i}" for i in range(40))
    shots = [question(i, passages=[passage(i, words)]) for i in range(2)]
    example, prompt, _ = build("rag", question(7, passages=[passage(7, words)]), large, shots=shots)
    kept = [len(part.split(", source: ")[1].split("\n")[0].split()) for part in prompt.split("\n\n")]
    assert example.truncated and 100 < len(example.prompt) <= 160
    assert max(kept) - min(kept) <= 2


def test_templates_of_the_task_are_used():
    prompts = Prompts("Q: {question} A:", "[{title}] {text}\n", "{text}\n", " {answer}.", "\n")
    task = dataclasses.replace(TASK, prompts=prompts)
    _, prompt, _ = build("rag", question(7, passages=[passage(1, "x\ny")]), task=task)
    assert prompt == "[T1] x y\nQ: what is 7? A:"


def test_an_expression_is_trained_on_as_it_matches():
    task = dataclasses.replace(TASK, answers_are="regex", metrics=("regex",), primary="regex")
    asked = question(7, oracle=[passage(7, "It was built in 1889, they say.")])
    asked = dataclasses.replace(asked, question=dataclasses.replace(asked.question, answers=(r"18\d\d",)))
    tokenizer = WordTokenizer()
    (answer,) = tokenize_answers([asked], task, tokenizer)
    assert tokenizer.decode(answer) == " 1889"
    nothing = dataclasses.replace(asked, oracle=())
    assert tokenize_answers([nothing], task, tokenizer) == [()]
    # A demonstration without an answer shows nothing.
    assert "1889" in build("closed_book", question(3), task=task, shots=[asked])[1]
    assert build("closed_book", question(3), task=task, shots=[nothing])[1] == build("closed_book", question(3))[1]


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("A b c. D e f.", 99, "A b c. D e f."),
        ("A b c. D e f.", 8, "A b c."),
        ('He said "no." Then he left again', 22, 'He said "no."'),
        ("A. b c d e f g h i j", 15, "A. b c d e f g"),  # the sentence is less than half of what fits
        ("abcdefgh", 3, "abc"),
        ("abcdefgh ij", 3, "abc"),
        ("abc", 0, ""),
    ],
)
def test_cutting(text: str, limit: int, expected: str):
    assert cut_text(text, lambda part: len(part) <= limit) == expected
