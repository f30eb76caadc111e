"""Sorting by whole numbers, the dearest part of drawing pairs on a CPU."""

from __future__ import annotations

import numpy as np

_PLACE_BITS, _KEY_BITS = 22, 41


def stable_order(keys: np.ndarray) -> np.ndarray:
    """(N,) what `keys.argsort(kind="stable")` gives, of int64 keys that are 0 or more.

    Key and place in one number make all numbers different, so that any sort is stable: NumPy's
    vectorised one takes an eighth of a stable sort's time for ten thousand keys. Keys of more than
    41 bits, and more than 4 million of them, do not fit, and are sorted the slow way.
    """
    if len(keys) > 1 << _PLACE_BITS or (len(keys) and keys.max() >> _KEY_BITS):
        return keys.argsort(kind="stable")
    packed = (keys << _PLACE_BITS) | np.arange(len(keys))
    packed.sort()
    packed &= (1 << _PLACE_BITS) - 1
    return packed
