"""The loop: exact sums over micro-batches, precision, refusal of numbers that are not finite, equal data for all."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.artifacts.release import open_release
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.config.train import TrainConfig
from retro.data.tokenizer import open_tokenizer
from retro.model import RetroModel
from retro.optim.adamw import build_adamw
from retro.train.assembly import build_loader
from retro.train.callbacks.base import Callback
from retro.train.data import open_data, resolve_vocabulary
from retro.train.distributed import open_processes
from retro.train.run import train
from retro.train.state import StepRecord, TrainingDivergedError
from retro.train.trainer import Trainer
from tests.train import releases


class Recorder(Callback):
    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        self.records.append(record)


def build(config: TrainConfig, **changes: Any) -> tuple[Trainer, Recorder]:
    release = open_release(config.release)
    tokenizer = open_tokenizer(release.tokenizer)
    config = resolve_vocabulary(config, tokenizer)
    processes, recorder = open_processes(config), Recorder()
    torch.manual_seed(config.seed)
    model = RetroModel(config.model)
    optimizer = build_adamw(model, learning_rate=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    trainer = Trainer(
        **{
            "model": model,
            "optimizer": optimizer,
            "schedule": lambda step: 1e-2,
            "loader": build_loader(config, open_data(config, release, tokenizer), processes),
            "processes": processes,
            "steps": config.steps,
            "gradient_clip": config.gradient_clip,
            "callbacks": [recorder],
            **changes,
        }
    )
    return trainer, recorder


@pytest.mark.parametrize("retro", [False, True], ids=["gpt", "retro"])
def test_micro_batches_do_not_change_the_step(release: Path, tmp_path: Path, retro: bool):
    runs = {}
    for micro in (8, 2, 1):
        trainer, recorder = build(releases.config(release, tmp_path, retro, global_batch=8, micro_batch=micro, steps=5))
        # In float64, because Adam divides by the gradient's size and so shows rounding at full height.
        trainer.model.double()
        trainer.fit()
        runs[micro] = (trainer, recorder.records)
    whole, records = runs[8]
    # Micro-batches have different numbers of scored tokens, so a mean of means would be far off.
    assert len({record.tokens for record in records}) > 1
    for micro in (2, 1):
        cut, cut_records = runs[micro]
        for a, b in zip(records, cut_records, strict=True):
            assert (a.tokens, a.learning_rate) == (b.tokens, b.learning_rate)
            assert a.loss == pytest.approx(b.loss, rel=1e-12)
            assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-10)
        for (name, p), q in zip(whole.model.named_parameters(), cut.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9, msg=name)


def test_first_step_is_the_mean_over_the_scored_tokens_of_the_global_batch(release: Path, tmp_path: Path):
    config = releases.config(
        release, tmp_path, global_batch=8, micro_batch=2, steps=1, warmup_steps=0, gradient_clip=None
    )
    trainer, recorder = build(config)
    batch = trainer.loader.dataset.__getitems__(
        np.concatenate([b.sample_ids_B for b, _ in zip(build(config)[0].loader, range(4), strict=False)])
    ).to_torch()
    model = RetroModel(trainer.model.config)
    model.load_state_dict(trainer.model.state_dict())
    logits = model(batch.tokens_BN, batch.neighbors_BLKR, batch.neighbor_mask_BLKR).logits
    expected = F.cross_entropy(logits[batch.loss_mask_BN], batch.targets_BN[batch.loss_mask_BN])
    expected.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    trainer.fit()
    (record,) = recorder.records
    assert record.loss == pytest.approx(float(expected.detach()), rel=1e-6)
    assert record.grad_norm == pytest.approx(norm, rel=1e-5)
    assert record.tokens == int(batch.loss_mask_BN.sum())


def test_clips_the_gradient_and_reports_the_norm_before(release: Path, tmp_path: Path):
    seen: list[float] = []

    class Look(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            seen.append(math.sqrt(sum(float(p.grad.square().sum()) for g in self.param_groups for p in g["params"])))

    def run(clip: float | None) -> StepRecord:
        trainer, recorder = build(releases.config(release, tmp_path, steps=1, warmup_steps=0, gradient_clip=clip))
        trainer.optimizer = Look(trainer.model.parameters(), lr=0.1)
        trainer.fit()
        return recorder.records[0]

    free, clipped = run(None), run(0.01)
    assert free.grad_norm == clipped.grad_norm
    assert seen == pytest.approx([free.grad_norm, 0.01], rel=1e-3)


def test_bf16_keeps_weights_gradients_and_optimizer_in_float32(release: Path, tmp_path: Path):
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer, recorder = build(releases.config(release, tmp_path, steps=30, precision=precision))
        seen: set[torch.dtype] = set()
        trainer.model.layers[0].feed_forward.register_forward_hook(lambda _, __, out, seen=seen: seen.add(out.dtype))
        trainer.fit()
        assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}
        tensors: list[Tensor] = [*trainer.model.parameters()]
        tensors += [t for state in trainer.optimizer.state.values() for t in state.values()]
        assert {t.dtype for t in tensors} == {torch.float32}
        losses[precision] = [record.loss for record in recorder.records]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"][-1] == pytest.approx(losses["fp32"][-1], rel=0.02)
    assert losses["bf16"][-1] < 0.8 * losses["bf16"][0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_stops_before_the_optimizer_moves_when_numbers_are_not_finite(
    release: Path, tmp_path: Path, value: float, where: str
):
    trainer, recorder = build(releases.config(release, tmp_path, steps=5))

    class Poison(Callback):
        def on_step(self, trainer: Trainer, record: StepRecord) -> None:
            if record.state.step != 2:
                return
            self.before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
            if where == "gradient":
                trainer.model.norm.weight.register_hook(lambda g: g * value)
            else:
                original = trainer._wrapped.forward
                trainer._wrapped.forward = lambda *a, **k: _scaled(original(*a, **k), value)

    poison = Poison()
    trainer.callbacks.append(poison)
    with pytest.raises(TrainingDivergedError, match=r"step 3: loss .*this step was not taken"):
        trainer.fit()
    assert len(recorder.records) == 2
    assert trainer.state.step == 2
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, poison.before[name]), name


def _scaled(output: Any, factor: float) -> Any:
    return dataclasses.replace(output, loss=output.loss * factor)


def test_a_diverging_run_keeps_its_last_checkpoint(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = Trainer.forward_backward

    def poisoned(self: Trainer, batch: Any, last: bool = True) -> Tensor:
        loss = original(self, batch, last)
        return loss * math.nan if self.state.step == 6 else loss

    monkeypatch.setattr(Trainer, "forward_backward", poisoned)
    with pytest.raises(TrainingDivergedError) as caught:
        train(releases.config(release, tmp_path))
    assert caught.value.exit_code == 1
    assert [step for step, _ in list_checkpoints(tmp_path / "run" / "checkpoints")] == [4]
    monkeypatch.undo()
    assert train(releases.config(release, tmp_path)).state.step == 8


def test_gpt_and_retro_see_the_same_samples_and_start_from_the_same_decoder(release: Path, tmp_path: Path):
    gpt, _ = build(releases.config(release, tmp_path, retro=False))
    retro, _ = build(releases.config(release, tmp_path, retro=True))
    for a, b, _ in zip(gpt.loader, retro.loader, range(30), strict=False):
        for name in ("sample_ids_B", "tokens_BN", "targets_BN", "loss_mask_BN"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
        assert a.neighbors_BLKR is None
        assert b.neighbors_BLKR is not None
    shared = gpt.model.state_dict()
    assert shared.keys() < retro.model.state_dict().keys()
    for name, tensor in shared.items():
        assert torch.equal(tensor, retro.model.state_dict()[name]), name


def test_callbacks_hear_of_everything_in_order_and_of_the_end_even_after_an_error(release: Path, tmp_path: Path):
    heard: list[str] = []

    class Listener(Callback):
        def on_start(self, trainer: Trainer) -> None:
            heard.append("start")

        def on_step(self, trainer: Trainer, record: StepRecord) -> None:
            heard.append(f"step {record.state.step}{' last' if trainer.is_last_step else ''}")
            if record.state.step == failing_step:
                raise RuntimeError("full disk")

        def on_stop(self, trainer: Trainer, failed: bool) -> None:
            heard.append(f"stop failed={failed}")

    failing_step = 0
    build(releases.config(release, tmp_path, steps=2), callbacks=[Listener()])[0].fit()
    assert heard == ["start", "step 1", "step 2 last", "stop failed=False"]
    heard.clear()
    failing_step = 1
    with pytest.raises(RuntimeError, match="full disk"):
        build(releases.config(release, tmp_path, steps=2), callbacks=[Listener()])[0].fit()
    assert heard == ["start", "step 1", "stop failed=True"]


def test_the_vocabulary_is_the_tokenizers(release: Path, tmp_path: Path):
    values = releases.settings(release, tmp_path)
    outcome = train(releases.config(release, tmp_path))
    assert "vocab_size: 300" in (outcome.folder / "config.yaml").read_text()
    values["model"]["vocab_size"] = 301
    with pytest.raises(ConfigError, match=r"model\.vocab_size: expected 300.*found 301; leave it out"):
        train(releases.config(release, tmp_path, model=values["model"]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_neighbors": 3}, ConfigError, "num_neighbors: expected 1 to 2"),
        ({"dataset": "questions"}, ConfigError, "question_set: .* has no 'docs'; it has none"),
        ({"device": "cuda"}, ConfigError, "device: expected a CUDA device, found none"),
    ],
    ids=["num_neighbors", "question_set", "device"],
)
def test_data_that_does_not_fit_is_refused(
    release: Path, tmp_path: Path, change: dict, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=message):
        train(releases.config(release, tmp_path, **change))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_chunk_length_is_refused(release: Path, tmp_path: Path):
    model = {**releases.settings(release, tmp_path)["model"], "chunk_length": 16}
    with pytest.raises(ArtifactMismatchError, match=r"chunks of 16 tokens, .* found 8; set model\.chunk_length=8"):
        train(releases.config(release, tmp_path, model=model))


def test_another_tokenizer_than_the_tokens_is_refused(release: Path, tmp_path: Path):
    config = resolve_vocabulary(releases.config(release, tmp_path), open_tokenizer(open_release(release).tokenizer))
    tokenizer = open_tokenizer(open_release(release).tokenizer)
    tokenizer.fingerprint = "0" * 16
    with pytest.raises(ArtifactMismatchError, match="expected tokens of the release's tokenizer 0000"):
        open_data(config, open_release(release), tokenizer)


@pytest.mark.parametrize("failed", [False, True])
def test_every_callback_ends_whatever_another_one_raises(release: Path, tmp_path: Path, failed: bool):
    """A checkpoint that is being written is waited for although a log cannot be closed; what ended training is told."""
    ended: list[str] = []

    class Bad(Callback):
        def on_step(self, trainer: Trainer, record: StepRecord) -> None:
            if failed:
                raise ArithmeticError("of the run")

        def on_stop(self, trainer: Trainer, failed: bool) -> None:
            raise OSError("of the log")

    class Good(Callback):
        def on_stop(self, trainer: Trainer, failed: bool) -> None:
            ended.append(f"{failed}")

    trainer, _ = build(releases.config(release, tmp_path, steps=2), callbacks=[Bad(), Good()])
    with pytest.raises(ArithmeticError if failed else OSError):
        trainer.fit()
    assert ended == [f"{failed}"]
