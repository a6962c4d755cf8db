"""What a run trains and validates on, opened from a release."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from retro.artifacts.release import Release
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.config.qa import parse_arm
from retro.config.train import TrainConfig
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.dataset import RetroDataset
from retro.data.neighbor_table import open_neighbor_table
from retro.data.packed_dataset import PackedDataset
from retro.data.qa.dataset import QaDataset
from retro.data.qa.prepared import PreparedQuestions, open_prepared
from retro.data.question_dataset import QuestionDataset, open_question_sequences, question_database
from retro.data.text_dataset import Options, TextDataset
from retro.data.tokenizer import Tokenizer

TRAIN_SPLIT, VALIDATION_SPLIT = "train", "valid"
#: Questions have no third split: their validation curve is for looking at only, nothing may be chosen by it.
QUESTION_VALIDATION_SPLIT = "test"

Sequences = TextDataset | QuestionDataset | QaDataset


@dataclass(frozen=True)
class RunData:
    """train: scores all but the last position of a sequence, whose neighbors would serve that position only;
    validation: scores all positions, None if the run does not validate; byte_lengths int32 [V]: UTF-8 bytes of every
    token; prepared: where the questions of dataset qa come from."""

    train: Sequences
    validation: Sequences | None
    byte_lengths: np.ndarray
    prepared: PreparedQuestions | None = None


def resolve_vocabulary(config: TrainConfig, tokenizer: Tokenizer) -> TrainConfig:
    """The configuration with a vocabulary size: the tokenizer's, or that of the weights to start from, which may be
    padded. Raises ConfigError for a size that does not fit."""
    given, size = config.model.vocab_size, tokenizer.vocab_size
    if given is not None and (config.init_from is not None or config.retrofit is not None):
        if given < size:
            raise ConfigError(
                f"model.vocab_size: the weights to start from have {given} tokens, the release's tokenizer {size}; "
                "prepare the corpus with the tokenizer that they were trained with"
            )
        return config
    if given not in (None, size):
        raise ConfigError(
            f"model.vocab_size: expected {size}, the size of the release's tokenizer, found {given}; leave it out"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def open_data(config: TrainConfig, release: Release, tokenizer: Tokenizer) -> RunData:
    """Open what `config` names: the same sequences in the same order for GPT and RETRO.

    Raises ArtifactError subclasses and ConfigError for artifacts that are not there or do not fit.
    """
    train: Sequences
    validation: Sequences | None = None
    if config.dataset == "questions":
        train = _open_questions(config, release, tokenizer, TRAIN_SPLIT)
        if config.validate_every:
            validation = _open_questions(config, release, tokenizer, QUESTION_VALIDATION_SPLIT)
    elif config.dataset == "qa":
        assert config.qa is not None  # the configuration checks it
        prepared = open_prepared(config.qa.questions)
        train = _open_qa(config, prepared, tokenizer, config.qa.split)
        if config.validate_every:
            validation = _open_qa(config, prepared, tokenizer, config.qa.validation_split)
        return RunData(train, validation, tokenizer.token_byte_lengths(), prepared)
    else:
        database = open_chunk_store(release.database_chunks) if config.retrieval else None
        train = _open_text(config, release, tokenizer, TRAIN_SPLIT, database, score_last_position=False)
        if config.validate_every:
            validation = _open_text(config, release, tokenizer, VALIDATION_SPLIT, database, score_last_position=True)
    return RunData(train, validation, tokenizer.token_byte_lengths())


def _open_text(
    config: TrainConfig,
    release: Release,
    tokenizer: Tokenizer,
    name: str,
    database: ChunkStore | None,
    score_last_position: bool,
) -> TextDataset:
    split = release.split(name)
    queries = open_chunk_store(split.chunks)
    _check_chunk_length(str(queries.folder), queries.chunk_length, config)
    _check_tokenizer(str(queries.folder), queries.tokens.tokenizer_fingerprint, tokenizer)
    if queries.num_chunks == 0:
        raise ArtifactMismatchError(f"{queries.folder}: the split {name!r} has no chunk; prepare another corpus")
    neighbors = None
    if database is not None and split.neighbors is not None:
        neighbors = open_neighbor_table(split.neighbors, queries, database)
    options = Options(
        sequence_length=config.sequence_length,
        num_neighbors=config.num_neighbors,
        pad_id=tokenizer.pad_id,
        retrieval="on" if config.retrieval else "off",
        seed=config.seed,
        score_last_position=score_last_position,
    )
    if config.packing == "documents":
        dataset: TextDataset = PackedDataset(queries, database, neighbors, **options)
    else:
        dataset = RetroDataset(queries, database, neighbors, **options)
    if len(dataset) == 0:
        raise ArtifactMismatchError(
            f"{queries.folder}: the documents of the split {name!r} were all removed; prepare another corpus"
        )
    return dataset


def _open_questions(config: TrainConfig, release: Release, tokenizer: Tokenizer, split: str) -> QuestionDataset:
    name = config.question_set
    if name not in release.questions:
        known = ", ".join(sorted(release.questions)) or "none"
        raise ConfigError(f"question_set: {release.path} has no {name!r}; it has {known}")
    folder = release.questions[name]
    sequences = open_question_sequences(folder, split)
    _check_chunk_length(str(folder), sequences.chunk_length, config)
    _check_tokenizer(str(folder), sequences.tokenizer, tokenizer)
    if config.sequence_length != sequences.sequence_length:
        raise ConfigError(
            f"sequence_length: expected {sequences.sequence_length}, as the questions of {folder} are laid out, found "
            f"{config.sequence_length}; set sequence_length={sequences.sequence_length}"
        )
    if len(sequences) == 0:
        raise ArtifactMismatchError(f"{folder}: no question in the split {split!r}; make the questions again")
    return QuestionDataset(
        sequences,
        open_chunk_store(question_database(folder)) if config.retrieval else None,
        config.num_neighbors,
        tokenizer.pad_id,
        retrieval="on" if config.retrieval else "off",
        seed=config.seed,
    )


def _open_qa(config: TrainConfig, prepared: PreparedQuestions, tokenizer: Tokenizer, split: str) -> QaDataset:
    assert config.qa is not None
    chunk, layout, arm = config.model.chunk_length, config.qa.layout, parse_arm(config.qa.arm)
    if not config.retrieval:
        config.qa.check_gpt()
    if split not in prepared.splits:
        field = "split" if split == config.qa.split else "validation_split"
        raise ConfigError(
            f"qa.{field}: expected one of {', '.join(prepared.splits)}, the splits of {config.qa.questions}, found "
            f"{split!r}" + ("" if field == "split" else "; name another, or set validate_every=0")
        )
    needed = (layout.prompt_chunks + 1) * chunk
    if config.sequence_length < needed:
        raise ConfigError(
            f"sequence_length: expected at least {needed}, {layout.prompt_chunks} chunks of {chunk} tokens "
            f"(qa.layout.prompt_chunks) and one for the answer, found {config.sequence_length}"
        )
    if layout.answer_tokens > chunk:
        raise ConfigError(
            f"qa.layout.answer_tokens: expected at most {chunk}, the model's chunk_length, found {layout.answer_tokens}"
        )
    in_encoder = layout.passages - arm.in_prompt if arm.in_encoder else 0
    if in_encoder > config.num_neighbors:
        raise ConfigError(
            f"num_neighbors: expected at least {in_encoder}, the passages that arm {arm.name!r} puts into the encoder, "
            f"found {config.num_neighbors}; set num_neighbors={in_encoder} or lower qa.layout.passages"
        )
    return QaDataset(
        prepared.read(split),
        arm,
        layout,
        prepared.task,
        tokenizer,
        chunk,
        where=f"{prepared.folder}: {split}",
        # Few widths, each of which is compiled once.
        length_multiple=chunk if config.compile else 1,
    )


def _check_chunk_length(where: str, found: int, config: TrainConfig) -> None:
    if found == config.model.chunk_length:
        return
    remedy = f"prepare the corpus again with chunks of {config.model.chunk_length}"
    if config.retrofit is not None:
        remedy = f"set retrofit.chunk_length={found}, or {remedy}"
    elif config.init_from is None:
        remedy = f"set model.chunk_length={found}, or {remedy}"
    raise ArtifactMismatchError(
        f"{where}: expected chunks of {config.model.chunk_length} tokens, the model's chunk_length, found {found}; "
        f"{remedy}"
    )


def _check_tokenizer(where: str, found: str, tokenizer: Tokenizer) -> None:
    if found != tokenizer.fingerprint:
        raise ArtifactMismatchError(
            f"{where}: expected tokens of the release's tokenizer {tokenizer.fingerprint}, found {found}; "
            "run `retro prep run` again"
        )
