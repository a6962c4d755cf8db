"""What an answer costs: prices per token, per question or per search, out of a file of the user's."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retro.config.errors import ConfigError

_TOKENS = ("prompt", "encoder", "new")


@dataclasses.dataclass(frozen=True)
class Prices:
    """Prices in `unit`. per_question: by arm, instead of all that follows; per_token: of the prompt, of the encoder's
    passages and of new tokens; per_search: of one retrieval; search_ms: how long a retrieval takes (evaluations read
    passages that were retrieved before, so their times hold none)."""

    unit: str = ""
    per_question: Mapping[str, float] = dataclasses.field(default_factory=dict)
    per_token: Mapping[str, float] = dataclasses.field(default_factory=dict)
    per_search: float = 0.0
    search_ms: float = 0.0

    @property
    def priced(self) -> bool:
        """Whether anything has a price: a file may tell the time of a search alone."""
        return bool(self.per_question or self.per_token or self.per_search)

    def price(self, row: Mapping[str, Any]) -> float:
        """Price of a response row; NaN where it does not tell its tokens."""
        if row["arm"] in self.per_question:
            return self.per_question[row["arm"]]
        total = self.per_search if row.get("passages") else 0.0
        for name, price in self.per_token.items():
            count = row.get(f"{name}_tokens")
            total += price * (math.nan if count is None else float(count))
        return total


def read_prices(path: str | Path) -> Prices:
    """Prices of a JSON file {"unit": "USD", "per_question": {arm: x}, "per_token": {"prompt", "encoder", "new": x},
    "per_search": x, "search_ms": x}, each but the unit optional. Raises ConfigError."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cost: {path}: expected a JSON file of prices, found none ({error})") from None
    known = [field.name for field in dataclasses.fields(Prices)]
    if not isinstance(content, dict) or not set(content) <= set(known):
        found = ", ".join(sorted(content)) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"cost: {path}: expected an object with {', '.join(known)}, found {found}")
    prices = Prices(
        unit=_unit(content.get("unit"), path),
        per_question=_group(content.get("per_question", {}), "per_question", path),
        per_token=_group(content.get("per_token", {}), "per_token", path),
        per_search=_amount(content.get("per_search", 0.0), "per_search", path),
        search_ms=_amount(content.get("search_ms", 0.0), "search_ms", path),
    )
    if not set(prices.per_token) <= set(_TOKENS):
        found = ", ".join(sorted(prices.per_token))
        raise ConfigError(f"cost: {path}: per_token: expected of {', '.join(_TOKENS)}, found {found}")
    if not prices.priced and not prices.search_ms:
        raise ConfigError(f"cost: {path}: expected at least one price or search_ms, found none")
    return prices


def _unit(value: object, path: str | Path) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f'cost: {path}: unit: expected a text such as "USD", found {value!r}')
    return value


def _group(value: object, name: str, path: str | Path) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ConfigError(f"cost: {path}: {name}: expected an object, found {value!r}")
    return {key: _amount(price, f"{name}.{key}", path) for key, price in value.items()}


def _amount(value: object, name: str, path: str | Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"cost: {path}: {name}: expected a number of 0 or more, found {value!r}")
    return float(value)
