"""Small randomly initialised models of transformers, in which every weight matters, as folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

VOCABULARY = 61

COMMON: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": VOCABULARY, "n_positions": 40, "n_embd": 24, "n_layer": 3, "n_head": 4},
    "llama": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "gpt_neox": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
#: name -> (model type, settings besides COMMON): everything that is supported, at least once.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2-untied-gelu": ("gpt2", {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 40}),
    "gpt2-tanh-eps": ("gpt2", {"activation_function": "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-2}),
    "llama": ("llama", {}),
    "llama-smollm2": (
        "llama",
        {"tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 1, "rope_theta": 100000.0},
    ),
    "llama-no-groups": ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-2}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama-linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama-llama3": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 500.0}),
    "llama-llama3-v5": ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 500.0}}),
    "llama-default-v5": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    "neox-pythia": ("gpt_neox", {}),
    "neox-serial": ("gpt_neox", {"use_parallel_residual": False, "hidden_act": "gelu_new"}),
    "neox-full-rotary": ("gpt_neox", {"rotary_pct": 1.0, "rotary_emb_base": 500, "layer_norm_eps": 1e-2}),
    "neox-no-attention-bias": ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    "neox-linear": ("gpt_neox", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "hidden_act": "gelu_fast"}),
}


def scramble(model: torch.nn.Module, seed: int) -> None:
    """All weights far from 0 and 1, biases and norms included, so that none may be left out or exchanged."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 2 / math.sqrt(parameter.shape[-1])
            parameter.copy_(noise * scale if parameter.ndim > 1 else 1 + 0.5 * noise)


def build(name: str, seed: int = 0) -> Any:
    """The transformers model of a case, in evaluation mode."""
    transformers = pytest.importorskip("transformers", reason="compares with the package transformers")
    kind, settings = CASES[name]
    config = transformers.CONFIG_MAPPING[kind](**{**COMMON[kind], **settings})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    scramble(model, seed)
    return model.float().eval()


def save(name: str, folder: Path, **options: Any) -> Any:
    """Write a case to `folder`; returns the model."""
    model = build(name)
    model.save_pretrained(folder, **options)
    return model


def reopen(folder: Path) -> Any:
    """The folder's model as transformers opens it, in float32."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def tokens(batch: int = 2, length: int = 37) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def their_logits(model: Any, ids: Tensor) -> Tensor:
    return model(ids).logits
