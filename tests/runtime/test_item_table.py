"""Items as tables of one row: objects and arrays come back, and arrays are not copied."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sfss_ray.runtime.item_table import pack_item, unpack_item


def test_objects_and_their_arrays_come_back():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    item = [("a", pixels), ("b", None), ("c", pixels[::2, ::-1]), ("d", np.zeros((0, 3)))]
    table = pack_item(item)
    assert table.num_rows == 1
    names, arrays = zip(*unpack_item(table), strict=True)
    assert names == ("a", "b", "c", "d")
    for (_, before), after in zip(item, arrays, strict=True):
        assert (before is None) == (after is None)
        np.testing.assert_array_equal(before, after)


def test_arrays_are_views_of_the_table():
    table = pack_item([np.arange(1000)])
    (array,) = unpack_item(table)
    buffer = table["arrays"].chunk(0).values.buffers()[2]
    assert buffer.address <= array.ctypes.data < buffer.address + buffer.size


def test_a_row_of_a_larger_block_is_read():
    assert unpack_item(pack_item([np.zeros(0)]))[0].shape == (0,)
    blocks = pa.concat_tables([pack_item([np.arange(3)]), pack_item("x"), pack_item([])])
    assert unpack_item(blocks.slice(1, 1)) == "x"
    assert unpack_item(blocks.slice(2, 1)) == []
    np.testing.assert_array_equal(unpack_item(blocks.slice(0, 1))[0], [0, 1, 2])
