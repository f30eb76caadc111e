"""What a source model predicts on held-out images: the reference of its students' scores.

Beside each image it sees the mirror image and zoomed copies. Where it is unsure, these predictions
differ, and a student that corrects it there loses little. A student that gives up what the source model
says in all views has probably become worse.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sfss_ray.storage.files import write_bytes
from sfss_ray.storage.places import Place

MIN_SHARE = 1e-3
"""Classes with fewer of the predicted pixels are noise, and count in no score."""
MAX_GRID_PIXELS = 1 << 16
"""Views are compared on a grid of at most about this many pixels of an image."""


@dataclass(frozen=True)
class SourceReference:
    """Predictions of a source model on N held-out images, in their order."""

    class_share: tuple[float, ...]
    """(C,) share of the pixels that each class is predicted for."""
    views: tuple[np.ndarray, ...] = field(compare=False)
    """For each image (V, h, w) class ids of its views, on the grid of `on_grid`."""

    @property
    def classes(self) -> np.ndarray:
        """The ids of the classes that count, rising."""
        return np.flatnonzero(np.array(self.class_share) > MIN_SHARE)

    @staticmethod
    def of(
        num_classes: int, predictions: Iterable[tuple[np.ndarray, Sequence[np.ndarray]]]
    ) -> SourceReference | None:
        """Return the reference; None without images.

        Args:
            num_classes: C.
            predictions: For each image the class ids (H, W) of the image, and those of each view on its
                pixels, see `predict_views`.
        """
        histogram = np.zeros(num_classes)
        compact = np.min_scalar_type(num_classes - 1)
        views = []
        for ids, ids_of_views in predictions:
            histogram += np.bincount(ids.ravel(), minlength=num_classes)
            views.append(np.stack([on_grid(view) for view in ids_of_views]).astype(compact))
        if not views:
            return None
        return SourceReference(tuple((histogram / histogram.sum()).tolist()), tuple(views))

    def save(self, path: Place) -> None:
        """Write a compressed file, whole or not at all."""
        file = io.BytesIO()
        np.savez_compressed(file, np.array(self.class_share), *self.views)
        write_bytes(path, file.getvalue())

    @staticmethod
    def load(path: Place) -> SourceReference:
        """Read a file that `save` wrote."""
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            share, *views = (stored[f"arr_{number}"] for number in range(len(stored)))
        return SourceReference(tuple(share.tolist()), tuple(views))


def on_grid(plane: np.ndarray) -> np.ndarray:
    """Return the values of a plane (H, W) on every n-th row and column, so that few enough are left."""
    step = max(1, int(np.ceil(np.sqrt(plane.size / MAX_GRID_PIXELS))))
    return plane[::step, ::step]
