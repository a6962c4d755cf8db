"""Ten times the documents, the same memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# The memory of the process itself is sampled: what it maps of the signatures is the system's, and given back on demand.
MEASURED = """
import json, random, sys, threading, time
from pathlib import Path
from data_prep.deduplicate import run_deduplicate
from data_prep.ingest import IngestStage
from data_prep.runner import run_stage
from retro.config.prep import DeduplicateConfig, IngestConfig, JsonlConfig

root, count = Path(sys.argv[1]), int(sys.argv[2])
draw = random.Random(0)
vocabulary = [f"word{i}" for i in range(30_000)]
with open(root / "a.jsonl", "w") as file:
    for i in range(count):
        words = draw.choices(vocabulary, k=30) if i % 10 else [f"family{i % 1000}"] * 30 + [str(i % 7)]
        file.write(json.dumps({"text": " ".join(words)}) + chr(10))
config = IngestConfig(reader="jsonl", jsonl=JsonlConfig(folder=str(root)), piece_bytes=2_000_000)
documents = run_stage(IngestStage(config), root / "out", progress=False)


def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


seen = [anonymous()]


def watch():
    while True:
        seen.append(anonymous())
        time.sleep(0.005)


threading.Thread(target=watch, daemon=True).start()
folder = run_deduplicate(DeduplicateConfig(), documents, root / "out", progress=False)
stats = json.loads((folder / "manifest.json").read_text())["stats"]
print(json.dumps({"peak_mib": max(seen), "stats": stats}))
"""


def measure(root: Path, count: int) -> dict:
    root.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MEASURED, str(root), str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_documents(tmp_path):
    small, large = measure(tmp_path / "small", 20_000), measure(tmp_path / "large", 200_000)
    assert large["stats"]["read"] == 200_000 and large["stats"]["dropped_exact"] > 15_000
    # 180,000 documents more: 90 MB of signatures, 20 MB of bands, 6 MB of digests, of which none is held.
    assert large["peak_mib"] < small["peak_mib"] + 30, (small, large)
