"""Closing steps of tokenize and chunk: memory does not depend on the number of documents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from data_prep.external_sort import sort_array
from tests.data.builders import write_real_tokenizer

# Half a million documents of two tokens, in 50 shards: 12 MB of places to sort, with 2 MB of memory.
CODE = """
import sys
from pathlib import Path
import numpy as np
from data_prep.tokenize_documents import TokenizeStage
from retro.artifacts.manifest import Manifest, write_manifest
from retro.config.prep_tokens import TokensConfig
from retro.data.npy_file import NpyReader

root, rows, shards = Path(sys.argv[1]), 10_000, 50
(root / "documents").mkdir()
write_manifest(root / "documents", Manifest("documents", "ingest", 1, "d" * 16, {}, {}, [], [], {}))
folder, out = root / "tokens", root / "out"
folder.mkdir(), out.mkdir()
generator = np.random.default_rng(0)
records = []
for i in range(shards):
    for part in ("keys", "ranks"):
        np.save(folder / f"{part}-{i:05d}.npy", generator.integers(0, 2**64, rows, dtype=np.uint64))
    records.append({"name": f"{i:05d}", "rows": rows, "files": [], "stats": {"tokens": 1, "text_bytes": 1}})
stage = TokenizeStage(TokensConfig(), root / "documents", root / "tokenizer")
stage._tokenizer
TokenizeStage.memory_bytes = 2 << 20

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

import threading
before, peak, going = anonymous(), 0, True
def watch():
    global peak
    while going:
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
stats = stage.finish(folder, out, records)
going = False
thread.join()
assert stats["documents"] == rows * shards
assert sorted(p.name for p in out.iterdir()) == ["order.npy"], list(out.iterdir())
print(peak - before)
"""


def test_ordering_half_a_million_documents_takes_no_more_memory_than_it_may(tmp_path: Path) -> None:
    write_real_tokenizer(tmp_path / "tokenizer")
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    order = np.load(tmp_path / "out" / "order.npy")
    parts = {
        part: np.concatenate([np.load(path) for path in sorted((tmp_path / "tokens").glob(f"{part}-*.npy"))])
        for part in ("ranks", "keys")
    }
    expected = np.lexsort((parts["keys"], parts["ranks"]))
    assert np.array_equal(order, expected) and np.array_equal(sort_array(order), np.arange(500_000))
    assert int(done.stdout) < 6_000, "KiB of growth; all at once would be 12,000 and more"
