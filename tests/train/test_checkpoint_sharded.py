"""Checkpoints of tensors that lie in pieces in several processes: written by some, read by others."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from retro.artifacts.manifest import MANIFEST_NAME, describe_file
from retro.config.errors import RetroError
from retro.train.checkpointing import storage
from retro.train.checkpointing.background import BackgroundSave
from retro.train.checkpointing.load import load_checkpoint
from retro.train.checkpointing.peers import Peers
from retro.train.checkpointing.save import Retention, save_checkpoint, take_snapshot, write_snapshot
from retro.train.checkpointing.staging import Staging
from tests.train import spread
from tests.train.spread import IDENTITY, check_state, keep_state, make, open_group, stored_state, whole_state
from tests.train.worlds import run_world


def save(folder: Path, seed: int, mesh: DeviceMesh | None, peers: Peers) -> Path:
    """A checkpoint of step `seed`, and beside it what it must give back."""
    model, optimizer = make(seed, mesh)
    keep_state(folder / f"expected-{seed}", whole_state(model, optimizer), peers.is_main)
    return save_checkpoint(
        folder / "checkpoints",
        model=model,
        optimizer=optimizer,
        resumed=spread.resumed(seed, peers.world),
        identity=IDENTITY,
        keep=9,
        peers=peers,
    )


def check(folder: Path, seed: int, mesh: DeviceMesh | None, peers: Peers, stepped: tuple[bool, ...] = (False,)) -> None:
    """The checkpoint of step `seed` fills a model spread over `mesh`; stepped: whether its optimizer has."""
    path = folder / "checkpoints" / f"step_{seed:06d}"
    for trained in stepped:
        model, optimizer = make(99, mesh, trained)
        found = load_checkpoint(path, model=model, optimizer=optimizer, identity=IDENTITY, peers=peers)
        assert found.state == spread.resumed(seed).state
        assert found.callbacks == spread.resumed(seed).callbacks
        check_state(whole_state(model, optimizer), stored_state(folder / f"expected-{seed}"))


# One process group of two.


def two_processes(rank: int, folder: Path) -> list[str]:
    peers = open_group()
    mesh = DeviceMesh("cpu", [0, 1])
    path = save(folder, 1, mesh, peers)
    files = sorted(file.name for file in path.iterdir())
    check(folder, 1, mesh, peers, stepped=(False, True))  # by as many as wrote it
    check(folder, 1, None, peers)  # replicated, as with ddp
    save(folder, 2, None, peers)
    check(folder, 2, mesh, peers)  # and from one file to pieces
    save_behind_training(folder, mesh, peers)
    check(folder, 3, mesh, peers)
    pass_on(folder, 3, 4, peers, tensor=mesh)
    check(folder, 4, mesh, peers)
    return files


def pass_on(folder: Path, seed: int, step: int, peers: Peers, **layout: DeviceMesh) -> None:
    """The checkpoint of step `seed` through a model of tensor-parallel layers into another checkpoint. The rows of its
    fused matrices are in another order, so their whole tensors cannot be had otherwise."""
    model, optimizer = make(96, **layout)
    path = folder / "checkpoints" / f"step_{seed:06d}"
    load_checkpoint(path, model=model, optimizer=optimizer, identity=IDENTITY, peers=peers)
    rest = spread.resumed(step, peers.world)
    save_checkpoint(
        folder / "checkpoints",
        model=model,
        optimizer=optimizer,
        resumed=rest,
        identity=IDENTITY,
        keep=9,
        peers=peers,
    )
    if peers.is_main:
        shutil.copy(folder / f"expected-{seed}", folder / f"expected-{step}")
    dist.barrier(group=peers.group)


def save_behind_training(folder: Path, mesh: DeviceMesh, peers: Peers) -> None:
    """The processes go on communicating, each at its own pace, while a thread of each writes."""
    model, optimizer = make(3, mesh)
    keep_state(folder / "expected-3", whole_state(model, optimizer), peers.is_main)
    snapshot = take_snapshot(model, optimizer, spread.resumed(3), peers, Staging())
    saving = BackgroundSave(
        lambda: write_snapshot(folder / "checkpoints", snapshot, IDENTITY, Retention(9, best=3), peers)
    )
    ended = torch.zeros(1)
    steps = 0
    while float(ended) < peers.world:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        ended = torch.tensor([float(saving.is_done)])
        dist.all_reduce(ended)
        steps += 1
    saving.wait()
    assert steps > 1


def test_two_processes_write_pieces_that_any_read(tmp_path: Path):
    files, other = run_world(2, two_processes, tmp_path, tmp_path)
    assert files == other
    pieces = [f"{stem}-{rank:05d}.safetensors" for stem in ("model", "optimizer") for rank in (0, 1)]
    indexes = ["model.index.json", "optimizer.index.json"]
    assert files == sorted([*pieces, *indexes, "config.json", MANIFEST_NAME, "rng.safetensors", "state.json"])
    checkpoints = tmp_path / "checkpoints"
    manifest = json.loads((checkpoints / "step_000001" / MANIFEST_NAME).read_text())
    assert sorted(f["name"] for f in manifest["files"]) == sorted(set(files) - {MANIFEST_NAME})
    assert (checkpoints / "step_000002" / "model.safetensors").is_file()  # replicated tensors are one file
    for step in (1, 2, 3, 4):
        check(tmp_path, step, None, Peers(), stepped=(False, True))  # by one process
    assert (checkpoints / "best").resolve().name == "step_000003"
    assert not [path for path in checkpoints.iterdir() if path.name.startswith(".")]


# Four processes, and some of them.


def four_processes(rank: int, folder: Path) -> None:
    everybody = open_group()
    groups = [(open_group(list(range(n))), DeviceMesh("cpu", list(range(n)))) for n in (1, 2, 3, 4)]
    hybrid = DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("replicas", "shard"))
    save(folder, 1, groups[3][1], everybody)
    for peers, mesh in groups:
        if rank < peers.world:
            check(folder, 1, mesh, peers)
            check(folder, 1, None, peers)
    dist.barrier()
    path = save(folder, 2, hybrid, everybody)
    index = json.loads((path / "model.index.json").read_text())
    assert all(
        sum(torch.Size(piece["shape"]).numel() for piece in entry["pieces"]) == torch.Size(entry["shape"]).numel()
        for entry in index["tensors"].values()
    )  # the replicas do not write twice
    for peers, mesh in groups:
        if rank < peers.world:
            check(folder, 2, mesh, peers)
    check(folder, 1, hybrid, everybody)
    dist.barrier()
    if rank < 3:
        save(folder, 3, groups[2][1], groups[2][0])
    dist.barrier()
    check(folder, 3, hybrid, everybody)
    both = DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("shard", "tensor"))
    pass_on(folder, 3, 4, everybody, mesh=both["shard"], tensor=both["tensor"])
    pass_on(folder, 4, 5, everybody, tensor=both["tensor"])  # two replicas of two
    for peers, mesh in groups:
        if rank < peers.world:
            check(folder, 4, mesh, peers)


@pytest.mark.slow
def test_four_processes_write_what_one_two_or_three_read(tmp_path: Path):
    run_world(4, four_processes, tmp_path, tmp_path)
    for step in (1, 2, 3, 4, 5):
        check(tmp_path, step, None, Peers())


# Errors: every process ends with the same line, none waits.


def error_of(function: Any, *arguments: Any) -> str:
    try:
        function(*arguments)
    except RetroError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def failures(rank: int, folder: Path) -> list[str]:
    peers, mesh = open_group(), DeviceMesh("cpu", [0, 1])
    lines = []
    original = storage.write_tensors

    def full(path: Path, *rest: Any) -> Any:
        if path.name == "optimizer-00001.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(path, *rest)

    save(folder, 1, mesh, peers)
    storage.write_tensors = full  # type: ignore[assignment]
    lines.append(error_of(save, folder, 2, mesh, peers))
    storage.write_tensors = original
    dist.barrier()  # the main process has removed what was half written
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000001"]
    # A file that one process alone reads for its checksum.
    model, optimizer = make(98, mesh)
    before = whole_state(model, optimizer)
    for name in ("model-00000.safetensors", "model-00001.safetensors", "optimizer.index.json", "rng.safetensors"):
        file = folder / "checkpoints" / "step_000001" / name
        content = file.read_bytes()
        dist.barrier()
        if rank == 0:
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        dist.barrier()
        lines.append(
            error_of(
                lambda: load_checkpoint(
                    folder / "checkpoints" / "step_000001",
                    model=model,
                    optimizer=optimizer,
                    identity=IDENTITY,
                    peers=peers,
                )
            )
        )
        dist.barrier()
        if rank == 0:
            file.write_bytes(content)
        dist.barrier()
    check_state(whole_state(model, optimizer), before)
    check(folder, 1, mesh, peers)
    return lines


def test_an_error_of_one_process_ends_all_with_its_line(tmp_path: Path):
    lines, other = run_world(2, failures, tmp_path, tmp_path)
    assert lines == other
    assert lines[0] == (
        f"CheckpointError: {tmp_path / 'checkpoints'}: the checkpoint of step 2 could not be written: No space left on "
        "device (optimizer-00001.safetensors); make room or let the run write there, and start the run again, it "
        "resumes from its newest checkpoint"
    )
    for line, name in zip(
        lines[1:],
        ("model-00000.safetensors", "model-00001.safetensors", "optimizer.index.json", "rng.safetensors"),
        strict=True,
    ):
        assert line.startswith(f"ArtifactCorruptError: {tmp_path / 'checkpoints' / 'step_000001' / name}: ")


# One process reads what two have written, damaged or forged.


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    run_world(2, write_once, folder, folder)
    return folder


def write_once(rank: int, folder: Path) -> None:
    save(folder, 1, DeviceMesh("cpu", [0, 1]), open_group())


def refused(path: Path) -> str:
    model, optimizer = make(97)
    before = whole_state(model, optimizer)
    line = error_of(lambda: load_checkpoint(path, model=model, optimizer=optimizer, identity=IDENTITY))
    check_state(whole_state(model, optimizer), before)
    return line


@pytest.mark.parametrize("name", ["model-00001.safetensors", "optimizer-00000.safetensors", "model.index.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damage_is_refused_by_file_name(written: Path, name: str, damage: str):
    path = written / "checkpoints" / "step_000001"
    file = path / name
    content = file.read_bytes()
    try:
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(content[:-9] if damage == "truncated" else content[:-3] + b"\1" + content[-2:])
        line = refused(path)
    finally:
        file.write_bytes(content)
    assert line.startswith(f"ArtifactCorruptError: {file}: ")
    assert line.endswith("resume from the one before it, or restore the file")


def forge(path: Path, name: str, content: dict[str, Any]) -> None:
    """Somebody who alters the index can alter the manifest too."""
    (path / name).write_text(json.dumps(content))
    manifest = json.loads((path / MANIFEST_NAME).read_text())
    manifest["files"] = [describe_file(path / entry["name"]) for entry in manifest["files"]]
    (path / MANIFEST_NAME).write_text(json.dumps(manifest))


def leave_the_folder(index: dict[str, Any]) -> None:
    next(iter(index["tensors"].values()))["pieces"][0]["file"] = "../../secret.safetensors"


def name_a_file_of_nobody(index: dict[str, Any]) -> None:
    next(iter(index["tensors"].values()))["pieces"][0]["file"] = "model-00077.safetensors"


def drop_a_piece(index: dict[str, Any]) -> None:
    next(entry for entry in index["tensors"].values() if len(entry["pieces"]) > 1)["pieces"].pop()


def write_a_piece_twice(index: dict[str, Any]) -> None:
    pieces = next(entry for entry in index["tensors"].values() if len(entry["pieces"]) > 1)["pieces"]
    pieces[0]["offset"] = pieces[1]["offset"]


def grow(index: dict[str, Any]) -> None:
    next(iter(index["tensors"].values()))["shape"][0] = 1 << 60


@pytest.mark.parametrize(
    "forgery",
    [leave_the_folder, name_a_file_of_nobody, drop_a_piece, write_a_piece_twice, grow],
    ids=lambda f: f.__name__,
)
def test_a_forged_index_is_refused(written: Path, forgery: Any):
    path = written / "checkpoints" / "step_000001"
    before = {name: (path / name).read_bytes() for name in ("model.index.json", MANIFEST_NAME)}
    index = json.loads(before["model.index.json"])
    forgery(index)
    try:
        forge(path, "model.index.json", index)
        line = refused(path)
    finally:
        for name, content in before.items():
            (path / name).write_bytes(content)
    assert line.startswith("Artifact"), line
    assert str(path) in line


def test_a_file_that_the_manifest_does_not_record_is_not_read(written: Path):
    path = written / "checkpoints" / "step_000001"
    before = (path / MANIFEST_NAME).read_bytes()
    manifest = json.loads(before)
    manifest["files"] = [entry for entry in manifest["files"] if entry["name"] != "model-00001.safetensors"]
    try:
        (path / MANIFEST_NAME).write_text(json.dumps(manifest))
        line = refused(path)
    finally:
        (path / MANIFEST_NAME).write_bytes(before)
    assert "model-00001.safetensors: not recorded in the manifest" in line
