"""Decoding of image files of any supported format to upright 8-bit RGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from sfss_ray.data.depth import White, depth_of, read_deep, tiff_size, to_8_bits, white_of
from sfss_ray.data.pillow import open_image
from sfss_ray.errors import DataError
from sfss_ray.storage.object_cache import read_copy, read_object
from sfss_ray.storage.object_errors import meaning_of
from sfss_ray.storage.places import Place

MAX_PIXELS = 200_000_000
"""Default limit of pixels per image; every worker needs memory for the largest."""

_ORIENTATION = 0x0112  # tag of EXIF and TIFF
# Keys under which a PNG may store the orientation that Pillow applies: EXIF as chunk or text, or XMP.
_PNG_ORIENTATION_KEYS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def decode_image(
    data: bytes, max_pixels: int | None = MAX_PIXELS, white: White | None = None
) -> np.ndarray:
    """Decode an image file to uint8 (H, W, 3) RGB, with EXIF rotation applied and alpha dropped.

    Args:
        data: The whole file.
        max_pixels: Images with more pixels are refused; None allows any number.
        white: The value that becomes 255 if the file has more than 8 bits and does not state it.

    Raises:
        DataError: the bytes are empty, truncated, not an image or too large, or the white level of an
            image of more than 8 bits is unknown.
    """
    if not data:
        raise DataError("the file is empty (0 bytes)")
    depth = depth_of(data)
    if depth is not None:
        return _decode_deep(data, max_pixels, white_of(depth, white))
    try:
        with open_image(io.BytesIO(data)) as image:
            _refuse_huge(image.size, max_pixels)
            return _to_rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of errors on damaged files
        reason = str(error).replace(repr(io.BytesIO), "").split("<_io")[0].strip() or "unknown"
        raise DataError(f"cannot be read as an image ({type(error).__name__}: {reason})") from error


def _decode_deep(data: bytes, max_pixels: int | None, white: White) -> np.ndarray:
    """Decode an image of more than 8 bits with OpenCV, which keeps all of them."""
    try:
        with open_image(io.BytesIO(data)) as image:
            _refuse_huge(image.size, max_pixels)
            orientation = image.getexif().get(_ORIENTATION, 1)
            is_tiff = isinstance(image, TiffImageFile)
            image.load()  # raises for truncated files, which OpenCV accepts
    except UnidentifiedImageError:  # a TIFF that only OpenCV supports
        orientation, is_tiff = 1, True
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of errors on damaged files
        raise DataError(f"cannot be read as an image ({type(error).__name__}: {error})") from error
    values = read_deep(data)
    _refuse_huge((values.shape[1], values.shape[0]), max_pixels)
    pixels = to_8_bits(values, white)
    # OpenCV applies the orientation of TIFF files itself.
    return pixels if is_tiff else _rotate(pixels, orientation)


def _rotate(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels upright, given an EXIF orientation from 1 to 8."""
    flipped = pixels[:, ::-1] if orientation in (2, 4, 5, 7) else pixels
    quarter_turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(flipped, quarter_turns))


def _refuse_huge(size: tuple[int, int], max_pixels: int | None) -> None:
    if max_pixels is not None and size[0] * size[1] > max_pixels:
        raise DataError(
            f"{size[0]}x{size[1]} pixels: more than {max_pixels:,} are refused; shrink it, or raise"
            " masks.max_pixels where masks are made"
        )


def _to_rgb(image: Image.Image) -> np.ndarray:
    # Only JPEG 2000 gets here with more than 8 bits; Pillow scales it to 16 bits.
    if image.mode.startswith("I") or image.mode == "F":
        return to_8_bits(np.asarray(image, np.float64), White(65535.0))
    return np.array(image.convert("RGB"))


def read_image(
    path: Place | str, max_pixels: int | None = MAX_PIXELS, white: White | None = None
) -> np.ndarray:
    """Read an image file as uint8 (H, W, 3) RGB; see `decode_image`.

    Raises:
        DataError: the file cannot be read; names the file and the reason.
    """
    try:
        return decode_image(read_object(path), max_pixels, white)
    except OSError as error:
        raise DataError(f"image {str(path)!r}: {error.strerror or meaning_of(error)}") from error
    except DataError as error:
        raise DataError(f"image {str(path)!r}: {error}") from error


def image_size(path: Place | str) -> tuple[int, int]:
    """Return the (height, width) that `decode_image` would return, from the header of a file.

    Raises:
        DataError: the file cannot be read; names the file.
    """
    try:
        return read_copy(path, _size_in_header)
    except DataError as error:
        raise DataError(f"image {str(path)!r}: {error}") from error
    except Exception as error:
        raise DataError(f"image {str(path)!r}: cannot be read ({type(error).__name__})") from error


def _size_in_header(path: Path) -> tuple[int, int]:
    try:
        with open_image(path) as image:
            width, height = image.size
            # Pillow decodes all pixels of a PNG to find its orientation, so look for the keys first.
            may_rotate = image.format != "PNG" or _contains_any(path, _PNG_ORIENTATION_KEYS)
            is_rotated = may_rotate and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            # Newer versions of Pillow return the rotated `size` of a TIFF, so read its tags.
            if isinstance(image, TiffImageFile):
                width, height = image.tag_v2[256], image.tag_v2[257]
    except UnidentifiedImageError as error:
        size = tiff_size(path)
        if size is None:
            raise DataError("cannot be read as an image") from error
        return size
    return (width, height) if is_rotated else (height, width)


def _contains_any(path: Path, keys: tuple[bytes, ...]) -> bool:
    data = path.read_bytes()
    return any(key in data for key in keys)
