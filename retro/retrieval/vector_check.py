"""The check that vectors are numbers: NaN compares with nothing, so that an index of such vectors finds anything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retro.config.errors import RetroError


def check_finite(vectors: np.ndarray, name: Callable[[int], str]) -> None:
    """Raise RetroError naming the first row that has NaN or infinity. name: what a row is called."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise RetroError(
            f"{name(int(bad[0]))}: its vector is not finite ({len(bad)} of {len(vectors)} like it); "
            "the encoder's weights may be damaged, or precision=bf16 not enough for it: try precision=fp32"
        )
