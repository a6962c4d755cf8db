"""Training needs neither faiss nor transformers nor evaluation; its command line is light until it trains."""

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_training_imports_only_what_it_may():
    found = modules_after("import retro.train.run")
    for name in ("faiss", "transformers", "wandb", "tensorboard", "datasets", "scipy", "retro.retrieval"):
        assert name not in found
    assert not {"retro.inference", "retro.eval", "retro.analysis", "data_prep"} & found


def test_help_imports_no_torch():
    for module in ("retro.cli.train", "retro.cli.launch", "launch.__main__", "retro.config.train"):
        found = modules_after(f"import {module}")
        assert not {"torch", "accelerate", "numpy", "tqdm"} & found, module
