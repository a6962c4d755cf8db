"""Tokenize and chunk against sentencepiece's own encoding of the same text on the same number of processes.

    python benchmarks/tokenize_chunk.py [--corpus docs.jsonl] [--megabytes 100] [--workers 2] [--rounds 5] [--record]

Both sides take turns in one run, after a warm-up round:

  processes  `workers` processes, started and warm, each with its share of the texts in memory and the model loaded,
             encode them in lists (SentencePieceProcessor.encode); the results are thrown away;
  threads    one process, encode(texts, num_threads=workers);
  tokenize   the stage, from a documents artifact on disk to a finished artifact on disk with `workers` processes:
             starting them, reading, encoding, writing, checksums, fsync, the order of the documents, the manifest;
  chunk      the stage after it.

So sentencepiece's side has everything in its favour. Reported: bytes of text per second, and the share of the faster
of sentencepiece's two ways that tokenize, and tokenize + chunk, reach in the same round: median and quartiles.
Needs 3 minutes at the default size on 2 cores. (Not called tokenize.py: Python has a module of that name.)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.text_corpus import hardware, read_texts, write_documents
from data_prep.chunk import ChunkStage
from data_prep.runner import Executor, run_stage
from data_prep.tokenize_documents import TokenizeStage
from data_prep.train_tokenizer import TokenizerStage
from retro.artifacts.manifest import open_manifest
from retro.config.prep_tokens import ChunkConfig, SentencePieceConfig, TokenizerConfig, TokensConfig

RECORD = Path(__file__).parent / "records" / "tokenize_chunk.json"
_BATCH = 512


def serve(model: bytes, texts: list[str], connection: Any) -> None:
    """A process of sentencepiece's side: encodes its texts whenever it is asked, and answers with the tokens."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    processor.encode(texts[:_BATCH])
    connection.send(0)
    while connection.recv():
        connection.send(
            sum(sum(map(len, processor.encode(texts[i : i + _BATCH]))) for i in range(0, len(texts), _BATCH))
        )


class Processes:
    """`workers` warm processes that encode."""

    def __init__(self, model: bytes, texts: list[str], workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.ends, self.processes = [], []
        for share in shares(texts, workers):
            own, other = context.Pipe()
            process = context.Process(target=serve, args=(model, share, other), daemon=True)
            process.start()
            self.ends.append(own)
            self.processes.append(process)
        for end in self.ends:
            end.recv()

    def encode(self) -> int:
        """All texts once; returns the number of tokens."""
        for end in self.ends:
            end.send(True)
        return sum(end.recv() for end in self.ends)

    def close(self) -> None:
        """End the processes."""
        for end in self.ends:
            end.send(False)
        for process in self.processes:
            process.join()


def shares(texts: list[str], workers: int) -> list[list[str]]:
    """The texts in `workers` parts of about the same number of characters."""
    parts: list[list[str]] = [[] for _ in range(workers)]
    sizes = [0] * workers
    for text in texts:
        smallest = sizes.index(min(sizes))
        parts[smallest].append(text)
        sizes[smallest] += len(text)
    return parts


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result)."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def measure(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """All rounds."""
    import sentencepiece

    texts, repeated = read_texts(arguments.corpus, int(arguments.megabytes * 1e6))
    text_bytes = sum(len(text.encode("utf-8")) for text in texts)
    documents = write_documents(root / "documents", texts)
    train = SentencePieceConfig(vocab_size=arguments.vocabulary, model_type=arguments.model_type)
    tokenizer = run_stage(TokenizerStage(TokenizerConfig(train=train), documents), root, progress=False)
    model = (tokenizer / "tokenizer.model").read_bytes()
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    processes = Processes(model, texts, arguments.workers)
    executor = Executor(arguments.workers)
    seconds: dict[str, list[float]] = {name: [] for name in ("processes", "threads", "tokenize", "chunk")}
    tokens: dict[str, int] = {}
    for i in range(arguments.rounds + 1):
        folder = root / f"round{i}"
        folder.mkdir()
        took = {}
        took["processes"], tokens["processes"] = timed(processes.encode)
        took["threads"], ids = timed(lambda: processor.encode(texts, num_threads=arguments.workers))
        tokens["threads"] = sum(map(len, ids))
        del ids
        stage = TokenizeStage(TokensConfig(), documents, tokenizer)
        took["tokenize"], made = timed(lambda s=stage, f=folder: run_stage(s, f, executor, progress=False))
        tokens["tokenize"] = open_manifest(made).stats["tokens"] - 2 * len(texts)
        chunk = ChunkStage(ChunkConfig(), made)
        took["chunk"], _ = timed(lambda s=chunk, f=folder: run_stage(s, f, executor, progress=False))
        shutil.rmtree(folder)
        if i:  # the first is the warm-up
            for name, value in took.items():
                seconds[name].append(value)
    processes.close()
    # U+2581 in a text is encoded otherwise by a lossless tokenizer; beyond that the tokens are the same.
    plain = not any("\u2581" in text for text in texts)
    if plain and len(set(tokens.values())) != 1:
        raise SystemExit(f"the sides made different numbers of tokens: {tokens}")
    best = [min(a, b) for a, b in zip(seconds["processes"], seconds["threads"], strict=True)]
    both = [a + b for a, b in zip(seconds["tokenize"], seconds["chunk"], strict=True)]
    return {
        "text_megabytes": round(text_bytes / 1e6, 1),
        "documents": len(texts),
        "corpus_used_more_than_once": repeated,
        "tokens": tokens["tokenize"],
        "workers": arguments.workers,
        "model_type": arguments.model_type,
        "vocabulary": arguments.vocabulary,
        "rounds": arguments.rounds,
        "megabytes_per_second": {
            name: spread([text_bytes / 1e6 / value for value in values])
            for name, values in {**seconds, "tokenize + chunk": both}.items()
        },
        "share_of_sentencepiece": {
            "tokenize": spread([a / b for a, b in zip(best, seconds["tokenize"], strict=True)]),
            "tokenize + chunk": spread([a / b for a, b in zip(best, both, strict=True)]),
        },
        "hardware": hardware("sentencepiece", "numpy", "zstandard"),
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a .jsonl file (.gz, .xz); default: installed documentation")
    parser.add_argument("--megabytes", type=float, default=100.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe")
    parser.add_argument("--record", action="store_true", help=f"add the result to {RECORD}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(arguments, Path(name))
    print(json.dumps(result, indent=1))
    if arguments.record:
        records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        RECORD.parent.mkdir(exist_ok=True)
        key = arguments.model_type
        RECORD.write_text(json.dumps(records | {key: result}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
