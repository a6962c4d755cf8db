"""Installation. The distribution is called retro-pretraining: `retro` alone names a game library on PyPI."""

import os
import platform
import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def faiss_requirement() -> list[str]:
    """faiss-gpu where an NVIDIA driver is present, faiss-cpu elsewhere; RETRO_FAISS=cpu|gpu|none overrides.

    Both distributions own the module `faiss`, so exactly one may be installed; package markers cannot see a GPU,
    but this file runs on the machine it installs to.
    """
    want = os.environ.get("RETRO_FAISS", "auto").lower()
    if want == "auto":
        nvidia = os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None
        want = "gpu" if nvidia and sys.platform == "linux" and platform.machine() == "x86_64" else "cpu"
    choices = {"cpu": ["faiss-cpu>=1.12,<2"], "gpu": ["faiss-gpu>=1.14.3,<2"], "none": []}
    if want not in choices:
        raise SystemExit(f"RETRO_FAISS: expected auto, cpu, gpu or none, found {want!r}")
    return choices[want]


version = re.search(r'__version__ = "([^"]+)"', (HERE / "retro/__init__.py").read_text())
assert version is not None

# The cap on torch keeps a loose request from pulling gigabytes of another build.
core = ["torch>=2.9,<2.14", "numpy>=1.26", "safetensors>=0.4", "pyyaml>=6", "tqdm>=4.66", "accelerate>=1.10"]
prep = [
    "sentencepiece>=0.2",
    "datasets>=4",  # from 4 on no data set brings code that is run
    "zstandard>=0.22",
    "scipy>=1.11",
    "pyarrow>=15",
]
extras = {
    "faiss": faiss_requirement(),
    "wandb": ["wandb>=0.17"],
    "tensorboard": ["tensorboard>=2.16"],
    "ray": ["ray>=2.50"],  # prep on a cluster: executor.type: ray
    "transformers": ["transformers>=4.45", "tokenizers>=0.20"],
    "harness": ["lm-eval>=0.4.13,<0.5"],  # lm-evaluation-harness: retro harness
    "serve": ["fastapi>=0.115", "uvicorn>=0.30,<1", "prometheus-client>=0.20"],
    "dev": [
        "httpx>=0.27",
        "openai>=1.50",  # the client that retro serve is compatible with
        "websocket-client>=1.7",  # speaks to a headless browser
        "datasketch>=2,<3",  # a test compares the layout of bands with its own
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "ruff>=0.6",
        "mypy>=1.11",
        "types-PyYAML",
    ],
}
extras["all"] = sorted({item for name, items in extras.items() if name != "dev" for item in items})

setup(
    name="retro-pretraining",
    version=version.group(1),
    description="Pretraining language models with retrieval: chunk databases, chunked cross-attention, evaluation",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["retro", "retro.*", "data_prep", "data_prep.*", "launch", "launch.*"]),
    package_data={
        "retro": ["py.typed"],
        "retro.analysis": ["templates/*"],
        "retro.data.qa": ["tasks/*.yaml"],
        "retro.eval.harness": ["tasks/*"],
        "retro.serving": ["page/*"],
        "data_prep": ["rate_sets/*.yaml"],
    },
    install_requires=core + prep,
    extras_require=extras,
    entry_points={"console_scripts": ["retro = retro.cli.main:main"]},
)
