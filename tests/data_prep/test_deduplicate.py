"""Stage deduplicate: what counts as a duplicate, who survives, and that order and workers do not matter."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.deduplicate import SURVIVAL_ORDER, DeduplicateStage, Duplicate, find_near
from data_prep.ingest import IngestStage
from data_prep.minhash import Shingler, Signatures, normalise, similarities, words_of
from data_prep.runner import Executor, run_stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ConfigError
from retro.config.prep import DeduplicateConfig, IngestConfig, JsonlConfig, SplitConfig
from retro.data.document import iter_documents
from tests.data_prep.corpora import write_lines

VOCABULARY = [f"word{i}" for i in range(5000)]


def prose(seed, words=300):
    return random.Random(seed).choices(VOCABULARY, k=words)


def altered(words, count, seed=0):
    """The words with a run of `count` replaced at the end: about 1 - count / n of the shingles stay."""
    return words[:-count] + prose(f"altered {seed}", count)


def documents(root: Path, files: list[list[tuple[str, str, str]]]) -> Path:
    """Artifact of (id, split, text), one file per list."""
    for i, records in enumerate(files):
        write_lines(root / "corpus" / f"{i}.jsonl", [{"id": a, "part": b, "text": c} for a, b, c in records])
    config = IngestConfig(
        reader="jsonl",
        jsonl=JsonlConfig(folder=str(root / "corpus"), id_field="id"),
        split=SplitConfig(by="field", field="part"),
    )
    return run_stage(IngestStage(config), root / "prep", progress=False)


def run(folder: Path, workers=1, root=None, **options):
    stage = DeduplicateStage(DeduplicateConfig(**options), folder)
    return run_stage(stage, root or folder.parent, Executor(workers=workers), progress=False)


def listed(folder):
    return [json.loads(line) for line in (folder / "duplicates-00000.jsonl").read_text().splitlines()]


def kept(folder):
    return [document.id for document in iter_documents(folder)]


def test_exact_duplicates(tmp_path):
    records = [
        ("c", "train", "The  same\ntext."),
        ("b", "train", "the same TEXT."),
        ("a", "train", "The same text!"),
        ("d", "train", "Another."),
    ]
    folder = run(documents(tmp_path, [records]), near=False)
    assert kept(folder) == ["b", "a", "d"]
    assert listed(folder) == [
        {
            "dropped": "c",
            "kept": "b",
            "kind": "exact",
            "similarity": 1.0,
            "dropped_split": "train",
            "kept_split": "train",
        }
    ]


def test_near_duplicates_by_the_threshold(tmp_path):
    base = prose("base")
    records = [
        ("a", "train", " ".join(base)),
        ("b", "train", " ".join(altered(base, 10))),  # Jaccard about (278 / 298) = 0.93
        ("c", "train", " ".join(altered(base, 120, 1))),  # about 168 / 408 = 0.41
        ("d", "train", " ".join(prose("other"))),
    ]
    source = documents(tmp_path, [records])
    assert kept(run(source)) == ["a", "c", "d"]
    assert kept(run(source, threshold=0.3)) == ["a", "d"]
    assert kept(run(source, threshold=1.0)) == ["a", "b", "c", "d"]
    (entry,) = listed(run(source))
    assert (entry["dropped"], entry["kept"], entry["kind"]) == ("b", "a", "near")
    assert 0.85 < entry["similarity"] < 1.0


def test_punctuation_and_case_do_not_make_a_document_new(tmp_path):
    words = prose("p", 40)
    records = [("a", "train", " ".join(words)), ("b", "train", ", ".join(words).upper() + "!")]
    folder = run(documents(tmp_path, [records]))
    assert kept(folder) == ["a"] and listed(folder)[0]["kind"] == "near"


def test_short_documents_are_near_duplicates_only_with_all_their_words(tmp_path):
    records = [
        ("a", "train", "Return the number of rows."),
        ("b", "train", "return the number of rows"),
        ("c", "train", "Return the number of columns."),
        ("d", "train", "rows of number the return"),
        ("e", "train", "???"),
        ("f", "train", "!!!"),
    ]
    assert kept(run(documents(tmp_path, [records]))) == ["a", "c", "d", "e", "f"]


def test_held_out_documents_survive_and_training_documents_like_them_go(tmp_path):
    base = prose("base")
    text = {i: " ".join(altered(base, 8, i)) for i in range(8)}
    records = [
        ("0 train", "train", text[0]),
        ("1 database", "database_only", text[1]),
        ("2 valid", "dev", text[2]),
        ("9 test", "test", text[3]),
        ("exact train", "train", text[3]),
        ("other", "train", " ".join(prose("other"))),
    ]
    folder = run(documents(tmp_path, [records]))
    assert kept(folder) == ["9 test", "other"]
    assert {entry["kept"] for entry in listed(folder)} == {"9 test"}
    stats = open_manifest(folder, "documents").stats
    assert stats["dropped_by_split"] == {
        "database_only because of test, near": 1,
        "train because of test, exact": 1,
        "train because of test, near": 1,
        "valid because of test, near": 1,
    }
    assert (stats["read"], stats["documents"], stats["dropped_exact"], stats["dropped_near"]) == (6, 2, 1, 3)
    assert stats["splits"] == {"test": 1, "train": 1}
    survivors = list(iter_documents(folder))
    assert stats["text_bytes"] == sum(len(document.text) for document in survivors)


def test_a_copy_of_a_near_duplicate_is_listed_with_the_document_that_is_kept(tmp_path):
    base = prose("base")
    near = " ".join(altered(base, 8))
    records = [("a", "train", " ".join(base)), ("b", "train", near), ("c", "train", near + "\n")]
    entries = listed(run(documents(tmp_path, [records])))
    assert [(e["dropped"], e["kept"], e["kind"]) for e in entries] == [("b", "a", "near"), ("c", "a", "near")]
    assert entries[0]["similarity"] == entries[1]["similarity"] < 1


def corpus(seed=0):
    """Families of near and exact duplicates over all splits."""
    draw = random.Random(seed)
    records = []
    for family in range(12):
        base = prose(f"family {family}", 120)
        for member in range(draw.randrange(1, 6)):
            words = base if draw.random() < 0.3 else altered(base, draw.randrange(1, 40), (family, member).__repr__())
            split = draw.choice(["train", "train", "dev", "test", "db_only"])
            records.append((f"{family}-{member}", split, " ".join(words)))
    return records


@pytest.fixture(scope="module")
def survivors(tmp_path_factory):
    root = tmp_path_factory.mktemp("reference")
    folder = run(documents(root, [corpus()]))
    return set(kept(folder)), {(e["dropped"], e["kept"], e["kind"], e["similarity"]) for e in listed(folder)}


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(len(corpus()))), cuts=st.integers(1, 4))
def test_survivors_do_not_depend_on_the_order(order, cuts, survivors, tmp_path_factory):
    records = [corpus()[i] for i in order]
    size = -(-len(records) // cuts)
    files = [records[i : i + size] for i in range(0, len(records), size)]
    folder = run(documents(tmp_path_factory.mktemp("shuffled"), files))
    assert set(kept(folder)) == survivors[0]
    assert {(e["dropped"], e["kept"], e["kind"], e["similarity"]) for e in listed(folder)} == survivors[1]


def test_every_dropped_document_names_a_survivor_of_no_later_split(survivors):
    ids, duplicates = survivors
    splits = {record[0]: {"dev": "valid", "db_only": "database_only"}.get(record[1], record[1]) for record in corpus()}
    assert duplicates and len(ids) + len(duplicates) == len(corpus())
    for dropped, survivor, _, similarity in duplicates:
        assert survivor in ids and dropped not in ids and similarity >= 0.8
        ranks = [(SURVIVAL_ORDER.index(splits[name]), name) for name in (survivor, dropped)]
        assert ranks[0] < ranks[1]


def test_same_bytes_for_one_and_two_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.readers.jsonl.JsonlReader.__init__.__defaults__", (None, 64 << 20, None, 1))
    records = corpus(1)
    source = documents(tmp_path, [records[:10], records[10:20], records[20:]])
    one = run(source, 1, tmp_path / "one")
    two = run(source, 2, tmp_path / "two")
    files = sorted(path.name for path in one.iterdir() if path.is_file())
    assert len([name for name in files if name.startswith("documents-")]) > 2
    for name in files:
        if name != "manifest.json":  # it holds the relative path of the input, which is the same here
            assert (one / name).read_bytes() == (two / name).read_bytes()
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    "changed", [{"near": False}, {"threshold": 0.7}, {"shingle_words": 5}, {"permutations": 64}, {"seed": 2}]
)
def test_every_option_is_in_the_fingerprint(tmp_path, changed):
    source = documents(tmp_path, [[("a", "train", "x")]])
    stages = [DeduplicateStage(DeduplicateConfig(**options), source) for options in ({}, changed)]
    assert stages[0].fingerprint() != stages[1].fingerprint()


@pytest.mark.parametrize(
    "options", [{"threshold": 0.0}, {"threshold": 1.1}, {"shingle_words": 0}, {"permutations": 4}, {"seed": -1}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        DeduplicateConfig(**options)


def test_the_most_similar_survivor_is_named_and_ties_go_to_the_first_in_survival_order():
    signatures = np.arange(3)[:, None] * 1000 + np.arange(128)[None, :]
    c = signatures[2]
    a, b = c.copy(), c.copy()
    a[:20] += 5000  # similarity to c: 108 / 128, to b: 88 / 128
    b[-20:] += 7000
    table = np.stack([b, c, a]).astype(np.uint32)
    sketches = Signatures(DeduplicateConfig())
    assert find_near([2, 0, 1], table, sketches, 0.8) == [Duplicate(1, 2, "near", 108 / 128)]
    assert find_near([0, 2, 1], table, sketches, 0.8) == [Duplicate(1, 0, "near", 108 / 128)]
    table[0, -1] = c[-1]  # b is now more similar by one value
    assert find_near([2, 0, 1], table, sketches, 0.8) == [Duplicate(1, 0, "near", 109 / 128)]


# --- shingles and signatures


def jaccard(a, b, n):
    sets = []
    for text in (a, b):
        words = words_of(text)
        sets.append({tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_shingles_are_the_distinct_word_n_grams():
    text = " ".join(random.Random(0).choices("abcdefgh", k=2000))
    words = words_of(text)
    for n in (1, 2, 3, 13):
        distinct = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
        assert len(Shingler(n).shingles(text)) == len(distinct)
    # The order of words counts, and a word that is a run of two others is another word.
    assert not set(Shingler(2).shingles("a b")) & set(Shingler(2).shingles("b a"))
    assert not set(Shingler(2).shingles("ab c")) & set(Shingler(2).shingles("a bc"))
    assert len(Shingler(13).shingles("...")) == 0


@pytest.mark.parametrize("count", [5, 20, 60, 150])
def test_similarity_estimates_the_jaccard_similarity(count):
    a = prose("a", 400)
    b = altered(a, count)
    signatures = Signatures(DeduplicateConfig(permutations=1024))
    one, two = signatures.signature(" ".join(a)), signatures.signature(" ".join(b))
    estimate = similarities(one, two[None, :])[0]
    assert abs(estimate - jaccard(" ".join(a), " ".join(b), 13)) < 4 * 0.5 / 1024**0.5


def test_signatures_are_fixed_and_do_not_depend_on_batches(monkeypatch):
    text = " ".join(prose("a", 3000))
    first = Signatures(DeduplicateConfig()).signature(text)
    monkeypatch.setattr("data_prep.minhash._BATCH", 7)
    monkeypatch.setattr(Shingler, "_REMEMBERED", 3)
    signatures = Signatures(DeduplicateConfig())
    signatures.signature("other words before")
    assert np.array_equal(signatures.signature(text), first)
    assert first.dtype == np.uint32 and first.shape == (128,)
    # Stored signatures of older runs must stay comparable: this changes only with the stage's version.
    assert first[:3].tolist() == GOLDEN


GOLDEN = [1640349, 1548362, 506020]


def test_normalise():
    assert normalise(" A\u00a0b\n\tC ") == "a b c"
    assert normalise("Stra\u00dfe") == normalise("STRASSE")
