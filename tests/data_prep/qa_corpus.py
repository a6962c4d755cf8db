"""Rivers and towns: a release of short documents with titles, questions about them, and a task, all in one folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from data_prep.pipeline import run
from data_prep.qa_pipeline import QaPipeline
from retro.config.loader import load_config
from retro.config.preparation import PrepConfig
from retro.config.qa_prepare import QaPrepareConfig

TOWNS = ["Porto", "Braga", "Evora", "Faro", "Beja", "Leiria", "Viseu", "Guarda", "Tomar", "Lagos", "Sintra", "Silves"]
RIVERS = ["Douro", "Este", "Degebe", "Formosa", "Guadiana", "Lis", "Pavia", "Mondego", "Nabao", "Bensafrim", "Colares"]
RIVERS.append("Arade")


def documents() -> list[dict[str, str]]:
    """Of each town one document, which names it in its title alone; half of them are trained on."""
    rows = []
    for number, (town, river) in enumerate(zip(TOWNS, RIVERS, strict=True)):
        text = (
            f"The town lies on the river {river} and has {1000 + 37 * number} houses. It was founded long ago by "
            f"people who came from the sea. Its market is held on day {number + 1} of the month, and many come to it."
        )
        split = "train" if number < 6 else "database_only"
        rows.append({"id": f"t{number}", "title": town, "text": text, "split": split})
    for number in range(8):
        text = f"Notes number {number}: the market and the people and the sea, the houses and the rivers."
        rows.append({"id": f"n{number}", "title": "", "text": text * 2, "split": "train"})
    rows.append({"id": "v", "title": "Valid", "text": "Houses of the north are made of stone.", "split": "valid"})
    rows.append({"id": "w", "title": "Test", "text": "Houses of the south are made of lime.", "split": "test"})
    return rows


def questions() -> dict[str, list[dict[str, Any]]]:
    """Training questions about the first six towns, test questions about the others."""
    rows = []
    for number, (town, river) in enumerate(zip(TOWNS, RIVERS, strict=True)):
        common = {"evidence": [f"t{number}"], "subject": town}
        river_asked = {"id": f"r{number}", "question": f"Which river is {town} on?", "answers": [river]}
        houses = [str(1000 + 37 * number)]
        houses_asked = {"id": f"h{number}", "question": f"How many houses has {town}?", "answers": houses}
        rows += [{**river_asked, "kind": "river", **common}, {**houses_asked, "kind": "houses", **common}]
    rows[3]["evidence"] = []  # nothing known of it
    return {"train": rows[:12], "test": rows[12:]}


def write_corpus(folder: Path) -> Path:
    """Documents, questions and the task below `folder`, and a release of them; returns release.json."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    write("docs.jsonl", documents())
    for split, rows in questions().items():
        write(f"{split}.jsonl", rows)
    (folder / "towns.yaml").write_text(
        "name: towns\nfields: {question: question, answers: answers, id: id, evidence: evidence, group: kind, "
        "subject: subject}\nfiles: {train: [train.jsonl], test: [test.jsonl]}\n",
        encoding="utf-8",
    )
    config = load_config(
        PrepConfig,
        None,
        [
            f"root={folder / 'release'}",
            "workers=1",
            "ingest.reader=jsonl",
            f"ingest.jsonl={{folder: {folder}, files: [docs.jsonl], id_field: id, title_field: title}}",
            "ingest.split={by: field, field: split}",
            "deduplicate=null",
            "tokenizer.train.vocab_size=340",
            "database_splits=[train, database_only]",
            "query_splits=[train, valid, test]",
            "chunk.chunk_length=16",
            "neighbors={candidates: 8, keep: 2}",
        ],
    )
    return run(config, progress=False)


def config_of(folder: Path, root: Path, *overrides: str) -> QaPrepareConfig:
    """The configuration that prepares the questions of `write_corpus`."""
    given = [f"root={root}", f"task={folder / 'towns.yaml'}", f"release={folder / 'release' / 'release.json'}"]
    given += ["workers=1", "shard_questions=5", "passages={keep: 4, before: 1, after: 1, oracle: 2}"]
    return load_config(QaPrepareConfig, None, [*given, *overrides])


if __name__ == "__main__":  # tests kill this process
    QaPipeline(config_of(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])).run(progress=False)
