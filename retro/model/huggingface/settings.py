"""A Hugging Face config.json, read so that no setting goes unnoticed: known, without effect, or refused by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError

CONFIG_NAME = "config.json"

#: Settings that change no logit: bookkeeping, other tasks, generation, the numerics of single kernels.
INERT = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_model_name_or_path",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "bos_token_id",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "eos_token_id",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "n_ctx",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_past",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "reorder_and_upcast_attn",
        "repetition_penalty",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "temperature",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    }
)


class Settings:
    """The entries of one config.json; each method reads one and remembers that it was read. A null is as absent.

    Raises ArtifactMismatchError naming file and setting for a value that has the wrong type or is not supported.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where
        self._read: set[str] = set()

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1; required if there is no default."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, value, "a whole number of 1 or more")
        return value

    def optional_integer(self, name: str) -> int | None:
        """As `integer`, None where the setting is absent."""
        return None if self._get(name, None) is None else self.integer(name)

    def number(self, name: str, default: float) -> float:
        """Any finite number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            raise self.error(name, value, "a finite number")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def choice(self, name: str, known: Mapping[str, str], default: str) -> str:
        """What `known` says about the setting's text."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in known:
            raise self.error(name, value, f"one of {', '.join(known)}")
        return known[value]

    def mapping(self, name: str) -> Settings | None:
        """A nested object, None where it is absent."""
        value = self._get(name, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, value, "an object")
        return Settings(value, f"{self._where}: {name}")

    def must_be(self, name: str, supported: Any) -> None:
        """Refuse every other value than `supported`, which is also the one that an absent setting stands for."""
        value = self._get(name, supported)
        if value != supported:
            raise self.error(name, value, f"{json.dumps(supported)}, the only value that this model can compute")

    def dropout(self, *names: str) -> float:
        """The common value of dropout rates that this model has one rate for."""
        rates = {name: self.number(name, 0.0) for name in names}
        if len(set(rates.values())) > 1:
            found = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
            raise ArtifactMismatchError(
                f"{self._where}: dropout rates differ ({found}), but this model has one for all; make them equal in "
                "the file (they concern training only, not what the model computes)"
            )
        return rates[names[0]]

    def check_rest(self, inert: Collection[str] = ()) -> None:
        """Refuse a setting that was not read, is not known to be without effect, and is switched on (neither null, nor
        false, 0 or empty)."""
        for name, value in self._values.items():
            if value and name not in self._read and name not in INERT and name not in inert:
                raise ArtifactMismatchError(
                    f"{self._where}: setting {name!r} ({_shown(value)}) is not supported; if you know that it "
                    "changes nothing the model computes, remove it from a copy of the file"
                )

    def error(self, name: str, value: Any, expected: str) -> ArtifactMismatchError:
        """The refusal of one value."""
        return ArtifactMismatchError(f"{self._where}: {name}: expected {expected}, found {_shown(value)}")

    def _get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_config_json(folder: Path) -> dict[str, Any]:
    """The content of `folder/config.json`. Raises ArtifactMissingError or ArtifactCorruptError."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ArtifactMissingError(
            f"{path}: not found; expected a Hugging Face folder with {CONFIG_NAME} and model.safetensors"
        )
    return read_json_object(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """A file's JSON object. Raises ArtifactCorruptError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactCorruptError(
            f"{path}: not readable as JSON ({str(error).splitlines()[0]}); get the file again"
        ) from None
    if not isinstance(value, dict):
        raise ArtifactCorruptError(f"{path}: expected an object, found {type(value).__name__}; get the file again")
    return value
