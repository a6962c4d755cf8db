"""The commands that the documentation shows exist: sub-command, options, files, and every key=value."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from retro.cli.main import COMMANDS, main
from retro.config.errors import ArtifactMissingError
from tests.system.workplace import CONFIGS, ROOT

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "docs/qa.md",
    ROOT / "docs/serving.md",
    ROOT / "docs/pretrained.md",
    ROOT / "docs/training.md",
    ROOT / "docs/launch.md",
    *sorted((ROOT / "examples").glob("**/README.md")),
]
#: Where each command hands over to its work; a command that gets there has read its command line and files.
WORK = (
    "data_prep.pipeline.run",
    "data_prep.inspection.status.status",
    "data_prep.inspection.explain.explain",
    "data_prep.inspection.verify.verify",
    "data_prep.cost_model.plan",
    "data_prep.show.show",
    "data_prep.tune_index.finished_index",
    "retro.artifacts.archive_import.import_release",
    "retro.artifacts.archive.export_release",
    "data_prep.update.swap.swap_database",
    "data_prep.update.inherit.open_release",  # add: what the base leaves to be said is read with the configuration
    "retro.train.run.train",
    "retro.eval.runner.evaluate",
    "retro.cli.generate_many.check_output",
    "retro.inference.opening.open_language_model",
    "retro.artifacts.release.open_release",
    "retro.analysis.runs.load_runs",
    "launch.__main__.run_plan",
    "launch.__main__.check_environment",
    "launch.prepare.write_folder",
    "retro.serving.server.serve",
    "retro.model.pretrained.open_pretrained",
    "retro.cli.checkpoint_verbs.average.check_new",
    "retro.cli.checkpoint_verbs.convert.check_new",
    "data_prep.qa_pipeline.QaPipeline",
    "retro.data.qa.listing.show_questions",
    "retro.cli.qa_verbs.adaptive._Evaluation",
    "retro.eval.genread.write_passages",
    "retro.eval.harness.command_line.run_harness",
)


class Reached(Exception):
    """The work would begin now."""


def fenced(text: str) -> Iterator[str]:
    """Lines of the fenced blocks that are shell, continuation lines joined, prompts and comments removed."""
    for block in re.findall(r"^```(?:bash|sh|shell|console|text)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ")


def inline(text: str) -> Iterator[str]:
    """Code spans outside of fences that are whole commands."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", outside):
        span = " ".join(line.strip().lstrip("#").strip() for line in span.splitlines())
        if span.startswith("retro ") and "configs/" in span and "..." not in span and "*" not in span:
            yield span


def commands(line: str) -> list[list[str]]:
    """The `retro` and `make` commands of a shell line, split at && ; and |, without variables in front."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words = list(lexer)
    except ValueError:
        return []
    found: list[list[str]] = [[]]
    for word in words:
        if word and set(word) <= set("|;&"):
            found.append([])
        else:
            found[-1].append(word)
    cleaned = []
    for command in found:
        while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
            command = command[1:]
        command = command[: command.index(">")] if ">" in command else command
        if command and command[0].rsplit("/", 1)[-1] in ("retro", "make"):
            cleaned.append([command[0].rsplit("/", 1)[-1], *command[1:]])
        elif command[:3] == ["python", "-m", "data_prep"]:
            cleaned.append(["retro", "prep", *command[3:]])
    return cleaned


def documented() -> list[tuple[str, tuple[str, ...]]]:
    """(where, command) of every command shown."""
    found = []
    for path in DOCUMENTS:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            for line in [*fenced(text), *inline(text)]:
                found += [(path.relative_to(ROOT).as_posix(), tuple(command)) for command in commands(line)]
    for path in sorted(CONFIGS.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        lines = [line.lstrip("# ") for line in text.splitlines() if re.match(r"#\s+(Example:\s+)?retro ", line)]
        lines = [line.removeprefix("Example:").strip() for line in lines]
        for line in [*lines, *inline(text)]:
            found += [(path.relative_to(ROOT).as_posix(), tuple(command)) for command in commands(line)]
    return list(dict.fromkeys(found))


DOCUMENTED = documented()


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check(command: list[str]) -> None:
    """Raise AssertionError unless the command would get as far as its work."""
    if command[0] == "make":
        words = [word for word in command[1:] if "=" not in word and not word.startswith("-")]
        assert words and set(words) <= make_targets(), f"make knows {sorted(make_targets())}"
        return
    arguments = command[1:]
    if not arguments or arguments == ["--help"] or arguments[1:] == ["--help"]:
        assert main(arguments) == 0
        return
    assert arguments[0] in COMMANDS
    if arguments[0] == "launch" and "--" in arguments:
        check(arguments[arguments.index("--") + 1 :])
    if "--dry-run" in arguments or "--plan" in arguments:  # these print, and do no work
        assert main(arguments) == 0
        return
    if arguments[:2] == ["qa", "tasks"]:
        assert main(arguments) == 0
        return
    if arguments[:2] == ["checkpoint", "inspect"]:  # the run that it looks at may be there or not
        assert main(arguments) in (0, ArtifactMissingError.exit_code)
        return
    with pytest.raises(Reached):
        code = main(arguments)
        raise AssertionError(f"ended with exit code {code} before its work")


@pytest.fixture
def no_work(monkeypatch):
    """Every command stops where its work would begin."""
    import importlib
    import pkgutil

    # A module that a command loads only now would keep what is put in place here, beyond this test.
    for package in ("retro", "data_prep", "launch"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)

    def reached(*arguments, **options):
        raise Reached

    for name in WORK:
        module, _, function = name.rpartition(".")
        monkeypatch.setattr(importlib.import_module(module), function, reached)
    monkeypatch.chdir(ROOT)


@pytest.mark.skipif(not DOCUMENTED, reason="nothing is documented yet")
@pytest.mark.parametrize(("where", "command"), DOCUMENTED, ids=[f"{w}: {' '.join(c)}"[:120] for w, c in DOCUMENTED])
def test_a_documented_command_is_one(where, command, no_work, monkeypatch):
    if command[:2] == ("retro", "demo"):
        from retro.cli import demo

        seen: list[list[str]] = []
        monkeypatch.setattr(demo, "retro_main", lambda argv: seen.append(["retro", *argv]) or 0)
        assert main(list(command[1:])) == 0 and len(seen) >= 8
        for step in seen:
            check(step)
        return
    check(list(command))


@pytest.mark.parametrize("scale", ["demo", "smoke"])
def test_every_step_of_the_demo_is_a_command(scale, no_work):
    from retro.cli.demo import commands as steps

    for _, arguments in steps(Path("configs"), scale, Path("runs")):
        check(["retro", *arguments])


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="no README yet")
def test_the_readme_shows_the_two_commands_and_the_main_ones():
    shown = {command[:2] for where, command in DOCUMENTED if where == "README.md"}
    assert {("make", "demo"), ("make", "test")} <= shown
    assert {("retro", name) for name in ("prep", "train", "eval", "report", "search", "generate")} <= shown


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("make demo  # about a minute", [["make", "demo"]]),
        ("OMP_NUM_THREADS=2 .venv/bin/retro train a.yaml && retro eval b.yaml", [
            ["retro", "train", "a.yaml"],
            ["retro", "eval", "b.yaml"],
        ]),
        ('retro search release=r "two words"', [["retro", "search", "release=r", "two words"]]),
        ("cd x; ls", []),
        ("it's not shell", []),
    ],
)  # fmt: skip
def test_the_reader_of_commands(line, expected):
    assert commands(line) == expected


@pytest.mark.parametrize(
    "command",
    [
        ["retro", "trainn", "configs/train/tiny_gpt.yaml"],
        ["retro", "train", "configs/train/nowhere.yaml"],
        ["retro", "train", "configs/train/tiny_gpt.yaml", "stepz=3"],
        ["retro", "prep", "run", "configs/prep/demo.yaml", "--fast"],
        ["retro", "generate", "checkpoint=x"],
        ["make", "coffee"],
        ["retro", "launch", "configs/launch/local.yaml", "--", "retro", "train", "nowhere.yaml"],
    ],
)
def test_a_wrong_command_is_noticed(command, no_work):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(command)


def test_links_of_the_documentation_lead_somewhere():
    broken = []
    for path in [*DOCUMENTS, *sorted((ROOT / "docs").rglob("*.md"))]:
        if not path.is_file():
            continue
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []
