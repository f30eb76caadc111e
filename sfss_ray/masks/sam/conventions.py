"""How the masks of several crops become the masks of an image, by two conventions.

segment_anything suppresses duplicates within each crop by predicted IoU, then between crops in favour
of the smaller crop. The mask-generation pipeline of transformers (read at 5.24) differs in these steps:

- Duplicates are suppressed once, over the masks of all crops, by predicted IoU.
- A stability score must be greater than its threshold, not at least as great.
- Points are computed in float32.
- Points are scaled as if the network kept the image's shape and padded it. SAM 2 and SAM 3 stretch
  images to a square instead. On an image that is not square their points therefore miss a part of it.

sam2's own generator has segment_anything's steps, and scales points by width and height.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfss_ray.masks.sam.boxes import Box, near_crop_edge, nms_indices
from sfss_ray.masks.sam.candidates import CropMasks, Thresholds, find_candidates
from sfss_ray.masks.sam.image_masks import ImageMasks, concatenate
from sfss_ray.masks.sam.promptable import EncodedCrop
from sfss_ray.masks.sam.recheck import recompute_ambiguous
from sfss_ray.masks.sam.skipping import find_without_covered


@dataclass(frozen=True)
class Suppression:
    """Box IoUs above which one of two masks is dropped: within a crop, and between crops."""

    within_crop: float
    between_crops: float


@dataclass(frozen=True)
class CropRequest:
    """One crop of an image and its prompts.

    Attributes:
        box: of the crop in the image.
        grid: points (n, 2) in [0, 1], x and y.
        encode: runs the image encoder on the crop.
    """

    box: Box
    grid: NDArray[np.float64]
    encode: Callable[[], EncodedCrop]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the crop in pixels."""
        x0, y0, x1, y1 = self.box
        return y1 - y0, x1 - x0


@dataclass(frozen=True)
class ImageRequest:
    """The crops of an image and how their masks are filtered.

    Attributes:
        size: (H, W) of the image in pixels.
        crops: the image itself first.
        points_per_batch: points decoded at once, at most.
        thresholds: quality filters.
        suppression: of duplicates.
        skip_covered_iou: predicted IoU from which on a mask hides later points; None skips none.
    """

    size: tuple[int, int]
    crops: list[CropRequest]
    points_per_batch: int
    thresholds: Thresholds
    suppression: Suppression
    skip_covered_iou: float | None = None


DecodedCrop = tuple[CropRequest, EncodedCrop, CropMasks]


def masks_of_image(request: ImageRequest) -> ImageMasks:
    """Return the masks by segment_anything's convention."""
    masks = concatenate([_masks_of_crop(request, crop) for crop in request.crops])
    if len(request.crops) > 1:
        masks = masks.without_crop_duplicates(request.suppression.between_crops)
    return masks


def _masks_of_crop(request: ImageRequest, crop: CropRequest) -> ImageMasks:
    """Return the masks of one crop, without duplicates within the crop."""
    encoded = crop.encode()
    points = np.asarray(crop.grid) * np.array([crop.size[::-1]])
    candidates = _uncut_candidates(request, crop, encoded, points)
    survivors = nms_indices(
        candidates.boxes, candidates.predicted_iou, request.suppression.within_crop
    )
    return _in_image(request, crop, encoded, candidates.select(survivors))


def masks_of_pipeline(request: ImageRequest) -> ImageMasks:
    """Return the masks by the convention of transformers' mask-generation pipeline."""
    decoded: list[DecodedCrop] = []
    request = replace(request, thresholds=replace(request.thresholds, above=True))
    for crop in request.crops:
        encoded = crop.encode()
        encoded = replace(encoded, point_scale=_scale_with_padding(encoded))
        grid = _single_precision_grid(crop.grid)
        points = grid * np.array([crop.size[::-1]], dtype=np.float32)
        decoded.append((crop, encoded, _uncut_candidates(request, crop, encoded, points)))
    boxes = torch.cat([masks.boxes + _offset(crop.box) for crop, _, masks in decoded])
    scores = torch.cat([masks.predicted_iou for _, _, masks in decoded])
    survivors = nms_indices(boxes, scores, request.suppression.between_crops)
    return _select_in_image(request, decoded, survivors)


def _select_in_image(
    request: ImageRequest, decoded: list[DecodedCrop], order: Tensor
) -> ImageMasks:
    """Return the masks at the indices `order` into all crops' masks, in that order."""
    parts, positions, start = [], [], 0
    for crop, encoded, masks in decoded:
        stop = start + len(masks.boxes)
        positions.append(torch.nonzero((order >= start) & (order < stop))[:, 0])
        indices = order[positions[-1]] - start
        parts.append(_in_image(request, crop, encoded, masks.select(indices)))
        start = stop
    return concatenate(parts).select(torch.cat(positions).argsort())


def _uncut_candidates(
    request: ImageRequest, crop: CropRequest, encoded: EncodedCrop, points: NDArray[Any]
) -> CropMasks:
    """Return the masks that pass the thresholds and do not end at a crop edge."""
    prompts = encoded, points, request.points_per_batch, request.thresholds
    if request.skip_covered_iou is None:
        candidates = find_candidates(*prompts)
    else:
        candidates = find_without_covered(*prompts, request.skip_covered_iou)
    # The cheap filters come first: rechecking and run lengths cost time for each mask.
    return candidates.select(~near_crop_edge(candidates.boxes, crop.box, request.size))


def _in_image(
    request: ImageRequest, crop: CropRequest, encoded: EncodedCrop, candidates: CropMasks
) -> ImageMasks:
    masks = recompute_ambiguous(encoded, candidates)
    x0, y0 = crop.box[:2]
    return ImageMasks(
        masks.counts_in_image((y0, x0), request.size),
        masks.predicted_iou,
        masks.stability_score,
        masks.points + torch.tensor([x0, y0]),
        masks.boxes + _offset(crop.box),
        torch.tensor(crop.box).repeat(len(masks.boxes), 1),
    )


def _offset(box: Box) -> Tensor:
    return torch.tensor([box[0], box[1], box[0], box[1]])


def _single_precision_grid(grid: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the grid as torch computes it in float32; another grid is rounded to float32."""
    side = round(len(grid) ** 0.5)
    edge = 1 / (2 * side)
    x = torch.linspace(edge, 1 - edge, side).numpy()
    points = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
    if side * side == len(grid) and np.allclose(points, grid, atol=1e-6):
        return points
    return np.asarray(grid, dtype=np.float32)


def _scale_with_padding(crop: EncodedCrop) -> tuple[float, float]:
    """Return the scale of points in x and y if the longer side takes the whole model input."""
    height, width = crop.size
    scale = crop.input_side / max(height, width)
    return int(width * scale + 0.5) / width, int(height * scale + 0.5) / height
