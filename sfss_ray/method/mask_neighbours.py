"""Masks alike vote together: evidence for a mask's class from its neighbours in other images.

SAM's image encoder tells apart things that the source model confuses, because it learned elsewhere. So
masks with similar embeddings are probably of one class. The opinion of a mask's neighbours in this
space, or in another one (mask_space.py), is one more piece of evidence for the mask's class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.method.collective import gather_rows
from sfss_ray.method.mask_evidence import Evidence
from sfss_ray.method.mask_space import DescribedMasks

NUM_NEIGHBOURS = 20
_TEMPERATURE = 0.07
NEIGHBOUR_FLOOR = 0.02
"""Added to opinions: neighbours cannot rule a class out."""
_MIN_SHARE = 2e-3  # a class that no mask has does not weigh without limit
_MIN_SPREAD = 1e-3  # equal masks must not be told apart by rounding
_MIN_LENGTH = 1e-12  # of a row that equals the mean of the ring
_ROWS_AT_ONCE = 1024


class MaskNeighbours:
    """A ring of the latest masks of all workers: their description, image and class probabilities.

    Every worker holds the same ring. Its state in a checkpoint restores it bit for bit.

    Args:
        num_classes: C.
        size: Masks that the ring holds, N. The oldest are overwritten.
        device: Of the networks.
    """

    def __init__(
        self, num_classes: int, size: int = 8192, device: torch.device | str = "cpu"
    ) -> None:
        self.blocks: tuple[Tensor, ...] = ()
        """Descriptions (N, width), made by the first write, which knows the widths."""
        self.probabilities = torch.zeros(size, num_classes, device=device)
        self.images = torch.zeros(size, dtype=torch.int64, device=device)
        self.written = 0
        """Masks written since step 1."""

    def __len__(self) -> int:
        """Return the number of masks in the ring."""
        return min(self.written, len(self.images))

    def entries(self) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Return descriptions, class probabilities and images of the masks in the ring."""
        count = len(self)
        blocks = tuple(block[:count] for block in self.blocks)
        return blocks, self.probabilities[:count], self.images[:count]

    def opinions(self, blocks: Sequence[Tensor], images: Tensor) -> Tensor | None:
        """Return each mask's class probabilities by its neighbours, (K, C), or None without any.

            r_k(c) ~ sum over the 20 nearest masks j of other images of
                     softmax(g_k . g_j / .07) p_j(c) / sqrt(mean p(c))

        with g the description. Each of its blocks is standardised over the ring and scaled to length 1,
        and so is the whole. r sums to 1 over the classes. Dividing by the root of the mean keeps common
        classes from deciding for rare ones. A mask's own image has no say. A mask without a neighbour
        has a uniform opinion.

        Args:
            blocks: Descriptions (K, width) of the masks.
            images: (K,) number of the image of each.
        """
        if not len(self) or not len(images):
            return None
        ring, p, _ = self.entries()
        standards = [_Standardised.of(rows) for rows in ring]
        weighted = p / p.mean(0).clamp(min=_MIN_SHARE).sqrt()
        parts = zip(*(rows.split(_ROWS_AT_ONCE) for rows in (images, *blocks)), strict=True)
        return torch.cat([self._opinions(i, g, standards, weighted) for i, *g in parts])

    def _opinions(
        self,
        images: Tensor,
        asking: Sequence[Tensor],
        standards: Sequence[_Standardised],
        weighted: Tensor,
    ) -> Tensor:
        # Joined rows of length 1, scaled to length 1 again, have the mean of the cosines of their parts.
        cosines = [rows.cosines(block) for rows, block in zip(standards, asking, strict=True)]
        similarity = torch.stack(cosines).mean(0) if len(cosines) > 1 else cosines[0]
        own_image = images[:, None] == self.images[None, : len(weighted)]
        similarity.masked_fill_(own_image, -torch.inf)
        nearest = similarity.topk(min(NUM_NEIGHBOURS, len(weighted)), dim=1)
        has_neighbour = nearest.values[:, :1] > -torch.inf
        scaled = torch.where(has_neighbour, nearest.values / _TEMPERATURE, 0.0)
        opinion = torch.einsum("kn,knc->kc", scaled.softmax(1), weighted[nearest.indices])
        opinion = opinion / opinion.sum(1, keepdim=True)
        uniform = torch.full_like(opinion, 1 / opinion.shape[1])
        return torch.where(has_neighbour, opinion, uniform)

    def write(self, blocks: Sequence[Tensor], images: Tensor, probabilities: Tensor) -> None:
        """Add this step's masks of all workers, in the order of (rank, row).

        Args:
            blocks: Descriptions (K, width) of this worker's masks.
            images: (K,) number of the image of each.
            probabilities: (K, C) of the classes.
        """
        home = self.images.device
        if not self.blocks:
            size = len(self.images)
            self.blocks = tuple(torch.zeros(size, b.shape[1], device=home) for b in blocks)
        rows = gather_rows(torch.cat([*blocks, probabilities], 1), home)
        image_rows = gather_rows(images, home)
        size, count = len(self.images), len(rows)
        # Rows that later ones of this call would overwrite are left out: writes must not collide.
        newest = slice(max(0, count - size), count)
        positions = torch.arange(self.written, self.written + count, device=home)[newest] % size
        *described, classes = rows[newest].split([b.shape[1] for b in (*blocks, probabilities)], 1)
        for block, new in zip(self.blocks, described, strict=True):
            block[positions] = new
        self.probabilities[positions] = classes
        self.images[positions] = image_rows[newest]
        self.written += count

    def state_dict(self) -> dict[str, Any]:
        """Return the ring as tensors."""
        return {
            "blocks": list(self.blocks),
            "probabilities": self.probabilities,
            "images": self.images,
            "written": torch.tensor(self.written),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ring of the same size."""
        home = self.images.device
        self.blocks = tuple(block.to(home, copy=True) for block in state["blocks"])
        self.probabilities.copy_(state["probabilities"])
        self.images.copy_(state["images"])
        self.written = int(state["written"])


@dataclass(frozen=True)
class _Standardised:
    """A block of the ring, with what standardises its rows and scales them to length 1.

    Rows that ask are standardised and scaled, and the ring's own products with them. The ring has many
    more rows, so it is read often enough without being copied once more.
    """

    centred: Tensor
    """(N, width) rows less their mean."""
    mean: Tensor
    """(1, width) over the ring."""
    spread: Tensor
    """(1, width) standard deviation over the ring."""
    lengths: Tensor
    """(N,) of the standardised rows."""

    @staticmethod
    def of(ring: Tensor) -> _Standardised:
        # Sums over rows as products with a row of ones: reductions over the first dimension are slow.
        ones = ring.new_full((1, len(ring)), 1 / len(ring))
        mean = ones @ ring
        centred = ring - mean
        squares = centred.square()
        spread = (ones @ squares).sqrt().clamp(min=_MIN_SPREAD)
        lengths = (squares @ spread[0].square().reciprocal()).sqrt().clamp(min=_MIN_LENGTH)
        return _Standardised(centred, mean, spread, lengths)

    def cosines(self, asking: Tensor) -> Tensor:
        """Return the cosine (K, N) of each asking row with each row of the ring, both standardised."""
        unit = F.normalize((asking - self.mean) / self.spread, dim=1, eps=_MIN_LENGTH)
        return ((unit / self.spread) @ self.centred.T).div_(self.lengths)


def ask_neighbours(
    evidence: Evidence,
    described: DescribedMasks,
    neighbours: MaskNeighbours,
    weight: float,
    pooling: Literal["sum", "mean"] = "sum",
) -> tuple[Evidence, Tensor | None]:
    """Return the evidence with the neighbours' opinion of each mask, and write the masks to the ring.

        sum:   s'_k = s_k + weight * log(r_k + .02)
        mean:  s'_k = (s_k + weight * log(r_k + .02)) / (1 + weight)

    The sum takes own evidence and opinion as independent. Of masks whose label changes, nearly all end
    between both opinions with a low confidence. The mean leaves them below the thresholds, so their new
    labels would never be learned. An empty ring changes nothing.

    Args:
        evidence: Of pixels and masks.
        described: The masks.
        neighbours: The ring. The masks are written with their own evidence, not with their neighbours'.
        weight: Of the opinion.
        pooling: See `train.loss.neighbour_pooling`.

    Returns:
        The evidence, and the opinions r (K, C); None where the ring was empty.
    """
    mask_evidence = evidence.of_masks[described.numbers]
    opinions = neighbours.opinions(described.blocks, described.images)
    neighbours.write(described.blocks, described.images, mask_evidence.softmax(1))
    if opinions is None:
        return evidence, None
    of_masks = evidence.of_masks.clone()
    log_opinions = (opinions + NEIGHBOUR_FLOOR).log()
    total = 1 + weight if pooling == "mean" else 1.0
    of_masks[described.numbers] = (mask_evidence + weight * log_opinions) / total
    return replace(evidence, of_masks=of_masks, own_of_masks=evidence.of_masks), opinions
