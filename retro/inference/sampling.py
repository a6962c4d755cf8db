"""Draw the next token of one sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

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
        self.sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._banned = torch.tensor(list(banned), dtype=torch.int64)
        self._said: Tensor | None = None
        if sampling.repetition_penalty != 1.0:
            self._said = torch.zeros(vocabulary, dtype=torch.bool)
            self._said[torch.tensor(list(prompt), dtype=torch.int64)] = True

    def draw(self, logits: Tensor) -> int:
        """A token id for logits float [V]; temperature 0 takes the most probable one (the lowest id among equals)."""
        token = self._draw(self._penalised(logits))
        if self._said is not None:
            self._said[token] = True
        return token

    def _penalised(self, logits: Tensor) -> Tensor:
        logits = logits.float().clone()
        if self._said is not None:
            # Keskar et al. 2019, "CTRL", section 4.1, where negative logits are multiplied instead.
            said, penalty = logits[self._said], self.sampling.repetition_penalty
            penalised = torch.where(said > 0, said / penalty, said * penalty)
            logits[self._said] = penalised.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
        logits[self._banned] = -torch.inf
        return logits

    def _draw(self, logits: Tensor) -> int:
        sampling = self.sampling
        if sampling.temperature == 0:
            return int(logits.argmax())
        # Sorted, so that equal probabilities are cut in a fixed order.
        ordered, ids = torch.sort(logits.double(), descending=True, stable=True)
        # The largest is subtracted first: divided by a temperature next to 0 it would be infinite.
        probabilities = torch.softmax((ordered - ordered[0]) / sampling.temperature, dim=0)
        if sampling.top_k is not None:
            probabilities[sampling.top_k :] = 0
        if sampling.top_p < 1:
            before = probabilities.cumsum(0) - probabilities
            probabilities[before >= sampling.top_p * probabilities.sum()] = 0
        return int(ids[torch.multinomial(probabilities, 1, generator=self._generator)])


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
