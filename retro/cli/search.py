"""`retro search release=release.json "query" [k=5]`: the database chunks that a query retrieves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from retro.cli.snippet import snippet
from retro.config.command_line import CommandParser
from retro.config.evaluation import SearchConfig
from retro.config.loader import load_config

_KEYS = tuple(field.name for field in dataclasses.fields(SearchConfig) if field.name != "query")
_WIDTH = 300


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    parser = CommandParser(
        prog="retro search", description="Search the database of a release; prints chunks, documents and distances."
    )
    parser.add_argument(
        "words", nargs="+", metavar="release=PATH | key=value | query", help=f"keys: {', '.join(_KEYS)}"
    )
    arguments = parser.parse_args(argv)
    config = parse_config(arguments.words)
    from retro.artifacts.release import open_release
    from retro.data.tokenizer import open_tokenizer
    from retro.inference.evidence import describe_neighbors, neighbor_texts, open_retriever

    release = open_release(config.release)
    tokenizer = open_tokenizer(release.tokenizer)
    other = None if config.database is None else open_release(config.database)
    retriever = open_retriever(release, config.device, other)
    query = np.array(tokenizer.encode(config.query), dtype=np.int64)
    ids, distances = retriever.retrieve([query], config.k)
    found = describe_neighbors(retriever.database, ids[0], distances[0])
    for rank, neighbor in enumerate(found, start=1):
        text, continuation = neighbor_texts(retriever.database, tokenizer, neighbor.chunk)
        print(f"{rank}. {neighbor.document}  (chunk {neighbor.chunk}, distance {neighbor.distance:.3f})")
        print(f"   {snippet(text, _WIDTH)}")
        if continuation:
            print(f"   … {snippet(continuation, _WIDTH)}")
    if not found:
        print("nothing found")
    return 0


def parse_config(words: Sequence[str]) -> SearchConfig:
    """Arguments of the form key=value with a known key are options, all others together are the query."""
    options = [word for word in words if word.partition("=")[0] in _KEYS and "=" in word]
    query = " ".join(word for word in words if word not in options)
    return load_config(SearchConfig, None, [*options, f"query={json.dumps(query)}"])


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
