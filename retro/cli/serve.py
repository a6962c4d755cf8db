"""`retro serve [CONFIG.yaml] checkpoint=runs/X [key=value ...]`: answer completions over HTTP, with their evidence."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from retro.config.command_line import CommandParser
from retro.config.errors import ConfigError
from retro.config.loader import load_config
from retro.config.serving import ServeConfig

_DESCRIPTION = """\
Serve the newest checkpoint of a run: an OpenAI-compatible endpoint at /v1/completions whose answers name the documents
and texts that were retrieved, a page to try it at /, /health, /ready and /metrics. Listens on 127.0.0.1:8000 unless
host=... and port=... say otherwise. SIGTERM and Ctrl-C let running requests finish (limits.shutdown_grace).
docs/serving.md has the fields and limits.
"""
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 after a signal; errors are RetroError."""
    parser = CommandParser(prog="retro serve", description=_DESCRIPTION)
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG.yaml", help="e.g. configs/serve/local.yaml; defaults if left out"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="checkpoint=runs/X, host, port, slots, release, database, num_neighbors, device, precision, model_name, "
        "limits.max_tokens, ...",
    )
    arguments = parser.parse_args(argv)
    config = parse_config(arguments.config, arguments.overrides)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"retro serve: expected the packages of the extra `serve`, found no {', '.join(missing)}; install them: "
            "pip install 'retro-pretraining[serve]'"
        )
    from retro.serving.load import open_served_model
    from retro.serving.server import serve

    return serve(config, open_served_model)


def parse_config(path: str | None, overrides: Sequence[str]) -> ServeConfig:
    """The configuration of a command line, on which the file may be left out."""
    if path is not None and "=" in path and not Path(path).exists():
        return load_config(ServeConfig, None, [path, *overrides])
    return load_config(ServeConfig, path, overrides)


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
