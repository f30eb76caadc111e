"""Reading of label maps: the stored ids, without scaling, from lossless formats only.

Pillow scales small bit depths for display (of a 2-bit PNG, 0 to 3 become 0, 85, 170, 255). Here the
id is the value stored in the file, whatever the bit depth.
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
from sfss_ray.storage.object_cache import read_copy
from sfss_ray.storage.places import Place

_ADVICE = "save label maps as PNG, each pixel the id of its class"
_MINUS_ONE_ADVICE = (
    "save pixels that have no class as 255, or name labels_format cityscapes_label_ids where -1 is the"
    " license plate of Cityscapes' labelIds"
)
_UNSUITABLE_FORMATS = {
    "JPEG": "JPEG, which is lossy",
    "MPO": "JPEG, which is lossy",
    "AVIF": "AVIF, which may be lossy",
    "HEIF": "HEIF, which may be lossy",
    "JPEG2000": "JPEG 2000, which may be lossy",
    "GIF": "GIF, whose writers renumber ids",
}
"""Pillow's name of a format -> its description in errors."""
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
"""TIFF compression tag -> the name of the compression."""
_SAMPLE_TYPES = {1: "unsigned", 2: "signed", 3: "float", 5: "complex integer", 6: "complex"}
_ONE_CHANNEL_MODES = ("1", "L", "P", "F")


def read_ids(path: Place | str, channel: int | None = None, minus_one: bool = False) -> np.ndarray:
    """Read a label map as uint8 (H, W) ids; palette images give the index, not the colour.

    Args:
        path: A file in a lossless format.
        channel: The channel of the ids in a multi-channel file (0 is red). If None, such files are
            refused.
        minus_one: Whether -1 is a valid id that becomes 255, ignored.

    Raises:
        DataError: the file cannot be read, is stored in a lossy format, or contains values that are
            not ids; names the file and the reason in one line.
    """
    with _naming_file(path):
        return _to_ids(read_copy(path, lambda copy: _stored_values(copy, channel)), minus_one)


def read_colours(path: Place | str) -> np.ndarray:
    """Read a colour-coded label map as uint8 (H, W, 3) RGB.

    Raises:
        DataError: the file cannot be read or is stored in a lossy format; names the file.
    """
    with _naming_file(path):
        return read_copy(path, _colours_of)


def _colours_of(path: Path) -> np.ndarray:
    with open_image(path) as image:
        _refuse_unsuitable(image, path)
        return np.array(image.convert("RGB"))


@contextmanager
def _naming_file(path: Place | str) -> Iterator[None]:
    """Turn any error into a DataError that names the file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"labels {str(path)!r}: {error}") from error
    except Exception as error:  # Pillow's decoders raise many types of errors on damaged files
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"labels {str(path)!r}: cannot be read ({reason}); {_ADVICE}") from error


def _stored_values(path: Path, channel: int | None) -> np.ndarray:
    """Return the (H, W) values of a file as stored, of any numeric type."""
    try:
        with open_image(path) as image:
            _refuse_unsuitable(image, path)
            if _has_one_channel(image):
                return _undo_scaling(image, path)
            # WebP always stores colour, so a grey label map has three equal channels.
            if image.format == "WEBP":
                return _merge_equal_channels(np.asarray(image))
            if channel is None:
                raise DataError(_channel_error(len(image.getbands())))
    except UnidentifiedImageError:
        return _read_unusual_tiff(path)
    return _read_channel(path, channel)


def _has_one_channel(image: Image.Image) -> bool:
    return image.mode in _ONE_CHANNEL_MODES or image.mode.startswith("I")


def _channel_error(count: int) -> str:
    return f"{count} channels; give one channel of class ids, not a colour picture"


def _refuse_unsuitable(image: Image.Image, path: Path) -> None:
    """Raise a DataError for lossy formats, GIF and animations."""
    description = _UNSUITABLE_FORMATS.get(image.format or "")
    if isinstance(image, TiffImageFile):
        description = _lossy_tiff(image.tag_v2)
    elif image.format == "WEBP" and not _is_lossless_webp(path.read_bytes()):
        description = "lossy WebP"
    _refuse_storage(description)
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise DataError(f"an animation is not a label map; {_ADVICE}")


def _refuse_storage(description: str | None) -> None:
    if description:
        raise DataError(
            f"stored as {description}: its pixels are not the ids that were saved; {_ADVICE}"
        )


def _lossy_tiff(tags: ImageFileDirectory_v2) -> str | None:
    compression = _LOSSY_TIFF.get(tags.get(_COMPRESSION, 1))
    return f"TIFF with {compression} compression, which may be lossy" if compression else None


def _is_lossless_webp(data: bytes) -> bool:
    """Return whether the first image chunk of a WebP file is VP8L; animations are not."""
    position = 12
    while position + 8 <= len(data):
        chunk = data[position : position + 4]
        if chunk in (b"VP8L", b"VP8 ", b"ANMF"):
            return chunk == b"VP8L"
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + size + size % 2
    return False


def _undo_scaling(image: Image.Image, path: Path) -> np.ndarray:
    """Return the stored values of a one-channel image, without Pillow's scaling and inversion."""
    if isinstance(image, TiffImageFile):
        return _undo_tiff_scaling(image)
    if image.format == "PNG":
        return _undo_grey_scaling(np.asarray(image), image.mode, _png_bits(path))
    if image.format == "PPM":
        return _undo_pgm_scaling(image)
    return np.asarray(image)


def _undo_pgm_scaling(image: Image.Image) -> np.ndarray:
    maximum = _pgm_maximum(image)
    values = np.asarray(image)
    if image.mode == "1":  # netpbm bitmaps store black as 1
        return 1 - values.astype(np.int64)
    if maximum is None:
        return values
    white = 65535 if image.mode.startswith("I") else 255
    return np.rint(values.astype(np.float64) * maximum / white).astype(np.int64)


def _png_bits(path: Path) -> int:
    """Return the bits per channel from the header of a PNG file."""
    with open(path, "rb") as file:
        return file.read(25)[24]


def _undo_grey_scaling(values: np.ndarray, mode: str, bits: int) -> np.ndarray:
    """Undo Pillow's factor of 85 or 17 for grey values of 2 or 4 bits."""
    return values // (255 // (2**bits - 1)) if mode == "L" and bits < 8 else values


def _pgm_maximum(image: Image.Image) -> int | None:
    """Return the maximum in the header of a PGM file, or None if Pillow does not scale by it."""
    assert isinstance(image, ImageFile.ImageFile), "opened from a file"
    decoder, arguments = image.tile[0][0], image.tile[0][3]
    if decoder in ("ppm", "ppm_plain") and isinstance(arguments, tuple) and len(arguments) > 1:
        return int(arguments[1])
    return None


def _undo_tiff_scaling(image: TiffImageFile) -> np.ndarray:
    tags, mode = image.tag_v2, image.mode
    bits, sample_type = tags.get(_BITS, (1,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0]
    white_is_zero = tags.get(_PHOTOMETRIC) == 0 and mode in ("1", "L")
    values = _undo_grey_scaling(np.asarray(image), mode, bits)
    if white_is_zero:
        values = 2**bits - 1 - values.astype(np.int64)
    if bits == 8 and sample_type == 2:
        return values.astype(np.uint8).view(np.int8)
    if bits == 32 and sample_type == 1 and values.dtype == np.int32:
        return values.view(np.uint32)
    return values


def _read_unusual_tiff(path: Path) -> np.ndarray:
    """Read a TIFF that Pillow does not support, such as one of 64-bit floats.

    Raises:
        DataError: the file is no TIFF, is lossy, or has values that OpenCV does not read either.
    """
    data = path.read_bytes()
    if data[:4] not in (b"II*\0", b"MM\0*"):
        raise DataError(f"cannot be read as an image; {_ADVICE}")
    tags = ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    _refuse_storage(_lossy_tiff(tags))
    bits, sample_type = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))[0]
    values = None
    if bits == (64,) and sample_type in (1, 2, 3):
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 2:
        description = f"{bits[0]}-bit {_SAMPLE_TYPES.get(sample_type, 'unknown')} values"
        raise DataError(f"a TIFF of {description} is not supported; {_ADVICE}")
    return values


def _merge_equal_channels(values: np.ndarray) -> np.ndarray:
    colours = values[..., :3]
    if (colours != colours[..., :1]).any():
        raise DataError(_channel_error(values.shape[2]))
    return colours[..., 0]


def _read_channel(path: Path, channel: int | None) -> np.ndarray:
    # Pillow would reduce 16-bit colour images to 8 bits, which loses the ids.
    values = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise DataError(f"cannot be read; {_ADVICE}")
    # OpenCV orders channels blue, green, red(, alpha).
    return values if values.ndim == 2 else values[..., (2, 1, 0)[channel or 0]]


def _to_ids(values: np.ndarray, minus_one: bool) -> np.ndarray:
    """Return integers from 0 to 255 as uint8, or raise a DataError that names the first bad value."""
    if values.dtype.kind not in "biuf":
        raise DataError(f"values of type {values.dtype} are not ids; {_ADVICE}")
    if values.dtype.kind == "f":
        values = _floats_to_integers(values)
    if minus_one and values.dtype != np.uint8:
        values = np.where(_is_minus_one(values), IGNORE_INDEX, values.astype(np.int64))
    lowest, highest = (values.min(), values.max()) if values.size else (0, 0)
    if lowest < 0:
        raise DataError(_negative_id_error(int(lowest)))
    if highest > 255:
        is_wrapped = _is_minus_one(values.max(keepdims=True)).any()
        note = f" (-1 in unsigned {8 * values.dtype.itemsize}-bit values)" if is_wrapped else ""
        advice = f": {_MINUS_ONE_ADVICE}" if is_wrapped else ""
        raise DataError(
            f"id {int(highest)} found{note}; allowed are 0 to 255, 255 is ignored{advice}"
        )
    return values.astype(np.uint8)


def _floats_to_integers(values: np.ndarray) -> np.ndarray:
    not_finite = ~np.isfinite(values)
    if not_finite.any():
        first = str(values[not_finite][0]).replace("nan", "NaN")
        raise DataError(
            f"value {first} found at {int(not_finite.sum())} pixels, which is not an id; {_ADVICE},"
            " with 255 for pixels without a class"
        )
    integers = np.rint(values)
    has_fraction = values != integers
    if has_fraction.any():
        raise DataError(
            f"value {values[has_fraction][0]:g} found, which is not an integer; {_ADVICE}"
        )
    return np.clip(integers, -(2.0**62), 2.0**62).astype(np.int64)


def _is_minus_one(values: np.ndarray) -> np.ndarray:
    """Return where values are -1, or what -1 becomes in unsigned values of 16 or 32 bits."""
    if values.dtype.kind == "u":
        return values == np.iinfo(values.dtype).max
    return values == -1


def _negative_id_error(lowest: int) -> str:
    advice = _MINUS_ONE_ADVICE if lowest == -1 else "save pixels that have no class as 255"
    return f"id {lowest} found; allowed are 0 to 255, 255 is ignored: {advice}"
