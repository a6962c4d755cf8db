"""`retro export checkpoint=runs/X output=models/X [key=value ...]`: a trained model for other programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.config.command_line import CommandParser
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.config.export import ExportConfig
from retro.config.loader import load_config

if TYPE_CHECKING:
    from retro.model.pretrained import Pretrained

_DESCRIPTION = """\
Write a model as a new folder. format=huggingface: its decoder as GPT-2, Llama or GPT-NeoX, whichever computes exactly
the same, with the tokenizer, for transformers' from_pretrained. format=retro: the whole model. key=value: checkpoint,
output, format, dtype (float32, bfloat16, float16), max_positions, release.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    parser = CommandParser(prog="retro export", description=_DESCRIPTION)
    parser.add_argument("overrides", nargs="+", metavar="key=value", help="checkpoint=runs/X output=models/X")
    config = load_config(ExportConfig, None, parser.parse_args(argv).overrides)
    if Path(config.output).exists():
        raise ConfigError(f"output: {config.output}: exists already, and nothing is overwritten; choose another folder")
    from retro.model.pretrained import open_pretrained

    found = open_pretrained(config.checkpoint, "checkpoint")
    print(_export_whole(config, found) if config.format == "retro" else _export_huggingface(config, found))
    return 0


def _export_whole(config: ExportConfig, found: Pretrained) -> str:
    from retro.model.pretrained import load_pretrained, save_pretrained

    model = load_pretrained(found.folder)
    extra = {name: value for name, value in _stored(found).items() if name != "model"}
    save_pretrained(model, config.output, extra)
    return f"{config.output}: {_size(sum(p.numel() for p in model.parameters()))}, the whole model"


def _export_huggingface(config: ExportConfig, found: Pretrained) -> str:
    from retro.artifacts.release import open_release
    from retro.data.base_tokenizer import check_base_tokenizer
    from retro.data.tokenizer import open_tokenizer
    from retro.data.tokenizer_export import huggingface_files
    from retro.model.huggingface import Tokens, save_huggingface
    from retro.model.huggingface.export import choose_architecture
    from retro.model.pretrained import load_pretrained
    from retro.model.retro import is_retrieval_parameter

    choose_architecture(found.config)  # refused before anything is loaded
    positions = config.max_positions or found.config.max_positions or _stored(found).get("sequence_length") or 2048
    if found.config.max_positions not in (None, positions):
        raise ConfigError(
            f"max_positions: the model has {found.config.max_positions} learned positions, found {positions}; remove it"
        )
    files, tokens, note = {}, None, "no tokenizer, since no release is known: release=PATH adds it"
    release = _release_of(config, found)
    if release is not None:
        folder = open_release(release).tokenizer
        tokenizer = open_tokenizer(folder)
        if found.is_huggingface:
            check_base_tokenizer(found.folder, folder)
        _check_tokenizer(found, tokenizer.fingerprint, tokenizer.vocab_size, release)
        files = huggingface_files(folder, positions)
        tokens = Tokens(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        note = ", ".join(sorted(files))
        if "tokenizer.json" not in files:
            note += " (the sentencepiece model has no exact tokenizer.json)"
    model = load_pretrained(found.folder)
    architecture = save_huggingface(
        model, config.output, tokens=tokens, max_positions=positions, dtype=config.dtype, files=files
    )
    own = sum(p.numel() for name, p in model.named_parameters() if not is_retrieval_parameter(name))
    left = sum(p.numel() for p in model.parameters()) - own
    line = f"{config.output}: {architecture.class_name}, {_size(own)}, {config.dtype}; {note}"
    if left:
        line += f"\nleft out: {_size(left)} of retrieval; what was written is the model with retrieval off"
    return line


def _stored(found: Pretrained) -> dict[str, Any]:
    """config.json of a model of this project: what it was trained with and on."""
    if found.is_huggingface:
        return {}
    content: dict[str, Any] = json.loads((found.folder / "config.json").read_text(encoding="utf-8"))
    return content


def _release_of(config: ExportConfig, found: Pretrained) -> Path | None:
    """The release given, or the one in the run folder that the checkpoint lies in."""
    if config.release is not None:
        return Path(config.release)
    run = found.folder.resolve().parent.parent
    return run / "release.json" if (run / "release.json").is_file() else None


def _check_tokenizer(found: Pretrained, fingerprint: str, size: int, release: Path) -> None:
    stored = _stored(found).get("tokenizer")
    expected = stored.get("fingerprint") if isinstance(stored, dict) else None
    if expected is not None and expected != fingerprint:
        raise ArtifactMismatchError(
            f"release: {release}: expected the tokenizer {expected} that {found.folder} was trained with, found "
            f"{fingerprint}; give the release of that run"
        )
    if size > (found.config.vocab_size or 0):
        raise ArtifactMismatchError(
            f"release: {release}: expected a tokenizer of at most the model's {found.config.vocab_size} tokens, found "
            f"{size}; give the release that {found.folder} was trained with"
        )


def _size(parameters: int) -> str:
    return f"{parameters:,} parameters"


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(lambda: main(sys.argv[1:])))
