"""The transformer embedder, with a tiny randomly initialised BERT."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from retro.artifacts.manifest import Manifest, write_manifest
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.config.loader import to_dict
from retro.config.prep_embed import TransformerConfig
from retro.retrieval.embedder import open_embedder, write_recipe

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

from retro.retrieval.transformer import TransformerEmbedder  # noqa: E402

TEXTS = ["the cat sat", "A dog", "", "the cat sat on the mat and the dog sat on the cat", "unknownword", "cat " * 40]


def make_bert(folder: Path, seed: int = 0) -> Path:
    """Save a BERT of width 32 with a vocabulary of a few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "sat", "on", "mat", "and"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


def _embedder(bert: Path, **options: object) -> TransformerEmbedder:
    fields = {"model": str(bert), "max_length": 32, "precision": "fp32", "device": "cpu", **options}
    return TransformerEmbedder(TransformerConfig(**fields))  # type: ignore[arg-type]


def _slow(bert: Path, text: str, max_length: int) -> np.ndarray:
    """One text at a time: run the model, add up positions 1 .. length - 2, divide by their number."""
    model = transformers.AutoModel.from_pretrained(bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    ids = tokenizer(text)["input_ids"]
    if len(ids) > max_length:
        ids = ids[: max_length - 1] + ids[-1:]
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    total = np.zeros(hidden.shape[1])
    for position in range(1, len(ids) - 1):
        total += hidden[position]
    return total / max(len(ids) - 2, 1)


@pytest.mark.parametrize("batch_tokens", [32, 4096])
def test_pooling_is_the_mean_without_special_tokens(bert: Path, batch_tokens: int) -> None:
    vectors = _embedder(bert, batch_tokens=batch_tokens).embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 32) and vectors.dtype == np.float32
    for vector, text in zip(vectors, TEXTS, strict=True):
        np.testing.assert_allclose(vector, _slow(bert, text, 32), atol=2e-6)
    assert not vectors[2].any()  # no real token: the zero vector
    assert np.abs(vectors[0]).max() > 0.1


def test_options_have_an_effect_and_are_in_the_identity(bert: Path, tmp_path: Path) -> None:
    base = _embedder(bert)
    others = [
        _embedder(bert, max_length=8),
        _embedder(bert, normalise=True),
        _embedder(bert, precision="bf16"),
        _embedder(make_bert(tmp_path / "other", seed=1)),
    ]
    vectors = base.embed(TEXTS)
    for other in others:
        assert other.identity() != base.identity()
        assert not np.array_equal(other.embed(TEXTS), vectors)
    np.testing.assert_allclose(np.linalg.norm(others[1].embed(TEXTS), axis=1), [1, 1, 0, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(others[2].embed(TEXTS), vectors, atol=0.05)
    assert _embedder(bert, metric="ip").metric == "ip" != base.metric
    assert _embedder(bert).identity() == base.identity()
    assert str(bert) not in str(base.identity())
    assert base.embed([]).shape == (0, 32)


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    bert = make_bert(tmp_path / "bert")
    config = TransformerConfig(model=str(bert), max_length=32)
    artifact = tmp_path / "embedder"
    artifact.mkdir()
    options = {k: v for k, v in to_dict(config).items() if k != "device"}
    recipe = {"kind": "transformer", "identity": TransformerEmbedder(config).identity(), "options": options}
    write_recipe(artifact, recipe)
    write_manifest(artifact, Manifest("embedder", "fit_embedder", 1, "0" * 16, {}, {}, [], [], {}))
    assert open_embedder(artifact, device="cpu").dimension == 32
    torch.manual_seed(5)
    model = transformers.AutoModel.from_pretrained(bert)
    model.embeddings.word_embeddings.weight.data[7] += 1
    model.save_pretrained(bert)
    with pytest.raises(ArtifactMismatchError, match="weights_sha256"):
        open_embedder(artifact)


def test_wrong_models_are_one_clear_line(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"folder '.*nowhere' not found"):
        _embedder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot be had from the hub"):
        TransformerEmbedder(TransformerConfig(model="nobody/no-such-model"))
    with pytest.raises(ConfigError, match="expected at most 64"):
        _embedder(bert, max_length=65)
    with pytest.raises(ConfigError, match=r"transformer\.model is required"):
        from retro.config.prep_embed import EmbedConfig

        EmbedConfig(kind="transformer")


def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bert(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    with pytest.raises(ConfigError, match="custom code"):
        _embedder(folder)
    assert asked == [] and not (tmp_path / "ran").exists()
