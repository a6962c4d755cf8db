"""What writing and reading an archive share: room on the disk, errors of the file system, compression."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from retro.config.errors import ConfigError, RetroError

_PIECE = 1 << 13
_ZSTD_LEVEL = 3  # equal releases give equal bytes: one level for all, one thread


def check_room(folder: Path, needed: int) -> None:
    """Raise ConfigError unless the disk of `folder` has so many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{folder}: expected {needed / 1e6:,.1f} MB of free space, found {free / 1e6:,.1f} MB; free some, or take "
            "another disk"
        )


@contextlib.contextmanager
def named_errors(what: str) -> Iterator[None]:
    """Errors of the file system become one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RetroError(
                f"{what}: the disk is full; nothing was left behind, free some space and run the command again"
            ) from None
        raise RetroError(f"{what}: {error.strerror or error}") from None


@contextlib.contextmanager
def compressor(file: BinaryIO) -> Iterator[Any]:
    """A stream that is compressed into `file`, the same bytes for the same content."""
    zstandard = _zstandard()
    writer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
    with writer.stream_writer(file, closefd=False) as out:
        yield out


class Decompressor:
    """The content of a compressed file, read from front to back: one whole frame, checksum included, nothing behind it.

    `read` raises OSError for anything else. Fed in small pieces, so that a bomb cannot ask for all memory at once.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._buffer = file, memoryview(b"")
        self._frame = _zstandard().ZstdDecompressor().decompressobj()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end."""
        while not self._buffer:
            piece = self._file.read(_PIECE)
            if self._frame.eof:
                if piece or self._frame.unused_data:
                    raise OSError("altered: something follows the compressed data")
                return b""
            if not piece:
                raise OSError("ends too early (truncated)")
            try:
                self._buffer = memoryview(self._frame.decompress(piece))
            except _zstandard().ZstdError as error:
                raise OSError(f"damaged: {error}") from None
        out, self._buffer = self._buffer[:size], self._buffer[size:]
        return bytes(out)


def _zstandard() -> Any:
    import zstandard

    return zstandard
