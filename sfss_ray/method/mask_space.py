"""The space in which masks look for neighbours: geometry, features, or an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.method.mask_evidence import MaskPixels

MASK_GEOMETRY = "mask_geometry"
"""Name of the geometry (B, ids, GEOMETRY_WIDTH) of the masks in a batch, see `MaskStore.geometry`."""
MASK_EMBEDDING = "mask_embedding"
"""Name of the SAM embeddings (B, ids, C) of the masks in a batch, see `MaskStore.embeddings`."""
GEOMETRY_WIDTH = 4
EMBEDDING_WIDTH = 64
_HIDDEN_WIDTH = 128
_TYPICAL_GEOMETRY = ((0.5, 0.1, 0.1, -6.0), (0.3, 0.1, 0.1, 2.0))
"""Rough mean and spread of mean row, spread of rows and of columns, and log area of street masks."""


@dataclass(frozen=True)
class DescribedMasks:
    """The K masks of a batch that have a pixel, with what describes them."""

    numbers: Tensor
    """(K,) of the masks, see `MaskPixels`."""
    images: Tensor
    """(K,) number of each mask's image in the data set."""
    geometry: Tensor
    """(K, GEOMETRY_WIDTH) place and size."""
    blocks: tuple[Tensor, ...]
    """Descriptions (K, width). Each block counts as much as the others, whatever its width."""


class MaskSpace(nn.Module):
    """What masks are compared by, other than their geometry or SAM's embedding.

    Args:
        space: "features", "both", "learned" or "random", see `train.loss.neighbour_space`.
        feature_width: Channels of the features.
    """

    def __init__(self, space: str, feature_width: int):
        super().__init__()
        self.space = space
        self.of_features: nn.Module = nn.Identity()
        self.of_geometry: nn.Module = nn.Identity()
        if space == "learned":
            self.of_features = nn.Sequential(
                nn.Conv2d(feature_width, _HIDDEN_WIDTH, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(_HIDDEN_WIDTH, EMBEDDING_WIDTH, 1),
            )
            self.of_geometry = nn.Linear(GEOMETRY_WIDTH, EMBEDDING_WIDTH)

    @property
    def uses_features(self) -> bool:
        """Whether features of cells describe a mask."""
        return self.space != "random"

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, W, h, w) to be averaged over masks, of features (B, D, h, w)."""
        return self.of_features(features)

    def embed(self, pooled: Tensor, geometry: Tensor) -> Tensor:
        """Return learned embeddings (K, EMBEDDING_WIDTH) of length 1.

            e_k = normalise(mean over the mask of h(f) + A g_k)

        Args:
            pooled: (K, EMBEDDING_WIDTH) means of `forward` over each mask.
            geometry: (K, GEOMETRY_WIDTH).
        """
        mean, spread = geometry.new_tensor(_TYPICAL_GEOMETRY)
        return F.normalize(pooled + self.of_geometry((geometry - mean) / spread), dim=1)


def describe_masks(
    masks: MaskPixels,
    batch: Mapping[str, Tensor],
    space: MaskSpace | None,
    features: Tensor | None,
) -> DescribedMasks:
    """Describe the masks of a batch that have a pixel.

    Args:
        masks: Of the batch.
        batch: `mask_ids` (B, H, W), `image` (B,) and MASK_GEOMETRY. With MASK_EMBEDDING that alone
            describes the masks.
        space: What to add to the geometry, or to use instead of it. None is the geometry alone.
        features: (B, W, h, w), what `space` made of the teacher's features. None without a space.
    """
    numbers = masks.present()
    images = batch["image"][torch.div(numbers, masks.ids_per_image, rounding_mode="floor")]
    geometry = batch[MASK_GEOMETRY][:, : masks.ids_per_image].flatten(0, 1)[numbers]
    if MASK_EMBEDDING in batch:
        embeddings = batch[MASK_EMBEDDING][:, : masks.ids_per_image].flatten(0, 1)[numbers]
        return DescribedMasks(numbers, images, geometry, (embeddings,))
    if space is not None and not space.uses_features:
        drawn = random_descriptions(images, numbers % masks.ids_per_image)
        return DescribedMasks(numbers, images, geometry, (drawn,))
    if space is None or features is None:
        return DescribedMasks(numbers, images, geometry, (geometry,))
    pooled = pool_cells(features, batch["mask_ids"], masks)[numbers]
    if space.space == "learned":
        blocks = (space.embed(pooled, geometry),)
    else:
        blocks = (pooled,) if space.space == "features" else (pooled, geometry)
    return DescribedMasks(numbers, images, geometry, blocks)


def random_descriptions(images: Tensor, ids: Tensor) -> Tensor:
    """Return (K, GEOMETRY_WIDTH) numbers in [0, 1) that say nothing about the masks.

    They are the fractional parts of large sines. A mask has the same ones in every step and on every
    worker.

    Args:
        images: (K,) number of each mask's image.
        ids: (K,) of the masks in their images.
    """
    columns = torch.arange(1, GEOMETRY_WIDTH + 1, device=ids.device)
    angles = (images.double() * 12.9898 + ids.double() * 78.233 + 37.719)[:, None] * columns
    return (angles.sin() * 43758.5453).frac().abs().float()


def pool_cells(
    features: Tensor, mask_ids: Tensor, masks: MaskPixels, chosen: Tensor | None = None
) -> Tensor:
    """Return the mean of features over the pixels of each mask (M, W), each pixel with its cell's.

    Args:
        features: (B, W, h, w), with or without gradient.
        mask_ids: (B, H, W), 0 = no mask.
        masks: The same masks, numbered.
        chosen: (B, h * w) bool, cells that count. A mask with none of them is pooled over all. None
            chooses all.
    """
    batch, _, height, width = features.shape
    rows, columns = (
        torch.arange(pixels, device=mask_ids.device) * cells // pixels
        for pixels, cells in zip(mask_ids.shape[1:], (height, width), strict=True)
    )
    cell = (rows[:, None] * width + columns).flatten().repeat(batch)
    num_cells = height * width
    joint = masks.owner * num_cells + cell
    counts = torch.bincount(joint, minlength=masks.num_masks * num_cells)
    counts = counts.view(batch, masks.ids_per_image, num_cells).to(features.dtype)
    if chosen is not None:
        parts = counts * chosen[:, None]
        counts = torch.where(parts.sum(2, keepdim=True) > 0, parts, counts)
    total = counts @ features.flatten(2).transpose(1, 2)
    return (total / counts.sum(2, keepdim=True).clamp(min=1)).flatten(0, 1)
