"""PNG files assembled from the specification (W3C PNG, third edition), without an image library."""

from __future__ import annotations

import struct
import zlib

import numpy as np

GREY, PALETTE = 0, 3
# The seven passes of Adam7: first row, first column, row step, column step.
ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def png(ids: np.ndarray, bits: int, colour_type: int = GREY, interlaced: bool = False) -> bytes:
    """Return the bytes of a one-channel PNG whose samples are the ids."""
    height, width = ids.shape
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))
    passes = [ids[r::row_step, c::column_step] for r, c, row_step, column_step in ADAM7]
    passes = passes if interlaced else [ids]
    rows = b"".join(_rows(part, bits) for part in passes if part.size)
    palette = bytes((37 * i) % 256 for i in range(3 * 2 ** min(bits, 8)))
    chunks = [(b"IHDR", header)]
    chunks += [(b"PLTE", palette)] if colour_type == PALETTE else []
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _rows(ids: np.ndarray, bits: int) -> bytes:
    """Return packed rows: first sample in the highest bits, padded to whole bytes, filter 0 (none)."""
    packed = b""
    for row in ids.tolist():
        digits = "".join(f"{sample:0{bits}b}" for sample in row)
        digits += "0" * (-len(digits) % 8)
        packed += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    return packed
