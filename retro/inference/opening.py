"""Open a trained model with what it retrieves from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from retro.artifacts.release import open_release
from retro.config.errors import ConfigError
from retro.data.chunk_store import open_chunk_store
from retro.data.release_match import check_database
from retro.data.tokenizer import open_tokenizer
from retro.inference.checkpoint import Checkpoint, open_checkpoint
from retro.inference.evidence import open_retriever
from retro.inference.retro_lm import RetroLM

if TYPE_CHECKING:
    from retro.artifacts.release import Release
    from retro.retrieval.policy import RetrievalPolicy


def open_language_model(
    checkpoint: str | Path | Checkpoint,
    *,
    release: str | Path | None = None,
    database: str | Path | None = None,
    num_neighbors: int | None = None,
    retrieval: bool = True,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    batch: int = 8,
    window_length: int | None = None,
    policy: RetrievalPolicy | None = None,
) -> tuple[RetroLM, Release]:
    """A model with live retrieval from a run or checkpoint folder, and the release it works with.

    release: None = the run's; database: another release, whose database is retrieved from instead; num_neighbors,
    window_length: None = as trained; retrieval False: no retriever is opened.
    Raises ConfigError and ArtifactError subclasses.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    found = open_release(opened.release_path(None if release is None else str(release)))
    tokenizer = open_tokenizer(found.tokenizer)
    opened.check_tokenizer(tokenizer.fingerprint, str(found.path))
    model = opened.load_model(resolve_device(device))
    other = None if database is None else open_release(database)
    if other is not None:
        if not (retrieval and model.config.is_retro):
            raise ConfigError("database: nothing is retrieved (a model without retrieval, or switched off); remove it")
        check_database(found, other)
    retriever = open_retriever(found, device, other) if retrieval and model.config.is_retro else None
    lm = RetroLM(
        model,
        tokenizer,
        window_length=opened.setting("sequence_length", window_length),
        num_neighbors=opened.setting("num_neighbors", num_neighbors) if model.config.is_retro else 0,
        retriever=retriever,
        database=open_chunk_store((other or found).database_chunks) if model.config.is_retro else None,
        precision=precision,
        batch=batch,
        policy=policy,
        name=opened.name,
    )
    return lm, found


def resolve_device(device: str) -> str:
    """ "auto" is cuda where there is one. Raises ConfigError for a device that torch does not know or have."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
