"""Encoders of width 32 with random weights, saved as folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "sat", "on", "mat", "and"]
POSITIONS = 64
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def make_bert(folder: Path, seed: int = 0, words: list[str] = WORDS, **options: Any) -> Path:
    """Save a BERT with a vocabulary of a few words; options: of its configuration."""
    _write_tokenizer(folder, words)
    torch.manual_seed(seed)
    sizes = {"vocab_size": len(words), "max_position_embeddings": POSITIONS, **SIZES, **options}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(folder)
    return folder


def make_roberta(folder: Path) -> Path:
    """Save a RoBERTa, which counts positions from 2 on."""
    _write_tokenizer(folder, WORDS)
    config = transformers.RobertaConfig(
        vocab_size=len(WORDS), max_position_embeddings=POSITIONS, pad_token_id=1, type_vocab_size=1, **SIZES
    )
    transformers.RobertaModel(config).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[UNK]"})
    )
    return folder


def set_word(folder: Path, word: str, value: float) -> None:
    """Overwrite the embedding of a word."""
    model = transformers.AutoModel.from_pretrained(folder)
    model.embeddings.word_embeddings.weight.data[WORDS.index(word)] = value
    model.save_pretrained(folder)


def _write_tokenizer(folder: Path, words: list[str]) -> None:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
