"""Files of predictions: train ids, colours, overlay, and Cityscapes' label ids of each image.

Every file is written under a hidden name and renamed, so that it is whole or absent. Train ids are
written last: a repeated call skips the images that have them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sfss_ray.data.class_sets import CITYSCAPES_LABEL_IDS, ClassSet
from sfss_ray.data.content import UNREADABLE, Content, changed_files
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import DataError
from sfss_ray.storage.files import whole_file, written_after
from sfss_ray.storage.object_errors import meaning_of
from sfss_ray.storage.places import ObjectPath, Place, reaching

if TYPE_CHECKING:
    from sfss_ray.config import EvaluationConfig
    from sfss_ray.models.segmenter import Segmenter

_KEYWORD = "sfss_ray.image"  # of the PNG text that identifies the predicted image
# The hash has a fixed length: the checksum that follows the text may begin with letters or digits.
_NOTE = re.compile(
    _KEYWORD.encode() + rb"\0(-?\d+) (-?\d+) ([0-9a-f]{64}|" + UNREADABLE.encode() + rb")"
)
_REQUESTS = 16  # answered by object storage at a time
_HEADER_BYTES = 512  # start of a PNG, with its header and the text
TRAIN_IDS, LABEL_IDS, COLOUR, OVERLAY = "train_ids", "label_ids", "colour", "overlay"


def label_id_table(classes: ClassSet) -> np.ndarray | None:
    """Return (256,) uint8 train id -> Cityscapes labelId, by class name; None if a class has none."""
    if not set(classes.classes) <= CITYSCAPES_LABEL_IDS.keys():
        return None
    table = np.zeros(256, np.uint8)  # labelId 0 is Cityscapes' "unlabeled"
    table[: len(classes)] = [CITYSCAPES_LABEL_IDS[name] for name in classes.classes]
    return table


@dataclass(frozen=True)
class PredictionFolder:
    """Folder of the predictions of a class set."""

    root: Place
    classes: ClassSet

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the folders of PNGs, in the order in which they are written."""
        labelled = (LABEL_IDS,) if label_id_table(self.classes) is not None else ()
        return (COLOUR, OVERLAY, *labelled, TRAIN_IDS)

    def path(self, kind: str, image_id: str) -> Place:
        """Return the file of one kind; the id of an image may contain folders."""
        return self.root / kind / f"{image_id}.png"

    def remaining(self, files: Sequence[ImageFile]) -> tuple[list[ImageFile], set[str]]:
        """Return the images still to predict, and the ids of images changed since their prediction."""
        paths = self._existing(files)
        predicted = [file for file in files if file.image_id in paths]
        recorded = {
            image_id: content
            for image_id, content in _recorded_contents(paths).items()
            if content is not None
        }
        outdated = set(changed_files({file.image_id: file.path for file in predicted}, recorded))
        outdated |= {
            file.image_id
            for file in predicted
            if file.image_id not in recorded and _differs(file, paths[file.image_id])
        }
        up_to_date = {file.image_id for file in predicted} - outdated
        return [file for file in files if file.image_id not in up_to_date], outdated

    def _existing(self, files: Sequence[ImageFile]) -> dict[str, Place]:
        """Return the train ids that exist by image id; one listing finds them in object storage."""
        paths = {file.image_id: self.path(TRAIN_IDS, file.image_id) for file in files}
        if isinstance(self.root, ObjectPath):
            with reaching(self.root, "predictions"):
                present = {location.key for location, _ in (self.root / TRAIN_IDS).files()}
            return {i: path for i, path in paths.items() if path.key in present}  # pyright: ignore
        return {image_id: path for image_id, path in paths.items() if path.exists()}

    def write(
        self, image_id: str, image: np.ndarray, train_ids: np.ndarray, content: Content
    ) -> None:
        """Write all files of an image.

        Args:
            image_id: Id of the image.
            image: uint8 (H, W, 3) RGB.
            train_ids: uint8 (H, W).
            content: Content of the image file, which the PNGs record.

        Raises:
            OutputError: a file cannot be written.
        """
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
            _write_png(self.path(kind, image_id), pictures[kind], content)


def _write_png(path: Place, pixels: np.ndarray, content: Content) -> None:
    """Write a PNG that records the content of the image it was predicted from."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(_KEYWORD, f"{content.size} {content.mtime_ns} {content.sha256}")
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1, pnginfo=info)


def _recorded_contents(paths: dict[str, Place]) -> dict[str, Content | None]:
    """Return `_recorded_content` by name. Object storage answers many requests at a time."""
    if not any(isinstance(path, ObjectPath) for path in paths.values()):
        return {name: _recorded_content(path) for name, path in paths.items()}
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return dict(zip(paths, pool.map(_recorded_content, paths.values()), strict=True))


def _recorded_content(path: Place) -> Content | None:
    """Return the content of the image that a PNG was predicted from; None where it is not recorded.

    The text comes before the pixels, so only the start of the file is read.
    """
    if isinstance(path, ObjectPath):
        with reaching(path, "predictions"), path.open_input() as file:
            start = file.read(_HEADER_BYTES)
    else:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
    match = _NOTE.search(start)
    return Content(int(match[1]), int(match[2]), match[3].decode()) if match else None


def _differs(file: ImageFile, path: Place) -> bool:
    """Return whether an image is newer than its prediction, or of another size.

    This is for predictions of former releases, which do not record their image.
    """
    from sfss_ray.data.decoding import image_size

    try:
        return written_after(file.path, path) or image_size(file.path) != image_size(path)
    except (OSError, DataError):
        return True


def predict_file(
    network: Segmenter, file: ImageFile, folder: PredictionFolder, config: EvaluationConfig
) -> None:
    """Predict one image and write its files.

    Raises:
        DataError: the image cannot be read, or is too large for the memory.
        OutputError: a file cannot be written.
    """
    from sfss_ray.data.decoded_items import DecodedImage
    from sfss_ray.data.decoding import MAX_PIXELS

    image = DecodedImage(file).decode(MAX_PIXELS, explain_unreadable)
    if image.pixels is None or image.content is None:
        raise DataError(image.error or "")
    train_ids = predict_pixels(network, file, image.pixels, config)
    folder.write(file.image_id, image.pixels, train_ids, image.content)


def explain_unreadable(file: ImageFile, error: Exception) -> str:
    """Return why an image cannot be read; raises other errors again. See `DecodedImage.decode`."""
    if isinstance(error, OSError):
        return f"image {str(file.path)!r}: {error.strerror or meaning_of(error)}"
    if isinstance(error, DataError):
        return f"image {str(file.path)!r}: {error}"
    raise error


def predict_pixels(
    network: Segmenter, file: ImageFile, pixels: np.ndarray, config: EvaluationConfig
) -> np.ndarray:
    """Return the uint8 (H, W) train ids of an image.

    Raises:
        DataError: the image is too large for the memory.
    """
    from sfss_ray.evaluation.inference import predict_file_probabilities

    return predict_file_probabilities(network, file, pixels, config).argmax(0).astype(np.uint8)
