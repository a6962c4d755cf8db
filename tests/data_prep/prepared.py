"""A tiny corpus taken through tokens and chunks by the real stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.chunk import ChunkStage
from data_prep.runner import run_stage
from data_prep.tokenize_documents import TokenizeStage
from data_prep.train_tokenizer import TokenizerStage
from retro.artifacts.manifest import Manifest, describe_file, write_manifest
from retro.config.prep_tokens import ChunkConfig, SentencePieceConfig, TokenizerConfig, TokensConfig
from retro.data.document import Document, DocumentWriter

WORDS = ["loss", "tensor", "index", "gradient", "shape", "file", "open", "read", "cache", "vector"] + [
    "query",
    "token",
    "chunk",
    "neighbor",
    "layer",
    "batch",
]


def make_text(generator: np.random.Generator, words: int) -> str:
    return " ".join(WORDS[i] for i in np.minimum(generator.zipf(1.3, words) - 1, len(WORDS) - 1))


def write_documents(folder: Path, documents: list[Document]) -> Path:
    """A finished documents artifact."""
    folder.mkdir(parents=True)
    with DocumentWriter(folder, "00000") as writer:
        for document in documents:
            writer.write(document)
    shard = {
        "name": "00000",
        "rows": len(documents),
        "files": [describe_file(p) for p in sorted(folder.iterdir())],
        "stats": {},
    }
    write_manifest(folder, Manifest("documents", "ingest", 1, "d" * 16, {}, {}, [shard], [], {}))
    return folder


def prepare(root: Path, train: int = 40, test: int = 10, chunk_length: int = 16) -> dict[str, Path]:
    """Folders of chunks by split: "train" and "test", of documents of all lengths, some twins, one without a word."""
    generator = np.random.default_rng(0)
    documents, texts = [], []
    for number in range(train + test):
        text = make_text(generator, int(generator.integers(2, 80)))
        if number % 7 == 6:  # a copy of an earlier document, under another id
            text = texts[number - 3]
        if number == 5:  # nothing that an embedder could read
            text = "... !?! -- ..."
        texts.append(text)
        split = "train" if number < train else "test"
        documents.append(Document(f"doc{number}", text, "", f"corpus:{number}", f"group{number % 5}", split))
    folder = write_documents(root / "documents", documents)
    tokenizer = TokenizerConfig(train=SentencePieceConfig(vocab_size=300))
    tokenizer_folder = run_stage(TokenizerStage(tokenizer, folder), root, progress=False)
    out = {}
    for split in ("train", "test"):
        tokens = run_stage(TokenizeStage(TokensConfig(splits=(split,)), folder, tokenizer_folder), root, progress=False)
        out[split] = run_stage(ChunkStage(ChunkConfig(chunk_length), tokens), root, progress=False)
    return out
