"""The stages fit_embedder and embed."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_prep import embed as embed_module
from data_prep.embed import EmbedStage, FitEmbedderStage
from data_prep.runner import Executor, run_stage
from data_prep.stage import Stage
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, RetroError
from retro.config.prep_embed import EmbedConfig, LexicalConfig, TransformerConfig
from retro.data.chunk_store import open_chunk_store
from retro.data.tokenizer import Tokenizer
from retro.retrieval import encoder_hardware
from retro.retrieval.chunk_text import chunk_token_rows, decode_rows, open_chunk_tokenizer
from retro.retrieval.embedder import open_embedder, read_recipe
from retro.retrieval.lexical import IDF_NAME, fit_idf
from retro.retrieval.vectors import open_vectors
from tests.data_prep.prepared import WORDS as CORPUS_WORDS
from tests.data_prep.prepared import prepare

pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

from tests.retrieval.tiny_bert import WORDS, make_bert, set_word


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prepare(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "bert", words=[*WORDS, *CORPUS_WORDS])


def _config(bert: Path, **options: object) -> EmbedConfig:
    fields = {"model": str(bert), "max_length": 32, "device": "cpu", **options}
    return EmbedConfig(kind="transformer", transformer=TransformerConfig(**fields), shard_chunks=60)  # type: ignore[arg-type]


def _run(stage: Stage, root: Path, workers: int = 1) -> Path:
    return run_stage(stage, root, Executor(workers), progress=False)


def _embeddings(config: EmbedConfig, chunks: Path, root: Path, workers: int = 1) -> Path:
    return _run(EmbedStage(config, chunks, _run(FitEmbedderStage(config, chunks), root, workers)), root, workers)


def _texts(chunks: Path) -> list[str]:
    store = open_chunk_store(chunks)
    return decode_rows(open_chunk_tokenizer(chunks), chunk_token_rows(store, np.arange(store.num_chunks)))


def _checksums(folder: Path) -> list[tuple[str, str]]:
    return [(entry["name"], entry["sha256"]) for entry in open_manifest(folder).all_files()]


def test_vectors_are_those_of_the_texts_and_the_bytes_of_any_worker_count(
    chunks: dict[str, Path], bert: Path, tmp_path: Path
) -> None:
    config = _config(bert, precision="fp32")
    one = _embeddings(config, chunks["train"], tmp_path / "one")
    two = _embeddings(config, chunks["train"], tmp_path / "two", workers=2)
    assert one.name == two.name and _checksums(one) == _checksums(two)
    manifest = open_manifest(one)
    assert len(manifest.shards) > 2
    texts = _texts(chunks["train"])
    embedder = open_embedder(one.parent / f"fit_embedder-{manifest.inputs['embedder']['fingerprint']}", "cpu")
    found = open_vectors(one).gather(np.arange(len(texts)))
    np.testing.assert_allclose(found, embedder.embed(texts), atol=1e-6)
    empty = [i for i, text in enumerate(texts) if not text.strip()]
    assert manifest.stats["zero_vectors"] == int((~found.any(axis=1)).sum()) >= len(empty)
    assert manifest.config["recipe"] == embedder.identity()


def test_a_shard_made_again_has_the_same_bytes(chunks: dict[str, Path], bert: Path, tmp_path: Path) -> None:
    config = _config(bert)
    folder = _embeddings(config, chunks["train"], tmp_path)
    before = _checksums(folder)
    (folder / "manifest.json").unlink()
    (folder / "vectors-00001.npy").unlink()
    kept = (folder / "vectors-00000.npy").stat().st_mtime_ns
    assert _embeddings(config, chunks["train"], tmp_path) == folder
    assert _checksums(folder) == before and (folder / "vectors-00000.npy").stat().st_mtime_ns == kept


def test_text_is_decoded_once_and_without_special_tokens(
    chunks: dict[str, Path], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[np.ndarray]] = []
    original = Tokenizer.decode_batch
    monkeypatch.setattr(Tokenizer, "decode_batch", lambda self, rows: seen.append(list(rows)) or original(self, rows))
    _embeddings(_config(bert), chunks["train"], tmp_path)
    store, tokenizer = open_chunk_store(chunks["train"]), open_chunk_tokenizer(chunks["train"])
    rows = [row for call in seen for row in call]
    assert len(rows) == store.num_chunks
    specials = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    stored = chunk_token_rows(store, np.arange(store.num_chunks))
    assert any(specials & set(row.tolist()) for row in stored)
    for row, whole in zip(rows, stored, strict=True):
        assert row.tolist() == [token for token in whole.tolist() if token not in specials]


def test_what_the_configuration_leaves_open_is_resolved_once_and_recorded(
    chunks: dict[str, Path], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(bert)
    assert config.transformer.precision == "auto" and config.transformer.batch_tokens == 0
    folders = {}
    for precision in ("bf16", "fp32"):
        monkeypatch.setattr(encoder_hardware, "best_precision", lambda device, p=precision: p)
        folder = folders[precision] = _run(FitEmbedderStage(config, chunks["train"]), tmp_path / precision)
        recipe = read_recipe(folder)
        assert recipe["identity"]["precision"] == recipe["options"]["precision"] == precision
        assert recipe["identity"]["batch_tokens"] == recipe["options"]["batch_tokens"] > 0
    # Where only fp32 is, an embedder that was fitted elsewhere stays what it is.
    assert open_embedder(folders["bf16"], "cpu").identity()["precision"] == "bf16"
    stages = [EmbedStage(config, chunks["train"], folder) for folder in folders.values()]
    assert stages[0].fingerprint() != stages[1].fingerprint()


def test_the_device_is_of_speed_only_and_decides_who_gets_a_gpu(
    chunks: dict[str, Path], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = _run(FitEmbedderStage(_config(bert), chunks["train"]), tmp_path)
    found = {}
    for device in ("auto", "cpu", "cuda", "cuda:1"):
        config = _config(bert, device=device)
        stages = [FitEmbedderStage(config, chunks["train"]), EmbedStage(config, chunks["train"], embedder)]
        assert stages[0].fingerprint() == FitEmbedderStage(_config(bert), chunks["train"]).fingerprint()
        assert stages[1].fingerprint() == EmbedStage(_config(bert), chunks["train"], embedder).fingerprint()
        for shown in ([], ["0", "1"]):
            monkeypatch.setattr(embed_module, "visible_gpus", lambda shown=shown: shown)
            assert stages[0].gpus == stages[1].gpus
            found[device, len(shown)] = stages[0].gpus
    assert found == {
        ("auto", 0): 0,
        ("auto", 2): 1,
        ("cpu", 0): 0,
        ("cpu", 2): 0,
        ("cuda", 0): 1,
        ("cuda", 2): 1,
        ("cuda:1", 0): 0,
        ("cuda:1", 2): 0,
    }
    lexical = EmbedConfig(lexical=LexicalConfig(buckets=4096))
    assert FitEmbedderStage(lexical, chunks["train"]).gpus == 0


def test_other_weights_in_the_same_folder_are_another_embedder(chunks: dict[str, Path], tmp_path: Path) -> None:
    bert = make_bert(tmp_path / "bert", words=[*WORDS, *CORPUS_WORDS])
    before = FitEmbedderStage(_config(bert), chunks["train"]).fingerprint()
    set_word(bert, "cat", 0.5)
    assert FitEmbedderStage(_config(bert), chunks["train"]).fingerprint() != before


def test_a_vector_that_is_not_finite_names_its_chunk(chunks: dict[str, Path], tmp_path: Path) -> None:
    bert = make_bert(tmp_path / "bert", words=[*WORDS[:-1], *CORPUS_WORDS])
    texts = _texts(chunks["train"])
    word = next(w for w in CORPUS_WORDS if 0 < sum(w in t.split() for t in texts) < len(texts) / 2)
    from tests.retrieval import tiny_bert

    vocabulary = [*WORDS[:-1], *CORPUS_WORDS]
    model = tiny_bert.transformers.AutoModel.from_pretrained(bert)
    model.embeddings.word_embeddings.weight.data[vocabulary.index(word)] = float("nan")
    model.save_pretrained(bert)
    config = dataclasses.replace(_config(bert), shard_chunks=25)
    embedder = _run(FitEmbedderStage(config, chunks["train"]), tmp_path)
    stage = EmbedStage(config, chunks["train"], embedder)
    bad = [i for i, text in enumerate(texts) if word in text.split()]
    shard = stage.plan()[bad[-1] // 25]
    first = next(i for i in bad if i >= shard.spec["start"])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RetroError, match=rf"chunk {first} of .*: its vector is not finite .* try precision=fp32"):
        stage.run_shard(shard, out)


def test_vectors_too_large_for_half_precision_are_refused(chunks: dict[str, Path], tmp_path: Path) -> None:
    bert = make_bert(tmp_path / "bert", words=[*WORDS, *CORPUS_WORDS])
    from tests.retrieval import tiny_bert

    model = tiny_bert.transformers.AutoModel.from_pretrained(bert)
    model.encoder.layer[-1].output.LayerNorm.weight.data *= 1e6
    model.save_pretrained(bert)
    config = dataclasses.replace(_config(bert), storage="float16")
    embedder = _run(FitEmbedderStage(config, chunks["train"]), tmp_path)
    with pytest.raises(RetroError, match=r"float16 cannot hold .*e\+06, which the vectors reach; set storage=float32"):
        _run(EmbedStage(config, chunks["train"], embedder), tmp_path)


def test_models_that_are_no_text_encoders_are_found_when_fitted(chunks: dict[str, Path], tmp_path: Path) -> None:
    bert = make_bert(tmp_path / "bert")
    (bert / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RetroError, match="cannot be loaded from"):
        _run(FitEmbedderStage(_config(bert), chunks["train"]), tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "lexical"}', '{"kind": 1, "identity": {}, "options": {}}'])
def test_a_recipe_that_is_none_is_one_line(chunks: dict[str, Path], bert: Path, tmp_path: Path, content: str) -> None:
    embedder = _run(FitEmbedderStage(_config(bert), chunks["train"]), tmp_path)
    path = embedder / "recipe.json"
    size = path.stat().st_size
    path.write_text(content + " " * (size - len(content)))
    with pytest.raises(ArtifactCorruptError, match=r"recipe\.json: not a recipe"):
        EmbedStage(_config(bert), chunks["train"], embedder)


def test_frequencies_are_counted_on_chunks_spread_over_the_database(chunks: dict[str, Path], tmp_path: Path) -> None:
    texts = _texts(chunks["train"])
    for sample in (17, len(texts) - 1, len(texts), 10**6):
        lexical = LexicalConfig(dimension=64, buckets=4096, fit_chunks=sample)
        folder = _run(FitEmbedderStage(EmbedConfig(lexical=lexical), chunks["train"]), tmp_path)
        used = min(sample, len(texts))
        assert open_manifest(folder).rows == used
        picked = [texts[i * len(texts) // used] for i in range(used)]
        assert np.load(folder / IDF_NAME).tobytes() == fit_idf([picked], lexical).tobytes()
        assert len(set(range(used))) == len({i * len(texts) // used for i in range(used)})


def test_lexical_recipes_hold_their_options(chunks: dict[str, Path], tmp_path: Path) -> None:
    config = EmbedConfig(lexical=LexicalConfig(dimension=64, buckets=4096), shard_chunks=50)
    folder = _run(FitEmbedderStage(config, chunks["train"]), tmp_path)
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["kind"] == "lexical" and recipe["options"]["fit_chunks"] == LexicalConfig().fit_chunks
    embeddings = _run(EmbedStage(config, chunks["train"], folder), tmp_path)
    found = open_vectors(embeddings).gather(np.arange(open_manifest(embeddings).rows))
    assert found.tobytes() == open_embedder(folder).embed(_texts(chunks["train"])).tobytes()


def test_nothing_is_printed_while_a_model_is_loaded(
    chunks: dict[str, Path], bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logging.captureWarnings(True)
    try:
        _embeddings(_config(bert), chunks["train"], tmp_path)
    finally:
        logging.captureWarnings(False)
    assert capfd.readouterr() == ("", "")


def test_shards_by_default_are_a_64th_within_bounds(
    chunks: dict[str, Path], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(_config(bert), shard_chunks=None)
    embedder = _run(FitEmbedderStage(config, chunks["train"]), tmp_path)
    stage, rows = EmbedStage(config, chunks["train"], embedder), 0
    monkeypatch.setattr(embed_module, "open_manifest", lambda path: SimpleNamespace(rows=rows))
    for rows, shards, first in ((0, 1, 0), (5000, 2, 4096), (640_000, 64, 10_000), (10**7, 306, 32768)):
        plan = stage.plan()
        assert (len(plan), plan[0].spec) == (shards, {"start": 0, "stop": first}) and plan[-1].spec["stop"] == rows
    with pytest.raises(RetroError, match="shard_chunks: expected 1 or more, or null, found 0"):
        EmbedConfig(shard_chunks=0)
