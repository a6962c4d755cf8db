"""The models of benchmarks/step_time.py at one configuration, each with a function that makes one training step.

Width 256, 8 layers, 4 heads of 64, GELU, sequences of 512 in chunks of 64, 2 neighbors of 128 tokens, batch 4,
vocabulary 16,384, untied, random tokens; AdamW with the usual two groups.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.config.model import EncoderConfig, ModelConfig
from retro.model import RetroModel
from retro.model.flops import sequence_flops

WIDTH, LAYERS, HEADS, HEAD, VOCABULARY = 256, 8, 4, 64, 16384
BATCH, LENGTH, CHUNK, NEIGHBORS, RETRIEVED = 4, 512, 64, 2, 128
CHUNKS = LENGTH // CHUNK

GPT = ModelConfig(
    vocab_size=VOCABULARY,
    width=WIDTH,
    num_layers=LAYERS,
    num_heads=HEADS,
    ffn="gelu",
    rotary_fraction=0.5,
    tie_embeddings=False,
    chunk_length=CHUNK,
)
RETRO = dataclasses.replace(GPT, cross_attention_layers=(2, 5, 8))
#: The rule of the *_fast presets: one encoder layer of half the decoder's width.
FAST = dataclasses.replace(RETRO, encoder=EncoderConfig(num_layers=1, width=WIDTH // 2))

OURS = {"gpt": GPT, "retro": RETRO, "retro_all": RETRO, "fast": FAST}
#: RETRO-pytorch: heads of encoder and decoder. Its class drops the `heads` it is given, so that 8 is what 4 gives.
PEERS = {"peer": HEADS, "peer_shipped": 8}
MODELS = ("plain", *OURS, *PEERS)


class PlainBlock(nn.Module):
    """Pre-norm block with half-rotated heads and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, 1e-5), nn.RMSNorm(WIDTH, 1e-5)
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * HEAD, bias=False)
        self.out = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned, rest = x[..., : HEAD // 2], x[..., HEAD // 2 :]
        a, b = turned.chunk(2, -1)
        turned = turned * cos.to(x.dtype) + torch.cat((-b, a), -1) * sin.to(x.dtype)
        return torch.cat((turned, rest), -1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainGPT(nn.Module):
    """What a user would write: the yardstick for our own GPT."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH, 1e-5), nn.Linear(WIDTH, VOCABULARY, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        angles = torch.outer(torch.arange(LENGTH).float(), 10000.0 ** (torch.arange(0, HEAD // 2, 2) / -(HEAD // 2)))
        cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def why_no_peer() -> str | None:
    """One line that says why RETRO-pytorch cannot be built here; None if it can."""
    try:
        _peer_package()
    except Exception as error:  # its dependencies fail in many ways
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def _peer_package() -> Any:
    """The installed retro_pytorch; this folder has a script of that name, and is on the path of its scripts."""
    before = list(sys.path)
    sys.path[:] = [place for place in before if Path(place).resolve() != Path(__file__).resolve().parent]
    try:
        return importlib.import_module("retro_pytorch.retro_pytorch")
    finally:
        sys.path[:] = before


def peer_model(heads: int) -> nn.Module:
    """RETRO of RETRO-pytorch with this many heads in encoder and decoder, encoder of 2 layers."""
    package = _peer_package()
    encoder, decoder = package.Encoder, package.Decoder
    package.Encoder = functools.partial(encoder, heads=heads)
    package.Decoder = functools.partial(decoder, heads=heads)
    try:
        return package.RETRO(
            num_tokens=VOCABULARY,
            max_seq_len=LENGTH,
            enc_dim=WIDTH,
            enc_depth=2,
            dec_dim=WIDTH,
            dec_depth=LAYERS,
            dec_cross_attn_layers=RETRO.cross_attention_layers,
            heads=HEADS,
            dim_head=HEAD,
            chunk_size=CHUNK,
        )
    finally:
        package.Encoder, package.Decoder = encoder, decoder


def batches(all_chunks: bool) -> list[dict[str, Tensor]]:
    """Four batches of random tokens; the last chunk's neighbors masked unless `all_chunks`."""
    out = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(1, VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
        neighbors = torch.randint(1, VOCABULARY, (BATCH, CHUNKS, NEIGHBORS, RETRIEVED), generator=generator)
        mask = torch.ones_like(neighbors, dtype=torch.bool)
        mask[:, -1] = all_chunks
        out.append({"all": tokens, "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "neighbors": neighbors})
        out[-1]["mask"] = mask
    return out


def build_step(name: str, bf16: bool, compiled: bool) -> tuple[nn.Module, Callable[[int], float]]:
    """The model `name` of MODELS and a function that makes training step i and returns its loss."""
    torch.manual_seed(0)
    if name in OURS:
        model: nn.Module = RetroModel(OURS[name])
    else:
        model = PlainGPT() if name == "plain" else peer_model(PEERS[name])
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, fused=True)
    data = batches(all_chunks=name == "retro_all")
    if isinstance(model, RetroModel):
        model.static_shapes = compiled
    run: Any = torch.compile(model, dynamic=False) if compiled else model

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        if name == "plain":
            return run(batch["tokens"], batch["targets"])
        if name in PEERS:
            return run(batch["all"], batch["neighbors"], return_loss=True)
        neighbors = (batch["neighbors"], batch["mask"]) if OURS[name].is_retro else ()
        return run(batch["tokens"], *neighbors, targets_BN=batch["targets"]).loss

    def step(i: int) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = loss_of(data[i % len(data)])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return model, step


def step_flops(name: str) -> int | None:
    """Matrix-product operations of a training step; None for a model that is not ours or its equal."""
    if name in PEERS:
        return None
    config = OURS.get(name, GPT)
    chunks = 0 if not config.is_retro else CHUNKS if name == "retro_all" else CHUNKS - 1
    one = sequence_flops(config, LENGTH, retrieved_chunks=chunks, num_neighbors=NEIGHBORS, retrieved_length=RETRIEVED)
    return BATCH * one.training
