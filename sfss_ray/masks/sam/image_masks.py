"""Masks of one image as run lengths with their scores, and their conversion to records."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam.boxes import nms_indices, xyxy_to_xywh
from sfss_ray.masks.sam.measure_cpu import tight_box
from sfss_ray.masks.sam.small_regions import remove_small_regions

RUN_LENGTHS = "run_lengths"
"""Output mode whose counts are int32 arrays, for a process that makes COCO's strings of them."""


@dataclass
class ImageMasks:
    """Masks in image coordinates: parallel lists and tensors of length n, on the CPU."""

    counts: list[run_lengths.Counts]
    predicted_iou: Tensor  # float32 (n,)
    stability_score: Tensor  # float32 (n,)
    points: Tensor  # float64 (n, 2), x and y in pixels
    boxes: Tensor  # int64 (n, 4), x0 y0 x1 y1 in pixels, x1 and y1 lie inside the mask
    crop_boxes: Tensor  # int64 (n, 4), x0 y0 x1 y1

    def select(self, indices: Tensor) -> "ImageMasks":
        """Return the masks at `indices`, in that order."""
        return ImageMasks(
            [self.counts[i] for i in indices.tolist()],
            self.predicted_iou[indices],
            self.stability_score[indices],
            self.points[indices],
            self.boxes[indices],
            self.crop_boxes[indices],
        )

    def without_crop_duplicates(self, iou_threshold: float) -> "ImageMasks":
        """Suppress duplicates among crops: where boxes overlap, the mask of the smallest crop wins."""
        sides = self.crop_boxes[:, 2:] - self.crop_boxes[:, :2]
        return self.select(nms_indices(self.boxes, 1 / sides.prod(dim=1), iou_threshold))

    def without_small_regions(
        self, min_area: int, image_size: tuple[int, int], iou_threshold: float
    ) -> "ImageMasks":
        """Remove small holes and islands, then the duplicates that this makes.

        Unchanged masks win over changed ones. Masks are decoded one at a time to save memory.

        Args:
            min_area: holes and islands with fewer pixels are removed.
            image_size: (H, W) in pixels.
            iou_threshold: of the suppression by box IoU.
        """
        boxes, unchanged = [], []
        for k, counts in enumerate(self.counts):
            mask, changed = remove_small_regions(run_lengths.decode(counts, image_size), min_area)
            boxes.append(tight_box(mask.T) or (0, 0, 0, 0))
            unchanged.append(float(not changed))
            if changed:
                self.counts[k] = run_lengths.encode_masks([mask])[0]
                self.boxes[k] = torch.tensor(boxes[-1])
        return self.select(nms_indices(torch.tensor(boxes), torch.tensor(unchanged), iou_threshold))

    def to_records(self, image_size: tuple[int, int], output_mode: str) -> list[dict[str, Any]]:
        """Return a dict for each mask, as segment_anything's generator does.

        Args:
            image_size: (H, W) in pixels.
            output_mode: "binary_mask", "uncompressed_rle" or "coco_rle"; or RUN_LENGTHS.
        """
        boxes, crop_boxes = xyxy_to_xywh(self.boxes), xyxy_to_xywh(self.crop_boxes)
        segmentations = _segmentations(self.counts, image_size, output_mode)
        return [
            {
                "segmentation": segmentation,
                "area": run_lengths.area(self.counts[k]),
                "bbox": boxes[k].tolist(),
                "predicted_iou": self.predicted_iou[k].item(),
                "point_coords": [self.points[k].tolist()],
                "stability_score": self.stability_score[k].item(),
                "crop_box": crop_boxes[k].tolist(),
            }
            for k, segmentation in enumerate(segmentations)
        ]


def concatenate(parts: list[ImageMasks]) -> ImageMasks:
    """Join the masks of several crops, in order."""
    return ImageMasks(
        [counts for part in parts for counts in part.counts],
        torch.cat([part.predicted_iou for part in parts]),
        torch.cat([part.stability_score for part in parts]),
        torch.cat([part.points for part in parts]),
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.crop_boxes for part in parts]),
    )


def _segmentations(
    masks: list[run_lengths.Counts], image_size: tuple[int, int], output_mode: str
) -> list[Any]:
    if output_mode == "binary_mask":
        return [run_lengths.decode(counts, image_size) for counts in masks]
    if output_mode == RUN_LENGTHS:
        return [{"size": list(image_size), "counts": c.astype(np.int32)} for c in masks]
    if output_mode == "coco_rle":
        strings = run_lengths.to_coco_strings(masks)
        return [{"size": list(image_size), "counts": string} for string in strings]
    return [{"size": list(image_size), "counts": counts.tolist()} for counts in masks]
