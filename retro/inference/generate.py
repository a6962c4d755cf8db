"""Continue a prompt token by token, retrieving at the end of every chunk.

The prompt is right-aligned: its last token ends a chunk (left padding in Wang et al. 2023, section 4.2; here a short
first chunk instead of padding), so already the first new token is served by neighbors of the prompt, however short.
Every step runs the whole window again; the window is kept within the trained length by dropping leading chunks.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retro.config.errors import ConfigError
from retro.config.evaluation import SamplingConfig
from retro.inference.evidence import describe_neighbors
from retro.inference.language_model import ChunkEvidence

if TYPE_CHECKING:
    from retro.model import RetroModel
    from retro.retrieval.retriever import Retriever


@dataclasses.dataclass(frozen=True)
class Step:
    """One new token, and the retrieval that was made before it, if any."""

    token: int
    evidence: ChunkEvidence | None


class Window:
    """The tokens that the model sees, with the neighbors of each complete chunk.

    Chunks are counted from the window's begin: the first has `first` tokens (1..M), the others M. The oldest chunks are
    dropped whole, so that the window never exceeds `limit` tokens and chunk borders stay where they are.
    """

    def __init__(self, tokens: Sequence[int], chunk_length: int, limit: int) -> None:
        """`tokens`: at least one; the last one ends a chunk. limit: at least M + 1."""
        if len(tokens) < 1:
            raise ValueError("tokens: expected at least one token of prompt, found none")
        if limit <= chunk_length:
            raise ConfigError(f"sequence_length: expected more than one chunk of {chunk_length} tokens, found {limit}")
        self.chunk_length, self.limit = chunk_length, limit
        self.tokens = list(tokens)
        self.first = (len(self.tokens) - 1) % chunk_length + 1
        self.dropped = 0
        #: Neighbor ids of each complete chunk in the window; None = not retrieved yet.
        self.neighbors: list[np.ndarray | None] = [None] * self._complete()

    def _complete(self) -> int:
        length = len(self.tokens)
        return 0 if length < self.first else 1 + (length - self.first) // self.chunk_length

    def append(self, token: int) -> None:
        """Add a token, dropping leading chunks if there is no room for it."""
        while len(self.tokens) >= self.limit:
            del self.tokens[: self.first]
            del self.neighbors[0]
            self.dropped += self.first
            self.first = self.chunk_length
        self.tokens.append(token)
        if self._complete() > len(self.neighbors):
            self.neighbors.append(None)

    def fit(self) -> None:
        """Drop leading chunks of a long prompt, so that the window is within the limit."""
        while len(self.tokens) > self.limit:
            del self.tokens[: self.first]
            del self.neighbors[0]
            self.dropped += self.first
            self.first = self.chunk_length

    def span(self, chunk: int) -> tuple[int, int]:
        """First token and the one behind the last of a chunk, counted in the window."""
        stop = self.first + chunk * self.chunk_length
        return max(0, stop - self.chunk_length), stop


class EvidenceRetriever:
    """Retrieves for the chunks of a window, and gives the model its neighbor tokens."""

    def __init__(self, retriever: Retriever, num_neighbors: int, pad_id: int) -> None:
        self.retriever, self.num_neighbors, self.pad_id = retriever, num_neighbors, pad_id

    def retrieve(self, window: Window) -> list[ChunkEvidence]:
        """Retrieve for every complete chunk that has not been yet."""
        missing = [i for i, ids in enumerate(window.neighbors) if ids is None]
        if not missing:
            return []
        spans = [window.span(i) for i in missing]
        rows = [np.array(window.tokens[start:stop], dtype=np.int64) for start, stop in spans]
        ids, distances = self.retriever.retrieve(rows, self.num_neighbors)
        evidence = []
        for row, (chunk, (start, stop)) in enumerate(zip(missing, spans, strict=True)):
            window.neighbors[chunk] = ids[row]
            found = describe_neighbors(self.retriever.database, ids[row], distances[row])
            evidence.append(ChunkEvidence(window.dropped + start, window.dropped + stop, found))
        return evidence

    def neighbor_tokens(self, window: Window, device: torch.device) -> tuple[Tensor, Tensor]:
        """(neighbors int64 [1, L, K, R], mask bool) of the window's complete chunks."""
        ids = np.stack([row for row in window.neighbors if row is not None])[None]
        tokens, mask = self.retriever.database.gather_neighbors(ids, self.pad_id)
        return torch.from_numpy(tokens).to(device, torch.int64), torch.from_numpy(mask).to(device)


def generate_tokens(
    model: RetroModel,
    prompt: Sequence[int],
    *,
    window_length: int,
    sampling: SamplingConfig,
    banned: Sequence[int] = (),
    evidence: EvidenceRetriever | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Iterator[Step | ChunkEvidence]:
    """Yield what was retrieved for the prompt's chunks (ChunkEvidence), then new tokens (Step) without end.

    prompt: token ids, at least one; window_length: most tokens the model sees, at least M + 1; banned: ids that are
    never drawn. Deterministic for given arguments, the sampling seed included.
    """
    device = next(model.parameters()).device
    window = Window(prompt, model.config.chunk_length, window_length)
    window.fit()
    generator = torch.Generator().manual_seed(sampling.seed)
    first = evidence.retrieve(window) if evidence else []
    yield from first[:-1]
    latest: ChunkEvidence | None = first[-1] if first else None
    while True:
        tokens = torch.tensor([window.tokens], device=device)
        neighbors = mask = None
        if evidence is not None:
            neighbors, mask = evidence.neighbor_tokens(window, device)
        logits = next_logits(model, tokens, neighbors, mask, window.first, precision)[0]
        token = sample(logits, sampling, generator, banned)
        yield Step(token, latest)
        window.append(token)
        found = evidence.retrieve(window) if evidence else []
        latest = found[-1] if found else None


def next_logits(
    model: RetroModel,
    tokens_BN: Tensor,
    neighbors_BLKR: Tensor | None,
    neighbor_mask_BLKR: Tensor | None,
    first_chunk_length: int,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Tensor:
    """Logits float32 [B, V] of the token after the last one, on the CPU. Arguments as RetroModel.forward."""
    with inference(tokens_BN.device, precision):
        hidden = model.hidden_states(
            tokens_BN, neighbors_BLKR, neighbor_mask_BLKR, first_chunk_length=first_chunk_length
        )
        return F.linear(hidden[:, -1], model.output_weight).float().cpu()


@contextlib.contextmanager
def inference(device: torch.device, precision: Literal["fp32", "bf16"]) -> Iterator[None]:
    """Without gradients, with matrix products in the given precision. Not to be held open across a yield."""
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def sample(logits: Tensor, sampling: SamplingConfig, generator: torch.Generator, banned: Sequence[int] = ()) -> int:
    """Draw a token id from logits [V]; temperature 0 takes the most probable one (the lowest id among equals)."""
    logits = logits.clone()
    if banned:
        logits[torch.tensor(list(banned))] = -torch.inf
    if sampling.temperature == 0:
        return int(logits.argmax())
    # Sorted, so that equal probabilities are cut in a fixed order.
    ordered, ids = torch.sort(logits.double() / sampling.temperature, descending=True, stable=True)
    probabilities = torch.softmax(ordered, dim=0)
    if sampling.top_k is not None:
        probabilities[sampling.top_k :] = 0
    if sampling.top_p < 1:
        before = probabilities.cumsum(0) - probabilities
        probabilities[before >= sampling.top_p * probabilities.sum()] = 0
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
