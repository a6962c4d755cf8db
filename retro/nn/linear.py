"""Linear and embedding layers whose weights are left unset at construction.

`retro.model.initialise` sets every parameter of a model by its name, so that a GPT and a RETRO of one seed start from
the same decoder. Torch's own initialisation would only cost time and draw from the random stream, more for the one
than for the other.
"""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """torch.nn.Linear without its initialisation."""

    def reset_parameters(self) -> None:
        """Nothing: the parameters are set by retro.model.initialise, or loaded."""


class Embedding(nn.Embedding):
    """torch.nn.Embedding without its initialisation."""

    def reset_parameters(self) -> None:
        """Nothing: the parameters are set by retro.model.initialise, or loaded."""
