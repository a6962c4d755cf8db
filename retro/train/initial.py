"""What a run starts from: random weights, a checkpoint (`init_from`), or a base model to retrofit (`retrofit`)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retro.artifacts.checkpoint_folders import CHECKPOINT_KIND
from retro.artifacts.manifest import open_manifest
from retro.artifacts.release import Release
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError, ConfigError
from retro.config.loader import from_dict
from retro.config.model import ModelConfig
from retro.config.train import TrainConfig, complete_result_fields
from retro.data.base_tokenizer import check_base_tokenizer
from retro.data.tokenizer import Tokenizer
from retro.model.pretrained import open_pretrained
from retro.model.retro import RetroModel
from retro.model.retrofit import check_freezable, open_base, retrofit_config
from retro.model.weights import CONFIG_NAME


@dataclass(frozen=True)
class InitialWeights:
    """where: for people; model: the run's configuration of it; fingerprint: 16 digits over the weights' content;
    fill: puts them into a model, None where a resumed run no longer has them (and does not need them)."""

    where: str
    model: ModelConfig
    fingerprint: str
    fill: Callable[[RetroModel], None] | None


def open_start(
    config: TrainConfig, release: Release, tokenizer: Tokenizer, latest: Path | None
) -> tuple[TrainConfig, InitialWeights | None]:
    """The configuration with the model that the run trains, and the weights that it starts from (None = random ones).

    latest: the run's newest checkpoint, if it has one: what it started from may then be gone. Raises
    ArtifactMissingError, ArtifactCorruptError (checksums are compared), ArtifactMismatchError (another tokenizer; a
    Hugging Face setting that is not supported) or ConfigError (retrieval that does not fit the base, a section `model`
    that describes another model).
    """
    path = config.init_from if config.retrofit is None else config.retrofit.base
    if path is None:
        initial = None
    else:
        if latest is not None and not Path(path).exists():
            initial = _as_recorded(config, latest, path)
        elif config.retrofit is not None:
            initial = _open_retrofit(config, release, tokenizer)
        else:
            initial = open_initial_weights(path, tokenizer)
        config = take_model(config, initial)
    if config.freeze_backbone:
        check_freezable(config.model)
    return config, initial


def open_initial_weights(path: str | Path, tokenizer: Tokenizer) -> InitialWeights:
    """The weights of a run folder (its newest checkpoint), a checkpoint folder or an exported whole model.

    Raises ArtifactMissingError, ArtifactCorruptError (checksums are compared) or ArtifactMismatchError (another
    tokenizer; a Hugging Face folder).
    """
    found = open_pretrained(path, "init_from")
    if found.is_huggingface:
        raise ArtifactMismatchError(
            f"init_from: {found.folder}: expected a run or checkpoint, found a Hugging Face folder; give it as "
            "retrofit.base, with retrofit.cross_attention_layers=[] to train it on without retrieval"
        )
    found.check()
    _check_own_tokenizer("init_from", found.folder, tokenizer)
    return InitialWeights(str(found.folder), found.config, found.fingerprint(), found.fill)


def _open_retrofit(config: TrainConfig, release: Release, tokenizer: Tokenizer) -> InitialWeights:
    assert config.retrofit is not None
    base = open_base(config.retrofit.base)
    if base.is_huggingface:
        check_base_tokenizer(base.folder, release.tokenizer)
    else:
        _check_own_tokenizer("retrofit.base", base.folder, tokenizer)
    model = retrofit_config(base.config, config.retrofit)
    return InitialWeights(str(base.folder), model, base.fingerprint(), base.fill_backbone)


def _check_own_tokenizer(field: str, folder: Path, tokenizer: Tokenizer) -> None:
    try:
        stored = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["tokenizer"]["fingerprint"]
    except (KeyError, TypeError):
        raise ArtifactCorruptError(
            f"{folder / CONFIG_NAME}: names no tokenizer, so nobody knows whether its ids are the release's; use a "
            "run, a checkpoint, or what `retro export format=retro` makes of one"
        ) from None
    if stored != tokenizer.fingerprint:
        raise ArtifactMismatchError(
            f"{field}: {folder}: expected the release's tokenizer {tokenizer.fingerprint}, found {stored}; use the "
            "release that it was trained with"
        )


def _as_recorded(config: TrainConfig, latest: Path, path: str) -> InitialWeights:
    """What the run's own checkpoint says about weights that are no longer where they were."""
    identity = open_manifest(latest, CHECKPOINT_KIND).config
    fingerprint = identity.get("init_from")
    if fingerprint is None:
        raise ArtifactMissingError(f"{path}: no such run, checkpoint or model, and {latest} did not start from one")
    stored = complete_result_fields(identity.get("config", {}))["model"]
    model = from_dict(ModelConfig, stored, source=str(latest))
    if config.retrofit is not None:
        asked = dataclasses.replace(config.retrofit, dropout=model.dropout)
        if config.retrofit.dropout in (None, model.dropout) and retrofit_config(model, asked) == model:
            return InitialWeights(path, model, fingerprint, None)
        raise ArtifactMissingError(
            f"retrofit.base: {path}: no such model; it is needed because {latest} was made with other settings of the "
            "section retrofit; restore those, or give the run another name="
        )
    return InitialWeights(path, model, fingerprint, None)


def take_model(config: TrainConfig, initial: InitialWeights) -> TrainConfig:
    """The configuration with the model of the weights. Raises ConfigError if it describes another one."""
    if config.model not in (ModelConfig(), initial.model, dataclasses.replace(initial.model, vocab_size=None)):
        field = "init_from" if config.retrofit is None else "retrofit"
        default = ModelConfig()
        differing = [
            entry.name
            for entry in dataclasses.fields(ModelConfig)
            if getattr(config.model, entry.name)
            not in (getattr(initial.model, entry.name), getattr(default, entry.name))
        ]
        named = f" (in {', '.join(differing)})" if differing else ""
        raise ConfigError(
            f"model: with {field} the model is that of {initial.where}, but this configuration describes another"
            f"{named}; leave the section model out"
        )
    return dataclasses.replace(config, model=initial.model)
