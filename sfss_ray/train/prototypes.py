"""Prototypes of a step's reliable masks, of all workers: gathered, pooled with the bank, remembered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfss_ray.train.bank import PrototypeBank
from sfss_ray.train.collective import gather_rows
from sfss_ray.train.devices import send_arrays
from sfss_ray.train.mask_table import MaskTable, Origins
from sfss_ray.train.pairs import PrototypePool

KEYS_PER_SAMPLE = 1 << 20  # a mask's key in the pool is sample number * this + its id


@dataclass(frozen=True)
class Prototypes:
    """Reliable masks of this step, of all workers, in the order of (rank, image, mask)."""

    vectors: Tensor  # on the networks' device, all else on the CPU
    classes: Tensor
    images: Tensor
    keys: Tensor
    scores: Tensor


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
        ids = table.ids.numpy()
        other = min(b ^ 1, len(tables) - 1)
        at_home = np.ones_like(ids, dtype=bool) if own_ids is None else ids <= own_ids
        keys = np.where(
            at_home,
            numbers[b] * KEYS_PER_SAMPLE + ids,
            numbers[other] * KEYS_PER_SAMPLE + ids - (own_ids or 0),
        )
        image = np.where(at_home, images[b], images[other])
        origins.append(Origins(*map(torch.from_numpy, (image, keys, at_home))))
    return origins


def gather_prototypes(tables: list[MaskTable], origins: list[Origins]) -> Prototypes:
    """Reliable masks of a worker's images, together with those of the other workers.

    A pasted copy is left out: what it is a copy of is there already, as its neighbour's.
    """
    chosen, facts, scores = [], [], []
    first = 0
    for table, origin in zip(tables, origins, strict=True):
        masks = np.flatnonzero((table.reliable & origin.at_home).numpy())
        chosen.append(first + masks)
        first += len(table)
        known = (table.label, origin.images, origin.keys)
        facts.append(torch.from_numpy(np.stack([each.numpy()[masks] for each in known], 1)))
        scores.append(torch.from_numpy((table.purity * table.confidence).numpy()[masks]))
    vectors = torch.cat([table.prototype for table in tables])
    (there,) = send_arrays([np.concatenate(chosen)], vectors.device)
    together = vectors.index_select(0, there)
    gathered = gather_rows(torch.cat(facts), together.device)
    return Prototypes(
        gather_rows(together, together.device),
        gathered[:, 0],
        gathered[:, 1],
        gathered[:, 2],
        gather_rows(torch.cat(scores), together.device),
    )


def pool_with_bank(fresh: Prototypes, bank: PrototypeBank, num_classes: int) -> PrototypePool:
    """What anchors of this step may be contrasted with: this step's masks and the bank's."""
    old_vectors, old_classes, old_images = bank.contents()
    return PrototypePool.build(
        torch.cat([fresh.vectors, old_vectors]),
        torch.cat([fresh.classes, old_classes]),
        torch.cat([fresh.images, old_images]),
        torch.cat([fresh.keys, torch.full_like(old_images, -1)]),
        num_classes,
    )


def remember(bank: PrototypeBank, fresh: Prototypes, per_image: int) -> None:
    """Write at most `per_image` best-scored prototypes of each (image, class) to the bank."""
    if not bank.size or not len(fresh.keys):
        return
    classes = fresh.classes.numpy()
    order = (-fresh.scores.numpy()).argsort(kind="stable")
    group = (fresh.keys.numpy() // KEYS_PER_SAMPLE) * len(bank.written) + classes
    order = order[group[order].argsort(kind="stable")]
    _, first, size = np.unique(group[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - first.repeat(size)
    kept = np.sort(order[rank < per_image])  # back to (rank, image, mask) order
    (there,) = send_arrays([kept], fresh.vectors.device)
    places = torch.from_numpy(kept)
    bank.write(fresh.vectors.index_select(0, there), fresh.classes[places], fresh.images[places])
