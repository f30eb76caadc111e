"""The files that one predicted image leaves: train ids, colours, overlay, Cityscapes' label ids.

A file appears under its name whole (hidden temporary name, then rename). Train ids come last: their
file says that the image is done, which is what a repeated call goes by.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfss_ray.data.class_sets import CITYSCAPES_LABEL_IDS, ClassSet
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import DataError

if TYPE_CHECKING:
    from sfss_ray.config import EvaluationConfig
    from sfss_ray.models.segmenter import Segmenter

TRAIN_IDS, LABEL_IDS, COLOUR, OVERLAY = "train_ids", "label_ids", "colour", "overlay"


def label_id_table(classes: ClassSet) -> np.ndarray | None:
    """(256,) uint8: train id -> Cityscapes labelId, by class name; None where a class has none."""
    if not set(classes.classes) <= CITYSCAPES_LABEL_IDS.keys():
        return None
    table = np.zeros(256, np.uint8)  # labelId 0 is Cityscapes' "unlabeled"
    table[: len(classes)] = [CITYSCAPES_LABEL_IDS[name] for name in classes.classes]
    return table


@dataclass(frozen=True)
class PredictionFolder:
    """Where predictions of a class set go, and which images are done."""

    root: Path
    classes: ClassSet

    @property
    def kinds(self) -> tuple[str, ...]:
        """The folders that are written, the one that says `done` last."""
        labelled = (LABEL_IDS,) if label_id_table(self.classes) is not None else ()
        return (COLOUR, OVERLAY, *labelled, TRAIN_IDS)

    def path(self, kind: str, image_id: str) -> Path:
        """The file of one kind; the image's id keeps its folders."""
        return self.root / kind / f"{image_id}.png"

    def is_done(self, image_id: str) -> bool:
        """Whether all files of an image are there."""
        return self.path(TRAIN_IDS, image_id).exists()

    def write(self, image_id: str, image: np.ndarray, train_ids: np.ndarray) -> None:
        """All files of an image: uint8 (H, W, 3) RGB and its uint8 (H, W) train ids."""
        colours = self.classes.colour(train_ids)
        pictures = {
            COLOUR: colours,
            OVERLAY: (image.astype(np.uint16) + colours >> 1).astype(np.uint8),
            TRAIN_IDS: train_ids,
        }
        table = label_id_table(self.classes)
        if table is not None:
            pictures[LABEL_IDS] = table[train_ids]
        for kind in self.kinds:
            _write_png(self.path(kind, image_id), pictures[kind])


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
    temporary.replace(path)


def predict_file(
    network: Segmenter, file: ImageFile, folder: PredictionFolder, config: EvaluationConfig
) -> None:
    """Predict one image and write its files.

    Raises:
        DataError: the image cannot be read, or is too large for the memory.
    """
    from sfss_ray.data.folders import read_image
    from sfss_ray.evaluation.evaluate import predict_probabilities

    image = read_image(file.path)
    try:
        train_ids = predict_probabilities(network, image, config).argmax(0).astype(np.uint8)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        height, width = image.shape[:2]
        raise DataError(
            f"image {str(file.path)!r}: {width}x{height} pixels are too many for the memory: shrink it,"
            " or predict it on another machine"
        ) from error
    folder.write(file.image_id, image, train_ids)
