"""Corrupted, truncated, foreign, mismatched, missing and empty input of every command: one line, exit code 2 or 3.

Every case damages a copy of a good workplace, runs one command in this process, and checks the exit code, that stderr
ends in exactly one `error: ` line that names what is wrong, and that no file that was there is changed or gone.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from retro.artifacts.fingerprint import sha256_file
from retro.cli.main import main
from tests.eval.workspace import documentation
from tests.system.workplace import CONFIGS, copy, eval_command, prep_settings, train_command, write_config, write_corpus

USAGE, ARTIFACT = 2, 3


class Files:
    """A copy of the workplace, and the second (foreign) preparation with another tokenizer."""

    def __init__(self, root: Path, foreign: Path) -> None:
        self.root, self.foreign = root, foreign
        self.corpus, self.prep, self.runs = root / "corpus", root / "prep", root / "runs"
        self.gpt, self.retro = self.runs / "gpt", self.runs / "retro"
        self.release = self.prep / "release.json"
        self.config = root / "prep.yaml"

    def stage(self, pattern: str, split: str | None = None) -> Path:
        """Folder of a stage; `split`: the one that the release names for it."""
        if split is not None:
            release = json.loads(self.release.read_text())
            return self.prep / release["splits"][split][pattern]["path"]
        return next(self.prep.glob(f"{pattern}-*"))

    def database(self, name: str) -> Path:
        return self.prep / json.loads(self.release.read_text())["database"][name]["path"]

    def checkpoint(self, run: Path) -> Path:
        return run / "checkpoints" / "step_000030"

    # Commands over the copy.
    def prep_command(self, verb: str, *overrides: str) -> list[str]:
        return ["prep", verb, str(self.config), *overrides]

    def train(self, *overrides: str, name: str = "new", kind: str = "retro") -> list[str]:
        return [*train_command(kind, self.release, self.runs, name, steps=5), *overrides]

    def resume(self, kind: str = "retro", *overrides: str, steps: int = 30) -> list[str]:
        return [*train_command(kind, self.release, self.runs, kind, steps), *overrides]

    def perplexity(self, *overrides: str, run: Path | None = None) -> list[str]:
        return eval_command("perplexity", run or self.retro, "name=new", *overrides)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of another tokenizer, whole in itself."""
    root = tmp_path_factory.mktemp("foreign")
    settings = prep_settings(write_corpus(root / "corpus", 60), root / "prep")
    settings.update(tokenizer={"train": {"vocab_size": 380}})
    assert main(["prep", "run", str(write_config(root / "prep.yaml", settings))]) == 0
    return root / "prep" / "release.json"


@pytest.fixture
def files(place, foreign, tmp_path) -> Files:
    root = copy(place.root, tmp_path / "copy")
    found = Files(root, foreign)
    write_config(found.config, prep_settings(found.corpus, found.prep))
    return found


def snapshot(root: Path) -> dict[str, str]:
    """Checksum of every file that a command must leave alone; only a run's own log may grow."""
    paths = [p for p in root.rglob("*") if p.is_file() and not p.is_symlink()]
    return {str(p): sha256_file(p) for p in paths if p.name not in ("log.txt", ".lock", ".corpus-hashes.jsonl")}


def expect_refusal(files: Files, command: list[str], code: int, message: str, capsys) -> str:
    """Run the command and check everything that a refusal promises; returns the line."""
    before = snapshot(files.root)
    capsys.readouterr()
    try:
        found = main(command)
    except BaseException as error:
        raise AssertionError(f"traceback instead of one line: {type(error).__name__}: {error}") from error
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert found == code, f"exit code {found}, expected {code}: {captured.err[-400:]}"
    assert len(errors) == 1, captured.err
    assert captured.err.rstrip().endswith(errors[0]), captured.err  # nothing after it: it was one line
    assert "Traceback" not in captured.err + captured.out
    assert message in errors[0], errors[0]
    after = snapshot(files.root)
    assert {name: digest for name, digest in after.items() if name in before} == before
    return errors[0]


# --- ways to damage things -------------------------------------------------------------------------------------


def truncate(path: Path, keep: float = 0.5) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


def flip(path: Path) -> None:
    """Other bytes, the same size."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 0xFF
    path.write_bytes(bytes(data))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


class Hostile:
    """Unpickling this makes the folder `executed` in the working directory."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def record_again(folder: Path, name: str) -> None:
    """Make manifest and shard record agree with the changed file, as an attacker or a careless copy would."""
    for path in [folder / "manifest.json", *(folder / "shards").glob("*.json")]:
        data = json.loads(path.read_text())
        for entry in [f for s in data.get("shards", []) for f in s["files"]] + data.get("files", []):
            if entry["name"] == name:
                entry.update(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))
        path.write_text(json.dumps(data))


def make_hostile(folder: Path, name: str) -> None:
    """A pickle in the place of an array, recorded in the manifest as if it were the right file."""
    (folder / name).write_bytes(pickle.dumps(Hostile()))
    record_again(folder, name)


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@dataclass(frozen=True)
class Case:
    """damage(files) -> command."""

    name: str
    damage: Callable[[Files], list[str]]
    code: int
    message: str


def case(name: str, code: int, message: str):
    def register(function: Callable[[Files], list[str]]) -> Callable[[Files], list[str]]:
        CASES.append(Case(name, function, code, message))
        return function

    return register


CASES: list[Case] = []


def simple(name: str, code: int, message: str, command: Callable[[Files], list[str]]) -> None:
    CASES.append(Case(name, command, code, message))


# --- configurations of every command ---------------------------------------------------------------------------

WITH_CONFIG: dict[str, Callable[[Files, str], list[str]]] = {
    "prep-run": lambda f, path: ["prep", "run", path],
    "prep-status": lambda f, path: ["prep", "status", path],
    "prep-explain": lambda f, path: ["prep", "explain", path],
    "prep-verify": lambda f, path: ["prep", "verify", path],
    "prep-show": lambda f, path: ["prep", "show", path],
    "train": lambda f, path: ["train", path, f"release={f.release}", f"run_root={f.runs}", "name=new"],
    "eval": lambda f, path: ["eval", path, f"checkpoint={f.retro}"],
    "launch": lambda f, path: ["launch", path, "--dry-run", "--", "retro", "train", "x"],
}


def config_with(content: bytes | None):
    def write(files: Files) -> str:
        path = files.root / "bad.yaml"
        if content is not None:
            path.write_bytes(content)
        return str(path)

    return write


def folder_as_config(files: Files) -> str:
    return str(files.root)


BAD_CONFIGS: dict[str, tuple[Callable[[Files], str], str]] = {
    "missing": (config_with(None), "bad.yaml: configuration file not found"),
    "folder": (folder_as_config, "configuration file not found"),
    "unknown-key": (config_with(b"stepz_of_nothing: 3\n"), "unknown key 'stepz_of_nothing'"),
    "not-a-mapping": (config_with(b"- 1\n- 2\n"), "expected key: value pairs, found list"),
    "broken-yaml": (config_with(b"a: [1, 2\nb: }"), "not valid YAML"),
    "binary": (config_with(bytes(range(256))), "not valid YAML"),
    "python-object": (config_with(b"a: !!python/object/apply:os.mkdir ['executed']\n"), "not valid YAML"),
    "number-as-key": (config_with(b"1: 2\n"), "unknown key"),
}
for _command, _build in WITH_CONFIG.items():
    for _kind, (_make, _message) in BAD_CONFIGS.items():
        simple(f"{_command}-config-{_kind}", USAGE, _message, lambda f, b=_build, m=_make: b(f, m(f)))
    simple(f"{_command}-without-config", USAGE, "required", lambda f, n=_command: n.split("-"))

simple("unknown-command", USAGE, "did you mean 'train'", lambda f: ["trian"])
simple("unknown-option", USAGE, "unrecognized arguments: --fast", lambda f: ["train", "x.yaml", "--fast"])
simple("prep-unknown-verb", USAGE, "invalid choice", lambda f: ["prep", "runn", "x.yaml"])
simple("prep-verify-fraction", USAGE, "invalid float", lambda f: f.prep_command("verify", "--fraction", "half"))
simple(
    "prep-key-of-an-earlier-version",
    USAGE,
    "no longer read",
    lambda f: f.prep_command("run", "neighbors.sequence_chunks=8"),
)
simple("prep-wrong-type", USAGE, "chunk.chunk_length", lambda f: f.prep_command("run", "chunk.chunk_length=many"))
simple("prep-not-an-override", USAGE, "expected key=value", lambda f: f.prep_command("run", "quickly"))
simple("prep-other-reader", USAGE, "section jsonl", lambda f: f.prep_command("run", "ingest.reader=parquet"))
simple("prep-negative-workers", USAGE, "workers", lambda f: f.prep_command("run", "workers=-1"))
simple("train-wrong-type", USAGE, "steps", lambda f: f.train("steps=soon"))
simple("train-nested-typo", USAGE, "did you mean 'num_layers'", lambda f: f.train("model.num_layer=2"))
simple("train-name-with-slash", USAGE, "name: expected the name of a folder", lambda f: f.train("name=a/b"))
simple("train-heads", USAGE, "num_heads", lambda f: f.train("model.num_heads=5"))
simple("train-layer-not-there", USAGE, "cross_attention_layers", lambda f: f.train("model.cross_attention_layers=[9]"))
simple("train-sequence", USAGE, "sequence_length", lambda f: f.train("sequence_length=50"))
simple("train-vocabulary", USAGE, "model.vocab_size", lambda f: f.train("model.vocab_size=999"))
simple("train-model-file", USAGE, "nowhere.yaml", lambda f: f.train("model=nowhere.yaml"))
simple("train-question-set", USAGE, "question_set", lambda f: f.train("dataset=questions", "question_set=quiz"))
simple("train-question-layout", USAGE, "sequence_length", lambda f: f.train("dataset=questions"))
simple("eval-no-checkpoint", USAGE, "'checkpoint' is required", lambda f: ["eval", str(CONFIGS / "eval/docs_qa.yaml")])
simple("eval-mode", USAGE, "modes", lambda f: f.perplexity("modes=[on, sideways]"))
simple("eval-device", USAGE, "device", lambda f: f.perplexity("device=abacus"))
simple(
    "eval-no-questions",
    ARTIFACT,
    "nowhere",
    lambda f: eval_command("docs_qa", f.retro, "questions=nowhere", "name=new"),
)
simple("generate-no-prompt", USAGE, "prompt", lambda f: ["generate", f"checkpoint={f.retro}"])
simple(
    "generate-prompt-file", USAGE, "prompt_file", lambda f: ["generate", f"checkpoint={f.retro}", "prompt_file=nowhere"]
)
simple(
    "generate-binary-prompt-file",
    USAGE,
    "prompt_file",
    lambda f: ["generate", f"checkpoint={f.retro}", f"prompt_file={f.checkpoint(f.retro) / 'model.safetensors'}"],
)
simple(
    "generate-temperature",
    USAGE,
    "temperature",
    lambda f: ["generate", f"checkpoint={f.retro}", "prompt=x", "temperature=-1"],
)
simple("generate-device", USAGE, "device", lambda f: ["generate", f"checkpoint={f.retro}", "prompt=x", "device=abacus"])
simple("search-no-query", USAGE, "expected a query", lambda f: ["search", f"release={f.release}"])
simple("search-k", USAGE, "k: expected 1 or more", lambda f: ["search", f"release={f.release}", "x", "k=0"])
simple("report-draws", USAGE, "draws", lambda f: ["report", str(f.gpt), "--draws", "1", "--text-only"])
simple("report-onto-folder", USAGE, "name the file", lambda f: ["report", str(f.gpt), str(f.retro), "-o", str(f.runs)])
simple(
    "report-below-file",
    USAGE,
    "cannot be written",
    lambda f: ["report", str(f.gpt), "-o", str(f.config / "report.html"), "--draws", "100"],
)
simple("launch-nothing", USAGE, "expected a command", lambda f: ["launch", str(CONFIGS / "launch/local.yaml"), "--"])
simple(
    "launch-unknown-program",
    USAGE,
    "not found",
    lambda f: ["launch", str(CONFIGS / "launch/local.yaml"), "processes=1", "--", "no-such-program-here"],
)
simple(
    "launch-eval-twice",
    USAGE,
    "one process",
    lambda f: ["launch", str(CONFIGS / "launch/local.yaml"), "processes=2", "--", "retro", "eval", "x"],
)
simple("launch-processes", USAGE, "processes", lambda f: ["launch", str(CONFIGS / "launch/local.yaml"), "processes=0"])


# --- corpora ---------------------------------------------------------------------------------------------------


def new_corpus(files: Files, *lines: str) -> list[str]:
    folder = files.root / "new"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(line + "\n" for line in lines))
    return files.prep_command("run", f"ingest.jsonl.folder={folder}")


simple(
    "corpus-missing", ARTIFACT, "corpus folder not found", lambda f: f.prep_command("run", "ingest.jsonl.folder=/no")
)
simple("corpus-empty-file", ARTIFACT, "no usable document", lambda f: new_corpus(f))
simple("corpus-all-bad", ARTIFACT, "no usable document", lambda f: new_corpus(f, "not json", '{"id": "a"}', "[]"))


@case("corpus-half-bad", ARTIFACT, "rejected")
def _(files: Files) -> list[str]:
    good = [json.dumps({"id": str(i), "text": "some words in a row", "split": "train"}) for i in range(4)]
    return new_corpus(files, *good, *["{broken"] * 4)


@case("corpus-same-id-twice", ARTIFACT, "id")
def _(files: Files) -> list[str]:
    return new_corpus(
        files, *(json.dumps({"id": "same", "text": f"some words {i}", "split": "train"}) for i in range(2))
    )


@case("corpus-empty-folder", ARTIFACT, "no file matches")
def _(files: Files) -> list[str]:
    (files.root / "empty").mkdir()
    return files.prep_command("run", f"ingest.jsonl.folder={files.root / 'empty'}")


@case("corpus-is-a-file", ARTIFACT, "corpus folder not found")
def _(files: Files) -> list[str]:
    return files.prep_command("run", f"ingest.jsonl.folder={files.config}")


@case("corpus-without-validation", USAGE, "no document of the splits valid")
def _(files: Files) -> list[str]:
    return new_corpus(files, *(json.dumps({**record, "split": "train"}) for record in documentation(40)))


@case("corpus-too-small-for-vocabulary", USAGE, "vocab_size")
def _(files: Files) -> list[str]:
    lines = (json.dumps({"id": split, "text": "aa bb", "split": split}) for split in ("train", "valid", "test"))
    return [*new_corpus(files, *lines), "deduplicate=null", "tokenizer.train.vocab_size=4000"]


@case("prep-package-not-installed", USAGE, "no_such_package")
def _(files: Files) -> list[str]:
    settings = {
        "root": str(files.prep),
        "ingest": {"reader": "python_docs", "python_docs": {"packages": ["no_such_package"]}},
    }
    return ["prep", "run", str(write_config(files.root / "docs.yaml", settings))]


@case("prep-root-is-a-file", USAGE, "root")
def _(files: Files) -> list[str]:
    return files.prep_command("run", f"root={files.config}")


@case("prep-tokenizer-file-missing", USAGE, "nowhere.model")
def _(files: Files) -> list[str]:
    settings = prep_settings(files.corpus, files.prep)
    settings["tokenizer"] = {"kind": "sentencepiece", "existing": {"path": "nowhere.model"}}
    return ["prep", "run", str(write_config(files.config, settings))]


@case("prep-tokenizer-file-is-garbage", USAGE, "bad.model")
def _(files: Files) -> list[str]:
    bad = files.root / "bad.model"
    bad.write_bytes(os.urandom(300))
    settings = prep_settings(files.corpus, files.prep)
    settings["tokenizer"] = {"kind": "sentencepiece", "existing": {"path": str(bad)}}
    return ["prep", "run", str(write_config(files.config, settings))]


@case("prep-tokenizer-is-a-pickle", USAGE, "bad.model")
def _(files: Files) -> list[str]:
    bad = files.root / "bad.model"
    bad.write_bytes(pickle.dumps(Hostile()))
    settings = prep_settings(files.corpus, files.prep)
    settings["tokenizer"] = {"kind": "sentencepiece", "existing": {"path": str(bad)}}
    return ["prep", "run", str(write_config(files.config, settings))]


# --- prepared artifacts, met by the commands that read them ------------------------------------------------------


@case("prep-run-manifest-not-json", ARTIFACT, "not a readable manifest")
def _(files: Files) -> list[str]:
    (files.stage("ingest") / "manifest.json").write_text("{broken")
    return files.prep_command("run")


@case("prep-run-manifest-of-another-kind", ARTIFACT, "expected an artifact of kind 'documents', found 'tokens'")
def _(files: Files) -> list[str]:
    edit_json(files.stage("ingest") / "manifest.json", lambda m: m.update(kind="tokens"))
    return files.prep_command("run")


@case("prep-run-manifest-of-the-future", ARTIFACT, "update this package")
def _(files: Files) -> list[str]:
    edit_json(files.stage("ingest") / "manifest.json", lambda m: m.update(format=99))
    return files.prep_command("run")


@case("prep-run-foreign-folder", ARTIFACT, "expected fingerprint")
def _(files: Files) -> list[str]:
    edit_json(files.stage("ingest") / "manifest.json", lambda m: m.update(fingerprint="0" * 16))
    return files.prep_command("run")


@case("prep-run-truncated-tokens", ARTIFACT, "tokens-00000.bin: expected")
def _(files: Files) -> list[str]:
    truncate(files.database("tokens") / "tokens-00000.bin")
    return files.prep_command("run")


@case("prep-run-missing-file", ARTIFACT, "missing")
def _(files: Files) -> list[str]:
    (files.database("chunks") / "starts-00000.npy").unlink()
    return files.prep_command("run")


@case("prep-show-missing-release", ARTIFACT, "release not found")
def _(files: Files) -> list[str]:
    return files.prep_command("show", f"root={files.root / 'elsewhere'}")


@case("prep-show-unknown-split", ARTIFACT, "split")
def _(files: Files) -> list[str]:
    return files.prep_command("show", "--split", "dev")


@case("prep-show-row-out-of-range", USAGE, "row")
def _(files: Files) -> list[str]:
    return [*files.prep_command("show"), "--rows", "999999"]


@case("prep-show-unfinished", ARTIFACT, "unfinished")
def _(files: Files) -> list[str]:
    (files.stage("neighbors", "test") / "manifest.json").unlink()
    return files.prep_command("show")


READERS: dict[str, Callable[[Files], list[str]]] = {
    "train": lambda f: f.train(),
    "eval": lambda f: f.perplexity("split=train"),
    "generate": lambda f: ["generate", f"checkpoint={f.retro}", "prompt=sum of", "device=cpu"],
    "search": lambda f: ["search", f"release={f.release}", "sum of"],
    "show": lambda f: f.prep_command("show", "--split", "train"),
}


for _name, _command in READERS.items():

    @case(f"{_name}-tokens-truncated", ARTIFACT, "tokens-00000.bin: expected")
    def _(files: Files, command=_command) -> list[str]:
        truncate(files.database("tokens") / "tokens-00000.bin")
        return command(files)

    @case(f"{_name}-tokens-manifest-not-json", ARTIFACT, "not a readable manifest")
    def _(files: Files, command=_command) -> list[str]:
        (files.database("tokens") / "manifest.json").write_bytes(b"\xff\xfe\x00")
        return command(files)

    @case(f"{_name}-chunks-folder-missing", ARTIFACT, "not found")
    def _(files: Files, command=_command) -> list[str]:
        shutil.rmtree(files.database("chunks"))
        return command(files)

    @case(f"{_name}-chunks-folder-is-a-file", ARTIFACT, "chunk-")
    def _(files: Files, command=_command) -> list[str]:
        replace_by_file(files.database("chunks"))
        return command(files)

    @case(f"{_name}-chunks-hostile-pickle", ARTIFACT, "starts-00000.npy")
    def _(files: Files, command=_command) -> list[str]:
        make_hostile(files.database("chunks"), "starts-00000.npy")
        return command(files)

    @case(f"{_name}-tokenizer-replaced", ARTIFACT, "expected")
    def _(files: Files, command=_command) -> list[str]:
        foreign = json.loads(files.foreign.read_text())["tokenizer"]["path"]
        own = files.prep / json.loads(files.release.read_text())["tokenizer"]["path"]
        shutil.rmtree(own)
        copy(files.foreign.parent / foreign, own)
        return command(files)

    @case(f"{_name}-tokenizer-emptied", ARTIFACT, "not a usable tokenizer")
    def _(files: Files, command=_command) -> list[str]:
        folder = files.prep / json.loads(files.release.read_text())["tokenizer"]["path"]
        (folder / "tokenizer.model").write_bytes(b"")
        record_again(folder, "tokenizer.model")
        return command(files)

    if _name in ("train", "search", "show"):

        @case(f"{_name}-release-missing", ARTIFACT, "release not found")
        def _(files: Files, command=_command) -> list[str]:
            files_command = command(files)
            files.release.unlink()
            return files_command

        @case(f"{_name}-release-not-json", ARTIFACT, "not a readable release")
        def _(files: Files, command=_command) -> list[str]:
            files.release.write_text("{")
            return command(files)

        @case(f"{_name}-release-empty", ARTIFACT, "not a readable release")
        def _(files: Files, command=_command) -> list[str]:
            files.release.write_text("")
            return command(files)

        @case(f"{_name}-release-edited", ARTIFACT, "do not match the fingerprint")
        def _(files: Files, command=_command) -> list[str]:
            edit_json(files.release, lambda r: r["splits"].pop("valid"))
            return command(files)

        @case(f"{_name}-release-is-a-list", ARTIFACT, "not a readable release")
        def _(files: Files, command=_command) -> list[str]:
            files.release.write_text("[1, 2]")
            return command(files)

    if _name in ("train", "eval", "show"):

        @case(f"{_name}-neighbors-hostile-pickle", ARTIFACT, "ids-00000.npy")
        def _(files: Files, command=_command) -> list[str]:
            make_hostile(files.stage("neighbors", "train"), "ids-00000.npy")
            return command(files)

        @case(f"{_name}-neighbors-of-other-chunks", ARTIFACT, "expected neighbors made for")
        def _(files: Files, command=_command) -> list[str]:
            folder = files.stage("neighbors", "train")
            edit_json(folder / "manifest.json", lambda m: m["inputs"]["queries"].update(fingerprint="f" * 16))
            return command(files)

        @case(f"{_name}-neighbors-out-of-range", ARTIFACT, "ids-")
        def _(files: Files, command=_command) -> list[str]:
            import numpy as np

            folder = files.stage("neighbors", "train")
            for path in folder.glob("ids-*.npy"):
                np.save(path, np.full_like(np.load(path), 10**6), allow_pickle=False)
                record_again(folder, path.name)
            return command(files)

    if _name in ("generate", "search"):

        @case(f"{_name}-index-truncated", ARTIFACT, "expected")
        def _(files: Files, command=_command) -> list[str]:
            truncate(max(files.database("searcher").glob("*.npy"), key=lambda p: p.stat().st_size))
            return command(files)

        @case(f"{_name}-index-hostile-pickle", ARTIFACT, ".npy")
        def _(files: Files, command=_command) -> list[str]:
            folder = files.database("searcher")
            for path in sorted(folder.glob("*.npy")):
                make_hostile(folder, path.name)
            return command(files)


# --- releases and tables that are whole, but of something else ----------------------------------------------------

simple("train-release-of-longer-chunks", ARTIFACT, "model.chunk_length", lambda f: f.train("model.chunk_length=8"))
simple("train-sequence-of-no-whole-chunks", USAGE, "multiple", lambda f: f.train("sequence_length=100"))
simple("train-too-many-neighbors", USAGE, "num_neighbors", lambda f: f.train("num_neighbors=50"))
simple("eval-sequence-of-no-whole-chunks", USAGE, "multiple", lambda f: f.perplexity("sequence_length=100"))
simple("eval-too-many-neighbors", USAGE, "num_neighbors", lambda f: f.perplexity("num_neighbors=50"))
simple("eval-unknown-split", ARTIFACT, "no split", lambda f: f.perplexity("split=dev"))
simple("eval-foreign-release", ARTIFACT, "tokenizer", lambda f: f.perplexity(f"release={f.foreign}"))
simple(
    "generate-foreign-release",
    ARTIFACT,
    "tokenizer",
    lambda f: ["generate", f"checkpoint={f.retro}", "prompt=x", f"release={f.foreign}", "device=cpu"],
)
simple("resume-with-foreign-release", ARTIFACT, "another run", lambda f: f.resume("retro", f"release={f.foreign}"))
simple("resume-with-another-width", ARTIFACT, "model.width", lambda f: f.resume("retro", "model.width=16"))
simple("resume-with-another-seed", ARTIFACT, "seed: checkpoint 0, now 7", lambda f: f.resume("retro", "seed=7"))
simple("resume-with-more-steps", ARTIFACT, "steps: checkpoint 30, now 60", lambda f: f.resume(steps=60))
simple("resume-gpt-as-retro", ARTIFACT, "another run", lambda f: f.resume("retro", "name=gpt"))
simple(
    "init-from-foreign-tokenizer",
    ARTIFACT,
    "tokenizer",
    lambda f: [
        "train",
        str(write_config(f.root / "fine.yaml", {"name": "fine", "release": str(f.foreign), "init_from": str(f.retro)})),
        f"run_root={f.runs}",
        "sequence_length=64",
        "steps=3",
        "warmup_steps=1",
    ],
)
simple("init-from-nowhere", ARTIFACT, "nowhere", lambda f: f.train("init_from=nowhere", "model={}"))
simple("train-run-root-is-a-file", USAGE, "run folder cannot be made", lambda f: f.train(f"run_root={f.config}"))


@case("eval-of-something-else-has-the-name", ARTIFACT, "overwrite")
def _(files: Files) -> list[str]:
    return eval_command("perplexity", files.retro, "num_neighbors=1")


# --- checkpoints -----------------------------------------------------------------------------------------------

CHECKPOINT_READERS: dict[str, Callable[[Files], list[str]]] = {
    "resume": lambda f: f.resume(),
    "eval": lambda f: f.perplexity(),
    "generate": lambda f: ["generate", f"checkpoint={f.retro}", "prompt=sum of", "device=cpu"],
    "export": lambda f: ["export", f"checkpoint={f.retro}", f"output={f.root / 'out'}", "format=retro"],
    "init": lambda f: [
        "train",
        str(write_config(f.root / "i.yaml", {"name": "i", "release": str(f.release), "init_from": str(f.retro)})),
        f"run_root={f.runs}",
        "sequence_length=64",
        "steps=3",
        "warmup_steps=1",
    ],
}


def unfinish(files: Files) -> Path:
    """The newest checkpoint is the one after step 20, of a run of 30 steps."""
    shutil.rmtree(files.retro / "checkpoints" / "step_000030")
    return files.retro / "checkpoints" / "step_000020"


for _name, _command in CHECKPOINT_READERS.items():

    @case(f"{_name}-checkpoint-truncated", ARTIFACT, "model.safetensors: expected")
    def _(files: Files, command=_command) -> list[str]:
        truncate(unfinish(files) / "model.safetensors")
        return command(files)

    @case(f"{_name}-checkpoint-file-missing", ARTIFACT, "missing")
    def _(files: Files, command=_command) -> list[str]:
        (unfinish(files) / "model.safetensors").unlink()
        return command(files)

    @case(f"{_name}-checkpoint-manifest-not-json", ARTIFACT, "not a readable manifest")
    def _(files: Files, command=_command) -> list[str]:
        (unfinish(files) / "manifest.json").write_text("null")
        return command(files)

    @case(f"{_name}-weights-are-a-pickle", ARTIFACT, "model.safetensors")
    def _(files: Files, command=_command) -> list[str]:
        make_hostile(unfinish(files), "model.safetensors")
        return command(files)

    if _name != "resume":  # which knows the model from its own configuration

        @case(f"{_name}-checkpoint-config-not-json", ARTIFACT, "config.json")
        def _(files: Files, command=_command) -> list[str]:
            folder = unfinish(files)
            (folder / "config.json").write_text("[]")
            record_again(folder, "config.json")
            return command(files)

    @case(f"{_name}-weights-of-another-shape", ARTIFACT, "model.safetensors")
    def _(files: Files, command=_command) -> list[str]:
        folder = unfinish(files)
        shutil.copy(files.gpt / "checkpoints" / "step_000020" / "model.safetensors", folder / "model.safetensors")
        record_again(folder, "model.safetensors")
        return command(files)


for _file in ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", "config.json"):

    @case(f"resume-{_file}-altered", ARTIFACT, "expected sha256")
    def _(files: Files, name=_file) -> list[str]:
        flip(unfinish(files) / name)
        return files.resume()


@case("eval-weights-altered", ARTIFACT, "model.safetensors")
def _(files: Files) -> list[str]:
    flip(unfinish(files) / "model.safetensors")
    return files.perplexity()


for _file in ("optimizer.safetensors", "rng.safetensors"):

    @case(f"resume-{_file}-is-a-pickle", ARTIFACT, _file)
    def _(files: Files, name=_file) -> list[str]:
        make_hostile(unfinish(files), name)
        return files.resume()


@case("resume-state-without-fields", ARTIFACT, "state.json")
def _(files: Files) -> list[str]:
    folder = unfinish(files)
    (folder / "state.json").write_text("{}")
    record_again(folder, "state.json")
    return files.resume()


for _name, _code, _message in (
    ("nowhere", ARTIFACT, "no such run or checkpoint"),
    ("prep.yaml", ARTIFACT, "no such run or checkpoint"),
    ("corpus", ARTIFACT, "neither a run folder"),
):
    simple(f"eval-checkpoint-{_name}", _code, _message, lambda f, n=_name: f.perplexity(run=f.root / n))
    simple(
        f"generate-checkpoint-{_name}",
        _code,
        _message,
        lambda f, n=_name: ["generate", f"checkpoint={f.root / n}", "prompt=x"],
    )


@case("eval-run-without-checkpoint", ARTIFACT, "no finished checkpoint")
def _(files: Files) -> list[str]:
    for folder in (files.retro / "checkpoints").iterdir():
        (folder / "manifest.json").unlink()
    return files.perplexity()


@case("eval-run-config-not-yaml", ARTIFACT, "config.yaml")
def _(files: Files) -> list[str]:
    (files.retro / "config.yaml").write_text("a: [")
    return files.perplexity()


@case("generate-run-release-not-json", ARTIFACT, "not a readable release")
def _(files: Files) -> list[str]:
    (files.retro / "release.json").write_text("")
    return READERS["generate"](files)


# --- responses and reports -------------------------------------------------------------------------------------


def perplexity_folder(files: Files) -> Path:
    return files.retro / "eval" / "perplexity-test"


RESPONSE_READERS: dict[str, Callable[[Files], list[str]]] = {
    "eval": lambda f: eval_command("perplexity", f.retro, "samples=3"),
    "rescore": lambda f: ["eval", "rescore", str(perplexity_folder(f))],
}
for _name, _command in RESPONSE_READERS.items():

    @case(f"{_name}-responses-truncated", ARTIFACT, "responses.jsonl")
    def _(files: Files, command=_command) -> list[str]:
        truncate(perplexity_folder(files) / "responses.jsonl")
        return command(files)

    @case(f"{_name}-responses-altered", ARTIFACT, "responses.jsonl")
    def _(files: Files, command=_command) -> list[str]:
        flip(perplexity_folder(files) / "responses.jsonl")
        return command(files)

    @case(f"{_name}-state-not-json", ARTIFACT, "state.json")
    def _(files: Files, command=_command) -> list[str]:
        (perplexity_folder(files) / "state.json").write_text("{")
        return command(files)

    @case(f"{_name}-state-of-another-form", ARTIFACT, "state.json")
    def _(files: Files, command=_command) -> list[str]:
        (perplexity_folder(files) / "state.json").write_text('{"identity": 3, "facts": null, "bytes": "many"}')
        return command(files)


simple("rescore-nowhere", ARTIFACT, "state.json", lambda f: ["eval", "rescore", str(f.root / "nowhere")])
simple("rescore-nothing", USAGE, "expected folders", lambda f: ["eval", "rescore"])


def report(files: Files) -> list[str]:
    return ["report", str(files.gpt), str(files.retro), "-o", str(files.root / "r.html"), "--draws", "100"]


simple("report-nowhere", ARTIFACT, "no such run folder", lambda f: ["report", str(f.root / "nowhere")])
simple("report-of-a-file", ARTIFACT, "no such run folder", lambda f: ["report", str(f.config)])
simple("report-of-a-corpus", ARTIFACT, "not a run folder", lambda f: ["report", str(f.corpus)])
for _path, _content, _message in (
    ("eval/perplexity-test/results.json", "{", "results.json"),
    ("eval/perplexity-test/results.json", "[]", "results.json"),
    ("eval/perplexity-test/results.json", '{"modes": {"on": 3}}', "perplexity-test"),
    ("eval/perplexity-test/responses.jsonl", "nonsense\n", "responses.jsonl:1"),
    ("eval/perplexity-test/responses.jsonl", '{"a": 1}\n', "responses.jsonl"),
    ("eval/perplexity-test/samples.json", "{}", "samples.json"),
    ("eval/perplexity-test/samples.json", '[{"document": 1}]', "samples.json"),
    ("eval/docs_qa/responses.jsonl", '{"id": 1}\n', "responses.jsonl"),
    ("metrics.jsonl", "x\n", "metrics.jsonl:1"),
    ("metrics.jsonl", '{"event": "train", "step": "one"}\n', "metrics.jsonl:1"),
    ("config.yaml", "a: [", "config.yaml"),
    ("release.json", "[", "release.json"),
    ("environment.json", "\x00", "environment.json"),
):

    @case(f"report-{_path}-{len(CASES)}", ARTIFACT, _message)
    def _(files: Files, path=_path, content=_content) -> list[str]:
        (files.retro / path).write_text(content)
        return report(files)


@pytest.mark.parametrize("item", CASES, ids=lambda item: item.name)
def test_bad_input_is_refused_in_one_line(item, files, capsys, monkeypatch):
    monkeypatch.chdir(files.root)
    command = item.damage(files)
    expect_refusal(files, command, item.code, item.message, capsys)
    assert not (files.root / "executed").exists()


def test_the_names_of_the_cases_are_unique():
    assert len({item.name for item in CASES}) == len(CASES)


def test_the_hostile_file_would_be_executed_by_a_careless_reader(tmp_path, monkeypatch):
    """So that the cases above can fail."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Hostile()))
    assert (tmp_path / "executed").is_dir()


@pytest.mark.parametrize("verb", ["status", "verify"])
def test_inspection_reports_damage_and_changes_nothing(verb, files, capsys):
    truncate(files.database("tokens") / "tokens-00000.bin")
    before = snapshot(files.root)
    assert main(files.prep_command(verb)) == ARTIFACT
    captured = capsys.readouterr()
    assert "tokens-00000.bin" in captured.out + captured.err and "Traceback" not in captured.err
    assert snapshot(files.root) == before


def test_verify_finds_one_altered_byte(files, capsys):
    flip(files.database("tokens") / "tokens-00000.bin")
    assert main(files.prep_command("verify")) == ARTIFACT
    assert "tokens-00000.bin" in capsys.readouterr().err


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("command", ["prep", "train", "report"])
def test_output_that_cannot_be_written(command, files, capsys):
    target = files.root / "locked"
    target.mkdir(mode=0o500)
    commands = {
        "prep": files.prep_command("run", f"root={target / 'prep'}"),
        "train": files.train(f"run_root={target}"),
        "report": ["report", str(files.gpt), "-o", str(target / "r.html"), "--draws", "100"],
    }
    assert main(commands[command]) in (1, USAGE, ARTIFACT)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
