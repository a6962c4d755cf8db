"""The lexical embedder."""

import numpy as np
import pytest

from retro.artifacts.manifest import Manifest, write_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError
from retro.config.loader import to_dict
from retro.config.prep_embed import LexicalConfig
from retro.retrieval.embedder import Embedder, check_recipe, open_embedder, write_recipe
from retro.retrieval.lexical import IDF_NAME, LexicalEmbedder, fit_idf

TEXTS = [
    "Computes the cross entropy loss between input logits and target.",
    "The cross_entropy loss of logits, with label smoothing.",
    "Opens a file for reading; raises FileNotFoundError if it is missing.",
    "",
    "Reads a file, line by line, and closes the file again.",
]


def _embedder(**options: int) -> LexicalEmbedder:
    config = LexicalConfig(**{"buckets": 4096, **options})  # type: ignore[arg-type]
    return LexicalEmbedder(config, fit_idf([TEXTS[:2], TEXTS[2:]], config))


def test_alike_texts_are_near_and_vectors_are_unit_or_zero() -> None:
    vectors = _embedder().embed(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (5, 256)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0, 1], atol=1e-6)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > 0.25 > similarity[0, 2]
    assert similarity[2, 4] > similarity[2, 0]


def test_the_projection_keeps_cosines_of_tf_idf_vectors() -> None:
    config = LexicalConfig(dimension=4096, max_ngram=1, buckets=1 << 16)
    generator = np.random.default_rng(0)
    texts = [" ".join(f"word{w}" for w in generator.integers(0, 60, size=25)) for _ in range(40)]
    idf = fit_idf([texts], config)
    vectors = LexicalEmbedder(config, idf).embed(texts)
    # slow tf-idf: "word7" has the terms word, 7 and word7
    bags = []
    for text in texts:
        terms = [t for w in text.split() for t in ("word", w[4:], w)]
        bags.append({t: terms.count(t) for t in terms})
    frequency = {t: sum(t in b for b in bags) for b in bags for t in b}

    def weight(bag: dict[str, int], term: str) -> float:
        return (1 + np.log(bag[term])) * (np.log((1 + len(bags)) / (1 + frequency[term])) + 1) if term in bag else 0.0

    dense = np.array([[weight(b, t) for t in frequency] for b in bags])
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    error = np.abs(vectors @ vectors.T - dense @ dense.T)
    assert error.max() < 0.08


def test_vectors_do_not_depend_on_batching() -> None:
    embedder = _embedder()
    together = embedder.embed(TEXTS * 2000)  # more than one block
    for i, text in enumerate(TEXTS):
        assert embedder.embed([text])[0].tobytes() == together[i].tobytes() == together[i + 9000].tobytes()


def test_every_option_and_the_fitted_idf_are_in_the_identity_and_change_the_vectors() -> None:
    base = _embedder()
    changed = [{"seed": 1}, {"max_ngram": 1}, {"signs": 4}, {"buckets": 2048}, {"dimension": 128}]
    embedders = [base, *(_embedder(**option) for option in changed)]
    embedders.append(LexicalEmbedder(base.config, fit_idf([TEXTS[:3]], base.config)))
    assert len({e.embed(TEXTS).tobytes() for e in embedders}) == len(embedders)
    for other in embedders[1:]:
        with pytest.raises(ArtifactMismatchError, match="another recipe"):
            check_recipe(base.identity(), other.identity(), "here")


def test_idf_does_not_depend_on_blocks() -> None:
    config = LexicalConfig(buckets=4096)
    assert fit_idf([TEXTS], config).tobytes() == fit_idf([[t] for t in TEXTS], config).tobytes()


def _write(folder, embedder: LexicalEmbedder) -> None:
    folder.mkdir()
    np.save(folder / IDF_NAME, embedder.idf)
    recipe = {"kind": "lexical", "identity": embedder.identity(), "options": to_dict(embedder.config)}
    write_recipe(folder, recipe)
    write_manifest(folder, Manifest("embedder", "fit_embedder", 1, "0" * 16, {}, {}, [], [], {}))


def test_opens_from_its_artifact_and_refuses_an_altered_one(tmp_path) -> None:
    embedder = _embedder()
    _write(tmp_path / "embedder", embedder)
    opened = open_embedder(tmp_path / "embedder")
    assert isinstance(opened, Embedder)
    assert opened.identity() == embedder.identity()
    assert opened.embed(TEXTS).tobytes() == embedder.embed(TEXTS).tobytes()
    np.save(tmp_path / "embedder" / IDF_NAME, embedder.idf + 1)
    with pytest.raises(ArtifactMismatchError, match="idf_sha256"):
        open_embedder(tmp_path / "embedder")
    (tmp_path / "embedder" / IDF_NAME).write_bytes(b"no array")
    with pytest.raises(ArtifactCorruptError, match="not readable"):
        open_embedder(tmp_path / "embedder")
