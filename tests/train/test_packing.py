"""Packed sequences through the real model: each document as if it were alone, and runs that train on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.artifacts.release import open_release
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.config.model import ModelConfig
from retro.data.batch import TorchBatch
from retro.data.chunk_store import open_chunk_store
from retro.data.dataset import RetroDataset
from retro.data.neighbor_table import open_neighbor_table
from retro.data.packed_dataset import PackedDataset
from retro.data.tokenizer import open_tokenizer
from retro.model import RetroModel
from retro.nn.documents import Documents, documents_of
from retro.train.data import open_data, resolve_vocabulary
from retro.train.distributed import open_processes
from retro.train.run import train
from retro.train.state import TrainState
from retro.train.validation import Validation
from tests.data.builders import write_chunks, write_fake_tokenizer, write_neighbors, write_tokens
from tests.data.packed_corpus import Corpus, K, M, build
from tests.model.builders import scrambled, tiny
from tests.train import releases
from tests.train.test_distributed import torchrun

VOCABULARY = 300
CONFIGS: dict[str, ModelConfig] = {
    "plain": tiny(vocab_size=VOCABULARY),
    "smear": tiny(vocab_size=VOCABULARY, smear_keys=True, qk_norm=True, num_kv_heads=1),
    "learned": tiny(vocab_size=VOCABULARY, positions="learned", max_positions=64, norm="layernorm", bias=True),
    "parallel": tiny(vocab_size=VOCABULARY, block="parallel", gate_kind="learned"),
    "unconditioned": tiny(vocab_size=VOCABULARY, encoder_cross_attention_layers=()),
    "gpt": tiny(vocab_size=VOCABULARY, cross_attention_layers=()),
}


#: How the model keeps documents apart: on a CPU (what is masked is not computed), with static shapes, and on an
#: accelerator or compiled.
PATHS = ("compact", "static", "masked")


def take_path(model: RetroModel, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def masked(starts: Tensor) -> Documents:
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            documents = documents_of(starts)
        assert documents.mask is not None and documents.lengths is None
        return documents

    model.static_shapes = path != "compact"
    if path == "masked":
        monkeypatch.setattr("retro.model.retro.documents_of", masked)


def run(model: RetroModel, batch: TorchBatch) -> Tensor:
    """Losses [B, N] of a batch as the trainer runs it; the gradients of their sum are added up."""
    output = model(**batch.model_inputs, reduction="sum")
    output.loss.backward()
    return output.token_losses_BN


def alone(model: RetroModel, corpus: Corpus, data: PackedDataset, score_last: bool) -> Tensor:
    """The same [B, N] by running each document of each sequence by itself, on the grid of its chunks."""
    owner = [number for number, ids in enumerate(corpus.chunks) for _ in ids]
    losses: list[list[float]] = []
    offsets = [0] * len(corpus.documents)
    for sequence in corpus.pack(data.sequence_length, score_last):
        losses.append([0.0] * data.sequence_length)
        touched = {corpus.keys[d] for d in sequence.documents if d is not None}
        for document in dict.fromkeys(d for d in sequence.documents if d is not None):
            places = [p for p, d in enumerate(sequence.documents) if d == document]
            first, offsets[document] = offsets[document], offsets[document] + len(places)
            # The document's tokens in this sequence, and the rest of the chunk in which they begin.
            own = corpus.documents[document][first : first + len(places) + 1]
            tokens = own[: len(places)]
            targets = (own[1:] + [0])[: len(places)]
            scored = [sequence.scored[p] for p in places]
            to_end = M - first % M
            neighbors = mask = None
            if model.config.is_retro and to_end <= len(places):
                ids = np.full((1, 1 + (len(places) - to_end) // M, K), -1)
                for row in range(ids.shape[1]):
                    chunk = corpus.chunks[document][first // M + row]
                    if any(chunk == c for c, _ in sequence.rows):
                        found = [c for c in corpus.table[chunk] if c >= 0 and corpus.keys[owner[c]] not in touched][:K]
                        ids[0, row, : len(found)] = found
                read, real = data.database.gather_neighbors(ids, 0)
                neighbors, mask = torch.from_numpy(read).long(), torch.from_numpy(real)
            output = model(
                torch.tensor([tokens]),
                neighbors,
                mask,
                targets_BN=torch.tensor([targets]),
                loss_mask_BN=torch.tensor([scored]),
                first_chunk_length=to_end,
                reduction="sum",
            )
            if any(scored):
                output.loss.backward()
            for place, loss in zip(places, output.token_losses_BN[0].tolist(), strict=True):
                losses[-1][place] = loss
    return torch.tensor(losses, dtype=torch.float64)


def gradients(model: RetroModel) -> dict[str, Tensor]:
    """Of all parameters, zero where there is none; forgets them."""
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("length", [7, 12, 30])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_are_as_if_alone(
    name: str, length: int, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss of every token and gradient of every parameter, documents cut at any token among them."""
    corpus = build(tmp_path, [11, 2, 23, 5, 3, 40, 9], removed=[3], exclude="groups", seed=length)
    mode = "on" if CONFIGS[name].is_retro else "off"
    data = corpus.data(length, score_last_position=True, retrieval=mode, pad_id=0)
    model = scrambled(CONFIGS[name])
    expected = alone(model, corpus, data, score_last=True)
    apart = gradients(model)
    take_path(model, path, monkeypatch)
    batch = data.__getitems__(np.arange(len(data)))
    losses = run(model, batch.to_torch())
    assert batch.loss_mask_BN.sum() == sum(len(d) - 1 for d in corpus.documents if d)
    scored = torch.from_numpy(batch.loss_mask_BN)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
    assert (losses[scored] > 0).all()
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, apart[key], rtol=1e-9, atol=1e-9, msg=key)
    if mode == "on":
        assert batch.neighbor_mask_BLKR.any(axis=(2, 3)).sum() >= 8


def test_training_batches_sum_to_the_documents(tmp_path: Path) -> None:
    """score_last_position=False, in micro-batches: the same gradient as of the documents alone."""
    corpus = build(tmp_path, [11, 2, 23, 5, 3, 40, 9], seed=1)
    data = corpus.data(9, pad_id=0)
    model = scrambled(CONFIGS["plain"])
    expected = alone(model, corpus, data, score_last=False)
    apart = gradients(model)
    losses = [run(model, data.__getitems__(part).to_torch()) for part in np.array_split(np.arange(len(data)), 4)]
    torch.testing.assert_close(torch.cat(losses), expected, rtol=0, atol=1e-10)
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, apart[key], rtol=1e-9, atol=1e-9, msg=key)


def test_the_chunk_layout_with_isolated_documents_gives_the_same_losses(tmp_path: Path) -> None:
    """The whole split in one sequence, in both layouts, and in short sequences the documents that neither cuts."""
    generator = np.random.default_rng(0)
    tokenizer = write_fake_tokenizer(tmp_path / "k")

    def store(name: str, lengths: list[int]) -> Path:
        texts = [generator.integers(4, 300, size=n - 2).tolist() for n in lengths]
        tokens = write_tokens(tmp_path / f"{name}t", [texts], tokenizer, names=name + "{}")
        return write_chunks(tmp_path / f"{name}c", tokens, M)

    queries, database = store("q", [11, 2, 22, 5, 8, 17, 9]), store("d", [12] * 9)  # neighbors never excluded
    q, d = open_chunk_store(queries), open_chunk_store(database)
    ids = generator.integers(0, d.num_chunks, size=(q.num_chunks, K))
    table = open_neighbor_table(write_neighbors(tmp_path / "n", queries, database, ids), q, d)
    model = scrambled(CONFIGS["smear"])

    def losses(layout: type, length: int, **options: bool) -> Tensor:
        """Of the scored tokens, in the order of the text."""
        data = layout(
            q, d, table, sequence_length=length, num_neighbors=K, score_last_position=True, pad_id=0, **options
        )
        batch = data.__getitems__(np.arange(len(data)))
        found = run(model, batch.to_torch())
        scored = np.flatnonzero(batch.loss_mask_BN)
        return found.flatten()[scored]

    chunks = losses(RetroDataset, 128, isolate_documents=True)
    assert len(chunks) == q.tokens.num_tokens - q.tokens.num_documents
    apart = gradients(model)
    torch.testing.assert_close(losses(PackedDataset, 128), chunks, rtol=0, atol=1e-10)
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, apart[key], rtol=1e-9, atol=1e-9, msg=key)
    assert not torch.allclose(losses(RetroDataset, 128), chunks, atol=1e-3)  # documents that see each other
    # Sequences of 24: scored tokens come in the same order. In both, documents of 11, 2, 5, 8 or 9 tokens are whole
    # somewhere; where the losses are those of the whole split they agree.
    a, b = losses(RetroDataset, 24, isolate_documents=True), losses(PackedDataset, 24)
    whole_a, whole_b = (torch.isclose(x, chunks, rtol=0, atol=1e-10) for x in (a, b))
    assert 0.4 < whole_a.double().mean() < 1 and 0.4 < whole_b.double().mean() < 1
    assert (whole_a & whole_b).sum() >= 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", ["packed", "chunks"])
def test_no_document_sees_another(
    layout: str, path: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: changing a document's tokens and neighbors moves no logit of any other."""
    corpus = build(tmp_path, [11, 2, 13, 5, 3, 10, 9], seed=2)
    data: PackedDataset | RetroDataset = corpus.data(28, score_last_position=True, pad_id=0)
    if layout == "chunks":
        parts = (data.queries, data.database, data.neighbors)
        options = {"sequence_length": 28, "num_neighbors": K, "score_last_position": True, "pad_id": 0}
        data = RetroDataset(*parts, isolate_documents=True, **options)  # type: ignore[arg-type]
    model = scrambled(CONFIGS["smear"], dtype=dtype)
    take_path(model, path, monkeypatch)
    batch = data.__getitems__(np.arange(len(data))).to_torch()
    starts, ends = batch.document_starts_BN, batch.chunk_ends_BL
    if ends is None:
        ends = torch.arange(M - 1, 28, M).expand(len(batch), -1)

    def logits(tokens: Tensor, neighbors: Tensor) -> Tensor:
        with torch.no_grad():
            return model(
                tokens,
                neighbors,
                batch.neighbor_mask_BLKR,
                document_starts_BN=starts,
                chunk_ends_BL=batch.chunk_ends_BL,
            ).logits

    before = logits(batch.tokens_BN, batch.neighbors_BLKR)
    documents, moved_by_neighbors = 0, 0
    for row in range(len(batch)):
        for start in starts[row].unique().tolist():
            own = torch.zeros_like(starts, dtype=torch.bool)
            own[row] = starts[row] == start
            # Its tokens; then its neighbors.
            changed = torch.where(own, (batch.tokens_BN + 1) % VOCABULARY, batch.tokens_BN)
            after = logits(changed, batch.neighbors_BLKR)
            assert torch.equal(after[~own], before[~own]) and not torch.equal(after[own], before[own])
            rows = (ends >= 0) & own.gather(1, ends.clamp(min=0))
            neighbors = torch.where(rows[:, :, None, None], batch.neighbors_BLKR + 1, batch.neighbors_BLKR) % VOCABULARY
            after = logits(batch.tokens_BN, neighbors)
            assert torch.equal(after[~own], before[~own])
            moved_by_neighbors += not torch.equal(after[own], before[own])
            documents += 1
    assert documents >= 8 and moved_by_neighbors >= 3


def packed(release: Path, root: Path, retro: bool = True, **changes: object) -> object:
    return releases.config(release, root, retro, packing="documents", **changes)


@pytest.mark.parametrize("retro", [False, True], ids=["gpt", "retro"])
def test_a_run_resumes_bit_for_bit(release: Path, tmp_path: Path, retro: bool) -> None:
    train(packed(release, tmp_path, retro, name="clean", steps=24, checkpoint_every=12, keep_checkpoints=5))
    clean = (tmp_path / "clean" / "checkpoints" / "step_000024" / "model.safetensors").read_bytes()
    rows = releases.metrics(tmp_path / "clean", "train")
    assert rows[-1]["loss"] < rows[0]["loss"]
    shutil.copytree(tmp_path / "clean", tmp_path / "again")
    shutil.rmtree(list_checkpoints(tmp_path / "again" / "checkpoints")[-1][1])
    outcome = train(packed(release, tmp_path, retro, name="again", steps=24, checkpoint_every=12, loader_workers=1))
    assert outcome.state.step == 24
    folder = list_checkpoints(outcome.folder / "checkpoints")[-1][1]
    assert (folder / "model.safetensors").read_bytes() == clean
    assert releases.metrics(outcome.folder) == releases.metrics(tmp_path / "clean")


def test_packing_is_part_of_what_a_run_is(release: Path, tmp_path: Path) -> None:
    train(packed(release, tmp_path))
    with pytest.raises(ArtifactMismatchError, match='packing: checkpoint "documents", now "chunks"'):
        train(releases.config(release, tmp_path))


def test_the_log_tells_the_padding_of_both_layouts(release: Path, tmp_path: Path) -> None:
    train(packed(release, tmp_path, name="packed", steps=2))
    train(releases.config(release, tmp_path, name="chunks", steps=2))
    logs = {name: (tmp_path / name / "log.txt").read_text() for name in ("packed", "chunks")}
    opened = open_release(release)
    store = open_chunk_store(opened.split("train").chunks)
    sequences = -(-store.tokens.num_tokens // 32)
    share = 1 - store.tokens.num_tokens / (32 * sequences)
    assert f"packing documents: {share:.2%} of the positions hold padding\n" in logs["packed"]
    sequences = -(-store.num_chunks // 4)
    share = 1 - store.tokens.num_tokens / (32 * sequences)
    assert f"packing chunks: {share:.2%} of the positions hold padding; packing=documents has none\n" in logs["chunks"]


def test_questions_are_not_packed(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="packing: expected 'chunks' with dataset 'questions'"):
        packed(release, tmp_path, dataset="questions")


def test_validation_of_a_packed_run(release: Path, tmp_path: Path) -> None:
    """A sequence longer than the split holds every document whole: the loss is that of each document alone."""
    opened = open_release(release)
    tokenizer = open_tokenizer(opened.tokenizer)
    config = resolve_vocabulary(packed(release, tmp_path, retro=False, sequence_length=2048), tokenizer)
    data = open_data(config, opened, tokenizer)
    assert isinstance(data.train, PackedDataset) and isinstance(data.validation, PackedDataset)
    assert data.validation.score_last_position and not data.train.score_last_position
    model = RetroModel(config.model)
    record = Validation(data.validation, data.byte_lengths, sequences=9, batch=2).run(
        model, open_processes(config), TrainState()
    )
    store, nats, count = data.validation.queries.tokens, 0.0, 0
    for document in range(store.num_documents):
        tokens = store.tokens(*store.document_offsets[document : document + 2].tolist()).astype(np.int64)
        own = torch.from_numpy(tokens)[None]
        with torch.no_grad():
            out = model(own[:, :-1], targets_BN=own[:, 1:], reduction="sum")
        nats, count = nats + float(out.loss), count + len(tokens) - 1
    assert record.tokens == count and record.loss == pytest.approx(nats / count, rel=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(release: Path, tmp_path: Path) -> None:
    common = {"steps": 8, "log_every": 1, "checkpoint_every": 8, "validate_every": 4, "packing": "documents"}
    train(releases.config(release, tmp_path, name="one", **common))
    values = releases.settings(release, tmp_path, name="two", micro_batch=1, **common)
    torchrun(releases.write_yaml(tmp_path / "two.yaml", values))
    one, two = (releases.metrics(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 10
    for a, b in zip(one, two, strict=True):
        for key, value in a.items():
            assert b[key] == (value if isinstance(value, str) else pytest.approx(value, rel=2e-4)), key
