"""GPT-NeoX (Black et al. 2022), Pythia among them: partly rotated heads, layernorm, parallel blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

from retro.config.model import ModelConfig
from retro.model.huggingface.architecture import Architecture, common_obstacles
from retro.model.huggingface.gpt2 import GELU, GELU_NAMES
from retro.model.huggingface.mapping import Entry, interleaved, same, with_bias
from retro.model.huggingface.rotary_settings import read_rotary, write_scaling
from retro.model.huggingface.settings import Settings


def _read(settings: Settings) -> ModelConfig:
    rotary = read_rotary(settings, "rotary_emb_base", "rotary_pct", 0.25)
    # transformers 4 wrote each of these twice.
    settings.must_be("partial_rotary_factor", rotary.fraction)
    settings.must_be("rope_theta", rotary.base)
    width, heads = settings.integer("hidden_size", 6144), settings.integer("num_attention_heads", 64)
    if int(width // heads * rotary.fraction) % 2:
        raise settings.error("rotary_pct", rotary.fraction, f"an even number of the {width // heads} dimensions")
    config = ModelConfig(
        vocab_size=settings.integer("vocab_size", 50432),
        width=width,
        num_layers=settings.integer("num_hidden_layers", 44),
        num_heads=heads,
        ffn_width=settings.integer("intermediate_size", 24576),
        ffn=settings.choice("hidden_act", GELU, "gelu"),  # type: ignore[arg-type]
        block="parallel" if settings.boolean("use_parallel_residual", True) else "serial",
        norm="layernorm",
        norm_eps=settings.number("layer_norm_eps", 1e-5),
        bias=True,
        attention_bias=None if settings.boolean("attention_bias", True) else False,
        rotary_base=rotary.base,
        rotary_scaling=rotary.scaling,
        rotary_fraction=rotary.fraction,
        tie_embeddings=settings.boolean("tie_word_embeddings", False),
        dropout=settings.dropout("hidden_dropout", "attention_dropout"),
    )
    settings.check_rest(("classifier_dropout", "is_decoder"))
    return config


def _write(config: ModelConfig, positions: int) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": GELU_NAMES[config.ffn],
        "max_position_embeddings": positions,
        "layer_norm_eps": config.norm_eps,
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rotary_base,
        "rope_scaling": write_scaling(config),
        "use_parallel_residual": config.block == "parallel",
        "attention_bias": config.attention_has_bias,
        "attention_dropout": config.dropout,
        "hidden_dropout": config.dropout,
    }


def _entries(config: ModelConfig) -> list[Entry]:
    fused = partial(interleaved, heads=config.num_heads)
    attention = config.attention_has_bias
    entries = [same("embedding.weight", "embed_in.weight")]
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"layers.{i}"
        entries += [
            *with_bias(same, f"{ours}.attention_norm", f"{theirs}.input_layernorm"),
            *with_bias(
                fused,
                f"{ours}.attention.query_key_value",
                f"{theirs}.attention.query_key_value",
                attention,
                bias_as=fused,
            ),
            *with_bias(same, f"{ours}.attention.out", f"{theirs}.attention.dense", attention),
            *with_bias(same, f"{ours}.feed_forward_norm", f"{theirs}.post_attention_layernorm"),
            *with_bias(same, f"{ours}.feed_forward.up", f"{theirs}.mlp.dense_h_to_4h"),
            *with_bias(same, f"{ours}.feed_forward.down", f"{theirs}.mlp.dense_4h_to_h"),
        ]
    return [*entries, *with_bias(same, "norm", "final_layer_norm")]


def _obstacles(config: ModelConfig) -> list[str]:
    found = common_obstacles(
        config,
        positions="rotary",
        norm="layernorm",
        ffn=("gelu", "gelu_tanh"),
        kv_heads=config.num_heads,
        head_size=config.width / config.num_heads,
    )
    # transformers does not round the rotated width to an even number.
    if int(config.head_size * config.rotary_fraction) % 2:
        found.append(f"rotary_fraction: {config.rotary_fraction}")
    return found


GPT_NEOX = Architecture(
    model_type="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    head_names=("embed_out.weight", "lm_head.weight"),
    buffers=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)", r"rotary_emb\.inv_freq"),
    read=_read,
    write=_write,
    entries=_entries,
    obstacles=_obstacles,
)
