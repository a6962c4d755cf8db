"""Bytes of plain, .gz, .zst and .xz files, in bounded blocks; truncation and corruption told apart."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data_prep.readers.base import CORRUPT_FILE, TRUNCATED_FILE, UNREADABLE_FILE

_BLOCK = 1 << 18
COMPRESSED = (".gz", ".zst", ".xz")


class BrokenFileError(Exception):
    """The file cannot be read to its end; `reason` is one of the FILE_REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def iter_blocks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Decompressed bytes of a file by its suffix. `start` and `stop` (plain files only) bound the bytes read.

    Raises BrokenFileError after everything that could be read was yielded.
    """
    try:
        with open(path, "rb") as file:
            if path.suffix == ".zst":
                yield from _zstd_blocks(file)
            elif path.suffix == ".gz":
                with gzip.GzipFile(fileobj=file) as stream:
                    yield from _read_blocks(stream)
            elif path.suffix == ".xz":
                with lzma.LZMAFile(file) as stream:
                    yield from _read_blocks(stream)
            else:
                file.seek(start)
                yield from _read_blocks(file, None if stop is None else stop - start)
    except EOFError:
        raise BrokenFileError(TRUNCATED_FILE) from None
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error):
        raise BrokenFileError(CORRUPT_FILE) from None
    except OSError:
        raise BrokenFileError(UNREADABLE_FILE) from None


def _read_blocks(stream: IO[bytes] | Any, remaining: int | None = None) -> Iterator[bytes]:
    # read1 gives what one read of the compressed file yields, so bytes before a truncation are not lost in a buffer.
    read = getattr(stream, "read1", stream.read)
    while remaining is None or remaining > 0:
        block = read(_BLOCK if remaining is None else min(_BLOCK, remaining))
        if not block:
            return
        if remaining is not None:
            remaining -= len(block)
        yield block


def _zstd_blocks(file: IO[bytes]) -> Iterator[bytes]:
    # zstandard's stream_reader ends silently at a truncated frame; a decompression object knows that it is not done.
    import zstandard

    # Archives made with --long=31 need it; the memory is used only for frames that ask for it.
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    try:
        while data := file.read(_BLOCK // 16):
            while data:
                if frame is None:
                    frame = decompressor.decompressobj()
                block = frame.decompress(data)
                data = b""
                if frame.eof:
                    data, frame = frame.unused_data, None
                if block:
                    yield block
    except zstandard.ZstdError:
        raise BrokenFileError(CORRUPT_FILE) from None
    if frame is not None:
        raise BrokenFileError(TRUNCATED_FILE)


def iter_lines(blocks: Iterator[bytes], longest: int) -> Iterator[bytes | None]:
    """Lines without their line ends; None for a line longer than `longest` bytes, which is never held whole.

    An unfinished last line is a line. If `blocks` raises, the unfinished line at that point is dropped and the
    exception goes on.
    """
    parts: list[bytes] = []
    length = 0
    for block in blocks:
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            piece = block[start:end]
            length += len(piece)
            if length > longest:
                yield None
            else:
                yield b"".join(parts) + piece if parts else piece
            parts, length = [], 0
            start = end + 1
        rest = block[start:]
        length += len(rest)
        if length > longest:
            parts = []
        elif rest:
            parts.append(rest)
    if length:
        yield None if length > longest else b"".join(parts)
