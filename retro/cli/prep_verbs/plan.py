"""`retro prep plan`: what a preparation would cost, with every assumption and its source."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from retro.cli.prep_verbs.wording import count, duration, size
from retro.config.errors import ConfigError
from retro.config.loader import load_config
from retro.config.preparation import PrepConfig

if TYPE_CHECKING:
    from data_prep.cost_model import Plan
    from data_prep.rates import Rates
    from data_prep.workload import Workload


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb. Those of the workload are None where they are not given."""
    add = parser.add_argument
    add("--tokens", type=float, required=True, metavar="N", help="tokens of the corpus, e.g. 1.2e12")
    add("--query-tokens", type=float, metavar="N", help="tokens whose chunks get neighbors (default: the database's)")
    add("--held-out", type=float, metavar="SHARE", help="share of the tokens outside of the database (default 0.01)")
    add("--config", metavar="YAML", help="a preparation whose chunk length, index, storage and so on are taken")
    add("--chunk-length", type=int, metavar="M", help="tokens per chunk (default 64)")
    add(
        "--token-bytes",
        type=int,
        metavar="2|4",
        help="bytes per stored token: 4 from a vocabulary of 65,536 (default 2)",
    )
    add("--dimension", type=int, metavar="D", help="of the embeddings (default 1024)")
    add("--storage", choices=("float16", "float32"), help="of the embeddings (default float16)")
    add("--factory", help="faiss factory string, exact, bm25, or auto (default)")
    add("--memory-budget-gb", type=float, metavar="GB", help="of an automatic index (default 8)")
    add("--train-sample", type=float, metavar="N", help="vectors that the index is trained on")
    add("--probes", type=int, metavar="N", help="lists looked at per query (default: a 1024th, at least 8)")
    add("--keep", type=int, metavar="N", help="neighbors stored per chunk (default 20)")
    add("--workers", type=int, metavar="N", help="CPU cores: elapsed hours are printed too")
    add("--gpus", type=int, metavar="N", help="GPUs; 0: everything on CPU cores")
    add("--rates", default="papers", metavar="SET", help="papers (default), measured, or a YAML file")
    add("--json", action="store_true", help="print JSON for machines")
    add("overrides", nargs="*", default=[], metavar="RATE=NUMBER", help="override rates, e.g. search_ms_per_chunk=6")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    from data_prep.cost_model import plan
    from data_prep.rates import load_rates

    for name, lowest in (("workers", 1), ("gpus", 0)):
        value = getattr(arguments, name)
        if value is not None and value < lowest:
            raise ConfigError(f"--{name}: expected {lowest} or more, found {value}")
    rates = load_rates(arguments.rates, arguments.overrides)
    work = workload(arguments)
    found = plan(work, rates, arguments.workers, arguments.gpus)
    if arguments.json:
        print(json.dumps(to_json(work, rates, found), indent=1, sort_keys=True))
    else:
        for line in lines(work, rates, found, arguments):
            print(line)
    return 0


def workload(arguments: argparse.Namespace) -> Workload:
    """What the arguments ask for: options over the configuration over the defaults. Raises ConfigError."""
    from data_prep.workload import Workload, workload_of

    fields = [field.name for field in dataclasses.fields(Workload)]
    given = {name: getattr(arguments, name) for name in fields if getattr(arguments, name, None) is not None}
    config = None if arguments.config is None else load_config(PrepConfig, arguments.config)
    return Workload(**given) if config is None else workload_of(config, **given)


def lines(work: Workload, rates: Rates, found: Plan, arguments: argparse.Namespace) -> Iterator[str]:
    """The plan for people."""
    yield f"{work.tokens:.4g} tokens in chunks of {work.chunk_length}, rates: {rates.name}"
    yield f"database: {count(found.chunks)} chunks of {count(found.documents)} documents ({work.held_out:.0%} held out)"
    yield f"queries:  {count(found.query_chunks)} chunks"
    yield ""
    timed = arguments.workers is not None
    head = ["stage", "on disk", "GPU-hours", "CPU-hours", "shards", "elapsed"][: 6 if timed else 5]
    rows = [head]
    for stage in found.stages:
        elapsed = "needs --gpus" if stage.hours is None else duration(stage.hours * 3600)
        shards = "files" if stage.shards is None else f"{stage.shards:,}"
        row = [stage.stage, size(round(stage.bytes)), _hours(stage.gpu_hours), _hours(stage.cpu_hours), shards, elapsed]
        rows.append(row[: len(head)])
    known = all(stage.hours is not None for stage in found.stages)
    total = ["total", size(round(found.total("bytes"))), _hours(found.total("gpu_hours"))]
    total += [_hours(found.total("cpu_hours")), "", duration(found.total("hours") * 3600) if known else "needs --gpus"]
    rows.append(total[: len(head)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
    yield ""
    yield from _index_lines(work, found)
    yield ""
    yield "assumptions (change them with NAME=NUMBER or --rates FILE.yaml):"
    width = max(len(name) for name in rates.used)
    for name, rate in sorted(rates.used.items()):
        yield f"  {name:<{width}}  {rate.value:<10.6g}  {rate.source}"


def _index_lines(work: Workload, found: Plan) -> Iterator[str]:
    yield f"index {found.factory}: {size(round(found.index_memory))} in memory"
    if found.reason:
        yield f"  chosen by auto: {found.reason}"
    index = found.index
    if index is None or found.factory == "exact":
        return
    parts = [f"code {index.code:g}"]
    parts += [f"id {index.ids}"] if index.ids else []
    parts += [f"links {index.links:.0f}"] if index.links else []
    yield f"  {index.per_vector:,.0f} bytes per vector ({', '.join(parts)}), {size(index.fixed)} there once"
    if index.table:
        yield f"  {size(index.table)} of them a table that is made when it is opened"
    probes = "" if found.probes is None else f", {found.probes:,} of {index.lists:,} lists looked at per query"
    yield f"  trained on {count(found.train_sample)} vectors{probes}"


def to_json(work: Workload, rates: Rates, found: Plan) -> dict[str, Any]:
    """The plan for machines."""
    index = None
    if found.index is not None:
        index = {**dataclasses.asdict(found.index), "per_vector": found.index.per_vector}
    return {
        "workload": dataclasses.asdict(work),
        "documents": found.documents,
        "chunks": found.chunks,
        "query_chunks": found.query_chunks,
        "factory": found.factory,
        "reason": found.reason,
        "index": index,
        "index_memory_bytes": found.index_memory,
        "train_sample": found.train_sample,
        "probes": found.probes,
        "stages": [dataclasses.asdict(stage) for stage in found.stages],
        "total": {name: found.total(name) for name in ("bytes", "gpu_hours", "cpu_hours")},
        "rates": rates.name,
        "assumptions": {name: rate._asdict() for name, rate in sorted(rates.used.items())},
    }


def _hours(value: float) -> str:
    if value == 0:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
