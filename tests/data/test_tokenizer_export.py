"""Tokenizers for transformers: the same ids, from the files that are exported."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from data_prep.runner import run_stage
from data_prep.train_tokenizer import TokenizerStage, train_sentencepiece
from retro.config.prep_tokens import SentencePieceConfig
from retro.data.sentencepiece_model import BYTE, CONTROL, USER_DEFINED, parse_sentencepiece
from retro.data.tokenizer import open_tokenizer
from retro.data.tokenizer_export import huggingface_files
from tests.data.builders import TEXTS
from tests.data.test_tokenizer import HARD, byte_level, existing, train_plain_sentencepiece

#: Without what transformers takes for special tokens and pieces: U+2581, "<s>", "<0x0A>".
UNSEEN = [
    re.sub("\u2581|<s></s><unk> <0x0A>", "", HARD),
    "  two spaces, \t tabs\n\n\nlines",
    "Zebra 007 \u00e9\u00e8 fox",
    "over the lazy " * 20,
]


def artifact(root: Path, model: bytes, **special: str) -> Path:
    path = root / "model.spm"
    path.write_bytes(model)
    return run_stage(TokenizerStage(existing("sentencepiece", path, **special)), root / "out", progress=False)


def opened(root: Path, files: dict[str, bytes]) -> Any:
    """The tokenizer as transformers opens it."""
    transformers = pytest.importorskip("transformers", reason="opens the files with the package transformers")
    folder = root / "hf"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return transformers.AutoTokenizer.from_pretrained(folder)


def plain(**options: Any) -> bytes:
    """A model as others train them: identity normalisation, perhaps a space in front, perhaps no bytes."""
    out = io.BytesIO()
    settings = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "vocab_size": 310}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=out, minloglevel=2, byte_fallback=True, **{**settings, **options}
    )
    return out.getvalue()


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_our_own_tokenizer(model_type: str, tmp_path: Path) -> None:
    config = SentencePieceConfig(vocab_size=310, model_type=model_type)  # type: ignore[arg-type]
    folder = artifact(tmp_path, train_sentencepiece(TEXTS, config))
    ours, theirs = open_tokenizer(folder), opened(tmp_path, huggingface_files(folder, 77))
    for text in [*UNSEEN, *TEXTS[:4]]:
        ids = theirs(text)["input_ids"]
        assert ids == [ours.bos_id, *ours.encode(text)]
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ours.encode(text))
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert theirs.model_max_length == 77


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_model_with_a_space_in_front_as_llama_has_it(model_type: str, tmp_path: Path) -> None:
    folder = artifact(tmp_path, plain(model_type=model_type, add_dummy_prefix=True))
    ours, theirs = open_tokenizer(folder), opened(tmp_path, huggingface_files(folder, 8))
    for text in [text for text in UNSEEN if text.isprintable()] + TEXTS[2:4]:
        ids = theirs(text)["input_ids"]
        assert ids == [ours.bos_id, *ours.encode(text)]
        assert theirs.decode(ids, skip_special_tokens=True) == text


def test_a_model_that_normalises_is_exported_as_it_is(tmp_path: Path) -> None:
    model = train_plain_sentencepiece()
    files = huggingface_files(artifact(tmp_path, model), 8)
    assert sorted(files) == ["tokenizer.model", "tokenizer_config.json"]
    assert files["tokenizer.model"] == model


def test_a_hugging_face_tokenizer_is_copied(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    stored = run_stage(TokenizerStage(existing("huggingface", folder)), tmp_path, progress=False)
    files = huggingface_files(stored, 8)
    assert files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    theirs, ours = opened(tmp_path, files), open_tokenizer(stored)
    assert theirs.eos_token == theirs.pad_token == "<|endoftext|>"
    assert all(theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text) for text in UNSEEN)


def test_the_parsed_model_is_the_models(tmp_path: Path) -> None:
    content = train_sentencepiece(TEXTS, SentencePieceConfig(vocab_size=310))
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    model = parse_sentencepiece(content)
    assert len(model.pieces) == processor.vocab_size()
    for number, (piece, score, kind) in enumerate(model.pieces):
        assert piece == processor.id_to_piece(number)
        assert score == processor.get_score(number)
        assert (kind == BYTE) == processor.is_byte(number)
        assert (kind == CONTROL) == processor.is_control(number)
    assert {piece for piece, _, kind in model.pieces if kind == USER_DEFINED} == {"\n", "\t"}
    assert not model.dummy_prefix
    assert not model.removes_spaces
    assert model.charsmap == b""
    assert parse_sentencepiece(plain(add_dummy_prefix=True)).dummy_prefix
    assert parse_sentencepiece(train_plain_sentencepiece()).charsmap


@pytest.mark.parametrize("keep", [1, 100, -1])
def test_a_truncated_model_is_no_model(keep: int) -> None:
    with pytest.raises(ValueError, match=r"truncated|wire type|unpack|utf-8"):
        parse_sentencepiece(train_sentencepiece(TEXTS, SentencePieceConfig(vocab_size=310))[:keep])
