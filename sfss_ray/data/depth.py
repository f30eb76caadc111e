"""Images of more than 8 bits: which value is white is found once for a folder, never for each image.

A 16-bit file may hold 10, 12 or 14 bits of a camera. Scaled by its own maximum, a night frame would
become as bright as a day frame; scaled by 65535, all of them nearly black.
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

if TYPE_CHECKING:
    from sfss_ray.data.folders import ImageFile, LabelledImage

DEEP_SUFFIXES = (".png", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
"""Formats that can hold more than 8 bits whose white is not stated in the file."""
# White, and the value that the brightest pixel of a folder must exceed for it: 7/8 of white, since a
# dim folder of more bits would look like one of fewer. Nothing is deeper than 16 bits, so those may be
# dim, and floats up to 1 have no other meaning. 8 bits in a 16-bit file may as well be a dark picture.
_WHOLE_WHITES = ((1023.0, 895), (4095.0, 3583), (16383.0, 14335), (65535.0, 16383))
_FLOAT_WHITES = ((1.0, 0), (255.0, 223))
_HEADERS_READ = 4096
_IMAGES_READ = 32
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION = 256, 257, 274
_TIFF_BITS, _TIFF_SAMPLE_FORMAT, _TIFF_FLOAT = 258, 339, 3
_PNM_HEADER = re.compile(rb"P[56](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d+)\s")
_HOW = (
    "set white_level to the value that means white: 255 for 8 bits, 1023 for 10, 4095 for 12, 16383 for"
    " 14, 65535 for 16, 1 or 255 for floating-point images"
)


@dataclass(frozen=True)
class White:
    """The value that means white in images of more than 8 bits."""

    value: float
    was_set: bool = False
    """Whether a user named it. Brighter values are then cut off, and are an error otherwise."""


@dataclass(frozen=True)
class Depth:
    """How an image file of more than 8 bits stores its values."""

    is_float: bool = False
    white: float | None = None
    """Where the file itself states it: packed TIFF of 10 to 14 bits, PGM with its own maximum."""


def depth_of(data: bytes) -> Depth | None:
    """The depth of an image file, from its header; None for images of 8 bits or fewer.

    `data` may be the whole file, or for PNG and PNM its first 512 bytes.
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
    """The tags of the first image in a file opened at its start; None where it is damaged."""
    try:
        tags = ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
    except Exception:  # in many ways: reading the image says which
        return None
    return tags


def tiff_size(path: Path | str) -> tuple[int, int] | None:
    """(height, width) of a TIFF of a kind that Pillow does not read, such as RGB floats."""
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
    bits, formats = tags.get(_TIFF_BITS, (1,)), tags.get(_TIFF_SAMPLE_FORMAT, (1,))
    most = max(bits) if isinstance(bits, tuple) else int(bits)
    first = formats[0] if isinstance(formats, tuple) else formats
    if most <= 8:
        return None
    if most < 16:  # OpenCV moves packed values to the top of 16 bits
        return Depth(white=float((2**most - 1) << (16 - most)))
    return Depth(is_float=first == _TIFF_FLOAT)


def read_deep(data: bytes) -> np.ndarray:
    """Stored values (H, W) or (H, W, 3), RGB, of an image of more than 8 bits, without alpha.

    Raises:
        DataError: the file is damaged, or holds NaN, Inf or negative values.
    """
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise DataError("cannot be read as an image of more than 8 bits: damaged, or half floats")
    if values.ndim == 3:
        values = values[..., 0] if values.shape[2] < 3 else values[..., 2::-1]
    if not np.isfinite(values).all():
        raise DataError("it holds NaN or Inf: images need finite values")
    if values.size and values.min() < 0:
        raise DataError(f"it holds negative values (least: {values.min():g}): images start at 0")
    return values


def to_8_bits(values: np.ndarray, white: White) -> np.ndarray:
    """uint8 (H, W, 3) of `read_deep`'s values: 0 stays 0, `white` becomes 255.

    Raises:
        DataError: a value is brighter than a white that nobody set.
    """
    brightest = float(values.max(initial=0))
    if brightest > white.value and not white.was_set:
        raise DataError(
            f"it holds the value {brightest:g}, and white is {white.value:g} in the other images of its"
            f" folder: {_HOW}"
        )
    scaled = np.rint(values * (255.0 / white.value)).clip(0, 255).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=2) if scaled.ndim == 2 else scaled


def white_of(depth: Depth, white: White | None) -> White:
    """What is white in one image: as its file states, else as its folder says."""
    if depth.white is not None:
        return White(depth.white)
    if white is None:
        raise DataError(f"it has more than 8 bits, and nothing says which value is white: {_HOW}")
    return white


_File = TypeVar("_File", "ImageFile", "LabelledImage")


def with_white(
    files: Sequence[_File], level: float | None, of_model: float | None = None
) -> tuple[list[_File], list[str]]:
    """Files of one folder that know what is white in them, and a line on it for people.

    Args:
        files: Of one folder.
        level: What the user says is white; None to find it.
        of_model: White of the images that the model was adapted to, where it is known.

    Raises:
        DataError: images of more than 8 bits, and their white cannot be told.
    """
    deep = [file for file in _sample(files, _HEADERS_READ) if _is_deep(file.path)]
    if not deep:
        return list(files), []
    if level is not None:
        white, reason = White(level, was_set=True), "as white_level says"
    else:
        kinds = _brightest(deep)
        if not kinds:  # all damaged, which each of them says when it is read
            return list(files), []
        if len(kinds) > 1:
            raise DataError(
                f"whole and floating-point numbers in images of one folder, such as"
                f" {str(deep[0].path)!r}: keep images of one kind in it"
            )
        ((is_float, brightest),) = kinds.items()
        white, reason = _find_white(brightest, is_float, of_model, deep[0].path)
    ready = [dataclasses.replace(file, white=white) for file in files]
    return ready, [f"images of more than 8 bits: white is {white.value:g} ({reason})"]


def _sample(files: Sequence[_File], most: int) -> list[_File]:
    able = [file for file in files if file.path.suffix.lower() in DEEP_SUFFIXES]
    step = max(1, -(-len(able) // most))
    return able[::step]


def _is_deep(path: Path) -> bool:
    """Whether white must be found for a file; one that cannot be read is met later."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
            file.seek(0)
            is_tiff = start[:2] in (b"II", b"MM")
            depth = _depth_of_tiff(file) if is_tiff else depth_of(start)
    except OSError:
        return False
    return depth is not None and depth.white is None


def _brightest(deep: Sequence[_File]) -> dict[bool, float]:
    """Greatest value of a sample of images, by whether their values are floats."""
    brightest: dict[bool, float] = {}
    for file in _sample(deep, _IMAGES_READ):
        try:
            values = read_deep(file.path.read_bytes())
        except (OSError, DataError):
            continue
        is_float = values.dtype.kind == "f"
        brightest[is_float] = max(brightest.get(is_float, 0.0), float(values.max(initial=0)))
    return brightest


def _find_white(
    brightest: float, is_float: bool, of_model: float | None, example: Path
) -> tuple[White, str]:
    if of_model is not None:
        if brightest > of_model:
            raise DataError(
                f"images such as {str(example)!r} hold values up to {brightest:g}, but white was"
                f" {of_model:g} in those that the model was adapted to: {_HOW}"
            )
        return White(of_model), "as in the images that the model was adapted to"
    found = f"values up to {brightest:g} were found"
    for white, least in _FLOAT_WHITES if is_float else _WHOLE_WHITES:
        if least < brightest <= white:
            return White(white), found
    raise DataError(
        f"images such as {str(example)!r} have more than 8 bits and {found}, from which white cannot be"
        f" told: {_HOW}"
    )
