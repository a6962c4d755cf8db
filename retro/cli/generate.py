"""`retro generate checkpoint=runs/X prompt="..." [key=value ...]`: continue a prompt and name its evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retro.cli.generate_prompts import (
    Prompt,
    describe_decision,
    query_policy,
    read_prompt,
    read_prompts,
    warn_of_other_arm,
)
from retro.cli.snippet import snippet
from retro.config.command_line import CommandParser
from retro.config.errors import ConfigError
from retro.config.generation import GenerateConfig
from retro.config.loader import load_config

if TYPE_CHECKING:
    from retro.artifacts.retrieval_rule import RetrievalRule
    from retro.inference.language_model import ChunkEvidence, Generated
    from retro.inference.retro_lm import RetroLM
    from retro.retrieval.policy import RetrievalPolicy

_DESCRIPTION = """\
Continue a prompt with the newest checkpoint of a run, retrieving as it goes; prints the text, and for each retrieval
which documents its evidence came from and which tokens it served. key=value: checkpoint, prompt or prompt_file,
max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed, stop, retrieve (on, off, every:16, adaptive:0.3,
policy:FILE with relation and popularity), num_neighbors, release, database (another release.json, whose database is
retrieved from), device, precision. Many prompts: prompts_file (JSON lines with "prompt", and "relation" and
"popularity" for a policy), output (JSON lines with text and evidence), batch.
"""
#: Taken as they are: `prompt=a: b` is text, not YAML, and so is `retrieve=off`.
_RAW = ("prompt", "prompt_file", "prompts_file", "output", "retrieve", "relation")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    parser = CommandParser(prog="retro generate", description=_DESCRIPTION)
    parser.add_argument("overrides", nargs="+", metavar="key=value", help='checkpoint=runs/X prompt="..."')
    arguments = parser.parse_args(argv)
    config = parse_config(arguments.overrides)
    from retro.artifacts.retrieval_rule import open_rule
    from retro.retrieval.policy import Every, Never, parse_policy

    rule = None if config.policy_file is None else open_rule(config.policy_file)
    policy = parse_policy(config.retrieve) if rule is None else Every()
    prompts = [read_prompt(config)] if config.prompts_file is None else read_prompts(config.prompts_file)
    policies = [query_policy(rule, prompt, policy) for prompt in prompts]
    from retro.cli.generate_many import check_output, generate_many
    from retro.inference.opening import open_language_model

    if config.output is not None:
        check_output(Path(config.output))
    lm, _ = open_language_model(
        config.checkpoint,
        release=config.release,
        database=config.database,
        num_neighbors=config.num_neighbors,
        retrieval=not isinstance(policy, Never),
        device=config.device,
        precision=config.precision,
        batch=config.batch,
        policy=policy,
    )
    if rule is None:
        parse_policy(config.retrieve, lm.model.config.chunk_length)
    if not lm.is_retro and ":" in config.retrieve:
        raise ConfigError(
            f"retrieve: this model is a GPT, it retrieves nothing; expected on or off, found {config.retrieve!r}"
        )
    if config.num_neighbors is not None and lm.retriever is None:
        raise ConfigError("num_neighbors: nothing is retrieved (a model without retrieval, or retrieve=off); remove it")
    if rule is not None:
        warn_of_other_arm(rule)
    if config.output is None:
        _generate(lm, prompts[0], policies[0], config, rule)
    else:
        generate_many(lm, prompts, policies, config, rule)
    return 0


def parse_config(items: Sequence[str]) -> GenerateConfig:
    """The configuration of a command line."""
    raw: dict[str, str] = {}
    others = []
    for item in items:
        key, sign, value = item.partition("=")
        if sign and key in _RAW:
            raw[key] = value
        else:
            others.append(item)
    # JSON strings are YAML strings: what the loader reads is exactly the text.
    return load_config(GenerateConfig, None, [*others, *(f"{key}={json.dumps(text)}" for key, text in raw.items())])


def _generate(
    lm: RetroLM, prompt: Prompt, policy: RetrievalPolicy, config: GenerateConfig, rule: RetrievalRule | None
) -> None:
    """Print the text as it comes, then the evidence."""
    from retro.inference.provenance import served_positions
    from retro.inference.requests import EngineRequest

    print(prompt.text, end="", flush=True)
    request = EngineRequest(
        lm.prompt_tokens(prompt.text), config.max_new_tokens, config.sampling, until=config.stop, policy=policy
    )
    result = None
    for update in lm.stream(request):
        print(update.text, end="", flush=True)
        result = update.finished
    assert result is not None
    why = {"end": "end of text", "until": "stop text", "length": "length limit"}[result.stop]
    print(f"\n\n[{len(result.new_tokens)} new tokens, {why}]")
    if rule is not None:
        print(f"[policy: {describe_decision(rule, prompt, bool(result.evidence))}]")
    for chunk, served in zip(result.evidence, served_positions(result, lm.model.config.chunk_length), strict=True):
        print_evidence(lm, chunk, served, result)
    if not result.evidence:
        print("[no retrieval]")


def print_evidence(lm: RetroLM, chunk: ChunkEvidence, served: tuple[int, int], result: Generated) -> None:
    """One paragraph: the query chunk, whom it served, and its neighbors' documents, distances and beginnings."""
    from retro.inference.evidence import neighbor_texts

    assert lm.database is not None
    tokens, prompt = [*result.prompt_tokens, *result.new_tokens], len(result.prompt_tokens)
    where = "prompt" if chunk.stop <= prompt else "continuation"
    query = snippet(lm.tokenizer.decode(tokens[chunk.start : chunk.stop]))
    print(f"\nevidence retrieved with tokens {chunk.start}-{chunk.stop - 1} ({where}): {query}")
    first, stop = served[0] - prompt, served[1] - prompt
    if stop > 0:
        text = snippet(lm.tokenizer.decode(result.new_tokens[max(0, first) : stop]))
        print(f"  served new tokens {max(0, first) + 1}-{stop}: {text}")
    if not chunk.neighbors:
        print("  nothing found")
    for neighbor in chunk.neighbors:
        text, _ = neighbor_texts(lm.database, lm.tokenizer, neighbor.chunk)
        print(f"  {neighbor.document}  (chunk {neighbor.chunk}, distance {neighbor.distance:.3f}): {snippet(text)}")


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
