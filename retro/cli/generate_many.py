"""Many prompts into one file: finished continuations are kept at once, and a killed command goes on where it was.

`OUTPUT.partial` holds a line that says what is being made, then a line for each finished continuation in the order in
which they ended. It becomes OUTPUT, in the order of the prompts, when all are there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.artifacts.atomic import write_text_atomic
from retro.artifacts.fingerprint import fingerprint
from retro.cli.generate_prompts import Prompt, describe_decision
from retro.config.errors import ConfigError
from retro.config.generation import GenerateConfig
from retro.config.loader import to_dict

if TYPE_CHECKING:
    from retro.artifacts.retrieval_rule import RetrievalRule
    from retro.inference.retro_lm import RetroLM
    from retro.retrieval.policy import RetrievalPolicy

#: Fields that change no continuation but for the rounding of sums.
_FREE = ("prompts_file", "output", "batch", "device")


def check_output(path: Path) -> None:
    """Raise ConfigError unless a new file can be made at `path`, before hours of work are to be written there."""
    if path.exists():
        raise ConfigError(f"output: {path} is there already; expected the name of a new file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"output: expected a file in a folder that can be written to, found {path}; make the folder")


def generate_many(
    lm: RetroLM,
    prompts: Sequence[Prompt],
    policies: Sequence[RetrievalPolicy],
    config: GenerateConfig,
    rule: RetrievalRule | None = None,
) -> None:
    """Continue all prompts, each with its policy, into `config.output`. rule: what made the policies; the rows then say
    what it decided. Raises ConfigError if a partial file is of something else."""
    from retro.inference.provenance import describe_result
    from retro.inference.requests import EngineRequest

    assert config.output is not None
    output = Path(config.output)
    partial = output.with_name(output.name + ".partial")
    rows = read_partial(partial, _identity(lm, prompts, config, rule))
    missing = [i for i in range(len(prompts)) if i not in rows]
    if rows:
        print(f"{partial}: {len(rows)} of {len(prompts)} continuations are there", file=sys.stderr)
    if missing:
        engine = lm.build_engine(min(config.batch, len(missing)))
        tickets = {}
        for i in missing:
            sampling = dataclasses.replace(config.sampling, seed=config.seed + i)
            prompt = lm.prompt_tokens(prompts[i].text)
            request = EngineRequest(prompt, config.max_new_tokens, sampling, until=config.stop, policy=policies[i])
            tickets[engine.submit(request)] = i
        progress = Progress(len(missing))
        with open(partial, "a", encoding="utf-8", newline="\n") as file:
            while engine.active or engine.waiting:
                updates = engine.step()
                done = [update for update in updates if update.finished is not None]
                for update in done:
                    assert update.finished is not None
                    place = tickets[update.ticket]
                    rows[place] = {"prompt": prompts[place].text, **describe_result(lm, update.finished)}
                    if rule is not None:
                        retrieved = bool(update.finished.evidence)
                        decision = describe_decision(rule, prompts[place], retrieved)
                        rows[place]["policy"] = {"kind": rule.kind, "retrieved": retrieved, "decision": decision}
                    file.write(json.dumps([place, rows[place]], ensure_ascii=False) + "\n")
                    file.flush()
                progress.advance(len(done), sum(len(update.tokens) for update in updates))
    lines = (json.dumps(rows[i], ensure_ascii=False) + "\n" for i in range(len(prompts)))
    write_text_atomic(output, "".join(lines))
    partial.unlink(missing_ok=True)
    print(f"{output}: {len(prompts)} continuations")


def _identity(lm: RetroLM, prompts: Sequence[Prompt], config: GenerateConfig, rule: RetrievalRule | None) -> str:
    from retro.artifacts.retrieval_rule import rule_fingerprint

    settings = {name: value for name, value in to_dict(config).items() if name not in _FREE}
    asked: list[Any] = [prompt.text for prompt in prompts]
    if rule is not None:
        settings["retrieve"] = rule_fingerprint(rule)
        asked = [[prompt.text, prompt.relation, prompt.popularity] for prompt in prompts]
    return fingerprint("generate", 1, {"settings": settings, "model": lm.identity(), "prompts": asked}, {})


def read_partial(path: Path, identity: str) -> dict[int, dict[str, Any]]:
    """The continuations by number that a partial file of this identity holds; the file is begun if there is none.

    A last line that a kill cut off is dropped. Raises ConfigError for a file of something else.
    """
    head = json.dumps({"generate": identity}) + "\n"
    if not path.exists():
        write_text_atomic(path, head)
        return {}
    content = path.read_bytes()
    begin, whole = content.find(b"\n") + 1, content.rfind(b"\n") + 1
    if content[:begin] != head.encode():
        raise ConfigError(
            f"output: {path} holds continuations of other prompts or settings; remove it, or choose another output"
        )
    if whole < len(content):
        os.truncate(path, whole)
    rows = {}
    for line in content[begin:whole].decode("utf-8").split("\n")[:-1]:
        place, row = json.loads(line)
        rows[int(place)] = row
    return rows


class Progress:
    """A line on stderr now and then: how many are done, at what rate, and how long the rest takes."""

    def __init__(self, total: int, every: float = 10.0) -> None:
        self._total, self._every = total, every
        self._done = self._tokens = 0
        self._begin = self._printed = time.monotonic()

    def advance(self, done: int, tokens: int) -> None:
        """So many prompts and tokens more."""
        self._done, self._tokens = self._done + done, self._tokens + tokens
        now = time.monotonic()
        if now - self._printed < self._every:
            return
        self._printed, seconds = now, now - self._begin
        left = f"{seconds / self._done * (self._total - self._done):,.0f} s" if self._done else "not known yet"
        print(
            f"{self._done}/{self._total} prompts, {self._tokens / seconds:,.0f} tokens/s, left: {left}",
            file=sys.stderr,
            flush=True,
        )
