"""Pictures of what a network sees: an image, its masks, predictions, labels and what changed.

Every picture is a uint8 array (H, W, 3) in RGB. Ids and labels are only ever resized with the
nearest pixel; masks are coloured after resizing, so that outlines stay one pixel wide.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sfss_ray.data.class_sets import IGNORE_INDEX, ClassSet
from sfss_ray.errors import DataError
from sfss_ray.report.tables import answer_name, number
from sfss_ray.storage.files import write_bytes

PAPER, INK, FAINT_INK = (255, 255, 255), (25, 28, 32), (105, 110, 118)
NEWLY_RIGHT, NEWLY_WRONG = (64, 196, 99), (190, 24, 60)
STILL_RIGHT, STILL_WRONG, NOT_LABELLED = (222, 222, 222), (150, 150, 150), (0, 0, 0)
WIDEST_PANEL = 4  # widths per height; a panorama is shown smaller rather than wider than this
MASK_OPACITY = 0.55
GAP = 10


@dataclass(frozen=True)
class Strip:
    """One image and all that is known about it; sizes may differ, pictures are made to match."""

    image_id: str
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    mask_ids: np.ndarray | None = None
    """(H, W) int, 0 = no mask."""
    predictions: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Row name -> (H, W) train ids, source-only first."""
    labels: np.ndarray | None = None
    """(H, W) train ids, 255 = ignored."""
    ious: Mapping[str, float] = field(default_factory=dict)
    """Row name -> mIoU of this image alone, in percent."""

    def __post_init__(self):
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise DataError(
                f"picture of {self.image_id!r} is {self.image.dtype} {self.image.shape}: expected is"
                " uint8 (H, W, 3); convert it to 8-bit RGB"
            )
        maps = {**self.predictions, "mask_ids": self.mask_ids, "labels": self.labels}
        for name, ids in maps.items():
            if ids is not None and (ids.ndim != 2 or ids.size == 0):
                raise DataError(
                    f"{name!r} of {self.image_id!r} has shape {ids.shape}: expected is (H, W)"
                )


@dataclass(frozen=True)
class Panel:
    """One titled picture of a strip; `detail` is a short remark such as an mIoU."""

    title: str
    detail: str
    image: np.ndarray


def draw_masks(image: np.ndarray, mask_ids: np.ndarray) -> np.ndarray:
    """Blend a colour per mask over an image and outline it; id 0 stays the plain image.

    image (H, W, 3) uint8, mask_ids (H, W) int -> (H, W, 3) uint8. A mask id has the same colour in
    every picture. DataError when the sizes differ.
    """
    if image.shape[:2] != mask_ids.shape:
        raise DataError(
            f"mask_ids are {mask_ids.shape}, the image is {image.shape[:2]}: resize the ids (nearest)"
        )
    ids, inverse = np.unique(mask_ids, return_inverse=True)
    colours = _mask_colours(ids)[inverse.reshape(mask_ids.shape)]
    blended = (1 - MASK_OPACITY) * image + MASK_OPACITY * colours
    inside = mask_ids > 0
    drawn = np.where(inside[..., None], blended, image)
    edge = inside & _borders(mask_ids)
    drawn[edge] = 0.25 * colours[edge] + 0.75 * 255
    return drawn.round().astype(np.uint8)


def _mask_colours(ids: np.ndarray) -> np.ndarray:
    """(K,) ids -> (K, 3): steps of the golden ratio around the hues keep neighbouring ids apart."""
    ids = ids.astype(np.int64)
    hue = (ids * 0.618034) % 1.0
    saturation = np.array([0.85, 0.6, 0.95])[ids % 3]
    value = np.array([1.0, 0.8])[(ids // 3) % 2]
    sextant = (hue[:, None] * 6 + np.array([5, 3, 1])) % 6
    ramp = np.clip(np.minimum(sextant, 4 - sextant), 0, 1)
    return 255 * value[:, None] * (1 - saturation[:, None] * ramp)


def _borders(ids: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour bears another id."""
    border = np.zeros(ids.shape, bool)
    border[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    border[:-1] |= ids[:-1] != ids[1:]
    return border


def strip_panels(
    strip: Strip, class_set: ClassSet, height: int, max_width: int | None = None
) -> list[Panel]:
    """The panels of a strip, scaled (up or down) to a height in pixels, or to max_width if less.

    Order: image, masks, each prediction, label, what changed; what is unknown is left out.
    """
    size = _fitted(strip.image.shape[:2], height, max_width or WIDEST_PANEL * height)
    image = _resize_image(strip.image, size)
    panels = [Panel("image", "", image)]
    if strip.mask_ids is not None:
        count = np.count_nonzero(np.unique(strip.mask_ids))
        panels.append(Panel("masks", str(count), draw_masks(image, _nearest(strip.mask_ids, size))))
    for name, train_ids in strip.predictions.items():
        detail = f"mIoU {number(strip.ious[name])}" if name in strip.ious else ""
        panels.append(Panel(name, detail, class_set.colour(_nearest(train_ids, size))))
    if strip.labels is not None:
        panels.append(Panel("label", "", class_set.colour(_nearest(strip.labels, size))))
    changed = _changed_panel(strip, size)
    return [*panels, changed] if changed else panels


def _changed_panel(strip: Strip, size: tuple[int, int]) -> Panel | None:
    name = answer_name(list(strip.predictions))
    if strip.labels is None or name is None:
        return None
    before = next(iter(strip.predictions.values()))
    drawn, right, wrong = draw_changes(before, strip.predictions[name], strip.labels)
    return Panel("what changed", f"+{right:.1f} % / -{wrong:.1f} %", _nearest(drawn, size))


def draw_changes(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Where a prediction became right or wrong.

    before, after, labels: train ids (H, W); predictions are brought to the labels' size. Returns the
    picture - green newly right, red newly wrong, light grey right in both, darker grey wrong in
    both, black ignored - and the shares, in percent of the labelled pixels, newly right and wrong.
    """
    size = (labels.shape[0], labels.shape[1])
    was_right, is_right = (_nearest(ids, size) == labels for ids in (before, after))
    labelled = labels != IGNORE_INDEX
    outcome = 2 * is_right.astype(np.uint8) + was_right
    colours = np.array([STILL_WRONG, NEWLY_WRONG, NEWLY_RIGHT, STILL_RIGHT], np.uint8)
    drawn = np.where(labelled[..., None], colours[outcome], np.array(NOT_LABELLED, np.uint8))
    shares = [100.0 * (labelled & (outcome == k)).sum() / max(labelled.sum(), 1) for k in (2, 1)]
    return drawn, float(shares[0]), float(shares[1])


def draw_strip(strip: Strip, class_set: ClassSet, panel_height: int = 256) -> np.ndarray:
    """One row of titled panels with a legend of the classes in it: uint8 (H, W, 3) RGB.

    panel_height: pixels of each panel, 32 or more; images of any size are scaled to it.
    """
    panels = strip_panels(strip, class_set, panel_height)
    sheet = contact_sheet([_titled(panel) for panel in panels], columns=len(panels))
    legend = draw_legend(class_set, classes_present([strip], class_set), sheet.shape[1])
    return np.concatenate([sheet, legend])


def mask_tile(
    title: str, detail: str, image: np.ndarray, mask_ids: np.ndarray, height: int
) -> np.ndarray:
    """An image with its masks over it, scaled to a height in pixels, under a title and a remark.

    image (H, W, 3) uint8, mask_ids (H, W) int, 0 = no mask -> (h, w, 3) uint8. A title that does not
    fit above the picture loses its beginning.
    """
    size = _fitted(image.shape[:2], height, WIDEST_PANEL * height)
    drawn = draw_masks(_resize_image(image, size), _nearest(mask_ids, size))
    room = max(size[1], 120)
    shown = title
    while len(shown) > 8 and _text_width(shown, detail) > room:
        shown = "…" + shown[2:]
    return _titled(Panel(shown, detail, drawn))[:, :room]


def _text_width(title: str, detail: str) -> int:
    return _title_picture(title).shape[1] + 8 + _detail_picture(detail).shape[1]


def contact_sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures in a grid, each in the middle of a cell as large as the largest: (H, W, 3) uint8.

    images: one or more (H, W, 3) uint8; columns: 1 or more. DataError for none of either.
    """
    if not images or columns < 1:
        raise DataError(f"{len(images)} pictures in {columns} columns: both must be 1 or more")
    columns = min(columns, len(images))
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    rows = math.ceil(len(images) / columns)
    sheet = _blank(rows * (height + GAP) + GAP, columns * (width + GAP) + GAP)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top = GAP + row * (height + GAP) + (height - image.shape[0]) // 2
        left = GAP + column * (width + GAP) + (width - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def classes_present(strips: Sequence[Strip], class_set: ClassSet) -> list[int]:
    """Indices of the classes that any label or prediction of the strips shows, ascending."""
    seen: set[int] = set()
    for strip in strips:
        for ids in [*strip.predictions.values(), *([] if strip.labels is None else [strip.labels])]:
            seen.update(np.unique(ids).tolist())
    return sorted(index for index in seen if index < len(class_set))


def draw_legend(class_set: ClassSet, shown: Sequence[int], width: int) -> np.ndarray:
    """Colour and name of each class index in `shown`, wrapped to a width in pixels: (H, width, 3)."""
    swatch, line_height, space = 16, 26, 18
    lines, left = [_blank(line_height, width)], GAP
    for index in shown:
        name = _text_picture(class_set.classes[index], 14, INK)
        needed = swatch + 6 + name.shape[1]
        if left + needed > width - GAP and left > GAP:
            lines.append(_blank(line_height, width))
            left = GAP
        lines[-1][4 : 4 + swatch, left : left + swatch] = class_set.palette[index]
        _paste(lines[-1], name, 4, left + swatch + 6)
        left += needed + space
    return np.concatenate(lines)


def save_png(path: Path, image: np.ndarray) -> Path:
    """Write an RGB picture as PNG; folders are made. OutputError when it cannot be written."""
    return write_bytes(path, encode(image, ".png"))


def encode(image: np.ndarray, suffix: str, quality: int = 82) -> bytes:
    """The bytes of an RGB picture as ".png" or ".jpg" (`quality` 0 to 100, JPEG only)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise DataError(f"a picture of shape {image.shape} cannot be written as {suffix}")
    return data.tobytes()


def _titled(panel: Panel) -> np.ndarray:
    """A panel under its title and detail, never narrower than a title needs."""
    title, detail = _title_picture(panel.title), _detail_picture(panel.detail)
    width = max(panel.image.shape[1], min(title.shape[1] + detail.shape[1] + 8, 400), 120)
    header = _blank(28, width)
    _paste(header, title, 4, 0)
    _paste(header, detail, 5, title.shape[1] + 8)
    body = _blank(panel.image.shape[0], width)
    _paste(body, panel.image, 0, (width - panel.image.shape[1]) // 2)
    return np.concatenate([header, body])


def _title_picture(text: str) -> np.ndarray:
    return _text_picture(text, 17, INK, bold=True)


def _detail_picture(text: str) -> np.ndarray:
    return _text_picture(text, 15, FAINT_INK) if text else _blank(1, 1)


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)


def _paste(canvas: np.ndarray, picture: np.ndarray, top: int, left: int) -> None:
    """Lay a picture on a canvas; what reaches over the right or lower edge is cut off."""
    window = canvas[top : top + picture.shape[0], left : left + picture.shape[1]]
    window[:] = picture[: window.shape[0], : window.shape[1]]


@functools.lru_cache(maxsize=256)
def _text_picture(
    text: str, pixels: int, colour: tuple[int, int, int], bold: bool = False
) -> np.ndarray:
    """A line of text as a picture. Drawn by matplotlib: OpenCV's fonts know ASCII only."""
    figure = Figure(figsize=(1, 1), dpi=72, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    drawn = figure.text(0, 0, text, size=pixels, weight="bold" if bold else "normal")
    drawn.set(parse_math=False, va="bottom", color=[channel / 255 for channel in colour])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        box = drawn.get_window_extent(canvas.get_renderer())
        figure.set_size_inches(math.ceil(box.width + 1) / 72, math.ceil(box.height + 1) / 72)
        canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _fitted(shape: tuple[int, int], height: int, max_width: int) -> tuple[int, int]:
    scale = min(height / shape[0], max_width / shape[1])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = size[0] < image.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=method)


def _nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-pixel resize of (H, W) or (H, W, 3) that keeps every integer type exact."""
    rows = ((np.arange(size[0]) + 0.5) * ids.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * ids.shape[1] / size[1]).astype(int)
    return ids[rows[:, None], columns[None]]
