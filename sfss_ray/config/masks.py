"""Knobs of stage 1, mask generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from sfss_ray.config.ranges import (
    Common,
    Count,
    PositiveInt,
    Range,
    Share,
    check_knobs,
)


@dataclass(frozen=True)
class MaskConfig:
    """Stage 1: how regions are found in an image. Knobs of the mask generator have SAM's own names.

    A threshold of None means the network's own value. That is SAM's default, or with regions small_sam
    the value measured for it (small_sam.json), because its scores are lower.
    """

    regions: Annotated[Literal["auto", "sam", "small_sam", "felzenszwalb"], Common] = "auto"
    """Region source: auto, sam, small_sam or felzenszwalb. auto: sam when a SAM checkpoint is given,
    else felzenszwalb (no weights)."""
    points_per_side: Annotated[int, Range(1, 256), Common] = 32
    """Prompts along each image side. More prompts find smaller objects and take longer."""
    points_per_batch: Annotated[int, Range(1, 4096)] = 64
    """Largest number of prompts decoded at once. More prompts need more memory."""
    pred_iou_thresh: Share | None = None
    """Lowest IoU that the model itself predicts for a mask that is kept. SAM's value: 0.88."""
    stability_score_thresh: Share | None = None
    """Lowest stability score of a mask that is kept: its IoU when the cut-off moves. SAM's: 0.95."""
    stability_score_offset: Annotated[float, Range(0, above=True)] | None = None
    """Distance that the cut-off moves for the stability score, in logits. SAM's value: 1."""
    box_nms_thresh: Share | None = None
    """Of masks whose boxes overlap by more than this IoU, only the best is kept. SAM's value: 0.7."""
    crop_n_layers: Annotated[int, Range(0, 4)] = 0
    """Layers of zoomed crops that are searched too. Layer i has 4**i crops."""
    crop_n_points_downscale_factor: PositiveInt = 1
    """Crops of layer i have points_per_side / factor**i points a side."""
    crop_overlap_ratio: Share = 512 / 1500
    """Overlap of the crops in layer 1, as a share of the image's short side. Each layer halves it."""
    crop_nms_thresh: Share = 0.7
    """Like box_nms_thresh, between crops. The mask of the smaller crop is kept."""
    skip_covered_iou: Share | None = None
    """Prompts inside a mask that was already found with at least this predicted IoU are skipped: faster,
    but some masks are lost. None, the default, skips no prompt."""
    min_mask_region_area: Count = 0
    """Holes and islands smaller than this many pixels are removed. 0 removes none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network. bf16 is faster on most GPUs and on CPUs that support it. It changes
    masks slightly (mean IoU 0.97 to 0.99, single masks less)."""
    embeddings: bool = True
    """Store the mean embedding of the network's image encoder with each mask. By it, masks find others
    that look alike (train.loss.neighbour_weight). Felzenszwalb's regions have none."""
    felzenszwalb_scale: Annotated[float, Range(0, above=True)] = 50.0
    """Felzenszwalb regions only: a larger scale gives larger regions. Small, pure ones vote better."""
    felzenszwalb_min_size: PositiveInt = 50
    """Felzenszwalb regions only: smallest region, in pixels of a 480x360 image (scaled to others)."""
    concepts: str = ""
    """Folder or Hub name of a SAM 3 that is prompted with class names. Its masks have classes and take
    part in the vote (train.loss.concept_weight). It is external knowledge, and reports say so. Empty:
    none."""
    concept_prompts: str = ""
    """Prompts of classes, such as "pole: pole, street lamp; void: -". Other classes are prompted with
    their names. A class with the prompt - is not searched for."""
    concept_score_thresh: Share = 0.5
    """Lowest score of a mask with a class: the presence of the concept in the image times the score of
    the mask."""
    max_pixels: PositiveInt = 200_000_000
    """Images with more pixels get a row with an error instead of masks. Raise it where every worker
    has enough memory."""
    images_per_shard: Annotated[int, Range(1, 4096)] = 32
    """Images per Parquet file. A killed worker repeats at most one file."""

    def __post_init__(self):
        check_knobs(self)
