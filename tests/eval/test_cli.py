"""The commands: what they print, their exit codes, one-line errors."""

from pathlib import Path

import pytest

from retro.cli import generate, search
from retro.cli.main import main
from retro.config.evaluation import EvalConfig
from retro.config.loader import load_config
from retro.eval.responses import RESULTS_NAME

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "eval"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_file_loads_and_says_what_it_is_for(path):
    required = ["checkpoint=runs/x", *(["qa.questions=data/x"] if "qa:" in path.read_text().split() else [])]
    assert load_config(EvalConfig, path, required).task in path.stem
    assert path.read_text().startswith("# ") and "Hardware" in path.read_text()


def test_eval_and_rescore(workspace, tmp_path, capsys):
    overrides = [f"checkpoint={workspace.retro}", f"output={tmp_path}", "max_sequences=4", "modes=[on, off]"]
    assert main(["eval", str(CONFIGS / "perplexity.yaml"), *overrides]) == 0
    printed = capsys.readouterr()
    assert "bits per byte" in printed.out and "retro, step 10" in printed.out and "shuffled" not in printed.out
    assert "4/4" in printed.err  # the progress bar
    folder = tmp_path / "eval" / "perplexity-test"
    before = (folder / RESULTS_NAME).read_bytes()
    (folder / RESULTS_NAME).unlink()
    assert main(["eval", "rescore", str(folder)]) == 0
    assert (folder / RESULTS_NAME).read_bytes() == before
    assert capsys.readouterr().out == printed.out


def test_rescoring_loads_no_torch(workspace, tmp_path):
    import subprocess
    import sys

    assert main(["eval", str(CONFIGS / "perplexity.yaml"), f"checkpoint={workspace.gpt}", f"output={tmp_path}"]) == 0
    folder = tmp_path / "eval" / "perplexity-test"
    code = (
        "import sys; from retro.cli.main import main; "
        f"assert main(['eval', 'rescore', {str(folder)!r}]) == 0; "
        "sys.exit('torch' in sys.modules or 'faiss' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["eval", "nowhere.yaml", "checkpoint=x"], 2, "nowhere.yaml"),
        (["eval", str(CONFIGS / "perplexity.yaml")], 2, "'checkpoint' is required"),
        (["eval", str(CONFIGS / "perplexity.yaml"), "checkpoint=nowhere"], 3, "no such run or checkpoint"),
        (["eval", str(CONFIGS / "perplexity.yaml"), "checkpoint=x", "max_questions=3"], 2, "max_questions"),
        (["eval", "rescore"], 2, "expected folders"),
        (["eval", "rescore", "nowhere"], 3, "state.json"),
        (["generate", "checkpoint=x"], 2, "prompt"),
        (["generate", "checkpoint=x", "prompt=y", "top_p=0"], 2, "top_p"),
        (["generate", "checkpoint=nowhere", "prompt=y"], 3, "no such run or checkpoint"),
        (["generate", "checkpoint=x", "prompt_file=nowhere"], 2, "prompt_file"),
        (["search", "some words"], 2, "'release' is required"),
        (["search", "release=nowhere", "some words"], 3, "release not found"),
        (["search", "release=nowhere"], 2, "expected a query"),
    ],
)
def test_mistakes_are_one_line_and_have_their_exit_code(arguments, exit_code, message, capsys):
    assert main(arguments) == exit_code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_checkpoint_outside_a_run_folder_needs_release_and_output(workspace, tmp_path, capsys):
    import shutil

    alone = tmp_path / "alone"
    shutil.copytree(workspace.retro / "checkpoints" / "step_000010", alone)
    command = ["eval", str(CONFIGS / "perplexity.yaml"), f"checkpoint={alone}", "max_sequences=2"]
    assert main(command) == 2 and "release=PATH" in capsys.readouterr().err
    command.append(f"release={workspace.release.path}")
    assert main(command) == 2 and "num_neighbors=NUMBER" in capsys.readouterr().err
    command += ["num_neighbors=2", "sequence_length=64"]
    assert main(command) == 2 and "output=FOLDER" in capsys.readouterr().err
    assert main([*command, f"output={tmp_path}"]) == 0


def test_prompts_and_queries_are_taken_literally():
    text = "def f(x): return {x}  # 'axis=0'"
    assert generate.parse_config(["checkpoint=x", f"prompt={text}"]).prompt == text
    assert generate.parse_config(["checkpoint=x", "prompt=12"]).prompt == "12"
    parsed = search.parse_config(["release=r", "sum over", "axis=0", "k=2", "null"])
    assert (parsed.query, parsed.k, parsed.release) == ("sum over axis=0 null", 2, "r")


def test_generate_prints_text_and_the_documents_of_every_chunk(workspace, tmp_path, capsys):
    command = ["generate", f"checkpoint={workspace.retro}", "max_new_tokens=20", "seed=1"]
    assert main([*command, "prompt=the sum of"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("the sum of") and "evidence retrieved with tokens 0-" in printed
    assert "(prompt)" in printed and "(continuation)" in printed and "pkg." in printed and "distance" in printed
    (tmp_path / "prompt.txt").write_text("the sum of")
    assert main([*command, f"prompt_file={tmp_path / 'prompt.txt'}"]) == 0
    assert capsys.readouterr().out == printed
    assert main([*command, "prompt=the sum of", "retrieve=off"]) == 0
    assert "[no retrieval]" in capsys.readouterr().out


def test_search_prints_documents_and_distances(workspace, capsys):
    assert main(["search", f"release={workspace.release.path}", "pkg.rows.sum_0", "k=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1. pkg.rows.sum_0 ") and sum("distance" in line for line in lines) == 3
