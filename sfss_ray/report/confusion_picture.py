"""A confusion matrix as a picture: where the pixels of each class went."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_CELL = 0.42  # inches
_DARK = 55.0  # percent above which a number is written in white


def draw_confusion(
    counts: np.ndarray, rows: tuple[str, ...], columns: tuple[str, ...], title: str
) -> np.ndarray:
    """uint8 (H, W, 3) RGB: row = label, column = prediction, each row in percent of its pixels.

    counts: (R, P) pixels. Rows without pixels are grey and say so.
    """
    total = counts.sum(1, keepdims=True)
    shares = 100 * counts / np.maximum(total, 1)
    size = (_CELL * len(columns) + 3.4, _CELL * len(rows) + 2.6)
    figure = Figure(figsize=size, dpi=110, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = np.ma.masked_array(shares, np.broadcast_to(total == 0, shares.shape))
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=100, aspect="equal")
    axes.set_facecolor("#e4e4e4")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
    names = [n if t else f"{n} (absent)" for n, t in zip(rows, total[:, 0], strict=True)]
    axes.set_yticks(range(len(rows)), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("label")
    axes.set_title(title, fontsize=11, loc="left")
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(0.5, len(columns) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    _write_numbers(axes, shown)
    figure.colorbar(image, ax=axes, shrink=0.7, label="percent of the label's pixels")
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _write_numbers(axes, shares: np.ma.MaskedArray) -> None:
    """Percent in each cell of half a percent or more."""
    for (row, column), share in np.ndenumerate(shares.filled(0)):
        if share >= 0.5:
            colour = "white" if share > _DARK else "#222222"
            axes.text(
                column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8
            )
