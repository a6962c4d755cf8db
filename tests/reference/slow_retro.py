"""RETRO written down token by token: python loops, explicit softmax, explicit rotation by the *distance* of two
positions.

It shares nothing with `retro.model` but the names of the weights, runs in float64 and is differentiable. Masked
neighbor tokens and missing neighbors simply do not exist here: the lists hold real tokens only. Positions, from the
papers (docs/concepts.md):

* position p >= pad attends to the neighbors of chunk u = (p - pad) div M, as query i = (p - pad) mod M, at distance
  i - i' + M - 1 from neighbor token i' (Borgeaud et al. 2022, B.1.2);
* neighbor token i' attends to token j of the retrieving chunk at distance i' - j; j counts so that the chunk's last
  token is at M - 1, a short first chunk included.

Chunks may end anywhere (`chunk_ends`): a position p is served by the row with the last end e <= p, as query i = p - e,
if i < M and no document begins in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from retro.config.model import ModelConfig


class SlowRetro:
    """weights: the state dict of a RetroModel (float64 tensors, gradients flow back into them)."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], gate: float = 1.0):
        self.config = config
        self.weights = weights
        self.gate = gate

    def logits(
        self,
        tokens: list[int],
        neighbors: list[list[list[tuple[int, int]]]] | None = None,
        first_chunk_length: int | None = None,
        chunk_ends: list[int] | None = None,
        starts: list[int] | None = None,
    ) -> Tensor:
        """[N, V] for one sequence. neighbors[u][k] = the real tokens of a neighbor as (position i', token id).

        chunk_ends: one per row of neighbors, -1 = unused; starts: begin of each position's document."""
        config = self.config
        self.starts = [0] * len(tokens) if starts is None else starts
        if chunk_ends is None:
            pad = (len(tokens) - 1) % config.chunk_length if first_chunk_length is None else first_chunk_length - 1
            chunk_ends = [pad + u * config.chunk_length for u in range(len(neighbors or []))]
        rows = [(e, row) for e, row in zip(chunk_ends, neighbors or [], strict=True) if 0 <= e < len(tokens)]
        ends = [e for e, _ in rows]
        stream = [self.embed(t) for t in tokens]
        if config.positions == "learned":
            table = self.weights["positions.weight"]
            stream = [x + table[p - self.starts[p]] for p, x in enumerate(stream)]
        encoded: list[list[list[tuple[int, Tensor]]]] | None = None
        for number in range(1, config.num_layers + 1):
            name = f"layers.{number - 1}"
            before = stream
            normed = [self.norm(x, f"{name}.attention_norm") for x in stream]
            mixed = self.decoder_self_attention(normed, f"{name}.attention")
            stream = [x + y for x, y in zip(stream, mixed, strict=True)]
            if number in config.cross_attention_layers and neighbors is not None:
                if encoded is None:
                    encoded = [[self.encode(n, self.chunk(stream, e)) for n in row if n] for e, row in rows]
                gate = self.gate * self.layer_gate(number)
                stream = [
                    x
                    + gate
                    * self.chunked_cross_attention(x, *self.served_by(p, ends), encoded, f"{name}.cross_attention")
                    for p, x in enumerate(stream)
                ]
            sources = before if config.block == "parallel" else stream
            stream = [
                x + self.feed_forward(self.norm(y, f"{name}.feed_forward_norm"), f"{name}.feed_forward")
                for x, y in zip(stream, sources, strict=True)
            ]
        head = self.weights["embedding.weight" if config.tie_embeddings else "head.weight"]
        return torch.stack([head @ self.norm(x, "norm") for x in stream])

    def embed(self, token: int) -> Tensor:
        """Embedding of one token, scaled to mean square 1 where the configuration says so."""
        x = self.weights["embedding.weight"][token]
        return x / (x.pow(2).mean() + self.config.norm_eps).sqrt() if self.config.embedding_norm else x

    # --- chunks -----------------------------------------------------------------------------------------------------

    def served_by(self, p: int, ends: list[int]) -> tuple[int, int]:
        """(row, i) of position p; row -1 = none."""
        before = [u for u, e in enumerate(ends) if e <= p]
        if not before:
            return -1, 0
        end = ends[before[-1]]
        reaches = p - end < self.config.chunk_length and self.starts[p] == self.starts[end]
        return (before[-1], p - end) if reaches else (-1, 0)

    def chunk(self, stream: list[Tensor], end: int) -> list[tuple[int, Tensor]]:
        """(j, activation) of the tokens of the chunk that ends at `end`; j = M - 1 for the last."""
        length = self.config.chunk_length
        begin = max(self.starts[end], end - length + 1)
        return [(length - 1 - (end - p), stream[p]) for p in range(begin, end + 1)]

    def layer_gate(self, number: int) -> Tensor | float:
        """Gate of the RETRO layer of this 1-based number."""
        if self.config.gate.kind == "learned":
            return self.weights[f"layers.{number - 1}.cross_attention.gate"]
        return self.config.gate.of_layer(self.config.cross_attention_layers.index(number))

    # --- attention --------------------------------------------------------------------------------------------------

    def decoder_self_attention(self, xs: list[Tensor], name: str) -> list[Tensor]:
        config = self.config
        heads, kv_heads, size = config.num_heads, config.kv_heads, config.head_size
        projected = [self.linear(x, f"{name}.query_key_value").view(-1, size) for x in xs]
        queries = [self.prepare(p[:heads], name, "query") for p in projected]
        keys = [self.prepare(p[heads : heads + kv_heads], name, "key") for p in projected]
        keys = self.smear(keys, name, self.starts)
        values = [p[heads + kv_heads :] for p in projected]
        learned = config.positions == "learned"
        out = []
        for p in range(len(xs)):
            seen = [(0 if learned else p - q, keys[q], values[q]) for q in range(self.starts[p], p + 1)]
            out.append(self.linear(self.attend(queries[p], seen, scaled=True), f"{name}.out"))
        return out

    def chunked_cross_attention(
        self, x: Tensor, row: int, i: int, encoded: list[list[list[tuple[int, Tensor]]]], name: str
    ) -> Tensor:
        config = self.config
        chunk, size = config.chunk_length, config.head_size
        if row < 0 or not any(encoded[row]):
            return torch.zeros_like(x)
        query = self.linear(self.norm(x, f"{name}.norm"), f"{name}.attention.query").view(-1, size)
        query = self.prepare(query, f"{name}.attention", "query")
        seen = []
        for neighbor in encoded[row]:
            projected = [self.linear(e, f"{name}.attention.key_value").view(-1, size) for _, e in neighbor]
            keys = [self.prepare(p[: config.kv_heads], f"{name}.attention", "key") for p in projected]
            keys = self.smear(keys, f"{name}.attention")
            for (position, _), key, p in zip(neighbor, keys, projected, strict=True):
                seen.append((i - position + chunk - 1, key, p[config.kv_heads :]))
        return self.linear(self.attend(query, seen), f"{name}.attention.out")

    def attend(self, query: Tensor, seen: list[tuple[int, Tensor, Tensor]], scaled: bool = False) -> Tensor:
        """query [H, E] over (distance, key [Hkv, E], value [Hkv, E]) -> [H * E]."""
        group = query.shape[0] // seen[0][1].shape[0]
        out = []
        for h in range(query.shape[0]):
            scores = [
                torch.dot(self.rotation(d, len(query[h]), scaled) @ query[h], key[h // group])
                / math.sqrt(len(query[h]))
                for d, key, _ in seen
            ]
            total = sum(torch.exp(s) for s in scores)
            out.append(sum(torch.exp(s) / total * v[h // group] for s, (_, _, v) in zip(scores, seen, strict=True)))
        return torch.cat(out)

    def rotation(self, distance: int, size: int, scaled: bool) -> Tensor:
        """The matrix that turns dimensions (j, j + w/2) by distance * base^(-2j/w); the identity beyond w. Decoder
        self-attention turns by `scaled` angles where the configuration asks for them."""
        width = int(size * self.config.rotary_fraction) // 2 * 2
        matrix = torch.eye(size, dtype=torch.float64)
        for j in range(width // 2):
            frequency = self.config.rotary_base ** (-2 * j / width)
            if scaled and self.config.rotary_scaling is not None:
                frequency = self.scaled_frequency(frequency)
            angle = distance * frequency
            a, b = j, j + width // 2
            matrix[a, a], matrix[a, b] = math.cos(angle), -math.sin(angle)
            matrix[b, a], matrix[b, b] = math.sin(angle), math.cos(angle)
        return matrix

    def prepare(self, heads: Tensor, name: str, kind: str) -> Tensor:
        """Per-head normalisation of queries or keys [heads, E]."""
        if not self.config.qk_norm:
            return heads
        weight = self.weights[f"{name}.preparation.{kind}_norm.weight"]
        return torch.stack([h / torch.sqrt((h * h).mean() + self.config.norm_eps) * weight for h in heads])

    def scaled_frequency(self, frequency: float) -> float:
        """Linear scaling, or that of Llama 3.1 by wavelengths."""
        scaling = self.config.rotary_scaling
        assert scaling is not None
        if scaling.kind == "linear":
            return frequency / scaling.factor
        wavelength = 2 * math.pi / frequency
        if wavelength > scaling.original_positions / scaling.low_frequency_factor:
            return frequency / scaling.factor
        if wavelength < scaling.original_positions / scaling.high_frequency_factor:
            return frequency
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        smooth = (scaling.original_positions / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / scaling.factor + smooth * frequency

    def smear(self, keys: list[Tensor], name: str, starts: list[int] | None = None) -> list[Tensor]:
        if not self.config.smear_keys:
            return keys
        share = torch.sigmoid(self.weights[f"{name}.preparation.smear.weight"])[:, None]
        starts = starts or [0] * len(keys)
        return [share * k + (1 - share) * keys[max(starts[j], j - 1)] for j, k in enumerate(keys)]

    # --- encoder ----------------------------------------------------------------------------------------------------

    def encode(self, neighbor: list[tuple[int, int]], chunk: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
        """Real tokens (i', id) of one neighbor of a chunk [(j, activation)] -> [(i', encoded)]."""
        config = self.config
        positions = [i for i, _ in neighbor]
        xs = [self.embed(t) for _, t in neighbor]
        if config.encoder_width != config.width:
            xs = [self.linear(x, "encoder.input") for x in xs]
        for number in range(1, config.encoder.num_layers + 1):
            name = f"encoder.layers.{number - 1}"
            mixed = self.encoder_self_attention([self.norm(x, f"{name}.attention_norm") for x in xs], positions, name)
            xs = [x + y for x, y in zip(xs, mixed, strict=True)]
            if number in config.encoder.cross_attention_layers:
                xs = [
                    x + self.condition(x, i, chunk, f"{name}.conditioning") for x, i in zip(xs, positions, strict=True)
                ]
            xs = [x + self.feed_forward(self.norm(x, f"{name}.feed_forward_norm"), f"{name}.feed_forward") for x in xs]
        return [(i, self.norm(x, "encoder.norm")) for i, x in zip(positions, xs, strict=True)]

    def encoder_self_attention(self, xs: list[Tensor], positions: list[int], name: str) -> list[Tensor]:
        heads, size = self.config.encoder_heads, self.config.encoder_head_size
        projected = [self.linear(x, f"{name}.attention.query_key_value").view(3, heads, size) for x in xs]
        queries = [self.prepare(p[0], f"{name}.attention", "query") for p in projected]
        keys = [self.prepare(p[1], f"{name}.attention", "key") for p in projected]
        out = []
        for query, i in zip(queries, positions, strict=True):
            seen = [(i - j, key, p[2]) for j, key, p in zip(positions, keys, projected, strict=True)]
            out.append(self.linear(self.attend(query, seen), f"{name}.attention.out"))
        return out

    def condition(self, x: Tensor, i: int, chunk: list[tuple[int, Tensor]], name: str) -> Tensor:
        heads, size = self.config.encoder_heads, self.config.encoder_head_size
        query = self.linear(self.norm(x, f"{name}.norm"), f"{name}.attention.query").view(heads, size)
        query = self.prepare(query, f"{name}.attention", "query")
        seen = []
        for j, activation in chunk:
            normed = self.norm(activation, f"{name}.chunk_norm")
            projected = self.linear(normed, f"{name}.attention.key_value").view(2, heads, size)
            seen.append((i - j, self.prepare(projected[0], f"{name}.attention", "key"), projected[1]))
        return self.linear(self.attend(query, seen), f"{name}.attention.out")

    # --- pieces -----------------------------------------------------------------------------------------------------

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = self.weights[f"{name}.weight"] @ x
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, eps = self.weights[f"{name}.weight"], self.config.norm_eps
        if self.config.norm == "rmsnorm":
            return x / torch.sqrt((x * x).mean() + eps) * weight
        centred = x - x.mean()
        y = centred / torch.sqrt((centred * centred).mean() + eps) * weight
        return y + self.weights[f"{name}.bias"] if self.config.bias else y

    def feed_forward(self, x: Tensor, name: str) -> Tensor:
        hidden = self.linear(x, f"{name}.up")
        if self.config.ffn == "gelu":
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        elif self.config.ffn == "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
            hidden = 0.5 * hidden * (1 + torch.tanh(inner))
        else:
            half = len(hidden) // 2
            hidden = hidden[:half] / (1 + torch.exp(-hidden[:half])) * hidden[half:]
        return self.linear(hidden, f"{name}.down")
