"""Text encodings of corpus files: byte order marks are believed, everything else is tried in the configured order."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from itertools import chain

from data_prep.readers.base import CORRUPT_FILE, TRUNCATED_FILE
from data_prep.readers.compressed import BrokenFileError

# UTF-32 before UTF-16, whose little-endian mark begins that of UTF-32.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LONGEST_MARK = 4


def marked_encoding(begin: bytes) -> tuple[str, int]:
    """(encoding, length of the mark) by the byte order mark that a file begins with; ("", 0) without one."""
    return next(((name, len(mark)) for mark, name in _MARKS if begin.startswith(mark)), ("", 0))


def decode(data: bytes, encodings: Sequence[str]) -> tuple[str, str] | None:
    """(text, encoding) by the first encoding that fits; None if none does."""
    for name in encodings:
        try:
            return data.decode(name), name
        except UnicodeDecodeError:
            continue
    return None


def decode_file(data: bytes, encodings: Sequence[str]) -> tuple[str, str] | None:
    """As `decode`, for a whole file, which may begin with a byte order mark."""
    marked, length = marked_encoding(data)
    return decode(data[length:], (marked,) if marked else encodings)


def without_mark(blocks: Iterator[bytes]) -> tuple[str, Iterator[bytes]]:
    """(marked encoding or "", the blocks of a file as UTF-8 or as they are).

    What is marked as UTF-16 or UTF-32 comes as UTF-8, so that lines can be cut; a lone surrogate in it comes in a form
    that no strict decoder accepts. Raises BrokenFileError while iterating, where such a file ends within a character or
    holds what is none.
    """
    begin = b""
    for block in blocks:
        begin += block
        if len(begin) >= LONGEST_MARK:
            break
    marked, length = marked_encoding(begin)
    rest = chain([begin[length:]], blocks)
    return marked, rest if marked in ("", "utf-8") else _transcoded(rest, marked)


def _transcoded(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(name)("surrogatepass")
    try:
        for block in blocks:
            yield decoder.decode(block).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise BrokenFileError(CORRUPT_FILE) from None
    if decoder.getstate()[0]:
        raise BrokenFileError(TRUNCATED_FILE)
