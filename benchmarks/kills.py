"""Random kills of a training run: are the final weights those of the undisturbed run, and what is lost each time?

    python benchmarks/kills.py [--kills 100] [--agent-kills 10] [--seed 0] [--steps 600] [--record]

Two processes (gloo) train a tiny RETRO with dropout, a checkpoint every 5 steps and a validation every 40. At random
moments (uniform over the start-up and a second or two of training; the seed decides) `kill -9` strikes one of them, and
what is left 0 to 0.3 s later, or both at once; then they are started again. When the run is finished, all tensors of
its last checkpoint (weights, optimizer, generators) and its metrics without the clock must be, bit for bit, those of a
run that nothing happened to; and another run begins until the number of kills is reached. The runs take turns: ddp and
fsdp, asynchronous and synchronous checkpoints.

The processes are forked from one that has imported everything, so that kills strike training and not imports. With
--agent-kills so many more are done by the whole way: `retro launch`, torchrun's elastic agent, which starts the ranks
again when one was killed; where all are, the agent dies too and the command is given again.

Reported: kills by what they struck, and steps that had to be made again per kill. `lost` is at most the interval of
checkpoints for synchronous ones, and one more interval for asynchronous ones. --record writes
benchmarks/records/kills.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Before torch: the ranks are many for few cores.
os.environ.update({"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"})
sys.path.insert(0, str(Path(__file__).parents[1]))  # the builders of the tests are not installed

import numpy as np

from benchmarks.text_corpus import hardware
from tests.train import releases
from tests.train.kills import Agent, Forked, Kill, kill_until_finished, result

RECORD = Path(__file__).parent / "records" / "kills.json"
EVERY, WORLD, WINDOW = 5, 2, 1.5
KINDS = [(strategy, background) for strategy in ("ddp", "fsdp") for background in (True, False)]


def settings(release: Path, root: Path, name: str, steps: int, strategy: str, background: bool) -> dict[str, Any]:
    """Fields of a run."""
    fields = {"steps": steps, "log_every": 1, "checkpoint_every": EVERY, "validate_every": 8 * EVERY}
    values = releases.settings(release, root, name=name, async_checkpoints=background, **fields)
    values["model"]["dropout"] = 0.1
    values["parallel"] = {"strategy": strategy}
    return values


def finish(file: Path, folder: Path, log: Path) -> tuple[float, float]:
    """A run that nothing happens to: seconds (until its first step, in all)."""
    life = Forked(file, WORLD, log)
    started, first = time.monotonic(), None
    while not life.is_over():
        if first is None and (folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").stat().st_size:
            first = time.monotonic() - started
        time.sleep(0.005)
    whole = time.monotonic() - started
    return (whole if first is None else first), whole


def summary(kills: list[Kill]) -> dict[str, Any]:
    """Counts and what was lost."""
    lost = [kill.lost for kill in kills if kill.where != "start-up"]
    return {
        "kills": len(kills),
        "of_one": sum(kill.who == "one" for kill in kills),
        "of_all": sum(kill.who == "all" for kill in kills),
        **{where.replace("-", "_"): sum(k.where == where for k in kills) for where in ("start-up", "step", "saving")},
        "lost_steps_mean": round(float(np.mean(lost)), 2) if lost else 0.0,
        "lost_steps_max": max(lost, default=0),
    }


def measure(root: Path, kills: int, agent_kills: int, seed: int, steps: int) -> dict[str, Any]:
    """All runs; raises SystemExit for one that ends otherwise than the undisturbed one."""
    (root / "release").mkdir()
    release = releases.build_release(root / "release")
    generator = np.random.default_rng(seed)
    clean: dict[str, Any] = {}
    seconds: list[tuple[float, float]] = []
    for strategy in ("ddp", "fsdp"):
        name = f"undisturbed-{strategy}"
        file = releases.write_yaml(root / f"{name}.yaml", settings(release, root, name, steps, strategy, True))
        seconds.append(finish(file, root / name, root / f"{name}.log"))
        clean[strategy] = result(root / name)
        print(f"{name}: first step after {seconds[-1][0]:.1f} s, finished after {seconds[-1][1]:.1f} s", flush=True)
    start_up = float(np.median([first for first, _ in seconds]))
    done: dict[str, list[Kill]] = {"forked": [], "agent": []}
    runs = {"forked": 0, "agent": 0}
    for way, wanted in (("forked", kills), ("agent", agent_kills)):
        while len(done[way]) < wanted:
            strategy, background = KINDS[runs[way] % len(KINDS)]
            name = f"{way}-{runs[way]}"
            values = settings(release, root, name, steps, strategy, background)
            file = releases.write_yaml(root / f"{name}.yaml", values)
            begin = Forked if way == "forked" else Agent
            life = begin(file, WORLD, root / f"{name}.log")
            imports = 0.0 if way == "forked" else 8.0
            try:
                found = kill_until_finished(
                    life,
                    root / name,
                    generator,
                    start_up=start_up + imports,
                    window=WINDOW + start_up,
                    most=wanted - len(done[way]),
                )
            except BaseException:
                life.kill_all()
                raise
            sums, rows = result(root / name)
            if sums != clean[strategy][0]:
                raise SystemExit(f"{name}: other tensors than {clean[strategy][0]}: {sums}")
            if rows != clean[strategy][1]:
                raise SystemExit(f"{name}: other metrics than the undisturbed run")
            done[way] += found
            runs[way] += 1
            print(f"{name} ({strategy}, async={background}): equal; {summary(found)}", flush=True)
    return {
        "seed": seed,
        "steps": steps,
        "processes": WORLD,
        "checkpoint_every": EVERY,
        "start_up_s": round(start_up, 2),
        "runs": runs,
        "equal": True,  # otherwise we are not here
        "all": summary(done["forked"] + done["agent"]),
        **{way: summary(found) for way, found in done.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--agent-kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.kills, options.agent_kills, options.seed, options.steps)
    found["seconds"] = round(time.monotonic() - started)
    print(json.dumps(found, indent=1))
    if options.record:
        RECORD.write_text(json.dumps({"hardware": hardware("torch", "numpy"), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
