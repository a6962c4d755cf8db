"""Run folders as training and evaluation write them, made from a seed: realistic enough to look at."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SUBJECTS = ("the input tensor", "a callable", "the buffer", "this method", "the optimizer state", "an iterator")
VERBS = (
    "is returned as",
    "must be broadcastable to",
    "will be converted to",
    "raises an error unless",
    "is compared with",
)
OBJECTS = (
    "a tuple of named outputs", "the shape of weight", "a one-dimensional array", "None if it was not given",
    "the default value of the keyword argument", "an instance of the same class",
)  # fmt: skip
MODULES = ("torch.nn.functional", "numpy.linalg", "json.encoder", "scipy.sparse", "concurrent.futures", "email.message")
NAMES = ("cross_entropy", "lstsq", "iterencode", "csr_matrix", "as_completed", "get_payload", "unfold", "scale<T>")
CHUNK_LENGTH = 64
SEQUENCE_CHUNKS = 4


@dataclass(frozen=True)
class Shape:
    """How large the fake test set is."""

    documents: int = 40
    chunks: int = 300
    samples: int = 12
    questions: int = 120


def build_pair(root: Path, gain: float = 0.06, shape: Shape = Shape(), seed: int = 0) -> tuple[Path, Path]:
    """Folders runs/demo-gpt and runs/demo-retro over the same test set; `gain` = share of bits that retrieval saves."""
    gpt = build_run(root / "demo-gpt", "gpt", shape=shape, seed=seed)
    return gpt, build_run(root / "demo-retro", "retro", gain=gain, shape=shape, seed=seed)


def build_run(folder: Path, model: str, gain: float = 0.06, shape: Shape = Shape(), seed: int = 0) -> Path:
    """A whole run folder: configuration, release, environment, metrics, perplexity and question answering."""
    folder.mkdir(parents=True)
    layers = "[4, 6]" if model == "retro" else "[]"
    (folder / "config.yaml").write_text(
        f"name: {folder.name}\nrelease: data/demo/release.json\nsequence_length: 256\nsteps: 1200\nglobal_batch: 32\n"
        f"learning_rate: 0.002\nseed: 0\nnum_neighbors: 2\nprecision: fp32\nmodel:\n  width: 160\n  num_layers: 6\n"
        f"  cross_attention_layers: {layers}\n"
    )
    write_json(folder / "release.json", release())
    write_json(
        folder / "environment.json",
        {
            "python": "3.11.9",
            "packages": {"torch": "2.13.0", "numpy": "2.4.6", "retro-pretraining": "0.1.0"},
            "hardware": {"cpu": "Example CPU @ 2.90GHz", "cores": 2, "memory_gb": 4.0, "gpu": None},
            "git_commit": "0123456789abcdef",
        },
    )
    write_metrics(folder / "metrics.jsonl", model, gain, seed)
    write_perplexity(folder, model, gain, shape, seed)
    write_questions(folder, model, shape, seed)
    return folder


def release(tokenizer: str = "aaaaaaaaaaaaaaaa", test_chunks: str = "cccccccccccccccc") -> dict:
    """A release.json; the database differs between no runs here."""
    part = lambda kind, fingerprint: {"kind": kind, "path": f"{kind}-{fingerprint}", "fingerprint": fingerprint}  # noqa: E731
    return {
        "kind": "release",
        "fingerprint": "ffffffffffffffff",
        "tokenizer": part("tokenizer", tokenizer),
        "database": {"tokens": part("tokens", "bbbbbbbbbbbbbbbb"), "searcher": part("index", "eeeeeeeeeeeeeeee")},
        "splits": {
            "test": {
                "tokens": part("tokens", "dddddddddddddddd"),
                "chunks": part("chunks", test_chunks),
                "neighbors": part("neighbors", "9999999999999999"),
            }
        },
    }


def write_metrics(path: Path, model: str, gain: float, seed: int, steps: int = 1200) -> None:
    """Loss curves that fall like real ones; RETRO's steps take 1.7 times as long."""
    rng = np.random.default_rng([seed, model == "retro"])
    seconds = 0.52 if model == "retro" else 0.305
    lines = []
    for step in range(10, steps + 1, 10):
        loss = 2.55 + 6.2 * (1 + step / 16) ** -0.62 - 0.12 * step / steps
        loss *= 1 - (gain * min(1.0, step / 500) if model == "retro" else 0.0)
        row = {
            "event": "train", "step": step, "samples": step * 32, "tokens": step * 8192,
            "loss": round(loss + float(rng.normal(0, 0.05)), 4), "learning_rate": 0.002, "grad_norm": 0.9,
            "tokens_per_s": round(8192 / seconds * float(rng.normal(1, 0.02)), 1),
            "mfu": 0.1 if step == 10 else 0.45 if model == "retro" else 0.5,
            "elapsed_s": round(step * seconds, 2),
        }  # fmt: skip
        lines.append(row)
        if step % 100 == 0:
            validation = round(loss + 0.06, 4)
            lines.append(
                {
                    "event": "validation",
                    "step": step,
                    "loss": validation,
                    "bits_per_byte": round(validation / math.log(2) / 3.1, 4),
                    "elapsed_s": row["elapsed_s"],
                }
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def sentence(rng: np.random.Generator) -> str:
    """A sentence of documentation."""
    return f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}. ".capitalize()


def pieces_of(text: str, rng: np.random.Generator) -> list[str]:
    """Split text into token-like pieces that join back to it."""
    pieces, at = [], 0
    while at < len(text):
        end = min(len(text), at + int(rng.integers(2, 8)))
        space = text.find(" ", at + 1, end)
        end = space if space > at else end
        pieces.append(text[at:end])
        at = end
    return pieces


def layout(shape: Shape, seed: int) -> list[dict]:
    """The scored chunks, the same for every model of a seed: place, document, lengths, r(C), text, GPT's loss."""
    rng = np.random.default_rng([seed, 99])
    cuts = np.sort(rng.choice(np.arange(1, shape.chunks), shape.documents - 1, replace=False))
    lengths = np.diff(np.concatenate([[0], cuts, [shape.chunks]]))
    rows = []
    for document, length in enumerate(lengths):
        level = float(rng.normal(0, 0.35))
        for place in range(length):
            chunk = len(rows)
            tokens = (
                CHUNK_LENGTH - (place == 0) if place + 1 < length or length == 1 else int(rng.integers(9, CHUNK_LENGTH))
            )
            copied = min(1.0, float(rng.beta(0.7, 2.2)))
            base = np.maximum(0.01, rng.gamma(1.1, 2.1 + level, tokens))
            rows.append(
                {
                    "sequence": chunk // SEQUENCE_CHUNKS,
                    "index": chunk % SEQUENCE_CHUNKS,
                    "chunk": chunk,
                    "document": f"{MODULES[document % len(MODULES)]}.{NAMES[document % len(NAMES)]}_{document}",
                    "document_chunk": place,
                    "tokens": tokens,
                    "bytes": int(tokens * 3.1 + rng.integers(0, 8)),
                    "overlap": round(copied * 64) / 64,
                    "base": base,
                }
            )
    return rows


def write_perplexity(
    folder: Path, model: str, gain: float, shape: Shape, seed: int, name: str = "perplexity-test"
) -> None:
    """responses.jsonl, results.json and samples.json of the perplexity task."""
    target = folder / "eval" / name
    target.mkdir(parents=True)
    modes = ("on", "off", "shuffled") if model == "retro" else ("off",)
    rows = layout(shape, seed)
    responses = []
    for row in rows:
        rng = np.random.default_rng([seed, row["chunk"], model == "retro"])
        base = row["base"]
        served = row["index"] > 0 and row["document_chunk"] > 0
        per_mode = {}
        for mode in modes:
            factor = np.full(len(base), 1.0)
            if model == "retro":
                saved = gain * (0.7 + 2.2 * row["overlap"]) * (1.6 - np.arange(len(base)) / 64)
                factor = 1 + 0.004 - (saved * {"on": 1.0, "off": 0.0, "shuffled": 0.12}[mode] if served else 0.0)
                copied = rng.random(len(base)) < 0.35 * row["overlap"]
                if mode == "on" and served:
                    factor = factor - copied * 0.6 * (gain > 0)
            noise = rng.normal(1, 0.04, len(base))
            per_mode[mode] = np.maximum(0.001, base * factor * noise)
        responses.append(
            {key: row[key] for key in ("sequence", "index", "chunk", "document", "document_chunk", "tokens", "bytes")}
            | {
                "overlap": row["overlap"] if model == "retro" else None,
                "neighbors": [17, 4] if served and model == "retro" else [],
                "bits": {mode: round(float(loss.sum()) / math.log(2), 4) for mode, loss in per_mode.items()},
                "logprobs": {mode: [round(-float(v), 4) for v in loss] for mode, loss in per_mode.items()},
            }
        )
    (target / "responses.jsonl").write_text("".join(json.dumps(r) + "\n" for r in responses))
    total = sum(r["bytes"] for r in responses)
    results = {
        "task": "perplexity", "version": 1, "split": "test", "model": model,
        "checkpoint": f"runs/{folder.name}/checkpoints/step_001200", "checkpoint_fingerprint": "1234567890abcdef",
        "parameters": 2_412_000 if model == "retro" else 2_104_000,
        "modes": {
            mode: {"bits_per_byte": sum(r["bits"][mode] for r in responses) / total, "bytes": total} for mode in modes
        },
        "throughput": {"tokens_per_s": {"on": 9000.0, "off": 15500.0} if model == "retro" else 15500.0},
    }  # fmt: skip
    write_json(target / "results.json", results)
    if model == "retro" and shape.samples:
        write_json(target / "samples.json", samples(rows, responses, shape, seed))


def samples(rows: list[dict], responses: list[dict], shape: Shape, seed: int) -> list[dict]:
    """Chunks for the reader, with text, pieces and neighbors that share sentences."""
    rng = np.random.default_rng([seed, 7])
    served = [i for i, row in enumerate(rows) if row["index"] > 0 and row["document_chunk"] > 0 and row["tokens"] > 40]
    served.sort(key=lambda i: (-rows[i]["overlap"], i))
    chosen = served[: shape.samples // 2] + served[-(shape.samples - shape.samples // 2 - 1) :] + [0]
    result = []
    for i in chosen:
        row = rows[i]
        count = row["tokens"] + (row["document_chunk"] == 0)
        pieces: list[str] = []
        while len(pieces) < count:
            pieces += pieces_of(sentence(rng) + ("\n\n    " if rng.random() < 0.2 else ""), rng)
        pieces = pieces[:count]
        text = "".join(pieces)
        neighbors = [
            {
                "document": f"{rng.choice(MODULES)}.{rng.choice(NAMES)}",
                "chunk": int(rng.integers(0, 9000)),
                "text": sentence(rng) + text[20:130] + " " + sentence(rng),
                "continuation": sentence(rng) + text[140:260] if k == 0 else "",
                "distance": round(0.21 + 0.17 * k, 4),
            }
            for k in range(2 if row["document_chunk"] else 0)
        ]
        result.append(
            {
                "document": row["document"],
                "chunk": row["chunk"],
                "pieces": pieces,
                "logprobs": responses[i]["logprobs"],
                "context": sentence(rng) + sentence(rng) if neighbors else "",
                "neighbors": neighbors,
            }
        )
    return result


def write_questions(folder: Path, model: str, shape: Shape, seed: int) -> None:
    """docs_qa: GPT closed book, RETRO with retrieval on, off and shuffled."""
    target = folder / "eval" / "docs_qa"
    target.mkdir(parents=True)
    rates = {"on": 0.36, "off": 0.13, "shuffled": 0.12} if model == "retro" else {"off": 0.14}
    difficulty = np.random.default_rng([seed, 5]).random(shape.questions)
    lines = []
    for mode, rate in rates.items():
        rng = np.random.default_rng([seed, 6, len(mode)])
        for number in range(shape.questions):
            right = bool(difficulty[number] + 0.1 * rng.normal() < rate)
            lines.append(
                {
                    "id": f"question-{number}",
                    "document": f"document-{number // 3}",
                    "question": "default of dim?",
                    "answers": ["-1"],
                    "prediction": "-1" if right else "None",
                    "mode": mode,
                    "retrieved": [],
                    "evidence": None,
                    "exact_match": float(right),
                    "f1": 1.0 if right else float(rng.choice([0, 0, 0.5])),
                }
            )
    (target / "responses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(
        target / "results.json",
        {
            "task": "docs_qa",
            "version": 1,
            "split": "test",
            "model": model,
            "modes": {mode: {} for mode in rates},
            "retrieval": {"n": 1, "document": {"1": 0.5, "2": 0.625}, "evidence": {"1": 0.25, "2": 0.375}},
            "controls": {"most frequent answer": {"exact_match": 0.092, "f1": 0.104}},
        },
    )


def write_json(path: Path, value: object) -> None:
    """Plain JSON."""
    path.write_text(json.dumps(value, indent=1))


def read_lines(path: Path) -> list[dict]:
    """A JSONL file as a list."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, rows: list[dict]) -> None:
    """A list as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
