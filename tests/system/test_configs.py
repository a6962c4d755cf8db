"""Every configuration file loads, and its header says what it is for, on what, and at what cost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retro.config.evaluation import EvalConfig
from retro.config.launch import LaunchConfig
from retro.config.loader import dump_yaml, load_config
from retro.config.model import ModelConfig
from retro.config.preparation import PrepConfig
from retro.config.qa_prepare import QaPrepareConfig
from retro.config.serving import ServeConfig
from retro.config.train import FREE_FIELDS, TrainConfig
from tests.system.workplace import CONFIGS, ROOT

CLASSES = {
    "prep": PrepConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "launch": LaunchConfig,
    "serve": ServeConfig,
    "qa": QaPrepareConfig,
}
#: What no file can know, and every command that uses the file gives.
GIVEN = {"eval": ["checkpoint=runs/x"], "serve": ["checkpoint=runs/x"]}
GIVEN_BY_NAME = {
    "prep/add_documents.yaml": ["ingest.jsonl.folder=x"],
    "prep/jsonl.yaml": ["ingest.jsonl.folder=x"],
    "prep/parquet.yaml": ["ingest.parquet.folder=x"],
    "prep/text_folder.yaml": ["ingest.text_folder.folder=x"],
}
FILES = sorted(CONFIGS.rglob("*.y*ml"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.y*ml"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def header(path: Path) -> str:
    """The comment lines before the first key."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return "\n".join(lines)


def kinds() -> set[str]:
    return {path.relative_to(CONFIGS).parts[0] for path in FILES}


def test_there_is_a_file_of_every_kind():
    assert kinds() == set(CLASSES)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_it_loads_and_is_read_back_equal(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    relative = path.relative_to(CONFIGS)
    kind = relative.parts[0]
    given = [*GIVEN.get(kind, []), *GIVEN_BY_NAME.get(relative.as_posix(), [])]
    config = load_config(CLASSES[kind], path, given)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(CLASSES[kind], copy) == config


@pytest.mark.parametrize("path", [*FILES, *EXAMPLES], ids=name_of)
def test_its_header_names_purpose_hardware_and_cost(path):
    text = header(path)
    for word in ("Purpose", "Hardware", "Cost"):
        assert re.search(rf"\b{word}:\s+\S", text), f"{name_of(path)}: no `# {word}: ...` before the first key"


def test_gpt_and_retro_of_a_pair_differ_in_the_model_only(monkeypatch):
    monkeypatch.chdir(ROOT)
    pairs = [p for p in (CONFIGS / "train").glob("*_gpt.yaml") if p.with_name(p.name.replace("gpt", "retro")).exists()]
    assert len(pairs) >= 3
    for path in pairs:
        gpt = load_config(TrainConfig, path)
        retro = load_config(TrainConfig, path.with_name(path.name.replace("gpt", "retro")))
        differing = {n for n in gpt.__dataclass_fields__ if getattr(gpt, n) != getattr(retro, n)}
        # What a run may be resumed with other values of (how it is spread over devices, say) trains the same.
        assert differing - set(FREE_FIELDS) <= {"model"}, f"{path.name}: {sorted(differing)}"
        if gpt.retrofit and retro.retrofit:
            assert gpt.retrofit.base == retro.retrofit.base
            assert not gpt.retrofit.cross_attention_layers
            assert retro.retrofit.cross_attention_layers
        else:
            assert gpt.init_from or (not gpt.model.is_retro and retro.model.is_retro)
        own = {"cross_attention_layers", "encoder"}
        for field in set(gpt.model.__dataclass_fields__) - own:
            assert getattr(gpt.model, field) == getattr(retro.model, field), f"{path.name}: model.{field}"
