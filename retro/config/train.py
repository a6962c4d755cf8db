"""Configuration of a training run (configs/train/). GPT and RETRO are trained by the same fields."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from retro.config.checks import require, require_at_least
from retro.config.early_stopping import EarlyStoppingConfig
from retro.config.loader import to_dict
from retro.config.model import ModelConfig
from retro.config.parallel import ParallelConfig
from retro.config.plan import PlanConfig
from retro.config.profile import ProfileConfig
from retro.config.qa import QaTrainConfig, parse_arm
from retro.config.retrofit import RetrofitConfig

#: Fields that a run may be resumed with other values of: place, bookkeeping, and speed (micro_batch, compile and
#: device change the last bits of sums). All others are the run's identity. Of `release` and `init_from` the content is
#: compared, not the path, and so of qa.questions; of `retrofit` the content of its base, and the model that comes of
#: it.
FREE_FIELDS = (
    "name",
    "run_root",
    "release",
    "init_from",
    "retrofit",
    "micro_batch",
    "loader_workers",
    "compile",
    "activation_checkpointing",
    "parallel",
    "device",
    "peak_tflops",
    "on_nonfinite",
    "nonfinite_limit",
    "log_every",
    "validate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
    "early_stopping",
    "async_checkpoints",
    "profile",
    "plan",
    "wandb",
    "wandb_project",
    "tensorboard",
)


@dataclass(frozen=True)
class TrainConfig:
    """Train one model. Steps decide the length; everything but the model is the same for GPT and RETRO.

    name: of the run, a folder below run_root; release: release.json of the prepared data, or its folder; dataset: the
    release's text, its question set `question_set` (fine-tuning), or the prepared questions of section qa (fine-tuning
    on question answering with the release's tokenizer, docs/qa.md); init_from: run folder (its newest checkpoint),
    checkpoint folder or exported model whose weights to start from; the model is then that one, so leave `model` out;
    retrofit: a pretrained model to start from, of this project or of Hugging Face, and the retrieval that it gets
    (docs/pretrained.md); leave `model` out too. freeze_backbone: train the retrieval parameters only, the decoder
    stays bit for bit as it is. model.cross_attention_layers empty = GPT, trained without neighbors.

    sequence_length N, with dataset qa the most that a question and its answer may take; num_neighbors K (a GPT does not
    read it), with dataset qa the most passages in the encoder; packing of the text into sequences, for training and
    validation: chunks (each padded to M tokens, documents of a sequence see each other) or documents (end to end
    without padding, and none sees another; docs/concepts.md). global_batch: sequences per step over all processes;
    micro_batch: sequences per process at a time, None = its whole share. Learning rate: linear warm-up over
    warmup_steps, then cosine to min_learning_rate at decay_steps (counted from the start; None = `steps`), where it
    stays. gradient_clip: largest norm of the whole gradient, None
    = not clipped. precision bf16 = autocast with float32 weights. seed: of the initial weights, the sample order and
    dropout. device: auto = an accelerator where there is one. compile: torch.compile of the whole model with shapes
    that do not depend on masks; runs without, and says so, where no compiler works. activation_checkpointing: parts
    whose activations are computed again in the backward pass instead of kept (memory for time, same bits): decoder
    (self-attention and feed-forward), cross_attention, encoder. loader_workers: processes that prepare batches, 0 = a
    thread.

    peak_tflops: of one device in this precision, what the logged model FLOPs utilisation is relative to; None = that of
    the GPU's name, or measured at the start.

    optimizer: adamw, or muon = orthogonalised momentum for the layers' matrices (Jordan et al. 2024), AdamW for all
    else. on_nonfinite: what happens when loss or gradient of a step are not finite numbers, always before the optimizer
    moves: stop = the run ends with an error; skip = the step counts but changes no weight; rollback = the run goes back
    to its newest checkpoint and leaves out all sequences up to the end of this step. nonfinite_limit: so many such
    steps in the whole run are borne, then it stops.

    keep_best: besides the newest checkpoints keep the one of the lowest validation loss, or of the best value of the
    metric of early_stopping, as `checkpoints/best`. early_stopping: end the run when validations find nothing better.
    async_checkpoints: write checkpoints while training goes on, from a copy of the state in memory. profile: record
    some steps with torch's profiler (section profile). plan: the hardware that `retro train --plan` plans for (section
    plan).

    In steps: log_every and checkpoint_every (0 = after the last step only), validate_every (0 = never, otherwise also
    after the last step; on the first validate_sequences of the validation split). keep_checkpoints: newest ones kept.
    """

    name: str
    release: str
    model: ModelConfig = field(default_factory=ModelConfig)
    run_root: str = "runs"
    dataset: Literal["text", "questions", "qa"] = "text"
    question_set: str = "docs"
    qa: QaTrainConfig | None = None
    init_from: str | None = None
    retrofit: RetrofitConfig | None = None
    freeze_backbone: bool = False
    sequence_length: int = 512
    num_neighbors: int = 2
    packing: Literal["chunks", "documents"] = "chunks"
    global_batch: int = 8
    micro_batch: int | None = None
    steps: int = 1000
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 6e-4
    min_learning_rate: float = 6e-5
    warmup_steps: int = 100
    decay_steps: int | None = None
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    gradient_clip: float | None = 1.0
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    nonfinite_limit: int = 10
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0
    compile: bool = False
    activation_checkpointing: tuple[Literal["decoder", "cross_attention", "encoder"], ...] = ()
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peak_tflops: float | None = None
    validate_every: int = 100
    validate_sequences: int = 32
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    keep_best: bool = True
    early_stopping: EarlyStoppingConfig | None = None
    async_checkpoints: bool = True
    log_every: int = 10
    loader_workers: int = 0
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    wandb_project: str = "retro-pretraining"
    tensorboard: bool = False
    profile: ProfileConfig | None = None
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self) -> None:
        name = self.name
        require(
            name not in ("", ".", "..") and "/" not in name and "\\" not in name,
            f"name: expected the name of a folder, found {name!r}",
        )
        require(self.release != "", "release: expected the path of a release.json, found an empty text")
        require_at_least(self, 1, "steps", "sequence_length", "num_neighbors", "global_batch", "micro_batch")
        require_at_least(self, 1, "validate_sequences", "keep_checkpoints")
        require_at_least(
            self, 0, "warmup_steps", "validate_every", "checkpoint_every", "log_every", "loader_workers", "seed"
        )
        require_at_least(self, 0, "weight_decay")
        require(self.learning_rate > 0, f"learning_rate: expected above 0, found {self.learning_rate}")
        require(
            0 <= self.min_learning_rate <= self.learning_rate,
            f"min_learning_rate: expected 0 to learning_rate {self.learning_rate}, found {self.min_learning_rate}",
        )
        require(
            self.warmup_steps <= self.steps,
            f"warmup_steps: expected at most steps {self.steps}, found {self.warmup_steps}",
        )
        require(
            self.decay_steps is None or max(self.warmup_steps, 1) <= self.decay_steps <= self.steps,
            f"decay_steps: expected warmup_steps {self.warmup_steps} to steps {self.steps}, or null for steps, found "
            f"{self.decay_steps}",
        )
        for beta in ("beta1", "beta2"):
            require(0 <= getattr(self, beta) < 1, f"{beta}: expected 0 to below 1, found {getattr(self, beta)}")
        require(self.adam_eps > 0, f"adam_eps: expected above 0, found {self.adam_eps}")
        require(
            self.gradient_clip is None or self.gradient_clip > 0,
            f"gradient_clip: expected above 0, or null for none, found {self.gradient_clip}",
        )
        require(
            self.peak_tflops is None or self.peak_tflops > 0,
            f"peak_tflops: expected above 0, or null to look it up or measure it, found {self.peak_tflops}",
        )
        require(
            self.micro_batch is None or self.global_batch % self.micro_batch == 0,
            f"global_batch: expected a multiple of micro_batch {self.micro_batch}, found {self.global_batch}",
        )
        parts = self.activation_checkpointing
        require(len(set(parts)) == len(parts), f"activation_checkpointing: expected each once, found {list(parts)}")
        foreign = [part for part in parts if part != "decoder" and self.is_plain_gpt]
        require(not foreign, f"activation_checkpointing: a plain GPT has no {', '.join(foreign)}; remove it")
        require(
            self.init_from is None or self.retrofit is None,
            "retrofit: excludes init_from, both name weights to start from; remove one of them",
        )
        require(
            not (self.freeze_backbone and self.is_plain_gpt),
            "freeze_backbone: a plain GPT (cross_attention_layers: []) has no other parameters to train; remove it",
        )
        positions = self.model.max_positions
        require(
            positions is None or self.sequence_length <= positions,
            f"sequence_length: expected at most the model's {positions} learned positions, found "
            f"{self.sequence_length}",
        )
        require(
            self.dataset == "text" or self.packing == "chunks",
            f"packing: expected 'chunks' with dataset {self.dataset!r}, found {self.packing!r}; each question is a "
            "sequence by itself, so remove packing",
        )
        self._check_questions()
        # With init_from or retrofit the chunk length may be the other model's, and is checked when the data is opened.
        require(
            self._model_is_elsewhere or self.sequence_length % self.model.chunk_length == 0,
            f"sequence_length: expected a multiple of {'model' if self.retrofit is None else 'retrofit'}.chunk_length "
            f"{self.model.chunk_length}, found {self.sequence_length}",
        )

    def _check_questions(self) -> None:
        require(
            (self.qa is not None) == (self.dataset == "qa"),
            "qa: expected with dataset 'qa', and with no other, "
            + (f"found dataset {self.dataset!r}" if self.qa is not None else "found none; give qa.questions"),
        )
        if self.qa is not None and self.is_plain_gpt:
            self.qa.check_gpt()
        require(
            not self.freeze_backbone or self.qa is None or parse_arm(self.qa.arm).in_encoder,
            "freeze_backbone: trains what reads passages in the encoder, and qa.arm puts none there; use retro or "
            "retro++, or remove it",
        )
        stopping = self.early_stopping
        if stopping is None:
            return
        require(self.validate_every > 0, "early_stopping: needs validations; set validate_every above 0")
        require(
            self.checkpoint_every > 0 or not self.keep_best,
            "early_stopping: the best weights are kept with checkpoint_every above 0 only; set it, or keep_best=false",
        )
        require(
            not stopping.asks_questions or self.dataset == "qa",
            f"early_stopping.metric: expected loss with dataset {self.dataset!r}, found {stopping.metric!r}",
        )
        require(
            not stopping.asks_questions or (self.parallel.strategy == "ddp" and self.parallel.tensor == 1),
            f"early_stopping.metric: {stopping.metric} asks the whole model in each process, and parallel spreads it "
            "over several (strategy fsdp or tensor above 1); use strategy ddp alone, or early_stopping.metric=loss",
        )

    @property
    def _model_is_elsewhere(self) -> bool:
        """Whether `model` is yet to be taken from the weights to start from."""
        return (self.init_from is not None or self.retrofit is not None) and self.model.vocab_size is None

    @property
    def is_plain_gpt(self) -> bool:
        """Whether the model is known to have no retrieval; with init_from that is known once it is opened."""
        if self.retrofit is not None:
            return not self.retrofit.cross_attention_layers
        return not self._model_is_elsewhere and not self.model.is_retro

    @property
    def retrieval(self) -> bool:
        """Whether the model reads neighbors."""
        return self.model.is_retro


def complete_result_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Stored `result_fields`, those of an earlier version too: a field that was not there yet has its default, which is
    what the earlier version did."""
    return {name: value for name, value in _completed(TrainConfig, stored).items() if name not in FREE_FIELDS}


def _completed(cls: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(stored)
    hints = typing.get_type_hints(cls)
    for entry in dataclasses.fields(cls):
        nested = hints[entry.name]
        if isinstance(out.get(entry.name), Mapping) and dataclasses.is_dataclass(nested):
            out[entry.name] = _completed(nested, out[entry.name])  # type: ignore[arg-type]
        elif entry.name not in out and entry.default is not dataclasses.MISSING:
            out[entry.name] = entry.default
        elif entry.name not in out and entry.default_factory is not dataclasses.MISSING:
            out[entry.name] = to_dict(entry.default_factory())
    return out


def result_fields(config: TrainConfig) -> dict[str, Any]:
    """The fields that decide the trained weights and the meaning of the metrics: a run's identity."""
    fields = {name: value for name, value in to_dict(config).items() if name not in FREE_FIELDS}
    if config.qa is not None:
        fields["qa"] = {name: value for name, value in fields["qa"].items() if name != "questions"}
    return fields
