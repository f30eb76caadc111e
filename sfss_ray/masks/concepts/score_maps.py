"""Scores of classes at the pixels of a crop, from the masks with classes of an image."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfss_ray.masks.bank.painted_runs import PaintedRuns
from sfss_ray.masks.bank.painting import paint_runs
from sfss_ray.masks.bank.store import MaskStore

_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _ClassRuns:
    """The masks of one class, the highest score on top."""

    class_id: int
    runs: PaintedRuns
    scores: NDArray[np.uint8]
    """By id, 0 for no mask."""

    @property
    def nbytes(self) -> int:
        return self.runs.nbytes + self.scores.nbytes


class ConceptScores:
    """Scores of classes by image id.

    Args:
        folder: Of the shards of masks with classes.
        num_classes: C.
    """

    def __init__(self, folder: Path | str, num_classes: int):
        self.store, self.num_classes = MaskStore(folder), num_classes
        self._images: OrderedDict[str, tuple[_ClassRuns, ...]] = OrderedDict()
        self._nbytes = 0

    def crop(
        self, image_id: str, rows: NDArray[np.integer], columns: NDArray[np.integer]
    ) -> NDArray[np.uint8]:
        """Return the scores at the pixels (rows[i], columns[j]) as uint8 (C, h, w), 255 for 1.

        At a pixel a class has the highest score of its masks there, 0 without one. An image without a
        row, or with an error, has none.

        Args:
            image_id: Of the image.
            rows: (h,) image rows in ascending order.
            columns: (w,) image columns in any order.
        """
        scores = np.zeros((self.num_classes, len(rows), len(columns)), np.uint8)
        for runs in self._class_runs(image_id):
            scores[runs.class_id] = runs.scores[runs.runs.at(rows, columns)]
        return scores

    def _class_runs(self, image_id: str) -> tuple[_ClassRuns, ...]:
        if image_id in self._images:
            self._images.move_to_end(image_id)
            return self._images[image_id]
        painted = self._paint(image_id)
        self._images[image_id] = painted
        self._nbytes += _bytes_of(painted)
        while self._nbytes > _MAX_BYTES and len(self._images) > 1:
            self._nbytes -= _bytes_of(self._images.popitem(last=False)[1])
        return painted

    def _paint(self, image_id: str) -> tuple[_ClassRuns, ...]:
        if image_id not in self.store or image_id in self.store.errors:
            return ()
        row = self.store.load(image_id)
        size, painted = (row["height"], row["width"]), []
        for class_id in sorted({mask["class_id"] for mask in row["masks"]}):
            masks = [mask for mask in row["masks"] if mask["class_id"] == class_id]
            masks.sort(key=lambda mask: mask["predicted_iou"])
            runs = paint_runs([mask["counts"] for mask in masks], range(1, len(masks) + 1), size)
            scores = np.array([0.0, *(mask["predicted_iou"] for mask in masks)])
            painted.append(_ClassRuns(class_id, runs, np.round(255 * scores).astype(np.uint8)))
        return tuple(painted)


def _bytes_of(image: tuple[_ClassRuns, ...]) -> int:
    return sum(runs.nbytes for runs in image)
