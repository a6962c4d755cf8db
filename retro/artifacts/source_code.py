"""The project's source as one file: what a result was made with, whatever becomes of the checkout."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

PACKAGES = ("retro", "data_prep", "launch")


def source_root() -> Path:
    """What holds the packages that run now: a checkout, site-packages, or a zip that was made here."""
    return Path(__file__).resolve().parents[2]


def read_source(root: Path) -> dict[str, bytes]:
    """Relative path -> content of every file of the packages below `root`, a folder or a zip, sorted."""
    if root.is_file():
        with zipfile.ZipFile(root) as archive:
            return {name: archive.read(name) for name in sorted(archive.namelist())}
    found = {}
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            parts = path.relative_to(root).parts
            if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in parts):
                found["/".join(parts)] = path.read_bytes()
    return dict(sorted(found.items()))


def digest_source(files: Mapping[str, bytes]) -> str:
    """16 hexadecimal digits over names and contents."""
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{len(name.encode())} {len(content)} {name}\n".encode())
        total.update(content)
    return total.hexdigest()[:16]


def pack_source(files: Mapping[str, bytes]) -> bytes:
    """A zip, the same bytes for the same files. Python imports from it: PYTHONPATH=code.zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content)
    return packed.getvalue()


def compress_source(files: Mapping[str, bytes]) -> bytes:
    """A tar.xz, the same bytes for the same files, about half as large as the zip: `python3 -m tarfile -e`."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9, format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
