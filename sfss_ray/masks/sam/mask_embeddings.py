"""Mean embeddings of masks: what the image encoder sees where a mask lies."""

from __future__ import annotations

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
    grid: NDArray[np.float32], counts: list[str], size: tuple[int, int]
) -> NDArray[np.float16]:
    """Return the mean of an image's embedding over each mask, (K, C).

    Each cell counts as much as the mask covers it.

    Args:
        grid: (C, h, w) of the whole image, from `image_grid`.
        counts: COCO RLE string of each of K masks.
        size: (H, W) of the image in pixels.
    """
    import cv2

    channels, height, width = grid.shape
    embeddings = np.zeros((len(counts), channels), np.float16)
    cells = grid.reshape(channels, -1)
    for k, text in enumerate(counts):
        mask = run_lengths.decode(run_lengths.from_coco_string(text), size)
        covered = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        weights = covered.ravel()
        if weights.sum() > 0:
            embeddings[k] = cells @ (weights / weights.sum())
    return embeddings


def add_embeddings(
    records: list[dict[str, Any]], encoded: EncodedCrop, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Return records of masks with their `embedding`, a list of C numbers each."""
    counts = [record["counts"] for record in records]
    embeddings = embed_masks(image_grid(encoded), counts, size)
    return [r | {"embedding": e.tolist()} for r, e in zip(records, embeddings, strict=True)]
