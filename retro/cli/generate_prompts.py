"""The prompts of `retro generate`, and which policy each is continued with."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.cli.snippet import snippet
from retro.config.errors import ConfigError
from retro.config.generation import GenerateConfig

if TYPE_CHECKING:
    from retro.artifacts.retrieval_rule import RetrievalRule
    from retro.retrieval.policy import RetrievalPolicy


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text to continue. relation, popularity: of what it asks about, for a policy that decides by them; None = not
    known. where: for messages."""

    text: str
    relation: str | None = None
    popularity: float | None = None
    where: str = ""


def read_prompt(config: GenerateConfig) -> Prompt:
    """The one prompt of a configuration. Raises ConfigError for a file that is no text."""
    if config.prompt is not None:
        return Prompt(_checked_text(config.prompt, "prompt"), config.relation, config.popularity)
    assert config.prompt_file is not None
    try:
        text = Path(config.prompt_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt_file: {config.prompt_file} cannot be read as UTF-8 text ({error})") from None
    return Prompt(text, config.relation, config.popularity)


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a file of JSON lines {"prompt": text}, with "relation" and "popularity" where they are known.

    Other fields are not read. Raises ConfigError naming the line."""
    try:
        # Not splitlines: JSON texts may hold other signs that it takes for line ends, such as U+2028.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts_file: {path} cannot be read as UTF-8 text ({error})") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"prompts_file: {path}:{number}"
        try:
            record = json.loads(line)
            text = record["prompt"]
        except (ValueError, KeyError, TypeError, RecursionError):
            record, text = {}, None
        if not isinstance(text, str):
            raise ConfigError(f'{where}: expected {{"prompt": "text"}}, found {snippet(line)}')
        relation, popularity = record.get("relation"), record.get("popularity")
        if not isinstance(relation, str | None):
            raise ConfigError(f"{where}: relation: expected a text, found {snippet(json.dumps(relation))}")
        if popularity is not None and not _is_number(popularity):
            raise ConfigError(f"{where}: popularity: expected a number, found {snippet(json.dumps(popularity))}")
        if relation is not None:
            _checked_text(relation, f"{where}: relation")
        prompts.append(Prompt(_checked_text(text, where), relation, popularity, where))
    if not prompts:
        raise ConfigError(f"prompts_file: {path}: expected at least one prompt, found none")
    return prompts


def query_policy(rule: RetrievalRule | None, prompt: Prompt, default: RetrievalPolicy) -> RetrievalPolicy:
    """The policy of one prompt: what the rule says, `default` without one. Raises ConfigError."""
    from retro.artifacts.retrieval_rule import PopularityRule
    from retro.retrieval.rule_policy import rule_policy

    if rule is None:
        return default
    if prompt.where and not isinstance(rule, PopularityRule):
        return rule_policy(rule)  # fields of a file may be there for others
    try:
        return rule_policy(rule, prompt.relation, prompt.popularity)
    except ConfigError as error:
        raise ConfigError(f"{prompt.where}: {error}" if prompt.where else str(error)) from None


def describe_decision(rule: RetrievalRule, prompt: Prompt, retrieved: bool) -> str:
    """One line about what the rule decided for a prompt that was continued."""
    from retro.artifacts.retrieval_rule import PopularityRule, log_popularity

    if not isinstance(rule, PopularityRule):
        limit = f"{rule.threshold:.3f} ({rule.measure} log-probability)"
        return f"the answer without retrieval was {'less' if retrieved else 'not less'} sure than {limit}"
    verdict = "retrieve" if retrieved else "do not retrieve"
    if prompt.popularity is None:
        return f"unknown popularity: {verdict}"
    relation = prompt.relation or ""
    threshold = rule.thresholds.get(relation, rule.default)
    known = f"relation {relation!r}" if relation in rule.thresholds else "other relations"
    sign = "<" if retrieved else ">="
    return f"log popularity {log_popularity(prompt.popularity):.2f} {sign} {threshold:.2f} of {known}: {verdict}"


def warn_of_other_arm(rule: RetrievalRule) -> None:
    """Say on stderr if the rule was fitted for passages elsewhere than where live retrieval has them."""
    from retro.config.qa import parse_arm

    try:
        arm = parse_arm(rule.arms.retrieval)
    except ConfigError:
        return
    if arm.in_prompt or not arm.in_encoder:
        print(
            f"note: the policy was fitted for arm {arm.name!r}; here the encoder reads the passages, as in arm 'retro'",
            file=sys.stderr,
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _checked_text(text: str, where: str) -> str:
    """`text`, unless it holds half a surrogate pair, as bytes that are no UTF-8 do on a command line."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: expected UTF-8 text, found {text[error.start]!r} at {error.start}") from None
    return text
