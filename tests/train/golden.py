"""Makes tests/golden/train_losses.json: python -m tests.train.golden

Run it only when numbers are meant to change, and say so in the commit.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from retro.train.run import train
from tests.train import releases

FILE = Path(__file__).resolve().parents[1] / "golden" / "train_losses.json"
COMMAND = "OMP_NUM_THREADS=1 python -m tests.train.golden"
STEPS = 20


def losses(release: Path, root: Path, retro: bool) -> list[float]:
    """Loss of each of 20 steps on a CPU, float32, one thread."""
    name = "golden-retro" if retro else "golden-gpt"
    fields = {"steps": STEPS, "log_every": 1, "validate_every": 0, "checkpoint_every": 0}
    run = train(releases.config(release, root, retro, name=name, **fields)).folder
    return [row["loss"] for row in releases.metrics(run, "train")]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        release = releases.build_release(root / "release")
        content = {
            "command": COMMAND,
            "torch": torch.__version__,
            "processor": torch.backends.cpu.get_cpu_capability(),
            "gpt": losses(release, root, retro=False),
            "retro": losses(release, root, retro=True),
        }
    FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
