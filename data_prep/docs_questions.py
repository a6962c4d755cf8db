"""Stage docs_questions: documents of an API documentation become questions whose answers stand in them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.documented_values import documented_values
from data_prep.stage import Shard, ShardResult, Stage
from retro.config.evaluation import QuestionsConfig
from retro.config.loader import to_dict
from retro.data.document import Document, document_files, read_documents
from retro.data.questions import QUESTIONS_KIND, Question, read_questions, write_questions


class DocsQuestionsStage(Stage):
    """Asks for default values and return types, see `questions_of`.

    Per shard (one file of documents): `candidates-<shard>.jsonl`, all questions. At the end: `questions-train.jsonl`
    and `questions-test.jsonl`, what the limits of the configuration leave, in the order of a seeded hash.
    Documents are told apart by a seeded hash of their id: every question of a document is on the same side.
    """

    name = "docs_questions"
    version = 2
    kind = QUESTIONS_KIND

    def __init__(self, config: QuestionsConfig, documents: Path) -> None:
        """`documents`: folder of a finished documents artifact (deduplicated, as the language model's)."""
        self.questions = config
        super().__init__(to_dict(config), {"documents": documents})

    def plan(self) -> list[Shard]:
        """One shard per file of documents."""
        files = document_files(self.inputs["documents"])
        return [Shard(f"{i:05d}", {"file": path.name}) for i, path in enumerate(files)]

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """All questions that the documents of one file give."""
        config = self.questions
        found: list[Question] = []
        for document in read_documents(self.inputs["documents"] / shard.spec["file"]):
            if document.split in config.document_splits:
                questions = questions_of(document, config.max_answer_characters)
                questions.sort(key=lambda question: _rank(config.seed, question.id))
                found += questions[: config.max_per_document]
        write_questions(out / f"candidates-{shard.name}.jsonl", found)
        return ShardResult(len(found))

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Split, limit the share of each answer, and the numbers."""
        config = self.questions
        splits: dict[str, list[Question]] = {"train": [], "test": []}
        for record in records:
            for question in read_questions(folder / f"candidates-{record['name']}.jsonl"):
                splits[question_split(question.document, config)].append(question)
        stats: dict[str, Any] = {"candidates": sum(record["rows"] for record in records)}
        for split, limit in (("train", config.max_train), ("test", config.max_test)):
            questions = sorted(splits[split], key=lambda question: _rank(config.seed, question.id))
            questions = limit_answers(questions, config.max_answer_share, config.seed)[:limit]
            write_questions(out / f"{QUESTIONS_KIND}-{split}.jsonl", questions)
            stats[split] = {
                "questions": len(questions),
                "documents": len({question.document for question in questions}),
                "kinds": dict(sorted(Counter(question.kind for question in questions).items())),
                "document_splits": dict(sorted(Counter(question.document_split for question in questions).items())),
                "common_answers": Counter(question.answers[0] for question in questions).most_common(10),
            }
        return stats

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """For people."""
        parts = [f"{stats[s]['questions']:,} {s} of {stats[s]['documents']:,} documents" for s in ("train", "test")]
        return f"questions: {', '.join(parts)}"


def questions_of(document: Document, max_answer_characters: int = 40) -> list[Question]:
    """Questions about one document: one per parameter whose default it states, and one if it states a return type.

    Where header and prose state different values both are accepted. Every answer stands verbatim in its evidence, a
    line of the text; longer answers are left out.
    """
    name = document.title or document.id
    found = []
    for value in documented_values(document.text):
        answers = [a for a in value.answers if len(a) <= max_answer_characters and a in document.text]
        if not answers or answers[0] not in value.evidence or value.evidence not in document.text:
            continue
        if value.kind == "default":
            asked = f"What is the default value of `{value.parameter}` in {name}?"
        else:
            asked = f"What is the return type of {name}?"
        identity = f"{document.id}#{value.kind}" + (f":{value.parameter}" if value.parameter else "")
        found.append(
            Question(
                id=identity,
                document=document.id,
                document_split=document.split,
                kind=value.kind,
                parameter=value.parameter,
                question=asked,
                answers=tuple(answers),
                evidence=value.evidence,
            )
        )
    return found


def question_split(document_id: str, config: QuestionsConfig) -> str:
    """train or test: a pure function of the document's id and the seed."""
    return "test" if _rank(config.seed, f"split\0{document_id}") < config.test_fraction * 2**64 else "train"


def limit_answers(questions: Iterable[Question], share: float, seed: int = 0) -> list[Question]:
    """The questions without some of those whose answer is too common, in their order.

    No answer makes up more than `share` of the questions of its kind that are kept, except that every answer may
    appear once. Which ones stay is decided by a seeded hash that has nothing to do with their order, so that the
    shares hold in any part of the list as well.
    """
    questions = list(questions)
    members: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in questions:
        members[question.kind, question.answers[0]].append(question)
    kept: set[str] = set()
    for kind in {kind for kind, _ in members}:
        groups = [group for (own, _), group in members.items() if own == kind]
        limit = _largest_count([len(group) for group in groups], share)
        for group in groups:
            ranked = sorted(group, key=lambda question: _rank(seed, f"keep\0{question.id}"))
            kept.update(question.id for question in ranked[:limit])
    return [question for question in questions if question.id in kept]


def _largest_count(counts: list[int], share: float) -> int:
    """Largest c >= 1 such that c <= share * sum(min(count, c)): lowering the most common answers lowers the sum too."""
    low, high = 1, max(counts, default=1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle <= share * sum(min(count, middle) for count in counts):
            low = middle
        else:
            high = middle - 1
    return low


def _rank(seed: int, name: str) -> int:
    """Seeded hash of a name, uniform in 0 .. 2^64 - 1."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8, person=b"retro-questions").digest()
    return int.from_bytes(digest, "little")
