"""JSON files of one image: records, SA-1B, dumps of transformers and ultralytics, and their damage."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amg_samples import (
    MASKS,
    SIZE,
    as_rle,
    import_quietly,
    put_images,
    put_masks,
    record,
    refuse_frame2,
    write_json,
)
from PIL import Image
from pycocotools import mask as coco
from segment_anything.utils.amg import mask_to_rle_pytorch

from sfss_ray.errors import DataError
from sfss_ray.masks.importing.array_files import read_array_masks
from sfss_ray.masks.importing.json_files import (
    kind_of_json,
    load_json,
    read_entry,
    read_json_masks,
    read_text_masks,
)

PIXELS = MASKS["frame3"]
SQUARE = [4.0, 3.0, 12.0, 3.0, 12.0, 9.0, 4.0, 9.0]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def strings(masks: list[np.ndarray]) -> list[str]:
    """Return the strings of pycocotools."""
    runs = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return [run["counts"].decode() for run in runs]


def counts(records: list[dict[str, Any]]) -> list[str]:
    return [stored["counts"] for stored in records]


def from_polygon(polygon: list[float]) -> str:
    """Return the string of pycocotools for a polygon."""
    return coco.frPyObjects([polygon], *SIZE)[0]["counts"].decode()


def without_scores(records: list[dict[str, Any]]) -> bool:
    scores = [stored[name] for stored in records for name in ("predicted_iou", "stability_score")]
    return all(map(math.isnan, scores))


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def test_records_need_a_segmentation_alone(tmp_path: Path):
    entries = [{"segmentation": as_rle(record(mask))["segmentation"]} for mask in PIXELS]
    records = read_json_masks(write(tmp_path / "a.json", entries), SIZE, "amg")
    assert counts(records) == strings(PIXELS)
    assert without_scores(records)
    assert all(math.isnan(number) for stored in records for number in stored["point"])
    assert {tuple(stored["crop_box"]) for stored in records} == {(0, 0, SIZE[1], SIZE[0])}


def test_files_of_sa1b_are_read_with_their_scores(tmp_path: Path):
    """In the form that its download page describes: an image, and annotations with ids."""
    image = {"image_id": 7, "file_name": "sa_7.jpg", "height": SIZE[0], "width": SIZE[1]}
    entries = [as_rle(record(mask, 0.5)) | {"id": k} for k, mask in enumerate(PIXELS)]
    path = write(tmp_path / "sa_7.json", {"image": image, "annotations": entries})
    assert kind_of_json(load_json(path)) == "sa1b"
    records = read_json_masks(path, SIZE, "sa1b")
    assert counts(records) == strings(PIXELS)
    assert [stored["predicted_iou"] for stored in records] == [0.5] * 3
    assert [stored["stability_score"] for stored in records] == [0.25] * 3
    write(path, {"image": image | {"height": 99}, "annotations": entries})
    with pytest.raises(DataError, match=r"sa_7\.json': it is 40x99 pixels, its image is 40x24"):
        read_json_masks(path, SIZE, "sa1b")


@pytest.mark.parametrize("form", ["lists", "rows of numbers", "rle_mask"])
def test_dumps_of_the_transformers_pipeline(form, tmp_path: Path):
    """Its masks are bool arrays, its option output_rle_mask adds uncompressed runs."""
    arrays = torch.from_numpy(np.stack(PIXELS))
    output: dict[str, Any] = {"scores": [0.5, 0.25, 0.75]}
    if form == "rle_mask":
        output["rle_mask"] = mask_to_rle_pytorch(arrays)
    else:
        output["masks"] = (arrays if form == "lists" else arrays.int()).tolist()
    path = write(tmp_path / "a.json", output)
    assert kind_of_json(load_json(path)) == "transformers"
    records = read_json_masks(path, SIZE, "transformers")
    assert counts(records) == strings(PIXELS)
    assert [stored["predicted_iou"] for stored in records] == output["scores"]
    assert all(math.isnan(stored["stability_score"]) for stored in records)


def test_output_of_the_pipeline_itself(tmp_path: Path):
    """Its tensors as JSON, as runs, and as arrays; the network's weights are random."""
    pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")
    from transformers_models import mask_pipeline

    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    output = mask_pipeline()(
        Image.fromarray(pixels),
        **{"pred_iou_thresh": -9, "stability_score_thresh": -1, "crops_nms_thresh": 1.1},
        points_per_crop=4,
        output_rle_mask=True,
    )
    masks, scores = torch.stack(list(output["masks"])), output["scores"]
    assert len(masks) >= 10
    contents = {
        "lists": {"masks": masks.tolist(), "scores": scores.tolist()},
        "runs": {"rle_mask": output["rle_mask"], "scores": scores.tolist()},
    }
    for name, content in contents.items():
        path = write(tmp_path / f"{name}.json", content)
        records = read_json_masks(path, SIZE, "transformers")
        assert counts(records) == strings(list(masks.numpy()))
        assert [stored["predicted_iou"] for stored in records] == scores.tolist()
    np.savez(tmp_path / "a.npz", masks=masks, scores=scores)
    assert str(read_array_masks(tmp_path / "a.npz", SIZE)) == str(records)


def ultralytics(polygon: list[float], confidence: float | None = 0.5) -> dict[str, Any]:
    """Return a result as Results.to_json writes it."""
    box = {"x1": 4.0, "y1": 3.0, "x2": 12.0, "y2": 9.0}
    result = {"name": "car", "class": 2, "confidence": confidence, "box": box}
    return result | {"segments": {"x": polygon[0::2], "y": polygon[1::2]}}


def test_results_of_ultralytics_are_polygons(tmp_path: Path):
    outside = [-5.0, 10.5, 30.25, 2.0, 90.0, 70.0]
    path = write(tmp_path / "a.json", [ultralytics(SQUARE), ultralytics(outside, 0.25)])
    assert kind_of_json(load_json(path)) == "ultralytics"
    records = read_json_masks(path, SIZE, "ultralytics")
    assert counts(records) == [from_polygon(SQUARE), from_polygon(outside)]
    assert [stored["predicted_iou"] for stored in records] == [0.5, 0.25]


def test_shares_of_the_image_become_pixels(tmp_path: Path):
    """With `normalize=True`, and in the lines of save_txt with and without a confidence."""
    shares = [number / (SIZE[1], SIZE[0])[i % 2] for i, number in enumerate(SQUARE)]
    pixels = from_polygon([share * (SIZE[1], SIZE[0])[i % 2] for i, share in enumerate(shares)])
    path = write(tmp_path / "a.json", [ultralytics(shares)])
    assert counts(read_json_masks(path, SIZE, "ultralytics")) == [pixels]
    line = " ".join(map(str, shares))
    (tmp_path / "a.txt").write_text(f"0 {line}\n\n7 {line} 0.5\n")
    records = read_text_masks(tmp_path / "a.txt", SIZE)
    assert counts(records) == [pixels, pixels]
    assert math.isnan(records[0]["predicted_iou"])
    assert records[1]["predicted_iou"] == 0.5


def test_an_empty_outline_is_an_empty_mask(tmp_path: Path):
    """ultralytics writes it for a mask without a contour."""
    path = write(tmp_path / "a.json", [ultralytics([]), ultralytics(SQUARE)])
    assert [r["area"] for r in read_json_masks(path, SIZE, "ultralytics")] == [0, 48]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 .1 .1 .5 .5", "has 4 numbers behind its class"),
        ("0 .1 .1 .5 .5 .9", "has 5 numbers behind its class"),
        ("0 .1 .1 .5 .5 40 .9", "a coordinate is not a share"),
        ("road .1 .1 .5 x .4 .9", "could not convert"),
    ],
)
def test_lines_that_are_no_outline_are_refused(text, reason, tmp_path: Path):
    (tmp_path / "a.txt").write_text(f"{text}\n")
    with pytest.raises(DataError, match=rf"a\.txt' is no file of outlines .*{reason}"):
        read_text_masks(tmp_path / "a.txt", SIZE)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"images": [], "annotations": []}, "coco"),
        ([{"image_id": 1, "segmentation": {}}], "coco"),
        ([{"image_id": 1, "bbox": []}], "coco"),
        ([{"segmentation": {}}], "amg"),
        ([{"name": "car", "class": 2, "confidence": 0.5, "box": {}}], "ultralytics"),
        ([], "empty"),
        ({"rle_mask": []}, "transformers"),
        ([{"masks": [], "scores": []}], None),
        ({"imgHeight": 1, "objects": []}, None),
        ([1], None),
        (7, None),
    ],
)
def test_formats_are_told_from_the_content(content, kind):
    assert kind_of_json(content) == kind


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        ([], "sa1b", "is not of the form .* of SA-1B"),
        ({"image": {}, "annotations": 7}, "sa1b", "is not of the form .* of SA-1B"),
        ([], "transformers", "of one image"),
        ({"masks": [[[0]]], "scores": []}, "transformers", "has not one score for each mask"),
        ({"masks": 7, "scores": []}, "transformers", "has masks of type int: allowed is a list"),
        ({"masks": 5}, "transformers", "has masks of type int: allowed is a list"),
        ({"rle_mask": {}}, "transformers", "has masks of type dict: allowed is a list"),
        ({"masks": [[[True]]]}, "transformers", "mask 0: it is 1x1 pixels, its image is 40x24"),
        ({}, "ultralytics", "does not contain a list of results"),
        (
            [{"box": {}, "confidence": 1}],
            "ultralytics",
            "result 0 has no 'segments': only models of",
        ),
        ([ultralytics([1.0, 2.0, 3.0])], "ultralytics", "result 0 has no outline of numbers"),
        ([ultralytics(SQUARE) | {"segments": {"x": ["a"], "y": [1]}}], "ultralytics", "no outline"),
        ([ultralytics(SQUARE) | {"confidence": "high"}], "ultralytics", "result 0 is not a record"),
    ],
)
def test_other_forms_are_refused_in_one_line(content, kind, reason, tmp_path: Path):
    with pytest.raises(DataError, match=rf"a\.json'.*{reason}") as raised:
        read_json_masks(write(tmp_path / "a.json", content), SIZE, kind)
    assert "\n" not in str(raised.value)


def test_the_name_of_an_entry_begins_its_errors():
    with pytest.raises(DataError, match="annotation 9 has no 'segmentation'"):
        read_entry({"bbox": [1, 2, 3, 4]}, "annotation 9", SIZE)


def first_json(source: Path, change: Callable[[list], Any]) -> None:
    path = source / "frame2.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


BAD_JSON = {
    "cut": (lambda s: cut(s / "frame2.json", 80), "cannot be read as JSON"),
    "empty": (
        lambda s: (s / "frame2.json").write_bytes(b""),
        "cannot be read as JSON .it is empty",
    ),
    "pickle": (
        lambda s: (s / "frame2.json").write_bytes(pickle.dumps([{"segmentation": 1}])),
        "it is a pickle; pickles run code when they are opened: save the masks as JSON",
    ),
    "bytes": (lambda s: (s / "frame2.json").write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
    "deep": (lambda s: (s / "frame2.json").write_text("[" * 100_000), "cannot be read as JSON"),
    "no list": (
        lambda s: first_json(s, lambda r: {"annotations": r}),
        "does not contain a list of masks",
    ),
    "no key": (
        lambda s: first_json(s, lambda r: [{k: v for k, v in r[0].items() if k[0] != "s"}]),
        "mask 0 has no 'segmentation'",
    ),
    "no record": (lambda s: first_json(s, lambda r: [*r, 7]), "mask 2 has no 'segmentation'"),
    "words": (
        lambda s: first_json(s, lambda r: [r[0] | {"predicted_iou": "good"}]),
        "mask 0 is not a record .*good",
    ),
    "point": (lambda s: first_json(s, lambda r: [r[0] | {"point_coords": []}]), "is not a record"),
    "crop": (lambda s: first_json(s, lambda r: [r[0] | {"crop_box": [1, 2]}]), "a crop box 4"),
    "crop too large": (
        lambda s: first_json(s, lambda r: [r[0] | {"crop_box": [0, 0, 1e12, 24]}]),
        "mask 0 is not a record .*crop box is .*1000000000000",
    ),
    "no crop": (
        lambda s: first_json(s, lambda r: [r[0] | {"crop_box": [0, 0, float("nan"), 24]}]),
        "mask 0 is not a record .*crop box is",
    ),
    "polygon": (
        lambda s: first_json(s, lambda r: [r[0] | {"segmentation": [[1, 2, 3]]}]),
        "mask 0: a polygon has the shape .3,.",
    ),
    "size": (
        lambda s: first_json(
            s, lambda r: [r[0], as_rle(record(np.ones((SIZE[1], SIZE[0]), bool)))]
        ),
        "mask 1: it is 24x40 pixels, its image is 40x24",
    ),
    "runs": (
        lambda s: first_json(
            s, lambda r: [r[0] | {"segmentation": {"size": [*SIZE], "counts": "55"}}]
        ),
        "mask 0: its runs cover 10 pixels, not 960",
    ),
    "letters": (
        lambda s: first_json(
            s, lambda r: [r[0] | {"segmentation": {"size": [*SIZE], "counts": "é~"}}]
        ),
        "mask 0: not a COCO RLE string",
    ),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_only_the_image_of_a_damaged_file_fails(case, tmp_path: Path):
    damage, reason = BAD_JSON[case]
    images = put_images(tmp_path / "images", *MASKS)
    source = put_masks(tmp_path / "sam", write_json)
    damage(source)
    refuse_frame2(source, images, tmp_path / "out", reason)


def test_one_file_of_another_form_fails_alone(tmp_path: Path):
    images = put_images(tmp_path / "images", "a", "b")
    (tmp_path / "dumps").mkdir()
    masks = {"masks": np.ones((1, *SIZE), int).tolist(), "scores": [0.5]}
    write(tmp_path / "dumps" / "a.json", masks)
    write(tmp_path / "dumps" / "b.json", {"masks": 5})
    summary = import_quietly(tmp_path / "dumps", images, tmp_path / "out")
    assert (summary.masks, list(summary.errors)) == (1, ["b"])
    assert "b.json' has masks of type int: allowed is a list" in summary.errors["b"]
