"""Generation settings as tasks of the harness spell them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from retro.config.errors import ConfigError
from retro.config.generation import SamplingConfig

#: The same limit under the names of several libraries; the first that is given counts, as in the harness.
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
#: Settings of other libraries at the value that changes nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "use_cache": (True, False),
    "early_stopping": (True, False),
}
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """max_new_tokens; until: texts that end the answer before them; sampling."""

    max_new_tokens: int
    until: tuple[str, ...]
    sampling: SamplingConfig


def read_generation(settings: Mapping[str, Any], max_new_tokens: int, seed: int) -> GenerationSettings:
    """What the `generation_kwargs` of a task ask for. max_new_tokens: where they say nothing; seed: of the draws.

    Greedy unless do_sample is true or, where it is not given, temperature is above 0. Raises ConfigError for what is
    not known here, and for what contradicts itself.
    """
    known = {*_LIMITS, *_NEUTRAL, *_SAMPLING, "until", "do_sample"}
    for name, value in settings.items():
        if name not in known or (name in _NEUTRAL and value not in _NEUTRAL[name]):
            raise ConfigError(
                f"generation_kwargs: {name}={value!r} is not offered; expected of {', '.join(sorted(known))}, the last "
                "of other libraries at their neutral values"
            )
    temperature = _number(settings, "temperature", 0.0)
    if temperature < 0:
        raise ConfigError(f"generation_kwargs: temperature: expected 0 or more, found {temperature}")
    draws = settings.get("do_sample")
    if draws is None:
        draws = temperature > 0
    if not isinstance(draws, bool):
        raise ConfigError(f"generation_kwargs: do_sample: expected true or false, found {draws!r}")
    if draws and temperature == 0:
        raise ConfigError("generation_kwargs: do_sample: expected a temperature above 0 with it, found none")
    limit = next((settings[name] for name in _LIMITS if settings.get(name) is not None), max_new_tokens)
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not _is_whole(limit) or limit < 1:
        raise ConfigError(f"generation_kwargs: max_gen_toks: expected 1 or more, found {limit!r}")
    until = settings.get("until") or ()
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, (list, tuple)) or not all(isinstance(text, str) for text in until):
        raise ConfigError(f"generation_kwargs: until: expected texts, found {until}")
    top_k = _number(settings, "top_k", 0.0)
    if not _is_whole(top_k):
        raise ConfigError(f"generation_kwargs: top_k: expected a whole number, found {top_k}")
    sampling = SamplingConfig(
        temperature=temperature if draws else 0.0,
        top_k=int(top_k) or None,  # 0 = all, as elsewhere
        top_p=_number(settings, "top_p", 1.0),
        seed=seed,
        repetition_penalty=_number(settings, "repetition_penalty", 1.0),
    )
    return GenerationSettings(int(limit), tuple(text for text in until if text), sampling)


def _number(settings: Mapping[str, Any], name: str, default: float) -> float:
    value = settings.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"generation_kwargs: {name}: expected a number, found {value!r}")
    return float(value)


def _is_whole(value: float) -> bool:
    return math.isfinite(value) and value == int(value)
