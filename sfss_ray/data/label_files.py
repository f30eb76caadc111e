"""Reading the ids of a label file as they are stored: no lossy format, no fraction, no scaled value.

Pillow scales small bit depths for display (of a 2-bit PNG, 0 to 3 become 0, 85, 170, 255). Here the
value stored in the file is the id, whatever the bit depth.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from sfss_ray.data.class_sets import IGNORE_INDEX
from sfss_ray.data.pillow import open_image
from sfss_ray.errors import DataError

_ADVICE = "save label maps as PNG, each pixel the id of its class"
_MINUS_ONE_ADVICE = (
    "save pixels that have no class as 255, or name labels_format cityscapes_label_ids where -1 is the"
    " license plate of Cityscapes' labelIds"
)
_UNFIT = {
    "JPEG": "JPEG, which is lossy",
    "MPO": "JPEG, which is lossy",
    "AVIF": "AVIF, which may be lossy",
    "HEIF": "HEIF, which may be lossy",
    "JPEG2000": "JPEG 2000, which may be lossy",
    "GIF": "GIF, whose writers renumber ids",
}
"""Pillow's name of a format -> what the error calls it."""
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 259, 262, 339  # tags of TIFF
_LOSSY_TIFF = {
    6: "JPEG",
    7: "JPEG",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34892: "JPEG",
    50001: "WebP",
}
"""TIFF's number of a compression -> its name."""
_SAMPLES = {1: "unsigned", 2: "signed", 3: "float", 5: "complex integer", 6: "complex"}
_ONE_CHANNEL = ("1", "L", "P", "F")


def read_ids(path: Path | str, channel: int | None = None, minus_one: bool = False) -> np.ndarray:
    """(H, W) uint8 ids of a label file; of palette images the index, not the colour.

    Args:
        path: A file of a lossless format.
        channel: Which of several channels holds the ids (0 is red); None: several are refused.
        minus_one: Whether an id of -1 belongs to the format: it is ignored.

    Raises:
        DataError: names the file and what is wrong with it in one line.
    """
    with _errors_of(path):
        return _as_ids(_stored_values(Path(path), channel), minus_one)


def read_colours(path: Path | str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a colour-coded label file in a lossless format."""
    with _errors_of(path), open_image(path) as image:
        _refuse_unfit(image, Path(path))
        return np.array(image.convert("RGB"))


@contextmanager
def _errors_of(path: Path | str) -> Iterator[None]:
    """Errors within as a DataError that names the file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"labels {str(path)!r}: {error}") from error
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged files
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"labels {str(path)!r}: cannot be read ({reason}); {_ADVICE}") from error


def _stored_values(path: Path, channel: int | None) -> np.ndarray:
    try:
        with open_image(path) as image:
            _refuse_unfit(image, path)
            if _has_one_channel(image):
                return _unscaled(image, path)
            if image.format == "WEBP":  # always colour: a grey label map has three equal channels
                return _equal_channels(np.asarray(image))
            if channel is None:
                raise DataError(_several_channels(len(image.getbands())))
    except UnidentifiedImageError:
        return _unusual_tiff(path)
    return _channel(path, channel)


def _has_one_channel(image: Image.Image) -> bool:
    return image.mode in _ONE_CHANNEL or image.mode.startswith("I")


def _several_channels(count: int) -> str:
    return f"{count} channels; give one channel of class ids, not a colour picture"


def _refuse_unfit(image: Image.Image, path: Path) -> None:
    name = _UNFIT.get(image.format or "")
    if isinstance(image, TiffImageFile):
        name = _lossy_tiff(image.tag_v2)
    elif image.format == "WEBP" and not _is_lossless_webp(path.read_bytes()):
        name = "lossy WebP"
    _refuse(name)
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise DataError(f"an animation is no label map; {_ADVICE}")


def _refuse(unfit: str | None) -> None:
    if unfit:
        raise DataError(f"stored as {unfit}: its pixels are not the ids that were saved; {_ADVICE}")


def _lossy_tiff(tags: ImageFileDirectory_v2) -> str | None:
    name = _LOSSY_TIFF.get(tags.get(_COMPRESSION, 1))
    return f"TIFF with {name} compression, which may be lossy" if name else None


def _is_lossless_webp(data: bytes) -> bool:
    """Whether the first image of a RIFF container is a VP8L chunk; animations are not."""
    at = 12
    while at + 8 <= len(data):
        kind = data[at : at + 4]
        if kind in (b"VP8L", b"VP8 ", b"ANMF"):
            return kind == b"VP8L"
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return False


def _unscaled(image: Image.Image, path: Path) -> np.ndarray:
    """The stored values of a one-channel image, with Pillow's scaling and inversion undone."""
    if isinstance(image, TiffImageFile):
        return _unscaled_tiff(image)
    if image.format == "PNG":
        return _times(np.asarray(image), image.mode, _png_bits(path))
    if image.format == "PPM":
        largest = _pgm_largest(image)
        values = np.asarray(image)
        if image.mode == "1":  # netpbm's bitmaps store black as 1
            return 1 - values.astype(np.int64)
        if largest is None:
            return values
        shown = 65535 if image.mode.startswith("I") else 255
        return np.rint(values.astype(np.float64) * largest / shown).astype(np.int64)
    return np.asarray(image)


def _png_bits(path: Path) -> int:
    """Bits per channel, from the header that every PNG starts with."""
    with open(path, "rb") as file:
        return file.read(25)[24]


def _times(values: np.ndarray, mode: str, bits: int) -> np.ndarray:
    """Grey values of 2 or 4 bits, which Pillow multiplies by 85 or 17; others as they are."""
    return values // (255 // (2**bits - 1)) if mode == "L" and bits < 8 else values


def _pgm_largest(image: Image.Image) -> int | None:
    """The largest value that a PGM's header names, where Pillow scales to it."""
    assert isinstance(image, ImageFile.ImageFile), "opened from a file"
    decoder, arguments = image.tile[0][0], image.tile[0][3]
    if decoder in ("ppm", "ppm_plain") and isinstance(arguments, tuple) and len(arguments) > 1:
        return int(arguments[1])
    return None


def _unscaled_tiff(image: TiffImageFile) -> np.ndarray:
    tags, mode = image.tag_v2, image.mode
    bits, sample = tags.get(_BITS, (1,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0]
    inverted = tags.get(_PHOTOMETRIC) == 0 and mode in ("1", "L")  # white is stored as 0
    values = _times(np.asarray(image), mode, bits)
    if inverted:
        values = 2**bits - 1 - values.astype(np.int64)
    if bits == 8 and sample == 2:
        return values.astype(np.uint8).view(np.int8)
    if bits == 32 and sample == 1 and values.dtype == np.int32:
        return values.view(np.uint32)
    return values


def _unusual_tiff(path: Path) -> np.ndarray:
    """A TIFF that Pillow does not know, such as one of 64-bit floats; DataError for other files."""
    data = path.read_bytes()
    if data[:4] not in (b"II*\0", b"MM\0*"):
        raise DataError(f"cannot be read as an image; {_ADVICE}")
    tags = ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    _refuse(_lossy_tiff(tags))
    bits, sample = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))[0]
    values = None
    if bits == (64,) and sample in (1, 2, 3):
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 2:
        what = f"{bits[0]}-bit {_SAMPLES.get(sample, 'unknown')} values"
        raise DataError(f"a TIFF of {what} is not read; {_ADVICE}")
    return values


def _equal_channels(values: np.ndarray) -> np.ndarray:
    colours = values[..., :3]
    if (colours != colours[..., :1]).any():
        raise DataError(_several_channels(values.shape[2]))
    return colours[..., 0]


def _channel(path: Path, channel: int | None) -> np.ndarray:
    # Pillow would reduce 16-bit colour pictures to 8 bits, which loses the ids.
    values = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise DataError(f"cannot be read; {_ADVICE}")
    # OpenCV orders channels blue, green, red(, alpha).
    return values if values.ndim == 2 else values[..., (2, 1, 0)[channel or 0]]


def _as_ids(values: np.ndarray, minus_one: bool) -> np.ndarray:
    """Whole numbers from 0 to 255 as uint8; DataError names the first value that is none of these."""
    if values.dtype.kind not in "biuf":
        raise DataError(f"values of type {values.dtype} are no ids; {_ADVICE}")
    if values.dtype.kind == "f":
        values = _whole(values)
    if minus_one and values.dtype != np.uint8:
        values = np.where(_is_minus_one(values), IGNORE_INDEX, values.astype(np.int64))
    lowest, highest = (values.min(), values.max()) if values.size else (0, 0)
    if lowest < 0:
        raise DataError(_negative(int(lowest)))
    if highest > 255:
        wrapped = _is_minus_one(values.max(keepdims=True)).any()
        note = f" (-1 in unsigned {8 * values.dtype.itemsize}-bit values)" if wrapped else ""
        advice = f": {_MINUS_ONE_ADVICE}" if wrapped else ""
        raise DataError(
            f"id {int(highest)} found{note}; allowed are 0 to 255, 255 is ignored{advice}"
        )
    return values.astype(np.uint8)


def _whole(values: np.ndarray) -> np.ndarray:
    undefined = ~np.isfinite(values)
    if undefined.any():
        first = str(values[undefined][0]).replace("nan", "NaN")
        raise DataError(
            f"value {first} found at {int(undefined.sum())} pixels, which is no id; {_ADVICE}, with"
            " 255 where a pixel has none"
        )
    whole = np.rint(values)
    fractions = values != whole
    if fractions.any():
        raise DataError(f"value {values[fractions][0]:g} found, which is no whole id; {_ADVICE}")
    return np.clip(whole, -(2.0**62), 2.0**62).astype(np.int64)


def _is_minus_one(values: np.ndarray) -> np.ndarray:
    """Where values are -1, or what -1 becomes in unsigned values of 16 or 32 bits."""
    if values.dtype.kind == "u":
        return values == np.iinfo(values.dtype).max
    return values == -1


def _negative(lowest: int) -> str:
    advice = _MINUS_ONE_ADVICE if lowest == -1 else "save pixels that have no class as 255"
    return f"id {lowest} found; allowed are 0 to 255, 255 is ignored: {advice}"
