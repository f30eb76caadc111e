"""Reading images and label maps: every kind of file a folder may hold."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, label_map, noise, put, turned
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.data.decoding import decode_image, image_size, read_image
from sfss_ray.data.folders import LabelledImage, check_label_ids, read_labels
from sfss_ray.errors import DataError

LARGE = noise(64, 64)
LOSSLESS = ("PNG", "BMP", "TIFF", "PPM")


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_rgb_is_read_as_it_is(kind):
    image = noise()
    pixels = decode_image(encode(image, kind))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, image)
    pixels[0, 0] = 0  # callers may write into it


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (half(encode(LARGE, "JPEG")), "truncated"),
        (half(encode(LARGE, "PNG")), "truncated"),
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


def test_palette_image_gives_the_colours_not_the_indices():
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
def test_exif_rotation_is_applied_and_the_size_agrees(orientation, tmp_path: Path):
    path = put(tmp_path / "a.png", turned(noise(6, 9), orientation))
    pixels = read_image(path)
    assert image_size(path) == pixels.shape[:2] == ((6, 9) if orientation < 5 else (9, 6))


def _xmp(orientation: int) -> str:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="{orientation}"/></x:xmpmeta>'


def _oriented(place: str, orientation: int) -> bytes:
    """Noise (6, 9) whose orientation stands in one of the places that Pillow looks at."""
    picture, exif = Image.fromarray(noise(6, 9)), Image.Exif()
    exif[0x0112] = orientation
    text, kind = PngInfo(), place.split(" ")[0]
    if place == "PNG text":
        data = exif.tobytes().hex()
        text.add_text("Raw profile type exif", f"\nexif\n{len(data) // 2:8}\n{data}")
    elif place == "PNG packed text":
        data = exif.tobytes().hex()
        text.add_text("Raw profile type exif", f"\nexif\n{len(data) // 2:8}\n{data}", zip=True)
    elif place in ("PNG XMP", "PNG packed XMP"):
        text.add_itxt("XML:com.adobe.xmp", _xmp(orientation), zip="packed" in place)
    if place.startswith("PNG"):
        return encode(picture, pnginfo=text)
    if place.endswith("XMP"):
        return encode(picture, kind, xmp=_xmp(orientation).encode())
    return encode(picture, kind, exif=exif)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(
    "place",
    ["PNG text", "PNG packed text", "PNG XMP", "PNG packed XMP", "JPEG XMP", "WEBP XMP", "TIFF"],
)
def test_the_size_agrees_wherever_the_orientation_stands(place, orientation, tmp_path: Path):
    path = put(tmp_path / "a.img", _oriented(place, orientation))
    pixels = read_image(path)
    assert image_size(path) == pixels.shape[:2] == ((6, 9) if orientation < 5 else (9, 6))


def test_exif_rotation_by_a_quarter_moves_the_corner(tmp_path: Path):
    image = noise()
    path = put(tmp_path / "a.png", turned(image, 6))  # 6: turn clockwise to view
    assert np.array_equal(read_image(path), np.rot90(image, -1))


def test_one_pixel(tmp_path: Path):
    path = put(tmp_path / "a.png", noise(1, 1))
    assert read_image(path).shape == (1, 1, 3)
    assert image_size(path) == (1, 1)


def test_too_many_pixels_are_refused_with_both_numbers():
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
def test_errors_name_the_file(read, tmp_path: Path):
    text = put(tmp_path / "letter.png", b"a letter")
    for path in (text, tmp_path / "missing.png"):
        with pytest.raises(DataError, match=path.name) as refused:
            read(path)
        assert "\n" not in str(refused.value)


def test_label_ids_are_the_pixel_values(tmp_path: Path):
    ids = label_map([0, 18, 255], [1, 2, 3])
    labels = read_labels(put(tmp_path / "a.png", ids))
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, ids)


def test_palette_labels_are_read_as_indices(tmp_path: Path):
    ids = label_map([0, 1, 2], [18, 255, 7])
    picture = Image.fromarray(ids)
    picture.putpalette([(37 * i) % 256 for i in range(768)])
    assert picture.mode == "P"
    assert np.array_equal(read_labels(put(tmp_path / "a.png", encode(picture))), ids)


def test_16_bit_labels_are_read_when_they_fit(tmp_path: Path):
    ids = np.array([[0, 255], [3, 4]], np.uint16)
    assert np.array_equal(read_labels(put(tmp_path / "a.png", ids)), ids)
    with pytest.raises(DataError, match="id 256 found; allowed are 0 to 255"):
        read_labels(put(tmp_path / "b.png", ids + np.uint16(1)))


def test_colour_pictures_are_refused_as_labels(tmp_path: Path):
    with pytest.raises(DataError, match=r"a\.png': 3 channels; give one channel"):
        read_labels(put(tmp_path / "a.png"))


def test_cityscapes_label_ids_become_train_ids(tmp_path: Path):
    ids = label_map([7, 8, 33, 0], [26, 3, 29, 255])  # road, sidewalk, bicycle; car; the rest void
    labels = read_labels(put(tmp_path / "x_gtFine_labelIds.png", ids))
    assert labels.tolist() == [[0, 1, 18, 255], [13, 255, 255, 255]]
    assert np.array_equal(read_labels(put(tmp_path / "x_gtFine_labelTrainIds.png", ids)), ids)


def test_ids_outside_the_class_set_are_refused_with_the_file(tmp_path: Path):
    good = put(tmp_path / "good.png", label_map([0, 18, 255]))
    bad = put(tmp_path / "bad.png", label_map([0, 19, 21]))
    check_label_ids([LabelledImage("good", good, good)], CITYSCAPES_19)
    with pytest.raises(DataError, match=r"bad\.png' hold id 19, but the model has 19 classes"):
        check_label_ids([LabelledImage(p.stem, p, p) for p in (good, bad)], CITYSCAPES_19)
