"""`retro generate checkpoint=runs/X prompt="..." [key=value ...]`: continue a prompt and name its evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retro.config.command_line import CommandParser
from retro.config.errors import ConfigError
from retro.config.evaluation import GenerateConfig
from retro.config.loader import load_config

if TYPE_CHECKING:
    from retro.inference.language_model import ChunkEvidence
    from retro.inference.retro_lm import RetroLM

_DESCRIPTION = """\
Continue a prompt with the newest checkpoint of a run, retrieving at the end of every chunk; prints the text, and for
each chunk which documents its evidence came from. key=value: checkpoint, prompt or prompt_file, max_new_tokens,
temperature, top_k, top_p, seed, retrieval (on, off), num_neighbors, release, database (another release.json, whose
database is retrieved from), device, precision.
"""
_SNIPPET = 90
_RAW = ("prompt", "prompt_file")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    parser = CommandParser(prog="retro generate", description=_DESCRIPTION)
    parser.add_argument("overrides", nargs="+", metavar="key=value", help='checkpoint=runs/X prompt="..."')
    arguments = parser.parse_args(argv)
    config = parse_config(arguments.overrides)
    prompt = _read_prompt(config)
    from retro.inference.retro_lm import open_language_model

    lm, _ = open_language_model(
        config.checkpoint,
        release=config.release,
        database=config.database,
        num_neighbors=config.num_neighbors,
        retrieval=config.retrieval == "on",
        device=config.device,
        precision=config.precision,
    )
    _generate(lm, prompt, config)
    return 0


def parse_config(items: Sequence[str]) -> GenerateConfig:
    """The configuration of a command line. Prompts are taken as they are: `prompt=a: b` is text, not YAML."""
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


def _read_prompt(config: GenerateConfig) -> str:
    if config.prompt is not None:
        return config.prompt
    assert config.prompt_file is not None
    try:
        return Path(config.prompt_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt_file: {config.prompt_file} cannot be read as UTF-8 text ({error})") from None


def _generate(lm: RetroLM, prompt: str, config: GenerateConfig) -> None:
    """Print the text as it comes, then the evidence."""
    from retro.inference.generate import Step
    from retro.inference.language_model import ChunkEvidence

    tokenizer = lm.tokenizer
    tokens = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    evidence: list[ChunkEvidence] = []
    everything = list(tokens)
    written = ""
    print(prompt, end="", flush=True)
    for item in lm.stream(tokens, config.max_new_tokens, config.sampling, config.retrieval == "on"):
        if isinstance(item, ChunkEvidence):
            evidence.append(item)
            continue
        assert isinstance(item, Step)
        if item.evidence is not None:
            evidence.append(item.evidence)
        everything.append(item.token)
        # Decoded as a whole, because a character may take several tokens; the unfinished one waits.
        text = tokenizer.decode(everything[len(tokens) :])
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(text[len(written) :], end="", flush=True)
            written = text
    print(tokenizer.decode(everything[len(tokens) :])[len(written) :])
    ended = everything[-1] == tokenizer.eos_id and len(everything) > len(tokens)
    print(f"\n[{len(everything) - len(tokens)} new tokens, {'end of text' if ended else 'length limit'}]")
    for chunk in evidence:
        print_evidence(lm, chunk, everything, len(tokens))
    if not evidence:
        print("[no retrieval]")


def print_evidence(lm: RetroLM, chunk: ChunkEvidence, tokens: Sequence[int], prompt_tokens: int) -> None:
    """One paragraph: the query chunk, and its neighbors' documents, distances and beginnings."""
    from retro.inference.evidence import neighbor_texts

    assert lm.database is not None
    where = "prompt" if chunk.stop <= prompt_tokens else "continuation"
    query = snippet(lm.tokenizer.decode(tokens[chunk.start : chunk.stop]))
    print(f"\nevidence retrieved with tokens {chunk.start}-{chunk.stop - 1} ({where}): {query}")
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
