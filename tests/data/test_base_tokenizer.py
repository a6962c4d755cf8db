"""The tokenizer of a pretrained model against that of a release."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import normalizers

from data_prep.runner import run_stage
from data_prep.train_tokenizer import TokenizerStage
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError
from retro.data.base_tokenizer import check_base_tokenizer
from tests.data.test_tokenizer import byte_level, existing, train_plain_sentencepiece


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model's folder with tokenizer.json."""
    folder = tmp_path / "base"
    folder.mkdir()
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


@pytest.fixture
def prepared(base: Path, tmp_path: Path) -> Path:
    """The tokenizer artifact made of it."""
    return run_stage(TokenizerStage(existing("huggingface", base)), tmp_path / "prep", progress=False)


def change(base: Path, edit: Callable[[RawTokenizer], object]) -> None:
    raw = RawTokenizer.from_file(str(base / "tokenizer.json"))
    edit(raw)
    raw.save(str(base / "tokenizer.json"), pretty=False)


def test_the_tokenizer_that_the_data_was_prepared_with(base: Path, prepared: Path) -> None:
    check_base_tokenizer(base, prepared)


def test_what_does_not_decide_the_ids_may_differ(base: Path, prepared: Path) -> None:
    """White space, padding, truncation: as other versions and other users write the file."""
    before = (base / "tokenizer.json").read_bytes()
    change(base, lambda raw: (raw.enable_padding(length=7), raw.enable_truncation(9)))
    assert (base / "tokenizer.json").read_bytes() != before
    check_base_tokenizer(base, prepared)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda raw: setattr(raw, "normalizer", normalizers.Lowercase()), "normalizer"),
        (lambda raw: raw.add_tokens(["extra"]), "added_tokens"),
    ],
    ids=["normalizer", "added_tokens"],
)
def test_another_tokenizer_is_refused_with_the_way_out(
    edit: Callable[[RawTokenizer], object], part: str, base: Path, prepared: Path
) -> None:
    change(base, edit)
    with pytest.raises(ArtifactMismatchError, match=f"differs in {part}") as caught:
        check_base_tokenizer(base, prepared)
    assert f"tokenizer.kind=huggingface tokenizer.existing.path={base}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_tokenizer(base: Path, prepared: Path) -> None:
    (base / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactCorruptError, match=r"tokenizer\.json: not a tokenizer"):
        check_base_tokenizer(base, prepared)
    (base / "tokenizer.json").unlink()
    with pytest.raises(ArtifactMissingError, match=r"put the model's tokenizer\.json there"):
        check_base_tokenizer(base, prepared)


def test_sentencepiece_models_are_compared_byte_by_byte(tmp_path: Path, prepared: Path) -> None:
    base = tmp_path / "llama"
    base.mkdir()
    (base / "tokenizer.model").write_bytes(train_plain_sentencepiece())
    # The folder is enough: prepared with the base's tokenizer by a field of the configuration.
    folder = run_stage(TokenizerStage(existing("sentencepiece", base)), tmp_path / "sp", progress=False)
    check_base_tokenizer(base, folder)
    with pytest.raises(ArtifactMissingError, match=r"kind=sentencepiece tokenizer\.existing\.path="):
        check_base_tokenizer(base, prepared)
    (base / "tokenizer.model").write_bytes(train_plain_sentencepiece(character_coverage=0.99, split_digits=True))
    with pytest.raises(ArtifactMismatchError, match="another sentencepiece model"):
        check_base_tokenizer(base, folder)
