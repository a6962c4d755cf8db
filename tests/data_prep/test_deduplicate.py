"""Stage deduplicate: what counts as a duplicate, who survives, and that order and workers do not matter."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.banding import band_hashes, choose_bands
from data_prep.deduplicate import DeduplicateStage, run_deduplicate
from data_prep.find_duplicates import FindDuplicatesStage
from data_prep.ingest import IngestStage
from data_prep.minhash import EMPTY, Shingler, Signatures, matches, normalise, text_digest, words_of
from data_prep.runner import Executor, run_stage
from data_prep.sign_documents import SignDocumentsStage
from data_prep.signed_documents import SURVIVAL_ORDER
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactError, ArtifactMismatchError, ConfigError
from retro.config.prep import DeduplicateConfig, IngestConfig, JsonlConfig, SplitConfig
from retro.data.document import document_key, iter_documents
from tests.data_prep.corpora import write_lines
from tests.reference.slow_deduplicate import slow_deduplicate, slow_signature

VOCABULARY = [f"word{i}" for i in range(5000)]


def prose(seed, words=300):
    return random.Random(seed).choices(VOCABULARY, k=words)


def altered(words, count, seed=0):
    """The words with a run of `count` replaced at the end: about 1 - count / n of the shingles stay."""
    return words[:-count] + prose(f"altered {seed}", count)


def documents(root: Path, files: list[list[tuple[str, str, str]]], **options) -> Path:
    """Artifact of (id, split, text), one file of the corpus per list."""
    for i, records in enumerate(files):
        write_lines(root / "corpus" / f"{i}.jsonl", [{"id": a, "part": b, "text": c} for a, b, c in records])
    config = IngestConfig(
        reader="jsonl",
        jsonl=JsonlConfig(folder=str(root / "corpus"), id_field="id"),
        split=SplitConfig(by="field", field="part"),
        **options,
    )
    return run_stage(IngestStage(config), root / "prep", progress=False)


def run(folder: Path, workers=1, root=None, base=None, **options):
    config = DeduplicateConfig(**options)
    return run_deduplicate(config, folder, root or folder.parent, base, Executor(workers=workers), progress=False)


def listed(folder):
    return [json.loads(line) for path in sorted(folder.glob("duplicates-*")) for line in path.open()]


def found(folder):
    return {(e["dropped"], e["kept"], e["kind"], e["similarity"]) for e in listed(folder)}


def kept(folder):
    return [document.id for document in iter_documents(folder)]


def first(*names):
    """The one of several documents of one split that survives."""
    return min(names, key=document_key)


def test_exact_duplicates(tmp_path):
    records = [
        ("c", "train", "The  same\ntext."),
        ("b", "train", "the same TEXT."),
        ("a", "train", "The same text!"),
        ("d", "train", "Another."),
    ]
    folder = run(documents(tmp_path, [records]), near=False)
    survivor = first("b", "c")
    assert kept(folder) == [name for name in "cbad" if name in (survivor, "a", "d")]
    assert listed(folder) == [
        {
            "dropped": "c" if survivor == "b" else "b",
            "kept": survivor,
            "kind": "exact",
            "similarity": 1.0,
            "dropped_split": "train",
            "kept_split": "train",
        }
    ]


def test_near_duplicates_by_the_threshold(tmp_path):
    base = prose("base")
    records = [
        ("a", "test", " ".join(base)),
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
    records = [("a", "test", " ".join(words)), ("b", "train", ", ".join(words).upper() + "!")]
    folder = run(documents(tmp_path, [records]))
    assert kept(folder) == ["a"] and listed(folder)[0]["kind"] == "near"


def test_short_documents_are_near_duplicates_only_with_all_their_words(tmp_path):
    records = [
        ("a", "test", "Return the number of rows."),
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
    records = [("a", "test", " ".join(base)), ("b", "train", near), ("c", "train", near + "\n")]
    entries = listed(run(documents(tmp_path, [records])))
    assert [(e["dropped"], e["kept"], e["kind"]) for e in entries] == [("b", "a", "near"), ("c", "a", "near")]
    assert entries[0]["similarity"] == entries[1]["similarity"] < 1


def corpus(seed=0, families=12):
    """Families of near and exact duplicates over all splits, and documents without words."""
    draw = random.Random(seed)
    records = []
    for family in range(families):
        base = prose(f"family {family}", 120)
        for member in range(draw.randrange(1, 6)):
            words = base if draw.random() < 0.3 else altered(base, draw.randrange(1, 40), (family, member).__repr__())
            split = draw.choice(["train", "train", "dev", "test", "db_only"])
            records.append((f"{family}-{member}", split, " ".join(words)))
    records += [("none 1", "train", "???"), ("none 2", "test", "!!"), ("none 3", "train", "???")]
    return records


def named(records):
    """With the names that ingest gives the splits."""
    return [(a, {"dev": "valid", "db_only": "database_only"}.get(b, b), c) for a, b, c in records]


@pytest.mark.parametrize(
    "options",
    [{}, {"near": False}, {"threshold": 0.5, "bucket_candidates": 1}, {"threshold": 0.6, "permutations": 32}],
)
def test_same_result_as_the_obvious_implementation(tmp_path, options):
    records = corpus(5, families=20)
    half = len(records) // 2
    folder = run(documents(tmp_path, [records[:half], records[half:]]), **options)
    expected = slow_deduplicate(DeduplicateConfig(**options), named(records))
    assert found(folder) == expected and len(expected) > 2
    assert kept(folder) == [name for name, *_ in records if name not in {row[0] for row in expected}]


@pytest.fixture(scope="module")
def expected():
    return slow_deduplicate(DeduplicateConfig(), named(corpus()))


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(len(corpus()))), cuts=st.integers(1, 4))
def test_survivors_do_not_depend_on_the_order(order, cuts, expected, tmp_path_factory):
    records = [corpus()[i] for i in order]
    size = -(-len(records) // cuts)
    files = [records[i : i + size] for i in range(0, len(records), size)]
    assert found(run(documents(tmp_path_factory.mktemp("shuffled"), files))) == expected


def test_every_dropped_document_names_a_survivor_of_no_later_split(expected):
    splits = {name: split for name, split, _ in named(corpus())}
    gone = {row[0] for row in expected}
    assert len(gone) == len(expected) > 5
    for dropped, survivor, _, similarity in expected:
        assert survivor not in gone and similarity >= 0.8
        ranks = [(SURVIVAL_ORDER.index(splits[name]), document_key(name)) for name in (survivor, dropped)]
        assert ranks[0] < ranks[1]


def test_same_bytes_for_one_and_two_workers_and_for_little_memory(tmp_path, monkeypatch):
    records = corpus(1)
    source = documents(tmp_path, [records[:10], records[10:20], records[20:]], piece_bytes=1)
    one = run(source, 1, tmp_path / "one")
    two = run(source, 2, tmp_path / "two")
    for module, name in (("sign_documents", "_BATCH_DOCUMENTS"), ("find_duplicates", "_COMPARED")):
        monkeypatch.setattr(f"data_prep.{module}.{name}", 3)
    for module in ("sign_documents", "find_duplicates"):
        monkeypatch.setattr(f"data_prep.{module}._BLOCK_ROWS", 32)
    monkeypatch.setattr("data_prep.deduplicate._COPIED_ROWS", 2)
    three = run(source, 1, tmp_path / "three")
    files = sorted(str(path.relative_to(one.parent)) for path in one.parent.rglob("*") if path.is_file())
    files = [name for name in files if not name.endswith(".lock")]
    assert len([name for name in files if "/documents-" in name]) > 2
    for name in files:
        content = (one.parent / name).read_bytes()
        assert content == (two.parent / name).read_bytes() and content == (three.parent / name).read_bytes()


# --- adding to a base


def split_corpus(tmp_path, seed=4):
    """(records of the base, new records, folders of their documents)"""
    records = corpus(seed, families=20)
    base, new = [(a, "train", c) for a, _, c in records[::4]], [row for i, row in enumerate(records) if i % 4]
    return base, new, documents(tmp_path / "one", [base[:9], base[9:]]), documents(tmp_path / "two", [new])


@pytest.mark.parametrize("options", [{}, {"near": False}])
def test_documents_like_those_of_the_base_are_not_added(tmp_path, options):
    base_records, new_records, base_source, new_source = split_corpus(tmp_path)
    base = run(base_source, **options)
    before = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    folder = run(new_source, base=base, **options)
    in_base = set(kept(base))
    expected = slow_deduplicate(
        DeduplicateConfig(**options), named(new_records), named([row for row in base_records if row[0] in in_base])
    )
    assert found(folder) == expected
    assert any(row[1] in in_base for row in expected) and any(row[1] not in in_base for row in expected)
    # Even a document of the training split stays when it is of the base, against one of the test split.
    splits = {name: split for name, split, _ in named(base_records + new_records)}
    assert ("train", "test") in {(splits[row[1]], splits[row[0]]) for row in expected if row[1] in in_base}
    assert {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()} == before


def test_the_base_needs_nothing_but_its_own_folder(tmp_path):
    _, _, base_source, new_source = split_corpus(tmp_path)
    base = run(base_source)
    alone = tmp_path / "moved" / base.name
    shutil.copytree(base, alone)
    shutil.rmtree(base.parent)
    folder = run(new_source, base=alone)
    again = run(new_source, base=alone, root=tmp_path / "again", workers=2)
    assert folder.name == again.name and found(folder) == found(again) != set()


def test_an_id_of_the_base_is_an_error_that_names_it(tmp_path):
    base = run(documents(tmp_path / "one", [[("a", "train", "one text"), ("b", "train", "two texts")]]))
    new = documents(tmp_path / "two", [[("c", "train", "three")], [("b", "train", "something else")]])
    with pytest.raises(ArtifactError, match=r"1 documents to be added have ids that the base .* has already: 'b'"):
        run(new, base=base)


@pytest.mark.parametrize("options", [{"near": False}, {"shingle_words": 5}, {"permutations": 64}, {"seed": 2}])
def test_a_base_of_other_options_is_refused(tmp_path, options):
    base = run(documents(tmp_path / "one", [[("a", "train", "one text")]]), **options)
    new = documents(tmp_path / "two", [[("b", "train", "another text")]])
    with pytest.raises(ArtifactMismatchError, match=rf"expected deduplicate\.{next(iter(options))} .* found"):
        run(new, base=base)
    ingested = documents(tmp_path / "three", [[("c", "train", "text")]])
    with pytest.raises(ArtifactMismatchError, match=r"expected deduplicate\.near True, found None"):
        run(new, base=ingested)


# --- options


@pytest.mark.parametrize(
    "changed",
    [
        {"near": False},
        {"threshold": 0.7},
        {"shingle_words": 5},
        {"permutations": 64},
        {"seed": 2},
        {"bucket_candidates": 7},
    ],
)
def test_every_option_is_in_the_fingerprint(tmp_path, changed):
    source = documents(tmp_path, [[("a", "train", "x")]])
    assert run(source).name != run(source, **changed).name


def test_stages_of_other_documents_are_refused(tmp_path):
    config = DeduplicateConfig()
    one = documents(tmp_path / "one", [[("a", "train", "x")]])
    records = [[("b", "train", "y")], [("c", "train", "z")]]
    two = documents(tmp_path / "two", records)
    signatures = run_stage(SignDocumentsStage(config, one), tmp_path, progress=False)
    duplicates = run_stage(FindDuplicatesStage(config, signatures), tmp_path, progress=False)
    with pytest.raises(ArtifactMismatchError, match=r"expected 1 documents .* found 2"):
        run_stage(DeduplicateStage(config, two, signatures, duplicates), tmp_path, progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.0},
        {"threshold": 1.1},
        {"shingle_words": 0},
        {"permutations": 4},
        {"seed": -1},
        {"bucket_candidates": 0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        DeduplicateConfig(**options)


# --- shingles and signatures


def jaccard(a, b, n):
    sets = []
    for text in (a, b):
        words = words_of(text)
        sets.append({tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def hashes(text, n):
    found, owners = Shingler(n).shingles([text])
    assert not owners.any()
    return found.tolist()


def test_shingles_of_many_texts_and_of_a_long_one_are_those_of_each(monkeypatch):
    monkeypatch.setattr("data_prep.minhash._BATCH", 5)
    texts = [" ".join(prose(i, i)) for i in (0, 1, 3, 12, 13, 14, 40, 0, 2)]
    found, owners = Shingler(13).shingles(texts)
    for i, text in enumerate(texts):
        assert found[owners == i].tolist() == hashes(text, 13)
        assert [x for block in Shingler(13).long_text(text) for x in block.tolist()] == hashes(text, 13)


def test_shingles_are_the_distinct_word_n_grams():
    text = " ".join(random.Random(0).choices("abcdefgh", k=2000))
    words = words_of(text)
    for n in (1, 2, 3, 13):
        distinct = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
        assert len(set(hashes(text, n))) == len(distinct)
    # The order of words counts, and a word that is a run of two others is another word.
    assert not set(hashes("a b", 2)) & set(hashes("b a", 2))
    assert not set(hashes("ab c", 2)) & set(hashes("a bc", 2))
    assert hashes("...", 13) == []


@pytest.mark.parametrize("count", [5, 20, 60, 150])
def test_matches_estimate_the_jaccard_similarity(count):
    a = prose("a", 400)
    b = altered(a, count)
    signatures = Signatures(DeduplicateConfig(permutations=1024)).signatures([" ".join(a), " ".join(b)])
    estimate = matches(signatures[:1], signatures[1:])[0] / 1024
    assert abs(estimate - jaccard(" ".join(a), " ".join(b), 13)) < 4 * 0.5 / 1024**0.5


def test_signatures_are_fixed_and_do_not_depend_on_batches(monkeypatch):
    texts = ["", " ".join(prose("a", 3000)), "one two", "!", " ".join(prose("b", 40))]
    first_found = Signatures(DeduplicateConfig()).signatures(texts)
    monkeypatch.setattr("data_prep.minhash._BATCH", 7)
    monkeypatch.setattr("data_prep.minhash._LONG", 60)
    monkeypatch.setattr(Shingler, "_REMEMBERED", 3)
    signatures = Signatures(DeduplicateConfig())
    signatures.signature("other words before")
    assert np.array_equal(signatures.signatures(texts), first_found)
    assert first_found.dtype == np.uint32 and first_found.shape == (5, 128)
    assert (first_found[[0, 3]] == EMPTY).all() and (first_found[[1, 2, 4]] != EMPTY).all()
    assert first_found[1].tolist() == list(slow_signature(DeduplicateConfig(), texts[1]))
    # Stored signatures and digests must stay comparable: they change only with the version of the stages.
    assert first_found[1][:3].tolist() == GOLDEN
    assert text_digest(" A  b").hex() == text_digest("a\nB").hex() == GOLDEN_DIGEST


GOLDEN = [218055, 53877, 1628995]
GOLDEN_DIGEST = "acc9227cc02e5f5c13e74125bce89499"


def test_normalise():
    assert normalise(" A\u00a0b\n\tC ") == "a b c"
    assert normalise("Stra\u00dfe") == normalise("STRASSE")


# --- bands


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_miss_few_pairs_above_the_threshold(threshold):
    bands, rows = choose_bands(threshold, 128)
    assert bands * rows <= 128

    def proposed(similarity):
        return 1 - (1 - similarity**rows) ** bands

    assert proposed(min(1.0, threshold + 0.1)) > 0.98
    assert proposed(threshold - 0.25) < 0.25
    assert proposed(1.0) == 1.0


def test_bands_agree_with_the_layout_of_datasketch():
    """The same areas, there by adaptive integration."""
    lsh = pytest.importorskip("datasketch.lsh")
    for threshold in (0.5, 0.7, 0.8, 0.9):
        assert choose_bands(threshold, 128) == lsh._optimal_param(threshold, 128, 0.1, 0.9)


def test_band_hashes_are_equal_where_all_their_values_are():
    draw = np.random.default_rng(0)
    signatures = draw.integers(0, 3, (400, 12), dtype=np.uint32)
    hashes = band_hashes(signatures, bands=5, rows=2)
    assert hashes.shape == (5, 400) and hashes.dtype == np.uint64 and (hashes != 0).all()
    for band in range(5):
        values = [tuple(row) for row in signatures[:, 2 * band : 2 * band + 2].tolist()]
        assert len(set(zip(values, hashes[band].tolist(), strict=True))) == len(set(values)) == len(set(hashes[band]))
