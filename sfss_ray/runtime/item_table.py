"""Items of work on their way between processes: objects with arrays as a table of one row. No Ray here.

Ray Data moves blocks of Arrow tables. It cuts a block at rows, so an item that is one row stays whole.
"""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

_SCHEMA = pa.schema([("item", pa.large_binary()), ("arrays", pa.large_list(pa.large_binary()))])


def pack_item(item: Any) -> pa.Table:
    """Return a table of one row that holds an object, with each NumPy array in a buffer of its own."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(item, protocol=5, buffer_callback=buffers.append)
    return pa.table([[head], [[buffer.raw() for buffer in buffers]]], schema=_SCHEMA)


def unpack_item(table: pa.Table) -> Any:
    """Return the object of a table of `pack_item`.

    Its arrays are read-only views of the table: nothing is copied out of Ray's object store.
    """
    chunk = next(chunk for chunk in table["arrays"].chunks if len(chunk))
    buffers = _views(chunk.values, chunk.offsets[0].as_py(), chunk.offsets[1].as_py())
    return pickle.loads(table["item"][0].as_py(), buffers=buffers)


def _views(arrays: pa.LargeBinaryArray, start: int, end: int) -> list[pa.Buffer]:
    """Return the bytes of some entries. Those of a scalar of Arrow would be a copy."""
    _, offset_bytes, data = arrays.buffers()
    if data is None:  # every entry is empty
        return [pa.py_buffer(b"")] * (end - start)
    offsets = np.frombuffer(offset_bytes, np.int64)[arrays.offset :]
    return [data.slice(a, b - a) for a, b in pairwise(offsets[start : end + 1].tolist())]
