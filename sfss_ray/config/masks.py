"""Knobs of stage 1, mask generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfss_ray.config.checks import require, require_one_of


@dataclass(frozen=True)
class MaskConfig:
    """Stage 1: how regions are found in an image. Names of the generator's knobs are SAM's own.

    A threshold of None is the network's own: SAM's default, or with regions small_sam the value that
    was measured for it (small_sam.json), as its scores lie lower.
    """

    regions: Literal["auto", "sam", "small_sam", "felzenszwalb"] = "auto"
    """Region source; auto: sam when a SAM checkpoint is given, else felzenszwalb (no weights)."""
    points_per_side: int = 32
    """Prompts per image side, so points_per_side**2 prompts; more finds smaller things, costs time."""
    points_per_batch: int = 64
    """Upper bound of prompts decoded at once; more needs more memory."""
    pred_iou_thresh: float | None = None
    """Masks whose IoU the model itself predicts below this are dropped; 0 to 1. SAM's: .88."""
    stability_score_thresh: float | None = None
    """Masks that change more than this allows when the cut-off moves are dropped; 0 to 1. SAM's: .95."""
    stability_score_offset: float | None = None
    """How far the cut-off is moved for the stability score, in logits. SAM's: 1."""
    box_nms_thresh: float | None = None
    """Of masks whose boxes overlap by more than this IoU only the best is kept. SAM's: .7."""
    crop_n_layers: int = 0
    """Layers of zoomed crops that are searched too; layer i has 4**i crops."""
    crop_n_points_downscale_factor: int = 1
    """Crops of layer i have points_per_side / factor**i points a side."""
    crop_overlap_ratio: float = 512 / 1500
    """Overlap of the crops in layer 1, as a part of the image's short side; halved by each layer."""
    crop_nms_thresh: float = 0.7
    """As box_nms_thresh, between crops; the mask of the smaller crop is kept."""
    min_mask_region_area: int = 0
    """Holes and islands smaller than this many pixels are removed (0: none)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network. bf16 is faster on most GPUs and on CPUs that have it; masks then differ (IoU
    .97 to .99 on average, single ones less)."""
    felzenszwalb_scale: float = 50.0
    """Felzenszwalb regions only: larger means larger regions. Small, pure ones vote better."""
    felzenszwalb_min_size: int = 50
    """Felzenszwalb regions only: smallest region, in pixels of a 480x360 image (scaled to others)."""
    max_pixels: int = 200_000_000
    """Images with more pixels get a row with an error instead of masks; raise it where every worker
    has the memory."""
    images_per_shard: int = 32
    """Images per Parquet file; also what a killed worker may have to redo."""

    def __post_init__(self):
        require_one_of(self, "regions", ("auto", "sam", "small_sam", "felzenszwalb"))
        require_one_of(self, "precision", ("fp32", "bf16"))
        require(self, "points_per_side", 1, 256)
        require(self, "points_per_batch", 1, 4096)
        require(self, "pred_iou_thresh", 0, 1)
        require(self, "stability_score_thresh", 0, 1)
        require(self, "stability_score_offset", 0, above=True)
        require(self, "box_nms_thresh", 0, 1)
        require(self, "crop_n_layers", 0, 4)
        require(self, "crop_n_points_downscale_factor", 1)
        require(self, "crop_overlap_ratio", 0, 1)
        require(self, "crop_nms_thresh", 0, 1)
        require(self, "min_mask_region_area", 0)
        require(self, "felzenszwalb_scale", 0, above=True)
        require(self, "felzenszwalb_min_size", 1)
        require(self, "max_pixels", 1)
        require(self, "images_per_shard", 1, 4096)
