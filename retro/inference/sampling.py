"""Draw the next token of one sequence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from retro.config.errors import ArtifactCorruptError
from retro.config.generation import SamplingConfig

#: Where penalties would make a logit infinite.
_LARGEST_LOGIT = torch.finfo(torch.float32).max


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """Natural log of the model's probability of a token, before temperature, penalties and cuts; top: the most probable
    tokens and theirs, most probable first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """The draws of one request: its own random stream, so that they do not depend on what else is decoded.

    prompt: ids that the repetition penalty counts as said; banned: ids that are never drawn; vocabulary: V of the
    logits.
    """

    def __init__(self, sampling: SamplingConfig, prompt: Sequence[int], banned: Sequence[int], vocabulary: int) -> None:
        self.sampling, self._vocabulary = sampling, vocabulary
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._banned = torch.tensor(list(banned), dtype=torch.int64)
        self._said = set(prompt) if sampling.repetition_penalty != 1.0 else set()
        self._said_ids = torch.tensor(sorted(self._said), dtype=torch.int64)

    def draw(self, logits: Tensor, best: int | None = None) -> int:
        """A token id for logits float [V]; temperature 0 takes the most probable one (the lowest id among equals).

        best: the most probable id that is not banned, where that is known. Raises ArtifactCorruptError for logits that
        are not numbers."""
        if len(logits) != self._vocabulary:
            raise ValueError(f"logits: expected {self._vocabulary}, found {len(logits)}")
        if best is not None and self.sampling.temperature == 0 and self.sampling.repetition_penalty == 1.0:
            return best
        token = self._draw(self._penalised(logits))
        if self.sampling.repetition_penalty != 1.0 and token not in self._said:
            self._said.add(token)
            self._said_ids = torch.cat([self._said_ids, torch.tensor([token])])
        return token

    def _penalised(self, logits: Tensor) -> Tensor:
        logits = logits.to("cpu", torch.float32, copy=True)
        if len(self._said_ids):
            # Keskar et al. 2019, "CTRL", section 4.1, where negative logits are multiplied instead.
            said, penalty = logits[self._said_ids], self.sampling.repetition_penalty
            penalised = torch.where(said > 0, said / penalty, said * penalty)
            logits[self._said_ids] = penalised.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
        logits[self._banned] = -torch.inf
        return logits

    def _draw(self, logits: Tensor) -> int:
        sampling, largest = self.sampling, float(logits.max())
        if not math.isfinite(largest):
            raise ArtifactCorruptError(f"model: expected finite logits, found {largest}; use another checkpoint")
        if sampling.temperature == 0:
            return int(logits.argmax())
        # The largest is subtracted first: divided by a temperature next to 0 it would be infinite.
        weights = torch.exp((logits.double() - largest) / sampling.temperature).numpy()
        ids = likely_ids(logits.numpy(), weights, sampling.top_k, sampling.top_p)
        # One random number per token, whatever is cut: where it falls among the weights laid end to end.
        bounds = (weights if ids is None else weights[ids]).cumsum()
        number = float(torch.rand((), dtype=torch.float64, generator=self._generator))
        # Below the whole: the product may round up to it, and weights at the end may be 0.
        place = int(np.searchsorted(bounds, min(number * bounds[-1], np.nextafter(bounds[-1], 0)), side="right"))
        return place if ids is None else int(ids[place])


def likely_ids(logits: np.ndarray, weights: np.ndarray, top_k: int | None, top_p: float) -> np.ndarray | None:
    """Ids, ascending, that the cuts leave; None = all. Of equal logits the lowest ids stay.

    logits float [V]; weights float64 [V]: proportional to probabilities, in the same order; top_k: so many; then top_p:
    the fewest of these that have this share of their weight. The vocabulary is never sorted whole: that would take
    longer than a small model does.
    """
    ids = None
    if top_k is not None and top_k < len(logits):
        ids = _largest(logits, top_k)
        logits, weights = logits[ids], weights[ids]
    if top_p < 1:
        total = weights.sum()
        # All smaller ones together have less than the share that is cut.
        candidates = np.sort(weights[weights >= 0.5 * (1 - top_p) * total / len(weights)])[::-1]
        before = candidates.cumsum() - candidates
        kept = _largest(logits, int((before < top_p * total).sum()))
        ids = kept if ids is None else ids[kept]
    return ids


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices, ascending, of the `count` largest values; of equal ones the lowest indices."""
    if count >= len(values):
        return np.arange(len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    above, equal = np.flatnonzero(values > least), np.flatnonzero(values == least)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def token_logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """Of `token` under logits [V], with the `top` most probable ones."""
    logprobs = torch.log_softmax(logits.double(), dim=0)
    values, ids = torch.topk(logprobs, min(top, len(logprobs))) if top else (logprobs[:0], logprobs[:0])
    return TokenLogprob(float(logprobs[token]), tuple((int(i), float(v)) for i, v in zip(ids, values, strict=True)))


def probability_and_entropy(logits: Tensor, token: int) -> tuple[float, float]:
    """Probability of `token` and entropy in nats of the distribution of logits [V]."""
    logprobs = torch.log_softmax(logits.double(), dim=0)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs.clamp(min=-1e4)).sum()
    return float(probabilities[token]), float(entropy)
