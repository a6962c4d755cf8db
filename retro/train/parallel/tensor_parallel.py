"""Tensor parallelism: every layer's heads and feed-forward units shared out over a group of processes.

Source: Shoeybi et al. 2019, "Megatron-LM", section 3. Norms, embedding, positions and head are whole in every process;
all processes of the group see the same batch, and have the same gradients for what is whole.
"""

from __future__ import annotations

from typing import cast

from torch.distributed.device_mesh import DeviceMesh

from retro.config.errors import ConfigError
from retro.config.model import ModelConfig
from retro.model.encoder import EncoderLayer
from retro.model.retro import RetroModel
from retro.nn.attention import CrossAttention, HeadPreparation, HeadShare, SelfAttention
from retro.nn.feed_forward import FeedForward
from retro.nn.norm import RMSNorm
from retro.train.parallel.tensor_layers import ColumnLinear, RowLinear, SharedKeySmear, SharedNorm


def check_tensor_parallel(config: ModelConfig, tensor: int) -> None:
    """Raise ConfigError unless `tensor` processes can share out the heads and feed-forward units of the model."""
    sizes = [
        ("num_heads", "attention heads", config.num_heads),
        ("num_kv_heads", "key-value heads", config.kv_heads),
        ("ffn_width", "feed-forward units", config.ffn_size),
    ]
    if config.is_retro:
        sizes += [
            ("encoder.num_heads", "attention heads of the encoder", config.encoder_heads),
            ("encoder.ffn_width", "feed-forward units of the encoder", config.encoder_ffn_size),
        ]
    for field, what, size in sizes:
        if size % tensor:
            raise ConfigError(
                f"parallel.tensor: expected a divisor of the model's {size} {what} (model.{field}), found {tensor}; "
                "change one of them"
            )


def apply_tensor_parallel(model: RetroModel, mesh: DeviceMesh) -> None:
    """Keep, in place, this process's share of every layer of decoder and encoder.

    mesh: of the group, one dimension. The parameters may be on the meta device, drawn or loaded, equal in all
    processes; those that are shared out become DTensors. Before fully_shard and before the optimizer is made. Raises
    ConfigError as `check_tensor_parallel`.
    """
    check_tensor_parallel(model.config, mesh.size())
    for layer in model.decoder_layers:
        _split_attention(layer.attention, mesh)
        if layer.cross_attention is not None:
            _split_attention(layer.cross_attention.attention, mesh)
        _split_feed_forward(layer.feed_forward, mesh)
    for encoder_layer in [] if model.encoder is None else cast(list[EncoderLayer], list(model.encoder.layers)):
        _split_attention(encoder_layer.attention, mesh)
        if encoder_layer.conditioning is not None:
            _split_attention(encoder_layer.conditioning.attention, mesh)
        _split_feed_forward(encoder_layer.feed_forward, mesh)


def _split_attention(attention: SelfAttention | CrossAttention, mesh: DeviceMesh) -> None:
    attention.share = HeadShare(mesh.get_local_rank(), mesh.size())
    if isinstance(attention, SelfAttention):
        attention.query_key_value = ColumnLinear(attention.query_key_value, mesh)
    else:
        attention.query = ColumnLinear(attention.query, mesh)
        attention.key_value = ColumnLinear(attention.key_value, mesh)
    attention.out = RowLinear(attention.out, mesh)
    _split_preparation(attention.preparation, mesh)


def _split_preparation(preparation: HeadPreparation, mesh: DeviceMesh) -> None:
    for name in ("query_norm", "key_norm"):
        norm = getattr(preparation, name)
        if isinstance(norm, RMSNorm):
            setattr(preparation, name, SharedNorm(norm, mesh))
    if preparation.smear is not None:
        preparation.smear = SharedKeySmear(preparation.smear, mesh)


def _split_feed_forward(feed_forward: FeedForward, mesh: DeviceMesh) -> None:
    feed_forward.up = ColumnLinear(feed_forward.up, mesh)
    feed_forward.down = RowLinear(feed_forward.down, mesh)
