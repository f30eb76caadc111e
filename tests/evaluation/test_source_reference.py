"""Anchors of a source model and the share of them that a student keeps, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sfss_ray.evaluation.source_reference import (
    MAX_GRID_PIXELS,
    NO_ANCHOR,
    KeptAnchors,
    SourceReference,
    on_grid,
)


def probabilities(ids, confidence, classes: int = 3) -> np.ndarray:
    """Return (C, H, W): the class of each pixel has its confidence, the others share the rest."""
    ids, confidence = np.asarray(ids), np.asarray(confidence, float)
    rest = (1 - confidence) / (classes - 1)
    stacked = np.repeat(rest[None], classes, axis=0)
    np.put_along_axis(stacked, ids[None], confidence[None], axis=0)
    return stacked


IDS = np.array([[0, 0, 0, 0], [1, 1, 0, 0]])
CONFIDENCE = np.array([[0.5, 0.6, 0.7, 0.8], [0.9, 0.95, 0.91, 0.92]])


def test_anchors_are_the_surest_half_of_each_class():
    reference = SourceReference.of([probabilities(IDS, CONFIDENCE)])
    assert reference is not None
    assert reference.class_share == (0.75, 0.25, 0.0)
    assert reference.classes.tolist() == [0, 1]
    # The median of six confidences is the third, which occurs; that of two is the first.
    assert reference.anchors[0].tolist() == [[-1, -1, 0, 0], [1, 1, 0, 0]]


def test_limits_are_over_all_images():
    sure, unsure = np.full((2, 4), 0.9), np.full((2, 4), 0.6)
    zeros = np.zeros((2, 4), int)
    reference = SourceReference.of([probabilities(zeros, sure), probabilities(zeros, unsure)])
    assert reference is not None
    first, second = reference.anchors
    assert (first == 0).all()
    assert (second == 0).all()  # of eight values each, the lower median is the lower one
    three = SourceReference.of(
        [probabilities(zeros, c) for c in (sure, sure, unsure)]  # the median is sure
    )
    assert three is not None
    assert [(anchors == 0).all() for anchors in three.anchors[:2]] == [True, True]
    assert (three.anchors[2] == NO_ANCHOR).all()


def test_kept_anchors_are_a_mean_over_classes():
    reference = SourceReference.of([probabilities(IDS, CONFIDENCE)] * 2)
    assert reference is not None
    kept = KeptAnchors(reference)
    assert np.isnan(kept.value())
    kept.add(IDS)
    assert kept.value() == 1
    kept.add(np.array([[2, 2, 0, 0], [0, 1, 0, 2]]))
    # Class 0 keeps 4 + 3 of 8, class 1 keeps 2 + 1 of 4.
    assert kept.value() == pytest.approx((7 / 8 + 3 / 4) / 2)
    assert kept.leave_one_out().tolist() == pytest.approx([(3 / 4 + 1 / 2) / 2, 1])


def test_a_class_of_hardly_any_pixel_does_not_count():
    ids = np.zeros((40, 50), int)
    ids[0, 0] = 2  # one of 2000 pixels
    reference = SourceReference.of([probabilities(ids, np.full(ids.shape, 0.9))])
    assert reference is not None
    assert reference.classes.tolist() == [0]
    kept = KeptAnchors(reference)
    kept.add(np.zeros((40, 50), int))
    assert kept.value() == 1


def test_a_reference_survives_a_file(tmp_path):
    images = [probabilities(IDS, CONFIDENCE), probabilities(IDS.T, CONFIDENCE.T)]
    reference = SourceReference.of(images)
    assert reference is not None
    reference.save(tmp_path / "reference.npz")
    loaded = SourceReference.load(tmp_path / "reference.npz")
    assert loaded == reference
    assert len(loaded.anchors) == 2
    for before, after in zip(reference.anchors, loaded.anchors, strict=True):
        assert before.dtype == after.dtype
        assert np.array_equal(before, after)


def test_without_images_there_is_no_reference():
    assert SourceReference.of([]) is None


@pytest.mark.parametrize("size", [(4, 4), (256, 256), (360, 480), (1024, 2048)])
def test_the_grid_has_few_pixels_whatever_the_image(size):
    plane = np.arange(size[0] * size[1]).reshape(size)
    grid = on_grid(plane)
    assert grid.size <= 1.05 * MAX_GRID_PIXELS
    assert grid[0, 0] == 0
    if plane.size <= MAX_GRID_PIXELS:
        assert np.array_equal(grid, plane)
    else:
        assert grid.size > 0.3 * MAX_GRID_PIXELS
