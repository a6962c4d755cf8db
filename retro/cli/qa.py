"""`retro qa VERB ...`: question answering, from tasks to the question when retrieval is worth it."""

from __future__ import annotations

from collections.abc import Sequence

from retro.cli.verbs import run_verb

VERBS: dict[str, tuple[str, str]] = {
    "tasks": ("retro.cli.qa_verbs.tasks", "the tasks that are known, and the page of each"),
    "show": ("retro.cli.qa_verbs.show", "print questions beside their passages"),
    "prepare": (
        "retro.cli.qa_verbs.prepare",
        "questions with their passages, for training and evaluation",
    ),
    "spans": ("retro.cli.qa_verbs.spans", "questions out of a release's own text, to learn to copy from"),
    "genread": ("retro.cli.qa_verbs.genread", "questions with a passage that a model wrote, instead of retrieved ones"),
    "adaptive": (
        "retro.cli.qa_verbs.adaptive",
        "when retrieval is worth it: thresholds of popularity and confidence, tested on held-out questions",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; errors are RetroError."""
    return run_verb("retro qa", "Question answering.", VERBS, argv)


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(main))
