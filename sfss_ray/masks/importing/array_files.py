"""Masks of one image in a file of numpy arrays (NPZ or NPY), which is never unpickled.

An array of masks is (K, H, W), bool or 0 and another value; (K, 1, H, W) is the same. A file with one
(H, W) array per mask is read in the order of its arrays. One integer array (H, W) is an id per pixel.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sfss_ray.errors import DataError
from sfss_ray.masks.importing.id_maps import records_of_ids
from sfss_ray.masks.importing.json_files import PICKLE_ADVICE
from sfss_ray.masks.importing.records import NAN, MaskAttributes, mask_record, reason_of
from sfss_ray.masks.importing.segmentations import encode_pixels

_MASKS = ("masks", "segmentation", "segmentations", "arr_0")
_QUALITIES = ("scores", "predicted_iou", "predicted_ious", "iou_scores", "confidence", "score")
_STABILITIES = ("stability_score", "stability_scores")
_POINTS = ("point_coords", "points")
_CROP_BOXES = ("crop_box", "crop_boxes")
_ATTRIBUTES = {*_QUALITIES, *_STABILITIES, *_POINTS, *_CROP_BOXES}
_Arrays = Mapping[str, np.ndarray]


def read_array_masks(path: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the mask records of an image from its NPZ or NPY file.

    Args:
        path: of the file. Beside the masks it may have `scores` or `predicted_iou`, `stability_score`,
            `point_coords` and `crop_box`, with an entry for each mask.
        size: (height, width) of the image in pixels.

    Raises:
        DataError: the file is damaged, holds pickled objects, or its arrays have other shapes; names
            the file and the reason.
    """
    arrays = _load(path)
    try:
        masks = _masks(arrays)
        if masks.ndim == 2:
            return records_of_ids(masks, size)
        attributes = _attributes(arrays, len(masks))
        return [
            mask_record(*encode_pixels(mask, size), size, attribute)
            for mask, attribute in zip(masks, attributes, strict=True)
        ]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{str(path)!r}: {reason_of(error)}") from error


def _load(path: Path) -> _Arrays:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"masks": loaded}
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            raise DataError(f"{str(path)!r} contains pickled objects; {PICKLE_ADVICE}") from error
        raise DataError(f"{str(path)!r} is no file of arrays, or damaged") from error
    foreign = next((n for n, array in arrays.items() if not isinstance(array, np.ndarray)), None)
    if foreign is not None:
        raise DataError(f"{str(path)!r} contains {foreign!r}, which is no array; {PICKLE_ADVICE}")
    return arrays


def _masks(arrays: _Arrays) -> np.ndarray:
    """Return the masks (K, H, W), or an id per pixel (H, W)."""
    names = [name for name in arrays if name not in _ATTRIBUTES]
    flat = [name for name in names if arrays[name].ndim == 2]
    if len(names) > 1 and flat == names:
        return np.stack([arrays[name] for name in names])
    name = next((name for name in (*_MASKS, *names[:1]) if name in names), None)
    if name is None:
        raise DataError(
            f"it has no array of masks; give one named masks, (K, H, W); it has {[*arrays]}"
        )
    masks = arrays[name]
    if masks.shape == (0,):  # an empty list
        return masks.reshape(0, 1, 1)
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.ndim == 2 and masks.dtype == bool:
        masks = masks[None]
    is_whole = masks.dtype.kind in "biu" or (
        masks.dtype.kind == "f" and bool((masks == np.floor(masks)).all())
    )
    if masks.ndim not in (2, 3) or not is_whole:
        raise DataError(
            f"{name} is {masks.dtype} {masks.shape}: allowed are masks (K, H, W) of whole numbers, or an"
            " id per pixel (H, W)"
        )
    return masks


def _attributes(arrays: _Arrays, number: int) -> list[MaskAttributes]:
    """Return the attributes of each mask, in order."""
    qualities = _column(arrays, _QUALITIES, number)
    stabilities = _column(arrays, _STABILITIES, number)
    points = _column(arrays, _POINTS, number)
    crop_boxes = _column(arrays, _CROP_BOXES, number)
    return [
        MaskAttributes(
            (
                NAN if qualities is None else float(qualities[k].item()),
                NAN if stabilities is None else float(stabilities[k].item()),
            ),
            (NAN, NAN) if points is None else points[k].reshape(-1)[:2].astype(float).tolist(),
            None if crop_boxes is None else crop_boxes[k].reshape(-1).tolist(),
        )
        for k in range(number)
    ]


def _column(arrays: _Arrays, names: tuple[str, ...], number: int) -> np.ndarray | None:
    """Return the array of an attribute, with an entry for each mask, or None if there is none."""
    name = next((name for name in names if name in arrays), None)
    if name is None:
        return None
    array = arrays[name]
    if array.ndim == 0 or len(array) != number:
        raise DataError(f"{name} has the shape {array.shape}, but there are {number} masks")
    return array
