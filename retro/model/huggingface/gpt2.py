"""GPT-2 (Radford et al. 2019): learned positions, layernorm, GELU, biases everywhere."""

from __future__ import annotations

from typing import Any

from retro.config.model import ModelConfig
from retro.model.huggingface.architecture import Architecture, common_obstacles
from retro.model.huggingface.mapping import Entry, same, transposed, with_bias
from retro.model.huggingface.settings import Settings

#: transformers' names of the two GELUs.
GELU = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
GELU_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
_INERT = ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout")


def _read(settings: Settings) -> ModelConfig:
    settings.must_be("scale_attn_weights", True)
    settings.must_be("scale_attn_by_inverse_layer_idx", False)
    settings.must_be("add_cross_attention", False)
    config = ModelConfig(
        vocab_size=settings.integer("vocab_size", 50257),
        width=settings.integer("n_embd", 768),
        num_layers=settings.integer("n_layer", 12),
        num_heads=settings.integer("n_head", 12),
        ffn_width=settings.optional_integer("n_inner"),
        ffn=settings.choice("activation_function", GELU, "gelu_new"),  # type: ignore[arg-type]
        norm="layernorm",
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        bias=True,
        positions="learned",
        max_positions=settings.integer("n_positions", 1024),
        tie_embeddings=settings.boolean("tie_word_embeddings", True),
        dropout=settings.dropout("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    )
    settings.check_rest(_INERT)
    return config


def _write(config: ModelConfig, positions: int) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ffn_width,
        "activation_function": GELU_NAMES[config.ffn],
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
    }


def _entries(config: ModelConfig) -> list[Entry]:
    entries = [same("embedding.weight", "wte.weight"), same("positions.weight", "wpe.weight")]
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"h.{i}"
        entries += [
            *with_bias(same, f"{ours}.attention_norm", f"{theirs}.ln_1"),
            *with_bias(transposed, f"{ours}.attention.query_key_value", f"{theirs}.attn.c_attn"),
            *with_bias(transposed, f"{ours}.attention.out", f"{theirs}.attn.c_proj"),
            *with_bias(same, f"{ours}.feed_forward_norm", f"{theirs}.ln_2"),
            *with_bias(transposed, f"{ours}.feed_forward.up", f"{theirs}.mlp.c_fc"),
            *with_bias(transposed, f"{ours}.feed_forward.down", f"{theirs}.mlp.c_proj"),
        ]
    return [*entries, *with_bias(same, "norm", "ln_f")]


def _obstacles(config: ModelConfig) -> list[str]:
    return common_obstacles(
        config,
        positions="learned",
        norm="layernorm",
        ffn=("gelu", "gelu_tanh"),
        block="serial",
        kv_heads=config.num_heads,
        head_size=config.width / config.num_heads,
    )


GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    prefix="transformer.",
    head_names=("lm_head.weight",),
    buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
    read=_read,
    write=_write,
    entries=_entries,
    obstacles=_obstacles,
)
