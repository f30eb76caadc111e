"""White levels of images of more than 8 bits: found or set per folder, refused where ambiguous."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sfss_ray.config import Config, override
from sfss_ray.data.decoding import decode_image, image_size
from sfss_ray.data.depth import White, depth_of, with_white
from sfss_ray.data.folders import ImageFile, LabelledImage, list_images
from sfss_ray.data.image_folder import open_images
from sfss_ray.errors import ConfigError, DataError


def picture(seed: int = 0, height: int = 20, width: int = 30) -> np.ndarray:
    """Return uint8 RGB noise with 0 and 255 in every channel."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[0, :2] = [[0, 0, 0], [255, 255, 255]]
    return image


def at_bits(image: np.ndarray, bits: int) -> np.ndarray:
    """Return the same picture with `bits` bits in uint16, as a camera stores it."""
    return np.rint(image * ((2**bits - 1) / 255)).astype(np.uint16)


def put(path: Path, values: np.ndarray) -> Path:
    """Write RGB or grey values with OpenCV, which keeps their type, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values[..., ::-1] if values.ndim == 3 else values)
    return path


def open_folder(folder: Path, **options) -> list[ImageFile]:
    """Return the images of a folder under a config with these options."""
    return open_images(folder, override(Config(), options))[0]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", ["grey", "rgb"])
def test_a_camera_image_is_read_like_its_8_bit_version(bits, suffix, channels, tmp_path: Path):
    image = picture()
    if channels == "grey":
        image[..., 1:] = image[..., :1]
    values = at_bits(image, bits)
    put(tmp_path / f"day{suffix}", values if channels == "rgb" else values[..., 0])
    (file,) = open_folder(tmp_path)
    assert file.white == White(2.0**bits - 1)
    assert np.array_equal(file.read(), image)


def test_a_night_frame_stays_dark_beside_a_day_frame(tmp_path: Path):
    day, night = picture(0), picture(1) // 16
    put(tmp_path / "day.png", at_bits(day, 12))
    put(tmp_path / "night.png", at_bits(night, 12))
    images, notes = open_images(tmp_path, Config())
    assert notes == [
        "images of more than 8 bits: white is 4095 (values up to 4095 were found)",
    ]
    assert np.array_equal(images[0].read(), day)
    assert np.array_equal(images[1].read(), night)


def test_the_white_level_of_a_night_frame_alone_is_ambiguous(tmp_path: Path):
    put(tmp_path / "night.png", at_bits(picture() // 16, 12))
    with pytest.raises(DataError, match=r"night.png.*values up to 241.*is ambiguous: set white"):
        open_folder(tmp_path)
    (file,) = open_folder(tmp_path, white_level=4095.0)
    assert np.array_equal(file.read(), picture() // 16)


@pytest.mark.parametrize(
    "brightest", [200, 255, 256, 700, 895, 1024, 2100, 3583, 4096, 9000, 14335]
)
def test_a_brightest_value_between_bit_depths_is_ambiguous(brightest, tmp_path: Path):
    """700 may be a dim picture of 10 bits or a dark one of 12."""
    put(tmp_path / "a.png", np.array([[0, brightest]], np.uint16))
    with pytest.raises(DataError, match=f"values up to {brightest} were found"):
        open_folder(tmp_path)


def test_values_above_a_white_level_that_was_set_are_clipped(tmp_path: Path):
    put(tmp_path / "a.png", np.array([[0, 500, 1000, 4000]], np.uint16))
    (file,) = open_folder(tmp_path, white_level=1000.0)
    assert file.read()[0, :, 0].tolist() == [0, 128, 255, 255]


def test_a_value_above_a_white_level_that_was_found_is_an_error():
    values = cv2.imencode(".png", np.full((4, 4), 2000, np.uint16))[1].tobytes()
    with pytest.raises(DataError, match="contains the value 2000, and white is 1023 in the other"):
        decode_image(values, white=White(1023.0))
    with pytest.raises(DataError, match="its white level is unknown: set white_level"):
        decode_image(values)


@pytest.mark.parametrize("channels", [1, 3])
def test_floats_of_0_to_1_and_of_0_to_255(channels, tmp_path: Path):
    image = picture()
    image = image if channels == 3 else np.repeat(image[..., :1], 3, axis=2)
    stored = image if channels == 3 else image[..., 0]
    put(tmp_path / "unit" / "a.tiff", (stored / 255).astype(np.float32))
    put(tmp_path / "bytes" / "a.tiff", stored.astype(np.float32))
    for folder, white in (("unit", 1.0), ("bytes", 255.0)):
        (file,) = open_folder(tmp_path / folder)
        assert file.white == White(white)
        assert np.array_equal(file.read(), image)
        assert image_size(file.path) == (20, 30)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "NaN or Inf"), (np.inf, "NaN or Inf"), (-0.5, r"negative values \(least: -0.5\)")],
)
def test_nan_inf_and_negative_values_are_refused(value, reason, tmp_path: Path):
    values = np.full((4, 5), 0.5, np.float32)
    put(tmp_path / "intact.tif", values)
    values[1, 1] = value
    put(tmp_path / "invalid.tif", values)
    intact, invalid = sorted(open_folder(tmp_path), key=lambda f: f.image_id != "intact")
    assert intact.read()[0, 0, 0] == 128
    with pytest.raises(DataError, match=f"invalid.tif': it contains {reason}"):
        invalid.read()


def test_floats_between_the_two_ranges_are_ambiguous(tmp_path: Path):
    put(tmp_path / "a.tif", np.array([[0, 7.5]], np.float32))
    with pytest.raises(DataError, match=r"values up to 7.5 were found, so that their white"):
        open_folder(tmp_path)


def test_floats_and_integers_in_one_folder_are_refused(tmp_path: Path):
    put(tmp_path / "a.tif", np.array([[0, 1]], np.float32))
    put(tmp_path / "b.tif", np.array([[0, 65535]], np.uint16))
    with pytest.raises(DataError, match="integers and floating-point numbers"):
        open_folder(tmp_path)


def test_8_bit_files_beside_deep_ones_are_read_unchanged(tmp_path: Path):
    shallow = picture(3)
    put(tmp_path / "deep.png", at_bits(picture(), 14))
    put(tmp_path / "shallow.png", shallow)
    deep, plain = open_folder(tmp_path)
    assert np.array_equal(plain.read(), shallow)
    assert np.array_equal(deep.read(), picture())


def test_a_folder_of_8_bit_files_has_no_white_level(tmp_path: Path):
    put(tmp_path / "a.png", picture())
    put(tmp_path / "b.tif", picture())
    images, notes = open_images(tmp_path, Config())
    assert [file.white for file in images] == [None, None]
    assert notes == []


def test_a_dim_folder_is_read_with_the_white_level_of_the_model(tmp_path: Path):
    """Another folder of the same camera, without any bright pixel."""
    dim = picture() // 16
    put(tmp_path / "a.png", at_bits(dim, 12))
    images, (note,) = open_images(tmp_path, Config(), model_white=4095.0)
    assert np.array_equal(images[0].read(), dim)
    assert "as in the images that the model was adapted to" in note
    put(tmp_path / "b.png", at_bits(picture(), 14))
    with pytest.raises(DataError, match="values up to 16383, but white was 4095"):
        open_images(tmp_path, Config(), model_white=4095.0)


def test_damaged_files_do_not_affect_others_and_are_named_on_reading(tmp_path: Path):
    whole = put(tmp_path / "a.png", at_bits(picture(), 12)).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    intact, truncated = open_folder(tmp_path)
    assert np.array_equal(intact.read(), picture())
    with pytest.raises(DataError, match=r"b.png': cannot be read as an image"):
        truncated.read()
    (tmp_path / "a.png").unlink()
    assert [file.white for file in open_folder(tmp_path)] == [None]


def pgm(values: np.ndarray, maximum: int) -> bytes:
    """Return a PGM or PPM as in the Netpbm manual: two bytes per sample, high byte first."""
    height, width = values.shape[:2]
    magic = b"P5" if values.ndim == 2 else b"P6"
    return magic + b" %d %d\n%d\n" % (width, height, maximum) + values.astype(">u2").tobytes()


@pytest.mark.parametrize("colour", [False, True])
def test_a_format_that_states_its_maximum_needs_no_white_level(colour, tmp_path: Path):
    image = picture() // 8  # dim, but not ambiguous
    values = at_bits(image, 12)
    values, image = (values, image) if colour else (values[..., 0], image[..., :1].repeat(3, 2))
    data = pgm(values, 4095)
    depth = depth_of(data)
    assert depth is not None
    assert depth.white == 4095
    assert np.array_equal(decode_image(data), image)


def packed_tiff(values: np.ndarray, bits: int) -> bytes:
    """Return a grey TIFF of `bits` bits per pixel with each row padded to whole bytes (TIFF 6.0)."""
    height, width = values.shape
    rows = b""
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += int(digits, 2).to_bytes(len(digits) // 8, "big")
    rows += b"\0" * (len(rows) % 2)
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags[279] = len(rows)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack("<2sHI", b"II", 42, 8 + len(rows))
    return header + rows + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_packed_tiff_states_its_white_level(bits):
    grey = picture()[..., 0]
    data = packed_tiff(at_bits(grey, bits), bits)
    assert np.array_equal(decode_image(data)[..., 1], grey)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_deep_images_are_rotated_like_8_bit_images(kind, orientation, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = picture(0, 6, 9)[..., 0]
    file = io.BytesIO()
    Image.fromarray(grey).save(file, kind, exif=exif)
    expected = decode_image(file.getvalue())
    path = tmp_path / "a.img"
    Image.fromarray(grey.astype(np.uint16) * 257).save(path, kind, exif=exif)
    assert np.array_equal(decode_image(path.read_bytes(), white=White(65535.0)), expected)
    assert image_size(path) == expected.shape[:2]


def test_labelled_images_get_a_white_level_too(tmp_path: Path):
    path = put(tmp_path / "a.png", at_bits(picture(), 10))
    (pair,), _ = with_white([LabelledImage("a", path, path)], None)
    assert np.array_equal(pair.read(), picture())


def test_only_a_sample_of_a_large_folder_is_read(tmp_path: Path, monkeypatch):
    for k in range(60):
        put(tmp_path / f"{k:02}.png", at_bits(picture(k), 12))
    monkeypatch.setattr("sfss_ray.data.depth._MAX_IMAGES_READ", 5)
    calls = []
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *a: calls.append(1) or decode(*a))
    with_white(list_images(tmp_path), None)
    assert len(calls) <= 5


@pytest.mark.parametrize("level", [0.0, -1.0, float("nan")])
def test_a_white_level_out_of_range_is_refused(level):
    with pytest.raises(ConfigError, match="white_level is"):
        override(Config(), {"white_level": level})
