"""Hugging Face folders of GPT-2, Llama and GPT-NeoX: read into our decoder, and written from it (docs/pretrained.md).

Files only: neither needs the package transformers, and only safetensors are opened.
"""

from retro.model.huggingface.export import Tokens, save_huggingface
from retro.model.huggingface.load import (
    check_weights,
    fill_backbone,
    is_huggingface_folder,
    load_huggingface,
    read_huggingface_config,
)

__all__ = [
    "Tokens",
    "check_weights",
    "fill_backbone",
    "is_huggingface_folder",
    "load_huggingface",
    "read_huggingface_config",
    "save_huggingface",
]
