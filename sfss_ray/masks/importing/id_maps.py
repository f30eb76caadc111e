"""Masks of one image in a label or instance map: one mask for each id, in the order of the ids.

Id 0 is no mask. A palette gives its index, grey of any depth its value. In files with colours each
colour is an id, R + 256 G + 65536 B as in COCO's panoptic maps, and black and transparent are no mask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfss_ray.data.pillow import open_image
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.run_lengths import encode_masks, to_coco_strings
from sfss_ray.masks.importing.records import (
    MaskAttributes,
    check_size,
    mask_record,
    reason_of,
)

SUFFIXES = (".png", ".tif", ".tiff")
_TRAIN_IDS = ("_labelTrainIds", "_instanceTrainIds")
_NO_TRAIN_ID = 255
_GREY_MODES = ("1", "L", "P")
_BIT_DEPTH = 24  # position in a PNG file


def read_id_map(path: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the mask records of an image from its id map, without scores.

    Cityscapes' train ids begin with a class 0, so that in files named *TrainIds 255 is no mask, not 0.

    Args:
        path: a PNG or TIFF file.
        size: (height, width) of the image in pixels.

    Raises:
        DataError: the file is damaged, lossy, or of another size; names the file and the reason.
    """
    try:
        ids = _read_ids(path)
        if path.stem.endswith(_TRAIN_IDS):
            ids = np.where(ids == _NO_TRAIN_ID, 0, ids + 1)
        return records_of_ids(ids, size)
    except DataError as error:
        raise DataError(f"mask {str(path)!r}: {error}") from error
    except Exception as error:  # Pillow's decoders raise many types of errors on damaged files
        raise DataError(
            f"mask {str(path)!r} is not a PNG or TIFF file, or damaged ({reason_of(error)})"
        ) from error


def _read_ids(path: Path) -> np.ndarray:
    """Return the ids of a file, int64 (H, W)."""
    with open_image(path) as image:
        if image.format not in ("PNG", "TIFF"):
            raise DataError(f"it is {image.format}: give ids as PNG or TIFF")
        image.load()
        if image.mode in _GREY_MODES or image.mode.startswith("I"):
            return np.asarray(image).astype(np.int64)
        if image.mode == "LA":
            grey, alpha = np.moveaxis(np.asarray(image).astype(np.int64), -1, 0)
            return np.where(alpha == 0, 0, grey)
        if image.mode in ("RGB", "RGBA"):
            return _ids_of_colours(image, path)
        raise DataError(f"its pixels are of Pillow's mode {image.mode!r}, which are no ids")


def _ids_of_colours(image: Image.Image, path: Path) -> np.ndarray:
    with path.open("rb") as file:
        header = file.read(_BIT_DEPTH + 1)
    if image.format == "PNG" and header[_BIT_DEPTH] > 8:
        raise DataError("its colours have 16 bits a channel: save them with 8, or grey ids with 16")
    channels = np.asarray(image).astype(np.int64)
    ids = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
    return ids if channels.shape[-1] == 3 else np.where(channels[..., 3] == 0, 0, ids)


def records_of_ids(ids: np.ndarray, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return a record for each id of a map (H, W) but 0, in the order of the ids.

    Raises:
        DataError: the map has not the size of its image, or a negative id.
    """
    from scipy.ndimage import find_objects

    check_size(ids.shape, size)
    if ids.min() < 0:
        raise DataError(f"it has the id {ids.min()}: allowed are whole numbers from 0")
    # Consecutive numbers from 1, because a table of boxes has a row for every number up to the highest.
    distinct, index = np.unique(ids, return_inverse=True)
    numbers = index.reshape(ids.shape) + (distinct[0] != 0)
    boxes = find_objects(numbers)
    regions = [np.asfortranarray(numbers[box] == k) for k, box in enumerate(boxes, start=1)]
    origins = [(box[0].start, box[1].start) for box in boxes]
    counts = encode_masks(regions, origins, size)
    return [
        mask_record(runs, text, size, MaskAttributes())
        for runs, text in zip(counts, to_coco_strings(counts), strict=True)
    ]
