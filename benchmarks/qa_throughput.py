"""Questions per second: answers generated in batches by length with a cache, against loops over one question at a time.

    python benchmarks/qa_throughput.py [--rounds 3] [--threads 2] [--batch 32] [--questions 96] [--record]

The models of benchmarks/step_models.py (width 256, 8 layers, cross-attention in layers 2, 5, 8, chunks of 64,
vocabulary 16,384) with random weights, float32. Questions of 12 to 30 tokens, passages of 60 to 128. Four arms:
closed_book (a GPT; the question), rag (a GPT; a passage before the question), retro (five passages in the encoder),
retro++ (one before the question, four in the encoder). Random weights do not end a text by themselves, so each question
says how many tokens its answer has: "short" ones 2 to 12 (4.3 on average, with their end), as models that were
fine-tuned on the task write; "full" ones the 24 that an answer may have, as models write that were not. In each round
every side answers in turn:

  recomputed   one question at a time, and for every token the whole sequence and its neighbors through the model again;
  cached       one question at a time through retro.inference, with its cache;
  batched      all questions at once through retro.inference: sorted by length, prompts and neighbors read in batches,
               `--batch` answers decoded side by side.

The first two answer every so many of the questions (`--sample`), evenly over the order by length. All sides must give
the same answers; where one differs, the two tokens must be equally probable to 1e-4, and it is counted. Reported:
medians of questions per second and, within rounds, ratios with quartiles. --record writes
benchmarks/records/qa_throughput.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.generation import interleave
from benchmarks.step_models import GPT, RETRO
from benchmarks.step_time import hardware, spread
from benchmarks.vector_corpus import build_chunks
from retro.inference.language_model import GenerateRequest
from retro.inference.opening import resolve_device
from retro.inference.retro_lm import RetroLM
from retro.model import RetroModel
from retro.retrieval.chunk_text import open_chunk_tokenizer

RECORD = Path(__file__).parent / "records" / "qa_throughput.json"
WINDOW = 512
#: Tokens of an answer that does not end by itself (qa.layout.answer_tokens).
FULL = 24
#: (model, passages in the prompt, passages in the encoder)
ARMS = {"closed_book": ("gpt", 0, 0), "rag": ("gpt", 1, 0), "retro": ("retro", 0, 5), "retro++": ("retro", 1, 4)}


def make_requests(in_prompt: int, in_encoder: int, count: int, vocabulary: int, answers: str) -> list[GenerateRequest]:
    """Questions of random tokens; the same in every arm."""
    generator = np.random.default_rng(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(generator.integers(10, vocabulary, length).tolist())

    requests = []
    for _ in range(count):
        question = tokens(int(generator.integers(12, 31)))
        passages = [tokens(int(generator.integers(60, 129))) for _ in range(5)]
        short = int(np.clip(generator.geometric(0.3) + 1, 2, 12))
        prompt = sum(passages[:in_prompt], ()) + question
        neighbors = tuple(passages[in_prompt : in_prompt + in_encoder])
        requests.append(GenerateRequest(prompt, short if answers == "short" else FULL, neighbors=neighbors))
    return requests


def answer_by_recomputing(lm: RetroLM, request: GenerateRequest) -> tuple[int, ...]:
    """The loop that needs nothing but the model's forward pass."""
    device, model = lm.device, lm.model
    tokens = list(request.prompt)
    given: dict[str, Any] = {}
    if request.neighbors:
        longest = max(map(len, request.neighbors))
        ids = torch.zeros(1, 1, len(request.neighbors), longest, dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for place, content in enumerate(request.neighbors):
            ids[0, 0, place, : len(content)] = torch.tensor(content)
            mask[0, 0, place, : len(content)] = True
        ends = torch.tensor([[len(tokens) - 1]], device=device)
        given = {"neighbors_BLKR": ids.to(device), "neighbor_mask_BLKR": mask.to(device), "chunk_ends_BL": ends}
    for _ in range(request.max_new_tokens):
        with torch.inference_mode():
            hidden = model.hidden_states(torch.tensor([tokens], device=device), **given)[0, -1]
            logits = F.linear(hidden, model.output_weight)
            logits[lm.banned] = -torch.inf
            tokens.append(int(logits.argmax()))
    return tuple(tokens[len(request.prompt) :])


def new_tokens(lm: RetroLM, requests: Sequence[GenerateRequest]) -> list[tuple[int, ...]]:
    """Answers of requests that are given to the model together."""
    return [result.new_tokens for result in lm.generate_until(requests) if result is not None]


def check_answers(
    lm: RetroLM, requests: Sequence[GenerateRequest], one: Sequence[tuple[int, ...]], other: Sequence[tuple[int, ...]]
) -> int:
    """How many answers differ because two tokens are equally probable to 1e-4; raises RuntimeError for any other."""
    different = 0
    for request, a, b in zip(requests, one, other, strict=True):
        place = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
        if place is None:
            continue
        different += 1
        prompt = (*request.prompt, *a[:place])
        # Both are asked for as the first new token: the most probable one's logarithm, and the other's with it banned.
        first = lm.generate_until([GenerateRequest(request.prompt, place + 1, neighbors=request.neighbors)])[0]
        banned, lm.banned = lm.banned, sorted({*lm.banned, a[place]})
        try:
            second = lm.generate_until([GenerateRequest(request.prompt, place + 1, neighbors=request.neighbors)])[0]
        finally:
            lm.banned = banned
        assert first is not None and second is not None
        gap = abs(first.token_logprobs[place] - second.token_logprobs[place])
        if gap > 1e-4:
            raise RuntimeError(f"answers differ after {len(prompt)} tokens: {a} and {b}")
    return different


def measure_arm(lm: RetroLM, requests: list[GenerateRequest], sample: int, batch: int, rounds: int) -> dict[str, Any]:
    """Questions per second of all sides."""
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
    asked = [requests[order[(2 * i + 1) * len(order) // (2 * sample)]] for i in range(sample)]
    answers: dict[str, list[tuple[int, ...]]] = {}

    def side(name: str, answer: Callable[[], list[tuple[int, ...]]], count: int) -> Callable[[], float]:
        def timed() -> float:
            begin = time.perf_counter()
            answers[name] = answer()
            return (time.perf_counter() - begin) / count

        return timed

    def batched() -> list[tuple[int, ...]]:
        lm.batch = batch
        return new_tokens(lm, requests)

    def cached() -> list[tuple[int, ...]]:
        lm.batch = 1
        return [found for request in asked for found in new_tokens(lm, [request])]

    seconds, quiet = interleave(
        {
            "recomputed": side("recomputed", lambda: [answer_by_recomputing(lm, r) for r in asked], sample),
            "cached": side("cached", cached, sample),
            "batched": side("batched", batched, len(requests)),
        },
        rounds,
    )
    of_all = dict(zip(requests, answers["batched"], strict=True))
    differ = [check_answers(lm, asked, answers[name], [of_all[r] for r in asked]) for name in ("recomputed", "cached")]
    out: dict[str, Any] = {"rounds": rounds, "quiet_rounds": quiet, "equally_probable_answers": max(differ)}
    for name, values in seconds.items():
        out[name] = {"questions_per_second": round(1 / statistics.median(values), 2)}
    for name in ("recomputed", "cached"):
        out[f"batched_over_{name}"] = spread(
            [slow / fast for slow, fast in zip(seconds[name], seconds["batched"], strict=True)]
        )
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="2 at least")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--sample", type=int, default=8, help="questions of the sides that answer one at a time")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    models = {}
    for name, config in (("gpt", GPT), ("retro", RETRO)):
        torch.manual_seed(0)
        models[name] = RetroModel(config).eval().to(device)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "hardware": hardware(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "batch": arguments.batch,
        "questions": arguments.questions,
        "sample": arguments.sample,
    }
    with tempfile.TemporaryDirectory() as folder:
        chunks, _ = build_chunks(Path(folder), None, 0.5, GPT.chunk_length, 1)
        tokenizer = open_chunk_tokenizer(chunks)
        for arm in arguments.arms.split(","):
            name, in_prompt, in_encoder = ARMS[arm]
            lm = RetroLM(models[name], tokenizer, window_length=WINDOW, num_neighbors=5 if name == "retro" else 0)
            lm.banned = sorted({*lm.banned, tokenizer.eos_id})
            for answers in ("short", "full"):
                requests = make_requests(in_prompt, in_encoder, arguments.questions, tokenizer.vocab_size, answers)
                # A question of a loop takes several times as long with a full answer.
                sample = arguments.sample if answers == "short" else max(1, arguments.sample // 2)
                measured = measure_arm(lm, requests, sample, arguments.batch, arguments.rounds)
                result[f"{arm}, {answers} answers"] = measured
    print(json.dumps(result, indent=1))
    if arguments.record:
        RECORD.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
