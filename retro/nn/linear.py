"""Linear and embedding layers whose weights are left unset at construction.

`retro.model.initialise` sets every parameter of a model by its name, so that a GPT and a RETRO of one seed start from
the same decoder. Torch's own initialisation would only cost time and draw from the random stream, more for the one
than for the other.
"""

from __future__ import annotations

from torch import Tensor, nn


class Linear(nn.Linear):
    """torch.nn.Linear without its initialisation, of one matrix or of several that read the same input.

    parts: rows of each matrix that is fused into `weight`, top to bottom; None = one matrix of out_features rows.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, parts: tuple[int, ...] | None = None) -> None:
        super().__init__(in_features, out_features, bias=bias)
        assert parts is None or sum(parts) == out_features
        self.parts = parts or (out_features,)
        #: int64 [out_features] where the parameters hold their rows in another order than the layer's: row i of them
        #: is the layer's row `row_order[i]`. So it is where a fused layer is split over processes.
        self.row_order: Tensor | None = None

    def reset_parameters(self) -> None:
        """Nothing: the parameters are set by retro.model.initialise, or loaded."""


class Embedding(nn.Embedding):
    """torch.nn.Embedding without its initialisation."""

    def reset_parameters(self) -> None:
        """Nothing: the parameters are set by retro.model.initialise, or loaded."""
