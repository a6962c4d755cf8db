"""Evaluation of a model trained on packed documents: it sees each document alone, as in training."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
import yaml

from retro.artifacts.manifest import describe_file, read_manifest, write_manifest
from retro.config.evaluation import EvalConfig
from retro.data.chunk_store import open_chunk_store
from retro.data.dataset import RetroDataset
from retro.data.neighbor_table import open_neighbor_table
from retro.data.tokenizer import open_tokenizer
from retro.eval.responses import RESPONSES_NAME
from retro.eval.runner import evaluate
from retro.eval.tasks.perplexity import PerplexityTask
from retro.inference.checkpoint import open_checkpoint
from tests.eval.workspace import CHUNK, NEIGHBORS, SEQUENCE


def packed_run(workspace, folder, where):
    """The workspace's run as if it had been trained with packing: documents, told in one of the two places."""
    shutil.copytree(workspace.retro, folder)
    checkpoint = folder / "checkpoints" / "step_000010"
    path = folder / "config.yaml" if where == "run" else checkpoint / "config.json"
    settings = {**yaml.safe_load(path.read_text()), "packing": "documents"}
    path.write_text(json.dumps(settings))  # JSON is YAML
    manifest = read_manifest(checkpoint)
    files = [describe_file(checkpoint / entry["name"]) for entry in manifest.files]
    write_manifest(checkpoint, dataclasses.replace(manifest, files=files))
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / RESPONSES_NAME).read_text().splitlines()]


def open_dataset(workspace, retrieval, **options):
    split = workspace.release.split("test")
    queries, database = open_chunk_store(split.chunks), open_chunk_store(workspace.release.database_chunks)
    table = open_neighbor_table(split.neighbors, queries, database)
    options = {"sequence_length": SEQUENCE, "num_neighbors": NEIGHBORS, "score_last_position": True, **options}
    return RetroDataset(queries, database, table, retrieval=retrieval, **options)


def test_where_it_is_told(workspace, tmp_path):
    assert not open_checkpoint(workspace.retro).isolates_documents
    for where in ("run", "checkpoint"):
        run = packed_run(workspace, tmp_path / where, where)
        assert open_checkpoint(run).isolates_documents
    alone = tmp_path / "alone"
    shutil.copytree(run / "checkpoints" / "step_000010", alone)
    assert open_checkpoint(alone).isolates_documents


@pytest.mark.parametrize("mode", ["on", "off"])
def test_each_document_of_a_sequence_is_scored_alone(workspace, tmp_path, mode):
    run = packed_run(workspace, tmp_path / "run", "run")
    shared = {"task": "perplexity", "batch": 3, "modes": (mode,), "release": str(workspace.release.path)}
    isolated = evaluate(EvalConfig(checkpoint=str(run), **shared), progress=False)
    usual = evaluate(
        EvalConfig(checkpoint=str(workspace.retro), output=str(tmp_path / "usual"), **shared), progress=False
    )
    found, other = rows_of(isolated), rows_of(usual)
    dataset, model = open_dataset(workspace, mode), open_checkpoint(run).load_model()
    expected: dict[int, list[float]] = {}
    several = 0
    for number in range(len(dataset)):
        batch = dataset[number].to_torch()
        chunks = batch.chunk_ids_BL[0].tolist()
        owners = [int(dataset.queries.documents([c])[0]) if c >= 0 else -1 for c in chunks]
        several += len(set(owners)) > 1
        for document in dict.fromkeys(o for o in owners if o >= 0):
            first = owners.index(document)
            last = first + owners.count(document)
            place = slice(first * CHUNK, last * CHUNK)
            with torch.no_grad():
                logits = model(
                    batch.tokens_BN[:, place],
                    None if mode == "off" else batch.neighbors_BLKR[:, first:last],
                    None if mode == "off" else batch.neighbor_mask_BLKR[:, first:last],
                ).logits[0]
            logprobs = torch.log_softmax(logits, -1)
            for position in range(place.start, place.stop):
                if batch.loss_mask_BN[0, position]:
                    value = logprobs[position - place.start, batch.targets_BN[0, position]]
                    expected.setdefault((number * SEQUENCE + position + 1) // CHUNK, []).append(float(value))
    assert several > 3
    assert [row["chunk"] for row in found] == [row["chunk"] for row in other] == sorted(expected)
    moved = 0
    for row, usual_row in zip(found, other, strict=True):
        assert row["bits"][mode] == pytest.approx(-sum(expected[row["chunk"]]) / math.log(2), rel=1e-4)
        assert row["logprobs"][mode] == pytest.approx(expected[row["chunk"]], abs=2e-4)
        moved += abs(row["bits"][mode] - usual_row["bits"][mode]) > 1e-2
        assert row["neighbors"] == usual_row["neighbors"]
    assert moved > 10


def test_it_is_part_of_what_was_asked(workspace):
    tokenizer = open_tokenizer(workspace.release.tokenizer)
    on, isolated = open_dataset(workspace, "on"), open_dataset(workspace, "on", isolate_documents=True)
    tasks = [PerplexityTask({"on": data}, tokenizer, table=data.neighbors) for data in (on, isolated)]
    # Responses from before are still those of a model that was not trained on packed documents.
    assert "isolate_documents" not in tasks[0].identity()
    assert tasks[1].identity() == {**tasks[0].identity(), "isolate_documents": True}
    with pytest.raises(ValueError, match="all modes to isolate documents"):
        PerplexityTask({"on": on, "off": isolated}, tokenizer, table=None)
