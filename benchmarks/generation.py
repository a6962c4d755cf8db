"""Generation: with a cache against computing the window again for every token, RETRO against GPT, retrieval every s.

    python benchmarks/generation.py [--rounds 9] [--threads 2] [--megabytes 4] [--record]

The models of benchmarks/step_models.py (width 256, 8 layers, cross-attention in layers 2, 5, 8, chunks of 64, 2
neighbors of 128 tokens, vocabulary 16,384) with random weights, float32. In each round every variant decodes a few
tokens in turn, so that noise of the machine hits all alike:

  cached       retro.model.decoding: one token at a time after a prefix of 128, 256, 512 and 1,024 tokens;
  recomputed   the whole prefix through the model for each token (last position only through the vocabulary projection),
               RETRO with the neighbors of all its chunks, as generation without a cache has to;
  engine       retro.inference.engine with live retrieval (BM25 over chunks of the installed packages' documentation)
               every 1, 8 and 64 tokens and with none, 1 and 8 sequences side by side: tokens per second of all; greedy,
               and without retrieval also drawn at temperature 0.7 with top_p 0.95. (Random weights make nearly equal
               probabilities, the longest list to cut.)

Reported: medians and, within rounds, ratios with quartiles. --record writes benchmarks/records/generation.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step_models import CHUNK, GPT, NEIGHBORS, RETRIEVED, RETRO, VOCABULARY
from benchmarks.step_time import cpu_seconds, hardware, spread
from benchmarks.vector_corpus import build_chunks
from data_prep.build_index import build_index_stage
from data_prep.runner import run_stage
from retro.config.generation import SamplingConfig
from retro.config.prep_index import Bm25Config, IndexConfig
from retro.data.chunk_store import open_chunk_store
from retro.inference.engine import Engine
from retro.inference.requests import EngineRequest
from retro.model import RetroModel
from retro.model.decoding import DecodingState
from retro.retrieval.chunk_text import open_chunk_tokenizer
from retro.retrieval.policy import Every, Never
from retro.retrieval.retriever import Retriever
from retro.retrieval.searcher import open_searcher

LENGTHS = (128, 256, 512, 1024)
RECORD = Path(__file__).parent / "records" / "generation.json"
#: Tokens per timed turn.
TURN = 8


def build_models() -> dict[str, RetroModel]:
    """GPT and RETRO with equal decoders."""
    models = {}
    for name, config in (("gpt", GPT), ("retro", RETRO)):
        torch.manual_seed(0)
        models[name] = RetroModel(config).eval()
    return models


def cached_turn(model: RetroModel, length: int) -> Callable[[], float]:
    """Seconds per token for TURN tokens after `length` tokens; RETRO's have neighbors."""
    state = DecodingState(model, 1, length + TURN, NEIGHBORS if model.config.is_retro else 0)
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, VOCABULARY, (length,), generator=generator)
    neighbors = ends = None
    if model.config.is_retro:
        neighbors = torch.randint(0, VOCABULARY, (1, NEIGHBORS, RETRIEVED), generator=generator)
        ends = torch.tensor([length - 1])

    def timed() -> float:
        state.prefill(0, tokens, neighbors, None, ends)
        begin = time.perf_counter()
        for _ in range(TURN):
            state.decode(tokens[:1])
        return (time.perf_counter() - begin) / TURN

    return timed


def recomputed_turn(model: RetroModel, length: int) -> Callable[[], float]:
    """Seconds for one token by the whole prefix."""
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, VOCABULARY, (1, length), generator=generator)
    given: tuple[torch.Tensor, ...] = ()
    if model.config.is_retro:
        given = (torch.randint(0, VOCABULARY, (1, length // CHUNK, NEIGHBORS, RETRIEVED), generator=generator),)

    def timed() -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            F.linear(model.hidden_states(tokens, *given)[:, -1], model.output_weight)
        return time.perf_counter() - begin

    return timed


def measure_decoding(models: dict[str, RetroModel], rounds: int) -> dict[str, Any]:
    """Seconds per token, cached and recomputed."""
    turns: dict[str, Any] = {}
    for name, model in models.items():
        for length in LENGTHS:
            turns[f"{name}-cached-{length}"] = cached_turn(model, length)
            turns[f"{name}-recomputed-{length}"] = recomputed_turn(model, length)
    seconds, quiet = interleave(turns, rounds)
    out: dict[str, Any] = {"rounds": rounds, "quiet_rounds": quiet}
    for name, values in seconds.items():
        out[name] = {"tokens_per_second": round(1 / statistics.median(values), 1)}
    for name in models:
        for length in LENGTHS:
            slow, fast = seconds[f"{name}-recomputed-{length}"], seconds[f"{name}-cached-{length}"]
            out[f"{name}-speedup-{length}"] = spread([s / f for s, f in zip(slow, fast, strict=True)])
        shortest, longest = seconds[f"{name}-cached-{LENGTHS[0]}"], seconds[f"{name}-cached-{LENGTHS[-1]}"]
        ratio = [b / a for a, b in zip(shortest, longest, strict=True)]
        out[f"{name}-seconds-at-{LENGTHS[-1]}-over-{LENGTHS[0]}"] = spread(ratio)
    for length in LENGTHS:
        gpt, retro = seconds[f"gpt-cached-{length}"], seconds[f"retro-cached-{length}"]
        out[f"retro-over-gpt-{length}"] = spread([r / g for r, g in zip(retro, gpt, strict=True)])
    return out


def interleave(turns: dict[str, Callable[[], float]], rounds: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of each variant per round, after one that is not counted; how many rounds were quiet."""
    for turn in turns.values():
        turn()
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    quiet = 0
    for _ in range(rounds):
        busy, own = cpu_seconds()
        begin = time.perf_counter()
        for name, turn in turns.items():
            seconds[name].append(turn())
        busy_after, own_after = cpu_seconds()
        foreign = ((busy_after - busy) - (own_after - own)) / (time.perf_counter() - begin)
        quiet += foreign < 0.08
    return seconds, quiet


def measure_engine(model: RetroModel, root: Path, megabytes: float, rounds: int, new_tokens: int) -> dict[str, Any]:
    """Tokens per second of the engine with live retrieval."""
    chunks, _ = build_chunks(root, None, megabytes, CHUNK, 1)
    config = IndexConfig(kind="bm25", bm25=Bm25Config(max_document_frequency=0.1))
    searcher = open_searcher(run_stage(build_index_stage(config, chunks), root, progress=False))
    store = open_chunk_store(chunks)
    tokenizer = open_chunk_tokenizer(chunks)
    retriever = Retriever(searcher, store)
    # Prompts of the database itself, so that something is found.
    rows = [store.gather_neighbors(torch.tensor([i]).numpy(), 0, CHUNK)[0][0].tolist() for i in range(0, 800, 100)]

    drawn = SamplingConfig(temperature=0.7, top_p=0.95)

    def turn(every: int, batch: int, sampling: SamplingConfig | None = None) -> Callable[[], float]:
        def timed() -> float:
            engine = Engine(
                model,
                tokenizer,
                window_length=512,
                slots=batch,
                num_neighbors=NEIGHBORS,
                retriever=retriever,
                banned=[tokenizer.eos_id, *range(tokenizer.vocab_size, VOCABULARY)],
            )
            policy = Every(every) if every else Never()
            requests = [
                EngineRequest(tuple(rows[i]), new_tokens, sampling or SamplingConfig(), policy=policy)
                for i in range(batch)
            ]
            begin = time.perf_counter()
            done = engine.run(requests)
            made = sum(len(u.finished.new_tokens) for u in done if u.finished is not None)
            return (time.perf_counter() - begin) / made

        return timed

    turns = {f"every-{every}-batch-{batch}": turn(every, batch) for every in (0, 1, 8, 64) for batch in (1, 8)}
    turns |= {f"sampled-0-batch-{batch}": turn(0, batch, drawn) for batch in (1, 8)}
    seconds, quiet = interleave(turns, rounds)
    out: dict[str, Any] = {
        "rounds": rounds,
        "quiet_rounds": quiet,
        "chunks": store.num_chunks,
        "new_tokens": new_tokens,
    }
    for name, values in seconds.items():
        none = seconds["every-0-" + name.split("-", 2)[2]]
        ratio = spread([s / n for s, n in zip(values, none, strict=True)])
        out[name] = {"tokens_per_second": round(1 / statistics.median(values), 1), "seconds_over_no_retrieval": ratio}
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="3 at least")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--megabytes", type=float, default=4.0, help="of text in the engine's database")
    parser.add_argument("--new-tokens", type=int, default=128, help="that the engine generates per sequence")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = build_models()
    result = {
        "decoding": measure_decoding(models, arguments.rounds),
        "hardware": hardware(),
        "torch": torch.__version__,
        "threads": arguments.threads,
    }
    with tempfile.TemporaryDirectory() as folder:
        rounds = max(3, arguments.rounds // 3)
        result["engine"] = measure_engine(
            models["retro"], Path(folder), arguments.megabytes, rounds, arguments.new_tokens
        )
    print(json.dumps(result, indent=1))
    if arguments.record:
        RECORD.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
