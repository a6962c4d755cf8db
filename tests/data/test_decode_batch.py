"""Tokenizer.decode_batch: row by row what decode gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.train_tokenizer import BOS_ID, EOS_ID, PAD_ID, train_sentencepiece
from retro.config.prep_tokens import SentencePieceConfig
from retro.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from tests.data.builders import TEXTS


def _wordpiece() -> str:
    raw = RawTokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[PAD]", "[UNK]"]))
    return str(raw.to_str())


def _byte_level() -> str:
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    )
    return str(raw.to_str())


@pytest.fixture(scope="module", params=["lossless", "plain sentencepiece", "byte level", "wordpiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "byte level":
        return HuggingFaceTokenizer(_byte_level(), 0, 0, 0, "f")
    if request.param == "wordpiece":
        assert json.loads(_wordpiece())["model"]["type"] == "WordPiece"
        return HuggingFaceTokenizer(_wordpiece(), 0, 0, 0, "f")
    model = train_sentencepiece(TEXTS, SentencePieceConfig(vocab_size=340))
    return SentencePieceTokenizer(model, BOS_ID, EOS_ID, PAD_ID, request.param == "lossless", "f")


def test_batches_decode_as_single_rows(tokenizer: Tokenizer) -> None:
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, size=400)  # specials, halves of characters
    rows = [*np.split(ids, [7, 7, 64, 128, 399]), np.zeros(0, np.int64)]
    rows += [np.array(tokenizer.encode(text), np.int64) for text in (*TEXTS[:5], "é 漢字 \u2581 \U0001f600", "")]
    expected = [tokenizer.decode(row.tolist()) for row in rows]
    assert tokenizer.decode_batch(rows) == expected
    assert [tokenizer.decode_batch([row])[0] for row in rows] == expected
    assert tokenizer.decode_batch([]) == [] and len(set(expected)) > 5
