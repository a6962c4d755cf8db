"""The files of an encoder: every one that decides a vector is hashed, and none is a pickle."""

from pathlib import Path

import pytest

from retro.config.errors import ConfigError
from retro.config.prep_embed import TransformerConfig
from retro.retrieval.encoder_files import find_encoder

FILES = {
    "model.safetensors": "weights_sha256",
    "model-00001-of-00002.safetensors": "weights_sha256",
    "config.json": "config_sha256",
    "tokenizer.json": "tokenizer_sha256",
    "tokenizer_config.json": "tokenizer_sha256",
    "special_tokens_map.json": "tokenizer_sha256",
    "added_tokens.json": "tokenizer_sha256",
    "vocab.txt": "tokenizer_sha256",
    "vocab.json": "tokenizer_sha256",
    "merges.txt": "tokenizer_sha256",
    "sentencepiece.bpe.model": "tokenizer_sha256",
    "spiece.model": "tokenizer_sha256",
}


def _model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(f"content of {name}")
    return folder


def _hashes(folder: Path) -> dict[str, str]:
    return find_encoder(TransformerConfig(model=str(folder))).hashes()


@pytest.mark.parametrize("name", FILES)
def test_another_content_or_no_file_is_another_encoder(tmp_path: Path, name: str) -> None:
    folder = _model(tmp_path / "model")
    before = _hashes(folder)
    (folder / "README.md").write_text("documentation decides nothing")
    assert _hashes(folder) == before == _hashes(_model(tmp_path / "elsewhere"))
    for change in (lambda path: path.write_text("other"), lambda path: path.unlink()):
        change(folder / name)
        if name == "config.json" and not (folder / name).exists():
            with pytest.raises(ConfigError, match=r"expected config.json, found none"):
                _hashes(folder)
            continue
        after = _hashes(folder)
        assert [key for key in after if after[key] != before[key]] == [FILES[name]]
        before = after


def test_pickled_weights_are_no_weights(tmp_path: Path) -> None:
    folder = _model(tmp_path / "model")
    for path in folder.glob("*.safetensors"):
        path.rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"expected \*.safetensors, found none; pickled weights are not read"):
        _hashes(folder)


def test_a_name_is_fetched_from_the_hub_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the extra `transformers` is not installed")
    folder, asked = _model(tmp_path / "model"), {}

    def fetch(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    found = find_encoder(TransformerConfig(model="somebody/encoder", revision="abc"))
    assert found.folder == folder and found.hashes() == _hashes(folder)
    assert asked["name"] == "somebody/encoder" and asked["revision"] == "abc"
    patterns = asked["allow_patterns"]
    assert {"*.safetensors", "*.safetensors.index.json", "config.json", "merges.txt", "*.model"} <= set(patterns)
    assert not any(pattern in ("*", "*.bin", "*.pt", "*.py") for pattern in patterns)
