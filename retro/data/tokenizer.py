"""Text to token ids and back: sentencepiece or Hugging Face tokenizers behind one interface.

Artifact kind "tokenizer": `tokenizer.model` (sentencepiece) or `tokenizer.json` (Hugging Face), and
`tokenizer_config.json` {"kind", "vocab_size", "bos_id", "eos_id", "pad_id", "lossless"}.
"""

from __future__ import annotations

import codecs
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.data.byte_alphabet import BYTE_OF_CHARACTER
from retro.data.lossless import decoder_types, is_lossless

TOKENIZER_KIND = "tokenizer"
CONFIG_NAME = "tokenizer_config.json"
SENTENCEPIECE_NAME = "tokenizer.model"
HUGGINGFACE_NAME = "tokenizer.json"

# sentencepiece writes a space as this character and reads both as a space.
_SPACE = "\u2581"


class Tokenizer(ABC):
    """Encodes text without special tokens; ids are 0..vocab_size-1.

    bos_id, eos_id, pad_id: special tokens; where a tokenizer has fewer they may be equal (padding is told from tokens
    by masks, never by its id). lossless: decode(encode(text)) == text for every text. fingerprint: of the artifact.
    """

    kind: str

    def __init__(
        self, vocab_size: int, bos_id: int, eos_id: int, pad_id: int, lossless: bool, fingerprint: str
    ) -> None:
        self.vocab_size, self.bos_id, self.eos_id, self.pad_id = vocab_size, bos_id, eos_id, pad_id
        self.lossless, self.fingerprint = lossless, fingerprint

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Token ids of each text, without special tokens; what looks like one in the text is text.

        num_threads: speed only.
        """

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special tokens give nothing, bytes that are not UTF-8 the replacement character."""

    def decode_batch(self, token_rows: Sequence[np.ndarray]) -> list[str]:
        """`decode` of each row (int64 [length])."""
        if not self.lossless or not len(token_rows):
            return self._decode_each(token_rows)
        # One copy of all bytes, then a cut per row: half the time of a join per row.
        flat = np.concatenate(token_rows)
        content, starts, sizes = self._byte_table
        ends = np.cumsum(sizes[flat])
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts[flat] - (ends - sizes[flat]), sizes[flat])
        text = content[places].tobytes()
        cuts = np.concatenate([[0], ends])[np.cumsum([0, *(len(row) for row in token_rows)])].tolist()
        return [text[a:b].decode("utf-8", "replace") for a, b in itertools.pairwise(cuts)]

    @abstractmethod
    def _decode_each(self, token_rows: Sequence[np.ndarray]) -> list[str]:
        """`decode_batch` of a tokenizer that is not lossless."""

    @abstractmethod
    def _piece_bytes(self) -> list[bytes]:
        """UTF-8 bytes that each id stands for; special tokens b''."""

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without special tokens."""
        return self.encode_batch([text])[0]

    @cached_property
    def _bytes(self) -> list[bytes]:
        pieces = self._piece_bytes()
        for special in (self.bos_id, self.eos_id, self.pad_id):
            pieces[special] = b""
        return pieces

    @cached_property
    def _byte_table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(bytes of all ids one after the other: uint8, start of each id's: int64, how many: int64)."""
        sizes = np.array([len(piece) for piece in self._bytes], dtype=np.int64)
        return np.frombuffer(b"".join(self._bytes), dtype=np.uint8), np.cumsum(sizes) - sizes, sizes

    def token_byte_lengths(self) -> np.ndarray:
        """int32 [vocab_size]: UTF-8 bytes that each id stands for, 0 for special tokens.

        For a lossless tokenizer the sum over the tokens of a text is the text's number of bytes.
        """
        return np.array([len(piece) for piece in self._bytes], dtype=np.int32)

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes that one id stands for, perhaps part of a character; b"" for a special token."""
        return self._bytes[token]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each token, for display; together they are the text of all.

        A character that several tokens spell in bytes appears with the last of them.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        out = [decoder.decode(self._bytes[i]) for i in ids]
        if out:
            out[-1] += decoder.decode(b"", final=True)
        return out


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model. Trained by this project (lossless), or anybody's."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, bos_id: int, eos_id: int, pad_id: int, lossless: bool, fingerprint: str) -> None:
        self._model = model
        self._processor = load_sentencepiece(model)
        super().__init__(self._processor.vocab_size(), bos_id, eos_id, pad_id, lossless, fingerprint)
        # The three bytes of U+2581, which a lossless tokenizer must not confuse with a space.
        byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode("utf-8")]
        self._space_ids = byte_ids if lossless else []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._model, self.bos_id, self.eos_id, self.pad_id, self.lossless, self.fingerprint)

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """See Tokenizer."""
        ids: list[list[int]] = self._processor.encode(list(texts), num_threads=num_threads)
        if self._space_ids:
            for i, text in enumerate(texts):
                if _SPACE in text:
                    ids[i] = self._encode_around_space_sign(text)
        return ids

    def _encode_around_space_sign(self, text: str) -> list[int]:
        out: list[int] = []
        for i, part in enumerate(text.split(_SPACE)):
            out += self._space_ids if i else []
            out += self._processor.encode(part)
        return out

    def decode(self, ids: Iterable[int]) -> str:
        """See Tokenizer."""
        if self.lossless:
            return b"".join([self._bytes[i] for i in ids]).decode("utf-8", "replace")
        return str(self._processor.decode([int(i) for i in ids if self._bytes[i]]))

    def _decode_each(self, token_rows: Sequence[np.ndarray]) -> list[str]:
        rows = [[i for i in row.tolist() if self._bytes[i]] for row in token_rows]
        return [str(text) for text in self._processor.decode(rows)] if rows else []

    def _piece_bytes(self) -> list[bytes]:
        model = self._processor
        out = []
        for i in range(self.vocab_size):
            if model.is_control(i) or model.is_unknown(i) or model.is_unused(i):
                out.append(b"")
            elif model.is_byte(i):
                out.append(bytes([int(model.id_to_piece(i)[3:5], 16)]))
            else:
                out.append(model.id_to_piece(i).replace(_SPACE, " ").encode("utf-8"))
        return out


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json, through the `tokenizers` package."""

    kind = "huggingface"

    def __init__(self, content: str, bos_id: int, eos_id: int, pad_id: int, fingerprint: str) -> None:
        self._content = content
        self._tokenizer = load_huggingface(content)
        self._description = json.loads(content)
        lossless = is_lossless(self._description)
        # The highest id, not the number of tokens: numberings have holes.
        vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        super().__init__(vocab_size, bos_id, eos_id, pad_id, lossless, fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._content, self.bos_id, self.eos_id, self.pad_id, self.fingerprint)

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """See Tokenizer. Threads are those of the `tokenizers` package (TOKENIZERS_PARALLELISM)."""
        if num_threads == 1:
            return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [item.ids for item in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """See Tokenizer."""
        if self.lossless:
            return b"".join([self._bytes[i] for i in ids]).decode("utf-8", "replace")
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def _decode_each(self, token_rows: Sequence[np.ndarray]) -> list[str]:
        return [
            str(t) for t in self._tokenizer.decode_batch([r.tolist() for r in token_rows], skip_special_tokens=True)
        ]

    def _piece_bytes(self) -> list[bytes]:
        added = {int(t["id"]): t for t in self._description.get("added_tokens", [])}
        decoders = decoder_types(self._description)
        out = []
        for i in range(self.vocab_size):
            piece = self._tokenizer.id_to_token(i)
            if i in added:
                out.append(b"" if added[i]["special"] else str(added[i]["content"]).encode("utf-8"))
            elif piece is None:  # a hole in the numbering
                out.append(b"")
            elif "ByteLevel" in decoders:
                out.append(bytes(BYTE_OF_CHARACTER[c] for c in piece))
            elif "ByteFallback" in decoders and len(piece) == 6 and piece.startswith("<0x"):
                out.append(bytes([int(piece[3:5], 16)]))
            elif "ByteFallback" in decoders or "Metaspace" in decoders:
                out.append(piece.replace(_SPACE, " ").encode("utf-8"))
            else:
                out.append(self._tokenizer.decode([i]).encode("utf-8"))
        return out


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a finished artifact of kind "tokenizer".

    Raises ArtifactError subclasses where the folder does not hold one.
    """
    folder = Path(folder)
    manifest = open_manifest(folder, TOKENIZER_KIND)
    config = read_tokenizer_config(folder)
    ids = {name: config[name] for name in ("bos_id", "eos_id", "pad_id")}
    try:
        tokenizer: Tokenizer
        if config["kind"] == SentencePieceTokenizer.kind:
            model = (folder / SENTENCEPIECE_NAME).read_bytes()
            lossless = bool(config["lossless"])
            tokenizer = SentencePieceTokenizer(model, **ids, lossless=lossless, fingerprint=manifest.fingerprint)
        elif config["kind"] == HuggingFaceTokenizer.kind:
            content = (folder / HUGGINGFACE_NAME).read_text(encoding="utf-8")
            tokenizer = HuggingFaceTokenizer(content, **ids, fingerprint=manifest.fingerprint)
        else:
            raise ValueError(f"unknown kind {config['kind']!r}")
        if config["vocab_size"] != tokenizer.vocab_size or not all(0 <= i < tokenizer.vocab_size for i in ids.values()):
            raise ValueError(f"{CONFIG_NAME} says {config}, the model has {tokenizer.vocab_size} tokens")
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise ArtifactCorruptError(f"{folder}: not a usable tokenizer ({error}); make it again") from None
    return tokenizer


def read_tokenizer_config(folder: str | Path) -> dict[str, Any]:
    """Content of a tokenizer artifact's tokenizer_config.json, without loading the model."""
    path = Path(folder) / CONFIG_NAME
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name in ("vocab_size", "bos_id", "eos_id", "pad_id"):
            if not isinstance(config[name], int):
                raise ValueError(f"{name} is {config[name]!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactCorruptError(f"{path}: not a usable tokenizer ({error}); make it again") from None
    return config


def write_tokenizer(folder: Path, tokenizer: Tokenizer, content: bytes) -> None:
    """Write the files of a tokenizer artifact; `content`: the sentencepiece model or the tokenizer.json."""
    name = SENTENCEPIECE_NAME if tokenizer.kind == SentencePieceTokenizer.kind else HUGGINGFACE_NAME
    (folder / name).write_bytes(content)
    config = {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "lossless": tokenizer.lossless,
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_sentencepiece(model: bytes) -> Any:
    """A sentencepiece processor of a serialised model. Raises ConfigError where the bytes are not one."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError:
        raise ConfigError("not a sentencepiece model") from None
    return processor


def load_huggingface(content: str) -> Any:
    """A `tokenizers.Tokenizer` of the content of a tokenizer.json. Raises ConfigError where it is not one."""
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "a Hugging Face tokenizer needs the package tokenizers; pip install 'retro-pretraining[transformers]'"
        ) from None
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the package raises bare Exception
        raise ConfigError(f"not a tokenizer.json ({error})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # A document that writes about "<|endoftext|>" does not end there.
    tokenizer.encode_special_tokens = True
    return tokenizer
