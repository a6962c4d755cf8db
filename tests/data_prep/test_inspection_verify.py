"""verify: a damaged byte in any file, swapped shards, edited manifests; what it tolerates; it changes nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.inspection.artifact_check import Checked, Sampling, check_files, chosen_shards
from data_prep.inspection.verify import is_release, verify, verify_release
from data_prep.pipeline import run
from retro.artifacts.manifest import read_manifest
from retro.cli.main import main
from retro.config.errors import ArtifactCorruptError, ArtifactMissingError
from retro.config.preparation import PrepConfig
from tests.data_prep.inspected import configure, copy, flip, folder_of, rewrite, settings, write_corpus

FULL = Sampling(fraction=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PrepConfig:
    pytest.importorskip("faiss")
    base = tmp_path_factory.mktemp("verify")
    config = configure(settings(write_corpus(base / "corpus"), base / "prep"))
    run(config, progress=False)
    return config


@pytest.fixture
def own(made: PrepConfig, tmp_path: Path) -> PrepConfig:
    """A copy that may be damaged."""
    return dataclasses.replace(made, root=str(copy(Path(made.root), tmp_path / "prep")))


def problems(config: PrepConfig, sampling: Sampling = FULL) -> list[str]:
    return [line for item in verify(config, sampling) for line in item.problems]


def smallest(root: Path, stage: str) -> Path:
    """Of the folders of a stage the one with the fewest rows: that of the test split."""
    return min(root.glob(f"{stage}-*"), key=lambda folder: read_manifest(folder).rows)


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    # The hashes of the corpus files are a cache, which whoever reads the corpus may write.
    files = [p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".corpus-hashes")]
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_undamaged_preparation_has_no_problem_and_is_not_touched(made):
    before = snapshot(Path(made.root))
    found = list(verify(made, FULL))
    assert [item.problems for item in found] == [[]] * len(found) and len(found) >= 10
    assert [item.notes for item in found] == [[]] * len(found)
    assert all(item.shards == len(read_manifest(item.folder).shards) for item in found)
    assert all(item.files == len(read_manifest(item.folder).all_files()) for item in found)
    assert snapshot(Path(made.root)) == before


def test_one_damaged_byte_in_any_file_is_found(own):
    root = Path(own.root)
    files = [p for f in sorted(root.glob("*-*")) if f.is_dir() for p in f.iterdir() if p.is_file() and p.stat().st_size]
    assert {p.suffix for p in files} >= {".npy", ".bin", ".zst", ".jsonl", ".json", ".model", ".faiss"}
    for file in files:
        content = file.read_bytes()
        for place in (0, len(content) // 2, -1):
            flip(file, place)
            checked = Checked("x", file.parent)
            check_files(checked, Sampling(fraction=0), "restore it")
            if file.name != "manifest.json":
                expected = f"{file}: expected sha256"
                assert any(line.startswith(expected) and "restore it" in line for line in checked.problems), file
            elif place != -1:  # the last byte is a line end
                assert checked.problems, file
            file.write_bytes(content)


def test_swapped_shards_are_found_by_checksum_and_by_making_them_again(own):
    folder = folder_of(Path(own.root), "embed")
    one, other = folder / "vectors-00000.npy", folder / "vectors-00001.npy"
    assert one.stat().st_size == other.stat().st_size
    first, second = np.load(one), np.load(other)
    np.save(one, second)
    np.save(other, first)
    found = problems(own)
    assert sum(f"{p}: expected sha256" in line for p in (one, other) for line in found) == 2
    np.save(one, first)
    np.save(other, second)
    assert problems(own) == []
    rewrite(one, second)
    rewrite(other, first)
    items = list(verify(own, FULL))
    first_line, second_line = [line for item in items for line in item.problems]
    assert str(one) in first_line and str(other) in second_line
    assert "shard 00000 made again" in first_line and "beyond the tolerance" in first_line
    # What was made from them is not blamed for it.
    notes = [line for item in items for line in item.notes]
    assert notes and all(f"not made again, because of the problems of {folder.name}" in line for line in notes[:1])


def test_the_last_bit_of_a_float_is_a_wrong_checksum_but_right_when_made_again(own):
    file = sorted(smallest(Path(own.root), "find_neighbors").glob("distances-*.npy"))[0]
    original = np.load(file)
    changed = original.copy()
    changed[2, 3] = np.nextafter(changed[2, 3], np.float32(0))
    np.save(file, changed)
    found = problems(own)
    assert len(found) == 1 and f"{file}: expected sha256" in found[0]
    np.save(file, original)
    rewrite(file, changed)
    items = list(verify(own, FULL))
    assert [line for item in items for line in item.problems] == []
    (note,) = [line for item in items for line in item.notes]
    assert str(file) in note and "1 of " in note and "(tolerance 0.0001)" in note


def test_a_float_that_is_really_different_is_found(own):
    vectors = folder_of(Path(own.root), "embed") / "vectors-00000.npy"
    array = np.load(vectors)
    array[3, 1] += 0.01
    rewrite(vectors, array)
    assert any(str(vectors) in line and "1 beyond the tolerance" in line for line in problems(own))


def test_integers_are_compared_exactly(own):
    ids = sorted(smallest(Path(own.root), "find_neighbors").glob("ids-*.npy"))[0]
    table = np.load(ids)
    table[2, :2] = table[2, 1::-1]
    rewrite(ids, table)
    assert any(str(ids) in line and "2 of" in line and "first in row 2" in line for line in problems(own))


def test_a_removed_and_a_truncated_file_are_told_and_the_rest_is_checked_all_the_same(own):
    root = Path(own.root)
    tokens = smallest(root, "chunk")
    gone = sorted(tokens.glob("*.npy"))[0]
    gone.unlink()
    faiss = next(folder_of(root, "build_index").glob("*.faiss"), None) or next(root.glob("*/*.faiss"))
    flip(faiss)
    items = list(verify(own, FULL))
    found = [line for item in items for line in item.problems]
    assert any(f"{gone}: expected" in line and "found no such file" in line and "prep run" in line for line in found)
    assert any("cannot be made again" in line for line in found)
    # What comes after the damage cannot be planned any more, but its files are read.
    assert any("(files only)" in item.name for item in items)
    truncated = folder_of(root, "train_tokenizer") / "tokenizer.model"
    truncated.write_bytes(truncated.read_bytes()[:-7])
    found = problems(own)
    size = truncated.stat().st_size
    assert any(f"{truncated}: expected {size + 7} bytes, found {size} bytes" in line for line in found)
    assert any(f"{faiss}: expected sha256" in line for line in found)


def test_edited_manifests_are_found(own):
    folder = folder_of(Path(own.root), "embed")
    original = (folder / "manifest.json").read_bytes()

    def expect(change, message: str) -> None:
        (folder / "manifest.json").write_bytes(original)
        edit(folder, change)
        assert any(message in line for line in problems(own)), message

    expect(lambda m: m["config"].update(storage="float16"), "it was edited")
    expect(lambda m: m.update(fingerprint="0" * 16), "it was edited")
    expect(lambda m: m["stats"].update(zero_vectors=77), "stats differ from those in")
    expect(lambda m: m["stats"].update(zero_vectors=77), "expected zero_vectors = ")
    expect(lambda m: m["shards"][1].update(rows=3), "rows differ from those in")
    expect(lambda m: m["shards"].pop(), "shards of the plan, found")
    expect(lambda m: m["shards"][0]["files"][0].update(sha256="0" * 64), "expected sha256 0000000000000000")
    (folder / "manifest.json").write_text("{")
    assert any("not a readable manifest" in line for line in problems(own))


def test_a_file_that_nobody_recorded_is_noted(own):
    folder = folder_of(Path(own.root), "build_index")
    (folder / "notes.txt").write_text("mine")
    items = list(verify(own, Sampling(fraction=0)))
    assert [line for item in items for line in item.problems] == []
    assert [line for item in items for line in item.notes] == [f"{folder}: not of the artifact: notes.txt"]


def test_the_sample_is_seeded_and_by_shard(own):
    manifest = read_manifest(folder_of(Path(own.root), "embed"))
    total = len(manifest.shards)
    assert total >= 4
    assert chosen_shards(manifest, Sampling(fraction=0)) == []
    assert len(chosen_shards(manifest, Sampling(fraction=0.01))) == 1
    assert chosen_shards(manifest, FULL) == list(range(total))
    samples = {tuple(chosen_shards(manifest, Sampling(0.5, seed))) for seed in range(20)}
    assert len(samples) > 1 and {len(s) for s in samples} == {round(total / 2)}
    assert chosen_shards(manifest, Sampling(0.5, 3)) == chosen_shards(manifest, Sampling(0.5, 3))


def test_large_artifacts_are_read_by_sample_small_ones_in_full(own):
    folder = folder_of(Path(own.root), "embed")
    total = len(read_manifest(folder).all_files())
    sample = Sampling(fraction=0.4, full_below=100)
    checked = Checked("embed", folder)
    check_files(checked, sample, "x")
    assert checked.files == len(chosen_shards(read_manifest(folder), sample)) < total
    checked = Checked("embed", folder)
    check_files(checked, Sampling(fraction=0.4), "x")
    assert checked.files == total
    # Sizes are looked at whatever the sample.
    last = folder / read_manifest(folder).shards[-1]["files"][0]["name"]
    last.write_bytes(last.read_bytes() + b"x")
    checked = Checked("embed", folder)
    check_files(checked, Sampling(fraction=0, full_below=100), "x")
    assert checked.files == 0 and [str(last) in line for line in checked.problems] == [True]


def test_the_closing_step_is_made_again_with_fraction_1(own):
    folder = folder_of(Path(own.root), "tokenize", lambda m: m.rows > 30)
    file = folder / "order.npy"
    order = np.load(file)
    order[:2] = order[1::-1]
    rewrite(file, order)
    assert not [line for line in problems(own, Sampling(fraction=0.5)) if "closing step" in line]
    found = [line for line in problems(own) if "closing step made again" in line]
    assert len(found) == 1 and str(file) in found[0] and "2 of" in found[0]


def test_an_unfinished_step_is_a_problem(own):
    (folder_of(Path(own.root), "embed") / "manifest.json").unlink()
    assert problems(own)[-1].endswith("not finished; `retro prep run` continues it")


def test_without_its_corpus_the_files_are_checked_all_the_same(own):
    jsonl = dataclasses.replace(own.ingest.jsonl, folder="nowhere")
    gone = dataclasses.replace(own, ingest=dataclasses.replace(own.ingest, jsonl=jsonl))
    flip(next(Path(own.root).glob("*/*.faiss")))
    found = problems(gone)
    assert "ingest cannot be made again" in found[0] and any(".faiss: expected sha256" in line for line in found)


def test_a_release_is_verified_without_its_configuration(own, tmp_path):
    root = Path(own.root)
    moved = root.rename(tmp_path / "elsewhere")
    assert is_release(moved) and is_release(moved / "release.json") and not is_release(tmp_path)
    before = snapshot(moved)
    items = list(verify_release(moved, FULL))
    assert [item.problems for item in items] == [[]] * len(items)
    assert {item.folder for item in items} >= {p.resolve() for p in moved.glob("*-*") if p.is_dir()}
    assert snapshot(moved) == before
    file = next(moved.glob("*/*.faiss"))
    flip(file)
    found = [line for item in verify_release(moved / "release.json", Sampling(fraction=0)) for line in item.problems]
    assert len(found) == 1 and f"{file}: expected sha256" in found[0] and "restore" in found[0]


def test_an_imported_release(own, tmp_path, capsys):
    assert main(["prep", "export", own.root, str(tmp_path / "archive.tar")]) == 0
    assert main(["prep", "import", str(tmp_path / "archive.tar"), str(tmp_path / "imported")]) == 0
    capsys.readouterr()
    assert main(["prep", "verify", str(tmp_path / "imported"), "--fraction", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("splits.test.neighbors: ok (") for line in lines)
    # What the members were made from came along as far as they need it, and is looked at too.
    assert any(line.startswith("embeddings of database.searcher: ok (") for line in lines)
    flip(next((tmp_path / "imported").glob("*/vectors-*.npy")))
    assert main(["prep", "verify", str(tmp_path / "imported")]) == 3
    assert "expected sha256" in capsys.readouterr().err


def test_a_release_whose_members_were_exchanged_or_are_gone(own):
    root = Path(own.root)
    path = root / "release.json"
    content = json.loads(path.read_text())
    content["splits"]["train"], content["splits"]["test"] = content["splits"]["test"], content["splits"]["train"]
    path.write_text(json.dumps(content))
    found = [line for item in verify_release(root, Sampling(fraction=0)) for line in item.problems]
    assert any("it was edited" in line for line in found)
    folder_of(root, "train_tokenizer").rename(root / "away")
    found = [line for item in verify_release(root, Sampling(fraction=0)) for line in item.problems]
    assert any("train_tokenizer" in line and "not found" in line for line in found)


def test_releases_that_are_none(tmp_path):
    with pytest.raises(ArtifactMissingError, match="release not found"):
        list(verify_release(tmp_path / "release.json", FULL))
    for text in ("{", "[]", "{}", '{"fingerprint": "x"}'):
        (tmp_path / "release.json").write_text(text)
        with pytest.raises(ArtifactCorruptError, match="not a readable release"):
            list(verify_release(tmp_path, FULL))


def test_the_command(own, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    from retro.config.loader import dump_yaml

    config.write_text(dump_yaml(own))
    assert main(["prep", "verify", str(config)]) == 0
    assert "embed: ok (" in capsys.readouterr().out
    file = next(Path(own.root).glob("*/*.faiss"))
    flip(file)
    for target in (str(config), own.root):
        assert main(["prep", "verify", target, "--fraction", "0"]) == 3
        assert str(file) in capsys.readouterr().err
    for wrong in (["--fraction", "1.5"], ["--fraction", "-1"], ["--seed", "-1"]):
        assert main(["prep", "verify", str(config), *wrong]) == 2
        assert capsys.readouterr().err.startswith(f"error: {wrong[0]}: expected")
    assert main(["prep", "verify", own.root, "root=x"]) == 2
    assert "is a release, which takes no key=value" in capsys.readouterr().err
