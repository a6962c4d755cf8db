"""What may be given to the model: shapes and lengths that fit each other."""

from __future__ import annotations

import torch
from torch import Tensor

from retro.config.model import ModelConfig
from retro.nn.chunked_cross_attention import count_chunks


def check_inputs(
    config: ModelConfig,
    tokens_BN: Tensor,
    neighbors_BLKR: Tensor | None,
    neighbor_mask_BLKR: Tensor | None,
    first_chunk_length: int | None,
    document_starts_BN: Tensor | None,
    chunk_ends_BL: Tensor | None,
) -> int:
    """The first chunk's length, given or by default. Arguments as in RetroModel.forward; raises ValueError."""
    length, chunk = tokens_BN.shape[1], config.chunk_length
    if length < 1:
        raise ValueError("tokens_BN: expected at least one token per sequence, found none")
    if document_starts_BN is not None and document_starts_BN.shape != tokens_BN.shape:
        raise ValueError(
            f"document_starts_BN: expected shape {list(tokens_BN.shape)}, found {list(document_starts_BN.shape)}"
        )
    first = (length - 1) % chunk + 1 if first_chunk_length is None else first_chunk_length
    if first_chunk_length is not None and chunk_ends_BL is not None:
        raise ValueError("first_chunk_length: give it or chunk_ends_BL, not both")
    if not 1 <= first <= chunk:
        raise ValueError(f"first_chunk_length: expected 1..{chunk} (the chunk length), found {first}")
    if neighbors_BLKR is None:
        if neighbor_mask_BLKR is not None:
            raise ValueError("neighbor_mask_BLKR: given without neighbors_BLKR")
        return first
    if not config.is_retro:
        raise ValueError("neighbors_BLKR: this model is a plain GPT (cross_attention_layers is empty); pass None")
    shape = tuple(neighbors_BLKR.shape)
    if chunk_ends_BL is not None:
        if len(shape) != 4 or tuple(chunk_ends_BL.shape) != shape[:2] or shape[0] != tokens_BN.shape[0]:
            raise ValueError(
                f"chunk_ends_BL: expected the [B, L] of neighbors_BLKR, with B = {tokens_BN.shape[0]}, found "
                f"{list(chunk_ends_BL.shape)} for {list(shape)}"
            )
        # Elsewhere the values would have to be waited for.
        if chunk_ends_BL.device.type == "cpu" and not torch.compiler.is_compiling() and chunk_ends_BL.numel():
            last = int(chunk_ends_BL.max())
            if last >= length:
                raise ValueError(f"chunk_ends_BL: expected positions below {length}, found {last}")
    else:
        most = count_chunks(length, chunk, first)
        if len(shape) != 4 or shape[0] != tokens_BN.shape[0] or shape[1] > most:
            raise ValueError(
                f"neighbors_BLKR: expected [{tokens_BN.shape[0]}, at most {most}, K, R] for {length} tokens in "
                f"chunks of {chunk} (first: {first}), found {list(shape)}"
            )
    if neighbor_mask_BLKR is not None and tuple(neighbor_mask_BLKR.shape) != shape:
        raise ValueError(
            f"neighbor_mask_BLKR: expected the shape of neighbors_BLKR {list(shape)}, "
            f"found {list(neighbor_mask_BLKR.shape)}"
        )
    return first
