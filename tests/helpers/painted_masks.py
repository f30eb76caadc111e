"""Random masks, and id maps by painting them pixel by pixel."""

import numpy as np


def discs(n, shape, seed=0):
    """Return n overlapping discs with noise, bool (H, W) each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    masks = []
    for _ in range(n):
        cy, cx, r = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(2, 30)
        masks.append((np.hypot(y - cy, x - cx) < r) & (rng.random(shape) < 0.9))
    return masks


def painted(masks, order):
    """Return the id map int32 (H, W) of masks painted in an order; mask k has id k + 1."""
    id_map = np.zeros(masks[0].shape, dtype=np.int32)
    for k in order:
        id_map[masks[k]] = k + 1
    return id_map
