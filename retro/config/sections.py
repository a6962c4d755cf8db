"""Configurations with sections of which one is chosen: what the others must be, and what goes in a fingerprint."""

from __future__ import annotations

import dataclasses
from typing import Any

from retro.config.errors import ConfigError
from retro.config.loader import to_dict

# Fields of speed only, in any retrieval configuration: they never change a result.
SPEED_ONLY = ("device",)


def check_unused_sections(config: Any, chooser: str, sections: tuple[str, ...]) -> None:
    """Raise ConfigError if a section other than the one that the field `chooser` names is filled in."""
    chosen = getattr(config, chooser)
    defaults = {f.name: f.default_factory for f in dataclasses.fields(config)}
    for name in sections:
        if name != chosen and getattr(config, name) != defaults[name]():  # type: ignore[operator,misc]
            raise ConfigError(
                f"section {name} is filled in, but {chooser} is {chosen!r}; set {chooser}={name} or remove the section"
            )


def result_fields(config: Any) -> dict[str, Any]:
    """The configuration as a dictionary without the sections that are not used and the fields of speed only."""
    values = dict(to_dict(config))
    chosen = getattr(config, "kind", None)
    if chosen is not None:
        for f in dataclasses.fields(config):
            if dataclasses.is_dataclass(getattr(config, f.name)) and f.name != chosen:
                del values[f.name]
    return _without_speed(values)


def _without_speed(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_speed(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in SPEED_ONLY
    }
