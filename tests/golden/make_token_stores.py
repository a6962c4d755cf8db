"""Makes the golden artifacts of tokens and chunks: `python -m tests.golden.make_token_stores FOLDER`.

FOLDER gets tokenizer, tokens and chunks as the stages of the checked-out version write them, and `content.json`: what
is in them, told without the stores. tests/data/test_golden_stores.py opens every such folder, so that artifacts of
older versions stay readable. Made once for each version of the format:

* token_stores_1: version 1 of the stages tokenize and chunk (no groups-*.npy, lines-*.npy, lookup_*.npy).
* token_stores_2: version 2 of both.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from data_prep.chunk import ChunkStage
from data_prep.runner import run_stage
from data_prep.tokenize_documents import TokenizeStage
from data_prep.train_tokenizer import TokenizerStage
from retro.artifacts.manifest import Manifest, describe_file, open_manifest, write_manifest
from retro.config.prep_tokens import ChunkConfig, SentencePieceConfig, TokenizerConfig, TokensConfig
from retro.data.document import Document, DocumentWriter
from retro.data.tokenizer import open_tokenizer

CHUNK_LENGTH = 8
TEXTS = [
    "the quick brown fox jumps over the lazy dog\n\tand 12345 times again",
    "def f(x):\n    return x + 1\n",
    "\u00e9t\u00e9 \u2581 \u6f22",
    "a tensor of the same shape as the input tensor, with the same type",
    "returns the number of documents that the store holds and the number of tokens",
    "x",
    "tensor tensor tensor",
]


def documents() -> list[Document]:
    """Seven documents of three groups, one of them held out, some without a group."""
    return [
        Document(
            f"doc{i}", text, f"Title {i}", f"made.jsonl:{i + 1}", ("a", "", "b")[i % 3], "test" if i == 5 else "train"
        )
        for i, text in enumerate(TEXTS)
    ]


def write_documents(folder: Path) -> Path:
    """A documents artifact of two shards."""
    folder.mkdir(parents=True)
    shards = []
    for name, part in (("00000", documents()[:4]), ("00001", documents()[4:])):
        with DocumentWriter(folder, name) as writer:
            for document in part:
                writer.write(document)
        files = [describe_file(p) for p in sorted(folder.glob(f"documents-{name}-*"))]
        shards.append({"name": name, "rows": len(part), "files": files, "stats": {}})
    write_manifest(folder, Manifest("documents", "ingest", 1, "d" * 16, {}, {}, shards, [], {}))
    return folder


def make(root: Path, tokenizer: Path | None = None) -> dict[str, Path]:
    """Folders "tokenizer", "tokens" and "chunks" below `root`, of several shards each.

    tokenizer: below `root` too; trained if not given (another version of sentencepiece may train another one).
    """
    source = write_documents(root / "documents")
    train = SentencePieceConfig(vocab_size=310, max_characters=400)
    if tokenizer is None:
        tokenizer = run_stage(TokenizerStage(TokenizerConfig(train=train), source), root, progress=False)
    tokens = run_stage(TokenizeStage(TokensConfig(shard_bytes=1), source, tokenizer), root, progress=False)
    chunks = run_stage(ChunkStage(ChunkConfig(CHUNK_LENGTH, shard_documents=4), tokens), root, progress=False)
    return {"tokenizer": tokenizer, "tokens": tokens, "chunks": chunks}


def main(folder: Path) -> None:
    """Write the golden folder; refuses one that exists."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        made = make(Path(name))
        encoder = open_tokenizer(made["tokenizer"])
        content = {
            "chunk_length": CHUNK_LENGTH,
            "folders": {part: path.name for part, path in made.items()},
            "documents": [
                {
                    "record": {n: getattr(d, n) for n in ("id", "title", "source", "group")},
                    "tokens": [encoder.bos_id, *encoder.encode(d.text), encoder.eos_id],
                }
                for d in documents()
                if d.split == "train"
            ],
            "order": [int(n) for n in read_order(made["tokens"])],
        }
        for path in made.values():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("shards"))
            open_manifest(folder / path.name)
    (folder / "content.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_order(folder: Path) -> list[int]:
    """Numbers of the documents by rank, computed from the ids alone."""
    from data_prep.tokenize_documents import order_rank

    train = [d.id for d in documents() if d.split == "train"]
    return sorted(range(len(train)), key=lambda i: order_rank(0, train[i]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
