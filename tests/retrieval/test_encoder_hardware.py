"""What an encoder's device decides."""

import threading

import pytest
import torch

from retro.config.errors import ConfigError
from retro.config.prep_embed import TransformerConfig
from retro.retrieval import encoder_hardware
from retro.retrieval.encoder_hardware import best_precision, find_device, one_thread_per_batch, resolve

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),  # bf16 would be emulated
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"neon": True, "bf16": True}, "bf16"),
        ({"neon": True, "bf16": False}, "fp32"),
    ],
)
def test_cpus_with_bf16_use_it(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert best_precision(CPU) == expected


def test_older_torch_is_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for avx, amx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert best_precision(CPU) == ("bf16" if avx or amx else "fp32")


def test_gpus_with_bf16_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, n=native: n)
        assert best_precision(CUDA) == ("bf16" if native else "fp32")


def test_only_what_was_left_open_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_hardware, "best_precision", lambda device: "bf16")
    open_config = TransformerConfig(model="m", max_length=512)
    cpu, cuda = resolve(open_config, CPU), resolve(open_config, CUDA)
    assert cpu.precision == cuda.precision == "bf16" and 512 <= cpu.batch_tokens < cuda.batch_tokens
    assert resolve(TransformerConfig(model="m", max_length=9000), CPU).batch_tokens == 9000
    fixed = TransformerConfig(model="m", precision="fp32", batch_tokens=777)
    assert resolve(fixed, CPU) == resolve(fixed, CUDA) == fixed == resolve(fixed, CPU)


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (0, 2):
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert find_device("auto").type == ("cuda" if count else "cpu")
        assert find_device("cpu") == CPU
        with pytest.raises(ConfigError, match=f"'cuda:2' is not here, {count} CUDA devices are"):
            find_device("cuda:2")
    assert find_device("cuda:1") == torch.device("cuda:1")


def test_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyError), one_thread_per_batch() as threads:
            assert threads == 2 and torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
        seen = []

        def embed() -> None:
            torch.set_num_threads(2)
            with one_thread_per_batch() as threads:
                seen.append(threads)

        pair = [threading.Thread(target=embed) for _ in range(8)]
        [t.start() for t in pair]
        [t.join() for t in pair]
        assert seen == [2] * 8 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
