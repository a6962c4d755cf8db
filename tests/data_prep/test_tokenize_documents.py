"""The stages from documents to chunks: the same result however the corpus is cut into files and shards."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import chunk, document_shards, tokenizer_sample, train_tokenizer
from data_prep.chunk import ChunkStage
from data_prep.runner import Executor, execute_shard, run_stage
from data_prep.stage import Stage
from data_prep.tokenize_documents import TokenizeStage, order_rank
from data_prep.tokenizer_sample import find_candidates, keep_best, read_sample
from data_prep.train_tokenizer import TokenizerStage
from retro.artifacts.manifest import Manifest, open_manifest, write_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactError, ArtifactMismatchError, ConfigError
from retro.config.prep_tokens import ChunkConfig, SentencePieceConfig, TokenizerConfig, TokensConfig
from retro.data import token_writer
from retro.data.chunk_store import open_chunk_store
from retro.data.document import Document, DocumentWriter, document_files, document_key, read_documents
from retro.data.token_store import open_token_store
from retro.data.tokenizer import open_tokenizer
from tests.data.builders import TEXTS, write_artifact, write_real_tokenizer
from tests.data_prep.test_runner import content


def make_documents(count: int = 40) -> list[Document]:
    generator = random.Random(0)
    splits = ["train"] * 3 + ["valid", "test", "database_only"]
    return [
        Document(
            id=f"mod.f{i}",
            text=f"{i} " + generator.choice(TEXTS)[: generator.randrange(1, 90)],
            title=f"Title \u00e9 {i}",
            source=f"a.jsonl:{i}",
            group="g",
            split=splits[i % len(splits)],
        )
        for i in range(count)
    ]


def write_documents(folder: Path, documents: list[Document], files: int) -> Path:
    folder.mkdir(parents=True)
    shards = []
    for i, part in enumerate(np.array_split(np.arange(len(documents)), files)):
        with DocumentWriter(folder, f"{i:05d}") as writer:
            for j in part:
                writer.write(documents[j])
        shards.append((f"{i:05d}", len(part)))
    return write_artifact(folder, "documents", {}, {}, shards)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_real_tokenizer(tmp_path_factory.mktemp("tok") / "tokenizer")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("docs") / "documents", make_documents(), files=5)


def test_documents_become_begin_text_end(tmp_path: Path, corpus: Path, tokenizer: Path) -> None:
    config = TokensConfig(splits=("valid", "test"), shard_bytes=1)
    folder = run_stage(TokenizeStage(config, corpus, tokenizer), tmp_path, progress=False)
    store, encoder = open_token_store(folder), open_tokenizer(tokenizer)
    expected = [d for d in make_documents() if d.split in ("valid", "test")]
    assert store.num_documents == len(expected) and len(list(folder.glob("tokens-*.bin"))) == 5
    for i, document in enumerate(expected):
        start, stop = store.document_offsets[i : i + 2]
        tokens = store.tokens(int(start), int(stop)).tolist()
        assert tokens[0] == encoder.bos_id and tokens[-1] == encoder.eos_id
        assert encoder.decode(tokens[1:-1]) == document.text
        assert store.document_record(i) == {n: getattr(document, n) for n in ("id", "title", "source", "group")}
        assert int(store.document_keys[i]) == document_key(document.id)
    assert store.tokenizer_fingerprint == encoder.fingerprint
    assert (store.vocab_size, store.bos_id, store.eos_id) == (encoder.vocab_size, encoder.bos_id, encoder.eos_id)


def logical_chunks(root: Path, documents: Path, tokenizer: Path, seed: int = 0, **sizes: int) -> list[tuple[str, list]]:
    """(document id, tokens) of every chunk in order: what everything after sees."""
    shard_bytes, shard_documents = sizes.get("shard_bytes", 1 << 20), sizes.get("shard_documents", 1 << 20)
    config = TokensConfig(seed=seed, shard_bytes=shard_bytes)
    tokens = run_stage(TokenizeStage(config, documents, tokenizer), root, progress=False)
    chunks = ChunkConfig(chunk_length=8, shard_documents=shard_documents)
    store = open_chunk_store(run_stage(ChunkStage(chunks, tokens), root, progress=False))
    store.verify()
    ids = np.arange(store.num_chunks)
    rows, mask = store.gather(ids, 0)
    owners = store.documents(ids).tolist()
    return [
        (store.tokens.document_record(owner)["id"], row[real].tolist())
        for owner, row, real in zip(owners, rows, mask, strict=True)
    ]


def test_order_is_a_seeded_shuffle_that_neither_files_nor_shards_change(tmp_path: Path, tokenizer: Path) -> None:
    documents = make_documents()
    shuffled = list(documents)
    random.Random(1).shuffle(shuffled)
    first = logical_chunks(tmp_path / "a", write_documents(tmp_path / "da", documents, 5), tokenizer)
    whole = write_documents(tmp_path / "db", shuffled, 1)
    assert logical_chunks(tmp_path / "b", whole, tokenizer) == first
    small = write_documents(tmp_path / "dc", shuffled, 7)
    assert logical_chunks(tmp_path / "c", small, tokenizer, shard_bytes=1, shard_documents=3) == first
    order = list(dict.fromkeys(name for name, _ in first))
    train = [d.id for d in documents if d.split == "train"]
    assert order == sorted(train, key=lambda name: order_rank(0, name)) != train
    assert logical_chunks(tmp_path / "a", tmp_path / "da", tokenizer, seed=1) != first


def stages(corpus: Path, tokenizer: Path) -> list[Callable[[Path], Stage]]:
    def chunk(root: Path) -> Stage:
        tokens = run_stage(TokenizeStage(TokensConfig(shard_bytes=1), corpus, tokenizer), root, progress=False)
        return ChunkStage(ChunkConfig(chunk_length=8, shard_documents=4), tokens)

    return [lambda root: TokenizeStage(TokensConfig(shard_bytes=1), corpus, tokenizer), chunk]


@pytest.mark.parametrize("which", [0, 1], ids=["tokenize", "chunk"])
def test_workers_and_interruptions_do_not_change_a_byte(
    tmp_path: Path, corpus: Path, tokenizer: Path, which: int
) -> None:
    build = stages(corpus, tokenizer)[which]
    clean = content(run_stage(build(tmp_path / "one"), tmp_path / "one", progress=False))
    assert len(build(tmp_path / "one").plan()) > 2
    if which == 0:
        assert content(run_stage(build(tmp_path), tmp_path / "two", Executor(2), progress=False)) == clean
    stage = build(tmp_path / "cut")
    folder = tmp_path / "cut" / stage.folder_name()
    (folder / "shards").mkdir(parents=True)
    execute_shard(stage, folder, stage.plan()[1])  # killed after one shard
    (folder / ".tmp-00000-1").mkdir()
    assert content(run_stage(stage, tmp_path / "cut", progress=False)) == clean


def test_split_order_is_not_part_of_the_identity_but_seed_and_splits_are(corpus: Path, tokenizer: Path) -> None:
    def identity(**options: object) -> str:
        return TokenizeStage(TokensConfig(**options), corpus, tokenizer).fingerprint()  # type: ignore[arg-type]

    assert identity(splits=("valid", "test")) == identity(splits=("test", "valid"))
    assert len({identity(), identity(seed=1), identity(splits=("test",)), identity(shard_bytes=5)}) == 4


def test_what_cannot_be_tokenized_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    train_only = [d for d in make_documents() if d.split == "train"]
    folder = write_documents(tmp_path / "train", train_only, 2)
    with pytest.raises(ConfigError, match="no document of the splits test"):
        run_stage(TokenizeStage(TokensConfig(splits=("test",)), folder, tokenizer), tmp_path, progress=False)
    twice = write_documents(tmp_path / "twice", [*train_only, train_only[3]], 2)
    with pytest.raises(ArtifactError, match="two documents have one id"):
        run_stage(TokenizeStage(TokensConfig(), twice, tokenizer), tmp_path, progress=False)
    with pytest.raises(ArtifactMismatchError, match="expected an artifact of kind 'tokenizer', found 'documents'"):
        TokenizeStage(TokensConfig(), folder, folder)
    for wrong in ({"splits": ()}, {"splits": ("a",)}, {"shard_bytes": 0}):
        with pytest.raises(ConfigError):
            TokensConfig(**wrong)  # type: ignore[arg-type]
    for wrong_chunk in ({"chunk_length": 0}, {"shard_documents": 0}):
        with pytest.raises(ConfigError, match="expected 1 or more"):
            ChunkConfig(**wrong_chunk)


def test_a_split_without_documents_in_some_files(tmp_path: Path, tokenizer: Path) -> None:
    documents = sorted(make_documents(), key=lambda d: d.split)
    folder = write_documents(tmp_path / "documents", documents, 6)
    config = TokensConfig(splits=("valid",), shard_bytes=1)
    tokens = run_stage(TokenizeStage(config, folder, tokenizer), tmp_path, progress=False)
    assert min(f.stat().st_size for f in tokens.glob("tokens-*.bin")) == 0
    store = open_chunk_store(run_stage(ChunkStage(ChunkConfig(chunk_length=8), tokens), tmp_path, progress=False))
    store.verify()
    _, mask = store.gather(np.arange(store.num_chunks), 0)
    assert int(mask.sum()) == store.tokens.num_tokens > 0


# The tokenizer's training sample.


def slow_sample(documents: list[Document], config: SentencePieceConfig) -> list[str]:
    """The sample as it is defined: whole documents by hash of (seed, id) until there are enough characters."""

    def rank(document: Document) -> int:
        text = f"{config.seed}\0{document.id}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"retro-sample").digest(), "little")

    texts: list[str] = []
    for document in sorted((d for d in documents if d.split in config.splits and d.text), key=rank):
        room = config.max_characters - sum(map(len, texts))
        if room > 0:
            texts.append(document.text[:room])
    return texts


def stage_sample(folder: Path, config: SentencePieceConfig, files_per_shard: int = 1) -> list[str]:
    """The sample as the stage finds it: candidates shard by shard, then the best of all."""
    files = document_files(folder)
    candidates = []
    for first in range(0, len(files), files_per_shard):
        shard = range(first, min(first + files_per_shard, len(files)))
        found = find_candidates(
            ((f, i, document) for f in shard for i, document in enumerate(read_documents(files[f]))), config
        )
        assert int(found["characters"][:-1].sum()) < config.max_characters
        candidates.append(found)
    chosen = keep_best(candidates, config.max_characters)
    return read_sample(files, chosen, config.max_characters)


@pytest.mark.parametrize("characters", [1, 57, 200, 10**6])
@pytest.mark.parametrize("batch", [3, 1 << 14])
def test_the_sample_is_the_one_of_the_definition_however_the_corpus_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, characters: int, batch: int
) -> None:
    monkeypatch.setattr(tokenizer_sample, "_BATCH", batch)
    documents = make_documents()
    shuffled = list(documents)
    random.Random(3).shuffle(shuffled)
    folders = [write_documents(tmp_path / "a", documents, 5), write_documents(tmp_path / "b", shuffled, 3)]
    samples = []
    for seed in (0, 1):
        config = SentencePieceConfig(max_characters=characters, splits=("train", "valid"), seed=seed)
        expected = slow_sample(documents, config)
        assert characters == 10**6 or sum(map(len, expected)) == characters
        for folder in folders:
            for per_shard in (1, 2, 9):
                assert stage_sample(folder, config, per_shard) == expected
        samples.append(expected)
    assert samples[0] != samples[1]


def test_a_corpus_without_documents_of_the_splits_trains_nothing(tmp_path: Path) -> None:
    folder = write_documents(tmp_path / "train", [d for d in make_documents() if d.split == "train"], 2)
    config = TokenizerConfig(train=SentencePieceConfig(splits=("test",)))
    with pytest.raises(ConfigError, match="no document of the splits test"):
        run_stage(TokenizerStage(config, folder), tmp_path, progress=False)


def test_the_sample_of_an_exchanged_corpus_is_refused(tmp_path: Path) -> None:
    config = SentencePieceConfig()
    folder = write_documents(tmp_path / "a", make_documents(), 1)
    other = write_documents(tmp_path / "b", list(reversed(make_documents())), 1)
    file = document_files(folder)[0]
    chosen = find_candidates(((0, i, document) for i, document in enumerate(read_documents(file))), config)
    with pytest.raises(ArtifactCorruptError, match="not the documents that were sampled"):
        read_sample(document_files(other), chosen, config.max_characters)


def test_training_is_sharded_and_its_result_does_not_depend_on_it(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TokenizerConfig(train=SentencePieceConfig(vocab_size=310, max_characters=700))
    whole = run_stage(TokenizerStage(config, corpus), tmp_path / "a", progress=False)
    monkeypatch.setattr(train_tokenizer, "_SHARD_BYTES", 1)
    assert len(TokenizerStage(config, corpus).plan()) == 5
    cut = run_stage(TokenizerStage(config, corpus), tmp_path / "b", progress=False)
    assert len(list(cut.glob("sample-*.npy"))) == 5 and len(list(whole.glob("sample-*.npy"))) == 1
    assert (whole / "tokenizer.model").read_bytes() == (cut / "tokenizer.model").read_bytes()
    assert open_manifest(whole).stats == open_manifest(cut).stats


@pytest.mark.parametrize("size", [1, 300, 2000, None])
@pytest.mark.parametrize("part", [40, 1 << 20])
def test_shards_of_documents_hold_every_document_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None, part: int
) -> None:
    """Whole files, several of them, or parts of one: whatever the sizes."""
    monkeypatch.setattr(document_shards, "_SMALLEST_PART", part)
    documents = make_documents()
    folder = write_documents(tmp_path / "documents", documents, 3)
    shards = document_shards.document_shards(folder, size)
    found = [d for shard in shards for d in document_shards.read_shard(folder, shard.spec)]
    assert found == documents
    if size == 1:
        assert len(shards) >= (12 if part == 40 else 3)
    whole = document_shards.document_shards(folder, size, whole_files=True)
    assert all(start == 0 and stop is None for shard in whole for _, start, stop in shard.spec["parts"])
    assert [d for shard in whole for d in document_shards.read_shard(folder, shard.spec)] == documents


def test_a_small_corpus_gives_several_shards_and_a_large_one_not_too_many(tmp_path: Path) -> None:
    def count(*sizes: int) -> int:
        folder = tmp_path / str(sum(sizes) + len(sizes))
        folder.mkdir()
        files = [{"name": f"documents-{i:05d}.jsonl.zst", "bytes": s, "sha256": ""} for i, s in enumerate(sizes)]
        shards = [{"name": "00000", "rows": 1, "files": files, "stats": {}}]
        write_manifest(folder, Manifest("documents", "ingest", 1, "d" * 16, {}, {}, shards, [], {}))
        return len(document_shards.document_shards(folder, None))

    mib = 1 << 20
    assert count(7 * mib) == 7  # 20 MB of text in one file
    assert count(*[mib // 2] * 14) == 7
    assert 60 <= count(*[11 * mib] * 300) <= 70
    assert 3900 <= count(*[11 * mib] * 100_000) <= 4400  # a trillion bytes
    assert count(100) == 1


def test_training_stage_makes_a_lossless_tokenizer_and_the_same_bytes_again(tmp_path: Path, corpus: Path) -> None:
    config = TokenizerConfig(train=SentencePieceConfig(vocab_size=310))
    first = run_stage(TokenizerStage(config, corpus), tmp_path / "a", progress=False)
    second = run_stage(TokenizerStage(config, corpus), tmp_path / "b", progress=False)
    assert content(first) == content(second)
    tokenizer = open_tokenizer(first)
    assert tokenizer.lossless and tokenizer.vocab_size == 310 and tokenizer.fingerprint in first.name
    for document in make_documents():
        assert tokenizer.decode(tokenizer.encode(document.text)) == document.text
    other = TokenizerConfig(train=SentencePieceConfig(vocab_size=310, seed=1))
    assert TokenizerStage(other, corpus).fingerprint() != tokenizer.fingerprint


@given(st.lists(st.text(), min_size=4, max_size=4))
def test_records_are_json_whatever_the_names(names: list[str]) -> None:
    names = [name.encode("utf-8", "replace").decode("utf-8") for name in names]
    title, source, group = names[1:]
    document = Document(names[0], "text", title, source, group, "train")
    expected = {"id": names[0], "title": title, "source": source, "group": group}
    line = json.dumps(expected, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"
    assert token_writer._record(document) == line


def test_a_tokenizer_that_loses_text_is_said_to(tmp_path: Path, corpus: Path, tokenizer: Path) -> None:
    """Bytes are counted from tokens, so bits per byte are those of the normalised text."""
    lossy = shutil.copytree(tokenizer, tmp_path / "lossy")
    config = lossy / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"lossless": true', '"lossless": null'))
    manifest = json.loads((lossy / "manifest.json").read_text())
    manifest["fingerprint"] = "f" * 16
    for entry in manifest["files"]:
        entry["bytes"] = (lossy / entry["name"]).stat().st_size
    (lossy / "manifest.json").write_text(json.dumps(manifest))
    for folder, lossless in ((tokenizer, True), (lossy, False)):
        stage = TokenizeStage(TokensConfig(), corpus, folder)
        made = run_stage(stage, tmp_path, progress=False)
        found = open_manifest(made)
        assert found.stats["lossless"] is lossless and open_token_store(made).lossless is lossless
        words = "not lossless, so bits per byte will be approximate"
        assert (words in stage.summary(found.stats, found.rows)) is not lossless


def test_blocks_of_documents_and_their_number_per_shard_do_not_change_the_chunks(
    tmp_path: Path, corpus: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = run_stage(TokenizeStage(TokensConfig(), corpus, tokenizer), tmp_path, progress=False)
    stage = ChunkStage(ChunkConfig(chunk_length=8), tokens)
    assert [shard.spec for shard in stage.plan()] == [{"start": 0, "stop": 21}]
    whole = content(run_stage(stage, tmp_path / "a", progress=False))
    monkeypatch.setattr(chunk, "_BLOCK", 3)
    assert content(run_stage(stage, tmp_path / "b", progress=False)) == whole
    monkeypatch.setattr(chunk, "_FEWEST", 2)
    monkeypatch.setattr(chunk, "_SHARDS", 5)
    assert [shard.spec["start"] for shard in stage.plan()] == [0, 5, 10, 15, 20]
    monkeypatch.setattr(chunk, "_MOST", 3)
    assert len(stage.plan()) == 7
    cut = open_chunk_store(run_stage(stage, tmp_path / "c", progress=False))
    cut.verify()
    starts = np.concatenate([np.load(path) for path in sorted(cut.folder.glob("starts-*.npy"))])
    assert starts.tolist() == np.load(next((tmp_path / "a").glob("chunk-*/starts-00000.npy"))).tolist()


def test_offsets_that_do_not_rise_are_not_chunked(tmp_path: Path, corpus: Path, tokenizer: Path) -> None:
    tokens = run_stage(TokenizeStage(TokensConfig(), corpus, tokenizer), tmp_path, progress=False)
    path = tokens / "offsets-00000.npy"
    offsets = np.load(path)
    offsets[5] = offsets[4]
    np.save(path, offsets)
    with pytest.raises(ArtifactCorruptError, match="offsets that do not rise"):
        run_stage(ChunkStage(ChunkConfig(), tokens), tmp_path, progress=False)
