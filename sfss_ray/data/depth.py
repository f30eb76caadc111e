"""White levels of images of more than 8 bits, determined per folder and never per image.

A 16-bit file may hold 10, 12 or 14 bits of a camera. Scaled by its own maximum, a night frame would
become as bright as a day frame; scaled by 65535, all frames would be nearly black.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import cv2
import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from sfss_ray.errors import DataError
from sfss_ray.storage.object_cache import read_copy, read_object
from sfss_ray.storage.places import ObjectPath, Place

if TYPE_CHECKING:
    from sfss_ray.data.folders import ImageFile, LabelledImage

DEEP_SUFFIXES = (".png", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
"""Formats that can hold more than 8 bits without stating their white level."""
# (white level, value that the brightest pixel of the folder must exceed). The bound is 7/8 of white,
# since a dim folder of more bits looks like one of fewer. Nothing has more than 16 bits, so 16-bit
# folders may be dim, and floats up to 1 have no other meaning. A 16-bit file with values up to 255 is
# ambiguous: it may be a dark picture.
_INTEGER_WHITES = ((1023.0, 895), (4095.0, 3583), (16383.0, 14335), (65535.0, 16383))
_FLOAT_WHITES = ((1.0, 0), (255.0, 223))
_MAX_HEADERS_READ = 4096
_MAX_OBJECTS_READ = 256
"""Headers read in object storage, each of which costs the download of an image."""
_MAX_IMAGES_READ = 32
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION = 256, 257, 274
_TIFF_BITS, _TIFF_SAMPLE_FORMAT, _TIFF_FLOAT = 258, 339, 3
_PNM_HEADER = re.compile(rb"P[56](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d+)\s")
_ADVICE = (
    "set white_level to the value that means white: 255 for 8 bits, 1023 for 10, 4095 for 12, 16383 for"
    " 14, 65535 for 16, 1 or 255 for floating-point images"
)


@dataclass(frozen=True)
class White:
    """The value that means white in images of more than 8 bits."""

    value: float
    was_set: bool = False
    """Whether the user set it. If so, brighter values are clipped; otherwise they are an error."""


@dataclass(frozen=True)
class Depth:
    """How an image file of more than 8 bits stores its values."""

    is_float: bool = False
    white: float | None = None
    """White level if the file states it: packed TIFF of 10 to 14 bits, PGM with its own maximum."""


def depth_of(data: bytes) -> Depth | None:
    """Return the depth of an image file from its header, or None for images of 8 bits or fewer.

    Args:
        data: The whole file, or for PNG and PNM at least its first 512 bytes.
    """
    if data.startswith(_PNG_SIGNATURE):
        return Depth() if len(data) > 24 and data[24] == 16 else None
    if data[:2] in (b"II", b"MM"):
        return _depth_of_tiff(io.BytesIO(data))
    header = _PNM_HEADER.match(data)
    maximum = int(header[1]) if header else 0
    if maximum <= 255:
        return None
    return Depth(white=None if maximum == 65535 else float(maximum))


def _tiff_tags(file: BinaryIO) -> ImageFileDirectory_v2 | None:
    """Return the tags of the first image of a TIFF file, or None if the file is damaged.

    Args:
        file: Opened at its start.
    """
    try:
        tags = ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
    except Exception:  # of many types; the reason is reported when the image is read
        return None
    return tags


def tiff_size(path: Path | str) -> tuple[int, int] | None:
    """Return (height, width) of a TIFF that Pillow does not support, such as RGB floats."""
    with open(path, "rb") as file:
        tags = _tiff_tags(file)
    if tags is None or not {_TIFF_HEIGHT, _TIFF_WIDTH} <= set(tags):
        return None
    height, width = int(tags[_TIFF_HEIGHT]), int(tags[_TIFF_WIDTH])
    return (width, height) if tags.get(_TIFF_ORIENTATION, 1) > 4 else (height, width)


def _depth_of_tiff(file: BinaryIO) -> Depth | None:
    tags = _tiff_tags(file)
    if tags is None:
        return None
    bits_per_channel = tags.get(_TIFF_BITS, (1,))
    sample_formats = tags.get(_TIFF_SAMPLE_FORMAT, (1,))
    bits = max(bits_per_channel) if isinstance(bits_per_channel, tuple) else int(bits_per_channel)
    sample_format = sample_formats[0] if isinstance(sample_formats, tuple) else sample_formats
    if bits <= 8:
        return None
    if bits < 16:  # OpenCV shifts packed values to the top of 16 bits
        return Depth(white=float((2**bits - 1) << (16 - bits)))
    return Depth(is_float=sample_format == _TIFF_FLOAT)


def read_deep(data: bytes) -> np.ndarray:
    """Return the stored values of an image of more than 8 bits, without alpha.

    Args:
        data: The whole file.

    Returns:
        (H, W) or (H, W, 3) RGB values of the stored type.

    Raises:
        DataError: the file is damaged, or contains NaN, Inf or negative values.
    """
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise DataError("cannot be read as an image of more than 8 bits: damaged, or half floats")
    if values.ndim == 3:
        values = values[..., 0] if values.shape[2] < 3 else values[..., 2::-1]
    if not np.isfinite(values).all():
        raise DataError("it contains NaN or Inf: images need finite values")
    if values.size and values.min() < 0:
        raise DataError(f"it contains negative values (least: {values.min():g}): images start at 0")
    return values


def to_8_bits(values: np.ndarray, white: White) -> np.ndarray:
    """Scale stored values to uint8 (H, W, 3): 0 stays 0 and white becomes 255.

    Args:
        values: (H, W) or (H, W, 3) values of `read_deep`.
        white: The white level.

    Raises:
        DataError: a value is brighter than a white level that the user did not set.
    """
    brightest = float(values.max(initial=0))
    if brightest > white.value and not white.was_set:
        raise DataError(
            f"it contains the value {brightest:g}, and white is {white.value:g} in the other images of"
            f" its folder: {_ADVICE}"
        )
    scaled = np.rint(values * (255.0 / white.value)).clip(0, 255).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=2) if scaled.ndim == 2 else scaled


def white_of(depth: Depth, white: White | None) -> White:
    """Return the white level of an image: the one its file states, else that of its folder.

    Raises:
        DataError: neither is known.
    """
    if depth.white is not None:
        return White(depth.white)
    if white is None:
        raise DataError(f"it has more than 8 bits, and its white level is unknown: {_ADVICE}")
    return white


_File = TypeVar("_File", "ImageFile", "LabelledImage")


def with_white(
    files: Sequence[_File], white_level: float | None, model_white: float | None = None
) -> tuple[list[_File], list[str]]:
    """Return the files of one folder with their common white level, and a note on it.

    Only a sample of the files is read.

    Args:
        files: Image files of one folder.
        white_level: The white level that the user set, or None to find it.
        model_white: White level of the images that the model was adapted to, or None if unknown.

    Raises:
        DataError: the white level of images of more than 8 bits is ambiguous.
    """
    is_remote = any(isinstance(file.path, ObjectPath) for file in files[:1])
    max_read = _MAX_OBJECTS_READ if is_remote else _MAX_HEADERS_READ
    deep_files = [file for file in _sample(files, max_read) if _needs_white(file.path)]
    if not deep_files:
        return list(files), []
    if white_level is not None:
        white, reason = White(white_level, was_set=True), "as white_level says"
    else:
        brightest_of_type = _brightest_values(deep_files)
        if not brightest_of_type:  # all of the sample is damaged; each file is reported when read
            return list(files), []
        if len(brightest_of_type) > 1:
            raise DataError(
                "integers and floating-point numbers in images of one folder, such as"
                f" {str(deep_files[0].path)!r}: keep images of one type in it"
            )
        ((is_float, brightest),) = brightest_of_type.items()
        white, reason = _choose_white(brightest, is_float, model_white, deep_files[0].path)
    files_with_white = [dataclasses.replace(file, white=white) for file in files]
    return files_with_white, [f"images of more than 8 bits: white is {white.value:g} ({reason})"]


def _sample(files: Sequence[_File], max_files: int) -> list[_File]:
    """Return evenly spaced files of those whose format can hold more than 8 bits."""
    candidates = [file for file in files if file.path.suffix.lower() in DEEP_SUFFIXES]
    step = max(1, -(-len(candidates) // max_files))
    return candidates[::step]


def _needs_white(path: Place) -> bool:
    """Return whether a file has more than 8 bits and does not state its white level.

    Unreadable files count as no; they are reported when they are read.
    """
    try:
        with read_copy(path, lambda copy: open(copy, "rb")) as file:
            start = file.read(512)
            file.seek(0)
            is_tiff = start[:2] in (b"II", b"MM")
            depth = _depth_of_tiff(file) if is_tiff else depth_of(start)
    except OSError:
        return False
    return depth is not None and depth.white is None


def _brightest_values(deep_files: Sequence[_File]) -> dict[bool, float]:
    """Return the greatest value in a sample of images, by whether their values are floats."""
    brightest: dict[bool, float] = {}
    for file in _sample(deep_files, _MAX_IMAGES_READ):
        try:
            values = read_deep(read_object(file.path))
        except (OSError, DataError):
            continue
        is_float = values.dtype.kind == "f"
        brightest[is_float] = max(brightest.get(is_float, 0.0), float(values.max(initial=0)))
    return brightest


def _choose_white(
    brightest: float, is_float: bool, model_white: float | None, example: Place
) -> tuple[White, str]:
    """Return the white level and the reason for it.

    Args:
        brightest: Greatest value in the folder.
        is_float: Whether the values are floats.
        model_white: See `with_white`.
        example: An image to name in errors.
    """
    if model_white is not None:
        if brightest > model_white:
            raise DataError(
                f"images such as {str(example)!r} contain values up to {brightest:g}, but white was"
                f" {model_white:g} in those that the model was adapted to: {_ADVICE}"
            )
        return White(model_white), "as in the images that the model was adapted to"
    evidence = f"values up to {brightest:g} were found"
    for white, lower_bound in _FLOAT_WHITES if is_float else _INTEGER_WHITES:
        if lower_bound < brightest <= white:
            return White(white), evidence
    raise DataError(
        f"images such as {str(example)!r} have more than 8 bits and {evidence}, so that their white"
        f" level is ambiguous: {_ADVICE}"
    )
