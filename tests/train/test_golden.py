"""20 steps give the losses that were recorded: any change of the numbers is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.train import golden


@pytest.mark.parametrize("kind", ["gpt", "retro"])
def test_losses_are_those_recorded(release: Path, tmp_path: Path, kind: str):
    recorded = json.loads(golden.FILE.read_text())
    assert recorded["command"] == golden.COMMAND
    found = golden.losses(release, tmp_path, retro=kind == "retro")
    assert len(found) == len(recorded[kind]) == golden.STEPS
    same_machine = (
        recorded["torch"] == torch.__version__ and recorded["processor"] == torch.backends.cpu.get_cpu_capability()
    )
    # Full precision holds for one build of torch and one instruction set; processors of one set still choose
    # different kernels, hence the last bits.
    tolerance = 1e-6 if same_machine else 1e-4
    assert found == pytest.approx(recorded[kind], rel=tolerance)
    assert recorded[kind][-1] < 0.8 * recorded[kind][0]


def test_one_changed_number_would_be_noticed():
    recorded = json.loads(golden.FILE.read_text())
    gaps = [abs(a / b - 1) for a, b in zip(recorded["gpt"], recorded["retro"], strict=True)]
    # Even the small effect of random neighbors stands far above the tolerance.
    assert max(gaps) > 1e-3
