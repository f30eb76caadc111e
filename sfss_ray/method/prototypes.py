"""Prototypes of a step's reliable masks: gathered from all workers, pooled, written to the bank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfss_ray.method.collective import gather_rows
from sfss_ray.method.mask_table import MaskOrigins, MaskTable
from sfss_ray.method.prototype_bank import PrototypeBank
from sfss_ray.method.prototype_pool import PrototypePool
from sfss_ray.method.transfer import send_arrays

KEYS_PER_SAMPLE = 1 << 20
"""A mask's key in the pool is its sample number times this, plus its id."""


@dataclass(frozen=True)
class Prototypes:
    """Reliable masks of this step on all workers, in the order of (rank, image, mask)."""

    vectors: Tensor  # (R, D), on the networks' device
    classes: np.ndarray  # (R,)
    images: np.ndarray  # (R,) image numbers
    keys: np.ndarray  # (R,)
    scores: np.ndarray  # (R,) purity * confidence


def origins_of(
    tables: list[MaskTable], images: list[int], numbers: list[int], highest_own_id: int | None
) -> list[MaskOrigins]:
    """Return the origins of the masks of a worker's images.

    Args:
        tables: One for each image.
        images: Image numbers.
        numbers: Sample numbers.
        highest_own_id: After class-mix, the highest id of a mask that was not pasted: higher ids are
            those of the neighbour (2i of 2i + 1), shifted by this. None without class-mix.
    """
    origins = []
    for b, table in enumerate(tables):
        ids = table.ids
        neighbour = min(b ^ 1, len(tables) - 1)
        at_home = np.ones_like(ids, dtype=bool)
        if highest_own_id is not None:
            at_home = ids <= highest_own_id
        keys = np.where(
            at_home,
            numbers[b] * KEYS_PER_SAMPLE + ids,
            numbers[neighbour] * KEYS_PER_SAMPLE + ids - (highest_own_id or 0),
        )
        origins.append(MaskOrigins(np.where(at_home, images[b], images[neighbour]), keys, at_home))
    return origins


def gather_prototypes(tables: list[MaskTable], origins: list[MaskOrigins]) -> Prototypes:
    """Gather the reliable masks of all workers.

    Pasted copies are left out, because their originals are gathered from the neighbour.
    """
    indices, facts, scores = [], [], []
    first = 0
    for table, origin in zip(tables, origins, strict=True):
        masks = np.flatnonzero(table.reliable & origin.at_home)
        indices.append(first + masks)
        first += len(table)
        columns = (table.label, origin.images, origin.keys)
        facts.append(np.stack([column[masks] for column in columns], 1))
        scores.append((table.purity * table.confidence)[masks])
    vectors = torch.cat([table.prototype for table in tables])
    (index,) = send_arrays([np.concatenate(indices)], vectors.device)
    own_vectors = vectors.index_select(0, index)
    all_facts = _gather_array(np.concatenate(facts), vectors.device)
    return Prototypes(
        gather_rows(own_vectors, own_vectors.device),
        all_facts[:, 0],
        all_facts[:, 1],
        all_facts[:, 2],
        _gather_array(np.concatenate(scores), vectors.device),
    )


def _gather_array(rows: np.ndarray, through: torch.device) -> np.ndarray:
    return gather_rows(torch.from_numpy(rows), through).numpy()


def pool_with_bank(fresh: Prototypes, bank: PrototypeBank, num_classes: int) -> PrototypePool:
    """Pool this step's prototypes with those of the bank."""
    vectors, classes, images = bank.contents()
    return PrototypePool.build(
        torch.cat([fresh.vectors, vectors]),
        np.concatenate([fresh.classes, classes]),
        np.concatenate([fresh.images, images]),
        np.concatenate([fresh.keys, np.full_like(images, -1)]),
        num_classes,
    )


def remember(bank: PrototypeBank, fresh: Prototypes, per_image: int) -> None:
    """Write the `per_image` best-scored prototypes of each (image, class) to the bank."""
    if not bank.size or not len(fresh.keys):
        return
    order = (-fresh.scores).argsort(kind="stable")
    group = (fresh.keys // KEYS_PER_SAMPLE) * len(bank.written) + fresh.classes
    order = order[group[order].argsort(kind="stable")]
    _, first, size = np.unique(group[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - first.repeat(size)
    best = np.sort(order[rank < per_image])  # back to (rank, image, mask) order
    (index,) = send_arrays([best], fresh.vectors.device)
    bank.write(fresh.vectors.index_select(0, index), fresh.classes[best], fresh.images[best])
