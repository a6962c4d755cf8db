"""`retro prep VERB ...` (also `python -m data_prep VERB ...`): the neighbor database, from a corpus to a release."""

from __future__ import annotations

from collections.abc import Sequence

from retro.cli.verbs import run_verb

VERBS: dict[str, tuple[str, str]] = {
    "run": ("retro.cli.prep_verbs.run", "carry out every stage that is not finished; killed at any moment it resumes"),
    "plan": ("retro.cli.prep_verbs.plan", "what a preparation would cost: chunks, bytes, memory, hours, and why"),
    "status": ("retro.cli.prep_verbs.status", "what is done, resumable, missing; sizes, progress, rest"),
    "explain": ("retro.cli.prep_verbs.explain", "which fields or inputs made a folder differ from another"),
    "verify": (
        "retro.cli.prep_verbs.verify",
        "a preparation or a release: checksums, chunks and neighbors, and a sample of shards made again",
    ),
    "show": ("retro.cli.prep_verbs.show", "print chunks beside their neighbors"),
    "tune-index": (
        "retro.cli.prep_verbs.tune_index",
        "measure what the search settings of a finished index cost and bring: recall, time, size",
    ),
    "add": ("retro.cli.prep_verbs.add", "add documents to a finished release: a new one, in which only they are made"),
    "remove": ("retro.cli.prep_verbs.remove", "remove documents by id: a new release that cannot return them any more"),
    "swap": ("retro.cli.prep_verbs.swap", "the queries of one release with the database of another: a new release"),
    "export": ("retro.cli.prep_verbs.export", "write a release with all that it needs into one archive with checksums"),
    "import": ("retro.cli.prep_verbs.import_", "make a folder of an archive of export again, everything compared"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    return run_verb("retro prep", "Prepare a chunked neighbor database.", VERBS, argv)


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
