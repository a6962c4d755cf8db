"""`retro checkpoint VERB ...`: finished checkpoints looked at, cut into other files, averaged."""

from __future__ import annotations

from collections.abc import Sequence

from retro.cli.verbs import run_verb

VERBS: dict[str, tuple[str, str]] = {
    "inspect": (
        "retro.cli.checkpoint_verbs.inspect",
        "what a checkpoint holds and whether it is whole; of a run folder: all its checkpoints",
    ),
    "convert": (
        "retro.cli.checkpoint_verbs.convert",
        "the same checkpoint, bit for bit, in another number of files: one, or pieces; a run goes on from either",
    ),
    "average": (
        "retro.cli.checkpoint_verbs.average",
        "the mean of the weights of several checkpoints of one model, as a model folder",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    return run_verb("retro checkpoint", "Finished checkpoints of training runs.", VERBS, argv)


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
