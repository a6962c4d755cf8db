"""`retro prep run` after the corpus has changed: it says so, in one line, and makes the release of the new one."""

from __future__ import annotations

from retro.cli.main import main
from tests.system.workplace import prep_settings, write_config, write_corpus


def test_the_next_run_says_what_has_changed(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus")
    settings = {**prep_settings(corpus, tmp_path / "prep"), "neighbors": {"candidates": 60, "keep": 12}}
    command = ["prep", "run", str(write_config(tmp_path / "prep.yaml", settings))]
    for _ in range(2):
        assert main(command) == 0
        assert "the corpus is not the one of" not in capsys.readouterr().err
    first = (tmp_path / "prep" / "release.json").read_text()
    lines = (corpus / "docs-1.jsonl").read_text().splitlines(keepends=True)
    (corpus / "docs-1.jsonl").write_text("".join(lines[:-1]))
    (corpus / "docs-9.jsonl").write_text(lines[-1])
    assert main(command) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "the corpus is not the one of" in line]
    (folder,) = [path.name for path in (tmp_path / "prep").glob("ingest-*") if path.name in told[0]]
    assert told == [
        f"ingest: the corpus is not the one of {folder}, which stays as it is: "
        "1 files added (docs-9.jsonl), 1 files changed (docs-1.jsonl)"
    ]
    assert (tmp_path / "prep" / "release.json").read_text() != first
