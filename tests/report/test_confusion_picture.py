"""The picture of a confusion matrix: size, shades, absent rows, numbers in cells."""

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes

from sfss_ray.report.confusion_picture import draw_confusion


@pytest.fixture
def cell_texts(monkeypatch):
    """Texts written into cells: (row, column) -> (text, colour)."""
    texts = {}
    original = Axes.text

    def record(axes, x, y, s, **style):
        texts[(y, x)] = (s, style.get("color"))
        return original(axes, x, y, s, **style)

    monkeypatch.setattr(Axes, "text", record)
    return texts


def test_each_row_is_in_percent_of_its_own_pixels(cell_texts):
    counts = np.array([[300, 100], [4, 996]])
    draw_confusion(counts, ("road", "car"), ("road", "car"), "title")
    assert cell_texts == {
        (0, 0): ("75", "white"),
        (0, 1): ("25", "#222222"),
        (1, 1): ("100", "white"),  # 0.4 % of the other class is too little to write
    }


def test_a_row_without_pixels_is_grey_and_has_no_numbers(cell_texts):
    picture = draw_confusion(np.array([[0, 0], [0, 8]]), ("a", "b"), ("a", "b"), "title")
    assert set(cell_texts) == {(1, 1)}
    assert (picture == (228, 228, 228)).all(-1).sum() > 500  # the background #e4e4e4


def test_the_picture_is_rgb_and_grows_with_the_classes():
    small = draw_confusion(np.eye(2, dtype=int), ("a", "b"), ("a", "b"), "t")
    names = tuple("abcdef")
    large = draw_confusion(np.eye(6, dtype=int), names, names, "t")
    assert small.dtype == large.dtype == np.uint8
    assert small.shape[2] == large.shape[2] == 3
    assert large.shape[0] > small.shape[0]
    assert large.shape[1] > small.shape[1]


def test_labels_and_predictions_may_have_other_classes(cell_texts):
    draw_confusion(np.array([[1, 2, 1]]), ("vehicle",), ("car", "bus", "truck"), "t")
    assert [cell_texts[(0, k)][0] for k in range(3)] == ["25", "50", "25"]


def test_matplotlib_settings_stay_as_they_were():
    before = dict(matplotlib.rcParams)
    draw_confusion(np.eye(1, dtype=int), ("a",), ("a",), "t")
    assert dict(matplotlib.rcParams) == before
