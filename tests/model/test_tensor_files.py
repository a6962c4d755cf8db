"""Tensor sets: any cutting reads back bit for bit; what somebody else may have written is refused in one line."""

from __future__ import annotations

import json
import math
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from retro.config.errors import ArtifactCorruptError, ArtifactError, ArtifactMismatchError, ArtifactMissingError
from retro.model.tensor_bytes import content_sha256, kinds_of, write_file
from retro.model.tensor_files import open_tensor_files, write_index
from retro.model.tensor_header import DTYPES, read_header
from tests.model.pieces import Block, by_rows, write_pieces


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Every pattern of bits, NaN with payload among them."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    count = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def bits(tensor: Tensor) -> tuple[object, ...]:
    raw = b"" if tensor.numel() == 0 else tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return (tensor.dtype, tuple(tensor.shape), raw)


def draw_blocks(draw: Any, offset: tuple[int, ...], shape: tuple[int, ...], depth: int) -> list[Block]:
    """A random division of a block into blocks, by cuts in any direction."""
    cuttable = [axis for axis, size in enumerate(shape) if size > 1]
    if depth == 0 or not cuttable or not draw(st.booleans()):
        return [(offset, shape)]
    axis = draw(st.sampled_from(cuttable))
    at = draw(st.integers(1, shape[axis] - 1))

    def moved(values: tuple[int, ...], value: int) -> tuple[int, ...]:
        return (*values[:axis], value, *values[axis + 1 :])

    first = draw_blocks(draw, offset, moved(shape, at), depth - 1)
    return first + draw_blocks(draw, moved(offset, offset[axis] + at), moved(shape, shape[axis] - at), depth - 1)


@st.composite
def cut_sets(draw: Any) -> tuple[dict[str, Tensor], dict[str, list[tuple[int, Block]]]]:
    """Tensors, and how they are cut and spread over files."""
    tensors, blocks = {}, {}
    for number in range(draw(st.integers(0, 3))):
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
        tensor = random_bits(shape, draw(st.sampled_from(list(DTYPES.values()))), number)
        name = draw(st.sampled_from(["layers.{}.weight", "a/b {}", "é\n{}", '"{}'])).format(number)
        tensors[name] = tensor
        cut = [] if 0 in shape else draw_blocks(draw, (0,) * len(shape), shape, 4)
        blocks[name] = [(draw(st.integers(0, 3)), block) for block in draw(st.permutations(cut))]
    return tensors, blocks


@settings(max_examples=120, deadline=None)
@given(cut_sets(), st.data())
def test_any_cutting_reads_back_bit_for_bit_and_every_slice_is_right(cut: Any, data: Any) -> None:
    tensors, blocks = cut
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pieces(folder, "model", tensors, lambda name, _: blocks[name])
        found = open_tensor_files(folder, "model")
        assert found.names == tuple(sorted(tensors)) and found.index == folder / "model.index.json"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "whole.safetensors")
        whole = open_tensor_files(folder, "whole")
        assert whole.names == found.names and whole.files == (folder / "whole.safetensors",)
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.element_size()
            assert found.num_bytes(name) == whole.num_bytes(name) == size
            start = [data.draw(st.integers(0, size)) for size in tensor.shape]
            extent = [data.draw(st.integers(0, size - a)) for a, size in zip(start, tensor.shape, strict=True)]
            expected = tensor[tuple(slice(a, a + n) for a, n in zip(start, extent, strict=True))]
            for files in (found, whole):
                assert bits(files.read(name)) == bits(tensor)
                assert bits(files.read_slice(name, start, extent)) == bits(expected)


@settings(max_examples=60, deadline=None)
@given(cut_sets())
def test_the_content_has_one_name_however_it_is_cut(cut: Any) -> None:
    """That of the file which the safetensors library itself writes."""
    tensors, blocks = cut
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pieces(folder, "model", tensors, lambda name, _: blocks[name])
        found = open_tensor_files(folder, "model")
        (folder / "one").mkdir()
        content = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(content, folder / "one" / "model.safetensors", metadata={"format": "pt"})
        one = open_tensor_files(folder / "one", "model")
        assert content_sha256(found) == content_sha256(one)
        record = write_file(folder / "again.safetensors", kinds_of(found), found.read, {"format": "pt"})
        assert (folder / "again.safetensors").read_bytes() == one.files[0].read_bytes()
        assert record == {
            "name": "again.safetensors",
            "bytes": one.files[0].stat().st_size,
            "sha256": content_sha256(one),
        }


def test_only_the_slice_is_read(tmp_path: Path) -> None:
    """Of a tensor with more bytes than may be mapped and copied, a corner."""
    path = tmp_path / "model.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 20, 1 << 10], "data_offsets": [0, 1 << 32]}}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 32))  # a hole: 4 GiB that take no place
        file.seek(8 + len(header) + 4 * ((1 << 20) - 1) * (1 << 10))
        file.write(torch.tensor([1.0, 2.0]).numpy().tobytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = open_tensor_files(tmp_path, "model").read_slice("x", [(1 << 20) - 2, 0], [2, 3])
    assert found.tolist() == [[0, 0, 0], [1, 2, 0]]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    tensor = torch.arange(300.0)
    write_pieces(tmp_path, "model", {"x": tensor}, by_rows(300))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 128), hard))
    try:
        assert torch.equal(open_tensor_files(tmp_path, "model").read("x"), tensor)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("offset", "shape"), [([0], [1]), ([0, 0], [4, 1]), ([-1, 0], [1, 1]), ([3, 0], [1, 1]), ([0, 0], [1, -1])]
)
def test_a_slice_outside_the_tensor(tmp_path: Path, offset: list[int], shape: list[int]) -> None:
    save_file({"x": torch.zeros(3, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lies outside the tensor of"):
        open_tensor_files(tmp_path, "model").read_slice("x", offset, shape)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(3, 2)}, path)
    found = open_tensor_files(tmp_path, "model")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactCorruptError, match=r"model\.safetensors: not a whole safetensors file"):
        found.read("x")


def test_the_index_that_is_written_is_read(tmp_path: Path) -> None:
    index = write_pieces(tmp_path, "model", {"b": torch.zeros(4, 2), "a": torch.tensor(1)}, by_rows(2))
    write_index(tmp_path, "model", index["tensors"])
    text = (tmp_path / "model.index.json").read_text()
    assert json.loads(text) == index
    assert len(text.splitlines()) == 4  # one tensor a line, for people
    assert open_tensor_files(tmp_path, "model").names == ("a", "b")
    with pytest.raises(ValueError, match="the pieces cover 4 of 8 elements"):
        write_index(tmp_path, "model", {"b": {**index["tensors"]["b"], "pieces": index["tensors"]["b"]["pieces"][:1]}})
    assert (tmp_path / "model.index.json").read_text() == text
    write_index(tmp_path, "other", {})
    assert open_tensor_files(tmp_path, "other").names == () and open_tensor_files(tmp_path, "other").files == ()


# What somebody else may have written.


def refused(folder: Path, message: str, error: type[ArtifactError] = ArtifactCorruptError) -> None:
    with pytest.raises(ArtifactError) as caught:
        open_tensor_files(folder, "model")
    assert str(caught.value).replace(f"{folder}/", "") == message and type(caught.value) is error
    assert "\n" not in str(caught.value)


INDEX = "restore it from a copy, or use another checkpoint"
BOTH = "restore both from a copy, or use another checkpoint"


@pytest.fixture
def cut_folder(tmp_path: Path) -> Path:
    """x: [4, 2] in two files; s: a scalar."""
    write_pieces(tmp_path, "model", {"x": torch.arange(8.0).reshape(4, 2), "s": torch.tensor(1)}, by_rows(2))
    return tmp_path


def change(folder: Path, edit: Callable[[Any], object]) -> None:
    path = folder / "model.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


def piece(number: int, **changes: Any) -> Callable[[Any], object]:
    return lambda index: index["tensors"]["x"]["pieces"][number].update(changes)


def tensor(**changes: Any) -> Callable[[Any], object]:
    return lambda index: index["tensors"]["x"].update(changes)


EDITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "overlap": (
        piece(1, offset=[1, 0]),
        "'x': the pieces model-00000.safetensors 'x#0' and model-00001.safetensors 'x#1' overlap",
    ),
    "gap": (lambda index: index["tensors"]["x"]["pieces"].pop(), "'x': the pieces cover 4 of 8 elements"),
    "used twice": (
        lambda index: index["tensors"].update(y=index["tensors"]["x"]),
        "'y': model-00000.safetensors: 'x#0' is used twice",
    ),
    "outside the tensor": (
        piece(1, offset=[3, 0]),
        "'x': model-00001.safetensors: a piece of shape [2, 2] at [3, 0] lies outside the tensor of shape [4, 2]",
    ),
    "other number of dimensions": (
        piece(1, offset=[2]),
        "'x': model-00001.safetensors: a piece of shape [2, 2] at [2] lies outside the tensor of shape [4, 2]",
    ),
    "negative": (
        piece(1, offset=[-1, 0]),
        "'x': model-00001.safetensors: offset: expected a list of at most 64 whole numbers, found [-1, 0]",
    ),
    "a truth value": (
        piece(0, shape=[True, 2]),
        "'x': model-00000.safetensors: shape: expected a list of at most 64 whole numbers, found [True, 2]",
    ),
    "path to the parent": (
        piece(0, file="../model-00000.safetensors"),
        "'x': file: expected a name like model-00000.safetensors, found '../model-00000.safetensors'",
    ),
    "absolute path": (
        piece(0, file="/etc/passwd"),
        "'x': file: expected a name like model-00000.safetensors, found '/etc/passwd'",
    ),
    "name with a line": (
        piece(0, file="model-00000.safetensors\n"),
        r"'x': file: expected a name like model-00000.safetensors, found 'model-00000.safetensors\n'",
    ),
    "another set's file": (
        piece(0, file="optimizer-00000.safetensors"),
        "'x': file: expected a name like model-00000.safetensors, found 'optimizer-00000.safetensors'",
    ),
    "other digits": (
        piece(0, file="model-٠٠٠٠٠.safetensors"),
        "'x': file: expected a name like model-00000.safetensors, found 'model-٠٠٠٠٠.safetensors'",
    ),
    "key that is no text": (piece(0, key=3), "'x': key: expected a text, found 3"),
    "huge shape": (tensor(shape=[2**40, 2**40]), "'x': shape: no tensor can be as large as " + str([2**40, 2**40])),
    "huge beside an empty dimension": (
        tensor(shape=[0, 2**63]),
        "'x': shape: no tensor can be as large as " + str([0, 2**63]),
    ),
    "too many dimensions": (
        tensor(shape=[1] * 65),
        f"'x': shape: expected a list of at most 64 whole numbers, found {str([1] * 65)[:77]}...",
    ),
    "shape that is no list": (
        tensor(shape="4"),
        "'x': shape: expected a list of at most 64 whole numbers, found '4'",
    ),
    "fraction": (tensor(shape=[4.0, 2]), "'x': shape: expected a list of at most 64 whole numbers, found [4.0, 2]"),
    "unknown dtype": (
        tensor(dtype="complex64"),
        f"'x': dtype: expected one of {', '.join(str(d)[6:] for d in DTYPES.values())}, found 'complex64'",
    ),
    "dtype that is no text": (
        tensor(dtype=["float32"]),
        f"'x': dtype: expected one of {', '.join(str(d)[6:] for d in DTYPES.values())}, found ['float32']",
    ),
    "pieces that are no list": (tensor(pieces={}), "'x': pieces: expected a list, found {}"),
    "piece that is no object": (
        tensor(pieces=[3]),
        "'x': pieces: expected file, key, offset and shape, found 3",
    ),
    "extra entry of the index": (
        lambda index: [index.update(more=1), index.update(tensors=1)],
        "expected the entries format (1) and tensors, found {'format': 1, 'tensors': 1, 'more': 1}",
    ),
    "extra entry of a piece": (
        lambda index: index["tensors"].update(x={**index["tensors"]["x"], "pieces": [{"file": 1, "more": 2}]}),
        "'x': pieces: expected file, key, offset and shape, found {'file': 1, 'more': 2}",
    ),
    "extra entry of a tensor": (
        lambda index: index["tensors"].update(x={"a": 1}),
        "'x': expected dtype, shape and pieces, found {'a': 1}",
    ),
    "format 0": (
        lambda index: [index.update(format=0), index.update(tensors={})],
        "expected the entries format (1) and tensors, found {'format': 0, 'tensors': {}}",
    ),
    "format that is a truth value": (
        lambda index: [index.update(format=True), index.update(tensors={})],
        "expected the entries format (1) and tensors, found {'format': True, 'tensors': {}}",
    ),
    "tensors that are no object": (
        lambda index: index.update(tensors=[]),
        "tensors: expected an object, found []",
    ),
    "a long name": (
        lambda index: index["tensors"].update({"n" * 500: 1}),
        f"'{'n' * 76}...: expected dtype, shape and pieces, found 1",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_index_that_is_wrong(cut_folder: Path, name: str) -> None:
    edit, message = EDITS[name]
    change(cut_folder, edit)
    refused(cut_folder, f"model.index.json: {message}; {INDEX}")


TEXTS = {
    "empty": ("", "not readable as JSON: Expecting value: line 1 column 1 (char 0)"),
    "deep": ("[" * 100_000, "nested too deep"),
    "deep objects": ('{"a":' * 100_000, "nested too deep"),
    "list": ("[1]", "expected an object, found list"),
    "null": ("null", "expected an object, found NoneType"),
    "NaN": ('{"format": NaN, "tensors": {}}', "not readable as JSON: found NaN, which is not JSON"),
    "infinity": ('{"format": 1, "tensors": -Infinity}', "not readable as JSON: found -Infinity, which is not JSON"),
    "twice": ('{"format": 1, "tensors": {"x": 1, "x": 2}}', "not readable as JSON: 'x' is given twice"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_an_index_that_is_no_index(cut_folder: Path, name: str) -> None:
    text, message = TEXTS[name]
    (cut_folder / "model.index.json").write_text(text)
    refused(cut_folder, f"model.index.json: {message}; {INDEX}")


def test_an_index_that_is_not_text_or_has_a_number_without_end(cut_folder: Path) -> None:
    for content in (b"\xff\xfe\x00", b'{"format": ' + b"9" * 10_000 + b', "tensors": {}}'):
        (cut_folder / "model.index.json").write_bytes(content)
        with pytest.raises(ArtifactCorruptError, match="not readable as JSON") as caught:
            open_tensor_files(cut_folder, "model")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_an_index_of_a_newer_version(cut_folder: Path) -> None:
    change(cut_folder, lambda index: index.update(format=2, more=[]))
    refused(
        cut_folder,
        "model.index.json: expected format 1 or older, found 2; update this package",
        ArtifactMismatchError,
    )


def test_files_that_are_missing(cut_folder: Path, tmp_path: Path) -> None:
    (cut_folder / "model-00001.safetensors").unlink()
    refused(cut_folder, f"model-00001.safetensors: named in model.index.json but missing; {INDEX}")
    (cut_folder / "model.index.json").unlink()
    refused(
        cut_folder,
        "model.safetensors: weights not found, and no model.index.json either; use another checkpoint",
        ArtifactMissingError,
    )


def test_two_forms_beside_each_other(cut_folder: Path) -> None:
    save_file({"x": torch.zeros(4, 2)}, cut_folder / "model.safetensors")
    with pytest.raises(
        ArtifactCorruptError, match=r"holds model\.safetensors and model\.index\.json, and nothing says"
    ):
        open_tensor_files(cut_folder, "model")


def test_pieces_that_are_not_what_the_index_says(cut_folder: Path) -> None:
    path = cut_folder / "model-00001.safetensors"
    save_file({"x#1": torch.zeros(2, 2, dtype=torch.float16)}, path)
    end = "restore the file from a copy, or use another checkpoint"
    refused(
        cut_folder,
        "model-00001.safetensors: 'x#1': expected float32 [2, 2] as model.index.json says, found float16 [2, 2]; "
        + end,
    )
    save_file({"x#1": torch.zeros(2, 3)}, path)
    refused(
        cut_folder,
        "model-00001.safetensors: 'x#1': expected float32 [2, 2] as model.index.json says, found float32 [2, 3]; "
        + end,
    )
    save_file({"x": torch.zeros(2, 2)}, path)
    refused(cut_folder, f"model-00001.safetensors: 'x#1', a piece of 'x', is missing; {end}")
    save_file({"x#1": torch.zeros(2, 2), "more": torch.zeros(1)}, path)
    refused(cut_folder, f"model-00001.safetensors: 'more' is in no tensor of model.index.json; {BOTH}")


# Files by themselves.


def header(content: Any, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is no safetensors file, or truncated in its header"),
    "seven bytes": (b"1234567", "it is no safetensors file, or truncated in its header"),
    "header longer than the file": (
        (100).to_bytes(8, "little") + b"{}",
        "it is no safetensors file, or truncated in its header",
    ),
    "header without end": (b"\xff" * 16, "it is no safetensors file, or truncated in its header"),
    "pickle": (
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.",
        "it is no safetensors file, or truncated in its header",
    ),
    "deep": (header(b'{"a":' * 50_000), "header: nested too deep"),
    "not JSON": (
        header(b"{x}"),
        "header: not readable as JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    ),
    "NaN": (header(entry(shape=[math.nan])), "header: not readable as JSON: found NaN, which is not JSON"),
    "twice": (header(b'{"x": 1, "x": 1}'), "header: not readable as JSON: 'x' is given twice"),
    "list": (header([]), "header: expected an object, found list"),
    "truncated": (header(entry(), b"1234567"), "expected 77 bytes, found 76"),
    "bytes behind": (header(entry(), b"123456789"), "expected 77 bytes, found 78"),
    "gap": (header(entry(offsets=[4, 12]), b"1" * 12), "'x' begins at byte 74, expected 70"),
    "overlap": (
        header({**entry(), "y": entry(offsets=[4, 12])["x"]}, b"1" * 12),
        "'y' begins at byte 135, expected 139",
    ),
    "another size": (header(entry(shape=[3]), b"1" * 8), "'x': shape [3] of F32 does not fit into bytes [0, 8]"),
    "huge": (
        header(entry(shape=[2**62, 2**62]), b"1" * 8),
        f"'x': shape: no tensor can be as large as {[2**62, 2**62]}",
    ),
    "unknown dtype": (
        header(entry("F4"), b"1" * 8),
        f"'x': dtype: expected one of {', '.join(DTYPES)}, found 'F4'",
    ),
    "extra key": (
        header({"x": {**entry()["x"], "y": 1}}, b"1" * 8),
        "'x': expected dtype, shape and data_offsets, found {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8], "
        "'y': 1}",
    ),
    "offsets of another kind": (
        header(entry(offsets=[0, 8.0]), b"1" * 8),
        "'x': data_offsets: expected two whole numbers, found [0, 8.0]",
    ),
    "negative offset": (
        header(entry(offsets=[-8, 0]), b"1" * 8),
        "'x': data_offsets: expected two whole numbers, found [-8, 0]",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_wrong(tmp_path: Path, name: str) -> None:
    content, message = FILES[name]
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(
        tmp_path, f"model.safetensors: not a whole safetensors file: {message}; restore it from a copy, or use another"
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_change_of_a_header_is_believed_or_crashes(data: Any) -> None:
    """Bytes changed at random: refused in one line, or what the library itself reads."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.safetensors"
        save_file({"x": torch.arange(6.0).reshape(2, 3), "y": torch.tensor([1, 2])}, path)
        content = bytearray(path.read_bytes())
        length = int.from_bytes(content[:8], "little")
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(content))
        try:
            found = read_header(path)
        except ArtifactCorruptError as error:
            assert "\n" not in str(error)
            return
        expected = load_file(path)
        assert {name: tuple(tensor.shape) for name, tensor in expected.items()} == {
            name: stored.shape for name, stored in found.items()
        }
        files = open_tensor_files(path.parent, "model")
        assert all(bits(files.read(name)) == bits(tensor) for name, tensor in expected.items())
