"""`retro qa genread`: passages that the model writes; killed, it goes on; read like any prepared questions."""

import json

import pytest

from retro.cli.main import main
from retro.config.errors import ConfigError
from retro.config.qa_genread import GenReadConfig
from retro.data.qa.prepared import open_prepared
from retro.eval import genread
from retro.eval.genread import DOCUMENTS, write_passages
from retro.eval.tasks.genread import GenReadTask
from retro.inference.language_model import Generated
from retro.inference.opening import open_language_model
from retro.inference.requests import EngineRequest
from tests.eval.qa_workspace import colour_questions

__all__ = ["colour_questions"]


class Writer:
    """Writes the question's own colour for every second request, nothing for every third."""

    def __init__(self, answers):
        self.answers, self.prompts, self.calls = answers, [], 0

    def generate_until(self, requests):
        self.calls += 1
        found = []
        for request in requests:
            number = len(self.prompts)
            self.prompts.append(request.prompt)
            text = f"It\n is {self.answers[number]}." if number % 2 == 0 else "Nobody knows."
            found.append(None if number % 3 == 2 else Generated((), (1, 2, 3), text, "length"))
        return found


def config(workspace, questions, output, **fields):
    settings = {"splits": ("test",), "tokens": 5, "batch": 4, "block_batches": 1, "device": "cpu", **fields}
    return GenReadConfig(str(workspace.gpt), str(questions), str(output), **settings)


def use(monkeypatch, model, workspace):
    """`model` writes in place of the opened one."""
    release = open_language_model(workspace.gpt, retrieval=False)[1]
    model.name = "writer"
    monkeypatch.setattr("retro.inference.opening.open_language_model", lambda *args, **kwargs: (model, release))


def test_the_written_document_is_the_only_passage(workspace, colour_questions, tmp_path, monkeypatch):
    source = open_prepared(colour_questions).read("test")
    writer = Writer([q.question.answers[0] for q in source])
    use(monkeypatch, writer, workspace)
    path, state = write_passages(config(workspace, colour_questions, tmp_path / "out", max_questions=9), progress=False)
    made = open_prepared(tmp_path / "out")
    assert path == tmp_path / "out" / "questions.json" and state.finished
    assert (made.splits, made.retrieval["method"], made.release) == (("test",), "genread", None)
    assert made.task == open_prepared(colour_questions).task
    questions = made.read("test")
    assert [q.question for q in questions] == [q.question for q in source[:9]]
    assert [q.oracle for q in questions] == [q.oracle for q in source[:9]]
    texts = [[p.text for p in q.passages] for q in questions]
    assert texts[0] == [f"It is {source[0].question.answers[0]}."] and texts[1] == ["Nobody knows."] and texts[2] == []
    # Numbers 0, 4 and 6 of 9 hold the answer.
    assert made.recall("test")["answer"] == {"n": 9, "1": 3 / 9}
    assert writer.prompts[0] == (
        f"Generate a background document to answer the given question.\n\n{source[0].question.question}\n\n"
    )


def test_what_is_written_is_not_written_again(workspace, colour_questions, tmp_path, monkeypatch):
    answers = ["red"] * 40
    whole, killed = Writer(answers), Writer(answers)
    use(monkeypatch, whole, workspace)
    write_passages(config(workspace, colour_questions, tmp_path / "whole"), progress=False)
    use(monkeypatch, killed, workspace)
    usual = GenReadTask.run_block

    def dies(self, number, model, carry):
        if number == 2 and killed.calls == 2:
            killed.calls += 1
            raise KeyboardInterrupt
        return usual(self, number, model, carry)

    monkeypatch.setattr(GenReadTask, "run_block", dies)
    with pytest.raises(KeyboardInterrupt):
        write_passages(config(workspace, colour_questions, tmp_path / "killed"), progress=False)
    assert len(killed.prompts) == 8 and not (tmp_path / "killed" / "questions.json").exists()
    write_passages(config(workspace, colour_questions, tmp_path / "killed"), progress=False)
    assert killed.prompts == whole.prompts
    for name in ("whole", "killed"):
        write_passages(config(workspace, colour_questions, tmp_path / name), progress=False)  # nothing is left to do
    assert len(killed.prompts) == len(whole.prompts) == 22
    same = [open_prepared(tmp_path / name) for name in ("whole", "killed")]
    assert same[0].fingerprint == same[1].fingerprint and same[0].read("test") == same[1].read("test")
    assert main(["qa", "genread", *arguments(workspace, colour_questions, tmp_path / "whole"), "tokens=6"]) == 3


def arguments(workspace, questions, output):
    return [f"checkpoint={workspace.gpt}", f"questions={questions}", f"output={output}", "splits=[test]", "batch=4",
            "block_batches=1", "tokens=5", "device=cpu"]  # fmt: skip


def test_the_command_writes_what_the_model_says(workspace, colour_questions, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["qa", "genread", *arguments(workspace, colour_questions, output), "max_questions=3"]) == 0
    printed = capsys.readouterr().out
    assert "recall of the answer" in printed and "ms per document" in printed
    assert f"questions: {output / 'questions.json'}" in printed
    lm, _ = open_language_model(workspace.gpt, retrieval=False)
    questions = open_prepared(output).read("test")
    assert len(questions) == 3
    for prepared, line in zip(
        questions, (output / DOCUMENTS / "responses.jsonl").read_text().splitlines(), strict=True
    ):
        prompt = genread.GenReadConfig("c", "q", "o").prompt.format(question=prepared.question.question)
        *_, last = lm.stream(EngineRequest(lm.prompt_tokens(prompt), 5))
        assert json.loads(line)["text"] == last.finished.text
        assert [p.text for p in prepared.passages] == (
            [" ".join(last.finished.text.split())] if last.finished.text.strip() else []
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("prompt=no place", "prompt: expected a template with {question} once"),
        ("prompt='{question[0]}'", "prompt: expected a template with {question} once"),
        ("prompt='{question:.1}'", "prompt: expected a template with {question} once"),
        ("prompt='{question:99999999999}'", "prompt: expected a template with {question} once"),
        ("prompt='{question} {question}'", "prompt: expected a template with {question} once"),
        ("prompt='{question} {title}'", "prompt: expected a template with {question} once"),
        ("prompt='{question'", "prompt: expected a template with {question} once"),
        ("tokens=0", "tokens: expected 1 or more"),
        ("splits=[test, test]", "splits: expected each once"),
        ("output=", "output"),
        ("splits=[dev]", "expected a split of these questions"),
    ],
)
def test_mistakes_are_one_line(workspace, colour_questions, tmp_path, capsys, change, message):
    assert main(["qa", "genread", *arguments(workspace, colour_questions, tmp_path / "out"), change]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_without_questions_is_refused(workspace, tmp_path):
    from tests.eval.qa_workspace import write_questions

    empty = write_questions(tmp_path / "empty", test=0)
    with pytest.raises(ConfigError, match="expected questions, found none in test"):
        write_passages(config(workspace, empty, tmp_path / "out"), progress=False)
