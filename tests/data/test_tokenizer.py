"""Tokenizers: trained sentencepiece is lossless and deterministic, existing ones are taken as they are."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer

from data_prep.runner import run_stage
from data_prep.train_tokenizer import BOS_ID, EOS_ID, PAD_ID, TokenizerStage, train_sentencepiece
from retro.artifacts.manifest import MANIFEST_NAME
from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.config.loader import from_dict
from retro.config.prep_tokens import SentencePieceConfig, TokenizerConfig
from retro.data.tokenizer import SentencePieceTokenizer, Tokenizer, open_tokenizer
from tests.data.builders import TEXTS, write_real_tokenizer

HARD = (
    "def f(x):\n    \treturn '\u2581 \u00e9 \u6f22\u5b57 \U0001f600'  \x00 \r\n <s></s><unk> <0x0A>\u2028 \u2581\u2581 "
)


@pytest.fixture(scope="module", params=[("bpe", 340), ("unigram", 315)], ids=["bpe", "unigram"])
def trained(request: pytest.FixtureRequest) -> SentencePieceTokenizer:
    config = SentencePieceConfig(vocab_size=request.param[1], model_type=request.param[0])
    model = train_sentencepiece(TEXTS, config)
    return SentencePieceTokenizer(model, BOS_ID, EOS_ID, PAD_ID, lossless=True, fingerprint="f")


@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=80) | st.text(alphabet=" \t\n\r\u2581ab<>0x", max_size=80))
@example(text=HARD)
@example(text="")
def test_any_text_comes_back(trained: SentencePieceTokenizer, text: str) -> None:
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert all(0 <= i < trained.vocab_size for i in ids)
    assert not {trained.bos_id, trained.eos_id, trained.pad_id, 3} & set(ids)
    assert int(trained.token_byte_lengths()[ids].sum()) == len(text.encode("utf-8"))
    assert "".join(trained.pieces(ids)) == text and len(trained.pieces(ids)) == len(ids)


def test_batches_equal_single_texts_for_any_number_of_threads(trained: SentencePieceTokenizer) -> None:
    texts = [*TEXTS[:5], HARD, "", " "]
    expected = [trained.encode(text) for text in texts]
    assert trained.encode_batch(texts) == trained.encode_batch(texts, num_threads=3) == expected
    assert trained.encode_batch([]) == []


def test_words_of_the_training_text_become_pieces(trained: SentencePieceTokenizer) -> None:
    ids = trained.encode(TEXTS[0])
    assert len(ids) < 0.9 * len(TEXTS[0])
    assert trained.pieces(trained.encode("a\n\tb 12"))[1:3] == ["\n", "\t"]  # line ends and tabs are one token each


def test_special_tokens_have_no_bytes_and_no_text(trained: SentencePieceTokenizer) -> None:
    lengths = trained.token_byte_lengths()
    assert lengths.dtype == np.int32 and lengths.shape == (trained.vocab_size,)
    assert [int(lengths[i]) for i in (trained.bos_id, trained.eos_id, trained.pad_id)] == [0, 0, 0]
    ids = trained.encode("ab")
    assert trained.decode([trained.bos_id, *ids, trained.eos_id, trained.pad_id]) == "ab"
    assert trained.pieces([trained.bos_id, *ids])[0] == ""


def test_a_character_cut_in_half_decodes_to_the_replacement_character(trained: SentencePieceTokenizer) -> None:
    ids = trained.encode("a\u6f22b")
    assert len(ids) == 5
    assert trained.decode(ids[:2]) == "a\ufffd" and trained.decode(ids[2:]).endswith("b")
    assert trained.pieces(ids) == ["a", "", "", "\u6f22", "b"]
    assert "".join(trained.pieces(ids[:3])) == trained.decode(ids[:3])


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_gives_the_same_bytes(model_type: str) -> None:
    config = from_dict(SentencePieceConfig, {"vocab_size": 300, "model_type": model_type})
    assert train_sentencepiece(TEXTS, config) == train_sentencepiece(iter(TEXTS), config)


def test_split_digits_and_coverage_have_an_effect() -> None:
    text = ["1234 1234 1234 1234"] * 30 + ["\u00e9t\u00e9"]
    whole = train_sentencepiece(text, SentencePieceConfig(vocab_size=272, split_digits=False, character_coverage=1.0))
    split = train_sentencepiece(text, SentencePieceConfig(vocab_size=267, character_coverage=0.99))

    def build(model: bytes) -> Tokenizer:
        return SentencePieceTokenizer(model, BOS_ID, EOS_ID, PAD_ID, lossless=True, fingerprint="")

    assert len(build(whole).encode("1234")) < len(build(split).encode("1234")) == 4
    assert len(build(whole).encode("\u00e9")) == 1 and len(build(split).encode("\u00e9")) == 2
    assert build(split).decode(build(split).encode("\u00e9t\u00e9 12")) == "\u00e9t\u00e9 12"


def test_a_vocabulary_that_the_sample_cannot_fill_is_refused_with_what_it_can() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size 5000 does not fit.*value <= \d+.*train on more text"):
        train_sentencepiece(TEXTS, SentencePieceConfig(vocab_size=5000))
    with pytest.raises(ConfigError, match=r"vocab_size 262 does not fit.*262 vs \d+"):
        train_sentencepiece(TEXTS, SentencePieceConfig(vocab_size=262))
    with pytest.raises(ConfigError, match="it is empty"):
        train_sentencepiece([], SentencePieceConfig(vocab_size=300))


def test_a_tokenizer_travels_to_other_processes(trained: SentencePieceTokenizer) -> None:
    other = pickle.loads(pickle.dumps(trained))
    assert other.encode(HARD) == trained.encode(HARD) and other.fingerprint == "f"


# Existing tokenizers, through the stage.


def existing(kind: str, path: Path, **options: str) -> TokenizerConfig:
    return from_dict(TokenizerConfig, {"kind": kind, "existing": {"path": str(path), **options}})


def train_plain_sentencepiece(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=80, model_type="bpe", minloglevel=2, **options
    )
    return model.getvalue()


def test_an_existing_sentencepiece_model_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.spm"
    path.write_bytes(train_plain_sentencepiece())
    folder = run_stage(TokenizerStage(existing("sentencepiece", path)), tmp_path, progress=False)
    tokenizer = open_tokenizer(folder)
    raw = sentencepiece.SentencePieceProcessor(model_file=str(path))
    text = "the quick  brown fox"
    assert tokenizer.encode(text) == raw.encode(text)
    assert tokenizer.decode([tokenizer.bos_id, *raw.encode(text), tokenizer.eos_id]) == "the quick brown fox"
    assert not tokenizer.lossless and tokenizer.vocab_size == 80
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)  # it has no padding: end stands in
    assert tokenizer.fingerprint == TokenizerStage(existing("sentencepiece", path)).fingerprint()
    moved = tmp_path / "elsewhere.model"
    moved.write_bytes(path.read_bytes())
    assert TokenizerStage(existing("sentencepiece", moved)).fingerprint() == tokenizer.fingerprint
    assert TokenizerStage(existing("sentencepiece", path, eos_token="<s>")).fingerprint() != tokenizer.fingerprint


def test_special_tokens_can_be_named_and_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "model.spm"
    path.write_bytes(train_plain_sentencepiece(bos_id=-1, eos_id=-1, control_symbols=["<end>", "<fill>"]))
    with pytest.raises(ConfigError, match="names neither a begin nor an end token; set existing"):
        run_stage(TokenizerStage(existing("sentencepiece", path)), tmp_path, progress=False)
    with pytest.raises(ConfigError, match="eos_token: the tokenizer has no token '<stop>'"):
        run_stage(TokenizerStage(existing("sentencepiece", path, eos_token="<stop>")), tmp_path, progress=False)
    stage = TokenizerStage(existing("sentencepiece", path, eos_token="<end>", pad_token="<fill>"))
    tokenizer = open_tokenizer(run_stage(stage, tmp_path, progress=False))
    assert tokenizer.bos_id == tokenizer.eos_id != tokenizer.pad_id


def byte_level() -> RawTokenizer:
    tokenizer = RawTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def metaspace() -> RawTokenizer:
    """The construction of Llama: sentencepiece-like pieces with bytes for the rest."""
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], "\u2581", "a", "b", "ab", "\u2581ab"]
    tokenizer = RawTokenizer(
        models.BPE(
            vocab={p: i for i, p in enumerate(pieces)},
            merges=[("a", "b"), ("\u2581", "ab")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    return tokenizer


def word_piece() -> RawTokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "fox", "##es", "."]
    tokenizer = RawTokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(pieces[:4])
    return tokenizer


def take(tmp_path: Path, raw: RawTokenizer, special: dict[str, object]) -> Tokenizer:
    folder = tmp_path / "hf"
    folder.mkdir()
    raw.enable_truncation(4)  # settings of somebody's batches, which must not act here
    raw.enable_padding(length=4)
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return open_tokenizer(run_stage(TokenizerStage(existing("huggingface", folder)), tmp_path, progress=False))


def test_a_byte_level_tokenizer_is_lossless(tmp_path: Path) -> None:
    tokenizer = take(tmp_path, byte_level(), {"eos_token": {"content": "<|endoftext|>"}})
    assert tokenizer.lossless and tokenizer.bos_id == tokenizer.eos_id == tokenizer.pad_id == 0
    for text in (HARD, "", "a <|endoftext|> b", TEXTS[0]):
        ids = tokenizer.encode(text)
        assert 0 not in ids  # a document that mentions the end token does not end there
        assert tokenizer.decode(ids) == text == "".join(tokenizer.pieces(ids))
        assert int(tokenizer.token_byte_lengths()[ids].sum()) == len(text.encode("utf-8"))
    texts = [*TEXTS[:3], HARD]
    assert tokenizer.encode_batch(texts, num_threads=2) == [tokenizer.encode(t) for t in texts]
    other = pickle.loads(pickle.dumps(tokenizer))
    assert other.encode(HARD) == tokenizer.encode(HARD) and other.fingerprint == tokenizer.fingerprint != ""


def swallowing(raw: RawTokenizer) -> None:
    raw.add_tokens([AddedToken("<mask>", lstrip=True)])


LOSSY: dict[str, Callable[[RawTokenizer], object]] = {
    "a space in front": lambda raw: setattr(raw, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "in a sequence": lambda raw: setattr(
        raw,
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)]),
    ),
    "white space dropped": lambda raw: setattr(
        raw,
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    ),
    "matches dropped": lambda raw: setattr(
        raw,
        "pre_tokenizer",
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    ),
    "normalised": lambda raw: setattr(raw, "normalizer", normalizers.Lowercase()),
    "an added token": swallowing,
}


@pytest.mark.parametrize("change", list(LOSSY))
def test_a_byte_level_tokenizer_that_changes_texts_is_not_lossless(tmp_path: Path, change: str) -> None:
    raw = byte_level()
    LOSSY[change](raw)
    tokenizer = take(tmp_path, raw, {"eos_token": "<|endoftext|>"})
    text = "The fox <mask> 12"
    ids = raw.encode(text, add_special_tokens=False).ids  # what a claim to be lossless would rest on
    assert b"".join(tokenizer._bytes[i] for i in ids) != text.encode() and not tokenizer.lossless


def test_a_byte_level_tokenizer_without_some_bytes_is_not_lossless(tmp_path: Path) -> None:
    raw = RawTokenizer(models.BPE({"<|endoftext|>": 0, "a": 1, "b": 2}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = take(tmp_path, raw, {"eos_token": "<|endoftext|>"})
    assert tokenizer.decode(tokenizer.encode("a c")) != "a c" and not tokenizer.lossless


def test_splitting_alone_loses_nothing(tmp_path: Path) -> None:
    raw = byte_level()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9]"), "isolated"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer = take(tmp_path, raw, {"eos_token": "<|endoftext|>"})
    assert tokenizer.lossless and tokenizer.decode(tokenizer.encode(HARD)) == HARD


def test_bytes_of_a_sentencepiece_like_hugging_face_tokenizer(tmp_path: Path) -> None:
    tokenizer = take(tmp_path, metaspace(), {"bos_token": "<s>", "eos_token": "</s>"})
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    for text in ("ab ab", "ab\n\u6f22 </s>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == "".join(tokenizer.pieces(ids))
        assert int(tokenizer.token_byte_lengths()[ids].sum()) == len(text.encode("utf-8"))


def test_begin_and_end_of_an_encoder_stand_in(tmp_path: Path) -> None:
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    tokenizer = take(tmp_path, word_piece(), special)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 3, 0)
    ids = tokenizer.encode("The foxes .")
    assert len(ids) == 4 and not tokenizer.lossless
    assert tokenizer.decode([2, *ids, 3, 0]) == "the foxes."
    assert tokenizer.token_byte_lengths()[ids].tolist() == [3, 3, 4, 1] or tokenizer.pieces(ids)[0] == "the"


def test_what_is_no_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"neither")
    with pytest.raises(ConfigError, match="bad: not a sentencepiece model"):
        TokenizerStage(existing("sentencepiece", bad))
    with pytest.raises(ConfigError, match=r"bad: not a tokenizer\.json"):
        TokenizerStage(existing("huggingface", bad))
    with pytest.raises(ConfigError, match="nothing found at"):
        TokenizerStage(existing("sentencepiece", tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"expected tokenizer\.json in .*, found none"):
        TokenizerStage(existing("huggingface", tmp_path))
    with pytest.raises(ConfigError, match="is read for names on the hub only"):
        TokenizerStage(existing("huggingface", bad, revision="main"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="'no/such-model' is neither a path nor loadable from the hub"):
        TokenizerStage(existing("huggingface", Path("no/such-model")))
    with pytest.raises(ConfigError, match="training a tokenizer needs documents"):
        TokenizerStage(TokenizerConfig())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "huggingface"}, "existing.path is required"),
        ({"existing": {"path": "x"}}, "section existing is filled in, but kind is 'train'"),
        ({"kind": "sentencepiece", "existing": {"path": "x"}, "train": {"vocab_size": 999}}, "section train is filled"),
        ({"kind": "sentencepiece", "existing": {"path": "x", "revision": "main"}}, "existing.revision is read for"),
        ({"train": {"vocab_size": 100}}, "vocab_size: expected 262 or more"),
        ({"train": {"max_characters": 0}}, "max_characters: expected 1 or more"),
        ({"train": {"character_coverage": 0.5}}, "character_coverage: expected 0.98 to 1"),
        ({"train": {"splits": []}}, "splits: expected at least one of"),
        ({"train": {"splits": ["train", "train"]}}, "'train' is listed twice"),
        ({"train": {"splits": ["tset"]}}, "splits: expected some of"),
    ],
)
def test_configurations_that_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(TokenizerConfig, config)


def test_damaged_artifacts_are_refused(tmp_path: Path) -> None:
    folder = write_real_tokenizer(tmp_path / "tokenizer")
    assert open_tokenizer(folder).decode(open_tokenizer(folder).encode(HARD)) == HARD
    config = folder / "tokenizer_config.json"
    good = config.read_text()
    for change in (('"vocab_size": 300', '"vocab_size": 301'), ('"bos_id": 1', '"bos_id":-1'), ("{", "[")):
        config.write_text(good.replace(*change))
        with pytest.raises(ArtifactCorruptError, match="not a usable tokenizer"):
            open_tokenizer(folder)
    config.write_text(good)
    model = folder / "tokenizer.model"
    model.write_bytes(b"\xff" * model.stat().st_size)
    with pytest.raises(ArtifactCorruptError, match="not a sentencepiece model"):
        open_tokenizer(folder)
    assert (folder / MANIFEST_NAME).is_file()
