"""`masks inspect`: what it counts, against pycocotools and plain sums, and what it draws."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from sfss_ray import __version__, cli
from sfss_ray.config import Config, MaskConfig, override
from sfss_ray.data.decoding import read_image
from sfss_ray.data.folders import list_images
from sfss_ray.errors import ConfigError, DataError, OutputError
from sfss_ray.inspection.mask_folder import MaskReport, Spread, inspect_masks, mask_depth
from sfss_ray.masks.bank.schema import shard_paths, write_shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import build_region_source, make_recipe

SIZE = (20, 30)
RECIPE = {"source": "sam", "sam_type": "vit_b", "sam_sha256": "", "knobs": {"points_per_side": 32}}


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


MASKS = {
    "drive/a": [rectangle(0, 0, 10, 30), rectangle(5, 5, 10, 10), rectangle(6, 6, 2, 2)],
    "drive/b": [rectangle(0, 0, 20, 30)],
    "drive/c": [],
}


def record(mask: np.ndarray, score: float) -> dict:
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "counts": rle["counts"].decode(),
        "area": int(mask.sum()),
        "bbox": [int(v) for v in coco.toBbox(rle)],
        "predicted_iou": score,
        "stability_score": score / 2,
        "point": [1.5, 2.5],
        "crop_box": [0, 0, SIZE[1], SIZE[0]],
    }


def row(image_id: str, path: Path, masks: list[dict], error: str | None = None) -> dict:
    height, width = SIZE if error is None else (0, 0)
    found = {"image_id": image_id, "path": str(path), "masks": masks, "error": error}
    return found | {"height": height, "width": width}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Masks of three images that lie in images/, and of one that could not be read."""
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "images" / "drive").mkdir(parents=True)
    for image_id, masks in MASKS.items():
        path = tmp_path / "images" / f"{image_id}.png"
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
        scores = rng.uniform(0.8, 1, len(masks))
        rows.append(
            row(image_id, path, [record(*pair) for pair in zip(masks, scores, strict=True)])
        )
    rows.append(row("broken", tmp_path / "no.png", [], error="the file is empty (0 bytes)"))
    (tmp_path / "masks").mkdir()
    write_shard(tmp_path / "masks" / "masks-0.parquet", rows[:2], RECIPE)
    write_shard(tmp_path / "masks" / "masks-1.parquet", rows[2:], RECIPE)
    return tmp_path / "masks"


def look(folder: Path, **options) -> MaskReport:
    return inspect_masks(folder, progress=str, **options)


def test_counts_and_spreads_are_those_of_plain_masks(folder: Path):
    report = look(folder)
    assert (report.images, report.masks, report.source) == (4, 4, "sam")
    assert report.errors == {"broken": "the file is empty (0 bytes)"}
    assert (report.damaged, report.without_masks) == ({}, ["drive/c"])
    assert not report.sound
    depth = {name: np.sum([np.zeros(SIZE), *masks], axis=0) for name, masks in MASKS.items()}
    store = MaskStore(folder)
    records = [mask for name in MASKS for mask in store.load(name)["masks"]]
    wanted = {
        "masks_per_image": [len(masks) for masks in MASKS.values()],
        "coverage": [(d > 0).mean() for d in depth.values()],
        "overlap": [(d > 1).mean() for d in depth.values()],
        "area_share": [mask.mean() for masks in MASKS.values() for mask in masks],
        "predicted_iou": [mask["predicted_iou"] for mask in records],
        "stability_score": [mask["stability_score"] for mask in records],
    }
    assert set(report.spreads) == set(wanted)
    for name, values in wanted.items():
        found = report.spreads[name]
        assert (found.least, found.median, found.most) == pytest.approx(
            (np.min(values), np.median(values), np.max(values))
        ), name


def test_depth_counts_the_masks_over_each_pixel():
    rng = np.random.default_rng(1)
    masks = rng.random((6, 9, 7)) < 0.4
    masks[0], masks[1] = False, True
    rles = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    depth = mask_depth([rle["counts"].decode() for rle in rles], 63)
    assert (masks.sum(0) == depth.reshape(7, 9).T).all()
    assert (mask_depth([], 6) == 0).all()
    with pytest.raises(DataError, match="cover 63 pixels, its image has 64"):
        mask_depth([rles[1]["counts"].decode()], 64)


def test_scores_nobody_gave_are_unknown():
    assert Spread.of([float("nan")]) is None
    assert Spread.of([float("nan"), 2.0, 1.0, 4.0]) == Spread(1.0, 2.0, 4.0)


def test_the_report_says_it_all_in_lines(folder: Path, capsys):
    assert cli.main(["masks", "inspect", str(folder), "--pictures", "2"]) == 0
    page = capsys.readouterr().out
    assert "4 images, 4 masks" in page
    assert "regions: sam (segment-anything)" in page
    assert f"made with: code_version {__version__}, sam_type vit_b, points_per_side 32" in page
    assert "images with an error: 1\n  broken: the file is empty (0 bytes)" in page
    assert "images without a mask: 1\n  drive/c" in page
    assert "unreadable files: none" in page
    assert "masks_per_image            0         1         3" in page
    assert f"contact sheet: {folder / 'inspect.png'}" in page


def test_long_lists_are_cut_short_in_the_lines_alone(tmp_path: Path):
    rows = [row(f"{i:02}", tmp_path / "no.png", [], error="gone") for i in range(7)]
    write_shard(tmp_path / "masks-0.parquet", rows, RECIPE)
    report = look(tmp_path)
    assert len(report.errors) == 7
    assert report.sheet is None
    lines = report.lines()
    assert "  and 2 more" in lines
    assert "  06: gone" not in lines
    assert lines[-1] == "contact sheet: none: no image could be drawn"


def test_the_contact_sheet_shows_masks_over_images(folder: Path, tmp_path: Path):
    report = look(folder, output_file=tmp_path / "new" / "sheet.png")
    assert report.sheet == tmp_path / "new" / "sheet.png"
    sheet = read_image(report.sheet)
    assert sheet.shape[1] > 3 * 300  # three tiles of 330 x 220 pixels beside each other
    image = read_image(tmp_path / "images" / "drive" / "c.png")
    plain = cv2.resize(image, (330, 220), interpolation=cv2.INTER_LINEAR)
    assert (sheet[-230:-10, -340:-10] == plain).all()  # c has no mask: it is itself
    assert np.abs(sheet[-230:-10, 10:340].astype(int) - plain).mean() > 10


def test_pictures_are_picked_by_the_seed(folder: Path):
    def sheet(seed: int) -> bytes:
        config = override(Config(), {"seed": seed})
        report = look(folder, pictures=1, config=config)
        assert report.sheet is not None
        return report.sheet.read_bytes()

    assert sheet(0) == sheet(0)
    assert len({sheet(seed) for seed in range(8)}) > 1


def test_no_picture_is_drawn_when_none_is_wanted(folder: Path):
    assert look(folder, pictures=0).sheet is None
    assert not (folder / "inspect.png").exists()
    for number in (-1, 201):
        with pytest.raises(ConfigError, match=f"pictures is {number}: allowed is 0 to 200"):
            look(folder, pictures=number)


def test_no_contact_sheet_is_put_among_the_images(folder: Path, tmp_path: Path, capsys):
    inside = folder.rename(tmp_path / "images" / "masks")
    assert cli.main(["masks", "inspect", str(inside)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"inspect.png' lies in the folder of the images, '{tmp_path / 'images'}'" in line
    assert len(list_images(tmp_path / "images")) == 3
    assert look(inside, output_file=tmp_path / "sheet.png").sheet == tmp_path / "sheet.png"
    assert look(inside, pictures=0).sheet is None


def test_images_that_moved_or_changed_are_named(folder: Path, tmp_path: Path):
    (tmp_path / "images" / "drive" / "a.png").unlink()
    Image.new("RGB", (31, 20)).save(tmp_path / "images" / "drive" / "b.png")
    report = look(folder)
    assert report.masks == 4
    assert report.sheet is not None
    assert set(report.not_shown) == {"drive/a", "drive/b"}
    assert "No such file" in report.not_shown["drive/a"]
    assert "is 31x20, its masks are 30x20: it was changed" in report.not_shown["drive/b"]
    assert "images not on the contact sheet: 2" in report.lines()


def test_masks_of_another_size_are_named(folder: Path, tmp_path: Path):
    wrong = record(rectangle(0, 0, 3, 3), 0.9) | {"counts": "55"}
    strange = row("strange", tmp_path / "no.png", [wrong])
    write_shard(folder / "masks-2.parquet", [strange], RECIPE)
    report = look(folder)
    assert set(report.damaged) == {"strange"}
    assert "cover 10 pixels, its image has 600" in report.damaged["strange"]


def test_half_a_shard_is_named(folder: Path):
    whole = (folder / "masks-1.parquet").read_bytes()
    (folder / "masks-1.parquet").write_bytes(whole[: len(whole) // 2])
    report = look(folder)
    assert (report.images, report.unreadable_files) == (2, ["masks-1.parquet"])
    assert not report.sound
    assert "unreadable files: 1" in report.lines()
    (folder / "masks-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"no readable masks .* 2 files, .*'masks-0.parquet'"):
        look(folder)


def test_damaged_bytes_inside_a_shard_are_named(folder: Path):
    file = shard_paths(folder)[0]
    data = bytearray(file.read_bytes())
    data[4:400] = bytes(396)  # the first column chunk, behind the magic number
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"masks-0.parquet' is damaged \(.*remove it"):
        look(folder)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nowhere", "nowhere' does not exist"),
        ("images", "no masks in '.*images'"),
        ("images/drive/a.png", "a.png' is a file"),
    ],
)
def test_bad_folders_are_one_line(place, reason, folder: Path, tmp_path: Path, capsys):
    assert cli.main(["masks", "inspect", str(tmp_path / place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(DataError, match=reason):
        look(tmp_path / place)


def test_a_sheet_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path):
    with pytest.raises(OutputError, match=r"' cannot be written \(Is a directory"):
        look(folder, output_file=tmp_path)


def test_real_images_are_covered_once_by_the_classical_segmenter(shared_data, tmp_path: Path):
    files = list_images(shared_data("camvid") / "images" / "val")[:2]
    recipe, _ = make_recipe(MaskConfig(regions="felzenszwalb"), None)
    find, rows = build_region_source(recipe, None, 1, "cpu"), []
    for file in files:
        image = read_image(file.path)
        found = {"height": image.shape[0], "width": image.shape[1], "masks": find(image)}
        rows.append(row(file.image_id, file.path, []) | found)
    write_shard(tmp_path / "masks-0.parquet", rows, recipe.as_dict())
    report = look(tmp_path)
    assert report.sound
    assert report.masks == sum(len(r["masks"]) for r in rows)
    assert report.spreads["coverage"] == Spread(1.0, 1.0, 1.0)
    assert report.spreads["overlap"] == Spread(0.0, 0.0, 0.0)
    assert "predicted_iou" not in report.spreads
    assert report.sheet is not None
    assert read_image(report.sheet).shape[0] > 220
