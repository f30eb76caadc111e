"""Reading of label maps: the stored ids, or an error that names the file and the reason."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from dataset_files import cityscapes, ids_of, plain, put_synthia
from image_files import encode, noise, put
from PIL import Image, features
from png_files import GREY, PALETTE, png

from sfss_ray.data.class_sets import class_set_of
from sfss_ray.data.folders import read_labels
from sfss_ray.data.label_files import read_ids
from sfss_ray.data.labelled import load_labelled
from sfss_ray.errors import DataError
from sfss_ray.inspection.data_set import check_dataset

FOUR = class_set_of(["a", "b", "c", "d"])


def tiff(values: np.ndarray, sample_type: int, photometric: int = 1) -> bytes:
    """Return an uncompressed TIFF 6.0 file of one strip.

    The sample type is 1 for unsigned, 2 for signed, 3 for float and 6 for complex values.
    """
    values = np.ascontiguousarray(values)
    bits, data = 8 * values.dtype.itemsize, values.tobytes()
    height, width = values.shape
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
    ]
    entries += [
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(data)),
        (339, 3, sample_type),
    ]
    directory = b"".join(
        struct.pack("<HHII", tag, field_type, 1, value) for tag, field_type, value in entries
    )
    count = struct.pack("<H", len(entries))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + count + directory + bytes(4)


def read_error(path: Path, **options) -> str:
    """Return the message of the DataError, which must be one line that names the file."""
    with pytest.raises(DataError) as refused:
        read_ids(path, **options)
    message = str(refused.value)
    assert "\n" not in message
    assert path.name in message
    return message


def random_ids(bits: int, height: int = 11, width: int = 13) -> np.ndarray:
    """Return (H, W) random ids that fit into `bits` bits and into 8."""
    return np.random.default_rng(bits).integers(0, 2 ** min(bits, 8), (height, width))


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
@pytest.mark.parametrize(
    ("bits", "colour_type"),
    [*((b, GREY) for b in (1, 2, 4, 8, 16)), *((b, PALETTE) for b in (1, 2, 4, 8))],
)
def test_pngs_of_every_bit_depth_keep_their_ids(bits, colour_type, interlaced, tmp_path: Path):
    ids = random_ids(bits)
    path = put(tmp_path / "a.png", png(ids, bits, colour_type, interlaced))
    labels = read_labels(path)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, ids)


def test_ids_of_two_bits_are_counted_and_scored_unscaled(tmp_path: Path):
    """Scaled by Pillow, 1, 2 and 3 would be 85, 170 and 255: unknown, unknown and ignored."""
    ids = np.array([[0, 1, 2, 3] * 4] * 4)
    root = plain(tmp_path, ids.astype(np.uint8), classes="a\nb\nc\nd\n")
    put(root / "labels" / "0.png", png(ids, 2))
    report = check_dataset(root, progress=str)
    assert report.sound
    assert report.class_share == {"a": 25, "b": 25, "c": 25, "d": 25}
    folder = load_labelled(root / "images", root / "labels", FOUR)
    assert np.array_equal(folder.pairs[0].labels(), ids)


LOSSY = {
    "a.jpg": ("JPEG", {}),
    "renamed.png": ("JPEG", {}),
    "a.webp": ("WEBP", {}),
    "a.tif": ("TIFF", {"compression": "jpeg"}),
    "a.jp2": ("JPEG2000", {"irreversible": True}),
    "a.avif": ("AVIF", {}),
}
CODECS = {"JPEG2000": "jpg_2000", "AVIF": "avif"}


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_formats_are_refused_by_content_not_by_name(name, tmp_path: Path):
    file_format, options = LOSSY[name]
    if file_format in CODECS and not features.check(CODECS[file_format]):
        pytest.skip(f"this Pillow does not write {file_format}")
    path = put(tmp_path / name, encode(ids_of(0, 1, 2), file_format, **options))
    message = read_error(path)
    assert "lossy" in message
    assert "save label maps as PNG" in message


@pytest.mark.parametrize("exif", [False, True])
def test_lossless_webp_is_read_if_its_channels_are_equal(exif, tmp_path: Path):
    options = {}
    if exif:  # the header is then VP8X for lossy and lossless files
        options["exif"] = Image.Exif()
        options["exif"][0x010E] = "labels"
    ids = ids_of(0, 7, 255)
    path = put(tmp_path / "a.webp", encode(ids, "WEBP", lossless=True, **options))
    assert np.array_equal(read_ids(path), ids)
    assert "lossy WebP" in read_error(put(tmp_path / "b.webp", encode(ids, "WEBP", **options)))
    colours = put(tmp_path / "c.webp", encode(noise(), "WEBP", lossless=True, **options))
    assert "3 channels" in read_error(colours)


@pytest.mark.parametrize("file_format", ["BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_their_ids(file_format, tmp_path: Path):
    ids = ids_of(0, 3, 11, 255)
    path = put(tmp_path / f"a.{file_format.lower()}", encode(ids, file_format))
    assert np.array_equal(read_ids(path), ids)


@pytest.mark.parametrize(("maximum", "dtype"), [(18, "u1"), (255, "u1"), (1000, ">u2")])
def test_a_pgm_with_its_own_maximum_keeps_its_ids(maximum, dtype, tmp_path: Path):
    """Pillow scales the values so that the maximum becomes white."""
    ids = ids_of(0, 1, 7, 18)
    header = f"P5\n{ids.shape[1]} {ids.shape[0]}\n{maximum}\n".encode()
    path = put(tmp_path / "a.pgm", header + ids.astype(dtype).tobytes())
    assert np.array_equal(read_ids(path), ids)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_ids_only_if_they_are_integers(dtype, tmp_path: Path):
    ids = ids_of(0, 3, 255).astype(dtype)
    assert np.array_equal(read_ids(put(tmp_path / "whole.tif", tiff(ids, 3))), ids)
    for value, text in ((np.nan, "value NaN"), (np.inf, "value inf"), (1.5, "value 1.5")):
        wrong = ids.copy()
        wrong[0, 0] = value
        assert f"{text} found" in read_error(put(tmp_path / "wrong.tif", tiff(wrong, 3)))
    ids[0, 0] = 1e20
    assert "found; allowed are 0 to 255" in read_error(put(tmp_path / "large.tif", tiff(ids, 3)))


def test_unsupported_types_of_values_are_named(tmp_path: Path):
    path = put(tmp_path / "a.tif", tiff(ids_of(0, 1).astype(np.complex64), 6))
    assert "64-bit complex values" in read_error(path)
    half = put(tmp_path / "b.tif", tiff(ids_of(0, 1).astype(np.float16), 3))
    assert "16-bit float values" in read_error(half)


def test_inverted_tiffs_give_the_stored_values(tmp_path: Path):
    ids = ids_of(0, 3, 254)
    assert np.array_equal(read_ids(put(tmp_path / "a.tif", tiff(ids, 1, photometric=0))), ids)


@pytest.mark.parametrize(
    ("dtype", "sample_type", "message"),
    [
        (np.int8, 2, "id -1 found"),
        (np.int16, 2, "id -1 found"),
        (np.int32, 2, "id -1 found"),
        (np.float32, 3, "id -1 found"),
        (np.uint16, 1, "id 65535 found (-1 in unsigned 16-bit values)"),
        (np.uint32, 1, "id 4294967295 found (-1 in unsigned 32-bit values)"),
    ],
)
def test_minus_one_is_reported_but_ignored_in_cityscapes(dtype, sample_type, message, tmp_path):
    ids = np.array([[-1, 7, 10], [26, 7, 7]]).astype(dtype)
    path = put(tmp_path / "a.tif", tiff(ids, sample_type))
    error = read_error(path)
    assert message in error
    assert "labels_format cityscapes_label_ids" in error
    # Cityscapes' license plate has no train id; 7 is road, 26 car, 10 rail track.
    label_ids = put(tmp_path / "a_gtFine_labelIds.tif", tiff(ids, sample_type))
    assert read_labels(label_ids).tolist() == [[255, 0, 255], [13, 0, 0]]


def test_negative_ids_other_than_minus_one_are_always_refused(tmp_path: Path):
    ids = np.array([[-2, 10]], np.int16)
    for name in ("a.tif", "a_gtFine_labelIds.tif"):
        with pytest.raises(DataError, match="id -2 found"):
            read_labels(put(tmp_path / name, tiff(ids, 2)))


def test_minus_one_in_a_folder_of_label_ids_is_ignored(tmp_path: Path):
    ids = ids_of(7, 26).astype(np.int16)
    root = cityscapes(tmp_path, ids.astype(np.uint8))
    (root / "gtFine/train/aachen/a_gtFine_labelIds.png").unlink()
    ids[0, 0] = -1
    put(root / "gtFine/train/aachen/a_gtFine_labelIds.tif", tiff(ids, 2))
    report = check_dataset(root, progress=str)
    assert report.sound
    assert report.ignored_share == pytest.approx(100 / ids.size)


def test_data_check_lists_labels_in_lossy_formats(tmp_path: Path):
    root = plain(tmp_path, *[ids_of(0, 1) for _ in range(3)], classes="a\nb\nc\nd\n")
    (root / "labels" / "0.png").unlink()
    put(root / "labels" / "0.jpg", encode(ids_of(0, 1), "JPEG"))
    put(root / "labels" / "1.png", encode(ids_of(0, 1), "JPEG"))
    report = check_dataset(root, progress=str)
    assert not report.sound
    assert [("JPEG" in line, Path(line.split("'")[1]).name) for line in report.unreadable] == [
        (True, "0.jpg"),
        (True, "1.png"),
    ]
    with pytest.raises(DataError, match=r"0\.jpg': stored as JPEG"):
        load_labelled(root / "images", root / "labels", FOUR)


def test_synthia_keeps_its_16_bits_and_refuses_lossy_files(tmp_path: Path):
    ids = ids_of(1, 22)
    assert np.array_equal(read_ids(put_synthia(tmp_path / "a.png", ids), 0), ids)
    path = put(tmp_path / "b.png", encode(noise(), "JPEG"))
    assert "JPEG" in read_error(path, channel=0)
    grey = put(tmp_path / "c.png", png(random_ids(4), 4))
    assert np.array_equal(read_ids(grey, 0), random_ids(4))


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_images_of_several_channels_are_refused(mode, tmp_path: Path):
    path = put(tmp_path / "a.tif", encode(Image.new(mode, (4, 3)), "TIFF"))
    assert "channels; give one channel of class ids" in read_error(path)


def test_gifs_and_animations_are_refused(tmp_path: Path):
    """GIF writers renumber the colours in use: ids 0, 3 and 255 become 0, 1 and 2."""
    frames = [Image.fromarray(ids_of(i)) for i in (0, 1)]
    message = read_error(put(tmp_path / "a.gif", encode(ids_of(0, 3, 255), "GIF")))
    assert "GIF, whose writers renumber ids" in message
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert "an animation" in read_error(put(tmp_path / "a.png", data))
