"""COCO files: data sets and results, against pycocotools; entries that contradict each other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amg_samples import MASKS, SIZE, as_rle, record
from pycocotools.coco import COCO
from segment_anything.utils.amg import mask_to_rle_pytorch

from sfss_ray.errors import DataError
from sfss_ray.masks.importing.coco_files import CocoFile, parse_coco

POLYGONS = [[2.5, 3.0, 20.0, 3.5, 11.0, 17.0], [30.0, -4.0, 55.0, 9.0, 33.0, 40.0]]


def annotation(number: int, image: int, segmentation: Any, **entries) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "segmentation": segmentation,
        "iscrowd": 0,
        **entries,
    }


def data_set() -> dict[str, Any]:
    """Return two images: one with a mask in each form, and one without annotations."""
    mask = MASKS["frame4"][1]
    runs = mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
    string = as_rle(record(mask))["segmentation"]
    return {
        "images": [
            {"id": 70_000, "file_name": "val/a.jpg", "height": SIZE[0], "width": SIZE[1]},
            {"id": 2, "file_name": "b.jpg", "height": SIZE[0], "width": SIZE[1]},
        ],
        "annotations": [
            annotation(100_000, 70_000, POLYGONS, score=0.5),
            annotation(100_001, 70_000, string, iscrowd=1, predicted_iou=0.25),
            annotation(100_002, 70_000, runs, category_id=9, stability_score=0.125),
        ],
        "categories": [{"id": 1, "name": "car"}, {"id": 9, "name": "person"}],
    }


def as_text(string: str | bytes) -> str:
    return string if isinstance(string, str) else string.decode()


def parse(content: Any, *image_ids: str) -> CocoFile:
    return parse_coco(Path("coco.json"), content, image_ids or ("val/a", "b"))


def test_masks_are_those_of_pycocotools(tmp_path: Path):
    content = data_set()
    (tmp_path / "coco.json").write_text(json.dumps(content))
    api = COCO(tmp_path / "coco.json")
    images = parse(content).images
    assert set(images) == {"val/a", "b"}
    records = images["val/a"].read(SIZE)
    strings = [api.annToRLE(entry)["counts"] for entry in api.loadAnns(api.getAnnIds(70_000))]
    assert [stored["counts"] for stored in records] == [as_text(string) for string in strings]
    scores = [(stored["predicted_iou"], stored["stability_score"]) for stored in records]
    expected = [(0.5, math.nan), (0.25, math.nan), (math.nan, 0.125)]
    assert np.array_equal(scores, expected, equal_nan=True)
    assert images["b"].read(SIZE) == []


def test_overlapping_masks_and_ids_above_65535_stay_apart():
    content = data_set()
    content["annotations"] = [
        annotation(70_000 + k, 70_000, mask.tolist()) for k, mask in enumerate(MASKS["frame4"])
    ]
    records = parse(content).images["val/a"].read(SIZE)
    assert [stored["area"] for stored in records] == [int(m.sum()) for m in MASKS["frame4"]]
    assert np.logical_and.reduce(MASKS["frame4"][2:]).any(), "they overlap"


def test_results_of_a_detector_have_a_number_or_a_name():
    mask = as_rle(record(MASKS["frame4"][1]))["segmentation"]
    results = [
        {"image_id": 42, "category_id": 3, "segmentation": mask, "score": 0.5},
        {"image_id": 7, "file_name": "town.png", "segmentation": mask, "score": 0.25},
        {"image_id": 42, "category_id": 3, "segmentation": mask, "score": 0.75},
        {"image_id": "street", "segmentation": mask, "score": 1},
        {"image_id": 8, "segmentation": mask, "score": 1},
    ]
    images = parse(results, "val/000042", "town", "street", "x/08", "y/8").images
    assert set(images) == {"val/000042", "town", "street", "8"}
    records = images["val/000042"].read(SIZE)
    assert [stored["predicted_iou"] for stored in records] == [0.5, 0.75]
    assert records[0]["counts"] == mask["counts"]


def test_results_without_a_number_or_a_mask_are_refused():
    with pytest.raises(DataError, match="entry 1 of its results has no 'image_id'"):
        parse([{"image_id": 1, "bbox": []}, {"bbox": []}])
    with pytest.raises(DataError, match="it has neither images nor results"):
        parse("text")
    with pytest.raises(DataError, match="image 'a': result 0 has no 'segmentation'"):
        parse([{"image_id": "a", "bbox": []}]).images["a"].read(SIZE)


def test_two_entries_of_one_image_are_named():
    content = data_set()
    content["images"].append({"id": 3, "file_name": "val/a.jpg"})
    assert parse(content).duplicates["val/a"] == (
        "'coco.json' has two entries for it, 'val/a.jpg' (id 70000) and 'val/a.jpg' (id 3): keep one"
        " of them"
    )


def test_annotations_without_an_image_are_counted():
    content = data_set()
    content["annotations"][1]["image_id"] = 12
    coco = parse(content)
    assert coco.strays == 1
    assert len(coco.images["val/a"].annotations) == 2


def test_a_stamp_changes_with_an_annotation_of_the_image_alone():
    first, second = data_set(), data_set()
    second["annotations"][2]["segmentation"]["counts"][0] += 1
    stamps = [{n: i.stamp() for n, i in parse(c).images.items()} for c in (first, second)]
    assert stamps[0]["val/a"] != stamps[1]["val/a"]
    assert stamps[0]["b"] == stamps[1]["b"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": [{"file_name": "a.jpg"}]}, "entry 0 of its images has no 'id'"),
        ({"images": [{"id": 1, "file_name": None}]}, "entry 0 of its images has no 'file_name'"),
        ({"images": 7}, "its images are 7: allowed is a list"),
        ({"annotations": {"a": 1}}, "its annotations are .*: allowed is a list"),
        ({"annotations": [{"id": 3}]}, "entry 0 of its annotations has no 'image_id'"),
        ({"annotations": [{"image_id": 2}, 7]}, "entry 1 of its annotations has no 'image_id'"),
        ({"annotations": [{"image_id": [1]}]}, "unhashable"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]},
            "'a.jpg' and 'b.jpg' have the same id 1",
        ),
        ({"annotations": [{"segments_info": []}]}, "it is COCO's panoptic form"),
    ],
)
def test_contradictions_are_refused_in_one_line(change, reason):
    with pytest.raises(
        DataError, match=f"'coco.json' is not a valid COCO file: .*{reason}"
    ) as raised:
        parse(data_set() | change)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], r"annotation 5: its segmentation is '\[\]'"),
        (
            {"size": [40, 24], "counts": [960]},
            "annotation 5: it is 24x40 pixels, its image is 40x24",
        ),
        ({"size": [24, 40], "counts": [959]}, "annotation 5: its runs cover 959 pixels, not 960"),
        ([[1, 2, 3]], "annotation 5: a polygon has the shape"),
        ({"counts": [960]}, "annotation 5 is not a record of a mask"),
    ],
)
def test_errors_name_the_annotation(segmentation, reason):
    content = data_set() | {"annotations": [annotation(5, 70_000, segmentation)]}
    with pytest.raises(DataError, match=f"'coco.json': image 'val/a.jpg': {reason}"):
        parse(content).images["val/a"].read(SIZE)


def test_a_size_that_is_not_the_images_is_refused():
    with pytest.raises(DataError, match=r"'val/a.jpg': it is 40x24 pixels, its image is 24x40"):
        parse(data_set()).images["val/a"].read((40, 24))
    content = data_set()
    for image in content["images"]:
        image["height"], image["width"] = map(str, SIZE)
    assert len(parse(content).images["val/a"].read(SIZE)) == 3
    content["images"][0]["height"] = "high"
    with pytest.raises(DataError, match=r"'val/a\.jpg': invalid literal"):
        parse(content).images["val/a"].read(SIZE)
    for image in content["images"]:
        del image["height"], image["width"]
    assert len(parse(content).images["val/a"].read(SIZE)) == 3
