"""Mean embeddings of masks: what the image encoder sees where a mask lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam.promptable import EncodedCrop


def image_grid(encoded: EncodedCrop) -> NDArray[np.float32]:
    """Return the part of the encoder's embedding that shows the image, (C, h, w).

    SAM pads an image to a square below and to the right. A column of the grid that shows the image in
    part belongs to it.

    Raises:
        ValueError: the model keeps no embedding.
    """
    if encoded.embedding is None:
        raise ValueError("this model keeps no embedding of the image")
    embedding = encoded.embedding.detach().float().cpu().numpy()
    side, unpadded, _ = encoded.upsampling_sizes
    height, width = (
        max(1, int(np.ceil(cells * pixels / side)))
        for cells, pixels in zip(embedding.shape[-2:], unpadded, strict=True)
    )
    return embedding[:, :height, :width]


def embed_masks(
    grid: NDArray[np.float32],
    counts: Sequence[str | NDArray[np.integer]],
    size: tuple[int, int],
) -> NDArray[np.float16]:
    """Return the mean of an image's embedding over each mask, (K, C).

    Each cell counts as much as the mask covers it.

    Args:
        grid: (C, h, w) of the whole image, from `image_grid`.
        counts: COCO RLE string or run lengths of each of K masks.
        size: (H, W) of the image in pixels.
    """
    channels, height, width = grid.shape
    embeddings = np.zeros((len(counts), channels), np.float16)
    cells = grid.reshape(channels, -1)
    for k, runs in enumerate(counts):
        lengths = run_lengths.from_coco_string(runs) if isinstance(runs, str) else runs
        weights = covered_area(lengths, size, (height, width)).ravel()
        if weights.sum() > 0:
            embeddings[k] = cells @ (weights / weights.sum()).astype(grid.dtype)
    return embeddings


def covered_area(
    counts: NDArray[np.integer], size: tuple[int, int], grid: tuple[int, int]
) -> NDArray[np.float64]:
    """Return how many pixels of a mask lie in each cell of a grid over its image, (h, w).

    Pixels that a border of cells cuts count in part. The mask is never decoded: the number of its pixels
    before a position is linear between the ends of its runs, in the order of columns.

    Args:
        counts: Lengths of the mask's runs, as in COCO's RLE: first of pixels outside.
        size: (H, W) of the image in pixels.
        grid: (h, w) cells.
    """
    (height, width), (rows, columns) = size, grid
    ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    inside = np.concatenate([[0], np.cumsum(np.where(np.arange(len(counts)) % 2, counts, 0))])
    first = ends[1] // height if len(ends) > 1 else 0  # no pixel of the mask lies before
    last = min(width, -(-ends[len(ends) - 1 - len(counts) % 2] // height))
    borders = np.linspace(0, height, rows + 1)
    positions = np.arange(first, last)[:, None] * height + borders
    in_columns = np.diff(np.interp(positions, ends, inside), axis=1)
    before = np.zeros((width + 1, rows))
    before[first + 1 : last + 1] = np.cumsum(in_columns, axis=0)
    before[last + 1 :] = before[last]
    borders = np.linspace(0, width, columns + 1)
    whole = np.minimum(borders.astype(np.int64), width - 1)
    part = (borders - whole)[:, None]
    return np.diff(before[whole] * (1 - part) + before[whole + 1] * part, axis=0).T


def add_embeddings(
    records: list[dict[str, Any]], encoded: EncodedCrop, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Return records of masks with their `embedding`, a list of C numbers each."""
    counts = [record["counts"] for record in records]
    embeddings = embed_masks(image_grid(encoded), counts, size)
    return [r | {"embedding": e.tolist()} for r, e in zip(records, embeddings, strict=True)]
