"""Multi-head attention on scaled_dot_product_attention: of a sequence to itself, and of neighbor tokens to a chunk.

Heads are kept as [..., T, heads, E] ("token major") until the attention product, so that projections are plain matrix
products and one rotation serves queries and keys together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.nn.documents import Documents
from retro.nn.linear import Linear
from retro.nn.norm import RMSNorm
from retro.nn.rotary import RotaryTable, rotate
from retro.nn.short_attention import is_short_attention, short_attention


@dataclass(frozen=True)
class AttentionShape:
    """What all attention layers of a stack share."""

    num_heads: int
    num_kv_heads: int
    head_width: int
    bias: bool
    qk_norm: bool
    smear_keys: bool
    norm_eps: float
    dropout: float


@dataclass(frozen=True)
class HeadShare:
    """The part of an attention layer's heads that this process computes: the `rank`-th of `world` equal ones, each of
    neighboring heads."""

    rank: int = 0
    world: int = 1

    def of(self, num_heads: int) -> int:
        """How many of `num_heads` heads the part has."""
        return num_heads // self.world

    @contextmanager
    def draws(self, device: torch.device, dropout: float) -> Iterator[None]:
        """Context of attention dropout: the parts of one layer draw different numbers, and all go on alike afterwards.

        The processes' generators must be in the same state before."""
        if self.world == 1 or dropout == 0.0:
            yield
            return
        seed = int(torch.randint(2**62, (), device="cpu"))
        # Of a generator on a GPU too the state is kept by the host: nothing waits for the device.
        generator = _default_generator(device)
        state = generator.get_state()
        generator.manual_seed(seed + self.rank)
        try:
            yield
        finally:
            generator.set_state(state)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k / sqrt(E)) v, one softmax over all keys.

    queries [S, T, H, E]; keys, values [S, T', Hkv, E] with Hkv dividing H (each serves H / Hkv query heads in a row);
    mask bool, broadcastable to [S, H, T, T'], True = may be attended; no query may have all its keys masked.
    Returns [S, T, H * E].
    """
    if is_short_attention(queries, keys):
        return short_attention(queries, keys, values, mask=mask, causal=causal, dropout=dropout)
    out = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        dropout_p=dropout,
        enable_gqa=queries.shape[2] != keys.shape[2],
    )
    return out.transpose(1, 2).flatten(2)


def attend_documents(
    queries: Tensor, keys: Tensor, values: Tensor, documents: Documents, dropout: float = 0.0
) -> Tensor:
    """Causal attention within documents; shapes as in `attend`, T = T'.

    Document by document where their lengths are at hand (no operation is spent on pairs of two documents), else with a
    mask.
    """
    if documents.lengths is None:
        return attend(queries, keys, values, mask=documents.mask, dropout=dropout)
    rows = [heads.flatten(0, 1).split(documents.lengths) for heads in (queries, keys, values)]
    parts = [attend(q[None], k[None], v[None], causal=True, dropout=dropout)[0] for q, k, v in zip(*rows, strict=True)]
    return torch.cat(parts).view(*queries.shape[:2], -1)


class KeySmear(nn.Module):
    """k_j <- s k_j + (1 - s) k_(j-1) with a learned s = sigmoid(weight) per key-value head; the first key stays as it
    is.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads", smeared key architecture. It puts the
    previous token into each key, which otherwise takes a layer of its own to learn.
    """

    def __init__(self, num_kv_heads: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_kv_heads))

    def forward(self, keys: Tensor, documents: Documents | None = None) -> Tensor:
        """keys: [S, T, Hkv, E] -> the same shape; rows of S, or the documents in them, are sequences of their own."""
        previous = torch.cat((keys[:, :1], keys[:, :-1]), dim=1)
        if documents is not None:
            previous = torch.where(documents.is_first[:, :, None, None], keys, previous)
        return self.mix(previous, keys)

    def mix(self, previous: Tensor, keys: Tensor) -> Tensor:
        """Smeared keys from the keys [..., Hkv, E] and those of the tokens before."""
        return torch.lerp(previous, keys, torch.sigmoid(self.head_weights()).to(keys.dtype).unsqueeze(-1))

    def head_weights(self) -> Tensor:
        """The weights of the heads whose keys are mixed, [Hkv]."""
        return self.weight


class HeadPreparation(nn.Module):
    """The steps between projection and rotation: per-head normalisation, then (keys only) smearing."""

    def __init__(self, shape: AttentionShape):
        super().__init__()
        self.query_norm = RMSNorm(shape.head_width, shape.norm_eps) if shape.qk_norm else None
        self.key_norm = RMSNorm(shape.head_width, shape.norm_eps) if shape.qk_norm else None
        self.smear = KeySmear(shape.num_kv_heads) if shape.smear_keys else None

    @property
    def is_identity(self) -> bool:
        return self.query_norm is None and self.smear is None

    def queries(self, queries: Tensor) -> Tensor:
        """[S, T, H, E] -> [S, T, H, E]."""
        return queries if self.query_norm is None else self.query_norm(queries)

    def normed_keys(self, keys: Tensor) -> Tensor:
        """[..., Hkv, E] -> [..., Hkv, E], not smeared."""
        return keys if self.key_norm is None else self.key_norm(keys)

    def keys(self, keys: Tensor, documents: Documents | None = None) -> Tensor:
        """[S, T, Hkv, E] -> [S, T, Hkv, E]."""
        keys = self.normed_keys(keys)
        return keys if self.smear is None else self.smear(keys, documents)


class SelfAttention(nn.Module):
    """Attention of each sequence to itself, causal (decoder) or bidirectional (encoder). The input is already
    normed."""

    def __init__(self, width: int, shape: AttentionShape, causal: bool):
        super().__init__()
        self.shape = shape
        self.share = HeadShare()
        self.causal = causal
        parts = tuple(heads * shape.head_width for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads))
        self.query_key_value = Linear(width, sum(parts), bias=shape.bias, parts=parts)
        self.preparation = HeadPreparation(shape)
        self.out = Linear(shape.num_heads * shape.head_width, width, bias=shape.bias)

    def forward(
        self,
        x: Tensor,
        rotary: RotaryTable | None,
        mask: Tensor | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """x [S, T, D] -> [S, T, D]. rotary: positions of the T tokens, None = no rotation; mask bool [S, T], True = a
        token that may be attended (bidirectional attention only, at least one per row); documents: causal attention
        stays within each of them."""
        queries, keys, values = self.project(x, rotary, documents)
        return self.mix(queries, keys, values, mask, documents)

    def project(
        self, x: Tensor, rotary: RotaryTable | None, documents: Documents | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [S, T, D] -> rotated queries [S, T, H, E] and keys, values [S, T, Hkv, E]."""
        query_key, values = self._project(x)
        if not self.preparation.is_identity:
            queries, keys = query_key.split(self._heads, dim=2)
            query_key = torch.cat((self.preparation.queries(queries), self.preparation.keys(keys, documents)), dim=2)
        queries, keys = (query_key if rotary is None else rotate(query_key, rotary)).split(self._heads, dim=2)
        return queries, keys, values

    def project_next(
        self, x: Tensor, rotary: RotaryTable | None, previous_keys: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `project` for one token per row, x [S, 1, D], that follows a token of the unsmeared keys `previous_keys`
        [S, 1, Hkv, E]; fourth: the unsmeared keys of this token. Unsmeared is normed, not rotated."""
        query_key, values = self._project(x)
        queries, keys = query_key.split(self._heads, dim=2)
        unsmeared = keys = self.preparation.normed_keys(keys)
        if self.preparation.smear is not None:
            keys = self.preparation.smear.mix(previous_keys, keys)
        queries = self.preparation.queries(queries)
        if rotary is not None:
            queries, keys = rotate(torch.cat((queries, keys), dim=2), rotary).split(self._heads, dim=2)
        return queries, keys, values, unsmeared

    def unsmeared_keys(self, x: Tensor) -> Tensor:
        """Keys [S, T, Hkv, E] of x [S, T, D] before smearing and rotation: what `project_next` asks for."""
        return self.preparation.normed_keys(self._project(x)[0].split(self._heads, dim=2)[1])

    def mix(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """Attention of projected heads, and the output projection: [S, T, D]. Arguments as in `forward`."""
        dropout = self.shape.dropout if self.training else 0.0
        with self.share.draws(queries.device, dropout):
            if documents is not None:
                mixed = attend_documents(queries, keys, values, documents, dropout)
            else:
                allowed = None if mask is None else mask[:, None, None, :]
                mixed = attend(queries, keys, values, mask=allowed, causal=self.causal, dropout=dropout)
        return self.out(mixed)

    def mix_cached(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `mix` for the last token of each sequence: queries [S, 1, H, E], keys and values of all its tokens [S, T,
        Hkv, E], mask bool [S, T] where sequences are of unequal length. Returns [S, 1, D]."""
        return self.out(attend(queries, keys, values, mask=None if mask is None else mask[:, None, None, :]))

    @property
    def _heads(self) -> list[int]:
        return [self.share.of(self.shape.num_heads), self.share.of(self.shape.num_kv_heads)]

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Heads of queries and keys side by side, and of values."""
        heads = self.query_key_value(x).unflatten(-1, (-1, self.shape.head_width))
        query_key, values = heads.split((sum(self._heads), self._heads[1]), dim=2)
        return query_key, values


class CrossAttention(nn.Module):
    """Attention of `queries_of` tokens to the tokens of another sequence. Both inputs are already normed.

    Keys and values are made by `project_keys` and used by `forward`, so that one projection can serve many queries.
    """

    def __init__(self, width: int, key_width: int, shape: AttentionShape):
        super().__init__()
        self.shape = shape
        self.share = HeadShare()
        self.query = Linear(width, shape.num_heads * shape.head_width, bias=shape.bias)
        parts = (shape.num_kv_heads * shape.head_width,) * 2
        self.key_value = Linear(key_width, sum(parts), bias=shape.bias, parts=parts)
        self.preparation = HeadPreparation(shape)
        self.out = Linear(shape.num_heads * shape.head_width, width, bias=shape.bias)

    def project_keys(self, source: Tensor, rotary: RotaryTable) -> tuple[Tensor, Tensor]:
        """source [S, T', key_width]; rotary: positions of the T' tokens. Returns rotated keys and values [S, T', Hkv,
        E]."""
        shape = self.shape
        keys, values = self.key_value(source).unflatten(-1, (-1, shape.head_width)).chunk(2, dim=2)
        return rotate(self.preparation.keys(keys), rotary), values

    def project_queries(self, x: Tensor, rotary: RotaryTable) -> Tensor:
        """x [S, T, width] -> rotated queries [S, T, H, E]."""
        queries = self.query(x).unflatten(-1, (-1, self.shape.head_width))
        return rotate(self.preparation.queries(queries), rotary)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """queries [S, T, H, E], keys and values [S, T', Hkv, E], mask bool [S, T'] (at least one True per row).

        Returns [S, T, width]."""
        dropout = self.shape.dropout if self.training else 0.0
        allowed = None if mask is None else mask[:, None, None, :]
        with self.share.draws(queries.device, dropout):
            mixed = attend(queries, keys, values, mask=allowed, dropout=dropout)
        return self.out(mixed)
