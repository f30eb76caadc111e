"""Text files of users, such as class lists, cards and configs, as any editor saves them."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator
from pathlib import Path

from sfss_ray.errors import DataError
from sfss_ray.storage.places import ObjectPath, Place

BYTE_ORDER_MARK = "\ufeff"
# The 32-bit marks begin with the 16-bit ones, so they are tried first.
_ENCODING_OF_MARK = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decode_text(data: bytes) -> str:
    r"""Decode the bytes of a text file: `\n` line ends, no byte order mark.

    The encoding is UTF-8, unless a byte order mark names UTF-16 or UTF-32, which Windows editors write.

    Raises:
        DataError: the bytes are not text in that encoding.
    """
    encoding = next((e for mark, e in _ENCODING_OF_MARK.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start} is not {encoding.removesuffix('-sig').upper()} text: save the file"
            " as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Place | str) -> str:
    """Read a text file; see `decode_text`.

    Raises:
        OSError: the file cannot be read.
        DataError: it is not text; the message names the file.
    """
    data = path.read_bytes() if isinstance(path, ObjectPath) else Path(path).read_bytes()
    try:
        return decode_text(data)
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from error


@contextlib.contextmanager
def limited_nesting() -> Iterator[None]:
    """Turn the RecursionError of deep or endless nesting, in JSON or YAML, into a ValueError.

    Raises:
        ValueError: the block recursed too deeply.
    """
    try:
        yield
    except RecursionError as error:
        raise ValueError("it is nested too deeply, or contains itself") from error


def without_mark(text: str) -> str:
    """Remove byte order marks from text that was pasted from a file, such as into a command line."""
    return text.replace(BYTE_ORDER_MARK, "")
