"""The import table of the architecture, light imports, and no cycle (docs: who may import whom)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT, all_imports, find_cycle, imports_of, modules, package_of

# package -> packages of the project that it may import, besides itself
TABLE: dict[str, set[str]] = {
    "retro": set(),
    "retro.config": set(),
    "retro.artifacts": {"retro.config"},
    "retro.data": {"retro.artifacts", "retro.config"},
    "retro.retrieval": {"retro.data", "retro.artifacts", "retro.config"},
    "retro.nn": {"retro.config"},
    "retro.model": {"retro.nn", "retro.artifacts", "retro.config"},
    "retro.optim": {"retro.nn", "retro.config"},
    # retro.nn: tensor parallelism replaces layers by their shares
    "retro.train": {"retro.model", "retro.nn", "retro.optim", "retro.data", "retro.artifacts", "retro.config"},
    "retro.inference": {"retro.model", "retro.retrieval", "retro.data", "retro.artifacts", "retro.config"},
    "retro.eval": {
        "retro.inference",
        "retro.retrieval",
        "retro.model",  # for types and counting parameters; below inference, so no cycle
        "retro.data",
        "retro.artifacts",
        "retro.config",
    },
    "retro.serving": {"retro.inference", "retro.retrieval", "retro.data", "retro.artifacts", "retro.config"},
    "retro.analysis": {"retro.artifacts", "retro.config"},
    "data_prep": {"retro.config", "retro.artifacts", "retro.data", "retro.retrieval"},
    "launch": {"retro.config", "retro.artifacts"},
}
# Entry points that are the command line under another name.
COMPOSITION_ROOTS = {"data_prep.__main__", "retro.__main__"}
# distribution's import name -> the only packages whose files may import it
HEAVY: dict[str, set[str]] = {
    "torch": {
        "retro.nn",
        "retro.model",
        "retro.optim",
        "retro.train",
        "retro.inference",
        "retro.data",
        "retro.retrieval",
        "retro.eval",
    },
    "faiss": {"retro.retrieval"},
    "transformers": {"retro.retrieval", "retro.data", "data_prep"},
    "scipy": {"retro.retrieval", "retro.analysis", "data_prep"},
    "wandb": {"retro.train"},
    "tensorboard": {"retro.train"},
    "accelerate": {"retro.train"},
    "datasets": {"data_prep", "retro.eval"},
    "lm_eval": {"retro.eval"},
    "datasketch": set(),
    "ray": {"data_prep"},
    "pyarrow": {"data_prep"},
    "sentencepiece": {"retro.data", "data_prep"},
    "tokenizers": {"retro.data", "data_prep"},
    "matplotlib": {"retro.analysis"},
    "fastapi": {"retro.serving"},
    "starlette": {"retro.serving"},
    "uvicorn": {"retro.serving"},
    "pydantic": {"retro.serving"},
    "prometheus_client": {"retro.serving"},
}
# Never at a module's top level: the module must be importable without them.
LAZY = ("faiss", "transformers", "wandb", "tensorboard", "datasets", "scipy", "matplotlib", "ray")

IMPORTS = all_imports()
FILES = modules()


def where(item) -> str:
    return f"{FILES[item.module].relative_to(ROOT)}:{item.line}: {item.module} imports {item.target}"


def test_every_package_is_in_the_table():
    packages = {package_of(module) for module in FILES} - {"retro.cli"}
    assert packages <= set(TABLE), f"not in the table: {sorted(packages - set(TABLE))}"


@pytest.mark.parametrize("package", sorted(TABLE))
def test_the_import_table(package):
    allowed = TABLE[package] | {package}
    wrong = [
        where(item)
        for item in IMPORTS
        if package_of(item.module) == package
        and item.module not in COMPOSITION_ROOTS
        and item.target.split(".")[0] in ("retro", "data_prep", "launch")
        and package_of(item.target) not in allowed | {"retro"}  # `from retro import __version__` is light
    ]
    assert wrong == []


def test_configuration_needs_the_standard_library_and_yaml_only():
    allowed = set(sys.stdlib_module_names) | {"retro", "yaml"}
    wrong = [
        where(i) for i in IMPORTS if package_of(i.module) == "retro.config" and i.target.split(".")[0] not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("name", sorted(HEAVY))
def test_heavy_libraries_stay_where_they_are_needed(name):
    users = [i for i in IMPORTS if i.target.split(".")[0] == name or i.target.startswith(f"torch.utils.{name}")]
    assert [where(i) for i in users if package_of(i.module) not in HEAVY[name]] == []


@pytest.mark.parametrize("name", LAZY)
def test_optional_libraries_are_imported_where_they_are_used(name):
    wrong = [where(i) for i in IMPORTS if i.target.split(".")[0] == name and not (i.lazy or i.typing)]
    assert wrong == []


def test_torch_is_loaded_before_faiss():
    """Both bring an OpenMP; loaded the other way round some builds crash."""
    for module, path in FILES.items():
        own = [i for i in imports_of(module, path, set(FILES)) if not i.typing]
        faiss = [i.line for i in own if i.target.split(".")[0] == "faiss"]
        torch = [i.line for i in own if i.target.split(".")[0] == "torch"]
        assert not faiss or (torch and min(torch) < min(faiss)), f"{path}: import torch before faiss"


def test_no_cycle_between_modules():
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for item in IMPORTS:
        if not item.typing and item.target in FILES and item.target != item.module:
            graph[item.module].add(item.target)
    assert find_cycle(graph) == []


def test_no_cycle_between_packages():
    graph: dict[str, set[str]] = {}
    for item in IMPORTS:
        source, target = package_of(item.module), package_of(item.target)
        if item.module not in COMPOSITION_ROOTS and source != target and target in TABLE and source != "retro":
            graph.setdefault(source, set()).add(target)
    assert find_cycle(graph) == []


def test_the_cycle_finder_finds_cycles():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_reader_of_imports_sees_all_forms(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(
        "import a.b, c\nfrom d import e\nfrom . import f\nfrom ..g import h\n"
        "if TYPE_CHECKING:\n    import i\ndef j():\n    import k\n"
    )
    found = imports_of("p.q.m", path, {"d.e", "p.q.f"})
    assert [(i.target, i.lazy, i.typing) for i in found] == [
        ("a.b", False, False),
        ("c", False, False),
        ("d.e", False, False),
        ("p.q.f", False, False),
        ("p.g", False, False),
        ("i", False, True),
        ("k", True, False),
    ]


def test_no_drawer_for_odds_and_ends():
    odd = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [str(p) for p in FILES.values() if odd & set(p.relative_to(ROOT).with_suffix("").parts)] == []


def test_nothing_unpickles():
    """pickle, joblib, shelve, marshal, eval and exec have no place here; torch.load only with weights_only=True."""
    import ast

    names = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    wrong = [where(i) for i in IMPORTS if i.target.split(".")[0] in names]
    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if (
                name in ("eval", "exec")
                or (name.endswith("torch.load") and keywords.get("weights_only") != "True")
                or (name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False")
            ):
                wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []


def run_python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize(
    "code",
    [
        "import retro",
        "from retro.cli.main import main; assert main(['--help']) == 0",
        "from retro.cli.main import main; assert main(['nonsense']) == 2",
        "from retro.cli.main import main; assert main(['train', 'nowhere.yaml']) == 2",
        "from retro.cli.main import main; assert main(['report', 'nowhere']) == 3",
        "import retro.config.train, retro.config.preparation, retro.config.evaluation, retro.config.launch",
        "import launch.__main__, launch.plan, launch.local",
        "import retro.artifacts.release",
    ],
)
def test_what_is_light_loads_nothing_heavy(code):
    heavy = ["torch", "faiss", "transformers", "wandb", "datasets", "accelerate", "pandas", "scipy", "sentencepiece"]
    done = run_python(
        f"import sys\n{code}\nfound = [n for n in {heavy!r} if n in sys.modules]\nassert not found, found"
    )
    assert done.returncode == 0, done.stderr


def test_reports_are_made_without_torch():
    done = run_python(
        "import sys, pkgutil, importlib, retro.analysis\n"
        "for m in pkgutil.walk_packages(retro.analysis.__path__, 'retro.analysis.'): importlib.import_module(m.name)\n"
        "assert 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


TRAINING_STEP = """
import sys
for name in ("faiss", "wandb", "transformers", "scipy", "datasets", "sentencepiece", "pandas", "datasketch",
             "tensorboard", "pyarrow", "matplotlib"):
    sys.modules[name] = None  # importing it raises ImportError
import torch
import retro.model
from retro.config.model import EncoderConfig, ModelConfig
from retro.optim.adamw import build_adamw
torch.set_num_threads(1)
torch.manual_seed(0)
config = ModelConfig(vocab_size=50, width=16, num_layers=2, num_heads=2, chunk_length=8,
                     cross_attention_layers=(2,), encoder=EncoderConfig(num_layers=1))
model = retro.model.RetroModel(config)
tokens = torch.randint(0, 50, (2, 24))
neighbors = torch.randint(0, 50, (2, 3, 2, 16))
optimizer = build_adamw(model, learning_rate=1e-2, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8)
losses = []
for _ in range(3):
    out = model(tokens, neighbors, torch.ones_like(neighbors, dtype=torch.bool), targets_BN=tokens.roll(-1, 1),
                loss_mask_BN=torch.ones_like(tokens, dtype=torch.bool))
    out.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(out.loss.item())
assert losses[2] < losses[0], losses
"""


def test_a_model_is_built_and_trained_with_torch_alone():
    done = run_python(TRAINING_STEP)
    assert done.returncode == 0, done.stderr


def test_training_never_imports_what_searches():
    done = run_python(
        "import sys\n"
        "for name in ('faiss', 'wandb', 'transformers', 'scipy', 'datasets'): sys.modules[name] = None\n"
        "import retro.train.run\n"
        "found = [m for m in sys.modules if m.startswith(('retro.retrieval', 'retro.inference', 'retro.eval'))]\n"
        "assert not found, found"
    )
    assert done.returncode == 0, done.stderr
