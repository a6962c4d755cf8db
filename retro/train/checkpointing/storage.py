"""torch.distributed.checkpoint over tensor sets: its planners decide who writes and reads what, the files are ours.

The stock writers pickle their metadata, or leave it in the files' headers without saying which pieces make a tensor.
Entries are named `<stem>/<tensor>`, so one plan serves both sets of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from retro.artifacts.atomic import fsync_directory
from retro.model.tensor_bytes import write_tensors
from retro.model.tensor_files import TensorFiles, write_index


class SavePlans(DefaultSavePlanner):
    """Plans over staged tensors. A piece that several processes hold is written by one, so that all write alike."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].__get_tensor_shard__(index)


class LoadPlans(DefaultLoadPlanner):
    """Plans over tensors that are to be filled (see retro.train.parallel.state)."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        value = self.state_dict[index.fqn]
        return value.__get_tensor_shard__(index) if hasattr(value, "__get_tensor_shard__") else value


class TensorSetWriter(StorageWriter):
    """Writes `<stem>-NNNNN.safetensors`, one per set and process that has something to write, and the indexes.

    rank: of this process; stems: the sets, each of which gets an index, also without a tensor. After `write_data`,
    `files` are the manifest's records of this process's files; after `finish`, which the main process calls,
    `pieces` is what the indexes say.
    """

    def __init__(self, folder: Path, rank: int, stems: tuple[str, ...]) -> None:
        self.folder, self.rank, self.stems = folder, rank, stems
        self.files: list[dict[str, Any]] = []

    def reset(self, checkpoint_id: str | PathLike | None = None) -> None:
        self.files = []

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, dict[str, Tensor]] = {stem: {} for stem in self.stems}
        results = []
        for item in plan.items:
            assert item.tensor_data is not None
            size = item.tensor_data.chunk.sizes
            if size.numel() == 0:
                continue
            stem, name = item.index.fqn.split("/", 1)
            key = name if name not in tensors[stem] else f"{name}@{','.join(map(str, item.tensor_data.chunk.offsets))}"
            tensors[stem][key] = planner.resolve_data(item)  # type: ignore[assignment]
            piece = {
                "file": f"{stem}-{self.rank:05d}.safetensors",
                "key": key,
                "offset": list(item.tensor_data.chunk.offsets),
                "shape": list(size),
            }
            results.append(WriteResult(item.index, size.numel(), piece))
        for stem, content in tensors.items():
            if content:
                self.files.append(write_tensors(self.folder / f"{stem}-{self.rank:05d}.safetensors", content))
        fsync_directory(self.folder)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        tensors: dict[str, dict[str, dict[str, Any]]] = {stem: {} for stem in self.stems}
        for full, entry in sorted(metadata.state_dict_metadata.items()):
            assert isinstance(entry, TensorStorageMetadata)
            stem, name = full.split("/", 1)
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            tensors[stem][name] = {"dtype": dtype, "shape": list(entry.size), "pieces": []}
        for result in (result for of_rank in results for result in of_rank):
            stem, name = result.index.fqn.split("/", 1)
            tensors[stem][name]["pieces"].append(result.storage_data)
        for stem, entries in tensors.items():
            write_index(self.folder, stem, entries)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike) -> bool:
        return False


class TensorSetReader(StorageReader):
    """Reads the sets that `open_tensor_files` gave, by stem; of each file only what this process needs."""

    def __init__(self, sets: Mapping[str, TensorFiles]) -> None:
        self.sets = sets

    def reset(self, checkpoint_id: str | PathLike | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        out: dict[str, Any] = {}
        for stem, files in self.sets.items():
            for name in files.names:
                chunks = [
                    ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape))
                    for piece in files.pieces(name)
                ]
                size = torch.Size(files.shape(name))
                out[f"{stem}/{name}"] = TensorStorageMetadata(TensorProperties(files.dtype(name)), size, chunks)
        return Metadata(out)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @torch.no_grad()
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            assert item.storage_index.offset is not None
            stem, name = item.storage_index.fqn.split("/", 1)
            # The plan counts from the start of the stored piece, a set from that of the tensor.
            begin = [a + b for a, b in zip(item.storage_index.offset, item.storage_offsets, strict=True)]
            content = self.sets[stem].read_slice(name, begin, list(item.lengths))
            target = planner.resolve_tensor(item).detach()
            target.copy_(content)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike) -> bool:
        return False
