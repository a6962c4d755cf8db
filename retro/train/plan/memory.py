"""Memory of one device by part, for a configuration and a number of devices."""

from __future__ import annotations

from dataclasses import dataclass

from retro.config.model import ModelConfig
from retro.config.train import TrainConfig
from retro.data.loader import split_batch
from retro.model.activations.attention import Arithmetic
from retro.model.activations.segments import Batch, most_activations
from retro.train.parallel.mesh import lay_out
from retro.train.plan.devices import GIB
from retro.train.plan.parameters import Parameter, list_parameters
from retro.train.plan.sizes import sequence_sizes

#: What a process holds besides tensors, bytes: CUDA's context and libraries; those of NCCL; on a CPU, the interpreter
#: with its libraries. Rough.
CUDA_RUNTIME, NCCL_RUNTIME, CPU_RUNTIME = GIB, GIB, GIB // 2
#: Share of all tensors that a GPU's allocator holds beyond them, in pieces that nothing fits into. Rough.
FRAGMENTED = 0.05


@dataclass(frozen=True)
class Layout:
    """How a run is spread. devices = replicas x shard x tensor; micro_batches: per step and process."""

    devices: int
    replicas: int
    shard: int
    tensor: int
    micro_batch: int
    micro_batches: int


@dataclass(frozen=True)
class Memory:
    """Bytes. device: by part, of the device that needs most; unchecked: activations by part without activation
    checkpointing; staging: in the host's memory, of the process that stages most; checkpoint: of one, on disk."""

    device: dict[str, int]
    unchecked: dict[str, int]
    staging: int
    checkpoint: int

    @property
    def total(self) -> int:
        """Of one device."""
        return sum(self.device.values())


def find_layout(config: TrainConfig, model: ModelConfig, devices: int) -> Layout:
    """How `devices` processes share the work. Raises ConfigError for numbers that do not divide."""
    found = lay_out(config.parallel, devices)
    if found.tensor > 1:
        from retro.train.parallel.tensor_parallel import check_tensor_parallel

        check_tensor_parallel(model, found.tensor)
    micro = split_batch(config.global_batch, config.micro_batch, found.data_world)
    count = config.global_batch // (micro * found.data_world)
    return Layout(devices, found.replicas, found.shard, found.tensor, micro, count)


def plan_memory(config: TrainConfig, model: ModelConfig, layout: Layout, on_cpu: bool) -> Memory:
    """The most that one device holds at a time: in the middle of a step, or while a checkpointed part is made again.

    model: with its vocabulary size. Gradients are counted whole at that time; with a single micro-batch per step they
    come only as activations go, and less is needed.
    """
    product = 2 if config.precision == "bf16" else 4
    parameters = list_parameters(model, tensor=layout.tensor, frozen_backbone=config.freeze_backbone)
    arithmetic = Arithmetic(
        product=product, on_cpu=on_cpu, tensor=layout.tensor, frozen=config.freeze_backbone and model.is_retro
    )
    batch = micro_batch_sizes(config, model, layout.micro_batch)
    checkpointed = frozenset(config.activation_checkpointing)
    activations = most_activations(model, batch, arithmetic, checkpointed, _head_gradient(config, model, layout))
    trained = [p for p in parameters if p.is_trained]
    weights, state = sum(_held(p, layout) for p in parameters) * 4, _optimizer_bytes(config, trained, layout)
    device = {
        "weights": weights,
        "gradients": sum(_held(p, layout) for p in trained) * 4,
        "optimizer": state,
        "whole_gradients": _whole_gradients(config, layout, trained),
        "weight_copies": _weight_copies(config, layout, parameters, product),
        "activations_decoder": activations.kept["decoder"],
        "activations_cross_attention": activations.kept["cross_attention"],
        "activations_encoder": activations.kept["encoder"],
        "recomputed": activations.recomputed,
        "loss": activations.loss,
        "batch": batch.tokens * 17 + batch.neighbor_tokens * 18,
        "communication": _communication(config, layout, parameters, product, activations.total),
    }
    device["runtime"] = CPU_RUNTIME
    if not on_cpu:
        device["runtime"] = CUDA_RUNTIME + round(FRAGMENTED * sum(v for k, v in device.items() if k != "runtime"))
        device["runtime"] += NCCL_RUNTIME if layout.devices > 1 else 0
    return Memory(
        device=device,
        unchecked=activations.whole,
        staging=weights + state if config.async_checkpoints else 0,
        checkpoint=sum(4 * p.size for p in parameters) + _optimizer_bytes(config, trained),
    )


def micro_batch_sizes(config: TrainConfig, model: ModelConfig, sequences: int) -> Batch:
    """Sizes of a micro-batch of `sequences`."""
    chunk, sizes = model.chunk_length, sequence_sizes(config, model)
    packed = config.packing == "documents"
    if not sizes.chunks:
        return Batch(sequences, config.sequence_length, chunk, packed=packed)
    return Batch(
        sequences,
        config.sequence_length,
        chunk,
        num_neighbors=sizes.num_neighbors,
        retrieved=sizes.retrieved,
        chunks=sequences * sizes.chunks,
        packed=packed,
    )


def _held(parameter: Parameter, layout: Layout | None) -> int:
    """Scalars of a parameter that one process holds; None = all. FSDP shards all but vectors."""
    if layout is None:
        return parameter.size
    return -(-parameter.local // layout.shard) if parameter.is_sharded else parameter.local


def _optimizer_bytes(config: TrainConfig, trained: list[Parameter], layout: Layout | None = None) -> int:
    """Two float32 moments per parameter; one where Muon orthogonalises it."""
    muon = config.optimizer == "muon"
    return sum(_held(p, layout) * (4 if muon and p.is_matrix else 8) for p in trained)


def _reduce_bytes(config: TrainConfig) -> int:
    return 2 if config.parallel.reduce == "bf16" else 4


def _waits_with_gradients(config: TrainConfig, layout: Layout) -> bool:
    return layout.shard > 1 and layout.micro_batches > 1 and config.parallel.exchange == "step"


def _whole_gradients(config: TrainConfig, layout: Layout, trained: list[Parameter]) -> int:
    """fsdp sums the gradients of all but a step's last micro-batch where they are made, and exchanges them once: until
    then every process holds those of all matrices whole, unless they are exchanged with every micro-batch."""
    if not _waits_with_gradients(config, layout):
        return 0
    return sum(p.local for p in trained if p.is_sharded) * _reduce_bytes(config)


def _head_gradient(config: TrainConfig, model: ModelConfig, layout: Layout) -> int:
    """fsdp exchanges the gradient of the vocabulary's matrix at the end of the backward pass, but it is there from its
    beginning on."""
    assert model.vocab_size is not None
    if layout.shard == 1 or _waits_with_gradients(config, layout) or config.freeze_backbone:
        return 0
    return 4 * model.vocab_size * model.width


def _units(parameters: list[Parameter]) -> dict[str, int]:
    """Scalars of one process by what FSDP gathers at once, "" = what is gathered for the whole pass."""
    units: dict[str, int] = {"": 0}
    for parameter in parameters:
        units[parameter.unit] = units.get(parameter.unit, 0) + parameter.local * parameter.is_sharded
    return units


def _weight_copies(config: TrainConfig, layout: Layout, parameters: list[Parameter], product: int) -> int:
    """Whole weights besides the float32 ones that the optimizer moves. Where each process holds them: autocast's
    bfloat16 copies, made once per forward pass. Sharded: gathered layers, two at a time, or all of them where they are
    not freed after their forward pass; and the rest in float32, for the whole pass."""
    if layout.shard == 1:
        return sum(2 * p.local for p in parameters if p.is_matrix) if product == 2 else 0
    units = _units(parameters)
    rest = units.pop("")
    largest = sorted(units.values())[-2:]
    return 4 * rest + product * sum(largest if config.parallel.reshard_after_forward else units.values())


def _communication(
    config: TrainConfig, layout: Layout, parameters: list[Parameter], product: int, activations: int
) -> int:
    """Buffers of exchanges. ddp: of all gradients, for good. With tensor parallelism: of all gradients, but when the
    activations are gone. fsdp: of a layer that is gathered, and of the gradients of two, whole and as they are
    summed; and of what is in no layer, likewise when the activations are gone."""
    if layout.shard > 1:
        units = _units(parameters)
        rest = units.pop("") * (4 + 2 * _reduce_bytes(config))
        return max(max(units.values()) * (2 * product + 2 * _reduce_bytes(config)), rest - activations)
    if layout.replicas == 1:
        return 0
    gradients = sum(4 * p.local for p in parameters if p.is_trained)
    return gradients if layout.tensor == 1 else max(0, gradients - activations)
