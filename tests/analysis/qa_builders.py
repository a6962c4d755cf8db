"""Run folders with evaluations of task qa, made from a seed: a closed-book model that knows what is popular, and arms
that answer what was retrieved for them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from retro.analysis.adaptive import AdaptiveSettings, analyse_adaptive
from retro.analysis.adaptive_prices import Prices
from retro.analysis.adaptive_questions import pair_answers
from retro.analysis.adaptive_splits import SplitPlan
from tests.analysis.builders import release, write_json, write_metrics

RELATIONS = ("capital", "author", "director", "sport")
METRICS = ("exact_match", "f1", "substring")
EDGES = [1, 10, 100, 1000, 10_000, 100_000]
# Chance to answer a question with an answer in the passages, and without one beyond what the model knows.
ARMS = {
    "closed_book": (0.0, 1.0),
    "rag": (0.45, 0.7),
    "retro": (0.6, 0.7),
    "retro++": (0.62, 0.7),
    "retro/random": (0.0, 0.9),
    "retro/gate_0": (0.0, 1.0),
    "retro/oracle": (0.75, 0.6),
}


def questions(count: int, seed: int) -> list[dict]:
    """What rows of every arm share."""
    rng = np.random.default_rng([seed, 1])
    rows = []
    for i in range(count):
        popularity = float(round(10 ** rng.uniform(0.3, 5.2)))
        rank = int(rng.geometric(0.45)) - 1 if rng.random() < 0.8 else None
        rows.append(
            {
                "id": f"q{i:04d}",
                "question": f"What is the {RELATIONS[i % 4]} of entity {i}?",
                "answers": [f"Answer {i}", f"the answer {i}"],
                "group": "popqa" if i % 3 else "squad",
                "relation": RELATIONS[i % 4],
                "subject": f"entity {i}",
                "popularity": popularity,
                "object_popularity": None,
                "seen": bool(i // 2 % 2),
                "evidence": [f"doc-{i // 2}"],
                "num_retrieved": 20,
                "evidence_rank": None if rank is None or rng.random() < 0.1 else rank,
                "answer_rank": rank,
            }
        )
    return rows


def answered(row: dict, arm: str, passages: int, seed: int, chance: Callable[[dict, str, int], float] | None) -> bool:
    """Whether an arm gets a question right; the same luck in every arm, as models resemble each other."""
    if chance is None:
        found = row["answer_rank"] is not None and row["answer_rank"] < given(arm, passages)
        reading, knowing = ARMS[arm]
        knows = 1 / (1 + math.exp(-1.1 * (math.log(row["popularity"]) - 8.0)))
        p = 1 - (1 - knowing * knows) * (1 - (reading if found or arm.endswith("oracle") else 0.0))
    else:
        p = chance(row, arm, passages)
    number = int(row["id"][1:])
    shared = np.random.default_rng([seed, number, 7]).random()
    own = np.random.default_rng([seed, number, sum(map(ord, arm)), passages]).random()
    return (shared if own < 0.6 else np.random.default_rng([seed, number, 11, sum(map(ord, arm))]).random()) < p


def given(arm: str, passages: int) -> int:
    """Passages that an arm reads."""
    return 0 if arm in ("closed_book", "retro/gate_0") else 1 if arm == "rag" else passages


def holds_answer(row: dict, arm: str, passages: int) -> bool | None:
    """Whether what an arm reads holds an answer; None if it reads nothing."""
    count = given(arm, passages)
    return None if not count else row["answer_rank"] is not None and row["answer_rank"] < count


def write_qa(
    folder: Path,
    model: str,
    arms: Sequence[str],
    *,
    name: str = "qa-popqa-test",
    count: int = 240,
    passages: int = 5,
    shots: int = 0,
    seed: int = 0,
    chance: Callable[[dict, str, int], float] | None = None,
    latency: bool = True,
) -> Path:
    """eval/<name> of task qa: results.json, responses.jsonl, scores.jsonl. chance: of a right answer."""
    target = folder / "eval" / name
    target.mkdir(parents=True)
    responses, scores = [], []
    for arm in arms:
        for row in questions(count, seed):
            right = answered(row, arm, passages, seed, chance)
            where = "prompt" if arm == "rag" else "encoder"
            read = [{"document": f"doc-{k}", "chunk": k, "where": where} for k in range(given(arm, passages))]
            tokens = 24 + (60 if arm in ("rag", "retro++") else 0)
            responses.append(
                row
                | {
                    "arm": arm,
                    "text": f" {row['answers'][0]}\nand more" if right else " Something else",
                    "prediction": row["answers"][0] if right else "Something else",
                    "token_logprobs": [-0.2 if right else -1.1, -0.1],
                    "prompt_tokens": tokens,
                    "encoder_tokens": 64 * len(read) if where == "encoder" else 0,
                    "new_tokens": 2,
                    "seconds": 0.004 + 0.00005 * tokens + 0.002 * len(read),
                    "latency_ms": 20.0 + 0.1 * tokens + 6.0 * len(read) if latency else None,
                    "passages": read,
                    "answer_given": holds_answer(row, arm, passages),
                    "truncated_passage": False,
                }
            )
            partial = 0.5 if not right and int(row["id"][1:]) % 5 == 0 else 0.0
            values = {"exact_match": float(right), "f1": 1.0 if right else partial, "substring": float(right)}
            scores.append({"id": row["id"], "arm": arm, **values})
    write_lines(target / "responses.jsonl", responses)
    write_lines(target / "scores.jsonl", scores)
    write_json(target / "results.json", results(model, arms, responses, scores, passages, shots, folder.name))
    return target


def results(
    model: str, arms: Sequence[str], responses: list[dict], scores: list[dict], passages: int, shots: int, run: str
) -> dict:
    """results.json as `retro eval` writes it."""
    mean = lambda values: sum(values) / len(values) if values else None  # noqa: E731
    by_arm = {arm: [s for s in scores if s["arm"] == arm] for arm in arms}
    rows = [r for r in responses if r["arm"] == arms[0]]
    recall = lambda rank, k: mean([float(r[rank] is not None and r[rank] < k) for r in rows])  # noqa: E731
    cost = {
        arm: {
            key: mean([r[field] for r in responses if r["arm"] == arm and r[field] is not None])
            for key, field in (
                ("seconds", "seconds"), ("prompt_tokens", "prompt_tokens"), ("encoder_tokens", "encoder_tokens"),
                ("new_tokens", "new_tokens"), ("latency_ms", "latency_ms"),
            )
        }
        for arm in arms
    }  # fmt: skip
    return {
        "task": "qa", "version": 1, "split": "test", "model": model,
        "parameters": 2_412_000 if model == "retro" else 2_104_000, "precision": "fp32",
        "checkpoint": f"runs/{run}/checkpoints/step_001200", "checkpoint_fingerprint": "1234567890abcdef", "step": 1200,
        "task_definition": {
            "name": "popqa", "version": 1, "title": "PopQA", "metrics": list(METRICS), "primary": "exact_match",
        },
        "qa": {
            "questions": "0123456789abcdef", "shots": shots,
            "layout": {"passages": passages, "passage_tokens": 128, "prompt_chunks": 8, "answer_tokens": 24},
        },
        "arms": {
            arm: {m: mean([s[m] for s in found]) for m in METRICS} | {"n": len(found), "missing": 0}
            for arm, found in by_arm.items()
        },
        "by_popularity": {"edges": EDGES},
        "retrieval": {
            "evidence": {str(k): recall("evidence_rank", k) for k in (1, 2, 5)},
            "answer": {str(k): recall("answer_rank", k) for k in (1, 2, 5)},
        },
        "baselines": {"commonest_answer": {"exact_match": 0.02, "f1": 0.03, "substring": 0.02}},
        "cost": cost,
    }  # fmt: skip


def write_lines(path: Path, lines: Sequence[dict]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def build_qa_run(folder: Path, model: str, arms: Sequence[str], *, metrics: bool = False, **options) -> Path:
    """A run folder with one evaluation of task qa and nothing else."""
    folder.mkdir(parents=True)
    layers = "[4, 6]" if model == "retro" else "[]"
    (folder / "config.yaml").write_text(f"name: {folder.name}\nmodel:\n  cross_attention_layers: {layers}\n")
    write_json(folder / "release.json", release())
    if metrics:
        write_metrics(folder / "metrics.jsonl", model, 0.05, 0)
    write_qa(folder, model, arms, **options)
    return folder


def build_qa_pair(root: Path, *, metrics: bool = False, **options) -> tuple[Path, Path]:
    """runs/qa-gpt (closed book, RAG) and runs/qa-retro (RETRO with its controls, RETRO++), with 1, 2 and 5 passages."""
    gpt = build_qa_run(root / "qa-gpt", "gpt", ("closed_book", "rag"), metrics=metrics, **options)
    arms = ("retro", "retro/gate_0", "retro/random", "retro++")
    retro = build_qa_run(root / "qa-retro", "retro", arms, metrics=metrics, **options)
    for passages in (1, 2):
        write_qa(retro, "retro", ("retro",), name=f"qa-k{passages}", passages=passages, **options)
    return gpt, retro


def write_adaptive(
    evaluation: Path, closed: Path, retrieval: str = "retro", splits: int = 20, prices: Prices | None = None
) -> None:
    """adaptive.json in `evaluation` as `retro qa adaptive` writes it, with the closed book of another one."""
    rows = {path: read_lines(path / "responses.jsonl") for path in (evaluation, closed)}
    scores = {(s["arm"], s["id"]): s["exact_match"] for path in rows for s in read_lines(path / "scores.jsonl")}
    settings = AdaptiveSettings(SplitPlan(splits=splits), draws=200)
    questions = pair_answers(
        [row for row in rows[closed] if row["arm"] == "closed_book"],
        [row for row in rows[evaluation] if row["arm"] == retrieval],
        lambda row: scores[row["arm"], row["id"]],
        prices,
    )
    figures = analyse_adaptive(questions, ("popularity", "confidence"), settings).figures
    content = {
        "format": 1, "task": "popqa", "split": "test", "metric": "exact_match", "settings": settings.to_json(),
        "comparisons": [figures],
    }  # fmt: skip
    write_json(evaluation / "adaptive.json", content)
