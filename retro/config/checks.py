"""Checks that configurations share."""

from __future__ import annotations

from retro.config.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition`."""
    if not condition:
        raise ConfigError(message)


def require_at_least(config: object, minimum: float, *names: str) -> None:
    """Raise ConfigError unless each field is None or at least `minimum`."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= minimum, f"{name}: expected {minimum:g} or more, found {value}")
