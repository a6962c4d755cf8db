"""`retro checkpoint convert`: another number of files, the same checkpoint."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from retro.artifacts.manifest import open_manifest, verify_files
from retro.cli.main import main
from retro.config.checkpoints import ConvertConfig
from retro.config.errors import ArtifactCorruptError, ArtifactMissingError, ArtifactUnfinishedError, ConfigError
from retro.inference.checkpoint import open_checkpoint
from retro.model.pretrained import load_pretrained, open_pretrained
from retro.model.tensor_files import open_tensor_files
from retro.train.checkpointing.load import load_checkpoint
from retro.train.checkpointing.save import save_checkpoint
from retro.train.stored import convert
from retro.train.stored.convert import convert_checkpoint, cut
from tests.train.spread import CONFIG, IDENTITY, check_state, make, resumed, whole_state
from tests.train.worlds import run_world

SMALL = ["config.json", "manifest.json", "rng.safetensors", "state.json"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of one process, step 7, in a run folder."""
    model, optimizer = make(7)
    return save_checkpoint(
        tmp_path / "run" / "checkpoints",
        model=model,
        optimizer=optimizer,
        resumed=resumed(7),
        identity=IDENTITY,
        keep=9,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("files", [2, 3, 8])
def test_there_and_back_gives_the_same_bytes(checkpoint: Path, tmp_path: Path, files: int) -> None:
    convert_checkpoint(checkpoint, tmp_path / "pieces", files)
    names = {path.name for path in (tmp_path / "pieces").iterdir()}
    shards = {f"{stem}-{number:05d}.safetensors" for stem in ("model", "optimizer") for number in range(files)}
    assert names == {*SMALL, "model.index.json", "optimizer.index.json", *shards}
    for stem in ("model", "optimizer"):
        one, many = open_tensor_files(checkpoint, stem), open_tensor_files(tmp_path / "pieces", stem)
        assert one.names == many.names and len(many.files) == files
        assert all(torch.equal(one.read(name), many.read(name)) for name in one.names)
    convert_checkpoint(tmp_path / "pieces", tmp_path / "one", 1)
    assert contents(tmp_path / "one") == contents(checkpoint)


def test_the_manifest_is_the_same_but_for_the_files(checkpoint: Path, tmp_path: Path) -> None:
    convert_checkpoint(checkpoint, tmp_path / "pieces", 2)
    before, after = (json.loads((path / "manifest.json").read_text()) for path in (checkpoint, tmp_path / "pieces"))
    assert before.pop("files") != after.pop("files")
    assert before == after
    assert verify_files(tmp_path / "pieces", open_manifest(tmp_path / "pieces")) == []


def test_a_run_goes_on_from_what_was_converted(checkpoint: Path, tmp_path: Path) -> None:
    convert_checkpoint(checkpoint, tmp_path / "pieces", 3)
    expected = whole_state(*make(7))
    model, optimizer = make(99)
    found = load_checkpoint(tmp_path / "pieces", model=model, optimizer=optimizer, identity=IDENTITY)
    assert found.state == resumed(7).state and found.callbacks == resumed(7).callbacks
    assert torch.equal(found.rng["cpu"], resumed(7).rng["cpu"])
    check_state(whole_state(model, optimizer), expected)


def test_one_name_for_the_weights_of_both_forms(checkpoint: Path, tmp_path: Path) -> None:
    """By which evaluations and runs that began with them know them."""
    convert_checkpoint(checkpoint, tmp_path / "pieces", 3)
    one, many = open_pretrained(checkpoint), open_pretrained(tmp_path / "pieces")
    assert one.fingerprint() == many.fingerprint()
    assert open_checkpoint(checkpoint).fingerprint == open_checkpoint(tmp_path / "pieces").fingerprint
    assert one.fingerprint() == open_checkpoint(checkpoint).fingerprint
    left, right = load_pretrained(checkpoint).state_dict(), load_pretrained(tmp_path / "pieces").state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_checkpoint_of_a_run_that_has_not_stepped(tmp_path: Path) -> None:
    model, optimizer = make(1, trained=False)
    checkpoint = save_checkpoint(
        tmp_path / "checkpoints", model=model, optimizer=optimizer, resumed=resumed(0), identity=IDENTITY, keep=9
    )
    convert_checkpoint(checkpoint, tmp_path / "pieces", 2)
    assert open_tensor_files(tmp_path / "pieces", "optimizer").names == ()
    load_checkpoint(tmp_path / "pieces", model=make(2)[0], optimizer=optimizer, identity=IDENTITY)
    convert_checkpoint(tmp_path / "pieces", tmp_path / "one", 1)
    assert contents(tmp_path / "one") == contents(checkpoint)


def test_pieces_are_as_equal_as_can_be() -> None:
    assert [cut((7, 2), 3, number) for number in range(3)] == [
        ((0, 0), (3, 2)),
        ((3, 0), (2, 2)),
        ((5, 0), (2, 2)),
    ]
    assert [cut((2,), 3, number) for number in range(3)] == [((0,), (1,)), ((1,), (1,)), None]
    assert [cut((), 2, number) for number in range(2)] == [((), ()), None]
    assert cut((3, 0), 2, 0) is None


def test_the_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint.parent / "best").symlink_to(checkpoint.name)
    for number, path in enumerate((checkpoint.parent.parent, checkpoint, checkpoint.parent / "best")):
        output = tmp_path / f"out-{number}"
        assert main(["checkpoint", "convert", f"checkpoint={path}", f"output={output}", "files=2"]) == 0
        assert capsys.readouterr().out.startswith(f"{output}: step 7, 9 files, ")
    assert main(["checkpoint", "convert", f"checkpoint={checkpoint}", f"output={output}"]) == 2
    assert f"output: {output}: exists already" in capsys.readouterr().err
    assert len(list(output.iterdir())) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": 0}, "files: expected 1 to 99999, found 0"),
        ({"files": 100_000}, "files: expected 1 to 99999, found 100000"),
        ({"checkpoint": ""}, "checkpoint: expected a path, found an empty text"),
        ({"output": ""}, "output: expected a path, found an empty text"),
    ],
)
def test_the_configuration(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        ConvertConfig(**{"checkpoint": "a", "output": "b", **changes})  # type: ignore[arg-type]


def test_what_is_no_whole_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(ArtifactMissingError, match="nowhere: no such run or checkpoint"):
        convert_checkpoint(tmp_path / "nowhere", output, 1)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ArtifactMissingError, match="no finished checkpoint"):
        convert_checkpoint(tmp_path / "empty", output, 1)
    for name in ("optimizer.safetensors", "state.json"):
        content = bytearray((checkpoint / name).read_bytes())
        content[len(content) // 2] ^= 1
        original = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(bytes(content))
        with pytest.raises(ArtifactCorruptError, match=rf"{name}: expected sha256 .*; use another checkpoint$"):
            convert_checkpoint(checkpoint, output, 2)
        (checkpoint / name).write_bytes(original)
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(ArtifactUnfinishedError, match=r"no manifest\.json"):
        convert_checkpoint(checkpoint, output, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run"]


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "write_index", fail)
    with pytest.raises(ConfigError, match="out: cannot be written \\(No space left on device\\); make room"):
        convert_checkpoint(checkpoint, tmp_path / "out", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def die_at_the_end(rank: int, checkpoint: Path, output: Path) -> None:
    """Body of a process."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    convert.write_manifest = die  # type: ignore[assignment]
    convert_checkpoint(checkpoint, output, 2)


def test_killed_before_the_end_nothing_is_there_and_the_next_one_clears_up(checkpoint: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (code,) = run_world(1, die_at_the_end, tmp_path / "world", checkpoint, place / "out")
    assert code == -signal.SIGKILL
    (left,) = place.iterdir()
    assert left.name.startswith(".out.tmp-") and (left / "optimizer.index.json").is_file()
    convert_checkpoint(checkpoint, place / "out", 2)
    assert [path.name for path in place.iterdir()] == ["out"]


def test_the_model_of_the_tests_has_tensors_that_do_not_divide() -> None:
    assert CONFIG.width % 4 and CONFIG.vocab_size % 2
