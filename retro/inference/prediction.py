"""What the model says about the next token of each sequence, with the parts that nearly every request needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """Of one sequence. logits: float32 [V]; best: the most probable id that is not banned (the lowest among equals),
    None where the logits are no numbers; best_logit: its logit; normaliser: log of the sum of exp(logits)."""

    logits: Tensor
    best: int | None
    best_logit: float
    normaliser: float

    def logprob(self, token: int) -> float:
        """Natural log of the model's probability of a token, before temperature, penalties and cuts."""
        return (self.best_logit if token == self.best else float(self.logits[token])) - self.normaliser


def read_predictions(logits_AV: Tensor, banned: Tensor, most_probable: bool) -> list[Prediction]:
    """Of logits float32 [A, V]; banned int64 [any]: ids that are never drawn, on the same device.

    most_probable: only the most probable tokens are asked for, and the logits themselves stay where they are: one
    transfer of a few numbers per sequence instead of the whole vocabulary.
    """
    normalisers = torch.logsumexp(logits_AV, dim=1)
    # The raw logits stay as they are: probabilities are those of the model.
    allowed = logits_AV.index_fill(1, banned, -torch.inf) if len(banned) else logits_AV
    values, ids = allowed.max(dim=1)
    numbers = torch.stack((values.double(), normalisers.double(), ids.double())).tolist()
    rows = logits_AV if most_probable else logits_AV.cpu()
    return [
        Prediction(row, int(best) if math.isfinite(value) else None, value, normaliser)
        for row, value, normaliser, best in zip(rows, *numbers, strict=True)
    ]
