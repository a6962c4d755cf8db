"""How the processes of a run are laid out: replicas x shards x tensor parallelism."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from retro.config.errors import ConfigError
from retro.config.parallel import ParallelConfig

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

#: Dimensions of the mesh, outermost first: neighbors in rank compute layers together, then share one copy of the
#: weights, so that the busiest groups lie within a machine.
REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor"


@dataclass(frozen=True)
class Layout:
    """Rank r = ((replica * shard) + shard index) * tensor + tensor index; world = replicas * shard * tensor."""

    replicas: int
    shard: int
    tensor: int

    @property
    def data_world(self) -> int:
        """Processes that see different sequences."""
        return self.replicas * self.shard


def lay_out(config: ParallelConfig, world: int) -> Layout:
    """The layout of `world` processes. Raises ConfigError if they cannot be laid out as configured."""
    if world % config.tensor:
        raise ConfigError(
            f"parallel.tensor: expected a divisor of the number of processes, {world}, found {config.tensor}; start "
            f"{_nearest(world, config.tensor)} processes, or change tensor"
        )
    data = world // config.tensor
    if config.strategy == "ddp":
        return Layout(data, 1, config.tensor)
    shard = data if config.shard is None else config.shard
    if data % shard:
        over = "" if config.tensor == 1 else f" / tensor {config.tensor}"
        raise ConfigError(
            f"parallel.shard: expected a divisor of the number of processes, {world}{over} = {data}, found {shard}; "
            f"start {_nearest(world, shard * config.tensor)} processes, or change shard"
        )
    if shard == 1 and data > 1:
        raise ConfigError(
            "parallel.shard: expected 2 or more, found 1: every process would hold all weights; set strategy=ddp"
        )
    return Layout(data // shard, shard, config.tensor)


def _nearest(world: int, divisor: int) -> int:
    return max(1, round(world / divisor)) * divisor


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """The mesh [replicate, shard, tensor] of all processes; every one of them must call this."""
    from torch.distributed.device_mesh import init_device_mesh

    shape = (layout.replicas, layout.shard, layout.tensor)
    return init_device_mesh(device_type, shape, mesh_dim_names=(REPLICATE, SHARD, TENSOR))


def shard_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    """The part of the mesh that FSDP works on: [shard], or [replicate, shard] for hybrid sharding."""
    return mesh[SHARD] if layout.replicas == 1 else mesh[REPLICATE, SHARD]


def open_data_group(layout: Layout) -> ProcessGroup | None:
    """The processes of this one's place in tensor parallelism, over which gradients are averaged; None = all of them.

    Every process must call this.
    """
    import torch.distributed as dist

    if layout.tensor == 1:
        return None
    groups = [[data * layout.tensor + place for data in range(layout.data_world)] for place in range(layout.tensor)]
    own, _ = dist.new_subgroups_by_enumeration(groups)
    return own
