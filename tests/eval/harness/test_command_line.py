"""`retro harness`: what is passed on, and whole runs of the harness's own command line."""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys

import pytest

from retro.cli.main import main
from retro.eval.harness import tasks_folder
from retro.eval.harness.command_line import harness_arguments
from tests.eval.harness.test_tasks import own_tasks

TASKS = ["--include_path", str(tasks_folder())]


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], []),
        (["--help"], ["--help"]),
        (["run", "--help"], ["run", "--help"]),
        (["--tasks", "x"], ["run", "--tasks", "x", "--model", "retro", *TASKS]),
        (["run", "--tasks", "x", "--model", "hf"], ["run", "--tasks", "x", "--model", "hf", *TASKS]),
        (["run", "-M=hf"], ["run", "-M=hf", *TASKS]),
        (["--config", "x.yaml"], ["run", "--config", "x.yaml"]),
        (["--include_path=own"], ["run", "--include_path=own", "--model", "retro"]),
        (["ls", "tasks"], ["ls", "tasks", *TASKS]),
        (["validate", "--tasks", "x"], ["validate", "--tasks", "x", *TASKS]),
    ],
)
def test_what_is_passed_on(given, passed):
    assert harness_arguments(given) == passed


def test_without_the_package_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["harness", "--tasks", "x"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'retro-pretraining[harness]'" in error and error.count("\n") == 1


@pytest.fixture
def own_logging():
    """The harness's command line sets logging up, on a stream that ends with the test."""
    logger = logging.getLogger("lm_eval")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def test_help_says_what_model_arguments_there_are(capsys, own_logging):
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
    before = sys.argv
    assert main(["harness", "--help"]) == 0 and sys.argv is before
    shown = capsys.readouterr().out
    assert "add_bos_token" in shown and "lm-eval" in shown
    assert main(["harness", "run", "--help"]) == 0
    assert "--model_args" in capsys.readouterr().out


def harness(*arguments):
    command = [sys.executable, "-m", "retro.cli.main", "harness", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_line_evaluates_tasks_of_a_folder(runs, tmp_path):
    """The whole way, offline: results and samples are written as for any model of the harness."""
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
    own_tasks(tmp_path)
    model = f"checkpoint={runs.retro},max_gen_toks=30"
    files = ["--include_path", tmp_path, "--output_path", tmp_path / "out", "--log_samples"]
    done = harness("--tasks", "own_choice,own_writing", "--model_args", model, "--batch_size", "4", *files)
    assert done.returncode == 0, done.stderr
    assert "own_choice" in done.stdout and "|acc" in done.stdout
    (results,) = (tmp_path / "out").rglob("results_*.json")
    stored = json.loads(results.read_text())
    assert 0 <= stored["results"]["own_choice"]["acc,none"] <= 1 and stored["config"]["model"] == "retro"
    assert stored["config"]["model_identity"]["retriever"]["searcher"]
    samples = next((tmp_path / "out").rglob("samples_own_writing_*.jsonl")).read_text().splitlines()
    assert len(samples) == 24 and all(json.loads(line)["resps"] for line in samples)


@pytest.fixture
def only_included_tasks(monkeypatch):
    """Without the thousands of tasks that come with the harness, which take long to list."""
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", functools.partial(TaskManager, include_defaults=False))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--tasks", "local_nonsense", "--model_args", "checkpoint=x"], 2, "Tasks not found: local_nonsense"),
        (["--tasks", "local_copa", "--model_args", "checkpoint=nowhere"], 3, "nowhere: no such run or checkpoint"),
        (["--tasks", "local_copa", "--model_args", "chekpoint=x"], 2, "did you mean 'checkpoint'"),
        (["--tasks", "local_copa", "--model_args", "checkpoint=GPT"], 2, "give --metadata data=FOLDER"),
        (["--tasks", "local_copa", "--log_samples"], 2, "output_path"),
        (["--config", "nowhere.yaml"], 2, "Config file not found"),
    ],
)
def test_mistakes_are_one_line(runs, only_included_tasks, own_logging, capfd, arguments, code, message):
    assert main(["harness", *(argument.replace("GPT", str(runs.gpt)) for argument in arguments)]) == code
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert message in line


def test_other_errors_of_the_harness_keep_their_traceback(runs, only_included_tasks, own_logging, monkeypatch):
    def broken(*_, **__):
        raise ValueError("a mistake in the program")

    monkeypatch.setattr("retro.eval.harness.model.open_language_model", broken)
    with pytest.raises(ValueError, match="a mistake in the program"):
        main(["harness", "--tasks", "local_copa", "--model_args", f"checkpoint={runs.gpt}"])
