"""The perplexity task: parity with a direct forward, resume, rescore, a fake model, GPT against RETRO."""

import json
import math

import numpy as np
import pytest
import torch

from retro.config.errors import ArtifactMismatchError, ArtifactUnfinishedError, ConfigError
from retro.config.evaluation import EvalConfig
from retro.data.chunk_store import open_chunk_store
from retro.data.dataset import RetroDataset
from retro.data.neighbor_table import open_neighbor_table
from retro.data.tokenizer import open_tokenizer
from retro.eval.responses import RESPONSES_NAME, RESULTS_NAME, SAMPLES_NAME, STATE_NAME, open_log, read_state
from retro.eval.results import write_results
from retro.eval.runner import answer, evaluate
from retro.eval.tasks.perplexity import PerplexityTask
from retro.inference.checkpoint import open_checkpoint
from retro.inference.opening import open_language_model
from tests.eval.workspace import CHUNK, NEIGHBORS, SEQUENCE, write_run


def config(workspace, output, run="retro", **fields):
    values = {"batch": 3, "block_batches": 2, "samples": 5, **fields}
    return EvalConfig(checkpoint=str(getattr(workspace, run)), task="perplexity", output=str(output), **values)


def read(folder):
    return [json.loads(line) for line in (folder / RESPONSES_NAME).read_text().splitlines()]


def open_split(workspace, retrieval):
    split = workspace.release.split("test")
    queries, database = open_chunk_store(split.chunks), open_chunk_store(workspace.release.database_chunks)
    table = open_neighbor_table(split.neighbors, queries, database)
    tokenizer = open_tokenizer(workspace.release.tokenizer)
    dataset = RetroDataset(
        queries,
        database,
        table,
        sequence_length=SEQUENCE,
        num_neighbors=NEIGHBORS,
        pad_id=tokenizer.pad_id,
        retrieval=retrieval,
        score_last_position=True,
    )
    return dataset, table, tokenizer


@pytest.fixture(scope="module")
def evaluated(workspace, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    return evaluate(config(workspace, output / "retro"), progress=False), evaluate(
        config(workspace, output / "gpt", run="gpt"), progress=False
    )


@pytest.mark.parametrize("mode", ["on", "off", "shuffled"])
def test_bits_of_each_chunk_equal_a_direct_forward(workspace, evaluated, mode):
    rows = read(evaluated[0])
    dataset, _, _ = open_split(workspace, mode)
    model = open_checkpoint(workspace.retro).load_model()
    expected: dict[int, list[float]] = {}
    for sequence in range(len(dataset)):
        batch = dataset[sequence].to_torch()
        with torch.no_grad():
            logits = model(batch.tokens_BN, batch.neighbors_BLKR, batch.neighbor_mask_BLKR).logits[0]
        logprobs = torch.log_softmax(logits, -1)
        for position in range(SEQUENCE):
            if batch.loss_mask_BN[0, position]:
                chunk = (sequence * SEQUENCE + position + 1) // CHUNK
                target = int(batch.targets_BN[0, position])
                expected.setdefault(chunk, []).append(float(logprobs[position, target]))
    assert {row["chunk"] for row in rows} == set(expected)
    for row in rows:
        direct = expected[row["chunk"]]
        assert row["tokens"] == len(direct) == len(row["logprobs"][mode])
        assert row["bits"][mode] == pytest.approx(-sum(direct) / math.log(2), rel=1e-4)
        assert np.allclose(row["logprobs"][mode], direct, atol=2e-4)


def test_every_token_but_the_first_of_each_document_is_scored_once(workspace, evaluated):
    rows = read(evaluated[0])
    tokens = open_split(workspace, "off")[0].queries.tokens
    assert sum(row["tokens"] for row in rows) == tokens.num_tokens - tokens.num_documents
    texts = {record["id"] for record in (tokens.document_record(i) for i in range(tokens.num_documents))}
    assert {row["document"] for row in rows} == texts


def test_bytes_are_those_of_the_documents(workspace, evaluated):
    from retro.data.document import iter_documents

    texts = {d.id: d.text for d in iter_documents(workspace.release.documents) if d.split == "test"}
    total: dict[str, int] = {}
    for row in read(evaluated[0]):
        total[row["document"]] = total.get(row["document"], 0) + row["bytes"]
    assert total == {name: len(text.encode()) for name, text in texts.items()}


def test_gpt_and_retro_score_the_same_tokens_and_share_the_overlap(evaluated):
    retro, gpt = (read(folder) for folder in evaluated)
    same = ("sequence", "index", "chunk", "document", "document_chunk", "tokens", "bytes", "overlap")
    assert [[row[key] for key in same] for row in retro] == [[row[key] for key in same] for row in gpt]
    assert {tuple(row["bits"]) for row in gpt} == {("off",)} and {tuple(r["bits"]) for r in retro} == {
        ("on", "off", "shuffled")
    }
    # The untrained models were drawn from one seed: without retrieval RETRO is the GPT.
    assert [row["bits"]["off"] for row in retro] == [row["bits"]["off"] for row in gpt]
    assert any(row["bits"]["on"] != row["bits"]["off"] for row in retro)
    assert any(row["bits"]["on"] != row["bits"]["shuffled"] for row in retro)


def test_overlap_is_the_longest_shared_run_of_text_tokens(workspace, evaluated):
    dataset, table, tokenizer = open_split(workspace, "off")
    specials = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    for row in read(evaluated[1])[:12]:
        tokens, real = dataset.queries.gather(np.array([row["chunk"]]), tokenizer.pad_id)
        own = [t if t not in specials else -1 for t in tokens[0][real[0]].tolist()]
        found, mask = table.database.gather_neighbors(table.rows(np.array([row["chunk"]]), 10), tokenizer.pad_id)
        longest = 0
        for neighbor, valid in zip(found[0], mask[0], strict=True):
            other = [t if t not in specials else -2 for t in neighbor[valid].tolist()]
            runs = {tuple(other[a:b]) for a in range(len(other)) for b in range(a + 1, len(other) + 1)}
            for a in range(len(own)):
                for b in range(a + 1, len(own) + 1):
                    if tuple(own[a:b]) in runs:
                        longest = max(longest, b - a)
        assert row["overlap"] == pytest.approx(longest / sum(t >= 0 for t in own), abs=1e-6)


def test_serving_neighbors_are_those_of_the_chunk_before(workspace, evaluated):
    _, table, _ = open_split(workspace, "off")
    for row in read(evaluated[0]):
        served = row["index"] > 0 and row["document_chunk"] > 0
        expected = [int(i) for i in table.rows(np.array([row["chunk"] - 1]), NEIGHBORS)[0] if i >= 0] if served else []
        assert row["neighbors"] == expected


def test_results(evaluated):
    results = json.loads((evaluated[0] / RESULTS_NAME).read_text())
    rows = read(evaluated[0])
    assert (results["task"], results["model"], results["split"], results["step"]) == ("perplexity", "retro", "test", 10)
    for mode in ("on", "off", "shuffled"):
        scores = results["modes"][mode]
        assert scores["bits_per_byte"] == pytest.approx(
            sum(row["bits"][mode] for row in rows) / sum(row["bytes"] for row in rows)
        )
        assert results["leakage"]["modes"][mode]["bits_per_byte"][-1] == pytest.approx(scores["bits_per_byte"])
        assert sum(results["parts"][part][mode]["tokens"] for part in results["parts"]) == scores["tokens"]
        assert results["throughput"]["modes"][mode] > 0
    assert len(results["position"]["modes"]["on"]) == CHUNK
    # Nothing is retrieved before a document that begins a sequence.
    begins = [row for row in rows if row["index"] == row["document_chunk"] == 0]
    assert begins and all(len(set(row["bits"].values())) == 1 for row in begins)
    assert json.loads((evaluated[1] / RESULTS_NAME).read_text())["model"] == "gpt"


def test_samples_are_the_same_chunks_for_both_models_with_real_neighbors(workspace, evaluated):
    retro, gpt = (json.loads((folder / SAMPLES_NAME).read_text()) for folder in evaluated)
    assert len(retro) == 5 and [s["chunk"] for s in retro] == [s["chunk"] for s in gpt]
    dataset, table, tokenizer = open_split(workspace, "off")
    for sample in retro:
        chunk = sample["chunk"]
        pair, real = dataset.queries.gather(np.array([chunk - 1, chunk]), tokenizer.pad_id)
        assert "".join(sample["pieces"]) == tokenizer.decode(pair[1][real[1]].tolist())
        assert sample["context"] == tokenizer.decode(pair[0][real[0]].tolist())
        assert len(sample["logprobs"]["on"]) == len(sample["pieces"])
        assert sample["neighbors"] and all(n["document"] != sample["document"] for n in sample["neighbors"])
        assert [n["distance"] for n in sample["neighbors"]] == pytest.approx(
            table.distances(np.array([chunk - 1]), len(sample["neighbors"]))[0].tolist(), abs=1e-5
        )


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_killed_evaluation_resumes_to_the_same_bytes(workspace, evaluated, tmp_path, monkeypatch, after):
    run_block, calls = PerplexityTask.run_block, []

    def run_some(self, number, model, carry):
        calls.append(number)
        if len(calls) > after:
            raise Killed
        return run_block(self, number, model, carry)

    monkeypatch.setattr(PerplexityTask, "run_block", run_some)
    with pytest.raises(Killed):
        evaluate(config(workspace, tmp_path), progress=False)
    folder = tmp_path / "eval" / "perplexity-test"
    assert read_state(folder).blocks == after and not (folder / RESULTS_NAME).exists()
    with pytest.raises(ArtifactUnfinishedError, match="resumes"):
        write_results(folder)
    with open(folder / RESPONSES_NAME, "ab") as file:
        file.write(b'{"half": ')
    monkeypatch.setattr(PerplexityTask, "run_block", run_block)
    evaluate(config(workspace, tmp_path), progress=False)
    for name in (RESPONSES_NAME, SAMPLES_NAME):
        assert (folder / name).read_bytes() == (evaluated[0] / name).read_bytes()
    found, clean = (json.loads((f / RESULTS_NAME).read_text()) for f in (folder, evaluated[0]))
    assert {**found, "throughput": None} == {**clean, "throughput": None}


def test_a_kill_between_answers_and_their_record_resumes_to_the_same_bytes(workspace, evaluated, tmp_path, monkeypatch):
    import retro.eval.responses as responses

    write, calls = responses.write_json_atomic, []

    def write_some(path, value):
        calls.append(path)
        if len(calls) == 4:  # the new record, two blocks, and then the kill: the third block is written, not recorded
            raise Killed
        write(path, value)

    monkeypatch.setattr(responses, "write_json_atomic", write_some)
    with pytest.raises(Killed):
        evaluate(config(workspace, tmp_path), progress=False)
    monkeypatch.setattr(responses, "write_json_atomic", write)
    folder = tmp_path / "eval" / "perplexity-test"
    assert read_state(folder).blocks == 2 and read_state(folder).bytes < (folder / RESPONSES_NAME).stat().st_size
    evaluate(config(workspace, tmp_path), progress=False)
    assert (folder / RESPONSES_NAME).read_bytes() == (evaluated[0] / RESPONSES_NAME).read_bytes()


def test_a_finished_evaluation_asks_the_model_nothing(workspace, evaluated, monkeypatch):
    monkeypatch.setattr(PerplexityTask, "run_block", lambda *_: pytest.fail("asked again"))
    before = (evaluated[0] / RESULTS_NAME).read_bytes()
    evaluate(config(workspace, evaluated[0].parent.parent), progress=False)
    assert (evaluated[0] / RESULTS_NAME).read_bytes() == before


def test_the_number_of_samples_can_be_changed_afterwards(workspace, tmp_path):
    """Samples are no part of an evaluation's identity: nothing is asked again, and the option is not ignored."""
    for count in (4, 2):
        folder = evaluate(config(workspace, tmp_path, max_sequences=6, samples=count), progress=False)
        assert len(json.loads((folder / SAMPLES_NAME).read_text())) == count


def test_rescoring_gives_the_same_results_without_the_model(evaluated):
    path = evaluated[0] / RESULTS_NAME
    before = path.read_bytes()
    path.unlink()
    write_results(evaluated[0])
    assert path.read_bytes() == before


def test_the_results_say_in_which_precision_they_were_made(workspace, evaluated, tmp_path):
    folder = evaluate(config(workspace, tmp_path, run="gpt", precision="bf16", max_sequences=1), progress=False)
    assert json.loads((folder / RESULTS_NAME).read_text())["precision"] == "bf16"
    assert json.loads((evaluated[0] / RESULTS_NAME).read_text())["precision"] == "fp32"


def test_max_sequences_takes_the_first_ones(workspace, evaluated, tmp_path):
    rows = read(evaluate(config(workspace, tmp_path, max_sequences=5), progress=False))
    everything = [row for row in read(evaluated[0]) if row["sequence"] < 5]
    assert [row["chunk"] for row in rows] == [row["chunk"] for row in everything]
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in everything]


def test_a_changed_configuration_is_not_mixed_into_old_responses(workspace, tmp_path):
    evaluate(config(workspace, tmp_path, max_sequences=3), progress=False)
    with pytest.raises(ArtifactMismatchError, match="sequences is 3 there, 4 here"):
        evaluate(config(workspace, tmp_path, max_sequences=4), progress=False)
    folder = evaluate(config(workspace, tmp_path, max_sequences=4, overwrite=True), progress=False)
    assert max(row["sequence"] for row in read(folder)) == 3


def test_config_fields_that_the_task_does_not_read_are_refused():
    with pytest.raises(ConfigError, match="max_questions: is not read by task 'perplexity'"):
        EvalConfig(checkpoint="x", task="perplexity", max_questions=3)
    with pytest.raises(ConfigError, match="max_sequences"):
        EvalConfig(checkpoint="x", task="docs_qa", max_sequences=3)


class FakeModel:
    """One bit per token, but no score for one token of the third sequence."""

    def __init__(self, missing=True):
        self.missing = missing

    def identity(self):
        return {"name": "fake"}

    def score_batch(self, batch):
        scores = np.where(batch.loss_mask_BN, -math.log(2), np.nan)
        if self.missing:
            for i, sequence in enumerate(batch.sample_ids_B):
                if sequence == 2:
                    scores[i, np.flatnonzero(batch.loss_mask_BN[i])[5]] = np.nan
        return scores


@pytest.mark.parametrize("missing", [False, True])
def test_the_task_runs_against_a_fake_model(workspace, tmp_path, missing):
    dataset, table, tokenizer = open_split(workspace, "off")
    task = PerplexityTask({"off": dataset}, tokenizer, table=table, batch=2, block_batches=2)
    identity = {"task": "perplexity", "version": 1, "split": "test", "material": task.identity()}
    identity |= {"checkpoint": "fake", "release": "fake", "num_neighbors": 0}
    log = open_log(tmp_path, identity, {})
    answer(task, FakeModel(missing), log, progress=False)
    results = write_results(tmp_path)
    scores, rows = results["modes"]["off"], read(tmp_path)
    assert scores["missing"] == int(missing) and scores["chunks"] == len(rows) - int(missing)
    assert scores["bits"] == pytest.approx(scores["tokens"]) and scores["perplexity"] == pytest.approx(2.0)
    gone = [row for row in rows if row["bits"]["off"] is None]
    assert len(gone) == int(missing) and all(row["logprobs"]["off"].count(None) == 1 for row in gone)
    assert read_state(tmp_path).finished and (tmp_path / STATE_NAME).is_file()


def test_a_release_in_chunks_of_another_length_is_refused(workspace, tmp_path):
    """Neighbors of 16-token chunks in a model of 8-token ones would serve the wrong positions without a word."""
    run = write_run(tmp_path / "run", workspace.release, retro=True, chunk_length=CHUNK // 2)
    with pytest.raises(ArtifactMismatchError, match=f"expected chunks of {CHUNK // 2} tokens.*found {CHUNK}"):
        evaluate(EvalConfig(checkpoint=str(run), task="perplexity", max_sequences=2), progress=False)
    with pytest.raises(ArtifactMismatchError, match=f"expected chunks of {CHUNK // 2} tokens.*found {CHUNK}"):
        evaluate(EvalConfig(checkpoint=str(run), task="docs_qa", max_questions=2), progress=False)
    with pytest.raises(ArtifactMismatchError, match=f"expected chunks of {CHUNK // 2} tokens.*found {CHUNK}"):
        open_language_model(run)
