"""Stage train_tokenizer: a sentencepiece model trained on the corpus, or a tokenizer that exists, as an artifact."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.document_shards import document_shards
from data_prep.stage import Shard, ShardResult, Stage
from data_prep.tokenizer_sample import CANDIDATE, find_candidates, keep_best, read_sample
from retro.config.errors import ConfigError
from retro.config.loader import to_dict
from retro.config.prep_tokens import ExistingTokenizerConfig, SentencePieceConfig, TokenizerConfig
from retro.data.document import Document, document_files, read_documents
from retro.data.npy_file import NpyReader
from retro.data.tokenizer import (
    HUGGINGFACE_NAME,
    SENTENCEPIECE_NAME,
    TOKENIZER_KIND,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_huggingface,
    load_sentencepiece,
    write_tokenizer,
)

PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)
# Documents that one shard looks through for the sample, as stored.
_SHARD_BYTES = 256 << 20
# Pieces never cross a line end or a tab, and both are always one token.
_OWN_PIECES = ["\n", "\t"]
_LONGEST_LINE = 4000
# Where a tokenizer that has no begin or end of text keeps what serves as one.
_STAND_IN = {"bos_token": "cls_token", "eos_token": "sep_token"}


class TokenizerStage(Stage):
    """Documents + config -> tokenizer. An existing tokenizer reads no documents; its content is in the fingerprint.

    Trained: each shard notes the candidates of the sample in its documents (`sample-00000.npy`, CANDIDATE), and the
    closing step trains on the best of them. Taken over: one shard. Memory: the sample, at most `max_characters`.

    Raises ConfigError for a tokenizer that cannot be loaded, or a vocabulary size that the sample does not fill (the
    message says which sizes it does).
    """

    name = "train_tokenizer"
    version = 2
    kind = TOKENIZER_KIND

    def __init__(self, config: TokenizerConfig, documents: Path | None = None) -> None:
        self.tokenizer = config
        self._content: bytes | None = None
        if config.kind == "train":
            if documents is None:
                raise ConfigError("training a tokenizer needs documents; add an ingest section")
            super().__init__({"kind": config.kind, **to_dict(config.train)}, {"documents": documents})
            return
        self._content, names = _read_existing(config)
        options = {k: v for k, v in to_dict(config.existing).items() if k.endswith("_token") and v is not None}
        self._names = {**names, **options}
        digest = hashlib.sha256(self._content).hexdigest()
        # Where the file lies is not what it is: the same content elsewhere is the same tokenizer.
        super().__init__({"kind": config.kind, "sha256": digest, "special_tokens": self._names}, {})

    def plan(self) -> list[Shard]:
        """Groups of document files to sample; one shard for a tokenizer that exists."""
        if self._content is not None:
            return [Shard("00000")]
        shards = document_shards(self.inputs["documents"], _SHARD_BYTES, whole_files=True)
        return shards or [Shard("00000", {"parts": []})]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Sample, or take over and write the artifact's files."""
        if self._content is None:
            candidates = find_candidates(self._documents(shard), self.tokenizer.train)
            np.save(out / f"sample-{shard.name}.npy", candidates, allow_pickle=False)
            return ShardResult(len(candidates))
        return ShardResult(1, self._write(out, self._content))

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Train on the sample."""
        if self._content is not None:
            return dict(records[0]["stats"])
        config = self.tokenizer.train
        chosen = np.zeros(0, CANDIDATE)
        for record in records:
            found = NpyReader(folder / f"sample-{record['name']}.npy", CANDIDATE)
            chosen = keep_best([chosen, found.read(0, len(found))], config.max_characters)
        if not len(chosen):
            raise ConfigError(f"the corpus has no document of the splits {', '.join(config.splits)} to train on")
        sample = read_sample(document_files(self.inputs["documents"]), chosen, config.max_characters)
        stats = self._write(out, train_sentencepiece(sample, config))
        return {"sample_documents": len(sample), "sample_characters": sum(map(len, sample)), **stats}

    def _documents(self, shard: Shard) -> Iterator[tuple[int, int, Document]]:
        """(number of the file in the artifact, number of the document in the file, document)."""
        files = [path.name for path in document_files(self.inputs["documents"])]
        numbers = {name: number for number, name in enumerate(files)}
        for name, _, _ in shard.spec["parts"]:
            for number, document in enumerate(read_documents(self.inputs["documents"] / name)):
                yield numbers[name], number, document

    def _write(self, out: Path, content: bytes) -> dict[str, Any]:
        tokenizer = self._build(content)
        write_tokenizer(out, tokenizer, content)
        return {"vocab_size": tokenizer.vocab_size, "lossless": tokenizer.lossless}

    def _build(self, content: bytes) -> Tokenizer:
        if self.tokenizer.kind == "train":
            ids = {"bos_id": BOS_ID, "eos_id": EOS_ID, "pad_id": PAD_ID}
            return SentencePieceTokenizer(content, **ids, lossless=True, fingerprint="")
        if self.tokenizer.kind == "sentencepiece":
            processor = load_sentencepiece(content)
            found = {"bos_id": processor.bos_id(), "eos_id": processor.eos_id(), "pad_id": processor.pad_id()}
            ids = _special_ids(found, self._names, _sentencepiece_lookup(processor))
            return SentencePieceTokenizer(content, **ids, lossless=False, fingerprint="")
        text = content.decode("utf-8")
        ids = _special_ids({}, self._names, load_huggingface(text).token_to_id)
        return HuggingFaceTokenizer(text, **ids, fingerprint="")

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        trained = f", trained on {stats['sample_characters']:,} characters" if "sample_characters" in stats else ""
        lossless = "" if stats["lossless"] else "; not lossless: a text may decode to another one"
        return f"{stats['vocab_size']:,} tokens{trained}{lossless}"


def train_sentencepiece(texts: Iterable[str], config: SentencePieceConfig) -> bytes:
    """Serialised lossless sentencepiece model; the same texts and config give the same bytes.

    Lossless: identity normalisation, no added space in front, white space kept, unknown characters spelled in bytes.
    Raises ConfigError where the texts cannot fill the vocabulary or their characters alone overflow it.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.model_type,
            character_coverage=config.character_coverage,
            split_digits=config.split_digits,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=_OWN_PIECES,
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            max_sentence_length=8 * _LONGEST_LINE,  # bytes; longer ones would be left out
            shuffle_input_sentence=False,
            num_threads=1,  # sums of floating point numbers depend on the number of threads
            minloglevel=2,
        )
    except RuntimeError as error:
        # "INTERNAL: file(line) [condition] Vocabulary size too high (5000). Please set it to a value <= 302."
        reason = str(error).split("] ", 1)[-1].strip().rstrip(".") or "it is empty"
        raise ConfigError(
            f"vocab_size {config.vocab_size} does not fit the training sample: {reason}; "
            "change vocab_size, or train on more text"
        ) from None
    return model.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines without their ends: sentencepiece trains on short strings, and no piece crosses a line end anyway."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LONGEST_LINE):
                yield line[start : start + _LONGEST_LINE].replace("\u2581", " ")


def _read_existing(config: TokenizerConfig) -> tuple[bytes, dict[str, str]]:
    """(content, names of the special tokens as far as it says) of an existing tokenizer."""
    path = Path(config.existing.path)
    if config.kind == "sentencepiece":
        path = path / SENTENCEPIECE_NAME if path.is_dir() else path
        if not path.is_file():
            raise ConfigError(f"existing.path: expected a sentencepiece model file, nothing found at {path}")
        content = path.read_bytes()
        _with_place(path, lambda: load_sentencepiece(content))
        return content, {}
    if path.exists():
        file = path / HUGGINGFACE_NAME if path.is_dir() else path
        if config.existing.revision is not None:
            raise ConfigError(f"existing.revision is read for names on the hub only; {path} is a path, remove it")
        if not file.is_file():
            raise ConfigError(f"existing.path: expected {HUGGINGFACE_NAME} in {path}, found none")
        content = file.read_bytes()
        names = _read_special_names(file.parent)
    else:
        content, names = _download(config.existing)
    _with_place(path, lambda: load_huggingface(content.decode("utf-8", "replace")))
    return content, names


def _with_place(path: Path, load: Any) -> None:
    try:
        load()
    except ConfigError as error:
        raise ConfigError(f"existing.path: {path}: {error}") from None


def _read_special_names(folder: Path) -> dict[str, str]:
    """Special tokens that the files beside a tokenizer.json name."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / file
        if path.is_file():
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise ConfigError(f"{path}: not valid JSON") from None
            names.update(_special_names(data))
    return names


def _special_names(data: dict[str, Any]) -> dict[str, str]:
    out = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        for key in (_STAND_IN.get(name), name):
            value = data.get(key) if key else None
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                out[name] = value
    return out


def _download(existing: ExistingTokenizerConfig) -> tuple[bytes, dict[str, str]]:
    """A tokenizer by its name on the hub, through the library that knows all of them."""
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            f"existing.path: {existing.path!r} is not a path; a name on the hub needs the package transformers: "
            "pip install 'retro-pretraining[transformers]'"
        ) from None
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(existing.path, revision=existing.revision or "main")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"existing.path: {existing.path!r} is neither a path nor loadable from the hub ({reason})"
        ) from None
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"existing.path: {existing.path!r} has no tokenizer.json; convert it to a fast tokenizer")
    return backend.to_str().encode("utf-8"), _special_names(dict(loaded.special_tokens_map))


def _sentencepiece_lookup(processor: Any) -> Any:
    def look_up(piece: str) -> int | None:
        found = processor.piece_to_id(piece)
        return None if processor.id_to_piece(found) != piece else found

    return look_up


def _special_ids(found: dict[str, int], names: dict[str, str], look_up: Any) -> dict[str, int]:
    """bos_id, eos_id, pad_id from what the model says (-1 = none) and the names given, which win."""
    ids: dict[str, int | None] = {name: i if i >= 0 else None for name, i in found.items()}
    for name, token in names.items():
        ids[name.replace("_token", "_id")] = look_up(token)
        if look_up(token) is None:
            raise ConfigError(f"{name}: the tokenizer has no token {token!r}; name one that it has")
    eos = ids.get("eos_id") if ids.get("eos_id") is not None else ids.get("bos_id")
    if eos is None:
        raise ConfigError("the tokenizer names neither a begin nor an end token; set existing.eos_token")
    bos, pad = ids.get("bos_id"), ids.get("pad_id")
    return {"bos_id": eos if bos is None else bos, "eos_id": eos, "pad_id": eos if pad is None else pad}
