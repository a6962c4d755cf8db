"""Configuration of generation: how tokens are drawn, when is retrieved, `retro generate`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from retro.config.checks import require as _require
from retro.config.checks import require_at_least as _at_least

#: Seeds are signed 64-bit numbers to torch.
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn.

    temperature: 0 = the most probable one; top_k: among so many most probable ones; top_p: among the fewest that
    together have this probability (Holtzman et al. 2020); repetition_penalty: logits of tokens of the prompt and of the
    text so far are divided by it, negative ones multiplied (Keskar et al. 2019, CTRL, section 4.1), 1 = none; seed: of
    the draws.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _at_least(self, 0, "temperature", "seed")
        _at_least(self, 1, "top_k")
        _require(self.seed <= LARGEST_SEED, f"seed: expected at most {LARGEST_SEED}, found {self.seed}")
        _require(0 < self.top_p <= 1, f"top_p: expected above 0 and at most 1, found {self.top_p}")
        _require(math.isfinite(self.temperature), f"temperature: expected a finite number, found {self.temperature}")
        _require(
            0 < self.repetition_penalty < math.inf,
            f"repetition_penalty: expected above 0, found {self.repetition_penalty}",
        )


@dataclass(frozen=True)
class GenerateConfig:
    """Continue one prompt, or many.

    checkpoint, release, num_neighbors, device, precision: as in EvalConfig; exactly one of prompt, prompt_file (one
    text) and prompts_file (JSON lines with a "prompt" each, continued `batch` at a time and written to `output`, a file
    that is not there yet); database: another release.json, whose database is retrieved from instead of the release's
    own (same tokenizer and chunk length).

    retrieve: "on" = at the end of each chunk, "off" = cross-attention is left out, "every:S" = every S tokens, 1 to the
    chunk length, "adaptive:P" = after each token of a probability below P; always with the last chunk's length of
    tokens, and with the prompt; "policy:FILE" = "on" or "off" for each prompt, as a policy.json of `retro qa adaptive`
    decides: by `relation` and `popularity` (monthly page views of what is asked about, None = unknown; for many prompts
    fields of their lines), or by the model's confidence without retrieval. stop: texts that end a continuation before
    them. temperature, top_k, top_p, repetition_penalty, seed: as in SamplingConfig; the i-th of many prompts has
    seed + i.
    """

    #: Fields of earlier versions.
    RETIRED = {"retrieval": "use retrieve=on or retrieve=off"}  # noqa: RUF012

    checkpoint: str
    prompt: str | None = None
    prompt_file: str | None = None
    prompts_file: str | None = None
    output: str | None = None
    batch: int = 8
    max_new_tokens: int = 128
    temperature: float = 0.7
    top_k: int | None = None
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    retrieve: str = "on"
    relation: str | None = None
    popularity: float | None = None
    num_neighbors: int | None = None
    release: str | None = None
    database: str | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_new_tokens", "num_neighbors", "batch")
        given = [name for name in ("prompt", "prompt_file", "prompts_file") if getattr(self, name) is not None]
        _require(len(given) == 1, 'expected exactly one of prompt="...", prompt_file=PATH and prompts_file=PATH')
        _require(
            (self.prompts_file is None) == (self.output is None),
            "output: the file for the continuations of prompts_file; give both or neither",
        )
        _require(all(self.stop), "stop: expected texts, found an empty one")
        for name in ("relation", "popularity"):
            value = getattr(self, name)
            _require(
                value is None or self.policy_file is not None,
                f"{name}: is read with retrieve=policy:FILE only, found retrieve={self.retrieve}; remove it",
            )
            _require(
                value is None or self.prompts_file is None,
                f'{name}: of many prompts stands in their lines, {{"prompt": "...", "{name}": ...}}; remove it',
            )
        _ = self.sampling

    @property
    def policy_file(self) -> str | None:
        """FILE of retrieve=policy:FILE."""
        prefix = "policy:"
        return self.retrieve.removeprefix(prefix) if self.retrieve.startswith(prefix) else None

    @property
    def sampling(self) -> SamplingConfig:
        """The fields that decide the draws."""
        return SamplingConfig(self.temperature, self.top_k, self.top_p, self.seed, self.repetition_penalty)
