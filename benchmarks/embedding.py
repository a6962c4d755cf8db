"""Embedding of chunks by our transformer embedder against the plain way, with the same encoder and the same texts.

    python benchmarks/embedding.py --model FOLDER [--corpus docs.jsonl] [--chunks 600] [--rounds 3] [--threads 2]
                                   [--device cpu] [--record]

FOLDER holds a Hugging Face encoder (config.json, *.safetensors, tokenizer files), all-MiniLM-L6-v2 for instance. The
texts are chunks of 64 of the encoder's tokens, as documents are cut: their last chunks are short. The sides take turns
in one process, after a warm-up with a part of the texts:

  ours                   TransformerEmbedder as configured by default: sorted by length, batches of a fixed number of
                         tokens, bf16 where the hardware has it, one batch per thread;
  ours fp32              the same in float32;
  plain, to the longest  transformers in float32, batches of 64 texts in the order in which they come, padded to the
                         longest of the batch;
  plain, to max_length   the same, padded to max_length;
  sentence-transformers  its encode() with batch_size 64 (sorted by length, padded to the longest), where it can be
                         imported.

Reported: chunks per second, the ratio to ours within a round (median and quartiles), the share of padding among the
tokens that go through the encoder, and the cosine of each side's vectors to those of `plain, to the longest`
(sentence-transformers' pooling is the model's own, for all-MiniLM-L6-v2 the mean over the special tokens too, so its
vectors are compared with ours of that pooling).
Needs 3 minutes on 2 quiet cores with all-MiniLM-L6-v2 at the default size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.text_corpus import hardware, read_texts
from retro.config.prep_embed import TransformerConfig
from retro.retrieval.length_batches import batch_rows
from retro.retrieval.transformer import TransformerEmbedder

RECORD = Path(__file__).parent / "records" / "embedding.json"
_BATCH = 64
_PLAIN = "plain, to the longest"

Side = Callable[[list[str]], np.ndarray]


def read_chunks(tokenizer: Any, corpus: Path | None, count: int) -> list[str]:
    """`count` chunks of at most 64 of the encoder's tokens."""
    texts, _ = read_texts(corpus, count * 400)
    chunks: list[str] = []
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        chunks += tokenizer.batch_decode([ids[i : i + 64] for i in range(0, len(ids), 64)])
    if len(chunks) < count:
        raise SystemExit(f"{corpus}: {len(chunks)} chunks, --chunks asks for {count}")
    return chunks[:count]


class Plain:
    """The encoder as its documentation shows it, pooled like ours."""

    def __init__(self, model: str, device: torch.device, max_length: int, padding: str | bool) -> None:
        import transformers

        self.model: Any = transformers.AutoModel.from_pretrained(model, use_safetensors=True, dtype=torch.float32)
        self.model.eval().to(device)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
        self.device, self.max_length, self.padding = device, max_length, padding

    def __call__(self, texts: list[str]) -> np.ndarray:
        """float32 [n, d]."""
        return np.concatenate([self.batch(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)])

    @torch.inference_mode()
    def batch(self, texts: list[str]) -> np.ndarray:
        """float32 [b, d]."""
        encoded = self.tokenizer(
            texts,
            truncation=True,
            max_length=self.max_length,
            padding=self.padding,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        ids, mask = encoded["input_ids"].to(self.device), encoded["attention_mask"].to(self.device)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        real = (mask * (1 - encoded["special_tokens_mask"].to(self.device)))[..., None]
        mean = (hidden * real).sum(1) / real.sum(1).clamp(min=1)
        found: np.ndarray = mean.cpu().numpy()
        return found


def sentence_transformer(model: str, device: torch.device, max_length: int) -> Side | None:
    """The side of sentence-transformers, None where it is not installed."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    encoder = SentenceTransformer(model, device=str(device))
    encoder.max_seq_length = max_length

    def encode(texts: list[str]) -> np.ndarray:
        return np.asarray(encoder.encode(texts, batch_size=_BATCH, show_progress_bar=False), dtype=np.float32)

    return encode


def padded_share(lengths: np.ndarray, groups: list[np.ndarray], width: int | None = None) -> float:
    """Share of padding when the rows of each group are padded to their longest, or to `width`."""
    computed = sum(len(group) * (width or int(lengths[group].max())) for group in groups)
    return round(1 - float(lengths.sum()) / computed, 4)


def cosines(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean and smallest cosine of the rows."""
    found = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return {"mean": round(float(found.mean()), 6), "smallest": round(float(found.min()), 6)}


def spread(values: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds."""
    torch.set_num_threads(arguments.threads)
    config = TransformerConfig(model=arguments.model, max_length=arguments.max_length, device=arguments.device)
    fp32 = TransformerConfig(**{**vars(config), "precision": "fp32"})
    ours = TransformerEmbedder(config)
    device = ours._device
    plain = Plain(arguments.model, device, arguments.max_length, True)
    sides: dict[str, Side] = {
        "ours": ours.embed,
        "ours fp32": TransformerEmbedder(fp32).embed,
        _PLAIN: plain,
        "plain, to max_length": Plain(arguments.model, device, arguments.max_length, "max_length"),
    }
    other = sentence_transformer(arguments.model, device, arguments.max_length)
    if other is not None:
        sides["sentence-transformers"] = other
    texts = read_chunks(plain.tokenizer, arguments.corpus, arguments.chunks)
    for side in sides.values():
        side(texts[: 2 * _BATCH])
    rates: dict[str, list[float]] = {name: [] for name in sides}
    vectors: dict[str, np.ndarray] = {}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            vectors[name] = side(texts)
            rates[name].append(len(texts) / (time.perf_counter() - start))
    same = TransformerEmbedder(TransformerConfig(**{**vars(fp32), "pooling": "mean_all"})).embed
    reference = dict.fromkeys(sides, vectors[_PLAIN]) | {"sentence-transformers": same(texts)}
    lengths = np.array(
        [len(row) for row in plain.tokenizer(texts, truncation=True, max_length=arguments.max_length)["input_ids"]]
    )
    in_order = np.split(np.arange(len(texts)), np.arange(_BATCH, len(texts), _BATCH))
    return {
        "model": Path(arguments.model).name,
        "chunks": len(texts),
        "tokens_per_chunk": round(float(lengths.mean()), 1),
        "threads": arguments.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "rounds": arguments.rounds,
        "recipe": {name: ours.identity()[name] for name in ("precision", "batch_tokens", "max_length", "pooling")},
        "chunks_per_second": {name: spread(values) for name, values in rates.items()},
        "ours_is_faster_by": {
            name: spread([a / b for a, b in zip(rates["ours"], values, strict=True)])
            for name, values in rates.items()
            if name != "ours"
        },
        "padding": {
            "ours": padded_share(lengths, batch_rows(lengths, ours.config.batch_tokens)),
            _PLAIN: padded_share(lengths, in_order),
            "plain, to max_length": padded_share(lengths, in_order, arguments.max_length),
        },
        "cosine": {name: cosines(found, reference[name]) for name, found in vectors.items() if name != _PLAIN},
        "hardware": hardware("torch", "transformers", "tokenizers", *(["sentence-transformers"] if other else [])),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an encoder")
    parser.add_argument("--corpus", type=Path, help="a .jsonl file (.gz, .xz); default: installed documentation")
    parser.add_argument("--chunks", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", action="store_true", help=f"add the result to {RECORD}")
    arguments = parser.parse_args()
    result = measure(arguments)
    print(json.dumps(result, indent=1))
    if arguments.record:
        records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(records | {result["device"]: result}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
