"""Model sizes by name: the files configs/model/<name>.yaml."""

from __future__ import annotations

from pathlib import Path

from retro.config.errors import ConfigError
from retro.config.loader import load_config
from retro.config.model import ModelConfig

#: The repository's configurations (the project is installed in place, `pip install -e .`).
PRESET_FOLDER = Path(__file__).resolve().parents[2] / "configs" / "model"


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_preset(name: str, overrides: tuple[str, ...] = ()) -> ModelConfig:
    """The configuration of preset `name` with `key=value` overrides. Raises ConfigError if there is none of that
    name."""
    path = PRESET_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"model preset {name!r}: not found in {PRESET_FOLDER}; known: {', '.join(preset_names())}")
    return load_config(ModelConfig, path, overrides)
