"""When to retrieve while generating."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from retro.config.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a policy is asked with, after a new token.

    since: tokens since the last retrieval, at least 1 (None = there was none); chunk_length M; new_tokens: ids
    generated so far; certainty, describe: make what the properties give, when it is asked for.
    """

    since: int | None
    chunk_length: int
    new_tokens: Sequence[int]
    certainty: Callable[[], tuple[float, float]]
    describe: Callable[[], str]

    @property
    def probability(self) -> float:
        """Of the token just drawn, before temperature, penalties and cuts."""
        return self.certainty()[0]

    @property
    def entropy(self) -> float:
        """Of the distribution that it was drawn from, nats, likewise."""
        return self.certainty()[1]

    @property
    def text(self) -> str:
        """Text generated so far."""
        return self.describe()


class RetrievalPolicy(Protocol):
    """Says after which tokens the last M tokens retrieve. `prompt`: whether the prompt's chunks do."""

    @property
    def prompt(self) -> bool: ...

    def wants(self, moment: Moment) -> bool:
        """Whether to retrieve with the last M tokens now."""


@dataclasses.dataclass(frozen=True)
class Never:
    """No retrieval at all."""

    prompt: bool = False

    def wants(self, moment: Moment) -> bool:
        """False."""
        return False


@dataclasses.dataclass(frozen=True)
class Every:
    """For the prompt, and then every `tokens` tokens, 1..M; None = every M, at the end of each chunk (Borgeaud et al.
    2022, section 2.4). Small steps for short answers, large ones for long texts (Wang et al. 2023, appendix C.2)."""

    tokens: int | None = None
    prompt: bool = True

    def wants(self, moment: Moment) -> bool:
        """Whether that many tokens came since the last retrieval."""
        return moment.since is None or moment.since >= (moment.chunk_length if self.tokens is None else self.tokens)


@dataclasses.dataclass(frozen=True)
class Unsure:
    """For the prompt, and whenever the token just drawn had a probability below `threshold` (after Jiang et al. 2023,
    "Active Retrieval Augmented Generation", section 3.2, FLARE). Neighbors serve M tokens at most."""

    threshold: float
    prompt: bool = True

    def wants(self, moment: Moment) -> bool:
        """Whether the last token was improbable."""
        return moment.probability < self.threshold


@dataclasses.dataclass(frozen=True)
class Custom:
    """Any rule: `decide` is asked after each token."""

    decide: Callable[[Moment], bool]
    prompt: bool = True

    def wants(self, moment: Moment) -> bool:
        """What `decide` says."""
        return bool(self.decide(moment))


def parse_policy(text: str, chunk_length: int | None = None) -> RetrievalPolicy:
    """The policy of a spelling: "on" or "always" (at the end of each chunk), "off" or "never", "every:TOKENS" (at most
    the chunk length, where that is given), "adaptive:THRESHOLD". Raises ConfigError."""
    name, colon, value = text.partition(":")
    if not colon and name in ("on", "always"):
        return Every()
    if not colon and name in ("off", "never"):
        return Never()
    if name == "every" and value.isascii() and value.isdigit() and int(value[:9]) >= 1:
        if chunk_length is not None and int(value[:9]) > chunk_length:
            raise ConfigError(
                f"retrieve: expected every:1 to every:{chunk_length} (neighbors serve a chunk length of tokens), found "
                f"{text!r}"
            )
        return Every(int(value[:9]))
    if name == "adaptive":
        try:
            threshold = float(value)
        except ValueError:
            threshold = -1.0
        if 0.0 < threshold <= 1.0:
            return Unsure(threshold)
    raise ConfigError(
        f"retrieve: expected on, off, every:TOKENS (1 or more) or adaptive:THRESHOLD (above 0, at most 1), found "
        f"{text!r}"
    )
