"""Ids of label files are those that are stored, or the file is refused by name with the reason."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from dataset_files import camvid, cityscapes, ids_of, plain, put_synthia
from image_files import encode, noise, put
from PIL import Image, features
from png_files import GREY, PALETTE, png

from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, class_set_of
from sfss_ray.data.folders import read_labels
from sfss_ray.data.label_files import read_ids
from sfss_ray.data.labelled import load_labelled
from sfss_ray.errors import DataError
from sfss_ray.inspection.data_set import check_dataset

FOUR = class_set_of(["a", "b", "c", "d"])


def tiff(values: np.ndarray, sample: int, photometric: int = 1) -> bytes:
    """An uncompressed TIFF 6.0 file of one strip; sample: 1 unsigned, 2 signed, 3 float, 6 complex."""
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
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sample)]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    count = struct.pack("<H", len(entries))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + count + directory + bytes(4)


def refusal(path: Path, **options) -> str:
    """The message of the DataError, which is one line that names the file."""
    with pytest.raises(DataError) as refused:
        read_ids(path, **options)
    message = str(refused.value)
    assert "\n" not in message
    assert path.name in message
    return message


def random_ids(bits: int, height: int = 11, width: int = 13) -> np.ndarray:
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


def test_ids_of_two_bits_are_counted_and_scored_as_they_are(tmp_path: Path):
    """Once 1, 2 and 3 became 85, 170 and 255: unknown, unknown and ignored."""
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
NEEDS = {"JPEG2000": "jpg_2000", "AVIF": "avif"}


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_formats_are_refused_by_content_not_by_name(name, tmp_path: Path):
    kind, options = LOSSY[name]
    if kind in NEEDS and not features.check(NEEDS[kind]):
        pytest.skip(f"this Pillow does not write {kind}")
    path = put(tmp_path / name, encode(ids_of(0, 1, 2), kind, **options))
    message = refusal(path)
    assert "lossy" in message
    assert "save label maps as PNG" in message


@pytest.mark.parametrize("exif", [False, True])
def test_lossless_webp_is_read_where_its_channels_are_equal(exif, tmp_path: Path):
    options = {}
    if exif:  # its header then says VP8X, whether lossy or not
        options["exif"] = Image.Exif()
        options["exif"][0x010E] = "labels"
    ids = ids_of(0, 7, 255)
    path = put(tmp_path / "a.webp", encode(ids, "WEBP", lossless=True, **options))
    assert np.array_equal(read_ids(path), ids)
    assert "lossy WebP" in refusal(put(tmp_path / "b.webp", encode(ids, "WEBP", **options)))
    colours = put(tmp_path / "c.webp", encode(noise(), "WEBP", lossless=True, **options))
    assert "3 channels" in refusal(colours)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_other_lossless_formats_keep_their_ids(kind, tmp_path: Path):
    ids = ids_of(0, 3, 11, 255)
    assert np.array_equal(read_ids(put(tmp_path / f"a.{kind.lower()}", encode(ids, kind))), ids)


@pytest.mark.parametrize(("largest", "kind"), [(18, "u1"), (255, "u1"), (1000, ">u2")])
def test_a_pgm_with_a_largest_value_keeps_its_ids(largest, kind, tmp_path: Path):
    """Pillow scales the values so that the largest becomes white."""
    ids = ids_of(0, 1, 7, 18)
    header = f"P5\n{ids.shape[1]} {ids.shape[0]}\n{largest}\n".encode()
    path = put(tmp_path / "a.pgm", header + ids.astype(kind).tobytes())
    assert np.array_equal(read_ids(path), ids)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_are_ids_only_when_whole(kind, tmp_path: Path):
    ids = ids_of(0, 3, 255).astype(kind)
    assert np.array_equal(read_ids(put(tmp_path / "whole.tif", tiff(ids, 3))), ids)
    for value, said in ((np.nan, "value NaN"), (np.inf, "value inf"), (1.5, "value 1.5")):
        wrong = ids.copy()
        wrong[0, 0] = value
        assert f"{said} found" in refusal(put(tmp_path / "wrong.tif", tiff(wrong, 3)))
    ids[0, 0] = 1e20
    assert "found; allowed are 0 to 255" in refusal(put(tmp_path / "large.tif", tiff(ids, 3)))


def test_complex_values_and_unknown_samples_are_named(tmp_path: Path):
    path = put(tmp_path / "a.tif", tiff(ids_of(0, 1).astype(np.complex64), 6))
    assert "64-bit complex values" in refusal(path)
    half = put(tmp_path / "b.tif", tiff(ids_of(0, 1).astype(np.float16), 3))
    assert "16-bit float values" in refusal(half)


def test_inverted_tiffs_give_the_stored_values(tmp_path: Path):
    ids = ids_of(0, 3, 254)
    assert np.array_equal(read_ids(put(tmp_path / "a.tif", tiff(ids, 1, photometric=0))), ids)


@pytest.mark.parametrize(
    ("kind", "sample", "said"),
    [
        (np.int8, 2, "id -1 found"),
        (np.int16, 2, "id -1 found"),
        (np.int32, 2, "id -1 found"),
        (np.float32, 3, "id -1 found"),
        (np.uint16, 1, "id 65535 found (-1 in unsigned 16-bit values)"),
        (np.uint32, 1, "id 4294967295 found (-1 in unsigned 32-bit values)"),
    ],
)
def test_minus_one_is_reported_as_it_is_and_ignored_by_cityscapes(kind, sample, said, tmp_path):
    ids = np.array([[-1, 7, 10], [26, 7, 7]]).astype(kind)
    path = put(tmp_path / "a.tif", tiff(ids, sample))
    message = refusal(path)
    assert said in message
    assert "labels_format cityscapes_label_ids" in message
    # Cityscapes' license plate, whose trainId is none of the 19; 7 is road, 26 car, 10 rail track.
    named = put(tmp_path / "a_gtFine_labelIds.tif", tiff(ids, sample))
    assert read_labels(named).tolist() == [[255, 0, 255], [13, 0, 0]]


def test_other_negative_ids_are_reported_everywhere(tmp_path: Path):
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


def test_the_check_lists_labels_that_are_no_ids(tmp_path: Path):
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
    assert "JPEG" in refusal(path, channel=0)
    grey = put(tmp_path / "c.png", png(random_ids(4), 4))
    assert np.array_equal(read_ids(grey, 0), random_ids(4))


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pictures_of_several_channels_are_no_labels(mode, tmp_path: Path):
    path = put(tmp_path / "a.tif", encode(Image.new(mode, (4, 3)), "TIFF"))
    assert "channels; give one channel of class ids" in refusal(path)


def test_gifs_and_animations_are_no_label_maps(tmp_path: Path):
    """Writers of GIF number the colours in use anew: ids 0, 3 and 255 become 0, 1 and 2."""
    frames = [Image.fromarray(ids_of(i)) for i in (0, 1)]
    message = refusal(put(tmp_path / "a.gif", encode(ids_of(0, 3, 255), "GIF")))
    assert "GIF, whose writers renumber ids" in message
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert "an animation" in refusal(put(tmp_path / "a.png", data))


# Colours of CamVid's label_colors.txt, and the classes of 11 they belong to.
COLOURS = {
    (128, 128, 128): "sky",
    (128, 64, 128): "road",
    (128, 0, 192): "road",  # lane markings
    (64, 128, 192): "car",  # pick-ups
    (192, 192, 0): "tree",  # other vegetation
    (192, 0, 192): "bicyclist",  # motorcycles
    (0, 0, 0): None,
}


def test_camvids_colour_coded_originals_are_read_as_its_classes(tmp_path: Path):
    root = camvid(tmp_path, ids_of(0))
    (root / "labels/train/0001TP_000000.png").unlink()
    colours = np.array([list(COLOURS)] * 6, np.uint8)
    put(root / "images/train/0001TP_000000.png", noise(6, len(COLOURS)))
    label = put(root / "labels/train/0001TP_000000_L.png", colours)
    folder = load_labelled(root / "images", root / "labels", CAMVID_11)
    assert folder.format == "camvid_colours"
    expected = [255 if c is None else CAMVID_11.classes.index(c) for c in COLOURS.values()]
    assert folder.pairs[0].labels()[0].tolist() == expected
    report = check_dataset(root, progress=str)
    assert (report.layout, report.sound) == ("camvid", True)
    assert report.class_share["road"] == pytest.approx(100 * 2 / 6)
    colours[2, 1] = (1, 2, 3)
    put(label, colours)
    with pytest.raises(DataError, match=r"_L\.png': colour \(1, 2, 3\) found"):
        load_labelled(root / "images", root / "labels", CAMVID_11)


def binary(root: Path) -> Path:
    return plain(root, ids_of(0, 255), ids_of(0), ids_of(255))


def test_masks_of_0_and_255_say_that_their_object_is_ignored(tmp_path: Path):
    """255 is the object's value in many tools, and `ignored` here."""
    root, two = binary(tmp_path), class_set_of(["background", "crack"])
    folders = root / "images", root / "labels", two
    with pytest.raises(DataError, match=r"0 and 255 alone.*save the pixels of 'crack' as 1"):
        load_labelled(*folders)
    named = load_labelled(*folders, override(Config(), {"labels_format": "train_ids"}))
    assert "255 is ignored" in "\n".join(named.describe(two))
    report = check_dataset(root, classes="background,crack", progress=str)
    assert not report.sound
    assert "save the pixels of 'crack' as 1" in "\n".join(report.lines())
    unnamed = check_dataset(root, progress=str)  # one class may be all there is
    assert unnamed.sound
    assert "if 255 is an object, save its pixels as 1" in "\n".join(unnamed.lines())


def test_other_labels_of_two_classes_get_no_such_note(tmp_path: Path):
    two = class_set_of(["background", "crack"])
    for number, maps in enumerate(([ids_of(0, 1, 255)], [ids_of(0, 255), ids_of(1)], [ids_of(0)])):
        root = plain(tmp_path / str(number), *maps)
        assert not load_labelled(root / "images", root / "labels", two).notes
    root = plain(tmp_path / "many", ids_of(0, 255))
    assert not load_labelled(root / "images", root / "labels", CITYSCAPES_19).notes
