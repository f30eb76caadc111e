"""What a source model predicts of the views of images, kept for the scores of its students."""

from __future__ import annotations

import numpy as np
import pytest

from sfss_ray.evaluation.source_reference import MAX_GRID_PIXELS, SourceReference, on_grid

IDS = np.array([[0, 0, 0, 0], [1, 1, 0, 0]])
VIEWS = [np.array([[0, 0, 0, 1], [1, 1, 0, 0]]), np.array([[0, 2, 0, 0], [1, 1, 2, 0]])]


def test_the_reference_holds_class_shares_and_views():
    reference = SourceReference.of(3, [(IDS, VIEWS), (np.zeros((2, 4), int), VIEWS[:1])])
    assert reference is not None
    assert reference.class_share == (14 / 16, 2 / 16, 0.0)
    assert reference.classes.tolist() == [0, 1]
    assert np.array_equal(reference.views[0], np.stack(VIEWS))
    assert np.array_equal(reference.views[1], VIEWS[0][None])


def test_a_class_of_hardly_any_pixel_does_not_count():
    ids = np.zeros((40, 50), int)
    ids[0, 0] = 2  # one of 2000 pixels
    reference = SourceReference.of(3, [(ids, [ids])])
    assert reference is not None
    assert reference.classes.tolist() == [0]


@pytest.mark.parametrize(("classes", "kind"), [(19, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_a_reference_survives_a_file(tmp_path, classes, kind):
    ids = np.arange(300).reshape(15, 20) % classes
    reference = SourceReference.of(classes, [(ids, [ids, ids[:, ::-1]]), (ids.T, [ids.T])])
    assert reference is not None
    reference.save(tmp_path / "reference.npz")
    loaded = SourceReference.load(tmp_path / "reference.npz")
    assert loaded == reference
    assert [views.shape for views in loaded.views] == [(2, 15, 20), (1, 20, 15)]
    for before, after in zip(reference.views, loaded.views, strict=True):
        assert after.dtype == kind
        assert np.array_equal(before, after)
    assert np.array_equal(loaded.views[0][1], ids[:, ::-1])


def test_without_images_there_is_no_reference():
    assert SourceReference.of(3, []) is None


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


def test_a_view_lies_on_the_grid_of_its_image():
    plane = np.arange(360 * 480).reshape(360, 480) % 7
    reference = SourceReference.of(7, [(plane, [plane])])
    assert reference is not None
    assert np.array_equal(reference.views[0][0], on_grid(plane))
