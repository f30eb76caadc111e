"""Building blocks of pictures: blank canvases, lines of text and resizing.

Every picture is a uint8 array (H, W, 3) in RGB.
"""

from __future__ import annotations

import functools
import math
import warnings

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PAPER, INK, FAINT_INK = (255, 255, 255), (25, 28, 32), (105, 110, 118)


def blank(height: int, width: int) -> np.ndarray:
    """Return an empty canvas in the colour of paper."""
    return np.full((height, width, 3), PAPER, np.uint8)


def paste(canvas: np.ndarray, picture: np.ndarray, y: int, x: int) -> None:
    """Copy a picture onto a canvas in place; parts beyond the right or lower edge are cut off."""
    window = canvas[y : y + picture.shape[0], x : x + picture.shape[1]]
    window[:] = picture[: window.shape[0], : window.shape[1]]


@functools.lru_cache(maxsize=256)
def draw_text(
    text: str, pixels: int, colour: tuple[int, int, int], bold: bool = False
) -> np.ndarray:
    """Draw one line of text with matplotlib, because OpenCV's fonts have ASCII only."""
    figure = Figure(figsize=(1, 1), dpi=72, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    line = figure.text(0, 0, text, size=pixels, weight="bold" if bold else "normal")
    line.set(parse_math=False, va="bottom", color=[channel / 255 for channel in colour])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        box = line.get_window_extent(canvas.get_renderer())
        figure.set_size_inches(math.ceil(box.width + 1) / 72, math.ceil(box.height + 1) / 72)
        canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def fit_size(size: tuple[int, int], height: int, max_width: int) -> tuple[int, int]:
    """Scale (height, width), up or down, to a height, or to max_width if that is smaller."""
    scale = min(height / size[0], max_width / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a picture to (height, width), by area when it shrinks."""
    shrinks = size[0] < image.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=method)


def resize_nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) or (H, W, 3) to (height, width) by nearest pixel, exact for every integer type."""
    rows = ((np.arange(size[0]) + 0.5) * ids.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * ids.shape[1] / size[1]).astype(int)
    return ids[rows[:, None], columns[None]]
