"""Pictures of an image: its masks, predictions, labels, and what the adaptation changed.

Every picture is a uint8 array (H, W, 3) in RGB. Ids and labels are only ever resized by nearest
pixel. Masks are coloured after resizing, so that their outlines stay one pixel wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from sfss_ray.data.class_sets import IGNORE_INDEX, ClassSet
from sfss_ray.errors import DataError
from sfss_ray.report.drawing import (
    FAINT_INK,
    INK,
    blank,
    draw_text,
    fit_size,
    paste,
    resize_image,
    resize_nearest,
)
from sfss_ray.report.formatting import format_number
from sfss_ray.report.mask_overlay import draw_masks
from sfss_ray.report.report_record import answer_name
from sfss_ray.storage.files import write_bytes
from sfss_ray.storage.places import Place

NEWLY_RIGHT, NEWLY_WRONG = (64, 196, 99), (190, 24, 60)
STILL_RIGHT, STILL_WRONG, NOT_LABELLED = (222, 222, 222), (150, 150, 150), (0, 0, 0)
MAX_ASPECT = 4  # width of a panel per height; a wider panorama is drawn smaller
GAP = 10


@dataclass(frozen=True)
class Strip:
    """One image with its masks, predictions and labels; sizes may differ, panels are made to match."""

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
                f"image of {self.image_id!r} is {self.image.dtype} {self.image.shape}, expected is"
                " uint8 (H, W, 3): convert it to 8-bit RGB"
            )
        maps = {**self.predictions, "mask_ids": self.mask_ids, "labels": self.labels}
        for name, ids in maps.items():
            if ids is not None and (ids.ndim != 2 or ids.size == 0):
                raise DataError(
                    f"{name!r} of {self.image_id!r} has shape {ids.shape}, expected is (H, W) with"
                    " one pixel or more: give one id per pixel"
                )


@dataclass(frozen=True)
class Panel:
    """One titled picture of a strip; `detail` is a short remark such as an mIoU."""

    title: str
    detail: str
    image: np.ndarray


def strip_panels(
    strip: Strip, class_set: ClassSet, height: int, max_width: int | None = None
) -> list[Panel]:
    """Draw the panels of a strip: image, masks, each prediction, label, what changed.

    Panels whose content is unknown are left out.

    Args:
        strip: The image and its maps.
        class_set: Names and colours of the train ids.
        height: Pixels that each panel is scaled to, up or down.
        max_width: Most pixels of a panel's width, default MAX_ASPECT times the height.
    """
    size = fit_size(strip.image.shape[:2], height, max_width or MAX_ASPECT * height)
    image = resize_image(strip.image, size)
    panels = [Panel("image", "", image)]
    if strip.mask_ids is not None:
        count = np.count_nonzero(np.unique(strip.mask_ids))
        masked = draw_masks(image, resize_nearest(strip.mask_ids, size))
        panels.append(Panel("masks", str(count), masked))
    for name, train_ids in strip.predictions.items():
        detail = f"mIoU {format_number(strip.ious[name])}" if name in strip.ious else ""
        panels.append(Panel(name, detail, class_set.colour(resize_nearest(train_ids, size))))
    if strip.labels is not None:
        panels.append(Panel("label", "", class_set.colour(resize_nearest(strip.labels, size))))
    changed = _changed_panel(strip, size)
    return [*panels, changed] if changed else panels


def _changed_panel(strip: Strip, size: tuple[int, int]) -> Panel | None:
    name = answer_name(list(strip.predictions))
    if strip.labels is None or name is None:
        return None
    before = next(iter(strip.predictions.values()))
    drawn, right, wrong = draw_changes(before, strip.predictions[name], strip.labels)
    return Panel("what changed", f"+{right:.1f} % / -{wrong:.1f} %", resize_nearest(drawn, size))


def draw_changes(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Draw where a prediction became right or wrong.

    Green is newly right, red newly wrong, light grey right in both, darker grey wrong in both, black
    ignored. Predictions are resized to the labels' size.

    Args:
        before: (H, W) train ids that the first network predicts.
        after: (H, W) train ids that the second network predicts.
        labels: (H, W) train ids, 255 = ignored.

    Returns:
        The picture, and the percentages of the labelled pixels that are newly right and newly wrong.
    """
    size = (labels.shape[0], labels.shape[1])
    was_right, is_right = (resize_nearest(ids, size) == labels for ids in (before, after))
    labelled = labels != IGNORE_INDEX
    outcome = 2 * is_right.astype(np.uint8) + was_right
    colours = np.array([STILL_WRONG, NEWLY_WRONG, NEWLY_RIGHT, STILL_RIGHT], np.uint8)
    drawn = np.where(labelled[..., None], colours[outcome], np.array(NOT_LABELLED, np.uint8))
    shares = [100.0 * (labelled & (outcome == k)).sum() / max(labelled.sum(), 1) for k in (2, 1)]
    return drawn, float(shares[0]), float(shares[1])


def draw_strip(strip: Strip, class_set: ClassSet, panel_height: int = 256) -> np.ndarray:
    """Draw one row of titled panels with a legend of its classes: uint8 (H, W, 3) RGB.

    Args:
        strip: The image and its maps, of any size.
        class_set: Names and colours of the train ids.
        panel_height: Pixels of each panel, 32 or more.
    """
    panels = strip_panels(strip, class_set, panel_height)
    sheet = contact_sheet([_titled(panel) for panel in panels], columns=len(panels))
    legend = draw_legend(class_set, classes_present([strip], class_set), sheet.shape[1])
    return np.concatenate([sheet, legend])


def mask_tile(
    title: str, detail: str, image: np.ndarray, mask_ids: np.ndarray, height: int
) -> np.ndarray:
    """Draw an image with its masks under a title and a remark.

    A title that does not fit above the picture loses its beginning.

    Args:
        title: Usually the image_id.
        detail: A short remark.
        image: (H, W, 3) uint8.
        mask_ids: (H, W) int, 0 = no mask.
        height: Pixels that the picture is scaled to.

    Returns:
        (h, w, 3) uint8.
    """
    size = fit_size(image.shape[:2], height, MAX_ASPECT * height)
    drawn = draw_masks(resize_image(image, size), resize_nearest(mask_ids, size))
    width = max(size[1], 120)
    short_title = title
    while len(short_title) > 8 and _text_width(short_title, detail) > width:
        short_title = "…" + short_title[2:]
    return _titled(Panel(short_title, detail, drawn))[:, :width]


def _text_width(title: str, detail: str) -> int:
    return _title_picture(title).shape[1] + 8 + _detail_picture(detail).shape[1]


def contact_sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Arrange pictures in a grid, each centred in a cell of the largest one's size.

    Args:
        images: One or more (H, W, 3) uint8.
        columns: Pictures in a row, 1 or more.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: no picture, or no column.
    """
    if not images or columns < 1:
        raise DataError(f"{len(images)} pictures in {columns} columns: both must be 1 or more")
    columns = min(columns, len(images))
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    rows = math.ceil(len(images) / columns)
    sheet = blank(rows * (height + GAP) + GAP, columns * (width + GAP) + GAP)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        y = GAP + row * (height + GAP) + (height - image.shape[0]) // 2
        x = GAP + column * (width + GAP) + (width - image.shape[1]) // 2
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def classes_present(strips: Sequence[Strip], class_set: ClassSet) -> list[int]:
    """Return the indices of the classes in any label or prediction of the strips, ascending."""
    present: set[int] = set()
    for strip in strips:
        for ids in [*strip.predictions.values(), *([] if strip.labels is None else [strip.labels])]:
            present.update(np.unique(ids).tolist())
    return sorted(index for index in present if index < len(class_set))


def draw_legend(class_set: ClassSet, indices: Sequence[int], width: int) -> np.ndarray:
    """Draw colour and name of some classes, wrapped to a width in pixels: (H, width, 3) uint8."""
    swatch, line_height, space = 16, 26, 18
    lines, x = [blank(line_height, width)], GAP
    for index in indices:
        name = draw_text(class_set.classes[index], 14, INK)
        needed = swatch + 6 + name.shape[1]
        if x + needed > width - GAP and x > GAP:
            lines.append(blank(line_height, width))
            x = GAP
        lines[-1][4 : 4 + swatch, x : x + swatch] = class_set.palette[index]
        paste(lines[-1], name, 4, x + swatch + 6)
        x += needed + space
    return np.concatenate(lines)


def _titled(panel: Panel) -> np.ndarray:
    """Draw a panel under its title and detail, never narrower than they need."""
    title, detail = _title_picture(panel.title), _detail_picture(panel.detail)
    width = max(panel.image.shape[1], min(title.shape[1] + detail.shape[1] + 8, 400), 120)
    header = blank(28, width)
    paste(header, title, 4, 0)
    paste(header, detail, 5, title.shape[1] + 8)
    body = blank(panel.image.shape[0], width)
    paste(body, panel.image, 0, (width - panel.image.shape[1]) // 2)
    return np.concatenate([header, body])


def _title_picture(text: str) -> np.ndarray:
    return draw_text(text, 17, INK, bold=True)


def _detail_picture(text: str) -> np.ndarray:
    return draw_text(text, 15, FAINT_INK) if text else blank(1, 1)


def save_png(path: Place, image: np.ndarray) -> Place:
    """Write a picture as PNG and make its folders; OutputError when it cannot be written."""
    return write_bytes(path, encode(image, ".png"))


def encode(image: np.ndarray, suffix: str, quality: int = 82) -> bytes:
    """Encode a picture as ".png" or ".jpg" (`quality` 0 to 100, JPEG only)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    encoded, content = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not encoded:
        raise DataError(f"a picture of shape {image.shape} cannot be written as {suffix}")
    return content.tobytes()
