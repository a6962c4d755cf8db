"""What counts as the same file made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.inspection.compare import BFLOAT16_TOLERANCE, TOLERANCE, compare_files, tolerance_of
from retro.config.errors import ArtifactCorruptError


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def compared(tmp_path: Path, one: np.ndarray, other: np.ndarray, **options):
    return compare_files(saved(tmp_path / "a.npy", one), saved(tmp_path / "b.npy", other), **options)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_last_bit_of_a_float_is_tolerated_and_told(tmp_path, dtype):
    one = np.linspace(-3, 3, 60, dtype=dtype).reshape(12, 5)
    other = one.copy()
    other[7, 2] = np.nextafter(one[7, 2], np.dtype(dtype).type(9))
    found = compared(tmp_path, one, other)
    assert not found.equal and found.within
    assert "1 of 60 entries differ, first in row 7" in found.found and "tolerance" in found.found


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_float_beyond_the_tolerance_is_not(tmp_path, dtype):
    one = np.ones((4, 3), dtype=dtype)
    other = one.copy()
    other[1, 1] = 1 + 3 * max(TOLERANCE[dtype], float(np.finfo(dtype).eps))
    found = compared(tmp_path, one, other)
    assert not found.within and "1 beyond the tolerance" in found.found


def test_the_tolerance_is_of_the_row_s_largest_and_of_the_entry_in_one_dimension(tmp_path):
    one = np.array([[1000.0, 1e-6], [1.0, 1.0]], dtype=np.float32)
    other = one.copy()
    other[0, 1] = 2e-6
    assert compared(tmp_path, one, other).within
    assert not compared(tmp_path, one[:, 1].copy(), other[:, 1].copy()).within


def test_infinities_and_nan_must_stand_in_the_same_places(tmp_path):
    one = np.array([[0.5, np.inf], [np.nan, 2.0]], dtype=np.float32)
    other = one.copy()
    other[0, 0] = np.nextafter(np.float32(0.5), np.float32(1))
    assert compared(tmp_path, one, other).within
    for value in (3.0, np.nan, -np.inf):
        other[0, 1] = value
        assert not compared(tmp_path, one, other).within


@pytest.mark.parametrize("dtype", ["int64", "uint64", "uint16", "bool"])
def test_integers_must_be_equal(tmp_path, dtype):
    one = np.zeros(50, dtype=dtype)
    other = one.copy()
    other[33] = 1
    found = compared(tmp_path, one, other)
    assert not found.equal and not found.within and "1 of 50 entries differ, first in row 33" in found.found


def test_another_shape_or_type_is_told(tmp_path):
    found = compared(tmp_path, np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float16))
    assert not found.within and "float32 [3, 2] stored, float16 [3, 2] made again" in found.found
    found = compared(tmp_path, np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float32))
    assert not found.within and "float32 [3, 2] stored, float32 [2, 3] made again" in found.found


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), ()])
def test_arrays_without_rows(tmp_path, shape):
    assert compared(tmp_path, np.zeros(shape, np.float32), np.zeros(shape, np.float32)).equal
    assert not compared(tmp_path, np.zeros(shape, np.float32), np.ones((2, 2), np.float32)).within


def test_the_same_numbers_under_another_header_are_equal(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    np.lib.format.write_array((tmp_path / "a.npy").open("wb"), array, version=(2, 0))
    assert compare_files(tmp_path / "a.npy", saved(tmp_path / "b.npy", array)).equal


def test_bfloat16_work_has_its_own_tolerance(tmp_path):
    one = np.ones((2, 4), dtype=np.float32)
    other = one + np.float32(BFLOAT16_TOLERANCE / 2)
    assert not compared(tmp_path, one, other).within
    assert compared(tmp_path, one, other, bfloat16=True).within
    assert tolerance_of(np.dtype("int64"), bfloat16=True) == 0


def test_large_arrays_are_compared_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.inspection.compare._BLOCK_BYTES", 256)
    one = np.random.default_rng(0).normal(size=(500, 7)).astype(np.float32)
    other = one.copy()
    other[[3, 411], [0, 6]] += 1
    found = compared(tmp_path, one, other)
    assert "2 of 3,500 entries differ, first in row 3," in found.found and "2 beyond" in found.found


def test_other_files_byte_by_byte(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abcdef")
    (tmp_path / "b.bin").write_bytes(b"abXdeY!!")
    found = compare_files(tmp_path / "a.bin", tmp_path / "b.bin")
    assert found.found == "2 of 6 bytes differ, from byte 2 on; 6 bytes stored, 8 made again" and not found.within
    assert compare_files(tmp_path / "a.bin", tmp_path / "a.bin").equal


def test_a_pickle_is_not_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactCorruptError, match=r"a\.npy: not a readable array"):
        compare_files(tmp_path / "a.npy", saved(tmp_path / "b.npy", np.zeros(3)))


def test_faiss_indexes_are_taken_apart(tmp_path):
    pytest.importorskip("faiss")
    from retro.retrieval.native import load_faiss

    faiss = load_faiss()
    vectors = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)

    def write(name: str, factory: str, rows: int) -> Path:
        index = faiss.index_factory(8, factory)
        index.train(vectors[:rows])
        index.add(vectors[:rows])
        faiss.write_index(index, str(tmp_path / name))
        return tmp_path / name

    one = write("a.faiss", "IVF4,Flat", 200)
    assert "ntotal 200 / 190" in compare_files(one, write("b.faiss", "IVF4,Flat", 190)).found
    assert "4 lists / 5" in compare_files(one, write("c.faiss", "IVF5,Flat", 200)).found
    assert "kind" in compare_files(one, write("d.faiss", "Flat", 200)).found
    (tmp_path / "e.faiss").write_bytes(b"nothing")
    assert "e.faiss is not a readable faiss index" in compare_files(one, tmp_path / "e.faiss").found
