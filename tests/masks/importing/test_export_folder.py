"""Exports: what pycocotools and amg.py's readers find in them, and imports of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amg_samples import HEADER, put_images
from mask_rows import RECIPE, SIZE, ellipses, image_row, write_rows
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from sfss_ray import cli, export_masks, import_masks
from sfss_ray.errors import DataError, OutputError
from sfss_ray.masks.bank.store import MaskStore

IMAGES = {"drive/a": 5, "drive/b": 0, "c": 3, "drive/a/x": 2}
KINDS = ("coco", "amg", "amg_png")


@pytest.fixture
def store(tmp_path: Path) -> MaskStore:
    """Return masks with scores that differ, some of them missing, and an image with an error."""
    rng = np.random.default_rng(0)
    rows = [image_row(name, ellipses(k, n)) for k, (name, n) in enumerate(IMAGES.items())]
    for row in rows:
        for mask in row["masks"]:
            mask["predicted_iou"], mask["stability_score"] = rng.random(2)
            mask["point"] = (rng.random(2) * 20).tolist()
            mask["crop_box"] = [1, 2, 9, 8]
    for mask in rows[2]["masks"]:
        mask |= {"predicted_iou": float("nan"), "stability_score": float("nan")}
        mask["point"] = [float("nan")] * 2
    rows[0]["masks"].append(rows[0]["masks"][0] | {"counts": "hb0", "area": 0})
    assert coco.decode({"size": [*SIZE], "counts": b"hb0"}).sum() == 0
    rows.append(image_row("broken", [], error="0 bytes"))
    (tmp_path / "masks").mkdir()
    write_rows(tmp_path / "masks", rows, RECIPE)
    return MaskStore(tmp_path / "masks")


def put_pictures(folder: Path) -> Path:
    """Write an image for each row."""
    for name in (*IMAGES, "broken"):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE[1], SIZE[0])).save(path)
    return folder


def export(store: MaskStore, output: Path, kind: Any):
    result = export_masks(store.folder, output, format=kind, progress=str)
    assert result.output == (output / "coco.json" if kind == "coco" else output)
    return result


def stored(store: MaskStore, image_id: str) -> str:
    """Return what an export must keep, as a text in which NaN equals NaN."""
    names = ("counts", "area", "predicted_iou", "stability_score", "point", "crop_box")
    return json.dumps([{name: m[name] for name in names} for m in store.load(image_id)["masks"]])


@pytest.mark.parametrize("kind", KINDS)
def test_an_import_gives_back_the_same_masks(kind, store: MaskStore, tmp_path: Path):
    result = export(store, tmp_path / "out", kind)
    assert (result.images, result.masks, result.errors) == (4, 11, {"broken": "0 bytes"})
    images = put_pictures(tmp_path / "images")
    summary = import_masks(tmp_path / "out", images, tmp_path / "again", progress=str)
    assert set(summary.errors) == {"broken"}
    again = MaskStore(tmp_path / "again")
    for image_id in IMAGES:
        assert stored(again, image_id) == stored(store, image_id), image_id
    export(again, tmp_path / "second", kind)
    first = {p.relative_to(tmp_path / "out"): p for p in (tmp_path / "out").rglob("*")}
    for name, path in first.items():
        if path.is_file():
            assert (tmp_path / "second" / name).read_bytes() == path.read_bytes()


def test_pycocotools_reads_the_coco_file(store: MaskStore, tmp_path: Path):
    export(store, tmp_path, "coco")
    api = COCO(tmp_path / "coco.json")
    images = {image["file_name"]: image for image in api.loadImgs(api.getImgIds())}
    assert set(images) == {f"{name}.png" for name in IMAGES}
    assert api.loadCats(api.getCatIds())[0]["name"] == "mask"
    for k, (name, number) in enumerate(IMAGES.items()):
        image = images[f"{name}.png"]
        assert (image["height"], image["width"]) == SIZE
        annotations = api.loadAnns(api.getAnnIds(imgIds=[image["id"]]))
        for annotation, mask in zip(annotations[:number], ellipses(k, number), strict=True):
            assert (api.annToMask(annotation) == mask).all()
            assert annotation["area"] == mask.sum()
            runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert annotation["bbox"] == coco.toBbox(runs).tolist()
        assert ("predicted_iou" in str(annotations)) == (name not in ("c", "drive/b"))
    empty = api.loadAnns(api.getAnnIds(imgIds=[images["drive/a.png"]["id"]]))[-1]
    assert (empty["area"], empty["bbox"]) == (0, [0, 0, 0, 0])


def sam_box(mask: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [int(v) for v in (xs.min(), ys.min(), np.ptp(xs), np.ptp(ys))] if len(ys) else [0] * 4


def test_json_files_have_the_form_of_amg(store: MaskStore, tmp_path: Path):
    export(store, tmp_path / "out", "amg")
    records = json.loads((tmp_path / "out" / "drive" / "a.json").read_text())
    keys = {"segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score"}
    assert all(entry.keys() == {*keys, "crop_box"} for entry in records)
    for entry, mask in zip(records, [*ellipses(0, 5), np.zeros(SIZE, bool)], strict=True):
        assert (coco.decode(entry["segmentation"]) == mask).all()
        assert (entry["area"], entry["bbox"]) == (mask.sum(), sam_box(mask))
    assert json.loads((tmp_path / "out" / "drive" / "b.json").read_text()) == []
    without_scores = json.loads((tmp_path / "out" / "c.json").read_text())[0]
    assert without_scores.keys() == {"segmentation", "area", "bbox", "crop_box"}


def test_folders_have_the_form_of_amg(store: MaskStore, tmp_path: Path):
    export(store, tmp_path / "out", "amg_png")
    folder = tmp_path / "out" / "drive" / "a"
    text = (folder / "metadata.csv").read_text()
    assert text.splitlines()[0] == HEADER
    lines = list(csv.DictReader(text.splitlines()))
    assert sorted(path.name for path in folder.glob("*.png")) == [f"{k}.png" for k in range(6)]
    for k, mask in enumerate(ellipses(0, 5)):
        pixels = np.asarray(Image.open(folder / f"{k}.png"))
        assert (pixels == 255 * mask).all()
        assert (lines[k]["id"], lines[k]["area"]) == (str(k), str(mask.sum()))
        box = [int(lines[k][f"bbox_{name}"]) for name in ("x0", "y0", "w", "h")]
        assert box == sam_box(mask)
    assert (tmp_path / "out" / "drive" / "b" / "metadata.csv").read_text() == f"{HEADER}\n"


@pytest.mark.parametrize("kind", ["amg", "amg_png"])
def test_a_folder_with_files_is_refused(kind, store: MaskStore, tmp_path: Path):
    put_images(tmp_path / "out", "a")
    with pytest.raises(OutputError, match="exists and is not an empty folder: give a new one"):
        export(store, tmp_path / "out", kind)
    with pytest.raises(OutputError, match="exists and is not an empty folder: give a new one"):
        export(store, tmp_path / "out" / "a.png", kind)


def test_a_coco_file_replaces_the_former_one(store: MaskStore, tmp_path: Path):
    for _ in range(2):
        export(store, tmp_path / "out", "coco")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["coco.json"]
    with pytest.raises(OutputError, match="cannot be written"):
        export(store, tmp_path / "out" / "coco.json", "coco")


def test_a_folder_without_masks_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no masks in"):
        export_masks(tmp_path, tmp_path, progress=str)
    assert not (tmp_path / "coco.json").exists()
    with pytest.raises(DataError, match="nowhere' does not exist; give a folder of masks"):
        export_masks(tmp_path / "nowhere", tmp_path, progress=str)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file' is a file; give a folder of masks"):
        export_masks(tmp_path / "file", tmp_path, progress=str)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_shard_is_refused(kind, store: MaskStore, tmp_path: Path):
    """Its images would be missing in the files without a word."""
    folder = Path(store.folder)
    shard = write_rows(folder, [image_row("last", ellipses(9, 2))])
    shard.write_bytes(shard.read_bytes()[:-100])
    number = len(list(folder.glob("*.parquet")))
    reason = rf"^1 of {number} files of masks in .* are damaged \(first: '{shard.name}'\)"
    with pytest.raises(DataError, match=reason):
        export_masks(folder, tmp_path / "out", format=kind, progress=str)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_counts(store: MaskStore, tmp_path: Path, capsys):
    arguments = [store.folder, str(tmp_path / "out"), "--format", "amg"]
    assert cli.main(["masks", "export", *arguments]) == 0
    page = capsys.readouterr().out
    assert "format: amg" in page
    assert "masks: 11" in page
    assert "broken: 0 bytes" in page
    assert cli.main(["masks", "export", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
