"""Sustained load on a real server: latency percentiles and tokens per second, with and without retrieval.

    python benchmarks/serving.py [--checkpoint RUN] [--seconds 8] [--rounds 3] [--record]

`retro serve` runs in a process of its own; clients in this one keep 1, 4 and 16 requests in flight, retrieval on and
off, each for `--seconds` at a time, `--rounds` times in turn after a warm-up, so that other load on the machine hits
all alike. Requests are streamed, with prompts of 3 to about 90 tokens, 16 to 96 new tokens, greedy and sampled. A
round ends when its last request has; none is cut off.

Without --checkpoint the smoke corpus is prepared and the smoke model trained first (half a minute, in a temporary
folder): a model of 0.1 million parameters, so that what is measured is the server, the engine and BM25 search rather
than matrix products. With a checkpoint of your own it is your model and your database.

Reported for each concurrency: requests, errors (expected 0; the exit code is 1 otherwise), new tokens per second, and
p50, p90 and p99 of the time to the first token and to the end. Clients and server share the machine's cores. --record
writes benchmarks/records/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.text_corpus import hardware

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).parent / "records" / "serving.json"
CONCURRENCY = (1, 4, 16)
TEXT = (
    "Return a new event loop object. The socket module provides access to the BSD socket interface on all systems. If "
    "the argument is omitted, the current position is used and the file is truncated there. Raises ValueError if the "
    "stream has been closed, and an auditing event with the name of the file. A decorator for generator functions that "
    "turns them into context managers; the generator must yield exactly one value. "
)


@dataclasses.dataclass
class Outcome:
    """One request: seconds to the first text and to the end, new tokens; error: what went wrong."""

    first: float
    total: float
    tokens: int
    error: str | None = None


def request_body(number: int, retrieve: str) -> bytes:
    """Request `number` of the mix, the same in every run."""
    draw = random.Random(number)
    begin = draw.randrange(len(TEXT) // 2)
    body = {
        "prompt": TEXT[begin : begin + draw.choice((8, 60, 120, 220))],
        "max_tokens": draw.choice((16, 32, 64, 96)),
        "temperature": draw.choice((0, 0.8)),
        "top_p": 0.95,
        "seed": number,
        "retrieve": retrieve,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(body).encode()


async def ask(port: int, body: bytes) -> Outcome:
    """One streamed request over a connection of its own."""
    begin = time.perf_counter()
    first, tokens, error, done = 0.0, 0, None, False
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            error = status.decode("latin-1").strip() or "closed"
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                if line.startswith(b'{"error"'):
                    error = json.loads(line)["error"]["message"]
                continue  # headers, and the frames of chunked coding
            if line.startswith(b"data: [DONE]"):
                done = True
                continue
            data = json.loads(line[6:])
            if "error" in data:
                error = data["error"]["message"]
            elif data["choices"] and not first:
                first = time.perf_counter() - begin
            elif data.get("usage"):
                tokens = data["usage"]["completion_tokens"]
        writer.close()
    except OSError as failure:
        error = str(failure)
    if error is None and not done:
        error = "the stream ended before [DONE]"
    return Outcome(first, time.perf_counter() - begin, tokens, error)


async def load(port: int, concurrency: int, retrieve: str, seconds: float, start: int) -> tuple[list[Outcome], float]:
    """Keep `concurrency` requests in flight for `seconds`; (outcomes, seconds until the last had ended)."""
    outcomes: list[Outcome] = []
    numbers = iter(range(start, 1 << 40))
    begin = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - begin < seconds:
            outcomes.append(await ask(port, request_body(next(numbers), retrieve)))

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return outcomes, time.perf_counter() - begin


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p90, p99 in milliseconds (nearest rank)."""
    ordered = sorted(values)
    return {
        f"p{p}": round(1000 * ordered[min(len(ordered) - 1, -(-len(ordered) * p // 100) - 1)], 2) for p in (50, 90, 99)
    }


def summary(rounds: list[tuple[list[Outcome], float]]) -> dict[str, Any]:
    """What is reported of one concurrency."""
    outcomes = [outcome for found, _ in rounds for outcome in found]
    good = [outcome for outcome in outcomes if outcome.error is None]
    rates = sorted(sum(o.tokens for o in found) / seconds for found, seconds in rounds)
    out: dict[str, Any] = {
        "requests": len(outcomes),
        "errors": len(outcomes) - len(good),
        "tokens_per_second": {"median": round(rates[len(rates) // 2], 1), "rounds": [round(rate, 1) for rate in rates]},
        "requests_per_second": round(len(good) / sum(seconds for _, seconds in rounds), 2),
    }
    if good:
        out["first_token_ms"] = percentiles([outcome.first for outcome in good if outcome.first])
        out["total_ms"] = percentiles([outcome.total for outcome in good])
        out["new_tokens_per_request"] = round(sum(o.tokens for o in good) / len(good), 1)
    return out


@contextmanager
def server(command: list[str]) -> Iterator[int]:
    """A running `retro serve`; gives its port, and ends it with SIGTERM."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        port = 0
        for line in process.stdout:
            if match := re.search(r"endpoint +http://127\.0\.0\.1:(\d+)/", line):
                port = int(match[1])
            if "stop with" in line:
                break
        if not port:
            raise SystemExit("the server did not start")
        yield port
    finally:
        process.terminate()
        if process.wait(60) != 0:
            print(f"the server ended with {process.returncode}", file=sys.stderr)


def smoke_run(folder: Path) -> Path:
    """Run folder of the smoke model, prepared and trained in `folder`."""
    retro = [sys.executable, "-m", "retro.cli.main"]
    subprocess.run([*retro, "prep", "run", "configs/prep/smoke.yaml", f"root={folder / 'data'}"], cwd=ROOT, check=True)
    train = [f"release={folder / 'data' / 'release.json'}", f"run_root={folder / 'runs'}"]
    subprocess.run([*retro, "train", "configs/train/smoke_retro.yaml", *train], cwd=ROOT, check=True)
    return folder / "runs" / "smoke-retro"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a run or checkpoint folder; the smoke model if left out")
    parser.add_argument("--release", type=Path, help="release of the checkpoint, if its run does not tell")
    parser.add_argument("--seconds", type=float, default=8.0, help="of load per round and concurrency")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.checkpoint or smoke_run(Path(folder))
        command = [sys.executable, "-m", "retro.cli.main", "serve", f"checkpoint={run.resolve()}", "port=0"]
        command += [f"slots={arguments.slots}", f"device={arguments.device}", "page=false", "log_level=error"]
        command += [f"release={arguments.release.resolve()}"] if arguments.release else []
        with server(command) as port:
            result = measure(port, arguments.seconds, arguments.rounds)
    result = {
        **hardware("torch", "fastapi", "uvicorn"),
        "checkpoint": "configs/train/smoke_retro.yaml" if arguments.checkpoint is None else run.name,
        "slots": arguments.slots,
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        **result,
    }
    print(json.dumps(result, indent=1))
    if arguments.record:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    errors = sum(entry["errors"] for mode in ("on", "off") for entry in result[f"retrieval_{mode}"].values())
    return 1 if errors else 0


def measure(port: int, seconds: float, rounds: int) -> dict[str, Any]:
    """All concurrencies with retrieval on and off, in turn."""
    found: dict[tuple[str, int], list[tuple[list[Outcome], float]]] = {}
    asyncio.run(load(port, max(CONCURRENCY), "on", min(seconds, 3.0), 0))
    for number in range(rounds):
        for concurrency in CONCURRENCY:
            for mode in ("on", "off"):
                outcome = asyncio.run(load(port, concurrency, mode, seconds, 1000 * (number + 1)))
                found.setdefault((mode, concurrency), []).append(outcome)
                for error in {o.error for o in outcome[0] if o.error}:
                    print(f"concurrency {concurrency}, retrieval {mode}: {error}", file=sys.stderr)
    return {
        f"retrieval_{mode}": {str(c): summary(found[mode, c]) for c in CONCURRENCY if (mode, c) in found}
        for mode in ("on", "off")
    }


if __name__ == "__main__":
    raise SystemExit(main())
