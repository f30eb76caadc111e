"""COCO files written image by image; a file appears whole or not at all."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from sfss_ray.errors import OutputError
from sfss_ray.masks.importing.coco_writer import writing_coco

CATEGORIES = [{"id": 1, "name": "mask"}]


def test_images_and_annotations_have_ids_from_1(tmp_path: Path):
    path = tmp_path / "folder" / "coco.json"
    with writing_coco(path, CATEGORIES) as writer:
        writer.add({"file_name": "ä.png", "width": 2, "height": 1}, [{"area": 1}, {"area": 2}])
        writer.add({"file_name": "b.png", "width": 2, "height": 1}, [])
        writer.add({"file_name": "c.png", "width": 2, "height": 1}, [{"area": 3}])
        assert not path.exists()
    content = json.loads(path.read_text())
    assert content["categories"] == CATEGORIES
    assert [(i["id"], i["file_name"]) for i in content["images"]] == [
        (1, "ä.png"),
        (2, "b.png"),
        (3, "c.png"),
    ]
    assert content["annotations"] == [
        {"id": 1, "image_id": 1, "area": 1},
        {"id": 2, "image_id": 1, "area": 2},
        {"id": 3, "image_id": 3, "area": 3},
    ]


def test_a_file_without_images_is_valid(tmp_path: Path):
    with writing_coco(tmp_path / "coco.json", CATEGORIES):
        pass
    content = json.loads((tmp_path / "coco.json").read_text())
    assert (content["images"], content["annotations"]) == ([], [])


def test_an_error_leaves_the_former_file(tmp_path: Path):
    path = tmp_path / "coco.json"
    path.write_text("former")
    with (
        pytest.raises(ValueError, match="JSON compliant"),
        writing_coco(path, CATEGORIES) as writer,
    ):
        writer.add({"file_name": "a.png"}, [{"score": float("nan")}])
    assert path.read_text() == "former"
    assert [file.name for file in tmp_path.iterdir()] == ["coco.json"]


def test_a_folder_cannot_be_replaced(tmp_path: Path):
    with pytest.raises(OutputError, match="cannot be written"), writing_coco(tmp_path, CATEGORIES):
        pass


def test_memory_does_not_grow_with_the_images(tmp_path: Path):
    def peak(num_images: int) -> int:
        tracemalloc.start()
        with writing_coco(tmp_path / "coco.json", CATEGORIES) as writer:
            for k in range(num_images):
                writer.add({"file_name": f"{k}.png"}, [{"counts": "0" * 1000}])
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    few, many = peak(2000), peak(20_000)
    assert (tmp_path / "coco.json").stat().st_size > 20e6
    assert many < few + 2e6
