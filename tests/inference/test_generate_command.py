"""`retro generate`: many prompts into a file, settings that nothing would read, texts and files that cannot be."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from retro.cli.main import main
from retro.inference.opening import open_language_model
from retro.inference.precision import inference
from retro.inference.provenance import describe_result
from retro.inference.requests import EngineRequest
from retro.retrieval.policy import Every
from tests.eval.workspace import CHUNK

# The second has a sign that is a line end to str.splitlines, and not to JSON.
PROMPTS = ["the sum of", "rows\N{LINE SEPARATOR}and columns", "", "Return the mean of all rows in the data. " * 3]


def command(run, *settings):
    return main(["generate", f"checkpoint={run}", "max_new_tokens=6", "temperature=0", *settings])


def prompts_file(tmp_path, prompts=PROMPTS):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n\n" for p in prompts), encoding="utf-8")
    return path


@pytest.mark.parametrize("batch", [1, 3])
def test_many_prompts_are_continued_as_each_alone(workspace, tmp_path, capsys, batch):
    output = tmp_path / "continued.jsonl"
    given = prompts_file(tmp_path)
    settings = [f"prompts_file={given}", f"output={output}", f"batch={batch}", "retrieve=every:4"]
    assert command(workspace.retro, *settings) == 0
    assert capsys.readouterr().out == f"{output}: 4 continuations\n"
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]
    lm, _ = open_language_model(workspace.retro)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        *_, last = lm.stream(EngineRequest(lm.prompt_tokens(prompt), 6, policy=Every(4)))
        # Sums of other shapes round otherwise, distances of searches by several queries too.
        expected = {"prompt": prompt, **describe_result(lm, last.finished)}
        for found, wanted in zip(row.pop("evidence"), expected.pop("evidence"), strict=True):
            for neighbor, other in zip(found.pop("neighbors"), wanted.pop("neighbors"), strict=True):
                assert neighbor.pop("distance") == pytest.approx(other.pop("distance"), rel=1e-5)
                assert neighbor == other
            assert found == wanted
        assert row == expected
    assert command(workspace.retro, *settings) == 2 and "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["prompt=x", "seed=9223372036854775808"], "seed: expected at most 9223372036854775807"),
        (["prompt=x", "device=meta"], "device: 'meta' cannot be used"),
        (["prompt=" + os.fsdecode(b"a\xff")], "prompt: expected UTF-8 text"),
        (["prompt=x", "retrieve=off", "num_neighbors=3"], "num_neighbors: nothing is retrieved"),
        (["prompt=x", f"retrieve=every:{CHUNK + 1}"], f"expected every:1 to every:{CHUNK}"),
        (["prompts_file={prompts}", "output={folder}/nowhere/x.jsonl"], "output: expected a file in a folder"),
        (["prompts_file={prompts}", "output={prompts}/x.jsonl"], "output: expected a file in a folder"),
        (["prompts_file={prompts}"], "output: the file for the continuations"),
        (["prompts_file={halves}", "output={folder}/x.jsonl"], "halves.jsonl:1: expected UTF-8 text"),
        (["prompts_file={lists}", "output={folder}/x.jsonl"], 'lists.jsonl:2: expected {"prompt": "text"}'),
        (["prompts_file={prompts}", "output={folder}/x.jsonl", "seed=9223372036854775806"], "seed: expected at most"),
    ],
)
def test_mistakes_are_one_line(workspace, tmp_path, capsys, settings, message):
    (tmp_path / "halves.jsonl").write_text('{"prompt": "a \\ud800"}\n')
    (tmp_path / "lists.jsonl").write_text('{"prompt": "a"}\n["prompt"]\n')
    places = {"folder": tmp_path, "prompts": prompts_file(tmp_path)}
    places |= {name: tmp_path / f"{name}.jsonl" for name in ("halves", "lists")}
    filled = [s if s.startswith("prompt=") else s.format(**places) for s in settings]
    assert command(workspace.retro, *filled) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ([], "max_new_tokens=3"),
        ([], "temperature=1"),
        (["temperature=1"], "seed=1"),
        (["temperature=1"], "top_k=2"),
        (["temperature=1"], "top_p=0.1"),
        ([], "repetition_penalty=5"),
        ([], "stop=[{first}]"),
        ([], "retrieve=off"),
        ([], "retrieve=every:2"),
        ([], "retrieve=adaptive:0.9999"),
        ([], "num_neighbors=1"),
        ([], "prompt=sort"),
    ],
)
def test_every_setting_changes_what_is_printed(workspace, capsys, settings, change):
    def printed(*more):
        assert command(workspace.retro, "prompt=the mean of", "max_new_tokens=24", *settings, *more) == 0
        return capsys.readouterr().out

    usual = printed()
    assert printed() == usual
    # A sign from the middle of the continuation, which ends before it.
    continuation = usual.split("\n\n[")[0][len("the mean of") :]
    assert printed(change.format(first=json.dumps(continuation[10:12]))) != usual


def test_a_stop_text_ends_the_continuation_and_is_not_printed(workspace, capsys):
    settings = ["prompt=the mean of", "max_new_tokens=24"]
    assert command(workspace.retro, *settings) == 0
    whole = capsys.readouterr().out.split("\n\n[24 new tokens, length limit]")[0]
    stop = whole[20:23]
    assert command(workspace.retro, *settings, f"stop={json.dumps([stop])}") == 0
    text, _, rest = capsys.readouterr().out.partition("\n\n[")
    assert text == whole[: whole.index(stop, len("the mean of"))] and "new tokens, stop text]" in rest


def test_precision_reaches_the_model(workspace, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        "retro.inference.engine.inference",
        lambda device, precision: seen.append(precision) or inference(device, precision),
    )
    for precision in ("fp32", "bf16"):
        assert command(workspace.retro, "prompt=x", f"precision={precision}") == 0
        assert set(seen) == {precision}
        seen.clear()


def test_a_gpt_is_given_no_number_of_neighbors(workspace, capsys):
    assert command(workspace.gpt, "prompt=x", "num_neighbors=2") == 2
    assert "num_neighbors: nothing is retrieved" in capsys.readouterr().err
    assert command(workspace.gpt, "prompt=x") == 0 and "[no retrieval]" in capsys.readouterr().out


def test_a_terminal_without_the_characters_of_a_text_is_no_obstacle(workspace):
    arguments = [sys.executable, "-m", "retro.cli.main", "generate", f"checkpoint={workspace.retro}"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*arguments, "prompt=é", "max_new_tokens=2"], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith(b"?"), done.stderr


def test_a_killed_command_goes_on(workspace, tmp_path, capsys, monkeypatch):
    """Stopped in the middle, with a line cut off: what is finished is not made again, and the result is the same."""
    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    given = prompts_file(tmp_path)
    settings = [f"prompts_file={given}", "batch=1"]
    assert command(workspace.retro, *settings, f"output={whole}") == 0
    partial = tmp_path / "out.jsonl.partial"
    made = []

    def counted(lm, result):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(result)
        return describe_result(lm, result)

    monkeypatch.setattr("retro.inference.provenance.describe_result", counted)
    with contextlib.suppress(KeyboardInterrupt):
        command(workspace.retro, *settings, f"output={output}")
    assert len(made) == 2 and not output.exists() and len(partial.read_bytes().splitlines()) == 3
    with open(partial, "ab") as file:
        file.write(b'[3, {"prompt": "Ret')
    made.clear()
    monkeypatch.undo()
    capsys.readouterr()
    assert command(workspace.retro, *settings, f"output={output}") == 0
    assert "2 of 4 continuations are there" in capsys.readouterr().err
    assert output.read_bytes() == whole.read_bytes() and not partial.exists()


def test_a_partial_file_of_something_else_is_left_alone(workspace, tmp_path, capsys):
    output, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    partial.write_text('{"generate": "other"}\n[0, {}]\n')
    before = partial.read_bytes()
    assert command(workspace.retro, f"prompts_file={prompts_file(tmp_path)}", f"output={output}") == 2
    assert "continuations of other prompts or settings" in capsys.readouterr().err
    assert partial.read_bytes() == before and not output.exists()


def test_a_policy_of_retrieval_is_refused_by_a_gpt(workspace, capsys):
    assert command(workspace.gpt, "prompt=x", "retrieve=every:4") == 2
    assert "this model is a GPT, it retrieves nothing" in capsys.readouterr().err
