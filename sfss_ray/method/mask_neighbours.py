"""Masks alike vote together: evidence for a mask's class from masks of like place and size.

A classifier of local features does not know where in the image a thing stands, how far it spreads and
how large it is. Its mask does. The opinion of a mask's neighbours in this space, masks of other images,
is one more piece of evidence for the mask's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.method.collective import gather_rows
from sfss_ray.method.mask_evidence import Evidence

MASK_GEOMETRY = "mask_geometry"
"""Name of the geometry (B, ids, width) of the masks in a batch."""
NUM_NEIGHBOURS = 20
_TEMPERATURE = 0.07
_FLOOR = 0.02  # neighbours cannot rule a class out
_MIN_SHARE = 2e-3  # a class that no mask has does not weigh without limit
_MIN_SPREAD = 1e-3  # equal masks must not be told apart by rounding
_ROWS_AT_ONCE = 1024


class MaskNeighbours:
    """A ring of the latest masks of all workers: their geometry, image and class probabilities.

    Every worker holds the same ring. Its state in a checkpoint restores it bit for bit.

    Args:
        num_classes: C.
        size: Masks that the ring holds, N. The oldest are overwritten.
        width: Numbers that describe a mask's geometry.
        device: Of the networks.
    """

    def __init__(
        self,
        num_classes: int,
        size: int = 8192,
        width: int = 4,
        device: torch.device | str = "cpu",
    ):
        self.geometry = torch.zeros(size, width, device=device)
        self.probabilities = torch.zeros(size, num_classes, device=device)
        self.images = torch.zeros(size, dtype=torch.int64, device=device)
        self.written = 0
        """Masks written since step 1."""

    def __len__(self) -> int:
        """Return the number of masks in the ring."""
        return min(self.written, len(self.images))

    def opinions(self, geometry: Tensor, images: Tensor) -> Tensor | None:
        """Return the log opinion of each mask's neighbours, (K, C), or None without masks to ask.

            log(r_k(c) + .02),  r_k(c) ~ sum over the 20 nearest masks j of other images of
                                         softmax(g_k . g_j / .07) p_j(c) / sqrt(mean p(c))

        with g the geometry, standardised over the ring and scaled to length 1. r sums to 1 over the
        classes. Dividing by the root of the mean keeps common classes from deciding for rare ones. A
        mask's own image has no say. A mask without a neighbour has a uniform opinion.

        Args:
            geometry: (K, width) of the masks.
            images: (K,) number of the image of each.
        """
        count = len(self)
        if not count or not len(geometry):
            return None
        ring = self.geometry[:count]
        mean, spread = ring.mean(0), ring.std(0, correction=0).clamp(min=_MIN_SPREAD)
        nearby = F.normalize((ring - mean) / spread, dim=1)
        asking = F.normalize((geometry - mean) / spread, dim=1)
        p = self.probabilities[:count]
        weighted = p / p.mean(0).clamp(min=_MIN_SHARE).sqrt()
        parts = zip(asking.split(_ROWS_AT_ONCE), images.split(_ROWS_AT_ONCE), strict=True)
        return torch.cat([self._opinions(g, i, nearby, weighted) for g, i in parts])

    def _opinions(self, asking: Tensor, images: Tensor, nearby: Tensor, weighted: Tensor) -> Tensor:
        similarity = asking @ nearby.T
        other_image = images[:, None] != self.images[None, : len(nearby)]
        similarity = similarity.masked_fill(~other_image, -torch.inf)
        nearest = similarity.topk(min(NUM_NEIGHBOURS, len(nearby)), dim=1)
        has_neighbour = nearest.values[:, :1] > -torch.inf
        scaled = torch.where(has_neighbour, nearest.values / _TEMPERATURE, 0.0)
        opinion = torch.einsum("kn,knc->kc", scaled.softmax(1), weighted[nearest.indices])
        opinion = opinion / opinion.sum(1, keepdim=True)
        uniform = torch.full_like(opinion, 1 / opinion.shape[1])
        return (torch.where(has_neighbour, opinion, uniform) + _FLOOR).log()

    def write(self, geometry: Tensor, images: Tensor, probabilities: Tensor) -> None:
        """Add this step's masks of all workers, in the order of (rank, row).

        Args:
            geometry: (K, width) of this worker's masks.
            images: (K,) number of the image of each.
            probabilities: (K, C) of the classes.
        """
        home = self.geometry.device
        rows = gather_rows(torch.cat([geometry, probabilities], 1), home)
        image_rows = gather_rows(images, home)
        size, count = len(self.images), len(rows)
        # Rows that later ones of this call would overwrite are left out: writes must not collide.
        newest = slice(max(0, count - size), count)
        positions = torch.arange(self.written, self.written + count, device=home)[newest] % size
        width = geometry.shape[1]
        self.geometry[positions] = rows[newest, :width]
        self.probabilities[positions] = rows[newest, width:]
        self.images[positions] = image_rows[newest]
        self.written += count

    def state_dict(self) -> dict[str, Any]:
        """Return the ring as tensors."""
        return {
            "geometry": self.geometry,
            "probabilities": self.probabilities,
            "images": self.images,
            "written": torch.tensor(self.written),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ring of the same size."""
        self.geometry.copy_(state["geometry"])
        self.probabilities.copy_(state["probabilities"])
        self.images.copy_(state["images"])
        self.written = int(state["written"])


def ask_neighbours(
    evidence: Evidence, batch: Mapping[str, Tensor], neighbours: MaskNeighbours, weight: float
) -> Evidence:
    """Return the evidence with the neighbours' opinion of each mask, and write the masks to the ring.

        s'_k = (s_k + weight * log r_k) / (1 + weight)

    The weights sum to one: the opinion moves labels, and confidence keeps its scale. With more
    confidence, more pixels would pass the thresholds, and rare classes would be diluted. An empty ring
    changes nothing.

    Args:
        evidence: Of pixels and masks.
        batch: `image` (B,) and `mask_geometry` (B, ids, 4), by mask id.
        neighbours: The ring. The masks are written with their own evidence, not with their neighbours'.
        weight: Of the opinion.
    """
    masks = evidence.masks
    present = masks.present()
    geometry = batch[MASK_GEOMETRY][:, : masks.ids_per_image].flatten(0, 1)[present]
    images = batch["image"][torch.div(present, masks.ids_per_image, rounding_mode="floor")]
    mask_evidence = evidence.of_masks[present]
    opinions = neighbours.opinions(geometry, images)
    neighbours.write(geometry, images, mask_evidence.softmax(1))
    if opinions is None:
        return evidence
    of_masks = evidence.of_masks.clone()
    of_masks[present] = (mask_evidence + weight * opinions) / (1 + weight)
    return replace(evidence, of_masks=of_masks)
