"""Random generators of the processes: seeding, saving, restoring. Only dropout draws from them during training."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from retro.train.distributed import Processes


def seed_process(seed: int, processes: Processes) -> None:
    """Give every process that sees other sequences a random stream of its own, a function of (seed, data_rank)."""
    digest = hashlib.blake2b(f"{seed}:{processes.data_rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def generator_states(processes: Processes) -> dict[str, Tensor]:
    """States of the generators of all data ranks: "cpu", and "cuda" on such devices: uint8 [data_world, n]."""
    states = {"cpu": torch.get_rng_state()}
    if processes.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(processes.device)
    return {kind: processes.of_data(processes.gather_rows(state)).contiguous() for kind, state in states.items()}


def restore_generators(states: dict[str, Tensor], processes: Processes) -> None:
    """Restore what `generator_states` gave. A rank that was not there keeps the stream of `seed_process`, and so does
    a device of a kind that was not there."""
    if processes.data_rank >= len(states["cpu"]):
        return
    torch.set_rng_state(states["cpu"][processes.data_rank].clone())
    if processes.device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"][processes.data_rank].clone(), processes.device)
