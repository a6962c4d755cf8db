"""Llama (Touvron et al. 2023), SmolLM2 among them: rotary positions, RMSNorm, SwiGLU, grouped queries."""

from __future__ import annotations

from typing import Any

from retro.config.model import ModelConfig
from retro.model.huggingface.architecture import Architecture, common_obstacles
from retro.model.huggingface.mapping import Entry, same, stacked, with_bias
from retro.model.huggingface.rotary_settings import read_rotary, write_scaling
from retro.model.huggingface.settings import Settings


def _read(settings: Settings) -> ModelConfig:
    settings.choice("hidden_act", {"silu": "swiglu", "swish": "swiglu"}, "silu")
    settings.must_be("rope_interleaved", False)
    rotary = read_rotary(settings, "rope_theta", "partial_rotary_factor", 1.0)
    if rotary.fraction != 1.0:
        raise settings.error("partial_rotary_factor", rotary.fraction, "1 for this model type")
    config = ModelConfig(
        vocab_size=settings.integer("vocab_size", 32000),
        width=settings.integer("hidden_size", 4096),
        num_layers=settings.integer("num_hidden_layers", 32),
        num_heads=settings.integer("num_attention_heads", 32),
        num_kv_heads=settings.optional_integer("num_key_value_heads"),
        head_width=settings.optional_integer("head_dim"),
        ffn_width=settings.integer("intermediate_size", 11008),
        ffn="swiglu",
        norm="rmsnorm",
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        bias=False,
        attention_bias=settings.boolean("attention_bias", False),
        ffn_bias=settings.boolean("mlp_bias", False),
        rotary_base=rotary.base,
        rotary_scaling=rotary.scaling,
        tie_embeddings=settings.boolean("tie_word_embeddings", False),
        dropout=_attention_dropout(settings),
    )
    settings.check_rest(("is_llama_config",))
    return config


def _attention_dropout(settings: Settings) -> float:
    """Llama drops attention weights only, which this model has no setting for."""
    settings.must_be("attention_dropout", 0.0)
    return 0.0


def _write(config: ModelConfig, positions: int) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rotary_base,
        "rope_scaling": write_scaling(config),
        "attention_bias": config.attention_has_bias,
        "attention_dropout": 0.0,
        "mlp_bias": config.ffn_has_bias,
    }


def _entries(config: ModelConfig) -> list[Entry]:
    attention, mlp = config.attention_has_bias, config.ffn_has_bias
    queries, keys = config.num_heads * config.head_size, config.kv_heads * config.head_size
    hidden = config.ffn_size

    def projections(ours: str, theirs: str, kind: str) -> list[Entry]:
        names = tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv")
        return [stacked(f"{ours}.attention.query_key_value.{kind}", names, (queries, keys, keys))]

    def gated(ours: str, theirs: str, kind: str) -> list[Entry]:
        names = tuple(f"{theirs}.mlp.{part}_proj.{kind}" for part in ("gate", "up"))
        return [stacked(f"{ours}.feed_forward.up.{kind}", names, (hidden, hidden))]

    entries = [same("embedding.weight", "embed_tokens.weight")]
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"layers.{i}"
        entries += [
            same(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight"),
            *projections(ours, theirs, "weight"),
            *(projections(ours, theirs, "bias") if attention else []),
            *with_bias(same, f"{ours}.attention.out", f"{theirs}.self_attn.o_proj", attention),
            same(f"{ours}.feed_forward_norm.weight", f"{theirs}.post_attention_layernorm.weight"),
            *gated(ours, theirs, "weight"),
            *(gated(ours, theirs, "bias") if mlp else []),
            *with_bias(same, f"{ours}.feed_forward.down", f"{theirs}.mlp.down_proj", mlp),
        ]
    return [*entries, same("norm.weight", "norm.weight")]


def _obstacles(config: ModelConfig) -> list[str]:
    found = common_obstacles(
        config,
        positions="rotary",
        norm="rmsnorm",
        ffn="swiglu",
        block="serial",
        rotary_width=config.head_size,
        dropout=0.0,
    )
    if config.width % config.num_heads:
        found.append(f"num_heads: {config.num_heads}, which does not divide width {config.width}")
    return found


LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    prefix="model.",
    head_names=("lm_head.weight",),
    buffers=(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
    read=_read,
    write=_write,
    entries=_entries,
    obstacles=_obstacles,
)
