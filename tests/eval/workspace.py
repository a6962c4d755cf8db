"""A tiny documentation corpus taken through the whole preparation, and run folders with untrained models over it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data_prep.pipeline import run
from retro.artifacts.manifest import Manifest, describe_file, write_manifest
from retro.artifacts.release import Release, open_release, write_release
from retro.config.evaluation import QuestionsConfig, QuestionSequencesConfig
from retro.config.loader import to_dict
from retro.config.model import EncoderConfig, ModelConfig
from retro.config.prep import IngestConfig, JsonlConfig, SplitConfig
from retro.config.prep_neighbors import NeighborsConfig
from retro.config.prep_tokens import ChunkConfig, SentencePieceConfig, TokenizerConfig
from retro.config.preparation import PrepConfig
from retro.data.tokenizer import open_tokenizer
from retro.model import RetroModel
from retro.model.weights import save_model

CHUNK, SEQUENCE, NEIGHBORS = 16, 64, 2
_VERBS = ["sum", "mean", "sort", "split", "merge", "filter", "shift", "scale", "round", "clip", "rank", "fill"]
_NOUNS = ["rows", "columns", "values", "labels", "tensors", "chunks", "pixels", "nodes", "edges", "groups"]
_DEFAULTS = ["None", "0", "1", "True", "False", "'mean'", "1e-05", "-1", "128", "0.5"]
_TYPES = ["int", "Tensor", "ndarray", "bool", "str", "Series"]


@dataclass(frozen=True)
class Workspace:
    """root of everything; release; run folders of a RETRO and a GPT; a plain text database document's id."""

    root: Path
    release: Release
    retro: Path
    gpt: Path


def documentation(count: int = 90) -> list[dict[str, str]]:
    """Records with id, title, text, split: functions with defaults in headers and in numpy-style sections."""
    generator = np.random.default_rng(7)

    def pick(items: list[str]) -> str:
        return items[int(generator.integers(len(items)))]

    records = []
    for number in range(count):
        verb, noun = _VERBS[number % len(_VERBS)], _NOUNS[number % len(_NOUNS)]
        name = f"pkg.{noun}.{verb}_{number}"
        a, b, c = (pick(_DEFAULTS) for _ in range(3))
        lines = [
            f"{name}(data, axis={a}, fill={b}) -> {pick(_TYPES)}",
            "",
            f"Return the {verb} of all {noun} in the data, in the order of the index.",
            "",
            "Parameters",
            "----------",
            f"data : {pick(_TYPES)}",
            f"    The {noun} that are read, one by one, from the first to the last.",
            f"limit : int, default {c}",
            f"    Stop after so many {noun}. " + " ".join(pick(_NOUNS) for _ in range(int(generator.integers(3, 30)))),
        ]
        split = "test" if number % 9 == 8 else "valid" if number % 9 == 7 else "train"
        records.append({"id": name, "title": name, "text": "\n".join(lines), "split": split})
    return records


def prepare(root: Path) -> Path:
    """Path of the release of the tiny corpus, made by the real stages."""
    corpus = root / "corpus"
    corpus.mkdir(parents=True)
    (corpus / "docs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in documentation()))
    config = PrepConfig(
        root=str(root / "prep"),
        workers=1,
        ingest=IngestConfig(
            reader="jsonl",
            jsonl=JsonlConfig(folder=str(corpus), files=("*.jsonl",), id_field="id", title_field="title"),
            split=SplitConfig(by="field", field="split"),
        ),
        deduplicate=None,
        tokenizer=TokenizerConfig(train=SentencePieceConfig(vocab_size=400)),
        chunk=ChunkConfig(chunk_length=CHUNK),
        neighbors=NeighborsConfig(candidates=60, keep=16),
        questions=QuestionsConfig(max_answer_share=0.3, test_fraction=0.3),
        question_sequences=QuestionSequencesConfig(question_chunks=5, candidates=20, keep=10),
    )
    return run(config, progress=False)


def model_config(retro: bool, vocab_size: int, chunk_length: int = CHUNK) -> ModelConfig:
    """A model of a few thousand parameters."""
    return ModelConfig(
        vocab_size=vocab_size,
        width=32,
        num_layers=3,
        num_heads=2,
        chunk_length=chunk_length,
        cross_attention_layers=(2, 3) if retro else (),
        encoder=EncoderConfig(num_layers=1, cross_attention_layers=(1,)) if retro else EncoderConfig(),
        init_std=0.3,
    )


def write_run(
    folder: Path, release: Release, retro: bool, seed: int = 0, step: int = 10, chunk_length: int = CHUNK
) -> Path:
    """A run folder with one checkpoint of an untrained model."""
    tokenizer = open_tokenizer(release.tokenizer)
    torch.manual_seed(seed)
    model = RetroModel(model_config(retro, tokenizer.vocab_size, chunk_length))
    checkpoint = folder / "checkpoints" / f"step_{step:06d}"
    save_model(checkpoint, model, {"tokenizer": tokenizer.fingerprint})
    files = [describe_file(path) for path in sorted(checkpoint.iterdir())]
    write_manifest(checkpoint, Manifest("checkpoint", "train", 1, f"{seed:016x}", {}, {}, [], files, {}))
    settings = {
        "name": folder.name,
        "sequence_length": SEQUENCE,
        "num_neighbors": NEIGHBORS,
        "model": to_dict(model.config),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    write_release(
        folder / "release.json",
        tokenizer=release.tokenizer,
        documents=release.documents,
        database_tokens=release.database_tokens,
        database_chunks=release.database_chunks,
        searcher=release.searcher,
        splits=release.splits,
        questions=release.questions,
    )
    return folder


_BUILT: dict[str, Workspace] = {}


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Built once per test session; tests that write evaluate with an `output` folder of their own."""
    if "workspace" not in _BUILT:
        root = tmp_path_factory.mktemp("evaluation")
        release = open_release(prepare(root))
        retro = write_run(root / "runs" / "tiny-retro", release, retro=True)
        gpt = write_run(root / "runs" / "tiny-gpt", release, retro=False)
        _BUILT["workspace"] = Workspace(root, release, retro, gpt)
    return _BUILT["workspace"]
