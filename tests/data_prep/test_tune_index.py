"""`retro prep tune-index`: what is measured, the frontier, the table, the files; and the choice on a sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.pipeline import run
from data_prep.tune_index import Point, Sweep, cheapest, finished_index, mark_frontier, tune
from retro.artifacts.manifest import open_manifest
from retro.cli.main import main
from retro.config.errors import ArtifactMissingError, ConfigError
from retro.config.loader import load_config
from retro.config.preparation import PrepConfig
from retro.retrieval.faiss_index import SearchSettings
from tests.data_prep.prepared import make_text

pytest.importorskip("faiss", reason="faiss is not installed")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration of a finished database with an IVF index; half of it can be tuned."""
    root = tmp_path_factory.mktemp("tune")
    generator = np.random.default_rng(0)
    (root / "corpus").mkdir()
    with open(root / "corpus" / "corpus.jsonl", "w", encoding="utf-8") as file:
        for number in range(150):
            text = make_text(generator, int(generator.integers(30, 120)))
            file.write(json.dumps({"id": f"d{number}", "text": text}) + "\n")
    config = {
        "root": str(root / "out"),
        "ingest": {
            "reader": "jsonl",
            "jsonl": {"folder": str(root / "corpus")},
            "split": {"test_fraction": 0.1},
        },
        "tokenizer": {"train": {"vocab_size": 300}},
        "chunk": {"chunk_length": 16},
        "embed": {"lexical": {"dimension": 64, "buckets": 4096}},
        "index": {"kind": "vectors", "vectors": {"factory": "IVF16,PQ8x4", "recall_queries": 50, "probes": 1}},
        "workers": 1,
    }
    import yaml

    path = root / "prep.yaml"
    path.write_text(yaml.safe_dump(config))
    run(load_config(PrepConfig, path, []), progress=False)
    return path


def _tune(prepared: Path, **options: object):
    config = load_config(PrepConfig, prepared, [])
    return tune(finished_index(config), Sweep(queries=60, repeats=2, **options))  # type: ignore[arg-type]


def test_recall_grows_with_probes_and_candidates(prepared: Path) -> None:
    found = _tune(prepared, probes=(1, 16), k_factor=(1, 16))
    recall = {(p.settings.probes, p.settings.k_factor): p.recall for p in found.points}
    assert recall[1, 1] < recall[1, 16] < recall[16, 16] and recall[1, 1] < recall[16, 1] < recall[16, 16]
    assert recall[16, 16] > 0.9
    assert all(0 < p.fastest <= p.milliseconds <= p.slowest for p in found.points)
    assert found.current == SearchSettings(1, None, found.current.k_factor)
    assert found.memory_per_vector > 4 + 8 and found.disk_per_vector > found.memory_per_vector + 64


def test_without_given_values_they_double_until_nothing_is_gained(prepared: Path) -> None:
    found = _tune(prepared)
    probes = list(dict.fromkeys(p.settings.probes for p in found.points))
    assert probes == [2**i for i in range(len(probes))] and 2 <= len(probes) <= 5
    assert {p.settings.k_factor for p in found.points} == {1, 2, 4, 8, 16}
    last = [max(p.recall for p in found.points if p.settings.probes == q) for q in probes[-2:]]
    assert probes[-1] == 16 or last[1] < last[0] + 0.001


def _point(recall: float, milliseconds: float) -> Point:
    return Point(SearchSettings(), recall, milliseconds, milliseconds, milliseconds)


def test_the_frontier_and_the_cheapest() -> None:
    values = [(0.5, 1.0), (0.9, 2.0), (0.8, 3.0), (0.9, 2.5), (0.99, 4.0), (0.96, 4.5), (0.99, 4.0)]
    points = mark_frontier([_point(*value) for value in values])
    assert [p.frontier for p in points] == [True, True, False, False, True, False, True]
    best = cheapest(points, 0.95)
    assert best is not None and best.milliseconds == 4.0
    assert cheapest(points, 0.999) is None


def test_table_plot_and_json(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["prep", "tune-index", "--queries", "40", "--probes", "1,4,16", "--k-factor", "1,8", "--repeats", "1"]
    assert main([*command, "--target", "0.8", "--out", str(out), str(prepared)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("IVF16,PQ8x4 over ") and "bytes per vector in the index" in printed[0]
    rows = [line for line in printed if line[2:].split()[:1] in (["1"], ["4"], ["16"])]
    assert len(rows) == 6 and len({len(row) for row in rows}) == 1 and any(row[0] == "*" for row in rows)
    chosen = next(line for line in printed if line.startswith("to set it: "))
    assert "index.vectors.probes=" in chosen and "index.vectors.k_factor=" in chosen
    data = json.loads((out / "tune_index.json").read_text())
    assert len(data["points"]) == 6 and data["cheapest"]["recall"] >= 0.8
    html = (out / "tune_index.html").read_text()
    assert "<svg" in html and "http" not in html.replace("http://www.w3.org", "") and "<script" not in html
    assert main([*command, "--out", str(out), str(prepared)]) == 2
    assert "is there already" in capsys.readouterr().err
    # the setting that is named can be set, and no other stage but the index is made again
    overrides = chosen.removeprefix("to set it: ").split()
    config = load_config(PrepConfig, prepared, overrides)
    assert (config.index.vectors.probes, config.index.vectors.k_factor) != (1, None)


def test_a_target_out_of_reach_is_said(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prep", "tune-index", "--queries", "40", "--probes", "1", "--k-factor", "1", "--repeats", "1"]
    assert main([*command, str(prepared)]) == 0
    assert "no setting reaches a recall of 0.95; the most is " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--probes", "0"], 2, "--probes: expected numbers of 1 or more"),
        (["--probes", "a"], 2, "expected numbers with commas between"),
        (["--queries", "0"], 2, "--queries: expected 1 or more"),
        (["--ef-search", "64"], 2, "has no efSearch"),
        (["index.vectors.factory=exact", "index.vectors.probes=null"], 3, "no finished index"),
        (["index={kind: bm25}", "embed=null"], 2, "the index is BM25"),
    ],
)
def test_mistakes_are_one_line(
    prepared: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, overrides = [a for a in arguments if "=" not in a], [a for a in arguments if "=" in a]
    try:
        found = main(["prep", "tune-index", *options, str(prepared), *overrides])
    except SystemExit as error:  # argparse
        found = int(error.code or 0)
    assert found == code
    assert message in capsys.readouterr().err


def test_exact_search_has_nothing_to_tune(prepared: Path) -> None:
    config = load_config(PrepConfig, prepared, ["index.vectors.factory=exact", "index.vectors.probes=null"])
    with pytest.raises(ArtifactMissingError, match="no finished index"):
        finished_index(config)
    run(config, progress=False)
    with pytest.raises(ConfigError, match="searched exactly; there is nothing to tune"):
        finished_index(config)
    index = next(p for p in Path(config.root).glob("build_index-*") if open_manifest(p).stats["factory"] == "exact")
    assert open_manifest(index).stats["recall"] == 1.0
