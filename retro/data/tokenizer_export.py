"""The files that transformers reads a tokenizer from, of a tokenizer artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retro.data.sentencepiece_model import (
    BPE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
    parse_sentencepiece,
)
from retro.data.tokenizer import (
    HUGGINGFACE_NAME,
    SENTENCEPIECE_NAME,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    open_tokenizer,
)

_SPACE = "\u2581"
_PROBES = (
    "The quick  brown fox, 3.14159 and 2026:\n\tdef f(x=None) -> int:\n        return x + 1\n\n",
    " leading and trailing ",
    "na\u00efve caf\u00e9, \u4f60\u597d, \U0001f600\u200d\U0001f468, \u0000\u00a0 end",
    "",
)


def huggingface_files(folder: Path, max_length: int) -> dict[str, bytes]:
    """Files by name for the tokenizer artifact `folder`: tokenizer.json, tokenizer_config.json and, of a sentencepiece
    tokenizer, tokenizer.model.

    tokenizer.json is left out for a sentencepiece model that it cannot describe: one with a normalisation, or that
    encodes one of the probes (every piece among them) otherwise. max_length: longest sequence of the model. A converted
    tokenizer puts the begin token in front, as the model was trained.
    """
    tokenizer = open_tokenizer(folder)
    files: dict[str, bytes] = {}
    if isinstance(tokenizer, SentencePieceTokenizer):
        content = (folder / SENTENCEPIECE_NAME).read_bytes()
        files[SENTENCEPIECE_NAME] = content
        names = [piece for piece, _, _ in parse_sentencepiece(content).pieces]
        converted = convert_sentencepiece(content, tokenizer)
        if converted is not None:
            files[HUGGINGFACE_NAME] = converted
    else:
        files[HUGGINGFACE_NAME] = (folder / HUGGINGFACE_NAME).read_bytes()
        vocabulary = json.loads(files[HUGGINGFACE_NAME])
        named = {int(entry["id"]): entry["content"] for entry in vocabulary.get("added_tokens", [])}
        pieces = vocabulary["model"].get("vocab", {})
        named = {**({i: piece for piece, i in pieces.items()} if isinstance(pieces, dict) else {}), **named}
        names = [named.get(i, "") for i in range(tokenizer.vocab_size)]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[tokenizer.bos_id],
        "eos_token": names[tokenizer.eos_id],
        "pad_token": names[tokenizer.pad_id],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    files["tokenizer_config.json"] = _json(config)
    return files


def convert_sentencepiece(content: bytes, tokenizer: SentencePieceTokenizer) -> bytes | None:
    """A tokenizer.json that encodes as the sentencepiece model does; None where there is none.

    Three kinds of text it does take otherwise: the name of a special token or of a byte ("<s>", "<0x0A>") is that
    token, and U+2581, sentencepiece's sign for a space, is a space.
    """
    model = parse_sentencepiece(content)
    known = model.model_type in (BPE, UNIGRAM) and model.escapes_spaces
    if not known or model.charsmap or model.removes_spaces:
        return None
    converted = _json(_description(model, tokenizer))
    theirs = HuggingFaceTokenizer(converted.decode(), tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, "")
    pieces = [piece.replace(_SPACE, " ") for piece, _, kind in model.pieces if kind == NORMAL]
    probes = [*_PROBES, *pieces, *(f"{a}{b}" for a, b in zip(pieces, reversed(pieces), strict=True))]
    if theirs.encode_batch(probes) != tokenizer.encode_batch(probes):
        return None
    return converted


def _description(model: SentencePieceModel, tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    normalizers: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.dummy_prefix:
        normalizers.insert(0, {"type": "Prepend", "prepend": _SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    begin = model.pieces[tokenizer.bos_id][0]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != USER_DEFINED,
            }
            for number, (piece, _, kind) in enumerate(model.pieces)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": begin, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {begin: {"id": begin, "ids": [tokenizer.bos_id], "tokens": [begin]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(model) if model.model_type == BPE else _unigram(model),
    }


def _bpe(model: SentencePieceModel) -> dict[str, Any]:
    """Sentencepiece joins the pair whose join has the best score; here each pair has a rank of its own."""
    ids = {piece: number for number, (piece, _, _) in enumerate(model.pieces)}
    normal = {piece: score for piece, score, kind in model.pieces if kind == NORMAL}
    merges = []
    for piece, _ in sorted(normal.items(), key=lambda item: -item[1]):
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [(a, b) for a, b in pairs if a in normal and b in normal]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": _unknown(model)[1],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": _has_bytes(model),
        "ignore_merges": False,
        "vocab": ids,
        "merges": [list(pair) for pair in merges],
    }


def _unigram(model: SentencePieceModel) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": _unknown(model)[0],
        "vocab": [[piece, score] for piece, score, _ in model.pieces],
        "byte_fallback": _has_bytes(model),
    }


def _unknown(model: SentencePieceModel) -> tuple[int, str]:
    return next((number, piece) for number, (piece, _, kind) in enumerate(model.pieces) if kind == UNKNOWN)


def _has_bytes(model: SentencePieceModel) -> bool:
    return any(piece == "<0x00>" for piece, _, _ in model.pieces)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
