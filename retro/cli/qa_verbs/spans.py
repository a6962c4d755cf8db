"""`retro qa spans release=... output=FILE.jsonl`: questions made out of a release's own text."""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import islice
from pathlib import Path

from retro.config.errors import ConfigError
from retro.config.loader import load_config
from retro.config.qa_spans import SpanQuestionsConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="key=value",
        help="release=data/demo/release.json output=FILE.jsonl; split, per_document, max_words, max_answer_words, "
        "max_questions, seed",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the file and say what is in it."""
    config = load_config(SpanQuestionsConfig, None, arguments.overrides)
    output = Path(config.output)
    if output.exists():
        raise ConfigError(f"output: {output}: exists already, and nothing is overwritten; choose another file")
    from tqdm import tqdm

    from retro.artifacts.atomic import atomic_path
    from retro.artifacts.release import open_release
    from retro.data.document import SPLITS, iter_documents
    from retro.data.qa.question_file import SourceQuestion, question_line
    from retro.data.qa.spans import iter_span_questions

    if config.split not in SPLITS:
        raise ConfigError(f"split: expected one of {', '.join(SPLITS)}, found {config.split!r}")
    release = open_release(config.release)
    documents = (d for d in iter_documents(release.documents) if d.split == config.split)
    kinds: Counter[str] = Counter()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output: {output.parent} cannot be made ({error.strerror}); choose another file") from None
    with atomic_path(output) as temporary, open(temporary, "wb") as file:
        watched = tqdm(documents, desc="spans", unit=" documents", mininterval=1)
        for question in islice(iter_span_questions(watched, config), config.max_questions):
            file.write(question_line(SourceQuestion(question)))
            kinds[question.relation] += 1
        if not kinds:
            raise ConfigError(
                f"{release.path}: no sentence of the split {config.split!r} has a name or a number to ask for; "
                "lower min_words, or choose another split"
            )
    listed = ", ".join(f"{count:,} {kind}s" for kind, count in kinds.most_common())
    print(f"{output}: {kinds.total():,} questions about the split {config.split} ({listed})")
    return 0
