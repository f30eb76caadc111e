"""A confusion matrix as a picture: which classes the pixels of each label were predicted as."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_CELL_INCHES = 0.42
_DARK_PERCENT = 55.0
"""Share above which a cell is so dark that its number is white."""


def draw_confusion(
    counts: np.ndarray, rows: tuple[str, ...], columns: tuple[str, ...], title: str
) -> np.ndarray:
    """Draw a confusion matrix, each row in percent of its pixels.

    A row without pixels is grey, and its name gets the remark "(absent)".

    Args:
        counts: (R, P) pixels by label and prediction.
        rows: R names of the labels' classes.
        columns: P names of the predicted classes.
        title: Text above the matrix.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    pixels = counts.sum(1, keepdims=True)
    percent = 100 * counts / np.maximum(pixels, 1)
    percent = np.ma.masked_array(percent, np.broadcast_to(pixels == 0, percent.shape))
    size = (_CELL_INCHES * len(columns) + 3.4, _CELL_INCHES * len(rows) + 2.6)
    figure = Figure(figsize=size, dpi=110, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="equal")

    # The grey background shows through the masked cells of absent classes.
    axes.set_facecolor("#e4e4e4")
    names = [n if p else f"{n} (absent)" for n, p in zip(rows, pixels[:, 0], strict=True)]
    axes.set_yticks(range(len(rows)), names)
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("label")
    axes.set_title(title, fontsize=11, loc="left")
    axes.tick_params(length=0)

    # Minor ticks lie between the cells, so that their grid separates them.
    axes.set_xticks(np.arange(0.5, len(columns) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    _write_numbers(axes, percent)
    figure.colorbar(image, ax=axes, shrink=0.7, label="percent of the label's pixels")
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _write_numbers(axes: Axes, percent: np.ma.MaskedArray) -> None:
    """Write the percentage into each cell of half a percent or more."""
    for (row, column), share in np.ndenumerate(percent.filled(0)):
        if share >= 0.5:
            colour = "white" if share > _DARK_PERCENT else "#222222"
            style = {"ha": "center", "va": "center", "color": colour, "fontsize": 8}
            axes.text(column, row, f"{share:.0f}", **style)
