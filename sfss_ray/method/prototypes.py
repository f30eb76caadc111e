"""Prototypes of a step's reliable masks, of all workers: gathered, pooled with the bank, remembered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfss_ray.method.collective import gather_rows
from sfss_ray.method.mask_table import MaskTable, Origins
from sfss_ray.method.pairs import PrototypePool
from sfss_ray.method.prototype_bank import PrototypeBank
from sfss_ray.method.transfer import send_arrays

KEYS_PER_SAMPLE = 1 << 20  # a mask's key in the pool is sample number * this + its id


@dataclass(frozen=True)
class Prototypes:
    """Reliable masks of this step, of all workers, in the order of (rank, image, mask)."""

    vectors: Tensor  # on the networks' device
    classes: np.ndarray
    images: np.ndarray
    keys: np.ndarray
    scores: np.ndarray


def origins_of(
    tables: list[MaskTable], images: list[int], numbers: list[int], own_ids: int | None
) -> list[Origins]:
    """Where the masks of a worker's images are from.

    Args:
        tables: one for each image.
        images: image numbers.
        numbers: sample numbers.
        own_ids: ids above are those of the neighbour (2i of 2i + 1), this much higher; None: no such.
    """
    origins = []
    for b, table in enumerate(tables):
        ids = table.ids
        other = min(b ^ 1, len(tables) - 1)
        at_home = np.ones_like(ids, dtype=bool) if own_ids is None else ids <= own_ids
        keys = np.where(
            at_home,
            numbers[b] * KEYS_PER_SAMPLE + ids,
            numbers[other] * KEYS_PER_SAMPLE + ids - (own_ids or 0),
        )
        origins.append(Origins(np.where(at_home, images[b], images[other]), keys, at_home))
    return origins


def gather_prototypes(tables: list[MaskTable], origins: list[Origins]) -> Prototypes:
    """Reliable masks of a worker's images, together with those of the other workers.

    A pasted copy is left out: what it is a copy of is there already, as its neighbour's.
    """
    chosen, facts, scores = [], [], []
    first = 0
    for table, origin in zip(tables, origins, strict=True):
        masks = np.flatnonzero(table.reliable & origin.at_home)
        chosen.append(first + masks)
        first += len(table)
        known = (table.label, origin.images, origin.keys)
        facts.append(np.stack([each[masks] for each in known], 1))
        scores.append((table.purity * table.confidence)[masks])
    vectors = torch.cat([table.prototype for table in tables])
    (there,) = send_arrays([np.concatenate(chosen)], vectors.device)
    together = vectors.index_select(0, there)
    gathered = _of_all_workers(np.concatenate(facts), vectors.device)
    return Prototypes(
        gather_rows(together, together.device),
        gathered[:, 0],
        gathered[:, 1],
        gathered[:, 2],
        _of_all_workers(np.concatenate(scores), vectors.device),
    )


def _of_all_workers(rows: np.ndarray, through: torch.device) -> np.ndarray:
    return gather_rows(torch.from_numpy(rows), through).numpy()


def pool_with_bank(fresh: Prototypes, bank: PrototypeBank, num_classes: int) -> PrototypePool:
    """What anchors of this step may be contrasted with: this step's masks and the bank's."""
    vectors, classes, images = bank.contents()
    return PrototypePool.build(
        torch.cat([fresh.vectors, vectors]),
        np.concatenate([fresh.classes, classes]),
        np.concatenate([fresh.images, images]),
        np.concatenate([fresh.keys, np.full_like(images, -1)]),
        num_classes,
    )


def remember(bank: PrototypeBank, fresh: Prototypes, per_image: int) -> None:
    """Write at most `per_image` best-scored prototypes of each (image, class) to the bank."""
    if not bank.size or not len(fresh.keys):
        return
    order = (-fresh.scores).argsort(kind="stable")
    group = (fresh.keys // KEYS_PER_SAMPLE) * len(bank.written) + fresh.classes
    order = order[group[order].argsort(kind="stable")]
    _, first, size = np.unique(group[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - first.repeat(size)
    kept = np.sort(order[rank < per_image])  # back to (rank, image, mask) order
    (there,) = send_arrays([kept], fresh.vectors.device)
    bank.write(fresh.vectors.index_select(0, there), fresh.classes[kept], fresh.images[kept])
