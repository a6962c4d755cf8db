"""What a run says of itself before its first step."""

from __future__ import annotations

from retro.artifacts.release import Release
from retro.config.train import TrainConfig
from retro.data.qa.dataset import QaDataset
from retro.data.text_dataset import TextDataset
from retro.model.retro import count_parameters
from retro.train.data import RunData
from retro.train.run_folder import RunFolder
from retro.train.trainer import Trainer


def first_lines(config: TrainConfig, trainer: Trainer, folder: RunFolder, release: Release, data: RunData) -> list[str]:
    """What is trained on what, and which share of it is padding or lacks neighbors."""
    lines = [_summary(config, trainer, folder, release), *_padding(config, data), *_missing_neighbors(data)]
    return lines + _questions(config, data)


def _questions(config: TrainConfig, data: RunData) -> list[str]:
    """Say which questions are trained on, and why others are not."""
    if config.qa is None or not isinstance(data.train, QaDataset):
        return []
    lines = []
    for split, dataset in ((config.qa.split, data.train), (config.qa.validation_split, data.validation)):
        if isinstance(dataset, QaDataset):
            out = dataset.left_out
            left_out = f"; left out: {out.too_long} too long for the prompt, {out.long_answer} of a long answer, "
            left_out += f"{out.no_answer} without an answer to train on"
            lines.append(
                f"arm {config.qa.arm}: {len(dataset):,} questions of split {split}" + (left_out if any(out) else "")
            )
    return lines


def _padding(config: TrainConfig, data: RunData) -> list[str]:
    """Say which share of the training positions is padding, and what would mend it."""
    if not isinstance(data.train, TextDataset):
        return []
    share = data.train.padding_share()
    line = f"packing {config.packing}: {share:.2%} of the positions hold padding"
    return [line + ("; packing=documents has none" if config.packing == "chunks" and share >= 0.005 else "")]


def _missing_neighbors(data: RunData) -> list[str]:
    """Say how many neighbors the training chunks lack, on a sample of sequences, and what would mend it."""
    if not isinstance(data.train, TextDataset):
        return []
    found = data.train.shortage()
    if found.excluded + found.unstored == 0:
        return []
    excluded, unstored = found.excluded / found.entries, found.unstored / found.entries
    line = f"neighbors missing on {found.chunks:,} sampled chunks: {unstored:.2%} were not found"
    line += f", {excluded:.2%} are of other documents of the sequence"
    return [line + ("; raise neighbors.keep of the preparation" if found.excluded else "")]


def _summary(config: TrainConfig, trainer: Trainer, folder: RunFolder, release: Release) -> str:
    kind = "RETRO" if config.model.is_retro else "GPT"
    processes, loader, state = trainer.processes, trainer.loader, trainer.state
    what = f"resuming at step {state.step}" if state.step else "training"
    frozen = sum(p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    size = f"{count_parameters(trainer.model):,} parameters" + (f" ({frozen:,} of them frozen)" if frozen else "")
    most = "at most " if config.qa is not None else ""
    return (
        f"{folder.path}: {what}: {kind}, {size}, {config.steps} steps of "
        f"{config.global_batch} x {most}{config.sequence_length} tokens ({loader.micro_batches_per_step} "
        f"micro-batch(es) of {loader.micro_batch} on {processes.world} process(es), {processes.device.type}, "
        f"{config.precision}), "
        f"{len(loader.dataset):,} sequences of release {release.fingerprint}"
    )
