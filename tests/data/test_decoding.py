"""Decoding of images: every type of file that a folder may contain."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, noise, put, rotated
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfss_ray.data.decoding import decode_image, image_size, read_image
from sfss_ray.data.folders import read_labels
from sfss_ray.errors import DataError

LARGE = noise(64, 64)
LOSSLESS = ("PNG", "BMP", "TIFF", "PPM")


def first_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_rgb_images_are_read_unchanged(kind):
    image = noise()
    pixels = decode_image(encode(image, kind))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, image)
    pixels[0, 0] = 0  # the array is writable


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (first_half(encode(LARGE, "JPEG")), "truncated"),
        (first_half(encode(LARGE, "PNG")), "truncated"),
        (encode(LARGE, "PNG")[:20], "cannot be read as an image"),
        (b"a letter, not a picture\n", "cannot identify image file"),
    ],
    ids=["empty", "half a JPEG", "half a PNG", "a PNG header", "text"],
)
def test_damaged_files_are_refused_with_the_reason(data, reason):
    with pytest.raises(DataError, match=reason) as refused:
        decode_image(data)
    assert "\n" not in str(refused.value)
    assert "BytesIO" not in str(refused.value)


def test_grey_and_one_bit_images_get_three_equal_channels():
    grey = noise()[..., 0]
    assert np.array_equal(decode_image(encode(grey)), np.repeat(grey[..., None], 3, axis=2))
    assert set(np.unique(decode_image(encode(grey > 99)))) == {0, 255}


def test_palette_images_give_colours_not_indices():
    picture = Image.fromarray(noise()).quantize(4)
    expected = np.array(picture.convert("RGB"))
    assert np.array_equal(decode_image(encode(picture)), expected)


def test_alpha_is_dropped():
    image = noise()
    transparent = np.dstack([image, np.zeros(image.shape[:2], np.uint8)])
    assert np.array_equal(decode_image(encode(transparent)), image)


def test_cmyk_is_read_as_rgb():
    picture = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red
    red = decode_image(encode(picture, "JPEG")).reshape(-1, 3).mean(0)
    assert red[0] > 200
    assert red[1:].max() < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_to_pixels_and_size(orientation, tmp_path: Path):
    path = put(tmp_path / "a.png", rotated(noise(6, 9), orientation))
    pixels = read_image(path)
    assert image_size(path) == pixels.shape[:2] == ((6, 9) if orientation < 5 else (9, 6))


def _xmp(orientation: int) -> str:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="{orientation}"/></x:xmpmeta>'


def _with_orientation(storage: str, orientation: int) -> bytes:
    """Return noise (6, 9) with its orientation stored in one of the ways that Pillow supports."""
    picture, exif = Image.fromarray(noise(6, 9)), Image.Exif()
    exif[0x0112] = orientation
    text, file_format = PngInfo(), storage.split(" ")[0]
    if storage == "PNG text":
        data = exif.tobytes().hex()
        text.add_text("Raw profile type exif", f"\nexif\n{len(data) // 2:8}\n{data}")
    elif storage == "PNG packed text":
        data = exif.tobytes().hex()
        text.add_text("Raw profile type exif", f"\nexif\n{len(data) // 2:8}\n{data}", zip=True)
    elif storage in ("PNG XMP", "PNG packed XMP"):
        text.add_itxt("XML:com.adobe.xmp", _xmp(orientation), zip="packed" in storage)
    if storage.startswith("PNG"):
        return encode(picture, pnginfo=text)
    if storage.endswith("XMP"):
        return encode(picture, file_format, xmp=_xmp(orientation).encode())
    return encode(picture, file_format, exif=exif)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(
    "storage",
    ["PNG text", "PNG packed text", "PNG XMP", "PNG packed XMP", "JPEG XMP", "WEBP XMP", "TIFF"],
)
def test_the_size_respects_the_orientation_however_it_is_stored(
    storage, orientation, tmp_path: Path
):
    path = put(tmp_path / "a.img", _with_orientation(storage, orientation))
    pixels = read_image(path)
    assert image_size(path) == pixels.shape[:2] == ((6, 9) if orientation < 5 else (9, 6))


def test_an_exif_quarter_turn_rotates_the_pixels(tmp_path: Path):
    image = noise()
    path = put(tmp_path / "a.png", rotated(image, 6))  # 6: turn clockwise to view
    assert np.array_equal(read_image(path), np.rot90(image, -1))


def test_an_image_of_one_pixel_is_read(tmp_path: Path):
    path = put(tmp_path / "a.png", noise(1, 1))
    assert read_image(path).shape == (1, 1, 3)
    assert image_size(path) == (1, 1)


def test_too_many_pixels_are_refused_with_size_and_limit():
    with pytest.raises(DataError, match=r"9x6 pixels: more than 53 are refused"):
        decode_image(encode(noise(6, 9)), 53)
    for limit in (54, None):
        assert decode_image(encode(noise(6, 9)), limit).shape == (6, 9, 3)


def test_an_image_of_400_million_pixels_is_refused_by_its_header(monkeypatch):
    file = BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    monkeypatch.setattr(Image.Image, "convert", None)  # refused before a pixel is decoded
    with pytest.raises(DataError, match=r"20000x20000 pixels: more than 200,000,000 are refused"):
        decode_image(file.getvalue())


@pytest.mark.parametrize("read", [read_image, image_size, read_labels])
def test_read_errors_name_the_file(read, tmp_path: Path):
    text = put(tmp_path / "letter.png", b"a letter")
    for path in (text, tmp_path / "missing.png"):
        with pytest.raises(DataError, match=path.name) as refused:
            read(path)
        assert "\n" not in str(refused.value)
