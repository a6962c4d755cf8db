"""`retro generate checkpoint=runs/X prompt="..." [key=value ...]`: continue a prompt and name its evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retro.config.command_line import CommandParser
from retro.config.errors import ConfigError
from retro.config.generation import GenerateConfig
from retro.config.loader import load_config

if TYPE_CHECKING:
    from retro.inference.language_model import ChunkEvidence, Generated
    from retro.inference.retro_lm import RetroLM

_DESCRIPTION = """\
Continue a prompt with the newest checkpoint of a run, retrieving as it goes; prints the text, and for each retrieval
which documents its evidence came from and which tokens it served. key=value: checkpoint, prompt or prompt_file,
max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed, stop, retrieve (on, off, every:16, adaptive:0.3),
num_neighbors, release, database (another release.json, whose database is retrieved from), device, precision. Many
prompts: prompts_file (JSON lines with "prompt"), output (JSON lines with text and evidence), batch.
"""
_SNIPPET = 90
#: Taken as they are: `prompt=a: b` is text, not YAML, and so is `retrieve=off`.
_RAW = ("prompt", "prompt_file", "prompts_file", "output", "retrieve")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    parser = CommandParser(prog="retro generate", description=_DESCRIPTION)
    parser.add_argument("overrides", nargs="+", metavar="key=value", help='checkpoint=runs/X prompt="..."')
    arguments = parser.parse_args(argv)
    config = parse_config(arguments.overrides)
    from retro.retrieval.policy import Never, parse_policy

    policy = parse_policy(config.retrieve)
    prompts = [_read_prompt(config)] if config.prompts_file is None else read_prompts(config.prompts_file)
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
    parse_policy(config.retrieve, lm.model.config.chunk_length)
    if not lm.is_retro and ":" in config.retrieve:
        raise ConfigError(
            f"retrieve: this model is a GPT, it retrieves nothing; expected on or off, found {config.retrieve!r}"
        )
    if config.num_neighbors is not None and lm.retriever is None:
        raise ConfigError("num_neighbors: nothing is retrieved (a model without retrieval, or retrieve=off); remove it")
    if config.output is None:
        _generate(lm, prompts[0], config)
    else:
        generate_many(lm, prompts, config)
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


def read_prompts(path: str) -> list[str]:
    """The texts of a file of JSON lines {"prompt": text}. Raises ConfigError naming the line."""
    try:
        # Not splitlines: JSON texts may hold other signs that it takes for line ends, such as U+2028.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts_file: {path} cannot be read as UTF-8 text ({error})") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError, RecursionError):
            prompt = None
        if not isinstance(prompt, str):
            raise ConfigError(f'prompts_file: {path}:{number}: expected {{"prompt": "text"}}, found {snippet(line)}')
        prompts.append(_checked_text(prompt, f"prompts_file: {path}:{number}"))
    if not prompts:
        raise ConfigError(f"prompts_file: {path}: expected at least one prompt, found none")
    return prompts


def _checked_text(text: str, where: str) -> str:
    """`text`, unless it holds half a surrogate pair, as bytes that are no UTF-8 do on a command line."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: expected UTF-8 text, found {text[error.start]!r} at {error.start}") from None
    return text


def _read_prompt(config: GenerateConfig) -> str:
    if config.prompt is not None:
        return _checked_text(config.prompt, "prompt")
    assert config.prompt_file is not None
    try:
        return Path(config.prompt_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt_file: {config.prompt_file} cannot be read as UTF-8 text ({error})") from None


def _generate(lm: RetroLM, prompt: str, config: GenerateConfig) -> None:
    """Print the text as it comes, then the evidence."""
    from retro.inference.provenance import served_positions
    from retro.inference.requests import EngineRequest

    print(prompt, end="", flush=True)
    request = EngineRequest(
        lm.prompt_tokens(prompt), config.max_new_tokens, config.sampling, until=config.stop, policy=lm.policy
    )
    result = None
    for update in lm.stream(request):
        print(update.text, end="", flush=True)
        result = update.finished
    assert result is not None
    why = {"end": "end of text", "until": "stop text", "length": "length limit"}[result.stop]
    print(f"\n\n[{len(result.new_tokens)} new tokens, {why}]")
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


def snippet(text: str, length: int = _SNIPPET) -> str:
    """The text's beginning in one line."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
