"""Pictures: geometry, stable colours, honest what-changed panels, any size of image."""

import cv2
import numpy as np
import pytest

from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import DataError
from sfss_ray.report.pictures import (
    GAP,
    NEWLY_RIGHT,
    NEWLY_WRONG,
    NOT_LABELLED,
    STILL_RIGHT,
    STILL_WRONG,
    Strip,
    classes_present,
    contact_sheet,
    draw_changes,
    draw_legend,
    draw_strip,
    mask_tile,
    save_png,
    strip_panels,
)


def make_strip(height=40, width=80, **changed):
    rng = np.random.default_rng(0)
    parts = {
        "image_id": "city/a",
        "image": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "mask_ids": rng.integers(0, 5, (height, width)),
        "predictions": {
            name: rng.integers(0, 19, (height, width), dtype=np.uint8)
            for name in ("source-only", "adapted")
        },
        "labels": rng.integers(0, 19, (height, width), dtype=np.uint8),
        "ious": {"adapted": 51.24},
    }
    return Strip(**{**parts, **changed})


def test_a_tile_is_as_wide_as_its_picture_however_long_its_title():
    image, ids = np.full((40, 80, 3), 90, np.uint8), np.zeros((40, 80), int)
    short = mask_tile("a", "3 masks", image, ids, 100)
    long = mask_tile("a/very/long/path/of/an/image/frame_000001", "3 masks", image, ids, 100)
    assert short.shape == long.shape == (128, 200, 3)
    assert (short[28:] == 90).all()
    assert (short[:28] != long[:28]).any()
    assert mask_tile("narrow", "", image[:, :4], ids[:, :4], 40).shape == (68, 120, 3)


def test_changes_are_counted_and_coloured_by_outcome():
    labels = np.array([[1, 1, 1, 1, 255]], np.uint8)
    before = np.array([[0, 1, 1, 0, 0]], np.uint8)
    after = np.array([[1, 0, 1, 2, 1]], np.uint8)
    drawn, right, wrong = draw_changes(before, after, labels)
    expected = [NEWLY_RIGHT, NEWLY_WRONG, STILL_RIGHT, STILL_WRONG, NOT_LABELLED]
    assert [tuple(pixel) for pixel in drawn[0].tolist()] == expected
    assert (right, wrong) == (25.0, 25.0)


def test_changes_without_a_labelled_pixel_are_zero_not_nan():
    ids = np.zeros((2, 2), np.uint8)
    assert draw_changes(ids, ids, np.full((2, 2), 255, np.uint8))[1:] == (0.0, 0.0)


def test_panels_are_in_order_with_their_details():
    panels = strip_panels(make_strip(), CITYSCAPES_19, height=64)
    titles = [panel.title for panel in panels]
    assert titles == ["image", "masks", "source-only", "adapted", "label", "what changed"]
    assert panels[1].detail == "4"
    assert panels[3].detail == "mIoU 51.2"
    assert {panel.image.shape for panel in panels} == {(64, 128, 3)}


def test_missing_parts_have_no_panels():
    strip = make_strip(mask_ids=None, labels=None)
    titles = [panel.title for panel in strip_panels(strip, CITYSCAPES_19, height=64)]
    assert titles == ["image", "source-only", "adapted"]
    assert len(strip_panels(make_strip(predictions={}), CITYSCAPES_19, height=64)) == 3


def test_labels_of_another_size_than_the_image_are_fine():
    labels = np.zeros((80, 160), np.uint8)
    prediction = {"source-only": np.ones((40, 80), np.uint8), "adapted": labels}
    panels = strip_panels(make_strip(labels=labels, predictions=prediction), CITYSCAPES_19, 64)
    assert panels[-1].detail == "+100.0 % / -0.0 %"


def test_predictions_keep_their_exact_colours_when_scaled():
    prediction = np.zeros((40, 80), np.uint8)
    prediction[:, 40:] = 10
    strip = make_strip(predictions={"source-only": prediction})
    panel = strip_panels(strip, CITYSCAPES_19, height=33)[2].image
    expected = {CITYSCAPES_19.palette[0], CITYSCAPES_19.palette[10]}
    assert {tuple(pixel) for pixel in panel.reshape(-1, 3).tolist()} == expected


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1500, 2500), (5, 900), (900, 5)])
def test_any_size_of_image_becomes_a_strip_of_the_given_height(size):
    drawn = draw_strip(make_strip(*size), CITYSCAPES_19, panel_height=64)
    assert drawn.dtype == np.uint8
    assert drawn.shape[2] == 3
    assert 64 <= drawn.shape[0] < 64 + 300
    assert drawn.shape[1] <= 6 * (400 + GAP) + GAP


def test_titles_may_hold_mathematics_and_unknown_glyphs():
    prediction = np.zeros((40, 80), np.uint8)
    drawn = draw_strip(make_strip(predictions={"源 $\\frac$ <b>": prediction}), CITYSCAPES_19, 64)
    assert drawn.size


@pytest.mark.parametrize(
    "changed",
    [
        {"image": np.zeros((4, 4), np.uint8)},
        {"image": np.zeros((4, 4, 3), np.float32)},
        {"mask_ids": np.zeros((4, 4, 1), int)},
        {"predictions": {"adapted": np.zeros((3, 4, 4), np.uint8)}},
        {"labels": np.zeros((0, 4), np.uint8)},
    ],
)
def test_arrays_of_wrong_shape_are_refused_with_the_image_id(changed):
    with pytest.raises(DataError, match="city/a"):
        make_strip(**changed)


def test_contact_sheet_puts_pictures_into_a_grid():
    pictures = [np.full((10, 20, 3), k, np.uint8) for k in (1, 2, 3)]
    sheet = contact_sheet(pictures, columns=2)
    assert sheet.shape == (2 * (10 + GAP) + GAP, 2 * (20 + GAP) + GAP, 3)
    assert (sheet[GAP : GAP + 10, GAP : GAP + 20] == 1).all()
    assert (sheet[2 * GAP + 10 : 2 * GAP + 20, GAP : GAP + 20] == 3).all()
    assert (sheet[-GAP - 1, -GAP - 1] == 255).all()


@pytest.mark.parametrize(("pictures", "columns"), [([], 2), ([np.zeros((2, 2, 3), np.uint8)], 0)])
def test_contact_sheet_of_nothing_is_refused(pictures, columns):
    with pytest.raises(DataError):
        contact_sheet(pictures, columns)


def test_legend_wraps_and_holds_each_colour():
    indices = list(range(19))
    wide, narrow = (draw_legend(CITYSCAPES_19, indices, width) for width in (2000, 200))
    assert wide.shape[1] == 2000
    assert narrow.shape[0] > wide.shape[0]
    colours = {tuple(pixel) for pixel in wide.reshape(-1, 3).tolist()}
    assert set(CITYSCAPES_19.palette) <= colours


def test_classes_present_ignores_the_ignore_index():
    labels = np.array([[255, 3]], np.uint8)
    strip = make_strip(labels=labels, predictions={"a": np.array([[5]], np.uint8)})
    assert classes_present([strip], CITYSCAPES_19) == [3, 5]


def test_png_keeps_rgb_order(tmp_path):
    path = save_png(tmp_path / "deep" / "a.png", np.full((2, 2, 3), (200, 10, 30), np.uint8))
    read = cv2.imread(str(path))
    assert read is not None
    assert read[0, 0].tolist() == [30, 10, 200]
