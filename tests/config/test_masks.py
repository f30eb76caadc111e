"""Knobs of mask generation and their ranges."""

from __future__ import annotations

import pytest
from knob_cases import assert_refused, cases

from sfss_ray.config import MaskConfig
from sfss_ray.errors import ConfigError

OUT_OF_RANGE = {
    "masks.regions": ["sam2"],
    "masks.points_per_side": [0, 257],
    "masks.pred_iou_thresh": [-0.1, 1.1],
    "masks.stability_score_offset": [0.0],
    "masks.crop_n_layers": [-1, 5],
    "masks.crop_n_points_downscale_factor": [0],
    "masks.crop_overlap_ratio": [-0.1, 1.1],
    "masks.crop_nms_thresh": [-0.1, 1.1],
    "masks.skip_covered_iou": [-0.1, 1.1],
    "masks.felzenszwalb_scale": [0.0],
    "masks.images_per_shard": [0],
}


@pytest.mark.parametrize(("name", "value"), cases(OUT_OF_RANGE))
def test_values_out_of_range_are_refused(name, value):
    assert_refused(name, value)


def test_thresholds_are_the_networks_own_by_default():
    for name in ("pred_iou_thresh", "stability_score_thresh", "stability_score_offset"):
        assert getattr(MaskConfig(), name) is None
        assert getattr(MaskConfig(**{name: 0.5}), name) == 0.5
    assert MaskConfig(box_nms_thresh=1).box_nms_thresh == 1


@pytest.mark.parametrize("name", ["points_per_side", "points_per_batch", "regions", "max_pixels"])
def test_other_knobs_cannot_be_none(name):
    with pytest.raises(ConfigError, match=f"^{name} is None: allowed is "):
        MaskConfig(**{name: None})
