"""The transformer embedder, with a tiny randomly initialised BERT."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from retro.artifacts.manifest import Manifest, write_manifest
from retro.config.errors import ArtifactMismatchError, ConfigError, RetroError
from retro.config.loader import to_dict
from retro.config.prep_embed import EmbedConfig, TransformerConfig
from retro.retrieval.embedder import Embedder, check_recipe, open_embedder, write_recipe

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

from retro.retrieval.transformer import TransformerEmbedder  # noqa: E402
from tests.retrieval.tiny_bert import WORDS, make_bert, make_roberta, set_word  # noqa: E402

TEXTS = ["the cat sat", "A dog", "", "the cat sat on the mat and the dog sat on the cat", "unknownword", "cat " * 40]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


def _config(bert: Path, **options: object) -> TransformerConfig:
    fields = {"model": str(bert), "max_length": 32, "precision": "fp32", "device": "cpu", **options}
    return TransformerConfig(**fields)  # type: ignore[arg-type]


def _embedder(bert: Path, **options: object) -> TransformerEmbedder:
    return TransformerEmbedder(_config(bert, **options))


def _slow(bert: Path, text: str, max_length: int, pooling: str = "mean") -> np.ndarray:
    """One text at a time: run the model, add up the positions that count, divide by their number."""
    model = transformers.AutoModel.from_pretrained(bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    ids = tokenizer(text)["input_ids"]
    if len(ids) > max_length:
        ids = ids[: max_length - 1] + ids[-1:]
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    if len(ids) == 2:
        return np.zeros(hidden.shape[1])
    first, last = {"mean": (1, len(ids) - 1), "mean_all": (0, len(ids)), "cls": (0, 1)}[pooling]
    total = np.zeros(hidden.shape[1])
    for position in range(first, last):
        total += hidden[position]
    return total / (last - first)


@pytest.mark.parametrize("pooling", ["mean", "mean_all", "cls"])
@pytest.mark.parametrize("batch_tokens", [32, 4096])
def test_pooling(bert: Path, batch_tokens: int, pooling: str) -> None:
    vectors = _embedder(bert, batch_tokens=batch_tokens, pooling=pooling).embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 32) and vectors.dtype == np.float32
    for vector, text in zip(vectors, TEXTS, strict=True):
        np.testing.assert_allclose(vector, _slow(bert, text, 32, pooling), atol=2e-6)
    assert not vectors[2].any()  # no real token: the zero vector
    assert np.abs(vectors[0]).max() > 0.1


def test_options_have_an_effect_and_are_in_the_identity(bert: Path, tmp_path: Path) -> None:
    base = _embedder(bert)
    others = [
        _embedder(bert, max_length=8),
        _embedder(bert, normalise=True),
        _embedder(bert, precision="bf16"),
        _embedder(bert, pooling="mean_all"),
        _embedder(bert, pooling="cls"),
        _embedder(make_bert(tmp_path / "other", seed=1)),
    ]
    vectors = base.embed(TEXTS)
    for other in others:
        assert other.identity() != base.identity()
        assert not np.array_equal(other.embed(TEXTS), vectors)
    np.testing.assert_allclose(np.linalg.norm(others[1].embed(TEXTS), axis=1), [1, 1, 0, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(others[2].embed(TEXTS), vectors, atol=0.05)
    assert _embedder(bert, metric="ip").metric == "ip" != base.metric
    assert _embedder(bert, batch_tokens=64).identity() != base.identity()
    assert _embedder(bert).identity() == base.identity()
    assert str(bert) not in str(base.identity())
    assert base.identity()["lower_case"] and base.identity()["mask_prob"] == 0.0
    assert base.embed([]).shape == (0, 32)
    assert isinstance(base, Embedder)


def test_a_query_with_another_recipe_is_refused_whatever_the_difference(bert: Path) -> None:
    identity = _embedder(bert).identity()
    for field in identity:
        changed = {**identity, field: "other"}
        with pytest.raises(ArtifactMismatchError, match=rf"another recipe \({field}: expected"):
            check_recipe(identity, changed, "here")
        with pytest.raises(ArtifactMismatchError, match=field):
            check_recipe({k: v for k, v in identity.items() if k != field}, identity, "here")


def test_bytes_do_not_depend_on_threads(bert: Path) -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS[5:], size=n)) for n in generator.integers(1, 40, size=200)]
    before = torch.get_num_threads()
    found = {}
    try:
        for precision in ("fp32", "bf16"):
            for threads in (1, 3):
                torch.set_num_threads(threads)
                embedder = _embedder(bert, batch_tokens=256, precision=precision)
                found[precision, threads] = embedder.embed(texts).tobytes()
                assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found["fp32", 1] == found["fp32", 3] != found["bf16", 1] == found["bf16", 3]


def test_batches_run_one_per_thread(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, used, before = _embedder(bert, batch_tokens=32), set(), torch.get_num_threads()
    original = embedder._encoder

    def encoder():
        encode = original()

        def spy(batch):
            used.add((threading.get_ident(), torch.get_num_threads()))
            return encode(batch)

        return spy

    monkeypatch.setattr(embedder, "_encoder", encoder)
    torch.set_num_threads(2)
    try:
        embedder.embed(TEXTS * 20)
    finally:
        torch.set_num_threads(before)
    assert {threads for _, threads in used} == {1} and threading.get_ident() not in {ident for ident, _ in used}


def test_blocks_are_embedded_one_by_one_and_read_ahead(bert: Path) -> None:
    embedder = _embedder(bert)
    blocks = [TEXTS, [], TEXTS[::-1], ["cat"]]
    read = []

    def reading():
        for block in blocks:
            read.append(threading.current_thread())
            yield block

    found = list(embedder.embed_blocks(reading()))
    assert [f.tobytes() for f in found] == [embedder.embed(block).tobytes() for block in blocks]
    assert threading.current_thread() not in read

    def failing():
        yield TEXTS
        raise RetroError("the disk is gone")

    with pytest.raises(RetroError, match="the disk is gone"):
        list(embedder.embed_blocks(failing()))


def test_what_looks_like_a_special_token_in_a_text_is_text(bert: Path) -> None:
    embedder = _embedder(bert)
    rows = embedder._tokenise(["cat [SEP] dog"])
    words = [WORDS[i] for i in rows.ids]
    assert words == ["[CLS]", "cat", "[UNK]", "[UNK]", "[UNK]", "dog", "[SEP]"]
    assert rows.special.tolist() == [True, *[False] * 5, True]


def test_a_vector_that_is_not_finite_is_an_error_naming_the_text(tmp_path: Path) -> None:
    bert = make_bert(tmp_path / "bert")
    set_word(bert, "dog", float("nan"))
    embedder = _embedder(bert)
    assert np.isfinite(embedder.embed(["the cat"])).all()
    with pytest.raises(RetroError, match=r"text 1: its vector is not finite \(1 of 3"):
        embedder.embed(["the cat", "the dog", "a mat"])


def _write(artifact: Path, config: TransformerConfig) -> None:
    artifact.mkdir()
    embedder = TransformerEmbedder(config)
    options = {k: v for k, v in to_dict(embedder.config).items() if k != "device"}
    write_recipe(artifact, {"kind": "transformer", "identity": embedder.identity(), "options": options})
    write_manifest(artifact, Manifest("embedder", "fit_embedder", 1, "0" * 16, {}, {}, [], [], {}))


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    bert = make_bert(tmp_path / "bert")
    _write(tmp_path / "embedder", _config(bert))
    assert open_embedder(tmp_path / "embedder", device="cpu").dimension == 32
    set_word(bert, "cat", 1.0)
    with pytest.raises(ArtifactMismatchError, match="weights_sha256"):
        open_embedder(tmp_path / "embedder")


def test_a_moved_model_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert = make_bert(tmp_path / "bert")
    _write(tmp_path / "embedder", _config(bert))
    vectors = open_embedder(tmp_path / "embedder", device="cpu").embed(TEXTS)
    (tmp_path / "models").mkdir()
    bert.rename(tmp_path / "models" / "bert")
    with pytest.raises(ConfigError, match=r"folder '.*bert' not found.* set RETRO_MODELS"):
        open_embedder(tmp_path / "embedder")
    monkeypatch.setenv("RETRO_MODELS", f"{tmp_path / 'nowhere'}:{tmp_path / 'models'}")
    assert open_embedder(tmp_path / "embedder", device="cpu").embed(TEXTS).tobytes() == vectors.tobytes()
    set_word(tmp_path / "models" / "bert", "cat", 1.0)
    with pytest.raises(ArtifactMismatchError, match="weights_sha256"):
        open_embedder(tmp_path / "embedder")


def test_wrong_models_are_one_clear_line(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"folder '.*nowhere' not found"):
        _embedder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot be had from the hub"):
        TransformerEmbedder(TransformerConfig(model="nobody/no-such-model"))
    with pytest.raises(ConfigError, match="expected at most 64"):
        _embedder(bert, max_length=65)
    with pytest.raises(ConfigError, match="'cuda:99' is not here"):
        _embedder(bert, device="cuda:99")
    with pytest.raises(ConfigError, match="device: expected auto, cpu, cuda or cuda:N, found 'gpu'"):
        _embedder(bert, device="gpu")
    with pytest.raises(ConfigError, match=r"transformer\.model is required"):
        EmbedConfig(kind="transformer")
    damaged = make_bert(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"cannot be loaded from .*damaged: ") as error:
        _embedder(damaged).embed(["cat"])
    assert "\n" not in str(error.value)


def test_positions_that_are_counted_from_two_are_known(tmp_path: Path) -> None:
    roberta = make_roberta(tmp_path / "roberta")
    long = ["cat " * 100]
    assert _embedder(roberta, max_length=62).embed(long).any()
    with pytest.raises(ConfigError, match="expected at most 62, the encoder's positions, found 63"):
        _embedder(roberta, max_length=63).embed(long)


def test_encoder_with_decoder_is_refused(bert: Path, tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "both")
    transformers.T5Config(vocab_size=20, d_model=32, d_ff=48, num_layers=1, num_heads=2).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(ConfigError, match="is an encoder and a decoder; choose an encoder"):
        _embedder(folder)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_vectors_of_the_cpu(bert: Path) -> None:
    texts = TEXTS * 100
    gpu = _embedder(bert, device="cuda", batch_tokens=256)
    np.testing.assert_allclose(gpu.embed(texts), _embedder(bert).embed(texts), atol=2e-4)
    blocks = [texts, texts[::-1], texts[:7]]
    first = [block.tobytes() for block in gpu.embed_blocks(blocks)]
    assert first == [block.tobytes() for block in gpu.embed_blocks(blocks)]
