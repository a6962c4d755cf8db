"""The main job, from text to report, through the command line, on a corpus of 150 documents."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from retro.artifacts.release import open_release
from retro.cli.main import main
from retro.data.chunk_store import open_chunk_store
from retro.data.neighbor_table import open_neighbor_table
from tests.system.workplace import CHUNK, train_command, write_config


def read_json(path: Path):
    return json.loads(path.read_text())


def test_every_command_succeeds(place):
    assert set(place.codes.values()) == {0}, place.codes


def test_preparation_gives_a_release_whose_neighbors_mean_something(place):
    release = open_release(place.release)
    assert set(release.splits) == {"train", "valid", "test"} and set(release.questions) == {"docs"}
    split = release.split("test")
    queries, database = open_chunk_store(split.chunks), open_chunk_store(release.database_chunks)
    table = open_neighbor_table(split.neighbors, queries, database)
    table.verify()
    assert queries.chunk_length == CHUNK
    # The corpus is of templates: a nearest neighbor shares far more tokens with its chunk than a random one does.
    ids = np.arange(queries.num_chunks)
    rows = table.rows(ids, 1)[:, 0]
    rows = np.where(rows < 0, 0, rows)
    others = np.random.default_rng(0).integers(0, database.num_chunks, len(ids))

    def shared(neighbors):
        own, own_mask = queries.gather(ids, -1)
        found, _ = database.gather(neighbors, -2)
        return np.mean([len(set(a[m]) & set(b)) for a, b, m in zip(own, found, own_mask, strict=True)])

    assert shared(rows) > 1.5 * shared(others)


def test_prep_status_explain_verify_show(place, capsys):
    config = str(place.prep_config)
    assert main(["prep", "status", config]) == 0
    *lines, disk = capsys.readouterr().out.splitlines()
    assert sum(" done " in line for line in lines) >= 12 and "resumable" not in str(lines)
    assert re.fullmatch(r"disk: \S+ .B used below .*, \S+ .B free", disk)
    assert main(["prep", "explain", config, "chunk.chunk_length=32"]) == 0
    explained = capsys.readouterr().out
    assert "config chunk_length 32 / 16" in explained and "waiting for their inputs" in explained
    assert main(["prep", "verify", config, "--fraction", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 12 and all(": ok (" in line and " made again)" in line for line in lines)
    assert main(["prep", "show", config, "--count", "2", "--neighbors", "2"]) == 0
    assert "pkg." in capsys.readouterr().out


def test_prep_run_again_does_nothing(place, capsys):
    before = {p: p.stat().st_mtime_ns for p in place.prep.rglob("*.npy")}
    assert main(["prep", "run", str(place.prep_config)]) == 0
    assert {p: p.stat().st_mtime_ns for p in place.prep.rglob("*.npy")} == before


@pytest.mark.parametrize("kind", ["gpt", "retro"])
def test_run_folders_hold_what_the_architecture_promises(place, kind):
    run = place.runs / kind
    names = {p.name for p in run.iterdir() if not p.name.startswith(".")}
    assert names == {
        "config.yaml",
        "release.json",
        "environment.json",
        "packages.txt",
        "code",
        "sessions.jsonl",
        "metrics.jsonl",
        "log.txt",
        "checkpoints",
        "eval",
    }
    steps = sorted(p.name for p in (run / "checkpoints").iterdir() if not p.is_symlink())
    assert steps == ["step_000020", "step_000030"]  # the newest two
    assert (run / "checkpoints" / "best").readlink().name == "step_000030"  # of the lowest validation loss
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["event"] == "train"]
    assert [row["step"] for row in train] == list(range(1, 31))
    assert train[-1]["samples"] == 30 * 4
    assert np.mean([r["loss"] for r in train[-5:]]) < np.mean([r["loss"] for r in train[:5]]) - 0.3
    validation = [row for row in rows if row["event"] == "validation"]
    assert [row["step"] for row in validation] == [10, 20, 30]
    assert validation[-1]["bits_per_byte"] < validation[0]["bits_per_byte"]


def test_gpt_and_retro_see_the_same_tokens_in_the_same_order(place):
    def seen(run):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [(r["step"], r["samples"], r["tokens"], r["learning_rate"]) for r in rows if r["event"] == "train"]

    assert seen(place.gpt) == seen(place.retro)


@pytest.mark.parametrize(("kind", "modes"), [("gpt", {"off"}), ("retro", {"on", "off", "shuffled"})])
def test_perplexity_results(place, kind, modes):
    folder = place.runs / kind / "eval" / "perplexity-test"
    results = read_json(folder / "results.json")
    assert results["model"] == kind and results["step"] == 30 and set(results["modes"]) == modes
    for scores in results["modes"].values():
        assert 1.0 < scores["bits_per_byte"] < 6.0
        assert scores["bits_per_byte"] == pytest.approx(scores["bits"] / scores["bytes"])
        assert scores["bits"] == pytest.approx(scores["loss"] * scores["tokens"] / math.log(2))
        assert scores["loss"] < math.log(400)  # better than uniform over the vocabulary
        assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
        assert scores["missing"] == 0
    counts = {(s["tokens"], s["bytes"]) for s in results["modes"].values()}
    assert len(counts) == 1
    rows = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    queries = open_chunk_store(open_release(place.release).split("test").chunks)
    # Every token of the split but the first of each document is scored, once.
    tokens = queries.tokens
    assert counts.pop()[0] == tokens.num_tokens - tokens.num_documents == sum(row["tokens"] for row in rows)
    assert set(results["leakage"]["modes"]) == modes
    assert len(read_json(folder / "samples.json")) == 3


def test_gpt_and_retro_are_scored_on_the_same_text(place):
    scored = {}
    for kind in ("gpt", "retro"):
        lines = (place.runs / kind / "eval" / "perplexity-test" / "responses.jsonl").read_text().splitlines()
        scored[kind] = [(r["chunk"], r["document"], r["tokens"], r["bytes"]) for r in map(json.loads, lines)]
    assert scored["gpt"] == scored["retro"]


def test_the_modes_of_retro_differ(place):
    modes = read_json(place.retro / "eval" / "perplexity-test" / "results.json")["modes"]
    assert len({scores["bits_per_byte"] for scores in modes.values()}) == 3


@pytest.mark.parametrize("kind", ["gpt", "retro"])
def test_docs_qa_results(place, kind):
    results = read_json(place.runs / kind / "eval" / "docs_qa" / "results.json")
    for scores in results["modes"].values():
        assert scores["n"] == 12 and 0 <= scores["exact_match"] <= 1 and 0 <= scores["f1"] <= 1


def test_report_is_one_file_that_needs_no_network(place, tmp_path, capsys):
    page, numbers = tmp_path / "report.html", tmp_path / "numbers.json"
    command = ["report", str(place.gpt), str(place.retro), "-o", str(page), "--json", str(numbers), "--draws", "200"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "RETRO" in printed and "shuffled" in printed and "bits per byte" in printed
    html = page.read_text()
    assert html.lstrip().lower().startswith("<!doctype html")
    # Nothing is fetched: no address in an attribute or a style that loads, no import of a script.
    loading = (
        r"""(?:src|href|srcset|action|data)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import|import\("""
    )
    assert re.findall(loading, html) == []
    assert set(re.findall(r"https?://[^\s\"'<>)]+", html)) <= {"http://www.w3.org/2000/svg"}
    results = read_json(place.retro / "eval" / "perplexity-test" / "results.json")
    assert f"{results['modes']['on']['bits_per_byte']:.3f}" in html and "pkg." in html
    assert json.loads(numbers.read_text())
    assert main([*command[:3], "--text-only", "--draws", "200"]) == 0


def test_generate_from_a_prompt_shorter_than_a_chunk(place, capsys):
    command = ["generate", f"checkpoint={place.retro}", "prompt=sum of", "max_new_tokens=40", "device=cpu", "seed=3"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert first.startswith("sum of") and "evidence retrieved with tokens 0-" in first and "pkg." in first
    assert main(command) == 0
    assert capsys.readouterr().out == first  # seeded
    assert main([*command, "retrieve=off"]) == 0
    assert "[no retrieval]" in capsys.readouterr().out
    assert main(["generate", f"checkpoint={place.gpt}", "prompt=x", "max_new_tokens=5", "device=cpu"]) == 0
    assert "[no retrieval]" in capsys.readouterr().out


def test_search_finds_the_document_that_is_named(place, capsys):
    assert main(["search", f"release={place.release}", "pkg.labels.mean_13 mean of all labels", "k=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("distance" in line for line in lines) == 3 and any("pkg.labels.mean_13" in line for line in lines)


def test_training_again_does_nothing(place, capsys):
    before = (place.gpt / "metrics.jsonl").read_bytes()
    assert main(train_command("gpt", place.release, place.runs)) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (place.gpt / "metrics.jsonl").read_bytes() == before


def test_documentation_of_installed_packages_goes_the_same_way(tmp_path, capsys):
    """The demo's reader over one small package, with a vector index instead of BM25."""
    settings = {
        "root": str(tmp_path / "prep"),
        "workers": 1,
        "ingest": {
            "reader": "python_docs",
            "python_docs": {"packages": ["yaml", "filelock", "tqdm"], "standard_library": False, "min_characters": 40},
            "split": {"by": "document", "validation_fraction": 0.1, "test_fraction": 0.2},
        },
        "tokenizer": {"train": {"vocab_size": 400}},
        "chunk": {"chunk_length": 16},
        "embed": {"kind": "lexical", "lexical": {"dimension": 32, "buckets": 1024}},
        "index": {"kind": "vectors", "vectors": {"recall_queries": 20}},
        "neighbors": {"candidates": 20, "keep": 8},
    }
    config = write_config(tmp_path / "prep.yaml", settings)
    assert main(["prep", "run", str(config)]) == 0
    release = tmp_path / "prep" / "release.json"
    capsys.readouterr()
    assert main(["search", f"release={release}", "progress bar", "k=2"]) == 0
    assert "tqdm" in capsys.readouterr().out
