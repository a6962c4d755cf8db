"""What retrieval costs at the sizes of the NVIDIA study, by counted operations and by parameters.

    python benchmarks/model_flops.py [--length 2048] [--neighbors 2] [--record]

For Small, Medium, XL and XXL of Wang et al. 2023 (configs/model/{small,medium,xl,xxl}_{gpt,retro}.yaml, and the *_fast
presets of these sizes): the operations of a training step per token (retro/model/flops.py, tested against torch's own
counter) and the parameters, RETRO over GPT, beside the overhead in A100-hours that the study measured with Megatron
(table 11). Sequences of 2,048 tokens in chunks of 64 with 2 neighbors of 128 tokens, as in the study; the neighbors of
a sequence's last chunk serve no scored position and are not encoded (`all chunks`: they are, as in Megatron).

Counted operations are no time: they say what remains to be paid when the hardware is used equally well, and where to
save. Takes seconds and no hardware in particular; the record is benchmarks/records/model_flops.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from retro.config.model import ModelConfig
from retro.model import RetroModel, count_parameters
from retro.model.flops import Flops, sequence_flops
from retro.model.presets import load_preset, preset_names

SIZES = ("small", "medium", "xl", "xxl")
#: GPT-2's, padded, as in the study.
VOCABULARY = ("vocab_size=51200",)
#: A100-hours of RETRO over GPT, 330 billion tokens (Wang et al. 2023, table 11).
PUBLISHED = {"small": 1560 / 1240 - 1, "medium": 4480 / 3600 - 1, "xl": 13440 / 12000 - 1}
RECORD = Path(__file__).parent / "records" / "model_flops.json"


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return count_parameters(RetroModel(config))


def flops(config: ModelConfig, length: int, neighbors: int, last_chunk: bool = False) -> Flops:
    """Operations of one sequence."""
    if not config.is_retro:
        return sequence_flops(config, length)
    chunks = length // config.chunk_length - (0 if last_chunk else 1)
    return sequence_flops(config, length, retrieved_chunks=chunks, num_neighbors=neighbors)


def size_row(size: str, kind: str, length: int, neighbors: int) -> dict[str, Any]:
    """Figures of one RETRO against the GPT of its size."""
    gpt, retro = (load_preset(f"{size}_{name}", VOCABULARY) for name in ("gpt", kind))
    base, own = flops(gpt, length, neighbors), flops(retro, length, neighbors)
    every = flops(retro, length, neighbors, last_chunk=True)
    own_parameters, base_parameters = parameters(retro), parameters(gpt)
    row: dict[str, Any] = {
        "gpt_parameters": base_parameters,
        "parameters": own_parameters,
        "parameter_overhead": round(own_parameters / base_parameters - 1, 4),
        "gpt_training_gflop_per_token": round(base.training / length / 1e9, 4),
        "training_gflop_per_token": round(own.training / length / 1e9, 4),
        "overhead": round(own.training / base.training - 1, 4),
        "overhead_all_chunks": round(every.training / base.training - 1, 4),
        "encoder_overhead": round(own.encoder / base.forward, 4),
        "cross_attention_overhead": round(own.cross_attention / base.forward, 4),
    }
    if kind == "retro" and size in PUBLISHED:
        row["published_overhead_gpu_hours"] = round(PUBLISHED[size], 4)
    return row


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as text."""
    heads = ("preset", "parameters", "GFLOP/token", "operations", "encoder", "cross-att.", "all chunks", "published")
    lines = ["".join(f"{head:>14}" for head in heads)]
    for name, row in rows.items():
        published = row.get("published_overhead_gpu_hours")
        cells = (
            name,
            f"{row['parameters'] / 1e6:,.0f}M {row['parameter_overhead']:+.1%}",
            f"{row['training_gflop_per_token']:.3f}",
            f"{row['overhead']:+.1%}",
            f"{row['encoder_overhead']:+.1%}",
            f"{row['cross_attention_overhead']:+.1%}",
            f"{row['overhead_all_chunks']:+.1%}",
            "-" if published is None else f"{published:+.1%}",
        )
        lines.append("".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--neighbors", type=int, default=2)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD}")
    arguments = parser.parse_args()
    known = preset_names()
    rows = {
        f"{size}_{kind}": size_row(size, kind, arguments.length, arguments.neighbors)
        for size in SIZES
        for kind in ("retro", "fast")
        if f"{size}_{kind}" in known
    }
    print(table(rows))
    if arguments.record:
        RECORD.parent.mkdir(exist_ok=True)
        record = {"length": arguments.length, "neighbors": arguments.neighbors, "presets": rows}
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
