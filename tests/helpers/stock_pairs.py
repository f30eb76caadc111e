"""The stock generator and ours with the same change, each with its own copy of the model."""

import copy
import functools
import warnings

import numpy as np
from segment_anything import SamAutomaticMaskGenerator, SamPredictor

from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam
from sfss_ray.streets.scenes import render_scene

SETTINGS = {
    "points_per_side": 3, "points_per_batch": 4, "pred_iou_thresh": 0.3, "box_nms_thresh": 0.8,
    "stability_score_thresh": 0.3, "stability_score_offset": 0.1, "output_mode": "coco_rle",
}  # fmt: skip
STOCK_CALLS = "made by the calls of segment_anything's own generator"


@functools.cache
def image(seed=5):
    return render_scene("camera", seed, 0).image


@functools.cache
def shipped_sam():
    return load_sam(shipped_small_sam())


def build(cls, **settings):
    return cls(copy.deepcopy(shipped_sam()), **{**SETTINGS, **settings})


def run_quietly(generator, picture):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generator.generate(picture)


def results(change=lambda generator: None, picture=None, **settings):
    """Return the records of stock and of ours after the same change, and the warnings of ours."""
    picture = image() if picture is None else picture
    stock, ours = (
        build(c, **settings) for c in (SamAutomaticMaskGenerator, AutomaticMaskGenerator)
    )
    change(stock)
    change(ours)
    expected = run_quietly(stock, picture)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = ours.generate(picture)
    return expected, records, [str(w.message) for w in caught if STOCK_CALLS in str(w.message)]


@functools.cache
def unchanged():
    """Return the stock records without a change, after a comparison with ours."""
    expected, ours, warning_texts = results()
    assert_same_masks(expected, ours)
    assert warning_texts == []
    return expected


def assert_same_masks(expected, ours):
    assert len(expected) == len(ours)
    for name in ("segmentation", "area", "bbox", "point_coords", "crop_box"):
        assert [a[name] for a in expected] == [b[name] for b in ours]
    for name in ("predicted_iou", "stability_score"):
        np.testing.assert_allclose(
            [b[name] for b in ours], [a[name] for a in expected], atol=5e-3, rtol=1e-4
        )


def negated(function):
    """Return a decoder's or predictor's function with the masks of the background."""

    def run(*args, **kwargs):
        masks, *scores = function(*args, **kwargs)
        return (-masks, *scores)

    return run


class Wrapper:
    """Forwards all attributes, and gives each point the masks of its neighbour."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def predict_torch(self, *args, **kwargs):
        masks, quality, low = self.inner.predict_torch(*args, **kwargs)
        return masks.roll(1, 0), quality.roll(1, 0), low


class KeepsLowQuality(SamPredictor):
    def predict_torch(self, *args, **kwargs):
        masks, quality, low = super().predict_torch(*args, **kwargs)
        return masks, 1 - quality, low


def set_wrapper(generator):
    generator.predictor = Wrapper(generator.predictor)


def set_subclass(generator):
    generator.predictor = KeepsLowQuality(generator.predictor.model)


def patch_predict_torch(generator):
    generator.predictor.predict_torch = negated(generator.predictor.predict_torch)
